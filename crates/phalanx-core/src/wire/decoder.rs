//! Chunks and descriptors in, frames out.
//!
//! The kernel never returns bytes *after* a segment that came with a descriptor, but it may put any
//! number of plain bytes in front of it, and a short buffer may cut it anywhere behind its first
//! byte. So the descriptor received with a chunk belongs to the last line that *starts* inside that
//! chunk, whatever the sizes.

use std::collections::VecDeque;

use super::{
    Envelope, Excerpt, Message, Payload, Serialization, Violation, advanced,
    decode::{Body, Line, decode},
    fast,
};

/// The longest line or frame accepted by default, both ways: 16 MiB.
pub const DEFAULT_MAX_MESSAGE: usize = 16 << 20;

/// Above this an idle buffer is given back, and a finished line is handed on rather than copied.
const KEEP: usize = 64 * 1024;

/// One message, and the descriptor that came with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<F> {
    /// The message itself, out of its envelope.
    pub message: Message,
    /// The envelope, if there was one. However many were nested: one receipt.
    pub envelope: Option<Envelope>,
    /// The descriptor; only ever with an envelope.
    pub handle: Option<F>,
}

impl<F> Frame<F> {
    /// An envelope came without its descriptor: answer [`Message::HandleNack`] and do not act on it.
    #[must_use]
    pub fn handle_missing(&self) -> bool {
        self.envelope.is_some() && self.handle.is_none()
    }
}

/// The receiving side of a channel.
///
/// After the first [`Violation`] it delivers nothing any more.
#[derive(Debug)]
pub struct Decoder<F> {
    serialization: Serialization,
    max_message: usize,
    /// The beginning of a line or frame whose end has not come.
    partial: Vec<u8>,
    /// The descriptor that came with the beginning of `partial`.
    held: Option<F>,
    /// Chunks whose [`Frames`] was dropped too early.
    kept: VecDeque<(Vec<u8>, Input<'static, F>)>,
    stray: u64,
    broken: bool,
}

/// How much of a chunk belongs to the line or frame that has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// It ends here: so many bytes of it, and where the next one starts.
    Ends { bytes: usize, next: usize },
    /// All of it.
    Goes,
    /// It is longer than permitted.
    TooLong,
}

/// What is left of a chunk.
#[derive(Debug)]
struct Input<'a, F> {
    bytes: &'a [u8],
    handle: Option<F>,
    surplus: bool,
}

impl<F> Decoder<F> {
    /// A decoder for lines of at most `max_message` bytes.
    #[must_use]
    pub fn new(max_message: usize) -> Self {
        Self {
            serialization: Serialization::Json,
            max_message,
            partial: Vec::new(),
            held: None,
            kept: VecDeque::new(),
            stray: 0,
            broken: false,
        }
    }

    /// How messages come; JSON lines, unless said otherwise. To be said before the first chunk.
    #[must_use]
    pub fn serialization(mut self, serialization: Serialization) -> Self {
        self.serialization = serialization;
        self
    }

    /// Takes what one receive call returned: its bytes and its descriptors, of which there should be
    /// none or one. Short lines are decoded where they stand.
    ///
    /// What is not taken from the iterator stays for the next one.
    pub fn feed<'a>(&'a mut self, chunk: &'a [u8], handles: impl IntoIterator<Item = F>) -> Frames<'a, F> {
        let mut handles = handles.into_iter();
        let handle = handles.next();
        let surplus = handle.is_some() && handles.next().is_some();
        Frames { decoder: self, input: Input { bytes: chunk, handle, surplus } }
    }

    /// The end of the stream: forgets an unfinished line, which is normal when a worker exits, and
    /// closes its descriptor.
    pub fn finish(&mut self) {
        self.partial = Vec::new();
        self.held = None;
        self.kept.clear();
    }

    /// How many descriptors came without an envelope and were closed.
    #[must_use]
    pub fn stray_handles(&self) -> u64 {
        self.stray
    }

