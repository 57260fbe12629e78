//! Steered listeners: groups, their members, and what becomes of them when a worker comes or goes.

use super::{Hang, Primary};
use crate::lifecycle::Speaks;
use crate::listen::{Progress, Waiting, Wanted, choose, errno};
use crate::steer::{Counted, Engine, GroupFacts, GuardFacts, Steering, Wish};
use crate::timer::Timer;
use crate::{Action, BoundAddress, Event, ListenerId, Mechanism, Slot, SocketId, Time, WorkerId};
use std::time::Duration;

/// How often what a worker may have done to a group is put right. The one thing that wakes an idle primary.
const GUARD_EVERY: Duration = Duration::from_secs(1);

/// Why a group could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// The address cannot be had; the system's error number.
    Address(i32),
    /// The engine cannot be had, as part of a sentence. The listener gets the next best mechanism.
    Engine(String),
}

impl<C> Primary<C> {
    /// The answer to [`Action::Group`].
    pub fn handle_grouped(&mut self, group: SocketId, result: Result<BoundAddress, GroupError>) {
        let Some(id) = self.listeners.by_socket(group) else { return };
        match result {
            Ok(address) => self.handle_bound(group, Ok(address)),
            Err(GroupError::Address(errno)) => self.handle_bound(group, Err(errno)),
            Err(GroupError::Engine(why)) => self.fall_back(id, why),
        }
    }

