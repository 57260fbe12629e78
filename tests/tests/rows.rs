//! Node's cluster, row by row (`docs/conformance.md`), where it takes a worker of the library in life: one that does
//! what its primary says.

use phalanx::{Builder, Cluster, Ended, Event, Events, Hurry, Mechanism, Primary, Speaks, State, WorkerRef};
use phalanx_tests::lab;
use phalanx_tests::process::{Phalanx, Process, Signal, fds, free_port, kill, wait_until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

const EADDRINUSE: i32 = 98;

/// A primary, and what it hears.
struct Play {
    primary: Primary,
    events: Events,
    /// Heard while something else was waited for.
    passed: Vec<Event>,
}

impl Play {
    fn new(mechanism: Mechanism) -> Play {
        Play::of(Cluster::builder().exec(lab::binary("obedient")).mechanism(mechanism))
    }

    fn of(builder: Builder) -> Play {
        let primary = builder.channel(Speaks::Phalanx).start().expect("a primary");
        let events = primary.events();
        Play { primary, events, passed: Vec::new() }
    }

    fn worker(&mut self) -> WorkerRef {
        let worker = self.primary.fork([("NONE", "")]).expect("a worker");
        assert_eq!(self.hear(&worker), "up");
        worker
    }

    fn wait<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        loop {
            let event = self.events.blocking_recv().expect("an event");
            if let Some(found) = wanted(&event) {
                return found;
            }
            self.passed.push(event);
        }
    }

    fn hear(&mut self, from: &WorkerRef) -> Value {
        self.wait(|event| match event {
            Event::Message { worker, message, .. } if *worker == from.id() => Some(message.clone()),
            _ => None,
        })
    }

    fn tell(&mut self, worker: &WorkerRef, order: &Value) -> Value {
        worker.try_send(order).expect("room");
        self.hear(worker)
    }

    fn listen(&mut self, worker: &WorkerRef, at: &str) -> SocketAddr {
        let answer = self.tell(worker, &json!({ "do": "listen", "at": at }));
        answer["at"].as_str().and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("{at}: {answer}"))
    }

    fn error(&mut self, worker: &WorkerRef, order: &Value) -> i32 {
        let answer = self.tell(worker, order);
        answer["error"].as_i64().unwrap_or_else(|| panic!("{order}: {answer}")) as i32
    }

    /// How it ended, and whether that was voluntary.
    fn exit(&mut self, of: &WorkerRef) -> (Ended, bool) {
        self.wait(|event| match event {
            Event::Exit { worker, ended, exited_after_disconnect, .. } if *worker == of.id() => {
                Some((*ended, *exited_after_disconnect))
            }
            _ => None,
        })
    }

    fn finish(self) {
        self.primary.stop(Hurry::Graceful).wait();
        assert_eq!(self.primary.workers().len(), 0);
    }
}

fn line(mut from: impl Read) -> String {
    let mut text = String::new();
    BufReader::new(&mut from).read_line(&mut text).expect("text");
    text.trim_end().to_owned()
}

fn refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

const MECHANISMS: [Mechanism; 2] = [Mechanism::Handoff, Mechanism::Share];

#[test]
fn a_listener_knows_its_real_address_and_so_does_the_primary() {
    for mechanism in MECHANISMS {
        let mut play = Play::new(mechanism);
        let (one, two) = (play.worker(), play.worker());
        for worker in [&one, &two] {
            let address = play.listen(worker, "127.0.0.1:0");
            let listening = |event: &Event| match event {
                Event::Listening { info, .. } => Some(info.clone()),
                _ => None,
            };
            let told = play.passed.drain(..).find_map(|event| listening(&event));
            let told = told.unwrap_or_else(|| play.wait(listening));
            assert!(address.port() > 0);
            assert_eq!(told.port, Some(i32::from(address.port())));
            assert_eq!(told.address.as_deref(), Some("127.0.0.1"));
        }
        // A name is resolved by the worker; the primary sees an address.
        let address = play.listen(&one, "localhost:0");
        assert!(address.ip().is_loopback());
        assert_eq!(one.state(), State::Listening);
        play.finish();
    }
}

