//! How many workers there are: fork, scale, restart, stop.

use super::Primary;
use super::seat::Seat;
use crate::dispatch::Ledger;
use crate::lifecycle::{Ended, Input, Life, Speaks};
use crate::reconcile::{Occupant, Step, next_step};
use crate::restart::{Backoff, Restart};
use crate::status::LastEnd;
use crate::timer::Timer;
use crate::wire::{Decoder, Outbox};
use crate::{Action, Event, Slot, Spawn, State, Time, WorkerId};
use std::collections::VecDeque;

/// How much of a hurry there is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hurry {
    /// Ask, let connections end, then signal.
    Graceful,
    /// Signal now.
    Terminate,
    /// Kill now.
    Kill,
}

/// A place for workers, and what is remembered from one to the next.
#[derive(Debug, Default)]
pub(super) struct SlotRecord {
    /// The one that was started last and has not ended.
    pub(super) worker: Option<WorkerId>,
    pub(super) backoff: Backoff,
    /// Its successor waits for a deadline.
    waiting: bool,
    /// The restart policy wants no successor.
    retired: bool,
    pub(super) starts: u32,
    pub(super) last_end: Option<LastEnd>,
    degraded: bool,
}

impl<C> Primary<C> {
    /// Starts one worker in the lowest free slot, with these variables on top of everybody's. Nothing replaces
    /// it (FORK-11). Its identity is settled when the driver has answered
    /// [`Action::Spawn`]: if it cannot be started, no id is consumed (DEC-13).
    pub fn fork(&mut self, env: Vec<(String, String)>) -> WorkerId {
        let slot = (0..)
            .map(Slot)
            .find(|slot| self.slots.get(slot).is_none_or(|record| record.worker.is_none()))
            .unwrap_or(Slot(0));
        self.spawn(slot, env)
    }

    /// From now on, so many workers are wanted.
    pub fn set_wanted(&mut self, now: Time, wanted: u32) {
        self.wanted = Some(wanted);
        for (slot, record) in &mut self.slots {
            if slot.0 < wanted {
                record.retired = false;
            }
        }
        self.reconcile(now);
    }

    /// Asks a worker to leave: nothing new, end what is there, close the channel (DISC-01). With a signal,
    /// that one follows when it has drained or did not in time (DEC-04); without, its process is left alone.
    pub fn leave(&mut self, now: Time, worker: WorkerId, then: Option<i32>) {
        self.live(now, worker, Input::Leave { then });
    }

    /// Ends one worker without a drain: the stop signal now, or SIGKILL.
    pub fn end(&mut self, now: Time, worker: WorkerId, hurry: Hurry) {
        let input = match hurry {
            Hurry::Graceful => Input::Leave { then: Some(self.config.limits.stop_signal) },
            Hurry::Terminate => Input::Terminate,
            Hurry::Kill => Input::Kill,
        };
        self.live(now, worker, input);
    }

    /// Asks every worker to leave and leaves the processes alone. [`Event::Finished`] when all are gone.
    pub fn disconnect(&mut self, now: Time) {
        self.begin_stop();
        for id in self.ids() {
            self.live(now, id, Input::Leave { then: None });
        }
        self.reconcile(now);
    }

    /// Ends everything. [`Event::Finished`] when all are gone. May be called again with more hurry.
    pub fn stop(&mut self, now: Time, hurry: Hurry) {
        self.begin_stop();
        for id in self.ids() {
            self.end(now, id, hurry);
        }
        self.reconcile(now);
    }

    /// The answer to [`Action::Spawn`]: the process id, or why not, as a sentence.
    pub fn handle_spawned(&mut self, now: Time, worker: WorkerId, result: Result<u32, String>) {
        let Some(spawn) = self.spawning.remove(&worker) else { return };
        match result {
            Ok(pid) => {
                self.seat(now, spawn, pid);
                if self.stopping {
                    self.end(now, worker, Hurry::Graceful);
                }
            }
            Err(error) => {
                if worker.0 + 1 == self.next_worker {
                    self.next_worker -= 1;
                }
                self.events.push_back(Event::ForkFailed { slot: spawn.slot, error });
                if let Some(record) = self.slots.get_mut(&spawn.slot) {
                    record.worker = None;
                    record.starts = record.starts.saturating_sub(1);
                    if self.wanted.is_some() {
                        let delay = record.backoff.died(now, None, &mut self.rng);
                        record.waiting = true;
                        self.timers.set(Timer::Restart(spawn.slot), now + delay);
                        self.note_degraded(spawn.slot);
                    }
                }
            }
        }
        self.reconcile(now);
    }

    fn begin_stop(&mut self) {
        self.stopping = true;
        if self.wanted.is_some() {
            self.wanted = Some(0);
        }
        for (slot, record) in &mut self.slots {
            record.waiting = false;
            self.timers.stop(Timer::Restart(*slot));
        }
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.seats.keys().copied().collect()
    }

    fn spawn(&mut self, slot: Slot, env: Vec<(String, String)>) -> WorkerId {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let record = self.slots.entry(slot).or_default();
        record.worker = Some(worker);
        record.starts += 1;
        let lend = self.lend_at_birth(slot);
        let spawn = Spawn { worker, slot, generation: self.generation, env, lend };
        self.spawning.insert(worker, spawn.clone());
        self.actions.push_back(Action::Spawn(spawn));
        worker
    }

