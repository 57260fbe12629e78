//! A snapshot for people and scripts: what `phalanx status --json` prints.

use crate::dispatch::Totals;
use crate::lifecycle::{Cause, Ended, State};
use crate::primary::Hang;
use crate::steer::Engine;
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
    /// Connections it has taken: exact in hand-off, at most in steering, 0 where it accepts from a shared socket.
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
    /// Connections it had taken, as [`WorkerStatus::taken`] counts them.
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
    pub why: String,
    /// What chooses, in steering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Whether new connections are accepted now (hand-off).
    pub accepting: bool,
    /// Accepted connections that wait in the primary.
    pub pending: usize,
    /// Completed connections that nobody has accepted yet, in the kernel; where the system tells.
    pub queued: Option<u32>,
    /// The kernel's limit for them.
    pub queue_limit: Option<u32>,
    /// What only steering counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steering: Option<SteeringStatus>,
    /// Each slot that has held it.
    pub slots: Vec<SlotStatus>,
    /// The socket, for whoever fills in `queued`.
    #[serde(skip)]
    #[doc(hidden)]
    pub socket: SocketId,
}

/// What steering counts for a whole listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SteeringStatus {
    /// Connections that wait for a worker to come.
    pub park_queued: u32,
    /// Connections that found no worker, since the start.
    pub parked: u64,
    /// Packets that were neither SYN nor ACK: port scans, mostly.
    pub odd: u64,
    /// Choices that the kernel refused; should be 0.
    pub failed: u64,
    /// Other sockets that listen on the same address and may get some of its connections; should be 0.
    pub strangers: u32,
    /// Times that somebody had changed the group and it was put right; should be 0.
    pub tampered: u64,
}

/// One slot of one listener, all its workers so far together. In share the kernel gives connections out and tells
/// nobody: `None`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SlotStatus {
    /// Which.
    pub slot: Slot,
    /// Its present worker, if it holds the listener.
    pub worker: Option<WorkerId>,
    /// Its share of new connections, in proportion to others; 0 gets none.
    pub weight: u32,
    /// Hand-off: connections handed to it, the ones that came back included. Steering: SYNs that the program gave
    /// to it, which is more than connections under floods, scans and SYN cookies. In steering what was handed over
    /// for another reason is counted as well.
    pub assigned: Option<u64>,
    /// Steering: final ACKs that the program gave to it, one for each connection by SYN cookie, and stray ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_cookie: Option<u64>,
    /// Steering: connections that had waited for another worker and were moved to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_in: Option<u64>,
    /// Steering: connections that had waited for this one and were moved to another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_out: Option<u64>,
    /// Hand-off: connections on their way to it, not acknowledged. Steering: connections that wait for it in the
    /// kernel.
    pub queued: Option<u64>,
    /// Steering: the kernel's limit for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<u32>,
    /// Hand-off: connections it acknowledged. Steering: connections it accepted, at most (exact if no handshake
    /// failed): assigned + by cookie + moved in - moved out - queued.
    pub taken: Option<u64>,
    /// Connections it has open, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<u32>,
    /// Steering: it is passed over, or limited, because connections wait for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lagging: bool,
    /// Steering: how often it began to lag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lags: Option<u64>,
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
