//! A snapshot for people and scripts: what `phalanx status --json` prints.

use crate::dispatch::Totals;
use crate::lifecycle::{Cause, Ended, State};
use crate::primary::Hang;
use crate::{BoundAddress, Generation, Mechanism, Policy, Slot, SocketId, WorkerId};
use serde::Serialize;

/// The whole cluster at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Every worker that is not gone, by slot and then by age.
    pub workers: Vec<WorkerStatus>,
    /// Every listener.
    pub listeners: Vec<ListenerStatus>,
    /// What became of connections in hand-off.
    pub ledger: LedgerStatus,
    /// How many workers are wanted; absent when whoever forks decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u32>,
    /// A stop was asked for.
    pub stopping: bool,
    /// Lines that workers printed and nobody read in time.
    pub output_dropped: u64,
    /// How many of the wanted slots have a ready worker.
    pub ready: u32,
    /// The generation that has proved itself.
    pub generation: Generation,
    /// The one that replaces it, while a reload is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reloading: Option<Generation>,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its place.
    pub slot: Slot,
    /// Its incarnation.
    pub id: WorkerId,
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is to be replaced, once its successor can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Cause>,
    /// How it shows that it hangs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hung: Option<Hang>,
    /// Its code.
    pub generation: Generation,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// How many successors this slot has had.
    pub restarts: u32,
    /// Deaths crowd together in this slot.
    pub degraded: bool,
    /// How the worker before it ended.
    pub last_end: Option<LastEnd>,
    /// Connections handed to it and not acknowledged.
    pub unacknowledged: u32,
    /// Connections it has taken by hand-off.
    pub taken: u64,
    /// Resident memory in KiB, where the system tells.
    pub rss_kib: Option<u64>,
    /// A file of its program has changed since its generation began.
    pub changed: bool,
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastEnd {
    /// Which incarnation.
    pub id: WorkerId,
    /// How its process ended.
    pub ended: Ended,
    /// What phalanx did to bring it about.
    pub cause: Option<Cause>,
    /// Its code.
    pub generation: Generation,
    /// Whether it had been ready.
    pub was_ready: bool,
    /// Milliseconds from its start to its end.
    pub lived_ms: u64,
    /// Connections it had taken by hand-off.
    pub taken: u64,
}

/// One listener.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ListenerStatus {
    /// What the workers call it.
    pub key: String,
    /// What the configuration calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is, once bound.
    pub address: Option<BoundAddress>,
    /// How connections get to workers.
    pub mechanism: Mechanism,
    /// Who gets them.
    pub policy: Policy,
    /// Why this mechanism.
    pub why: &'static str,
    /// Whether new connections are accepted now (hand-off).
    pub accepting: bool,
    /// Accepted connections that wait in the primary.
    pub pending: usize,
    /// Completed connections that nobody has accepted yet, in the kernel; where the system tells.
    pub queued: Option<u32>,
    /// The kernel's limit for them.
    pub queue_limit: Option<u32>,
    /// Each slot that has held it.
    pub slots: Vec<SlotStatus>,
    /// The socket, for whoever fills in `queued`.
    #[serde(skip)]
    pub socket: SocketId,
}

/// One slot of one listener. In share the kernel gives connections out and tells nobody: `None`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SlotStatus {
    /// Which.
    pub slot: Slot,
    /// Its present worker, if it holds the listener.
    pub worker: Option<WorkerId>,
    /// Connections handed to it, the ones that came back included.
    pub assigned: Option<u64>,
    /// Connections on their way to it, not acknowledged.
    pub queued: Option<u64>,
    /// Connections it acknowledged.
    pub taken: Option<u64>,
}

/// What became of connections in hand-off: `accepted = pending + in_flight + taken + closed`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LedgerStatus {
    /// The totals.
    #[serde(flatten)]
    pub totals: Totals,
    /// Waiting in the primary.
    pub pending: u64,
    /// Handed over, not acknowledged.
    pub in_flight: u64,
}
