//! Steering, simulated: the real primary, a kernel in a bottle, plain workers of all kinds, a virtual clock.

#[path = "steer/kernel.rs"]
mod kernel;
#[path = "steer/world.rs"]
mod world;

use phalanx_core::{Hurry, Policy, Slot, SocketId};
use proptest::prelude::*;
use std::time::Duration;
use world::World;

const MS: Duration = Duration::from_millis(1);

#[test]
fn equal_shares_within_one_for_workers_that_do_not_lag() {
    let mut world = World::new(4, Policy::RoundRobin);
    world.run(50 * MS);
    for _ in 0..1000 {
        world.connect(1).run(MS);
    }
    let shares: Vec<usize> = (0..4).map(|slot| world.served_by_slot(slot)).collect();
    assert_eq!(shares, [250; 4]);
    world.end();
}

#[test]
fn weights_are_proportions_and_none_gets_nothing() {
    let mut world = World::new(3, Policy::RoundRobin);
    world.primary.set_weight(world.now, Slot(0), 3);
    world.primary.set_weight(world.now, Slot(2), 0);
    world.run(50 * MS).connect(400).run(500 * MS);
    assert_eq!((0..3).map(|slot| world.served_by_slot(slot)).collect::<Vec<_>>(), [300, 100, 0]);
    world.end();
}

#[test]
fn a_stop_serves_who_has_come() {
    let mut world = World::new(3, Policy::RoundRobin);
    world.run(50 * MS);
    for worker in world.living() {
        world.pace(worker, 20 * MS);
    }
    world.connect(100);
    world.end();
    assert_eq!(world.served.len(), 100);
}

#[test]
fn what_comes_before_anybody_is_ready_waits_for_the_first() {
    let mut world = World::booting(2, Policy::RoundRobin, 700 * MS);
    world.connect(20).run(600 * MS);
    assert_eq!(world.served.len(), 0);
    world.run(400 * MS);
    assert_eq!(world.served.len(), 20);
    world.end();
}

#[test]
fn a_stopped_workers_queue_goes_to_the_others_and_it_comes_back() {
    let mut world = World::new(2, Policy::RoundRobin);
    world.run(50 * MS);
    let victim = world.worker_in(0);
    world.stop(victim).connect(100).run(200 * MS);
    assert_eq!(world.served.len(), 100, "{:?}", world.primary.status(world.now));
    assert!(world.served_by(victim) == 0);
    world.resume(victim).run(600 * MS);
    let before = world.served.len();
    for _ in 0..20 {
        world.connect(1).run(20 * MS);
    }
    assert_eq!(world.served.len(), before + 20);
    assert!(world.served_by(victim) >= 8, "it serves again: {}", world.served_by(victim));
    world.end();
}

#[test]
fn killed_while_stopped_loses_nothing() {
    for policy in [Policy::RoundRobin, Policy::Sticky, Policy::LeastConnections] {
        let mut world = World::new(2, policy);
        world.run(50 * MS);
        let victim = world.worker_in(0);
        world.stop(victim).connect(100).kill(victim).run(300 * MS);
        assert_eq!(world.served.len(), 100, "{policy}");
        world.end();
    }
}

#[test]
fn all_dead_the_queue_waits_for_the_replacements() {
    let mut world = World::new(3, Policy::RoundRobin);
    world.run(50 * MS);
    for slot in 0..3 {
        let victim = world.worker_in(slot);
        world.stop(victim);
    }
    world.connect(30);
    for slot in 0..3 {
        let victim = world.worker_in(slot);
        world.kill(victim);
    }
    world.run(500 * MS).connect(5).run(Duration::from_secs(2));
    assert_eq!(world.served.len(), 35);
    world.end();
}

#[test]
fn a_slow_worker_does_not_hold_up_the_others() {
    let mut world = World::new(4, Policy::RoundRobin);
    world.run(50 * MS);
    let slow = world.worker_in(0);
    world.pace(slow, 4 * MS);
    let mut asked = 0;
    // A closed loop of 32: what a shared listener would serve, this must nearly.
    for _ in 0..2000 {
        let open = asked - world.served.len();
        world.connect(32 - open).run(MS);
        asked += 32 - open;
    }
    let others: usize = (1..4).map(|slot| world.served_by_slot(slot)).sum();
    let own = world.served_by(slow);
    assert!(own > 300, "it works as much as it can: {own}");
    assert!(others > 40 * own, "and no more: {others} to {own}");
    world.end();
}

#[test]
fn a_hang_is_told_with_proof_and_only_then() {
    let mut world = World::new(2, Policy::RoundRobin);
    world.run(50 * MS);
    let victim = world.worker_in(1);
    world.stop(victim).run(Duration::from_secs(60));
    assert_eq!(world.hung, [], "nobody waited: no proof");
    world.connect(4).run(Duration::from_secs(9));
    assert_eq!(world.hung, []);
    world.run(Duration::from_secs(3));
    assert_eq!(world.hung, [victim]);
    world.resume(victim).run(Duration::from_secs(1)).connect(10).run(Duration::from_secs(1));
    assert_eq!(world.served.len(), 14);
    world.end();
}

/// What waited was moved, nobody comes any more, and somebody else looks all the time, for `status`.
#[test]
fn a_hang_is_told_although_others_served_what_waited() {
    let mut world = World::new(2, Policy::RoundRobin);
    world.run(50 * MS);
    let victim = world.worker_in(0);
    world.stop(victim).connect(20).run(200 * MS);
    assert_eq!((world.served.len(), world.hung.len()), (20, 0));
    for _ in 0..2000 {
        let facts = world.kernel.facts();
        // It comes before the timer, as often as not.
        world.now = world.now + 3 * MS;
        world.primary.handle_looked(world.now, SocketId(0), &facts);
        world.outcomes();
        world.run(3 * MS);
    }
    assert_eq!(world.hung, [victim]);
    world.end();
}

