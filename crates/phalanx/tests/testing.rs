//! A service in a test: `testing::Cluster`, and messages both ways.
#![cfg(all(target_os = "linux", not(phalanx_standalone)))]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use phalanx::testing::Cluster;
use phalanx::{Event, Mechanism, Slot, State};
use serde_json::{Value, json};

/// Cargo builds a package's examples together with its tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let dir = test.ancestors().nth(2).expect("a directory");
    dir.join("examples").join(name)
}

fn who_answers(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    let line = reply.lines().find_map(|line| line.strip_prefix("x-worker: "));
    line.unwrap_or_else(|| panic!("who? {reply}")).to_owned()
}

#[test]
fn a_service_is_tested_as_a_cluster() {
    for program in ["axum", "cluster"] {
        let cluster = Cluster::new(example(program)).workers(3).env("PORT", "0").start();
        let address = cluster.address();
        let mut seen: Vec<String> = (0..6).map(|_| who_answers(address)).collect();
        seen.sort();
        assert_eq!(seen, ["0", "0", "1", "1", "2", "2"], "{program}");
        let before = cluster.status();
        let victim = before.workers.iter().find(|worker| worker.slot == Slot(1)).expect("a worker");
        let successor = cluster.kill(1);
        assert_ne!(successor, victim.pid);
        let mut seen: Vec<String> = (0..3).map(|_| who_answers(address)).collect();
        seen.sort();
        assert_eq!(seen, ["0", "1", "2"], "{program}");
    }
}

#[test]
fn a_deploy_is_tested_too() {
    let cluster = Cluster::new(example("axum")).workers(2).env("PORT", "0").start();
    let pids = |cluster: &phalanx::testing::Running| -> Vec<u32> {
        cluster.status().workers.iter().map(|worker| worker.pid).collect()
    };
    let before = pids(&cluster);
    assert_eq!(cluster.reload().expect("the same program").0, 2);
    let after = pids(&cluster);
    assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)));
    // Another program, which ends at once.
    let broken = cluster.primary().reload_with(phalanx::Cluster::builder().exec("false"));
    let error = broken.wait().expect_err("it cannot serve").to_string();
    assert!(error.contains("exit code 1"), "{error}");
    assert_eq!(pids(&cluster), after);
    // One that is not there.
    let missing = cluster.primary().reload_with(phalanx::Cluster::builder().exec("no-such-program"));
    assert!(missing.wait().is_err());
    assert_eq!(cluster.primary().scale(3).ok(), Some(3));
    cluster.wait("three are ready", |status| status.ready == 3);
    assert_eq!(cluster.primary().scale_by(-2).ok(), Some(1));
    cluster.wait("one is left", |status| status.workers.len() == 1);
    assert!(cluster.primary().restart(Slot(0)) && !cluster.primary().restart(Slot(7)));
    cluster
        .wait("it is another", |status| status.workers.len() == 1 && !after.contains(&status.workers[0].pid));
}

#[test]
fn it_can_be_used_in_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cluster = Cluster::new(example("axum")).workers(1).env("PORT", "0").start();
        assert_eq!(who_answers(cluster.address()), "0");
    });
}

#[test]
fn messages_go_both_ways() {
    let cluster = Cluster::new(example("cluster")).workers(2).env("PORT", "0").start();
    let mut events = cluster.primary().events();
    let sent = [json!({"n": 1, "text": "ä\n\u{2028}"}), json!([1, [2, null]]), json!("x".repeat(200_000))];
    for worker in cluster.primary().workers() {
        for message in &sent {
            worker.try_send(message).expect("room");
        }
        let mut echoes = std::iter::from_fn(|| events.blocking_recv()).filter_map(|event| match event {
            Event::Message { worker: from, message, .. } => Some((from, message)),
            _ => None,
        });
        for message in &sent {
            let echo: (phalanx::WorkerId, Value) = echoes.next().expect("an echo");
            assert!(echo == (worker.id(), message.clone()), "another echo");
        }
    }
}

#[test]
fn run_says_what_to_do_inside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let ran = runtime.block_on(async { phalanx::Cluster::builder().run(|_| async { Ok(()) }) });
    let said = ran.expect_err("it would block").to_string();
    assert!(said.contains("start"), "{said}");
}

#[test]
#[should_panic(expected = "workers die")]
fn a_service_that_dies_at_once_is_a_failed_test() {
    let _running = Cluster::new("/bin/false").workers(1).start();
}

/// The `exec` keeps the worker's pid, and `setsid` leaves its process group.
#[test]
#[should_panic(expected = "sleep 4711")]
fn a_worker_that_leaves_a_process_behind_is_a_failed_test() {
    let script = "setsid sleep 4711 & exec \"$0\"";
    let service = example("axum").into_os_string();
    let arguments = ["-c".into(), script.into(), service];
    let _running = Cluster::new("/bin/sh").args(arguments).workers(1).env("PORT", "0").start();
}

/// Two roads, one key: a worker that accepts from a shared socket takes what is handed to it on the same key.
#[test]
fn one_worker_can_be_addressed_whatever_the_mechanism() {
    for mechanism in [Mechanism::Share, Mechanism::Handoff] {
        let cluster = Cluster::new(example("axum"))
            .workers(3)
            .env("PORT", "0")
            .with(|builder| builder.mechanism(mechanism))
            .start();
        let status = cluster.wait("all listen", |status| {
            status.workers.len() == 3 && status.workers.iter().all(|worker| worker.state == State::Listening)
        });
        let key = &status.listeners[0].key;
        assert_eq!(status.listeners[0].mechanism, mechanism);
        for worker in cluster.primary().workers() {
            let slot = worker.view().expect("it lives").slot;
            let mut stream = worker.connect(key).expect("it holds the listener");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("a reply");
            assert!(reply.contains(&format!("x-worker: {slot}\r\n")), "{mechanism}, slot {slot}: {reply}");
        }
        assert!(cluster.primary().workers()[0].connect("nowhere").is_err());
    }
}
