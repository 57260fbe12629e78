//! The answer to a numbered message.

use std::net::{IpAddr, SocketAddr};

use serde_json::value::RawValue;

use super::{listen::same_text, message::Seq};

/// An `ack`. Three questions share this shape, and only the asker knows which one it put:
/// `queryServer` (look at everything but `accepted`), `newconn` (look at `accepted`),
/// `exitedAfterDisconnect` (nothing to look at).
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The number of the question, in the asker's own counting.
    pub ack: Seq,
    /// To `newconn`: whether the worker took the connection.
    pub accepted: Option<bool>,
    /// To `queryServer`: 0 or `None` is success, else a negative Linux errno. Round robin says
    /// `None`, a shared socket 0; written like that, for those who compare lines.
    pub errno: Option<i32>,
    /// To `queryServer`: the name of the server from now on.
    pub key: Option<String>,
    /// To `queryServer`: what the first worker sent along.
    pub data: Option<Box<RawValue>>,
    /// To `queryServer` in round robin: what the worker shall show as its address.
    pub sockname: Option<SockName>,
}

impl Reply {
    /// The bare acknowledgement that lets a leaving worker go.
    #[must_use]
    pub fn bare(ack: Seq) -> Self {
        Self { ack, ..Self::default() }
    }

    /// The answer to a new connection.
    #[must_use]
    pub fn answer(ack: Seq, accepted: bool) -> Self {
        Self { ack, accepted: Some(accepted), ..Self::default() }
    }

    /// The errno, if there is one that says failure.
    #[must_use]
    pub fn failure(&self) -> Option<i32> {
        self.errno.filter(|&errno| errno != 0)
    }

    /// Whether anything here answers a `queryServer`.
    #[must_use]
    pub fn is_listen_reply(&self) -> bool {
        self.key.is_some() || self.errno.is_some() || self.data.is_some() || self.sockname.is_some()
    }
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        self.ack == other.ack
            && self.accepted == other.accepted
            && self.errno == other.errno
            && self.key == other.key
            && same_text(self.data.as_deref(), other.data.as_deref())
            && self.sockname == other.sockname
    }
}

impl Eq for Reply {}

/// The address that a round-robin worker reports as its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SockName {
    /// Numeric, perhaps with a zone.
    pub address: String,
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// The port; must equal the requested one if that was not 0.
    pub port: u16,
}

impl SockName {
    /// The address as the standard library knows it; a zone by name is lost.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let numeric = self.address.split('%').next()?;
        Some(SocketAddr::new(numeric.parse::<IpAddr>().ok()?, self.port))
    }
}

impl From<SocketAddr> for SockName {
    fn from(addr: SocketAddr) -> Self {
        Self { address: addr.ip().to_string(), ipv6: addr.is_ipv6(), port: addr.port() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in ["127.0.0.1:80", "[::1]:443"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(SockName::from(addr).socket_addr(), Some(addr));
        }
        let zoned = SockName { address: "fe80::1%eth0".into(), ipv6: true, port: 1 };
        assert_eq!(zoned.socket_addr(), "[fe80::1]:1".parse().ok());
    }
}
