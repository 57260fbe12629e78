//! How it ends, and what that costs: nothing.

use phalanx_tests::lab;
use phalanx_tests::process::{Phalanx, Signal, free_port, kill};
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
