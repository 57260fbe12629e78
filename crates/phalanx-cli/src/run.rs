//! `phalanx run`.

use crate::args;
use crate::control::{Door, Served};
use crate::exit::{Code, Failure};
use crate::journal::Journal;
use crate::operation::Describe;
use crate::target::target;
use crate::why::Ends;
use phalanx::{
    Builder, Cluster, Event, Hurry, Inspect, Line, Orphans, Output, Policy, Primary, Reload, ReloadError,
};
use std::io::Write;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) fn run(args: args::Run) -> Result<Code, Failure> {
    crate::log::init(args.log.clone());
    let target = target(&args.command, args.channel)?;
    let workers = match args.workers.as_str() {
        "auto" => u32::try_from(phalanx_os::host::parallelism()).unwrap_or(1),
        number => number.parse().map_err(|_| {
            Failure::new(Code::Usage, format!("`{number}` is no number of workers: give a number, or auto"))
        })?,
    };
    let policy = match args.policy {
        Some(policy) => policy,
        // Node's own variable is honoured; anything but its two words means nothing (POL-03).
        None => match std::env::var("NODE_CLUSTER_SCHED_POLICY").as_deref() {
            Ok("none") => Policy::None,
            _ => Policy::RoundRobin,
        },
    };
    let mut builder = args
        .lives
        .describe(program(&args)?)
        .workers(workers)
        .policy(policy)
        .mechanism(args.mechanism)
        .weights(args.weights.iter().copied())
        .lag_after(args.lag_after);
    if let Some(window) = args.window {
        builder = builder.window(window);
    }
    builder = builder.inherit_listen_fds();
    for (n, listen) in args.listen.iter().enumerate() {
        let (name, address) = match listen.split_once('=') {
            Some((name, address)) => (name.to_owned(), address),
            None => {
                (if n == 0 { "default".to_owned() } else { format!("default-{}", n + 1) }, listen.as_str())
            }
        };
        builder = builder.listen(&name, address);
    }
    let door = Door::open(args.name.as_deref(), &target.name)?;
    let _ = phalanx_os::host::become_subreaper();
    builder = builder.reap_strangers(true);
    // Every connection under way costs an fd. Workers get the limit that we were started with: a program that
    // uses select(2) breaks above 1024.
    let mut open_files = None;
    match phalanx_os::host::raise_open_files() {
        Ok((original, _)) => open_files = Some(original),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let limited = move |builder: Builder| match open_files {
        Some(limit) => builder.open_files(limit),
        None => builder,
    };
    let name = door.as_ref().map_or_else(|| target.name.clone(), |door| door.name.clone());
    let signals = Signals::hear()?;
    let primary = limited(builder).name(&name).start()?;
    if args.user.is_none() && phalanx_os::user::is_root() {
        tracing::warn!("workers run as root: name a user with -u, as www-data or 1000:1000");
    }
    tracing::info!(name, workers, policy = %policy, pid = std::process::id(), "started");
    let cluster = name.clone();
    let describe = move || Ok(Some(limited(args.lives.describe(program(&args)?)).name(&cluster)));
    supervise(signals, &primary, door, &name, Arc::new(describe), tell)
}

/// The program, and what it is given: read anew at each reload.
fn program(args: &args::Run) -> Result<Builder, Failure> {
    let target = target(&args.command, args.channel)?;
    let mut builder = Cluster::builder()
        .exec(&target.program)
        .args(&target.args)
        .channel(target.speaks)
        .serialization(args.serialization)
        .orphans(args.lives.orphans);
    if let Some(base) = args.inspect {
        builder = builder.inspect(Inspect::Now { base });
    } else if let Some(base) = args.inspect_on_signal {
        builder = builder.inspect(Inspect::OnSignal { base });
    }
    // Orphans that serve on could not print through us when we are gone.
    if args.lives.orphans != Orphans::Serve {
        builder = builder.output(Output::Lines(Arc::new(print)));
    }
    if let Some(cwd) = &args.cwd {
        builder = builder.cwd(cwd);
    }
    for file in &args.env_file {
        for (name, value) in crate::env_file::read(file)? {
            builder = builder.env(name, value);
        }
    }
    if let Some(user) = &args.user {
        builder = builder.user(user);
    }
    for pair in &args.env {
        let (name, value) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Failure::new(Code::Usage, format!("`{pair}` is no variable: write NAME=VALUE")))?;
        builder = builder.env(name, value);
    }
    Ok(builder)
}

