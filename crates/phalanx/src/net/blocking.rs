//! For programs without a runtime of their own.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::task::Poll;

use phalanx_os::SocketKind;

use super::ListenOptions;
use super::held::Unwatched;
use super::source::{Source, Wanted, open, open_first};
use super::tcp::std_stream;
use super::wait;
use crate::background::block_on;

/// As [`std::net::TcpListener`], in a worker and alone; see [`TcpListener`](super::TcpListener).
///
/// Threads may share it and accept at the same time. Not for use in asynchronous tasks.
#[derive(Debug)]
pub struct TcpListener(Source<Unwatched>);

impl TcpListener {
    /// Listens at the first of these addresses that can be had.
    ///
    /// # Errors
    /// As [`std::net::TcpListener::bind`]; in a worker, what the primary met.
    pub fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(addr, ListenOptions::default())
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_with(addr: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
        let opened = block_on(open_first(addr.to_socket_addrs()?, Wanted::Tcp, &options, false))?;
        Ok(Self(Source::unwatched(opened)?))
    }

    /// The listener of this name, of the primary's configuration or from a service manager.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn named(name: &str) -> io::Result<Self> {
        let wanted = Wanted::Named(name, SocketKind::TcpListener);
        Ok(Self(Source::unwatched(block_on(open(wanted, &ListenOptions::default(), false))?)?))
    }

    /// The next connection, which is blocking.
    ///
    /// # Errors
    /// A lack of resources (`EMFILE`), which passes; and `BrokenPipe` once draining has begun
    /// ([`draining`](crate::drain::draining)), which does not.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.next()
            .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::BrokenPipe, "this process is draining")))
    }

    /// The connections, each blocking, until draining begins ([`draining`](crate::drain::draining)).
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::from_fn(|| self.next().map(|accepted| accepted.map(|(stream, _)| stream)))
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// When the primary did not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.address.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    fn next(&self) -> Option<io::Result<(TcpStream, SocketAddr)>> {
        wait::on_thread(
            || self.0.socket(),
            |cx| {
                loop {
                    match self.0.poll_accept(cx).map_ok(std_stream) {
                        Poll::Ready(Ok(Some(accepted))) => return Poll::Ready(Ok(accepted)),
                        // Gone already.
                        Poll::Ready(Ok(None)) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_it_needs_no_runtime() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        let later = std::thread::spawn({
            let addr = listener.local_addr().unwrap();
            move || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                TcpStream::connect(addr).unwrap()
            }
        });
        assert!(listener.incoming().next().unwrap().is_ok());
        later.join().unwrap();
    }
}
