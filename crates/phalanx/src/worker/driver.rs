//! The channel of this worker, and the state machine behind it, in a task of the library's own thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use phalanx_core::wire::{DEFAULT_MAX_MESSAGE, Envelope, Family, ListenRequest, Payload, Serialization};
use phalanx_core::{Carried, Listen, SendError, Worker as Core, WorkerEvent};
use phalanx_os::{Channel, LocalAddress, RecvError, SendError as Unsent, SocketKind, conn, listener};
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::inbox::Inbox;
use super::queue::Queue;
use crate::message::{Attached, Content};
use crate::settings::Orphans;
use crate::watch::watch;

/// The most that waits to be written before [`send`](super::Worker::send) waits.
const OUTBOX_MAX: usize = 1 << 20;
/// How long a worker that leaves waits for the primary's answer.
const RELEASE_BOUND: Duration = Duration::from_secs(5);
/// ETOOMANYREFS goes away without a sign.
const RETRY: Duration = Duration::from_millis(10);
/// A worker's listen() must not make the backlog of the common socket smaller than the primary made it.
const BACKLOG: u32 = 4096;
/// Reads at a stretch, so that a talkative primary does not keep commands waiting.
const READS: usize = 16;

const EADDRINUSE: i32 = 98;
const EOPNOTSUPP: i32 = 95;

/// What other threads ask of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// A listener is wanted.
    Listen { request: ListenRequest, reply: oneshot::Sender<io::Result<Grant>> },
    /// This runtime accepts for the listener.
    Runs(Listen, Runtime),
    /// Every runtime that accepts has run a task.
    Beat,
    /// The application took connections from the queue of this listener.
    Taken(Listen),
    /// The application dropped the listener.
    Close(Listen),
    /// A message to the primary, when there is room.
    Send(Letter),
    /// A message to the primary, if there is room.
    TrySend(Payload, std::sync::mpsc::SyncSender<Result<(), SendError>>),
    /// Answered when everything before it is written, or never can be.
    Flush(oneshot::Sender<()>),
    /// The worker is ready.
    Ready,
    /// The keys of TLS session tickets are wanted.
    #[cfg(feature = "rustls")]
    TicketKeys,
    /// A signal asks this process to end.
    Drain,
    /// The worker leaves; answered when the channel is closed.
    Leave(oneshot::Sender<()>),
    /// The process ends as soon as the primary can know that this is meant.
    Kill(std::sync::mpsc::Sender<()>),
}

/// A message to the primary.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) message: Payload,
    pub(crate) handle: Option<(Envelope, OwnedFd)>,
    pub(crate) sent: oneshot::Sender<Result<(), SendError>>,
}

/// The way to the driver.
pub(crate) type Commands = mpsc::UnboundedSender<Command>;

/// A listener that the primary granted.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Gives it up when dropped.
    pub(crate) ticket: Ticket,
    /// Where connections are offered.
    pub(crate) queue: Arc<Queue>,
    /// The socket itself, if it is shared.
    pub(crate) socket: Option<OwnedFd>,
    /// The real address, of an IP listener.
    pub(crate) address: Option<SocketAddr>,
    /// What the first worker brought along.
    pub(crate) data: Option<Value>,
}

/// The right to a listener. Dropping it gives the listener up.
#[derive(Debug)]
pub(crate) struct Ticket {
    listen: Listen,
    commands: Commands,
}

impl Ticket {
    /// Connections were taken from the queue.
    pub(crate) fn taken(&self) {
        let _ = self.commands.send(Command::Taken(self.listen));
    }

    /// The runtime that this is called in accepts: if it stands still, so does the listener.
    pub(crate) fn runs_here(&self) {
        if let Ok(runtime) = Runtime::try_current() {
            let _ = self.commands.send(Command::Runs(self.listen, runtime));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Close(self.listen));
    }
}

/// The answer to a heartbeat, given when the last task drops it. A runtime that has ended drops it as well: nobody
/// waits for that one.
#[derive(Debug)]
struct Beat(Commands);

impl Drop for Beat {
    fn drop(&mut self) {
        let _ = self.0.send(Command::Beat);
    }
}

#[derive(Debug)]
struct End(Channel);

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[derive(Debug)]
struct Entry {
    request: ListenRequest,
    queue: Arc<Queue>,
    reply: Option<oneshot::Sender<io::Result<Grant>>>,
    /// What accepts, if it is a runtime.
    runtime: Option<Runtime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Idle,
    /// The channel is full.
    Full,
    /// Too many handles are in flight.
    Later,
    /// The primary is gone; the end will be read soon.
    Over,
}

