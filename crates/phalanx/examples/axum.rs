//! An axum service that runs alone, under `phalanx run`, under socket activation, and as a worker of a Node.js
//! cluster.
//!
//! ```sh
//! PORT=3000 cargo run -p phalanx --example axum
//! PORT=3000 phalanx run -w 4 --channel phalanx -- target/debug/examples/axum
//! ```

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::serve::ListenerExt;

fn app(worker: String) -> Router {
    Router::new().fallback(get(move |ConnectInfo(peer): ConnectInfo<SocketAddr>| {
        let worker = worker.clone();
        async move { ([("x-worker", worker.clone())], format!("hello {peer} from {worker}\n")) }
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let worker = std::env::var("PHALANX_SLOT").unwrap_or_else(|_| "alone".to_owned());
    let listener = phalanx::net::TcpListener::bind(format!("0.0.0.0:{port}")).await?;
    println!("listening on {}", listener.local_addr()?);
    // `axum::serve(listener, app)` is enough for those who need no `ConnectInfo`; axum gives that by itself to tokio's
    // listener only, and to every one that is tapped.
    let app = app(worker).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener.tap_io(|_| {}), app).with_graceful_shutdown(phalanx::draining()).await
}
