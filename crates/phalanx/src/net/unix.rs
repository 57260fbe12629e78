//! Unix stream sockets.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use phalanx_os::SocketKind;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::net::unix::SocketAddr;

use super::ListenOptions;
use super::source::{Arrived, Source, Wanted, open};

/// As [`tokio::net::UnixListener`], in a worker and alone; see [`TcpListener`](super::TcpListener).
///
/// Alone, the file stays when the listener is dropped, and a file that is there already is in the way, as
/// with tokio.
#[derive(Debug)]
pub struct UnixListener(Source);

impl UnixListener {
    /// Listens at a path.
    ///
    /// # Errors
    /// What the kernel says; in a worker, what the primary met.
    pub async fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_with(path, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_with(path: impl AsRef<Path>, options: ListenOptions) -> io::Result<Self> {
        Ok(Self(Source::new(open(Wanted::Unix(path.as_ref()), &options, false).await?)?))
    }

    /// The listener of this name, of the primary's configuration or from a service manager.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn named(name: &str) -> io::Result<Self> {
        let wanted = Wanted::Named(name, SocketKind::UnixListener);
        Ok(Self(Source::new(open(wanted, &ListenOptions::default(), false).await?)?))
    }

    /// The next connection. It can be awaited by several tasks at once, and dropped without loss.
    ///
    /// # Errors
    /// Above all a lack of resources (`EMFILE`), which passes.
    pub async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
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
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
        loop {
            if let Some(accepted) = stream(ready!(self.0.poll_accept(cx))?)? {
                return Poll::Ready(Ok(accepted));
            }
        }
    }

    /// Its connections as a stream, for servers that take one. Like `accept`, it never ends, and is pending for ever
    /// once draining has begun; dropping it gives the listener up.
    #[must_use]
    pub fn incoming(self) -> UnixIncoming {
        UnixIncoming(self)
    }

    /// The path that clients connect to.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is too long for an address; `AddrNotAvailable` for one that is known by its name
    /// alone, when the primary hands its connections over.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let path = self.0.path.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(std::os::unix::net::SocketAddr::from_pathname(path)?.into())
    }

    /// What the first worker brought along as [`ListenOptions::data`]; alone, one's own.
    #[must_use]
    pub fn data(&self) -> Option<&Value> {
        self.0.data.as_ref()
    }
}

/// The connections of a [`UnixListener`]; see [`incoming`](UnixListener::incoming).
#[derive(Debug)]
pub struct UnixIncoming(UnixListener);

impl futures_core::Stream for UnixIncoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

fn stream(connection: Arrived) -> io::Result<Option<(UnixStream, SocketAddr)>> {
    let stream = std::os::unix::net::UnixStream::from(connection.fd);
    let Ok(peer) = stream.peer_addr() else { return Ok(None) };
    Ok(Some((UnixStream::from_std(stream)?, peer.into())))
}
