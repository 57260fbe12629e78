//! The worker's end of the channel.

use crate::wire::{
    Decoder, Envelope, Frame, ListenRequest, Message, Outbox, Payload, Reply, Seq, Serialization, SockName,
    Violation,
};
use crate::{Carried, SendError, Transmit};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, VecDeque};

/// One listen call of this worker, from the call until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen(u64);

/// A connection that the primary offers. It is the worker's own after [`Worker::accept`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offer(Seq);

/// What a worker should hear.
#[derive(Debug)]
#[non_exhaustive]
pub enum WorkerEvent<C> {
    /// The keys of TLS session tickets, the present one first. They take the place of those before.
    TicketKeys(String),
    /// The primary accepts for this listener and offers connections.
    Granted {
        /// Which.
        listen: Listen,
        /// The real address, of a TCP listener.
        address: Option<SockName>,
        /// What the first worker brought along.
        data: Option<Box<RawValue>>,
    },
    /// The listener is this socket, shared with others. The primary may offer connections all the same.
    Shared {
        /// Which.
        listen: Listen,
        /// The socket.
        socket: C,
        /// What the first worker brought along.
        data: Option<Box<RawValue>>,
    },
    /// The listener cannot be had.
    Refused {
        /// Which.
        listen: Listen,
        /// The system's error number, positive.
        errno: i32,
    },
    /// A connection is offered: answer it with [`Worker::accept`] when the application takes it.
    Connection {
        /// Which listener's.
        listen: Listen,
        /// Its name until answered.
        offer: Offer,
        /// The connection.
        connection: C,
    },
    /// The primary asks this worker to leave.
    Disconnect,
    /// The primary asks whether the application runs: [`Worker::pong`] is the answer.
    Ping,
    /// A message from the primary.
    Message {
        /// What.
        message: Payload,
        /// What came with it.
        handle: Option<C>,
    },
    /// A message from the primary that JSON has no form for.
    Opaque {
        /// What, as V8 serialized it.
        bytes: Box<[u8]>,
        /// What came with it.
        handle: Option<C>,
    },
    /// The primary knows that this worker leaves ([`Worker::notify_leave`]): the channel may be closed.
    Released,
}

#[derive(Debug)]
enum Stub {
    /// The reply is due.
    Asked(Seq),
    /// Closed before the reply came.
    Forsaken(Seq),
    /// It has its key.
    Held(String),
}

/// The worker's end, as a state machine: the counterpart of [`Primary`](crate::Primary).
#[derive(Debug)]
pub struct Worker<C> {
    decoder: Option<Decoder<C>>,
    outbox: Outbox<C>,
    next_seq: u64,
    next_listen: u64,
    stubs: BTreeMap<Listen, (ListenRequest, Stub)>,
    /// How often each address was asked for; the count restarts when all are closed (KEY-06).
    indexes: BTreeMap<String, (u32, u32)>,
    offers: BTreeMap<Offer, Listen>,
    leave_notice: Option<Seq>,
    disconnect_seen: bool,
    open: bool,
    outbox_max: usize,
    handles: VecDeque<Option<C>>,
    events: VecDeque<WorkerEvent<C>>,
}

impl<C> Worker<C> {
    /// A worker that says `online` first of all (ROLE-07).
    pub fn new(serialization: Serialization, max_message: usize, outbox_max: usize) -> Worker<C> {
        let mut worker = Worker {
            decoder: Some(Decoder::new(max_message).serialization(serialization)),
            // A Node primary that receives an envelope before the last was answered pairs handles wrongly.
            outbox: Outbox::new().serialization(serialization).strict(true),
            next_seq: 0,
            next_listen: 0,
            stubs: BTreeMap::new(),
            indexes: BTreeMap::new(),
            offers: BTreeMap::new(),
            leave_notice: None,
            disconnect_seen: false,
            open: true,
            outbox_max,
            handles: VecDeque::new(),
            events: VecDeque::new(),
        };
        worker.say(&Message::Online);
        worker
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<WorkerEvent<C>> {
        self.events.pop_front()
    }

    /// The next system call towards the primary, if there is one.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_, C>> {
        let next = self.outbox.peek()?;
        Some(Transmit { bytes: next.bytes, carried: next.carry.map(Carried::Handle) })
    }

