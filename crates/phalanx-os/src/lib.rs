//! The system calls of phalanx, each behind a type that owns what it holds.
//!
//! # The platform contract
//!
//! What this crate promises to those above it:
//!
//! * **It decides nothing.** One function is one thing asked of the kernel. There are no policies, no
//!   timers, no logging, no runtime; the only loops are the ones that restart a call after `EINTR`.
//!   Whether to try again, how often and for whom is for the caller, who is given errors sorted by what can
//!   be done about them.
//! * **It never waits**, with exceptions that say so: [`bell::Bell::wait`] for what it was told to; [`Spawn::spawn`] returns when the new program runs or
//!   could not be started, [`steer::allows::survey`] when a child of its own has ended, and closing a socket
//!   whose linger time somebody set can block ([`conn::clear_linger`] first).
//! * **Every fd has an owner.** A function borrows with `impl AsFd` and gives away with `OwnedFd`. Fds that
//!   arrive in a message are owned from the instant the system call returns: an early return closes them.
//! * **Every fd is close-on-exec from birth**, by the flag of the call that makes it, never by a second call
//!   in whose shadow another thread could fork. Fds that come from a peer never land on 0, 1 or 2.
//! * **A process is never named by a bare number.** A [`Process`] is signalled only while the number is
//!   certainly still its own, through a pidfd where the kernel has one.
//! * **Between fork and exec** only async-signal-safe calls are made, with every signal blocked.
//! * **A failure leaves nothing behind**: no fd, no zombie, no file.
//! * **Peers' input makes errors, never panics.**
//!
//! # What it asks of the platform
//!
//! Linux 4.19 for all it does; what newer kernels add is used when it is there and reported when it is not:
//! pidfd (5.3), `close_range` with `CLOSE_RANGE_CLOEXEC` (5.11), [steering](steer) by program (5.14),
//! `SO_PASSRIGHTS` (6.16). `/proc` is wanted by [`host`], and by what looks at other processes. On other
//! systems the crate is empty.
//!
//! Building with `--cfg phalanx_force_sigchld` makes every [`Process`] behave as on a kernel without pidfd,
//! so that the other path can be tested anywhere.
//!
//! `unsafe` may be opened in this crate only; each file that needs it says why on its first lines.

#![cfg(target_os = "linux")]

pub mod bell;
pub mod cgroup;
pub mod channel;
pub mod conn;
pub mod host;
pub mod image;
pub mod inherit;
pub mod listener;
pub mod look;
pub mod memory;
pub mod notify;
pub mod process;
pub mod signal;
pub mod spawn;
pub mod steer;
pub mod user;

mod fd;
mod sockopt;
mod wait;

pub use channel::{Channel, Received, RecvError, SendError};
pub use conn::{SocketKind, Touched};
pub use inherit::{Birth, InheritError};
pub use listener::{AcceptError, Address, Bound, LocalAddress, Queue, SocketFile};
pub use process::{Ended, Process};
pub use signal::Signal;
pub use spawn::{Spawn, SpawnError, Step, User};
pub use user::Account;