#[test]
fn who_has_taken_enough_is_replaced_though_nobody_waits() {
    let mut world = World::limited(2, 50);
    world.run(50 * MS);
    let before = world.living();
    for _ in 0..80 {
        world.connect(1).work();
    }
    world.run(Duration::from_secs(2));
    assert_eq!(world.living(), before, "not yet");
    for _ in 0..24 {
        world.connect(1).work();
    }
    world.run(Duration::from_secs(5));
    let after = world.living();
    assert!(after.len() == 2 && after.iter().all(|id| !before.contains(id)), "{after:?}");
    assert_eq!(world.served.len(), 104);
    world.end();
}

#[test]
fn one_worker_alone_is_never_passed_over() {
    let mut world = World::new(1, Policy::RoundRobin);
    world.run(50 * MS);
    let only = world.worker_in(0);
    world.stop(only).connect(10).run(Duration::from_secs(12));
    assert_eq!(world.hung, [only]);
    world.resume(only).run(Duration::from_secs(1));
    assert_eq!(world.served.len(), 10);
    assert_eq!(world.served_by(only), 10, "its queue stayed its own");
    world.end();
}

#[test]
fn clients_stay_with_their_slot_and_only_a_leavers_move() {
    let mut world = World::new(4, Policy::Sticky);
    world.run(50 * MS).connect_each(200).run(100 * MS);
    let first = world.slots_by_client();
    world.connect_each(200).run(100 * MS);
    assert_eq!(first, world.slots_by_client());
    world.primary.set_wanted(world.now, 3);
    world.outcomes();
    world.run(Duration::from_secs(1)).connect_each(200).run(100 * MS);
    for (before, after) in first.iter().zip(world.slots_by_client()) {
        assert!(*before == after || *before == 3);
    }
    world.end();
}

#[test]
fn an_idle_group_is_looked_at_by_nobody() {
    let mut world = World::new(4, Policy::RoundRobin);
    world.run(Duration::from_secs(5));
    let looks = world.looks;
    world.run(Duration::from_secs(60));
    assert_eq!(world.looks, looks);
    world.connect(1).run(Duration::from_secs(60));
    assert!(world.looks <= looks + 3, "one connection costs {} looks", world.looks - looks);
    world.end();
}

#[test]
fn the_best_of_what_is_possible() {
    let mut world = World::refusing(2, Policy::RoundRobin);
    world.run(Duration::from_secs(1)).connect(10).run(100 * MS);
    let status = world.primary.status(world.now);
    assert_eq!(status.listeners[0].mechanism, phalanx_core::Mechanism::Share);
    assert!(status.listeners[0].why.contains("forbidden"), "{}", status.listeners[0].why);
    assert_eq!(world.refusals, 1, "said once");
}

#[derive(Clone, Debug)]
enum Blow {
    Connect(usize),
    Stop(usize),
    Resume(usize),
    Kill(usize),
    Want(u32),
    Weight(u32, u32),
    Pace(usize, u64),
    Run(u64),
}

fn blow() -> impl Strategy<Value = Blow> {
    prop_oneof![
        4 => (1..40_usize).prop_map(Blow::Connect),
        1 => (0..8_usize).prop_map(Blow::Stop),
        2 => (0..8_usize).prop_map(Blow::Resume),
        1 => (0..8_usize).prop_map(Blow::Kill),
        1 => (1..6_u32).prop_map(Blow::Want),
        1 => (0..4_u32, 0..4_u32).prop_map(|(slot, weight)| Blow::Weight(slot, weight)),
        1 => (0..8_usize, 0..40_u64).prop_map(|(n, ms)| Blow::Pace(n, ms)),
        6 => (1..200_u64).prop_map(Blow::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever happens to workers, a connection is never lost, nor served twice, nor left with the dead.
    #[test]
    fn no_connection_is_lost(policy in 0..3_usize, blows in prop::collection::vec(blow(), 1..60)) {
        let policy = [Policy::RoundRobin, Policy::Sticky, Policy::LeastConnections][policy];
        let mut world = World::new(3, policy);
        let mut asked = 0;
        world.run(50 * MS);
        for blow in blows {
            match blow {
                Blow::Connect(n) => { world.connect(n); asked += n; }
                Blow::Stop(n) => if let Some(id) = world.pick(n) { world.stop(id); },
                Blow::Resume(n) => if let Some(id) = world.pick(n) { world.resume(id); },
                Blow::Kill(n) => if let Some(id) = world.pick(n) { world.kill(id); },
                Blow::Want(n) => { world.primary.set_wanted(world.now, n); world.outcomes(); }
                Blow::Weight(slot, weight) => {
                    world.primary.set_weight(world.now, Slot(slot), weight);
                    world.outcomes();
                }
                Blow::Pace(n, ms) => if let Some(id) = world.pick(n) { world.pace(id, MS * ms as u32); },
                Blow::Run(ms) => { world.run(MS * ms as u32); }
            }
        }
        for slot in 0..6 {
            world.primary.set_weight(world.now, Slot(slot), 1);
        }
        world.outcomes();
        for id in world.living() {
            world.resume(id);
            world.pace(id, Duration::ZERO);
        }
        world.run(Duration::from_secs(60));
        prop_assert_eq!(world.served.len(), asked, "{:?}", world.primary.status(world.now));
        world.end();
    }
}

impl World {
    fn end(&mut self) {
        self.primary.stop(self.now, Hurry::Graceful);
        self.outcomes();
        self.run(Duration::from_secs(60));
        assert!(self.primary.is_empty(), "{:?}", self.primary.status(self.now));
        assert!(self.kernel.is_empty(), "no socket is left");
    }
}
