//! What a worker may do to the group of sockets that it is part of: noticed, put right, and nothing is lost.

use phalanx_tests::lab;
use phalanx_tests::load::{Load, Running};
use phalanx_tests::process::{DEADLINE, Phalanx, Signal, free_port, kill, wait_until};
use phalanx_tests::steering::possible;
use serde_json::Value;
use std::ffi::OsString;

struct Stage {
    phalanx: Phalanx,
    port: u16,
    culprit: u32,
}

impl Stage {
    fn start(how: &str, options: &[&str]) -> Option<Stage> {
        let python = lab::uvicorn()?.with_file_name("python");
        if !possible() {
            return None;
        }
        let port = free_port();
        let command = [python.into_os_string(), lab::python().join("tamper.py").into_os_string()];
        let mut phalanx = Phalanx::run("tamper")
            .workers(2)
            .options(["--listen", &format!("127.0.0.1:{port}"), "--mechanism", "steer", "--channel", "none"])
            .options(options)
            .env("TAMPER", how)
            .start::<OsString>(command);
        let status = phalanx.wait_status("both serve", |status| status["ready"] == 2);
        let culprit =
            status["workers"][0]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
        Some(Stage { phalanx, port, culprit })
    }

    fn load(&self) -> Running {
        Load::port(self.port).clients(4).silence(DEADLINE).start()
    }

    fn tamper(&self) {
        let before = self.phalanx.line_count();
        kill(self.culprit, Signal::USR1).expect("a signal");
        self.phalanx.wait_line_after(before, "tampered");
    }

    fn steering(&self) -> Value {
        self.phalanx.status()["listeners"][0]["steering"].clone()
    }

    fn told(&self, event: &str) -> bool {
        let event = format!("\"event\":\"{event}\"");
        self.phalanx.tell("events", [] as [&str; 0]).lines().any(|line| line.contains(&event))
    }

    /// Everything is as if nothing had happened.
    fn ends_well(self, load: Running) {
        load.wait_served(load.served() + 100);
        load.stop().assert_all_served();
        wait_until("equal shares", || {
            let ledger = Load::port(self.port).silence(DEADLINE).connections(40).run();
            ledger.assert_all_served();
            ledger.workers.len() == 2 && ledger.workers.values().all(|count| *count == 20)
        });
        self.phalanx.finish();
    }
}

#[test]
fn the_program_taken_off_is_put_back() {
    let Some(stage) = Stage::start("detach", &[]) else { return };
    let load = stage.load();
    // Without the program the kernel gives to anybody, and some to where nobody accepts: that is how it shows.
    wait_until("it is noticed", || {
        stage.tamper();
        // Not again and again in the moments in which it is put back: what moves just then is reset.
        load.wait_served(load.served() + 1000);
        stage.steering()["tampered"] != 0
    });
    assert!(stage.told("tampered"));
    stage.ends_well(load);
}

#[test]
fn a_socket_that_is_shut_down_listens_again() {
    let Some(stage) = Stage::start("shutdown", &[]) else { return };
    let load = stage.load();
    load.wait_served(50);
    stage.tamper();
    wait_until("it is noticed", || stage.steering()["tampered"] != 0);
    assert!(stage.told("tampered"));
    stage.ends_well(load);
}

#[test]
fn a_stranger_in_the_group_gets_nothing_and_is_noticed() {
    let Some(stage) = Stage::start("stranger", &[]) else { return };
    let load = stage.load();
    load.wait_served(50);
    stage.tamper();
    wait_until("it is noticed", || stage.steering()["strangers"] == 1);
    assert!(stage.told("strangers"));
    load.wait_served(load.served() + 100);
    stage.tamper();
    wait_until("it is gone", || stage.steering()["strangers"] == 0);
    stage.ends_well(load);
}

#[test]
fn who_closes_its_socket_and_lives_on_is_replaced() {
    let Some(mut stage) = Stage::start("close", &["--hang-timeout", "300ms"]) else { return };
    let load = stage.load();
    load.wait_served(50);
    stage.tamper();
    let culprit = stage.culprit;
    stage.phalanx.wait_status("it is replaced", |status| {
        status["ready"] == 2
            && status["workers"].as_array().is_some_and(|all| all.iter().all(|it| it["pid"] != culprit))
    });
    assert!(stage.told("hung"));
    stage.ends_well(load);
}