#[derive(Debug)]
struct Driver {
    core: Core<OwnedFd>,
    channel: Option<AsyncFd<End>>,
    own: Commands,
    inbox: Arc<Inbox>,
    listeners: BTreeMap<Listen, Entry>,
    /// Messages that wait for room.
    letters: VecDeque<Letter>,
    writing: Writing,
    draining: bool,
    /// Until when the primary may answer that this worker leaves.
    leave_by: Option<Instant>,
    left: Vec<oneshot::Sender<()>>,
    flushed: Vec<oneshot::Sender<()>>,
    killed: Vec<std::sync::mpsc::Sender<()>>,
}

/// Starts the driver of this channel. To be called in the runtime of the library's thread.
pub(crate) fn start(
    channel: Channel,
    serialization: Serialization,
    inbox: Arc<Inbox>,
) -> io::Result<Commands> {
    let (own, commands) = mpsc::unbounded_channel();
    let driver = Driver {
        core: Core::new(serialization, DEFAULT_MAX_MESSAGE, OUTBOX_MAX),
        channel: Some(watch(End(channel), Interest::READABLE)?),
        own: own.clone(),
        inbox,
        listeners: BTreeMap::new(),
        letters: VecDeque::new(),
        writing: Writing::Idle,
        draining: false,
        leave_by: None,
        left: Vec::new(),
        flushed: Vec::new(),
        killed: Vec::new(),
    };
    tokio::spawn(driver.run(commands));
    Ok(own)
}

