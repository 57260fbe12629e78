//! The wrapper of a message that comes with a descriptor.

use super::listen::Family;

/// What the wrapper says about the descriptor; the wrapped message stands in the frame itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// How the receiver shall present the descriptor.
    pub kind: HandleKind,
    /// `4:address:port` of the sender's server that accepted the socket; only with
    /// [`HandleKind::NetSocket`]. Whoever holds the socket answers questions about this key.
    pub key: Option<String>,
    /// [`Family::Udp4`] or [`Family::Udp6`]; only with [`HandleKind::DgramSocket`].
    pub dgram_type: Option<Family>,
}

/// The `type` of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleKind {
    /// A stream socket of the cluster itself: connected, bound or listening.
    NetNative,
    /// A UDP socket of the cluster itself.
    DgramNative,
    /// A user's connected stream socket.
    NetSocket,
    /// A user's listening stream socket.
    NetServer,
    /// A user's UDP socket.
    DgramSocket,
    /// A user's bound TCP socket (Node 26).
    NetBoundSocket,
    /// A type that we do not know: acknowledge, then close. Never sent.
    Unknown,
}

impl HandleKind {
    pub(super) const ALL: [Self; 6] = [
        Self::NetNative,
        Self::DgramNative,
        Self::NetSocket,
        Self::NetServer,
        Self::DgramSocket,
        Self::NetBoundSocket,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NetNative => "net.Native",
            Self::DgramNative => "dgram.Native",
            Self::NetSocket => "net.Socket",
            Self::NetServer => "net.Server",
            Self::DgramSocket => "dgram.Socket",
            Self::NetBoundSocket => "net.BoundSocket",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Unknown)
    }
}

impl From<HandleKind> for Envelope {
    fn from(kind: HandleKind) -> Self {
        Self { kind, key: None, dgram_type: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_kind() {
        for kind in HandleKind::ALL {
            assert_eq!(HandleKind::from_name(kind.name()), kind);
        }
        assert_eq!(HandleKind::from_name("net.Teapot"), HandleKind::Unknown);
    }
}
