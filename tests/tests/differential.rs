//! The same workers and the same commands under Node's own primary and under ours: what is heard is the same.
//!
//! Compared is what each worker's log says, in order. Ports are named in the order of their appearance; disconnect and
//! exit may come either way around (LIFE-10). What only ours tells is listed in [`said`], each with the rule that
//! wants it; where the two must differ, a scene says so with its rule.

use phalanx::{Cluster, Event, Events, Hurry, Mechanism, Policy, Primary, Serialization, Speaks, WorkerId};
use phalanx_tests::lab;
use phalanx_tests::process::{Process, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;

/// One of the two.
trait Side {
    fn fork(&mut self);
    fn send(&mut self, worker: u32, message: &Value);
    fn disconnect(&mut self, worker: u32);
    fn disconnect_all(&mut self);
    /// SIGKILL, raw.
    fn kill(&mut self, worker: u32);
    /// The next thing that is heard of a worker.
    fn next(&mut self) -> (u32, String);
}

fn listening(address: Option<&str>, port: Option<i64>, family: Option<String>) -> String {
    let port = port.map_or("-".to_owned(), |port| port.to_string());
    format!("listening {} {port} {}", address.unwrap_or("-"), family.unwrap_or_else(|| "-".to_owned()))
}

fn exit(code: Option<i64>, signal: Option<&str>, voluntary: bool) -> String {
    let how = code.map_or_else(|| signal.unwrap_or("-").to_owned(), |code| code.to_string());
    format!("exit {how} {}", if voluntary { "voluntary" } else { "involuntary" })
}

struct Node {
    process: Process,
    read: usize,
}

impl Node {
    fn new(version: &str, policy: &str) -> Option<Node> {
        let mut command = lab::node_command(version, "primary.js")?;
        command.args(["--policy", policy, "--workers", "0", "--", "-"]).arg(lab::fixture("obedient.js"));
        Some(Node { process: Process::start(&mut command), read: 0 })
    }
}

impl Side for Node {
    fn fork(&mut self) {
        self.process.say("fork");
    }

    fn send(&mut self, worker: u32, message: &Value) {
        self.process.say(&format!("send {worker} {message}"));
    }

    fn disconnect(&mut self, worker: u32) {
        self.process.say(&format!("disconnect {worker}"));
    }

    fn disconnect_all(&mut self) {
        self.process.say("disconnect");
    }

    fn kill(&mut self, worker: u32) {
        self.process.say(&format!("kill {worker} SIGKILL"));
    }

    fn next(&mut self) -> (u32, String) {
        loop {
            let line = wait_for("a line of the primary", || self.process.lines().get(self.read).cloned());
            self.read += 1;
            let Ok(told) = serde_json::from_str::<Value>(&line.text) else { continue };
            let Some(id) = told["id"].as_u64() else { continue };
            let text = match told["event"].as_str().unwrap_or_default() {
                "listening" => {
                    let family = &told["addressType"];
                    let family =
                        family.as_str().map(str::to_owned).or(family.as_i64().map(|n| n.to_string()));
                    listening(told["address"].as_str(), told["port"].as_i64(), family)
                }
                "message" => format!("message {}", told["message"]),
                "exit" => exit(
                    told["code"].as_i64(),
                    told["signal"].as_str(),
                    told["exitedAfterDisconnect"] == true,
                ),
                other => other.to_owned(),
            };
            return (u32::try_from(id).expect("an id"), text);
        }
    }
}

struct Ours {
    primary: Primary,
    events: Events,
}

impl Ours {
    fn new(version: &str, policy: &str, serialization: Serialization) -> Option<Ours> {
        let primary = Cluster::builder()
            .exec(lab::node(version)?)
            .args([lab::fixture("obedient.js")])
            .channel(Speaks::Node)
            .serialization(serialization)
            .policy(if policy == "rr" { Policy::RoundRobin } else { Policy::None })
            .mechanism(if policy == "rr" { Mechanism::Handoff } else { Mechanism::Share })
            .start()
            .expect("a primary");
        let events = primary.events();
        Some(Ours { primary, events })
    }
}

/// What Node says too; all else is ours alone.
fn said(event: Event) -> Option<(WorkerId, String)> {
    Some(match event {
        Event::Fork { worker, .. } => (worker, "fork".to_owned()),
        Event::Online { worker } => (worker, "online".to_owned()),
        Event::Listening { worker, info } => {
            let port = info.port.map(i64::from);
            (worker, listening(info.address.as_deref(), port, info.family.map(str::to_owned)))
        }
        Event::Message { worker, message, .. } => (worker, format!("message {message}")),
        Event::Disconnect { worker } => (worker, "disconnect".to_owned()),
        Event::Exit { worker, ended, exited_after_disconnect, .. } => {
            let (code, signal) = match ended {
                phalanx::Ended::Code(code) => (Some(i64::from(code)), None),
                phalanx::Ended::Signal(9, _) => (None, Some("SIGKILL")),
                other => panic!("{other:?}"),
            };
            (worker, exit(code, signal, exited_after_disconnect))
        }
        // SETUP-06: Node tells it elsewhere. DEC-01: the drain has an event of its own. DEF-58: so has a listener that
        // is left or closed. DEC-17: and one that cannot be had.
        Event::Setup { .. }
        | Event::Draining { .. }
        | Event::ListenerLeft { .. }
        | Event::ListenerClosed { .. }
        | Event::BindFailed { .. }
        | Event::Ready { .. }
        | Event::Finished => return None,
        other => panic!("Node has nothing like {other:?}"),
    })
}

impl Side for Ours {
    fn fork(&mut self) {
        self.primary.fork([("NONE", "")]).expect("a worker");
    }

    fn send(&mut self, worker: u32, message: &Value) {
        self.primary.worker(WorkerId(worker)).expect("it is there").try_send(message).expect("room");
    }

    fn disconnect(&mut self, worker: u32) {
        drop(self.primary.worker(WorkerId(worker)).expect("it is there").disconnect());
    }

    fn disconnect_all(&mut self) {
        drop(self.primary.disconnect());
    }

    fn kill(&mut self, worker: u32) {
        assert!(self.primary.worker(WorkerId(worker)).expect("it is there").signal(phalanx::Signal::KILL));
    }

    fn next(&mut self) -> (u32, String) {
        loop {
            if let Some((worker, text)) = said(self.events.blocking_recv().expect("an event")) {
                return (worker.0, text);
            }
        }
    }
}

/// A scene under way.
struct Scene<'a> {
    side: &'a mut dyn Side,
    log: BTreeMap<u32, Vec<String>>,
    /// Heard before anybody waited for it.
    early: Vec<(u32, String)>,
    forks: u32,
}

