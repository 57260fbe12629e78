//! Facts about one socket, whoever made it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::{fd, sockopt as rawopt};

/// `TCP_ESTABLISHED` and `TCP_CLOSE_WAIT` from `net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// How often [`touched`] looks again when bytes arrive in the middle of a look.
const LOOKS: usize = 64;

/// Whether anybody has used a connection; see [`touched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Nobody has read or written a byte: it can be given to somebody else.
    Pristine,
    /// Somebody has, or it is closing: it cannot.
    Touched,
    /// There is no telling: not TCP, or a kernel before 4.19.
    Unknown,
}

/// Whether anybody has read from or written to a TCP connection since it was established, by the kernel's own
/// counters (`TCP_INFO`, `SIOCINQ`): all that was received is still unread, and nothing was sent or is
/// waiting to be.
///
/// `Pristine` is a proof as long as nobody else can use the connection any more, that is, when the process
/// that held it is dead or never got it. A client that has sent all and closed its side (`CLOSE_WAIT`) can be
/// served like any other. Everything that cannot be shown pristine is `Touched`.
pub fn touched(fd: impl AsFd) -> Touched {
    let fd = fd.as_fd();
    match sockopt::socket_protocol(fd) {
        Ok(Some(protocol)) if protocol == ipproto::TCP => {}
        _ => return Touched::Unknown,
    }
    // The two counters are read by two calls. Bytes that arrive between them would be counted as unread but
    // not as received, and would hide as many that somebody has read. So the first is read again: only if it
    // did not move do the two belong together.
    let Ok(Some(mut info)) = rawopt::tcp_info(fd) else { return Touched::Unknown };
    for _ in 0..LOOKS {
        let Ok(unread) = rawopt::unread(fd) else { return Touched::Touched };
        let Ok(Some(again)) = rawopt::tcp_info(fd) else { return Touched::Unknown };
        if (again.state, again.bytes_received) != (info.state, info.bytes_received) {
            info = again;
            continue;
        }
        // A FIN takes a sequence number and is counted as a byte received; it is never counted as unread.
        let fin = match again.state {
            ESTABLISHED => 0,
            CLOSE_WAIT => 1,
            _ => return Touched::Touched,
        };
        let untouched =
            again.bytes_received == unread + fin && again.bytes_sent == 0 && again.notsent_bytes == 0;
        return if untouched { Touched::Pristine } else { Touched::Touched };
    }
    Touched::Touched
}

/// What kind of thing an fd is, as far as a server cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// TCP over IPv4 or IPv6, listening.
    TcpListener,
    /// TCP over IPv4 or IPv6, not listening: a connection, or a socket that is merely bound or new.
    TcpStream,
    /// A `AF_UNIX` stream socket, listening.
    UnixListener,
    /// A `AF_UNIX` stream socket, not listening.
    UnixStream,
    /// UDP over IPv4 or IPv6.
    Udp,
    /// A `AF_UNIX` datagram socket.
    UnixDatagram,
    /// Any other socket, and everything that is none.
    Other,
}

/// What kind of thing `fd` is (`SO_DOMAIN`, `SO_TYPE`, `SO_PROTOCOL`, `SO_ACCEPTCONN`).
///
/// To be asked of every fd that comes from outside before it is used. The answer can change: whoever shares
/// a listener can shut it down, and it then is no listener any more.
pub fn kind(fd: impl AsFd) -> SocketKind {
    kind_of(fd).unwrap_or(SocketKind::Other)
}

fn kind_of(fd: impl AsFd) -> io::Result<SocketKind> {
    let fd = fd.as_fd();
    let domain = sockopt::socket_domain(fd)?;
    let ty = sockopt::socket_type(fd)?;
    let protocol = sockopt::socket_protocol(fd)?;
    let listening = sockopt::socket_acceptconn(fd)?;
    let inet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
    let unix = domain == AddressFamily::UNIX;
    Ok(match (ty, listening) {
        (SocketType::STREAM, true) if inet && protocol == Some(ipproto::TCP) => SocketKind::TcpListener,
        (SocketType::STREAM, false) if inet && protocol == Some(ipproto::TCP) => SocketKind::TcpStream,
        (SocketType::STREAM, true) if unix => SocketKind::UnixListener,
        (SocketType::STREAM, false) if unix => SocketKind::UnixStream,
        (SocketType::DGRAM, _) if inet && protocol == Some(ipproto::UDP) => SocketKind::Udp,
        (SocketType::DGRAM, _) if unix => SocketKind::UnixDatagram,
        _ => SocketKind::Other,
    })
}

/// Switches `SO_LINGER` off, so that closing the last copy of the socket does not block.
///
/// With a linger time and data unsent, the last close waits that long, even on a non-blocking socket. Whoever
/// had the socket before can have set one; so this comes before the close of anything received from outside.
/// The data is still sent, in the background.
///
/// # Errors
/// `ENOTSOCK` for other fds, which cannot linger.
pub fn clear_linger(fd: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(fd, None)?)
}

/// A number that names this socket (`SO_COOKIE`, Linux 4.12): the same in every process that holds it, never
/// given to another while the machine runs.
///
/// # Errors
/// `ENOTSOCK`.
pub fn cookie(fd: impl AsFd) -> io::Result<u64> {
    Ok(sockopt::socket_cookie(fd)?)
}

/// The inode of a socket, as `/proc/PID/fd` and [`steer::diag`](crate::steer::diag) show it: the same in every
/// process that holds it, and given to another once it is closed.
///
/// # Errors
/// None is expected.
pub fn inode(fd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

/// The inodes of all `AF_UNIX` sockets in this network namespace (`/proc/net/unix`), whoever has them. Needs no
/// privilege.
///
/// # Errors
/// `NotFound` without `/proc`.
pub fn unix_inodes() -> io::Result<HashSet<u64>> {
    // Num RefCount Protocol Flags Type St Inode Path
    let text = std::fs::read("/proc/net/unix")?;
    let inode = |line: &[u8]| {
        let field = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(6)?;
        str::from_utf8(field).ok()?.parse().ok()
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(inode).collect())
}

/// Sets or clears `O_NONBLOCK`. It belongs to the open socket, not to the fd: all who share it are affected.
///
/// # Errors
/// None is expected for a socket or pipe.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, on)?)
}

/// A connected pair of `AF_UNIX` stream sockets, both non-blocking and close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`.
pub fn unix_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((fd::above_stdio(a)?, fd::above_stdio(b)?))
}

/// From now on nobody can send fds over this `AF_UNIX` socket to us: the sender gets `EPERM`
/// (`SO_PASSRIGHTS`). On a listener it holds for the connections that will be accepted from it, too.
///
/// `Ok(false)` where the kernel (before Linux 6.16) cannot.
///
/// # Errors
/// `ENOTSOCK`, or `EOPNOTSUPP` for a socket of another family.
pub fn refuse_handles(fd: impl AsFd) -> io::Result<bool> {
    rawopt::clear_passrights(fd)
}
