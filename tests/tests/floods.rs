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

/// All served among strangers. The kernel chooses when a connection begins, so those that never finish take their
/// turns too: which turns are left for ours is up to the strangers, but nobody is passed over, and the turns of
/// all together are equal.
fn served_among_strangers(mechanism: Mechanism, port: u16) {
    if mechanism != Mechanism::Steer {
        return served_evenly(mechanism, port);
    }
    let ledger = Load::port(port).connections(COUNT).run();
    ledger.assert_all_served();
    assert!(ledger.workers.len() == 4, "{ledger}");
}

/// How often the kernel has chosen each worker for a packet that begins a connection.
fn chosen(phalanx: &Phalanx) -> Vec<u64> {
    let status = phalanx.status();
    let slots = status["listeners"][0]["slots"].as_array().expect("slots");
    slots.iter().map(|slot| slot["assigned"].as_u64().expect("a number")).collect()
}

#[test]
fn forced_syn_cookies_change_nothing() {
    each(&[("ipv4/tcp_syncookies", "2")], |mechanism, port, _| {
        served_evenly(mechanism, port);
        // A client that comes again from a port that is remembered (TIME-WAIT) needs no cookie.
        let received = counter("SyncookiesRecv");
        assert!(received > COUNT / 2, "{received} of {COUNT} connections by cookie");
    });
}

#[test]
fn half_open_floods_change_nothing() {
    for cookies in ["1", "2"] {
        each(&[("ipv4/tcp_syncookies", cookies)], |mechanism, port, phalanx| {
            let flood = Flood::start(port);
            wait_until("a flood", || flood.sent() > 5000);
            served_among_strangers(mechanism, port);
            match cookies {
                "1" => assert!(half_open() > 100),
                _ => assert!(counter("SyncookiesSent") > 5000),
            }
            drop(flood);
            if mechanism == Mechanism::Steer {
                // Packets that were sent last may still be under way.
                wait_until("equal turns", || {
                    let chosen = chosen(phalanx);
                    chosen.iter().max() <= chosen.iter().min().map(|least| least + 1).as_ref()
                });
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
