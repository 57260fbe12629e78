//! The decisions of a phalanx cluster, without any I/O.
//!
//! Two state machines, one for each end of a channel: [`Primary`] and [`Worker`]. Neither touches a file
//! descriptor, a clock, the environment or a source of randomness. What travels (connections, handles) is a
//! type `C` that the caller chooses: an owned fd in life, a number in a test.
//!
//! # The contract
//!
//! Methods come in three families.
//!
//! * **Facts** go in as `handle_*`, with the present as an argument where it matters.
//! * **Wishes** are plain verbs: [`fork`](Primary::fork), [`leave`](Primary::leave), [`stop`](Primary::stop).
//! * **Outcomes** come out, after every fact and wish, until each is dry:
//!   1. [`poll_action`](Primary::poll_action): what must be done, in this order;
//!   2. [`poll_event`](Primary::poll_event): what the user should hear;
//!   3. [`poll_timeout`](Primary::poll_timeout): when to come back with
//!      [`handle_timeout`](Primary::handle_timeout) if nothing happens before.
//!
//! What must be sent to a worker is announced by [`Action::Flush`] and fetched with
//! [`poll_transmit`](Primary::poll_transmit), one system call at a time.
//!
//! # Invariants
//!
//! * A connection has one owner at any moment: the kernel's queue, the pending queue, the ledger, or a worker.
//! * Only an acknowledgement moves it out of the ledger. A connection that is not acknowledged goes to another
//!   worker only behind a *fence*: the first one is dead, or has refused it.
//! * When a connection is pending, no worker that its policy would choose has room.
//! * A peer's bytes can cause an error value, never a panic.

#![forbid(unsafe_code)]

mod action;
mod config;
mod dispatch;
mod end;
mod event;
mod id;
mod lifecycle;
mod listen;
pub mod policy;
mod primary;
mod ready;
mod reconcile;
mod restart;
mod rng;
mod settings;
mod status;
pub mod steer;
mod time;
mod timer;
pub mod wire;
mod worker;

pub use action::{Action, BindSpec, BoundAddress, SocketKind, Spawn};
pub use config::{
    Config, Lives, Mechanism, OnHang, PolicyFactory, Replacing, UnknownMechanism, UnknownOnHang,
};
pub use dispatch::{Closed, Peer, Totals};
pub use event::{Event, ListeningInfo};
pub use id::{ConnId, Generation, ListenerId, Place, Slot, SocketId, WorkerId};
pub use lifecycle::{Cause, Ended, Limits, Speaks, State};
pub use policy::Policy;
pub use primary::{
    Aborted, Blocked, Carried, Examined, GroupError, Hang, Hurry, Primary, Refused, SendError, Transmit,
    WorkerView,
};
pub use ready::{Ready, UnknownReady};
pub use restart::Restart;
pub use settings::Settings;
pub use status::{LastEnd, LedgerStatus, ListenerStatus, SlotStatus, Status, SteeringStatus, WorkerStatus};
pub use time::Time;
pub use worker::{Listen, Offer, Worker, WorkerEvent};
