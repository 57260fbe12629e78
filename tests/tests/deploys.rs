//! Deploys, good and bad, and how workers end.

use phalanx_tests::lab;
use phalanx_tests::load::{Load, Running};
use phalanx_tests::process::{
    Phalanx, ProcessId, Signal, fd_count, free_port, kill, rss_kib, wait_answer, wait_until,
};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Output;

/// A Node app as people write them: with a timer that never ends. `V` says which version answers.
const GOOD: &str = "
    const http = require('http');
    setInterval(() => {}, 1000);
    http.createServer((request, response) => {
        const nonce = request.headers['x-nonce'];
        if (nonce) response.setHeader('x-nonce', nonce);
        response.setHeader('x-worker', String(process.pid));
        response.end(process.env.V + '\\n');
    }).listen(Number(process.env.PORT), '127.0.0.1');
";

/// An app on the disk, which is deployed by writing it anew.
struct App {
    dir: tempfile::TempDir,
    port: u16,
}

impl App {
    fn new(text: &str) -> App {
        let app = App { dir: tempfile::tempdir().expect("a directory"), port: free_port() };
        app.write("app.js", text);
        app.write("env", "V=1\n");
        app
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn run(&self, name: &str, options: &[&str]) -> Option<Phalanx> {
        let node = lab::node("22")?;
        let file = self.path("env").into_os_string();
        let phalanx = Phalanx::run(name)
            .workers(2)
            .env("PORT", self.port.to_string())
            .options([OsString::from("--env-file"), file])
            .options(options)
            .start([node.into_os_string(), self.path("app.js").into_os_string()]);
        Some(phalanx)
    }

    fn load(&self) -> Running {
        Load::port(self.port).clients(4).connections(1_000_000).start()
    }
}

fn no(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pids(status: &Value) -> Vec<u64> {
    status["workers"].as_array().into_iter().flatten().filter_map(|w| w["pid"].as_u64()).collect()
}

fn pid_in(status: &Value, slot: u64) -> u32 {
    let worker = status["workers"].as_array().into_iter().flatten().find(|w| w["slot"] == slot);
    worker.and_then(|w| w["pid"].as_u64()).and_then(|pid| u32::try_from(pid).ok()).expect("somebody there")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a page of whoever is next says.
fn page(port: u16) -> String {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is read");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.rsplit("\r\n")
        .find(|line| !line.trim().is_empty() && *line != "0")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[test]
fn a_broken_build_of_any_sort_changes_nothing() {
    let port = free_port();
    let elsewhere = GOOD.replace("Number(process.env.PORT)", &port.to_string());
    let builds = [
        ("exits", "console.log('no licence'); process.exit(3)", "exit code 3"),
        ("syntax", "console.log('half a deploy';", "SyntaxError"),
        ("hangs", "console.log('thinking'); setInterval(() => {}, 1000)", "not ready in time"),
        ("elsewhere", elsewhere.as_str(), "does not listen on"),
    ];
    for (name, text, why) in builds {
        let app = App::new(GOOD);
        let Some(mut phalanx) = app.run(name, &["--start-timeout", "2s"]) else { return };
        let before = phalanx.wait_listening(2);
        let load = app.load();
        load.wait_served(50);
        app.write("app.js", text);
        let output = phalanx.ask("reload", no(&[]));
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        assert!(said(&output).contains(why), "{name}: {}", said(&output));
        load.wait_served(load.served() + 50);
        load.stop().assert_all_served();
        let after = phalanx.wait_status("all is as before", |status| pids(status).len() == 2);
        assert_eq!(pids(&after), pids(&before), "{name}");
        assert!(phalanx.tell("status", no(&[])).contains("1"), "{name}");
        // And the next good one is deployed.
        app.write("app.js", GOOD);
        app.write("env", "V=2\n");
        phalanx.tell("reload", no(&[]));
        assert_eq!(page(app.port), "2", "{name}");
        phalanx.finish();
    }
}

/// Reloads under full load: nobody notices.
fn reloads(name: &str, mut phalanx: Phalanx, port: u16, workers: usize) {
    phalanx.wait_status("all are ready", |status| status["ready"] == workers);
    wait_answer(port);
    let short = Load::port(port).clients(2).connections(1_000_000).start();
    let kept = Load::port(port).clients(2).connections(1_000_000).requests_per_connection(5).start();
    short.wait_served(20);
    // The first may open what stays open.
    phalanx.tell("reload", no(&[]));
    let fds = fd_count(phalanx.pid());
    let rounds = if lab::long() { 100 } else { 20 };
    let memory = rss_kib(phalanx.pid()).expect("it lives");
    for _ in 0..rounds {
        phalanx.tell("reload", no(&[]));
        short.wait_served(short.served() + 5);
    }
    short.stop().assert_all_served();
    let kept = kept.stop();
    // A request may meet the end of a connection that was idle: of HTTP/1, no server can rule that out.
    assert_eq!(kept.failed(), kept.failed_reused, "{kept}");
    wait_until("no fd of a connection is open", || fd_count(phalanx.pid()) <= fds);
    let grown = rss_kib(phalanx.pid()).expect("it lives").saturating_sub(memory);
    assert!(grown < 4096, "{name}: {grown} KiB more after {rounds} reloads");
    let status = phalanx.status();
    assert_eq!(status["generation"], rounds + 2, "{name}");
    phalanx.finish();
}

#[test]
fn node_is_reloaded_under_load_by_handoff() {
    let app = App::new(GOOD);
    let Some(phalanx) = app.run("rel-handoff", &["--mechanism", "handoff"]) else { return };
    reloads("handoff", phalanx, app.port, 2);
}

#[test]
fn node_is_reloaded_under_load_by_share() {
    let app = App::new(GOOD);
    let Some(phalanx) = app.run("rel-share", &["--mechanism", "share"]) else { return };
    reloads("share", phalanx, app.port, 2);
}

#[test]
fn node_is_reloaded_under_load_by_steering() {
    let app = App::new(GOOD);
    let Some(phalanx) = app.run("rel-steer", &["--mechanism", "steer"]) else { return };
    reloads("steer", phalanx, app.port, 2);
}

#[test]
fn a_rust_service_is_reloaded_under_load() {
    for mechanism in ["handoff", "share", "steer"] {
        let port = free_port();
        let phalanx = Phalanx::run(&format!("rel-rust-{mechanism}"))
            .workers(2)
            .options(["--channel", "phalanx", "--mechanism", mechanism])
            .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
        reloads(mechanism, phalanx, port, 2);
    }
}

#[test]
fn who_never_drops_its_listener_is_reloaded_under_load() {
    for mechanism in ["handoff", "share", "steer"] {
        let port = free_port();
        let phalanx = Phalanx::run(&format!("rel-keep-{mechanism}"))
            .workers(2)
            .options(["--channel", "phalanx", "--mechanism", mechanism])
            .start([lab::binary("service").into_os_string(), "keep".into(), port.to_string().into()]);
        reloads(mechanism, phalanx, port, 2);
    }
}

#[test]
fn a_stop_refuses_who_comes_although_the_listener_is_kept() {
    for mechanism in ["handoff", "share", "steer"] {
        let port = free_port();
        let mut phalanx = Phalanx::run(&format!("stop-keep-{mechanism}"))
            .workers(2)
            .options(["--channel", "phalanx", "--mechanism", mechanism])
            .start([lab::binary("service").into_os_string(), "keep".into(), port.to_string().into()]);
        phalanx.wait_listening(2);
        let pids: Vec<u32> = phalanx.workers().into_iter().map(|it| it.pid).collect();
        let open = || pids.iter().filter_map(|pid| fd_count(*pid)).sum::<usize>();
        let before = open();
        // One that is served, and keeps its worker from ending.
        let mut held = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        held.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
        wait_until("it is taken", || open() > before);
        phalanx.signal(Signal::TERM);
        wait_until("who comes is refused", || {
            TcpStream::connect(("127.0.0.1", port)).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        });
        held.write_all(b"\r\n").expect("its worker serves it");
        let mut reply = String::new();
        held.read_to_string(&mut reply).expect("served");
        assert!(reply.contains("200 OK"), "{mechanism}: {reply}");
        phalanx.finish();
    }
}

#[test]
fn a_crash_does_not_deploy() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("app");
    let deploy = |from: PathBuf| {
        fs::copy(from, dir.path().join("new")).expect("copied");
        fs::rename(dir.path().join("new"), &program).expect("renamed");
    };
    deploy(lab::binary("service"));
    let port = free_port();
    let mut phalanx = Phalanx::run("pinned").workers(2).options(["--channel", "phalanx"]).start([
        program.clone().into_os_string(),
        "async".into(),
        port.to_string().into(),
    ]);
    let status = phalanx.wait_listening(2);
    assert_eq!(status["workers"][0]["changed"], false);
    // The new one is broken, and nobody has asked for it.
    deploy(phalanx_os::spawn::resolve("false".as_ref(), None, dir.path()).expect("false"));
    kill(pid_in(&status, 0), Signal::KILL).expect("killed");
    let status = phalanx.wait_status("its successor is what it was", |now| {
        now["ready"] == 2 && now["workers"][0]["pid"] != status["workers"][0]["pid"]
    });
    assert_eq!(status["workers"][0]["changed"], true, "and the status says so");
    let output = phalanx.ask("reload", no(&[]));
    assert!(said(&output).contains("exit code 1"), "{}", said(&output));
    deploy(lab::binary("service"));
    phalanx.tell("reload", no(&[]));
    assert_eq!(phalanx.status()["workers"][0]["changed"], false);
    phalanx.finish();
}

#[test]
fn a_plain_program_is_ready_when_it_waits_on_its_socket() {
    let Some(uvicorn) = lab::uvicorn() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let app = "
async def app(scope, receive, send):
    if scope['type'] == 'http':
        await send({'type': 'http.response.start', 'status': 200, 'headers': [[b'x-worker', b'w']]})
        await send({'type': 'http.response.body', 'body': b'1\\n'})
";
    fs::write(dir.path().join("app.py"), app).expect("written");
    let port = free_port();
    let mut phalanx = Phalanx::run("rel-plain")
        .workers(2)
        .current_dir(dir.path())
        .options(["-l", &format!("127.0.0.1:{port}"), "--channel", "none", "--start-timeout", "10s"])
        .start([uvicorn.into_os_string(), "app:app".into(), "--fd".into(), "3".into()]);
    phalanx.wait_status("both wait", |status| status["ready"] == 2);
    phalanx.tell("reload", no(&[]));
    assert_eq!(phalanx.status()["generation"], 2);
    fs::write(dir.path().join("app.py"), "app = nonsense\n").expect("written");
    let output = phalanx.ask("reload", no(&[]));
    assert!(!output.status.success() && said(&output).contains("nonsense"), "{}", said(&output));
    assert_eq!(phalanx.status()["generation"], 2);
    phalanx.finish();
}

#[test]
fn ready_by_message_and_by_a_page() {
    let late = "
        const go = () => { READY };
        process.on('message', go);
        setTimeout(go, 50);
    ";
    let cases = [("message", "process.send('ready')"), ("http:/health", "global.healthy = true")];
    for (ready, how) in cases {
        let text = GOOD.replace(
            "response.end(",
            "if (request.url === '/health' && !global.healthy) response.statusCode = 503; response.end(",
        );
        let app = App::new(&format!("{text}{}", late.replace("READY", how)));
        let Some(mut phalanx) = app.run("ready", &["--ready", ready, "--start-timeout", "10s"]) else {
            return;
        };
        phalanx.wait_status("both are ready", |status| status["ready"] == 2);
        phalanx.tell("reload", no(&[]));
        // One that never says so.
        app.write("app.js", &text);
        app.write("env", "V=2\n");
        let serving = pids(&phalanx.status());
        let mut reload = phalanx.command("reload", no(&[])).spawn().expect("phalanx");
        let status = phalanx.wait_status("the new one listens", |status| {
            let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
            all.iter().any(|w| w["generation"] == 3 && w["state"] == "listening")
        });
        for _ in 0..4 {
            assert_eq!(page(app.port), "1", "who is not ready gets nothing");
        }
        let pid = pids(&status).into_iter().find(|pid| !serving.contains(pid)).expect("a new one");
        kill(u32::try_from(pid).expect("a pid"), Signal::KILL).expect("killed");
        assert!(!reload.wait().expect("an end").success());
        assert_eq!(pids(&phalanx.status()), serving);
        phalanx.finish();
    }
}

#[test]
fn a_notice_of_readiness_counts_only_from_the_worker_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let app = "
import os, socket, sys, time
notify = os.environ['NOTIFY_SOCKET']
def say():
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', notify)
if os.path.exists('child'):
    if os.fork() == 0:
        say()
        os._exit(0)
    os.wait()
else:
    say()
print('said', flush=True)
time.sleep(10000)
";
    fs::write(dir.path().join("app.py"), app).expect("written");
    let mut phalanx = Phalanx::run("notify")
        .workers(1)
        .current_dir(dir.path())
        .options(["--channel", "none", "--ready", "notify", "--start-timeout", "2s"])
        .start(["python3", "app.py"]);
    phalanx.wait_status("it is ready", |status| status["ready"] == 1);
    phalanx.tell("reload", no(&[]));
    fs::write(dir.path().join("child"), "").expect("written");
    let output = phalanx.ask("reload", no(&[]));
    assert!(said(&output).contains("NOTIFY_SOCKET"), "{}", said(&output));
    assert_eq!(phalanx.status()["generation"], 2);
    phalanx.finish();
}

#[test]
fn the_control_plane_changes_and_explains() {
    let app =
        App::new(&GOOD.replace("http.createServer(", "console.log('at your service'); http.createServer("));
    let Some(mut phalanx) = app.run("control", &[]) else { return };
    let status = phalanx.wait_listening(2);
    assert!(phalanx.tell("scale", no(&["+1"])).contains("3 workers"));
    assert!(phalanx.tell("scale", no(&["2"])).contains("2 workers"));
    let old = pid_in(&phalanx.status(), 1);
    phalanx.tell("restart", no(&["1"]));
    assert_ne!(pid_in(&phalanx.status(), 1), old);
    phalanx.tell("kill", no(&["0"]));
    phalanx.wait_status("somebody is there again", |now| {
        now["ready"] == 2 && now["workers"][0]["pid"] != status["workers"][0]["pid"]
    });
    let victim = pid_in(&phalanx.status(), 1);
    kill(victim, Signal::ABORT).expect("killed");
    let now = phalanx.wait_status("it is replaced", |now| {
        now["ready"] == 2 && u64::from(victim) != now["workers"][1]["pid"]
    });
    let why = phalanx.tell("why", no(&["1"]));
    for word in ["SIGABRT", "Nobody had asked it to", "at your service", "ready"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    let json: Value = serde_json::from_str(&phalanx.tell("why", no(&["1", "--json"]))).expect("JSON");
    assert_eq!(json["end"]["event"], "exit");
    for n in 0..2 {
        let id = now["workers"][n]["id"].to_string();
        assert_eq!(phalanx.tell("curl", no(&["-w", &id, "/"])), "1\n");
    }
    let lines = phalanx.tell("reload", no(&["--json"]));
    let last: Value = serde_json::from_str(lines.lines().last().expect("lines")).expect("JSON");
    assert_eq!(last["done"]["generation"], 2, "{lines}");
    for (verb, arguments) in [("kill", ["7"]), ("why", ["7"]), ("scale", ["0"]), ("curl", ["/"])] {
        assert!(!phalanx.ask(verb, no(&arguments)).status.success(), "{verb}");
    }
    phalanx.finish();
}

#[test]
fn sighup_reloads() {
    let app = App::new(GOOD);
    let Some(mut phalanx) = app.run("hup", &[]) else { return };
    phalanx.wait_listening(2);
    app.write("env", "V=7\n");
    for _ in 0..20 {
        phalanx.signal(Signal::HUP);
    }
    phalanx.wait_status("the last one is through", |status| {
        let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
        status["reloading"].is_null()
            && all.len() == 2
            && all.iter().all(|w| w["generation"] == status["generation"] && status["generation"] != 1)
    });
    assert_eq!(page(app.port), "7");
    phalanx.finish();
}

#[test]
fn who_hangs_is_replaced_and_its_connections_are_served() {
    let app = App::new(GOOD);
    // Steering moves what waits away from who hangs, long before anybody has to be ended for it.
    let options = ["--mechanism", "handoff", "--hang-timeout", "1s", "--term-timeout", "1s"];
    let Some(mut phalanx) = app.run("hang", &options) else { return };
    let status = phalanx.wait_listening(2);
    let hung = pid_in(&status, 0);
    kill(hung, Signal::STOP).expect("stopped");
    Load::port(app.port).clients(4).connections(40).run().assert_all_served();
    phalanx.wait_status("it is replaced", |now| {
        now["ready"] == 2 && u64::from(hung) != now["workers"][0]["pid"]
    });
    assert!(phalanx.tell("why", no(&["0"])).contains("it hung"));
    phalanx.wait_line("worker hangs");
    phalanx.finish();
}

#[test]
fn who_leaves_by_itself_is_succeeded_while_it_drains() {
    use std::io::{Read, Write};
    let port = free_port();
    let mut phalanx = Phalanx::run("leaver")
        .workers(1)
        .options(["--channel", "phalanx", "--mechanism", "handoff"])
        .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
    let leaver = pid_in(&phalanx.wait_listening(1), 0);
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    client.write_all(b"GET / HTTP/1.1\r\n").expect("it is read");
    phalanx.wait_status("it is taken", |now| now["ledger"]["taken"] == 1);
    kill(leaver, Signal::TERM).expect("told");
    phalanx.wait_status("there are two, and one is ready", |now| pids(now).len() == 2 && now["ready"] == 1);
    assert_eq!(page(port), "ok", "served by the successor");
    client.write_all(b"\r\n").expect("it is read");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    assert!(text.ends_with("ok\n"), "{text}");
    phalanx.wait_status("one is left", |now| pids(now).len() == 1 && u64::from(leaver) != pids(now)[0]);
    phalanx.finish();
}

#[test]
fn too_much_memory_too_many_connections() {
    let hungry =
        GOOD.replace("response.end(", "(global.held ||= []).push(Buffer.alloc(1 << 20, 1)); response.end(");
    let app = App::new(&hungry);
    let options = ["--max-rss", "200MiB", "--max-connections", "400"];
    let Some(mut phalanx) = app.run("limits", &options) else { return };
    let first = pids(&phalanx.wait_listening(2));
    let load = app.load();
    phalanx.wait_status("both are replaced", |status| {
        status["ready"] == 2 && pids(status).iter().all(|pid| !first.contains(pid))
    });
    load.stop().assert_all_served();
    phalanx.finish();
}

#[test]
fn a_workers_own_children_go_with_it() {
    // Of the first only; it takes no notice of SIGTERM.
    let script =
        "if [ $PHALANX_WORKER_ID = 1 ]; then trap '' TERM; sleep 10000 & echo child $!; fi; exec sleep 10000";
    let phalanx =
        Phalanx::run("children").workers(1).options(["--channel", "none"]).start(["sh", "-c", script]);
    let line = phalanx.wait_line("child ");
    let child: u32 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a pid");
    let child = ProcessId::of(child).expect("it lives");
    phalanx.tell("kill", no(&["0", "--force"]));
    wait_until("its child is gone", || !child.exists());
    phalanx.finish();
}

#[test]
fn a_delayed_stop_is_known_before_it_begins() {
    let app = App::new(GOOD);
    // Longer than any test: the second signal ends it.
    let Some(mut phalanx) = app.run("delay", &["--shutdown-delay", "1h"]) else { return };
    phalanx.wait_listening(2);
    phalanx.tell("ready", no(&[]));
    phalanx.signal(Signal::TERM);
    phalanx.wait_status("it says so", |status| status["stopping"] == true);
    assert_eq!(phalanx.ask("ready", no(&[])).status.code(), Some(1));
    Load::port(app.port).clients(4).connections(100).run().assert_all_served();
    phalanx.signal(Signal::TERM);
    phalanx.finish_with(143);
}

#[test]
fn whom_the_kernel_kills_for_lack_of_memory() {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/phalanx-{}", std::process::id()));
    if fs::create_dir(&group).is_err() || fs::write(group.join("memory.limit_in_bytes"), "100M").is_err() {
        return lab::skip("no control group of version 1 can be made here");
    }
    let eats = "console.log('hungry'); const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1));";
    let app = App::new(&format!("setTimeout(() => {{ {eats} }}, 100); setInterval(() => {{}}, 1000)"));
    let Some(node) = lab::node("22") else { return };
    // The primary's group is its own, and so its workers'.
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.display());
    let wrapper = app.path("phalanx");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\n{}\n",
            enter.replace("\"$@\"", &format!("{} \"$@\"", lab::binary("phalanx").display()))
        ),
    )
    .expect("written");
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let phalanx = Phalanx::run("oom")
        .program(&wrapper)
        .workers(1)
        .start([node.into_os_string(), app.path("app.js").into_os_string()]);
    phalanx.wait_line("out of memory");
    wait_until("it is remembered", || phalanx.tell("why", no(&["0"])).contains("out of memory"));
    let why = phalanx.tell("why", no(&["0"]));
    assert!(why.contains("--max-rss") && why.contains("hungry"), "{why}");
    phalanx.signal(Signal::TERM);
    phalanx.signal(Signal::TERM);
    phalanx.signal(Signal::TERM);
    phalanx.finish_with(143);
    let _ = fs::remove_dir(&group);
}

