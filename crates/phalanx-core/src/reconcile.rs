//! Wanted against actual: the next small step.
//!
//! Scale, reload, replacement for a cause, restart and stop are the same question, asked again after every
//! change: what is the one thing to do now, so that every wanted slot comes to hold one worker as it should be,
//! and no other slot any?
//!
//! Two bounds hold at every step, whatever the cause:
//!
//! * no step takes the number of ready slots below `wanted − max_unavailable`, except for a slot that could
//!   never be ready again;
//! * no step takes the number of processes above `wanted + max_surge`, those that still drain included. Only
//!   when a reload is given up is a slot that had made room for it filled at once, beside what still ends.

use crate::{Slot, WorkerId};

/// What stands in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// Nobody, and a worker may start.
    Free,
    /// Nobody, and nobody may start yet: back-off.
    Waiting,
    /// Nobody, and nobody will start: the restart policy says no, or everything stops.
    Closed,
    /// Nobody: the one before made room for what should stand here.
    Yielded,
    /// A worker.
    Worker(WorkerId),
    /// A worker that leaves.
    Leaving,
    /// A worker that leaves, and whose successor need not wait for its end.
    Yielding,
}

impl Occupant {
    fn leaves(self) -> bool {
        matches!(self, Occupant::Leaving | Occupant::Yielding)
    }
}

/// Whether what stands in a slot should be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    No,
    /// When there is room for its successor.
    Soon,
    /// It serves nobody, and its successor is not worth waiting for.
    Now,
}

/// How far the worker that will take a slot over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Successor {
    None,
    Starting(WorkerId),
    Ready,
}

/// One slot, as far as the next step depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) slot: Slot,
    pub(crate) occupant: Occupant,
    /// The occupant is ready.
    pub(crate) ready: bool,
    pub(crate) due: Due,
    pub(crate) successor: Successor,
    /// Workers that have been taken over from and are not gone.
    pub(crate) drained: u32,
    /// Nothing speaks against starting a successor.
    pub(crate) may_surge: bool,
}

impl Place {
    fn has_worker(&self) -> bool {
        matches!(self.occupant, Occupant::Worker(_)) || self.occupant.leaves()
    }

    fn processes(&self) -> u32 {
        u32::from(self.has_worker()) + u32::from(self.successor != Successor::None) + self.drained
    }

    /// Processes, and the one that will come whatever happens.
    fn claim(&self, wanted: u32) -> u32 {
        let missing = !self.has_worker() && self.successor == Successor::None;
        self.processes() + u32::from(missing && self.slot.0 < wanted && self.occupant != Occupant::Closed)
    }

    /// Whether a wanted slot has somebody who is ready.
    pub(crate) fn serves_slot(&self, wanted: Option<u32>) -> bool {
        self.serves() && wanted.is_none_or(|wanted| self.slot.0 < wanted)
    }

    fn serves(&self) -> bool {
        self.ready || self.successor == Successor::Ready
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) wanted: u32,
    pub(crate) max_surge: u32,
    pub(crate) max_unavailable: u32,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start the worker of a slot.
    Spawn(Slot),
    /// Start the worker that is to take over a slot.
    Surge(Slot),
    /// The successor takes over; the worker before it leaves.
    Promote(Slot),
    /// The successor is not wanted any more.
    Dismiss(WorkerId),
    /// A slot that is not wanted any more: its worker leaves.
    Leave(WorkerId),
    /// A worker leaves before its successor starts.
    Yield(WorkerId),
    /// A worker that serves nobody ends.
    End(WorkerId),
}

