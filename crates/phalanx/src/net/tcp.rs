//! TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use phalanx_os::{SocketKind, conn};
use serde_json::Value;
use tokio::net::{TcpStream, ToSocketAddrs, lookup_host};

use super::ListenOptions;
use super::source::{Arrived, Source, Wanted, open, open_first};

/// As [`tokio::net::TcpListener`], in a worker and alone.
///
/// In a worker, connections come from the primary, or from a socket that it lends; alone, from a socket of a
/// service manager (`LISTEN_FDS`) that has the address, or else from one that is bound here. Once
/// [draining](crate::drain::draining) has begun, no connection is accepted any more and its socket is closed, whoever
/// keeps it: new clients go to others, or are refused. Dropping it gives it up.
#[derive(Debug)]
pub struct TcpListener(Source);

impl TcpListener {
    /// Listens at the first of these addresses that can be had.
    ///
    /// # Errors
    /// As [`tokio::net::TcpListener::bind`]; in a worker, what the primary met.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(addr, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_with(addr: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = lookup_host(addr).await?.collect();
        Ok(Self(Source::new(open_first(addresses, Wanted::Tcp, &options, false).await?)?))
    }

    /// The listener of this name, of the primary's configuration or from a service manager.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn named(name: &str) -> io::Result<Self> {
        let wanted = Wanted::Named(name, SocketKind::TcpListener);
        Ok(Self(Source::new(open(wanted, &ListenOptions::default(), false).await?)?))
    }

    /// The next connection. It can be awaited by several tasks at once, and dropped without loss.
    ///
    /// # Errors
    /// Above all a lack of resources (`EMFILE`), which passes.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            if let Some(accepted) = stream(self.0.accept().await?)? {
                return Ok(accepted);
            }
        }
    }

    /// As [`accept`](Self::accept).
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            if let Some(accepted) = stream(ready!(self.0.poll_accept(cx))?)? {
                return Poll::Ready(Ok(accepted));
            }
        }
    }

    /// Its connections as a stream, for servers that take one. Like `accept`, it never ends, and is pending for ever
    /// once draining has begun; dropping it gives the listener up.
    #[must_use]
    pub fn incoming(self) -> TcpIncoming {
        TcpIncoming(self)
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// When the primary did not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.address.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// What the first worker brought along as [`ListenOptions::data`]; alone, one's own.
    #[must_use]
    pub fn data(&self) -> Option<&Value> {
        self.0.data.as_ref()
    }
}

/// The connections of a [`TcpListener`]; see [`incoming`](TcpListener::incoming).
#[derive(Debug)]
pub struct TcpIncoming(TcpListener);

impl futures_core::Stream for TcpIncoming {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

/// `None` for a connection that is gone already.
pub(super) fn std_stream(Arrived { fd, peer }: Arrived) -> Option<(std::net::TcpStream, SocketAddr)> {
    let stream = std::net::TcpStream::from(fd);
    let peer = match peer.map_or_else(|| stream.peer_addr(), Ok) {
        Ok(peer) => peer,
        // Addressed to this very worker by its primary: one end of a socket pair, which has no address.
        Err(_) if conn::kind(&stream) == SocketKind::UnixStream => {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
        }
        Err(_) => return None,
    };
    Some((stream, peer))
}

fn stream(connection: Arrived) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    let Some((stream, peer)) = std_stream(connection) else { return Ok(None) };
    Ok(Some((TcpStream::from_std(stream)?, peer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn alone_it_binds_and_accepts() {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            assert_ne!(addr.port(), 0);
            let client = TcpStream::connect(addr).await.unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            let client = TcpStream::connect(addr).await.unwrap();
            let (_, peer) = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        });
    }

    #[test]
    fn it_is_a_stream() {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut incoming = std::pin::pin!(listener.incoming());
            let next =
                std::future::poll_fn(|cx| futures_core::Stream::poll_next(incoming.as_mut(), cx)).await;
            assert_eq!(next.unwrap().unwrap().peer_addr().unwrap(), client.local_addr().unwrap());
        });
    }

    #[test]
    fn an_address_that_is_taken_is_said_to_be() {
        runtime().block_on(async {
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let error = TcpListener::bind(first.local_addr().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        });
    }
}
