//! An axum service that runs alone, under `phalanx run`, under socket activation, and as a worker of a Node.js
//! cluster.
//!
//! ```sh
//! PORT=3000 cargo run -p phalanx --example axum
//! PORT=3000 phalanx run -w 4 --channel phalanx -- target/debug/examples/axum
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpStream;

/// Connections for axum. A type of one's own, as both the trait and the listener are somebody else's.
struct Listener(phalanx::net::TcpListener);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    eprintln!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn app(worker: String) -> Router {
    Router::new().fallback(get(move || {
        let worker = worker.clone();
        async move { ([("x-worker", worker.clone())], format!("hello from {worker}\n")) }
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let worker = std::env::var("PHALANX_SLOT").unwrap_or_else(|_| "alone".to_owned());
    let listener = phalanx::net::TcpListener::bind(format!("0.0.0.0:{port}")).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(Listener(listener), app(worker)).with_graceful_shutdown(phalanx::draining()).await
}
