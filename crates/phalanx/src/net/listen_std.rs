//! For servers that take nothing but a listener of the standard library.

use std::io;
use std::net::ToSocketAddrs;

use phalanx_os::conn;

use super::ListenOptions;
use super::source::{Wanted, open_first};
use crate::background::block_on;

/// A listening socket of the standard library, blocking, for servers that accept nothing else.
///
/// In a worker it is the primary's to lend, and it is never given up before the process ends or drains; with steering,
/// its `accept` fails from then on. The
/// workers of one address share one socket, and with it whether it blocks: all of them should use it alike.
///
/// # Errors
/// `Unsupported` if the primary hands over connections and cannot lend the socket; else as
/// [`std::net::TcpListener::bind`].
pub fn listen_std(addr: impl ToSocketAddrs) -> io::Result<std::net::TcpListener> {
    let opened = block_on(open_first(addr.to_socket_addrs()?, Wanted::Tcp, &ListenOptions::default(), true))?;
    // The listener stands for it from now on, and nobody hears when that is dropped.
    std::mem::forget(opened.handed);
    let socket = opened.socket.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    conn::set_nonblocking(&socket, false)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn the_socket_itself_blocks() {
        let listener = listen_std("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    }
}