    /// So many bytes were written.
    pub fn handle_sent(&mut self, bytes: usize) {
        if let Some(handle) = self.outbox.sent(bytes)
            && let Some(due) = self.handles.iter_mut().find(|due| due.is_none())
        {
            *due = Some(handle);
        }
    }

    /// The channel is at its end, or is to be of no further use: nothing more is sent.
    pub fn handle_channel_closed(&mut self) {
        self.open = false;
        self.outbox.clear();
        self.handles.clear();
        self.offers.clear();
    }

    /// Bytes from the primary, in one read, and the handles that came with them.
    ///
    /// # Errors
    ///
    /// The primary broke the protocol; nothing it says can be trusted any more.
    pub fn handle_bytes(
        &mut self,
        chunk: &[u8],
        handles: impl IntoIterator<Item = C>,
    ) -> Result<(), Violation> {
        let Some(mut decoder) = self.decoder.take() else { return Ok(()) };
        let mut frames = decoder.feed(chunk, handles);
        let result = frames.try_for_each(|frame| self.handle_frame(frame?));
        drop(frames);
        self.decoder = Some(decoder);
        result
    }

    /// Asks the primary for a listener. [`WorkerEvent::Granted`], [`Shared`](WorkerEvent::Shared) or
    /// [`Refused`](WorkerEvent::Refused) follows.
    pub fn listen(&mut self, mut request: ListenRequest) -> Listen {
        let listen = Listen(self.next_listen);
        self.next_listen += 1;
        let (next, live) = self.indexes.entry(address_of(&request)).or_insert((0, 0));
        request.index = Some(*next);
        *next += 1;
        *live += 1;
        let seq = self.say(&Message::QueryServer { seq: Seq(0), request: request.clone() });
        self.stubs.insert(listen, (request, Stub::Asked(seq)));
        listen
    }

    /// Whether this is the port that was asked for, or any was. A primary may grant another one: then somebody else
    /// has it (WIRE-16).
    pub fn is_right_port(&self, listen: Listen, port: u16) -> bool {
        self.stubs.get(&listen).is_none_or(|(request, _)| is_right_port(request, port))
    }

    /// The listener is ready, with its real port (−1: a Unix socket). The primary announces it.
    pub fn listening(&mut self, listen: Listen, port: Option<i32>) {
        if let Some((request, Stub::Held(_))) = self.stubs.get(&listen) {
            let request = ListenRequest { port: port.or(request.port), ..request.clone() };
            self.say(&Message::Listening { request });
        }
    }

    /// Gives up a listener. Connections that were offered for it and not accepted go to other workers.
    pub fn close(&mut self, listen: Listen) {
        let Some((request, stub)) = self.stubs.remove(&listen) else { return };
        match stub {
            Stub::Asked(seq) => {
                self.stubs.insert(listen, (request, Stub::Forsaken(seq)));
            }
            Stub::Forsaken(_) => {
                self.stubs.insert(listen, (request, stub));
            }
            Stub::Held(key) => {
                self.release_index(&request);
                let offers: Vec<Offer> =
                    self.offers.iter().filter(|(_, of)| **of == listen).map(|(offer, _)| *offer).collect();
                for offer in offers {
                    self.refuse(offer);
                }
                self.say(&Message::Close { key });
            }
        }
    }

    /// The application takes the connection: from now on it is this worker's. Whether the offer still stood.
    pub fn accept(&mut self, offer: Offer) -> bool {
        self.answer(offer, true)
    }

    /// The connection goes back and to another worker. The caller closes its copy.
    pub fn refuse(&mut self, offer: Offer) -> bool {
        self.answer(offer, false)
    }

