//! Hand-off: every connection is accounted for, whatever dies.

use phalanx_tests::lab;
use phalanx_tests::load::{Ledger, Load};
use phalanx_tests::process::{Phalanx, Signal, children, fd_count, free_port, kill, rss_kib, wait_answer};
use serde_json::Value;

/// Node workers under phalanx, on a port; `None` where there is no Node.
fn node(name: &str, version: &str, workers: usize, port: u16) -> Option<Phalanx> {
    let node = lab::node(version)?;
    let phalanx = Phalanx::run(name)
        .workers(workers)
        .env("PORT", port.to_string())
        .options(["--channel", "node", "--mechanism", "handoff"])
        .start([node.into_os_string(), lab::fixture("http.js").into_os_string()]);
    Some(phalanx)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn listening(status: &Value, workers: usize) -> bool {
    let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
    all.len() == workers && all.iter().all(|worker| worker["state"] == "listening")
}

/// accepted = pending + in flight + taken + closed, and what is closed by why.
fn assert_ledger(status: &Value) {
    let ledger = &status["ledger"];
    let closed: u64 = ledger["closed"].as_object().expect("closed").values().map(number).sum();
    assert_eq!(
        number(&ledger["accepted"]),
        number(&ledger["pending"]) + number(&ledger["in_flight"]) + number(&ledger["taken"]) + closed,
        "{ledger}"
    );
}

fn assert_only_taken_failed(ledger: &Ledger, status: &Value) {
    ledger.assert_balanced();
    assert_eq!((ledger.hung, ledger.refused), (0, 0), "{ledger}");
    // What the primary says was taken is what was served, and what failed: no other place for a connection.
    let taken = number(&status["ledger"]["taken"]) + number(&status["ledger"]["closed"]["touched"]);
    assert_eq!(taken, ledger.served + ledger.failed(), "{ledger}\n{status}");
}

#[test]
fn every_node_serves_unmodified() {
    for version in lab::NODE_VERSIONS {
        let port = free_port();
        let Some(mut phalanx) = node("versions", version, 2, port) else { continue };
        phalanx.wait_status("two workers listen", |status| listening(status, 2));
        Load::port(port).clients(4).connections(200).run().assert_all_served();
        assert_ledger(&phalanx.status());
        phalanx.finish();
    }
}

#[test]
fn sequential_connections_are_shared_out_exactly() {
    let port = free_port();
    let Some(mut phalanx) = node("equal", "20", 4, port) else { return };
    phalanx.wait_status("four workers listen", |status| listening(status, 4));
    let ledger = Load::port(port).clients(1).connections(4 * 1000).run();
    ledger.assert_all_served();
    ledger.assert_equal_shares(4);
    phalanx.finish();
}

#[test]
fn killed_workers_take_only_what_they_had_taken() {
    let port = free_port();
    let Some(mut phalanx) = node("kills", "20", 4, port) else { return };
    phalanx.wait_status("four workers listen", |status| listening(status, 4));
    let load = Load::port(port).clients(32).start();
    for n in 1..=10 {
        load.wait_served(n * 200);
        let status = phalanx.wait_status("four workers listen", |status| listening(status, 4));
        let victim = number(&status["workers"][usize::try_from(n).unwrap() % 4]["pid"]);
        kill(u32::try_from(victim).unwrap(), Signal::KILL).expect("kill");
        phalanx.wait_status("it was noticed", |status| {
            status["workers"]
                .as_array()
                .is_some_and(|all| all.iter().all(|worker| number(&worker["pid"]) != victim))
        });
    }
    let ledger = load.stop();
    let status = phalanx.wait_status("nothing is under way", |status| {
        number(&status["ledger"]["pending"]) + number(&status["ledger"]["in_flight"]) == 0
    });
    assert_ledger(&status);
    assert_only_taken_failed(&ledger, &status);
    phalanx.finish();
}

#[test]
fn the_port_stays_while_all_workers_are_dead() {
    let port = free_port();
    let Some(mut phalanx) = node("all", "20", 3, port) else { return };
    phalanx.wait_status("three workers listen", |status| listening(status, 3));
    let pid = phalanx.pid();
    let load = Load::port(port).clients(16).start();
    load.wait_served(200);
    let before = phalanx.status();
    for worker in before["workers"].as_array().expect("workers") {
        kill(u32::try_from(number(&worker["pid"])).unwrap(), Signal::KILL).expect("kill");
    }
    let served = load.served();
    load.wait_served(served + 500);
    let ledger = load.stop();
    let status = phalanx.wait_status("all is quiet", |status| {
        listening(status, 3)
            && number(&status["ledger"]["pending"]) + number(&status["ledger"]["in_flight"]) == 0
    });
    assert_ledger(&status);
    assert_only_taken_failed(&ledger, &status);
    let idle = fd_count(pid);
    wait_answer(port);
    phalanx.wait_status("all is quiet again", |status| number(&status["ledger"]["in_flight"]) == 0);
    assert_eq!(fd_count(pid), idle, "a connection that was served is not held");
    phalanx.finish();
}

/// 100 000 connections with random deaths in the second tier, a twentieth of it in the first.
#[test]
fn many_deaths_leave_nothing_behind() {
    // Few deaths a slot: each later one waits twice as long for its successor.
    let (rounds, deaths) = if lab::long() { (200, 20) } else { (10, 5) };
    let port = free_port();
    let mut phalanx = Phalanx::run("flat").workers(3).options(["--channel", "phalanx"]).start([
        lab::raw_worker().into_os_string(),
        "--port".into(),
        port.to_string().into(),
    ]);
    phalanx.wait_status("three workers listen", |status| listening(status, 3));
    let pid = phalanx.pid();
    Load::port(port).clients(16).connections(500).run().assert_all_served();
    phalanx.wait_status("all is quiet", |status| number(&status["ledger"]["in_flight"]) == 0);
    let (fds, memory) = (fd_count(pid), rss_kib(pid).expect("it runs"));
    for round in 0..rounds {
        let load = Load::port(port).clients(16).connections(500).start();
        load.wait_served(50);
        let mut victim = None;
        if round % (rounds / deaths) == 0 {
            let status = phalanx.wait_status("three workers listen", |status| listening(status, 3));
            let pid = number(&status["workers"][round / (rounds / deaths) % 3]["pid"]);
            kill(u32::try_from(pid).unwrap(), Signal::KILL).expect("kill");
            victim = Some(pid);
        }
        let ledger = load.finish();
        ledger.assert_balanced();
        assert_eq!((ledger.hung, ledger.refused), (0, 0), "round {round}: {ledger}");
        if let Some(victim) = victim {
            phalanx.wait_status("it was noticed", |status| {
                status["workers"]
                    .as_array()
                    .is_some_and(|all| all.iter().all(|worker| number(&worker["pid"]) != victim))
            });
        }
    }
    let status = phalanx.wait_status("three workers listen, nothing is under way", |status| {
        listening(status, 3)
            && number(&status["ledger"]["pending"]) + number(&status["ledger"]["in_flight"]) == 0
    });
    assert_ledger(&status);
    assert_eq!(fd_count(pid), fds, "descriptors");
    assert_eq!(children(pid).len(), 3, "children");
    let grown = rss_kib(pid).expect("it runs").saturating_sub(memory);
    assert!(grown < 4096, "memory grew by {grown} KiB");
    phalanx.finish();
}
