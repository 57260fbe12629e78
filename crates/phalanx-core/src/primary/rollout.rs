//! Reload: from one generation to the next, one worker after the other, or not at all.
//!
//! `stable` is the generation that has proved itself, `target` the one that every slot should have. They differ
//! while a reload is under way, and the target is then on trial: the first of its workers that cannot start,
//! ends by itself or is not ready in time takes the target back to stable, and the slots that had changed
//! change back by the same steps. Whatever is started again meanwhile is of the generation that its slot had.

use super::Primary;
use super::group::SlotRecord;
use crate::lifecycle::{Cause, Ended, Input};
use crate::{Action, Event, Generation, Lives, Slot, State, Time, WorkerId};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Why a reload was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Aborted {
    /// A new worker ended by itself.
    Died {
        /// Where.
        slot: Slot,
        /// Who.
        worker: WorkerId,
        /// How.
        ended: Ended,
        /// What phalanx did to bring it about.
        cause: Option<Cause>,
    },
    /// A new worker was not ready in time.
    NotReady {
        /// Where.
        slot: Slot,
        /// Who.
        worker: WorkerId,
        /// What was missing.
        missing: String,
    },
    /// A new worker could not be started.
    CannotStart {
        /// Where.
        slot: Slot,
        /// Why, as a sentence.
        error: String,
    },
    /// Another reload was asked for.
    Superseded {
        /// The generation of that one.
        by: Generation,
    },
    /// Everything stops.
    Stopped,
}

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aborted::Died { slot, ended, cause: None, .. } => {
                write!(f, "the new worker of slot {slot} ended before all had changed: {ended}")
            }
            Aborted::Died { slot, ended, cause: Some(cause), .. } => {
                write!(f, "the new worker of slot {slot} ended before all had changed: {ended}; {cause}")
            }
            Aborted::NotReady { slot, missing, .. } => {
                write!(f, "the new worker of slot {slot} was not ready in time: {missing}")
            }
            Aborted::CannotStart { slot, error } => {
                write!(f, "the new worker of slot {slot} cannot be started: {error}")
            }
            Aborted::Superseded { by } => write!(f, "generation {by} was asked for meanwhile"),
            Aborted::Stopped => f.write_str("everything stops"),
        }
    }
}

impl Aborted {
    /// The worker that failed, if it had been started.
    pub const fn worker(&self) -> Option<WorkerId> {
        match self {
            Aborted::Died { worker, .. } | Aborted::NotReady { worker, .. } => Some(*worker),
            Aborted::CannotStart { .. } | Aborted::Superseded { .. } | Aborted::Stopped => None,
        }
    }

    /// The slot whose worker failed: what it printed last may say more.
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Aborted::Died { slot, .. }
            | Aborted::NotReady { slot, .. }
            | Aborted::CannotStart { slot, .. } => Some(*slot),
            Aborted::Superseded { .. } | Aborted::Stopped => None,
        }
    }
}

/// A reload cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Everything stops.
    #[error("everything stops: nothing can be replaced any more")]
    Stopping,
    /// No number of workers is wanted, so nothing is ever replaced.
    #[error("workers are forked by hand here: whoever forks them replaces them")]
    ByHand,
}

impl<C> Primary<C> {
    /// Replaces every worker by one of a new generation, which is the answer. [`Event::Reloaded`] or
    /// [`Event::ReloadAborted`] follows. A reload under way is superseded. Its workers may live otherwise: each worker
    /// by what holds for its generation; the reload itself by `max_surge` and `max_unavailable` of the new one; and all
    /// else changes when the new one has proved itself, or not at all.
    ///
    /// # Errors
    ///
    /// [`Refused`]; nothing changes.
    pub fn reload(&mut self, now: Time, lives: Lives) -> Result<Generation, Refused> {
        if self.stopping || self.closing.is_some() {
            return Err(Refused::Stopping);
        }
        if self.wanted.is_none() {
            return Err(Refused::ByHand);
        }
        let generation = Generation(self.newest.0 + 1);
        self.newest = generation;
        self.abort(now, Aborted::Superseded { by: generation });
        self.target = generation;
        self.trial = lives;
        self.generations.insert(generation);
        self.events.push_back(Event::Reloading { generation });
        self.reconcile(now);
        Ok(generation)
    }

    /// The generation that has proved itself, and the one that is on trial.
    pub fn generations(&self) -> (Generation, Option<Generation>) {
        (self.stable, (self.target != self.stable).then_some(self.target))
    }

    /// How workers of a generation live.
    pub(super) fn lives(&self, generation: Generation) -> &Lives {
        if self.on_trial(generation) { &self.trial } else { &self.config.lives }
    }

