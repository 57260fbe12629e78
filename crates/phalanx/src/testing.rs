//! For tests of services: a real cluster for as long as a test needs one.
//!
//! ```no_run
//! # // In a test of one's own: env!("CARGO_BIN_EXE_my-service")
//! let service = "target/debug/my-service";
//! let cluster = phalanx::testing::Cluster::new(service).workers(2).listen("127.0.0.1:0").start();
//! std::net::TcpStream::connect(cluster.address()).expect("somebody listens");
//! cluster.kill(0); // and its successor listens
//! ```

mod left;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use phalanx_core::{BoundAddress, Generation, Hurry, Slot, Speaks, State, Status, WorkerStatus};
use phalanx_os::Signal;

use crate::background::{self, block_on};
use crate::builder::{Builder, Cluster as Description, Count};
use crate::event::Event;
use crate::primary::{Primary, ReloadError};

/// A broken service must not hold up a test run for ever.
const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster for a test. Of two workers that speak with their primary, unless said otherwise.
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Cluster {
    builder: Builder,
    listeners: usize,
}

impl Cluster {
    /// A cluster of this program: for a service of the same package, `env!("CARGO_BIN_EXE_…")`.
    pub fn new(program: impl AsRef<OsStr>) -> Cluster {
        Cluster { builder: Description::builder().exec(program).workers(2), listeners: 0 }
    }

    /// How many workers.
    pub fn workers(self, count: impl Into<Count>) -> Cluster {
        self.with(|builder| builder.workers(count))
    }

    /// Arguments of the program.
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Cluster {
        self.with(|builder| builder.args(args))
    }

    /// A variable of the workers' environment.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Cluster {
        self.with(|builder| builder.env(name, value))
    }

    /// A listener that the primary has from the beginning: the first is called `default`, the second
    /// `default-2`. With port 0 there is no need to find a free one.
    pub fn listen(mut self, address: &str) -> Cluster {
        self.listeners += 1;
        let name = match self.listeners {
            1 => "default".to_owned(),
            n => format!("default-{n}"),
        };
        self.with(|builder| builder.listen(&name, address))
    }

    /// Anything else that a cluster can be.
    pub fn with(self, change: impl FnOnce(Builder) -> Builder) -> Cluster {
        Cluster { builder: change(self.builder), ..self }
    }

    /// Starts it, and waits until every worker listens; for programs without a channel, until they run.
    ///
    /// # Panics
    /// If it does not come up, with what the workers printed last.
    #[must_use = "it stops when it is dropped"]
    #[track_caller]
    pub fn start(self) -> Running {
        let wanted = self.builder.config.wanted.unwrap_or(0);
        let until = match self.builder.config.speaks {
            Speaks::Nothing | Speaks::Perhaps => State::Online,
            _ => State::Listening,
        };
        // Who made a socket may keep it.
        let theirs: Vec<String> =
            self.builder.listen.iter().take(self.builder.inherited.len()).map(|it| it.name.clone()).collect();
        let mark = left::mark();
        let primary = match self.builder.env(left::MARK, &mark).start() {
            Ok(primary) => primary,
            Err(error) => panic!("the cluster cannot start: {error}"),
        };
        let pids = Arc::new(Mutex::new(BTreeSet::new()));
        let (events, noted) = (primary.events(), Arc::clone(&pids));
        let notes = std::thread::spawn(move || {
            for event in events {
                if let Event::Fork { pid, .. } = event {
                    lock(&noted).insert(pid);
                }
            }
        });
        let running = Running { primary: Some(primary), pids, notes: Some(notes), until, theirs, mark };
        running.wait("all workers are up", |status| {
            let up = status.workers.iter().filter(|worker| worker.state == until);
            up.count() >= usize::try_from(wanted).unwrap_or(usize::MAX)
        });
        running
    }
}

/// A cluster that runs. When it is dropped, it is stopped, and nothing may be left of it: no worker, nothing that a worker
/// has started, and in this process no listening socket. A test that leaves something fails, and says what.
pub struct Running {
    /// `None` once dropped.
    primary: Option<Primary>,
    /// Of every worker there ever was.
    pids: Arc<Mutex<BTreeSet<u32>>>,
    notes: Option<JoinHandle<()>>,
    /// The state of a worker that is up.
    until: State,
    /// Names of listeners that were made outside.
    theirs: Vec<String>,
    /// What all of its processes have in their environment.
    mark: String,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("pids", &*lock(&self.pids)).finish_non_exhaustive()
    }
}

