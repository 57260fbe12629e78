//! What a worker says.

use super::Primary;
use super::seat::Receipt;
use crate::lifecycle::Input;
use crate::ready::Ready;
use crate::wire::{Frame, Message, Reply, Violation};
use crate::{Event, State, Time, WorkerId};

impl<C> Primary<C> {
    /// Bytes that a worker sent, in one read, and the handles that came with them. After an answer of `false`
    /// its channel is of no further interest: it broke the protocol.
    pub fn handle_bytes(
        &mut self,
        now: Time,
        worker: WorkerId,
        chunk: &[u8],
        handles: impl IntoIterator<Item = C>,
    ) -> bool {
        self.clock = now;
        let Some(mut decoder) = self.seats.get_mut(&worker).and_then(|seat| seat.decoder.take()) else {
            return false;
        };
        let mut violation = None;
        for frame in decoder.feed(chunk, handles) {
            let handled = frame.and_then(|frame| self.handle_frame(now, worker, frame));
            if let Err(error) = handled {
                violation = Some(error);
                break;
            }
            if !self.seats.get(&worker).is_some_and(|seat| seat.channel_open) {
                return false;
            }
        }
        if let Some(error) = violation {
            self.live(now, worker, Input::Violation(error));
            return false;
        }
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.decoder = Some(decoder);
        }
        true
    }

    fn handle_frame(&mut self, now: Time, worker: WorkerId, frame: Frame<C>) -> Result<(), Violation> {
        if frame.envelope.is_some() {
            // Every envelope gets exactly one receipt, before anything else.
            self.say_receipt(worker, frame.handle.is_some());
            if frame.handle.is_none() {
                return Ok(());
            }
        }
        let Some(seat) = self.seats.get_mut(&worker) else { return Ok(()) };
        if seat.life.state() == State::Starting && !matches!(frame.message, Message::Online) {
            // ROLE-07: `online` precedes everything.
            return Err(Violation::BeforeOnline);
        }
        match frame.message {
            Message::Online => self.live(now, worker, Input::Online),
            Message::QueryServer { seq, request } => self.query(worker, seq, request),
            Message::Listening { request } => {
                self.live(now, worker, Input::Listening);
                self.listening(now, worker, &request);
                self.probe(worker);
            }
            Message::Close { key } => self.close(now, worker, &key),
            Message::LeaveNotice { seq } => {
                self.say(worker, &Message::Reply(Reply::bare(seq)));
                self.live(now, worker, Input::LeaveNotice);
            }
            Message::Suicide => self.live(now, worker, Input::LeaveNotice),
            Message::Reply(reply) => {
                self.answered(now, worker, reply.ack, reply.accepted == Some(true));
            }
            Message::HandleAck => self.receipt(now, worker, true)?,
            Message::HandleNack => self.receipt(now, worker, false)?,
            Message::SocketNotifyClose { key } => {
                self.say(worker, &Message::SocketAllClosed { key });
            }
            Message::SocketGetCount { key } => {
                self.say(worker, &Message::SocketCount { key, count: 0 });
            }
            Message::Draining => self.live(now, worker, Input::GaveUp),
            Message::Ready => {
                self.promised(now, worker, &Ready::Message);
                self.reconcile(now);
            }
            Message::User(message) => {
                if seat.wants == Ready::Message && message.as_bytes() == b"\"ready\"" {
                    self.promised(now, worker, &Ready::Message);
                    self.reconcile(now);
                }
                self.events.push_back(Event::Message { worker, message, handle: frame.handle });
            }
            // What only a primary says, and what nobody knows: none of our business (WIRE-05).
            Message::NewConnection { .. }
            | Message::Disconnect
            | Message::SocketAllClosed { .. }
            | Message::SocketCount { .. }
            | Message::Unknown => {}
        }
        Ok(())
    }

    /// The oldest envelope arrived, with its handle or without.
    fn receipt(&mut self, now: Time, worker: WorkerId, arrived: bool) -> Result<(), Violation> {
        let Some(seat) = self.seats.get_mut(&worker) else { return Ok(()) };
        seat.outbox.answered()?;
        let receipt = seat.receipts.pop_front();
        match receipt {
            Some(Receipt::Connection(id)) if !arrived => self.lost(now, worker, id),
            Some(Receipt::Listen { listener, ack, tries }) if !arrived => {
                self.listen_lost(now, listener, worker, ack, tries);
            }
            // A handle of the user's that arrived is theirs now, and one that did not is lost: ours closes.
            Some(Receipt::Connection(_) | Receipt::Listen { .. } | Receipt::Handle(_)) | None => {}
        }
        // What the receipt made room for; a full channel takes more after one read, long before it is
        // reported writable.
        self.flush_if_any(worker);
        Ok(())
    }
}
