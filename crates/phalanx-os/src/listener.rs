//! Sockets with an address of their own: made, bound, listened on, accepted from.

use std::fs::{File, Metadata};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt as opt};

use crate::conn::{self, SocketKind};
use crate::sockopt as rawopt;

/// What the kernel allows when `/proc` does not say (its default since Linux 5.4).
const SOMAXCONN: u32 = 4096;

/// Where to bind, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP. Bound with `SO_REUSEADDR`, so that connections of an earlier life do not stand in the way.
    Tcp {
        /// Port 0 lets the kernel choose.
        addr: SocketAddr,
        /// IPv6 only, not IPv4 as well. Always set on an IPv6 socket, whatever the system's default; without
        /// a meaning for an IPv4 address.
        v6only: bool,
    },
    /// A `AF_UNIX` stream socket with a file.
    Unix {
        /// Longer ones than the 107 bytes of the kernel are tried relative to the current directory.
        path: PathBuf,
        /// Permission bits of the file, exactly. The file never has more than these, not even for a moment.
        /// `None`: as the umask says. Connecting needs the right to write.
        mode: Option<u32>,
    },
    /// UDP.
    Udp {
        /// Port 0 lets the kernel choose.
        addr: SocketAddr,
        /// As for TCP.
        v6only: bool,
        /// Several sockets with this option may have the same address; the last one bound gets the datagrams.
        reuse_addr: bool,
    },
}

/// The address a socket really has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LocalAddress {
    /// IPv4 or IPv6.
    Inet(SocketAddr),
    /// A file.
    Unix(PathBuf),
    /// None: not bound, abstract, or of another family.
    Unnamed,
}

/// What [`bind`] made.
#[derive(Debug)]
pub struct Bound {
    /// The socket: close-on-exec, non-blocking, not listening.
    pub fd: OwnedFd,
    /// Its address, with the port that the kernel chose; for a file the path as it was asked for.
    pub local: LocalAddress,
    /// The file that goes with it.
    pub file: Option<SocketFile>,
}

/// Makes a socket and binds it. It does not listen yet: see [`listen`].
///
/// # Errors
/// What the kernel says, above all `EADDRINUSE` and `EACCES` (a port below 1024). For a path: whatever is
/// there already, a plain file or a socket that nobody listens on, is `EADDRINUSE`; a directory that does not
/// exist is `EACCES`, as Node has it; a path too long even when relative is `ENAMETOOLONG`; an empty one, and
/// one with a NUL, `EINVAL`. Nothing is left behind.
pub fn bind(address: &Address) -> io::Result<Bound> {
    match address {
        Address::Tcp { addr, v6only } => {
            let fd = inet(SocketType::STREAM, *addr, *v6only)?;
            opt::set_socket_reuseaddr(&fd, true)?;
            bound_inet(fd, *addr)
        }
        Address::Udp { addr, v6only, reuse_addr } => {
            let fd = inet(SocketType::DGRAM, *addr, *v6only)?;
            opt::set_socket_reuseaddr(&fd, *reuse_addr)?;
            bound_inet(fd, *addr)
        }
        Address::Unix { path, mode } => bind_unix(path, *mode),
    }
}

fn socket(family: AddressFamily, ty: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, ty, flags, None)?)
}

/// A socket for such an address, not bound.
pub(crate) fn inet(ty: SocketType, addr: SocketAddr, v6only: bool) -> io::Result<OwnedFd> {
    if addr.is_ipv4() {
        return socket(AddressFamily::INET, ty);
    }
    let fd = socket(AddressFamily::INET6, ty)?;
    opt::set_ipv6_v6only(&fd, v6only)?;
    Ok(fd)
}

fn bound_inet(fd: OwnedFd, addr: SocketAddr) -> io::Result<Bound> {
    rustix::net::bind(&fd, &addr)?;
    let local = local_address(&fd)?;
    Ok(Bound { fd, local, file: None })
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<Bound> {
    if path.as_os_str().is_empty() {
        // The kernel would choose an abstract name.
        return Err(Errno::INVAL.into());
    }
    let address = unix_address(path)?;
    let fd = socket(AddressFamily::UNIX, SocketType::STREAM)?;
    if let Some(mode) = mode {
        // Before bind: the file is born with these bits less the umask, and there is no moment at which it
        // had others.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o777))?;
    }
    rustix::net::bind(&fd, &address).map_err(|e| if e == Errno::NOENT { Errno::ACCESS } else { e })?;
    match SocketFile::of(path, mode) {
        Ok(file) => Ok(Bound { fd, local: LocalAddress::Unix(path.to_owned()), file: Some(file) }),
        Err(e) => {
            // Bound a moment ago, so what is there is ours but for somebody who replaces files in our
            // directory, and such a one can do as he likes there anyway.
            let _ = rustix::fs::unlink(path);
            Err(e)
        }
    }
}

/// The address of a path, made relative to the current directory if it would be too long otherwise.
fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            let here = std::env::current_dir()?;
            let short = path.strip_prefix(here).map_err(|_| Errno::NAMETOOLONG)?;
            Ok(SocketAddrUnix::new(short)?)
        }
        other => Ok(other?),
    }
}