impl Scene<'_> {
    fn wait(&mut self, worker: u32, text: &str) -> String {
        if let Some(at) = self.early.iter().position(|(id, it)| *id == worker && it.starts_with(text)) {
            return self.early.remove(at).1;
        }
        loop {
            let (id, it) = self.side.next();
            self.log.entry(id).or_default().push(it.clone());
            if id == worker && it.starts_with(text) {
                return it;
            }
            self.early.push((id, it));
        }
    }

    fn fork(&mut self) -> u32 {
        self.side.fork();
        self.forks += 1;
        self.wait(self.forks, "online");
        self.forks
    }

    fn tell(&mut self, worker: u32, order: Value) -> Value {
        self.side.send(worker, &order);
        let told = self.wait(worker, "message ");
        serde_json::from_str(told.trim_start_matches("message ")).expect("JSON")
    }

    fn listen(&mut self, worker: u32, port: i64) -> i64 {
        let told = self.tell(worker, json!({ "do": "listen", "at": port, "host": "127.0.0.1" }));
        self.wait(worker, "listening");
        told["at"].as_i64().expect("a port")
    }

    fn ends(&mut self, worker: u32) {
        self.wait(worker, "exit");
        self.wait(worker, "disconnect");
    }

    /// What each worker did, with ports by their order.
    fn told(mut self) -> BTreeMap<u32, Vec<String>> {
        let mut ports: Vec<String> = Vec::new();
        for log in self.log.values_mut() {
            for text in log.iter_mut() {
                let words: Vec<String> = text
                    .split(|c: char| !c.is_ascii_digit())
                    .filter(|word| word.len() >= 4 && word.parse::<u16>().is_ok())
                    .map(str::to_owned)
                    .collect();
                for word in words {
                    let at = ports.iter().position(|port| *port == word).unwrap_or_else(|| {
                        ports.push(word.clone());
                        ports.len() - 1
                    });
                    *text = text.replace(&word, &format!("PORT{at}"));
                }
            }
            if let [.., before, last] = log.as_mut_slice()
                && last == "disconnect"
            {
                std::mem::swap(before, last);
            }
        }
        self.log
    }
}

