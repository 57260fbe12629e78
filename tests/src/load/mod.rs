//! A client that keeps the ledger.
//!
//! Each connection carries one HTTP/1.1 GET (or several, with keep-alive) with a
//! nonce, and is accounted for as exactly one [`Outcome`]. Closed loop: so many
//! clients, each beginning a connection when its last one has ended. Open loop:
//! so many connections a second, whatever becomes of them.
//!
//! ```no_run
//! use phalanx_tests::load::Load;
//!
//! let run = Load::tcp("127.0.0.1:8080".parse().unwrap()).clients(8).start();
//! run.wait_served(500);
//! // … kill somebody …
//! run.wait_served(1000);
//! run.stop().assert_all_served();
//! ```
//!
//! Only loopback addresses and Unix sockets are ever a target, and every run is
//! bounded in time.

mod client;
mod ledger;
mod reply;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub use ledger::{Failure, Latency, Ledger, Outcome};

/// Longest run, whatever was asked.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a test waits for progress of its own load before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Open loop: more unfinished connections than this are our own fault.
const MOST_IN_FLIGHT: u64 = 16_384;

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix stream socket by path.
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// What to do; a builder that [`start`](Load::start) or [`run`](Load::run) ends.
#[derive(Clone, Debug)]
pub struct Load {
    target: Target,
    clients: u64,
    connections: Option<u64>,
    per_connection: u64,
    rate: Option<f64>,
    duration: Duration,
    sources: u64,
    silence: Duration,
    path: String,
    host: String,
    headers: String,
    seed: u64,
}

impl Load {
    fn new(target: Target, host: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            target,
            clients: 1,
            connections: None,
            per_connection: 1,
            rate: None,
            duration: LONGEST,
            sources: 0,
            silence: Duration::from_secs(10),
            path: "/".into(),
            host,
            headers: String::new(),
            seed: (u64::from(std::process::id()) << 32) ^ u64::from(now.subsec_nanos()),
        }
    }

    /// Load on a TCP address.
    ///
    /// # Panics
    /// If it is not a loopback address: nobody else is ever a target.
    #[must_use]
    pub fn tcp(addr: SocketAddr) -> Self {
        assert!(addr.ip().is_loopback(), "{addr} is not a loopback address");
        Self::new(Target::Tcp(addr), addr.to_string())
    }

    /// Load on a loopback port, by IPv4.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Load on a Unix socket.
    #[must_use]
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Target::Unix(path.as_ref().to_owned()), "localhost".into())
    }

    /// Closed loop with this many clients at once (default 1: strictly one after
    /// the other).
    #[must_use]
    pub fn clients(mut self, n: u64) -> Self {
        self.clients = n.max(1);
        self
    }

    /// Ends after this many connections in total (default: until told to stop).
    #[must_use]
    pub fn connections(mut self, n: u64) -> Self {
        self.connections = Some(n);
        self
    }

    /// Requests per connection; more than 1 means keep-alive.
    #[must_use]
    pub fn requests_per_connection(mut self, n: u64) -> Self {
        self.per_connection = n.max(1);
        self
    }

    /// Open loop: begins this many connections a second, whatever becomes of them.
    /// A latency is then counted from the moment the connection was due.
    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = (per_second > 0.0).then_some(per_second);
        self
    }

    /// Begins no connection after this time (default and most: an hour).
    #[must_use]
    pub fn duration(mut self, time: Duration) -> Self {
        self.duration = time.min(LONGEST);
        self
    }

    /// Uses this many loopback source addresses (127.1.0.1 and on). Client number
    /// `c` of a closed loop always has address `c mod n`. IPv4 only.
    #[must_use]
    pub fn sources(mut self, n: u64) -> Self {
        self.sources = n;
        self
    }

    /// How long the peer may be silent before the connection counts as hung
    /// (default 10 s).
    #[must_use]
    pub fn silence(mut self, time: Duration) -> Self {
        self.silence = time;
        self
    }

    /// The path to ask for (default `/`).
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// One more request header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Begins; the connections are made by a thread of their own.
    ///
    /// # Panics
    /// If no thread or no runtime can be had.
    #[must_use]
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger { target: self.target.to_string(), ..Ledger::default() }),
            changed: Condvar::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let keeper = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime for the load");
                runtime.block_on(drive(Arc::new(self), keeper, stopped));
            })
            .expect("a thread for the load");
        Running { shared, stop, thread: Some(thread) }
    }

    /// Begins and waits for the end. For loads that have one.
    #[must_use]
    pub fn run(self) -> Ledger {
        self.start().finish()
    }
}

struct Shared {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load under way. Dropping it stops it.
pub struct Running {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Connections served so far.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.shared.ledger().served
    }

    /// The account so far (without latencies).
    #[must_use]
    pub fn so_far(&self) -> Ledger {
        let ledger = self.shared.ledger();
        Ledger { samples: Vec::new(), ..ledger.clone() }
    }

    /// Waits until so many connections in all have been served.
    ///
    /// # Panics
    /// If the run ends before, or nothing at all happens for two minutes.
    #[track_caller]
    pub fn wait_served(&self, n: u64) {
        self.wait(&format!("{n} served"), |ledger| ledger.served >= n);
    }

