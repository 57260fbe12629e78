//! What the driver sees of a group of sockets, and what it is told to do to it.

use crate::Place;

/// What chooses among the sockets of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// An eBPF program: exact, counts, moves what waits. Needs CAP_BPF and Linux 5.14.
    Exact,
    /// A classic BPF program: at random, counts nothing. Needs nothing.
    Even,
}

/// How it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The ring in turn, budgets respected.
    Rotate,
    /// The ring by the bucket of the client's address.
    Sticky,
    /// The place of the ring with the fewest connections.
    Least,
    /// The ring by the hash of the flow (UDP).
    Flow,
}

/// How many connections a place may have waiting before others are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Which.
    pub place: Place,
    /// How many it had been given when nothing of them waited.
    pub base: u64,
    /// It is passed over while it has been given more than `base + limit`. `None`: never.
    pub limit: Option<u64>,
}

/// What was seen of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupFacts {
    /// Every place that is in use.
    pub places: Vec<PlaceFacts>,
    /// Connections that wait in the group's first socket.
    pub park_queued: u32,
    /// Connections that found no place, since the start.
    pub parked: u64,
    /// Packets that were neither SYN nor ACK, since the start.
    pub odd: u64,
    /// Choices that the kernel refused, since the start.
    pub failed: u64,
}

/// What was seen of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceFacts {
    /// Which.
    pub place: Place,
    /// Connections that wait.
    pub queued: u32,
    /// The kernel's limit for them.
    pub queue_limit: u32,
    /// Somebody has shut the socket down, or the kernel's map has lost it, if not.
    pub listening: bool,
    /// SYNs that the program gave to it.
    pub assigned: u64,
    /// Final ACKs that the program gave to it: connections by SYN cookie.
    pub by_cookie: u64,
    /// Connections that were moved to it.
    pub moved_in: u64,
    /// All choices that fell on it, as budgets count them.
    pub given: u64,
    /// Whether its worker's main thread runs, or is stopped (not: sleeps), if that was asked for and can be known.
    pub busy: Option<bool>,
}

impl PlaceFacts {
    /// Facts of a place that nothing has happened to.
    pub const fn new(place: Place) -> PlaceFacts {
        PlaceFacts {
            place,
            queued: 0,
            queue_limit: 0,
            listening: true,
            assigned: 0,
            by_cookie: 0,
            moved_in: 0,
            given: 0,
            busy: None,
        }
    }
}

/// What the guard found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardFacts {
    /// Places that the kernel's map had lost; they have been written again.
    pub lost: Vec<Place>,
    /// Listening sockets on the group's address that are not of the group.
    pub strangers: u32,
}

/// Open connections of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which.
    pub place: Place,
    /// All choices that had fallen on it, read before counting.
    pub given: u64,
    /// Its connections that are taken and open.
    pub open: u32,
    /// Its connections that wait.
    pub queued: u32,
}
