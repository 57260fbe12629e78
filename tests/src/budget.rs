//! The failure budget: what is lost when things go wrong, for each mechanism and kind of worker.
//!
//! A [`Scenario`] makes something go wrong under load and accounts for every connection, the client's books
//! against the primary's. `./test --budget` runs all at full size and prints the table; the tests run them
//! smaller.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::lab;
use crate::load::{Ledger, Load, Running};
use crate::process::{Phalanx, Signal, children, free_port, kill, wait_until};

/// How a connection gets to its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// The primary passes it on.
    Handoff,
    /// One socket for all.
    Share,
    /// The kernel chooses.
    Steer,
}

/// What the workers are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An unmodified Node program.
    Node,
    /// uvicorn, with a socket that it is started with.
    Python,
    /// A service on the library.
    Rust,
}

impl Mechanism {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Handoff => "handoff",
            Self::Share => "share",
            Self::Steer => "steer",
        }
    }
}

/// Every pair that can be tried here: what is not installed, or not known to this phalanx, is not.
#[must_use]
pub fn cells() -> Vec<(Mechanism, Kind)> {
    let steers = understands(&["run", "--mechanism", "steer", "--help"]);
    let mut cells = Vec::new();
    for mechanism in [Mechanism::Handoff, Mechanism::Share, Mechanism::Steer] {
        for kind in [Kind::Node, Kind::Python, Kind::Rust] {
            let possible = match (mechanism, kind) {
                (Mechanism::Handoff, Kind::Python) => false,
                (Mechanism::Steer, _) => steers,
                _ => true,
            };
            let installed = match kind {
                Kind::Node => lab::node(lab::NODE).is_some(),
                Kind::Python => lab::uvicorn().is_some(),
                Kind::Rust => true,
            };
            if possible && installed {
                cells.push((mechanism, kind));
            }
        }
    }
    cells
}

/// Whether this phalanx knows such a command line.
fn understands(arguments: &[&str]) -> bool {
    let output = std::process::Command::new(lab::binary("phalanx")).args(arguments).output();
    output.is_ok_and(|it| it.status.success())
}

/// How much of it, and with which Node.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Workers.
    pub workers: usize,
    /// Clients at once.
    pub clients: u64,
    /// How often it goes wrong.
    pub times: u64,
    /// Connections to serve between.
    pub between: u64,
    /// One of [`lab::NODE_VERSIONS`], for Node workers.
    pub node: &'static str,
}

impl Size {
    /// As in the table.
    pub const FULL: Self = Self { workers: 4, clients: 32, times: 10, between: 1000, node: lab::NODE };
    /// For a test.
    pub const SMALL: Self = Self { workers: 2, clients: 24, times: 2, between: 150, node: lab::NODE };
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// `kill -9` of one worker after the other.
    KilledOneByOne,
    /// `kill -9` of all workers at once.
    KilledAtOnce,
    /// `phalanx kill`, which lets it drain, one slot after the other.
    KilledByName,
    /// One worker stands still (SIGSTOP), later goes on.
    Hung,
    /// One slot's program exits whenever it is started.
    CrashLoop,
    /// `phalanx reload`, one after the other.
    Reload,
    /// The cluster is stopped.
    Stopped,
    /// The primary is killed.
    PrimaryKilled,
}

