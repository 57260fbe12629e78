//! No bytes can make a decoder panic or hold more than it may.

use std::rc::Rc;

use phalanx_core::wire::{Decoder, Message, Serialization, Violation};
use proptest::prelude::*;

const CAP: usize = 200;

/// Pieces that lead deep into the decoder before something is wrong.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\",\"seq\":1,",
        b"{\"cmd\":\"NODE_CLUSTER\",\"ack\":2,\"accepted\":true,\"seq\":3}\n",
        b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":",
        b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n",
        b"\"port\":",
        b"\"sockname\":{\"address\":\"::1\",\"family\":",
        b"\"phalanx\":{\"mode\":",
        b"{\"cmd\":\"NODE_\\ud800",
        b"99999999999999999999",
        b"\"\\u",
        b"}\n",
        b"}}\n",
        b"[[[[",
        b"]]]]",
        b"null",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xc3",
    ];
    prop_oneof![
        prop::sample::select(known).prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(prop::sample::select(b"{}[]\":,\\ntu0-.e \n".to_vec()), 0..20),
    ]
}

/// The same for frames, whole ones for the most part.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"o\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x06online{\x02",
        b"o\"\x03cmd\"\x0bNODE_HANDLE\"\x04type\"\x0anet.Native\"\x03msg",
        b"\"\x03cmd\"\x0cNODE_CLUSTER",
        b"\"\x03ackI\x04\"\x08acceptedT",
        b"A\x03I\x02",
        b"a\xff\xff\xff\xff\x0f@\x00\xff\xff\xff\xff\x0f",
        b"a\x03I\x02T@\x01\x03",
        b"c\x04\x00\xd8\x01\x00",
        b"N\x00\x00\x00\x00\x00\x00\xf8\x7f",
        b"I\xff\xff\xff\xff\x0f",
        b"I\xff\xff\xff\xff\x1f",
        b"\"\x01a",
        b"{\x01",
        b"{\x02",
        b"$\x00\x03",
        b"_",
        b"\x00",
        b";",
        b"^\x00",
    ];
    let value = prop_oneof![
        3 => prop::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let values = prop::collection::vec(value, 0..6).prop_map(|pieces| pieces.concat());
    (values, prop_oneof![9 => Just(0_u32), 1 => 0..60_u32]).prop_map(|(value, off)| {
        let length = u32::try_from(2 + value.len()).unwrap() + off;
        [&length.to_be_bytes()[..], b"\xff\x0f", &value].concat()
    })
}

fn chunk() -> impl Strategy<Value = (Vec<u8>, usize)> {
    (prop::collection::vec(piece(), 0..6).prop_map(|pieces| pieces.concat()), 0..3_usize)
}

/// Chunks, how they are written, and what may be held of them.
fn stream() -> impl Strategy<Value = (Serialization, Vec<(Vec<u8>, usize)>)> {
    let frames = (prop::collection::vec(frame(), 0..3).prop_map(|frames| frames.concat()), 0..3_usize);
    prop_oneof![
        prop::collection::vec(chunk(), 0..12).prop_map(|chunks| (Serialization::Json, chunks)),
        prop::collection::vec(frames, 0..12).prop_map(|chunks| (Serialization::Advanced, chunks)),
        prop::collection::vec(chunk(), 0..12).prop_map(|chunks| (Serialization::Advanced, chunks)),
    ]
}

fn pieces() -> impl Strategy<Value = (Serialization, Vec<Vec<u8>>)> {
    prop_oneof![
        prop::collection::vec(piece(), 0..12).prop_map(|pieces| (Serialization::Json, pieces)),
        prop::collection::vec(frame(), 0..12).prop_map(|pieces| (Serialization::Advanced, pieces)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn garbage_ends_in_a_violation_at_worst((by, chunks) in stream()) {
        let handle = Rc::new(());
        let mut decoder = Decoder::new(CAP).serialization(by);
        let mut broken = false;
        for (bytes, handles) in &chunks {
            for frame in decoder.feed(bytes, vec![handle.clone(); *handles]) {
                prop_assert!(!broken, "something after a violation");
                match frame {
                    Ok(frame) => {
                        prop_assert!(frame.handle.is_none() || frame.envelope.is_some());
                        match frame.message {
                            Message::User(text) => prop_assert!(text.as_bytes().len() <= CAP),
                            Message::Opaque(bytes) => prop_assert!(bytes.len() <= CAP),
                            _ => {}
                        }
                    }
                    Err(violation) => {
                        broken = true;
                        prop_assert!(violation.to_string().len() < 64 * 4 + 100);
                        prop_assert!(violation.to_string().chars().all(|char| !char.is_control()));
                    }
                }
            }
            // With the length in front of a frame.
            prop_assert!(decoder.buffered() <= CAP + 4);
            // At most the one that came with an unfinished line.
            prop_assert!(Rc::strong_count(&handle) <= 2);
        }
        decoder.finish();
        prop_assert_eq!((decoder.buffered(), Rc::strong_count(&handle)), (0, 1));
    }

    /// Where the stream is cut does not decide whether it is garbage.
    #[test]
    fn cuts_do_not_change_the_verdict((by, pieces) in pieces(), size in 1..50_usize) {
        let stream = pieces.concat();
        let whole: Vec<_> = Decoder::<()>::new(CAP).serialization(by).feed(&stream, None).collect();
        let mut decoder = Decoder::<()>::new(CAP).serialization(by);
        let mut cut = Vec::new();
        for chunk in stream.chunks(size) {
            cut.extend(decoder.feed(chunk, None));
        }
        // Only the excerpt of an endless line depends on how much of it was seen.
        if let (Some(Err(Violation::TooLong { .. })), Some(Err(Violation::TooLong { .. }))) = (whole.last(), cut.last()) {
            prop_assert_eq!(whole.len(), cut.len());
        } else {
            prop_assert_eq!(whole, cut);
        }
    }
}

#[test]
fn an_endless_line_is_cut_off() {
    let mut decoder = Decoder::<()>::new(1 << 20);
    let chunk = [b'['; 65_536];
    let violation = (0..17).find_map(|_| decoder.feed(&chunk, None).next()).unwrap().unwrap_err();
    assert!(matches!(violation, Violation::TooLong { limit: 1_048_576, .. }), "{violation}");
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn brackets_without_end_are_no_json() {
    let mut decoder = Decoder::<()>::new(16 << 20);
    let mut line = vec![b'['; 16 << 20];
    assert!(decoder.feed(&line, None).next().is_none());
    line.clear();
    let violation = decoder.feed(b"\n", None).next().unwrap().unwrap_err();
    assert!(matches!(violation, Violation::NotJson(_)));
}
