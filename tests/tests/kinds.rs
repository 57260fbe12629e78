//! Other kinds of sockets than TCP: datagrams and Unix sockets, for every kind of worker.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, Signal, free_port, kill, wait_for, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

/// Who answers a datagram. One that its worker took into the grave is sent again.
fn ask(port: u16, what: &str) -> String {
    ask_on(&socket(), port, what)
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a deadline");
    socket
}

fn ask_on(socket: &UdpSocket, port: u16, what: &str) -> String {
    wait_for(&format!("an answer to {what}"), || {
        socket.send_to(what.as_bytes(), ("127.0.0.1", port)).ok()?;
        let mut bytes = [0; 2048];
        let count = socket.recv(&mut bytes).ok()?;
        let answer = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let (worker, said) = answer.split_once(' ').expect("who answered");
        // An answer that was too slow comes before the one that is waited for.
        (said == what).then(|| worker.to_owned())
    })
}

/// Workers answer while one is stopped and one dies; the datagrams of all wait in one socket.
fn datagrams(name: &str, port: u16, options: &[&str], command: Vec<OsString>) {
    let mut phalanx = Phalanx::run(name)
        .workers(2)
        .env("PORT", port.to_string())
        .options(options.iter().copied())
        .start(command);
    let status = phalanx.wait_listening(2);
    assert_eq!(status["listeners"][0]["mechanism"], "share", "{status}");
    for n in 0..100 {
        ask(port, &format!("{name} {n}"));
    }
    let pid = |status: &Value, n: usize| {
        u32::try_from(status["workers"][n]["pid"].as_u64().expect("a pid")).expect("a pid")
    };
    // Who is stopped answers nothing, so the other does all of it.
    kill(pid(&status, 0), Signal::STOP).expect("stopped");
    let answered: BTreeSet<String> = (0..20).map(|n| ask(port, &format!("{name} stopped {n}"))).collect();
    assert_eq!(answered.len(), 1, "{answered:?}");
    kill(pid(&status, 0), Signal::KILL).expect("killed");
    ask(port, "while it is dead");
    let status = phalanx.wait_status("it has a successor", |now| {
        now["workers"].as_array().is_some_and(|all| {
            all.len() == 2 && all[0]["state"] == "listening" && all[0]["pid"] != status["workers"][0]["pid"]
        })
    });
    kill(pid(&status, 1), Signal::STOP).expect("stopped");
    ask(port, "the successor alone");
    kill(pid(&status, 1), Signal::CONT).expect("continued");
    phalanx.finish();
}

#[test]
fn node_workers_share_a_udp_socket() {
    for version in lab::NODE_VERSIONS {
        let Some(node) = lab::node(version) else { continue };
        datagrams("udp-node", free_port(), &[], vec![node.into(), lab::fixture("udp.js").into()]);
    }
}

#[test]
fn rust_workers_share_a_udp_socket() {
    let port = free_port();
    let command = vec![lab::binary("service").into(), "udp".into(), port.to_string().into()];
    datagrams("udp-rust", port, &[], command);
}

/// A program that knows nothing but `LISTEN_FDS`.
fn plain() -> Option<Vec<OsString>> {
    Some(vec![lab::uvicorn()?.with_file_name("python").into(), lab::python().join("udp.py").into()])
}

#[test]
fn plain_programs_share_a_udp_socket() {
    let Some(command) = plain() else { return };
    let port = free_port();
    datagrams("udp-plain", port, &["--channel", "none", "-l", &format!("udp:{port}")], command);
}