/// Waits until a full channel has room. It is registered for that on a copy of the fd and only while it is
/// full: or every message that the primary reads would wake this thread.
async fn room(channel: &AsyncFd<End>) {
    match channel.get_ref().0.as_fd().try_clone_to_owned().and_then(|copy| watch(copy, Interest::WRITABLE)) {
        Ok(copy) => drop(copy.writable().await),
        // Out of fds: nothing will tell, so look again.
        Err(_) => sleep(RETRY).await,
    }
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            self.flush();
            while self.send_waiting() {
                self.flush();
            }
            self.settle();
            let Some(channel) = &self.channel else {
                match commands.recv().await {
                    Some(command) => self.command(command),
                    None => return,
                }
                continue;
            };
            let leave_by = self.leave_by;
            let far = Instant::now() + RELEASE_BOUND;
            tokio::select! {
                ready = channel.readable() => {
                    let failed = ready.is_err();
                    drop(ready);
                    if failed { self.ended() } else { self.read(&mut buffer) }
                }
                () = room(channel), if self.writing == Writing::Full => {}
                () = sleep(RETRY), if self.writing == Writing::Later => {}
                () = sleep_until(leave_by.unwrap_or(far)), if leave_by.is_some() => self.close_channel(),
                command = commands.recv() => if let Some(command) = command { self.command(command) },
            }
        }
    }

    /// Writes what can be written now.
    fn flush(&mut self) {
        let Some(channel) = &self.channel else { return };
        if self.writing == Writing::Over {
            return;
        }
        self.writing = loop {
            let Some(next) = self.core.poll_transmit() else { break Writing::Idle };
            let handle = match &next.carried {
                Some(Carried::Handle(handle)) => Some(handle.as_fd()),
                Some(Carried::Socket(_)) | None => None,
            };
            match channel.get_ref().0.send(next.bytes, handle) {
                Ok(bytes) => self.core.handle_sent(bytes),
                Err(Unsent::WouldBlock) => break Writing::Full,
                Err(Unsent::TooManyInFlight) => break Writing::Later,
                Err(Unsent::Closed) => break Writing::Over,
                Err(error) => {
                    tracing::error!(%error, "cannot write to the primary");
                    break Writing::Over;
                }
            }
        };
    }

    /// Sends what has waited for room. Whether anything was sent.
    fn send_waiting(&mut self) -> bool {
        let mut any = false;
        while self.core.can_send() != Err(SendError::Full) {
            let Some(Letter { message, handle, sent }) = self.letters.pop_front() else { break };
            // Nobody waits any more for one that was given up.
            if !sent.is_closed() {
                any = true;
                let _ = sent.send(self.core.send(message, handle));
            }
        }
        any
    }

    /// What follows once everything is written, or can never be.
    fn settle(&mut self) {
        let done = self.channel.is_none()
            || self.writing == Writing::Over
            || (self.letters.is_empty() && self.core.is_flushed());
        if !done {
            return;
        }
        for flushed in self.flushed.drain(..) {
            let _ = flushed.send(());
        }
        for killed in self.killed.drain(..) {
            let _ = killed.send(());
        }
        // Draining does NOT close the channel, although all listeners may be gone: servers drop theirs when
        // the drain begins, with requests still running, and the channel's end tells the primary that they
        // have ended. The end of the process says so.
    }

    fn read(&mut self, buffer: &mut [u8]) {
        for _ in 0..READS {
            let Some(channel) = &self.channel else { return };
            let mut handles = Vec::new();
            let received = channel.try_io(Interest::READABLE, |end| {
                end.0.recv(buffer, &mut handles).map_err(|error| match error {
                    RecvError::WouldBlock => io::ErrorKind::WouldBlock.into(),
                    RecvError::Io(error) => error,
                })
            });
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the primary");
                    return self.ended();
                }
            };
            if received.truncated {
                tracing::warn!("handles were lost on the way: too many open files");
            }
            if received.len == 0 {
                return self.ended();
            }
            let Some(bytes) = buffer.get(..received.len) else { return };
            let understood = self.core.handle_bytes(bytes, handles);
            while let Some(event) = self.core.poll_event() {
                self.event(event);
            }
            if let Err(violation) = understood {
                tracing::error!(%violation, "the primary broke the protocol");
                return self.ended();
            }
            // An answer may have made room for what waits.
            self.flush();
        }
    }

    /// The primary is gone.
    fn ended(&mut self) {
        if self.draining {
            return self.close_channel();
        }
        match Orphans::of_this_worker() {
            // CHILD-02: nobody would ever give this process anything to do, or end it.
            Orphans::Exit => exit(),
            Orphans::Drain => {
                self.drain();
                self.close_channel();
                std::thread::spawn(|| {
                    std::thread::sleep(ORPHAN_DRAIN);
                    exit();
                });
            }
            // What it holds itself goes on giving it connections.
            Orphans::Serve => self.close_channel(),
        }
    }

    fn close_channel(&mut self) {
        self.channel = None;
        self.leave_by = None;
        self.core.handle_channel_closed();
        self.inbox.end();
        for entry in self.listeners.values_mut() {
            entry.queue.close();
            if let Some(reply) = entry.reply.take() {
                let _ = reply.send(Err(gone()));
            }
        }
        for left in self.left.drain(..) {
            let _ = left.send(());
        }
    }

    fn event(&mut self, event: WorkerEvent<OwnedFd>) {
        match event {
            WorkerEvent::Granted { listen, address, data } => {
                let address = address.and_then(|name| name.socket_addr());
                self.granted(listen, None, address, data);
            }
            WorkerEvent::Shared { listen, socket, data } => match self.prepare(listen, &socket) {
                Ok(address) => self.granted(listen, Some(socket), address, data),
                Err(error) => {
                    self.core.close(listen);
                    self.refused(listen, error);
                }
            },
            WorkerEvent::Refused { listen, errno } => self.refused(listen, refusal(errno)),
            WorkerEvent::Connection { listen, offer, connection } => {
                let usable =
                    matches!(conn::kind(&connection), SocketKind::TcpStream | SocketKind::UnixStream)
                        && conn::set_nonblocking(&connection, true).is_ok();
                let pushed = match self.listeners.get(&listen) {
                    Some(entry) if usable => entry.queue.push(offer, connection),
                    _ => Err(connection),
                };
                if let Err(connection) = pushed {
                    drop(connection);
                    self.core.refuse(offer);
                }
            }
            #[cfg(feature = "rustls")]
            WorkerEvent::TicketKeys(keys) => crate::tls::renew(&keys),
            #[cfg(not(feature = "rustls"))]
            WorkerEvent::TicketKeys(_) => {}
            WorkerEvent::Disconnect => self.drain(),
            WorkerEvent::Ping => self.beat(),
            WorkerEvent::Message { message, handle } => {
                self.deliver(Content::of(message), handle);
            }
            WorkerEvent::Opaque { bytes, handle } => {
                self.deliver(Content::Opaque(bytes.into()), handle);
            }
            WorkerEvent::Released => self.close_channel(),
            _ => {}
        }
    }

    /// Answers the primary once every runtime that accepts has run a task. This thread alone would prove nothing.
    fn beat(&self) {
        let beat = Arc::new(Beat(self.own.clone()));
        for runtime in self.listeners.values().filter_map(|entry| entry.runtime.as_ref()) {
            let beat = Arc::clone(&beat);
            runtime.spawn(async move { drop(beat) });
        }
    }

    fn deliver(&self, content: Content, handle: Option<OwnedFd>) {
        let handle = handle.and_then(|fd| Attached::received(fd, "primary"));
        self.inbox.deliver(&(content, handle));
    }

    /// Makes a shared socket ready to be used; returns its address.
    fn prepare(&self, listen: Listen, socket: &OwnedFd) -> io::Result<Option<SocketAddr>> {
        let datagrams =
            self.listeners.get(&listen).and_then(|entry| entry.request.family).is_some_and(Family::is_udp);
        if !datagrams {
            listener::listen(socket, BACKLOG)?;
        }
        conn::set_nonblocking(socket, true)?;
        let address = match listener::local_address(socket)? {
            LocalAddress::Inet(address) => Some(address),
            LocalAddress::Unix(_) | LocalAddress::Unnamed => None,
        };
        // Node lends a socket that could not be bound where it was asked for: it listens anywhere (WIRE-16).
        match address {
            Some(address) if !self.core.is_right_port(listen, address.port()) => Err(refusal(EADDRINUSE)),
            address => Ok(address),
        }
    }

    fn granted(
        &mut self,
        listen: Listen,
        socket: Option<OwnedFd>,
        address: Option<SocketAddr>,
        data: Option<Box<serde_json::value::RawValue>>,
    ) {
        let Some(entry) = self.listeners.get_mut(&listen) else { return self.core.close(listen) };
        let only_socket = entry.request.socket || entry.request.family.is_some_and(Family::is_udp);
        if only_socket && socket.is_none() {
            // A Node primary does not know of that wish.
            self.core.close(listen);
            return self.refused(listen, refusal(EOPNOTSUPP));
        }
        let Some(reply) = entry.reply.take() else { return };
        let data = data.and_then(|data| serde_json::from_str(data.get()).ok());
        let ticket = Ticket { listen, commands: self.own.clone() };
        let grant = Grant { ticket, queue: Arc::clone(&entry.queue), socket, address, data };
        self.core.listening(listen, address.map(|address| i32::from(address.port())));
        // Nobody waits any more: the ticket in what comes back closes it.
        drop(reply.send(Ok(grant)));
    }

    fn refused(&mut self, listen: Listen, error: io::Error) {
        if let Some(reply) = self.listeners.remove(&listen).and_then(|entry| entry.reply) {
            let _ = reply.send(Err(error));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Listen { reply, .. } if self.draining || self.channel.is_none() => {
                let _ = reply.send(Err(gone()));
            }
            Command::Listen { request, reply } => {
                let listen = self.core.listen(request.clone());
                let entry = Entry { request, queue: Arc::default(), reply: Some(reply), runtime: None };
                self.listeners.insert(listen, entry);
            }
            Command::Runs(listen, runtime) => {
                if let Some(entry) = self.listeners.get_mut(&listen) {
                    entry.runtime = Some(runtime);
                    // The first answer, unasked, says that there will be more.
                    self.beat();
                }
            }
            Command::Beat => self.core.pong(),
            Command::Taken(listen) => {
                if let Some(entry) = self.listeners.get(&listen) {
                    for offer in entry.queue.taken() {
                        self.core.accept(offer);
                    }
                }
            }
            Command::Close(listen) => {
                if let Some(entry) = self.listeners.remove(&listen) {
                    self.close_listener(listen, &entry.queue);
                }
            }
            Command::Send(letter) => self.letters.push_back(letter),
            Command::TrySend(message, sent) => {
                let full = !self.letters.is_empty();
                let _ = sent.send(if full { Err(SendError::Full) } else { self.core.send(message, None) });
            }
            Command::Flush(flushed) => self.flushed.push(flushed),
            Command::Ready => self.core.notify_ready(),
            #[cfg(feature = "rustls")]
            Command::TicketKeys => self.core.ask_ticket_keys(),
            Command::Drain => self.drain(),
            Command::Leave(left) if self.channel.is_none() => {
                let _ = left.send(());
            }
            Command::Leave(left) => {
                self.left.push(left);
                self.drain();
                self.core.notify_leave();
                self.leave_by.get_or_insert_with(|| Instant::now() + RELEASE_BOUND);
            }
            Command::Kill(killed) => {
                self.core.notify_leave();
                self.killed.push(killed);
            }
        }
    }

    /// What the application took is answered so; all else goes back, after our copies are closed.
    fn close_listener(&mut self, listen: Listen, queue: &Queue) {
        for offer in queue.close() {
            self.core.accept(offer);
        }
        self.core.close(listen);
    }

    fn drain(&mut self) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        let open: Vec<(Listen, Arc<Queue>)> =
            self.listeners.iter().map(|(listen, entry)| (*listen, Arc::clone(&entry.queue))).collect();
        for (listen, queue) in open {
            self.close_listener(listen, &queue);
            if self.listeners.get(&listen).is_some_and(|entry| entry.reply.is_some()) {
                self.refused(listen, gone());
            }
        }
        self.core.notify_draining();
        crate::drain::begin();
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "this worker is leaving its cluster")
}

