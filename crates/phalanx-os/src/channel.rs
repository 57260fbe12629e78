//! One end of the socket pair between a primary and a worker: bytes, and fds that travel with them.
//!
//! What the kernel does, and what follows from it:
//!
//! * An fd travels with the **first byte** of the message that carries it, and without a byte it is lost.
//!   So [`Channel::send`] refuses an empty message, and after a short write the caller sends the rest
//!   *without* the fd, or it would arrive twice.
//! * Messages of up to 32,000 bytes are taken whole or not at all; longer ones may be cut.
//! * One receive never returns bytes *after* the message that carried fds, but it may return plain bytes
//!   before it, and if the buffer was short the tail of the previous one. Which message an fd belongs to is
//!   for the decoder to say.
//! * A receiver that has no number left gets the bytes and loses the fds. That is reported as
//!   [`Received::truncated`], never passed over.
//! * Once the peer is gone, what it wrote stays readable first; only then comes the end.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, FdFlags, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use crate::{conn, fd, sockopt as rawopt};

/// The most fds that one message can carry (`SCM_MAX_FD` in the kernel). With room for fewer, a peer could
/// make the kernel close fds inside our own receive call, and a close can block (`SO_LINGER`).
const MAX_FDS: usize = 253;

/// Our end of a channel: a connected `AF_UNIX` stream socket, non-blocking and close-on-exec.
///
/// It is read with [`recv`](Self::recv) and with nothing else: a plain `read` would drop the fds in silence.
/// Dropping it closes it, which the other side sees as the end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What one [`Channel::recv`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Received {
    /// Bytes at the start of the buffer. 0 is the end: the peer closed its end or died.
    pub len: usize,
    /// Fds that came with these bytes were destroyed on the way, most likely because this process has
    /// reached its limit of open files (`MSG_CTRUNC`). How many is not known.
    pub truncated: bool,
}

/// Why [`Channel::send`] sent nothing.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The peer has not read enough yet. Wait until the socket is writable.
    #[error("the channel is full")]
    WouldBlock,
    /// This user has as many fds in flight as the limit of open files allows (`ETOOMANYREFS`), counted over
    /// all its processes. It is back-pressure: a receiver has to read first, and writability does not tell.
    #[error("too many handles in flight")]
    TooManyInFlight,
    /// The peer is gone. What it wrote before can still be received.
    #[error("the channel is closed")]
    Closed,
    /// Anything else; `InvalidInput` for an empty message.
    #[error("cannot send on the channel")]
    Io(#[source] io::Error),
}

/// Why [`Channel::recv`] brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// Nothing there yet. Wait until the socket is readable.
    #[error("nothing to receive")]
    WouldBlock,
    /// Anything else; `InvalidInput` for an empty buffer.
    #[error("cannot receive on the channel")]
    Io(#[source] io::Error),
}