/// The signals that mean something here.
pub(crate) struct Signals {
    runtime: Runtime,
    term: Signal,
    int: Signal,
    quit: Signal,
    inspect: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on none of them ends this process. To be called before there are workers: who sees one may send one.
    pub(crate) fn hear() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Code::Failed, format!("cannot start a runtime: {error}")))?;
        let inside = runtime.enter();
        let hear = |kind| {
            signal(kind).map_err(|error| Failure::new(Code::Failed, format!("cannot hear signals: {error}")))
        };
        let term = hear(SignalKind::terminate())?;
        let int = hear(SignalKind::interrupt())?;
        let quit = hear(SignalKind::quit())?;
        let inspect = hear(SignalKind::user_defined1())?;
        let hangup = hear(SignalKind::hangup())?;
        drop(inside);
        Ok(Self { runtime, term, int, quit, inspect, hangup })
    }
}

/// Waits for signals and for the end, with the control plane beside.
pub(crate) fn supervise(
    signals: Signals,
    primary: &Primary,
    door: Option<Door>,
    name: &str,
    describe: Describe,
    mut hear: impl FnMut(&Primary, &Event),
) -> Result<Code, Failure> {
    let Signals { runtime, mut term, mut int, mut quit, mut inspect, mut hangup } = signals;
    runtime.block_on(async {
        let mut events = primary.events();
        let journal = Arc::new(Journal::default());
        let ends = Arc::new(Ends::default());
        let served = Served {
            primary: primary.clone(),
            name: name.to_owned(),
            journal: Arc::clone(&journal),
            ends: Arc::clone(&ends),
            describe: Arc::clone(&describe),
        };
        let control = door.map(|door| tokio::spawn(door.serve(served)));
        let mut stops = 0;
        let mut by_signal = None;
        let mut failed = false;
        let mut stop = |number: u8| {
            stops += 1;
            by_signal.get_or_insert(number);
            let (hurry, what) = match stops {
                1 => (Hurry::Graceful, "stopping: a second signal ends the drain, a third kills"),
                2 => (Hurry::Terminate, "ending the drain"),
                _ => (Hurry::Kill, "killing"),
            };
            tracing::info!("{what}");
            drop(primary.stop(hurry));
        };
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    // After `Finished`, what was printed last.
                    None => break,
                    Some(event) => {
                        if let Event::Exit { ended, exited_after_disconnect: false, .. } = &event {
                            failed |= !ended.is_success();
                        }
                        journal.write(&event);
                        ends.note(&event);
                        hear(primary, &event);
                    }
                },
                _ = term.recv() => stop(15),
                _ = int.recv() => stop(2),
                _ = quit.recv() => stop(3),
                _ = inspect.recv() => {
                    if !primary.open_inspectors() {
                        tracing::warn!("SIGUSR1 opens debuggers, for which workers need ports: --inspect-on-signal");
                    }
                }
                _ = hangup.recv() => match describe() {
                    // How it goes is told by events.
                    Ok(Some(builder)) => drop(tokio::spawn(tell_refusal(primary.reload_with(builder)))),
                    Ok(None) => drop(tokio::spawn(tell_refusal(primary.reload()))),
                    Err(error) => tracing::error!(%error, "cannot reload; what serves goes on"),
                },
            }
        }
        if let Some(control) = control {
            control.abort();
            let _ = control.await;
        }
        tracing::info!("all workers have ended");
        Ok(match by_signal {
            Some(number) => Code::Signal(number),
            None if failed => Code::Failed,
            None => Code::Ok,
        })
    })
}

