//! An outbox in front of a Node receiver: under R1 and R2 every descriptor ends with its own envelope,
//! however the two sides interleave. Without R2 it does not.

use std::collections::VecDeque;

use phalanx_core::wire::Outbox;
use proptest::prelude::*;

const READ: usize = 65_536;

/// The kernel's side of the channel: segments with at most one descriptor.
#[derive(Default)]
struct Channel(VecDeque<(Vec<u8>, Option<u32>)>);

/// Pairs as Node does: one slot, overwritten by every read, emptied by the next envelope.
#[derive(Default)]
struct NodeReceiver {
    line: Vec<u8>,
    slot: Option<u32>,
    /// Each envelope's own number and the descriptor it was given.
    paired: Vec<(u32, Option<u32>)>,
    /// Numbers of all lines, in order.
    lines: Vec<u32>,
}

impl NodeReceiver {
    /// One `recvmsg` of 65,536 bytes; returns how many envelopes want a receipt.
    fn read(&mut self, channel: &mut Channel) -> usize {
        let mut room = READ;
        let mut chunk = Vec::new();
        let mut handle = None;
        while room > 0
            && handle.is_none()
            && let Some((bytes, carried)) = channel.0.front_mut()
        {
            handle = carried.take();
            let rest = bytes.split_off(bytes.len().min(room));
            room -= bytes.len();
            chunk.append(bytes);
            *bytes = rest;
            if bytes.is_empty() {
                channel.0.pop_front();
            }
        }
        if handle.is_some() {
            self.slot = handle;
        }
        let mut receipts = 0;
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.pop_if(|byte| *byte == b'\n').is_none() {
                continue;
            }
            let line = String::from_utf8(std::mem::take(&mut self.line)).unwrap();
            let (kind, rest) = line.split_at(1);
            let number: u32 = rest.trim_end_matches('.').parse().unwrap();
            self.lines.push(number);
            if kind == "E" {
                self.paired.push((number, self.slot.take()));
                receipts += 1;
            }
        }
        receipts
    }
}

/// A line of exactly `length` bytes that says who it is; the shapes of JSON do not matter here.
fn line(envelope: bool, number: u32, length: usize) -> Vec<u8> {
    let mut line = format!("{}{number}", if envelope { 'E' } else { 'P' }).into_bytes();
    line.resize(length.max(line.len() + 1) - 1, b'.');
    line.push(b'\n');
    line
}

/// One side sends, the other reads, receipts come back whenever they do.
struct Bench {
    outbox: Outbox<u32>,
    channel: Channel,
    receiver: NodeReceiver,
    receipts: usize,
    /// The mutation: every receipt is forged as soon as its envelope has left, so no barrier ever holds.
    without_r2: bool,
}

impl Bench {
    fn new(strict: bool, without_r2: bool) -> Self {
        Self {
            outbox: Outbox::new().strict(strict),
            channel: Channel::default(),
            receiver: NodeReceiver::default(),
            receipts: 0,
            without_r2,
        }
    }

    fn push(&mut self, envelope: bool, number: u32, length: usize) {
        self.outbox.push(&line(envelope, number, length), envelope.then_some(number));
    }

    /// One system call, of which the kernel takes no more than `limit` bytes if it is a long one.
    fn send(&mut self, limit: usize) -> bool {
        let Some(next) = self.outbox.peek() else { return false };
        let mut bytes = [next.bytes, next.then].concat();
        let carry = next.carry.copied();
        assert!(carry.is_none() || next.then.is_empty(), "R1");
        assert!(carry.is_none() || bytes.iter().filter(|&&byte| byte == b'\n').count() == 1, "R1");
        if bytes.len() > 36_544 {
            bytes.truncate(limit);
        }
        let sent = self.outbox.sent(bytes.len());
        assert_eq!(sent, carry);
        self.channel.0.push_back((bytes, carry));
        if self.without_r2 && carry.is_some() {
            self.outbox.answered().unwrap();
        }
        true
    }

