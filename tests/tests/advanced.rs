//! Node's `serialization: 'advanced'`, on either side of a channel.

use phalanx::{Cluster, Event, Events, Hurry, Output, Serialization, Speaks, WorkerRef};
use phalanx_core::wire::{Decoder, Message, Outbox, Payload, Seq, encode};
use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{Phalanx, Process, Signal, free_port, kill};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// All but 0.12, which does not know it.
const NODE_VERSIONS: &[&str] = &["18", "20", "22", "26"];

/// What Node sends and JSON has no form for.
const FOREIGN: [&str; 4] = ["new Map([[1, 2]])", "{ a: [new Date(0)] }", "Buffer.from('bytes')", "[10n]"];

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).expect("hexadecimal") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What we make of a value that Node has serialized.
fn read(value: &[u8]) -> Message {
    let frame = [&u32::try_from(value.len()).expect("short").to_be_bytes()[..], value].concat();
    let mut decoder = Decoder::<()>::new(1 << 20).serialization(Serialization::Advanced);
    let read = decoder.feed(&frame, None).next().expect("a whole frame");
    read.unwrap_or_else(|error| panic!("{}: {error}", hex_of(value))).message
}

/// What we make of a JSON text, without its length.
fn written(text: &str) -> Vec<u8> {
    let mut outbox = Outbox::<()>::new().serialization(Serialization::Advanced);
    let message = Message::User(Payload::new(text).expect("JSON"));
    outbox.push_with(None, |out| encode(&message, Seq(0), out));
    outbox.peek().expect("a frame").bytes[4..].to_vec()
}

