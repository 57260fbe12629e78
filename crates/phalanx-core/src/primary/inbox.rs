//! What a worker says.

use super::Primary;
use super::seat::Receipt;
use crate::lifecycle::{Input, Speaks};
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
        if seat.life.state() == State::Starting
            && self.config.speaks != Speaks::Node
            && !matches!(frame.message, Message::Online)
        {
            // ROLE-07: `online` precedes everything. Node's own primary does not insist, and `node -e` asks first.
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
            Message::Pong => self.pong(now, worker),
            Message::TicketKeys { .. } => self.wants_ticket_keys(worker),
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
            Message::Opaque(bytes) => {
                self.events.push_back(Event::Opaque { worker, bytes: bytes.into(), handle: frame.handle });
            }
            // What only a primary says, and what nobody knows: none of our business (WIRE-05).
            Message::NewConnection { .. }
            | Message::Disconnect
            | Message::Ping
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, BoundAddress, Config};

    fn started(speaks: Speaks) -> (Primary<u32>, WorkerId) {
        let config = Config { speaks, mechanism: crate::Mechanism::Handoff, ..Config::default() };
        let mut primary = Primary::new(config);
        let worker = primary.fork(Vec::new());
        assert!(matches!(primary.poll_action(), Some(Action::Spawn(_))));
        primary.handle_spawned(Time::ZERO, worker, Ok(7));
        (primary, worker)
    }

    const ASKS: &[u8] = br#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"::1","port":80,"addressType":6,"fd":null,"flags":0,"seq":1}"#;
    const ONLINE: &[u8] = br#"{"cmd":"NODE_CLUSTER","act":"online","seq":2}"#;

    fn say(primary: &mut Primary<u32>, worker: WorkerId, line: &[u8]) -> bool {
        primary.handle_bytes(Time::ZERO, worker, &[line, b"\n"].concat(), [])
    }

    #[test]
    fn a_node_worker_may_ask_before_it_is_online() {
        let (mut primary, worker) = started(Speaks::Node);
        assert!(say(&mut primary, worker, ASKS));
        let Some(Action::Bind { socket, .. }) = primary.poll_action() else { panic!("nothing is bound") };
        let address = BoundAddress::Inet("[::1]:80".parse().unwrap());
        primary.handle_bound(socket, Ok(address));
        let answer = primary.poll_transmit(worker).expect("an answer");
        assert!(String::from_utf8_lossy(answer.bytes).contains("\"ack\":1"));
        assert_eq!(primary.worker(worker).unwrap().state, State::Starting);
        assert!(say(&mut primary, worker, ONLINE));
        assert_eq!(primary.worker(worker).unwrap().state, State::Online);
    }

    #[test]
    fn nobody_else_may() {
        for speaks in [Speaks::Phalanx, Speaks::Perhaps] {
            let (mut primary, worker) = started(speaks);
            assert!(!say(&mut primary, worker, ASKS));
            assert_eq!(primary.worker(worker).unwrap().state, State::Disconnected);
        }
    }
}
