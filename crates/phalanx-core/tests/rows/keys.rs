//! KEY, LISTEN, ERR: which requests mean the same listener, and what a failure is.

use crate::stage::{Carry, EACCES, EADDRINUSE, EINVAL, Stage, stage, tcp, udp, unix};
use phalanx_core::{BindSpec, Mechanism, Speaks};
use serde_json::{Value, json};

fn both() -> [Stage; 2] {
    [Mechanism::Handoff, Mechanism::Share].map(|mechanism| Stage::new(mechanism, Speaks::Node))
}

fn errno(answer: &(Value, Carry)) -> i64 {
    answer.0["errno"].as_i64().unwrap_or(0)
}

#[test]
fn two_spellings_of_one_endpoint_are_two_keys_and_the_holder_is_named() {
    for mut it in both() {
        it.server(8000);
        it.worker();
        for other in [json!(null), json!("0.0.0.0"), json!("::")] {
            let answer = it.ask(2, json!({ "address": other, "port": 8000, "addressType": 4, "index": 0 }));
            assert_eq!(errno(&answer), -i64::from(EADDRINUSE), "{other}");
            assert_eq!(it.heard().last().unwrap(), "bind failed 98 127.0.0.1:8000:4:undefined:0");
        }
        it.taken.insert("9000".to_owned(), EADDRINUSE);
        it.ask(2, tcp("127.0.0.1", 9000, 0));
        assert_eq!(it.heard(), ["bind failed 98 -"], "somebody else has it");
    }
}

#[test]
fn the_nth_port_0_of_a_worker_is_the_nth_of_all() {
    for mut it in both() {
        let mut ports = Vec::new();
        for worker in 1..=3 {
            it.worker();
            for index in 0..2 {
                it.heard();
                it.serve_as(worker, tcp("127.0.0.1", 0, index));
                ports.push(it.heard().pop().unwrap());
            }
            it.serve_as(worker, udp(0, 0));
        }
        for worker in 0..3 {
            assert!(
                ports[2 * worker].contains(" 40000 ") && ports[2 * worker + 1].contains(" 40001 "),
                "{ports:?}"
            );
        }
        assert_eq!(it.sockets.len(), 3);
    }
}

#[test]
fn a_key_lives_while_it_has_members() {
    for mut it in both() {
        let keys = [1, 2].map(|worker| {
            it.worker();
            it.serve(worker, 0)
        });
        assert_eq!(keys[0], keys[1]);
        it.close(1, &keys[0]);
        assert!(it.socket_at(40_000).is_some());
        it.heard();
        it.close(2, &keys[1]);
        assert_eq!(it.heard(), [format!("left 2 {}", keys[1]), format!("closed {}", keys[1])]);
        assert!(it.sockets.is_empty(), "our copy too");
        it.serve(1, 0);
        assert!(it.socket_at(40_001).is_some(), "a new port");
    }
}

#[test]
fn a_failed_bind_reaches_all_who_wait_and_leaves_nothing() {
    for mut it in both() {
        it.slow = true;
        it.taken.insert("8000".to_owned(), EADDRINUSE);
        let asked: Vec<(u32, u64)> = (1..=3)
            .map(|_| {
                let worker = it.worker();
                (worker, it.act(worker, "queryServer", tcp("127.0.0.1", 8000, 0)))
            })
            .collect();
        for (worker, seq) in &asked {
            assert_eq!(it.answer_to(*worker, *seq), None, "it waits");
        }
        it.let_bind();
        for (worker, seq) in asked {
            let answer = it.answer_to(worker, seq).expect("an answer");
            assert_eq!((errno(&answer), answer.1), (-98, Carry::Nothing));
        }
        assert_eq!(it.heard().iter().filter(|event| event.starts_with("bind failed")).count(), 1);
        // It is free again: whoever asks next has it, the one that had failed too, by its next ordinal.
        it.taken.clear();
        it.serve(2, 8000);
        it.serve_as(1, tcp("127.0.0.1", 8000, 1));
        it.serve_as(3, tcp("127.0.0.1", 8000, 1));
        assert_eq!(it.sockets.len(), 1);
    }
}

#[test]
fn all_who_ask_during_a_bind_are_answered_when_it_is_done() {
    for mut it in both() {
        it.slow = true;
        let asked = [1, 2, 3].map(|worker| {
            it.worker();
            it.act(worker, "queryServer", tcp("127.0.0.1", 0, 0))
        });
        it.let_bind();
        for (worker, seq) in (1..).zip(asked) {
            let answer = it.answer_to(worker, seq).expect("an answer");
            assert_eq!(errno(&answer), 0);
        }
        assert_eq!(it.sockets.len(), 1);
    }
}

