//! SHARED, DATA, UDP, UNIX: what a listener gives to those who share it.

use crate::stage::{Carry, Stage, stage, tcp, udp, unix};
use phalanx_core::{Mechanism, Speaks};
use serde_json::{Value, json};

fn with_data(data: Value) -> Value {
    let mut fields = tcp("127.0.0.1", 8000, 0);
    fields["data"] = data;
    fields
}

#[test]
fn the_first_data_wins_and_later_ones_receive_it() {
    for mechanism in [Mechanism::Handoff, Mechanism::Share] {
        let mut it = Stage::new(mechanism, Speaks::Node);
        for _ in 0..4 {
            it.worker();
        }
        let blob = json!({ "ticketKeys": "00ff", "more": [1, null] });
        assert_eq!(it.ask(1, with_data(Value::Null)).0["data"], Value::Null, "none sets nothing");
        assert_eq!(it.ask(2, with_data(blob.clone())).0["data"], blob, "its own");
        assert_eq!(it.ask(3, with_data(json!("late"))).0["data"], blob);
        assert_eq!(it.ask(4, with_data(Value::Null)).0["data"], blob, "none clears nothing");
        let failed = it.ask(4, with_data(json!("late"))).0;
        assert_eq!((&failed["errno"], &failed["data"]), (&json!(-98), &blob), "with an error too");
    }
}

#[test]
fn data_lives_as_long_as_its_key() {
    let mut it = stage();
    it.worker();
    it.worker();
    let key = it.serve_as(1, with_data(json!("first")));
    it.serve_as(2, with_data(json!("second")));
    it.close(1, &key);
    assert_eq!(it.ask(1, with_data(json!("third"))).0["data"], "first");
    it.close(1, &key);
    it.close(2, &key);
    assert_eq!(it.ask(1, with_data(json!("fourth"))).0["data"], "fourth");
}

#[test]
fn a_shared_socket_comes_with_the_answer_and_a_handed_one_does_not() {
    let mut it = Stage::new(Mechanism::Share, Speaks::Node);
    it.worker();
    it.worker();
    let (answer, carry) = it.ask(1, tcp("127.0.0.1", 8000, 0));
    assert_eq!((&answer["errno"], answer.get("sockname")), (&json!(0), None));
    let socket = it.socket_at(8000).expect("bound");
    assert_eq!(carry, Carry::Socket(socket));
    assert_eq!(it.ask(2, tcp("127.0.0.1", 8000, 0)).1, Carry::Socket(socket), "the same one");
    assert!(!it.sockets[&socket].accepting, "the primary never accepts");
    let mut it = stage();
    it.worker();
    let (answer, carry) = it.ask(1, tcp("127.0.0.1", 8000, 0));
    assert_eq!((answer["errno"].clone(), carry), (Value::Null, Carry::Nothing));
    assert_eq!(answer["sockname"], json!({ "address": "127.0.0.1", "family": "IPv4", "port": 8000 }));
    let (answer, carry) = it.ask(1, unix("/run/it.sock", 0));
    assert_eq!((answer.get("sockname"), carry), (None, Carry::Nothing));
}

#[test]
fn the_last_member_of_a_shared_socket_closes_it() {
    for how in 0..4 {
        let mut it = Stage::new(Mechanism::Share, Speaks::Node);
        it.worker();
        it.worker();
        let key = it.serve(1, 8000);
        it.serve(2, 8000);
        it.close(1, &key);
        it.close(1, &key);
        assert!(it.socket_at(8000).is_some(), "one is left");
        match how {
            0 => it.close(2, &key),
            1 => it.leave(2, None),
            2 => it.channel_ends(2),
            _ => it.dies(2, phalanx_core::Ended::Code(0)),
        }
        assert!(it.sockets.is_empty());
    }
}

#[test]
fn datagrams_are_shared_whatever_the_policy() {
    let mut it = stage();
    it.worker();
    it.worker();
    let third = it.worker();
    it.heard();
    it.serve_as(1, udp(0, 0));
    it.serve_as(2, udp(0, 0));
    let carry = it.ask(third, udp(0, 0)).1;
    assert!(matches!(carry, Carry::Socket(_)), "the socket itself: {carry:?}");
    assert_eq!(it.sockets.len(), 1);
    assert_eq!(it.heard(), ["listening 1 127.0.0.1 40000 udp4 -1", "listening 2 127.0.0.1 40000 udp4 -1"]);
    it.leave(1, None);
    it.leave(2, None);
    it.leave(third, None);
    assert!(it.sockets.is_empty());
}

#[test]
fn paths_are_handed_and_named_as_they_are() {
    let mut it = stage();
    it.worker();
    it.heard();
    let key = it.serve_as(1, unix("/run/it.sock", 0));
    assert_eq!(key, "/run/it.sock:-1:-1:undefined:0");
    assert_eq!(it.heard(), ["listening 1 /run/it.sock -1 -1 -"]);
    it.close(1, &key);
    assert!(it.sockets.is_empty(), "the file goes with it");
}

#[test]
fn a_dead_worker_leaves_the_listeners_before_anybody_hears_of_it() {
    let mut it = stage();
    it.server(8000);
    it.heard();
    it.dies(1, phalanx_core::Ended::Signal(9, false));
    assert!(it.sockets.is_empty());
    assert_eq!(it.heard(), ["closed 127.0.0.1:8000:4:undefined:0", "exit 1 killed by signal 9 false"]);
}
