//! Run a network service as several processes behind the same listening sockets.
//!
//! A *primary* starts *workers*, owns every listening socket, decides which worker gets which connection,
//! carries messages, and replaces what dies.
//!
//! ```no_run
//! use phalanx::{Cluster, Hurry};
//!
//! # fn main() -> phalanx::Result<()> {
//! let primary = Cluster::builder().exec("./my-service").workers(4).start()?;
//! for event in primary.events() {
//!     println!("{event:?}");
//! }
//! # primary.stop(Hurry::Graceful).wait();
//! # Ok(())
//! # }
//! ```

mod builder;
mod error;
mod event;
mod primary;
mod watch;

pub use builder::{Builder, Cluster, Line, Output};
pub use error::{Error, ForkError, Result};
pub use event::{Event, Events};
pub use phalanx_core::policy::{Candidate, Candidates, PolicyImpl};
pub use phalanx_core::{
    BoundAddress, Cause, Ended, Generation, Hurry, LastEnd, LedgerStatus, Limits, ListenerStatus,
    ListeningInfo, Mechanism, Policy, Restart, SendError, Slot, SlotStatus, Speaks, State, Status, Totals,
    WorkerId, WorkerStatus, WorkerView,
};
pub use primary::{Primary, Progress, WorkerRef};
