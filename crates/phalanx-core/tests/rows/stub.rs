//! LISTEN in the worker: the worker's own end.

use phalanx_core::wire::{Family, ListenRequest, Serialization};
use phalanx_core::{Listen, Worker, WorkerEvent};
use serde_json::{Value, json};

struct End(Worker<u32>);

impl End {
    fn new() -> End {
        let mut end = End(Worker::new(Serialization::Json, 1 << 20, 1 << 20));
        end.said();
        end
    }

    fn said(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(next) = self.0.poll_transmit() {
            all.extend(next.bytes.to_vec());
            let count = next.bytes.len();
            self.0.handle_sent(count);
        }
        all.split(|byte| *byte == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect()
    }

    fn hears(&mut self, line: &Value) {
        self.hears_with(line, None);
    }

    fn hears_with(&mut self, line: &Value, handle: Option<u32>) {
        self.0.handle_bytes(format!("{line}\n").as_bytes(), handle).expect("the protocol is kept");
    }

    fn asks(&mut self, port: i32) -> (Listen, u64) {
        let request =
            ListenRequest { port: Some(port), family: Some(Family::Tcp4), ..ListenRequest::default() };
        let listen = self.0.listen(request);
        let said = self.said();
        (listen, said.last().expect("a request")["seq"].as_u64().expect("a number"))
    }

    fn granted(&mut self, ack: u64, key: &str) {
        self.hears(&json!({ "cmd": "NODE_CLUSTER", "errno": null, "key": key, "ack": ack, "seq": 0,
            "sockname": { "address": "127.0.0.1", "family": "IPv4", "port": 8000 } }));
    }

    fn offered(&mut self, key: &str, seq: u64, connection: u32) {
        self.hears_with(
            &json!({ "cmd": "NODE_HANDLE", "type": "net.Native",
                "msg": { "cmd": "NODE_CLUSTER", "act": "newconn", "key": key, "seq": seq } }),
            Some(connection),
        );
    }
}

#[test]
fn closed_before_the_answer_it_is_given_back_and_nobody_hears_of_it() {
    let mut end = End::new();
    let (listen, seq) = end.asks(8000);
    end.0.close(listen);
    end.granted(seq, "k");
    assert!(end.0.poll_event().is_none());
    let said = end.said();
    assert_eq!((said.len(), &said[0]["act"], &said[0]["key"]), (1, &json!("close"), &json!("k")));
    end.0.listening(listen, Some(8000));
    assert!(end.said().is_empty(), "what is closed does not listen");
}

#[test]
fn a_failure_is_told_and_asking_again_is_as_if_it_had_not_been() {
    let mut end = End::new();
    let (listen, seq) = end.asks(0);
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "errno": -98, "key": "k", "ack": seq, "seq": 0 }));
    match end.0.poll_event() {
        Some(WorkerEvent::Refused { listen: refused, errno: 98 }) => assert_eq!(refused, listen),
        other => panic!("{other:?}"),
    }
    end.0.listening(listen, Some(8000));
    assert!(end.said().is_empty());
    let request = ListenRequest { port: Some(0), family: Some(Family::Tcp4), ..ListenRequest::default() };
    end.0.listen(request);
    assert_eq!(end.said()[0]["index"], 0, "the ordinal was given back");
    // A number that nobody knows is a failure all the same.
    let (_, seq) = end.asks(9000);
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "errno": -4095, "ack": seq, "seq": 0 }));
    assert!(matches!(end.0.poll_event(), Some(WorkerEvent::Refused { errno: 4095, .. })));
    // And so is an answer without a key.
    let (_, seq) = end.asks(9001);
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "errno": null, "ack": seq, "seq": 0 }));
    assert!(matches!(end.0.poll_event(), Some(WorkerEvent::Refused { .. })));
}

#[test]
fn another_port_than_the_one_asked_for_is_a_failure() {
    let mut end = End::new();
    let (listen, seq) = end.asks(777);
    end.granted(seq, "k");
    match end.0.poll_event() {
        Some(WorkerEvent::Refused { listen: refused, errno: 98 }) => assert_eq!(refused, listen),
        other => panic!("{other:?}"),
    }
    assert_eq!(end.said()[0]["act"], "close");
    let (listen, _) = end.asks(777);
    assert!(end.0.is_right_port(listen, 777) && !end.0.is_right_port(listen, 4242));
    let (listen, seq) = end.asks(0);
    end.granted(seq, "k");
    assert!(matches!(end.0.poll_event(), Some(WorkerEvent::Granted { .. })));
    assert!(end.0.is_right_port(listen, 4242), "any port was asked for");
}

#[test]
fn closing_twice_is_closing_once() {
    let mut end = End::new();
    let (listen, seq) = end.asks(8000);
    end.granted(seq, "k");
    end.0.close(listen);
    end.0.close(listen);
    assert_eq!(end.said().iter().filter(|line| line["act"] == "close").count(), 1);
}

#[test]
fn what_is_offered_for_a_closed_key_goes_back_and_no_copy_stays() {
    let mut end = End::new();
    let (listen, seq) = end.asks(8000);
    end.granted(seq, "k");
    end.0.close(listen);
    while end.0.poll_event().is_some() {}
    end.said();
    end.offered("k", 7, 70);
    assert!(end.0.poll_event().is_none(), "its copy went at once");
    let said = end.said();
    assert!(said.iter().any(|line| line["ack"] == 7 && line["accepted"] == false), "{said:?}");
    end.offered("invented", 8, 71);
    assert!(end.said().iter().any(|line| line["ack"] == 8 && line["accepted"] == false));
}

#[test]
fn a_handle_that_did_not_arrive_is_said_to_be_lost() {
    let mut end = End::new();
    let (_, seq) = end.asks(8000);
    end.granted(seq, "k");
    while end.0.poll_event().is_some() {}
    end.hears(&json!({ "cmd": "NODE_HANDLE", "type": "net.Native",
        "msg": { "cmd": "NODE_CLUSTER", "act": "newconn", "key": "k", "seq": 7 } }));
    assert!(end.0.poll_event().is_none());
    assert_eq!(end.said(), [json!({ "cmd": "NODE_HANDLE_NACK" })], "and no answer");
}

#[test]
fn a_leave_notice_is_said_once_and_the_answer_lets_go() {
    let mut end = End::new();
    end.0.notify_leave();
    end.0.notify_leave();
    let said = end.said();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["act"], "exitedAfterDisconnect");
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "ack": said[0]["seq"], "seq": 0 }));
    assert!(matches!(end.0.poll_event(), Some(WorkerEvent::Released)));
}

#[test]
fn it_is_asked_to_leave_once() {
    let mut end = End::new();
    for seq in 0..3 {
        end.hears(&json!({ "cmd": "NODE_CLUSTER", "act": "disconnect", "seq": seq }));
    }
    assert!(matches!(end.0.poll_event(), Some(WorkerEvent::Disconnect)));
    assert!(end.0.poll_event().is_none());
}

#[test]
fn after_the_end_of_the_channel_nothing_is_said() {
    let mut end = End::new();
    let (listen, seq) = end.asks(8000);
    end.granted(seq, "k");
    end.0.handle_channel_closed();
    end.0.listening(listen, Some(8000));
    end.0.close(listen);
    end.0.notify_leave();
    assert!(end.said().is_empty());
}

#[test]
fn unknown_answers_change_nothing() {
    let mut end = End::new();
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "ack": -1, "seq": 0 }));
    end.hears(&json!({ "cmd": "NODE_CLUSTER", "ack": 99, "accepted": true, "seq": 0 }));
    assert!(end.0.poll_event().is_none() && end.said().is_empty());
}
