//! The program: what it serves, what it says, how it ends.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, Process, Signal, free_port, wait_answer, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn phalanx(arguments: &[&str]) -> Output {
    let dir = std::env::temp_dir().join(format!("phalanx-usage-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    Command::new(lab::binary("phalanx"))
        .args(arguments)
        .env("XDG_RUNTIME_DIR", &dir)
        .output()
        .expect("phalanx runs")
}

/// A mistake costs one sentence and a documented code.
fn assert_refused(arguments: &[&str], code: i32, words: &str) {
    let output = phalanx(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(words), "{arguments:?}: {said}");
}

#[test]
fn mistakes_are_explained() {
    assert_refused(&["run", "--", "no-such-program-anywhere"], 2, "no such program");
    assert_refused(&["run", "--", "/etc/passwd"], 2, "not executable");
    assert_refused(&["run", "-w", "0", "--", "true"], 2, "at least 1");
    assert_refused(&["run", "-w", "many", "--", "true"], 2, "number");
    assert_refused(&["run", "--", "npm", "start"], 2, "`npm`");
    assert_refused(&["run", "-l", "nonsense", "--", "true"], 2, "no address");
    assert_refused(&["run", "--mechanism", "handoff", "--channel", "none", "--", "true"], 2, "channel");
    assert_refused(&["run", "-e", "novalue", "--", "true"], 2, "NAME=VALUE");
    assert_refused(&["run", "--log", "phalanx=loud", "--", "true"], 2, "--log");
    assert_refused(&["run", "-u", "no-such-user", "--", "true"], 2, "no user");
    assert_refused(&["run", "--env-file", "/nowhere", "--", "true"], 2, "cannot be read");
    assert_refused(&["run", "--env-file", "/etc/passwd", "--", "true"], 2, "line 1");
    assert_refused(&["status", "-n", "nobody"], 5, "nobody");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    assert_refused(&["run", "-l", &address, "--channel", "none", "--", "sleep", "600"], 3, "in use");
}

#[test]
fn who_may_not_become_another_is_told_so() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let program = dir.path().join("phalanx");
    fs::copy(lab::binary("phalanx"), &program).expect("a copy that everybody may run");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        if !Command::new("setpriv").arg("--version").output().is_ok_and(|it| it.status.success()) {
            lab::skip("setpriv is not installed");
            return;
        }
        command
    } else {
        Command::new(&program)
    };
    let output = command.args(["run", "-u", "root", "--", "true"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("cannot run workers as `root`") && said.contains("CAP_SETUID"), "{said}");
}

#[test]
fn express_runs_unmodified() {
    let Some(node) = lab::node("20") else { return };
    let port = free_port();
    let mut phalanx = Phalanx::run("express")
        .workers(4)
        .env("PORT", port.to_string())
        .start([node.into_os_string(), lab::fixture("express.js").into_os_string()]);
    phalanx.wait_status("it listens", |status| {
        status["workers"]
            .as_array()
            .is_some_and(|all| all.iter().all(|worker| worker["state"] == "listening"))
    });
    let ledger = Load::port(port).clients(8).connections(400).run();
    ledger.assert_all_served();
    assert_eq!(ledger.workers.len(), 4, "{ledger}");
    phalanx.finish();
}

#[test]
fn code_on_the_command_line_is_served_by_every_node() {
    const CODE: &str = "require('http').createServer(function (q, s) { s.end(); }).listen(process.env.PORT)";
    // v0.12 evaluates nothing in a worker.
    for version in lab::NODE_VERSIONS.iter().filter(|version| **version != "0.12") {
        let Some(node) = lab::node(version) else { continue };
        let port = free_port();
        let mut phalanx = Phalanx::run("eval")
            .workers(2)
            .env("PORT", port.to_string())
            .options(["--channel", "node"])
            .start([node.into_os_string(), "-e".into(), CODE.into()]);
        phalanx.wait_listening(2);
        wait_answer(port);
        phalanx.finish();
    }
}

#[test]
fn socket_io_runs_unmodified_when_sticky() {
    let Some(node) = lab::node("20") else { return };
    let port = free_port();
    let mut phalanx = Phalanx::run("socketio")
        .workers(4)
        .options(["-p", "sticky"])
        .env("PORT", port.to_string())
        .start([node.clone().into_os_string(), lab::fixture("socketio.js").into_os_string()]);
    phalanx.wait_status("it listens", |status| {
        status["workers"]
            .as_array()
            .is_some_and(|all| all.iter().all(|worker| worker["state"] == "listening"))
    });
    let mut clients = lab::node_command("20", "socketio-clients.js").expect("node");
    let output = clients.arg(format!("http://127.0.0.1:{port}")).arg("40").output().expect("clients run");
    let said = String::from_utf8_lossy(&output.stdout);
    let told: Value = serde_json::from_str(said.trim()).expect("one line of JSON");
    assert_eq!((&told["ok"], &told["failed"]), (&40.into(), &0.into()), "{told}");
    phalanx.finish();
}