fn refusal(errno: i32) -> io::Error {
    if errno == EOPNOTSUPP {
        return io::Error::new(io::ErrorKind::Unsupported, "the primary cannot lend the socket itself");
    }
    io::Error::from_raw_os_error(errno)
}

/// How long a worker without its primary may drain.
const ORPHAN_DRAIN: Duration = Duration::from_secs(5);

#[expect(clippy::exit, reason = "a worker without its primary ends at once")]
fn exit() -> ! {
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use crate::background::{self, block_on};

    /// A primary by hand.
    struct Primary {
        bytes: UnixStream,
        channel: Channel,
        heard: String,
    }

    impl Primary {
        fn hear(&mut self, what: &str) {
            while !self.heard.contains(what) {
                let mut buffer = [0; 4096];
                let len = self.bytes.read(&mut buffer).unwrap();
                assert_ne!(len, 0, "the worker went away; it had said {}", self.heard);
                self.heard.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
            }
        }

        fn say(&mut self, line: &str) {
            self.channel.send(format!("{line}\n").as_bytes(), None).unwrap();
        }
    }

    #[test]
    fn a_connection_is_the_applications_once_it_is_taken() {
        let (ours, theirs) = Channel::pair().unwrap();
        let bytes = UnixStream::from(theirs.try_clone().unwrap());
        let mut primary = Primary { bytes, channel: Channel::from_fd(theirs).unwrap(), heard: String::new() };
        primary.bytes.set_nonblocking(false).unwrap();
        let inbox = Arc::new(Inbox::default());
        let commands = {
            let _inside = background::handle().unwrap().enter();
            start(ours, Serialization::Json, Arc::clone(&inbox)).unwrap()
        };
        primary.hear("online");

        let (reply, answer) = oneshot::channel();
        let request = ListenRequest {
            address: Some("127.0.0.1".into()),
            port: Some(0),
            family: Some(Family::Tcp4),
            ..ListenRequest::default()
        };
        commands.send(Command::Listen { request, reply }).unwrap();
        primary.hear("queryServer");
        primary.say(concat!(
            r#"{"cmd":"NODE_CLUSTER","errno":null,"key":"k","ack":1,"data":null,"#,
            r#""sockname":{"address":"127.0.0.1","family":"IPv4","port":8124},"seq":0}"#
        ));
        let grant = block_on(answer).unwrap().unwrap();
        assert_eq!(grant.address, Some("127.0.0.1:8124".parse().unwrap()));
        primary.hear(r#""act":"listening""#);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Vec::new();
        for seq in [2, 3] {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let connection = OwnedFd::from(listener.accept().unwrap().0);
            let line = format!(
                "{{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"k\",\"seq\":{seq}}}}}\n"
            );
            primary.channel.send(line.as_bytes(), Some(connection.as_fd())).unwrap();
        }
        let taken = block_on(std::future::poll_fn(|cx| grant.queue.poll_take(cx)));
        // Nobody told the driver: closing finds out what was taken.
        drop(grant);
        primary.hear(r#""ack":2,"accepted":true"#);
        primary.hear(r#""ack":3,"accepted":false"#);
        primary.hear(r#""act":"close""#);
        let mut served = TcpStream::from(taken);
        served.write_all(b"x").unwrap();
        clients[0].read_exact(&mut [0]).unwrap();

        primary.say(r#"{"hello":1}"#);
        let mut messages = inbox.subscribe();
        assert_eq!(messages.blocking_recv().unwrap().0, Content::Json(serde_json::json!({"hello": 1})));
        let (sent, answer) = oneshot::channel();
        let message = Payload::encode("there").unwrap();
        commands.send(Command::Send(Letter { message, handle: None, sent })).unwrap();
        block_on(answer).unwrap().unwrap();
        primary.hear("\"there\"\n");
        // The end of the channel would end this very process.
        std::mem::forget(primary);
    }
}
