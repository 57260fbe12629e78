//! What a builder says, as workers find it.
#![cfg(all(target_os = "linux", not(phalanx_standalone)))]

use phalanx::testing;
use phalanx::{Candidates, PolicyImpl};
use phalanx::{Cluster, Event, Hurry, Line, Mechanism, Output, Policy, Primary, Slot, Speaks, WorkerId};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.ancestors().nth(2).expect("a directory").join("examples").join(name)
}

/// What a program prints to its end, by stream.
fn printed(builder: phalanx::Builder) -> [Vec<String>; 2] {
    let lines = Printed::default();
    let primary = print(builder, &lines);
    // The events end when everything was printed.
    primary.events().into_iter().for_each(drop);
    let lines = lines.lock().expect("lock");
    lines.clone()
}

/// Lines, by stream.
type Printed = Arc<Mutex<[Vec<String>; 2]>>;

/// Starts a program that ends by itself.
fn print(builder: phalanx::Builder, lines: &Printed) -> Primary {
    let heard = Arc::clone(lines);
    let hear = move |line: &Line<'_>| {
        heard.lock().expect("lock")[usize::from(line.is_stderr)].push(line.text.to_owned());
        Ok(())
    };
    builder
        .channel(Speaks::Nothing)
        .output(Output::Lines(Arc::new(hear)))
        .workers(1)
        .restart(phalanx::Restart::Never)
        .start()
        .expect("it starts")
}

#[test]
fn who_asks_after_the_end_hears_all_of_it() {
    let lines = Printed::default();
    let primary = print(Cluster::builder().exec("/bin/echo").args(["hello"]), &lines);
    while primary.status().is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(lines.lock().expect("lock")[0], ["hello"]);
    let first: Vec<Event> = primary.events().into_iter().collect();
    let exits = first.iter().filter(|event| matches!(event, Event::Exit { .. })).count();
    assert!(matches!(first.last(), Some(Event::Finished)) && exits == 1, "{first:?}");
    assert!(primary.events().into_iter().next().is_none());
}

fn messages(primary: &Primary) -> impl Iterator<Item = (WorkerId, Value)> {
    primary.events().into_iter().filter_map(|event| match event {
        Event::Message { worker, message, .. } => Some((worker, message)),
        _ => None,
    })
}

#[test]
fn every_worker_finds_the_same_configuration() {
    let start = |builder: phalanx::Builder| {
        builder
            .exec(example("config"))
            .workers(1)
            .env("GREETING", "own")
            .output(Output::Null)
            .start()
            .expect("start")
    };
    let primary = start(Cluster::builder().name("web").config(&json!({ "greeting": "hi", "more": 1 })));
    let mut told = messages(&primary);
    let (first, message) = told.next().expect("a message");
    assert_eq!(message, json!(["hi", 1, "web"]));
    assert!(primary.worker(first).expect("it lives").signal(phalanx::Signal::KILL));
    let (second, message) = told.next().expect("a message");
    assert_ne!(first, second);
    assert_eq!(message, json!(["hi", 1, "web"]));
    primary.stop(Hurry::Graceful).wait();

    // Without one, a program that would cluster itself has its own.
    let primary = start(Cluster::builder());
    assert_eq!(messages(&primary).next().expect("a message").1, json!(["own", 1, null]));
    primary.stop(Hurry::Graceful).wait();
}

#[test]
fn a_program_that_clusters_itself_reads_its_configuration_once() {
    let mut primary = Command::new(example("config"))
        .env("GREETING", "good morning")
        .env("WORKERS", "2")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines = BufReader::new(primary.stdout.take().expect("a pipe")).lines();
    let mut lines: Vec<String> = lines.take(2).map(|line| line.expect("text")).collect();
    lines.sort();
    assert_eq!(lines, [1, 2].map(|id| format!("good morning from worker {id} of greeter")));
    let killed = Command::new("kill").arg(primary.id().to_string()).status().expect("kill");
    assert!(killed.success() && primary.wait().expect("its end").success());
}

#[test]
fn what_a_service_says_right_before_its_end_is_heard() {
    // Far more than a channel holds.
    let greeting = "x".repeat(8_000_000);
    let primary = Cluster::builder()
        .exec(example("config"))
        .workers(1)
        .restart(phalanx::Restart::Never)
        .env("ONCE", "1")
        .output(Output::Null)
        .config(&json!({ "greeting": greeting }))
        .start()
        .expect("start");
    let told: Vec<Value> = messages(&primary).map(|(_, message)| message).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0][0].as_str().map(str::len), Some(greeting.len()));
}

