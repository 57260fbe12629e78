//! Logs: for people on a terminal, JSON otherwise. Written by a thread of its own: whoever does not read our
//! stderr must not keep the cluster waiting.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait.
const ROOM: usize = 1024;
/// How long the end of the program waits for lines that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(2);

enum Item {
    Line(Vec<u8>),
    /// Everything before this is written.
    Flushed(Sender<()>),
}

static QUEUE: OnceLock<SyncSender<Item>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Sends what these levels let through of the program's own log to stderr.
pub(crate) fn init(levels: Targets) {
    let (queue, lines) = sync_channel(ROOM);
    let started = std::thread::Builder::new().name("phalanx-log".to_owned()).spawn(move || write(&lines));
    if started.is_ok() {
        let _ = QUEUE.set(queue);
    }
    let builder = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(|| Queued);
    if io::stderr().is_terminal() {
        builder.with_target(false).compact().finish().with(levels).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).finish().with(levels).init();
    }
}

/// Waits until what was logged is written, but not for ever.
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let (done, flushed) = channel();
    if queue.try_send(Item::Flushed(done)).is_ok() {
        let _ = flushed.recv_timeout(LAST_LINES);
    }
}

fn write(lines: &Receiver<Item>) {
    for item in lines {
        let mut stderr = io::stderr().lock();
        match item {
            Item::Line(line) => {
                let _ = stderr.write_all(&line);
            }
            Item::Flushed(done) => {
                let _ = done.send(());
            }
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = writeln!(stderr, "phalanx: stderr was not read: {dropped} lines of the log are lost");
        }
    }
}

/// Takes one line at a time, as the formatter gives them.
struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match QUEUE.get() {
            Some(queue) if queue.try_send(Item::Line(line.to_vec())).is_err() => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => {}
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
