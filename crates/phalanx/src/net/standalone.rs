//! The same sockets where there are no clusters: tokio's own.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream, ToSocketAddrs, lookup_host};

use super::ListenOptions;

/// What tokio takes.
const BACKLOG: u32 = 1024;

fn unnamed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no listener is named {name:?}"))
}

/// Nothing is accepted any more once draining has begun.
fn unless_draining<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
    if crate::drain::begun() { Poll::Pending } else { poll() }
}

/// As [`tokio::net::TcpListener`]. Once [draining](crate::draining) has begun, no connection is accepted any more.
#[derive(Debug)]
pub struct TcpListener {
    listener: tokio::net::TcpListener,
    data: Option<Value>,
}

impl TcpListener {
    /// Listens at the first of these addresses that can be had.
    ///
    /// # Errors
    /// As [`tokio::net::TcpListener::bind`].
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(addr, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and `Unsupported` for [`ListenOptions::ipv6_only`].
    pub async fn bind_with(addr: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for address in lookup_host(addr).await? {
            match listen(address, &options) {
                Ok(listener) => return Ok(Self { listener, data: options.data }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The listener of this name. Without a primary there is none.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn named(name: &str) -> io::Result<Self> {
        Err(unnamed(name))
    }

    /// The next connection. It can be awaited by several tasks at once, and dropped without loss.
    ///
    /// # Errors
    /// Above all a lack of resources, which passes.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        if crate::drain::begun() {
            std::future::pending::<()>().await;
        }
        self.listener.accept().await
    }

    /// As [`accept`](Self::accept); only the latest caller is woken.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        unless_draining(|| self.listener.poll_accept(cx))
    }

    /// Its connections as a stream, which never ends.
    #[must_use]
    pub fn incoming(self) -> TcpIncoming {
        TcpIncoming(self)
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// As [`tokio::net::TcpListener::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// One's own [`ListenOptions::data`].
    #[must_use]
    pub fn data(&self) -> Option<&Value> {
        self.data.as_ref()
    }
}

fn listen(address: SocketAddr, options: &ListenOptions) -> io::Result<tokio::net::TcpListener> {
    if options.ipv6_only {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "`ipv6_only` is for Linux"));
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // On Windows it means something else.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(options.backlog.unwrap_or(BACKLOG))
}

/// The connections of a [`TcpListener`]; see [`incoming`](TcpListener::incoming).
#[derive(Debug)]
pub struct TcpIncoming(TcpListener);

impl futures_core::Stream for TcpIncoming {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.0.poll_accept(cx));
        Poll::Ready(Some(accepted.map(|(stream, _)| stream)))
    }
}

/// A [`tokio::net::UdpSocket`].
#[derive(Debug)]
pub struct UdpSocket(tokio::net::UdpSocket);

impl UdpSocket {
    /// Binds to the first of these addresses that can be had.
    ///
    /// # Errors
    /// As [`tokio::net::UdpSocket::bind`].
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self(tokio::net::UdpSocket::bind(addr).await?))
    }

    /// The socket of this name. Without a primary there is none.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn named(name: &str) -> io::Result<Self> {
        Err(unnamed(name))
    }
}

impl Deref for UdpSocket {
    type Target = tokio::net::UdpSocket;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(unix)]
pub use unix::{UnixIncoming, UnixListener};

#[cfg(unix)]
mod unix {
    use super::{Context, ListenOptions, Pin, Poll, io, unless_draining, unnamed};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use tokio::net::UnixStream;
    use tokio::net::unix::SocketAddr;

    /// As [`tokio::net::UnixListener`]. Once [draining](crate::draining) has begun, no connection is accepted any
    /// more.
    #[derive(Debug)]
    pub struct UnixListener(tokio::net::UnixListener);

    impl UnixListener {
        /// Listens at a path.
        ///
        /// # Errors
        /// As [`tokio::net::UnixListener::bind`].
        pub async fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
            Self::bind_with(path, ListenOptions::default()).await
        }

