//! Steering: each policy by each mechanism for each kind of worker, and what becomes of connections when workers
//! stand still, die, come and go.

use phalanx_tests::budget::{Kind, Mechanism};
use phalanx_tests::lab;
use phalanx_tests::load::{Ledger, Load};
use phalanx_tests::process::{Builder, DEADLINE, Phalanx, Signal, kill, wait_for, wait_until};
use phalanx_tests::steering::{Cluster, Held, PATIENT, number, steered, total, workers};
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;

const MECHANISMS: [Mechanism; 3] = [Mechanism::Steer, Mechanism::Handoff, Mechanism::Share];

/// Runs a check in every cell that there is: plain programs cannot be handed anything.
fn each(policy: &str, options: &[&str], check: impl Fn(&mut Cluster, Mechanism)) {
    for kind in steered() {
        for mechanism in MECHANISMS {
            if (kind, mechanism) == (Kind::Python, Mechanism::Handoff) {
                continue;
            }
            let mut all = vec!["-p", policy, "--mechanism", mechanism.name()];
            all.extend(options);
            if mechanism == Mechanism::Share && matches!(policy, "sticky" | "least-connections") {
                let refused = Phalanx::run("no").options(all).start(["true"]);
                refused.wait_line(&format!("so it cannot be {policy}"));
                refused.finish_with(2);
                continue;
            }
            let mut cluster = Cluster::start(kind, 3, &all);
            let listener = cluster.listener();
            let by_os = mechanism == Mechanism::Share || policy == "none" && mechanism == Mechanism::Steer;
            let expected = if by_os { ("share", "none") } else { (mechanism.name(), policy) };
            assert_eq!(
                (text(&listener["mechanism"]), text(&listener["policy"])),
                expected,
                "{kind:?}: {listener}"
            );
            let engine = (expected.0 == "steer").then_some("exact");
            assert_eq!(listener["engine"].as_str(), engine, "{kind:?}: {listener}");
            check(&mut cluster, if by_os { Mechanism::Share } else { mechanism });
            cluster.phalanx.finish();
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn load(cluster: &Cluster) -> Load {
    // Nothing is called hung which only has to wait for a processor.
    Load::port(cluster.port).silence(DEADLINE)
}

#[test]
fn round_robin_in_every_cell() {
    each("round-robin", &PATIENT, |cluster, mechanism| {
        let ledger = load(cluster).connections(300).run();
        ledger.assert_all_served();
        if mechanism != Mechanism::Share {
            ledger.assert_equal_shares(3);
        }
    });
}

#[test]
fn weights_in_every_cell() {
    let weights = [&PATIENT[..], &["--weights", "3,2,0"]].concat();
    each("round-robin", &weights, |cluster, mechanism| {
        let ledger = load(cluster).connections(300).run();
        ledger.assert_all_served();
        if mechanism != Mechanism::Share {
            let shares: Vec<(u64, u64)> =
                ledger.workers.iter().map(|(worker, count)| (cluster.slot_of(worker), *count)).collect();
            assert_eq!(BTreeSet::from_iter(shares), BTreeSet::from([(0, 180), (1, 120)]), "{ledger}");
        }
    });
}

#[test]
fn sticky_in_every_cell() {
    each("sticky", &[], |cluster, mechanism| {
        let ledger = load(cluster).clients(40).sources(40).connections(400).run();
        ledger.assert_all_served();
        assert!(ledger.sources.values().all(|workers| workers.len() == 1), "{mechanism:?}: {ledger}");
        assert_eq!(ledger.workers.len(), 3, "{mechanism:?}: {ledger}");
    });
}

#[test]
fn least_connections_in_every_cell() {
    each("least-connections", &PATIENT, |cluster, _| {
        fewest(cluster, || cluster.hold());
    });
}

/// Nine connections are spread evenly, and when one worker's clients leave it gets the next three.
fn fewest(cluster: &Cluster, hold: impl Fn() -> Held) {
    let of = |held: &[Held], slot| held.iter().filter(|it| it.slot == slot).count();
    // A handshake that was under way while others were counted may have been overlooked.
    let even = |held: &[Held]| [0, 1, 2].map(|slot| of(held, slot)).iter().all(|it| (2..=4).contains(it));
    let mut held = Vec::new();
    // What ended just before is noticed with the next count: until then the first ones are placed by it.
    wait_until("that they are spread evenly", || {
        held.clear();
        held.extend((0..9).map(|_| hold()));
        even(&held)
    });
    let (gone, mut stay): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|it| it.slot == 1);
    drop(gone);
    wait_until("that it is noticed", || cluster.by_slot("open")[&1] == 0);
    stay.extend((0..3).map(|_| hold()));
    assert!(even(&stay), "{:?}", cluster.kind);
    for held in stay {
        let slot = held.slot;
        assert_eq!(cluster.slot_of(&held.ask()), slot);
    }
}

/// Clients of a Unix socket have no names, and are counted all the same.
#[test]
fn least_connections_of_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    for kind in steered().into_iter().filter(|kind| *kind == Kind::Node) {
        let path = dir.path().join("least.sock");
        let at = |builder: Builder| builder.env("PORT", &path);
        let cluster = Cluster::start_by(kind, 3, &["-p", "least-connections"], at);
        assert_eq!(cluster.listener()["mechanism"], "handoff");
        fewest(&cluster, || {
            cluster.hold_by(|| {
                let stream = UnixStream::connect(&path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Ok(stream)
            })
        });
        cluster.phalanx.finish();
    }
}

#[test]
fn none_in_every_cell() {
    each("none", &[], |cluster, _| {
        load(cluster).clients(4).connections(60).run().assert_all_served();
    });
}

/// k × N connections, one after the other, are N for each of k workers.
#[test]
fn shares_are_equal_within_one() {
    let each = if lab::long() { 25_000 } else { 500 };
    for kind in steered() {
        let cluster = Cluster::start(kind, 4, &PATIENT);
        let ledger = load(&cluster).connections(4 * each).run();
        ledger.assert_equal_shares(4);
        let listener = cluster.listener();
        assert_eq!(total(&listener, "assigned"), 4 * each, "{kind:?}: {listener}");
        assert_eq!(total(&listener, "taken"), 4 * each, "{kind:?}: {listener}");
        cluster.phalanx.finish();
    }
}

/// All that wait for a worker which stands still are served by the other one when it is killed.
#[test]
fn what_waits_for_a_dead_worker_is_served_by_others() {
    for kind in steered() {
        for patient in [true, false] {
            let options = if patient { &PATIENT[..] } else { &[] };
            let cluster = Cluster::start(kind, 2, options);
            let victim = cluster.pids()[0];
            kill(victim, Signal::STOP).expect("stopped");
            let running = load(&cluster).clients(100).connections(100).start();
            // With patience its half waits; without, it is moved away already.
            running.wait_served(50);
            if patient {
                wait_until("its half waits", || cluster.by_slot("queued")[&0] == 50);
            }
            kill(victim, Signal::KILL).expect("killed");
            running.finish().assert_all_served();
            let listener = cluster.listener();
            assert!(total(&listener, "moved_in") >= u64::from(patient) * 50, "{kind:?}: {listener}");
            cluster.phalanx.finish();
        }
    }
}

#[test]
fn a_worker_that_stands_still_is_passed_over_until_it_goes_on() {
    for kind in steered() {
        let cluster = Cluster::start(kind, 2, &["--hang-timeout", "never"]);
        let victim = cluster.pids()[0];
        kill(victim, Signal::STOP).expect("stopped");
        let ledger = load(&cluster).clients(20).connections(200).run();
        ledger.assert_all_served();
        let who: Vec<u64> = ledger.workers.keys().map(|worker| cluster.slot_of(worker)).collect();
        assert_eq!(who, [1], "{kind:?}: {ledger}");
        let listener = cluster.listener();
        assert_eq!(total(&listener, "moved_in"), total(&listener, "moved_out"), "{kind:?}: {listener}");
        assert!(
            listener["slots"][0]["lagging"] == true && number(&listener["slots"][0]["lags"]) > 0,
            "{listener}"
        );
        kill(victim, Signal::CONT).expect("continued");
        wait_until("it serves again", || {
            let ledger = load(&cluster).connections(4).run();
            ledger.assert_all_served();
            ledger.workers.len() == 2
        });
        cluster.phalanx.finish();
    }
}

#[test]
fn what_waits_when_all_are_dead_is_served_by_their_successors() {
    for kind in steered() {
        let mut cluster = Cluster::start(kind, 2, &PATIENT);
        let before = cluster.pids();
        for pid in &before {
            kill(*pid, Signal::STOP).expect("stopped");
        }
        let running = load(&cluster).clients(60).connections(60).start();
        wait_until("all wait", || total(&cluster.listener(), "queued") == 60);
        for pid in &before {
            kill(*pid, Signal::KILL).expect("killed");
        }
        let ledger = running.finish();
        ledger.assert_all_served();
        cluster.wait_serving(2);
        assert!(cluster.pids().iter().all(|pid| !before.contains(pid)));
        cluster.phalanx.finish();
    }
}

/// No connection is refused or forgotten; what failed had been taken by one that died.
fn only_taken_failed(cluster: &Cluster, ledger: &Ledger) {
    ledger.assert_balanced();
    assert_eq!((ledger.refused, ledger.hung), (0, 0), "{:?}: {ledger}", cluster.kind);
    let end = ledger.served + ledger.failed();
    let listener = wait_for("nothing waits", || {
        let listener = cluster.listener();
        (total(&listener, "queued") + number(&listener["steering"]["park_queued"]) == 0).then_some(listener)
    });
    // At most: one whose handshake ends after its listener has closed counts for both.
    assert!(total(&listener, "taken") >= end, "{:?}: {ledger}\n{listener}", cluster.kind);
}

#[test]
fn a_worker_that_is_replaced_loses_only_what_it_had_taken() {
    // Few for each slot: each later one waits twice as long for its successor.
    let deaths = 20;
    for kind in steered() {
        let mut cluster = Cluster::start(kind, 4, &[]);
        let running = load(&cluster).clients(16).start();
        for n in 0..deaths {
            let victim = cluster.pids()[n % 4];
            kill(victim, Signal::KILL).expect("killed");
            running.wait_served(running.served() + 50);
            cluster.phalanx.wait_status("it is replaced", |status| {
                let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
                all.len() == 4
                    && all.iter().all(|it| it["ready"] == true && number(&it["pid"]) != u64::from(victim))
            });
        }
        let ledger = running.stop();
        // Each may have taken all that there were.
        assert!(ledger.failed() <= deaths as u64 * 16, "{ledger}");
        only_taken_failed(&cluster, &ledger);
        cluster.phalanx.finish();
    }
}

#[test]
fn scaling_and_reloading_fail_nobody() {
    for kind in steered() {
        let mut cluster = Cluster::start(kind, 2, &[]);
        let running = load(&cluster).clients(8).start();
        running.wait_served(100);
        for wanted in ["5", "1", "+2"] {
            cluster.phalanx.tell("scale", [wanted]);
            running.wait_served(running.served() + 100);
        }
        cluster.wait_serving(3);
        cluster.phalanx.tell("reload", [] as [&str; 0]);
        running.wait_served(running.served() + 100);
        let ledger = running.stop();
        ledger.assert_all_served();
        only_taken_failed(&cluster, &ledger);
        // And all that are there take part.
        wait_until("all serve", || load(&cluster).connections(30).run().workers.len() == 3);
        cluster.phalanx.finish();
    }
}

/// Node asks for 511; a queue that is full makes the kernel drop what it has just given.
#[test]
fn no_worker_makes_a_queue_smaller() {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("a limit");
    let limit: u64 = limit.trim().parse().expect("a number");
    for kind in steered() {
        let cluster = Cluster::start(kind, 2, &[]);
        let limits = wait_for("the limits", || {
            let limits = cluster.by_slot("queue_limit");
            limits.values().all(|it| *it >= limit.min(4096)).then_some(limits)
        });
        assert_eq!(limits.len(), 2, "{kind:?}");
        cluster.phalanx.finish();
    }
}

/// Only who keeps somebody waiting hangs: the other one is not looked at, and is well.
#[test]
fn a_worker_that_hangs_is_replaced() {
    for kind in steered() {
        let options = ["--weights", "0,1", "--hang-timeout", "300ms", "--term-timeout", "100ms"];
        let mut cluster = Cluster::start(kind, 2, &options);
        let before = cluster.pids();
        // Nobody waits for this one, however long. One on the library would be asked for a sign of life.
        if kind != Kind::Rust {
            kill(before[0], Signal::STOP).expect("stopped");
        }
        kill(before[1], Signal::STOP).expect("stopped");
        let running = load(&cluster).clients(4).connections(4).start();
        let ledger = running.finish();
        ledger.assert_all_served();
        let status = cluster.wait_serving(2);
        let after = cluster.pids();
        assert_eq!(after[0], before[0], "{kind:?}: {status}");
        assert_ne!(after[1], before[1], "{kind:?}: {status}");
        let events = cluster.phalanx.tell("events", [] as [&str; 0]);
        let hung: Vec<&str> = events.lines().filter(|line| line.contains("\"event\":\"hung\"")).collect();
        assert_eq!(hung.len(), 1, "{kind:?}: {events}");
        kill(before[0], Signal::CONT).expect("continued");
        cluster.phalanx.announce("hangs");
        cluster.phalanx.finish();
    }
}

/// What waits for it is moved again and again: it keeps them waiting all the same.
#[test]
fn a_worker_that_hangs_is_found_although_others_served_what_waited_for_it() {
    for kind in steered() {
        let options = ["--hang-timeout", "1s", "--term-timeout", "100ms"];
        let mut cluster = Cluster::start(kind, 2, &options);
        let before = cluster.pids();
        kill(before[0], Signal::STOP).expect("stopped");
        let load = load(&cluster).clients(4).start();
        cluster.phalanx.wait_status("it is replaced", |status| {
            status["ready"] == 2 && number(&status["workers"][0]["pid"]) != u64::from(before[0])
        });
        load.stop().assert_all_served();
        assert_eq!(cluster.pids()[1], before[1], "{kind:?}: the other one is well");
        let why = cluster.phalanx.tell("why", ["0"]);
        assert!(why.contains("it hung"), "{kind:?}: {why}");
        cluster.phalanx.announce("hangs");
        cluster.phalanx.finish();
    }
}

#[test]
fn who_has_taken_enough_is_replaced() {
    for kind in steered() {
        let mut cluster = Cluster::start(kind, 2, &["--max-connections", "40"]);
        let before = cluster.pids();
        let running = load(&cluster).clients(2).start();
        cluster.phalanx.wait_status("both are replaced", |status| {
            let now: Vec<u64> = workers(status).map(|it| number(&it["pid"])).collect();
            status["ready"] == 2 && before.iter().all(|pid| !now.contains(&u64::from(*pid)))
        });
        running.stop().assert_all_served();
        cluster.phalanx.finish();
    }
}
