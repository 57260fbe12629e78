//! Connections that were offered to one listener, on their way from the driver to the application.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use phalanx_core::Offer;

use crate::waiters::Waiters;

/// Taking a connection and closing the queue exclude each other: a connection is either the application's,
/// and then its offer stands under `taken` until the driver has answered it, or it goes to another worker.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    waiters: Waiters,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Offer, OwnedFd)>,
    taken: Vec<Offer>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection back if the queue is closed.
    pub(crate) fn push(&self, offer: Offer, connection: OwnedFd) -> Result<(), OwnedFd> {
        let mut state = self.state();
        if state.closed {
            return Err(connection);
        }
        state.waiting.push_back((offer, connection));
        drop(state);
        self.waiters.wake_all();
        Ok(())
    }

    /// The application takes a connection. Never ready again once closed.
    pub(crate) fn poll_take(&self, cx: &Context<'_>) -> Poll<OwnedFd> {
        let mut state = self.state();
        if let Some((offer, connection)) = state.waiting.pop_front() {
            state.taken.push(offer);
            return Poll::Ready(connection);
        }
        let closed = state.closed;
        drop(state);
        if !closed {
            self.waiters.add(cx.waker());
            // What came in between woke nobody.
            if !self.state().waiting.is_empty() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// The offers that the application took since the last call.
    pub(crate) fn taken(&self) -> Vec<Offer> {
        std::mem::take(&mut self.state().taken)
    }

    /// Closes what nobody took, and then returns the offers that somebody did.
    pub(crate) fn close(&self) -> Vec<Offer> {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        std::mem::take(&mut state.taken)
    }
}
