//! Steering: one socket for each worker, and the kernel chooses among them.
//!
//! `Steering` is the state of one steered listener. It decides who may be chosen (the *ring*), how much of a
//! lead a slow worker may have (*budgets*), and when what waits for one worker must move to the others. It is
//! told what was seen of the sockets, and asks for the next look itself: often while connections wait, and not
//! at all while none do.

mod facts;
mod member;
mod place;
mod ring;

pub use facts::{Budget, Counted, Engine, GroupFacts, GuardFacts, PlaceFacts, Rule};

use crate::{Place, Slot, SocketId, Time, WorkerId};
use member::{Member, Numbers};
use place::{Input, SETTLE, Standing};
use ring::Choice;
use std::collections::BTreeMap;
use std::time::Duration;

/// As many places as the kernel's maps have.
const PLACES: u32 = 1024;
/// Looks for which budgets go on after the last worker that was too slow.
const BUDGET_LOOKS: u32 = 100;
/// A program that cannot say when it accepts, and cannot be seen to, is tried after this.
const GRACE: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_millis(500);
const LONGEST_BUSY: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A handshake that began before may end so much later.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections are counted at most so often.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// What must be done to the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Ring(Vec<Place>),
    Budgets(Vec<Budget>),
    Gone(Vec<(Place, u64)>),
    Rescue {
        socket: SocketId,
        place: Place,
    },
    RescuePark,
    Drain {
        socket: SocketId,
    },
    Part {
        socket: SocketId,
        place: Place,
    },
    Poke(Vec<SocketId>),
    Watch,
    Look {
        busy: Vec<(Place, WorkerId)>,
    },
    Count,
    /// It has taken so many more connections, at most.
    Took {
        worker: WorkerId,
        connections: u64,
    },
    Lags(WorkerId),
    /// So many connections wait for it, and it has taken none for long.
    Hung {
        worker: WorkerId,
        connections: u32,
    },
    /// It takes connections after all.
    Moves(WorkerId),
    /// Somebody has taken the program off the group.
    Tampered,
}

/// One steered listener.
#[derive(Debug)]
pub(crate) struct Steering {
    rule: Rule,
    engine: Engine,
    lag_after: Duration,
    pub(crate) hang_timeout: Option<Duration>,
    weights: Vec<u32>,
    members: BTreeMap<Place, Member>,
    past: BTreeMap<Slot, Numbers>,
    ring: Vec<Place>,
    /// Since when the ring has had somebody.
    served_since: Option<Time>,
    totals: GroupFacts,
    budget_looks: u32,
    watching: bool,
    /// A look was asked for and has not been answered.
    looking: bool,
    looked_at: Time,
    counted: Time,
    /// Connections were taken since, and it was too early to count again.
    uncounted: bool,
    /// Somebody looks after it each second.
    pub(crate) guarded: bool,
    pub(crate) strangers: u32,
    pub(crate) tampered: u64,
}

