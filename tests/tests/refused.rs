//! Steering that is refused: the next mechanism, one line in the log, the reason in the status, and `phalanx doctor`.

use phalanx_tests::budget::Kind;
use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{DEADLINE, Phalanx, Signal, kill};
use phalanx_tests::steering::{Cluster, kinds};
use serde_json::Value;
use std::process::{Command, Output};

const WAYS: [&str; 5] = ["rights", "EPERM", "ENOSYS", "EINVAL", "kill"];

fn confined(how: &'static str, kind: Kind, workers: usize, options: &[&str]) -> Cluster {
    Cluster::start_by(kind, workers, options, |builder| {
        builder.program(lab::binary("confined")).env("CONFINED", how)
    })
}

/// The lines that tell of a refusal.
fn refusals(phalanx: &Phalanx) -> usize {
    phalanx.lines().iter().filter(|line| line.text.contains("the kernel cannot choose here")).count()
}

#[test]
fn the_next_mechanism_serves() {
    for how in WAYS {
        for kind in kinds() {
            let cluster = confined(how, kind, 3, &[]);
            let listener = cluster.listener();
            let expected = if kind == Kind::Python { "share" } else { "handoff" };
            assert_eq!(listener["mechanism"], expected, "{how}: {listener}");
            let why = listener["why"].as_str().expect("a reason");
            assert!(why.starts_with("steering is not possible here: "), "{how}: {why}");
            let ledger = Load::port(cluster.port).silence(DEADLINE).connections(60).run();
            ledger.assert_all_served();
            if kind != Kind::Python {
                ledger.assert_equal_shares(3);
            }
            assert_eq!(refusals(&cluster.phalanx), 1, "{how}");
            cluster.phalanx.finish();
        }
    }
}

/// Forced, it chooses at random; and what waits for a dead worker is served by others all the same. That takes a channel:
/// plain programs share.
#[test]
fn forced_steering_is_even() {
    for kind in kinds() {
        let cluster = confined("rights", kind, 3, &["--mechanism", "steer"]);
        let listener = cluster.listener();
        if kind == Kind::Python {
            assert_eq!(listener["mechanism"], "share", "{listener}");
            cluster.phalanx.finish();
            continue;
        }
        assert_eq!(
            (&listener["mechanism"], &listener["engine"]),
            (&"steer".into(), &"even".into()),
            "{listener}"
        );
        assert!(listener["why"].as_str().is_some_and(|why| why.contains("at random")), "{listener}");
        let ledger = Load::port(cluster.port).silence(DEADLINE).connections(300).run();
        ledger.assert_all_served();
        // Each has a hundred by chance; half of it is six deviations away.
        assert_eq!(ledger.workers.len(), 3, "{ledger}");
        assert!(ledger.workers.values().all(|count| (50..150).contains(count)), "{ledger}");
        assert_eq!(refusals(&cluster.phalanx), 1);
        cluster.phalanx.finish();
    }
}

#[test]
fn a_policy_that_no_engine_has_falls_back_even_when_forced() {
    let cluster = confined("rights", Kind::Rust, 2, &["--mechanism", "steer", "-p", "sticky"]);
    assert_eq!(cluster.listener()["mechanism"], "handoff");
    let ledger = Load::port(cluster.port).silence(DEADLINE).clients(9).sources(9).connections(90).run();
    ledger.assert_all_served();
    assert!(ledger.sources.values().all(|workers| workers.len() == 1), "{ledger}");
    cluster.phalanx.finish();
}

/// Without the program nothing can be moved in the kernel, so the primary accepts and hands over.
#[test]
fn what_waits_for_a_dead_worker_is_handed_to_others_by_the_primary() {
    for kind in kinds().into_iter().filter(|kind| *kind != Kind::Python) {
        let cluster = confined("rights", kind, 2, &["--mechanism", "steer"]);
        let victim = cluster.pids()[0];
        kill(victim, Signal::STOP).expect("stopped");
        let running = Load::port(cluster.port).silence(DEADLINE).clients(60).connections(60).start();
        running.wait_served(1);
        kill(victim, Signal::KILL).expect("killed");
        running.finish().assert_all_served();
        cluster.phalanx.finish();
    }
}

fn doctor(how: Option<&str>, arguments: &[&str]) -> Output {
    let program = lab::binary(if how.is_some() { "confined" } else { "phalanx" });
    let mut command = Command::new(program);
    command.arg("doctor").args(arguments).envs(how.map(|how| ("CONFINED", how)));
    command.output().expect("phalanx")
}

#[test]
fn a_doctor_says_what_is_missing_and_what_helps() {
    for how in WAYS {
        let output = doctor(Some(how), &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{how}: {text}");
        assert!(text.contains("missing"), "{how}: {text}");
        assert!(text.contains("without it: "), "{how}: {text}");
        let helps: &[&str] = match how {
            "rights" => {
                &["setcap cap_bpf+ep", "AmbientCapabilities=CAP_BPF", "--cap-add BPF", "add: [\"BPF\"]"]
            }
            "EPERM" | "kill" => &["SystemCallFilter="],
            _ => &["Linux 5.14"],
        };
        for help in helps {
            assert!(text.contains(help), "{how}: {help} is not in\n{text}");
        }
        let output = doctor(Some(how), &["--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((output.status.code(), &report["steering"]), (Some(1), &"even".into()), "{how}: {report}");
        assert!(
            report["checks"].as_array().is_some_and(|all| all.iter().any(|it| it["ok"] == false)),
            "{report}"
        );
    }
}

#[test]
fn a_doctor_is_content_where_all_is_there() {
    let output = doctor(None, &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    if report["steering"] != "exact" {
        return lab::skip("steering is not possible here");
    }
    assert_eq!(output.status.code(), Some(0), "{report}");
    let text = String::from_utf8_lossy(&doctor(None, &[]).stdout).into_owned();
    assert!(!text.contains("missing"), "{text}");
}
