//! Who waits for something that many may wait for.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Those who gave up waiting leave their waker behind; with so many, all are woken to ask again.
const MOST: usize = 256;

/// The wakers of everybody who waits. Woken all at once; whoever finds nothing waits again.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    /// To be called before looking: what comes after that wakes.
    pub(crate) fn add(&self, waker: &Waker) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        let stale = if all.len() < MOST { Vec::new() } else { std::mem::take(&mut *all) };
        all.push(waker.clone());
        drop(all);
        stale.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}
