//! How a cluster is heard.

use crate::message::{Attached, Content};
use phalanx_core::wire::Payload;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Something that happened in the cluster. The record it names is as it was then; `workers()` is the present. As JSON,
/// it is what `phalanx events` prints.
///
/// A message has a handle only where [`Builder::receive_handles`](crate::Builder::receive_handles) permits it.
pub type Event = phalanx_core::Event<serde_json::Value, Attached>;

/// What core says, with the message decoded.
pub(crate) fn told(event: phalanx_core::Event<Payload, OwnedFd>) -> Event {
    let decode = |message| match Content::of(message) {
        Content::Json(value) => Ok(value),
        Content::Opaque(bytes) => Err(bytes),
    };
    event.map_message(decode, |worker, fd| Attached::received(fd, &format!("worker {worker}")))
}

/// Events that one listener may leave unread.
const ROOM: usize = 1024;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    missed: u64,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Mailbox {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of a cluster: a stream; in code without a runtime, what a `for` loop goes through. Ends when the cluster
/// has ended. At most 1024 wait for a listener; of more, the oldest are dropped, and [`Event::Lagged`] says how
/// many.
#[derive(Debug)]
pub struct Events(Arc<Mailbox>);

impl Events {
    /// The next event, or `None` when the cluster has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next event, or `None` when the cluster has ended. Blocks this thread: not for asynchronous tasks.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let mut queue = self.0.lock();
        loop {
            if let Some(event) = take(&mut queue) {
                return Some(event);
            }
            if queue.closed {
                return None;
            }
            queue = self.0.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut queue = self.0.lock();
        match take(&mut queue) {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.closed => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl futures_core::Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_recv(cx)
    }
}

/// The events of a cluster, one after the other, for code without a runtime: each
/// [`blocking_recv`](Events::blocking_recv).
#[derive(Debug)]
pub struct BlockingEvents(Events);

impl Iterator for BlockingEvents {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.0.blocking_recv()
    }
}

impl IntoIterator for Events {
    type Item = Event;
    type IntoIter = BlockingEvents;

    fn into_iter(self) -> BlockingEvents {
        BlockingEvents(self)
    }
}

fn take(queue: &mut Queue) -> Option<Event> {
    if queue.missed > 0 {
        return Some(Event::Lagged { missed: std::mem::take(&mut queue.missed) });
    }
    queue.events.pop_front()
}

/// The sending side: everybody who listens.
#[derive(Debug)]
pub(crate) struct Hub {
    listeners: Vec<Arc<Mailbox>>,
}

impl Hub {
    /// And all its events, for the first who asks: what a cluster tells while it starts, or while it ends at once,
    /// nobody could ask for before.
    pub(crate) fn new() -> (Hub, Events) {
        let mut hub = Hub { listeners: Vec::new() };
        let all = hub.subscribe();
        (hub, all)
    }

    pub(crate) fn subscribe(&mut self) -> Events {
        let mailbox = Arc::new(Mailbox::default());
        self.listeners.push(Arc::clone(&mailbox));
        Events(mailbox)
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        self.listeners.retain(|mailbox| Arc::strong_count(mailbox) > 1);
        for mailbox in &self.listeners {
            let mut queue = mailbox.lock();
            if queue.events.len() >= ROOM {
                queue.events.pop_front();
                queue.missed += 1;
            }
            queue.events.push_back(event.clone());
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
            drop(queue);
            mailbox.filled.notify_all();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for mailbox in &self.listeners {
            let mut queue = mailbox.lock();
            queue.closed = true;
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
            drop(queue);
            mailbox.filled.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;

    fn degraded(n: u32) -> Event {
        Event::Degraded { slot: Slot(n) }
    }

    #[test]
    fn the_first_listener_hears_what_came_before_it() {
        let (mut hub, first) = Hub::new();
        hub.tell(&degraded(0));
        let second = hub.subscribe();
        hub.tell(&degraded(1));
        drop(hub);
        let slots = |events: Events| {
            let slot = |event| if let Event::Degraded { slot } = event { Some(slot.0) } else { None };
            events.into_iter().filter_map(slot).collect::<Vec<_>>()
        };
        assert_eq!((slots(first), slots(second)), (vec![0, 1], vec![1]));
    }

    #[test]
    fn who_is_too_slow_hears_how_much_it_missed() {
        let (mut hub, mut events) = Hub::new();
        for n in 0..ROOM as u32 + 3 {
            hub.tell(&degraded(n));
        }
        assert!(matches!(events.blocking_recv(), Some(Event::Lagged { missed: 3 })));
        assert!(matches!(events.blocking_recv(), Some(Event::Degraded { slot: Slot(3) })));
    }
}
