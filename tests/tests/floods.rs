//! People who do not mean well: half-open floods, scans; and SYN cookies, which the kernel answers floods with.

use phalanx_tests::budget::{Kind, Mechanism, cells};
use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::network::{Flags, Flood, alone, counter, half_open, scan};
use phalanx_tests::process::{Phalanx, free_port, wait_until};

/// Each mechanism with the service on the library, in a network of its own.
fn each(settings: &[(&str, &str)], check: impl Fn(Mechanism, u16, &mut Phalanx) + Sync) {
    for (mechanism, kind) in cells() {
        if kind != Kind::Rust {
            continue;
        }
        let inside = || {
            let port = free_port();
            let mut phalanx = Phalanx::run("floods")
                .workers(4)
                .env("HOST", "0.0.0.0")
                .options(["--channel", "phalanx", "--mechanism", mechanism.name()])
                // Who waits long for a processor is passed over, and that is no matter of floods.
                .options(["--lag-after", "60s"])
                .start([lab::binary("service").into_os_string(), "async".into(), port.to_string().into()]);
            phalanx.wait_listening(4);
            check(mechanism, port, &mut phalanx);
            // Nobody was mistaken for one who hangs.
            let status = phalanx.status();
            for worker in status["workers"].as_array().expect("workers") {
                assert!(worker["restarts"] == 0 && worker["hung"].is_null(), "{mechanism:?}: {status}");
            }
            phalanx.finish();
        };
        if alone(settings, inside).is_none() {
            return;
        }
    }
}

const COUNT: u64 = 800;

/// All served, and where a policy chooses, in equal shares.
fn served_evenly(mechanism: Mechanism, port: u16) {
    let ledger = Load::port(port).connections(COUNT).run();
    ledger.assert_all_served();
    if mechanism != Mechanism::Share {
        ledger.assert_equal_shares(4);
    }
}

/// The same among strangers. The kernel chooses when a connection begins, so those that never finish take
/// their turns too: where the turn stands for one of ours is chance, and so the shares are those of fair dice.
fn served_evenly_among_strangers(mechanism: Mechanism, port: u16) {
    if mechanism != Mechanism::Steer {
        return served_evenly(mechanism, port);
    }
    let ledger = Load::port(port).connections(COUNT).run();
    ledger.assert_all_served();
    // Five times what chance deviates by: once in a million runs.
    let deviation = 5 * (COUNT * 3 / 16).isqrt();
    for (worker, count) in &ledger.workers {
        assert!(count.abs_diff(COUNT / 4) <= deviation, "{worker} has {count}\n{ledger}");
    }
}

#[test]
fn forced_syn_cookies_change_nothing() {
    each(&[("ipv4/tcp_syncookies", "2")], |mechanism, port, _| {
        served_evenly(mechanism, port);
        assert!(counter("SyncookiesRecv") >= COUNT);
    });
}

#[test]
fn half_open_floods_change_nothing() {
    for cookies in ["1", "2"] {
        each(&[("ipv4/tcp_syncookies", cookies)], |mechanism, port, _| {
            let flood = Flood::start(port);
            wait_until("a flood", || flood.sent() > 5000);
            served_evenly_among_strangers(mechanism, port);
            match cookies {
                "1" => assert!(half_open() > 100),
                _ => assert!(counter("SyncookiesSent") > 5000),
            }
        });
    }
}

#[test]
fn scans_change_nothing() {
    each(&[], |mechanism, port, phalanx| {
        for _ in 0..50 {
            scan(port).expect("a scan");
            Load::port(port).connections(4).run().assert_all_served();
        }
        if mechanism == Mechanism::Steer {
            // What a scan sends that makes no sense, and what takes back what did.
            let status = phalanx.status();
            let odd = status["listeners"][0]["steering"]["odd"].as_u64();
            assert!(odd >= Some(50 * Flags::SENSELESS.len() as u64), "{status}");
        }
    });
}