impl Steering {
    pub(crate) fn new(
        rule: Rule,
        engine: Engine,
        lag_after: Duration,
        hang_timeout: Option<Duration>,
        weights: Vec<u32>,
    ) -> Steering {
        Steering {
            rule,
            engine,
            lag_after,
            hang_timeout,
            weights,
            members: BTreeMap::new(),
            past: BTreeMap::new(),
            ring: Vec::new(),
            served_since: None,
            totals: GroupFacts::default(),
            budget_looks: 0,
            watching: false,
            looking: false,
            looked_at: Time::ZERO,
            counted: Time::ZERO,
            uncounted: false,
            guarded: false,
            strangers: 0,
            tampered: 0,
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn totals(&self) -> &GroupFacts {
        &self.totals
    }

    /// The socket of a worker, if it has one.
    pub(crate) fn socket_of(&self, worker: WorkerId) -> Option<SocketId> {
        self.member(worker).map(|(_, member)| member.socket)
    }

    /// A place for a worker.
    pub(crate) fn join(&mut self, worker: WorkerId, slot: Slot, socket: SocketId) -> Option<Place> {
        let place = (0..PLACES).map(Place).find(|place| !self.members.contains_key(place))?;
        let member = Member {
            worker,
            slot,
            socket,
            standing: Standing::Joined,
            taken: 0,
            moved_out: 0,
            facts: PlaceFacts::new(place),
            waiting_since: None,
            hung: false,
            rests: 0,
            lags: 0,
            grace: None,
            budget: None,
            open: None,
        };
        self.members.insert(place, member);
        self.past.entry(slot).or_default();
        Some(place)
    }

    /// The socket could not be made: it was never there.
    pub(crate) fn join_failed(&mut self, socket: SocketId) {
        self.members.retain(|_, member| member.socket != socket);
    }

    /// A worker runs that cannot say when it accepts: if it is not seen to, it is tried.
    pub(crate) fn observe(&mut self, now: Time, worker: WorkerId) {
        for member in self.members.values_mut().filter(|member| member.worker == worker) {
            member.grace = Some(now + GRACE);
        }
    }

    /// A worker accepts.
    pub(crate) fn ready(&mut self, now: Time, worker: WorkerId, wishes: &mut Vec<Wish>) {
        self.input(now, worker, Input::Ready, wishes);
    }

    /// A worker gets nothing new; it will close its copy of the socket itself.
    pub(crate) fn leave(&mut self, now: Time, worker: WorkerId, wishes: &mut Vec<Wish>) {
        self.input(now, worker, Input::Leave, wishes);
    }

    /// A worker is dead, or has closed its copy of the socket.
    pub(crate) fn gone(&mut self, now: Time, worker: WorkerId, wishes: &mut Vec<Wish>) {
        self.input(now, worker, Input::Gone, wishes);
    }

    pub(crate) fn set_weight(&mut self, now: Time, slot: Slot, weight: u32, wishes: &mut Vec<Wish>) {
        let at = slot.0 as usize;
        if self.weights.len() <= at {
            self.weights.resize(at + 1, 1);
        }
        self.weights[at] = weight;
        self.choose(now, wishes);
    }

    fn input(&mut self, now: Time, worker: WorkerId, input: Input, wishes: &mut Vec<Wish>) {
        let Some(member) = self.members.values_mut().find(|member| member.worker == worker) else { return };
        member.standing = member.standing.on(now, input);
        if !matches!(member.standing, Standing::Joined) {
            member.grace = None;
        }
        self.choose(now, wishes);
        self.watch(wishes);
    }

    /// A connection waits somewhere in the group.
    pub(crate) fn stirred(&mut self) {
        self.watching = false;
    }

    /// When to look next.
    pub(crate) fn due(&self, now: Time) -> Option<Time> {
        if self.looking {
            return None;
        }
        let standing = self.members.values().filter_map(|member| member.standing.due());
        let graces = self.members.values().filter_map(|member| member.grace);
        // Counted from the last look, so that nothing can put it off for ever.
        let soon = self.pause(now).map(|pause| self.looked_at + pause);
        // Whoever came while nobody could be chosen waits in park, and nobody else tells of them.
        let park = self
            .served_since
            .map(|since| since + SETTLE)
            .filter(|settled| self.totals.park_queued > 0 || self.looked_at < *settled);
        let count = self.uncounted.then(|| self.counted + COUNT_EVERY);
        standing.chain(graces).chain(soon).chain(park).chain(count).min()
    }

    /// How long after the last look the next one is wanted; `None` while nobody waits and somebody watches.
    fn pause(&self, now: Time) -> Option<Duration> {
        let stirred = !self.watching && self.served_since.is_some();
        let shortest = self.lag_after.min(LONGEST_PAUSE);
        let first = (stirred || self.budget_looks > 0).then_some(shortest);
        let waiting = self.members.values().filter(|member| member.facts.queued > 0).map(|member| {
            // Who has been stuck for long is looked at less often.
            let waited = member.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
            (waited / 8).clamp(shortest, LONGEST_PAUSE)
        });
        waiting.chain(first).min()
    }

    /// Asks for a look.
    pub(crate) fn look(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        if std::mem::replace(&mut self.looking, true) {
            return;
        }
        let busy = self
            .members
            .iter()
            .filter(|(_, member)| matches!(member.standing, Standing::Resting { until } if until <= now))
            .map(|(place, member)| (*place, member.worker))
            .collect();
        wishes.push(Wish::Look { busy });
    }

    /// What was seen.
    pub(crate) fn looked(&mut self, now: Time, facts: &GroupFacts, wishes: &mut Vec<Wish>) {
        // Who looks for other reasons has not looked whether anybody is busy.
        let asked = std::mem::take(&mut self.looking);
        let last = std::mem::replace(&mut self.looked_at, now);
        let before = std::mem::replace(&mut self.totals, GroupFacts { places: Vec::new(), ..facts.clone() });
        // Only the program puts connections there while somebody can be chosen, and it counts them.
        if self.engine == Engine::Exact
            && facts.park_queued > before.park_queued
            && facts.parked == before.parked
            && self.served_since.is_some_and(|since| now.since(since) > HANDSHAKE)
        {
            self.tampered += 1;
            wishes.push(Wish::Tampered);
        }
        let took: BTreeMap<Place, u64> = facts
            .places
            .iter()
            .filter_map(|facts| {
                Some((facts.place, self.members.get_mut(&facts.place)?.see(last, now, facts)))
            })
            .collect();
        self.judge(now, asked, &took, wishes);
        self.act(now, wishes);
        self.choose(now, wishes);
        self.spend(&took, wishes);
        if self.served_since.is_some_and(|since| now.since(since) >= SETTLE) && self.totals.park_queued > 0 {
            wishes.push(Wish::RescuePark);
            self.totals.park_queued = 0;
            self.poke(wishes);
        }
        if self.rule == Rule::Least {
            if now.since(self.counted) >= COUNT_EVERY {
                self.counted = now;
                self.uncounted = false;
                wishes.push(Wish::Count);
            } else {
                // Whoever comes next is not to be placed by what was before.
                self.uncounted |= took.values().any(|took| *took > 0);
            }
        }
        self.watch(wishes);
    }

    /// Who takes, who is stuck, who is back.
    fn judge(&mut self, now: Time, asked: bool, took: &BTreeMap<Place, u64>, wishes: &mut Vec<Wish>) {
        let lag_after = self.lag_after;
        for (place, member) in &mut self.members {
            if let Some(&connections) = took.get(place).filter(|took| **took > 0) {
                if self.rule != Rule::Flow {
                    wishes.push(Wish::Took { worker: member.worker, connections });
                }
                member.rests = 0;
                if std::mem::take(&mut member.hung) {
                    wishes.push(Wish::Moves(member.worker));
                }
                member.standing = member.standing.on(now, Input::Took);
            }
            if member.grace.is_some_and(|at| at <= now) {
                member.grace = None;
                member.standing = member.standing.on(now, Input::Try);
            }
            if let Standing::Resting { until } = member.standing
                && asked
                && until <= now
            {
                let input = match member.facts.busy {
                    Some(true) => {
                        let waited = member.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
                        Input::StillBusy(now + (waited / 8).clamp(lag_after, LONGEST_BUSY.max(lag_after)))
                    }
                    Some(false) | None => Input::Rested,
                };
                member.standing = member.standing.on(now, input);
            }
        }
        if self.engine == Engine::Exact {
            self.pass_over(now, took, wishes);
            self.find_hung(now, wishes);
        }
    }

    /// Takes stuck workers out of the choice, as long as somebody is left who takes.
    fn pass_over(&mut self, now: Time, took: &BTreeMap<Place, u64>, wishes: &mut Vec<Wish>) {
        let stuck: Vec<Place> = self
            .members
            .iter()
            .filter(|(_, m)| m.standing.is_chosen() && m.is_stuck(now, self.lag_after))
            .filter(|(_, m)| match self.rule {
                Rule::Rotate | Rule::Least => true,
                // Who is sticky would rather wait than meet a stranger, unless nobody comes.
                Rule::Sticky => self.hang_timeout.is_some_and(|after| m.is_stuck(now, after)),
                Rule::Flow => false,
            })
            .map(|(place, _)| *place)
            .collect();
        // A machine that is too busy holds up all alike: then nothing is won by moving.
        let takes = |place: &Place, member: &Member| {
            member.standing == Standing::Serving
                && self.weight(member.slot) > 0
                && (member.facts.queued == 0 || took.get(place).is_some_and(|took| *took > 0))
        };
        let somebody_takes =
            self.members.iter().any(|(place, member)| takes(place, member) && !stuck.contains(place));
        if !somebody_takes {
            return;
        }
        for place in stuck {
            if let Some(member) = self.members.get_mut(&place) {
                if member.standing == Standing::Serving {
                    member.lags += 1;
                    wishes.push(Wish::Lags(member.worker));
                }
                member.standing = member.standing.on(now, Input::Stuck);
            }
        }
    }

    fn find_hung(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        let Some(timeout) = self.hang_timeout else { return };
        for member in self.members.values_mut() {
            let Some(since) = member.waiting_since else { continue };
            let evidence = match member.standing {
                Standing::Serving | Standing::Trial | Standing::Settling { .. } => member.facts.queued > 0,
                Standing::Resting { .. } => member.facts.busy == Some(true),
                Standing::Joined | Standing::Leaving { .. } | Standing::Dead { .. } => false,
            };
            if evidence && !member.hung && now.since(since) >= timeout {
                member.hung = true;
                // What it had been given before and was moved has waited for it as well.
                let connections = member.facts.queued.max(1);
                wishes.push(Wish::Hung { worker: member.worker, connections });
            }
        }
    }

    /// What has settled is moved or closed.
    fn act(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        let mut moved = false;
        let mut over = Vec::new();
        for (&place, member) in &mut self.members {
            match member.standing {
                Standing::Settling { at } if at <= now => {
                    wishes.push(Wish::Rescue { socket: member.socket, place });
                    moved = true;
                    let rest = self.lag_after.saturating_mul(1 << member.rests.min(6));
                    member.rests += 1;
                    let until = now + rest.min(LONGEST_REST.max(self.lag_after));
                    member.standing = member.standing.on(now, Input::Moved(until));
                }
                Standing::Leaving { at } if at.is_none_or(|at| at <= now) && member.facts.queued > 0 => {
                    match self.engine {
                        Engine::Exact => wishes.push(Wish::Rescue { socket: member.socket, place }),
                        Engine::Even => wishes.push(Wish::Drain { socket: member.socket }),
                    }
                    moved = true;
                    member.standing = member.standing.on(now, Input::Moved(now + SETTLE));
                }
                Standing::Leaving { at: Some(at) } if at <= now => {
                    member.standing = member.standing.on(now, Input::Empty);
                }
                Standing::Dead { at } if at <= now => {
                    if self.engine == Engine::Even && member.facts.queued > 0 {
                        wishes.push(Wish::Drain { socket: member.socket });
                    }
                    wishes.push(Wish::Part { socket: member.socket, place });
                    member.moved_out += u64::from(member.facts.queued);
                    moved |= member.facts.queued > 0;
                    over.push(place);
                }
                // Somebody has shut it down; its worker would wait on it for ever.
                Standing::Serving | Standing::Trial if !member.facts.listening => {
                    wishes.push(Wish::Rescue { socket: member.socket, place });
                    moved = true;
                    self.tampered += 1;
                    wishes.push(Wish::Tampered);
                }
                Standing::Joined
                | Standing::Serving
                | Standing::Trial
                | Standing::Settling { .. }
                | Standing::Resting { .. }
                | Standing::Leaving { .. }
                | Standing::Dead { .. } => {}
            }
        }
        for place in over {
            if let Some(member) = self.members.remove(&place) {
                self.past.entry(member.slot).or_default().add(&member);
            }
        }
        if moved {
            self.poke(wishes);
        }
    }

    /// Tells the kernel who may be chosen, if that has changed.
    fn choose(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        let choices: Vec<Choice> = self
            .members
            .iter()
            .filter(|(_, member)| member.standing.is_chosen())
            .map(|(&place, member)| Choice { place, slot: member.slot, weight: self.weight(member.slot) })
            .collect();
        let ring = match self.rule {
            Rule::Rotate | Rule::Least => ring::rotation(&choices),
            Rule::Sticky | Rule::Flow => ring::buckets(&choices),
        };
        if ring.is_empty() {
            self.served_since = None;
        } else {
            self.served_since.get_or_insert(now);
        }
        if ring != self.ring {
            self.ring.clone_from(&ring);
            wishes.push(Wish::Ring(ring));
        }
    }

    /// Budgets: none while all are alike; then each by what it takes.
    fn spend(&mut self, took: &BTreeMap<Place, u64>, wishes: &mut Vec<Wish>) {
        if self.rule != Rule::Rotate || self.engine != Engine::Exact {
            return;
        }
        let queues = || {
            self.members
                .iter()
                .filter(|(_, member)| member.standing == Standing::Serving)
                .map(|(place, member)| (*place, u64::from(member.facts.queued)))
        };
        let slow = queues().any(|(place, queued)| {
            let other = queues().filter(|(p, _)| *p != place).map(|(_, queued)| queued).min();
            other.is_some_and(|other| {
                queued > took.get(&place).copied().unwrap_or(0) && queued >= 2 * other + 2
            })
        });
        self.budget_looks = if slow { BUDGET_LOOKS } else { self.budget_looks.saturating_sub(1) };
        let limited = self.budget_looks > 0;
        let mut budgets = Vec::new();
        for (&place, member) in &mut self.members {
            let queued = u64::from(member.facts.queued);
            let base = member.facts.given.saturating_sub(queued);
            let limit = match member.standing {
                Standing::Trial => Some(0),
                Standing::Serving if limited => {
                    let took = took.get(&place).copied().unwrap_or(0);
                    let budget = took + took / 2 + 2;
                    let budget = if queued > budget { budget / 2 } else { budget };
                    // A full queue makes the kernel drop the SYN after the choice, and the client waits a second.
                    Some(budget.min(u64::from(member.facts.queue_limit).saturating_sub(1)))
                }
                Standing::Serving
                | Standing::Joined
                | Standing::Settling { .. }
                | Standing::Resting { .. }
                | Standing::Leaving { .. }
                | Standing::Dead { .. } => None,
            };
            let budget = limit.map(|limit| Budget { place, base, limit: Some(limit) });
            if budget != member.budget {
                budgets.push(budget.unwrap_or(Budget { place, base, limit: None }));
                member.budget = budget;
            }
        }
        if !budgets.is_empty() {
            wishes.push(Wish::Budgets(budgets));
        }
    }

    /// So many that waited there were moved to others.
    pub(crate) fn rescued(&mut self, socket: SocketId, moved: u64) {
        if let Some(member) = self.members.values_mut().find(|member| member.socket == socket) {
            member.moved_out += moved;
        }
    }

    /// Whether it chooses by how many are open.
    pub(crate) fn counts(&self) -> bool {
        self.rule == Rule::Least
    }

    /// Open connections were counted.
    pub(crate) fn counted(&mut self, counted: &[Counted], wishes: &mut Vec<Wish>) {
        let mut gone = Vec::new();
        for counted in counted {
            let Some(member) = self.members.get_mut(&counted.place) else { continue };
            member.open = Some(counted.open);
            gone.push((
                counted.place,
                counted.given.saturating_sub(u64::from(counted.open + counted.queued)),
            ));
        }
        if self.rule == Rule::Least && !gone.is_empty() {
            wishes.push(Wish::Gone(gone));
        }
    }

    fn poke(&self, wishes: &mut Vec<Wish>) {
        let receivers: Vec<SocketId> = self
            .members
            .values()
            .filter(|member| member.standing.is_chosen())
            .map(|member| member.socket)
            .collect();
        if !receivers.is_empty() {
            wishes.push(Wish::Poke(receivers));
        }
    }

    /// Nobody waits anywhere: the next one is to be told.
    fn watch(&mut self, wishes: &mut Vec<Wish>) {
        if !self.watching && self.served_since.is_some() && !self.waiting() {
            self.watching = true;
            wishes.push(Wish::Watch);
        }
    }

    fn waiting(&self) -> bool {
        self.members.values().any(|member| member.facts.queued > 0) || self.totals.park_queued > 0
    }

    fn weight(&self, slot: Slot) -> u32 {
        self.weights.get(slot.0 as usize).copied().unwrap_or(1)
    }

    fn member(&self, worker: WorkerId) -> Option<(Place, &Member)> {
        self.members
            .iter()
            .find(|(_, member)| member.worker == worker)
            .map(|(place, member)| (*place, member))
    }

    /// The sockets of all members.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.members.values().map(|member| member.socket)
    }

    /// Whether any place is still in use.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Every socket, when the listener closes.
    pub(crate) fn close(&mut self) -> Vec<(Place, SocketId)> {
        let sockets = self.members.iter().map(|(place, member)| (*place, member.socket)).collect();
        self.members.clear();
        sockets
    }

    /// Each slot that has been served, for `status`.
    pub(crate) fn numbers(&self) -> BTreeMap<Slot, Numbers> {
        let mut all = self.past.clone();
        for (&slot, numbers) in &mut all {
            numbers.weight = self.weight(slot);
        }
        for member in self.members.values() {
            let numbers = all.entry(member.slot).or_default();
            numbers.add(member);
            numbers.queued += member.facts.queued;
            if member.standing.is_chosen() || numbers.worker.is_none() {
                numbers.worker = Some(member.worker);
                numbers.queue_limit = member.facts.queue_limit;
            }
            numbers.open = match (numbers.open, member.open) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
            numbers.lagging |= matches!(
                member.standing,
                Standing::Trial | Standing::Settling { .. } | Standing::Resting { .. }
            ) || self.budget_looks > 0
                && member
                    .budget
                    .is_some_and(|b| u64::from(member.facts.queued) > b.limit.unwrap_or(u64::MAX));
        }
        all
    }
}