fn play(side: &mut dyn Side, scene: fn(&mut Scene<'_>)) -> BTreeMap<u32, Vec<String>> {
    let mut it = Scene { side, log: BTreeMap::new(), early: Vec::new(), forks: 0 };
    scene(&mut it);
    it.told()
}

fn compare(name: &str, scene: fn(&mut Scene<'_>)) {
    for version in ["18", "20", "22", "26"] {
        for policy in ["rr", "none"] {
            let Some(mut node) = Node::new(version, policy) else { continue };
            let theirs = play(&mut node, scene);
            node.process.close_stdin();
            node.process.wait();
            for serialization in [Serialization::Json, Serialization::Advanced] {
                let Some(mut ours) = Ours::new(version, policy, serialization) else { continue };
                let own = play(&mut ours, scene);
                let where_at = format!("{name}, Node {version}, {policy}, {serialization}");
                assert_eq!(own, theirs, "{where_at}: ours, and Node's");
                println!("{where_at}: {} workers alike", own.len());
                ours.primary.stop(Hurry::Graceful).wait();
            }
        }
    }
}

#[test]
fn listening_and_leaving() {
    compare("listening and leaving", |it| {
        let (one, two) = (it.fork(), it.fork());
        let port = it.listen(one, 0);
        assert_eq!(it.listen(two, 0), port);
        let second = it.tell(one, json!({ "do": "again", "at": 0, "host": "127.0.0.1" }))["at"].clone();
        assert_ne!(second, port, "the second port 0 of a worker");
        it.tell(two, json!({ "do": "close", "at": 0 }));
        it.listen(two, 0);
        it.side.disconnect(one);
        it.ends(one);
        it.side.disconnect(two);
        it.ends(two);
    });
}

#[test]
fn datagrams_and_paths() {
    compare("datagrams and paths", |it| {
        let (one, two) = (it.fork(), it.fork());
        let dir = tempfile::tempdir().expect("a directory");
        for worker in [one, two] {
            it.tell(worker, json!({ "do": "bind", "at": 0, "host": "127.0.0.1" }));
        }
        let path = dir.path().join("s").display().to_string();
        let answer = it.tell(one, json!({ "do": "unix", "at": path }));
        assert_eq!(answer["at"], path);
        it.wait(one, &format!("listening {path} -1 -1"));
        // It is another one each time.
        for text in it.log.values_mut().flatten() {
            *text = text.replace(&path, "PATH");
        }
        it.side.disconnect_all();
        it.ends(one);
        it.ends(two);
    });
}

#[test]
fn a_busy_port_and_a_port_asked_for_twice() {
    compare("a busy port and a port asked for twice", |it| {
        let (one, two) = (it.fork(), it.fork());
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = i64::from(holder.local_addr().expect("its address").port());
        let order = |port: i64| json!({ "do": "listen", "at": port, "host": "127.0.0.1" });
        assert_eq!(it.tell(one, order(port))["error"], "EADDRINUSE");
        assert_eq!(it.tell(two, order(port))["error"], "EADDRINUSE");
        let own = it.listen(one, 0);
        // DEC-08. (Node 22 with policy none dies of it: DEF-17.)
        it.side.disconnect(one);
        it.ends(one);
        let again = it.listen(two, 0);
        assert!(own > 0 && again > 0);
        it.side.disconnect(two);
        it.ends(two);
    });
}

#[test]
fn a_worker_that_ends_by_itself() {
    compare("a worker that ends by itself", |it| {
        for order in ["disconnect", "disconnect twice", "kill", "let go", "exit"] {
            let worker = it.fork();
            it.listen(worker, 0);
            it.side.send(worker, &json!({ "do": order, "code": 42 }));
            it.ends(worker);
        }
    });
}

#[test]
fn a_worker_that_is_ended() {
    compare("a worker that is ended", |it| {
        let (idle, busy) = (it.fork(), it.fork());
        it.listen(busy, 0);
        it.side.kill(idle);
        it.ends(idle);
        it.side.kill(busy);
        it.ends(busy);
        // Numbers go on.
        let third = it.fork();
        it.listen(third, 0);
        it.side.disconnect_all();
        it.ends(third);
    });
}

#[test]
fn messages_of_every_sort() {
    compare("messages of every sort", |it| {
        let worker = it.fork();
        for message in [
            json!(1),
            json!("text with \u{2028} and é"),
            json!([1, null, true, { "a": {} }]),
            json!({ "cmd": "NODE_" }),
            json!({ "cmd": 5 }),
            json!("NODE_CLUSTER"),
            json!({ "nested": { "cmd": "NODE_CLUSTER", "act": "online" } }),
            json!("x".repeat(100_000)),
        ] {
            let told = it.tell(worker, json!({ "say": message }));
            assert_eq!(told["echo"]["say"], message);
        }
        it.side.disconnect(worker);
        it.ends(worker);
    });
}

/// Where the two must differ.
#[test]
fn a_port_asked_for_twice_is_refused_and_kills_nobody() {
    for version in ["18", "20", "22", "26"] {
        for policy in ["rr", "none"] {
            let Some(mut ours) = Ours::new(version, policy, Serialization::Json) else { continue };
            let log = play(&mut ours, |it| {
                let worker = it.fork();
                let port = it.listen(worker, 0);
                it.tell(worker, json!({ "do": "close", "at": 0 }));
                let own = it.listen(worker, port);
                assert_eq!(own, port);
                // DEC-08, DEF-17: Node 22 with policy none ends the worker.
                let again = it.tell(worker, json!({ "do": "again", "at": port, "host": "127.0.0.1" }));
                assert_eq!(again["error"], "EADDRINUSE");
                // DEF-39: what has failed does not count. (Node 18 and 20 count it.)
                it.tell(worker, json!({ "do": "close", "at": port }));
                assert_eq!(it.listen(worker, port), port);
                it.side.disconnect(worker);
                it.ends(worker);
            });
            assert_eq!(log[&1].last().map(String::as_str), Some("exit 0 voluntary"), "{log:?}");
            ours.primary.stop(Hurry::Graceful).wait();
        }
    }
}