#[test]
fn error_numbers_reach_the_worker_whatever_the_mechanism() {
    for mut it in both() {
        it.worker();
        // One that nobody has a name for, too.
        for (n, code) in [EADDRINUSE, EACCES, 99, EINVAL, 200].into_iter().enumerate() {
            it.taken.insert(format!("{}", 9000 + n), code);
            let answer = it.ask(1, tcp("127.0.0.1", 9000 + n as i32, 0));
            assert_eq!((errno(&answer), answer.1), (-i64::from(code), Carry::Nothing));
        }
        it.taken.insert("/none/x".to_owned(), EACCES);
        assert_eq!(errno(&it.ask(1, unix("/none/x", 0))), -13);
        it.taken.insert("udp 53".to_owned(), EACCES);
        assert_eq!(errno(&it.ask(1, udp(53, 0))), -13);
        assert_eq!(errno(&it.ask(1, tcp("no address", 1, 0))), -22);
        assert_eq!(errno(&it.ask(1, json!({ "fd": 50, "address": null, "port": null, "index": 0 }))), -22);
        // All else goes on.
        assert_eq!(it.state(1), "online");
        it.serve(1, 8000);
    }
}

#[test]
fn nobody_is_twice_on_one_key() {
    for mut it in both() {
        it.server(8000);
        it.server(8000);
        // Node 20 counts, v0.12 does not.
        let mut plain = tcp("127.0.0.1", 8000, 0);
        plain.as_object_mut().unwrap().remove("index");
        for fields in [tcp("127.0.0.1", 8000, 1), tcp("127.0.0.1", 8000, 0), plain] {
            assert_eq!(errno(&it.ask(1, fields)), -98);
        }
        it.serve_as(1, udp(9000, 0));
        assert_eq!(errno(&it.ask(1, udp(9000, 1))), -98);
        it.serve_as(1, unix("/run/it.sock", 0));
        assert_eq!(errno(&it.ask(1, unix("/run/it.sock", 1))), -98);
        assert_eq!(it.sockets.len(), 3);
        assert_eq!(it.state(1), "listening");
    }
}

#[test]
fn datagram_sockets_that_share_their_address_may_be_asked_for_twice() {
    let mut it = stage();
    it.worker();
    let mut fields = udp(9000, 0);
    fields["flags"] = json!(4);
    let first = it.serve_as(1, fields.clone());
    fields["index"] = json!(1);
    let second = it.serve_as(1, fields);
    assert_ne!(first, second);
    assert_eq!(it.sockets.len(), 2);
}

#[test]
fn a_worker_that_does_not_count_may_ask_for_any_port_again_and_again() {
    // v0.12 asks the primary for each datagram socket that merely sends.
    let mut it = stage();
    it.worker();
    let mut fields = udp(0, 0);
    fields.as_object_mut().unwrap().remove("index");
    for n in 1..=200 {
        it.serve_as(1, fields.clone());
        assert_eq!(it.sockets.len(), n);
    }
    assert_eq!(it.state(1), "listening");
}

#[test]
fn after_closing_the_same_worker_listens_again_a_hundred_times() {
    for mut it in both() {
        it.server(8000);
        it.worker();
        for _ in 0..100 {
            let key = it.serve(2, 8000);
            it.close(2, &key);
        }
        let key = it.serve(2, 8000);
        assert!(it.socket_at(8000).is_some() && key.starts_with("127.0.0.1:8000"));
    }
}

#[test]
fn keys_are_independent() {
    for mut it in both() {
        it.worker();
        let (first, _second) = (it.serve(1, 8000), it.serve(1, 8001));
        it.close(1, &first);
        assert!(it.socket_at(8000).is_none() && it.socket_at(8001).is_some());
        it.close(1, &first);
        it.close(1, "invented");
        assert!(it.socket_at(8001).is_some() && it.state(1) == "listening");
    }
}

#[test]
fn no_host_is_every_address_of_both_families() {
    let mut it = stage();
    it.worker();
    it.worker();
    let any = |port: i32| json!({ "address": null, "port": port, "addressType": 4, "index": 0 });
    let (answer, _) = it.ask(1, any(8000));
    assert_eq!(
        (answer["sockname"]["address"].as_str(), answer["sockname"]["port"].as_u64()),
        (Some("::"), Some(8000))
    );
    let spec = it.sockets.values().next().map(|socket| socket.spec.clone());
    assert_eq!(spec, Some(BindSpec::Tcp { address: None, port: 8000, v6only: false }));
    // Nothing said at all is any port, and is shared with port 0.
    it.serve_as(1, any(0));
    it.serve_as(2, any(0));
    assert_eq!(it.sockets.len(), 2);
}

