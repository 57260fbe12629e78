//! Lines on their way to the user, who may be slow: on a thread of their own, and never more than fit.

use crate::builder::{Line, OnLine};
use phalanx_core::{Slot, WorkerId};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait. What does not fit is dropped and counted: a worker's output must not keep the cluster.
const ROOM: usize = 1 << 20;
/// What a line costs beyond its text, so that empty ones are bounded too.
const OVERHEAD: usize = 64;
/// How long the end of a cluster waits for lines that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A line and where it is from.
#[derive(Debug)]
pub(super) struct Printed {
    pub(super) worker: WorkerId,
    pub(super) slot: Slot,
    pub(super) is_stderr: bool,
    pub(super) text: String,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Printed>,
    bytes: usize,
    /// Since when lines are dropped, until the queue is half empty.
    dropping: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    /// Lines that could not be told: a full disk, for one.
    lost: AtomicU64,
    /// The last one was.
    losing: AtomicBool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next line; `None` at the end.
    fn take(&self) -> Option<Printed> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.text.len() + OVERHEAD;
                state.dropping &= state.bytes > ROOM / 2;
                return Some(line);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Kept,
    /// Dropped, the first of a burst or another.
    Dropped {
        first: bool,
    },
}

/// The queue and the thread of one stream. Dropping it waits for the last lines, but not for ever.
pub(super) struct Outlet {
    queue: Arc<Queue>,
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Outlet {
    pub(super) fn start(tell: OnLine) -> io::Result<Outlet> {
        let queue = Arc::<Queue>::default();
        let (alive, ended) = channel::<()>();
        let lines = Arc::clone(&queue);
        std::thread::Builder::new().name("phalanx-output".to_owned()).spawn(move || {
            let _alive = alive;
            while let Some(Printed { worker, slot, is_stderr, text }) = lines.take() {
                let lost = tell(&Line { worker, slot, is_stderr, text: &text }).is_err();
                lines.lost.fetch_add(u64::from(lost), Ordering::Relaxed);
                lines.losing.store(lost, Ordering::Relaxed);
            }
        })?;
        Ok(Outlet { queue, ended })
    }

    /// Lines that could not be told.
    pub(super) fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }

    /// Whether the last one could not.
    pub(super) fn is_losing(&self) -> bool {
        self.queue.losing.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, line: Printed) -> Pushed {
        let mut state = self.queue.state();
        let bytes = state.bytes + line.text.len() + OVERHEAD;
        if state.dropping || bytes > ROOM {
            let first = !std::mem::replace(&mut state.dropping, true);
            return Pushed::Dropped { first };
        }
        state.bytes = bytes;
        state.lines.push_back(line);
        drop(state);
        self.queue.filled.notify_one();
        Pushed::Kept
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.filled.notify_one();
        if self.ended.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
            // The thread stays where it is blocked; whoever reads on gets what is left.
            tracing::warn!("the last lines of the workers are not read by anybody");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Printed {
        Printed { worker: WorkerId(1), slot: Slot(0), is_stderr: false, text: text.to_owned() }
    }

    #[test]
    fn who_does_not_read_loses_lines_and_nothing_else() {
        let (go, gate) = channel::<()>();
        let (heard, lines) = channel();
        let gate = Mutex::new(gate);
        let outlet = Outlet::start(Arc::new(move |line: &Line<'_>| {
            let _ = gate.lock().unwrap().recv();
            let _ = heard.send(line.text.len());
            Ok(())
        }))
        .unwrap();
        let long = "x".repeat(ROOM / 4);
        let mut dropped = Vec::new();
        for _ in 0..8 {
            if let Pushed::Dropped { first } = outlet.push(line(&long)) {
                dropped.push(first);
            }
        }
        assert!((4..=5).contains(&dropped.len()), "{dropped:?}");
        assert_eq!(dropped.iter().filter(|first| **first).count(), 1, "said once a burst: {dropped:?}");
        // Still dropping, although a short one would fit: a burst ends when there is room again.
        assert_eq!(outlet.push(line("short")), Pushed::Dropped { first: false });
        drop(go);
        let kept = 8 - dropped.len();
        assert_eq!(lines.iter().take(kept).count(), kept);
        while outlet.push(line("short")) != Pushed::Kept {}
        drop(outlet);
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), [5]);
    }
}
