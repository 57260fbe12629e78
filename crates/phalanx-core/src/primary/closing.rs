//! The beginning of a graceful stop: nobody new is let in, who has come is served, and only then do workers leave.

use super::Primary;
use super::group::Hurry;
use crate::timer::Timer;
use crate::{Action, BindSpec, Mechanism, Time};
use std::time::Duration;

/// Between two counts. The first is one later than the bar: a handshake that got past it at the last moment is in the
/// books by then.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Who waits waits on while the number falls. When it has not fallen for so long nobody will take them, or whoever
/// began a handshake will not end it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How that goes.
#[derive(Debug)]
pub(super) struct Closing {
    since: Time,
    /// The rest of the time is for the workers' own drain.
    until: Time,
    /// The fewest that have been counted.
    fewest: u64,
    patience: Time,
}

impl Closing {
    fn new(now: Time, drain_timeout: Duration) -> Closing {
        Closing { since: now, until: now + drain_timeout / 2, fewest: u64::MAX, patience: now }
    }

    /// So many wait. Is it over?
    fn counted(&mut self, now: Time, waiting: u64) -> bool {
        if waiting < self.fewest {
            self.fewest = waiting;
            self.patience = now + PATIENCE;
        }
        waiting == 0 || now >= self.until.min(self.patience)
    }
}

impl<C> Primary<C> {
    /// Lets nobody new in. Where there is no such listener, or nobody to serve who is in, workers leave at once.
    pub(super) fn close_doors(&mut self, now: Time) {
        if self.closing.is_some() {
            return;
        }
        self.timers.stop(Timer::Shutdown);
        if self.seats.is_empty() || !self.bar() {
            self.send_off(now, Hurry::Graceful);
            return;
        }
        self.closing = Some(Closing::new(now, self.config.lives.limits.drain_timeout));
        self.timers.set(Timer::Closing, now + LOOK_EVERY);
    }

    /// Bars whatever can be. Whether there is any.
    fn bar(&mut self) -> bool {
        let before = self.actions.len();
        for (_, listener) in self.listeners.iter().filter(|(_, listener)| listener.is_bound()) {
            match listener.spec {
                BindSpec::Tcp { .. } | BindSpec::Unix { .. } => {
                    let members = listener.steering.iter().flat_map(|steering| steering.sockets());
                    let all = members.chain([listener.socket]);
                    self.actions.extend(all.map(|socket| Action::Bar { socket }));
                }
                // It is not ours to bar: whoever gave it keeps it, and all that waits there.
                BindSpec::Inherited { .. } => {}
                // Nobody is connected.
                BindSpec::Udp { .. } => {}
            }
        }
        self.actions.len() > before
    }

    pub(super) fn count_waiting(&mut self) {
        // There may be new ones: workers are replaced as long as they have not been told to leave.
        self.bar();
        self.actions.push_back(Action::CountWaiting);
    }

    /// The answer to [`Action::CountWaiting`]: how many wait at barred sockets, or are on the way in.
    pub fn handle_waiting(&mut self, now: Time, waiting: u64) {
        let unserved = self.unserved();
        let Some(closing) = &mut self.closing else { return };
        if !closing.counted(now, waiting + unserved) {
            self.timers.set(Timer::Closing, now + LOOK_EVERY);
            return;
        }
        let spent = now.since(closing.since);
        for seat in self.seats.values_mut() {
            seat.life.hurry(spent);
        }
        self.send_off(now, Hurry::Graceful);
        // From here on, whoever comes is refused.
        self.close_all_listeners();
    }

    /// Accepted, and in no worker's hands yet.
    fn unserved(&self) -> u64 {
        let handed = self.listeners.iter().filter(|(_, listener)| listener.mechanism == Mechanism::Handoff);
        let pending: usize = handed.map(|(_, listener)| listener.dispatch.pending()).sum();
        let unacknowledged: usize = self.seats.values().map(|seat| seat.ledger.len()).sum();
        (pending + unacknowledged + self.examining.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn it_waits_for_who_waits_as_long_as_somebody_takes_them() {
        let mut closing = Closing::new(at(0), Duration::from_secs(6));
        assert!(!closing.counted(at(20), 5));
        assert!(!closing.counted(at(1000), 4), "it fell");
        assert!(!closing.counted(at(1900), 4));
        assert!(closing.counted(at(2000), 4), "nobody has taken any for a second");
        assert!(Closing::new(at(0), Duration::from_secs(6)).counted(at(20), 0), "nobody is left");
    }

    #[test]
    fn it_never_takes_more_than_half_of_the_time() {
        let mut closing = Closing::new(at(0), Duration::from_secs(6));
        assert!((1..30).all(|n| !closing.counted(at(n * 100), 100 - n)));
        assert!(closing.counted(at(3000), 1));
        assert!(Closing::new(at(0), Duration::ZERO).counted(at(20), 5));
    }
}