#[test]
fn ipv6_only_is_honoured_with_and_without_a_host() {
    let mut it = stage();
    it.worker();
    for (port, address) in [(8000, json!("::")), (8001, json!(null))] {
        it.serve_as(1, json!({ "address": address, "port": port, "addressType": 6, "index": 0, "flags": 1 }));
    }
    let mut datagrams = udp(8002, 0);
    datagrams["address"] = json!("::");
    datagrams["addressType"] = json!("udp6");
    datagrams["flags"] = json!(1);
    it.serve_as(1, datagrams);
    let v6only = |spec: &BindSpec| {
        matches!(spec, BindSpec::Tcp { v6only: true, .. } | BindSpec::Udp { v6only: true, .. })
    };
    assert!(it.sockets.values().all(|socket| v6only(&socket.spec)));
    assert_eq!(it.sockets.len(), 3);
}

#[test]
fn the_largest_backlog_counts() {
    for mut it in both() {
        it.worker();
        it.worker();
        let asks = |backlog: u32| {
            let mut fields = tcp("127.0.0.1", 8000, 0);
            fields["backlog"] = json!(backlog);
            fields
        };
        it.serve_as(1, asks(5000));
        let socket = it.socket_at(8000).unwrap();
        assert_eq!(it.sockets[&socket].backlog, 5000);
        it.serve_as(2, asks(9000));
        assert_eq!(it.sockets[&socket].backlog, 9000);
        let third = it.worker();
        it.sockets.get_mut(&socket).unwrap().backlog = 511;
        it.serve_as(third, asks(511));
        if it.primary.status(it.now).listeners[0].mechanism == Mechanism::Share {
            assert_eq!(it.sockets[&socket].backlog, 9000, "what its own listen() made smaller is put right");
        }
    }
}

#[test]
fn other_options_are_the_first_askers() {
    let mut it = stage();
    it.worker();
    it.worker();
    let mut open = unix("/run/it.sock", 0);
    open["readableAll"] = json!(true);
    open["writableAll"] = json!(true);
    it.serve_as(1, open);
    it.serve_as(2, unix("/run/it.sock", 0));
    let spec = it.sockets.values().next().unwrap().spec.clone();
    assert!(matches!(spec, BindSpec::Unix { readable_all: true, writable_all: true, .. }), "{spec:?}");
    assert_eq!(it.sockets.len(), 1);
}

#[test]
fn where_addresses_are_configured_nothing_else_can_be_had() {
    let mut it = Stage::with(Mechanism::Handoff, Speaks::Node, |config| config.only_configured = true);
    let spec = BindSpec::Tcp { address: None, port: 8000, v6only: false };
    it.primary.configure_listener("http", spec, false).expect("a listener");
    it.drive();
    it.worker();
    it.heard();
    assert_eq!(errno(&it.ask(1, tcp("127.0.0.1", 22, 0))), -i64::from(EACCES));
    assert_eq!(errno(&it.ask(1, unix("/run/it.sock", 0))), -i64::from(EACCES));
    assert_eq!(it.heard().len(), 2, "and it is told");
    it.serve_as(1, tcp("0.0.0.0", 8000, 0));
    it.serve_as(1, tcp("127.0.0.1", 0, 0));
}

#[test]
fn a_configured_listener_outlives_generations_by_its_number() {
    for mut it in both() {
        let spec = BindSpec::Tcp { address: Some("127.0.0.1".parse().unwrap()), port: 8000, v6only: false };
        it.primary.configure_listener("http", spec, false).expect("a listener");
        it.drive();
        let by_number = || json!({ "address": null, "port": null, "addressType": null, "fd": 3, "index": 0 });
        for worker in 1..=2 {
            it.worker();
            let (answer, _) = it.ask(worker, by_number());
            assert!(answer["errno"].is_null() || answer["errno"] == 0, "{answer}");
            it.leave(worker, None);
            it.ends(worker, 0);
            assert!(it.socket_at(8000).is_some(), "it is not used up");
        }
        it.worker();
        assert_eq!(errno(&it.ask(3, json!({ "fd": 4, "address": null, "port": null, "index": 0 }))), -22);
    }
}

#[test]
fn a_policy_of_its_own_for_one_listener() {
    let mut it = Stage::new(Mechanism::Auto, Speaks::Phalanx);
    it.worker();
    let mut fields = unix("/run/it.sock", 0);
    fields["phalanx"] = json!({ "policy": "sticky" });
    it.serve_as(1, fields.clone());
    it.serve_as(1, unix("/run/other.sock", 0));
    let policies: Vec<String> =
        it.primary.status(it.now).listeners.iter().map(|listener| listener.policy.to_string()).collect();
    assert_eq!(policies, ["sticky", "round-robin"]);
    fields["address"] = json!("/run/third.sock");
    fields["phalanx"] = json!({ "policy": "toString" });
    assert_eq!(errno(&it.ask(1, fields)), -i64::from(EINVAL));
}
