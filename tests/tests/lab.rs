//! The laboratory against programs that are known to work: what it says about
//! phalanx is worth something only if it is right about them.

use std::process::Command;

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{
    Phalanx, Process, Signal, StreamOf, fd_count, free_port, rss_kib, wait_answer, wait_until,
};
use serde_json::Value;

/// A real Node primary with workers of ours, on a port.
fn primary(node: &str, policy: &str, workers: usize, port: u16, mode: &[&str]) -> Option<Process> {
    let mut command = lab::node_command(node, "primary.js")?;
    command.args(["--policy", policy, "--workers", &workers.to_string(), "--"]).arg(lab::raw_worker());
    command.args(["lab", "--port", &port.to_string()]).args(mode);
    Some(Process::start(&mut command))
}

fn events(process: &Process, name: &str) -> Vec<Value> {
    let lines = process.lines();
    let out = lines.iter().filter(|it| it.stream == StreamOf::Out);
    out.filter_map(|it| serde_json::from_str::<Value>(&it.text).ok())
        .filter(|it| it["event"] == name)
        .collect()
}

#[test]
fn raw_workers_serve_under_every_node() {
    for node in lab::NODE_VERSIONS {
        for policy in ["rr", "none"] {
            let port = free_port();
            let Some(mut process) = primary(node, policy, 2, port, &[]) else { continue };
            process.wait_events("listening", 2);
            Load::port(port).clients(4).connections(100).run().assert_all_served();
            process.say("disconnect");
            assert_eq!(process.wait().code(), Some(0), "v{node} {policy}");
            let exits = events(&process, "exit");
            assert!(
                exits.iter().all(|it| it["code"] == 0 && it["exitedAfterDisconnect"] == true),
                "{exits:?}"
            );
        }
    }
}

#[test]
fn raw_workers_die_where_they_are_told() {
    for (mode, code, signal) in [
        ("exit-before-online", 3, None),
        ("exit-after-online", 3, None),
        ("query-then-exit", 3, None),
        ("exit-listening", 3, None),
    ] {
        let Some(mut process) = primary(lab::NODE, "rr", 1, free_port(), &["--mode", mode]) else { return };
        process.wait_events("exit", 1);
        let exit = &events(&process, "exit")[0];
        assert_eq!((exit["code"].as_i64(), exit["signal"].as_str()), (Some(code), signal), "{mode}");
        assert_eq!(events(&process, "online").is_empty(), mode == "exit-before-online", "{mode}");
        process.say("disconnect");
        assert_eq!(process.wait().code(), Some(0));
    }
    for mode in ["recv-then-die", "read4-then-die", "ack-then-die", "accept-then-die", "accept4-then-die"] {
        let port = free_port();
        let Some(process) = primary(lab::NODE, "rr", 1, port, &["--mode", mode, "--after", "5"]) else {
            return;
        };
        process.wait_events("listening", 1);
        Load::port(port).connections(5).run().assert_all_served();
        let load = Load::port(port).connections(1).start();
        process.wait_events("exit", 1);
        assert_eq!(events(&process, "exit")[0]["signal"], "SIGKILL", "{mode}");
        drop(process);
        let ledger = load.finish();
        ledger.assert_balanced();
        assert_eq!(ledger.served, 0, "{mode}\n{ledger}");
    }
}

#[test]
fn only_the_first_one_misbehaves() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let marker = marker.to_str().unwrap();
    let port = free_port();
    let mode = ["--mode", "accept-then-die", "--first-only", marker];
    let Some(mut process) = primary(lab::NODE, "rr", 1, port, &mode) else { return };
    process.wait_events("listening", 1);
    let ledger = Load::port(port).connections(1).run();
    assert_eq!(ledger.failed(), 1);
    process.wait_events("exit", 1);
    process.say("fork");
    process.wait_events("listening", 2);
    Load::port(port).connections(10).run().assert_all_served();
}

