//! Deploys, good and bad, with everything else going on.

use crate::net::Conn;
use crate::world::{Faults, World};
use phalanx_core::{Aborted, Ended, Event, Generation, Hurry, Lives, Policy, Ready, Slot, State, WorkerId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a generation is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Build {
    #[default]
    Good,
    /// Exits as soon as it is started.
    Exits,
    /// Never says a word.
    Mute,
    /// Never listens.
    Deaf,
    /// Listens elsewhere.
    WrongPort,
}

/// What was deployed, and what became of it.
#[derive(Default)]
pub(crate) struct Deploys {
    builds: BTreeMap<Generation, Build>,
    open: BTreeSet<Generation>,
    pub(crate) done: Vec<Generation>,
    pub(crate) aborted: Vec<(Generation, Aborted)>,
    retired: BTreeSet<Generation>,
    /// Workers may fail to listen: then a successor need not either.
    may_not_bind: bool,
}

impl Deploys {
    pub(crate) fn new(may_not_bind: bool) -> Deploys {
        Deploys { may_not_bind, ..Deploys::default() }
    }

    pub(crate) fn build(&self, generation: Generation) -> Build {
        assert!(!self.retired.contains(&generation), "{generation} is started after it was retired");
        self.builds.get(&generation).copied().unwrap_or_default()
    }

    pub(crate) fn retired(&mut self, generation: Generation) {
        assert!(self.retired.insert(generation), "{generation} is retired twice");
    }

    pub(crate) fn ended(&mut self, event: &Event<phalanx_core::wire::Payload, Conn>) {
        let generation = match event {
            Event::Reloaded { generation } => {
                match self.build(*generation) {
                    Build::Good => {}
                    // No worse than those before, who could not bind either.
                    Build::Deaf | Build::WrongPort if self.may_not_bind => {}
                    bad => panic!("{generation} is done, and is {bad:?}"),
                }
                self.done.push(*generation);
                *generation
            }
            Event::ReloadAborted { generation, why, .. } => {
                self.aborted.push((*generation, why.clone()));
                *generation
            }
            other => unreachable!("{other:?}"),
        };
        assert!(self.open.remove(&generation), "{generation} ended twice");
    }
}

impl World {
    pub(crate) fn reload(&mut self, build: Build) -> &mut World {
        self.reload_with(build, self.lives.clone())
    }

    pub(crate) fn reload_with(&mut self, build: Build, lives: Lives) -> &mut World {
        let before = self.ready_slots();
        if let Ok(generation) = self.primary.reload(self.now, lives) {
            self.deploys.builds.insert(generation, build);
            self.deploys.open.insert(generation);
        }
        self.outcomes();
        self.keeps_ready(before, 0);
        self
    }

    pub(crate) fn restart(&mut self, slot: Slot) -> &mut World {
        let before = self.ready_slots();
        self.primary.restart(self.now, slot);
        self.outcomes();
        self.keeps_ready(before, 0);
        self
    }

    /// The slots in which somebody is ready.
    pub(crate) fn ready_slots(&self) -> usize {
        let workers = self.primary.status(self.now).workers;
        workers.iter().filter(|w| w.ready && w.hung.is_none()).map(|w| w.slot).collect::<BTreeSet<_>>().len()
    }

    /// Nothing that the primary does takes the number of ready slots below what must be there, whatever the
    /// cause; what workers do costs `excused` at most.
    pub(crate) fn keeps_ready(&self, before: usize, excused: usize) {
        let status = self.primary.status(self.now);
        let Some(wanted) = status.wanted.filter(|_| !status.stopping) else { return };
        let floor = wanted.saturating_sub(self.max_unavailable) as usize;
        // A hang is found out, not made.
        let now = self.ready_slots() + status.workers.iter().filter(|w| w.hung.is_some()).count();
        assert!(now + excused >= before.min(floor), "{before} were ready, {now} are, of {floor}: {status:?}");
    }

    fn all_of(&self, generation: u32) {
        let status = self.primary.status(self.now);
        assert_eq!((status.generation, status.reloading), (Generation(generation), None));
        assert_eq!(Some(status.ready), status.wanted, "{status:?}");
        for worker in &status.workers {
            assert_eq!((worker.generation, worker.state), (Generation(generation), State::Listening));
        }
    }
}

fn cluster(seed: u64, workers: u32) -> World {
    let mut world = World::new(seed, Policy::RoundRobin, 16, Faults::default());
    world.want(workers).quiet();
    world
}

#[test]
fn a_reload_replaces_all_and_loses_nothing() {
    for seed in 0..50 {
        let mut world = cluster(seed, 4);
        for generation in 2..5 {
            world.connect(20).steps(30).reload(Build::Good).connect(20).steps(50).connect(10).settle();
            world.all_of(generation);
        }
        assert_eq!(world.served.len(), 150, "seed {seed}");
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn a_broken_build_changes_nothing() {
    for build in [Build::Exits, Build::Mute, Build::Deaf, Build::WrongPort] {
        for seed in 0..10 {
            let mut world = cluster(seed, 3);
            let old = world.living();
            world.reload(build).connect(30).settle();
            assert_eq!(world.living(), old, "{build:?}");
            world.all_of(1);
            assert_eq!(world.served.len(), 30);
            let (generation, why) = &world.deploys.aborted[0];
            assert_eq!(*generation, Generation(2));
            assert!(match build {
                Build::Exits => matches!(why, Aborted::Died { ended: Ended::Code(1), .. }),
                Build::Mute => matches!(why, Aborted::Died { .. } | Aborted::NotReady { .. }),
                _ => matches!(why, Aborted::NotReady { .. }),
            });
            world.reload(Build::Good).settle().all_of(3);
            world.stop(Hurry::Graceful).settle().assert_over();
        }
    }
}

#[test]
fn what_had_changed_changes_back() {
    for seed in 0..50 {
        let mut world = cluster(seed, 3);
        world.reload(Build::Good);
        let of = |world: &World, generation| -> Vec<WorkerId> {
            let workers = world.primary.status(world.now).workers;
            workers
                .iter()
                .filter(|w| w.generation == Generation(generation) && w.ready)
                .map(|w| w.id)
                .collect()
        };
        while of(&world, 2).is_empty() {
            world.steps(1);
        }
        let victim = of(&world, 2)[0];
        world.crash(victim, Ended::Signal(11, false)).settle();
        assert!(matches!(world.deploys.aborted[..], [(Generation(2), Aborted::Died { .. })]), "seed {seed}");
        world.all_of(1);
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn a_crash_does_not_deploy() {
    let mut world = cluster(7, 3);
    let old = world.living();
    world.reload(Build::Mute).quiet();
    world.crash(old[2], Ended::Signal(9, false)).quiet();
    let status = world.primary.status(world.now);
    let respawned = status.workers.iter().find(|w| w.slot == Slot(2)).expect("it is replaced at once");
    assert_eq!(respawned.generation, Generation(1));
    world.settle().all_of(1);
    world.stop(Hurry::Graceful).settle().assert_over();
}

/// Whether so much memory is too much for everybody.
fn has_too_much(world: &mut World, bytes: u64) -> bool {
    let before = world.living();
    for &id in &before {
        world.memory(id, bytes);
    }
    world.run(Duration::from_secs(5));
    let now = world.living();
    let replaced = before.iter().filter(|id| !now.contains(id)).count();
    assert!(replaced == 0 || replaced == before.len(), "all live by the same: {before:?}, {now:?}");
    replaced > 0
}

#[test]
fn a_reload_that_is_done_changes_how_workers_live_and_another_does_not() {
    for seed in 0..20 {
        let mut world = cluster(seed, 3);
        assert!(!has_too_much(&mut world, 1000));
        let mut lives = Lives::default();
        lives.replacing.max_rss = Some(1000);
        lives.limits.start_timeout = Some(Duration::from_secs(3));
        for build in [Build::Exits, Build::Mute, Build::Deaf] {
            let before = world.now;
            world.reload_with(build, lives.clone()).run(Duration::from_secs(4));
            assert!(!world.deploys.aborted.is_empty(), "within the new time: {build:?}, {before:?}");
            world.all_of(1);
            // A successor, too, is of those before.
            let victim = world.living()[0];
            world.crash(victim, Ended::Signal(9, false)).run(Duration::from_secs(1));
            assert!(!has_too_much(&mut world, 2000), "{build:?}");
            world.deploys.aborted.clear();
        }
        world.reload_with(Build::Good, lives).run(Duration::from_secs(4)).all_of(5);
        assert!(has_too_much(&mut world, 2000) && !has_too_much(&mut world, 100));
        // And back.
        world.reload(Build::Good).run(Duration::from_secs(4)).all_of(6);
        assert!(!has_too_much(&mut world, 2000));
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn during_a_reload_each_worker_lives_by_what_holds_for_its_generation() {
    let mut world = cluster(4, 2);
    let mut lives = Lives::default();
    lives.ready = Ready::Message;
    lives.limits.start_timeout = None;
    // It never says that it is ready.
    world.reload_with(Build::Good, lives).run(Duration::from_secs(60));
    let status = world.primary.status(world.now);
    assert_eq!((status.ready, status.reloading), (2, Some(Generation(2))));
    let victim = world.living()[1];
    world.crash(victim, Ended::Signal(9, false)).run(Duration::from_secs(60));
    assert_eq!(world.primary.status(world.now).ready, 2, "who is of those before need not say so");
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn more_at_a_time_is_for_the_reload_that_says_so() {
    let mut world = cluster(4, 3);
    let mut lives = Lives::default();
    lives.max_surge = 3;
    world.reload_with(Build::Mute, lives.clone()).quiet();
    assert_eq!(world.living().len(), 6);
    world.settle().reload(Build::Mute).quiet();
    assert_eq!(world.living().len(), 4);
    world.settle();
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn a_reload_during_a_reload_takes_over() {
    for seed in 0..50 {
        let mut world = cluster(seed, 3);
        for n in 0..10 {
            world.reload(if n % 2 == 0 { Build::Mute } else { Build::Good }).steps(n * 7);
        }
        world.reload(Build::Good).settle().all_of(12);
        let superseded = |(_, why): &(_, Aborted)| matches!(why, Aborted::Superseded { .. });
        let all = world.deploys.aborted.iter().all(superseded);
        assert!(all, "{:?}", world.deploys.aborted);
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn a_crash_loop_is_cured_by_a_reload() {
    let mut world = cluster(3, 2);
    world.deploys.builds.insert(Generation(1), Build::Exits);
    for victim in world.living() {
        world.crash(victim, Ended::Code(1));
    }
    world.run(Duration::from_secs(60));
    assert!(world.primary.status(world.now).workers.is_empty());
    let before = world.now;
    world.reload(Build::Good).quiet().all_of(2);
    assert_eq!(world.now, before, "nobody waits for a back-off");
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn old_age_comes_one_by_one() {
    let mut world = World::with(5, Policy::RoundRobin, 16, Faults::default(), |config| {
        config.lives.replacing.max_age = Some(Duration::from_secs(100));
        config.lives.replacing.max_connections = Some(40);
    });
    world.want(4).quiet();
    let first = world.living();
    world.run(Duration::from_secs(89));
    assert_eq!(world.living(), first);
    world.run(Duration::from_secs(12));
    let second = world.living();
    assert!(second.len() == 4 && second.iter().all(|id| !first.contains(id)));
    world.connect(160).run(Duration::from_secs(1));
    assert!(world.living().iter().all(|id| !second.contains(id)), "each had its forty");
    assert_eq!(world.served.len(), 160);
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn who_hangs_is_replaced_and_what_it_had_is_served() {
    let mut world = World::new(5, Policy::RoundRobin, 16, Faults::default());
    world.want(2).quiet().connect(8);
    let hung = world.living()[0];
    world.stall(hung).run(Duration::from_secs(60));
    assert_eq!(world.served.len(), 8);
    assert!(!world.living().contains(&hung));
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn who_runs_no_task_is_replaced_though_it_owes_nothing() {
    for seed in 0..20 {
        let mut world = World::new(seed, Policy::RoundRobin, 16, Faults::default());
        world.beats = true;
        world.want(3).run(Duration::from_secs(1));
        let first = world.living();
        world.run(Duration::from_secs(300));
        assert_eq!(world.living(), first, "who answers is well");
        world.connect(9).run(Duration::from_secs(1)).stall(first[1]).run(Duration::from_secs(60));
        let now = world.living();
        assert_eq!(now.len(), 3);
        assert_eq!(now.iter().filter(|id| first.contains(id)).count(), 2, "one, and no other, is replaced");
        assert!(!now.contains(&first[1]));
        assert_eq!(world.served.len(), 9);
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn who_leaves_by_itself_is_succeeded_before_it_has_ended() {
    for seed in 0..20 {
        let mut world = cluster(seed, 2);
        let leaver = world.living()[0];
        // It has much to end: the drain takes its time.
        world.leave_voluntarily(leaver).stall(leaver).run(Duration::from_secs(1));
        let status = world.primary.status(world.now);
        assert_eq!((status.ready, world.living().len()), (2, 3), "seed {seed}: {status:?}");
        assert!(world.living().contains(&leaver));
        // Only when it is gone there is room for one more.
        let next = world.living()[1];
        world.leave_voluntarily(next).stall(next).run(Duration::from_secs(1));
        assert_eq!(world.living().len(), 3, "seed {seed}");
        world.run(Duration::from_secs(100));
        assert_eq!(world.primary.status(world.now).ready, 2);
        assert!(!world.living().contains(&leaver) && !world.living().contains(&next));
        assert_eq!(world.living().len(), 2);
        world.stop(Hurry::Graceful).settle().assert_over();
    }
}

#[test]
fn who_always_leaves_at_once_comes_no_more_often_than_who_always_dies() {
    let mut world = cluster(3, 1);
    let mut leavers = 0;
    let end = world.now + Duration::from_secs(30);
    while world.now < end {
        if world.primary.status(world.now).ready == 1 {
            let now = world.primary.status(world.now).workers;
            let ready = now.iter().find(|it| it.ready).expect("one").id;
            world.leave_voluntarily(ready);
            leavers += 1;
        }
        world.run(Duration::from_millis(50));
    }
    assert!(leavers <= 12, "{leavers} in half a minute");
    world.stop(Hurry::Graceful).settle().assert_over();
}

#[test]
fn a_delayed_stop_serves_on() {
    let mut world = World::with(5, Policy::RoundRobin, 16, Faults::default(), |config| {
        config.lives.shutdown_delay = Duration::from_secs(5);
    });
    world.want(2).quiet().stop(Hurry::Graceful).run(Duration::from_secs(4));
    assert!(world.primary.status(world.now).stopping);
    world.connect(10).run(Duration::from_millis(100));
    assert_eq!(world.served.len(), 10);
    world.settle().assert_over();
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Reload(Build),
    Restart(u32),
    Want(u32),
    Connect(usize),
    Crash(usize),
    Memory(usize),
    Stall(usize),
    Voluntary(usize),
    Steps(usize),
    Run(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let build = prop_oneof![
        4 => Just(Build::Good),
        1 => Just(Build::Exits),
        1 => Just(Build::Mute),
        1 => Just(Build::Deaf),
        1 => Just(Build::WrongPort)
    ];
    prop_oneof![
        3 => build.prop_map(Op::Reload),
        1 => (0..5_u32).prop_map(Op::Restart),
        1 => (1..6_u32).prop_map(Op::Want),
        3 => (1..20_usize).prop_map(Op::Connect),
        2 => (0..8_usize).prop_map(Op::Crash),
        1 => (0..8_usize).prop_map(Op::Memory),
        1 => (0..8_usize).prop_map(Op::Stall),
        1 => (0..8_usize).prop_map(Op::Voluntary),
        6 => (1..80_usize).prop_map(Op::Steps),
        3 => (1..40_000_u64).prop_map(Op::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x64_65_70_6c),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_is_deployed(
        seed in any::<u64>(),
        (surge, unavailable) in (0..3_u32, 0..3_u32).prop_filter("nothing could move", |(s, u)| s + u > 0),
        (aging, beats) in any::<(bool, bool)>(),
        faults in prop_oneof![Just(Faults::default()), crate::faults()],
        ops in prop::collection::vec(op(), 1..50),
    ) {
        let lucky = Faults { stubborn: 0, ..faults } == Faults::default();
        let mut world = World::with(seed, Policy::RoundRobin, 4, faults, |config| {
            config.lives.max_surge = surge;
            config.lives.max_unavailable = unavailable;
            config.lives.replacing.max_rss = Some(1000);
            if aging {
                config.lives.replacing.max_age = Some(Duration::from_secs(30));
                config.lives.replacing.max_connections = Some(25);
            }
        });
        world.beats = beats;
        world.want(3).quiet();
        let mut scaled = false;
        for op in ops {
            match op {
                Op::Reload(build) => world.reload(build),
                Op::Restart(slot) => world.restart(Slot(slot)),
                Op::Want(n) => {
                    scaled = true;
                    let before = world.ready_slots();
                    world.want(n).keeps_ready(before, 0);
                    &mut world
                }
                Op::Connect(n) => world.connect(n),
                Op::Steps(n) => world.steps(n),
                Op::Run(ms) => world.run(Duration::from_millis(ms)),
                Op::Crash(n) => match world.pick(n) {
                    Some(id) => world.crash(id, Ended::Signal(9, false)),
                    None => &mut world,
                },
                Op::Stall(n) => match world.pick(n) {
                    Some(id) => world.stall(id),
                    None => &mut world,
                },
                Op::Voluntary(n) => match world.pick(n) {
                    Some(id) => world.leave_voluntarily(id),
                    None => &mut world,
                },
                Op::Memory(n) => match world.pick(n) {
                    Some(id) => world.memory(id, 1001),
                    None => &mut world,
                },
            };
            if !scaled && world.deploys.aborted.is_empty() {
                let status = world.primary.status(world.now);
                let alive = status.workers.iter().filter(|w| w.state.is_alive()).count();
                prop_assert!(alive as u32 <= 3 + surge, "{status:?}");
            }
        }
        // Long enough for every deadline and back-off, and for the next of every cause.
        world.run(Duration::from_secs(300));
        let status = world.primary.status(world.now);
        prop_assert_eq!(status.reloading, None);
        prop_assert!(world.deploys.open.is_empty(), "{:?}", world.deploys.open);
        if lucky {
            prop_assert!(Some(status.ready + unavailable) >= status.wanted, "{:?}", status);
        }
        for worker in status.workers.iter().filter(|w| w.ready) {
            prop_assert_eq!(worker.generation, status.generation);
        }
        world.stop(Hurry::Graceful).settle();
        world.stop(Hurry::Kill).settle().assert_over();
    }
}