/// The next step, or `None` when there is nothing to do before something else happens.
pub(crate) fn next_step(bounds: Bounds, places: &[Place]) -> Option<Step> {
    let Bounds { wanted, max_surge, max_unavailable } = bounds;
    let is_wanted = |place: &&Place| place.slot.0 < wanted;
    let claims: u32 = places.iter().map(|place| place.claim(wanted)).sum();
    let room = |more: u32| claims + more <= wanted.saturating_add(max_surge);
    // A slot that nobody will fill again cannot be waited for.
    let lost = places.iter().filter(is_wanted).filter(|p| p.occupant == Occupant::Closed).count() as u32;
    let floor = wanted.saturating_sub(lost).saturating_sub(max_unavailable);
    let serving = places.iter().filter(|place| place.serves()).count() as u32;
    let spare = |place: &Place| !place.serves() || serving > floor;

    let missing = places
        .iter()
        .filter(is_wanted)
        .find(|place| place.occupant == Occupant::Free && (place.successor == Successor::None || room(1)));
    if let Some(place) = missing {
        return Some(Step::Spawn(place.slot));
    }
    // Never lowers the number of ready slots.
    if let Some(place) = places.iter().filter(is_wanted).find(|place| place.successor == Successor::Ready) {
        return Some(Step::Promote(place.slot));
    }
    for place in places.iter().filter(|place| place.slot.0 >= wanted) {
        match (place.successor, place.occupant) {
            (Successor::Starting(id), _) => return Some(Step::Dismiss(id)),
            (Successor::Ready, _) => return Some(Step::Promote(place.slot)),
            // It serves on until those who are to stay can.
            (Successor::None, Occupant::Worker(id)) if spare(place) => return Some(Step::Leave(id)),
            (Successor::None, _) => {}
        }
    }
    // One at a time: when all of them seem to hang, it is the machine.
    let hung = |place: &&Place| place.due == Due::Now;
    if !places.iter().filter(hung).any(|place| place.occupant.leaves())
        && let Some(id) = places.iter().filter(hung).find_map(|place| match place.occupant {
            Occupant::Worker(id) => Some(id),
            _ => None,
        })
    {
        return Some(Step::End(id));
    }
    // First where nobody serves: there is nothing to lose. Of those alike who has run the longest: slots whose
    // workers are due again at once must not keep the others waiting for ever.
    let order = |place: &&Place| {
        let worker = match place.occupant {
            Occupant::Worker(id) => Some(id),
            _ => None,
        };
        (place.has_worker(), place.ready, worker, place.slot)
    };
    let mut due: Vec<&Place> = places
        .iter()
        .filter(is_wanted)
        .filter(|place| place.due != Due::No && place.successor == Successor::None && place.drained == 0)
        .filter(|place| place.may_surge && place.occupant != Occupant::Leaving)
        .collect();
    due.sort_by_key(order);
    let moving = places.iter().any(|p| p.successor != Successor::None || p.occupant.leaves());
    due.into_iter().find_map(|place| match place.occupant {
        Occupant::Worker(_) if room(1) => Some(Step::Surge(place.slot)),
        Occupant::Worker(id) if max_unavailable > 0 && serving > floor => Some(Step::Yield(id)),
        // Nothing serves here, and there may never be room.
        Occupant::Worker(id) if max_surge == 0 && !place.ready && !moving => Some(Step::Yield(id)),
        Occupant::Free | Occupant::Waiting | Occupant::Yielded if room(0) => Some(Step::Surge(place.slot)),
        Occupant::Closed | Occupant::Yielding if room(1) => Some(Step::Surge(place.slot)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Occupant::{Closed, Free, Leaving, Waiting, Worker, Yielding};

    const ONE_BY_ONE: Bounds = Bounds { wanted: 2, max_surge: 1, max_unavailable: 0 };

    fn place(n: u32, occupant: Occupant) -> Place {
        Place {
            slot: Slot(n),
            occupant,
            ready: matches!(occupant, Worker(_)),
            due: Due::No,
            successor: Successor::None,
            drained: 0,
            may_surge: true,
        }
    }

    fn worker(n: u32) -> Place {
        place(n, Worker(WorkerId(n)))
    }

    fn due(n: u32) -> Place {
        Place { due: Due::Soon, ..worker(n) }
    }

    #[test]
    fn wanted_slots_fill_and_others_empty() {
        let want = |wanted| Bounds { wanted, ..ONE_BY_ONE };
        assert_eq!(next_step(want(2), &[worker(0), place(1, Free)]), Some(Step::Spawn(Slot(1))));
        assert_eq!(next_step(want(2), &[worker(0), place(1, Closed)]), None);
        assert_eq!(next_step(want(2), &[worker(0), place(1, Waiting)]), None);
        assert_eq!(next_step(want(2), &[worker(0), place(1, Leaving)]), None);
        assert_eq!(next_step(want(1), &[worker(0), worker(1)]), Some(Step::Leave(WorkerId(1))));
        assert_eq!(next_step(want(0), &[place(0, Free), place(1, Leaving)]), None);
    }

    #[test]
    fn who_is_not_wanted_serves_on_while_nobody_else_does() {
        let bounds = Bounds { wanted: 1, ..ONE_BY_ONE };
        assert_eq!(next_step(bounds, &[place(0, Waiting), worker(1)]), None);
        let starting = Place { ready: false, ..worker(0) };
        assert_eq!(next_step(bounds, &[starting, worker(1)]), None);
        assert_eq!(next_step(bounds, &[worker(0), worker(1)]), Some(Step::Leave(WorkerId(1))));
    }

    #[test]
    fn one_more_then_one_less() {
        let surge = Some(Step::Surge(Slot(0)));
        assert_eq!(next_step(ONE_BY_ONE, &[due(0), due(1)]), surge);
        let starting = Place { successor: Successor::Starting(WorkerId(9)), ..due(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[starting, due(1)]), None);
        let ready = Place { successor: Successor::Ready, ..due(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[ready, due(1)]), Some(Step::Promote(Slot(0))));
        let draining = Place { drained: 1, ..worker(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[draining, due(1)]), None, "it is a process still");
        assert_eq!(next_step(ONE_BY_ONE, &[worker(0), due(1)]), Some(Step::Surge(Slot(1))));
    }

    #[test]
    fn without_surge_one_makes_room() {
        let bounds = Bounds { max_surge: 0, max_unavailable: 1, ..ONE_BY_ONE };
        assert_eq!(next_step(bounds, &[due(0), due(1)]), Some(Step::Yield(WorkerId(0))));
        let left = Place { due: Due::Soon, ..place(0, Occupant::Yielded) };
        assert_eq!(next_step(bounds, &[left, due(1)]), Some(Step::Surge(Slot(0))));
        let starting = Place { successor: Successor::Starting(WorkerId(9)), ..left };
        assert_eq!(next_step(bounds, &[starting, due(1)]), None);
    }

    #[test]
    fn who_leaves_by_itself_is_succeeded_before_it_has_ended() {
        let leaver = |n| Place { due: Due::Soon, ..place(n, Yielding) };
        assert_eq!(next_step(ONE_BY_ONE, &[leaver(0), worker(1)]), Some(Step::Surge(Slot(0))));
        assert_eq!(
            next_step(ONE_BY_ONE, &[due(0), leaver(1)]),
            Some(Step::Surge(Slot(1))),
            "nobody serves there"
        );
        let early = Place { may_surge: false, ..leaver(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[early, worker(1)]), None, "back-off");
        let none_more = Bounds { max_surge: 0, max_unavailable: 1, ..ONE_BY_ONE };
        assert_eq!(next_step(none_more, &[leaver(0), worker(1)]), None, "it is a process still");
        let successor = Place { successor: Successor::Ready, ..leaver(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[successor, worker(1)]), Some(Step::Promote(Slot(0))));
    }

    #[test]
    fn nothing_is_lost_where_nobody_serves() {
        let waiting = Place { due: Due::Soon, ..place(1, Waiting) };
        assert_eq!(next_step(ONE_BY_ONE, &[due(0), waiting]), Some(Step::Surge(Slot(1))));
    }

    #[test]
    fn who_has_run_the_longest_is_replaced_first() {
        let young = Place { occupant: Worker(WorkerId(7)), ..due(0) };
        assert_eq!(next_step(ONE_BY_ONE, &[young, due(1)]), Some(Step::Surge(Slot(1))));
    }

    #[test]
    fn of_those_that_hang_one_ends_at_a_time() {
        let hung = |n| Place { due: Due::Now, ready: false, ..worker(n) };
        assert_eq!(next_step(ONE_BY_ONE, &[hung(0), hung(1)]), Some(Step::End(WorkerId(0))));
        let ending = Place { occupant: Leaving, ..hung(0) };
        assert_ne!(next_step(ONE_BY_ONE, &[ending, hung(1)]), Some(Step::End(WorkerId(1))));
    }
}
