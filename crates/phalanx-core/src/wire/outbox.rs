//! What the next system call on a channel may carry.
//!
//! A Node receiver keeps *one* descriptor aside and gives it to the next envelope it parses. That is
//! right only as long as no read of its 65,536 bytes ends inside an envelope while another descriptor
//! follows. Hence two rules:
//!
//! - **R1**: one envelope and its descriptor per call, the whole line, nothing else.
//! - **R2**: count the bytes since the end of the last envelope; if they and the next envelope exceed
//!   one read, then after that envelope no other descriptor leaves before its receipt has come.
//!
//! Messages never overtake each other. Only receipts do, as they do in Node: two peers that each wait
//! for the other's receipt would wait for ever.

use std::collections::VecDeque;

use super::{
    Serialization, Violation,
    encode::{HANDLE_ACK, HANDLE_NACK},
};

/// What a Node receiver reads at once.
const READ: usize = 65_536;

/// The kernel takes calls up to this size whole or not at all; the true limit is 36,544.
const WHOLE: usize = 32 * 1024;

/// The sending side of a channel: encoded frames in order, each with at most one `C`, the caller's
/// token for a descriptor.
///
/// [`peek`](Self::peek), do the call, tell [`sent`](Self::sent); on a receipt tell
/// [`answered`](Self::answered) and peek again, since it may have opened the way.
#[derive(Debug)]
pub struct Outbox<C> {
    /// All frames behind each other; what lies before `head` has left.
    bytes: Vec<u8>,
    head: usize,
    frames: VecDeque<Queued<C>>,
    /// The first frame has left in part.
    begun: bool,
    /// Receipts, which overtake.
    receipts: Vec<u8>,
    receipts_head: usize,
    /// Bytes since the end of the last envelope.
    run: usize,
    unanswered: usize,
    /// The last unanswered envelope may be cut by a read.
    dirty: bool,
    strict: bool,
    serialization: Serialization,
}

#[derive(Debug)]
struct Queued<C> {
    /// Bytes that have not left.
    left: usize,
    envelope: bool,
    carry: Option<C>,
}

/// The next system call.
#[derive(Debug, PartialEq, Eq)]
pub struct Transmit<'a, C> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// More bytes that may go with the same call, behind the first; leaving them is no mistake.
    pub then: &'a [u8],
    /// The descriptor that must go with the call; `then` is empty in this case.
    pub carry: Option<&'a C>,
}

