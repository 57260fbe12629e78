//! Whether a worker is ready, from the facts that are known of it.

use super::Primary;
use super::seat::Seat;
use crate::lifecycle::{Cause, Input};
use crate::ready::Ready;
use crate::timer::Timer;
use crate::{Action, Event, ListenerId, Slot, State, Time, WorkerId};
use std::time::Duration;

/// A failed probe is tried again after this, doubled up to a second.
const PROBE_REST: Duration = Duration::from_millis(100);
const PROBE_LONGEST: Duration = Duration::from_secs(1);

/// What the worker that was in a slot before could do.
#[derive(Clone, Debug, Default)]
pub(super) struct Footsteps {
    /// It spoke on its channel.
    pub(super) spoke: bool,
    /// It held these.
    pub(super) held: Vec<ListenerId>,
}

impl<C> Primary<C> {
    /// Whether a worker is ready.
    pub fn is_ready(&self, worker: WorkerId) -> bool {
        self.seats.get(&worker).is_some_and(|seat| seat.ready)
    }

    /// The kernel shows this worker waiting on a socket that it was lent.
    pub fn handle_waits(&mut self, now: Time, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.waits = true;
            self.restore_backlogs(worker);
            self.accepts(now, worker);
            self.apply(now, worker, Input::Accepts);
            self.consider(now, worker);
            self.reconcile(now);
        }
    }

    /// This worker has sent READY=1 to its NOTIFY_SOCKET.
    pub fn handle_notified(&mut self, now: Time, worker: WorkerId) {
        self.promised(now, worker, &Ready::Notify);
        self.reconcile(now);
    }

    /// The answer to [`Action::Probe`]: all well, or what was wrong, as a sentence.
    pub fn handle_probed(&mut self, now: Time, worker: WorkerId, result: Result<(), String>) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        match result {
            Ok(()) => {
                seat.promise_kept = true;
                self.consider(now, worker);
                self.reconcile(now);
            }
            Err(what) => {
                seat.probe_failed = Some(what);
                let rest = PROBE_REST.saturating_mul(1 << seat.probes.min(10)).min(PROBE_LONGEST);
                seat.probes = seat.probes.saturating_add(1);
                self.timers.set(Timer::Probe(worker), now + rest);
            }
        }
    }

    /// It has said that it is ready, in this way.
    pub(super) fn promised(&mut self, now: Time, worker: WorkerId, how: &Ready) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        seat.promise_kept |= seat.wants == *how;
        self.consider(now, worker);
    }

    pub(super) fn probe(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get(&worker).filter(|seat| !seat.ready) else { return };
        let Ready::Http(path) = &seat.wants else { return };
        let key = self.listeners.iter().find(|(_, l)| l.dispatch.holds(worker)).map(|(_, l)| l.key.clone());
        if let Some(key) = key {
            self.actions.push_back(Action::Probe { worker, key, path: path.clone() });
        }
    }

    /// Something is known that was not before: is it ready now? Once ready, it stays so until it leaves.
    pub(super) fn consider(&mut self, now: Time, worker: WorkerId) {
        let Some(seat) = self.seats.get(&worker).filter(|seat| !seat.ready) else { return };
        if self.is_leaving(worker) || self.missing(worker, seat).is_some() {
            return;
        }
        let mut promised = false;
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.ready = true;
            promised = seat.wants.is_promised();
            seat.ready_since = Some(now);
        }
        self.timers.stop(Timer::Ready(worker));
        self.timers.stop(Timer::Probe(worker));
        self.events.push_back(Event::Ready { worker });
        self.refresh(worker);
        if promised {
            self.accepts(now, worker);
        }
    }

    /// Whether it is given nothing yet: it says itself when it can serve.
    pub(super) fn must_wait(&self, worker: WorkerId) -> bool {
        self.seats.get(&worker).is_some_and(|seat| seat.wants.is_promised() && !seat.ready)
    }

    /// It had to be ready by now.
    pub(super) fn not_ready(&mut self, now: Time, worker: WorkerId) {
        let Some(seat) = self.seats.get(&worker).filter(|seat| !seat.ready) else { return };
        let missing = self.missing(worker, seat).unwrap_or_default();
        let (slot, generation) = (seat.slot, seat.generation);
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.life.blame(Cause::NeverReady(missing.clone()));
        }
        self.apply(now, worker, Input::Terminate);
        if self.on_trial(generation) {
            self.abort(now, super::Aborted::NotReady { slot, worker, missing });
        }
        self.reconcile(now);
    }

    /// What it lacks to be ready, as the end of a sentence about it.
    fn missing(&self, id: WorkerId, seat: &Seat<C>) -> Option<String> {
        let plain = !seat.life.has_channel();
        let up = matches!(seat.life.state(), State::Online | State::Listening);
        let lacks = |fact: bool, what: &str| (!fact).then(|| what.to_owned());
        if !plain && !up {
            return Some("it did not come online".to_owned());
        }
        match &seat.wants {
            Ready::Online => None,
            Ready::Message => lacks(seat.promise_kept, "it did not say `ready`"),
            Ready::Notify => lacks(seat.promise_kept, "it did not send READY=1 to NOTIFY_SOCKET"),
            Ready::Http(path) => (!seat.promise_kept).then(|| match &seat.probe_failed {
                Some(what) => format!("GET {path}: {what}"),
                None => format!("it does not listen, so GET {path} could not be tried"),
            }),
            Ready::Listening | Ready::Auto if plain => {
                if seat.before.spoke {
                    Some("it did not come online, as the worker before it did".to_owned())
                } else if seat.lent || seat.wants == Ready::Listening {
                    lacks(seat.waits, "it does not wait on the sockets that it was lent")
                } else {
                    None
                }
            }
            Ready::Listening => lacks(seat.life.state() == State::Listening, "it does not listen"),
            Ready::Auto => {
                let mut held = seat.before.held.iter().filter_map(|&listener| self.listeners.get(listener));
                if let Some(listener) = held.find(|listener| !listener.dispatch.holds(id)) {
                    return Some(format!(
                        "it does not listen on `{}`, as the worker before it does",
                        listener.name.as_deref().unwrap_or(&listener.key)
                    ));
                }
                let listens =
                    !seat.before.held.is_empty() || self.listeners.iter().any(|(_, l)| l.name.is_some());
                lacks(!listens || seat.life.state() == State::Listening, "it does not listen")
            }
        }
    }

    /// What the next worker of a slot should be able to do: what the one there does, else what the last one
    /// did, else what all that are ready do. Only a generation that has proved itself is an example.
    pub(super) fn footsteps(&self, slot: Slot) -> Footsteps {
        let record = self.slots.get(&slot);
        let present = record.and_then(|record| record.worker).filter(|&id| self.is_example(id));
        let held = |worker| self.held(worker);
        if let Some(id) = present.filter(|&id| !held(id).is_empty()) {
            return Footsteps { spoke: self.spoke(id), held: held(id) };
        }
        if let Some(before) = record.and_then(|record| record.before.clone()) {
            return before;
        }
        let mut ready = self.seats.keys().copied().filter(|&id| self.is_example(id));
        let Some(first) = ready.next() else {
            return self.slots.values().find_map(|record| record.before.clone()).unwrap_or_default();
        };
        let mut all = Footsteps { spoke: self.spoke(first), held: held(first) };
        for id in ready {
            all.spoke &= self.spoke(id);
            all.held.retain(|listener| self.listeners.get(*listener).is_some_and(|l| l.dispatch.holds(id)));
        }
        all
    }

    /// BEFORE a worker leaves its listeners: its successor should hold the same.
    pub(super) fn leave_footsteps(&mut self, worker: WorkerId) {
        let held = self.held(worker);
        let Some(seat) = self.seats.get(&worker).filter(|_| self.is_example(worker) && !held.is_empty())
        else {
            return;
        };
        let spoke = seat.life.spoke();
        if let Some(record) = self.slots.get_mut(&seat.slot) {
            record.before = Some(Footsteps { spoke, held });
        }
    }

    fn is_example(&self, worker: WorkerId) -> bool {
        self.seats.get(&worker).is_some_and(|seat| seat.ready && seat.generation == self.stable)
    }

    fn held(&self, worker: WorkerId) -> Vec<ListenerId> {
        self.listeners.iter().filter(|(_, l)| l.dispatch.holds(worker)).map(|(id, _)| id).collect()
    }

    fn spoke(&self, worker: WorkerId) -> bool {
        self.seats.get(&worker).is_some_and(|seat| seat.life.spoke())
    }
}
