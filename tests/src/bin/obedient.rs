//! A worker of the library that does what its primary's messages say, and tells what came of it.
//!
//! `{"do": …}`: `listen` and `bind` (UDP) with `at`, `unix` with `at` (in the directory `in`), each perhaps
//! `exclusive`; `cancel`, which does not wait; `close` with `at`; `disconnect`, `kill`, `leave and kill`, `fail`, `exit` with
//! `code`; `who`; `show`, which comes back. So does a socket with its message, and, in `bytes`, what JSON has no form for.

use phalanx::net::{ListenOptions, TcpListener, UdpSocket, UnixListener};
use phalanx::{Content, Messages, Worker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

fn failed(error: &io::Error) -> Value {
    json!({ "error": error.raw_os_error(), "kind": format!("{:?}", error.kind()) })
}

/// Tells each client who it is, as seen from here.
async fn serve(listener: TcpListener) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        let _ = stream.write_all(format!("{peer}\n").as_bytes()).await;
    }
}

async fn serve_unix(listener: UnixListener) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        let _ = stream.write_all(format!("{}\n", peer.is_unnamed()).as_bytes()).await;
    }
}

async fn open(order: &Value) -> io::Result<(Value, JoinHandle<()>)> {
    let at = order["at"].as_str().unwrap_or_default();
    let options = ListenOptions::new().exclusive(order["exclusive"] == true);
    Ok(match order["do"].as_str() {
        Some("listen") => {
            let listener = TcpListener::bind_with(at, options).await?;
            (json!(listener.local_addr()?), tokio::spawn(serve(listener)))
        }
        Some("bind") => {
            let socket = UdpSocket::bind_with(at, options).await?;
            let address = json!(socket.local_addr()?);
            (
                address,
                tokio::spawn(async move {
                    let _socket = socket;
                    std::future::pending().await
                }),
            )
        }
        _ => {
            if let Some(dir) = order["in"].as_str() {
                std::env::set_current_dir(dir)?;
            }
            let listener = UnixListener::bind_with(at, options).await?;
            (json!(std::path::absolute(at)?), tokio::spawn(serve_unix(listener)))
        }
    })
}

/// It leaves by itself, and does not end because it does.
static LEAVES: AtomicBool = AtomicBool::new(false);

#[expect(clippy::exit, reason = "it is told to")]
async fn obey(worker: &Worker, messages: &mut Messages) -> io::Result<()> {
    let mut open_at: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    worker.send("up").await.map_err(io::Error::other)?;
    while let Some((order, socket)) = messages.recv_any().await {
        let order = match order {
            Content::Json(order) => {
                // A socket goes back where it came from.
                if let Some(socket) = socket.and_then(|socket| socket.take()) {
                    worker.send_with(&order, socket).await.map_err(io::Error::other)?;
                    continue;
                }
                order
            }
            Content::Opaque(bytes) => {
                json!({ "do": "show", "bytes": bytes.to_vec(), "socket": socket.is_some() })
            }
        };
        let what = order["do"].as_str().unwrap_or_default();
        LEAVES.store(matches!(what, "disconnect" | "leave and kill" | "fail"), Ordering::Relaxed);
        let answer = match what {
            "listen" | "bind" | "unix" => match open(&order).await {
                Ok((address, task)) => {
                    open_at.insert(order["at"].as_str().unwrap_or_default().to_owned(), task);
                    json!({ "at": address })
                }
                Err(error) => failed(&error),
            },
            "cancel" => {
                // The answer may be on its way: whoever no longer waits for it gives it back.
                let ended = tokio::time::timeout(Duration::ZERO, open(&order)).await;
                json!({ "ended": ended.is_ok() })
            }
            "close" => {
                if let Some(task) = open_at.remove(order["at"].as_str().unwrap_or_default()) {
                    task.abort();
                    let _ = task.await;
                }
                json!("closed")
            }
            "disconnect" => {
                let draining = worker.draining();
                worker.disconnect().await;
                worker.disconnect().await;
                draining.await;
                // The end of the messages is how it hears of its own disconnect.
                assert!(messages.recv().await.is_none(), "nothing more comes");
                assert!(worker.send("too late").await.is_err());
                std::process::exit(42);
            }
            "leave and kill" => {
                worker.disconnect().await;
                worker.kill();
            }
            "kill" => worker.kill(),
            "fail" => {
                let failed = open(&json!({ "do": "listen", "at": order["at"] })).await;
                assert!(failed.is_err());
                worker.disconnect().await;
                std::process::exit(0);
            }
            "exit" => std::process::exit(i32::try_from(order["code"].as_i64().unwrap_or(0)).unwrap_or(1)),
            "show" => order,
            _ => json!({ "id": worker.id(), "slot": worker.slot(), "pid": std::process::id() }),
        };
        worker.send(&answer).await.map_err(io::Error::other)?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let worker = phalanx::worker().map_err(io::Error::other)?;
    let Some(worker) = worker else { return Err(io::Error::other("this is no worker")) };
    let mut messages = worker.messages();
    let draining = worker.draining();
    let asked = async {
        draining.await;
        if LEAVES.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        done = obey(&worker, &mut messages) => done,
        () = asked => Ok(()),
    }
}
