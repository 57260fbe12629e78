//! When a worker is ready: a fact by kind, never a timer, never "connect succeeded".

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// What makes a worker ready.
///
/// On a socket that is shared or held by the primary, a connect succeeds before the program has begun, so that
/// proves nothing and is not offered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ready {
    /// By kind. With a channel: it is online and listens on all that the worker before it listens on; the first
    /// of its kind, on what is configured. Without: the kernel shows it waiting on the sockets that it was
    /// lent; if there are none, it runs, and that it ends at once is found out only afterwards: `Notify` is better
    /// for a program that serves nobody.
    #[default]
    Auto,
    /// It is online; without a channel, it runs.
    Online,
    /// It listens; without a channel, the kernel shows it waiting on a socket that it was lent.
    Listening,
    /// It says so: `ready` of the library, `process.send('ready')` in Node.
    Message,
    /// It says so: READY=1 to NOTIFY_SOCKET, as for systemd.
    Notify,
    /// A GET of this path, to this very worker, is answered with a status below 400. Needs a channel.
    Http(String),
}

impl Ready {
    /// Whether a worker says itself when it can serve, so that it is given nothing before and does not live
    /// when it never says so.
    pub(crate) fn is_promised(&self) -> bool {
        matches!(self, Ready::Message | Ready::Notify | Ready::Http(_))
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ready::Auto => "auto",
            Ready::Online => "online",
            Ready::Listening => "listening",
            Ready::Message => "message",
            Ready::Notify => "notify",
            Ready::Http(path) => return write!(f, "http:{path}"),
        })
    }
}

/// The text does not say what makes a worker ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` makes nobody ready: use one of auto, online, listening, message, notify, http:/PATH")]
pub struct UnknownReady(String);

impl FromStr for Ready {
    type Err = UnknownReady;

    fn from_str(text: &str) -> Result<Ready, UnknownReady> {
        match text {
            "auto" => Ok(Ready::Auto),
            "online" => Ok(Ready::Online),
            "listening" => Ok(Ready::Listening),
            "message" => Ok(Ready::Message),
            "notify" => Ok(Ready::Notify),
            _ => match text.strip_prefix("http:").filter(|path| path.starts_with('/')) {
                // It becomes part of a request's first line.
                Some(path) if path.bytes().all(|b| b.is_ascii_graphic()) => Ok(Ready::Http(path.to_owned())),
                Some(_) | None => Err(UnknownReady(text.to_owned())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for text in ["auto", "online", "listening", "message", "notify", "http:/health?x=1"] {
            assert_eq!(text.parse::<Ready>().map(|ready| ready.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "http", "http:", "http:health", "http:/a b", "http:/a\r\nX: y", "tcp"] {
            assert!(text.parse::<Ready>().is_err(), "{text}");
        }
    }
}
