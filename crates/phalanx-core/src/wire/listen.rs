//! A worker's wish to listen or bind, and the key under which workers share a server.

use std::fmt::Write as _;

use crate::SocketKind;
use serde_json::value::RawValue;

/// What kind of address a worker asks for (`addressType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// TCP over IPv4: `4`.
    Tcp4,
    /// TCP over IPv6: `6`.
    Tcp6,
    /// A Unix stream socket: `-1`.
    Unix,
    /// UDP over IPv4: `"udp4"`.
    Udp4,
    /// UDP over IPv6: `"udp6"`.
    Udp6,
}

impl Family {
    /// Whether the socket is a datagram socket.
    #[must_use]
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Udp4 | Self::Udp6)
    }

    /// The text in a key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "4",
            Self::Tcp6 => "6",
            Self::Unix => "-1",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
        }
    }
}

/// The fields of `queryServer`, and again of `listening` (then `port` is the real one).
///
/// Node's workers spell absence in many ways (`null`, `false`, 0, nothing); here it has one.
#[derive(Clone, Debug, Default)]
pub struct ListenRequest {
    /// Numeric IP or absolute path; `None` is any address.
    pub address: Option<String>,
    /// 0 lets the primary choose, −1 belongs to a Unix path, `None` to a descriptor.
    pub port: Option<i32>,
    /// `None` with a TCP descriptor.
    pub family: Option<Family>,
    /// A descriptor number in the primary; UDP says −1 when it uses none.
    pub fd: Option<i32>,
    /// How often this worker already asked for the same; `None` from v0.12, which does not count.
    pub index: Option<u32>,
    /// Bit 0: IPv6 only. Bit 2: SO_REUSEADDR for UDP.
    pub flags: u32,
    /// The listen(2) backlog; 0 when the worker does not care.
    pub backlog: u32,
    /// Opaque; the first worker's goes to all who share the server. Falsy ones are `None`.
    pub data: Option<Box<RawValue>>,
    /// A Unix socket shall be readable for everyone.
    pub readable_all: bool,
    /// A Unix socket shall be writable for everyone.
    pub writable_all: bool,
    /// Ours: the worker needs a real listening socket, hand-over will not do.
    pub socket: bool,
    /// Ours: a policy for this listener alone.
    pub policy: Option<String>,
    /// Ours: permission bits of a Unix socket.
    pub mode: Option<u32>,
    /// Ours: a listener of the configuration, by its name.
    pub name: Option<String>,
}

impl ListenRequest {
    /// The key as Node 20 builds it: `address:port:addressType:fd:index`.
    #[must_use]
    pub fn key(&self) -> String {
        let mut key = self.tuple();
        let _ = write!(key, ":{}", self.index.unwrap_or(0));
        key
    }

    /// The key as Node 22 builds it: as [`key`](Self::key), but the index only for port 0. Two
    /// requests of one worker for one fixed port are the same wish, two for port 0 are not.
    #[must_use]
    pub fn group_key(&self) -> String {
        if self.port == Some(0) { self.key() } else { self.tuple() }
    }

    /// Whether this kind of socket can be the answer. A request for a descriptor may leave open what it is.
    pub(crate) fn fits(&self, kind: SocketKind) -> bool {
        match self.family {
            None => kind != SocketKind::Udp,
            Some(Family::Tcp4 | Family::Tcp6) => kind == SocketKind::Tcp,
            Some(Family::Unix) => kind == SocketKind::Unix,
            Some(Family::Udp4 | Family::Udp6) => kind == SocketKind::Udp,
        }
    }

    fn tuple(&self) -> String {
        let mut key = String::with_capacity(48);
        key.push_str(self.address.as_deref().unwrap_or("null"));
        match self.port {
            Some(port) => _ = write!(key, ":{port}:"),
            None => key.push_str(":null:"),
        }
        key.push_str(self.family.map_or("null", Family::name));
        match self.fd {
            Some(fd) => _ = write!(key, ":{fd}"),
            None => key.push_str(":undefined"),
        }
        key
    }

    pub(super) fn has_extras(&self) -> bool {
        self.socket || self.policy.is_some() || self.mode.is_some() || self.name.is_some()
    }
}

/// [`RawValue`] compares by its text.
pub(super) fn same_text(a: Option<&RawValue>, b: Option<&RawValue>) -> bool {
    a.map(RawValue::get) == b.map(RawValue::get)
}

impl PartialEq for ListenRequest {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && self.port == other.port
            && self.family == other.family
            && self.fd == other.fd
            && self.index == other.index
            && self.flags == other.flags
            && self.backlog == other.backlog
            && same_text(self.data.as_deref(), other.data.as_deref())
            && self.readable_all == other.readable_all
            && self.writable_all == other.writable_all
            && self.socket == other.socket
            && self.policy == other.policy
            && self.mode == other.mode
            && self.name == other.name
    }
}

impl Eq for ListenRequest {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_node_20s() {
        let tcp = ListenRequest {
            address: Some("127.0.0.1".into()),
            port: Some(8124),
            family: Some(Family::Tcp4),
            index: Some(0),
            ..Default::default()
        };
        assert_eq!(tcp.key(), "127.0.0.1:8124:4:undefined:0");
        assert_eq!(ListenRequest { address: None, ..tcp.clone() }.key(), "null:8124:4:undefined:0");
        assert_eq!(
            ListenRequest { fd: Some(40), index: Some(0), ..Default::default() }.key(),
            "null:null:null:40:0"
        );
        let udp = ListenRequest { family: Some(Family::Udp4), fd: Some(-1), ..tcp.clone() };
        assert_eq!(udp.key(), "127.0.0.1:8124:udp4:-1:0");
        let unix = ListenRequest {
            address: Some("/srv/demo/app.sock".into()),
            port: Some(-1),
            family: Some(Family::Unix),
            ..Default::default()
        };
        assert_eq!(unix.key(), "/srv/demo/app.sock:-1:-1:undefined:0");
    }

    #[test]
    fn the_index_tells_anonymous_ports_apart_and_nothing_else() {
        let fixed = ListenRequest { port: Some(80), index: Some(1), ..Default::default() };
        assert_eq!(fixed.group_key(), "null:80:null:undefined");
        let any = ListenRequest { port: Some(0), index: Some(1), ..Default::default() };
        assert_eq!(any.group_key(), "null:0:null:undefined:1");
    }
}
