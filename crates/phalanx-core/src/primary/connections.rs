//! Connections: from accept to acknowledgement, and back when a worker dies or refuses.

use super::seat::{Carry, Receipt};
use super::{Examined, Primary};
use crate::dispatch::{Connection, MAX_DEATHS, Peer};
use crate::lifecycle::{Ended, SIGKILL};
use crate::listen::Listener;
use crate::timer::Timer;
use crate::wire::Seq;
use crate::{Action, ConnId, Event, ListenerId, Mechanism, Policy, SocketId, Time, WorkerId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A worker that lost a handle has no descriptors free.
const NO_FILES_REST: Duration = Duration::from_millis(50);
/// The primary that ran out of descriptors tries again after this, doubled up to a second.
const STARVED_REST: Duration = Duration::from_millis(100);
const STARVED_LONGEST: Duration = Duration::from_secs(1);
/// Open connections are counted at most so often, and only while new ones come.
const COUNT_EVERY: Duration = Duration::from_millis(100);

impl<C> Primary<C> {
    /// A connection was accepted on a socket.
    pub fn handle_connection(&mut self, socket: SocketId, peer: Option<Peer>, carry: C) {
        let Some(listener) = self.listeners.by_socket(socket) else { return };
        let connection = self.new_connection(listener, peer, None, carry);
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        entry.dispatch.push_back(connection);
        if let Some(_rest) = entry.starved.take() {
            self.events.push_back(Event::AcceptingAgain { key: entry.key.clone() });
        }
        if entry.dispatch.is_full() {
            entry.paused = true;
        }
        // Some of those that were open when last counted may have ended since. It waits for the answer.
        let least = entry.policy == Policy::LeastConnections;
        if least && !entry.open.is_empty() && !std::mem::replace(&mut entry.counted, true) {
            self.actions.push_back(Action::Count { socket });
        } else {
            self.pump(listener);
        }
    }

    /// Accepting on a socket failed for lack of descriptors or memory. It rests a while: level-triggered
    /// readiness would spin (K-30).
    pub fn handle_starved(&mut self, now: Time, socket: SocketId) {
        let Some(id) = self.listeners.by_socket(socket) else { return };
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let rest = match listener.starved {
            None => {
                self.events.push_back(Event::OutOfFiles { key: listener.key.clone() });
                STARVED_REST
            }
            Some(rest) => (rest * 2).min(STARVED_LONGEST),
        };
        listener.starved = Some(rest);
        listener.resting = true;
        self.timers.set(Timer::Accept(id), now + rest);
        self.update_accept(id);
    }

    pub(super) fn accept_again(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.resting = false;
        }
        self.update_accept(id);
    }

    /// Gives a connection to one worker, by hand-over, whatever the mechanism of the listener: a worker that
    /// holds a key as a shared socket takes connections on the same key all the same. Goes past window and
    /// queue. If the worker refuses it or dies, it is closed.
    ///
    /// # Errors
    ///
    /// The connection comes back when this worker does not hold a listener with this key or name.
    pub fn address(&mut self, worker: WorkerId, key: &str, carry: C) -> Result<ConnId, C> {
        let listener = self.listeners.by_key(key).or_else(|| self.listeners.by_name(key));
        let Some(listener) = listener else { return Err(carry) };
        if !self.listeners.get(listener).is_some_and(|listener| listener.dispatch.holds(worker)) {
            return Err(carry);
        }
        let connection = self.new_connection(listener, None, Some(worker), carry);
        let id = connection.id;
        self.hand_over(worker, connection);
        Ok(id)
    }

    fn new_connection(
        &mut self,
        listener: ListenerId,
        peer: Option<Peer>,
        only: Option<WorkerId>,
        carry: C,
    ) -> Connection<C> {
        let id = ConnId(self.next_connection);
        self.next_connection += 1;
        self.totals.accepted += 1;
        Connection { id, listener, peer, only, deaths: 0, carry }
    }

    /// Hands over what can go. Afterwards no pending connection has a willing worker.
    pub(super) fn pump(&mut self, id: ListenerId) {
        while let Some((worker, connection)) = self.listeners.get_mut(id).and_then(|l| l.dispatch.next()) {
            self.hand_over(worker, connection);
        }
        if let Some(listener) = self.listeners.get_mut(id)
            && listener.paused
            && listener.dispatch.is_half_empty()
        {
            listener.paused = false;
        }
        self.update_accept(id);
    }

    /// Something about a worker has changed: tell every listener that it holds, and use what room there is.
    pub(super) fn refresh(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get(&worker) else { return };
        let (unacknowledged, room) = (seat.ledger.len() as u32, seat.has_room());
        let mut waiting = false;
        for (_, listener) in self.listeners.iter_mut() {
            listener.dispatch.update(worker, unacknowledged, room);
            waiting |= listener.dispatch.pending() > 0;
        }
        if room && waiting {
            for id in self.listeners.ids() {
                if self.listeners.get(id).is_some_and(|listener| listener.dispatch.pending() > 0) {
                    self.pump(id);
                }
            }
        }
    }

    fn hand_over(&mut self, worker: WorkerId, connection: Connection<C>) {
        let seq = self.next_seq();
        let (Some(seat), Some(listener)) =
            (self.seats.get_mut(&worker), self.listeners.get_mut(connection.listener))
        else {
            return;
        };
        let id = connection.id;
        listener.counts.entry(seat.slot).or_default().assigned += 1;
        seat.outbox.push_with(Some(Carry::Connection(id)), |out| listener.line.write(seq, out));
        seat.receipts.push_back(Receipt::Connection(id));
        seat.ledger.push(seq, connection);
        let (unacknowledged, room) = (seat.ledger.len() as u32, seat.has_room());
        for (_, listener) in self.listeners.iter_mut() {
            listener.dispatch.update(worker, unacknowledged, room);
        }
        self.expect_answer(worker);
        self.flush(worker);
    }

    /// A worker answered a connection. An unknown or foreign number changes nothing.
    pub(super) fn answered(&mut self, now: Time, worker: WorkerId, seq: Seq, accepted: bool) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let Some(connection) = seat.ledger.take(seq) else {
            self.unknown_answers += 1;
            return;
        };
        if accepted {
            seat.taken += 1;
            seat.refusals = 0;
            self.totals.taken += 1;
            let slot = seat.slot;
            if let Some(listener) = self.listeners.get_mut(connection.listener) {
                listener.counts.entry(slot).or_default().taken += 1;
                if listener.policy == Policy::LeastConnections
                    && let Some(peer) = connection.peer
                {
                    listener.opened(peer, worker);
                    if !self.timers.is_set(Timer::Count(connection.listener)) {
                        self.timers.set(Timer::Count(connection.listener), now + COUNT_EVERY);
                    }
                }
            }
            // Our copy must go now: while it is open the worker's close sends no FIN (K-17).
            drop(connection);
            self.moves(worker);
            self.runs(now, worker);
            self.refresh(worker);
            self.had_enough(now, worker);
        } else {
            self.totals.refused += 1;
            seat.refusals = seat.refusals.saturating_add(1);
            let rest = seat.rest();
            self.moves(worker);
            self.rest(now, worker, rest);
            self.give_back(connection);
        }
    }

    /// A worker lost the handle on the way: it has no descriptors left.
    pub(super) fn lost(&mut self, now: Time, worker: WorkerId, id: ConnId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let Some(connection) = seat.ledger.seq_of(id).and_then(|seq| seat.ledger.take(seq)) else { return };
        self.totals.refused += 1;
        self.rest(now, worker, NO_FILES_REST);
        self.give_back(connection);
    }

    /// Nothing is offered to this worker for a while.
    fn rest(&mut self, now: Time, worker: WorkerId, rest: Duration) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.resting = true;
            self.timers.set(Timer::Offer(worker), now + rest);
        }
        self.refresh(worker);
    }

    pub(super) fn offer_again(&mut self, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.resting = false;
        }
        self.refresh(worker);
    }

    /// A connection that came back goes to the front: it has waited already (DEC-19).
    fn give_back(&mut self, connection: Connection<C>) {
        if connection.only.is_some() {
            self.totals.closed.undeliverable += 1;
            return;
        }
        let listener = connection.listener;
        match self.listeners.get_mut(listener) {
            Some(entry) => {
                entry.dispatch.push_front(connection);
                self.pump(listener);
            }
            None => self.totals.closed.listener_closed += 1,
        }
    }

    /// The worker's process is dead: it can touch nothing any more. What it had not acknowledged is examined,
    /// the youngest first, so that the oldest ends up at the very front.
    pub(super) fn fence(&mut self, worker: WorkerId, ended: Ended) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        seat.unacknowledged_at_death = seat.ledger.len() as u64;
        // A worker that somebody killed from outside did not die of what it was holding.
        let crashed = !matches!(ended, Ended::Signal(SIGKILL, _));
        let undelivered: Vec<ConnId> = seat
            .receipts
            .iter()
            .filter_map(|receipt| if let Receipt::Connection(id) = receipt { Some(*id) } else { None })
            .collect();
        for connection in seat.ledger.drain().rev() {
            let suspect = crashed && !undelivered.contains(&connection.id);
            self.actions.push_back(Action::Examine { connection: connection.id });
            self.examining.push_back((connection, suspect));
        }
    }

    pub(super) fn decide(&mut self, mut connection: Connection<C>, suspect: bool, examined: Examined) {
        connection.deaths += u8::from(suspect);
        match examined {
            Examined::Touched => self.totals.closed.touched += 1,
            Examined::Pristine | Examined::Unknown if connection.deaths > MAX_DEATHS => {
                self.totals.closed.poison += 1;
            }
            Examined::Pristine | Examined::Unknown => {
                self.totals.returned += 1;
                self.give_back(connection);
            }
        }
    }

    /// The last count is old: the next connection asks for another.
    pub(super) fn count_again(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.counted = false;
        }
    }

    /// Listeners whose open connections the primary counts for itself, for a driver that wants to do so now.
    pub fn counted(&self) -> impl Iterator<Item = SocketId> + '_ {
        let counts = |listener: &&Listener<C>| {
            listener.mechanism == Mechanism::Handoff && listener.policy == Policy::LeastConnections
        };
        self.listeners.iter().map(|(_, listener)| listener).filter(counts).map(|listener| listener.socket)
    }

    /// The answer to [`Action::Count`] for a listener that is not steered: the peers of all its connections that
    /// are open; `None` if that cannot be told.
    pub fn handle_peers(&mut self, socket: SocketId, open: Option<&BTreeSet<Peer>>) {
        let Some(id) = self.listeners.by_socket(socket) else { return };
        let Some(listener) = self.listeners.get_mut(id) else { return };
        if let Some(open) = open {
            listener.still_open(open);
        }
        self.pump(id);
    }

    /// Tells the driver to accept or not, when that has changed.
    pub(super) fn update_accept(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let on = listener.mechanism == Mechanism::Handoff
            && listener.is_bound()
            && listener.dispatch.members() > 0
            && !listener.paused
            && !listener.resting;
        if on != listener.accepting {
            listener.accepting = on;
            self.actions.push_back(Action::Accept { socket: listener.socket, on });
        }
    }
}
