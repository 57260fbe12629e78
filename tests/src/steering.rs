//! Steered clusters of each kind of worker, and clients that hold their connections.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::Value;

use crate::budget::Kind;
use crate::lab;
use crate::process::{DEADLINE, Phalanx, free_port, wait_for};

/// For where a share must be exact: a busy machine makes workers lag, and who lags is passed over.
pub const PATIENT: [&str; 2] = ["--lag-after", "60s"];

/// The kinds that can be tried here.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    let mut kinds = vec![Kind::Rust];
    kinds.extend(lab::node(lab::NODE).map(|_| Kind::Node));
    kinds.extend(lab::uvicorn().map(|_| Kind::Python));
    kinds
}

/// Whether the kernel can choose here; says so if not.
///
/// # Panics
/// Under continuous integration, if not.
#[must_use]
#[track_caller]
pub fn possible() -> bool {
    let output = std::process::Command::new(lab::binary("phalanx")).args(["doctor", "--json"]).output();
    let report: Option<Value> = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    let possible = report.is_some_and(|report| report["steering"] == "exact");
    if !possible {
        lab::skip("steering is not possible here; see `phalanx doctor`");
    }
    possible
}

/// The [`kinds`], where the kernel can choose.
#[must_use]
#[track_caller]
pub fn steered() -> Vec<Kind> {
    if possible() { kinds() } else { Vec::new() }
}

/// Workers of one kind, all of them serving.
pub struct Cluster {
    /// The primary.
    pub phalanx: Phalanx,
    /// Where they listen.
    pub port: u16,
    /// What they are.
    pub kind: Kind,
    /// How many.
    pub workers: usize,
}

impl Cluster {
    /// Starts it and waits until every worker accepts.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(kind: Kind, workers: usize, options: &[&str]) -> Self {
        Self::start_by(kind, workers, options, |builder| builder)
    }

    /// The same, with a last word about how.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    #[track_caller]
    pub fn start_by(
        kind: Kind,
        workers: usize,
        options: &[&str],
        how: impl FnOnce(crate::process::Builder) -> crate::process::Builder,
    ) -> Self {
        let port = free_port();
        let (more, command) = Self::command(kind, port);
        let host = std::env::var("HOST").unwrap_or_else(|_| Ipv4Addr::LOCALHOST.to_string());
        let builder = Phalanx::run("steer")
            .workers(workers)
            .options(more)
            .options(options)
            .env("PORT", port.to_string())
            .env("HOST", host);
        let phalanx = how(builder).start(command);
        let mut it = Self { phalanx, port, kind, workers };
        it.wait_serving(workers);
        it
    }

    fn command(kind: Kind, port: u16) -> (Vec<OsString>, Vec<OsString>) {
        match kind {
            Kind::Node => {
                (Vec::new(), vec![lab::node(lab::NODE).expect("node").into(), lab::fixture("http.js").into()])
            }
            Kind::Rust => (
                vec!["--channel".into(), "phalanx".into()],
                vec![lab::binary("service").into(), "async".into(), port.to_string().into()],
            ),
            Kind::Python => {
                let mut command: Vec<OsString> = vec![lab::uvicorn().expect("uvicorn").into()];
                command.extend(["--app-dir".into(), lab::python().into()]);
                command.extend(["app:app", "--fd", "3", "--log-level", "error"].map(OsString::from));
                (vec!["-l".into(), format!("127.0.0.1:{port}").into()], command)
            }
        }
    }

    /// Waits until so many workers are there and accept.
    ///
    /// # Panics
    /// If they never do.
    #[track_caller]
    pub fn wait_serving(&mut self, workers: usize) -> Value {
        let plain = self.kind == Kind::Python;
        self.workers = workers;
        self.phalanx.wait_status("all workers serve", |status| {
            let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
            let serves = |it: &Value| it["ready"] == true && (plain || it["state"] == "listening");
            all.len() == workers && all.iter().all(serves)
        })
    }

    /// The only listener, as `status` has it.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn listener(&self) -> Value {
        self.phalanx.status()["listeners"][0].clone()
    }

    /// The process in each slot.
    #[must_use]
    #[track_caller]
    pub fn pids(&self) -> Vec<u32> {
        let status = self.phalanx.status();
        let mut all: Vec<(u64, u64)> =
            workers(&status).map(|it| (number(&it["slot"]), number(&it["pid"]))).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, pid)| u32::try_from(pid).expect("a pid")).collect()
    }

    /// Whom `x-worker` means, as a slot.
    ///
    /// # Panics
    /// If nobody.
    #[must_use]
    #[track_caller]
    pub fn slot_of(&self, name: &str) -> u64 {
        let status = self.phalanx.status();
        let is = |it: &&Value| match self.kind {
            Kind::Rust => name.parse() == Ok(number(&it["slot"])),
            Kind::Node => format!("w{}", it["id"]) == name,
            Kind::Python => name.parse() == Ok(number(&it["pid"])),
        };
        workers(&status)
            .find(is)
            .map(|it| number(&it["slot"]))
            .unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// One number of each slot.
    #[must_use]
    #[track_caller]
    pub fn by_slot(&self, what: &str) -> BTreeMap<u64, u64> {
        by_slot(&self.listener(), what)
    }

    /// A connection that says nothing yet, and the slot that it was given to.
    ///
    /// # Panics
    /// If there is no answer about it.
    #[must_use]
    #[track_caller]
    pub fn hold(&self) -> Held {
        self.hold_by(|| {
            let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))?;
            stream.set_read_timeout(Some(DEADLINE))?;
            Ok(stream)
        })
    }

    /// The same for a connection that is made otherwise.
    ///
    /// # Panics
    /// If there is no answer about it.
    #[must_use]
    #[track_caller]
    pub fn hold_by<S: Stream + 'static>(&self, connect: impl FnOnce() -> io::Result<S>) -> Held {
        let before = self.by_slot("assigned");
        let stream = connect().expect("connected");
        let slot = wait_for("its slot", || {
            let after = self.by_slot("assigned");
            after
                .iter()
                .find(|(slot, count)| before.get(slot).copied().unwrap_or(0) < **count)
                .map(|(slot, _)| *slot)
        });
        Held { stream: Box::new(stream), slot }
    }
}

/// A connection of any kind.
pub trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A connection that its client keeps.
pub struct Held {
    stream: Box<dyn Stream>,
    /// Whom it was given to at first.
    pub slot: u64,
}

impl Held {
    /// Asks, and says who answered.
    ///
    /// # Panics
    /// If nobody does.
    #[track_caller]
    pub fn ask(mut self) -> String {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is open");
        let mut text = String::new();
        let read = self.stream.read_to_string(&mut text);
        let worker = text.lines().find_map(|line| line.strip_prefix("x-worker: "));
        worker.unwrap_or_else(|| panic!("no answer: {read:?} {text:?}")).to_owned()
    }
}

/// The workers of a status.
pub fn workers(status: &Value) -> impl Iterator<Item = &Value> {
    status["workers"].as_array().into_iter().flatten()
}

/// A number, or nothing.
#[must_use]
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// One number of each slot of a listener.
#[must_use]
pub fn by_slot(listener: &Value, what: &str) -> BTreeMap<u64, u64> {
    let slots = listener["slots"].as_array().into_iter().flatten();
    slots.map(|slot| (number(&slot["slot"]), number(&slot[what]))).collect()
}

/// The sum of it.
#[must_use]
pub fn total(listener: &Value, what: &str) -> u64 {
    by_slot(listener, what).values().sum()
}
