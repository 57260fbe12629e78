//! Deadlines by name: at most one for each, the earliest first.

use crate::{ListenerId, Slot, Time, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The one deadline of a worker's life: to come online, to drain, to end.
    Life(WorkerId),
    /// A worker that refused a connection may be offered the next one.
    Offer(WorkerId),
    /// A channel that could take no more descriptors may be tried again.
    Retry(WorkerId),
    /// A slot whose worker died may start its successor.
    Restart(Slot),
    /// A worker must be ready.
    Ready(WorkerId),
    /// A worker whose probe failed is asked again.
    Probe(WorkerId),
    /// A worker must have answered one of its connections.
    Hang(WorkerId),
    /// A worker is to be asked whether it runs, or must have answered.
    Heartbeat(WorkerId),
    /// A worker is old.
    Age(WorkerId),
    /// Workers' memory is looked at.
    Measure,
    /// The delay before a stop is over.
    Shutdown,
    /// Who waits at barred listeners is to be counted.
    Closing,
    /// A listener that ran out of file descriptors may accept again.
    Accept(ListenerId),
    /// A steered listener is to be looked at.
    Steer(ListenerId),
    /// A steered listener is to be guarded.
    Guard(ListenerId),
    /// Open connections are to be counted.
    Count(ListenerId),
    /// A new key for TLS session tickets is due.
    TicketKeys,
}

/// All deadlines of a cluster.
#[derive(Debug, Default)]
pub(crate) struct TimerTable {
    by_name: BTreeMap<Timer, Time>,
    by_time: BTreeSet<(Time, Timer)>,
}

impl TimerTable {
    pub(crate) fn set(&mut self, timer: Timer, at: Time) {
        self.stop(timer);
        self.by_name.insert(timer, at);
        self.by_time.insert((at, timer));
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        if let Some(at) = self.by_name.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.by_name.contains_key(&timer)
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest deadline that has passed.
    pub(crate) fn expired(&mut self, now: Time) -> Option<Timer> {
        let &(at, timer) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.stop(timer);
        Some(timer)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn the_earliest_expires_first_and_setting_again_moves_it() {
        let mut timers = TimerTable::default();
        timers.set(Timer::Restart(Slot(0)), at(5));
        timers.set(Timer::Life(WorkerId(1)), at(3));
        timers.set(Timer::Restart(Slot(0)), at(1));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.expired(at(0)), None);
        assert_eq!(timers.expired(at(4)), Some(Timer::Restart(Slot(0))));
        assert_eq!(timers.expired(at(4)), Some(Timer::Life(WorkerId(1))));
        assert_eq!(timers.expired(at(9)), None);
        assert!(timers.is_empty());
    }
}