#[test]
fn a_failure_is_the_callers_with_its_number_and_all_else_goes_on() {
    for mechanism in MECHANISMS {
        let mut play = Play::new(mechanism);
        let worker = play.worker();
        // Our own: outside of the cluster.
        let own = TcpListener::bind("127.0.0.1:0").expect("a port");
        let busy = own.local_addr().expect("its address").to_string();
        let listen = |at: &str| json!({ "do": "listen", "at": at });
        assert_eq!(play.error(&worker, &listen(&busy)), EADDRINUSE);
        assert_eq!(play.error(&worker, &listen("192.0.2.1:0")), 99, "EADDRNOTAVAIL");
        assert!(play.tell(&worker, &listen("no.such.host.invalid:1"))["at"].is_null(), "a name of nothing");
        let fine = play.listen(&worker, "127.0.0.1:0");
        let client = TcpStream::connect(fine).expect("connected");
        assert_eq!(line(&client), client.local_addr().expect("an address").to_string(), "the true peer");
        drop(own);
        assert_eq!(play.listen(&worker, &busy).to_string(), busy, "free, and ours at the second try");
        play.finish();
    }
}

#[test]
fn an_exclusive_listener_is_the_workers_own() {
    let mut play = Play::new(Mechanism::Handoff);
    let (one, two) = (play.worker(), play.worker());
    for kind in ["listen", "bind"] {
        let at = |at: &str| json!({ "do": kind, "at": at, "exclusive": true });
        let first = play.tell(&one, &at("127.0.0.1:0"));
        let second = play.tell(&two, &at("127.0.0.1:0"));
        assert!(first["at"].is_string() && second["at"].is_string() && first != second, "{first} {second}");
        let taken = first["at"].as_str().expect("an address").to_owned();
        assert_eq!(play.error(&two, &at(&taken)), EADDRINUSE);
    }
    assert_eq!(one.state(), State::Online, "the primary knows nothing of it");
    assert!(play.primary.status().expect("a status").listeners.is_empty());
    play.finish();
}

#[test]
fn a_relative_path_is_the_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut play = Play::new(Mechanism::Handoff);
    let worker = play.worker();
    let order = json!({ "do": "unix", "at": "it.sock", "in": dir.path() });
    assert!(play.tell(&worker, &order)["at"].is_string());
    let path = dir.path().join("it.sock");
    assert_eq!(line(UnixStream::connect(&path).expect("connected")), "true", "no peer address");
    play.tell(&worker, &json!({ "do": "close", "at": "it.sock" }));
    wait_until("the file is gone", || !path.exists());
    play.finish();
}

#[test]
fn what_is_closed_or_not_waited_for_is_given_up() {
    for mechanism in MECHANISMS {
        let mut play = Play::new(mechanism);
        let worker = play.worker();
        let at = format!("127.0.0.1:{}", free_port());
        for _ in 0..10 {
            let address = play.listen(&worker, &at);
            play.tell(&worker, &json!({ "do": "close", "at": at }));
            wait_until("nobody listens", || refused(address));
            play.tell(&worker, &json!({ "do": "cancel", "at": at }));
            wait_until("nobody listens", || refused(address));
        }
        play.finish();
    }
}

#[test]
fn an_idle_worker_stays_and_reports_its_own_exit_code() {
    let mut play = Play::new(Mechanism::Handoff);
    let worker = play.worker();
    for _ in 0..3 {
        assert_eq!(play.tell(&worker, &json!({ "do": "who" }))["id"], 1);
    }
    assert!(worker.view().expect("it is there").connected);
    worker.try_send(&json!({ "do": "exit", "code": 42 })).expect("room");
    assert_eq!(play.exit(&worker), (Ended::Code(42), false));
    play.finish();
}

