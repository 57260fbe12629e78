//! UDP.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;

use phalanx_os::SocketKind;
use tokio::net::{ToSocketAddrs, lookup_host};

use super::ListenOptions;
use super::source::{Opened, Wanted, open, open_first};
use crate::worker::driver::Ticket;

/// A [`tokio::net::UdpSocket`]; in a worker, one that all workers share. Dropping it gives it up.
///
/// Where the kernel keeps each flow with a worker (steering), one that drains gets nothing more. Out of one shared
/// socket it goes on to receive, so it should end with [`draining`](crate::draining):
///
/// ```no_run
/// # async fn serve() -> std::io::Result<()> {
/// let socket = phalanx::net::UdpSocket::bind("0.0.0.0:5353").await?;
/// let mut bytes = [0; 2048];
/// loop {
///     tokio::select! {
///         received = socket.recv_from(&mut bytes) => {
///             let (count, from) = received?;
///             socket.send_to(&bytes[..count], from).await?;
///         }
///         () = phalanx::draining() => return Ok(()),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct UdpSocket {
    socket: tokio::net::UdpSocket,
    _ticket: Option<Ticket>,
}

impl UdpSocket {
    /// Binds to the first of these addresses that can be had.
    ///
    /// # Errors
    /// As [`tokio::net::UdpSocket::bind`]; in a worker, what the primary met.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(addr, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_with(addr: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = lookup_host(addr).await?.collect();
        Self::of(open_first(addresses, Wanted::Udp, &options, false).await?)
    }

    /// The socket of this name, of the primary's configuration or from a service manager.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn named(name: &str) -> io::Result<Self> {
        Self::of(open(Wanted::Named(name, SocketKind::Udp), &ListenOptions::default(), false).await?)
    }

    fn of(opened: Opened) -> io::Result<Self> {
        let socket = opened.socket.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let socket = tokio::net::UdpSocket::from_std(socket.into())?;
        let ticket = opened.handed.map(|(_, ticket)| ticket);
        if let Some(ticket) = &ticket {
            ticket.runs_here();
        }
        Ok(Self { socket, _ticket: ticket })
    }
}

impl Deref for UdpSocket {
    type Target = tokio::net::UdpSocket;

    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}
