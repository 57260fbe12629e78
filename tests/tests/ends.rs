//! How it ends, and what that costs: nothing.

use phalanx_tests::budget::{Kind, Mechanism, cells};
use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{DEADLINE, Phalanx, Signal, free_port, kill};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

/// Each connection keeps the processor for a moment, so that others wait.
const SLOW: &str = "
    require('http').createServer((request, response) => {
        for (const end = Date.now() + 10; Date.now() < end;);
        response.setHeader('connection', 'close');
        response.end('served');
    }).listen(process.env.WHERE);
";

/// An app as people write them: with a timer that never ends and a pool of connections to another service, which
/// keeps them. None of that ends by itself.
const POOLED: &str = "
    const http = require('http');
    const agent = new http.Agent({ keepAlive: true });
    setInterval(() => {}, 1000);
    const other = http.createServer((request, response) => response.end('other'));
    other.keepAliveTimeout = 0;
    const path = process.env.WHERE + '.' + process.pid;
    other.listen({ path, exclusive: true }, () => {
        http.get({ socketPath: path, agent }, (answer) => {
            answer.resume().on('end', () => require(process.env.FIXTURE));
        });
    });
";

/// Says what a client is told, who asks now and listens later.
fn ask(mut stream: impl Read + Write) -> impl FnOnce() -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("asked");
    move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }
}

fn serves_who_waits(mechanism: &str, place: &str, connect: impl Fn() -> Box<dyn FnOnce() -> String>) {
    let Some(node) = lab::node(lab::NODE) else { return };
    let mut phalanx = Phalanx::run("ends")
        .workers(2)
        .options(["--mechanism", mechanism])
        .env("WHERE", place)
        .start([node.into_os_string(), "-e".into(), SLOW.into()]);
    phalanx.wait_listening(2);
    let workers = phalanx.workers();
    for worker in &workers {
        kill(worker.pid, Signal::STOP).expect("stopped");
    }
    let clients: Vec<_> = (0..50).map(|_| connect()).collect();
    for worker in &workers {
        kill(worker.pid, Signal::CONT).expect("continued");
    }
    phalanx.signal(Signal::TERM);
    for client in clients {
        let answer = client();
        assert!(answer.ends_with("served"), "{mechanism} {place}: {answer:?}");
    }
    phalanx.finish_with(143);
}

#[test]
fn who_waits_when_a_stop_begins_is_served() {
    for mechanism in ["handoff", "share", "steer"] {
        let port = free_port();
        serves_who_waits(mechanism, &port.to_string(), || {
            Box::new(ask(TcpStream::connect(("127.0.0.1", port)).expect("connected")))
        });
    }
    for mechanism in ["handoff", "share"] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        serves_who_waits(mechanism, path.to_str().expect("UTF-8"), || {
            Box::new(ask(UnixStream::connect(&path).expect("connected")))
        });
    }
}

#[test]
fn a_node_app_with_a_pool_and_a_timer_leaves_when_it_has_drained() {
    for version in ["20", "22", "26"] {
        let Some(node) = lab::node(version) else { continue };
        let (dir, port) = (tempfile::tempdir().expect("a directory"), free_port());
        // Whoever were left to it would never end.
        let mut phalanx = Phalanx::run("pool")
            .workers(4)
            .options(["--drain-timeout", "1h"])
            .env("WHERE", dir.path().join("s"))
            .env("FIXTURE", lab::fixture("http.js"))
            .env("PORT", port.to_string())
            .start([node.into_os_string(), "-e".into(), POOLED.into()]);
        phalanx.wait_listening(4);
        let load = Load::port(port).silence(DEADLINE).start();
        load.wait_served(100);
        phalanx.tell("reload", [] as [&str; 0]);
        load.wait_served(load.served() + 100);
        load.stop().assert_all_served();
        let told = phalanx.tell("events", [] as [&str; 0]);
        let told: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let at = |event: &str, worker: u32| {
            told.iter().position(|it| it["event"] == event && it["worker"] == worker)
        };
        for worker in 1..=4 {
            let (drained, exit) = (at("disconnect", worker), at("exit", worker).expect("it ended"));
            assert!(drained.is_some_and(|drained| drained < exit), "{version}: {told:#?}");
            assert_eq!(told[exit]["ended"]["signal"][0], 15, "{version}: {}", told[exit]);
            assert_eq!(told[exit]["cause"], "reload", "{version}: {}", told[exit]);
        }
        phalanx.finish();
    }
}

#[test]
fn twenty_reloads_of_a_plain_program_lose_nothing() {
    if !cells().contains(&(Mechanism::Steer, Kind::Python)) {
        return;
    }
    let (Some(uvicorn), port) = (lab::uvicorn(), free_port()) else { return };
    let mut phalanx = Phalanx::run("twenty")
        .workers(2)
        .options(["--mechanism", "steer", "-l", &format!("127.0.0.1:{port}")])
        .start([
            uvicorn.into_os_string(),
            "--app-dir".into(),
            lab::python().into_os_string(),
            "app:app".into(),
            "--fd".into(),
            "3".into(),
            "--log-level".into(),
            "error".into(),
        ]);
    phalanx.wait_status("both serve", |status| status["ready"] == 2);
    let load = Load::port(port).silence(DEADLINE).start();
    for _ in 0..20 {
        phalanx.tell("reload", [] as [&str; 0]);
        load.wait_served(load.served() + 50);
    }
    load.stop().assert_all_served();
    phalanx.finish();
}

/// Whoever is told that there is a worker may send a signal at once.
#[test]
fn a_signal_is_heard_from_the_first_worker_on() {
    let phalanx = Phalanx::run("early").workers(1).start(["sh", "-c", "kill -TERM $PPID; exec sleep 600"]);
    phalanx.finish_with(143);
}