    fn read(&mut self) {
        self.receipts += self.receiver.read(&mut self.channel);
    }

    fn receipt(&mut self) -> bool {
        if self.receipts == 0 {
            return false;
        }
        self.receipts -= 1;
        if !self.without_r2 {
            self.outbox.answered().unwrap();
        }
        true
    }

    /// Lets everything come to rest, then: is every descriptor with its own envelope?
    fn settle(&mut self) -> bool {
        loop {
            let mut progress = self.send(36_544);
            while self.send(36_544) {}
            progress |= !self.channel.0.is_empty();
            self.read();
            while self.receipt() {
                progress = true;
            }
            if !progress {
                break;
            }
        }
        assert!(self.outbox.is_empty() && self.outbox.unanswered() == 0);
        assert!(self.receiver.lines.is_sorted(), "somebody overtook");
        self.receiver.paired.iter().all(|&(envelope, handle)| handle == Some(envelope))
    }
}

/// The 64 KiB boundary forced into an envelope.
fn boundary(without_r2: bool) -> Vec<(u32, Option<u32>)> {
    let mut bench = Bench::new(false, without_r2);
    for number in 0..3 {
        bench.push(false, number, 21_830);
    }
    bench.push(true, 3, 130); // Its first 46 bytes end the read.
    bench.push(true, 4, 130);
    bench.push(true, 5, 130);
    bench.settle();
    bench.receiver.paired
}

#[test]
fn without_r2_a_connection_is_lost_and_the_next_served_in_its_name() {
    assert_eq!(boundary(true), [(3, Some(4)), (4, None), (5, Some(5))]);
    assert_eq!(boundary(false), [(3, Some(3)), (4, Some(4)), (5, Some(5))]);
}

#[derive(Clone, Debug)]
enum Step {
    Push { envelope: bool, length: usize },
    Send { limit: usize },
    Read,
    Receipt,
}

fn step() -> impl Strategy<Value = Step> {
    let plain = prop_oneof![
        4 => 10..300_usize,
        2 => 1_000..33_000_usize,
        1 => 65_000..66_000_usize,
        1 => 60_000..200_000_usize,
    ];
    let envelope = prop_oneof![8 => 100..200_usize, 1 => 4_000..36_000_usize, 1 => 60_000..150_000_usize];
    prop_oneof![
        3 => plain.prop_map(|length| Step::Push { envelope: false, length }),
        3 => envelope.prop_map(|length| Step::Push { envelope: true, length }),
        6 => (36_544..100_000_usize).prop_map(|limit| Step::Send { limit }),
        2 => Just(Step::Read),
        2 => Just(Step::Receipt),
    ]
}

fn run(steps: &[Step], strict: bool, without_r2: bool) -> bool {
    let mut bench = Bench::new(strict, without_r2);
    let mut number = 0;
    for step in steps {
        match *step {
            Step::Push { envelope, length } => {
                bench.push(envelope, number, length);
                number += 1;
            }
            Step::Send { limit } => _ = bench.send(limit),
            Step::Read => bench.read(),
            Step::Receipt => _ = bench.receipt(),
        }
        if strict {
            assert!(bench.outbox.unanswered() <= 1);
        }
    }
    let paired = bench.settle();
    assert_eq!(bench.receiver.lines.len(), number as usize, "a line was lost");
    paired
}

proptest! {
    #[test]
    fn every_descriptor_ends_with_its_own_envelope(steps in prop::collection::vec(step(), 0..120), strict: bool) {
        prop_assert!(run(&steps, strict, false));
    }
}

#[test]
fn the_model_notices_when_r2_is_missing() {
    use proptest::test_runner::{Config, TestError, TestRunner};
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, max_shrink_iters: 0, ..Config::default() });
    let steps = prop::collection::vec(step(), 120);
    let result = runner.run(&steps, |steps| {
        prop_assert!(run(&steps, false, true));
        Ok(())
    });
    let Err(TestError::Fail(reason, _)) = result else { panic!("{result:?}") };
    assert!(reason.message().contains("run(&steps"), "{reason}");
}
