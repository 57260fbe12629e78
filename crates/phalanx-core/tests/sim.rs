//! A whole cluster, simulated: the real primary, real workers, a virtual clock, and all kinds of bad luck.

#[path = "sim/deploy.rs"]
mod deploy;
#[path = "sim/kinds.rs"]
mod kinds;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/rules.rs"]
mod rules;
#[path = "sim/world.rs"]
mod world;

use phalanx_core::wire::{Family, Serialization};
use phalanx_core::{Ended, Hurry, Mechanism, Policy, Speaks, Time};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use world::{Faults, PORT, World};

fn world() -> World {
    World::new(1, Policy::RoundRobin, 16, Faults::default())
}

#[test]
fn a_crash_loses_no_connection() {
    for seed in 0..50 {
        let mut world = World::new(seed, Policy::RoundRobin, 16, Faults::default());
        world.fork(3).quiet().connect(10).steps(60);
        let victim = world.living()[1];
        world.crash(victim, Ended::Signal(9, false)).settle();
        let ledger = world.primary.ledger();
        assert_eq!(world.served.len() as u64, 10, "seed {seed}: {ledger:?}");
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn what_waits_is_served_by_the_replacements() {
    let mut world = world();
    world.want(3).quiet().run(Duration::from_secs(1));
    world.connect(9).steps(12);
    for victim in world.living() {
        world.crash(victim, Ended::Signal(9, false));
    }
    world.settle();
    assert_eq!(world.served.len(), 9);
    assert_eq!(world.living().len(), 3);
    world.stop(Hurry::Graceful).settle().assert_over();
    assert_eq!(world.finished, 1);
}

#[test]
fn a_stop_serves_who_has_come() {
    let mut world = world();
    world.want(2).quiet().connect(100).stop(Hurry::Graceful);
    assert!(world.primary.status(world.now).stopping);
    world.settle().assert_over();
    assert_eq!((world.served.len(), world.finished), (100, 1));
}

#[test]
fn a_stop_waits_for_nobody_when_nobody_takes() {
    let mut world = world();
    world.want(1).quiet();
    let hung = world.living()[0];
    world.stall(hung).connect(40).stop(Hurry::Graceful).settle().assert_over();
    assert_eq!(world.served.len(), 0);
    assert!(world.now < Time::from_start(Duration::from_secs(60)), "a second, a drain, and it is killed");
}

#[test]
fn more_hurry_ends_the_wait_for_who_has_come() {
    let mut world = world();
    world.want(2).quiet();
    for worker in world.living() {
        world.stall(worker);
    }
    world.connect(40).stop(Hurry::Graceful).stop(Hurry::Graceful).quiet();
    assert_eq!(world.living().len(), 2, "asked again, it goes on as it is");
    world.stop(Hurry::Kill).quiet().assert_over();
}

#[test]
fn a_rotation_is_exact() {
    let mut world = world();
    world.fork(4).quiet().connect(40).settle();
    let mut each: BTreeMap<_, u32> = BTreeMap::new();
    for worker in world.served.values() {
        *each.entry(*worker).or_default() += 1;
    }
    assert_eq!(each.into_values().collect::<Vec<_>>(), [10; 4]);
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn a_taken_connection_has_one_owner() {
    let mut world = world();
    world.fork(3).quiet().connect(30).settle();
    assert_eq!(world.served.len(), 30);
    for id in world.served.keys() {
        assert_eq!(world.open.borrow().get(id), Some(&1), "copies of {id}");
    }
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn sticky_stays() {
    let mut world = World::new(3, Policy::Sticky, 4, Faults::default());
    world.fork(4).quiet();
    for _ in 0..5 {
        world.connect(7).settle();
    }
    assert_eq!(world.served.len(), 35);
    for (id, worker) in &world.served {
        assert_eq!(world.served[&(id % 7)], *worker);
    }
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn a_connection_that_kills_is_not_given_on_for_ever() {
    let mut world =
        World::with(1, Policy::RoundRobin, 16, Faults::default(), |config| config.lives.hang_timeout = None);
    world.delay_ms = 100_000_000;
    world.want(1).run(Duration::from_secs(1)).connect(1);
    for deaths in 1..=3 {
        world.run(Duration::from_secs(100));
        assert_eq!(world.primary.ledger().in_flight, 1, "before death {deaths}");
        let victim = world.living()[0];
        world.crash(victim, Ended::Code(1)).quiet();
    }
    assert_eq!(world.primary.ledger().totals.closed.poison, 1);
    world.stop(Hurry::Graceful).settle().assert_over();
}

fn of_kind(family: Family, mechanism: Mechanism, speaks: Speaks) -> World {
    let mut world = World::with(7, Policy::RoundRobin, 16, Faults::default(), |config| {
        config.mechanism = mechanism;
        config.speaks = speaks;
    });
    world.family = family;
    world
}

#[test]
fn a_shared_socket_outlives_its_workers() {
    for speaks in [Speaks::Phalanx, Speaks::Node] {
        let mut world = of_kind(Family::Tcp4, Mechanism::Share, speaks);
        world.want(3).quiet().connect(30).settle();
        assert_eq!(world.served.len(), 30);
        assert_eq!(world.primary.ledger().totals.accepted, 0, "the primary is not in the path");
        for victim in world.living() {
            world.crash(victim, Ended::Signal(9, false));
        }
        world.connect(9).settle();
        assert_eq!(world.served.len(), 39);
        // Two roads, one key.
        let addressed = world.living()[2];
        world.address(addressed).settle();
        assert_eq!(world.served.last_key_value().map(|(_, by)| *by), Some(addressed));
        assert_eq!(world.primary.ledger().totals.taken, 1);
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn unix_sockets_are_handed_off_and_datagrams_shared() {
    let mut world = of_kind(Family::Unix, Mechanism::Auto, Speaks::Phalanx);
    world.want(3).quiet().connect(30).settle();
    assert_eq!(world.primary.ledger().totals.taken, 30);
    world.stop(Hurry::Graceful).settle().assert_over();
    let mut world = of_kind(Family::Udp4, Mechanism::Auto, Speaks::Phalanx);
    world.want(3).settle();
    assert_eq!(world.primary.status(world.now).listeners[0].mechanism, Mechanism::Share);
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn plain_programs_are_born_with_what_is_configured() {
    for speaks in [Speaks::Nothing, Speaks::Perhaps] {
        let mut world = of_kind(Family::Tcp4, Mechanism::Auto, speaks);
        world.configure(PORT as u16).want(3).quiet().connect(20).settle();
        assert_eq!(world.served.len(), 20, "{speaks:?}");
        for victim in world.living() {
            world.crash(victim, Ended::Code(1));
        }
        world.connect(5).settle();
        assert_eq!((world.served.len(), world.living().len()), (25, 3), "{speaks:?}");
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn a_configured_listener_stays_when_all_have_left() {
    let mut world = world();
    world.configure(PORT as u16).fork(2).quiet();
    for id in world.living() {
        world.leave(id, Some(15));
    }
    world.settle();
    assert!(world.living().is_empty());
    world.connect(5).quiet().fork(1).settle();
    assert_eq!(world.served.len(), 5, "they waited for somebody");
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn messages_and_their_handles_arrive_once_and_in_order() {
    let mut world = world();
    world.fork(2).quiet();
    let workers = world.living();
    for n in 0..50 {
        world.say(workers[n % 2], n % 3 == 0).tell(workers[n % 2], n % 5 == 0).steps(3);
    }
    world.settle();
    assert_eq!(world.told.count, 100);
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn who_breaks_the_protocol_costs_itself_only() {
    let mut world = world();
    world.want(3).quiet().connect(9).steps(40);
    let bad = world.living()[1];
    world.garble(bad).settle();
    assert!(!world.living().contains(&bad));
    assert_eq!((world.living().len(), world.served.len()), (3, 9));
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fork,
    Want(u32),
    Connect(usize),
    Crash(usize, bool),
    Leave(usize, bool),
    End(usize, Hurry),
    Voluntary(usize),
    Address(usize),
    Cut(usize),
    CloseServer(usize),
    Listen(usize, i32),
    Say(usize, bool),
    Tell(usize, bool),
    Garble(usize),
    Steps(usize),
    Run(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let hurry = prop_oneof![Just(Hurry::Graceful), Just(Hurry::Terminate), Just(Hurry::Kill)];
    let who = 0..8_usize;
    prop_oneof![
        2 => Just(Op::Fork),
        1 => (0..5_u32).prop_map(Op::Want),
        5 => (1..12_usize).prop_map(Op::Connect),
        3 => (who.clone(), any::<bool>()).prop_map(|(n, killed)| Op::Crash(n, killed)),
        1 => (who.clone(), any::<bool>()).prop_map(|(n, then)| Op::Leave(n, then)),
        1 => (who.clone(), hurry).prop_map(|(n, hurry)| Op::End(n, hurry)),
        1 => who.clone().prop_map(Op::Voluntary),
        1 => who.clone().prop_map(Op::Address),
        1 => who.clone().prop_map(Op::Cut),
        1 => who.clone().prop_map(Op::CloseServer),
        1 => (who.clone(), PORT..PORT + 2).prop_map(|(n, port)| Op::Listen(n, port)),
        1 => (who.clone(), any::<bool>()).prop_map(|(n, handle)| Op::Say(n, handle)),
        1 => (who.clone(), any::<bool>()).prop_map(|(n, handle)| Op::Tell(n, handle)),
        1 => who.prop_map(Op::Garble),
        6 => (1..80_usize).prop_map(Op::Steps),
        3 => (1..3000_u64).prop_map(Op::Run),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let often = |p: usize| prop_oneof![Just(0), 1..p];
    (often(30), often(20), often(20), often(30), often(20), often(40), often(10), often(10)).prop_map(
        |(refuse, block, spawn, bind, starve, stubborn, mute, lose)| Faults {
            refuse,
            block,
            spawn,
            bind,
            starve,
            stubborn,
            mute,
            lose,
        },
    )
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Fork => world.fork(1),
        Op::Want(n) => world.want(n),
        Op::Connect(n) => world.connect(n),
        Op::Steps(n) => world.steps(n),
        Op::Run(ms) => world.run(Duration::from_millis(ms)),
        Op::Crash(n, _)
        | Op::Leave(n, _)
        | Op::End(n, _)
        | Op::Voluntary(n)
        | Op::Address(n)
        | Op::Cut(n)
        | Op::CloseServer(n)
        | Op::Say(n, _)
        | Op::Tell(n, _)
        | Op::Garble(n)
        | Op::Listen(n, _) => {
            let Some(id) = world.pick(n) else { return };
            match op {
                Op::Crash(_, true) => world.crash(id, Ended::Signal(9, false)),
                Op::Crash(_, false) => world.crash(id, Ended::Code(1)),
                Op::Leave(_, then) => world.leave(id, then.then_some(15)),
                Op::End(_, hurry) => world.end(id, hurry),
                Op::Voluntary(_) => world.leave_voluntarily(id),
                Op::Address(_) => world.address(id),
                Op::Cut(_) => world.cut(id),
                Op::Listen(_, port) => world.listen_again(id, port),
                Op::Say(_, handle) => world.say(id, handle),
                Op::Tell(_, handle) => world.tell(id, handle),
                Op::Garble(_) => world.garble(id),
                _ => world.close_server(id),
            }
        }
    };
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x70_68_61_6c),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens(
        seed in any::<u64>(),
        policy in prop_oneof![Just(Policy::RoundRobin), Just(Policy::Sticky), Just(Policy::None)],
        mechanism in prop_oneof![Just(Mechanism::Auto), Just(Mechanism::Handoff), Just(Mechanism::Share)],
        speaks in prop_oneof![3 => Just(Speaks::Phalanx), 1 => Just(Speaks::Perhaps), 1 => Just(Speaks::Nothing)],
        family in prop_oneof![3 => Just(Family::Tcp4), 1 => Just(Family::Unix), 1 => Just(Family::Udp4)],
        configured in any::<bool>(),
        window in 1..5_u32,
        faults in prop_oneof![Just(Faults::default()), faults()],
        serialization in prop_oneof![3 => Just(Serialization::Json), 1 => Just(Serialization::Advanced)],
        first in 0..4_usize,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut world = World::with(seed, policy, window, faults, |config| {
            config.mechanism = mechanism;
            config.speaks = speaks;
            config.serialization = serialization;
        });
        world.family = family;
        // What cannot be had is refused before anything starts.
        if configured && (world.speaks() || mechanism != Mechanism::Handoff) {
            world.configure(PORT as u16);
        }
        world.fork(first);
        for op in ops {
            apply(&mut world, op);
        }
        world.stop(Hurry::Graceful).settle();
        // A worker that is left alone with a closed channel and ignores everything is killed.
        world.stop(Hurry::Kill).settle().assert_over();
    }
}
