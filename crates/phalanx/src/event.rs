//! What a cluster tells, and how it is heard.

use crate::message::{Attached, Handle};
use crate::primary::Settings;
use crate::{Aborted, Cause, Ended, Engine, Generation, Hang, ListeningInfo, Slot, WorkerId};
use phalanx_core::Event as CoreEvent;
use serde::Serialize;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Something that happened in the cluster. The record it names is as it was then; `workers()` is the present.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// What later workers run has been settled: by [`Primary::configure`](crate::Primary::configure), or, as it
    /// stands, for a [`fork`](crate::Primary::fork).
    Setup {
        /// As it was then.
        settings: Box<Settings>,
    },
    /// A worker was started.
    Fork {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// Its process.
        pid: u32,
    },
    /// A worker could not be started; nothing else is heard of it.
    ForkFailed {
        /// Where.
        slot: Slot,
        /// Why, as a sentence.
        error: String,
    },
    /// A worker said that it is up.
    Online {
        /// Who.
        worker: WorkerId,
    },
    /// One of its servers listens.
    Listening {
        /// Who.
        worker: WorkerId,
        /// What.
        info: ListeningInfo,
    },
    /// It gave up one of its listeners.
    ListenerLeft {
        /// Who.
        worker: WorkerId,
        /// The key of the listener.
        key: String,
    },
    /// Nobody holds this listener any more: it was closed.
    ListenerClosed {
        /// The key of the listener.
        key: String,
    },
    /// A listener could not be made.
    BindFailed {
        /// The key of the listener.
        key: String,
        /// Why, as a sentence.
        error: String,
        /// The key of ours that holds the endpoint already.
        held_by: Option<String>,
    },
    /// A configured listener has its address.
    Bound {
        /// What the configuration calls it.
        name: String,
        /// Where it is.
        address: String,
    },
    /// A worker gets nothing new and ends what it has.
    Draining {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is ready, by what makes it so ([`Ready`](crate::Ready)).
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// A worker hangs.
    Hung {
        /// Who.
        worker: WorkerId,
        /// How that shows.
        how: Hang,
        /// What its process does, as far as the kernel tells: for people.
        seen: Vec<String>,
    },
    /// It moves again, before anything was done about it.
    MovesAgain {
        /// Who.
        worker: WorkerId,
    },
    /// A worker will be replaced, as soon as its successor can.
    Due {
        /// Who.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A reload has begun.
    Reloading {
        /// To which generation.
        generation: Generation,
    },
    /// Every worker is of this generation and ready, and no other is left.
    Reloaded {
        /// Which.
        generation: Generation,
    },
    /// A reload was given up: the generation before stays, or comes back where it had left.
    ReloadAborted {
        /// The generation that will not be.
        generation: Generation,
        /// Why.
        why: Aborted,
        /// What the worker that failed printed last, oldest first.
        last_lines: Vec<String>,
    },
    /// Everything will stop, after a delay in which it serves on.
    Stopping,
    /// A message from a worker.
    Message {
        /// Who.
        worker: WorkerId,
        /// What.
        message: serde_json::Value,
        /// The socket that came with it, if [`receive_handles`](crate::Builder::receive_handles) permits any.
        #[serde(skip)]
        handle: Option<Attached>,
    },
    /// A worker's channel is closed.
    Disconnect {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's process has ended.
    Exit {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// How.
        ended: Ended,
        /// What phalanx did to bring it about.
        cause: Option<Cause>,
        /// Whether somebody had asked it to leave.
        exited_after_disconnect: bool,
        /// Connections that it had taken by hand-off, or at most so many by steering.
        taken: u64,
        /// Connections that it had been handed and had not acknowledged: they went to others.
        unacknowledged: u64,
        /// What it printed last, oldest first, if nobody had asked it to leave.
        last_lines: Vec<String>,
    },
    /// A worker broke the protocol and is ended.
    Violation {
        /// Who.
        worker: WorkerId,
        /// How.
        how: String,
    },
    /// A slot's workers die before they come online, again and again.
    Degraded {
        /// Where.
        slot: Slot,
    },
    /// Connections wait for a steered worker and it takes none: it is passed over until it does.
    Lags {
        /// Who.
        worker: WorkerId,
        /// On which listener.
        key: String,
    },
    /// An engine of steering is not possible here. Said once; listeners get the next best mechanism.
    SteeringRefused {
        /// Which.
        engine: Engine,
        /// Why, as part of a sentence.
        why: String,
    },
    /// Somebody had changed a group of steered sockets, and it was put right. Only a worker that holds one of them
    /// could have.
    Tampered {
        /// The listener.
        key: String,
    },
    /// Other sockets listen on the address of a steered listener, and may get some of its connections.
    Strangers {
        /// The listener.
        key: String,
        /// How many.
        count: u32,
    },
    /// Out of file descriptors: this listener rests.
    OutOfFiles {
        /// The key of the listener.
        key: String,
    },
    /// It accepts again.
    AcceptingAgain {
        /// The key of the listener.
        key: String,
    },
    /// Nobody reads what workers print: from now on lines are dropped. Said once for each time this begins.
    OutputDropped {
        /// Lines dropped so far, of all workers.
        dropped: u64,
    },
    /// Nobody is left and nobody will come.
    Finished,
    /// This listener to events was too slow; so many were dropped.
    Lagged {
        /// How many.
        missed: u64,
    },
}

impl Event {
    /// What core says, in words for the user; `None` for what is none of theirs.
    pub(crate) fn of<C: Into<OwnedFd>>(event: CoreEvent<C>) -> Option<Event> {
        Some(match event {
            CoreEvent::Fork { worker, slot, pid } => Event::Fork { worker, slot, pid },
            CoreEvent::ForkFailed { slot, error } => Event::ForkFailed { slot, error },
            CoreEvent::Online { worker } => Event::Online { worker },
            CoreEvent::Listening { worker, info } => Event::Listening { worker, info },
            CoreEvent::ListenerLeft { worker, key, .. } => Event::ListenerLeft { worker, key },
            CoreEvent::ListenerClosed { key } => Event::ListenerClosed { key },
            CoreEvent::BindFailed { key, errno, held_by, .. } => {
                let error = std::io::Error::from_raw_os_error(errno).to_string();
                Event::BindFailed { key, error, held_by }
            }
            CoreEvent::Bound { name, address } => Event::Bound { name, address: address.to_string() },
            CoreEvent::Draining { worker } => Event::Draining { worker },
            CoreEvent::Ready { worker } => Event::Ready { worker },
            CoreEvent::Hung { worker, how } => Event::Hung { worker, how, seen: Vec::new() },
            CoreEvent::MovesAgain { worker } => Event::MovesAgain { worker },
            CoreEvent::Due { worker, cause } => Event::Due { worker, cause },
            CoreEvent::Reloading { generation } => Event::Reloading { generation },
            CoreEvent::Reloaded { generation } => Event::Reloaded { generation },
            CoreEvent::ReloadAborted { generation, why } => {
                Event::ReloadAborted { generation, why, last_lines: Vec::new() }
            }
            CoreEvent::Stopping => Event::Stopping,
            CoreEvent::Message { worker, message, handle } => {
                let handle = handle.and_then(|fd| match Handle::received(fd.into()) {
                    Ok(handle) => Some(Attached::new(handle)),
                    Err(error) => {
                        tracing::warn!(%worker, %error, "a handle of a worker is closed");
                        None
                    }
                });
                Event::Message { worker, message: message.decode().ok()?, handle }
            }
            CoreEvent::Disconnect { worker } => Event::Disconnect { worker },
            CoreEvent::Exit {
                worker,
                slot,
                ended,
                cause,
                exited_after_disconnect,
                taken,
                unacknowledged,
            } => Event::Exit {
                worker,
                slot,
                ended,
                cause,
                exited_after_disconnect,
                taken,
                unacknowledged,
                last_lines: Vec::new(),
            },
            CoreEvent::Violation { worker, how } => Event::Violation { worker, how },
            CoreEvent::Degraded { slot } => Event::Degraded { slot },
            CoreEvent::Lags { worker, key } => Event::Lags { worker, key },
            CoreEvent::SteeringRefused { engine, why } => Event::SteeringRefused { engine, why },
            CoreEvent::Tampered { key } => Event::Tampered { key },
            CoreEvent::Strangers { key, count } => Event::Strangers { key, count },
            CoreEvent::OutOfFiles { key } => Event::OutOfFiles { key },
            CoreEvent::AcceptingAgain { key } => Event::AcceptingAgain { key },
            CoreEvent::Finished => Event::Finished,
            _ => return None,
        })
    }
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

/// The events of a cluster: a stream, and a blocking iterator for code without a runtime. Ends when the cluster
/// has ended. At most 1024 wait for a listener; of more, the oldest are dropped, and [`Event::Lagged`] says how
/// many.
#[derive(Debug)]
pub struct Events(Arc<Mailbox>);

impl Events {
    /// The next event, or `None` when the cluster has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
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

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
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
    /// For the first who asks: what a cluster tells while it starts, nobody could ask for before.
    early: Option<Events>,
}

impl Default for Hub {
    fn default() -> Hub {
        let mailbox = Arc::new(Mailbox::default());
        Hub { listeners: vec![Arc::clone(&mailbox)], early: Some(Events(mailbox)) }
    }
}

impl Hub {
    pub(crate) fn subscribe(&mut self) -> Events {
        self.early.take().unwrap_or_else(|| {
            let mailbox = Arc::new(Mailbox::default());
            self.listeners.push(Arc::clone(&mailbox));
            Events(mailbox)
        })
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

    fn degraded(n: u32) -> Event {
        Event::Degraded { slot: Slot(n) }
    }

    #[test]
    fn the_first_listener_hears_what_came_before_it() {
        let mut hub = Hub::default();
        hub.tell(&degraded(0));
        let mut first = hub.subscribe();
        let mut second = hub.subscribe();
        hub.tell(&degraded(1));
        drop(hub);
        let slots = |events: &mut Events| {
            let slot = |event| if let Event::Degraded { slot } = event { Some(slot.0) } else { None };
            events.filter_map(slot).collect::<Vec<_>>()
        };
        assert_eq!((slots(&mut first), slots(&mut second)), (vec![0, 1], vec![1]));
    }

    #[test]
    fn who_is_too_slow_hears_how_much_it_missed() {
        let mut hub = Hub::default();
        for n in 0..ROOM as u32 + 3 {
            hub.tell(&degraded(n));
        }
        let mut events = hub.subscribe();
        assert!(matches!(events.next(), Some(Event::Lagged { missed: 3 })));
        assert!(matches!(events.next(), Some(Event::Degraded { slot: Slot(3) })));
    }
}
