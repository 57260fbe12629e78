//! DISC and KILL: leaving, asked and unasked, and ending.

use crate::stage::{Carry, Stage, stage, tcp};
use phalanx_core::{Ended, Mechanism, Speaks};
use serde_json::json;
use std::time::Duration;

fn is_asked(it: &mut Stage, worker: u32) -> usize {
    it.got(worker).iter().filter(|(line, _)| line["act"] == "disconnect").count()
}

#[test]
fn who_leaves_is_voluntary_at_once_gets_nothing_new_and_is_still_seen() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.leave(1, None);
    assert_eq!((it.voluntary(1), it.state(1)), (Some(true), "draining"));
    assert_eq!(is_asked(&mut it, 1), 1);
    for n in 1..=5 {
        it.connect(8000);
        assert_eq!(it.take_all(2), [n]);
    }
    assert!(it.offers(1).is_empty());
    assert!(it.signals.is_empty(), "its process is left alone");
    it.pass(Duration::from_secs(3600));
    assert_eq!((it.state(1), it.signals.len()), ("draining", 0), "however long it takes");
    it.ends(1, 0);
    assert!(it.heard().contains(&"exit 1 exit code 0 true".to_owned()));
}

#[test]
fn leaving_ten_times_is_leaving_once() {
    let mut it = stage();
    it.server(8000);
    for _ in 0..10 {
        it.leave(1, None);
    }
    assert_eq!(is_asked(&mut it, 1), 1);
    it.ends(1, 0);
    it.leave(1, None);
    let told = it.heard();
    for once in ["draining 1", "disconnect 1", "exit 1 exit code 0 true"] {
        assert_eq!(told.iter().filter(|event| *event == once).count(), 1, "{told:?}");
    }
}

#[test]
fn an_offer_in_flight_to_who_leaves_goes_to_another() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.connect(8000);
    let offers = it.offers(1);
    assert_eq!(offers.len(), 1);
    it.leave(1, None);
    it.answer(1, offers[0].0, false);
    assert_eq!(it.take_all(2), [1]);
}

#[test]
fn a_worker_that_leaves_by_itself_is_voluntary_and_is_answered() {
    let mut it = stage();
    it.server(8000);
    let notice = it.act(1, "exitedAfterDisconnect", json!({}));
    assert!(it.answer_to(1, notice).is_some(), "it waits for that");
    assert_eq!((it.voluntary(1), it.state(1)), (Some(true), "draining"));
    it.ends(1, 0);
    assert_eq!(
        it.heard()[3..],
        ["closed 127.0.0.1:8000:4:undefined:0", "draining 1", "disconnect 1", "exit 1 exit code 0 true"]
    );
    // v0.12 says it in another word, when it ends itself.
    it.server(8000);
    it.act(2, "suicide", json!({}));
    assert_eq!(it.voluntary(2), Some(true), "before its channel ends");
}

#[test]
fn who_closes_its_channel_unasked_is_not_voluntary() {
    let mut it = stage();
    it.server(8000);
    it.channel_ends(1);
    assert_eq!((it.voluntary(1), it.state(1)), (Some(false), "disconnected"));
    it.dies(1, Ended::Code(0));
    assert_eq!(it.heard().last().map(String::as_str), Some("exit 1 exit code 0 false"));
}

#[test]
fn without_a_channel_it_is_on_no_listener_before_that_is_told() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.heard();
    it.primary.handle_channel_closed(it.now, phalanx_core::WorkerId(1));
    it.drive();
    assert_eq!(it.heard(), ["disconnect 1"]);
    for n in 1..=4 {
        it.connect(8000);
        assert_eq!(it.take_all(2), [n]);
    }
}

#[test]
fn all_are_asked_who_are_connected_and_the_end_comes_with_the_last() {
    let mut it = stage();
    for _ in 0..3 {
        it.server(8000);
    }
    it.channel_ends(1);
    it.heard();
    it.disconnect();
    assert_eq!([1, 2, 3].map(|worker| is_asked(&mut it, worker)), [0, 1, 1]);
    it.ends(2, 0);
    it.ends(3, 0);
    assert!(!it.heard().contains(&"finished".to_owned()), "the first is still there");
    it.dies(1, Ended::Code(0));
    assert_eq!(it.heard(), ["exit 1 exit code 0 false", "finished"]);
}

#[test]
fn with_nobody_there_it_is_over_at_once() {
    let mut it = stage();
    it.disconnect();
    assert_eq!(it.heard(), ["finished"]);
}

#[test]
fn who_is_forked_meanwhile_puts_off_the_end() {
    let mut it = stage();
    it.server(8000);
    it.disconnect();
    it.ends(1, 0);
    assert_eq!(it.heard().last().map(String::as_str), Some("finished"));
    it.server(8000);
    it.server(8000);
    it.disconnect();
    it.ends(2, 0);
    let late = it.fork();
    it.ends(3, 0);
    assert!(!it.heard().contains(&"finished".to_owned()));
    it.online(late);
    it.ends(late, 0);
    assert!(it.heard().contains(&"finished".to_owned()));
}

