//! Socket activation: the primary's own sockets come from a service manager.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{DEADLINE, Phalanx, Signal, free_port, kill};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A `phalanx` whose `run` is started with these sockets; `None` without Python.
fn activated(dir: &Path, sockets: &[String]) -> Option<PathBuf> {
    if !Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success()) {
        lab::skip("python3 is not installed");
        return None;
    }
    let (phalanx, launcher) = (lab::binary("phalanx"), lab::python().join("activate.py"));
    let (phalanx, launcher) = (phalanx.display(), launcher.display());
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = run ] || exec {phalanx} \"$@\"\nexec python3 {launcher} {} -- {phalanx} \"$@\"\n",
        sockets.join(" ")
    );
    let path = dir.join("activated");
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a mode");
    Some(path)
}

fn listening(status: &Value, workers: usize) -> bool {
    let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
    all.len() == workers && all.iter().all(|worker| worker["state"] == "listening")
}

/// Listens on all three, and says who it is on each.
const NODE: &str = "
    const id = 'w' + require('cluster').worker.id;
    require(process.env.FIXTURE);
    require('net').createServer((connection) => connection.end(id)).listen({ fd: 4 });
    const socket = require('dgram').createSocket('udp4');
    socket.on('message', (message, from) => socket.send(id + ' ' + message, from.port, from.address));
    socket.bind({ fd: 5 });
";

#[test]
fn node_listens_on_what_the_primary_inherited() {
    let Some(node) = lab::node(lab::NODE) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let (tcp, udp, unix) = (free_port(), free_port(), dir.path().join("unix.sock"));
    let sockets = [
        format!("tcp:127.0.0.1:{tcp}=web"),
        format!("unix:{}=web", unix.display()),
        format!("udp:127.0.0.1:{udp}="),
    ];
    let Some(program) = activated(dir.path(), &sockets) else { return };
    let script = dir.path().join("three.js");
    std::fs::write(&script, NODE).expect("a script");
    let mut phalanx = Phalanx::run("inherited")
        .program(program)
        .workers(2)
        .env("FD", "3")
        .env("FIXTURE", lab::fixture("http.js"))
        .start([node, script]);
    let status = phalanx.wait_status("all workers hold all three", |status| {
        let held = |n: usize| status["listeners"][n]["slots"].as_array().map_or(0, Vec::len);
        listening(status, 2) && (0..3).all(|n| held(n) == 2)
    });
    let names: Vec<&str> = (0..3).filter_map(|n| status["listeners"][n]["name"].as_str()).collect();
    assert_eq!(names, ["web", "web-2", "fd5"]);
    assert_eq!(status["listeners"][0]["mechanism"], "handoff");
    assert_eq!(status["listeners"][2]["mechanism"], "share");

    let serve = || {
        let ledger = Load::port(tcp).connections(100).run();
        ledger.assert_all_served();
        assert_eq!(ledger.workers.len(), 2, "{ledger}");
        let mut text = String::new();
        UnixStream::connect(&unix).expect("it listens").read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with('w'), "{text}");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(60))).expect("a bound");
        client.send_to(b"hello", ("127.0.0.1", udp)).expect("sent");
        let mut answer = [0; 64];
        let count = client.recv(&mut answer).expect("an answer");
        assert!(answer[..count].ends_with(b" hello"));
    };
    serve();
    kill(phalanx.workers()[0].pid, Signal::KILL).expect("a kill");
    phalanx.wait_status("a successor listens", |status| {
        listening(status, 2)
            && status["workers"].as_array().is_some_and(|all| all.iter().any(|it| it["id"] == 3))
    });
    serve();
    phalanx.finish();
    assert!(unix.exists(), "the file belongs to whoever made it");
}

#[test]
fn a_rust_worker_finds_it_by_its_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let port = free_port();
    let Some(program) = activated(dir.path(), &[format!("tcp:0.0.0.0:{port}=web")]) else { return };
    let mut phalanx = Phalanx::run("inherited-rust")
        .program(program)
        .workers(2)
        .options(["--channel", "phalanx"])
        .env("PORT", port.to_string())
        .start([lab::binary("examples/axum")]);
    let status = phalanx.wait_status("all workers listen", |status| listening(status, 2));
    assert_eq!(status["listeners"].as_array().map(Vec::len), Some(1), "{status}");
    Load::port(port).connections(100).run().assert_equal_shares(2);
    phalanx.finish();
}

/// On each of the three, somebody answers.
fn ask_all(tcp: u16, unix: &Path, udp: u16) {
    Load::port(tcp).connections(20).run().assert_all_served();
    let mut stream = UnixStream::connect(unix).expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    assert!(text.contains("200 OK"), "{text}");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.set_read_timeout(Some(DEADLINE)).expect("a bound");
    client.send_to(b"hello", ("127.0.0.1", udp)).expect("sent");
    assert!(client.recv(&mut [0; 64]).expect("an answer") > 0);
}

#[test]
fn a_rust_program_finds_each_by_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    for channel in ["phalanx", "none"] {
        let (tcp, udp) = (free_port(), free_port());
        let unix = dir.path().join(channel);
        let sockets = [
            format!("tcp:127.0.0.1:{tcp}=web"),
            format!("unix:{}=admin", unix.display()),
            format!("udp:127.0.0.1:{udp}=dns"),
        ];
        let Some(program) = activated(dir.path(), &sockets) else { return };
        // Without a channel it finds them as under any other service manager.
        let mut phalanx = Phalanx::run("inherited-named")
            .program(program)
            .workers(2)
            .options(["--channel", channel])
            .start([
                lab::binary("service").into_os_string(),
                "named".into(),
                "web".into(),
                "admin".into(),
                "dns".into(),
            ]);
        if channel == "phalanx" {
            phalanx.wait_status("all workers hold all three", |status| {
                let held = |n: usize| status["listeners"][n]["slots"].as_array().map_or(0, Vec::len);
                listening(status, 2) && (0..3).all(|n| held(n) == 2)
            });
        }
        phalanx.wait_line(&format!("listening on 127.0.0.1:{udp}"));
        ask_all(tcp, &unix, udp);
        phalanx.finish();
    }
}

#[test]
fn a_plain_program_gets_it_as_the_primary_did() {
    let dir = tempfile::tempdir().expect("a directory");
    let (tcp, udp) = (free_port(), free_port());
    let sockets = [format!("tcp:127.0.0.1:{tcp}=web"), format!("udp:127.0.0.1:{udp}=dns")];
    let Some(program) = activated(dir.path(), &sockets) else { return };
    let phalanx = Phalanx::run("inherited-plain").program(program).workers(1).start([
        "sh",
        "-c",
        "echo got $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$)); exec sleep 600",
    ]);
    phalanx.wait_line("got 2 web:dns 1");
    phalanx.finish();
}
