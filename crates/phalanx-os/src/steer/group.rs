//! The sockets of one address that belong together.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};

use crate::listener::{self, Address, LocalAddress};

use super::Transport;

/// A `SO_REUSEPORT` group at one address: a *parking socket*, which no worker ever gets, and the members that
/// [`join`](Self::join) makes.
///
/// The parking socket comes first and makes the address exclusive, is where connections wait when no member
/// may have them, and is why the group is never empty: closing the last member of a group resets its queue.
///
/// Processes of *other* users cannot join. One of the same user that sets `SO_REUSEPORT`, too, can, and
/// nothing prevents it; [`diag::listeners`](super::diag::listeners) finds it.
#[derive(Debug)]
pub struct Group {
    transport: Transport,
    address: SocketAddr,
    v6only: bool,
    backlog: u32,
    park: Arc<OwnedFd>,
}

impl Group {
    /// Takes the address. Port 0 lets the kernel choose; `v6only` is as for [`Address::Tcp`].
    ///
    /// # Errors
    /// `EADDRINUSE` when anybody listens there, with whatever options; otherwise as [`listener::bind`].
    pub fn open(transport: Transport, address: SocketAddr, v6only: bool, backlog: u32) -> io::Result<Self> {
        let park = match transport {
            Transport::Tcp => {
                // A socket bound to port 0 loses the port when it is shut down, and would listen on another
                // one after a flush. So the number is learnt with one socket and asked for with the next;
                // before they listen, two may have it.
                let throwaway = listener::bind(&Address::Tcp { addr: address, v6only })?;
                let first = listener::bind(&Address::Tcp { addr: inet(&throwaway.local)?, v6only })?;
                drop(throwaway);
                // It is listening, not bind, that makes it exclusive.
                listener::listen(&first.fd, backlog)?;
                first
            }
            Transport::Udp => listener::bind(&Address::Udp { addr: address, v6only, reuse_addr: false })?,
        };
        let address = inet(&park.local)?;
        sockopt::set_socket_reuseport(&park.fd, true)?;
        Ok(Self { transport, address, v6only, backlog, park: Arc::new(park.fd) })
    }

    /// The address, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The parking socket.
    #[must_use]
    pub fn park(&self) -> &Arc<OwnedFd> {
        &self.park
    }

    /// A new member: bound, listening with the group's backlog, non-blocking, close-on-exec.
    ///
    /// It gets connections at once unless a program or a filter that does not choose it is attached to the
    /// group already.
    ///
    /// # Errors
    /// What `socket(2)`, `bind(2)` and `listen(2)` give; a port below 1024 needs its privilege every time.
    pub fn join(&self) -> io::Result<OwnedFd> {
        let ty = match self.transport {
            Transport::Tcp => rustix::net::SocketType::STREAM,
            Transport::Udp => rustix::net::SocketType::DGRAM,
        };
        let socket = listener::inet(ty, self.address, self.v6only)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        if self.transport == Transport::Tcp {
            // Inherited by connections: those of a listener without it would refuse the next start the port,
            // while they are in TIME_WAIT. (Datagram sockets with it would steal from each other.)
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        rustix::net::bind(&socket, &self.address)?;
        if self.transport == Transport::Tcp {
            listener::listen(&socket, self.backlog)?;
        }
        Ok(socket)
    }
}

fn inet(local: &LocalAddress) -> io::Result<SocketAddr> {
    match local {
        LocalAddress::Inet(address) => Ok(*address),
        _ => Err(Errno::AFNOSUPPORT.into()),
    }
}

/// Moves the queue of a listening member to others, and leaves it listening: same socket, same group, same
/// options, same waiters. A member that somebody has shut down listens again.
///
/// With an [`Exact`](super::Exact) attached its program chooses who gets each connection; data that has
/// arrived is kept and clients notice nothing. **Otherwise the queue is reset** (unless
/// `net.ipv4.tcp_migrate_req` is on).
///
/// Before: take the member out of the ring, and wait 10 ms; handshakes that are in progress in the very
/// microseconds of the call are reset. After: [`Exact::set`](super::Exact::set) again, because the kernel has
/// dropped the entry, and [`poke`] the receivers. A process asleep in a *blocking* `accept` may wake up
/// with `EINVAL`.
///
/// # Errors
/// What `shutdown(2)` and `listen(2)` give, `EADDRINUSE` among them if somebody took the address meanwhile.
pub fn flush(socket: impl AsFd, backlog: u32) -> io::Result<()> {
    match rustix::net::shutdown(&socket, Shutdown::Read) {
        Ok(()) => {}
        // It was shut down before, and now remembers it: all connections would be born at their end.
        Err(Errno::NOTCONN) => rustix::net::connect_unspec(&socket)?,
        Err(e) => return Err(e.into()),
    }
    listener::listen(socket, backlog)
}

/// Ends a member for everybody who holds it: its queue moves, as by [`flush`], and it does not listen any more. For
/// sockets whose worker is dead: one that still waits on it would find it at its end for ever.
pub fn shut_down(socket: impl AsFd) {
    // It was shut down before, or never listened: then nothing waits there.
    let _ = rustix::net::shutdown(socket, Shutdown::Read);
}

/// Wakes whoever waits for a listening socket to become readable, and changes nothing.
///
/// Kernels before 7.1 (and before the stable releases of May 2026) move connections to a listener without
/// telling those who wait for it. Harmless elsewhere.
///
/// # Errors
/// `ENOTCONN` for a socket that does not listen (any more).
pub fn poke(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}