/// The file of a bound `AF_UNIX` socket. The kernel leaves it behind when the socket is closed.
///
/// Dropping this does nothing, as [`keep`](Self::keep) says aloud: whether a file goes is a decision.
#[derive(Debug)]
#[must_use = "the file stays unless it is removed"]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// What tells this file from a later one of the same name. Inode numbers are given again soon after a file
/// is gone, hence the time, which nobody changes on a socket by accident.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

impl SocketFile {
    fn of(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        // Absolute, so that it is the same file after a change of directory.
        let path = std::path::absolute(path)?;
        // The file is held by an fd, so that the bits are set on what was looked at, not on a link that took
        // its place.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        let found = file.metadata()?;
        if let Some(mode) = mode.map(|mode| mode & 0o777) {
            // The umask can only have taken bits away; give those back.
            if found.mode() & 0o777 != mode {
                let held = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::chmod(held, Mode::from_raw_mode(mode))?;
            }
        }
        Ok(Self { path, identity: Identity::of(&found) })
    }

    /// Where it is, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file at the path is still this one.
    ///
    /// # Errors
    /// What `lstat(2)` gives, but for a file that is not there, which is `Ok(false)`.
    pub fn is_ours(&self) -> io::Result<bool> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) => Ok(Identity::of(&found) == self.identity),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes the file if it is still the one that was bound; `false` when it is gone or another.
    ///
    /// Somebody who replaces it between the look and the unlink loses his file; the kernel has no call that
    /// does both.
    ///
    /// # Errors
    /// What `lstat(2)` and `unlink(2)` give.
    pub fn remove(self) -> io::Result<bool> {
        if !self.is_ours()? {
            return Ok(false);
        }
        match rustix::fs::unlink(&self.path) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Leaves the file where it is, for a successor that holds the same socket.
    pub fn keep(self) {}
}