    /// How many bytes of an unfinished line are held.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.partial.len()
    }

    fn step(&mut self, input: &mut Input<'_, F>) -> Option<Result<Frame<F>, Violation>> {
        if self.broken || input.surplus {
            return self.refuse(input);
        }
        if self.partial.is_empty() && self.serialization == Serialization::Json {
            // A receipt, an answer or a connection, without looking for its end first.
            if let Some((line, length)) = fast::take(input.bytes)
                && length <= self.max_message
            {
                input.bytes = &input.bytes[length..];
                let handle = if input.bytes.is_empty() { input.handle.take() } else { None };
                return Some(Ok(self.pair(line.body.into_message(&[]), line.envelope, handle)));
            }
        }
        let (line, rest) = match self.extent(input.bytes) {
            Extent::Goes => return self.keep(input),
            Extent::TooLong => return Some(Err(self.too_long(input))),
            Extent::Ends { bytes, next } => (&input.bytes[..bytes], &input.bytes[next..]),
        };
        input.bytes = rest;
        let (read, handle) = if self.partial.is_empty() {
            // It starts here, and nothing starts after it: a descriptor is its own.
            let handle = if rest.is_empty() { input.handle.take() } else { None };
            (self.read(line), handle)
        } else {
            append(&mut self.partial, line, self.max_message);
            (self.read_partial(), self.held.take())
        };
        let result = read.map(|(message, envelope)| self.pair(message, envelope, handle));
        if result.is_err() {
            self.broken = true;
            self.refuse(input);
        }
        Some(result)
    }

    /// How much of these bytes belongs to what has begun.
    fn extent(&self, bytes: &[u8]) -> Extent {
        match self.serialization {
            Serialization::Json => {
                let end = newline(bytes);
                if self.partial.len() + end.unwrap_or(bytes.len()) > self.max_message {
                    return Extent::TooLong;
                }
                end.map_or(Extent::Goes, |end| Extent::Ends { bytes: end, next: end + 1 })
            }
            Serialization::Advanced => advanced::extent(&self.partial, bytes, self.max_message),
        }
    }

    /// Keeps the beginning of a line, or more of its middle.
    fn keep(&mut self, input: &mut Input<'_, F>) -> Option<Result<Frame<F>, Violation>> {
        let tail = input.bytes;
        if self.partial.is_empty() && !tail.is_empty() {
            self.held = input.handle.take();
        }
        append(&mut self.partial, tail, self.max_message);
        input.bytes = &[];
        if input.handle.take().is_some() {
            self.stray += 1; // No line starts in this chunk.
        }
        None
    }

    /// A whole line or frame.
    fn read(&self, line: &[u8]) -> Result<(Message, Option<Envelope>), Violation> {
        match self.serialization {
            Serialization::Json => {
                decode(line).map(|Line { body, envelope }| (body.into_message(line), envelope))
            }
            Serialization::Advanced => advanced::decode_value(line, self.max_message),
        }
    }

    /// The same, of what came in parts.
    fn read_partial(&mut self) -> Result<(Message, Option<Envelope>), Violation> {
        let mut line = std::mem::take(&mut self.partial);
        let result = match self.serialization {
            Serialization::Json => decode(&line).map(|Line { body, envelope }| match body {
                Body::User(span) if span.len() > KEEP => {
                    (Message::User(Payload::cut(std::mem::take(&mut line), span)), envelope)
                }
                body => (body.into_message(&line), envelope),
            }),
            Serialization::Advanced => advanced::decode_value(&line, self.max_message),
        };
        if line.capacity() <= KEEP {
            line.clear();
            self.partial = line;
        }
        result
    }

    fn pair(&mut self, message: Message, envelope: Option<Envelope>, handle: Option<F>) -> Frame<F> {
        match handle {
            Some(_) if envelope.is_none() => {
                self.stray += 1;
                Frame { message, envelope, handle: None }
            }
            handle => Frame { message, envelope, handle },
        }
    }

    fn too_long(&mut self, input: &mut Input<'_, F>) -> Violation {
        let mut start = std::mem::take(&mut self.partial);
        start.truncate(Excerpt::BYTES + 1);
        let missing = (Excerpt::BYTES + 1 - start.len()).min(input.bytes.len());
        start.extend_from_slice(&input.bytes[..missing]);
        self.broken = true;
        self.refuse(input);
        let line = Excerpt::of(&start);
        // As a length, two thousand million.
        if self.serialization == Serialization::Advanced && start.starts_with(b"{\"") {
            return Violation::NotAFrame(line);
        }
        Violation::TooLong { limit: self.max_message, line }
    }

    /// Drops everything, once with a reason.
    fn refuse(&mut self, input: &mut Input<'_, F>) -> Option<Result<Frame<F>, Violation>> {
        let first = !self.broken;
        self.broken = true;
        self.finish();
        input.bytes = &[];
        input.handle = None;
        first.then_some(Err(Violation::TooManyHandles))
    }
}

