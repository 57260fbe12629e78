//! One program that clusters itself: every worker serves, and says who it is.
//!
//! ```sh
//! PORT=3000 WORKERS=auto cargo run -p phalanx --example cluster
//! ```

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

async fn reply(mut stream: TcpStream, worker: String) -> io::Result<()> {
    // A real service leaves HTTP to a real library.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let reply = format!(
        "HTTP/1.1 200 OK\r\nx-worker: {worker}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

async fn serve(worker: &phalanx::Worker) -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = phalanx::net::TcpListener::bind(format!("0.0.0.0:{port}")).await?;
    let name = worker.slot().map_or_else(|| worker.id().to_string(), |slot| slot.to_string());
    let draining = worker.draining();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(reply(accepted?.0, name.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = draining.clone() => break,
        }
    }
    // Nothing new comes, and nobody should wait at a door where nobody opens; end what is there.
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

fn main() -> phalanx::Result<()> {
    let workers = std::env::var("WORKERS").unwrap_or_else(|_| "auto".to_owned());
    phalanx::Cluster::builder().workers(&*workers).run(|worker| async move {
        let mut messages = worker.messages();
        let echo = async {
            // What the primary says goes back to it, and what came along.
            while let Some((message, handle)) = messages.recv_with().await {
                match handle.and_then(|handle| handle.take()) {
                    Some(handle) => match worker.send_with(&message, handle).await {
                        Err(phalanx::SendError::Refused) => worker.send("refused").await?,
                        sent => sent?,
                    },
                    None => worker.send(&message).await?,
                }
            }
            std::future::pending::<Result<(), phalanx::BoxError>>().await
        };
        tokio::select! {
            served = serve(&worker) => Ok(served?),
            echoed = echo => echoed,
        }
    })
}
