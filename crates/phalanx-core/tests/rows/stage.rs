//! The primary on a stage: a system that does at once what it wants, and workers made of lines.

use phalanx_core::{
    Action, BindSpec, BoundAddress, Carried, Config, Ended, Event, Examined, Mechanism, Primary, SocketId,
    Speaks, Time, WorkerId,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) const EACCES: i32 = 13;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EADDRINUSE: i32 = 98;

/// What came to a worker together with a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Carry {
    Nothing,
    Connection(u32),
    Socket(SocketId),
}

/// A worker: what it was sent and has not looked at.
#[derive(Default)]
struct Peer {
    partial: Vec<u8>,
    got: VecDeque<(Value, Carry)>,
    seq: u64,
    open: bool,
}

pub(crate) struct Socket {
    pub(crate) spec: BindSpec,
    pub(crate) accepting: bool,
    pub(crate) backlog: u32,
}

pub(crate) struct Stage {
    pub(crate) primary: Primary<u32>,
    pub(crate) now: Time,
    peers: BTreeMap<WorkerId, Peer>,
    /// What the user heard and the test has not looked at, in short words.
    heard: Vec<String>,
    pub(crate) sockets: BTreeMap<SocketId, Socket>,
    /// Ports, paths and error numbers of those that cannot be had.
    pub(crate) taken: BTreeMap<String, i32>,
    /// Binds wait until the test lets them go.
    pub(crate) slow: bool,
    due: VecDeque<(SocketId, BindSpec, u32)>,
    next_port: u16,
    next_connection: u32,
    pub(crate) cannot_start: bool,
    /// Handles get lost on the way.
    pub(crate) loses: bool,
    pub(crate) signals: Vec<(u32, i32)>,
    pub(crate) forgotten: Vec<u32>,
    /// Connections that somebody has read from.
    pub(crate) touched: BTreeSet<u32>,
    pub(crate) env: Vec<(String, String)>,
}

/// Hand-off, as Node does it.
pub(crate) fn stage() -> Stage {
    Stage::new(Mechanism::Handoff, Speaks::Node)
}

impl Stage {
    pub(crate) fn new(mechanism: Mechanism, speaks: Speaks) -> Stage {
        Stage::with(mechanism, speaks, |_| {})
    }

    pub(crate) fn with(mechanism: Mechanism, speaks: Speaks, change: impl FnOnce(&mut Config)) -> Stage {
        let mut config = Config::default();
        config.mechanism = mechanism;
        config.speaks = speaks;
        config.window = 1;
        config.pending_max = 1000;
        config.lives.hang_timeout = None;
        change(&mut config);
        Stage {
            primary: Primary::new(config),
            now: Time::ZERO,
            peers: BTreeMap::new(),
            heard: Vec::new(),
            sockets: BTreeMap::new(),
            taken: BTreeMap::new(),
            slow: false,
            due: VecDeque::new(),
            next_port: 40_000,
            next_connection: 1,
            cannot_start: false,
            loses: false,
            signals: Vec::new(),
            forgotten: Vec::new(),
            touched: BTreeSet::new(),
            env: Vec::new(),
        }
    }

    // What the user does.

    pub(crate) fn fork(&mut self) -> u32 {
        let id = self.primary.fork(Vec::new());
        self.drive();
        id.0
    }

    /// A worker that has said `online`.
    pub(crate) fn worker(&mut self) -> u32 {
        let id = self.fork();
        self.online(id);
        id
    }

    /// A worker that listens on this port.
    pub(crate) fn server(&mut self, port: i32) -> u32 {
        let id = self.worker();
        self.serve(id, port);
        id
    }

    pub(crate) fn leave(&mut self, worker: u32, then: Option<i32>) {
        self.primary.leave(self.now, WorkerId(worker), then);
        self.drive();
    }

    pub(crate) fn disconnect(&mut self) {
        self.primary.disconnect(self.now);
        self.drive();
    }

    /// A client; the number of its connection.
    pub(crate) fn connect(&mut self, port: u16) -> u32 {
        let id = self.next_connection;
        self.next_connection += 1;
        let socket = self.socket_at(port).expect("refused");
        assert!(self.sockets[&socket].accepting, "it waits in the backlog");
        let peer = SocketAddr::from(([127, 0, 0, 1], 50_000));
        self.primary.handle_connection(socket, Some(peer.into()), id);
        self.drive();
        id
    }

    // What workers do.