#[test]
fn a_worker_that_leaves_by_itself_hears_of_it_and_goes_on() {
    let mut play = Play::new(Mechanism::Handoff);
    let worker = play.worker();
    let address = play.listen(&worker, "127.0.0.1:0");
    worker.try_send(&json!({ "do": "disconnect" })).expect("room");
    play.wait(|event| matches!(event, Event::Disconnect { .. }).then_some(()));
    assert!(refused(address), "its listeners went before");
    assert_eq!(play.exit(&worker), (Ended::Code(42), true));
    play.finish();
}

#[test]
fn a_worker_may_end_itself_with_a_channel_and_without() {
    for order in ["kill", "leave and kill"] {
        let mut play = Play::new(Mechanism::Handoff);
        let worker = play.worker();
        play.listen(&worker, "127.0.0.1:0");
        worker.try_send(&json!({ "do": order })).expect("room");
        assert_eq!(play.exit(&worker), (Ended::Code(0), true), "{order}");
        play.finish();
    }
}

#[test]
fn a_worker_may_leave_because_listening_failed() {
    for mechanism in MECHANISMS {
        let mut play = Play::new(mechanism);
        let worker = play.worker();
        let own = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = own.local_addr().expect("its address").to_string();
        worker.try_send(&json!({ "do": "fail", "at": at })).expect("room");
        assert_eq!(play.exit(&worker), (Ended::Code(0), true));
        play.finish();
    }
}

#[test]
fn a_raw_signal_is_immediate_not_voluntary_and_reaches_the_stuck() {
    let mut play = Play::new(Mechanism::Handoff);
    let worker = play.worker();
    kill(worker.pid().expect("it lives"), Signal::STOP).expect("stopped");
    assert!(worker.signal(phalanx::Signal::KILL));
    assert_eq!(play.exit(&worker), (Ended::Signal(9, false), false));
    wait_until("it is gone", || worker.view().is_none());
    assert!(!worker.signal(phalanx::Signal::KILL), "nobody is there");
    play.finish();
}

#[test]
fn a_disconnect_closes_no_connection_and_all_of_them_can_begin_again() {
    let mut play = Play::new(Mechanism::Handoff);
    let at = format!("127.0.0.1:{}", free_port());
    for _ in 0..2 {
        let (one, two) = (play.worker(), play.worker());
        let address = play.listen(&one, &at);
        play.listen(&two, &at);
        let mut client = TcpStream::connect(address).expect("connected");
        client.write_all(b"x").expect("room");
        play.primary.disconnect().wait();
        assert!(refused(address), "nobody is left");
        assert!(play.primary.workers().is_empty());
        for _ in 0..2 {
            let (ended, asked) = play.wait(|event| match event {
                Event::Exit { ended, exited_after_disconnect, .. } => {
                    Some((*ended, *exited_after_disconnect))
                }
                _ => None,
            });
            assert_eq!((ended, asked), (Ended::Code(0), true));
        }
    }
    play.finish();
}

#[test]
fn a_busy_port_is_busy_under_a_node_primary_too() {
    for node in ["18", "22"] {
        for policy in ["rr", "none"] {
            let own = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = own.local_addr().expect("its address").port();
            let Some(mut command) = lab::node_command(node, "primary.js") else { continue };
            command.args(["--policy", policy, "--workers", "1", "--"]).arg(lab::binary("obedient"));
            let mut process = Process::start(&mut command);
            process.wait_line("\"up\"");
            let order = json!({ "do": "listen", "at": format!("127.0.0.1:{port}") });
            process.say(&format!("send 1 {order}"));
            process.wait_line("\"error\":98");
            process.say("send 1 {\"do\":\"listen\",\"at\":\"127.0.0.1:0\"}");
            process.wait_line("\"event\":\"listening\"");
            process.say("disconnect");
            assert_eq!(process.wait().code(), Some(0), "{node} {policy}");
        }
    }
}

