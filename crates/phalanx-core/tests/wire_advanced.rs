//! Frames as Node writes them with `serialization: 'advanced'`, byte by byte.

use phalanx_core::wire::{
    Decoder, Frame, HandleKind, Message, Outbox, Payload, Reply, Seq, Serialization, Violation, encode,
    encode_enveloped,
};

/// Captured from Node 20.
const ONLINE: &[u8] = b"\0\0\0\x2c\xff\x0fo\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x06online\"\x03seqI\0{\x03";
const ACK: &[u8] = b"\0\0\0\x1b\xff\x0fo\"\x03cmd\"\x0fNODE_HANDLE_ACK{\x01";
const NEW_CONNECTION: &[u8] = b"\0\0\0\x7c\xff\x0fo\"\x03cmd\"\x0bNODE_HANDLE\"\x04type\"\x0anet.Native\"\x03msg\
    o\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x07newconn\"\x03key\"\x1c127.0.0.1:8124:4:undefined:0\"\x03seqI\x02{\x04{\x03";

fn feed(chunk: &[u8], handle: Option<u32>) -> Vec<Result<Frame<u32>, Violation>> {
    Decoder::new(1000).serialization(Serialization::Advanced).feed(chunk, handle).collect()
}

/// A frame of this value.
fn framed(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(2 + value.len()).unwrap();
    [&length.to_be_bytes()[..], b"\xff\x0f", value].concat()
}

fn read(value: &[u8]) -> Result<Message, Violation> {
    let mut frames = feed(&framed(value), None);
    assert_eq!(frames.len(), 1);
    frames.remove(0).map(|frame| frame.message)
}

fn json(value: &[u8]) -> String {
    match read(value) {
        Ok(Message::User(payload)) => String::from_utf8(payload.into_bytes()).unwrap(),
        other => panic!("{}: {other:?}", value.escape_ascii()),
    }
}

/// What leaves for a text.
fn written(text: &str) -> Vec<u8> {
    let mut outbox = Outbox::<()>::new().serialization(Serialization::Advanced);
    let message = Message::User(Payload::new(text).unwrap());
    outbox.push_with(None, |out| encode(&message, Seq(0), out));
    outbox.peek().unwrap().bytes.to_vec()
}

#[test]
fn nodes_own_frames_are_understood() {
    let stream = [ONLINE, ACK, NEW_CONNECTION].concat();
    let frames: Vec<_> = feed(&stream, Some(7)).into_iter().map(Result::unwrap).collect();
    let key = "127.0.0.1:8124:4:undefined:0".to_owned();
    let messages = [Message::Online, Message::HandleAck, Message::NewConnection { seq: Seq(1), key }];
    assert!(frames.iter().map(|frame| &frame.message).eq(&messages));
    assert_eq!(frames[2].envelope, Some(HandleKind::NetNative.into()));
    assert_eq!(frames[2].handle, Some(7));
}

#[test]
fn ours_are_nodes_own_but_for_version_and_length() {
    let mut outbox = Outbox::<u32>::new().serialization(Serialization::Advanced);
    outbox.push_with(None, |out| encode(&Message::Online, Seq(0), out));
    let ours = |bytes: &[u8]| {
        let mut ours = bytes.to_vec();
        ours[5] = b'\x0d';
        // Node 18 needs lengths that no read of its cuts.
        while !ours.len().is_multiple_of(4) {
            ours.push(0);
            ours[3] += 1;
        }
        ours
    };
    assert_eq!(outbox.peek().unwrap().bytes, ours(ONLINE));
    outbox.sent(ONLINE.len());
    outbox.push_receipt(true);
    assert_eq!(outbox.peek().unwrap().bytes, ours(ACK));
    outbox.sent(ours(ACK).len());
    let connection = Message::NewConnection { seq: Seq(0), key: "127.0.0.1:8124:4:undefined:0".into() };
    outbox.push_with(Some(7), |out| encode_enveloped(HandleKind::NetNative, &connection, Seq(1), out));
    let next = outbox.peek().unwrap();
    assert_eq!((next.bytes, next.carry), (&ours(NEW_CONNECTION)[..], Some(&7)));
    // Still so after a channel has closed.
    outbox.clear();
    outbox.push_receipt(true);
    assert_eq!(outbox.peek().unwrap().bytes, ours(ACK));
}