        /// As [`bind`](Self::bind), with options.
        ///
        /// # Errors
        /// As [`bind`](Self::bind).
        pub async fn bind_with(path: impl AsRef<Path>, options: ListenOptions) -> io::Result<Self> {
            let listener = tokio::net::UnixListener::bind(path.as_ref())?;
            if let Some(mode) = options.unix_mode {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            Ok(Self(listener))
        }

        /// The listener of this name. Without a primary there is none.
        ///
        /// # Errors
        /// `NotFound`.
        pub async fn named(name: &str) -> io::Result<Self> {
            Err(unnamed(name))
        }

        /// The next connection. It can be awaited by several tasks at once, and dropped without loss.
        ///
        /// # Errors
        /// Above all a lack of resources, which passes.
        pub async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
            if crate::drain::begun() {
                std::future::pending::<()>().await;
            }
            self.0.accept().await
        }

        /// As [`accept`](Self::accept); only the latest caller is woken.
        ///
        /// # Errors
        /// As [`accept`](Self::accept).
        pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
            unless_draining(|| self.0.poll_accept(cx))
        }

        /// Its connections as a stream, which never ends.
        #[must_use]
        pub fn incoming(self) -> UnixIncoming {
            UnixIncoming(self)
        }

        /// The path that clients connect to.
        ///
        /// # Errors
        /// As [`tokio::net::UnixListener::local_addr`].
        pub fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
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
}

/// A listening socket of the standard library, blocking, for servers that accept nothing else.
///
/// # Errors
/// As [`std::net::TcpListener::bind`].
pub fn listen_std(addr: impl std::net::ToSocketAddrs) -> io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(addr)
}

/// For programs without a runtime of their own.
pub mod blocking {
    use super::{ListenOptions, Poll, SocketAddr, io};
    use crate::background::{self, block_on};
    use std::future::poll_fn;
    use std::net::{TcpStream, ToSocketAddrs};
    use std::pin::pin;

    /// As [`std::net::TcpListener`]; see [`TcpListener`](super::TcpListener).
    #[derive(Debug)]
    pub struct TcpListener(tokio::net::TcpListener);

    impl TcpListener {
        /// Listens at the first of these addresses that can be had.
        ///
        /// # Errors
        /// As [`std::net::TcpListener::bind`].
        pub fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
            Self::bind_with(addr, ListenOptions::default())
        }

        /// As [`bind`](Self::bind), with options.
        ///
        /// # Errors
        /// As [`bind`](Self::bind), and `Unsupported` for [`ListenOptions::ipv6_only`].
        pub fn bind_with(addr: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
            let _inside = background::handle()?.enter();
            let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
            for address in addr.to_socket_addrs()? {
                match super::listen(address, &options) {
                    Ok(listener) => return Ok(Self(listener)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }

        /// The listener of this name. Without a primary there is none.
        ///
        /// # Errors
        /// `NotFound`.
        pub fn named(name: &str) -> io::Result<Self> {
            Err(super::unnamed(name))
        }

        /// The next connection, which is blocking.
        ///
        /// # Errors
        /// A lack of resources, which passes; and `BrokenPipe` once draining has begun, which does not.
        pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            self.next()
                .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::BrokenPipe, "this process is draining")))
        }

        /// The connections, each blocking, until draining begins.
        pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
            std::iter::from_fn(|| self.next().map(|accepted| accepted.map(|(stream, _)| stream)))
        }

        /// The address that clients connect to.
        ///
        /// # Errors
        /// As [`std::net::TcpListener::local_addr`].
        pub fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
        }

        fn next(&self) -> Option<io::Result<(TcpStream, SocketAddr)>> {
            let _inside = match background::handle() {
                Ok(handle) => handle.enter(),
                Err(error) => return Some(Err(error)),
            };
            let mut draining = crate::drain::current();
            let mut accept = pin!(self.0.accept());
            let accepted = block_on(poll_fn(|cx| {
                if pin!(&mut draining).poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                accept.as_mut().poll(cx).map(Some)
            }))?;
            Some(accepted.and_then(|(stream, peer)| {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                Ok((stream, peer))
            }))
        }
    }
}