    pub(crate) fn say(&mut self, worker: u32, line: &Value) -> bool {
        self.say_with(worker, line, None)
    }

    pub(crate) fn say_with(&mut self, worker: u32, line: &Value, handle: Option<u32>) -> bool {
        let text = format!("{line}\n");
        let kept = self.primary.handle_bytes(self.now, WorkerId(worker), text.as_bytes(), handle);
        self.drive();
        kept
    }

    /// A message of the cluster's.
    pub(crate) fn act(&mut self, worker: u32, act: &str, fields: Value) -> u64 {
        let peer = self.peers.entry(WorkerId(worker)).or_default();
        let seq = peer.seq;
        peer.seq += 1;
        let mut line = json!({ "cmd": "NODE_CLUSTER", "act": act, "seq": seq });
        for (name, value) in fields.as_object().expect("fields") {
            line[name] = value.clone();
        }
        self.say(worker, &line);
        seq
    }

    pub(crate) fn online(&mut self, worker: u32) {
        self.act(worker, "online", json!({}));
    }

    /// Asks to listen, and looks at the answer.
    pub(crate) fn ask(&mut self, worker: u32, fields: Value) -> (Value, Carry) {
        let seq = self.act(worker, "queryServer", fields);
        self.answer_to(worker, seq).expect("an answer")
    }

    /// The answer to what it asked, if it has come.
    pub(crate) fn answer_to(&mut self, worker: u32, seq: u64) -> Option<(Value, Carry)> {
        let got = &mut self.peers.get_mut(&WorkerId(worker))?.got;
        let at = got.iter().position(|(line, _)| line["ack"] == seq)?;
        got.remove(at)
    }

    /// Listens, and says so. The key.
    pub(crate) fn serve(&mut self, worker: u32, port: i32) -> String {
        self.serve_as(worker, tcp("127.0.0.1", port, 0))
    }

    pub(crate) fn serve_as(&mut self, worker: u32, fields: Value) -> String {
        let (answer, carry) = self.ask(worker, fields.clone());
        assert!(answer["errno"].is_null() || answer["errno"] == 0, "{answer}");
        let mut told = fields;
        let bound = match carry {
            Carry::Socket(socket) => self.port_of(socket).map(Value::from),
            _ => answer["sockname"].get("port").cloned(),
        };
        if let Some(port) = bound {
            told["port"] = port;
        }
        self.act(worker, "listening", told);
        answer["key"].as_str().expect("a key").to_owned()
    }

    pub(crate) fn close(&mut self, worker: u32, key: &str) {
        self.act(worker, "close", json!({ "key": key }));
    }

    /// What it was sent, in order; no longer there afterwards.
    pub(crate) fn got(&mut self, worker: u32) -> Vec<(Value, Carry)> {
        self.peers.entry(WorkerId(worker)).or_default().got.drain(..).collect()
    }

    /// The connections that it was offered, with the numbers to answer by.
    pub(crate) fn offers(&mut self, worker: u32) -> Vec<(u64, u32)> {
        let got = &mut self.peers.entry(WorkerId(worker)).or_default().got;
        let (offers, rest) = std::mem::take(got).into_iter().partition(|(line, _)| line["act"] == "newconn");
        *got = rest;
        let offers: VecDeque<(Value, Carry)> = offers;
        let named = |(line, carry): (Value, Carry)| match carry {
            Carry::Connection(id) => (line["seq"].as_u64().expect("a number"), id),
            other => panic!("{other:?}"),
        };
        offers.into_iter().map(named).collect()
    }

    pub(crate) fn answer(&mut self, worker: u32, seq: u64, accepted: bool) {
        self.say(worker, &json!({ "cmd": "NODE_CLUSTER", "ack": seq, "accepted": accepted, "seq": 900 }));
    }

    /// Takes what it is offered until nothing more comes; which connections.
    pub(crate) fn take_all(&mut self, worker: u32) -> Vec<u32> {
        let mut taken = Vec::new();
        loop {
            let offers = self.offers(worker);
            if offers.is_empty() {
                return taken;
            }
            for (seq, id) in offers {
                self.answer(worker, seq, true);
                taken.push(id);
            }
        }
    }

    pub(crate) fn channel_ends(&mut self, worker: u32) {
        self.primary.handle_channel_closed(self.now, WorkerId(worker));
        self.drive();
    }

    pub(crate) fn dies(&mut self, worker: u32, ended: Ended) {
        self.primary.handle_exit(self.now, WorkerId(worker), ended);
        self.drive();
    }