/// The frames of one chunk; see [`Decoder::feed`].
#[derive(Debug)]
pub struct Frames<'a, F> {
    decoder: &'a mut Decoder<F>,
    input: Input<'a, F>,
}

impl<F> Iterator for Frames<'_, F> {
    type Item = Result<Frame<F>, Violation>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((bytes, kept)) = self.decoder.kept.pop_front() {
            let mut input = Input { bytes: &bytes, handle: kept.handle, surplus: kept.surplus };
            let item = self.decoder.step(&mut input);
            let Input { bytes: rest, handle, surplus } = input;
            if item.is_some() {
                let more = !rest.is_empty() || handle.is_some();
                if more && !self.decoder.broken {
                    let rest = rest.to_vec();
                    self.decoder.kept.push_front((rest, Input { bytes: &[], handle, surplus }));
                }
                return item;
            }
        }
        self.decoder.step(&mut self.input)
    }
}

impl<F> Drop for Frames<'_, F> {
    fn drop(&mut self) {
        let Input { bytes, ref mut handle, surplus } = self.input;
        let handle = handle.take();
        let more = !bytes.is_empty() || handle.is_some();
        if more && !self.decoder.broken {
            self.decoder.kept.push_back((bytes.to_vec(), Input { bytes: &[], handle, surplus }));
        }
    }
}

/// Grows by doubling, but never beyond the longest line.
fn append(buffer: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let wanted = (buffer.capacity() * 2).min(limit).max(needed);
        buffer.reserve_exact(wanted - buffer.len());
    }
    buffer.extend_from_slice(bytes);
}

