use super::{Candidates, PolicyImpl};
use crate::WorkerId;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Each worker in turn, in the order in which they joined; one with a weight of `n` gets `n` in its turn.
///
/// A worker without room loses its turn for now and may catch up later, by at most its window: so that
/// shares stay equal through small delays, and a worker that was away for long is not flooded when it
/// comes back.
#[derive(Debug, Default)]
pub struct RoundRobin {
    last: Option<WorkerId>,
    /// How many the last one has had in its present turn.
    had: u32,
    owed: BTreeMap<WorkerId, u32>,
}

impl PolicyImpl for RoundRobin {
    fn pick(&mut self, _: Option<SocketAddr>, candidates: Candidates<'_>) -> Option<WorkerId> {
        let all = candidates.all();
        if !self.owed.is_empty() {
            let creditor = candidates.with_room().find(|c| self.owed.contains_key(&c.worker));
            if let Some(creditor) = creditor {
                self.repay(creditor.worker);
                return Some(creditor.worker);
            }
        }
        candidates.with_room().next()?;
        if let Some(last) =
            candidates.with_room().find(|c| Some(c.worker) == self.last && self.had < c.weight)
        {
            self.had += 1;
            return Some(last.worker);
        }
        let start = match self.last {
            Some(last) => all.iter().position(|c| c.worker == last).map_or(0, |at| at + 1),
            None => 0,
        };
        for candidate in all[start..].iter().chain(&all[..start]).filter(|c| c.weight > 0) {
            if candidate.room {
                self.last = Some(candidate.worker);
                self.had = 1;
                return Some(candidate.worker);
            }
            let owed = self.owed.entry(candidate.worker).or_insert(0);
            *owed = (*owed + 1).min(candidate.window);
        }
        None
    }

    fn gone(&mut self, worker: WorkerId) {
        self.owed.remove(&worker);
    }
}

impl RoundRobin {
    fn repay(&mut self, worker: WorkerId) {
        if let Some(owed) = self.owed.get_mut(&worker) {
            *owed -= 1;
            if *owed == 0 {
                self.owed.remove(&worker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;
    use crate::policy::Candidate;

    fn candidates(room: &[bool]) -> Vec<Candidate> {
        room.iter()
            .zip(1..)
            .map(|(&room, n)| Candidate {
                worker: WorkerId(n),
                slot: Slot(n - 1),
                unacknowledged: 0,
                open: 0,
                weight: 1,
                window: 2,
                room,
            })
            .collect()
    }

    fn pick(policy: &mut RoundRobin, room: &[bool]) -> u32 {
        let all = candidates(room);
        policy.pick(None, Candidates { all: &all, queue_full: false }).map_or(0, |id| id.0)
    }

    #[test]
    fn strict_rotation_while_all_have_room() {
        let mut policy = RoundRobin::default();
        let picks: Vec<u32> = (0..7).map(|_| pick(&mut policy, &[true, true, true])).collect();
        assert_eq!(picks, [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn a_skipped_worker_catches_up_by_at_most_its_window() {
        let mut policy = RoundRobin::default();
        for _ in 0..10 {
            assert_eq!(pick(&mut policy, &[true, false]), 1);
        }
        let picks: Vec<u32> = (0..5).map(|_| pick(&mut policy, &[true, true])).collect();
        assert_eq!(picks, [2, 2, 2, 1, 2], "two owed, then its turn, then rotation");
    }

    #[test]
    fn a_weight_is_a_longer_turn_and_none_is_no_turn() {
        let mut all = candidates(&[true, true, true]);
        all[0].weight = 3;
        all[2].weight = 0;
        let mut policy = RoundRobin::default();
        let picks: Vec<u32> = (0..8)
            .filter_map(|_| policy.pick(None, Candidates { all: &all, queue_full: false }))
            .map(|id| id.0)
            .collect();
        assert_eq!(picks, [1, 1, 1, 2, 1, 1, 1, 2]);
    }

    #[test]
    fn nobody_with_room_means_wait() {
        let mut policy = RoundRobin::default();
        assert_eq!(pick(&mut policy, &[false, false]), 0);
        assert_eq!(pick(&mut policy, &[]), 0);
        assert_eq!(pick(&mut policy, &[true, true]), 1, "waiting cost nobody a turn");
    }
}
