//! What there is where clusters are.

pub use crate::builder::{Builder, Cluster, Count, Line, OnLine, Output};
pub use crate::error::{Error, Result};
pub use crate::event::{BlockingEvents, Event, Events};
pub use crate::message::{Attached, Content, Handle, SendError};
pub use crate::primary::{Inspect, Primary, Progress, Reload, ReloadError, WorkerRef};
pub use crate::run::BoxError;
pub use crate::settings::{Orphans, UnknownOrphans};
pub use crate::worker::{ConfigError, Messages};
pub use phalanx_core::policy::{Candidate, Candidates, PolicyImpl, UnknownPolicy};
pub use phalanx_core::steer::Engine;
pub use phalanx_core::wire::{Serialization, UnknownSerialization};
pub use phalanx_core::{
    Aborted, BoundAddress, Cause, Ended, Hang, Hurry, LastEnd, LedgerStatus, ListenerStatus, ListeningInfo,
    Mechanism, OnHang, Ready, Refused, Restart, Settings, SlotStatus, Speaks, State, Status, SteeringStatus,
    Totals, UnknownMechanism, UnknownOnHang, UnknownReady, WorkerStatus, WorkerView,
};
pub use phalanx_os::Signal;