#[test]
fn the_error_of_a_service_that_fails_everywhere_is_the_cluster_s() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    let out = Command::new(example("cluster"))
        .env("PORT", port.to_string())
        .env("WORKERS", "2")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr);
    // Once of each worker, once of the primary.
    assert!(
        !out.status.success() && said.matches("AddrInUse").count() + said.matches("in use").count() >= 3,
        "{said}"
    );
}

#[test]
fn a_test_does_not_start_itself() {
    for error in [
        Cluster::builder().start().expect_err("nothing to run"),
        Cluster::builder().run(|_| async { Ok(()) }).expect_err("it would start this test"),
    ] {
        assert!(error.to_string().contains("testing::Cluster"), "{error}");
    }
}

#[test]
fn a_cleared_environment_holds_what_was_named() {
    let of = |builder: phalanx::Builder| printed(builder.exec("/usr/bin/env").env("NAMED", "1"))[0].clone();
    let has = |env: &[String], name: &str| env.iter().any(|line| line.starts_with(&format!("{name}=")));
    // Cargo sets it for its tests.
    let name = "CARGO_MANIFEST_DIR";
    let (all, cleared) = (of(Cluster::builder()), of(Cluster::builder().env_clear()));
    assert!(has(&all, name) && !has(&cleared, name), "{cleared:?}");
    for name in ["PATH", "NAMED", "PHALANX_SLOT"] {
        assert!(has(&all, name) && has(&cleared, name), "{name}: {cleared:?}");
    }
}

#[test]
fn workers_run_as_another_user_without_a_way_back() {
    let builder = Cluster::builder().exec("/bin/sh").user("nobody").args([
        "-c",
        "id -un; echo $USER $LOGNAME; grep -E '^(NoNewPrivs|CapEff|CapBnd)' /proc/self/status; echo $HOME",
    ]);
    let id = Command::new("id").arg("-u").output().expect("id");
    if id.stdout != b"0\n" {
        let error = builder.start().expect_err("not permitted");
        assert!(matches!(&error, phalanx::Error::User { .. }), "{error}");
        return;
    }
    let [out, err] = printed(builder);
    assert_eq!(err, [] as [&str; 0]);
    assert_eq!(out[..2], ["nobody", "nobody nobody"], "{out:?}");
    assert!(
        out[2..5].iter().all(|line| line.ends_with("\t1") || line.ends_with("\t0000000000000000")),
        "{out:?}"
    );
    let error = Cluster::builder().exec("/bin/sh").user("no-such-user").start().expect_err("nobody");
    assert!(error.to_string().contains("no user `no-such-user`"), "{error}");
}

#[test]
fn each_stream_goes_its_own_way() {
    let file = std::env::temp_dir().join(format!("phalanx-output-{}", std::process::id()));
    for n in 1..=2 {
        let primary = Cluster::builder()
            .exec("/bin/sh")
            .args(["-c", "echo out; echo err >&2"])
            .channel(Speaks::Nothing)
            .workers(1)
            .restart(phalanx::Restart::Never)
            .stdout(Output::Null)
            .stderr(Output::Append(file.clone()))
            .start()
            .expect("it starts");
        primary.events().into_iter().for_each(drop);
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), "err\n".repeat(n));
    }
    std::fs::remove_file(&file).expect("removed");
}

/// Everything to the lowest slot that has room.
#[derive(Debug)]
struct Lowest;

impl PolicyImpl for Lowest {
    fn pick(&mut self, _: Option<SocketAddr>, candidates: Candidates<'_>) -> Option<WorkerId> {
        candidates.with_room().min_by_key(|candidate| candidate.slot).map(|candidate| candidate.worker)
    }
}

#[test]
fn a_policy_of_one_s_own_chooses() {
    let cluster = testing::Cluster::new(example("axum"))
        .workers(3)
        .env("PORT", "0")
        .with(|builder| builder.custom_policy(|| Lowest))
        .start();
    let listener = &cluster.status().listeners[0];
    assert_eq!((listener.mechanism, listener.policy), (Mechanism::Handoff, Policy::Custom));
    for _ in 0..6 {
        let mut stream = TcpStream::connect(cluster.address()).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        assert!(reply.contains(&format!("x-worker: {}\r\n", Slot(0))), "{reply}");
    }
    let share = Cluster::builder().exec("/bin/true").mechanism(Mechanism::Share).custom_policy(|| Lowest);
    assert!(share.start().is_err());
}
