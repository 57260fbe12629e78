//! The steps of a life.

use super::*;

fn life(speaks: Speaks, supervised: bool) -> Life {
    Life::new(speaks, Limits::default(), supervised).0
}

fn drive(life: &mut Life, inputs: Vec<Input>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for input in inputs {
        life.on(input, &mut effects);
    }
    effects
}

fn announced(effects: &[Effect]) -> Vec<&Announce> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Announce(what) = effect { Some(what) } else { None })
        .collect()
}

#[test]
fn exit_and_disconnect_come_in_either_order_and_each_once() {
    for flip in [false, true] {
        let mut life = life(Speaks::Node, false);
        let mut ends = vec![Input::ChannelClosed, Input::Ended(Ended::Code(0))];
        if flip {
            ends.reverse();
        }
        let mut effects = drive(&mut life, vec![Input::Online, Input::Listening]);
        effects.extend(drive(&mut life, ends));
        effects.extend(drive(&mut life, vec![Input::ChannelClosed, Input::Ended(Ended::Code(0))]));
        assert_eq!(life.state(), State::Gone);
        assert_eq!(life.exited_after_disconnect(), Some(false));
        let (first, second) = (&Announce::Disconnect, &Announce::Exit(Ended::Code(0)));
        let expected = if flip { [second, first] } else { [first, second] };
        assert_eq!(announced(&effects)[1..], expected);
        assert_eq!(effects.iter().filter(|e| **e == Effect::Forget).count(), 1);
        assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Fence(_))).count(), 1);
    }
}

#[test]
fn a_disconnect_is_voluntary_at_once_and_leaves_the_process_alone() {
    let mut life = life(Speaks::Node, false);
    drive(&mut life, vec![Input::Online]);
    let effects = drive(&mut life, vec![Input::Leave { then: None }]);
    assert_eq!(life.exited_after_disconnect(), Some(true));
    assert!(effects.contains(&Effect::AskToLeave));
    let effects = drive(&mut life, vec![Input::Leave { then: None }, Input::ChannelClosed]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Signal(_) | Effect::AskToLeave)), "{effects:?}");
    assert_eq!(life.on(Input::Timeout, &mut Vec::new()), None);
}

#[test]
fn a_kill_asks_first_then_signals_then_kills() {
    let mut life = life(Speaks::Node, true);
    drive(&mut life, vec![Input::Online]);
    let mut effects = Vec::new();
    let deadline = life.on(Input::Leave { then: Some(15) }, &mut effects);
    assert_eq!(deadline, Some(Some(YIELD)));
    assert!(effects.contains(&Effect::LeaveListeners));
    assert!(!effects.contains(&Effect::AskToLeave), "what it accepted last is still to be read: {effects:?}");
    effects.clear();
    let deadline = life.on(Input::Timeout, &mut effects);
    assert_eq!(effects, [Effect::AskToLeave]);
    assert_eq!(deadline, Some(Some(Limits::default().drain_timeout)));
    effects.clear();
    let deadline = life.on(Input::Timeout, &mut effects);
    assert_eq!(effects, [Effect::Signal(15)]);
    assert_eq!(deadline, Some(Some(Limits::default().term_timeout)));
    effects.clear();
    assert_eq!(life.on(Input::Timeout, &mut effects), Some(None));
    assert_eq!(effects, [Effect::Signal(SIGKILL)]);
    assert_eq!(life.cause(), Some(&Cause::DrainTimeout), "the first cause is the one that counts");
}

#[test]
fn a_drain_after_the_stop_signal_gets_no_more_time() {
    for speaks in [Speaks::Phalanx, Speaks::Nothing] {
        for late in [|| Input::GaveUp, || Input::LeaveNotice, || Input::Leave { then: Some(15) }] {
            let mut life = life(speaks, true);
            drive(&mut life, vec![Input::Online, Input::Listening, Input::Terminate]);
            assert_eq!(life.on(late(), &mut Vec::new()), None, "the deadline stays");
            assert_eq!(drive(&mut life, vec![Input::Timeout]), [Effect::Signal(SIGKILL)]);
        }
    }
}

#[test]
fn drained_means_the_signal_follows_at_once() {
    let mut life = life(Speaks::Node, true);
    drive(&mut life, vec![Input::Online, Input::Leave { then: Some(15) }]);
    let effects = drive(&mut life, vec![Input::ChannelClosed]);
    assert_eq!(effects, [Effect::CloseChannel, Effect::Announce(Announce::Disconnect), Effect::Signal(15)]);
}

