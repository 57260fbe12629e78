//! How many workers there are: fork, scale, restart, stop.

use super::heartbeat::Heartbeat;
use super::readiness::Footsteps;
use super::seat::Seat;
use super::{Aborted, Primary};
use crate::dispatch::Ledger;
use crate::lifecycle::{Cause, Ended, Input, Life, Speaks};
use crate::reconcile::{Bounds, Due, Occupant, Place, Step, Successor, next_step};
use crate::restart::{Backoff, Restart};
use crate::status::LastEnd;
use crate::timer::Timer;
use crate::wire::{Decoder, Outbox};
use crate::{Action, Event, Generation, Lives, Slot, Spawn, State, Time, WorkerId};
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
#[derive(Debug)]
pub(super) struct SlotRecord {
    /// The one that serves, or is to, and has not ended.
    pub(super) worker: Option<WorkerId>,
    /// The one that takes over when it is ready.
    pub(super) successor: Option<WorkerId>,
    /// What is started here when a worker has ended.
    pub(super) generation: Generation,
    /// What the last worker that was ready did.
    pub(super) before: Option<Footsteps>,
    /// Its worker has made room, or will, for one that is as it should be.
    pub(super) yielded: bool,
    pub(super) backoff: Backoff,
    /// Its successor waits for a deadline.
    pub(super) waiting: bool,
    /// The restart policy wants no successor.
    pub(super) retired: bool,
    pub(super) starts: u32,
    pub(super) last_end: Option<LastEnd>,
    degraded: bool,
}

impl SlotRecord {
    fn new(generation: Generation) -> SlotRecord {
        SlotRecord {
            worker: None,
            successor: None,
            generation,
            before: None,
            yielded: false,
            backoff: Backoff::default(),
            waiting: false,
            retired: false,
            starts: 0,
            last_end: None,
            degraded: false,
        }
    }
}

impl<C> Primary<C> {
    /// Starts one worker in the lowest free slot, with these variables on top of everybody's. Nothing replaces
    /// it (FORK-11). Its identity is settled when the driver has answered
    /// [`Action::Spawn`]: if it cannot be started, no id is consumed (DEC-13).
    pub fn fork(&mut self, env: Vec<(String, String)>) -> WorkerId {
        let slot = (0..)
            .map(Slot)
            .find(|slot| {
                self.slots
                    .get(slot)
                    .is_none_or(|record| record.worker.is_none() && record.successor.is_none())
            })
            .unwrap_or(Slot(0));
        self.spawn(slot, env)
    }

    /// How many workers are wanted; `None` when whoever forks decides.
    pub fn wanted(&self) -> Option<u32> {
        self.wanted
    }

