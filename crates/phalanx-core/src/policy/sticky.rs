use super::{Candidate, Candidates, PolicyImpl, RoundRobin, bucket};
use crate::WorkerId;
use std::net::SocketAddr;

/// One client address, one worker: rendezvous hashing over the slots.
///
/// Every slot gets a score for the address and the highest wins, so that a slot that comes or goes moves
/// only its own clients, and a successor in the same slot inherits them. A connection waits while its
/// worker has no room; only when the whole queue is full does it go to the next best.
#[derive(Debug, Default)]
pub struct Sticky {
    unaddressed: RoundRobin,
}

impl PolicyImpl for Sticky {
    fn pick(&mut self, peer: Option<SocketAddr>, candidates: Candidates<'_>) -> Option<WorkerId> {
        let Some(peer) = peer else { return self.unaddressed.pick(None, candidates) };
        let bucket = bucket::of(peer.ip());
        let best = |who: &mut dyn Iterator<Item = &Candidate>| {
            who.max_by_key(|c| (bucket::score(bucket, c.slot, c.weight), c.worker)).copied()
        };
        let mine = best(&mut candidates.all().iter().filter(|c| c.weight > 0))?;
        if mine.room {
            return Some(mine.worker);
        }
        if candidates.queue_full() {
            return best(&mut candidates.with_room()).map(|c| c.worker);
        }
        None
    }

    fn looks_at_peer(&self) -> bool {
        true
    }

    fn gone(&mut self, worker: WorkerId) {
        self.unaddressed.gone(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;
    use std::net::{IpAddr, Ipv4Addr};

    fn candidate(slot: u32, room: bool) -> Candidate {
        Candidate {
            worker: WorkerId(slot + 1),
            slot: Slot(slot),
            unacknowledged: 0,
            open: 0,
            weight: 1,
            window: 4,
            room,
        }
    }

    fn client(n: u32) -> Option<SocketAddr> {
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x7f00_0001 + n)), 5000))
    }

    fn map(all: &[Candidate]) -> Vec<Option<u32>> {
        let mut policy = Sticky::default();
        (0..1000)
            .map(|n| policy.pick(client(n), Candidates { all, queue_full: false }).map(|id| id.0))
            .collect()
    }

    #[test]
    fn a_slot_that_goes_moves_only_its_own_clients() {
        let four: Vec<_> = (0..4).map(|slot| candidate(slot, true)).collect();
        let before = map(&four);
        for slot in 0..4 {
            let share = before.iter().filter(|&&id| id == Some(slot + 1)).count();
            assert!((200..300).contains(&share), "slot {slot} has {share} of 1000");
        }
        let after = map(&four[..3]);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == Some(4));
        }
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let all: Vec<_> = (0..8).map(|slot| candidate(slot, true)).collect();
        let plain: SocketAddr = "192.0.2.7:1".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:2".parse().unwrap();
        let mut policy = Sticky::default();
        let mut pick = |peer| policy.pick(Some(peer), Candidates { all: &all, queue_full: false });
        assert_eq!(pick(plain), pick(mapped));
    }

    #[test]
    fn it_waits_for_its_worker_unless_the_queue_is_full() {
        let mut all = vec![candidate(0, true), candidate(1, true)];
        let mut policy = Sticky::default();
        let mine = policy.pick(client(1), Candidates { all: &all, queue_full: false }).unwrap();
        all.iter_mut().find(|c| c.worker == mine).unwrap().room = false;
        assert_eq!(policy.pick(client(1), Candidates { all: &all, queue_full: false }), None);
        let other = policy.pick(client(1), Candidates { all: &all, queue_full: true }).unwrap();
        assert_ne!(other, mine);
    }
}