#[test]
fn a_plain_program_is_asked_by_signal() {
    for speaks in [Speaks::Nothing, Speaks::Perhaps] {
        let mut life = life(speaks, true);
        let effects = drive(&mut life, vec![Input::Leave { then: Some(15) }]);
        assert!(effects.contains(&Effect::LeaveListeners));
        let told = |effect: &Effect| matches!(effect, Effect::Signal(_) | Effect::AskToLeave);
        assert!(!effects.iter().any(told), "what it accepted last is still to be read: {effects:?}");
        assert_eq!(drive(&mut life, vec![Input::Timeout]), [Effect::Signal(15)]);
        let effects = drive(&mut life, vec![Input::Timeout]);
        assert_eq!(effects, [Effect::Signal(SIGKILL)]);
        let effects = drive(&mut life, vec![Input::Ended(Ended::Signal(9, false))]);
        assert_eq!(life.state(), State::Gone);
        assert!(!announced(&effects).contains(&&Announce::Disconnect));
    }
}

#[test]
fn a_violation_closes_the_channel_and_ends_the_worker() {
    let mut life = life(Speaks::Phalanx, false);
    let effects = drive(&mut life, vec![Input::Violation(Violation::BeforeOnline)]);
    assert!(effects.contains(&Effect::CloseChannel));
    assert_eq!(life.state(), State::Disconnected);
    assert_eq!(drive(&mut life, vec![Input::Timeout]), [Effect::Signal(15)]);
    assert_eq!(drive(&mut life, vec![Input::Timeout]), [Effect::Signal(SIGKILL)]);
    assert!(matches!(life.cause(), Some(Cause::Protocol(_))));
}

/// A Node worker may; nobody else gets so far.
#[test]
fn who_says_something_before_online_still_comes_online() {
    let mut life = life(Speaks::Node, false);
    let mut effects = Vec::new();
    assert_eq!(life.on(Input::Listening, &mut effects), None);
    assert_eq!((life.state(), &effects[..]), (State::Listening, &[][..]));
    assert_eq!(life.on(Input::Online, &mut effects), Some(None), "the deadline is gone");
    assert_eq!(life.on(Input::Online, &mut effects), None);
    assert_eq!((life.state(), announced(&effects)), (State::Listening, vec![&Announce::Online]));
}

#[test]
fn who_never_comes_online_is_killed() {
    let (mut life, deadline) = Life::new(Speaks::Node, Limits::default(), true);
    assert_eq!(deadline, Limits::default().start_timeout);
    assert_eq!(drive(&mut life, vec![Input::Timeout]), [Effect::Signal(SIGKILL)]);
    assert_eq!(life.cause(), Some(&Cause::NeverOnline));
    assert_eq!(Life::new(Speaks::Perhaps, Limits::default(), true).1, None);
}

/// Every state meets every input: nothing panics, a dead worker gets no signal, and the end is the end.
#[test]
fn every_pair_of_state_and_input() {
    let reach: Vec<(State, Vec<Input>)> = vec![
        (State::Starting, vec![]),
        (State::Online, vec![Input::Online]),
        (State::Listening, vec![Input::Online, Input::Listening]),
        (State::Draining, vec![Input::Online, Input::Leave { then: None }]),
        (State::Disconnected, vec![Input::Online, Input::ChannelClosed]),
        (State::Exited, vec![Input::Online, Input::Ended(Ended::Code(1))]),
        (State::Gone, vec![Input::Online, Input::ChannelClosed, Input::Ended(Ended::Code(1))]),
    ];
    for (state, path) in reach {
        let mut life = life(Speaks::Node, false);
        drive(&mut life, path);
        assert_eq!(life.state(), state);
        let inputs: Vec<fn() -> Input> = vec![
            || Input::Online,
            || Input::Listening,
            || Input::Accepts,
            || Input::GaveUp,
            || Input::LeaveNotice,
            || Input::Leave { then: None },
            || Input::Leave { then: Some(15) },
            || Input::Terminate,
            || Input::Kill,
            || Input::ChannelClosed,
            || Input::Ended(Ended::Code(0)),
            || Input::Timeout,
        ];
        for input in inputs {
            let mut life = Life { state, cause: None, ..Life::new(Speaks::Node, Limits::default(), false).0 };
            let effects = drive(&mut life, vec![input()]);
            assert!(life.state() >= state || state == State::Disconnected, "{state} went back");
            if !state.is_alive() {
                assert!(!effects.iter().any(|e| matches!(e, Effect::Signal(_))), "{state}: {effects:?}");
            }
            if state == State::Gone {
                assert_eq!(effects, []);
            }
        }
    }
}