    /// The signal that ends this worker.
    pub(super) fn stop_signal(&self, id: WorkerId) -> i32 {
        self.seats.get(&id).map_or(self.config.lives.limits.stop_signal, |seat| seat.life.stop_signal())
    }

    pub(super) fn on_trial(&self, generation: Generation) -> bool {
        self.target != self.stable && generation == self.target
    }

    /// Back to the stable generation, if there is anything to go back from.
    pub(super) fn abort(&mut self, now: Time, why: Aborted) {
        if self.target == self.stable {
            return;
        }
        let generation = std::mem::replace(&mut self.target, self.stable);
        self.events.push_back(Event::ReloadAborted { generation, why, last_lines: Vec::new() });
        let slots: Vec<Slot> = self.slots.keys().copied().collect();
        for slot in slots {
            let Some(record) = self.slots.get_mut(&slot) else { continue };
            record.generation = self.stable;
            record.yielded = false;
            if let Some(id) = record.successor
                && self.generation_of(id) == Some(generation)
            {
                self.dismiss(now, id, Cause::Reload);
            }
        }
    }

    /// A worker that has not taken over its slot, and will not.
    pub(super) fn dismiss(&mut self, now: Time, id: WorkerId, cause: Cause) {
        for record in self.slots.values_mut() {
            if record.successor == Some(id) {
                record.successor = None;
            }
        }
        let then = Some(self.stop_signal(id));
        let Some(seat) = self.seats.get_mut(&id) else { return };
        seat.life.blame(cause);
        // Who listens may have taken connections.
        let input =
            if seat.life.state() == State::Listening { Input::Leave { then } } else { Input::Terminate };
        self.apply(now, id, input);
    }

    /// The successor is the slot's worker now, and the one before it leaves.
    pub(super) fn promote(&mut self, now: Time, slot: Slot) {
        let Some(record) = self.slots.get_mut(&slot) else { return };
        let Some(successor) = record.successor.take() else { return };
        let before = record.worker.replace(successor);
        record.generation = self.seats.get(&successor).map_or(self.stable, |seat| seat.generation);
        record.yielded = false;
        record.retired = false;
        record.waiting = false;
        self.timers.stop(crate::timer::Timer::Restart(slot));
        if let Some(before) = before.filter(|&before| !self.is_leaving(before)) {
            self.yield_to_successor(now, before);
        }
    }

    pub(super) fn yield_to_successor(&mut self, now: Time, id: WorkerId) {
        let then = Some(self.stop_signal(id));
        if let Some(seat) = self.seats.get_mut(&id) {
            let cause = seat.due.take().unwrap_or(Cause::Reload);
            seat.life.blame(cause);
            self.apply(now, id, Input::Leave { then });
        }
    }

    pub(super) fn generation_of(&self, id: WorkerId) -> Option<Generation> {
        self.seats
            .get(&id)
            .map(|seat| seat.generation)
            .or_else(|| self.spawning.get(&id).map(|spawn| spawn.generation))
    }

    /// Whether all have changed, and who is needed no more.
    pub(super) fn conclude(&mut self) {
        if self.target != self.stable && !self.stopping && self.all_changed() {
            self.stable = self.target;
            self.config.lives = self.trial.clone();
            for (_, listener) in self.listeners.iter_mut() {
                if let Some(steering) = &mut listener.steering {
                    steering.hang_timeout = self.config.lives.hang_timeout;
                }
            }
            for record in self.slots.values_mut() {
                // Slots that are not wanted now may be later.
                record.generation = self.stable;
            }
            // What only the generation before used was kept for whoever might come.
            for listener in self.listeners.ids() {
                self.close_if_empty(listener);
            }
            self.events.push_back(Event::Reloaded { generation: self.target });
        }
        if self.generations.len() > 1 {
            let mut used: BTreeSet<Generation> = self.seats.values().map(|seat| seat.generation).collect();
            used.extend(self.spawning.values().map(|spawn| spawn.generation));
            used.extend([self.stable, self.target]);
            for generation in &self.generations - &used {
                self.generations.remove(&generation);
                self.actions.push_back(Action::Retire { generation });
            }
        }
    }

    fn all_changed(&self) -> bool {
        let changed = |record: &SlotRecord| {
            record.successor.is_none()
                && record
                    .worker
                    .and_then(|id| self.seats.get(&id))
                    .is_some_and(|seat| seat.generation == self.target && seat.ready)
        };
        let wanted = (0..self.wanted.unwrap_or(0)).map(Slot);
        wanted.into_iter().all(|slot| self.slots.get(&slot).is_some_and(changed))
            && self.spawning.is_empty()
            && self.seats.values().all(|seat| seat.generation == self.target || !seat.life.state().is_alive())
    }
}