#[test]
fn leaving_right_after_fork_waits_until_it_is_up() {
    let mut it = stage();
    it.fork();
    it.fork();
    it.disconnect();
    for worker in [1, 2] {
        assert_eq!(is_asked(&mut it, worker), 1, "it waits in the channel");
        it.online(worker);
        it.ends(worker, 0);
    }
    let told = it.heard();
    for expected in ["online 1", "exit 1 exit code 0 true", "exit 2 exit code 0 true", "finished"] {
        assert!(told.contains(&expected.to_owned()), "{told:?}");
    }
}

#[test]
fn who_shares_no_listener_disturbs_none() {
    for mechanism in [Mechanism::Handoff, Mechanism::Share] {
        let mut it = Stage::new(mechanism, Speaks::Node);
        it.server(8000);
        it.worker();
        it.leave(2, None);
        it.ends(2, 0);
        assert!(it.socket_at(8000).is_some());
        assert_eq!(it.state(1), "listening");
    }
}

#[test]
fn who_leaves_listens_no_more() {
    // Node's worker would crash on an error while it drains: it gets no answer, and drains.
    let mut it = stage();
    it.server(8000);
    it.leave(1, None);
    let seq = it.act(1, "queryServer", tcp("127.0.0.1", 9000, 0));
    assert_eq!(it.answer_to(1, seq), None);
    assert!(it.sockets.is_empty(), "the first one left, and nothing came");
    // A worker of the library gets the error.
    let mut it = Stage::new(Mechanism::Handoff, Speaks::Phalanx);
    it.server(8000);
    it.leave(1, None);
    assert_eq!(it.ask(1, tcp("127.0.0.1", 9000, 0)).0["errno"], -125, "ECANCELED");
    assert!(it.sockets.is_empty());
}

#[test]
fn every_order_of_listening_leaving_and_dying_leaves_no_listener() {
    for mechanism in [Mechanism::Handoff, Mechanism::Share] {
        // Each of the four at each place.
        for order in 0..24_usize {
            let mut steps = vec![0, 1, 2, 3];
            let mut n = order;
            let order: Vec<usize> = (1..=4)
                .rev()
                .map(|left| {
                    let at = n % left;
                    n /= left;
                    steps.remove(at)
                })
                .collect();
            let mut it = Stage::new(mechanism, Speaks::Node);
            it.slow = true;
            it.worker();
            for step in &order {
                match step {
                    0 => drop(it.act(1, "queryServer", tcp("127.0.0.1", 8000, 0))),
                    1 => it.leave(1, None),
                    2 => it.channel_ends(1),
                    _ => it.dies(1, Ended::Code(0)),
                }
            }
            it.let_bind();
            assert!(it.primary.is_empty() && it.sockets.is_empty(), "{order:?}");
        }
    }
}

#[test]
fn a_kill_of_a_disconnected_worker_signals_at_once() {
    let mut it = stage();
    it.worker();
    it.channel_ends(1);
    it.leave(1, Some(15));
    assert_eq!(it.signals, [(1, 15)]);
}

#[test]
fn a_kill_is_voluntary_and_a_signal_from_elsewhere_is_not() {
    let mut it = stage();
    it.server(8000);
    it.server(8000);
    it.leave(1, Some(10));
    assert_eq!((it.voluntary(1), it.signals.len()), (Some(true), 0), "it is asked first");
    it.channel_ends(1);
    assert_eq!(it.signals, [(1, 10)], "the signal that was named");
    it.dies(1, Ended::Signal(10, false));
    it.dies(2, Ended::Signal(9, false));
    it.channel_ends(2);
    let told = it.heard();
    assert!(told.contains(&"exit 1 killed by signal 10 true".to_owned()), "{told:?}");
    assert!(told.contains(&"exit 2 killed by signal 9 false".to_owned()), "{told:?}");
}

#[test]
fn a_stuck_worker_is_gone_within_its_deadlines() {
    let mut it = stage();
    it.server(8000);
    it.leave(1, Some(15));
    it.pass(Duration::from_secs(29));
    assert_eq!(it.signals, []);
    it.pass(Duration::from_secs(2));
    assert_eq!(it.signals, [(1, 15)]);
    it.pass(Duration::from_secs(5));
    assert_eq!(it.signals, [(1, 15), (1, 9)]);
}

#[test]
fn nothing_is_said_to_who_cannot_hear() {
    let mut it = stage();
    it.server(8000);
    it.channel_ends(1);
    it.got(1);
    it.leave(1, None);
    it.disconnect();
    assert_eq!(it.got(1), Vec::<(serde_json::Value, Carry)>::new());
}
