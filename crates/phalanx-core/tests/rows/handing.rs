//! RR and its defects: one accepts, many take.

use crate::stage::{Stage, stage, tcp};
use phalanx_core::{Ended, Mechanism, Speaks};
use serde_json::json;
use std::time::Duration;

#[test]
fn the_answer_to_a_listen_call_precedes_the_first_offer() {
    let mut it = stage();
    it.server(8000);
    it.connect(8000);
    it.connect(8000);
    it.connect(8000);
    it.worker();
    let seq = it.act(2, "queryServer", tcp("127.0.0.1", 8000, 0));
    let got = it.got(2);
    assert_eq!(got[0].0["ack"], seq, "{got:?}");
    assert_eq!(got[1].0["act"], "newconn");
}

#[test]
fn who_joins_gets_what_waits_the_oldest_first() {
    let mut it = stage();
    it.server(8000);
    for _ in 0..4 {
        it.connect(8000);
    }
    assert_eq!(it.offers(1).len(), 1, "stuck, with one in its hands");
    it.worker();
    it.ask(2, tcp("127.0.0.1", 8000, 0));
    assert_eq!(it.take_all(2), [2, 3, 4], "before it says that it listens");
}

#[test]
fn a_full_queue_leaves_the_rest_to_the_kernel_until_it_is_half_empty() {
    let mut it = Stage::with(Mechanism::Handoff, Speaks::Node, |config| config.pending_max = 64);
    it.server(8000);
    let socket = it.socket_at(8000).expect("bound");
    for held in 1..=65 {
        assert!(it.sockets[&socket].accepting, "{held}");
        it.connect(8000);
    }
    assert_eq!(it.primary.ledger().pending, 64);
    assert!(!it.sockets[&socket].accepting, "no more than that");
    for left in (0..64).rev() {
        let (seq, _) = it.offers(1)[0];
        it.answer(1, seq, true);
        assert_eq!((it.sockets[&socket].accepting, it.primary.ledger().pending), (left <= 32, left));
    }
}

#[test]
fn nobody_holds_more_than_its_window_and_the_rest_goes_elsewhere() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    let mut taken = Vec::new();
    for _ in 0..6 {
        it.connect(8000);
        taken.extend(it.take_all(2));
    }
    assert_eq!(it.offers(1).iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1]);
    assert_eq!(taken, [2, 3, 4, 5, 6]);
}

#[test]
fn a_refused_connection_is_the_next_to_go_and_who_refused_rests() {
    let mut it = stage();
    it.server(8000);
    for _ in 0..5 {
        it.connect(8000);
    }
    let (seq, id) = it.offers(1)[0];
    assert_eq!(id, 1);
    it.answer(1, seq, false);
    assert!(it.offers(1).is_empty(), "it is not asked again at once");
    it.server(8000);
    assert_eq!(it.take_all(2), [1, 2, 3, 4, 5], "in the order of their coming");
}

#[test]
fn when_all_are_full_nothing_spins() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.connect(8000);
    let mut refusals = 0;
    for _ in 0..100 {
        for worker in [1, 2] {
            for (seq, _) in it.offers(worker) {
                it.answer(worker, seq, false);
                refusals += 1;
            }
        }
        it.pass(Duration::from_millis(10));
    }
    assert!(refusals <= 40, "{refusals} refusals in a second");
    // As soon as one has room, it is served.
    it.pass(Duration::from_millis(200));
    let served: Vec<u32> = [1, 2].into_iter().flat_map(|worker| it.take_all(worker)).collect();
    assert_eq!(served, [1]);
}

#[test]
fn a_worker_at_its_limit_leaves_the_rest_to_others() {
    // Limits 1 and 9, ten clients: all are served.
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    let mut taken = [0, 0];
    for _ in 0..10 {
        it.connect(8000);
        for _ in 0..20 {
            for worker in [1, 2] {
                for (seq, _) in it.offers(worker) {
                    let at = worker as usize - 1;
                    let accepts = taken[at] < [1, 9][at];
                    taken[at] += i32::from(accepts);
                    it.answer(worker, seq, accepts);
                }
            }
            it.pass(Duration::from_millis(100));
        }
    }
    assert_eq!(taken, [1, 9]);
}

#[test]
fn nothing_is_offered_to_who_is_no_member() {
    let mut it = stage();
    let key = {
        it.worker();
        it.serve(1, 8000)
    };
    it.server(8000);
    it.close(1, &key);
    for n in 1..=4 {
        it.connect(8000);
        assert_eq!(it.take_all(2), [n]);
    }
    assert!(it.offers(1).is_empty());
}

#[test]
fn the_last_one_closes_what_waits() {
    for how in 0..3 {
        let mut it = stage();
        it.worker();
        let key = it.serve(1, 8000);
        for _ in 0..300 {
            it.connect(8000);
        }
        let offers = it.offers(1);
        match how {
            0 => it.close(1, &key),
            1 => it.leave(1, None),
            _ => it.channel_ends(1),
        }
        assert!(it.sockets.is_empty());
        // What was in its hands comes back to nobody.
        if how < 2 {
            it.answer(1, offers[0].0, false);
        } else {
            it.dies(1, Ended::Code(0));
        }
        let ledger = it.primary.ledger();
        assert_eq!(ledger.totals.closed.listener_closed, 300, "{ledger:?}");
        assert_eq!((ledger.pending, ledger.in_flight), (0, 0));
    }
}