impl Scenario {
    /// All, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::KilledOneByOne,
        Self::KilledAtOnce,
        Self::KilledByName,
        Self::Hung,
        Self::CrashLoop,
        Self::Reload,
        Self::Stopped,
        Self::PrimaryKilled,
    ];

    /// Whether this phalanx can be asked for it.
    #[must_use]
    pub fn possible(self) -> bool {
        self != Self::Reload || understands(&["reload", "--help"])
    }

    /// Runs it.
    ///
    /// # Panics
    /// If the cluster itself does not behave: does not start, recover or end.
    #[must_use]
    #[track_caller]
    pub fn run(self, mechanism: Mechanism, kind: Kind, size: Size) -> Row {
        let mut it = Stage::set(self, mechanism, kind, size);
        let load = it.load();
        load.wait_served(size.between);
        match self {
            Self::KilledOneByOne => {
                for n in 0..size.times {
                    let victim = it.workers()[n as usize % size.workers];
                    kill(victim, Signal::KILL).expect("killed");
                    it.wait_gone(&[victim]);
                    load.wait_served(load.served() + size.between);
                }
            }
            Self::KilledAtOnce => {
                let victims = it.workers();
                for victim in &victims {
                    kill(*victim, Signal::KILL).expect("killed");
                }
                it.wait_gone(&victims);
                load.wait_served(load.served() + size.between);
            }
            Self::KilledByName => {
                for n in 0..size.times {
                    let slot = n % size.workers as u64;
                    let before = it.worker_of(slot);
                    it.phalanx.tell("kill", [slot.to_string()]);
                    it.wait_gone(&before);
                    load.wait_served(load.served() + size.between);
                }
            }
            Self::Hung => {
                let victim = it.workers()[0];
                kill(victim, Signal::STOP).expect("stopped");
                // It may have accepted all the clients there are; of those who come now it accepts none.
                let fresh = it.load();
                fresh.wait_served(size.between);
                kill(victim, Signal::CONT).expect("continued");
                load.wait_served(load.served() + size.between);
                let fresh = fresh.stop();
                assert_eq!(fresh.failed(), 0, "{mechanism:?} {kind:?}: {:?}", fresh.failures);
                it.apart += fresh.served;
            }
            Self::CrashLoop => load.wait_served(load.served() + size.times * size.between),
            Self::Reload => {
                for _ in 0..size.times {
                    it.phalanx.tell("reload", [] as [&str; 0]);
                    load.wait_served(load.served() + size.between);
                }
            }
            Self::Stopped => {
                it.phalanx.signal(Signal::TERM);
                it.phalanx.wait();
                it.phalanx.finish_with(143);
                return self.row(mechanism, kind, size, &load.stop());
            }
            Self::PrimaryKilled => {
                drop(it.phalanx.kill_primary());
                return self.row(mechanism, kind, size, &load.stop());
            }
        }
        it.settle(load)
    }

    fn row(self, mechanism: Mechanism, kind: Kind, size: Size, ledger: &Ledger) -> Row {
        let mut broken = ledger.imbalances();
        if let Err(what) = self.promise(mechanism, kind, size, ledger) {
            let first = ledger.failures.first().map(|it| format!(" ({it:?})"));
            broken.push(what + &first.unwrap_or_default());
        }
        Row {
            scenario: self.to_string(),
            mechanism,
            kind,
            served: ledger.served,
            failed: ledger.failed(),
            hung: ledger.hung,
            refused: ledger.refused,
            accounted: None,
            broken,
        }
    }

    /// What must hold of the account.
    fn promise(self, mechanism: Mechanism, kind: Kind, size: Size, ledger: &Ledger) -> Result<(), String> {
        let none = |what: &str, count: u64| if count == 0 { Ok(()) } else { Err(format!("{count} {what}")) };
        match self {
            // What a killed worker had taken is lost, and nothing else.
            Self::KilledOneByOne | Self::KilledAtOnce => {
                none("hung", ledger.hung)?;
                none("refused", ledger.refused)
            }
            // uvicorn and Node's newest, when told to stop, close what they have accepted and not yet read. Nobody
            // can keep them from accepting out of a socket that they share.
            Self::Reload | Self::KilledByName
                if mechanism == Mechanism::Share
                    && (kind == Kind::Python || (kind, size.node) == (Kind::Node, "26")) =>
            {
                none("hung", ledger.hung)?;
                none("refused", ledger.refused)
            }
            Self::KilledByName | Self::Hung | Self::CrashLoop | Self::Reload => {
                none("failed", ledger.failed())
            }
            // Who came before the port closed is served; who comes later finds no listener.
            Self::Stopped => none("failed and not refused", ledger.failed() - ledger.refused),
            Self::PrimaryKilled => none("hung", ledger.hung),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KilledOneByOne => "kill -9, one by one",
            Self::KilledAtOnce => "kill -9, all at once",
            Self::KilledByName => "phalanx kill",
            Self::Hung => "one worker hangs (SIGSTOP)",
            Self::CrashLoop => "one slot crashes for ever",
            Self::Reload => "reload",
            Self::Stopped => "SIGTERM to the primary",
            Self::PrimaryKilled => "kill -9 of the primary",
        })
    }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What went wrong.
    pub scenario: String,
    /// See [`Mechanism`].
    pub mechanism: Mechanism,
    /// See [`Kind`].
    pub kind: Kind,
    /// The client's account.
    pub served: u64,
    /// Of all connections begun, those not served.
    pub failed: u64,
    /// Of these, those that nobody answered or closed.
    pub hung: u64,
    /// Of these, those that found no listener.
    pub refused: u64,
    /// What the primary counts as taken by workers, or closed by itself; where it is in the path.
    pub accounted: Option<u64>,
    /// What was promised and not kept.
    pub broken: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, mechanism, served, failed, hung, refused, .. } = self;
        let mechanism = mechanism.name();
        let kind = format!("{:?}", self.kind).to_lowercase();
        let books = match self.accounted {
            None => "-".to_owned(),
            Some(n) if n == served + failed - refused => "agree".to_owned(),
            Some(n) => format!("primary {n}"),
        };
        write!(
            f,
            "{scenario:27} {mechanism:8} {kind:7} {served:7} {failed:7} {hung:5} {refused:8}  {books:8} {}",
            if self.broken.is_empty() { "kept".to_owned() } else { self.broken.join("; ") }
        )
    }
}

