//! ROLE, FORK, LIFE: who is there, and what is heard of it.

use crate::stage::{Stage, stage, tcp, udp, unix};
use phalanx_core::{Ended, Mechanism, Speaks, WorkerId};
use serde_json::json;

#[test]
fn numbers_grow_and_never_come_again() {
    let mut it = stage();
    assert_eq!([it.worker(), it.worker(), it.worker()], [1, 2, 3]);
    it.ends(2, 0);
    it.ends(3, 0);
    assert_eq!(it.worker(), 4);
    assert_eq!(it.primary.workers().map(|view| view.id.0).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_fork_is_known_at_once_and_told_before_it_is_online() {
    let mut it = stage();
    let worker = it.fork();
    let view = it.primary.worker(WorkerId(worker)).expect("it is in the table");
    assert_eq!((view.state.name(), view.connected, view.exited_after_disconnect), ("starting", true, None));
    assert!(view.state.is_alive());
    assert_eq!(it.heard(), ["fork 1"]);
    it.online(worker);
    assert_eq!(it.heard(), ["online 1"]);
    assert_eq!(it.state(worker), "online");
}

#[test]
fn nobody_is_replaced_unless_asked_for_and_a_fork_may_follow_an_exit() {
    let mut it = stage();
    it.worker();
    it.worker();
    it.ends(1, 1);
    it.pass(std::time::Duration::from_secs(3600));
    assert_eq!(it.primary.workers().count(), 1);
    assert_eq!(it.server(8000), 3);
    it.connect(8000);
    assert_eq!(it.take_all(3), [1]);
}

#[test]
fn what_cannot_start_uses_up_no_number_and_is_told() {
    let mut it = stage();
    it.cannot_start = true;
    it.fork();
    assert_eq!(it.heard(), ["fork failed: no such program"]);
    assert_eq!(it.primary.workers().count(), 0);
    it.cannot_start = false;
    assert_eq!(it.worker(), 1);
}

#[test]
fn a_whole_life_is_told_in_order() {
    let mut it = stage();
    it.server(8000);
    it.say(1, &json!("hello"));
    it.leave(1, None);
    it.channel_ends(1);
    assert_eq!(it.state(1), "disconnected", "the earlier event finds it");
    it.dies(1, Ended::Code(0));
    assert_eq!(
        it.heard(),
        [
            "fork 1",
            "online 1",
            "listening 1 127.0.0.1 8000 4 -",
            "message 1 \"hello\"",
            "closed 127.0.0.1:8000:4:undefined:0",
            "draining 1",
            "disconnect 1",
            "exit 1 exit code 0 true",
        ]
    );
}

#[test]
fn listening_tells_the_real_port_and_the_family_in_nodes_words() {
    let mut it = Stage::new(Mechanism::Auto, Speaks::Node);
    it.worker();
    it.heard();
    it.act(1, "listening", json!({ "address": null, "port": 35001, "addressType": 4 }));
    it.act(1, "listening", json!({ "address": "::1", "port": 35002, "addressType": 6 }));
    it.act(1, "listening", json!({ "address": "/run/a.sock", "port": -1, "addressType": -1 }));
    it.act(1, "listening", json!({ "address": "127.0.0.1", "port": 35003, "addressType": "udp4", "fd": -1 }));
    it.act(1, "listening", json!({ "address": "::1", "port": 35004, "addressType": "udp6", "fd": -1 }));
    it.act(1, "listening", json!({ "address": null, "port": 35005, "addressType": null, "fd": 3 }));
    assert_eq!(
        it.heard(),
        [
            "listening 1 - 35001 4 -",
            "listening 1 ::1 35002 6 -",
            "listening 1 /run/a.sock -1 -1 -",
            "listening 1 127.0.0.1 35003 udp4 -1",
            "listening 1 ::1 35004 udp6 -1",
            "listening 1 - 35005 - 3",
        ]
    );
}

#[test]
fn a_relayed_signal_reaches_the_online_at_once_and_others_when_they_are() {
    let mut it = stage();
    it.worker();
    it.server(8000);
    let late = it.fork();
    it.channel_ends(1);
    it.dies(1, Ended::Code(0));
    it.primary.relay(10);
    it.drive();
    assert_eq!(it.signals, [(2, 10)]);
    it.online(late);
    assert_eq!(it.signals, [(2, 10), (3, 10)]);
}

#[test]
fn each_server_of_each_worker_is_told() {
    let mut it = Stage::new(Mechanism::Handoff, Speaks::Node);
    for _ in 0..4 {
        let worker = it.worker();
        it.serve_as(worker, tcp("127.0.0.1", 0, 0));
        it.serve_as(worker, tcp("127.0.0.1", 0, 1));
        it.serve_as(worker, udp(0, 0));
        it.serve_as(worker, unix("/run/it.sock", 0));
    }
    let told = it.heard();
    assert_eq!(told.iter().filter(|event| event.starts_with("listening")).count(), 16, "{told:?}");
    assert_eq!(told.iter().filter(|event| event.contains("127.0.0.1 40000 4")).count(), 4, "{told:?}");
    assert_eq!(it.sockets.len(), 4, "one socket for each address");
}

#[test]
fn exit_first_or_disconnect_first_the_later_one_does_not_find_it() {
    let mut it = stage();
    it.worker();
    it.worker();
    it.heard();
    it.channel_ends(1);
    assert_eq!((it.state(1), it.voluntary(1)), ("disconnected", Some(false)));
    it.dies(1, Ended::Signal(9, false));
    assert_eq!((it.state(1), it.forgotten.as_slice()), ("forgotten", &[1][..]));
    it.dies(2, Ended::Signal(9, false));
    assert_eq!((it.state(2), it.voluntary(2)), ("exited", Some(false)));
    it.channel_ends(2);
    assert_eq!(it.state(2), "forgotten");
    assert_eq!(
        it.heard(),
        [
            "disconnect 1",
            "exit 1 killed by signal 9 false",
            "exit 2 killed by signal 9 false",
            "disconnect 2"
        ]
    );
}

#[test]
fn connected_until_the_channel_ends_and_not_only_until_it_was_asked_to_leave() {
    let mut it = stage();
    let connected = |it: &Stage| it.primary.worker(WorkerId(1)).expect("known").connected;
    it.fork();
    assert!(connected(&it), "before it is online");
    it.online(1);
    it.leave(1, None);
    assert!(connected(&it), "a request changes nothing");
    it.channel_ends(1);
    assert!(!connected(&it));
}

#[test]
fn what_comes_before_online_ends_the_channel() {
    // Node's own workers are let be, as by Node's primary.
    let mut it = Stage::new(Mechanism::Handoff, Speaks::Phalanx);
    it.fork();
    it.heard();
    assert!(!it.say(1, &json!("hello")));
    assert_eq!(it.heard(), ["violation 1", "disconnect 1"]);
}

#[test]
fn one_death_leaves_the_others_alone() {
    let mut it = stage();
    for _ in 0..4 {
        it.server(8000);
    }
    it.dies(2, Ended::Signal(9, false));
    it.channel_ends(2);
    for _ in 0..6 {
        it.connect(8000);
        for worker in [1, 3, 4] {
            it.take_all(worker);
        }
    }
    assert_eq!(it.primary.ledger().totals.taken, 6);
    assert!([1, 3, 4].iter().all(|worker| it.is_open(*worker) && it.state(*worker) == "listening"));
}

#[test]
fn when_all_are_gone_nothing_is_left_and_all_can_begin_again() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.disconnect();
    it.ends(1, 0);
    it.ends(2, 0);
    assert!(it.primary.is_empty() && it.sockets.is_empty());
    assert_eq!(it.primary.poll_timeout(), None, "no timer either");
    assert_eq!(it.heard().last().map(String::as_str), Some("finished"));
    assert_eq!(it.server(8000), 3, "numbers go on");
    it.connect(8000);
    assert_eq!(it.take_all(3), [1], "and so does the port");
}