impl Running {
    /// Where it listens: its first TCP listener. An unspecified address is given as the loopback, which
    /// clients can connect to.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        let status = self.status();
        let address = status.listeners.iter().find_map(|listener| match &listener.address {
            Some(BoundAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        let Some(mut address) = address else { panic!("it listens on no TCP address: {status:?}") };
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        address
    }

    /// What is going on.
    ///
    /// # Panics
    /// If it has ended by itself.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        self.primary().status().expect("it has ended by itself")
    }

    /// Its primary.
    ///
    /// # Panics
    /// Never: it is there until this is dropped.
    #[must_use]
    pub fn primary(&self) -> &Primary {
        self.primary.as_ref().expect("it is taken by drop only")
    }

    /// Kills the worker of a slot with SIGKILL, and waits until its successor is up. Gives the successor's
    /// pid.
    ///
    /// # Panics
    /// If there is no such worker, or none that follows it.
    #[track_caller]
    #[must_use]
    pub fn kill(&self, slot: u32) -> u32 {
        let here = |worker: &&WorkerStatus| worker.slot == Slot(slot) && worker.state.is_alive();
        let status = self.status();
        let Some(victim) = status.workers.iter().rfind(here) else { panic!("no worker {slot}: {status:?}") };
        let worker = self.primary().worker(victim.id);
        assert!(worker.is_some_and(|worker| worker.signal(Signal::KILL)), "worker {slot} has just ended");
        let up = |worker: &&WorkerStatus| here(worker) && worker.id > victim.id && worker.state == self.until;
        let status = self.wait("a successor is up", |status| status.workers.iter().any(|worker| up(&worker)));
        status.workers.iter().find(up).map(|worker| worker.pid).expect("there was one")
    }

    /// Replaces every worker by a new one, as a deploy would, and waits until that is done.
    ///
    /// # Errors
    /// Why the new ones cannot serve, with what they printed last; the old ones serve on.
    ///
    /// # Panics
    /// After a minute.
    #[track_caller]
    pub fn reload(&self) -> Result<Generation, ReloadError> {
        match in_time(self.primary().reload()) {
            Some(outcome) => outcome,
            None => panic!("the reload takes too long: {:?}", self.status()),
        }
    }

    /// Waits for a fact; it is looked at whenever something happens.
    ///
    /// # Panics
    /// After a minute, or when workers die again and again.
    #[track_caller]
    pub fn wait(&self, what: &str, mut fact: impl FnMut(&Status) -> bool) -> Status {
        let mut events = self.primary().events();
        loop {
            let status = self.status();
            if fact(&status) {
                return status;
            }
            match in_time(events.recv()) {
                Some(Some(Event::Degraded { slot })) => {
                    let last = self.primary().last_lines(slot).join("\n");
                    panic!("{what}: no, workers die as soon as they are started\n{status:?}\n{last}");
                }
                Some(Some(Event::ForkFailed { error, .. })) => panic!("{what}: no, {error}"),
                Some(Some(Event::BindFailed { key, errno, .. })) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    panic!("{what}: no, cannot listen on {key}: {error}");
                }
                Some(Some(_)) => {}
                Some(None) => panic!("{what}: no, the cluster has ended\n{status:?}"),
                None => panic!("{what}: not in time\n{:?}", self.primary().status()),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(primary) = self.primary.take() else { return };
        let addresses: Vec<BoundAddress> = primary.status().map_or_else(
            |_| Vec::new(),
            |status| {
                let own =
                    |name: &Option<String>| !name.as_ref().is_some_and(|name| self.theirs.contains(name));
                status.listeners.into_iter().filter(|it| own(&it.name)).filter_map(|it| it.address).collect()
            },
        );
        let graceful = in_time(primary.stop(Hurry::Graceful)).is_some();
        if !graceful {
            let _ = in_time(primary.stop(Hurry::Kill));
        }
        drop(primary);
        if let Some(notes) = self.notes.take() {
            // It ends with the cluster.
            let _ = notes.join();
        }
        let left: Vec<u32> = lock(&self.pids).iter().copied().filter(|pid| is_child(*pid)).collect();
        let others = left::processes(&self.mark);
        let open = left::listeners(&addresses);
        if !std::thread::panicking() {
            assert!(others.is_empty(), "workers have left processes behind: {}", others.join(", "));
            assert!(open.is_empty(), "sockets of the cluster are left open: {}", open.join("; "));
            assert!(left.is_empty(), "processes of the cluster are left, or were not waited for: {left:?}");
            assert!(graceful, "the cluster had to be killed");
        }
    }
}

/// `None`: it took too long. In any runtime and in none.
fn in_time<T>(future: impl Future<Output = T>) -> Option<T> {
    let _inside = background::handle().expect("a thread").enter();
    block_on(tokio::time::timeout(DEADLINE, future)).ok()
}

/// Whether it exists and was started by this process; a zombie counts.
fn is_child(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in parentheses, may hold anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    rest.split(' ').nth(1).and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
