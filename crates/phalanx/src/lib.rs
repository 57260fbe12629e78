//! Run a network service as several processes behind the same listening sockets.
//!
//! A *primary* starts *workers*, owns every listening socket, decides which worker gets which connection,
//! carries messages, and replaces what dies.
//!
//! There are three ways to use it: a service that somebody else clusters (the program `phalanx`, systemd, Node.js), a
//! service that [clusters itself](Builder::run), and a [supervisor](Primary) of other programs.
//!
//! # A worker
//!
//! Take [`net::TcpListener`] in place of tokio's (or [`net::blocking`] in place of the standard library's), and the same
//! program works alone, under `phalanx run`, under socket activation, and as a worker of a Node.js cluster.
//!
//! ```no_run
//! # async fn serve(_: phalanx::net::TcpListener) {}
//! # async fn example() -> std::io::Result<()> {
//! let listener = phalanx::net::TcpListener::bind("0.0.0.0:3000").await?;
//! tokio::select! {
//!     () = serve(listener) => {}
//!     () = phalanx::draining() => {} // leave: nothing new comes, end what is there
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A service tests itself, in a real cluster, with [`testing::Cluster`].
//!
//! # A primary
//!
//! On Linux. Its handles work from any thread, in any runtime or none.
//!
//! ```no_run
//! # #[cfg(all(target_os = "linux", not(phalanx_standalone)))]
//! # mod linux {
//! use phalanx::{Cluster, Hurry};
//!
//! # fn main() -> phalanx::Result<()> {
//! let primary = Cluster::builder().exec("./my-service").workers(4).start()?;
//! for event in primary.events() {
//!     println!("{event:?}");
//! }
//! # primary.stop(Hurry::Graceful).wait();
//! # Ok(())
//! # }
//! # }
//! ```
//!
//! Or one program that is both: [`Builder::run`] starts this program again as the workers.
//!
//! ```no_run
//! fn main() -> phalanx::Result<()> {
//!     phalanx::Cluster::builder().workers("auto").run(|worker| async move {
//!         let listener = phalanx::net::TcpListener::bind("0.0.0.0:3000").await?;
//!         # drop((listener, worker));
//!         // serve until phalanx::draining()
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # What holds
//!
//! * A connection has one owner at any moment. One that a dead worker had not taken goes to another; one that it had
//!   is closed at once, and none hangs.
//! * A worker is *ready* by a fact, never by a timer. A reload touches nothing old before the new is ready.
//! * Nothing that a worker sends or does stops the primary or another worker.
//! * The cluster runs on a thread of its own and changes nothing process-wide.
//!
//! # From Node's `cluster`
//!
//! | Node | here |
//! |---|---|
//! | `isPrimary`, `isWorker` | [`worker()`] is `None`, or a [`Worker`] |
//! | `setupPrimary`, `settings` | [`Cluster::builder`]; [`Primary::configure`], [`Primary::settings`] |
//! | `schedulingPolicy` | [`Builder::policy`]: [`Policy`] |
//! | `fork`, `workers` | [`Builder::workers`], [`Primary::fork`]; [`Primary::workers`], [`Primary::worker`] |
//! | `on('fork')` and all others, `on('message')` | [`Primary::events`], [`Event`] |
//! | `disconnect` | [`Primary::disconnect`]; [`Primary::stop`] ends the processes too |
//! | `worker.id`, `.process.pid`, `.isConnected()`, `.isDead()`, `.exitedAfterDisconnect` | [`WorkerRef::id`], [`WorkerRef::pid`], [`WorkerRef::state`], [`WorkerRef::view`] |
//! | `worker.send` | [`WorkerRef::send`]; with a handle [`WorkerRef::send_with`] |
//! | `worker.disconnect`, `.kill`, `.process.kill` | [`WorkerRef::disconnect`], [`WorkerRef::kill`], [`WorkerRef::signal`] |
//! | in a worker: `process.send`, `process.on('message')` | [`Worker::send`], [`Worker::messages`] |
//! | `server.listen`, `dgram.bind` | [`net`] |
//! | `cluster.worker.disconnect()`, `.kill()` | [`Worker::disconnect`], [`Worker::kill`] |
//! | `cluster.worker.on('disconnect')` | [`draining()`] |
//!
//! # Features
//!
//! * `rustls`: `tls::ticketer`, TLS sessions that go on on any worker.
//! * `axum-08`: `axum::serve` takes [`net::TcpListener`] and [`net::UnixListener`] (axum 0.8).
//!
//! # Where
//!
//! Clusters are for Linux. Everywhere else, and with `--cfg phalanx_standalone` in `RUSTFLAGS`, a service compiles and
//! runs alone: [`net`], [`draining`] and [`worker()`], which finds no primary, are there; the rest is not.

#![cfg_attr(all(target_os = "linux", not(phalanx_standalone)), warn(clippy::must_use_candidate))]

mod background;
mod drain;
pub mod net;

pub use drain::{Draining, draining};
pub use phalanx_core::{Generation, Policy, Slot, WorkerId};
pub use worker::{InitError, Worker, init, worker};

#[cfg(any(not(target_os = "linux"), phalanx_standalone))]
#[path = "standalone.rs"]
mod worker;

#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod builder;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod cluster;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod error;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod event;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod message;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod primary;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod run;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod settings;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
pub mod testing;
#[cfg(all(feature = "rustls", target_os = "linux", not(phalanx_standalone)))]
pub mod tls;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod waiters;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod watch;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod worker;

#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
pub use cluster::*;