#[test]
fn variables_come_from_files_and_options() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(".env");
    fs::write(&file, "A=file\nB='from a file' # so\nexport C=3\n").expect("written");
    let phalanx = Phalanx::run("env-file")
        .workers(1)
        .options(["--env-file".as_ref(), file.as_os_str(), "-e".as_ref(), "A=option".as_ref()])
        .start(["sh", "-c", "echo $A, $B, $C, $PHALANX_CLUSTER; exec sleep 600"]);
    phalanx.wait_line("option, from a file, 3, env-file");
    phalanx.finish();
}

#[test]
fn a_plain_program_gets_its_socket() {
    let Some(uvicorn) = lab::uvicorn() else { return };
    let port = free_port();
    let phalanx = Phalanx::run("uvicorn").workers(2).options(["-l", &format!("127.0.0.1:{port}")]).start([
        uvicorn.into_os_string(),
        "--app-dir".into(),
        lab::root().join("tests/python").into_os_string(),
        "app:app".into(),
        "--fd".into(),
        "3".into(),
    ]);
    wait_answer(port);
    Load::port(port).clients(8).connections(200).run().assert_all_served();
    assert_eq!(phalanx.status()["listeners"][0]["mechanism"], "steer");
    phalanx.finish();
}

#[test]
fn stop_ends_everything() {
    let Some(node) = lab::node("20") else { return };
    let port = free_port();
    let mut phalanx = Phalanx::run("stop")
        .workers(2)
        .env("PORT", port.to_string())
        .start([node.into_os_string(), lab::fixture("http.js").into_os_string()]);
    wait_answer(port);
    phalanx.tell("stop", [] as [&str; 0]);
    assert_eq!(phalanx.wait().code(), Some(0));
    phalanx.finish();
}

#[test]
fn the_recent_events_can_be_read_from_the_first_on() {
    let phalanx = Phalanx::run("events").workers(1).options(["-l", "127.0.0.1:0"]).start(["sleep", "600"]);
    // The log has the first ones, too.
    phalanx.wait_line("worker started");
    phalanx.wait_line("\"listener\":\"default\"");
    let mut follower = Process::start(&mut phalanx.command("events", ["-f"]));
    follower.wait_line("\"event\":\"fork\"");
    let told = phalanx.tell("events", [] as [&str; 0]);
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names[..2], ["bound", "fork"], "{told}");
    assert!(events.iter().all(|event| event["time_ms"].as_u64() > Some(1_600_000_000_000)), "{told}");
    phalanx.finish();
    follower.wait_line("\"event\":\"exit\"");
    assert_eq!(follower.wait().code(), Some(0));
}

#[test]
fn each_node_worker_has_a_debugger_of_its_own() {
    let Some(node) = lab::node("22") else { return };
    for option in ["--inspect", "--inspect-on-signal"] {
        let base = free_port();
        let mut phalanx = Phalanx::run("inspect")
            .workers(2)
            .env("PORT", free_port().to_string())
            .options([format!("{option}={base}")])
            .start([node.clone(), lab::fixture("http.js")]);
        phalanx.wait_listening(2);
        let ports: Vec<u16> = phalanx
            .workers()
            .iter()
            .map(|worker| {
                let env = fs::read(format!("/proc/{}/environ", worker.pid)).expect("its environment");
                let env = String::from_utf8_lossy(&env).into_owned();
                let port = env.split('\0').find_map(|it| it.strip_prefix("PHALANX_INSPECT_PORT="));
                port.expect("a port").parse().expect("a number")
            })
            .collect();
        assert_ne!(ports[0], ports[1]);
        let open = |port: u16| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        if option != "--inspect" {
            assert!(!ports.iter().any(|port| open(*port)), "not yet");
            phalanx.signal(Signal::USR1);
        }
        wait_until("each listens on its own", || ports.iter().all(|port| open(*port)));
        phalanx.finish();
    }
}

#[test]
fn a_terminal_s_interrupt_stops_gracefully() {
    let Some(node) = lab::node("20") else { return };
    let port = free_port();
    let mut phalanx = Phalanx::run("interrupt")
        .workers(2)
        .env("PORT", port.to_string())
        .start([node.into_os_string(), lab::fixture("http.js").into_os_string()]);
    wait_answer(port);
    phalanx.signal(Signal::INT);
    assert_eq!(phalanx.wait().code(), Some(130));
    phalanx.finish_with(130);
}