    /// Both ends.
    pub(crate) fn ends(&mut self, worker: u32, code: i32) {
        self.channel_ends(worker);
        self.dies(worker, Ended::Code(code));
    }

    // What is seen.

    /// What the user heard since the last look.
    pub(crate) fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }

    pub(crate) fn state(&self, worker: u32) -> &'static str {
        self.primary.worker(WorkerId(worker)).map_or("forgotten", |view| view.state.name())
    }

    pub(crate) fn voluntary(&self, worker: u32) -> Option<bool> {
        self.primary.worker(WorkerId(worker)).expect("it is known").exited_after_disconnect
    }

    pub(crate) fn is_open(&self, worker: u32) -> bool {
        self.peers.get(&WorkerId(worker)).is_some_and(|peer| peer.open)
    }

    pub(crate) fn socket_at(&self, port: u16) -> Option<SocketId> {
        self.sockets.keys().copied().find(|socket| self.port_of(*socket) == Some(port))
    }

    pub(crate) fn port_of(&self, socket: SocketId) -> Option<u16> {
        match self.sockets.get(&socket)?.spec {
            BindSpec::Tcp { port, .. } | BindSpec::Udp { port, .. } => Some(port),
            _ => None,
        }
    }

    /// So much time passes.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.primary.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.primary.handle_timeout(self.now);
            self.drive();
        }
        self.now = end;
    }

    /// The binds that wait are done.
    pub(crate) fn let_bind(&mut self) {
        self.slow = false;
        while let Some((socket, spec, backlog)) = self.due.pop_front() {
            self.bind(socket, spec, backlog);
        }
        self.drive();
    }

    // The system.

    pub(crate) fn drive(&mut self) {
        while let Some(action) = self.primary.poll_action() {
            self.act_on(action);
        }
        while let Some(event) = self.primary.poll_event() {
            self.heard.extend(words(&event));
        }
    }

    fn act_on(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => {
                self.env = spawn.env;
                let result = if self.cannot_start {
                    Err("no such program".to_owned())
                } else {
                    self.peers.insert(spawn.worker, Peer { open: true, ..Peer::default() });
                    Ok(1000 + spawn.worker.0)
                };
                self.primary.handle_spawned(self.now, spawn.worker, result);
            }
            Action::Bind { socket, spec, backlog, .. } if self.slow => {
                self.due.push_back((socket, spec, backlog));
            }
            Action::Bind { socket, spec, backlog, .. } => self.bind(socket, spec, backlog),
            Action::Listen { socket, backlog } => {
                self.sockets.get_mut(&socket).expect("a socket").backlog = backlog;
            }
            Action::Accept { socket, on } => {
                self.sockets.get_mut(&socket).expect("a socket").accepting = on;
            }
            Action::Unbind { socket } => drop(self.sockets.remove(&socket).expect("closed twice")),
            Action::Flush { worker } => self.flush(worker),
            Action::CloseChannel { worker } => {
                self.peers.get_mut(&worker).expect("a worker").open = false;
            }
            Action::Signal { worker, signal } => self.signals.push((worker.0, signal)),
            Action::Examine { connection } => {
                let id = *self.primary.examining(connection).expect("something to examine");
                let touched = self.touched.contains(&id);
                let examined = if touched { Examined::Touched } else { Examined::Pristine };
                self.primary.handle_examined(connection, examined);
            }
            Action::Forget { worker } => self.forgotten.push(worker.0),
            Action::Retire { .. } | Action::Watch { .. } | Action::Measure { .. } => {}
            other => unreachable!("{other:?}"),
        }
    }

    fn bind(&mut self, socket: SocketId, mut spec: BindSpec, backlog: u32) {
        if let BindSpec::Tcp { port, .. } | BindSpec::Udp { port, .. } = &mut spec
            && *port == 0
        {
            *port = self.next_port;
            self.next_port += 1;
        }
        let (place, address) = match &spec {
            BindSpec::Tcp { address, port, .. } => {
                let ip = address.unwrap_or("::".parse().expect("any"));
                (format!("{port}"), BoundAddress::Inet((ip, *port).into()))
            }
            BindSpec::Udp { address, port, .. } => {
                (format!("udp {port}"), BoundAddress::Inet((*address, *port).into()))
            }
            BindSpec::Unix { path, .. } => (path.clone(), BoundAddress::Unix(path.clone())),
            other => unreachable!("{other:?}"),
        };
        let shared_port = matches!(spec, BindSpec::Udp { reuse_addr: true, .. });
        let ours = self.sockets.values().any(|other| {
            !shared_port
                && match (&other.spec, &spec) {
                    (BindSpec::Tcp { port: a, v6only: x, .. }, BindSpec::Tcp { port: b, v6only: y, .. }) => {
                        a == b && x == y
                    }
                    (BindSpec::Udp { port: a, .. }, BindSpec::Udp { port: b, .. }) => a == b,
                    (BindSpec::Unix { path: a, .. }, BindSpec::Unix { path: b, .. }) => a == b,
                    _ => false,
                }
        });
        let failed = self.taken.get(&place).copied().or(ours.then_some(EADDRINUSE));
        if failed.is_none() {
            self.sockets.insert(socket, Socket { spec, accepting: false, backlog });
        }
        self.primary.handle_bound(socket, failed.map_or(Ok(address), Err));
    }

    /// Everything arrives at once, and each handle is acknowledged.
    fn flush(&mut self, worker: WorkerId) {
        let mut receipts = 0;
        while let Some(next) = self.primary.poll_transmit(worker) {
            let peer = self.peers.get_mut(&worker).expect("a worker");
            peer.partial.extend(next.bytes);
            let count = next.bytes.len();
            let mut carry = match next.carried {
                None => Carry::Nothing,
                Some(Carried::Handle(id)) => Carry::Connection(*id),
                Some(Carried::Socket(socket)) => Carry::Socket(socket),
            };
            while let Some(end) = peer.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = peer.partial.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).expect("JSON");
                let carried = std::mem::replace(&mut carry, Carry::Nothing);
                receipts += u32::from(carried != Carry::Nothing);
                let line = if line["cmd"] == "NODE_HANDLE" { line["msg"].clone() } else { line };
                if carried == Carry::Nothing || !self.loses {
                    peer.got.push_back((line, carried));
                }
            }
            self.primary.handle_sent(worker, count);
        }
        for _ in 0..receipts {
            let receipt = if self.loses { "NODE_HANDLE_NACK" } else { "NODE_HANDLE_ACK" };
            let receipt = format!("{{\"cmd\":\"{receipt}\"}}\n");
            self.primary.handle_bytes(self.now, worker, receipt.as_bytes(), None);
        }
    }
}