#[test]
fn what_json_can_say_is_json() {
    for (value, text) in [
        (&b"0"[..], "null"),
        (b"T", "true"),
        (b"F", "false"),
        (b"I\x03", "-2"),
        (b"I\xff\xff\xff\xff\x0f", "-2147483648"),
        (b"U\xff\xff\xff\xff\x0f", "4294967295"),
        (b"N\0\0\0\0\0\0\xf8\x3f", "1.5"),
        (b"N\0\0\0\0\0\0\xf0\x41", "4294967296"),
        (b"N\0\0\0\0\0\0\0\x80", "0"),
        (b"N\0\0\0\0\0\0\xf8\x7f", "null"),
        (b"N\x9c\x75\0\x88\x3c\xe4\x37\x7e", "1e+300"),
        (b"\"\x03a\xe9\"", "\"aé\\\"\""),
        (b"\0c\x04\xac\x20\0\xd8", "\"€\\ud800\""),
        (b"S\x03\xe2\x82\xac", "\"€\""),
        (b"\"\x02\n\x01", "\"\\n\\u0001\""),
        (b"A\0$\0\0", "[]"),
        (b"A\x03I\x02_-$\0\x03", "[1,null,null]"),
        (b"a\x04I\x02TI\x04A\0$\0\0@\x02\x04", "[null,true,[],null]"),
        (b"o{\0", "{}"),
        (b"o\"\x01a_\"\x01bo\"\x01c_{\x01\"\x01d_{\x03", "{\"b\":{}}"),
        (b"oI\x02I\x04N\0\0\xc0\xff\xff\xff\xefATU\x05F{\x03", "{\"1\":2,\"4294967294\":true,\"5\":false}"),
        // As Node does: what stands behind the value is ignored.
        (b"TT", "true"),
    ] {
        assert_eq!(json(value), text, "{}", value.escape_ascii());
    }
    // An older header.
    assert!(matches!(feed(b"\0\0\0\x03\xff\x0dT", None)[0], Ok(Frame { message: Message::User(_), .. })));
}

#[test]
fn what_it_cannot_say_is_given_as_it_came() {
    for value in [
        &b";:\0"[..],
        b"D\0\0\0\0\0\0\0\0",
        b"_",
        b"\\\x0a\x02hi",
        b"A\x02o\"\x01aI\x02{\x01^\x01$\0\x02",
        b"A\x01I\x02\"\x01aI\x04$\x01\x01",
        b"o\"\x01a;:\0{\x01",
        b"o\"\x03cmd\"\x05NODE_\"\x01a;:\0{\x02",
        // Four thousand million holes.
        b"a\xff\xff\xff\xff\x0f@\0\xff\xff\xff\xff\x0f",
        b"a\x02I\x02TI\0T@\x02\x02",
        b"a\x02\"\x01aT@\x01\x02",
    ] {
        let bytes = [b"\xff\x0f", value].concat().into();
        assert_eq!(read(value), Ok(Message::Opaque(bytes)), "{}", value.escape_ascii());
    }
    // Longer as JSON than a frame may be.
    let long = [b"\"\xc8\x01", &[1; 200][..]].concat();
    assert!(matches!(read(&long), Ok(Message::Opaque(_))));
    let deep = b"A\x01".repeat(400);
    assert!(matches!(read(&deep), Err(Violation::NotSerialized(_))), "it has no end");
}

#[test]
fn a_socket_comes_with_what_json_cannot_say() {
    let value = b"o\"\x03cmd\"\x0bNODE_HANDLE\"\x04type\"\x0anet.Socket\"\x03msg;:\0{\x03";
    let mut frames = feed(&framed(value), Some(7));
    let frame = frames.remove(0).unwrap();
    assert_eq!(frame.message, Message::Opaque([b"\xff\x0f", &value[..]].concat().into()));
    assert_eq!((frame.envelope.unwrap().kind, frame.handle), (HandleKind::NetSocket, Some(7)));
}

#[test]
fn a_control_message_holds_nothing_of_that_kind() {
    let value = b"o\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x06online\"\x03seqI\0\"\x01a;:\0{\x04";
    assert!(matches!(read(value), Err(Violation::Foreign(_))));
    // What nobody knows is nobody's business.
    assert_eq!(read(b"o\"\x03cmd\"\x06NODE_X\"\x01a;:\0{\x02"), Ok(Message::Unknown));
    assert!(matches!(
        read(b"o\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x05close\"\x01a;:\0{\x03"),
        Err(Violation::Field { field: "key", .. })
    ));
}

