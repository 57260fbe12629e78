//! Wanted against actual: the next small step.
//!
//! Scale, restart and stop are the same question, asked again after every change: what is the one thing
//! to do now so that every wanted slot holds one worker and no other slot holds any?

use crate::{Slot, WorkerId};

/// What stands in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// Nobody, and a worker may start.
    Free,
    /// Nobody, and nobody may start: back-off, or the restart policy says no.
    Closed,
    /// A worker.
    Worker(WorkerId),
    /// A worker that has been asked to leave.
    Leaving,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Spawn(Slot),
    Leave(WorkerId),
}

/// The next step towards one worker in each of the slots `0..wanted`, or `None` when there is nothing to
/// do before something else happens.
pub(crate) fn next_step(wanted: u32, slots: impl Iterator<Item = (Slot, Occupant)>) -> Option<Step> {
    slots
        .filter_map(|(slot, occupant)| match (slot.0 < wanted, occupant) {
            (true, Occupant::Free) => Some(Step::Spawn(slot)),
            (false, Occupant::Worker(id)) => Some(Step::Leave(id)),
            (true, Occupant::Closed | Occupant::Worker(_) | Occupant::Leaving)
            | (false, Occupant::Free | Occupant::Closed | Occupant::Leaving) => None,
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_slots_fill_and_others_empty() {
        let slots = |occupants: &[Occupant]| {
            let occupants = occupants.to_vec();
            (0..).map(Slot).zip(occupants)
        };
        use Occupant::{Closed, Free, Leaving, Worker};
        let w = Worker(WorkerId(1));
        assert_eq!(next_step(2, slots(&[w, Free])), Some(Step::Spawn(Slot(1))));
        assert_eq!(next_step(2, slots(&[w, Closed])), None);
        assert_eq!(next_step(2, slots(&[w, Leaving])), None);
        assert_eq!(next_step(1, slots(&[Leaving, w])), Some(Step::Leave(WorkerId(1))));
        assert_eq!(next_step(0, slots(&[Free, Closed, Leaving])), None);
    }
}
