//! How messages are written on the channel.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

use super::advanced;

/// How messages are written on the channel: Node's `serialization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Serialization {
    /// A line of JSON each.
    #[default]
    Json,
    /// As V8 serializes values, with the length in front. Messages are JSON all the same, as far as it has a form for
    /// them: [`Message::Opaque`](super::Message::Opaque) is what it has none for. Numbers are JavaScript's: beyond 2^53
    /// not every integer is one.
    ///
    /// Node 12.16 and later know it.
    Advanced,
}

impl Serialization {
    /// Its name, which is Node's.
    pub const fn name(self) -> &'static str {
        match self {
            Serialization::Json => "json",
            Serialization::Advanced => "advanced",
        }
    }

    /// Makes of the line behind `start` what travels.
    pub(super) fn seal(self, out: &mut Vec<u8>, start: usize) {
        match self {
            Serialization::Json => {}
            Serialization::Advanced => advanced::seal(out, start),
        }
    }
}

impl fmt::Display for Serialization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a serialization.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown serialization `{0}`: use json or advanced")]
pub struct UnknownSerialization(String);

impl FromStr for Serialization {
    type Err = UnknownSerialization;

    fn from_str(text: &str) -> Result<Serialization, UnknownSerialization> {
        match text {
            "json" => Ok(Serialization::Json),
            "advanced" => Ok(Serialization::Advanced),
            _ => Err(UnknownSerialization(text.to_owned())),
        }
    }
}
