//! Pending connections, and the ledger of those that were handed over and not acknowledged.
//!
//! A connection has one owner at any moment: the kernel's queue, *pending*, the *ledger*, or a worker. Only
//! an acknowledgement moves it out of the ledger; a refusal, or the worker's death behind the fence, moves it
//! back to the front of pending.

use crate::policy::{Candidate, Candidates, PolicyImpl};
use crate::wire::Seq;
use crate::{ConnId, ListenerId, Slot, WorkerId};
use serde::Serialize;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// The other end of a connection: what tells it from all others of its listener while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The client's address.
    Inet(SocketAddr),
    /// The inode of our end of a Unix socket: its clients have no names.
    Unix(u64),
}

impl Peer {
    pub(crate) const fn address(self) -> Option<SocketAddr> {
        match self {
            Peer::Inet(address) => Some(address),
            Peer::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer::Inet(address)
    }
}

/// A connection that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Connection<C> {
    pub(crate) id: ConnId,
    pub(crate) listener: ListenerId,
    pub(crate) peer: Option<Peer>,
    /// Meant for one worker: it goes to that one or is closed.
    pub(crate) only: Option<WorkerId>,
    /// How many workers have died of it, as far as can be told.
    pub(crate) deaths: u8,
    pub(crate) carry: C,
}

/// How often a connection goes to another worker after one that died of it.
pub(crate) const MAX_DEATHS: u8 = 2;

/// What became of connections. Every connection is counted once in `accepted`, and once in the place where it
/// is now: `accepted = pending + in flight + taken + closed` at any moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Connections that the primary accepted, or was given to hand over.
    pub accepted: u64,
    /// Connections that a worker acknowledged: they are its own.
    pub taken: u64,
    /// Times a worker refused one; it went to another.
    pub refused: u64,
    /// Times one came back from a dead worker and went to another.
    pub returned: u64,
    /// Connections that the primary closed, by why.
    pub closed: Closed,
}

/// Connections that the primary closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Closed {
    /// A worker died after it had begun to read them, but before it acknowledged.
    pub touched: u64,
    /// Three workers died of them.
    pub poison: u64,
    /// Their listener closed while they waited.
    pub listener_closed: u64,
    /// Meant for one worker, which refused them or went.
    pub undeliverable: u64,
}

impl Closed {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.touched + self.poison + self.listener_closed + self.undeliverable
    }
}

/// A connection in the ledger.
#[derive(Debug)]
pub(crate) struct Held<C> {
    pub(crate) seq: Seq,
    pub(crate) connection: Connection<C>,
}

/// What one worker was handed and has not answered, oldest first.
#[derive(Debug)]
pub(crate) struct Ledger<C> {
    held: VecDeque<Held<C>>,
}

impl<C> Default for Ledger<C> {
    fn default() -> Ledger<C> {
        Ledger { held: VecDeque::new() }
    }
}

impl<C> Ledger<C> {
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn push(&mut self, seq: Seq, connection: Connection<C>) {
        self.held.push_back(Held { seq, connection });
    }

    /// Lets go of the connection that was sent as `seq`. An unknown number changes nothing.
    pub(crate) fn take(&mut self, seq: Seq) -> Option<Connection<C>> {
        let at = self.held.iter().position(|held| held.seq == seq)?;
        self.held.remove(at).map(|held| held.connection)
    }

    /// The connection itself, to be sent.
    pub(crate) fn carry(&self, id: ConnId) -> Option<&C> {
        self.held.iter().rev().find(|held| held.connection.id == id).map(|held| &held.connection.carry)
    }

    /// How many of them are of one listener.
    pub(crate) fn count(&self, listener: ListenerId) -> u64 {
        self.held.iter().filter(|held| held.connection.listener == listener).count() as u64
    }

    pub(crate) fn seq_of(&self, id: ConnId) -> Option<Seq> {
        self.held.iter().find(|held| held.connection.id == id).map(|held| held.seq)
    }

    pub(crate) fn drain(&mut self) -> impl DoubleEndedIterator<Item = Connection<C>> + '_ {
        self.held.drain(..).map(|held| held.connection)
    }
}

/// The dispatch of one listener: who may get connections, who waits, who chooses.
#[derive(Debug)]
pub(crate) struct Dispatch<C> {
    candidates: Vec<Candidate>,
    pending: VecDeque<Connection<C>>,
    policy: Box<dyn PolicyImpl>,
    max: usize,
}

impl<C> Dispatch<C> {
    pub(crate) fn new(policy: Box<dyn PolicyImpl>, max: usize) -> Dispatch<C> {
        Dispatch { candidates: Vec::new(), pending: VecDeque::new(), policy, max }
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// No more should be accepted.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= self.max
    }