    /// An engine was refused. The next listener is not tried with it again.
    fn fall_back(&mut self, id: ListenerId, why: String) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let engine = listener.steering.take().map_or(Engine::Exact, |steering| steering.engine());
        let refused = match engine {
            Engine::Exact => &mut self.refused.exact,
            Engine::Even => &mut self.refused.even,
        };
        if refused.is_none() {
            self.events.push_back(Event::SteeringRefused { engine, why: why.clone() });
            *refused = Some(why);
        }
        let wanted = Wanted {
            mechanism: self.config.mechanism,
            policy: listener.wanted,
            needs_socket: listener.needs_socket,
            refused: &self.refused,
        };
        match choose(wanted, &listener.spec) {
            Ok(choice) => self.open(id, choice),
            Err(errno) => {
                let socket = listener.socket;
                self.handle_bound(socket, Err(errno));
            }
        }
    }

    /// Begins to make the socket of a worker in a steered listener.
    pub(super) fn place_in(&mut self, id: ListenerId, worker: WorkerId, slot: Slot) -> Option<SocketId> {
        let socket = self.listeners.new_socket();
        let listener = self.listeners.get_mut(id)?;
        let place = listener.steering.as_mut()?.join(worker, slot, socket)?;
        // A socket's name is never used again, so it marks its connections as well.
        let tag = socket.0;
        self.actions.push_back(Action::Join {
            group: listener.socket,
            socket,
            place,
            tag,
            backlog: listener.backlog,
        });
        Some(socket)
    }

    /// The answer to [`Action::Join`]: whether there is such a socket now.
    pub fn handle_joined(&mut self, socket: SocketId, result: Result<(), i32>) {
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get_mut(id) else { continue };
            let Some(steering) = listener.steering.as_mut() else { continue };
            let asked = listener
                .joining
                .iter()
                .position(|(name, _)| *name == socket)
                .map(|at| listener.joining.remove(at).1);
            match (result, asked) {
                (Ok(()), Some(Waiting { worker, seq })) => self.admit(id, worker, seq),
                (Ok(()), None) => {}
                (Err(errno), asked) => {
                    steering.join_failed(socket);
                    if let Some(Waiting { worker, seq }) = asked {
                        let (key, data) = (listener.key.clone(), listener.data.clone());
                        self.refuse(worker, seq, &key, data, errno);
                    }
                    self.close_if_empty(id);
                }
            }
        }
    }

    /// A worker of a steered listener asked for it: its socket first, then the answer.
    pub(super) fn join_steered(&mut self, id: ListenerId, waiting: Waiting, slot: Slot) {
        let Some(steering) = self.listeners.get(id).and_then(|l| l.steering.as_ref()) else { return };
        if steering.socket_of(waiting.worker).is_some() {
            // It was born with it.
            self.admit(id, waiting.worker, waiting.seq);
            return;
        }
        match self.place_in(id, waiting.worker, slot) {
            Some(socket) => {
                if let Some(listener) = self.listeners.get_mut(id) {
                    listener.joining.push((socket, waiting));
                }
            }
            None => {
                let Some(listener) = self.listeners.get(id) else { return };
                let (key, data) = (listener.key.clone(), listener.data.clone());
                self.refuse(waiting.worker, waiting.seq, &key, data, errno::EMFILE);
            }
        }
    }

    /// A worker's process runs. One that cannot say when it accepts is watched until it does.
    pub(super) fn observe(&mut self, now: Time, worker: WorkerId) {
        if matches!(self.config.speaks, Speaks::Perhaps | Speaks::Nothing) && !self.must_wait(worker) {
            self.steer_all(now, |steering, _| steering.observe(now, worker));
        }
    }

    /// A worker's servers accept.
    pub(super) fn accepts(&mut self, now: Time, worker: WorkerId) {
        if self.must_wait(worker) {
            return;
        }
        self.steer_all(now, |steering, wishes| steering.ready(now, worker, wishes));
    }

    /// A worker is dead, or its end of the channel is, and with it every listener that it had.
    pub(super) fn let_go(&mut self, now: Time, worker: WorkerId) {
        self.steer_all(now, |steering, wishes| steering.gone(now, worker, wishes));
        for id in self.listeners.ids() {
            if let Some(listener) = self.listeners.get_mut(id)
                && listener.mechanism == Mechanism::Steer
            {
                listener.joining.retain(|(_, waiting)| waiting.worker != worker);
            }
        }
    }

    /// From now on, a slot has this weight: its share of new connections, in proportion. 0 gets none.
    pub fn set_weight(&mut self, now: Time, slot: Slot, weight: u32) {
        let at = slot.0 as usize;
        if self.config.weights.len() <= at {
            self.config.weights.resize(at + 1, 1);
        }
        self.config.weights[at] = weight;
        self.steer_all(now, |steering, wishes| steering.set_weight(now, slot, weight, wishes));
        for id in self.listeners.ids() {
            if let Some(listener) = self.listeners.get_mut(id) {
                listener.dispatch.set_weight(slot, weight);
                self.pump(id);
            }
        }
    }

    pub(super) fn weight(&self, slot: Slot) -> u32 {
        self.config.weights.get(slot.0 as usize).copied().unwrap_or(1)
    }

    /// A connection waits on a socket of a group: the answer to [`Action::WatchQueues`].
    pub fn handle_stirred(&mut self, now: Time, group: SocketId) {
        if let Some(id) = self.listeners.by_socket(group) {
            self.steer(now, id, |steering, _| steering.stirred());
        }
    }

    pub(super) fn look(&mut self, now: Time, id: ListenerId) {
        self.steer(now, id, |steering, wishes| steering.look(now, wishes));
    }

    /// What was seen of a group: the answer to [`Action::Look`], or for [`status`](Self::status) to be fresh.
    pub fn handle_looked(&mut self, now: Time, group: SocketId, facts: &GroupFacts) {
        if let Some(id) = self.listeners.by_socket(group) {
            self.steer(now, id, |steering, wishes| steering.looked(now, facts, wishes));
        }
    }

    /// The answer to [`Action::Rescue`]: how many were moved.
    pub fn handle_rescued(&mut self, group: SocketId, socket: SocketId, moved: u64) {
        let listener = self.listeners.by_socket(group).and_then(|id| self.listeners.get_mut(id));
        if let Some(steering) = listener.and_then(|listener| listener.steering.as_mut()) {
            steering.rescued(socket, moved);
        }
    }

    pub(super) fn guard(&mut self, now: Time, id: ListenerId) {
        let Some(listener) = self.listeners.get(id) else { return };
        self.actions.push_back(Action::Guard { group: listener.socket });
        self.timers.set(Timer::Guard(id), now + GUARD_EVERY);
        let counts = listener.steering.as_ref().is_some_and(Steering::counts);
        if counts || self.seats.values().any(|seat| seat.max_connections.is_some()) {
            // While nobody waits, nobody tells how many were taken, or are over.
            self.look(now, id);
        }
    }

    /// What was found and put right: the answer to [`Action::Guard`].
    pub fn handle_guarded(&mut self, group: SocketId, found: &GuardFacts) {
        let Some(listener) = self.listeners.by_socket(group).and_then(|id| self.listeners.get_mut(id)) else {
            return;
        };
        let Some(steering) = listener.steering.as_mut() else { return };
        if found.strangers > steering.strangers {
            self.events.push_back(Event::Strangers { key: listener.key.clone(), count: found.strangers });
        }
        steering.strangers = found.strangers;
        if !found.lost.is_empty() {
            steering.tampered += 1;
            self.events.push_back(Event::Tampered { key: listener.key.clone() });
        }
    }

    /// The answer to [`Action::Count`] for a group.
    pub fn handle_counted(&mut self, now: Time, group: SocketId, counted: &[Counted]) {
        if let Some(id) = self.listeners.by_socket(group) {
            self.steer(now, id, |steering, wishes| steering.counted(counted, wishes));
        }
    }

    /// The groups that there are, for a driver that wants to look at all of them.
    pub fn groups(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.listeners.iter().filter(|(_, l)| l.steering.is_some() && l.is_bound()).map(|(_, l)| l.socket)
    }

    /// Closes every socket of a group.
    pub(super) fn disband(&mut self, id: ListenerId, group: SocketId, steering: &mut Steering) {
        for timer in [Timer::Steer(id), Timer::Guard(id)] {
            self.timers.stop(timer);
        }
        for (place, socket) in steering.close() {
            self.actions.push_back(Action::Part { group, socket, place, orphaned: false });
        }
    }

    fn steer_all(&mut self, now: Time, mut step: impl FnMut(&mut Steering, &mut Vec<Wish>)) {
        for id in self.listeners.ids() {
            self.steer(now, id, &mut step);
        }
    }

    /// One step of one group, and what follows from it.
    pub(super) fn steer(
        &mut self,
        now: Time,
        id: ListenerId,
        step: impl FnOnce(&mut Steering, &mut Vec<Wish>),
    ) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        if !matches!(listener.progress, Progress::Bound(_)) {
            return;
        }
        let Some(steering) = listener.steering.as_mut() else { return };
        let mut wishes = std::mem::take(&mut self.wishes);
        step(steering, &mut wishes);
        match steering.due(now) {
            Some(at) => self.timers.set(Timer::Steer(id), at),
            None => self.timers.stop(Timer::Steer(id)),
        }
        if !steering.is_empty() && !std::mem::replace(&mut steering.guarded, true) {
            self.timers.set(Timer::Guard(id), now + GUARD_EVERY);
        }
        for wish in wishes.drain(..) {
            self.grant(now, id, wish);
        }
        self.wishes = wishes;
    }

    fn grant(&mut self, now: Time, id: ListenerId, wish: Wish) {
        let Some(listener) = self.listeners.get(id) else { return };
        let (group, backlog) = (listener.socket, listener.backlog);
        let key = || listener.key.clone();
        self.actions.push_back(match wish {
            Wish::Ring(ring) => Action::Ring { group, ring },
            Wish::Budgets(budgets) => Action::Budgets { group, budgets },
            Wish::Gone(gone) => Action::Gone { group, gone },
            Wish::Rescue { socket, place } => Action::Rescue { group, socket, place: Some(place), backlog },
            Wish::RescuePark => Action::Rescue { group, socket: group, place: None, backlog },
            // Nobody could be given what was accepted, and it would wait for ever; a reset is told at once.
            Wish::Drain { .. } if listener.needs_socket => return,
            Wish::Drain { socket } => Action::Drain { group, socket },
            Wish::Part { socket, place } => Action::Part { group, socket, place, orphaned: true },
            Wish::Poke(sockets) => Action::Poke { sockets },
            Wish::Watch => Action::WatchQueues { group },
            Wish::Look { busy } => Action::Look { group, busy },
            Wish::Count => Action::Count { socket: group },
            Wish::Took { worker, connections } => {
                if let Some(seat) = self.seats.get_mut(&worker) {
                    seat.taken += connections;
                }
                self.runs(now, worker);
                self.had_enough(now, worker);
                return;
            }
            Wish::Lags(worker) => {
                self.events.push_back(Event::Lags { worker, key: key() });
                return;
            }
            Wish::Hung { worker, connections } => {
                self.hung(now, worker, Hang::Queue { connections });
                return;
            }
            Wish::Moves(worker) => {
                self.moves(worker);
                return;
            }
            Wish::Tampered => {
                self.events.push_back(Event::Tampered { key: key() });
                Action::Guard { group }
            }
        });
    }
}
