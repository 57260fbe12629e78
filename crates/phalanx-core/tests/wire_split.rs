//! However the kernel cuts and joins the stream, the same frames come out with the same descriptors.

use std::collections::VecDeque;

use phalanx_core::wire::{
    Decoder, Frame, HandleKind, Message, Outbox, Payload, Reply, Seq, Serialization, encode, encode_enveloped,
};
use proptest::prelude::*;

/// What one `sendmsg` wrote.
type Segment = (Vec<u8>, Option<u32>);

/// A Unix stream socket as Linux implements it: a read joins plain segments, also with *one* following
/// segment that carries a descriptor, and ends there; a descriptor comes with the first byte of its
/// segment, whose remainder is plain.
struct Kernel(VecDeque<Segment>);

impl Kernel {
    fn recv(&mut self, buffer: usize) -> (Vec<u8>, Option<u32>) {
        let mut chunk = Vec::new();
        let mut handle = None;
        while chunk.len() < buffer
            && handle.is_none()
            && let Some((bytes, carried)) = self.0.front_mut()
        {
            handle = carried.take();
            let taken = bytes.len().min(buffer - chunk.len());
            chunk.extend(bytes.drain(..taken));
            if bytes.is_empty() {
                self.0.pop_front();
            }
        }
        (chunk, handle)
    }
}

/// One message of a script: its line or frame, and whether a descriptor travels with it.
fn segment(by: Serialization, handle: u32, kind: usize, size: usize) -> Segment {
    let mut outbox = Outbox::<()>::new().serialization(by);
    outbox.push_with(None, |line| write(handle, kind, size, line));
    (outbox.peek().unwrap().bytes.to_vec(), (kind < 2).then_some(handle))
}

fn write(handle: u32, kind: usize, size: usize, line: &mut Vec<u8>) {
    let seq = Seq(u64::from(handle));
    let connection = Message::NewConnection { seq, key: "k".repeat(size) };
    let user = Message::User(Payload::encode(&"ü\"".repeat(size)).unwrap());
    match kind {
        0 => encode_enveloped(HandleKind::NetNative, &connection, seq, line),
        1 => encode_enveloped(HandleKind::NetSocket, &user, seq, line),
        2 => encode(&user, seq, line),
        3 => encode(&Message::HandleAck, seq, line),
        4 => encode(&Message::Reply(Reply::answer(seq, true)), seq, line),
        _ => encode(&Message::Close { key: "k".repeat(size) }, seq, line),
    }
}

fn decoder(by: Serialization) -> Decoder<u32> {
    Decoder::new(10_000).serialization(by)
}

fn serialization() -> impl Strategy<Value = Serialization> {
    prop_oneof![Just(Serialization::Json), Just(Serialization::Advanced)]
}

/// A script, and how it is written.
#[derive(Clone, Debug)]
struct Script(Serialization, Vec<Segment>);

fn script_of(by: Serialization, kinds: &[(usize, usize)]) -> Script {
    let segments = kinds.iter().zip(0..).map(|((kind, size), handle)| segment(by, handle, *kind, *size));
    Script(by, segments.collect())
}

fn script() -> impl Strategy<Value = Script> {
    let one = (0..7_usize, 0..40_usize);
    (serialization(), prop::collection::vec(one, 1..12)).prop_map(|(by, kinds)| script_of(by, &kinds))
}

/// Every line by itself with its descriptor: no decoder can get that wrong.
fn oracle(Script(by, segments): &Script) -> Vec<Frame<u32>> {
    segments.iter().map(|(line, handle)| decoder(*by).feed(line, *handle).next().unwrap().unwrap()).collect()
}

fn run(Script(by, segments): &Script, mut sizes: impl FnMut() -> usize, take: usize) -> Vec<Frame<u32>> {
    let mut kernel = Kernel(segments.iter().cloned().collect());
    let mut decoder = decoder(*by);
    let mut frames = Vec::new();
    loop {
        let (chunk, handle) = kernel.recv(sizes());
        frames.extend(decoder.feed(&chunk, handle).take(take).map(Result::unwrap));
        if chunk.is_empty() {
            break;
        }
    }
    frames.extend(decoder.feed(b"", None).map(Result::unwrap));
    assert_eq!((decoder.stray_handles(), decoder.buffered()), (0, 0));
    frames
}

#[test]
fn every_buffer_size_and_every_single_cut() {
    for by in [Serialization::Json, Serialization::Advanced] {
        let kinds = [(2, 3), (0, 5), (3, 0), (4, 0), (0, 1), (1, 2), (1, 9), (5, 1), (2, 0), (0, 0)];
        let script = script_of(by, &kinds);
        let expected = oracle(&script);
        let total: usize = script.1.iter().map(|(line, _)| line.len()).sum();
        for size in 1..=total {
            assert_eq!(run(&script, || size, usize::MAX), expected, "buffer of {size}");
            let mut first = Some(size);
            assert_eq!(run(&script, || first.take().unwrap_or(total), usize::MAX), expected, "cut at {size}");
        }
    }
}

proptest! {
    #[test]
    fn every_grouping(
        script in script(),
        sizes in prop::collection::vec(prop_oneof![1..8_usize, 1..300_usize], 1..20),
        take in prop_oneof![Just(usize::MAX), 0..3_usize],
    ) {
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(run(&script, || sizes.next().unwrap_or(1), take), oracle(&script));
    }

    /// A sender that was cut short: the descriptor left with the first part, the rest follows plain.
    #[test]
    fn short_writes(
        script in script(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 12),
        sizes in prop::collection::vec(1..300_usize, 1..20),
    ) {
        let expected = oracle(&script);
        let mut cut = Vec::new();
        let Script(by, segments) = script;
        for ((line, handle), at) in segments.into_iter().zip(cuts) {
            let (head, tail) = line.split_at(at.index(line.len() - 1) + 1);
            cut.push((head.to_vec(), handle));
            cut.push((tail.to_vec(), None));
        }
        cut.retain(|(bytes, _)| !bytes.is_empty());
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(run(&Script(by, cut), || sizes.next().unwrap_or(1), usize::MAX), expected);
    }

    /// Descriptors that the kernel lost (no free number here) cost their own envelope, no other.
    #[test]
    fn lost_descriptors(
        script in script(),
        lost: u16,
        sizes in prop::collection::vec(1..300_usize, 1..20),
    ) {
        let Script(by, segments) = script;
        let segments = segments
            .into_iter()
            .enumerate()
            .map(|(at, (line, handle))| (line, handle.filter(|_| lost >> at & 1 == 0)));
        let script = Script(by, segments.collect());
        // The segment boundaries stay even though nothing arrives; joining more is the harder case.
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(run(&script, || sizes.next().unwrap_or(1), usize::MAX), oracle(&script));
    }
}
