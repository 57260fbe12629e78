//! The library as a primary of its own, with real workers.

use phalanx::{Cluster, Event, Hurry, Mechanism, Output, Primary, SendError, Speaks, State, WorkerRef};
use phalanx_core::wire::{Decoder, Frame, Message, Payload, Seq, encode};
use phalanx_os::{Channel, RecvError};
use phalanx_tests::lab;
use phalanx_tests::process::{Signal, free_port, kill, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Few messages fill a channel: fewer than the events that are kept for one who is slow.
fn filler() -> String {
    "x".repeat(8000)
}

fn wait_listening(worker: &WorkerRef) {
    wait_until("it listens", || worker.state() == State::Listening);
}

fn end(primary: &Primary) {
    primary.stop(Hurry::Graceful).wait();
    assert!(primary.workers().is_empty());
}

#[test]
fn a_worker_that_does_not_read_gets_everything_in_the_end() {
    let primary = Cluster::builder()
        .exec(lab::binary("examples/cluster"))
        .env("PORT", free_port().to_string())
        .output(Output::Inherit)
        .start()
        .expect("a primary");
    let mut events = primary.events();
    let worker = primary.fork([] as [(&str, &str); 0]).expect("a worker");
    wait_listening(&worker);
    kill(worker.pid().expect("it lives"), Signal::STOP).expect("stopped");
    let mut sent = 0_u64;
    let full = loop {
        match worker.try_send(&json!({ "n": sent, "filler": filler() })) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, SendError::Full);
    kill(worker.pid().expect("it lives"), Signal::CONT).expect("continued");
    let mut echoed = 0;
    while echoed < sent {
        match events.blocking_recv() {
            Some(Event::Message { message, .. }) => {
                assert_eq!(message["n"], echoed, "in order");
                echoed += 1;
            }
            Some(Event::Lagged { missed }) => panic!("{missed} events were lost"),
            Some(event @ (Event::Disconnect { .. } | Event::Exit { .. })) => {
                panic!("{event:?} after {echoed} of {sent}")
            }
            Some(_) => {}
            None => panic!("the events ended after {echoed} of {sent}"),
        }
    }
    end(&primary);
}

/// A primary that does not read, as long as it likes.
struct Silent {
    channel: Channel,
    process: phalanx_os::Process,
    decoder: Decoder<OwnedFd>,
}

impl Silent {
    fn start(program: &str) -> Self {
        let (channel, theirs) = Channel::pair().expect("a channel");
        let mut spawn = phalanx_os::Spawn::new(lab::binary(program));
        spawn.env = std::env::vars_os().collect();
        spawn.env.push(("PORT".into(), OsString::from(free_port().to_string())));
        for (name, value) in [("NODE_CHANNEL_FD", "3"), ("NODE_UNIQUE_ID", "1")] {
            spawn.env.push((name.into(), value.into()));
        }
        spawn.fds.push((3, theirs));
        Self { channel, process: spawn.spawn().expect("a worker"), decoder: Decoder::new(1 << 20) }
    }

    fn wait(&self, what: PollFlags) {
        let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.channel, what)], Some(&minute)).expect("poll");
        assert_eq!(ready, 1, "the worker neither reads nor writes");
    }

    fn say(&self, message: &Message) {
        let mut line = Vec::new();
        encode(message, Seq(0), &mut line);
        let mut rest = &line[..];
        while !rest.is_empty() {
            self.wait(PollFlags::OUT);
            match self.channel.send(rest, None) {
                Ok(count) => rest = &rest[count..],
                Err(phalanx_os::SendError::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn hear(&mut self) -> Vec<Message> {
        self.wait(PollFlags::IN);
        let (mut bytes, mut handles) = (vec![0; 64 << 10], Vec::new());
        let received = match self.channel.recv(&mut bytes, &mut handles) {
            Ok(received) => received,
            Err(RecvError::WouldBlock) => return Vec::new(),
            Err(error) => panic!("{error}"),
        };
        assert_ne!(received.len, 0, "the worker has gone");
        let frames = self.decoder.feed(&bytes[..received.len], handles);
        frames.map(|frame| frame.map(|Frame { message, .. }| message).expect("a line")).collect()
    }
}

#[test]
fn a_primary_that_does_not_read_gets_everything_in_the_end() {
    // More than the socket holds and the worker keeps: its application waits for room.
    const COUNT: u64 = 300;
    let mut primary = Silent::start("examples/cluster");
    for n in 0..COUNT {
        let message = json!({ "n": n, "filler": filler() });
        primary.say(&Message::User(Payload::encode(&message).expect("JSON")));
    }
    let mut echoed = 0;
    while echoed < COUNT {
        for message in primary.hear() {
            if let Message::User(payload) = message {
                let told: serde_json::Value = payload.decode().expect("JSON");
                assert_eq!(told["n"], echoed, "in order");
                echoed += 1;
            }
        }
    }
    // A worker leaves when its primary is gone.
    drop(primary.channel);
    let mut process = primary.process;
    wait_until("its end", || process.try_wait().expect("a child of ours").is_some());
}

/// Two roads, one key: a Node worker that accepts from a shared socket also takes what it is handed.
#[test]
fn a_node_worker_with_a_shared_socket_can_be_addressed() {
    for version in lab::NODE_VERSIONS {
        let Some(node) = lab::node(version) else { continue };
        let port = free_port();
        let primary = Cluster::builder()
            .exec(node)
            .args([lab::fixture("http.js")])
            .env("PORT", port.to_string())
            .env("HOST", "127.0.0.1")
            .channel(Speaks::Node)
            .mechanism(Mechanism::Share)
            .output(Output::Null)
            .start()
            .expect("a primary");
        let workers: Vec<WorkerRef> =
            (0..3).map(|_| primary.fork([] as [(&str, &str); 0]).expect("a worker")).collect();
        workers.iter().for_each(wait_listening);
        let status = primary.status().expect("a status");
        assert_eq!(status.listeners[0].mechanism, Mechanism::Share, "v{version}");
        for worker in workers.iter().cycle().take(9) {
            let mut stream = worker.connect(&status.listeners[0].key).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a deadline");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n").expect("written");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("a reply");
            assert!(reply.contains(&format!("x-worker: w{}\r\n", worker.id())), "v{version}: {reply}");
        }
        end(&primary);
    }
}