#[test]
fn orphans_do_as_they_were_told() {
    for orphans in ["exit", "drain"] {
        let port = free_port();
        let mut phalanx = Phalanx::run(&format!("orphans-{orphans}"))
            .workers(2)
            .options(["--channel", "phalanx", "--mechanism", "share", "--orphans", orphans])
            .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
        phalanx.wait_listening(2);
        // Asserts that nobody stays.
        drop(phalanx.kill_primary());
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "{orphans}: the port is free");
    }
}

#[test]
fn orphans_that_drain_get_the_stop_signal() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = "trap 'echo drained > drained; exit' USR2; trap 'echo wrong > drained; exit' TERM; echo up; \
                  while :; do sleep 0.02; done";
    let mut phalanx = Phalanx::run("orphans-signal")
        .workers(1)
        .options(["--channel", "none", "--orphans", "drain", "--stop-signal", "SIGUSR2"])
        .options([OsString::from("-C"), dir.path().into()])
        .start(["sh", "-c", script]);
    // After a reload as well.
    for reloads in 0..2 {
        if reloads == 1 {
            phalanx.tell("reload", no(&[]));
        }
        phalanx.wait_lines("each has its traps", |lines| {
            (lines.iter().filter(|line| line.text.ends_with("up")).count() > reloads).then_some(())
        });
    }
    phalanx.wait_status("the one before is gone", |now| pids(now).len() == 1);
    fs::remove_file(dir.path().join("drained")).expect("the one before was told so too");
    drop(phalanx.kill_primary());
    let said = fs::read_to_string(dir.path().join("drained")).expect("it was told");
    assert_eq!(said.trim(), "drained");
}