#[test]
fn the_ledger_sees_resets_closes_and_silence() {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut held = Vec::new();
        for n in 0..8 {
            let (mut stream, _) = listener.accept().unwrap();
            match n % 4 {
                // Unread data: a reset.
                0 => {
                    stream.peek(&mut [0; 1]).unwrap();
                }
                // All read, half a reply: closed.
                1 => {
                    let got = stream.read(&mut [0; 4096]).unwrap();
                    assert!(got > 20);
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
                }
                // Silence.
                2 => held.push(stream),
                _ => {
                    let got = stream.read(&mut [0; 4096]).unwrap();
                    assert!(got > 20);
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nx-worker: me\r\nContent-Length: 2\r\n\r\nok")
                        .unwrap();
                }
            }
        }
        held
    });
    let silence = std::time::Duration::from_secs(1);
    let ledger = Load::port(port).connections(8).silence(silence).run();
    ledger.assert_balanced();
    assert_eq!((ledger.reset, ledger.closed, ledger.hung, ledger.served), (2, 2, 2, 2), "{ledger}");
    assert_eq!(ledger.workers["me"], 2);
    drop(server.join().unwrap());
    let ledger = Load::port(port).connections(3).run();
    ledger.assert_balanced();
    assert_eq!(ledger.refused, 3, "{ledger}");
}

#[test]
fn a_running_load_can_be_acted_upon() {
    let port = free_port();
    let Some(mut command) = lab::node_command(lab::NODE, "http.js") else { return };
    let server = Process::start(command.env("PORT", port.to_string()));
    server.wait_line("listening");
    let load = Load::port(port).clients(4).sources(4).start();
    load.wait_served(100);
    server.signal(Signal::STOP);
    let before = load.so_far();
    server.signal(Signal::CONT);
    load.wait_served(before.served + 100);
    let ledger = load.stop();
    ledger.assert_all_served();
    assert_eq!(ledger.sources.len(), 4, "{ledger}");
    assert!(fd_count(server.pid()).unwrap() > 3);
    assert!(rss_kib(server.pid()).unwrap() > 1000);
    // Open loop, and keep-alive.
    let ledger = Load::port(port).rate(200.0).connections(100).requests_per_connection(5).run();
    ledger.assert_all_served();
    assert_eq!((ledger.connections, ledger.replies), (100, 500), "{ledger}");
}

#[test]
fn unix_sockets_are_loaded_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let Some(mut command) = lab::node_command("0.12", "http.js") else { return };
    let server = Process::start(command.env("PORT", &path));
    server.wait_line("listening");
    Load::unix(&path).clients(8).connections(200).run().assert_all_served();
}

#[test]
fn express_and_uvicorn_and_socket_io_work_alone() {
    let port = free_port();
    let Some(mut command) = lab::node_command(lab::NODE, "express.js") else { return };
    let server = Process::start(command.env("PORT", port.to_string()));
    server.wait_line("listening");
    Load::port(port).clients(4).connections(100).run().assert_all_served();
    Load::port(port).path("/json").requests_per_connection(10).connections(10).run().assert_all_served();
    drop(server);

    let port = free_port();
    let Some(mut command) = lab::node_command("22", "socketio.js") else { return };
    let server = Process::start(command.env("PORT", port.to_string()));
    server.wait_line("listening");
    let mut clients = lab::node_command("22", "socketio-clients.js").unwrap();
    let mut clients = Process::start(clients.arg(format!("http://127.0.0.1:{port}")));
    let line = clients.wait_line("\"ok\"");
    let told: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&told["ok"], &told["failed"]), (&Value::from(40), &Value::from(0)), "{line}");
    assert_eq!(clients.wait().code(), Some(0));
    drop(server);

    let port = free_port();
    let Some(uvicorn) = lab::uvicorn() else { return };
    let mut command = Command::new(uvicorn);
    command.arg("--app-dir").arg(lab::python()).args(["app:app", "--port", &port.to_string()]);
    let server = Process::start(&mut command);
    wait_answer(port);
    Load::port(port).clients(4).connections(100).run().assert_all_served();
    let pid = server.pid().to_string();
    assert_eq!(Load::port(port).connections(1).run().workers.keys().collect::<Vec<_>>(), [&pid]);
}