/// The fields of a listen request.
pub(crate) fn tcp(address: &str, port: i32, index: u32) -> Value {
    json!({ "index": index, "data": null, "address": address, "port": port, "addressType": 4 })
}

pub(crate) fn udp(port: i32, index: u32) -> Value {
    json!({
        "index": index, "data": null, "address": "127.0.0.1", "port": port, "addressType": "udp4",
        "fd": -1, "flags": 0
    })
}

pub(crate) fn unix(path: &str, index: u32) -> Value {
    json!({ "index": index, "data": null, "address": path, "port": -1, "addressType": -1 })
}

fn words(event: &Event<phalanx_core::wire::Payload, u32>) -> Option<String> {
    Some(match event {
        Event::Fork { worker, .. } => format!("fork {worker}"),
        Event::ForkFailed { error, .. } => format!("fork failed: {error}"),
        Event::Online { worker } => format!("online {worker}"),
        Event::Listening { worker, info } => format!(
            "listening {worker} {} {} {} {}",
            info.address.as_deref().unwrap_or("-"),
            info.port.map_or("-".to_owned(), |port| port.to_string()),
            info.family.unwrap_or("-"),
            info.fd.map_or("-".to_owned(), |fd| fd.to_string()),
        ),
        Event::ListenerLeft { worker, key, .. } => format!("left {worker} {key}"),
        Event::ListenerClosed { key } => format!("closed {key}"),
        Event::BindFailed { errno, held_by, .. } => {
            format!("bind failed {errno} {}", held_by.as_deref().unwrap_or("-"))
        }
        Event::Draining { worker } => format!("draining {worker}"),
        Event::Message { worker, message, .. } => {
            format!("message {worker} {}", String::from_utf8_lossy(message.as_bytes()))
        }
        Event::Disconnect { worker } => format!("disconnect {worker}"),
        Event::Exit { worker, ended, exited_after_disconnect, .. } => {
            format!("exit {worker} {ended} {exited_after_disconnect}")
        }
        Event::Violation { worker, .. } => format!("violation {worker}"),
        Event::Finished => "finished".to_owned(),
        _ => return None,
    })
}
