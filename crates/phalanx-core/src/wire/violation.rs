//! What a peer can do wrong. All of it ends the channel, none of it ends us.

use std::fmt;

/// A peer broke the protocol; its channel is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line or frame, finished or not, is longer than permitted.
    #[error("a message is longer than {limit} bytes: {line}")]
    TooLong {
        /// The longest line permitted, without its newline.
        limit: usize,
        /// How the line starts.
        line: Excerpt,
    },
    /// One chunk came with several descriptors; no honest peer sends more than one per call.
    #[error("more than one descriptor came with one chunk")]
    TooManyHandles,
    /// A line is not JSON.
    #[error("a line is not JSON: {0}")]
    NotJson(Excerpt),
    /// A frame is no value that V8 has serialized.
    #[error("a frame is no serialized value: {0}")]
    NotSerialized(Excerpt),
    /// A line came where frames were agreed upon.
    #[error("a line of JSON, although the serialization is advanced, which Node knows from 12.16 on: {0}")]
    NotAFrame(Excerpt),
    /// A control message holds a value that no control message has.
    #[error("a control message holds what JSON has no form for, after {0}")]
    Foreign(Excerpt),
    /// A control message is not UTF-8.
    #[error("a control message is not UTF-8: {0}")]
    NotUtf8(Excerpt),
    /// A control message, or a pile of envelopes, is nested deeper than any honest one.
    #[error("a control message is nested too deep: {0}")]
    TooDeep(Excerpt),
    /// A field of a control message is missing, has the wrong type or is out of range.
    #[error("field `{field}` of a control message is missing or wrong: {line}")]
    Field {
        /// The field's name on the wire.
        field: &'static str,
        /// How the line starts.
        line: Excerpt,
    },
    /// A receipt for a descriptor came although none was awaited.
    #[error("a receipt for a descriptor that was not sent")]
    UnexpectedAck,
    /// A worker said something before it said `online`.
    #[error("a message before `online`")]
    BeforeOnline,
}

/// The first bytes of an offending line, escaped so that a log or a terminal can show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// How many bytes of a line are kept.
    pub const BYTES: usize = 64;

    pub(super) fn of(line: &[u8]) -> Self {
        let kept = &line[..line.len().min(Self::BYTES)];
        let more = if line.len() > kept.len() { "…" } else { "" };
        Self(format!("\"{}\"{more}", kept.escape_ascii()).into())
    }

    /// The escaped text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_harmless() {
        assert_eq!(Excerpt::of(b"\x1b[2J\0\n").as_str(), r#""\x1b[2J\x00\n""#);
        let long = Excerpt::of(&[b'x'; 1000]);
        assert_eq!(long.as_str(), format!("\"{}\"…", "x".repeat(64)));
        let text = Violation::NotJson(Excerpt::of(b"boo")).to_string();
        assert_eq!(text, "a line is not JSON: \"boo\"");
    }
}