/// The first newline, eight bytes at a time.
fn newline(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let zero_at_newline = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        let found = zero_at_newline.wrapping_sub(ONES) & !zero_at_newline & (ONES << 7);
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|&byte| byte == b'\n').map(|at| words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENVELOPE: &[u8] = b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":1}\n";

    fn all(decoder: &mut Decoder<u32>, chunk: &[u8], handle: Option<u32>) -> Vec<Option<u32>> {
        decoder.feed(chunk, handle).map(|frame| frame.unwrap().handle).collect()
    }

    #[test]
    fn the_handle_goes_to_the_last_line_that_starts_in_its_chunk() {
        let mut decoder = Decoder::new(1000);
        // Plain lines in front of it.
        assert_eq!(all(&mut decoder, &[b"1\n", ENVELOPE].concat(), Some(7)), [None, Some(7)]);
        // The tail of an envelope in front of the next one.
        let (head, tail) = ENVELOPE.split_at(9);
        assert_eq!(all(&mut decoder, head, Some(1)), []);
        assert_eq!(all(&mut decoder, &[tail, head].concat(), Some(2)), [Some(1)]);
        assert_eq!(all(&mut decoder, &tail[..5], None), []);
        assert_eq!(all(&mut decoder, &tail[5..], None), [Some(2)]);
        assert_eq!(decoder.stray_handles(), 0);
    }

    #[test]
    fn a_handle_without_an_envelope_is_closed_and_counted() {
        let mut decoder = Decoder::new(1000);
        assert_eq!(all(&mut decoder, b"1\n", Some(1)), [None]);
        assert_eq!(decoder.stray_handles(), 1);
        // It does not stick to the next envelope, as it does in Node.
        let frame = decoder.feed(ENVELOPE, None).next().unwrap().unwrap();
        assert!(frame.handle_missing());
        // No line starts in these chunks.
        assert_eq!(all(&mut decoder, b"12", None), []);
        assert_eq!(all(&mut decoder, b"34", Some(2)), []);
        assert_eq!(all(&mut decoder, b"\n", Some(3)), [None]);
        assert_eq!(decoder.stray_handles(), 3);
        // An envelope that is not the last one.
        assert_eq!(all(&mut decoder, &[ENVELOPE, b"1\n"].concat(), Some(4)), [None, None]);
        assert_eq!(decoder.stray_handles(), 4);
    }

    #[test]
    fn two_handles_in_one_chunk_end_the_channel() {
        let mut decoder = Decoder::new(1000);
        let results: Vec<_> = decoder.feed(ENVELOPE, [1, 2]).collect();
        assert_eq!(results, [Err(Violation::TooManyHandles)]);
        assert_eq!(decoder.feed(ENVELOPE, [3]).count(), 0);
    }

    #[test]
    fn the_cap_holds_with_and_without_a_newline() {
        let mut decoder = Decoder::<u32>::new(5);
        assert!(decoder.feed(b"12345\n", None).next().unwrap().is_ok());
        assert!(decoder.feed(b"123", None).next().is_none());
        assert!(decoder.feed(b"45", None).next().is_none());
        let result = decoder.feed(b"6", None).next().unwrap();
        let line = Excerpt::of(b"123456");
        assert_eq!(result, Err(Violation::TooLong { limit: 5, line }));
        assert_eq!((decoder.buffered(), decoder.feed(b"1\n", None).count()), (0, 0));
        assert!(Decoder::<u32>::new(5).feed(b"123456\n", None).next().unwrap().is_err());
        // Also for lines that are recognised by their bytes.
        let ack = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";
        assert!(Decoder::<u32>::new(24).feed(ack, None).next().unwrap().is_err());
        assert!(Decoder::<u32>::new(25).feed(ack, None).next().unwrap().is_ok());
    }

    #[test]
    fn what_is_not_taken_stays() {
        let mut decoder = Decoder::new(1000);
        let chunk = [b"1\n2\n", ENVELOPE].concat();
        assert!(decoder.feed(&chunk, [9]).next().is_some());
        drop(decoder.feed(b"3\n", None));
        assert_eq!(all(&mut decoder, b"4\n", None), [None, Some(9), None, None]);
        assert_eq!(decoder.feed(b"", None).count(), 0);
    }

    #[test]
    fn an_unfinished_line_is_forgotten_at_the_end() {
        let mut decoder = Decoder::new(1000);
        let handle = std::rc::Rc::new(());
        assert_eq!(decoder.feed(&ENVELOPE[..10], [handle.clone()]).count(), 0);
        decoder.finish();
        assert_eq!((decoder.buffered(), std::rc::Rc::strong_count(&handle)), (0, 1));
    }

    #[test]
    fn a_long_user_message_is_handed_on() {
        let text = format!("  \"{}\"\r", "x".repeat(300_000));
        let mut decoder = Decoder::<u32>::new(400_000);
        assert_eq!(decoder.feed(text.as_bytes(), None).count(), 0);
        assert!(decoder.partial.capacity() <= 400_000);
        let frame = decoder.feed(b"\n", None).next().unwrap().unwrap();
        let Message::User(payload) = frame.message else { panic!() };
        assert_eq!(payload.as_bytes(), text.trim().as_bytes());
        assert_eq!(decoder.partial.capacity(), 0);
    }

    proptest! {
        #[test]
        fn newlines_are_found(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(0x0b), Just(0x8a), any::<u8>()], 0..40)) {
            prop_assert_eq!(newline(&bytes), bytes.iter().position(|&byte| byte == b'\n'));
        }
    }
}
