//! One program that is the primary and its own workers.

use crate::background::block_on;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::worker::Worker;
use phalanx_core::{Hurry, Slot, Speaks, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Any error of a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Builder {
    /// Clusters this very program: in the primary, starts it again as often as workers are wanted (as many as
    /// there are processors, unless said otherwise) with the same arguments, and returns when all have ended;
    /// in a worker, runs `service` in a runtime (of one thread, unless [`threads`](Builder::threads) says otherwise) and returns when that is done.
    ///
    /// Sockets of a service manager (`LISTEN_FDS`) become listeners, as with
    /// [`inherit_listen_fds`](Builder::inherit_listen_fds).
    ///
    /// Whatever `main` does before this, every worker does again. SIGTERM or SIGINT stops the cluster: the
    /// first gracefully, the second without waiting for connections, the third at once. Under `phalanx run`,
    /// or as a worker of any other primary, the program is simply a worker, and this description is ignored.
    ///
    /// ```no_run
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::Cluster::builder().workers("auto").run(|worker| async move {
    ///         let listener = phalanx::net::TcpListener::bind("0.0.0.0:3000").await?;
    ///         # drop(listener);
    ///         worker.draining().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// In the primary, as [`start`](Builder::start), and [`Error::Service`] when `service` fails in every worker
    /// before any of them listens: then it is not started again. In a worker,
    /// [`Error::Service`] with what `service` returned; messages that it sent before are not lost.
    /// [`Error::InsideRuntime`] inside of a runtime, [`Error::InTest`] in a test.
    pub fn run<F, Fut>(self, service: F) -> Result<()>
    where
        F: FnOnce(Worker) -> Fut,
        Fut: Future<Output = Result<(), BoxError>>,
    {
        let threads = self.threads;
        self.run_blocking(move |worker| workers_runtime(threads)?.block_on(service(worker)))
    }

    /// As [`run`](Builder::run), for a service that needs no runtime, or has its own.
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    pub fn run_blocking<F>(self, service: F) -> Result<()>
    where
        F: FnOnce(Worker) -> Result<(), BoxError>,
    {
        if Handle::try_current().is_ok() {
            return Err(Error::InsideRuntime);
        }
        if let Some(worker) = crate::worker::worker()? {
            if let Some(payload) = self.payload {
                // For one who is the worker of somebody else's cluster, which passed none.
                crate::worker::config::fall_back(payload);
            }
            return serve(&worker, service);
        }
        supervise(self.of_this_program()?.inherit_listen_fds())
    }

    fn of_this_program(mut self) -> Result<Builder> {
        if self.config.wanted.is_none() {
            self = self.workers("auto");
        }
        if self.program.is_none() {
            if in_test() {
                return Err(Error::InTest);
            }
            let program = std::env::current_exe()
                .map_err(|source| Error::System { what: "cannot tell which program this is", source })?;
            self.program = Some(program.into());
            let own = std::env::args_os().skip(1);
            self.args.splice(0..0, own);
            self = self.env(phalanx_os::inherit::PHALANX_RUN, "1");
        }
        self.config.speaks = Speaks::Phalanx;
        Ok(self)
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime", source })
}

fn workers_runtime(threads: usize) -> Result<Runtime> {
    if threads <= 1 {
        return runtime();
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime", source })
}

/// Whether this process is a test harness: cargo builds those into a directory called `deps`, with a hash behind
/// the name, and nothing else that is run from there.
pub(crate) fn in_test() -> bool {
    let Ok(program) = std::env::current_exe() else { return false };
    let in_deps = program.parent().and_then(Path::file_name).is_some_and(|dir| dir == "deps");
    let name = program.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    in_deps
        && name
            .rsplit_once('-')
            .is_some_and(|(_, hash)| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What a worker tells the primary of its own program, before it ends.
#[derive(Debug, Deserialize, Serialize)]
struct Failed {
    phalanx_service_failed: String,
}

fn serve<F>(worker: &Worker, service: F) -> Result<()>
where
    F: FnOnce(Worker) -> Result<(), BoxError>,
{
    let own = worker.is_own();
    if !own {
        tracing::info!("a worker of another primary: what this program says about its cluster is ignored");
    }
    let served = service(worker.clone());
    if let (Err(error), true) = (&served, own) {
        let _ = block_on(worker.send(&Failed { phalanx_service_failed: error.to_string() }));
    }
    block_on(worker.flush());
    served.map_err(Error::Service)
}

/// Starts it and waits for the end, and hears signals meanwhile.
fn supervise(builder: Builder) -> Result<()> {
    let runtime = runtime()?;
    let hear = |kind| {
        let _inside = runtime.enter();
        signal(kind).map_err(|source| Error::System { what: "cannot hear signals", source })
    };
    // Before there are workers: who sees one may send a signal.
    let (mut terminate, mut interrupt) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
    let primary = builder.start()?;
    runtime.block_on(async {
        let mut events = primary.events();
        let mut hurries = [Hurry::Graceful, Hurry::Terminate].into_iter();
        let mut outcome = Outcome::default();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Finished) | None => return outcome.result(),
                    Some(event) => {
                        if outcome.hear(&event) {
                            drop(primary.stop(Hurry::Terminate));
                        }
                        continue;
                    }
                },
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            drop(primary.stop(hurries.next().unwrap_or(Hurry::Kill)));
        }
    })
}

/// Whether the service ever worked. One that fails in every worker before any of them has listened will not get
/// better by being started again.
#[derive(Debug, Default)]
struct Outcome {
    started: BTreeSet<Slot>,
    failed: BTreeMap<Slot, String>,
    /// By worker, until its end.
    slots: BTreeMap<WorkerId, Slot>,
    listened: bool,
}

impl Outcome {
    /// Whether it is hopeless.
    fn hear(&mut self, event: &Event) -> bool {
        match event {
            Event::Fork { worker, slot, .. } => {
                self.started.insert(*slot);
                self.slots.insert(*worker, *slot);
            }
            // Ready says less: by default a worker is ready when it is up.
            Event::Listening { .. } => self.listened = true,
            Event::Message { worker, message, .. } => {
                if let Ok(Failed { phalanx_service_failed: error }) = Failed::deserialize(message)
                    && let Some(slot) = self.slots.get(worker)
                {
                    tracing::error!(%worker, error, "the service failed");
                    self.failed.insert(*slot, error);
                }
            }
            Event::Exit { worker, ended, .. } => {
                self.slots.remove(worker);
                return !ended.is_success() && self.is_hopeless();
            }
            _ => {}
        }
        false
    }

    fn is_hopeless(&self) -> bool {
        !self.listened
            && !self.started.is_empty()
            && self.started.iter().all(|slot| self.failed.contains_key(slot))
    }

    fn result(mut self) -> Result<()> {
        match (self.is_hopeless(), self.failed.pop_first()) {
            (true, Some((_, error))) => Err(Error::Service(error.into())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::Ended;

    #[test]
    fn a_service_that_fails_everywhere_is_given_up() {
        let fork = |n: u32| Event::Fork { worker: WorkerId(n), slot: Slot(n), pid: n };
        let failed = |n: u32| Event::Message {
            worker: WorkerId(n),
            message: serde_json::json!({ "phalanx_service_failed": "no port" }),
            handle: None,
        };
        let exit = |n: u32| Event::Exit {
            worker: WorkerId(n),
            slot: Slot(n),
            ended: Ended::Code(1),
            cause: None,
            exited_after_disconnect: false,
            taken: 0,
            unacknowledged: 0,
            last_lines: Vec::new(),
        };
        let hear = |outcome: &mut Outcome, events: &[Event]| events.iter().any(|event| outcome.hear(event));
        let mut outcome = Outcome::default();
        assert!(!hear(&mut outcome, &[fork(0), fork(1), failed(0), exit(0)]), "there is another one");
        assert!(hear(&mut outcome, &[failed(1), exit(1)]));
        assert_eq!(outcome.result().unwrap_err().to_string(), "no port");

        let mut outcome = Outcome { listened: true, ..Outcome::default() };
        assert!(!hear(&mut outcome, &[fork(0), failed(0), exit(0)]), "it has worked before");
        assert!(outcome.result().is_ok());
    }

    #[test]
    fn a_test_is_known() {
        assert!(in_test());
    }
}
