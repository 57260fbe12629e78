//! A service that ends every kind of connection well when it is to leave: in an axum program, nothing but
//! `draining()` is needed.
//!
//! | connection | how it ends |
//! |---|---|
//! | HTTP/1 | the response under way says `Connection: close`; idle ones are closed (axum does both) |
//! | HTTP/2 | GOAWAY; streams under way end (axum) |
//! | WebSocket | a close frame with code 1001, *going away*; browsers connect again, to a worker that stays |
//! | server-sent events | the stream ends; browsers connect again |
//!
//! ```sh
//! PORT=3000 phalanx run -w 4 --channel phalanx -- target/debug/examples/drain
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use axum::routing::{any, get};
use futures_core::Stream;
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

/// Says back what it hears, until there is nobody to say it to.
async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket: WebSocket| async move {
        loop {
            let heard = tokio::select! {
                heard = socket.recv() => heard,
                () = phalanx::draining() => {
                    let reason = "this worker leaves".into();
                    let _ = socket.send(Message::Close(Some(CloseFrame { code: close_code::AWAY, reason }))).await;
                    return;
                }
            };
            let Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) = heard else { return };
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// The time, each second.
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (to, stream) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = seconds.tick() => {}
                // Dropping the sender ends the stream, and the response with it.
                () = phalanx::draining() => return,
            }
            if to.send(Event::default().data("tick")).await.is_err() {
                return;
            }
        }
    });
    Sse::new(Events(stream))
}

struct Events(tokio::sync::mpsc::Receiver<Event>);

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|event| event.map(Ok))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/events", get(events))
        .route("/socket", any(socket));
    let listener = phalanx::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    axum::serve(Listener(listener), app).with_graceful_shutdown(phalanx::draining()).await
}
