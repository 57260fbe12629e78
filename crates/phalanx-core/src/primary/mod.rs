//! The primary's end: routes each fact to the table that owns it.

mod causes;
mod closing;
mod connections;
mod group;
mod heartbeat;
mod inbox;
mod listening;
mod readiness;
mod relay;
mod rollout;
mod seat;
mod snapshot;
mod steering;
mod tickets;
mod transmit;

pub use causes::Hang;
pub use group::Hurry;
pub use rollout::{Aborted, Refused};
pub use seat::WorkerView;
pub use steering::GroupError;
pub use transmit::{Blocked, Carried, SendError, Transmit};

use crate::dispatch::{Connection, Totals};
use crate::lifecycle::{Announce, Effect, Ended, Input};
use crate::listen::{ListenTable, Refusals};
use crate::rng::Rng;
use crate::steer::Wish;
use crate::timer::{Timer, TimerTable};
use crate::wire::{Payload, Seq};
use crate::{Action, Config, ConnId, Event, Generation, Lives, Slot, Spawn, Time, WorkerId};
use closing::Closing;
use group::SlotRecord;
use seat::Seat;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Whether anybody has read from or written to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examined {
    /// Provably nobody.
    Pristine,
    /// Somebody.
    Touched,
    /// The system cannot tell (not TCP). Workers acknowledge before they read, so it counts as pristine.
    Unknown,
}

/// The primary of a cluster, as a state machine. See the [crate documentation](crate) for the order of use.
///
/// It only routes: lifecycle, listeners, dispatch, restart and the wire each own their facts.
#[derive(Debug)]
pub struct Primary<C> {
    config: Config,
    rng: Rng,
    seats: BTreeMap<WorkerId, Seat<C>>,
    spawning: BTreeMap<WorkerId, Spawn>,
    slots: BTreeMap<Slot, SlotRecord>,
    wanted: Option<u32>,
    stopping: bool,
    /// Before that: nobody new is let in.
    closing: Option<Closing>,
    /// The generation that has proved itself.
    stable: Generation,
    /// The generation that every slot should have.
    target: Generation,
    /// How those on trial live, and everybody once they have proved themselves.
    trial: Lives,
    /// The latest that there ever was.
    newest: Generation,
    /// Those that somebody may still run.
    generations: BTreeSet<Generation>,
    /// The latest time that anybody told: never ahead, perhaps behind.
    clock: Time,
    listeners: ListenTable<C>,
    totals: Totals,
    /// Connections behind the fence, waiting for the driver's word, oldest first.
    examining: VecDeque<(Connection<C>, bool)>,
    next_worker: u32,
    next_connection: u64,
    next_seq: u64,
    timers: TimerTable,
    actions: VecDeque<Action>,
    events: VecDeque<Event<Payload, C>>,
    effects: Vec<Effect>,
    wishes: Vec<Wish>,
    /// The present one, and the one before.
    ticket_keys: Vec<String>,
    refused: Refusals,
    unknown_answers: u64,
}

impl<C> Primary<C> {
    /// A primary with no workers and no listeners. Nothing happens before the first wish.
    pub fn new(config: Config) -> Primary<C> {
        Primary {
            rng: Rng::new(config.seed),
            wanted: None,
            trial: config.lives.clone(),
            config,
            seats: BTreeMap::new(),
            spawning: BTreeMap::new(),
            slots: BTreeMap::new(),
            stopping: false,
            closing: None,
            stable: Generation(1),
            target: Generation(1),
            newest: Generation(1),
            generations: BTreeSet::from([Generation(1)]),
            clock: Time::ZERO,
            listeners: ListenTable::default(),
            totals: Totals::default(),
            examining: VecDeque::new(),
            next_worker: 1,
            next_connection: 0,
            next_seq: 0,
            timers: TimerTable::default(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            effects: Vec::new(),
            wishes: Vec::new(),
            ticket_keys: Vec::new(),
            refused: Refusals::default(),
            unknown_answers: 0,
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event<Payload, C>> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// It is `now`: whatever was due happens.
    pub fn handle_timeout(&mut self, now: Time) {
        self.clock = now;
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Life(worker) => self.live(now, worker, Input::Timeout),
                Timer::Offer(worker) => self.offer_again(worker),
                Timer::Retry(worker) => self.retry(worker),
                Timer::Restart(slot) => self.restart_due(now, slot),
                Timer::Accept(listener) => self.accept_again(listener),
                Timer::Ready(worker) => self.not_ready(now, worker),
                Timer::Probe(worker) => self.probe(worker),
                Timer::Hang(worker) => self.look_for_answers(now, worker),
                Timer::Heartbeat(worker) => self.heartbeat(now, worker),
                Timer::Age(worker) => self.old(now, worker),
                Timer::Measure => self.measure(now),
                Timer::Shutdown => self.close_doors(now),
                Timer::Closing => self.count_waiting(),
                Timer::Steer(listener) => self.look(now, listener),
                Timer::Guard(listener) => self.guard(now, listener),
                Timer::TicketKeys => self.rotate_ticket_keys(),
                Timer::Count(listener) => self.count_again(listener),
            }
        }
    }

    /// A worker's process has ended, and its channel has been read to its end (or until nothing was left):
    /// what it had acknowledged before it died must be known first.
    pub fn handle_exit(&mut self, now: Time, worker: WorkerId, ended: Ended) {
        self.live(now, worker, Input::Ended(ended));
    }

    /// A worker's channel is at its end. A partial line is normal and dropped.
    pub fn handle_channel_closed(&mut self, now: Time, worker: WorkerId) {
        self.live(now, worker, Input::ChannelClosed);
    }

    /// The answer to [`Action::Examine`].
    pub fn handle_examined(&mut self, connection: ConnId, examined: Examined) {
        let Some(at) = self.examining.iter().position(|(held, _)| held.id == connection) else { return };
        if let Some((held, suspect)) = self.examining.remove(at) {
            self.decide(held, suspect, examined);
        }
    }

    /// The connection of an [`Action::Examine`].
    pub fn examining(&self, connection: ConnId) -> Option<&C> {
        self.examining.iter().find(|(held, _)| held.id == connection).map(|(held, _)| &held.carry)
    }

    /// Every worker that is not gone.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> + '_ {
        self.seats.keys().filter_map(|&id| self.worker(id))
    }

