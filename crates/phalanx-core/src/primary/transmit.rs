//! What is said to a worker.

use super::Primary;
use super::seat::{Carry, Receipt};
use crate::timer::Timer;
use crate::wire::{Envelope, HandleKind, Message, Payload, Seq};
use crate::{Action, SocketId, Time, WorkerId};
use std::time::Duration;

/// The bytes of the next system call, and the one handle that goes along.
#[derive(Debug)]
pub struct Transmit<'a, C> {
    /// What to write. A short write is fine.
    pub bytes: &'a [u8],
    /// What goes along with the first byte.
    pub carried: Option<Carried<'a, C>>,
}

/// A handle that goes along with a frame.
#[derive(Debug)]
pub enum Carried<'a, C> {
    /// Something that core holds.
    Handle(&'a C),
    /// A socket that the driver holds.
    Socket(SocketId),
}

/// Why nothing more can be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The channel is full; the driver will hear when it is not.
    Full,
    /// Too many descriptors are in flight for this user (ETOOMANYREFS); nobody will be told when that changes.
    TooManyInFlight,
}

/// A message could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The worker's channel is closed.
    #[error("the worker's channel is closed")]
    Closed,
    /// Too much waits to be sent already; try again when the worker has read some.
    #[error("the worker does not read: its queue is full")]
    Full,
}

/// ETOOMANYREFS goes away without a sign.
const RETRY: Duration = Duration::from_millis(10);

impl<C> Primary<C> {
    /// The next system call towards a worker, if there is one.
    pub fn poll_transmit(&mut self, worker: WorkerId) -> Option<Transmit<'_, C>> {
        let seat = self.seats.get_mut(&worker)?;
        seat.flush_due = false;
        let next = seat.outbox.peek()?;
        let carried = match next.carry {
            None => None,
            Some(Carry::Connection(id)) => Some(Carried::Handle(seat.ledger.carry(*id)?)),
            Some(Carry::Socket(socket)) => Some(Carried::Socket(*socket)),
            Some(Carry::Handle(handle)) => Some(Carried::Handle(handle)),
        };
        Some(Transmit { bytes: next.bytes, carried })
    }

    /// So many bytes of the latest [`poll_transmit`](Self::poll_transmit) were written; the handle, if there
    /// was one, has gone with the first.
    pub fn handle_sent(&mut self, worker: WorkerId, bytes: usize) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        if let Some(Carry::Handle(handle)) = seat.outbox.sent(bytes)
            && let Some(due) = seat.receipts.iter_mut().find_map(|receipt| match receipt {
                Receipt::Handle(due @ None) => Some(due),
                _ => None,
            })
        {
            *due = Some(handle);
        }
        if seat.blocked && seat.outbox.is_empty() {
            seat.blocked = false;
            self.refresh(worker);
        }
    }

    /// Nothing more can be written to a worker now. It gets no connections until its queue is empty.
    pub fn handle_blocked(&mut self, now: Time, worker: WorkerId, why: Blocked) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.blocked = true;
            if why == Blocked::TooManyInFlight {
                self.timers.set(Timer::Retry(worker), now + RETRY);
            }
        }
        self.refresh(worker);
    }

    /// Whether [`send`](Self::send) would take a message now.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn can_send(&self, worker: WorkerId) -> Result<(), SendError> {
        let seat = self.seats.get(&worker).filter(|seat| seat.channel_open).ok_or(SendError::Closed)?;
        if seat.outbox.queued_bytes() >= self.config.outbox_max { Err(SendError::Full) } else { Ok(()) }
    }

    /// Sends a user's message.
    ///
    /// # Errors
    ///
    /// [`SendError`]; nothing was queued.
    pub fn send(
        &mut self,
        worker: WorkerId,
        message: &Payload,
        handle: Option<(Envelope, C)>,
    ) -> Result<(), SendError> {
        self.can_send(worker)?;
        let Some(seat) = self.seats.get_mut(&worker) else { return Err(SendError::Closed) };
        let message = Message::User(message.clone());
        match handle {
            None => seat.outbox.push_with(None, |out| crate::wire::encode(&message, Seq(0), out)),
            Some((envelope, handle)) => {
                seat.outbox.push_with(Some(Carry::Handle(handle)), |out| {
                    crate::wire::encode_enveloped(envelope, &message, Seq(0), out);
                });
                seat.receipts.push_back(Receipt::Handle(None));
            }
        }
        self.flush(worker);
        Ok(())
    }

    /// The envelope for a connected stream socket of the user's.
    pub fn socket_envelope() -> Envelope {
        Envelope::from(HandleKind::NetSocket)
    }

    pub(super) fn say(&mut self, worker: WorkerId, message: &Message) {
        let seq = if is_numbered(message) { self.next_seq() } else { Seq(0) };
        self.say_as(worker, message, seq);
    }

    pub(super) fn say_as(&mut self, worker: WorkerId, message: &Message, seq: Seq) {
        if let Some(seat) = self.seats.get_mut(&worker).filter(|seat| seat.channel_open) {
            seat.outbox.push_with(None, |out| crate::wire::encode(message, seq, out));
            self.flush(worker);
        }
    }

    pub(super) fn say_receipt(&mut self, worker: WorkerId, arrived: bool) {
        if let Some(seat) = self.seats.get_mut(&worker).filter(|seat| seat.channel_open) {
            seat.outbox.push_receipt(arrived);
            self.flush(worker);
        }
    }

    pub(super) fn flush(&mut self, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(&worker).filter(|seat| seat.channel_open)
            && !std::mem::replace(&mut seat.flush_due, true)
        {
            self.actions.push_back(Action::Flush { worker });
        }
    }

    pub(super) fn flush_if_any(&mut self, worker: WorkerId) {
        if self.seats.get(&worker).is_some_and(|seat| !seat.outbox.is_empty()) {
            self.flush(worker);
        }
    }

    pub(super) fn retry(&mut self, worker: WorkerId) {
        self.flush_if_any(worker);
    }
}

/// Whether a message carries the sender's count.
fn is_numbered(message: &Message) -> bool {
    matches!(message, Message::Disconnect | Message::Reply(_))
}
