//! What happened, for whoever listens.

use crate::lifecycle::{Cause, Ended};
use crate::primary::{Aborted, Hang};
use crate::steer::Engine;
use crate::wire::Payload;
use crate::{BoundAddress, Generation, ListenerId, Slot, WorkerId};

/// What the user of a cluster hears.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<C> {
    /// A worker was started. Before its `Online`.
    Fork {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// Its process.
        pid: u32,
    },
    /// A worker could not be started. Nothing else is ever heard of it.
    ForkFailed {
        /// Where.
        slot: Slot,
        /// Why, as a sentence.
        error: String,
    },
    /// A worker said that it is up.
    Online {
        /// Who.
        worker: WorkerId,
    },
    /// One of a worker's servers listens (LIFE-06: each time, each server).
    Listening {
        /// Who.
        worker: WorkerId,
        /// What.
        info: ListeningInfo,
    },
    /// A worker gave up one of its listeners.
    ListenerLeft {
        /// Who.
        worker: WorkerId,
        /// What.
        listener: ListenerId,
        /// Its key.
        key: String,
    },
    /// Nobody holds this listener any more, and it was closed.
    ListenerClosed {
        /// Its key.
        key: String,
    },
    /// A listener could not be made.
    BindFailed {
        /// Its key.
        key: String,
        /// The system's error number.
        errno: i32,
        /// The key of ours that holds the endpoint already, if it is one (DEC-17).
        held_by: Option<String>,
        /// It was configured: nobody asked for it, so nobody else hears of it.
        configured: bool,
    },
    /// All configured listeners are bound.
    Bound {
        /// The name of the listener.
        name: String,
        /// Where it is.
        address: BoundAddress,
    },
    /// A worker gets nothing new any more and ends what it has.
    Draining {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is ready.
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// A worker hangs.
    Hung {
        /// Who.
        worker: WorkerId,
        /// How that shows.
        how: Hang,
    },
    /// It moves again, before anything was done about it.
    MovesAgain {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is to be replaced, as soon as its successor can.
    Due {
        /// Who.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A reload has begun.
    Reloading {
        /// To which generation.
        generation: Generation,
    },
    /// Every worker is of this generation and ready, and no other is left.
    Reloaded {
        /// Which.
        generation: Generation,
    },
    /// The generation before stays, or comes back where it had left.
    ReloadAborted {
        /// Which will not be.
        generation: Generation,
        /// Why.
        why: Aborted,
    },
    /// Everything will stop, after a delay in which it serves on.
    Stopping,
    /// A message for the application.
    Message {
        /// From whom.
        worker: WorkerId,
        /// What.
        message: Payload,
        /// What came with it.
        handle: Option<C>,
    },
    /// A worker's channel is closed.
    Disconnect {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's process has ended.
    Exit {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// How.
        ended: Ended,
        /// What phalanx did to bring it about.
        cause: Option<Cause>,
        /// Whether somebody had asked it to leave.
        exited_after_disconnect: bool,
        /// Connections it had taken during its life.
        taken: u64,
        /// Connections it had been handed and had not acknowledged; they went to others.
        unacknowledged: u64,
    },
    /// A worker broke the protocol: its channel was closed, it will be ended.
    Violation {
        /// Who.
        worker: WorkerId,
        /// How.
        how: String,
    },
    /// A slot's workers die before they come online, again and again. It is retried at the longest interval.
    Degraded {
        /// Which.
        slot: Slot,
    },
    /// Connections wait for a steered worker and it takes none: it is passed over until it does.
    Lags {
        /// Who.
        worker: WorkerId,
        /// On which listener.
        key: String,
    },
    /// An engine of steering is not possible here. Said once; listeners get the next best mechanism.
    SteeringRefused {
        /// Which.
        engine: Engine,
        /// Why, as part of a sentence.
        why: String,
    },
    /// Somebody has changed a group of sockets behind our back, and it was put right. Only a worker that holds one
    /// of its sockets could have.
    Tampered {
        /// The listener.
        key: String,
    },
    /// Other listening sockets share the address of a group, and may get some of its connections.
    Strangers {
        /// The listener.
        key: String,
        /// How many.
        count: u32,
    },
    /// The primary ran out of file descriptors: this listener rests.
    OutOfFiles {
        /// Its key.
        key: String,
    },
    /// It accepts again.
    AcceptingAgain {
        /// Its key.
        key: String,
    },
    /// Nobody is left and nobody will come: all have ended after a stop, or no slot may be filled again.
    Finished,
}

/// What `listening` tells (LIFE-04).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ListeningInfo {
    /// As asked for, after name resolution; `None` if none was given.
    pub address: Option<String>,
    /// The port really bound; −1 for a Unix socket.
    pub port: Option<i32>,
    /// 4, 6, −1, `udp4`, `udp6` in Node's words; `None` for an inherited socket.
    pub family: Option<&'static str>,
    /// The number of an inherited socket.
    pub fd: Option<i32>,
}
