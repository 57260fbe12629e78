//! Listening sockets that are given up when draining begins, whoever keeps the listener.
//!
//! A socket that nobody accepts from is worse than none: the kernel goes on to queue clients there, and they hang.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::io::unix::AsyncFd;

static ALL: Mutex<Vec<Weak<dyn GiveUp>>> = Mutex::new(Vec::new());

trait GiveUp: Send + Sync {
    fn give_up(&self);
}

/// A listening socket, until draining begins.
#[derive(Debug)]
pub(super) struct Held<S>(Mutex<Option<S>>);

/// One that a runtime watches.
pub(super) type Watched = AsyncFd<OwnedFd>;
/// One that threads wait for by themselves: who waits has a share of it, so that its number is nobody else's meanwhile.
pub(super) type Unwatched = Arc<OwnedFd>;

impl<S: Send + 'static> Held<S> {
    pub(super) fn new(socket: S) -> Arc<Self> {
        let held = Arc::new(Self(Mutex::new(Some(socket))));
        let mut all = lock(&ALL);
        all.retain(|known| known.strong_count() > 0);
        let weak = Arc::downgrade(&held);
        all.push(weak);
        drop(all);
        // After: draining that began in between has given it up, or does so here.
        if crate::drain::begun() {
            held.give_up();
        }
        held
    }

    /// The socket; nothing once it was given up.
    pub(super) fn socket(&self) -> MutexGuard<'_, Option<S>> {
        lock(&self.0)
    }
}

impl<S: Send> GiveUp for Held<S> {
    fn give_up(&self) {
        let socket = lock(&self.0).take();
        drop(socket);
    }
}

/// Draining has begun.
pub(crate) fn give_up_all() {
    let all = std::mem::take(&mut *lock(&ALL));
    for held in all.iter().filter_map(Weak::upgrade) {
        held.give_up();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
