//! What the primary knows about one worker.

use super::causes::Hang;
use super::heartbeat::Heartbeat;
use super::readiness::Footsteps;
use crate::dispatch::Ledger;
use crate::lifecycle::{Cause, Life};
use crate::ready::Ready;
use crate::wire::{Decoder, Outbox};
use crate::{ConnId, Generation, ListenerId, OnHang, Slot, SocketId, Time, WorkerId};
use std::collections::VecDeque;
use std::time::Duration;

/// What goes along with a frame to a worker.
#[derive(Debug)]
pub(super) enum Carry<C> {
    /// A connection; the ledger has it.
    Connection(ConnId),
    /// A socket; the driver has it.
    Socket(SocketId),
    /// A handle of the user's.
    Handle(C),
}

/// An envelope whose receipt is due, in the order of sending.
#[derive(Debug)]
pub(super) enum Receipt<C> {
    /// A connection.
    Connection(ConnId),
    /// A shared listener, and how often it was tried.
    Listen { listener: ListenerId, ack: crate::wire::Seq, tries: u8 },
    /// A handle of the user's: ours is closed when the other end has its own.
    Handle(Option<C>),
}

/// A worker's place at the table.
#[derive(Debug)]
pub(super) struct Seat<C> {
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    pub(super) pid: u32,
    pub(super) since: Time,
    pub(super) online_since: Option<Time>,
    pub(super) life: Life,
    /// Absent while its frames are being handled.
    pub(super) decoder: Option<Decoder<C>>,
    pub(super) outbox: Outbox<Carry<C>>,
    pub(super) receipts: VecDeque<Receipt<C>>,
    pub(super) ledger: Ledger<C>,
    pub(super) window: u32,
    pub(super) taken: u64,
    /// Connections it was handed and had not acknowledged when its process ended.
    pub(super) unacknowledged_at_death: u64,
    pub(super) refusals: u32,
    /// It refused a connection just now.
    pub(super) resting: bool,
    /// Its channel is full.
    pub(super) blocked: bool,
    /// The driver has been told to flush and has not begun.
    pub(super) flush_due: bool,
    pub(super) channel_open: bool,
    /// Signals for when it is online.
    pub(super) relayed: Vec<i32>,
    pub(super) wants_ticket_keys: bool,
    /// What makes it ready.
    pub(super) wants: Ready,
    /// What the worker before it did.
    pub(super) before: Footsteps,
    /// It was lent sockets at birth.
    pub(super) lent: bool,
    /// The kernel shows it waiting on one of them.
    pub(super) waits: bool,
    /// It has said, or shown, that it is ready, in the way that was asked of it.
    pub(super) promise_kept: bool,
    /// Probes that failed, and how the last one did.
    pub(super) probes: u32,
    pub(super) probe_failed: Option<String>,
    pub(super) ready: bool,
    pub(super) ready_since: Option<Time>,
    /// Why it is to be replaced.
    pub(super) due: Option<Cause>,
    pub(super) max_rss: Option<u64>,
    pub(super) max_connections: Option<u64>,
    pub(super) hang_timeout: Option<Duration>,
    pub(super) on_hang: OnHang,
    /// It owes answers and has given none since then, as far as anybody has looked.
    pub(super) silent_since: Option<Time>,
    pub(super) heartbeat: Heartbeat,
    pub(super) hung: Option<Hang>,
}

impl<C> Seat<C> {
    /// Whether it may be given a connection now.
    pub(super) fn has_room(&self) -> bool {
        use crate::State::{Listening, Online};
        matches!(self.life.state(), Online | Listening)
            && (self.ready || !self.wants.is_promised())
            && self.hung.is_none()
            && !self.resting
            && !self.blocked
            && (self.ledger.len() as u64) < u64::from(self.window)
    }

    /// How long it rests after its latest refusal: it may be at a limit of its own, and asking again at once
    /// would spin.
    pub(super) fn rest(&self) -> Duration {
        Duration::from_millis((10 << self.refusals.saturating_sub(1).min(4)).min(100))
    }
}

/// What is known about a worker from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerView {
    /// Its incarnation.
    pub id: WorkerId,
    /// Its place.
    pub slot: Slot,
    /// Its code.
    pub generation: Generation,
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: crate::State,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether its channel is open.
    pub connected: bool,
    /// Whether it left because somebody asked it to; `None` while it is there and nobody has.
    pub exited_after_disconnect: Option<bool>,
}