impl Channel {
    /// A new pair: our end, and the end for a child, which is close-on-exec as well (a [`Spawn`] clears that
    /// in the child) and blocking, as Node's own primary leaves it.
    ///
    /// The caller closes its copy of the child's end once the child has it, else the end is never seen.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`.
    ///
    /// [`Spawn`]: crate::Spawn
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let ours = fd::above_stdio(ours)?;
        conn::set_nonblocking(&ours, true)?;
        Ok((Self(ours), fd::above_stdio(theirs)?))
    }

    /// Takes an fd that was inherited or received, after a look at what it is.
    ///
    /// Close-on-exec and non-blocking are set; the latter is shared with everybody who holds the same end,
    /// and with nobody at the other end. On an error the fd is closed.
    ///
    /// # Errors
    /// `ENOTSOCK` for something that is not a socket, `InvalidInput` for a socket that is not a connected
    /// `AF_UNIX` stream.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::check(&fd)?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        let fd = fd::above_stdio(fd)?;
        conn::set_nonblocking(&fd, true)?;
        Ok(Self(fd))
    }

    /// Whether `fd` can be a channel, without taking it.
    pub(crate) fn check(fd: impl AsFd) -> io::Result<()> {
        // Asked first for its ENOTSOCK.
        let domain = sockopt::socket_domain(&fd)?;
        if domain != AddressFamily::UNIX
            || sockopt::socket_type(&fd)? != SocketType::STREAM
            || sockopt::socket_acceptconn(&fd)?
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a connected UNIX stream socket"));
        }
        Ok(())
    }

    /// Sends `bytes`, and with their first byte a copy of `handle`, in one `sendmsg(2)`.
    ///
    /// Returns how many bytes went, at least 1. When it is less than all of them the handle **has gone**:
    /// send the rest without it. On an error nothing has gone, neither bytes nor handle. The caller's
    /// `handle` stays open and its own.
    ///
    /// Never blocks and never raises SIGPIPE.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, bytes: &[u8], handle: Option<BorrowedFd<'_>>) -> Result<usize, SendError> {
        if bytes.is_empty() {
            // With a handle the kernel would return 0 and destroy it; without one there is nothing to do.
            return Err(SendError::Io(io::ErrorKind::InvalidInput.into()));
        }
        let handle = handle.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        retry_on_intr(|| {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !handle.is_empty() {
                let fits = control.push(SendAncillaryMessage::ScmRights(handle));
                debug_assert!(fits, "room for one fd was reserved");
            }
            rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)
        })
        .map_err(|e| match e {
            Errno::AGAIN => SendError::WouldBlock,
            Errno::TOOMANYREFS => SendError::TooManyInFlight,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => SendError::Closed,
            e => SendError::Io(e.into()),
        })
    }

    /// Receives into `buf`, and appends to `handles` the fds that came with these bytes, in order.
    ///
    /// One `recvmsg(2)`. The fds are close-on-exec, above 2 and owned from the moment they exist. A peer may
    /// send what it likes, up to 253 at once: the caller looks at the kind ([`conn::kind`]) before it uses
    /// one, and at the linger time ([`conn::clear_linger`]) before it closes one. `handles` can grow together
    /// with `len` 0 as well as with `truncated`.
    ///
    /// A connection reset is an end like any other: `len` 0.
    ///
    /// # Errors
    /// See [`RecvError`].
    pub fn recv(&self, buf: &mut [u8], handles: &mut Vec<OwnedFd>) -> Result<Received, RecvError> {
        if buf.is_empty() {
            // The kernel's 0 could not be told from the end.
            return Err(RecvError::Io(io::ErrorKind::InvalidInput.into()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = match retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buf)], &mut control, flags)
        }) {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Err(RecvError::WouldBlock),
            Err(Errno::CONNRESET) => return Ok(Received { len: 0, truncated: false }),
            Err(e) => return Err(RecvError::Io(e.into())),
        };
        let mut truncated = message.flags.contains(ReturnFlags::CTRUNC);
        for part in control.drain() {
            // Other ancillary data comes only if somebody asked for it on this socket.
            let RecvAncillaryMessage::ScmRights(fds) = part else { continue };
            for fd in fds {
                match fd::above_stdio(fd) {
                    Ok(fd) => handles.push(fd),
                    Err(_) => truncated = true,
                }
            }
        }
        Ok(Received { len: message.bytes, truncated })
    }

    /// From now on nobody can send us fds: the *sender* gets `EPERM`, and plain bytes still flow
    /// (`SO_PASSRIGHTS`). Fds that are in the queue already still arrive; sending fds ourselves is not
    /// affected.
    ///
    /// `Ok(false)` where the kernel (before Linux 6.16) cannot.
    ///
    /// # Errors
    /// What `setsockopt(2)` gives; none is expected.
    pub fn refuse_handles(&self) -> io::Result<bool> {
        rawopt::clear_passrights(&self.0)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes{}", self.len, if self.truncated { ", handles lost" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusing_handles_is_seen_by_the_sender_only() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::from_fd(theirs).unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut handles = Vec::new();
        let mut buf = [0; 16];
        if !ours.refuse_handles().unwrap() {
            // An older kernel: nothing has changed, and that is the whole promise.
            assert_eq!(theirs.send(b"x", Some(null.as_fd())).unwrap(), 1);
            return;
        }
        assert!(!rawopt::passrights(&ours).unwrap());
        assert!(rawopt::passrights(&theirs).unwrap());
        match theirs.send(b"x", Some(null.as_fd())) {
            Err(SendError::Io(e)) => assert_eq!(e.raw_os_error(), Some(libc::EPERM)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(ours.recv(&mut buf, &mut handles), Err(RecvError::WouldBlock)));
        assert_eq!(theirs.send(b"plain", None).unwrap(), 5);
        assert_eq!(ours.recv(&mut buf, &mut handles).unwrap().len, 5);
        // The other direction is as before.
        assert_eq!(ours.send(b"y", Some(null.as_fd())).unwrap(), 1);
        assert_eq!(theirs.recv(&mut buf, &mut handles).unwrap(), Received { len: 1, truncated: false });
        assert_eq!(handles.len(), 1);
    }

    #[test]
    fn only_a_connected_unix_stream_is_a_channel() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert_eq!(Channel::from_fd(null).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(Channel::from_fd(tcp.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(Channel::from_fd(datagram.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Channel::from_fd(stream.into()).is_ok());
    }

    #[test]
    fn empty_messages_and_empty_buffers_are_refused() {
        let (ours, theirs) = Channel::pair().unwrap();
        assert!(matches!(ours.send(b"", None), Err(SendError::Io(_))));
        assert!(matches!(ours.send(b"", Some(theirs.as_fd())), Err(SendError::Io(_))));
        assert!(matches!(ours.recv(&mut [], &mut Vec::new()), Err(RecvError::Io(_))));
    }
}