/// Where it is asked for, the kernel keeps each flow with one worker, and those of a worker that leaves move.
fn flows(name: &str, port: u16, options: &[&str], command: Vec<OsString>) {
    let mut phalanx = Phalanx::run(name)
        .workers(3)
        .env("PORT", port.to_string())
        .options(["--mechanism", "steer"])
        .options(options)
        .start(command);
    let status = phalanx.wait_listening(3);
    if status["listeners"][0]["mechanism"] != "steer" {
        lab::skip("steering is not possible here");
        return phalanx.finish();
    }
    let flows: Vec<UdpSocket> = (0..60).map(|_| socket()).collect();
    let all = |what: &str| -> Vec<String> { flows.iter().map(|flow| ask_on(flow, port, what)).collect() };
    let before = all("first");
    for n in 0..5 {
        assert_eq!(all(&format!("again {n}")), before);
    }
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
    // Slot 2 leaves: its flows move, and no others.
    let leaver = status["workers"][2].clone();
    let names = [leaver["slot"].to_string(), format!("w{}", leaver["id"])];
    let is_leaver = |who: &String| names.contains(who);
    phalanx.tell("scale", ["2"]);
    phalanx
        .wait_status("two are left", |status| status["workers"].as_array().is_some_and(|all| all.len() == 2));
    let after = all("after");
    for (before, after) in before.iter().zip(&after) {
        assert!(if is_leaver(before) { !is_leaver(after) } else { before == after }, "{before} {after}");
    }
    phalanx.finish();
}

#[test]
fn flows_stay_with_node_workers() {
    let Some(node) = lab::node(lab::NODE) else { return };
    flows("flows-node", free_port(), &[], vec![node.into(), lab::fixture("udp.js").into()]);
}

#[test]
fn flows_stay_with_rust_workers() {
    let port = free_port();
    let command = vec![lab::binary("service").into(), "udp".into(), port.to_string().into()];
    flows("flows-rust", port, &["--channel", "phalanx"], command);
}

#[test]
fn flows_stay_with_plain_programs() {
    let Some(command) = plain() else { return };
    let port = free_port();
    flows("flows-plain", port, &["--channel", "none", "-l", &format!("dns=udp:127.0.0.1:{port}")], command);
}

/// Served by all, whoever dies; the file is there while the cluster is, and not after.
fn unix(name: &str, path: &Path, mechanism: &str, options: &[&str], command: Vec<OsString>) {
    let mut phalanx = Phalanx::run(name)
        .workers(3)
        .options(options.iter().copied())
        .options(["--mechanism", mechanism])
        .env("PORT", path)
        .start(command);
    let plain = options.contains(&"-l");
    if plain {
        wait_until("an answer", || Load::unix(path).connections(1).run().served == 1);
    } else {
        let status = phalanx.wait_listening(3);
        assert_eq!(status["listeners"][0]["mechanism"], mechanism, "{status}");
    }
    let ledger = Load::unix(path).clients(8).connections(600).run();
    ledger.assert_all_served();
    if mechanism == "handoff" {
        assert_eq!(ledger.workers.len(), 3, "{ledger}");
    }
    let load = Load::unix(path).clients(8).start();
    load.wait_served(100);
    let victim = phalanx.workers()[1].pid;
    kill(victim, Signal::KILL).expect("killed");
    load.wait_served(load.served() + 500);
    let ledger = load.stop();
    ledger.assert_balanced();
    assert_eq!((ledger.hung, ledger.refused), (0, 0), "{ledger}");
    phalanx.finish();
    assert!(!path.exists(), "the socket's file is left");
}

#[test]
fn unix_sockets_of_node_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["20", "0.12"] {
        let Some(node) = lab::node(version) else { continue };
        for mechanism in ["handoff", "share"] {
            let path = dir.path().join("node.sock");
            let command = vec![node.clone().into(), lab::fixture("http.js").into()];
            unix("unix-node", &path, mechanism, &[], command);
        }
    }
}

#[test]
fn unix_sockets_of_rust_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    for mechanism in ["handoff", "share"] {
        let path = dir.path().join("rust.sock");
        let command = vec![lab::binary("service").into(), "unix".into(), path.clone().into()];
        unix("unix-rust", &path, mechanism, &["--channel", "phalanx"], command);
    }
}

#[test]
fn a_unix_socket_of_a_plain_program() {
    let Some(uvicorn) = lab::uvicorn() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("plain.sock");
    let command = vec![
        uvicorn.into(),
        "--app-dir".into(),
        lab::python().into(),
        "app:app".into(),
        "--fd".into(),
        "3".into(),
    ];
    unix("unix-plain", &path, "share", &["-l", path.to_str().expect("UTF-8")], command);
}