    /// Whether [`send`](Self::send) would take a message now.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn can_send(&self) -> Result<(), SendError> {
        if !self.open {
            Err(SendError::Closed)
        } else if self.outbox.queued_bytes() >= self.outbox_max {
            Err(SendError::Full)
        } else {
            Ok(())
        }
    }

    /// Sends a message to the primary.
    ///
    /// # Errors
    ///
    /// [`SendError`]; nothing was queued.
    pub fn send(&mut self, message: Payload, handle: Option<(Envelope, C)>) -> Result<(), SendError> {
        self.can_send()?;
        let message = Message::User(message);
        match handle {
            None => self.outbox.push_with(None, |out| crate::wire::encode(&message, Seq(0), out)),
            Some((envelope, handle)) => {
                self.outbox.push_with(Some(handle), |out| {
                    crate::wire::encode_enveloped(envelope, &message, Seq(0), out);
                });
                self.handles.push_back(None);
            }
        }
        Ok(())
    }

    /// Says that this worker has given up its listeners and ends what it has (DEC-01). Node ignores it.
    pub fn notify_draining(&mut self) {
        self.say(&Message::Draining);
    }

    /// Says that this worker is ready. Node ignores it.
    pub fn notify_ready(&mut self) {
        self.say(&Message::Ready);
    }

    /// Asks for the keys of TLS session tickets. [`WorkerEvent::TicketKeys`] follows now and after each change; never
    /// under a primary of Node.
    pub fn ask_ticket_keys(&mut self) {
        self.say(&Message::TicketKeys { keys: String::new() });
    }

    /// Says that the application runs. The first time, unasked, it says that it will answer such questions. Node
    /// ignores it.
    pub fn pong(&mut self) {
        self.say(&Message::Pong);
    }

    /// Says that this worker leaves by its own choice (DISC-07). [`WorkerEvent::Released`] follows.
    pub fn notify_leave(&mut self) {
        if self.leave_notice.is_none() {
            let seq = self.say(&Message::LeaveNotice { seq: Seq(0) });
            self.leave_notice = Some(seq);
        }
    }

    /// Whether everything that was said has been written.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    fn answer(&mut self, offer: Offer, accepted: bool) -> bool {
        if self.offers.remove(&offer).is_none() {
            return false;
        }
        self.say(&Message::Reply(Reply::answer(offer.0, accepted)));
        true
    }

    fn handle_frame(&mut self, frame: Frame<C>) -> Result<(), Violation> {
        if frame.envelope.is_some() {
            self.outbox.push_receipt(frame.handle.is_some());
            if frame.handle.is_none() {
                return Ok(());
            }
        }
        match frame.message {
            Message::Reply(reply) => self.handle_reply(reply, frame.handle),
            Message::NewConnection { seq, key } => {
                if let Some(connection) = frame.handle {
                    self.handle_offer(seq, &key, connection);
                }
            }
            Message::Disconnect => {
                if !std::mem::replace(&mut self.disconnect_seen, true) {
                    self.events.push_back(WorkerEvent::Disconnect);
                }
            }
            Message::Ping => self.events.push_back(WorkerEvent::Ping),
            Message::HandleAck | Message::HandleNack => {
                self.outbox.answered()?;
                self.handles.pop_front();
            }
            Message::SocketNotifyClose { key } => {
                self.say(&Message::SocketAllClosed { key });
            }
            Message::SocketGetCount { key } => {
                self.say(&Message::SocketCount { key, count: 0 });
            }
            Message::TicketKeys { keys } => self.events.push_back(WorkerEvent::TicketKeys(keys)),
            Message::User(message) => {
                self.events.push_back(WorkerEvent::Message { message, handle: frame.handle });
            }
            Message::Opaque(bytes) => {
                self.events.push_back(WorkerEvent::Opaque { bytes, handle: frame.handle });
            }
            Message::Online
            | Message::QueryServer { .. }
            | Message::Listening { .. }
            | Message::Close { .. }
            | Message::LeaveNotice { .. }
            | Message::Suicide
            | Message::SocketAllClosed { .. }
            | Message::SocketCount { .. }
            | Message::Draining
            | Message::Ready
            | Message::Pong
            | Message::Unknown => {}
        }
        Ok(())
    }

    fn handle_reply(&mut self, reply: Reply, handle: Option<C>) {
        if self.leave_notice == Some(reply.ack) {
            self.events.push_back(WorkerEvent::Released);
            return;
        }
        let asked = self.stubs.iter().find(
            |(_, (_, stub))| matches!(stub, Stub::Asked(seq) | Stub::Forsaken(seq) if *seq == reply.ack),
        );
        let Some((&listen, _)) = asked else { return };
        let Some((request, stub)) = self.stubs.remove(&listen) else { return };
        let granted = match (reply.failure(), reply.key) {
            (None, Some(key)) => Ok(key),
            (failure, _) => Err(failure.map_or(EINVAL, i32::saturating_abs)),
        };
        match (stub, granted) {
            (Stub::Forsaken(_), Ok(key)) => {
                self.release_index(&request);
                self.say(&Message::Close { key });
            }
            (Stub::Forsaken(_), Err(_)) => self.release_index(&request),
            (Stub::Asked(_) | Stub::Held(_), Ok(key))
                if reply.sockname.as_ref().is_some_and(|name| !is_right_port(&request, name.port)) =>
            {
                self.release_index(&request);
                self.say(&Message::Close { key });
                self.events.push_back(WorkerEvent::Refused { listen, errno: EADDRINUSE });
            }
            (Stub::Asked(_) | Stub::Held(_), Ok(key)) => {
                self.stubs.insert(listen, (request, Stub::Held(key)));
                self.events.push_back(match handle {
                    Some(socket) => WorkerEvent::Shared { listen, socket, data: reply.data },
                    None => WorkerEvent::Granted { listen, address: reply.sockname, data: reply.data },
                });
            }
            (Stub::Asked(_) | Stub::Held(_), Err(errno)) => {
                self.release_index(&request);
                self.events.push_back(WorkerEvent::Refused { listen, errno });
            }
        }
    }

    fn handle_offer(&mut self, seq: Seq, key: &str, connection: C) {
        let offer = Offer(seq);
        let held = self.stubs.iter().find(|(_, (_, stub))| matches!(stub, Stub::Held(own) if own == key));
        match held {
            Some((&listen, _)) => {
                self.offers.insert(offer, listen);
                self.events.push_back(WorkerEvent::Connection { listen, offer, connection });
            }
            None => {
                // BEFORE the answer our copy is closed: the primary gives its own to another worker (I2).
                drop(connection);
                self.say(&Message::Reply(Reply::answer(seq, false)));
            }
        }
    }

    fn release_index(&mut self, request: &ListenRequest) {
        let address = address_of(request);
        if let Some((_, live)) = self.indexes.get_mut(&address) {
            *live -= 1;
            if *live == 0 {
                self.indexes.remove(&address);
            }
        }
    }

    fn say(&mut self, message: &Message) -> Seq {
        let seq = Seq(self.next_seq);
        if self.open {
            self.next_seq += 1;
            self.outbox.push_with(None, |out| crate::wire::encode(message, seq, out));
        }
        seq
    }
}