#[test]
fn nothing_of_the_layer_is_left_behind() {
    let open = || fds(std::process::id()).len();
    let run = || {
        let mut play = Play::new(Mechanism::Share);
        for _ in 0..3 {
            let worker = play.worker();
            play.listen(&worker, "127.0.0.1:0");
        }
        play.finish();
    };
    // The runtime keeps something of its own, once for all.
    run();
    let quiet = || fds(std::process::id()).values().all(|fd| !fd.contains("eventpoll"));
    wait_until("its thread has ended", quiet);
    let before = open();
    run();
    wait_until("every fd is closed", || open() <= before);
}

/// One TLS connection; the session is kept in a file, or taken from there. Whether it was resumed, and who served it.
fn tls(port: u16, session: &std::path::Path, option: &str) -> (bool, String) {
    let output = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-ign_eof", "-connect", &format!("127.0.0.1:{port}"), option])
        .arg(session)
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let worker =
        text.lines().find_map(|line| line.strip_prefix("worker ")).unwrap_or_else(|| panic!("{text}"));
    (text.contains("Reused, "), worker.to_owned())
}

#[test]
fn a_tls_session_begun_on_one_node_worker_resumes_on_any_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-days",
            "2",
            "-keyout",
        ])
        .args([&key, std::path::Path::new("-out"), &cert])
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        return lab::skip("openssl is not there");
    }
    for version in ["18", "22"] {
        let Some(node) = lab::node(version) else { continue };
        let port = free_port();
        let mut phalanx = Phalanx::run("tls")
            .workers(4)
            .env("PORT", port.to_string())
            .env("TLS_KEY", &key)
            .env("TLS_CERT", &cert)
            .options(["--mechanism", "handoff"])
            .start([node, lab::fixture("tls.js")]);
        phalanx.wait_listening(4);
        let session = dir.path().join("session");
        assert!(!tls(port, &session, "-sess_out").0, "the first one");
        let mut served: Vec<String> = Vec::new();
        for _ in 0..8 {
            let (resumed, worker) = tls(port, &session, "-sess_in");
            assert!(resumed, "node {version}, by {worker}");
            served.push(worker);
        }
        served.sort();
        served.dedup();
        assert_eq!(served.len(), 4, "each of them");
        phalanx.tell("reload", [""; 0]);
        assert!(tls(port, &session, "-sess_in").0, "after a reload too");
        phalanx.finish();
    }
}

#[test]
fn without_its_primary_a_worker_ends_with_0_and_so_it_does_while_it_drains() {
    for says in [None, Some("{\"cmd\":\"NODE_CLUSTER\",\"act\":\"disconnect\",\"seq\":0}\n")] {
        let (ours, theirs) = phalanx_os::Channel::pair().expect("a channel");
        let mut command = phalanx_os::Spawn::new(lab::binary("obedient"));
        // As a Node primary starts its workers.
        for (name, value) in
            [("NODE_CHANNEL_FD", "3"), ("NODE_UNIQUE_ID", "1"), ("NODE_CHANNEL_SERIALIZATION_MODE", "json")]
        {
            command.env.push((name.into(), value.into()));
        }
        command.fds.push((3, theirs));
        let mut process = command.spawn().expect("a process");
        let (mut buffer, mut heard) = ([0; 4096], String::new());
        wait_until("it is up", || {
            if let Ok(received) = ours.recv(&mut buffer, &mut Vec::new()) {
                heard.push_str(&String::from_utf8_lossy(&buffer[..received.len]));
            }
            heard.contains("\"online\"") && heard.contains("\"up\"")
        });
        if let Some(line) = says {
            ours.send(line.as_bytes(), None).expect("room");
        }
        drop(ours);
        let mut ended = None;
        wait_until("it has ended", || {
            ended = process.try_wait().expect("ours");
            ended.is_some()
        });
        assert_eq!(ended, Some(phalanx_os::Ended::Exited(0)), "{says:?}");
    }
}
