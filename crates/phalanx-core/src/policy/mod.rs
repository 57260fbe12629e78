//! Who should get the next connection.

pub mod bucket;
mod least;
mod round_robin;
mod sticky;

pub use least::LeastConnections;
pub use round_robin::RoundRobin;
pub use sticky::Sticky;

use crate::{Slot, WorkerId};
use serde::Serialize;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A worker that holds the listener, as a policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The worker.
    pub worker: WorkerId,
    /// Its place; a successor has the same.
    pub slot: Slot,
    /// Connections handed to it and not acknowledged, on all its listeners.
    pub unacknowledged: u32,
    /// Connections of this listener that it has taken and that were open when last looked; kept only for
    /// [`LeastConnections`].
    pub open: u32,
    /// Its weight: 0 gets nothing.
    pub weight: u32,
    /// How many it may have at most.
    pub window: u32,
    /// Whether it can be given a connection now.
    pub room: bool,
}

/// The workers that hold a listener, in the order in which they joined.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    pub(crate) all: &'a [Candidate],
    pub(crate) queue_full: bool,
}

impl<'a> Candidates<'a> {
    /// All of them, with room or not.
    pub fn all(&self) -> &'a [Candidate] {
        self.all
    }

    /// Those that can be given a connection now.
    pub fn with_room(&self) -> impl Iterator<Item = &'a Candidate> {
        self.all.iter().filter(|candidate| candidate.room && candidate.weight > 0)
    }

    /// Whether the pending queue is full: who keeps a connection waiting now keeps all others waiting.
    pub fn queue_full(&self) -> bool {
        self.queue_full
    }
}

/// Chooses a worker for each connection of one listener. An instance serves one listener.
///
/// The choice must be one of the candidates *with room*; any other answer is taken as `None`.
pub trait PolicyImpl: Send + fmt::Debug {
    /// The worker for a connection from `peer` (unknown for Unix sockets), or `None` to let it wait until
    /// something changes.
    fn pick(&mut self, peer: Option<SocketAddr>, candidates: Candidates<'_>) -> Option<WorkerId>;

    /// Whether the choice depends on the peer. If not (the default), one `None` answers for all
    /// connections that wait.
    fn looks_at_peer(&self) -> bool {
        false
    }

    /// A worker no longer holds the listener.
    fn gone(&mut self, worker: WorkerId) {
        let _ = worker;
    }
}

/// The policies that come with phalanx.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// Each worker in turn.
    #[default]
    RoundRobin,
    /// The operating system decides: all workers accept from one socket.
    None,
    /// One client address, one worker, for as long as that worker's slot is served.
    Sticky,
    /// Whoever has the fewest open connections.
    LeastConnections,
    /// One of the user's own ([`Config::custom_policy`](crate::Config::custom_policy)), which has no name.
    Custom,
}

impl Policy {
    /// Those that can be asked for by name.
    pub const NAMES: [&'static str; 4] = ["round-robin", "none", "sticky", "least-connections"];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round-robin",
            Policy::None => "none",
            Policy::Sticky => "sticky",
            Policy::LeastConnections => "least-connections",
            Policy::Custom => "custom",
        }
    }

    /// A fresh instance for one listener.
    pub(crate) fn instance(self) -> Box<dyn PolicyImpl> {
        match self {
            // `None` shares its socket. A connection that is handed over all the same (rescued, or meant
            // for one worker) goes round.
            Policy::RoundRobin | Policy::None | Policy::Custom => Box::new(RoundRobin::default()),
            Policy::Sticky => Box::new(Sticky::default()),
            Policy::LeastConnections => Box::new(LeastConnections::default()),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy `{0}`: use one of round-robin, none, sticky, least-connections")]
pub struct UnknownPolicy(String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Policy, UnknownPolicy> {
        match text {
            "round-robin" | "rr" => Ok(Policy::RoundRobin),
            "none" => Ok(Policy::None),
            "sticky" => Ok(Policy::Sticky),
            "least-connections" | "least" => Ok(Policy::LeastConnections),
            _ => Err(UnknownPolicy(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_strictly_and_a_rotation_is_the_default() {
        assert_eq!(Policy::default(), Policy::RoundRobin);
        for (text, policy) in
            [("rr", Policy::RoundRobin), ("round-robin", Policy::RoundRobin), ("none", Policy::None)]
        {
            assert_eq!(text.parse(), Ok(policy));
        }
        for text in ["", "RR", "None", "1", "2", "toString", "constructor", "custom"] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
