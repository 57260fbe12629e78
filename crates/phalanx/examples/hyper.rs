//! hyper without a framework: HTTP/1 and HTTP/2, both ended well when the worker is to leave.
//!
//! ```sh
//! PORT=3000 phalanx run -w 4 --channel phalanx -- target/debug/examples/hyper
//! ```

use std::convert::Infallible;
use std::io;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;

async fn hello(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("hello\n".to_owned()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = phalanx::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let builder = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = phalanx::draining() => break,
        };
        let (stream, _) = accepted?;
        let connection = builder.serve_connection(TokioIo::new(stream), service_fn(hello)).into_owned();
        // `Connection: close` and GOAWAY, once `shutdown` is called.
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection broke: {error}");
            }
        });
    }
    // No new connection; those there are end by themselves, as long as phalanx lets them (--drain-timeout).
    drop(listener);
    connections.shutdown().await;
    Ok(())
}