#[test]
fn keys_are_scheduled_independently() {
    let mut it = Stage::with(Mechanism::Handoff, Speaks::Node, |config| config.window = 2);
    for _ in 0..2 {
        let worker = it.worker();
        it.serve(worker, 8000);
        it.serve(worker, 8001);
    }
    it.connect(8000);
    it.connect(8001);
    let both: Vec<usize> = [1, 2].map(|worker| it.offers(worker).len()).into();
    assert_eq!(both.iter().sum::<usize>(), 2);
}

#[test]
fn an_answer_counts_only_from_who_was_asked() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.connect(8000);
    let (seq, id) = it.offers(1)[0];
    for foreign in [true, false] {
        it.answer(2, seq, foreign);
    }
    it.answer(1, seq + 77, true);
    it.say(1, &json!({ "cmd": "NODE_CLUSTER", "ack": -1, "seq": 5 }));
    let ledger = it.primary.ledger();
    assert_eq!((ledger.in_flight, ledger.totals.taken, ledger.totals.refused), (1, 0, 0));
    it.answer(1, seq, true);
    assert_eq!((it.primary.ledger().totals.taken, id), (1, 1));
    assert!([1, 2].iter().all(|worker| it.is_open(*worker)));
}

#[test]
fn an_answer_that_says_nothing_is_a_refusal() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.connect(8000);
    let (seq, _) = it.offers(1)[0];
    it.say(1, &json!({ "cmd": "NODE_CLUSTER", "ack": seq, "seq": 5 }));
    assert_eq!(it.take_all(2), [1]);
}

#[test]
fn a_dead_workers_offer_goes_to_another_and_both_ends_are_told_once() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.connect(8000);
    assert_eq!(it.offers(1).len(), 1);
    it.heard();
    it.channel_ends(1);
    assert!(it.offers(2).is_empty(), "the end of its channel is not enough: it may still read");
    it.dies(1, Ended::Signal(9, false));
    assert_eq!(it.take_all(2), [1]);
    assert_eq!(it.heard(), ["disconnect 1", "exit 1 killed by signal 9 false"]);
    // One that it has read from is nobody else's.
    it.server(8000);
    it.connect(8000);
    let holder = if it.offers(2).is_empty() { 3 } else { 2 };
    it.touched.insert(2);
    it.dies(holder, Ended::Signal(9, false));
    let ledger = it.primary.ledger();
    assert_eq!((ledger.totals.closed.touched, ledger.in_flight), (1, 0));
}

#[test]
fn closed_and_opened_again_with_an_offer_in_flight_nothing_waits_for_ever() {
    let mut it = stage();
    it.worker();
    let key = it.serve(1, 8000);
    it.server(8000);
    it.connect(8000);
    let (seq, _) = it.offers(1)[0];
    it.close(1, &key);
    it.serve(1, 8000);
    it.answer(1, seq, false);
    assert_eq!(it.take_all(2), [1]);
    for n in 2..=9 {
        it.connect(8000);
        let taken: Vec<u32> = [1, 2].into_iter().flat_map(|worker| it.take_all(worker)).collect();
        assert_eq!(taken, [n], "served at once");
        assert_eq!(it.primary.ledger().pending, 0);
    }
}

#[test]
fn a_lost_connection_is_offered_again_and_its_worker_comes_back() {
    let mut it = stage();
    it.server(8000);
    it.loses = true;
    it.connect(8000);
    assert!(it.offers(1).is_empty());
    it.pass(Duration::from_millis(30));
    assert_eq!(it.primary.ledger().pending, 1, "it rests, and the connection waits");
    it.loses = false;
    it.pass(Duration::from_millis(30));
    assert_eq!(it.take_all(1), [1]);
    it.connect(8000);
    assert_eq!(it.take_all(1), [2], "it is in rotation as before");
}

#[test]
fn a_lost_listening_socket_is_sent_again_and_then_refused() {
    let mut it = Stage::new(Mechanism::Share, Speaks::Node);
    it.worker();
    it.loses = true;
    let (answer, _) = it.ask(1, tcp("127.0.0.1", 8000, 0));
    assert_eq!(answer["errno"], -24, "EMFILE, after a few tries");
    assert!(it.sockets.is_empty());
    it.loses = false;
    it.serve(1, 8000);
}

#[test]
fn a_receipt_too_many_ends_the_channel() {
    let mut it = stage();
    it.server(8000);
    assert!(!it.say(1, &json!({ "cmd": "NODE_HANDLE_ACK" })));
    assert!(it.heard().contains(&"violation 1".to_owned()));
}

#[test]
fn a_death_costs_what_the_worker_held_and_not_what_there_is() {
    let mut it = stage();
    for port in 0..50_i32 {
        if port % 10 == 0 {
            it.worker();
        }
        it.serve((port / 10) as u32 + 1, 9000 + port);
    }
    assert_eq!(it.sockets.len(), 50);
    it.channel_ends(1);
    it.dies(1, Ended::Code(0));
    assert_eq!(it.sockets.len(), 40, "its own, and no other");
}