#[test]
fn every_node_and_we_mean_the_same_by_the_same_bytes() {
    for version in NODE_VERSIONS {
        let Some(mut command) = lab::node_command(version, "values.js") else { continue };
        let mut node = Process::start(&mut command);
        node.wait_line("values end");
        let lines = node.lines();
        let values: Vec<Value> =
            lines.iter().filter_map(|line| serde_json::from_str(&line.text).ok()).collect();
        assert!(values.len() > 60, "v{version}: {values:?}");
        let mut texts = Vec::new();
        for value in &values {
            let bytes = bytes_of(value["hex"].as_str().expect("bytes"));
            match value["json"].as_str() {
                Some(json) => {
                    let expected = Message::User(Payload::new(json).expect("JSON"));
                    assert_eq!(read(&bytes), expected, "v{version}");
                    texts.push((json.to_owned(), json.to_owned()));
                }
                None => assert_eq!(read(&bytes), Message::Opaque(bytes.into()), "v{version}"),
            }
        }
        for (text, json) in [
            (r#"{"a":1,"€":2,"a":[],"b":"€","a":{"x":"€"}}"#, r#"{"€":2,"b":"€","a":{"x":"€"}}"#),
            (" [ 1.0 , 1E3 , -0.5e-10,123456789012 ] ", "[1,1000,-5e-11,123456789012]"),
            (r#""\u00e9\/\ud83d\ude00\ud800""#, r#""é/😀\ud800""#),
            (r#"{"7":1,"a":2,"3":3}"#, r#"{"3":3,"7":1,"a":2}"#),
        ] {
            texts.push((text.to_owned(), json.to_owned()));
        }
        let from = node.line_count();
        for (text, _) in &texts {
            node.say(&hex_of(&written(text)));
        }
        let told = node.wait_lines("all were read", |lines| {
            let told: Vec<String> = lines.iter().skip(from).map(|line| line.text.clone()).collect();
            (told.len() == texts.len()).then_some(told)
        });
        let expected: Vec<&String> = texts.iter().map(|(_, json)| json).collect();
        assert!(told.iter().eq(expected.iter().copied()), "v{version}: {told:?}\n{expected:?}");
        node.close_stdin();
        assert_eq!(node.wait().code(), Some(0));
    }
}

#[test]
fn a_rust_worker_and_every_node_tell_each_other_all_there_is() {
    for version in NODE_VERSIONS {
        let Some(mut command) = lab::node_command(version, "primary.js") else { continue };
        command.args(["--serialization", "advanced", "--workers", "1", "--"]);
        let mut process = Process::start(command.arg(lab::binary("obedient")));
        process.wait_events("message", 1);
        let long = "é€".repeat(50_000);
        for what in [json!({"n": [1, null, "ä", {"😀": 1.5}]}), json!(long)] {
            process.say(&format!("send 1 {}", json!({ "do": "show", "what": what })));
        }
        let told = process.wait_events("message", 3);
        assert_eq!(told[1]["message"]["what"], json!({"n": [1, null, "ä", {"😀": 1.5}]}), "v{version}");
        assert_eq!(told[2]["message"]["what"], long, "v{version}");
        for what in FOREIGN {
            process.say(&format!("give 1 {what}"));
        }
        process.say("give 1 new Map with one");
        process.say("give 1 { do: 'show', what: 'a connection' } with one");
        let told = process.wait_events("message", 3 + FOREIGN.len() + 2);
        let (foreign, with) = told[3..].split_at(FOREIGN.len());
        for it in foreign {
            let bytes: Vec<u8> = serde_json::from_value(it["message"]["bytes"].clone()).expect("bytes");
            assert!(bytes.starts_with(b"\xff\x0f"), "v{version}: {it}");
            assert_eq!(it["message"]["socket"], false, "v{version}: {it}");
        }
        assert_eq!(with[0]["message"]["socket"], true, "v{version}: {with:?}");
        assert_eq!(with[1]["message"]["what"], "a connection", "v{version}: {with:?}");
        assert_eq!((&with[0]["handle"], &with[1]["handle"]), (&json!(false), &json!(true)), "v{version}");
        process.say("disconnect");
        assert_eq!(process.wait().code(), Some(0), "v{version}");
    }
}

#[test]
fn every_node_serves_under_phalanx() {
    let ways = [("handoff", "round-robin"), ("share", "none")];
    for (version, (mechanism, policy)) in
        NODE_VERSIONS.iter().flat_map(|version| ways.map(|way| (version, way)))
    {
        let Some(node) = lab::node(version) else { continue };
        let port = free_port();
        let mut phalanx = Phalanx::run("advanced")
            .workers(2)
            .env("PORT", port.to_string())
            .options(["--serialization", "advanced", "--mechanism", mechanism, "-p", policy])
            .start([node.into_os_string(), lab::fixture("http.js").into_os_string()]);
        phalanx.wait_listening(2);
        Load::port(port).clients(4).connections(200).run().assert_all_served();
        assert_eq!(phalanx.status()["listeners"][0]["mechanism"], mechanism);
        phalanx.finish();
    }
}

#[test]
fn a_node_that_does_not_know_it_is_told_of() {
    let Some(node) = lab::node("0.12") else { return };
    let phalanx = Phalanx::run("too-old")
        .workers(1)
        .env("PORT", free_port().to_string())
        .options(["--serialization", "advanced"])
        .start([node.into_os_string(), lab::fixture("http.js").into_os_string()]);
    phalanx.wait_line("which Node knows from 12.16 on");
    phalanx.finish();
}

const NODE: &str = "
    const show = (message) => {
        if (message instanceof Map) process.send({ map: [...message] });
        else process.send(message);
    };
    process.on('message', (message) => message === 'foreign' ? process.send(new Map([[1, 2]])) : show(message));
    process.send('up');
";

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn hear(events: &mut Events) -> Event {
    let heard = std::iter::from_fn(|| events.blocking_recv())
        .find(|event| matches!(event, Event::Message { .. } | Event::Opaque { .. }));
    heard.expect("a message")
}

/// It never reads on when a read ends inside a length.
#[test]
fn node_18_reads_on_however_much_waits() {
    let Some(node) = lab::node("18") else { return };
    let script = "let sum = 0; process.on('message', (n) => n < 0 ? process.send(sum) : sum += n);";
    let builder = Cluster::builder().exec(node).args(["-e", script, "[eval]"]).channel(Speaks::Node);
    let builder = builder.serialization(Serialization::Advanced).output(Output::Inherit);
    let primary = builder.start().expect("a primary");
    let mut events = primary.events();
    let worker = primary.fork([("NONE", "")]).expect("a worker");
    assert_eq!(echo(&worker, &mut events, &json!(-1)), 0);
    kill(worker.pid().expect("it lives"), Signal::STOP).expect("stopped");
    let mut sum = 0_u64;
    // More than a mebibyte in frames of a few bytes: some twenty reads.
    for n in (0..5000).cycle() {
        if worker.try_send(&n).is_err() {
            break;
        }
        sum += n;
    }
    kill(worker.pid().expect("it lives"), Signal::CONT).expect("continued");
    assert_eq!(echo(&worker, &mut events, &json!(-1)), sum);
    primary.stop(Hurry::Graceful).wait();
}

fn echo(worker: &WorkerRef, events: &mut Events, what: &Value) -> Value {
    block_on(worker.send(what)).expect("sent");
    match hear(events) {
        Event::Message { message, handle: None, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_worker_and_a_rust_primary_tell_each_other_all_there_is() {
    for version in NODE_VERSIONS {
        let Some(node) = lab::node(version) else { continue };
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("worker.js");
        std::fs::write(&script, NODE).expect("a script");
        let builder = Cluster::builder().exec(node).args([script]).channel(Speaks::Node);
        let builder = builder.serialization(Serialization::Advanced).output(Output::Inherit);
        let primary = builder.start().expect("a primary");
        let mut events = primary.events();
        let worker = primary.fork([("NONE", "")]).expect("a worker");
        assert!(matches!(hear(&mut events), Event::Message { message, .. } if message == "up"));
        for what in [
            json!({"n": [1, null, "ä", {"😀": 1.5}], "": false}),
            json!(["é€".repeat(50_000), -1, 4_294_967_296_u64]),
            json!("\0"),
        ] {
            assert_eq!(echo(&worker, &mut events, &what), what, "v{version}");
        }
        worker.try_send("foreign").expect("room");
        let opaque = hear(&mut events);
        assert_eq!(
            serde_json::to_value(&opaque).expect("JSON"),
            json!({"event": "opaque", "worker": 1, "bytes": 9})
        );
        let Event::Opaque { bytes, handle: None, .. } = opaque else { panic!("v{version}: {opaque:?}") };
        assert_eq!(*bytes, *b"\xff\x0f;I\x02I\x04:\x02", "v{version}");
        primary.stop(Hurry::Graceful).wait();
    }
}
