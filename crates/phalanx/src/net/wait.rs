//! Waiting on a thread of the application's, without asking another one.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use phalanx_os::bell::Bell;

use crate::drain::{self, Draining};

struct Ring(Bell);

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.0.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.ring();
    }
}

/// What a thread waits with: one bell for all it waits for, so that who registers it twice can see that.
struct Waiting {
    ring: Arc<Ring>,
    waker: Waker,
    draining: Draining,
}

impl Waiting {
    fn new() -> io::Result<Self> {
        let ring = Arc::new(Ring(Bell::new()?));
        Ok(Self { waker: Waker::from(Arc::clone(&ring)), ring, draining: drain::current() })
    }
}

thread_local! {
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
}

/// What `poll` has to give, which is asked again when the socket is readable or when it was woken. `None`: draining
/// has begun.
pub(super) fn on_thread<T>(
    socket: impl Fn() -> Option<Arc<OwnedFd>>,
    mut poll: impl FnMut(&Context<'_>) -> Poll<io::Result<T>>,
) -> Option<io::Result<T>> {
    WAITING.with_borrow_mut(|waiting| {
        let Waiting { ring, waker, draining } = match waiting {
            Some(waiting) => waiting,
            None => match Waiting::new() {
                Ok(new) => waiting.insert(new),
                Err(error) => return Some(Err(error)),
            },
        };
        let mut cx = Context::from_waker(waker);
        loop {
            if let Poll::Ready(ready) = poll(&cx) {
                return Some(ready);
            }
            // After: what begins between the two is met here, and what begins later rings.
            if Pin::new(&mut *draining).poll(&mut cx).is_ready() {
                return None;
            }
            let socket = socket();
            if let Err(error) = ring.0.wait(socket.as_deref().map(AsFd::as_fd)) {
                return Some(Err(error));
            }
        }
    })
}