    fn seat(&mut self, now: Time, spawn: Spawn, pid: u32) {
        let worker = spawn.worker;
        let (life, deadline) = Life::new(self.config.speaks, self.config.limits, self.wanted.is_some());
        if let Some(after) = deadline {
            self.timers.set(Timer::Life(worker), now + after);
        }
        let speaks = self.config.speaks;
        let plain = speaks == Speaks::Nothing;
        self.seats.insert(
            worker,
            Seat {
                slot: spawn.slot,
                generation: spawn.generation,
                pid,
                since: now,
                // All that can be known of a plain program is that it runs.
                online_since: plain.then_some(now),
                life,
                decoder: Some(Decoder::new(self.config.max_message)),
                outbox: Outbox::new(),
                receipts: VecDeque::new(),
                ledger: Ledger::default(),
                window: self.config.window,
                taken: 0,
                unacknowledged_at_death: 0,
                refusals: 0,
                resting: false,
                blocked: false,
                flush_due: false,
                channel_open: !plain,
            },
        );
        self.events.push_back(Event::Fork { worker, slot: spawn.slot, pid });
        if plain {
            self.events.push_back(Event::Online { worker });
        }
    }

    /// A worker's process has ended: its slot is empty, and perhaps a successor is due.
    pub(super) fn vacate(&mut self, now: Time, id: WorkerId, ended: Ended) {
        let Some(seat) = self.seats.get(&id) else { return };
        let slot = seat.slot;
        let online_since = match self.config.speaks {
            // It may be a plain program that has served all the time without a word.
            Speaks::Perhaps => Some(seat.online_since.unwrap_or(seat.since)),
            Speaks::Node | Speaks::Phalanx | Speaks::Nothing => seat.online_since,
        };
        let last_end = LastEnd { id, ended, cause: seat.life.cause().cloned(), taken: seat.taken };
        let Some(record) = self.slots.get_mut(&slot) else { return };
        record.last_end = Some(last_end);
        if record.worker == Some(id) {
            record.worker = None;
        }
        if self.wanted.is_none_or(|wanted| slot.0 >= wanted) {
            return;
        }
        record.retired = match self.config.restart {
            Restart::Always => false,
            Restart::OnFailure => ended.is_success(),
            Restart::Never => true,
        };
        if record.retired {
            return;
        }
        let delay = record.backoff.died(now, online_since, &mut self.rng);
        if !delay.is_zero() {
            record.waiting = true;
            self.timers.set(Timer::Restart(slot), now + delay);
        }
        self.note_degraded(slot);
    }

    fn note_degraded(&mut self, slot: Slot) {
        let Some(record) = self.slots.get_mut(&slot) else { return };
        let is = record.backoff.is_degraded();
        if is && !record.degraded {
            self.events.push_back(Event::Degraded { slot });
        }
        record.degraded = is;
    }

    pub(super) fn restart_due(&mut self, now: Time, slot: Slot) {
        if let Some(record) = self.slots.get_mut(&slot) {
            record.waiting = false;
        }
        self.reconcile(now);
    }

    /// Whether somebody will come after this worker and may want its listeners.
    pub(super) fn will_be_replaced(&self, id: WorkerId) -> bool {
        let Some(slot) = self.seats.get(&id).map(|seat| seat.slot) else { return false };
        !self.stopping
            && self.wanted.is_some_and(|wanted| slot.0 < wanted)
            && self.slots.get(&slot).is_some_and(|record| !record.retired)
    }

    /// One small step after the other, until wanted and actual agree or something must happen first.
    pub(super) fn reconcile(&mut self, now: Time) {
        if let Some(wanted) = self.wanted {
            for slot in (0..wanted).map(Slot) {
                self.slots.entry(slot).or_default();
            }
            loop {
                let occupants = self.slots.iter().map(|(slot, record)| {
                    let occupant = match record.worker {
                        Some(id) if self.is_leaving(id) => Occupant::Leaving,
                        Some(id) => Occupant::Worker(id),
                        None if record.waiting || record.retired || self.stopping => Occupant::Closed,
                        None => Occupant::Free,
                    };
                    (*slot, occupant)
                });
                match next_step(wanted, occupants) {
                    Some(Step::Spawn(slot)) => {
                        self.spawn(slot, Vec::new());
                    }
                    Some(Step::Leave(id)) => {
                        let then = Some(self.config.limits.stop_signal);
                        self.apply(now, id, Input::Leave { then });
                    }
                    None => break,
                }
            }
        }
        self.finish();
    }

    fn is_leaving(&self, id: WorkerId) -> bool {
        self.seats.get(&id).is_none_or(|seat| {
            !matches!(seat.life.state(), State::Starting | State::Online | State::Listening)
        }) && !self.spawning.contains_key(&id)
    }

    /// Says so, once, when nobody is left and nobody will come.
    fn finish(&mut self) {
        if !self.seats.is_empty() || !self.spawning.is_empty() {
            return;
        }
        let all_retired = self.wanted.is_some_and(|wanted| {
            wanted > 0 && (0..wanted).all(|n| self.slots.get(&Slot(n)).is_some_and(|record| record.retired))
        });
        if !(self.stopping || all_retired) {
            return;
        }
        self.stopping = false;
        if self.wanted.is_some() {
            self.wanted = Some(0);
        }
        self.close_all_listeners();
        self.events.push_back(Event::Finished);
    }
}