/// A reload that could not even begin has no event.
async fn tell_refusal(reload: Reload) {
    match reload.await {
        Ok(_) | Err(ReloadError::Aborted { .. } | ReloadError::Ended) => {}
        Err(error) => tracing::error!(%error, "cannot reload; what serves goes on"),
    }
}

/// One line of a worker, tagged. Its stream stays its stream.
fn print(line: &Line<'_>) -> std::io::Result<()> {
    let text = format!("{}|{} {}\n", line.slot, line.worker, line.text);
    if line.is_stderr {
        std::io::stderr().lock().write_all(text.as_bytes())
    } else {
        // A line is complete: what could not be written must not wait for the next one.
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// What an operator should know of an event.
fn tell(primary: &Primary, event: &Event) {
    match event {
        Event::Fork { worker, slot, pid } => tracing::info!(%worker, %slot, pid, "worker started"),
        Event::Bound { name, address } => tracing::info!(listener = name, %address, "listening"),
        Event::ForkFailed { slot, error } => tracing::warn!(%slot, error, "worker could not be started"),
        Event::Listening { worker, info } => {
            tracing::info!(%worker, address = info.address, port = info.port, "worker listens");
        }
        Event::BindFailed { key, errno, held_by, .. } => {
            let error = std::io::Error::from_raw_os_error(*errno);
            tracing::warn!(key, %error, held_by, "cannot listen");
        }
        Event::Draining { worker } => tracing::info!(%worker, "worker drains"),
        Event::Exit { worker, slot, ended, cause, exited_after_disconnect, .. } => {
            let cause = cause.as_ref().map(ToString::to_string);
            if *exited_after_disconnect || ended.is_success() {
                tracing::info!(%worker, %slot, %ended, cause, "worker ended");
            } else {
                // A stack or a version may follow what it died of (`phalanx why` shows all).
                let lines = primary.last_lines(*slot);
                let last = lines.iter().rfind(|line| line.contains("rror:")).or(lines.last());
                tracing::warn!(%worker, %slot, %ended, cause, last, "worker died");
            }
        }
        Event::Ready { worker } => tracing::info!(%worker, "worker is ready"),
        Event::Hung { worker, how, seen } => {
            tracing::warn!(%worker, %how, "worker hangs");
            for line in seen {
                tracing::warn!(%worker, "{line}");
            }
        }
        Event::MovesAgain { worker } => tracing::info!(%worker, "worker moves again"),
        Event::Due { worker, cause } => tracing::info!(%worker, why = %cause, "worker will be replaced"),
        Event::Reloading { generation } => tracing::info!(%generation, "reloading"),
        Event::Reloaded { generation } => tracing::info!(%generation, "reloaded"),
        Event::ReloadAborted { generation, why, last_lines } => {
            tracing::warn!(%generation, %why, "reload given up; the generation before serves on");
            for line in last_lines {
                tracing::warn!(%generation, "it printed: {line}");
            }
        }
        Event::Stopping => tracing::info!("about to stop: not ready any more, and still serving"),
        Event::Violation { worker, how } => tracing::warn!(%worker, how, "worker broke the protocol"),
        Event::Degraded { slot } => tracing::warn!(%slot, "workers of this slot die before they come up"),
        Event::OutputDropped { dropped } => {
            tracing::warn!(
                dropped,
                "what the workers print is not read, or cannot be written: lines are dropped"
            );
        }
        Event::Lags { worker, key } => {
            tracing::debug!(%worker, key, "worker lags: others get its connections")
        }
        Event::SteeringRefused { engine, why } => {
            tracing::warn!(?engine, why, "the kernel cannot choose here; see `phalanx doctor`");
        }
        Event::Tampered { key } => {
            tracing::warn!(
                key,
                "somebody changed the sockets of a listener, a worker most likely; put right"
            );
        }
        Event::Strangers { key, count } if *count > 0 => {
            tracing::warn!(key, count, "other sockets listen on the same address: they may get connections");
        }
        Event::OutOfFiles { key } => tracing::warn!(key, "out of file descriptors: a listener rests"),
        Event::AcceptingAgain { key } => tracing::info!(key, "the listener accepts again"),
        _ => {}
    }
}
