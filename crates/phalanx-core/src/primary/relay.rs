//! Signals that go on to all workers.

use super::Primary;
use crate::{Action, State, WorkerId};

impl<C> Primary<C> {
    /// Sends a raw signal to every worker; to one that is not online yet as soon as it is: before that the signal
    /// might end it.
    pub fn relay(&mut self, signal: i32) {
        for (&worker, seat) in &mut self.seats {
            match seat.life.state() {
                State::Starting => seat.relayed.push(signal),
                state if state.is_alive() => self.actions.push_back(Action::Signal { worker, signal }),
                _ => {}
            }
        }
    }

    /// What has waited for it to come online.
    pub(super) fn relay_late(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let signals = std::mem::take(&mut seat.relayed);
        self.actions.extend(signals.into_iter().map(|signal| Action::Signal { worker, signal }));
    }
}