/// The head of the table.
pub const HEAD: &str =
    "what goes wrong             how      worker   served  failed  hung  refused  books    promise";

/// A cluster under way.
struct Stage {
    scenario: Scenario,
    mechanism: Mechanism,
    kind: Kind,
    size: Size,
    port: u16,
    phalanx: Phalanx,
    /// What the primary counts apart from the load.
    apart: u64,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn accounted(status: &Value) -> u64 {
    let ledger = &status["ledger"];
    let closed = ledger["closed"].as_object().into_iter().flat_map(|it| it.values()).map(number);
    number(&ledger["taken"]) + closed.sum::<u64>()
}

impl Stage {
    #[track_caller]
    fn set(scenario: Scenario, mechanism: Mechanism, kind: Kind, size: Size) -> Self {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let mut options = vec!["--mechanism", mechanism.name()];
        let command: Vec<OsString> = match kind {
            Kind::Node => {
                vec![lab::node(size.node).expect("node").into(), lab::fixture("http.js").into()]
            }
            Kind::Rust => {
                options.extend(["--channel", "phalanx"]);
                vec![lab::binary("service").into(), "tcp".into(), port.to_string().into()]
            }
            Kind::Python => {
                options.extend(["-l", &address]);
                let mut command: Vec<OsString> = vec![lab::uvicorn().expect("uvicorn").into()];
                command.extend(["--app-dir".into(), lab::python().into()]);
                command.extend(["app:app", "--fd", "3", "--log-level", "error"].map(OsString::from));
                command
            }
        };
        let crashing = scenario == Scenario::CrashLoop;
        let mut builder = Phalanx::run("budget").workers(size.workers).options(options);
        builder = builder.env("PORT", port.to_string()).env("HOST", "127.0.0.1");
        if crashing {
            builder = builder.env("FAIL", "3").env("FAIL_SLOT", "0");
        }
        let mut it =
            Self { scenario, mechanism, kind, size, port, phalanx: builder.start(command), apart: 0 };
        it.wait_ready(size.workers - usize::from(crashing));
        it.apart = accounted(&it.phalanx.status());
        it
    }

    /// So many workers serve.
    #[track_caller]
    fn wait_ready(&mut self, workers: usize) {
        if self.kind == Kind::Python {
            // Without a channel: until as many have answered.
            let mut seen = std::collections::BTreeSet::new();
            wait_until("all workers answer", || {
                let load = Load::port(self.port).clients(8).connections(32).silence(Duration::from_secs(30));
                seen.extend(load.run().workers.into_keys());
                seen.len() >= workers
            });
        } else {
            self.phalanx.wait_status("all workers listen", |status| {
                let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
                all.iter().filter(|worker| worker["state"] == "listening").count() >= workers
            });
        }
    }

    fn load(&self) -> Running {
        // Long, so that nothing is called hung which only has to wait for a processor.
        Load::port(self.port).clients(self.size.clients).silence(Duration::from_secs(30)).start()
    }

    /// Who is in this slot.
    fn worker_of(&self, slot: u64) -> Vec<u32> {
        let status = self.phalanx.status();
        let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
        let here = all.iter().filter(|worker| worker["slot"] == slot);
        here.filter_map(|worker| u32::try_from(worker["pid"].as_u64()?).ok()).collect()
    }

    fn workers(&self) -> Vec<u32> {
        self.phalanx.workers().into_iter().map(|it| it.pid).collect()
    }

    /// These have died, and all places are taken again.
    #[track_caller]
    fn wait_gone(&mut self, victims: &[u32]) {
        let (primary, workers) = (self.phalanx.pid(), self.size.workers);
        wait_until("the dead have successors", || {
            let now = children(primary);
            now.len() == workers && !now.iter().any(|it| victims.contains(&it.pid))
        });
        if self.kind != Kind::Python {
            self.wait_ready(workers);
        }
    }

    /// The load ends, the books are compared, the cluster ends well.
    #[track_caller]
    fn settle(mut self, load: Running) -> Row {
        let ledger = load.stop();
        let status = self.phalanx.wait_status("nothing is under way", |status| {
            number(&status["ledger"]["pending"]) + number(&status["ledger"]["in_flight"]) == 0
        });
        let mut row = self.scenario.row(self.mechanism, self.kind, self.size, &ledger);
        if self.mechanism == Mechanism::Handoff {
            let counted = accounted(&status) - self.apart;
            if counted != ledger.served + ledger.failed() - ledger.refused {
                row.broken.push(format!("the primary counts {counted}"));
            }
            row.accounted = Some(counted);
        }
        self.phalanx.finish();
        row
    }
}