#[test]
fn orphans_that_serve_go_on() {
    let port = free_port();
    let mut phalanx = Phalanx::run("orphans-serve")
        .workers(2)
        .options(["--channel", "phalanx", "--mechanism", "share", "--orphans", "serve"])
        .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
    let status = phalanx.wait_listening(2);
    let orphans: Vec<u32> = (0..2).map(|slot| pid_in(&status, slot)).collect();
    phalanx.orphan();
    Load::port(port).clients(4).connections(200).run().assert_all_served();
    for orphan in orphans {
        let orphan_id = ProcessId::of(orphan).expect("it serves on");
        kill(orphan, Signal::TERM).expect("told");
        wait_until("it has drained", || !orphan_id.lives());
    }
}

/// Sends, and reads until what came satisfies.
fn exchange(port: u16, request: &[u8], enough: impl Fn(&[u8]) -> bool) -> (TcpStream, Vec<u8>) {
    use std::io::Write;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.write_all(request).expect("it is read");
    read_until(stream, enough)
}

fn read_until(mut stream: TcpStream, enough: impl Fn(&[u8]) -> bool) -> (TcpStream, Vec<u8>) {
    use std::io::Read;
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while !enough(&all) {
        let count = stream.read(&mut chunk).expect("an answer");
        assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&chunk[..count]);
    }
    (stream, all)
}

