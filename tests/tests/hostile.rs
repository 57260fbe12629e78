//! Workers that misbehave: one is ended and replaced, nobody else notices.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, free_port};

/// The worker of slot 0 misbehaves once; its successor and the other serve.
fn survives(mode: &str) {
    let port = free_port();
    let dir = tempfile::tempdir().expect("a directory");
    let marker = dir.path().join("once");
    let mut phalanx = Phalanx::run("hostile").workers(2).options(["--channel", "phalanx"]).start([
        lab::raw_worker().into_os_string(),
        "--mode".into(),
        mode.into(),
        "--port".into(),
        port.to_string().into(),
        "--only-slot".into(),
        "0".into(),
        "--first-only".into(),
        marker.into_os_string(),
    ]);
    let status = phalanx.wait_status(&format!("{mode}: slot 0 has a successor that serves"), |status| {
        status["workers"].as_array().is_some_and(|all| {
            all.len() == 2
                && all.iter().all(|worker| worker["state"] == "listening")
                && all[0]["restarts"].as_u64() >= Some(1)
        })
    });
    assert_eq!(status["workers"][1]["restarts"], 0, "{mode}: the other noticed nothing");
    Load::port(port).clients(4).connections(100).run().assert_all_served();
    phalanx.finish();
}

/// What it says last is nonsense, and its channel is closed before the primary reads it.
#[test]
fn nonsense_on_a_closed_channel_is_survived() {
    const SCRIPT: &str = r#"
        if [ "$PHALANX_SLOT" = 0 ] && mkdir "$0" 2>/dev/null; then
            fd=${PHALANX_CHANNEL%%:*}
            kill -STOP $PPID
            echo nonsense >&$fd
            eval "exec $fd>&-"
            kill -CONT $PPID
            exec sleep 600
        fi
        exec "$@""#;
    let port = free_port();
    let dir = tempfile::tempdir().expect("a directory");
    let mut phalanx = Phalanx::run("nonsense").workers(2).options(["--channel", "phalanx"]).start([
        "bash".into(),
        "-c".into(),
        SCRIPT.into(),
        dir.path().join("once").into_os_string(),
        lab::binary("service").into_os_string(),
        "tcp".into(),
        port.to_string().into(),
    ]);
    let status = phalanx.wait_listening(2);
    assert_eq!(status["workers"][0]["restarts"], 1, "{status}");
    phalanx.finish();
}

macro_rules! survives {
    ($($name:ident: $mode:literal;)+) => {
        $(#[test]
        fn $name() {
            survives($mode);
        })+
    };
}

survives! {
    exits_before_online: "exit-before-online";
    exits_after_online: "exit-after-online";
    asks_and_exits: "query-then-exit";
    sends_garbage: "garbage";
    sends_an_endless_line: "oversized";
    sends_a_surplus_receipt: "surplus-ack";
    nests_deeply: "deep-nesting";
    closes_its_channel: "close-channel";
}