/// Listens, or changes the backlog of a socket that does already, without loss; the kernel takes at most
/// [`somaxconn`].
///
/// # Errors
/// `EADDRINUSE` when another socket of the same address listens already, `EOPNOTSUPP` for datagrams.
pub fn listen(fd: impl AsFd, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(fd, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// Why [`accept`] brought no connection, sorted by what there is to do.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// None is waiting.
    #[error("no connection is waiting")]
    WouldBlock,
    /// The new connection was broken before it could be taken. The listener is well: go on.
    #[error("a connection broke before it was accepted")]
    Connection(#[source] io::Error),
    /// No fd or memory for it (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`). It stays queued, and the listener
    /// stays readable: trying again at once would spin.
    #[error("no resources to accept a connection")]
    OutOfResources(#[source] io::Error),
    /// The listener itself is unusable: shut down by somebody who shares it, or no listener.
    #[error("the listener is broken")]
    Listener(#[source] io::Error),
}

/// Takes the next connection: close-on-exec, non-blocking. Never waits if the listener is non-blocking.
///
/// The address is the peer's; `None` for `AF_UNIX`, or if the kernel does not say. A connection that was
/// reset while it waited comes like any other, and what it sent can be read.
///
/// # Errors
/// See [`AcceptError`].
pub fn accept(fd: impl AsFd) -> Result<(OwnedFd, Option<SocketAddr>), AcceptError> {
    accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// As [`accept`], but the connection blocks. Whether the call waits is a matter of the listener.
///
/// # Errors
/// As [`accept`].
pub fn accept_blocking(fd: impl AsFd) -> Result<(OwnedFd, Option<SocketAddr>), AcceptError> {
    accept_with(fd, SocketFlags::CLOEXEC)
}

fn accept_with(fd: impl AsFd, flags: SocketFlags) -> Result<(OwnedFd, Option<SocketAddr>), AcceptError> {
    match retry_on_intr(|| rustix::net::acceptfrom_with(&fd, flags)) {
        Ok((connection, peer)) => Ok((connection, peer.and_then(|peer| SocketAddr::try_from(peer).ok()))),
        Err(Errno::AGAIN) => Err(AcceptError::WouldBlock),
        Err(e) => Err(sort(e)),
    }
}

fn sort(e: Errno) -> AcceptError {
    match e {
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => AcceptError::OutOfResources(e.into()),
        // accept(2): errors that are pending on the new socket, and a firewall's refusal. EOPNOTSUPP is left
        // out of its list: a socket that cannot accept gives it as well, and would give it for ever.
        Errno::CONNABORTED
        | Errno::CONNRESET
        | Errno::PROTO
        | Errno::PERM
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::NOPROTOOPT
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NONET
        | Errno::TIMEDOUT => AcceptError::Connection(e.into()),
        e => AcceptError::Listener(e.into()),
    }
}

/// The address that a socket is bound to.
///
/// # Errors
/// `ENOTSOCK`.
pub fn local_address(fd: impl AsFd) -> io::Result<LocalAddress> {
    let address = rustix::net::getsockname(fd)?;
    Ok(match address.address_family() {
        AddressFamily::INET | AddressFamily::INET6 => {
            SocketAddr::try_from(address).map_or(LocalAddress::Unnamed, LocalAddress::Inet)
        }
        AddressFamily::UNIX => unix_path(address).map_or(LocalAddress::Unnamed, LocalAddress::Unix),
        _ => LocalAddress::Unnamed,
    })
}

fn unix_path(address: SocketAddrAny) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let address = SocketAddrUnix::try_from(address).ok()?;
    let path = address.path()?.into_owned().into_bytes();
    Some(std::ffi::OsString::from_vec(path).into())
}

/// How full a TCP listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Connections that are established and wait to be accepted.
    pub queued: u32,
    /// The backlog that is in force. The kernel lets `limit + 1` wait.
    pub limit: u32,
}

/// How full a TCP listener is (`TCP_INFO`). Needs no privilege.
///
/// # Errors
/// `InvalidInput` for anything that is not a listening TCP socket.
pub fn queue(fd: impl AsFd) -> io::Result<Queue> {
    let fd = fd.as_fd();
    if conn::kind(fd) != SocketKind::TcpListener {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a TCP listener"));
    }
    let info = rawopt::tcp_info(fd)?.ok_or(io::ErrorKind::Unsupported)?;
    Ok(Queue { queued: info.unacked, limit: info.sacked })
}

/// Whether anything waits to be accepted, on a listener of any kind.
///
/// # Errors
/// `ENOMEM`.
pub fn waits(fd: impl AsFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut polled, Some(&now)))?;
    Ok(polled[0].revents().contains(PollFlags::IN))
}

/// Bars a TCP listener, for everybody who holds it and for good: the first packet of a connection (SYN) is dropped
/// as if it had been lost, so handshakes that have not begun do not begin. Those under way go on, and what waits can
/// be accepted. A client tries again a second later; by then the listener may be closed, and it is refused.
///
/// Needs no privilege. Connections inherit the filter, which does nothing to them.
///
/// # Errors
/// `EPERM` when somebody has locked the socket's filter, or a sandbox refuses; `ENOMEM`.
pub fn bar(fd: impl AsFd) -> io::Result<()> {
    /// From `linux/bpf_common.h`: load a byte, AND, jump if equal, return.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where a TCP header, with which the packet begins here, has its flags; and two of them.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code, k| rawopt::FilterStep { code, jt: 0, jf: 0, k };
    rawopt::attach_socket_filter(
        fd,
        &[
            step(LOAD_BYTE, FLAGS),
            step(AND, SYN | ACK),
            rawopt::FilterStep { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: SYN },
            step(RETURN, 0),
            step(RETURN, u32::MAX),
        ],
    )
}

/// The longest backlog that the kernel takes (`net.core.somaxconn`); its default, 4096, if it cannot be
/// read.
#[must_use]
pub fn somaxconn() -> u32 {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(SOMAXCONN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_connection_are_no_errors_of_the_listener() {
        assert!(matches!(sort(Errno::CONNABORTED), AcceptError::Connection(_)));
        assert!(matches!(sort(Errno::MFILE), AcceptError::OutOfResources(_)));
        assert!(matches!(sort(Errno::INVAL), AcceptError::Listener(_)));
        assert!(matches!(sort(Errno::OPNOTSUPP), AcceptError::Listener(_)));
    }

    #[test]
    fn the_file_has_exactly_the_asked_mode() {
        let dir = std::env::temp_dir().join(format!("phalanx-os-mode-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for mode in [0o600, 0o666, 0o770] {
            let path = dir.join(format!("{mode:o}"));
            let bound = bind(&Address::Unix { path: path.clone(), mode: Some(mode) }).unwrap();
            assert_eq!(rustix::fs::lstat(&path).unwrap().st_mode & 0o777, mode);
            assert!(bound.file.unwrap().remove().unwrap());
        }
        std::fs::remove_dir(&dir).unwrap();
    }
}
