//! What must hold, whatever happens.

use crate::net::Conn;
use crate::world::{LONGEST_REST, World};
use phalanx_core::{Event, State};
use std::collections::BTreeSet;

impl World {
    pub(crate) fn event(&mut self, event: &Event<phalanx_core::wire::Payload, Conn>) {
        let who = match event {
            Event::Fork { worker, .. } => {
                assert!(
                    self.seen.insert(*worker, crate::world::Seen::default()).is_none(),
                    "{event:?} again"
                );
                return;
            }
            Event::Finished => {
                self.finished += 1;
                return;
            }
            Event::Reloaded { .. } | Event::ReloadAborted { .. } => {
                self.deploys.ended(event);
                return;
            }
            Event::Violation { worker, .. } => {
                assert!(self.violators.contains(worker), "{event:?}");
                return;
            }
            Event::Message { worker, message, handle } => {
                self.told.arrived(*worker, message.decode().expect("a number"), handle.as_ref());
                return;
            }
            Event::Online { worker }
            | Event::Listening { worker, .. }
            | Event::ListenerLeft { worker, .. }
            | Event::Draining { worker }
            | Event::Disconnect { worker }
            | Event::Exit { worker, .. } => *worker,
            _ => return,
        };
        let seen = self.seen.get_mut(&who).unwrap_or_else(|| panic!("{event:?} before its fork"));
        match event {
            Event::Online { .. } => {
                assert!(!std::mem::replace(&mut seen.online, true), "{event:?} again");
                assert!(!seen.disconnect && !seen.exit, "{event:?} after its end");
            }
            Event::Disconnect { .. } => {
                assert!(!std::mem::replace(&mut seen.disconnect, true), "{event:?} again");
            }
            // It may be asked to leave before it is up.
            Event::Draining { .. } => assert!(!seen.disconnect && !seen.exit, "{event:?} after its end"),
            Event::Exit { .. } => assert!(!std::mem::replace(&mut seen.exit, true), "{event:?} again"),
            _ => assert!(seen.online && !seen.disconnect && !seen.exit, "{event:?} out of order"),
        }
    }

    pub(crate) fn check(&self) {
        let ledger = self.primary.ledger();
        let totals = ledger.totals;
        assert_eq!(
            totals.accepted,
            ledger.pending + ledger.in_flight + totals.taken + totals.closed.total(),
            "{ledger:?}"
        );
        let mut held = BTreeSet::new();
        for p in self.processes.values().filter(|p| p.alive) {
            for conn in p.offers.iter().map(|(.., conn)| conn).chain(&p.served) {
                assert!(held.insert(conn.id), "connection {} is held twice", conn.id);
            }
        }
        // Who has refused one rests, for at most so long.
        let resting = self.refused.0 > 0 && self.now.since(self.refused.1) < LONGEST_REST;
        if self.strict_pump && !resting {
            let status = self.primary.status(self.now);
            for listener in status.listeners.iter().filter(|listener| listener.pending > 0) {
                for worker in listener.slots.iter().filter_map(|slot| slot.worker) {
                    let worker = status.workers.iter().find(|w| w.id == worker).expect("it is there");
                    let willing =
                        matches!(worker.state, State::Online | State::Listening) && worker.hung.is_none();
                    assert!(
                        !willing || worker.unacknowledged >= self.window,
                        "{worker:?} has room, {} wait",
                        listener.pending
                    );
                }
            }
        }
    }

    /// After a stop, nothing is left anywhere.
    pub(crate) fn assert_over(&mut self) {
        self.check();
        assert!(self.primary.is_empty(), "{:?}", self.primary.status(self.now));
        assert_eq!(self.primary.poll_timeout(), None);
        assert!(self.processes.is_empty() && self.sockets.is_empty());
        let ledger = self.primary.ledger();
        assert_eq!((ledger.pending, ledger.in_flight), (0, 0));
        for (worker, seen) in &self.seen {
            assert!(seen.exit && (seen.disconnect || !self.speaks()), "{worker:?} has no end");
        }
        self.backlog.clear();
        assert!(self.open.borrow().is_empty(), "left open: {:?}", self.open.borrow());
    }
}
