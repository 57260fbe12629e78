//! A Rust service: the same axum program in every cluster, and in none.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, Process, Signal, free_port, kill, wait_answer, wait_until};
use serde_json::Value;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

fn example(name: &str) -> PathBuf {
    lab::binary(&format!("examples/{name}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn listening(status: &Value, workers: usize) -> bool {
    let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
    all.len() == workers && all.iter().all(|worker| worker["state"] == "listening")
}

fn cluster(name: &str, workers: usize, port: u16) -> Phalanx {
    let mut phalanx = Phalanx::run(name)
        .workers(workers)
        .env("PORT", port.to_string())
        .options(["--channel", "phalanx", "--mechanism", "handoff"])
        .start([example("axum")]);
    phalanx.wait_status("all workers listen", |status| listening(status, workers));
    phalanx
}

fn slots(workers: usize) -> Vec<String> {
    (0..workers).map(|slot| slot.to_string()).collect()
}

#[test]
fn axum_is_served_by_all_in_equal_shares() {
    let port = free_port();
    let phalanx = cluster("axum", 4, port);
    let ledger = Load::port(port).clients(1).connections(4 * 500).run();
    ledger.assert_all_served();
    ledger.assert_equal_shares(4);
    assert!(ledger.workers.keys().eq(&slots(4)), "{ledger}");
    Load::port(port).clients(16).connections(2000).run().assert_all_served();
    phalanx.finish();
}

#[test]
fn a_killed_axum_worker_takes_only_what_it_had_taken() {
    let port = free_port();
    let mut phalanx = cluster("axum-kill", 4, port);
    let load = Load::port(port).clients(32).start();
    for n in 1..=5 {
        load.wait_served(n * 300);
        let status = phalanx.wait_status("four workers listen", |status| listening(status, 4));
        let victim = number(&status["workers"][usize::try_from(n).unwrap() % 4]["pid"]);
        kill(u32::try_from(victim).unwrap(), Signal::KILL).expect("kill");
        phalanx.wait_status("it was noticed", |status| {
            status["workers"]
                .as_array()
                .is_some_and(|all| all.iter().all(|worker| number(&worker["pid"]) != victim))
        });
    }
    let ledger = load.stop();
    ledger.assert_balanced();
    assert_eq!((ledger.hung, ledger.refused), (0, 0), "{ledger}");
    let status = phalanx.wait_status("nothing is under way", |status| {
        number(&status["ledger"]["pending"]) + number(&status["ledger"]["in_flight"]) == 0
    });
    let taken = number(&status["ledger"]["taken"]) + number(&status["ledger"]["closed"]["touched"]);
    assert_eq!(taken, ledger.served + ledger.failed(), "{ledger}\n{status}");
    phalanx.finish();
}

#[test]
fn a_stop_under_load_leaves_nobody_hanging() {
    let port = free_port();
    let mut phalanx = cluster("axum-stop", 2, port);
    let load = Load::port(port).clients(8).start();
    load.wait_served(300);
    phalanx.signal(Signal::TERM);
    assert_eq!(phalanx.wait().code(), Some(143));
    let ledger = load.stop();
    ledger.assert_balanced();
    assert_eq!(ledger.hung, 0, "{ledger}");
    phalanx.finish();
}

#[test]
fn axum_runs_alone() {
    let port = free_port();
    let mut server = Process::start(Command::new(example("axum")).env("PORT", port.to_string()));
    server.wait_line("listening");
    let ledger = Load::port(port).clients(8).connections(400).run();
    ledger.assert_all_served();
    assert!(ledger.workers.keys().eq(["alone"]), "{ledger}");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}

/// The axum example serves under Node's own primary, and leaves when it is told to.
#[track_caller]
fn axum_under(node: &str, policy: &str, serialization: &[&str]) {
    let port = free_port();
    let Some(mut command) = lab::node_command(node, "primary.js") else { return };
    command.args(serialization).args(["--policy", policy, "--workers", "2", "--"]).arg(example("axum"));
    let mut process = Process::start(command.env("PORT", port.to_string()));
    process.wait_events("listening", 2);
    Load::port(port).clients(4).connections(200).run().assert_all_served();
    process.say("disconnect");
    assert_eq!(process.wait().code(), Some(0), "v{node} {policy}");
    let exits = process.wait_events("exit", 2);
    assert!(
        exits.iter().all(|it| it["code"] == 0 && it["exitedAfterDisconnect"] == true),
        "v{node} {policy}: {exits:?}"
    );
}

#[test]
fn axum_is_a_worker_of_every_node() {
    for node in lab::NODE_VERSIONS {
        for policy in ["rr", "none"] {
            axum_under(node, policy, &[]);
        }
    }
}

#[test]
fn axum_is_a_worker_of_every_node_that_serializes_otherwise() {
    // 0.12 does not know it.
    for node in &lab::NODE_VERSIONS[1..] {
        for policy in ["rr", "none"] {
            axum_under(node, policy, &["--serialization", "advanced"]);
        }
    }
}

#[test]
fn axum_takes_a_socket_that_it_was_started_with() {
    let port = free_port();
    let phalanx = Phalanx::run("axum-fds")
        .workers(2)
        .env("PORT", port.to_string())
        .options(["--channel", "none", "-l", &format!("0.0.0.0:{port}")])
        .start([example("axum")]);
    wait_answer(port);
    Load::port(port).clients(8).connections(400).run().assert_all_served();
    assert_eq!(phalanx.status()["listeners"][0]["mechanism"], "steer");
    phalanx.finish();
}

/// It clusters itself, and ends as it should.
fn clusters_itself(signal: Signal) {
    let port = free_port();
    let mut command = Command::new(example("cluster"));
    let mut process = Process::start(command.env("PORT", port.to_string()).env("WORKERS", "3"));
    wait_answer(port);
    let load = Load::port(port).clients(4).start();
    load.wait("all three answer", |ledger| ledger.workers.keys().eq(&slots(3)));
    load.stop().assert_all_served();
    process.note_descendants();
    process.signal(signal);
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(process.left_over(), []);
}

#[test]
fn one_program_clusters_itself() {
    clusters_itself(Signal::TERM);
    clusters_itself(Signal::INT);
}

#[test]
fn under_another_primary_it_is_simply_a_worker() {
    let port = free_port();
    let mut phalanx = Phalanx::run("nested")
        .workers(2)
        .env("PORT", port.to_string())
        .env("WORKERS", "7")
        .options(["--channel", "phalanx"])
        .start([example("cluster")]);
    phalanx.wait_status("all workers listen", |status| listening(status, 2));
    phalanx.note_descendants();
    let ledger = Load::port(port).connections(100).run();
    ledger.assert_all_served();
    ledger.assert_equal_shares(2);
    assert!(ledger.workers.keys().eq(&slots(2)), "{ledger}");
    phalanx.finish();
}

#[test]
fn messages_of_a_node_primary_are_answered() {
    for node in lab::NODE_VERSIONS {
        let port = free_port();
        let Some(mut command) = lab::node_command(node, "primary.js") else { continue };
        command.args(["--workers", "1", "--"]).arg(example("cluster"));
        let mut process = Process::start(command.env("PORT", port.to_string()));
        process.wait_events("listening", 1);
        process.say(r#"send 1 {"n":[1,null,"ä"]}"#);
        process.say(r#"send 1 "word""#);
        let told = process.wait_events("message", 2);
        assert_eq!(told[0]["message"], serde_json::json!({"n": [1, null, "ä"]}), "v{node}");
        assert_eq!(told[1]["message"], "word", "v{node}");
        process.say("disconnect");
        assert_eq!(process.wait().code(), Some(0), "v{node}");
    }
}

#[test]
fn sockets_go_to_and_from_a_node_primary() {
    for node in lab::NODE_VERSIONS {
        let Some(mut command) = lab::node_command(node, "handles.js") else { continue };
        let mut process = Process::start(command.arg(lab::binary("obedient")));
        for what in ["connection", "listener", "datagrams"] {
            process.wait_line(&format!("{what} served"));
        }
        process.wait_line("exit 0");
        assert_eq!(process.wait().code(), Some(0), "v{node}");
    }
}

#[test]
fn a_worker_starts_no_cluster() {
    let mut command = Command::new(lab::binary("phalanx"));
    command.args(["run", "-n", "inner", "--", "sleep", "600"]);
    let dir = tempfile::tempdir().expect("a directory");
    command.env("XDG_RUNTIME_DIR", dir.path()).envs([("NODE_UNIQUE_ID", "1"), ("NODE_CHANNEL_FD", "3")]);
    let mut process = Process::start(&mut command);
    assert!(!process.wait().success());
    process.wait_line("this process is a worker");
}

#[test]
fn a_third_signal_ends_what_does_not_end() {
    let port = free_port();
    let mut command = Command::new(example("cluster"));
    let mut process = Process::start(command.env("PORT", port.to_string()).env("WORKERS", "1"));
    wait_answer(port);
    // One that never asks: the worker would wait for it. It has it when the next one is answered.
    let silent = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    Load::port(port).connections(1).run().assert_all_served();
    process.note_descendants();
    process.signal(Signal::TERM);
    wait_until("nobody listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(process.ended().is_none());
    process.signal(Signal::INT);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(process.left_over(), []);
    drop(silent);
}