    /// From now on, so many workers are wanted. Changes nothing once everything stops.
    pub fn set_wanted(&mut self, now: Time, wanted: u32) {
        if self.stopping {
            return;
        }
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
            Hurry::Graceful => Input::Leave { then: Some(self.stop_signal(worker)) },
            Hurry::Terminate => Input::Terminate,
            Hurry::Kill => Input::Kill,
        };
        self.live(now, worker, input);
    }

    /// Asks every worker to leave and leaves the processes alone. [`Event::Finished`] when all are gone.
    pub fn disconnect(&mut self, now: Time) {
        self.begin_stop(now);
        for id in self.ids() {
            self.live(now, id, Input::Leave { then: None });
        }
        self.reconcile(now);
    }

    /// Ends everything. [`Event::Finished`] when all are gone. May be called again with more hurry.
    ///
    /// The first graceful stop begins after the shutdown delay, if there is one; any further stop ends that delay.
    /// Then nobody new is let in, who has come is served, and workers leave.
    pub fn stop(&mut self, now: Time, hurry: Hurry) {
        let graceful = hurry == Hurry::Graceful && !self.stopping;
        let delay = self.config.lives.shutdown_delay;
        if graceful && !delay.is_zero() && self.closing.is_none() && !self.timers.is_set(Timer::Shutdown) {
            self.timers.set(Timer::Shutdown, now + delay);
            self.events.push_back(Event::Stopping);
        } else if graceful {
            self.close_doors(now);
        } else {
            self.send_off(now, hurry);
        }
    }

    /// Every worker is to end.
    pub(super) fn send_off(&mut self, now: Time, hurry: Hurry) {
        self.begin_stop(now);
        for id in self.ids() {
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.life.blame(Cause::Stop);
            }
            self.end(now, id, hurry);
        }
        self.reconcile(now);
    }

    /// The answer to [`Action::Spawn`]: the process id, or why not, as a sentence.
    pub fn handle_spawned(&mut self, now: Time, worker: WorkerId, result: Result<u32, String>) {
        let Some(spawn) = self.spawning.remove(&worker) else { return };
        match result {
            Ok(pid) => {
                let slot = spawn.slot;
                self.seat(now, spawn, pid);
                self.observe(now, worker);
                let expected = self
                    .slots
                    .get(&slot)
                    .is_some_and(|record| record.worker == Some(worker) || record.successor == Some(worker));
                if self.stopping {
                    self.end(now, worker, Hurry::Graceful);
                } else if !expected {
                    self.dismiss(now, worker, Cause::Reload);
                }
            }
            Err(error) => {
                self.let_go(now, worker);
                if worker.0 + 1 == self.next_worker {
                    self.next_worker -= 1;
                }
                let slot = spawn.slot;
                self.events.push_back(Event::ForkFailed { slot, error: error.clone() });
                if let Some(record) = self.slots.get_mut(&slot) {
                    record.starts = record.starts.saturating_sub(1);
                    if record.worker == Some(worker) {
                        record.worker = None;
                    } else if record.successor == Some(worker) {
                        record.successor = None;
                    }
                    if self.on_trial(spawn.generation) {
                        self.abort(now, Aborted::CannotStart { slot, error });
                    } else if self.wanted.is_some() {
                        self.back_off(now, slot, None);
                    }
                }
            }
        }
        self.reconcile(now);
    }

    fn begin_stop(&mut self, now: Time) {
        for timer in [Timer::Shutdown, Timer::Closing] {
            self.timers.stop(timer);
        }
        self.closing = None;
        self.stopping = true;
        self.abort(now, Aborted::Stopped);
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

    /// Starts the worker of a slot, of the generation that it had.
    fn spawn(&mut self, slot: Slot, env: Vec<(String, String)>) -> WorkerId {
        let record = self.record(slot);
        let generation = record.generation;
        let worker = self.start(slot, generation, env);
        self.record(slot).worker = Some(worker);
        worker
    }

    /// Starts the worker that will take over a slot.
    fn surge(&mut self, slot: Slot) {
        let worker = self.start(slot, self.target, Vec::new());
        self.record(slot).successor = Some(worker);
    }

    fn record(&mut self, slot: Slot) -> &mut SlotRecord {
        let generation = self.stable;
        self.slots.entry(slot).or_insert_with(|| SlotRecord::new(generation))
    }

    fn start(&mut self, slot: Slot, generation: Generation, env: Vec<(String, String)>) -> WorkerId {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.record(slot).starts += 1;
        let lend = self.lend_at_birth(worker, slot);
        let spawn = Spawn { worker, slot, generation, env, lend };
        self.spawning.insert(worker, spawn.clone());
        self.actions.push_back(Action::Spawn(spawn));
        worker
    }

    fn seat(&mut self, now: Time, spawn: Spawn, pid: u32) {
        let worker = spawn.worker;
        let lives = self.lives(spawn.generation).clone();
        let (life, deadline) = Life::new(self.config.speaks, lives.limits, self.wanted.is_some());
        if let Some(after) = deadline {
            self.timers.set(Timer::Life(worker), now + after);
        }
        let speaks = self.config.speaks;
        let plain = speaks == Speaks::Nothing;
        let before = self.footsteps(spawn.slot);
        let lent = !spawn.lend.is_empty();
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
                decoder: Some(Decoder::new(self.config.max_message).serialization(self.config.serialization)),
                outbox: Outbox::new().serialization(self.config.serialization),
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
                relayed: Vec::new(),
                wants_ticket_keys: false,
                wants: lives.ready.clone(),
                before,
                lent,
                waits: false,
                promise_kept: false,
                probes: 0,
                probe_failed: None,
                ready: false,
                ready_since: None,
                due: None,
                max_rss: None,
                max_connections: None,
                hang_timeout: lives.hang_timeout,
                on_hang: lives.on_hang,
                silent_since: None,
                heartbeat: Heartbeat::default(),
                hung: None,
            },
        );
        self.events.push_back(Event::Fork { worker, slot: spawn.slot, pid });
        if plain {
            self.events.push_back(Event::Online { worker });
        }
        // A worker that only replaces what died is not ended for being slow. One that others wait for is.
        let awaited = lives.ready.is_promised()
            || self.on_trial(spawn.generation)
            || self.slots.get(&spawn.slot).is_some_and(|record| record.successor == Some(worker));
        if awaited && let Some(timeout) = lives.limits.start_timeout {
            self.timers.set(Timer::Ready(worker), now + timeout);
        }
        if self.wanted.is_some() {
            self.limit(now, worker, lives.replacing);
        }
        self.consider(now, worker);
        if lent {
            self.actions.push_back(Action::Watch { worker });
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
        let cause = seat.life.cause().cloned();
        let last_end = LastEnd {
            id,
            ended,
            cause: cause.clone(),
            generation: seat.generation,
            was_ready: seat.ready,
            lived_ms: now.since(seat.since).as_millis() as u64,
            taken: seat.taken,
        };
        let asked = seat.life.exited_after_disconnect() == Some(true);
        let on_trial = self.on_trial(seat.generation);
        let Some(record) = self.slots.get_mut(&slot) else { return };
        record.last_end = Some(last_end);
        let was_worker = record.worker == Some(id);
        let was_successor = record.successor == Some(id);
        if was_worker {
            record.worker = None;
        }
        if was_successor {
            record.successor = None;
        }
        if self.wanted.is_none_or(|wanted| slot.0 >= wanted) {
            return;
        }
        if !(was_worker || was_successor) {
            // It had been taken over from: nobody comes after it.
            return;
        }
        if on_trial && (was_successor || !asked) {
            self.abort(now, Aborted::Died { slot, worker: id, ended, cause });
            if was_successor {
                return;
            }
        }
        let Some(record) = self.slots.get_mut(&slot) else { return };
        if was_worker && record.yielded {
            return;
        }
        if was_successor {
            self.back_off(now, slot, online_since);
            return;
        }
        record.retired = match self.config.lives.restart {
            Restart::Always => false,
            Restart::OnFailure => ended.is_success(),
            Restart::Never => true,
        };
        if record.retired {
            return;
        }
        self.back_off(now, slot, online_since);
    }

    /// A worker of this slot has died: when may the next one start?
    fn back_off(&mut self, now: Time, slot: Slot, online_since: Option<Time>) {
        let Some(record) = self.slots.get_mut(&slot) else { return };
        let delay = record.backoff.died(now, online_since, &mut self.rng);
        if !delay.is_zero() {
            record.waiting = true;
            self.timers.set(Timer::Restart(slot), now + delay);
        }
        self.note_degraded(slot);
    }

    /// BEFORE a worker leaves by its own choice: its successor need not wait until it has drained. The back-off counts
    /// it now, as a death: who always leaves at once comes no more often than who always dies.
    pub(super) fn make_room(&mut self, now: Time, worker: WorkerId) {
        if self.stopping || self.is_leaving(worker) || self.config.lives.restart != Restart::Always {
            return;
        }
        let Some(seat) = self.seats.get(&worker).filter(|seat| seat.ready) else { return };
        let (slot, online_since) = (seat.slot, seat.online_since);
        // One on trial that ends by itself takes the reload back.
        if self.on_trial(seat.generation) || self.wanted.is_none_or(|wanted| slot.0 >= wanted) {
            return;
        }
        let Some(record) = self.slots.get_mut(&slot) else { return };
        if record.worker == Some(worker) && !std::mem::replace(&mut record.yielded, true) {
            self.back_off(now, slot, online_since);
        }
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

    /// Whether somebody will come who may want what a leaving worker held. Not only in its own slot: those of
    /// other slots may be on their way.
    pub(super) fn will_be_replaced(&self) -> bool {
        !self.stopping
            && self.wanted.is_some_and(|wanted| {
                (0..wanted).any(|n| self.slots.get(&Slot(n)).is_none_or(|record| !record.retired))
            })
    }

    /// One small step after the other, until wanted and actual agree or something must happen first.
    pub(super) fn reconcile(&mut self, now: Time) {
        if let Some(wanted) = self.wanted {
            for slot in (0..wanted).map(Slot) {
                self.record(slot);
            }
            let Lives { max_surge, max_unavailable, .. } = *self.lives(self.target);
            while let Some(step) = next_step(Bounds { wanted, max_surge, max_unavailable }, &self.places()) {
                if let Step::Leave(id) | Step::Yield(id) | Step::End(id) = step
                    && !self.seats.contains_key(&id)
                {
                    // It is being started: once that is known, this is asked again.
                    break;
                }
                match step {
                    Step::Spawn(slot) => {
                        self.spawn(slot, Vec::new());
                    }
                    Step::Surge(slot) => self.surge(slot),
                    Step::Promote(slot) => self.promote(now, slot),
                    Step::Dismiss(id) => self.dismiss(now, id, Cause::Scale),
                    Step::Leave(id) => {
                        if let Some(seat) = self.seats.get_mut(&id) {
                            let cause = if self.stopping { Cause::Stop } else { Cause::Scale };
                            seat.due.get_or_insert(cause);
                        }
                        self.yield_to_successor(now, id);
                    }
                    Step::Yield(id) => {
                        if let Some(slot) = self.seats.get(&id).map(|seat| seat.slot) {
                            self.record(slot).yielded = true;
                        }
                        self.yield_to_successor(now, id);
                    }
                    Step::End(id) => {
                        if let Some(seat) = self.seats.get_mut(&id)
                            && let Some(how) = seat.hung
                        {
                            seat.life.blame(Cause::Hung(how.to_string()));
                        }
                        self.apply(now, id, Input::Terminate);
                    }
                }
            }
        }
        self.conclude();
        self.finish();
    }

    /// Every slot, as far as the next step depends on it.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |(&slot, record): (&Slot, &SlotRecord)| {
            let occupant = match record.worker {
                Some(id) if self.is_leaving(id) && record.yielded => Occupant::Yielding,
                Some(id) if self.is_leaving(id) => Occupant::Leaving,
                Some(id) => Occupant::Worker(id),
                None if record.retired || self.stopping => Occupant::Closed,
                None if record.yielded => Occupant::Yielded,
                None if record.waiting => Occupant::Waiting,
                None => Occupant::Free,
            };
            let seat = record.worker.and_then(|id| self.seats.get(&id));
            let present = record.worker.and_then(|id| self.generation_of(id)).unwrap_or(record.generation);
            let due = match record.worker {
                Some(id) if self.must_end(id) => Due::Now,
                _ if present != self.target || record.yielded => Due::Soon,
                _ if seat.is_some_and(|seat| seat.due.is_some()) => Due::Soon,
                _ => Due::No,
            };
            let successor = match record.successor {
                None => Successor::None,
                Some(id) if self.is_ready(id) && !self.is_leaving(id) => Successor::Ready,
                Some(id) => Successor::Starting(id),
            };
            Place {
                slot,
                occupant,
                ready: matches!(occupant, Occupant::Worker(_))
                    && seat.is_some_and(|seat| seat.ready && seat.hung.is_none()),
                due,
                successor,
                drained: 0,
                may_surge: !self.stopping && (!record.waiting || self.target != self.stable),
            }
        };
        let mut places: Vec<Place> = self.slots.iter().map(place).collect();
        for (id, seat) in &self.seats {
            let taken_over = self
                .slots
                .get(&seat.slot)
                .is_none_or(|record| record.worker != Some(*id) && record.successor != Some(*id));
            if taken_over
                && seat.life.state().is_alive()
                && let Ok(at) = places.binary_search_by_key(&seat.slot, |place| place.slot)
            {
                places[at].drained += 1;
            }
        }
        places
    }

    /// Whether it has been told to go, or goes, or is gone.
    pub(super) fn is_leaving(&self, id: WorkerId) -> bool {
        self.seats.get(&id).is_none_or(|seat| {
            !matches!(seat.life.state(), State::Starting | State::Online | State::Listening)
                || seat.life.exited_after_disconnect() == Some(true)
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
        self.closing = None;
        self.timers.stop(Timer::Closing);
        self.close_all_listeners();
        self.timers.stop(Timer::TicketKeys);
        self.ticket_keys.clear();
        self.events.push_back(Event::Finished);
    }
}
