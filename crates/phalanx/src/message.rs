//! Messages between the primary and a worker, and the sockets that may go along.

use phalanx_core::wire::{Envelope, Family, HandleKind, Payload};
use phalanx_os::{LocalAddress, SocketKind, conn, listener};
use serde_json::Value;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The channel is closed.
    #[error("the channel is closed")]
    Closed,
    /// Too much waits to be sent already; there will be room when the other end has read some.
    #[error("the other end does not read: the queue is full")]
    Full,
    /// The primary does not receive handles ([`Builder::receive_handles`](crate::Builder::receive_handles)).
    #[error("the primary does not receive handles from its workers: see `Builder::receive_handles`")]
    Refused,
    /// The message has no form in JSON.
    #[error("the message cannot be written as JSON: {0}")]
    Encode(String),
}

impl From<phalanx_core::SendError> for SendError {
    fn from(error: phalanx_core::SendError) -> SendError {
        match error {
            phalanx_core::SendError::Full => SendError::Full,
            _ => SendError::Closed,
        }
    }
}

impl From<serde_json::Error> for SendError {
    fn from(error: serde_json::Error) -> SendError {
        SendError::Encode(error.to_string())
    }
}

/// A socket that goes along with a message. A Node worker gets it as the second argument of its `message` event: a
/// `net.Socket`, a `net.Server` or a `dgram.Socket`. (As workers of a cluster, Node programs cannot use a Unix
/// listener, and before version 20 no listener at all: Node then asks the primary for it again, whoever that is.)
///
/// The sender's own is closed once the other end has it. What is received does not block
/// (`set_nonblocking(false)` changes that, for everybody who has the same socket); `from_std` of tokio's types takes
/// it as it is.
#[derive(Debug)]
#[non_exhaustive]
pub enum Handle {
    /// A TCP connection.
    TcpStream(TcpStream),
    /// A TCP listener.
    TcpListener(TcpListener),
    /// A connection of a Unix socket.
    UnixStream(UnixStream),
    /// A Unix listener.
    UnixListener(UnixListener),
    /// A UDP socket.
    UdpSocket(UdpSocket),
}

macro_rules! handles {
    ($($name:ident),+) => { $(
        impl From<$name> for Handle {
            fn from(socket: $name) -> Handle {
                Handle::$name(socket)
            }
        }
    )+

        impl From<Handle> for OwnedFd {
            fn from(handle: Handle) -> OwnedFd {
                match handle { $(Handle::$name(socket) => socket.into(),)+ }
            }
        }
    };
}

handles!(TcpStream, TcpListener, UnixStream, UnixListener, UdpSocket);

impl Handle {
    /// What came from a peer, who is not trusted to send what it says.
    pub(crate) fn received(fd: OwnedFd) -> io::Result<Handle> {
        // Its close must not wait for what somebody else left unsent.
        let _ = conn::clear_linger(&fd);
        let kind = conn::kind(&fd);
        let handle = match kind {
            SocketKind::TcpStream => Handle::TcpStream(fd.into()),
            SocketKind::TcpListener => Handle::TcpListener(fd.into()),
            SocketKind::UnixStream => Handle::UnixStream(fd.into()),
            SocketKind::UnixListener => Handle::UnixListener(fd.into()),
            SocketKind::Udp => Handle::UdpSocket(fd.into()),
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a handle that is {other:?}"),
                ));
            }
        };
        match &handle {
            Handle::TcpStream(socket) => socket.set_nonblocking(true),
            Handle::TcpListener(socket) => socket.set_nonblocking(true),
            Handle::UnixStream(socket) => socket.set_nonblocking(true),
            Handle::UnixListener(socket) => socket.set_nonblocking(true),
            Handle::UdpSocket(socket) => socket.set_nonblocking(true),
        }?;
        Ok(handle)
    }

    /// As it travels.
    pub(crate) fn packed(self) -> (Envelope, OwnedFd) {
        let kind = match &self {
            Handle::TcpStream(_) | Handle::UnixStream(_) => HandleKind::NetSocket,
            Handle::TcpListener(_) | Handle::UnixListener(_) => HandleKind::NetServer,
            Handle::UdpSocket(_) => HandleKind::DgramSocket,
        };
        let fd = OwnedFd::from(self);
        let mut envelope = Envelope::from(kind);
        if kind == HandleKind::DgramSocket {
            let v6 =
                matches!(listener::local_address(fd.as_fd()), Ok(LocalAddress::Inet(it)) if it.is_ipv6());
            envelope.dgram_type = Some(if v6 { Family::Udp6 } else { Family::Udp4 });
        }
        (envelope, fd)
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A value.
    Json(Value),
    /// What has no form as a value, as it came. With the serialization `advanced` this is what Node's
    /// `v8.deserialize` takes; if a socket came with it, `{ cmd: 'NODE_HANDLE', type, msg }` is around it. With `json`
    /// it is JSON in form, with text that is no Unicode, a number beyond all bounds, or more than 128 values within
    /// each other.
    Opaque(Arc<[u8]>),
}

impl Content {
    pub(crate) fn of(message: Payload) -> Content {
        match message.decode() {
            Ok(value) => Content::Json(value),
            Err(_) => Content::Opaque(message.into_bytes().into()),
        }
    }
}

/// A handle that came with a message. Several may hear the message; the first who takes the handle has it, and if
/// nobody does, it is closed with the last copy of the message.
#[derive(Clone, Debug)]
pub struct Attached(Arc<Mutex<Option<Handle>>>);

impl Attached {
    pub(crate) fn new(handle: Handle) -> Attached {
        Attached(Arc::new(Mutex::new(Some(handle))))
    }

    /// What came from a peer. What it should not have sent is closed.
    pub(crate) fn received(fd: OwnedFd, peer: &str) -> Option<Attached> {
        match Handle::received(fd) {
            Ok(handle) => Some(Attached::new(handle)),
            Err(error) => {
                tracing::warn!(peer, %error, "a handle that came with a message is closed");
                None
            }
        }
    }

    /// Takes the handle; `None` if somebody has.
    pub fn take(&self) -> Option<Handle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_what_it_is_whatever_its_sender_says() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(Handle::received(tcp.into()), Ok(Handle::TcpListener(_))));
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(matches!(Handle::received(unix.into()), Ok(Handle::UnixStream(_))));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Handle::received(file.into()).is_err());
        let (envelope, _fd) = Handle::from(UdpSocket::bind("[::1]:0").unwrap()).packed();
        assert_eq!((envelope.kind, envelope.dgram_type), (HandleKind::DgramSocket, Some(Family::Udp6)));
    }

    #[test]
    fn what_cannot_be_decoded_is_given_as_it_came() {
        let content = |text: &[u8]| Content::of(Payload::new(text).unwrap());
        assert_eq!(content(b"[1,{}]"), Content::Json(serde_json::json!([1, {}])));
        for text in [&b"\"\\ud800\""[..], b"\"\xff\"", b"1e999"] {
            assert_eq!(content(text), Content::Opaque(text.into()));
        }
    }

    #[test]
    fn one_takes_it() {
        let (unix, _other) = UnixStream::pair().unwrap();
        let attached = Attached::new(unix.into());
        let copy = attached.clone();
        assert!(attached.take().is_some() && copy.take().is_none());
    }
}