fn rest(mut stream: TcpStream) -> Vec<u8> {
    use std::io::Read;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an end, not a reset");
    all
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Whether a frame of this type is among them.
fn has_frame(mut bytes: &[u8], kind: u8) -> bool {
    while let [a, b, c, of, ..] = *bytes {
        if of == kind {
            return true;
        }
        let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        bytes = bytes.get(length..).unwrap_or_default();
    }
    false
}

#[test]
fn connections_of_every_kind_end_well() {
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n").into_bytes();
    for (example, has_streams) in [("drain", true), ("hyper", false)] {
        let port = free_port();
        let mut phalanx = Phalanx::run("ends")
            .workers(2)
            .env("PORT", port.to_string())
            .options(["--channel", "phalanx", "--drain-timeout", "1h"])
            .start([lab::binary(&format!("examples/{example}")).into_os_string()]);
        phalanx.wait_listening(2);
        let (kept, _) = exchange(port, &get("/", ""), |all| all.ends_with(b"hello\n"));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let (second, _) = exchange(port, preface, |all| has_frame(all, 4));
        // As clients do: no new stream after GOAWAY, and the end when none is left.
        let second = std::thread::spawn(move || drop(read_until(second, |all| has_frame(all, 7))));
        let streams = has_streams.then(|| {
            let (events, _) = exchange(port, &get("/events", ""), |all| contains(all, b"data: tick"));
            let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
            let (socket, _) = exchange(port, &get("/socket", upgrade), |all| all.ends_with(b"\r\n\r\n"));
            (events, socket)
        });
        // It would wait an hour for one that did not end.
        phalanx.tell("reload", no(&[]));
        assert!(rest(kept).is_empty(), "an idle connection just ends");
        second.join().expect("GOAWAY");
        if let Some((events, socket)) = streams {
            assert!(rest(events).ends_with(b"0\r\n\r\n"), "the last chunk");
            let close = rest(socket);
            let away = Some(&1001_u16.to_be_bytes()[..]);
            assert!(close.starts_with(&[0x88]) && close.get(2..4) == away, "{close:?}");
        }
        phalanx.finish();
    }
}
