//! A user message: one JSON text that is carried, never understood.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use super::scan;

/// The bytes of a user message, exactly as they travel, without the newline.
///
/// It is well-formed JSON in shape, but it may hold what a strict decoder refuses: invalid UTF-8,
/// lone surrogates, integers beyond 2^53, any depth. So it is only decoded when somebody asks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Payload(Box<[u8]>);

/// The bytes offered as a [`Payload`] are not one JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON text")]
pub struct NotJson;

impl Payload {
    /// Takes a JSON text; line breaks between its tokens become spaces.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if a peer would refuse the text.
    pub fn new(text: impl Into<Vec<u8>>) -> Result<Self, NotJson> {
        let mut text = text.into();
        let report = scan::scan(&text, |_, _| ()).map_err(|_| NotJson)?;
        one_line(&mut text);
        Ok(Self::cut(text, report.span))
    }

    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// Whatever the value's own [`Serialize`] reports.
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Self> {
        let mut text = serde_json::to_vec(value)?;
        one_line(&mut text); // A `RawValue` inside is written as it is.
        Ok(Self(text.into()))
    }

    /// Decodes the message.
    ///
    /// # Errors
    ///
    /// The text does not fit the type, or is one that a strict decoder refuses.
    pub fn decode<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.0)
    }

    /// The JSON text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The JSON text, owned.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into()
    }

    /// A copy of a text that was scanned already.
    pub(super) fn trusted(text: &[u8]) -> Self {
        Self(text.into())
    }

    /// Part of a buffer that was scanned already, without a second copy of it.
    pub(super) fn cut(mut text: Vec<u8>, span: std::ops::Range<usize>) -> Self {
        text.truncate(span.end);
        text.drain(..span.start);
        Self(text.into())
    }
}

/// Inside a string a raw line break is not JSON, so each one is white space between tokens.
fn one_line(text: &mut [u8]) {
    for byte in text {
        if *byte == b'\n' || *byte == b'\r' {
            *byte = b' ';
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({})", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pretty_text_becomes_one_line() {
        let payload = Payload::new("\n{\n \"a\": [1,\r\n2]\n}\n").unwrap();
        assert_eq!(payload.as_bytes(), b"{  \"a\": [1,  2] }");
        assert_eq!(payload.decode::<serde_json::Value>().unwrap()["a"][1], 2);
        let raw = serde_json::value::RawValue::from_string("[\n1]".into()).unwrap();
        assert_eq!(Payload::encode(&raw).unwrap().as_bytes(), b"[ 1]");
    }

    #[test]
    fn what_a_peer_would_refuse_is_refused_here() {
        for text in ["", "{", "a", "{} {}", "\"a\nb\"", "[1,]", "01", "\0"] {
            assert_eq!(Payload::new(text), Err(NotJson), "{text:?}");
        }
    }

    #[test]
    fn what_a_strict_decoder_refuses_is_carried() {
        for text in [&b"\"\\ud800\""[..], b"\"\xff\"", b"123456789012345678901234567890"] {
            assert_eq!(Payload::new(text).unwrap().as_bytes(), text);
        }
    }
}