    /// Waits until the account fulfils a condition. It is asked after every
    /// connection.
    ///
    /// # Panics
    /// If the run ends before, or nothing at all happens for two minutes.
    #[track_caller]
    pub fn wait(&self, what: &str, mut fulfilled: impl FnMut(&Ledger) -> bool) {
        let mut ledger = self.shared.ledger();
        while !fulfilled(&ledger) {
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!over, "the load ended before: {what}\n{}", *ledger);
            let before = ledger.connections + ledger.served + ledger.failed();
            let deadline = std::time::Instant::now() + PATIENCE;
            // Short waits, as the end of the thread does not wake us.
            loop {
                let pause = Duration::from_millis(100);
                let (next, waited) =
                    self.shared.changed.wait_timeout(ledger, pause).unwrap_or_else(PoisonError::into_inner);
                ledger = next;
                if !waited.timed_out() || self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                    break;
                }
                let now = ledger.connections + ledger.served + ledger.failed();
                assert!(
                    now != before || std::time::Instant::now() < deadline,
                    "the load stands still, waited for: {what}\n{}",
                    *ledger
                );
            }
        }
    }

    /// Begins no more connections, waits for those under way, and gives the account.
    #[must_use]
    pub fn stop(self) -> Ledger {
        self.stop.send_replace(true);
        self.finish()
    }

    /// Waits for the end that the load has by itself, and gives the account.
    ///
    /// # Panics
    /// If the load itself panicked.
    #[must_use]
    pub fn finish(mut self) -> Ledger {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load panicked");
        }
        let mut ledger = self.shared.ledger().clone();
        ledger.finish();
        ledger
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn drive(load: Arc<Load>, shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    let begun = Instant::now();
    match load.rate {
        None => {
            let next = Arc::new(Mutex::new(0));
            let mut clients = Vec::new();
            for client in 0..load.clients {
                let (load, shared, stopped, next) =
                    (load.clone(), shared.clone(), stopped.clone(), next.clone());
                clients.push(tokio::spawn(async move {
                    while !*stopped.borrow() && begun.elapsed() < load.duration {
                        let index = {
                            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                            // Errors of our own do not get better by repetition.
                            let invalid = shared.ledger().harness_error >= 100;
                            if invalid || load.connections.is_some_and(|most| *next >= most) {
                                break;
                            }
                            *next += 1;
                            *next - 1
                        };
                        shared.ledger().connections += 1;
                        one(&load, &shared, begun, index, client, Instant::now()).await;
                    }
                }));
            }
            for client in clients {
                client.await.expect("a client panicked");
            }
        }
        Some(rate) => open_loop(&load, &shared, stopped, rate, begun).await,
    }
    let mut ledger = shared.ledger();
    ledger.elapsed_us = micros(begun.elapsed());
    shared.changed.notify_all();
}

async fn open_loop(
    load: &Arc<Load>,
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    rate: f64,
    begun: Instant,
) {
    let mut under_way = tokio::task::JoinSet::new();
    for index in 0.. {
        let after = Duration::from_secs_f64(index as f64 / rate);
        if after >= load.duration || load.connections.is_some_and(|most| index >= most) {
            break;
        }
        let due = begun + after;
        tokio::select! {
            biased;
            // An error means that the handle was dropped: stop as well.
            _ = stopped.wait_for(|it| *it) => break,
            () = sleep_until(due) => {}
        }
        while under_way.try_join_next().is_some() {}
        let in_flight = {
            let mut ledger = shared.ledger();
            ledger.connections += 1;
            ledger.in_flight
        };
        if in_flight >= MOST_IN_FLIGHT {
            shared.ledger().book(Outcome::HarnessError);
            continue;
        }
        let (load, shared) = (load.clone(), shared.clone());
        under_way.spawn(async move { one(&load, &shared, begun, index, index, due).await });
    }
    while under_way.join_next().await.is_some() {}
}

/// Makes connection `index` as client `client`, and books it.
async fn one(load: &Load, shared: &Shared, begun: Instant, index: u64, client: u64, due: Instant) {
    let from = (load.sources > 0 && matches!(load.target, Target::Tcp(SocketAddr::V4(_))))
        .then(|| IpAddr::V4(client::source(client % load.sources)));
    shared.ledger().in_flight += 1;
    let account = client::connection(load, index, from, due).await;
    let mut ledger = shared.ledger();
    ledger.in_flight -= 1;
    ledger.book(account.outcome);
    let replies = account.statuses.len() as u64;
    ledger.requests += account.requests;
    ledger.replies += replies;
    for status in account.statuses {
        *ledger.statuses.entry(status).or_default() += 1;
    }
    ledger.wrong_nonce += account.wrong_nonce;
    ledger.torn += u64::from(account.torn);
    ledger.ended_early += u64::from(account.ended_early);
    ledger.no_fin += u64::from(account.no_fin);
    for latency in account.latencies {
        ledger.samples.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }
    if replies > 0 {
        ledger.answered += 1;
        match account.worker {
            Some(worker) => {
                if let Some(from) = from {
                    *ledger.sources.entry(from).or_default().entry(worker.clone()).or_default() += 1;
                }
                *ledger.workers.entry(worker).or_default() += 1;
            }
            None => ledger.unattributed += 1,
        }
    }
    if account.outcome != Outcome::Served {
        ledger.failed_reused += u64::from(replies > 0);
        if ledger.failures.len() < 1000 {
            ledger.failures.push(Failure {
                nonce: account.nonce,
                outcome: account.outcome,
                detail: account.detail,
                local: account.local,
                replies,
                begun_us: micros(due.saturating_duration_since(begun)),
                ended_us: micros(begun.elapsed()),
            });
        }
    }
    drop(ledger);
    shared.changed.notify_all();
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
