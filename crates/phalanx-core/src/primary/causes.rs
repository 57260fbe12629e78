//! Replacement for a cause: what is too big, too old, has had enough, or hangs.

use super::Primary;
use crate::config::{OnHang, Replacing};
use crate::lifecycle::Cause;
use crate::timer::Timer;
use crate::{Action, Event, Slot, Time, WorkerId};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Between two looks at workers' memory.
const MEASURE: Duration = Duration::from_secs(2);
/// Looks at a worker that owes answers, within `hang_timeout`.
const LOOKS: u32 = 4;

/// How a hang shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Hang {
    /// It has answered none of the connections that it was handed.
    Unacknowledged {
        /// How many wait for an answer.
        connections: u32,
    },
    /// It has accepted none of the connections in the queue of its socket.
    Queue {
        /// How many wait there.
        connections: u32,
    },
    /// It was asked whether its runtime still runs tasks, and did not answer. Only workers of this library are
    /// asked.
    Silent,
}

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hang::Unacknowledged { connections } => {
                write!(f, "{connections} connections were handed to it, and it answered none of them")
            }
            Hang::Queue { connections } => {
                write!(f, "{connections} connections wait at its socket, and it accepted none of them")
            }
            Hang::Silent => f.write_str("its runtime stands still: asked for a sign of life, it gave none"),
        }
    }
}

impl<C> Primary<C> {
    /// The answer to [`Action::Measure`]: a worker's resident memory in bytes.
    pub fn handle_memory(&mut self, now: Time, worker: WorkerId, resident: u64) {
        let limit = self.seats.get(&worker).and_then(|seat| seat.max_rss);
        if limit.is_some_and(|limit| resident > limit) {
            self.due(now, worker, Cause::MaxRss);
        }
    }

    /// Replaces the worker of a slot by one of the same generation, or starts it at once if it waits to be.
    /// Whether there was anything to do.
    pub fn restart(&mut self, now: Time, slot: Slot) -> bool {
        if self.stopping || self.wanted.is_none_or(|wanted| slot.0 >= wanted) {
            return false;
        }
        let Some(record) = self.slots.get_mut(&slot) else { return false };
        match record.worker {
            Some(id) => self.due(now, id, Cause::Asked),
            None => {
                record.waiting = false;
                record.retired = false;
                self.timers.stop(Timer::Restart(slot));
                self.reconcile(now);
                true
            }
        }
    }

    /// A worker is to be replaced. Whether that is news.
    pub(super) fn due(&mut self, now: Time, worker: WorkerId, cause: Cause) -> bool {
        if self.wanted.is_none() || self.is_leaving(worker) {
            return false;
        }
        let Some(seat) = self.seats.get_mut(&worker).filter(|seat| seat.due.is_none()) else { return false };
        seat.due = Some(cause.clone());
        self.events.push_back(Event::Due { worker, cause });
        self.reconcile(now);
        true
    }

    pub(super) fn old(&mut self, now: Time, worker: WorkerId) {
        self.due(now, worker, Cause::MaxAge);
    }

    pub(super) fn had_enough(&mut self, now: Time, worker: WorkerId) {
        let enough = self.seats.get(&worker).is_some_and(|seat| {
            seat.due.is_none() && seat.max_connections.is_some_and(|max| seat.taken >= max)
        });
        if enough {
            self.due(now, worker, Cause::MaxConnections);
        }
    }

    /// Gives a new worker its limits, each a little different from the others'.
    pub(super) fn limit(&mut self, now: Time, worker: WorkerId, replacing: Replacing) {
        let mut jitter = |value: u64| value - self.rng.below(value / 10 + 1);
        let max_rss = replacing.max_rss.map(&mut jitter);
        let max_connections = replacing.max_connections.map(&mut jitter);
        if let Some(age) = replacing.max_age {
            let age = Duration::from_millis(jitter(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
            self.timers.set(Timer::Age(worker), now + age);
        }
        if let Some(seat) = self.seats.get_mut(&worker) {
            (seat.max_rss, seat.max_connections) = (max_rss, max_connections);
        }
        if max_rss.is_some() && !self.timers.is_set(Timer::Measure) {
            self.timers.set(Timer::Measure, now + MEASURE);
        }
    }

    pub(super) fn measure(&mut self, now: Time) {
        let mut any = false;
        for (&worker, seat) in self.seats.iter().filter(|(_, seat)| seat.max_rss.is_some()) {
            any = true;
            if seat.life.state().is_alive() {
                self.actions.push_back(Action::Measure { worker });
            }
        }
        if any {
            self.timers.set(Timer::Measure, now + MEASURE);
        }
    }

    /// A worker owes an answer: somebody must look whether it comes.
    pub(super) fn expect_answer(&mut self, worker: WorkerId) {
        if let Some(timeout) = self.seats.get(&worker).and_then(|seat| seat.hang_timeout)
            && !self.timers.is_set(Timer::Hang(worker))
        {
            // The clock may be late: then the first look comes early, and counts from then.
            self.timers.set(Timer::Hang(worker), self.clock + timeout / LOOKS);
        }
    }

    pub(super) fn look_for_answers(&mut self, now: Time, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let Some(timeout) = seat.hang_timeout else { return };
        let connections = seat.ledger.len() as u32;
        if connections == 0 || !seat.life.state().is_alive() {
            seat.silent_since = None;
            return;
        }
        let since = *seat.silent_since.get_or_insert(now);
        if now.since(since) >= timeout {
            self.hung(now, worker, Hang::Unacknowledged { connections });
        } else {
            self.timers.set(Timer::Hang(worker), now + (timeout / LOOKS).max(Duration::from_millis(1)));
        }
    }

    /// It has answered: whatever it is, it does not hang.
    pub(super) fn moves(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        seat.silent_since = None;
        if seat.hung.take().is_some() {
            self.events.push_back(Event::MovesAgain { worker });
            self.refresh(worker);
            self.expect_answer(worker);
        }
    }

    /// A worker hangs, whoever found out.
    pub(super) fn hung(&mut self, now: Time, worker: WorkerId, how: Hang) {
        let Some(seat) = self.seats.get_mut(&worker).filter(|seat| seat.hung.is_none()) else { return };
        seat.hung = Some(how);
        self.events.push_back(Event::Hung { worker, how, seen: Vec::new() });
        self.refresh(worker);
        self.reconcile(now);
    }

    /// Whether it should end because it hangs.
    pub(super) fn must_end(&self, worker: WorkerId) -> bool {
        self.seats.get(&worker).is_some_and(|seat| seat.hung.is_some() && seat.on_hang == OnHang::Replace)
    }
}
