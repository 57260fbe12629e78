//! Steering: the kernel itself gives each connection to the worker it is for.
//!
//! Every worker has a listening socket of its own, all at one address (a [`Group`]), and the kernel is told
//! how to choose among them: by [`Exact`], an eBPF program with a table that user space writes, or by
//! [`Even`], a filter that needs no privilege and chooses at random. The primary keeps a copy of every socket
//! and can look at its queue ([`listener::queue`](crate::listener::queue)), wait for it ([`Watch`]) and move
//! it ([`flush`]). What is chosen, and when, is for the caller.
//!
//! `docs/steering.md` in the repository explains the program, and what the kernel guarantees since when.

pub mod allows;
mod asm;
mod bucket;
pub mod diag;
mod even;
mod exact;
mod group;
#[cfg(test)]
mod interpreter;
mod layout;
#[cfg(test)]
mod logic;
mod map;
mod open;
mod program;
mod waits;
mod watch;

pub use bucket::bucket;
pub use even::Even;
pub use exact::{Counts, Exact, LoadError, LoadStep, Totals};
pub use group::{Group, flush, poke, shut_down};
pub use layout::{MAX_PLACES, PARK_TAG, RING};
pub use open::OpenCount;
pub use waits::waits_for;
pub use watch::Watch;

/// What a group carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams, each given by itself: those of one flow go to one member as long as the ring is the same.
    /// Nothing moves when a member closes.
    Udp,
}

/// How [`Exact`] goes through its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// One entry after the other, skipping places that are over their budgets. Weights are a matter of the
    /// ring's content. Datagrams: by the hash of their flow, without budgets.
    Rotate,
    /// The entry number [`bucket`] of the client's address, modulo the ring's length, which ought to be
    /// [`RING`]. No budgets.
    Sticky,
    /// The place with the least load among up to 64 entries that begin at a cursor: what it was given, less
    /// what is [gone](Exact::set_gone). Ties rotate. Datagrams as for `Rotate`.
    Least,
}