    /// One worker, until it is gone.
    pub fn worker(&self, id: WorkerId) -> Option<WorkerView> {
        self.seats.get(&id).map(|seat| WorkerView {
            id,
            slot: seat.slot,
            generation: seat.generation,
            pid: seat.pid,
            state: seat.life.state(),
            ready: seat.ready,
            connected: seat.channel_open,
            exited_after_disconnect: seat.life.exited_after_disconnect(),
        })
    }

    /// Whether nothing is left: no worker, no listener, no connection, no deadline.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
            && self.spawning.is_empty()
            && self.listeners.is_empty()
            && self.examining.is_empty()
            && self.timers.is_empty()
    }

    fn next_seq(&mut self) -> Seq {
        let seq = Seq(self.next_seq);
        self.next_seq += 1;
        seq
    }

    /// One input to one worker's life, and what follows from it.
    fn live(&mut self, now: Time, id: WorkerId, input: Input) {
        self.clock = now;
        self.apply(now, id, input);
        self.reconcile(now);
    }

    fn apply(&mut self, now: Time, id: WorkerId, input: Input) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        if let Input::Ended(ended) = input
            && seat.life.state().is_alive()
        {
            // BEFORE its listeners are left: whether they stay depends on whether it will be replaced.
            self.vacate(now, id, ended);
        }
        if matches!(input, Input::LeaveNotice | Input::GaveUp) {
            self.make_room(now, id);
        }
        let Some(seat) = self.seats.get_mut(&id) else { return };
        let mut effects = std::mem::take(&mut self.effects);
        match seat.life.on(input, &mut effects) {
            Some(Some(after)) => self.timers.set(Timer::Life(id), now + after),
            Some(None) => self.timers.stop(Timer::Life(id)),
            None => {}
        }
        for effect in effects.drain(..) {
            self.effect(now, id, effect);
        }
        self.effects = effects;
        self.refresh(id);
        self.consider(now, id);
    }

    fn effect(&mut self, now: Time, id: WorkerId, effect: Effect) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        match effect {
            Effect::AskToLeave => self.say(id, &crate::wire::Message::Disconnect),
            Effect::LeaveListeners => {
                self.leave_footsteps(id);
                self.leave_all(now, id);
            }
            Effect::Signal(signal) => self.actions.push_back(Action::Signal { worker: id, signal }),
            Effect::CloseChannel => {
                if std::mem::replace(&mut seat.channel_open, false) {
                    seat.outbox.clear();
                    seat.receipts.clear();
                    self.actions.push_back(Action::CloseChannel { worker: id });
                }
            }
            Effect::Fence(ended) => self.fence(id, ended),
            Effect::Announce(what) => {
                if matches!(what, Announce::Disconnect | Announce::Exit(_)) {
                    self.let_go(now, id);
                }
                let is_online = what == Announce::Online;
                self.announce(now, id, what);
                if is_online {
                    self.relay_late(id);
                }
            }
            Effect::Forget => self.forget(id),
        }
    }

    fn announce(&mut self, now: Time, id: WorkerId, what: Announce) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        self.events.push_back(match what {
            Announce::Online => {
                seat.online_since.get_or_insert(now);
                Event::Online { worker: id }
            }
            Announce::Draining => Event::Draining { worker: id },
            Announce::Disconnect => Event::Disconnect { worker: id },
            Announce::Violation(how) => Event::Violation { worker: id, how },
            Announce::Exit(ended) => Event::Exit {
                worker: id,
                slot: seat.slot,
                ended,
                cause: seat.life.cause().cloned(),
                exited_after_disconnect: seat.life.exited_after_disconnect() == Some(true),
                taken: seat.taken,
                unacknowledged: seat.unacknowledged_at_death,
                last_lines: Vec::new(),
            },
        });
    }

    fn forget(&mut self, id: WorkerId) {
        for timer in [Timer::Ready, Timer::Probe, Timer::Hang, Timer::Heartbeat, Timer::Age, Timer::Offer] {
            self.timers.stop(timer(id));
        }
        self.timers.stop(Timer::Retry(id));
        self.actions.push_back(Action::Forget { worker: id });
        if let Some(seat) = self.seats.get(&id) {
            debug_assert_eq!(seat.ledger.len(), 0, "forgotten before the fence");
        }
        self.seats.remove(&id);
        if self.seats.is_empty() {
            self.timers.stop(Timer::Measure);
        }
    }
}
