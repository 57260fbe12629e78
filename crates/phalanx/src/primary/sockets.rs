//! Sockets that the primary holds.

use phalanx_core::{BindSpec, BoundAddress, Peer, SocketKind};
use phalanx_os::{Address, Bound, LocalAddress, SocketFile, conn, listener, steer};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A socket, and its file if it is a Unix socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) file: Option<SocketFile>,
    /// Whether it could be barred, once that was tried.
    barred: Option<bool>,
}

impl Socket {
    pub(super) fn new(fd: Arc<OwnedFd>, file: Option<SocketFile>) -> Socket {
        Socket { fd, file, barred: None }
    }

    /// Lets nobody new in: a Unix socket's file goes, which is how it is found. Tried once.
    pub(super) fn bar(&mut self) -> io::Result<()> {
        if self.barred.is_some() {
            return Ok(());
        }
        let done = match self.file.take() {
            Some(file) => file.remove().map(drop),
            None => listener::bar(&self.fd),
        };
        self.barred = Some(done.is_ok());
        done
    }
}

/// How many wait on those that are barred, or are on the way in.
pub(super) fn waiting<'a>(sockets: impl Iterator<Item = &'a Socket>) -> u64 {
    let (mut waiting, mut ports) = (0, BTreeSet::new());
    for socket in sockets.filter(|socket| socket.barred == Some(true)) {
        let one_or_more = || u64::from(listener::waits(&socket.fd).unwrap_or(false));
        waiting += listener::queue(&socket.fd).map_or_else(|_| one_or_more(), |queue| queue.queued.into());
        if let Ok(LocalAddress::Inet(address)) = listener::local_address(&socket.fd) {
            ports.insert(address.port());
        }
    }
    if waiting > 0 {
        // To look at every connection of the machine is dear, and changes nothing now.
        return waiting;
    }
    ports.into_iter().map(|port| steer::diag::handshakes(port).unwrap_or(0)).sum()
}

/// Binds, and listens on, what core asked for.
pub(super) fn bind(
    spec: &BindSpec,
    backlog: u32,
    inherited: &[Arc<OwnedFd>],
) -> io::Result<(Socket, BoundAddress)> {
    let bound = match spec {
        BindSpec::Inherited { index, .. } => inherit(*index, inherited),
        BindSpec::Tcp { address: Some(ip), port, v6only } => {
            listener::bind(&Address::Tcp { addr: SocketAddr::new(*ip, *port), v6only: *v6only })
        }
        // Any address means both families, or IPv4 where there is no IPv6 (LISTEN-04).
        BindSpec::Tcp { address: None, port, v6only } => {
            let any = |ip: IpAddr| Address::Tcp { addr: SocketAddr::new(ip, *port), v6only: *v6only };
            listener::bind(&any(Ipv6Addr::UNSPECIFIED.into())).or_else(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    Err(error)
                } else {
                    listener::bind(&any(Ipv4Addr::UNSPECIFIED.into()))
                }
            })
        }
        BindSpec::Udp { address, port, v6only, reuse_addr } => listener::bind(&Address::Udp {
            addr: SocketAddr::new(*address, *port),
            v6only: *v6only,
            reuse_addr: *reuse_addr,
        }),
        BindSpec::Unix { path, mode, readable_all, writable_all } => {
            // Connecting needs the right to write; Node's two options widen what umask left.
            let widened = if *writable_all { Some(0o777) } else { readable_all.then_some(0o755) };
            listener::bind(&Address::Unix { path: path.into(), mode: mode.or(widened) })
        }
        _ => Err(io::Error::from_raw_os_error(22)),
    }?;
    if spec.kind() != SocketKind::Udp {
        listener::listen(&bound.fd, backlog)?;
    }
    let address = match (bound.local, spec) {
        (LocalAddress::Inet(addr), _) => BoundAddress::Inet(addr),
        (_, BindSpec::Unix { path, .. }) => BoundAddress::Unix(path.clone()),
        (LocalAddress::Unix(path), _) => BoundAddress::Unix(path.to_string_lossy().into_owned()),
        (LocalAddress::Unnamed, _) => BoundAddress::Unix(String::new()),
    };
    Ok((Socket::new(Arc::new(bound.fd), bound.file), address))
}

/// The file of a Unix socket is not ours: whoever made it takes it away.
fn inherit(index: u32, inherited: &[Arc<OwnedFd>]) -> io::Result<Bound> {
    let given = usize::try_from(index).ok().and_then(|index| inherited.get(index));
    let fd = given.ok_or(io::ErrorKind::InvalidInput)?.try_clone()?;
    conn::set_nonblocking(&fd, true)?;
    let local = listener::local_address(&fd)?;
    Ok(Bound { fd, local, file: None })
}

/// What tells a connection from others.
pub(super) fn peer_of(peer: Option<SocketAddr>, connection: &OwnedFd) -> Option<Peer> {
    peer.map(Peer::Inet).or_else(|| conn::inode(connection).ok().map(Peer::Unix))
}

/// The peers of all connections that some process has accepted from this listener and that are open; and of
/// others as well, if it is a Unix socket.
pub(super) fn open_peers(listener: &OwnedFd) -> io::Result<BTreeSet<Peer>> {
    let LocalAddress::Inet(address) = listener::local_address(listener)? else {
        return Ok(conn::unix_inodes()?.into_iter().map(Peer::Unix).collect());
    };
    let all = steer::diag::connections(address.port())?;
    Ok(all.into_iter().filter(steer::diag::Connection::is_open).map(|each| each.peer.into()).collect())
}