impl<C> Default for Outbox<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Outbox<C> {
    /// An empty one, for a receiver that copes with several envelopes under way.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            head: 0,
            frames: VecDeque::new(),
            begun: false,
            receipts: Vec::new(),
            receipts_head: 0,
            run: 0,
            unanswered: 0,
            dirty: false,
            strict: false,
            serialization: Serialization::Json,
        }
    }

    /// How messages leave; JSON lines, unless said otherwise. To be said before the first is pushed.
    #[must_use]
    pub fn serialization(mut self, serialization: Serialization) -> Self {
        self.serialization = serialization;
        self
    }

    /// As Node itself sends, and as a worker must send to a Node primary: after an envelope nothing
    /// but receipts leaves before its own receipt has come.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Queues a line, newline included, as `encode` wrote it. With a descriptor it must be an envelope.
    pub fn push(&mut self, line: &[u8], carry: Option<C>) {
        self.push_with(carry, |bytes| bytes.extend_from_slice(line));
    }

    /// Queues the line that `write` appends, without a buffer in between. If it appends nothing,
    /// nothing is queued and the descriptor is dropped.
    pub fn push_with(&mut self, carry: Option<C>, write: impl FnOnce(&mut Vec<u8>)) {
        self.make_room();
        let start = self.bytes.len();
        write(&mut self.bytes);
        debug_assert!(self.bytes.len() <= start || self.bytes.ends_with(b"\n"), "half a line");
        self.serialization.seal(&mut self.bytes, start);
        let left = self.bytes.len().saturating_sub(start);
        if left > 0 {
            self.frames.push_back(Queued { left, envelope: carry.is_some(), carry });
        }
    }

    /// Queues the receipt for an envelope: whether its descriptor arrived. It overtakes everything but
    /// a line that has begun to leave.
    pub fn push_receipt(&mut self, arrived: bool) {
        if self.receipts_head == self.receipts.len() {
            self.receipts.clear();
            self.receipts_head = 0;
        }
        let start = self.receipts.len();
        self.receipts.extend_from_slice(if arrived { HANDLE_ACK } else { HANDLE_NACK });
        self.serialization.seal(&mut self.receipts, start);
    }

    /// The next call, if anything may leave now.
    #[must_use]
    pub fn peek(&self) -> Option<Transmit<'_, C>> {
        let queue = &self.bytes[self.head..];
        let receipts = &self.receipts[self.receipts_head..];
        let plain = |bytes, then| Some(Transmit { bytes, then, carry: None });
        if self.begun {
            return plain(&queue[..self.frames.front()?.left], receipts);
        }
        let next = self.frames.front().filter(|_| !(self.strict && self.unanswered > 0));
        match next {
            None if receipts.is_empty() => None,
            None => plain(receipts, &[]),
            Some(frame) if !frame.envelope => {
                let room = WHOLE.saturating_sub(receipts.len());
                let together = &queue[..self.plain_bytes(room)];
                if receipts.is_empty() {
                    plain(together, &[])
                } else if together.len() <= room {
                    plain(receipts, together)
                } else {
                    plain(receipts, &[])
                }
            }
            Some(_) if !receipts.is_empty() => plain(receipts, &[]),
            Some(_) if self.dirty => None,
            Some(frame) => {
                Some(Transmit { bytes: &queue[..frame.left], then: &[], carry: frame.carry.as_ref() })
            }
        }
    }

    /// Tells that the first `count` bytes of what [`peek`](Self::peek) showed have left, and with them
    /// the descriptor, which is returned. A remainder leaves without it.
    pub fn sent(&mut self, count: usize) -> Option<C> {
        if count == 0 {
            return None;
        }
        if self.begun {
            let rest = self.take_frames(count);
            self.take_receipts(rest);
            return None;
        }
        let rest = self.take_receipts(count);
        if rest == 0 {
            return None;
        }
        let mut carry = None;
        if let Some(frame) = self.frames.front_mut()
            && frame.envelope
        {
            carry = frame.carry.take();
            self.unanswered += 1;
            self.dirty |= self.run + frame.left > READ || frame.left > WHOLE || rest < frame.left;
        }
        self.take_frames(rest);
        carry
    }

    /// Takes note of a receipt for the oldest envelope without one.
    ///
    /// # Errors
    ///
    /// [`Violation::UnexpectedAck`] if there is none.
    pub fn answered(&mut self) -> Result<(), Violation> {
        self.unanswered = self.unanswered.checked_sub(1).ok_or(Violation::UnexpectedAck)?;
        // Nothing was allowed behind a dirty one, so it is the last.
        self.dirty &= self.unanswered > 0;
        Ok(())
    }

    /// Envelopes that have left and have no receipt.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Bytes that wait, receipts included. The caller bounds this: a peer that sends envelopes and
    /// reads nothing makes it grow.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.bytes.len() - self.head + self.receipts.len() - self.receipts_head
    }

    /// Frames that wait, one that has left in part included, receipts not.
    #[must_use]
    pub fn queued_frames(&self) -> usize {
        self.frames.len()
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued_bytes() == 0
    }

    /// Something waits, but only for a receipt: no use in asking the kernel.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        !self.is_empty() && self.peek().is_none()
    }

    /// The channel is gone: forgets everything and returns the descriptors that never left.
    pub fn clear(&mut self) -> Vec<C> {
        let empty = Self::new().strict(self.strict).serialization(self.serialization);
        let old = std::mem::replace(self, empty);
        old.frames.into_iter().filter_map(|frame| frame.carry).collect()
    }

    /// The first frame and as many plain ones behind it as fit into `room`.
    fn plain_bytes(&self, room: usize) -> usize {
        let mut total = 0;
        for frame in self.frames.iter().take_while(|frame| !frame.envelope) {
            if total > 0 && total + frame.left > room {
                break;
            }
            total += frame.left;
        }
        total
    }

    /// Takes bytes off the receipts; returns how many are too many.
    fn take_receipts(&mut self, count: usize) -> usize {
        let taken = count.min(self.receipts.len() - self.receipts_head);
        self.receipts_head += taken;
        self.run += taken;
        count - taken
    }

    /// Takes bytes off the queue; returns how many are too many.
    ///
    /// Stops at the end of a frame that had begun to leave, since receipts come behind it.
    fn take_frames(&mut self, mut count: usize) -> usize {
        let was_begun = self.begun;
        while count > 0
            && let Some(frame) = self.frames.front_mut()
        {
            let taken = count.min(frame.left);
            count -= taken;
            frame.left -= taken;
            self.head += taken;
            self.run += taken;
            self.begun = frame.left > 0;
            if self.begun {
                break;
            }
            if frame.envelope {
                self.run = 0;
            }
            self.frames.pop_front();
            if was_begun {
                break;
            }
        }
        count
    }

    /// Moves the queue to the front of its buffer when that is cheap.
    fn make_room(&mut self) {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(READ);
            self.head = 0;
        } else if self.head > READ && self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `length` bytes.
    fn line(length: usize) -> Vec<u8> {
        let mut line = vec![b'1'; length];
        line[length - 1] = b'\n';
        line
    }

    fn next(outbox: &Outbox<u32>) -> Option<(usize, usize, Option<u32>)> {
        outbox.peek().map(|next| (next.bytes.len(), next.then.len(), next.carry.copied()))
    }

    fn send(outbox: &mut Outbox<u32>) -> Option<u32> {
        let (bytes, then, _) = next(outbox).unwrap();
        outbox.sent(bytes + then)
    }

    #[test]
    fn an_envelope_travels_alone() {
        let mut outbox = Outbox::new();
        outbox.push(&line(10), None);
        outbox.push(&line(20), None);
        outbox.push(&line(100), Some(1));
        outbox.push(&line(101), Some(2));
        outbox.push(&line(30), None);
        assert_eq!((outbox.queued_bytes(), outbox.queued_frames()), (261, 5));
        assert_eq!(next(&outbox), Some((30, 0, None)));
        assert_eq!(send(&mut outbox), None);
        assert_eq!(next(&outbox), Some((100, 0, Some(1))));
        assert_eq!(outbox.sent(0), None);
        assert_eq!(send(&mut outbox), Some(1));
        assert_eq!(send(&mut outbox), Some(2));
        assert_eq!(send(&mut outbox), None);
        assert!(outbox.is_empty() && outbox.peek().is_none() && !outbox.is_blocked());
        assert_eq!(outbox.unanswered(), 2);
    }

    #[test]
    fn plain_lines_travel_together_up_to_a_limit() {
        let mut outbox = Outbox::<u32>::new();
        for _ in 0..4 {
            outbox.push(&line(10_000), None);
        }
        outbox.push(&line(100_000), None);
        assert_eq!(next(&outbox), Some((30_000, 0, None)));
        outbox.sent(25_000);
        assert_eq!(next(&outbox), Some((5_000, 0, None)));
        outbox.sent(5_000);
        assert_eq!(next(&outbox), Some((10_000, 0, None)));
        outbox.sent(10_000);
        assert_eq!(next(&outbox), Some((100_000, 0, None)));
    }

    #[test]
    fn a_remainder_leaves_without_the_descriptor() {
        let mut outbox = Outbox::new();
        outbox.push(&line(60_000), Some(1));
        outbox.push(&line(100), Some(2));
        assert_eq!(outbox.sent(36_544), Some(1));
        assert_eq!(next(&outbox), Some((60_000 - 36_544, 0, None)));
        assert_eq!(outbox.sent(60_000 - 36_544), None);
        // Too long for one call, so the next one waits.
        assert_eq!(next(&outbox), None);
        assert!(outbox.is_blocked());
        outbox.answered().unwrap();
        assert_eq!(next(&outbox), Some((100, 0, Some(2))));
    }

    #[test]
    fn a_read_may_end_in_a_dirty_envelope_so_the_next_one_waits() {
        for (before, blocked) in [(65_536 - 100, false), (65_536 - 99, true)] {
            let mut outbox = Outbox::new();
            outbox.push(&line(100), Some(1));
            outbox.push(&line(before), None);
            outbox.push(&line(100), Some(2));
            outbox.push(&line(50), None);
            outbox.push(&line(100), Some(3));
            outbox.push(&line(60), None);
            assert_eq!(send(&mut outbox), Some(1));
            send(&mut outbox);
            assert_eq!(send(&mut outbox), Some(2));
            assert_eq!(next(&outbox), Some((50, 0, None)), "ordinary messages may follow");
            send(&mut outbox);
            assert_eq!(outbox.is_blocked(), blocked);
            outbox.answered().unwrap();
            assert_eq!(outbox.is_blocked(), blocked, "that receipt was for the first");
            outbox.answered().unwrap();
            assert_eq!(next(&outbox), Some((100, 0, Some(3))));
        }
    }

    #[test]
    fn strict_lets_one_envelope_out_and_then_only_receipts() {
        let mut outbox = Outbox::new().strict(true);
        outbox.push(&line(100), Some(1));
        outbox.push(&line(10), None);
        outbox.push(&line(100), Some(2));
        assert_eq!(outbox.sent(40), Some(1));
        assert_eq!(next(&outbox), Some((60, 0, None)), "its own rest must leave");
        outbox.push_receipt(true);
        assert_eq!(next(&outbox), Some((60, 26, None)), "a line is not interrupted");
        send(&mut outbox);
        assert!(outbox.is_blocked());
        outbox.answered().unwrap();
        assert_eq!(next(&outbox), Some((10, 0, None)));
        send(&mut outbox);
        assert_eq!(send(&mut outbox), Some(2));
    }

    #[test]
    fn receipts_overtake_but_never_cut() {
        let mut outbox = Outbox::new();
        outbox.push(&line(100), None);
        outbox.push_receipt(false);
        assert_eq!(next(&outbox), Some((HANDLE_NACK.len(), 100, None)));
        // Ten bytes of the receipt: it goes on, whatever comes.
        outbox.sent(10);
        outbox.push_receipt(true);
        let bytes = outbox.peek().unwrap().bytes.to_vec();
        assert_eq!(bytes, [&HANDLE_NACK[10..], HANDLE_ACK].concat());
        // All of them and ten bytes of the line: now the line goes on.
        outbox.sent(bytes.len() + 10);
        outbox.push_receipt(true);
        assert_eq!(next(&outbox), Some((90, HANDLE_ACK.len(), None)));
        outbox.sent(91);
        assert_eq!(outbox.peek().unwrap().bytes, &HANDLE_ACK[1..]);
        outbox.push(&line(100), Some(1));
        assert_eq!(next(&outbox), Some((HANDLE_ACK.len() - 1, 0, None)), "never in an envelope's call");
    }

    #[test]
    fn a_receipt_too_many_is_a_violation() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.answered(), Err(Violation::UnexpectedAck));
        outbox.push(&line(10), Some(1));
        assert_eq!(outbox.answered(), Err(Violation::UnexpectedAck), "it has not left");
        send(&mut outbox);
        assert_eq!(outbox.answered(), Ok(()));
        assert_eq!(outbox.answered(), Err(Violation::UnexpectedAck));
    }

    #[test]
    fn clear_gives_back_what_never_left() {
        let mut outbox = Outbox::new().strict(true);
        for carry in 1..=3 {
            outbox.push(&line(10), Some(carry));
        }
        outbox.push_receipt(true);
        outbox.sent(26);
        outbox.sent(5);
        assert_eq!(outbox.clear(), [2, 3]);
        assert!(outbox.is_empty() && outbox.peek().is_none() && outbox.unanswered() == 0);
        assert!(outbox.strict);
    }

    #[test]
    fn a_buffer_that_was_long_is_given_back() {
        let mut outbox = Outbox::<u32>::new();
        outbox.push(&line(1 << 20), None);
        for _ in 0..20 {
            outbox.sent(36_544);
            outbox.push(&line(10), None);
        }
        assert!(outbox.bytes.len() < (1 << 20));
        while let Some((bytes, ..)) = next(&outbox) {
            outbox.sent(bytes);
        }
        outbox.push_with(None, |_| ());
        assert!(outbox.is_empty() && outbox.bytes.capacity() <= READ);
    }
}