#[test]
fn what_is_no_value_ends_the_channel() {
    for value in [
        &b""[..],
        b"A\x02I\x02$\0\x02",
        b"A\x01I\x02$\0\x02",
        b"A\x01I\x02$\x01\x01",
        b"o\"\x01aT{\x02",
        b"oTT{\x01",
        b"o",
        b"o\"\x01a{\x01",
        b"I\xff\xff\xff\xff\x1f",
        b"I\x80\x80\x80\x80\x80\0",
        b"\"\x05abc",
        b"c\x03abc",
        b"N\0\0\0",
        b"a\x01I\0T@\x02\x01",
        b"{\0",
        b"$\0\0",
        b"\0\0\0",
    ] {
        assert!(matches!(read(value), Err(Violation::NotSerialized(_))), "{}", value.escape_ascii());
    }
    for frame in [
        &b"\0\0\0\0"[..],
        b"\0\0\0\x01\xff",
        b"\0\0\0\x03\xff\x10T",
        b"\0\0\0\x03\xff\x0cT",
        b"\0\0\0\x03\xfe\x0fT",
    ] {
        assert!(matches!(feed(frame, None)[0], Err(Violation::NotSerialized(_))), "{}", frame.escape_ascii());
    }
    // Nothing is waited for that may not come.
    assert!(matches!(feed(b"\0\0\x03\xe9", None)[0], Err(Violation::TooLong { limit: 1000, .. })));
    assert_eq!(feed(b"\0\0\x03\xe8", None), []);
    assert!(matches!(feed(b"{\"cmd\":", None)[0], Err(Violation::NotAFrame(_))));
}

#[test]
fn what_leaves_is_what_v8_would_write() {
    for (text, value) in [
        ("null", &b"0"[..]),
        (" [ ] ", b"A\x80\x80\x80\x80\0$\0\0"),
        (
            "[1, -1,2147483648,1.0,-0]",
            b"A\x85\x80\x80\x80\0I\x02I\x01N\0\0\0\0\0\0\xe0\x41I\x02N\0\0\0\0\0\0\0\x80$\0\x05",
        ),
        ("{\"a\\u0000é\\\\\\n\":{},\"bc\":\"€\"}", b"o\"\x05a\0\xe9\\\no{\0\"\x02bc\0c\x02\xac\x20{\x02"),
        // Of equal names the last counts, wherever it stands.
        (
            "{\"a\":[],\"b\":{\"a\":1,\"\\u0061\":2},\"a\":3,\"c\":4}",
            b"o\"\x01bo\"\x01aI\x04{\x01\"\x01aI\x06\"\x01cI\x08{\x03",
        ),
        ("\"\\ud83d\\ude00\\ud800\"", b"c\x06\x3d\xd8\0\xde\0\xd8"),
    ] {
        let bytes = written(text);
        assert!(bytes.len().is_multiple_of(4), "{text}");
        let mut expected = [b"\xff\x0d", value].concat();
        expected.resize(expected.len().next_multiple_of(4), 0);
        assert_eq!(bytes[4..].escape_ascii().to_string(), expected.escape_ascii().to_string(), "{text}");
    }
}

#[test]
fn depth_costs_no_stack() {
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let frame = written(&deep);
    let decoder = |limit| Decoder::<u32>::new(limit).serialization(Serialization::Advanced);
    let message = decoder(1 << 20).feed(&frame, None).next().unwrap().unwrap().message;
    assert_eq!(message, Message::User(Payload::new(deep).unwrap()));
    let deeper = format!("{}{}", "[".repeat(70_000), "]".repeat(70_000));
    let message = decoder(1 << 20).feed(&written(&deeper), None).next().unwrap().unwrap().message;
    assert!(matches!(message, Message::Opaque(_)));
}

#[test]
fn an_answer_is_one_frame() {
    let answer = Message::Reply(Reply::answer(Seq(3), false));
    let mut outbox = Outbox::<()>::new().serialization(Serialization::Advanced);
    outbox.push_with(None, |out| encode(&answer, Seq(1), out));
    // What is never written leaves nothing behind.
    outbox.push_with(None, |out| encode(&Message::Opaque(Box::default()), Seq(2), out));
    assert_eq!(outbox.queued_frames(), 1);
    let frames = feed(outbox.peek().unwrap().bytes, None);
    assert_eq!(frames.into_iter().map(|frame| frame.unwrap().message).collect::<Vec<_>>(), [answer]);
}