    /// Accepting may go on.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.pending.len() <= self.max / 2
    }

    pub(crate) fn members(&self) -> usize {
        self.candidates.len()
    }

    pub(crate) fn holds(&self, worker: WorkerId) -> bool {
        self.candidates.iter().any(|c| c.worker == worker)
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.candidates.iter().map(|c| c.worker)
    }

    pub(crate) fn join(&mut self, candidate: Candidate) {
        self.candidates.push(candidate);
    }

    /// Takes `worker` off; whether it was there.
    pub(crate) fn leave(&mut self, worker: WorkerId) -> bool {
        let before = self.candidates.len();
        self.candidates.retain(|c| c.worker != worker);
        self.policy.gone(worker);
        self.candidates.len() != before
    }

    /// The facts about a worker have changed.
    pub(crate) fn update(&mut self, worker: WorkerId, unacknowledged: u32, room: bool) {
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.worker == worker) {
            candidate.unacknowledged = unacknowledged;
            candidate.room = room;
        }
    }

    pub(crate) fn set_weight(&mut self, slot: Slot, weight: u32) {
        for candidate in self.candidates.iter_mut().filter(|c| c.slot == slot) {
            candidate.weight = weight;
        }
    }

    /// A worker has so many open connections of this listener more, or fewer.
    pub(crate) fn change_open(&mut self, worker: WorkerId, by: i32) {
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.worker == worker) {
            candidate.open = candidate.open.saturating_add_signed(by);
        }
    }

    pub(crate) fn push_back(&mut self, connection: Connection<C>) {
        self.pending.push_back(connection);
    }

    /// Puts a connection back where the oldest are: it has waited already (DEC-19).
    pub(crate) fn push_front(&mut self, connection: Connection<C>) {
        self.pending.push_front(connection);
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Connection<C>> + '_ {
        self.pending.drain(..)
    }

    /// The next connection that can go, oldest first, and to whom.
    ///
    /// When this returns `None`, no pending connection has a willing worker: *pending non-empty implies ready
    /// empty* (DEF-26), per peer for a policy that looks at it.
    pub(crate) fn next(&mut self) -> Option<(WorkerId, Connection<C>)> {
        if !self.candidates.iter().any(|c| c.room && c.weight > 0) {
            return None;
        }
        let queue_full = self.pending.len() >= self.max;
        let scan = if self.policy.looks_at_peer() { self.pending.len() } else { self.pending.len().min(1) };
        for at in 0..scan {
            let candidates = Candidates { all: &self.candidates, queue_full };
            let Some(worker) = self.policy.pick(self.pending[at].peer.and_then(Peer::address), candidates)
            else {
                continue;
            };
            if !self.candidates.iter().any(|c| c.worker == worker && c.room && c.weight > 0) {
                continue;
            }
            let connection = self.pending.remove(at)?;
            return Some((worker, connection));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn dispatch(workers: u32) -> Dispatch<u32> {
        let mut dispatch = Dispatch::new(Policy::RoundRobin.instance(), 4);
        for n in 1..=workers {
            dispatch.join(Candidate {
                worker: WorkerId(n),
                slot: Slot(n - 1),
                unacknowledged: 0,
                open: 0,
                weight: 1,
                window: 1,
                room: true,
            });
        }
        dispatch
    }

    fn connection(id: u64) -> Connection<u32> {
        Connection { id: ConnId(id), listener: ListenerId(0), peer: None, only: None, deaths: 0, carry: 0 }
    }

    #[test]
    fn the_oldest_goes_first_and_who_comes_back_is_the_oldest() {
        let mut dispatch = dispatch(1);
        dispatch.push_back(connection(1));
        dispatch.push_back(connection(2));
        let (_, first) = dispatch.next().unwrap();
        assert_eq!(first.id, ConnId(1));
        dispatch.push_front(first);
        assert_eq!(dispatch.next().unwrap().1.id, ConnId(1));
    }

    #[test]
    fn nobody_with_room_keeps_everything_pending() {
        let mut dispatch = dispatch(1);
        dispatch.update(WorkerId(1), 1, false);
        dispatch.push_back(connection(1));
        assert!(dispatch.next().is_none());
        dispatch.update(WorkerId(1), 0, true);
        assert!(dispatch.next().is_some());
    }

    #[test]
    fn full_and_half_empty() {
        let mut dispatch = dispatch(0);
        for id in 0..4 {
            assert!(!dispatch.is_full());
            dispatch.push_back(connection(id));
        }
        assert!(dispatch.is_full() && !dispatch.is_half_empty());
        dispatch.drain().nth(1);
    }

    #[test]
    fn an_unknown_answer_changes_no_bucket() {
        let mut ledger = Ledger::default();
        ledger.push(Seq(5), connection(1));
        assert!(ledger.take(Seq(6)).is_none());
        assert_eq!(ledger.len(), 1);
        assert_eq!(ledger.take(Seq(5)).unwrap().id, ConnId(1));
        assert!(ledger.take(Seq(5)).is_none(), "a double answer");
    }
}
