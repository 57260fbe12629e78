//! A worker of the library whose runtime stands still is noticed, though it owes nobody a connection.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, free_port, wait_until};
use serde_json::Value;

struct Stage {
    phalanx: Phalanx,
    port: u16,
    block: tempfile::NamedTempFile,
}

impl Stage {
    fn start(name: &str, options: &[&str]) -> Stage {
        let port = free_port();
        let block = tempfile::NamedTempFile::new().expect("a file");
        let mut phalanx = Phalanx::run(name)
            .workers(2)
            .env("BLOCK", block.path())
            .options(["--channel", "phalanx", "--hang-timeout", "1s", "--term-timeout", "1s"])
            .options(options)
            .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
        phalanx.wait_listening(2);
        Stage { phalanx, port, block }
    }

    /// Whoever gets this connection answers it, and then its only thread blocks. Its slot.
    fn block_one(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nX-Block: 1\r\n\r\n").expect("it is read");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text.lines().find_map(|line| line.strip_prefix("x-worker: ")).expect("a slot").trim().to_owned()
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let text = self.phalanx.tell("events", Vec::<String>::new());
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        events.filter(|event| event["event"] == name).collect()
    }
}

#[test]
fn who_runs_no_task_is_replaced_though_it_owes_nothing() {
    for mechanism in ["handoff", "share", "steer"] {
        let mut stage = Stage::start(&format!("silent-{mechanism}"), &["--mechanism", mechanism]);
        let slot = stage.block_one();
        wait_until("it is noticed", || !stage.events("hung").is_empty());
        let hung = stage.events("hung");
        assert_eq!(hung[0]["how"]["how"], "silent", "{mechanism}: {hung:?}");
        let worker = hung[0]["worker"].clone();
        stage.phalanx.wait_status("it is replaced", |now| {
            now["ready"] == 2
                && now["workers"]
                    .as_array()
                    .is_some_and(|all| all.len() == 2 && all.iter().all(|it| it["id"] != worker))
        });
        let why = stage.phalanx.tell("why", [&slot]);
        assert!(why.contains("it hung: its runtime stands still"), "{mechanism}: {why}");
        stage.phalanx.wait_line("worker hangs");
        // What its threads were doing.
        assert!(hung[0]["seen"].as_array().is_some_and(|seen| !seen.is_empty()), "{mechanism}: {hung:?}");
        Load::port(stage.port).clients(2).connections(20).run().assert_all_served();
        assert_eq!(stage.events("hung").len(), 1, "{mechanism}: the others are well");
        stage.phalanx.finish();
    }
}

#[test]
fn who_runs_again_is_said_to() {
    let mut stage = Stage::start("silent-report", &["--mechanism", "handoff", "--on-hang", "report"]);
    let slot = stage.block_one();
    stage.phalanx.wait_status("it is noticed", |now| {
        let workers = now["workers"].as_array().into_iter().flatten();
        workers.filter(|it| it["hung"]["how"] == "silent").count() == 1
    });
    assert!(stage.phalanx.tell("why", [&slot]).contains("it hangs: its runtime stands still"));
    // It gets nothing meanwhile.
    Load::port(stage.port).clients(2).connections(20).run().assert_all_served();
    fs::remove_file(stage.block.path()).expect("removed");
    stage.phalanx.wait_status("it is well", |now| {
        now["workers"].as_array().is_some_and(|all| all.iter().all(|it| it["hung"].is_null()))
    });
    assert_eq!(stage.events("moves-again").len(), 1);
    stage.phalanx.finish();
}
