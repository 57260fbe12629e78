use super::{Candidates, PolicyImpl, RoundRobin};
use crate::WorkerId;
use std::net::SocketAddr;

/// Whoever has the fewest connections, in proportion to its weight; among equals, each in turn.
///
/// What counts is what a worker has been handed and what it still has open. The latter is what the system
/// reported when it was last asked, plus what the worker has taken since.
#[derive(Debug, Default)]
pub struct LeastConnections {
    ties: RoundRobin,
}

impl PolicyImpl for LeastConnections {
    fn pick(&mut self, peer: Option<SocketAddr>, candidates: Candidates<'_>) -> Option<WorkerId> {
        // a/b < c/d without division.
        let load = |c: &super::Candidate| u64::from(c.unacknowledged) + u64::from(c.open) + 1;
        let least = candidates
            .with_room()
            .min_by(|a, b| (load(a) * u64::from(b.weight)).cmp(&(load(b) * u64::from(a.weight))))?;
        let equals: Vec<_> = candidates
            .with_room()
            .filter(|c| load(c) * u64::from(least.weight) == load(least) * u64::from(c.weight))
            .copied()
            .collect();
        self.ties.pick(peer, Candidates { all: &equals, queue_full: candidates.queue_full() })
    }

    fn gone(&mut self, worker: WorkerId) {
        self.ties.gone(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;
    use crate::policy::Candidate;

    #[test]
    fn the_least_loaded_in_proportion_to_its_weight() {
        let candidate = |n: u32, open, unacknowledged, weight, room| Candidate {
            worker: WorkerId(n),
            slot: Slot(n - 1),
            unacknowledged,
            open,
            weight,
            window: 16,
            room,
        };
        let mut policy = LeastConnections::default();
        let mut pick =
            |all: &[Candidate]| policy.pick(None, Candidates { all, queue_full: false }).map(|w| w.0);
        let c = candidate;
        assert_eq!(pick(&[c(1, 3, 0, 1, true), c(2, 1, 1, 1, true)]), Some(2));
        assert_eq!(pick(&[c(1, 3, 0, 1, true), c(2, 1, 1, 1, false)]), Some(1));
        assert_eq!(pick(&[c(1, 5, 0, 3, true), c(2, 2, 0, 1, true)]), Some(1), "6/3 is less than 3/1");
        assert_eq!(pick(&[c(1, 0, 0, 0, true)]), None, "a weight of 0 drains");
        let equal = [c(1, 1, 0, 1, true), c(2, 1, 0, 1, true)];
        let (first, second) = (pick(&equal), pick(&equal));
        assert_ne!(first, second, "equals take turns");
    }
}