#[test]
fn a_hostile_channel_is_spoken_to_the_end() {
    // What these do to a Node primary is known, and is why they are here.
    for mode in ["garbage", "surplus-ack", "deep-nesting", "dup-query", "wrong-fd"] {
        let Some(mut process) = primary(lab::NODE, "rr", 1, free_port(), &["--mode", mode]) else { return };
        assert_ne!(process.wait().code(), Some(0), "{mode} should end a Node primary");
    }
    for mode in ["close-channel", "shutdown-write"] {
        let Some(process) = primary(lab::NODE, "rr", 1, free_port(), &["--mode", mode]) else { return };
        process.wait_events("disconnect", 1);
        assert!(events(&process, "exit").is_empty(), "{mode} should stay");
    }
    for mode in ["wild-acks", "bad-utf8", "fd-bomb"] {
        let Some(mut process) = primary(lab::NODE, "rr", 1, free_port(), &["--mode", mode]) else { return };
        process.wait_events("listening", 1);
        match mode {
            "bad-utf8" => drop(process.wait_events("message", 1)),
            "fd-bomb" => wait_until("hundreds of descriptors", || fd_count(process.pid()) > Some(200)),
            _ => {}
        }
        process.say("disconnect");
        assert_eq!(process.wait().code(), Some(0), "{mode}");
    }
}

#[test]
fn the_bare_loop_in_c_serves() {
    let program = lab::dir().join("baseline");
    if !program.is_file() {
        return lab::skip("the loop in C is not compiled (tests/setup does it)");
    }
    let mut process = Process::start(Command::new(program).args(["0", "4", "100"]));
    let line = process.wait_line("listening");
    let port = line.rsplit(' ').next().unwrap().parse().unwrap();
    Load::port(port).connections(100).run().assert_equal_shares(4);
    assert_eq!(process.wait().code(), Some(0));
    process.wait_line("\"connections\":100,");
}

/// A `phalanx` of a few lines, to see whether the harness sees what it should.
/// It looks up often, as a signal just before a `read` does not interrupt it.
fn pretend(script: &str) -> (tempfile::TempDir, Phalanx) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("phalanx");
    let text = format!(
        "#!/bin/bash\n[ $1 = status ] && {{ echo '{{\"name\":\"'$3'\",\"workers\":2}}'; exit; }}\n\
         stop() {{ exit 0; }}\ntrap 'stop' TERM\n{script}\necho ready\nwhile :; do read -t 0.1 x; done\n"
    );
    // Written by another process: a file that this one has open for writing, or a
    // child that another thread has just forked, cannot be run.
    std::fs::write(dir.path().join("text"), text).unwrap();
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(dir.path().join("text")).arg(&path);
    assert!(install.status().unwrap().success());
    let phalanx = Phalanx::run("pretended").program(&path).workers(2).start(["true"]);
    phalanx.wait_line("ready");
    (dir, phalanx)
}

#[test]
fn a_good_ending_is_seen_as_one() {
    let (_dir, mut phalanx) = pretend("sleep 600 & child=$!; stop() { kill $child; wait $child; exit 0; }");
    let status = phalanx.wait_status("two workers", |it| it["workers"] == 2);
    assert_eq!(status["name"], "pretended");
    assert_eq!(phalanx.workers().len(), 1);
    phalanx.finish();

    let (_dir, mut phalanx) = pretend("echo ERROR as announced >&2");
    phalanx.announce("as announced");
    phalanx.finish();

    let (_dir, phalanx) = pretend("stop() { exit 4; }");
    phalanx.signal(Signal::TERM);
    phalanx.finish_with(4);
}

#[test]
fn a_bad_ending_is_seen_as_one() {
    for (script, complaint) in [
        ("sleep 600 &", "left behind"),
        ("stop() { exit 1; }", "ended with"),
        ("echo 'ERROR out of the blue' >&2", "unannounced errors"),
        (
            "python3 -c 'import os, socket; socket.socket(socket.AF_UNIX).bind(os.environ[\"XDG_RUNTIME_DIR\"] + \"/s\")'",
            "socket files left",
        ),
    ] {
        let (_dir, phalanx) = pretend(script);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| phalanx.finish()));
        let panic = panic.expect_err(script);
        let text = panic.downcast_ref::<String>().expect("a sentence");
        assert!(text.starts_with(complaint), "{script}: {text}");
    }
}