const EINVAL: i32 = 22;
const EADDRINUSE: i32 = 98;

fn is_right_port(request: &ListenRequest, port: u16) -> bool {
    request.port.is_none_or(|wanted| wanted <= 0 || wanted == i32::from(port))
}

/// What requests are counted by: the key without the index.
fn address_of(request: &ListenRequest) -> String {
    ListenRequest { index: Some(0), ..request.clone() }.key()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Family;

    fn said(worker: &mut Worker<u32>) -> String {
        let mut all = Vec::new();
        while let Some(next) = worker.poll_transmit() {
            let bytes = next.bytes.to_vec();
            worker.handle_sent(bytes.len());
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }

    fn request(port: i32) -> ListenRequest {
        ListenRequest { port: Some(port), family: Some(Family::Tcp4), ..ListenRequest::default() }
    }

    #[test]
    fn online_comes_first_and_a_listen_call_is_answered() {
        let mut worker: Worker<u32> = Worker::new(Serialization::Json, 1 << 20, 1 << 20);
        let listen = worker.listen(request(0));
        let lines = said(&mut worker);
        assert!(lines.starts_with(r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#), "{lines}");
        assert!(lines.contains(r#""act":"queryServer""#));
        worker
            .handle_bytes(
                concat!(
                    r#"{"cmd":"NODE_CLUSTER","errno":null,"key":"k","ack":1,"data":null,"#,
                    r#""sockname":{"address":"127.0.0.1","family":"IPv4","port":8124},"seq":0}"#,
                    "\n"
                )
                .as_bytes(),
                [],
            )
            .unwrap();
        match worker.poll_event() {
            Some(WorkerEvent::Granted { listen: granted, address: Some(name), .. }) => {
                assert_eq!((granted, name.port), (listen, 8124));
            }
            other => panic!("{other:?}"),
        }
        worker.listening(listen, Some(8124));
        assert!(said(&mut worker).contains(r#""act":"listening""#));
    }

    #[test]
    fn an_offer_is_answered_by_the_application_or_refused_when_it_closes() {
        let mut worker: Worker<u32> = Worker::new(Serialization::Json, 1 << 20, 1 << 20);
        let listen = worker.listen(request(0));
        let reply = "{\"cmd\":\"NODE_CLUSTER\",\"errno\":null,\"key\":\"k\",\"ack\":1,\"seq\":0}\n";
        worker.handle_bytes(reply.as_bytes(), []).unwrap();
        said(&mut worker);
        for (seq, fd) in [(2, 70), (3, 71)] {
            let line = format!(
                "{{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"k\",\"seq\":{seq}}}}}\n"
            );
            worker.handle_bytes(line.as_bytes(), [fd]).unwrap();
        }
        assert_eq!(said(&mut worker).matches("NODE_HANDLE_ACK").count(), 2, "receipts do not wait");
        let offers: Vec<Offer> = std::iter::from_fn(|| worker.poll_event())
            .filter_map(|event| match event {
                WorkerEvent::Connection { offer, listen: of, .. } => {
                    assert_eq!(of, listen);
                    Some(offer)
                }
                _ => None,
            })
            .collect();
        assert!(worker.accept(offers[0]));
        assert!(!worker.accept(offers[0]), "once");
        assert!(said(&mut worker).contains(r#""ack":2,"accepted":true"#));
        worker.close(listen);
        let lines = said(&mut worker);
        assert!(lines.contains(r#""ack":3,"accepted":false"#), "{lines}");
        assert!(lines.contains(r#""act":"close""#), "{lines}");
    }

    #[test]
    fn the_ordinal_counts_and_restarts() {
        let mut worker: Worker<u32> = Worker::new(Serialization::Json, 1 << 20, 1 << 20);
        let first = worker.listen(request(0));
        let second = worker.listen(request(0));
        assert!(said(&mut worker).contains(r#""index":1"#));
        for (ack, key) in [(1, "a"), (2, "b")] {
            let reply = format!(
                "{{\"cmd\":\"NODE_CLUSTER\",\"errno\":null,\"key\":\"{key}\",\"ack\":{ack},\"seq\":0}}\n"
            );
            worker.handle_bytes(reply.as_bytes(), []).unwrap();
        }
        worker.close(first);
        worker.close(second);
        said(&mut worker);
        worker.listen(request(0));
        assert!(said(&mut worker).contains(r#""index":0"#));
    }
}
