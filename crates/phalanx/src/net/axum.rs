//! Listeners that `axum::serve` takes (axum 0.8).
//!
//! `ConnectInfo<SocketAddr>` needs one more word, because axum gives it by itself to tokio's own listener only:
//! `axum::serve(listener.tap_io(|_| {}), app.into_make_service_with_connect_info::<SocketAddr>())`.

use std::io;
use std::time::Duration;

use axum::serve::Listener;

/// A lack of descriptors passes; axum rests as long.
const REST: Duration = Duration::from_secs(1);

async fn rest(error: io::Error) {
    tracing::error!(%error, "cannot accept");
    tokio::time::sleep(REST).await;
}

impl Listener for super::TcpListener {
    type Io = tokio::net::TcpStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match Self::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) => rest(error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Self::local_addr(self)
    }
}

#[cfg(unix)]
impl Listener for super::UnixListener {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match Self::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) => rest(error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Self::local_addr(self)
    }
}
