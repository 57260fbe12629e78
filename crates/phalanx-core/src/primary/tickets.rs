//! Keys of TLS session tickets: all workers have the same, so that a session which began on one goes on on any other,
//! and the primary changes them.

use super::Primary;
use crate::timer::Timer;
use crate::wire::Message;
use crate::{Action, Time, WorkerId};
use std::time::Duration;

/// A key is used so long, and its tickets are taken as long again.
const ROTATE_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

impl<C> Primary<C> {
    /// A worker wants the keys, now and after each change.
    pub(super) fn wants_ticket_keys(&mut self, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.wants_ticket_keys = true;
        }
        if self.ticket_keys.is_empty() {
            self.actions.push_back(Action::MakeTicketKey);
        } else {
            self.tell_ticket_keys(worker);
        }
    }

    /// The answer to [`Action::MakeTicketKey`]: a new key, as text that needs no escaping. The one before stays good
    /// for what it has made.
    pub fn handle_ticket_key(&mut self, now: Time, key: String) {
        self.ticket_keys.truncate(1);
        self.ticket_keys.insert(0, key);
        self.timers.set(Timer::TicketKeys, now + ROTATE_EVERY);
        let all: Vec<WorkerId> =
            self.seats.iter().filter(|(_, seat)| seat.wants_ticket_keys).map(|(id, _)| *id).collect();
        for worker in all {
            self.tell_ticket_keys(worker);
        }
    }

    pub(super) fn rotate_ticket_keys(&mut self) {
        if self.seats.values().any(|seat| seat.wants_ticket_keys) {
            self.actions.push_back(Action::MakeTicketKey);
        } else {
            self.ticket_keys.clear();
        }
    }

    fn tell_ticket_keys(&mut self, worker: WorkerId) {
        let keys = self.ticket_keys.join(",");
        self.say(worker, &Message::TicketKeys { keys });
    }
}
