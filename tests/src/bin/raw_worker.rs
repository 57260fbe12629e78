//! The hostile worker: speaks Node's JSON lines by itself, well or badly.
//!
//! `raw_worker --help` says what it can do. It runs under a real Node primary
//! (`NODE_CHANNEL_FD`) and under phalanx (`PHALANX_CHANNEL=FD:PID`), and shares no
//! code with either, so that one mistake cannot hide another.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use phalanx_tests::raw;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const HELP: &str = "\
raw_worker [--mode MODE] [--port PORT | --unix PATH] [OPTION…]

Options that it does not know are ignored, as are other arguments.

  --mode MODE       how to behave, see below; default `serve`
  --port PORT       TCP port to ask for on 127.0.0.1 (0: any); default 0
  --unix PATH       ask for a Unix socket instead
  --first-only FILE misbehave only if FILE does not exist, and make it: the
                    successor serves
  --only-slot N     misbehave only in the slot (PHALANX_SLOT) N
  --after N         misbehave after N well treated connections; default 0
  --at WHEN         for what is sent at once: `online`, `listening` (default)
  --label TEXT      the value of x-worker; default the pid
  --code N          exit code of the modes that exit; default 3

Well behaved:
  serve             listen, acknowledge, answer
At a point of its life:
  exit-before-online, exit-after-online, query-then-exit, never-online
  exit-listening    exits when it listens
With a connection that was handed over:
  recv-then-die     SIGKILL to itself, nothing acknowledged, nothing read
  read4-then-die    reads 4 bytes, then the same
  ack-then-die      acknowledges the descriptor, then SIGKILL
  accept-then-die   acknowledges and accepts, then SIGKILL
  accept4-then-die  acknowledges and accepts, reads 4 bytes, then SIGKILL
  ack-burst-then-die serves --after N, then as accept-then-die without reading on
  never-ack         takes it and says nothing
  serve-never-ack   answers the client and says nothing to the primary
  ack-blackhole     acknowledges, accepts, never answers the client
  refuse-all        acknowledges, accepted:false
  nack-all          NODE_HANDLE_NACK
Towards the channel:
  garbage           lines that are no JSON
  oversized         an endless line of up to 200 MiB
  bad-utf8          control and other lines with bytes that are no UTF-8
  deep-nesting      100,000 open brackets
  dup-query         the same queryServer twice, then contradictory ones
  wild-acks         acks of requests that never were, unknown acts
  surplus-ack       NODE_HANDLE_ACK that nobody waits for
  fd-bomb           253 descriptors a message, as many messages as fit (at most 278)
  wrong-fd          a regular file and an eventfd as handles
  close-channel     closes the channel and stays
  shutdown-read, shutdown-write  closes one direction and stays
  never-read        does not read the channel any more
  flood             valid small messages, as fast as they go (at most 64 MiB)
Towards signals and load:
  ignore-term       SIGTERM does nothing; the disconnect order neither
  spin              an endless loop when the first connection comes
  abort             aborts when the first connection comes
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(e) => {
            say(&e);
            ExitCode::from(70)
        }
    }
}

/// For the log of a test; a reader that has gone changes nothing.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "raw_worker {}: {text}", std::process::id());
}

fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

struct Options {
    mode: String,
    query: Value,
    after: u64,
    at_online: bool,
    label: String,
    code: u8,
}

fn options() -> Option<Options> {
    let mut mode = std::env::var("RAW_MODE").unwrap_or_else(|_| "serve".into());
    let (mut port, mut unix) = (0_u16, None);
    let (mut first_only, mut only_slot) = (None, None);
    let (mut after, mut at_online, mut label, mut code) = (0, false, std::process::id().to_string(), 3);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--help" {
            return None;
        }
        let name = arg.as_str();
        if ![
            "--mode",
            "--port",
            "--unix",
            "--first-only",
            "--only-slot",
            "--after",
            "--at",
            "--label",
            "--code",
        ]
        .contains(&name)
        {
            continue;
        }
        let value = args.next()?;
        match name {
            "--mode" => mode = value,
            "--port" => port = value.parse().ok()?,
            "--unix" => unix = Some(value),
            "--first-only" => first_only = Some(PathBuf::from(value)),
            "--only-slot" => only_slot = Some(value),
            "--after" => after = value.parse().ok()?,
            "--at" => at_online = value == "online",
            "--label" => label = value,
            _ => code = value.parse().ok()?,
        }
    }
    // The slot BEFORE the marker: a worker that may not misbehave must not take the only turn.
    let behaves = only_slot.is_some() && std::env::var("PHALANX_SLOT").ok() != only_slot;
    if behaves || first_only.is_some_and(|file| std::fs::File::create_new(&file).is_err()) {
        mode = "serve".into();
    }
    let query = match unix {
        Some(path) => json!({"address": path, "port": -1, "addressType": -1, "backlog": 0}),
        None => json!({"address": "127.0.0.1", "port": port, "addressType": 4, "flags": 0, "backlog": 0}),
    };
    Some(Options { mode, query, after, at_online, label, code })
}

/// The channel, by either of its names.
fn channel() -> Result<OwnedFd, String> {
    let number = if let Ok(text) = std::env::var("NODE_CHANNEL_FD") {
        text
    } else {
        let text = std::env::var("PHALANX_CHANNEL").map_err(|_| "no channel in the environment")?;
        let (fd, pid) = text.split_once(':').ok_or("PHALANX_CHANNEL is not FD:PID")?;
        if pid != std::process::id().to_string() {
            return Err("PHALANX_CHANNEL is for somebody else".into());
        }
        fd.to_owned()
    };
    let fd = number.parse().map_err(|_| format!("channel {number:?} is no number"))?;
    let fd = raw::inherited(fd).map_err(|e| format!("channel {fd}: {e}"))?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(|e| format!("channel: {e}"))?;
    Ok(fd)
}

fn run() -> Result<ExitCode, String> {
    let Some(options) = options() else {
        let _ = io::stdout().write_all(HELP.as_bytes());
        return Ok(ExitCode::SUCCESS);
    };
    if options.mode == "exit-before-online" {
        return Ok(ExitCode::from(options.code));
    }
    // Only its handler is wanted, no loop of tokio ever runs.
    let keep = if options.mode == "ignore-term" {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        let signal = {
            let _inside = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        };
        Some((runtime, signal.map_err(|e| e.to_string())?))
    } else {
        None
    };
    let mut worker = Worker {
        options,
        channel: Some(channel()?),
        input: Vec::new(),
        position: 0,
        handles: VecDeque::new(),
        seq: 0,
        pending: BTreeMap::new(),
        keys: BTreeMap::new(),
        connections: Vec::new(),
        held: Vec::new(),
        served: 0,
        leaving: false,
        deaf: false,
    };
    let code = worker.live().map_err(|e| e.to_string());
    drop(keep);
    code
}

struct Connection {
    fd: OwnedFd,
    input: Vec<u8>,
}

struct Worker {
    options: Options,
    channel: Option<OwnedFd>,
    input: Vec<u8>,
    /// Stream offset of the first byte of `input`.
    position: u64,
    /// Descriptors, with the offset of the line that each belongs to.
    handles: VecDeque<(u64, OwnedFd)>,
    seq: u64,
    /// Open requests by `seq`.
    pending: BTreeMap<u64, Value>,
    /// Keys, with our own copy of the socket if it is shared.
    keys: BTreeMap<String, Option<OwnedFd>>,
    connections: Vec<Connection>,
    held: Vec<OwnedFd>,
    served: u64,
    leaving: bool,
    /// Does not read the channel any more.
    deaf: bool,
}

type Step = Result<Option<ExitCode>, io::Error>;

impl Worker {
    fn is(&self, mode: &str) -> bool {
        self.options.mode == mode
    }

    fn live(&mut self) -> Result<ExitCode, io::Error> {
        if !self.is("never-online") {
            self.cluster(json!({"act": "online"}))?;
            if self.is("exit-after-online") {
                return Ok(ExitCode::from(self.options.code));
            }
            if self.options.at_online {
                self.misbehave()?;
            }
            self.query(0)?;
            if self.is("query-then-exit") {
                return Ok(ExitCode::from(self.options.code));
            }
            if self.is("dup-query") {
                self.repeat_queries()?;
            }
        }
        loop {
            if let Some(code) = self.turn()? {
                return Ok(code);
            }
        }
    }

    /// One round of the loop.
    fn turn(&mut self) -> Step {
        enum Who {
            Channel,
            Key(String),
            Connection(usize),
        }
        let mut who = Vec::new();
        let ready: Vec<usize> = {
            let mut set = Vec::new();
            if let Some(channel) = self.channel.as_ref().filter(|_| !self.deaf) {
                set.push(PollFd::new(channel, PollFlags::IN));
                who.push(Who::Channel);
            }
            for (key, socket) in &self.keys {
                if let Some(socket) = socket {
                    set.push(PollFd::new(socket, PollFlags::IN));
                    who.push(Who::Key(key.clone()));
                }
            }
            for (n, connection) in self.connections.iter().enumerate() {
                set.push(PollFd::new(&connection.fd, PollFlags::IN));
                who.push(Who::Connection(n));
            }
            match poll(&mut set, None) {
                Err(Errno::INTR) => return Ok(None),
                other => other?,
            };
            (0..set.len()).filter(|n| !set[*n].revents().is_empty()).collect()
        };
        // From the back, so that the numbers of connections stay right.
        for n in ready.into_iter().rev() {
            match &who[n] {
                Who::Connection(n) => self.read_request(*n)?,
                Who::Key(key) => {
                    let accepted = match self.keys.get(key) {
                        Some(Some(socket)) => {
                            rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                        }
                        _ => continue,
                    };
                    match accepted {
                        Ok(fd) => self.serve(fd),
                        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Who::Channel => {
                    if let Some(code) = self.read_channel()? {
                        return Ok(Some(code));
                    }
                }
            }
        }
        Ok(self.gone())
    }

    /// Whether the last connection of a leaving worker has ended.
    fn gone(&mut self) -> Option<ExitCode> {
        (self.leaving && self.connections.is_empty()).then_some(ExitCode::SUCCESS)
    }

    // ------------------------------------------------------------ sending

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_with(bytes, &[])
    }

    /// Sends all of it, the descriptors with its first byte. A channel that has
    /// gone is found out by reading.
    fn send_with(&mut self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let mut fds = fds;
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let sent =
                rustix::net::sendmsg(channel, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
            match sent {
                Ok(n) => {
                    bytes = &bytes[n..];
                    fds = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(channel, PollFlags::OUT)], None)?;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        self.send(format!("{value}\n").as_bytes())
    }

    fn cluster(&mut self, mut body: Value) -> io::Result<u64> {
        let seq = self.seq;
        self.seq += 1;
        body["cmd"] = "NODE_CLUSTER".into();
        body["seq"] = seq.into();
        self.line(&body)?;
        Ok(seq)
    }

    fn query(&mut self, index: u64) -> io::Result<()> {
        let mut query = self.options.query.clone();
        query["act"] = "queryServer".into();
        query["index"] = index.into();
        query["data"] = Value::Null;
        let seq = self.cluster(query.clone())?;
        self.pending.insert(seq, query);
        Ok(())
    }

    fn repeat_queries(&mut self) -> io::Result<()> {
        self.query(0)?;
        let (good, seq) = (self.options.query.clone(), self.seq);
        for (field, value) in
            [("addressType", json!(6)), ("port", json!("no port")), ("address", json!(["a"]))]
        {
            let mut bad = good.clone();
            bad[field] = value;
            bad["act"] = "queryServer".into();
            bad["index"] = 0.into();
            self.cluster(bad)?;
        }
        // The very same request with the same number.
        let mut same = good;
        same["cmd"] = "NODE_CLUSTER".into();
        same["act"] = "queryServer".into();
        same["index"] = 0.into();
        same["seq"] = seq.into();
        self.line(&same)?;
        self.cluster(json!({"act": "close", "key": "a key that never was"}))?;
        Ok(())
    }

    // ------------------------------------------------------------ receiving

    fn read_channel(&mut self) -> Step {
        let Some(channel) = &self.channel else { return Ok(None) };
        let mut bytes = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = match rustix::net::recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
        {
            Ok(it) => it.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(Errno::CONNRESET) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got == 0 {
            self.channel = None;
            if self.is("ignore-term") {
                return Ok(None);
            }
            self.leaving = true;
            self.keys.clear();
            // An orphan must not keep serving.
            return Ok(Some(ExitCode::SUCCESS));
        }
        // A descriptor belongs to the last line that begins inside its chunk.
        let chunk = &bytes[..got];
        let begin = self.position + self.input.len() as u64;
        let mut owner = if self.input.is_empty() { Some(begin) } else { None };
        for (at, byte) in chunk.iter().enumerate() {
            if *byte == b'\n' && at + 1 < got {
                owner = Some(begin + at as u64 + 1);
            }
        }
        self.handles.extend(fds.into_iter().map(|fd| (owner.unwrap_or(begin), fd)));
        self.input.extend_from_slice(chunk);
        while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let at = self.position;
            self.position += line.len() as u64;
            let mut handle = None;
            while self.handles.front().is_some_and(|(owner, _)| *owner <= at) {
                let (owner, fd) = self.handles.pop_front().expect("looked at");
                if owner == at {
                    handle = Some(fd);
                }
            }
            if self.is("never-online") {
                continue;
            }
            let value: Value = serde_json::from_slice(&line).map_err(io::Error::other)?;
            if let Some(code) = self.message(&value, handle)? {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    fn message(&mut self, value: &Value, handle: Option<OwnedFd>) -> Step {
        match value["cmd"].as_str() {
            Some("NODE_HANDLE") => {
                let mut inner = &value["msg"];
                while inner["cmd"] == "NODE_HANDLE" {
                    inner = &inner["msg"];
                }
                let Some(fd) = handle else {
                    self.line(&json!({"cmd": "NODE_HANDLE_NACK"}))?;
                    return Ok(None);
                };
                if inner["act"] == "newconn" {
                    return self.newconn(inner, fd);
                }
                self.line(&json!({"cmd": "NODE_HANDLE_ACK"}))?;
                self.plain(inner, Some(fd))
            }
            _ => self.plain(value, handle),
        }
    }

    fn plain(&mut self, value: &Value, handle: Option<OwnedFd>) -> Step {
        if value["cmd"] != "NODE_CLUSTER" {
            let internal = value["cmd"].as_str().is_some_and(|it| it.len() > 5 && it.starts_with("NODE_"));
            if !internal {
                self.line(&json!({"echo": value}))?;
            }
            return Ok(None);
        }
        if let Some(query) = value["ack"].as_u64().and_then(|it| self.pending.remove(&it)) {
            return self.reply(query, value, handle);
        }
        if value["act"] == "disconnect" && !self.is("ignore-term") {
            for (key, _socket) in std::mem::take(&mut self.keys) {
                self.cluster(json!({"act": "close", "key": key}))?;
            }
            self.leaving = true;
        }
        Ok(None)
    }

    fn reply(&mut self, query: Value, reply: &Value, handle: Option<OwnedFd>) -> Step {
        if let Some(errno) = reply["errno"].as_i64().filter(|it| *it != 0) {
            say(&format!("listen: {}", io::Error::from_raw_os_error(i32::try_from(-errno).unwrap_or(0))));
            return Ok(None);
        }
        let mut port = query["port"].clone();
        if let Some(socket) = &handle {
            rustix::net::listen(socket, 511)?;
            if let Ok(addr) = std::net::SocketAddr::try_from(rustix::net::getsockname(socket)?) {
                port = addr.port().into();
            }
        } else if let Some(it) = reply["sockname"].get("port") {
            port = it.clone();
        }
        let how = if handle.is_some() { "shared" } else { "handed over" };
        self.keys.insert(reply["key"].as_str().unwrap_or_default().to_owned(), handle);
        let mut listening = query;
        listening["act"] = "listening".into();
        listening["port"] = port.clone();
        self.cluster(listening)?;
        say(&format!("listening {port} ({how})"));
        if self.is("exit-listening") {
            return Ok(Some(ExitCode::from(self.options.code)));
        }
        if !self.options.at_online {
            self.misbehave()?;
        }
        Ok(None)
    }

    // ------------------------------------------------------------ connections

    fn newconn(&mut self, message: &Value, fd: OwnedFd) -> Step {
        let ack = json!({"cmd": "NODE_HANDLE_ACK"});
        let accepted = |yes: bool| json!({"ack": message["seq"], "accepted": yes});
        let known = message["key"].as_str().is_some_and(|it| self.keys.contains_key(it));
        let bad = self.served >= self.options.after;
        let mode = if bad { self.options.mode.clone() } else { "serve".into() };
        match mode.as_str() {
            "recv-then-die" => die(),
            "read4-then-die" => {
                read4(&fd);
                die();
            }
            "ack-then-die" => {
                self.line(&ack)?;
                die();
            }
            "accept-then-die" | "accept4-then-die" | "ack-burst-then-die" => {
                self.line(&ack)?;
                self.cluster(accepted(true))?;
                if mode == "accept4-then-die" {
                    read4(&fd);
                }
                die();
            }
            "never-ack" => self.held.push(fd),
            "serve-never-ack" => self.serve(fd),
            "ack-blackhole" => {
                self.line(&ack)?;
                self.cluster(accepted(true))?;
                self.held.push(fd);
            }
            "refuse-all" => {
                self.line(&ack)?;
                drop(fd);
                self.cluster(accepted(false))?;
            }
            "nack-all" => {
                drop(fd);
                self.line(&json!({"cmd": "NODE_HANDLE_NACK"}))?;
            }
            _ => {
                self.line(&ack)?;
                let yes = known && !self.leaving;
                self.cluster(accepted(yes))?;
                if yes {
                    self.serve(fd);
                }
            }
        }
        Ok(None)
    }

    /// Takes a connection in, from wherever it came.
    fn serve(&mut self, fd: OwnedFd) {
        match self.options.mode.as_str() {
            "spin" if self.served >= self.options.after => loop {
                std::hint::spin_loop();
            },
            "abort" if self.served >= self.options.after => std::process::abort(),
            _ => {}
        }
        self.served += 1;
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        self.connections.push(Connection { fd, input: Vec::new() });
    }

    fn read_request(&mut self, n: usize) -> io::Result<()> {
        let mut bytes = [0; 8192];
        let connection = &mut self.connections[n];
        match rustix::io::read(&connection.fd, &mut bytes) {
            Ok(got) if got > 0 => connection.input.extend_from_slice(&bytes[..got]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            _ => {
                self.connections.swap_remove(n);
                return Ok(());
            }
        }
        // The whole request first: closing with unread bytes would reset the client.
        while let Some(end) = connection.input.windows(4).position(|it| it == b"\r\n\r\n") {
            let head: Vec<u8> = connection.input.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let field = |name: &str| head.lines().find_map(|it| it.strip_prefix(name)).map(str::trim);
            let close = field("connection:") == Some("close") || self.leaving;
            let nonce = field("x-nonce:").map(|it| format!("x-nonce: {it}\r\n")).unwrap_or_default();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nx-worker: {}\r\n{nonce}Content-Length: 3\r\nConnection: {}\r\n\r\nok\n",
                self.options.label,
                if close { "close" } else { "keep-alive" },
            );
            let written = rustix::net::send(&connection.fd, reply.as_bytes(), SendFlags::NOSIGNAL);
            if close || written != Ok(reply.len()) {
                // Also if the primary still holds its copy.
                let _ = rustix::net::shutdown(&connection.fd, Shutdown::Write);
                self.connections.swap_remove(n);
                return Ok(());
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ misbehaviour on the channel

    fn misbehave(&mut self) -> io::Result<()> {
        match self.options.mode.clone().as_str() {
            "garbage" => {
                self.send(b"this is no JSON\n{\"cmd\":\"NODE_CLUSTER\",\n\n\x00\x01\x02\n{]\n")?;
            }
            "oversized" => {
                let chunk = vec![b'a'; 1 << 20];
                self.send(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"")?;
                for _ in 0..200 {
                    self.send(&chunk)?;
                }
            }
            "bad-utf8" => {
                self.send(b"{\"user\":\"\xff\xfe\"}\n")?;
                self.send(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"\xc3\x28\",\"seq\":9}\n")?;
            }
            "deep-nesting" => {
                let mut line = b"{\"cmd\":\"NODE_CLUSTER\",\"act\":".to_vec();
                line.resize(line.len() + 100_000, b'[');
                line.push(b'\n');
                self.send(&line)?;
            }
            "wild-acks" => {
                for ack in [json!(123_456), json!(-1), json!(1e300), json!("1"), json!(null), json!([1])] {
                    self.cluster(json!({"ack": ack, "accepted": true}))?;
                }
                self.cluster(json!({"act": "an act that never was"}))?;
                self.cluster(json!({"act": "newconn", "key": "mine"}))?;
                self.line(&json!({"cmd": "NODE_SOMETHING", "seq": 1}))?;
            }
            "surplus-ack" => self.line(&json!({"cmd": "NODE_HANDLE_ACK"}))?,
            "fd-bomb" => self.fd_bomb()?,
            "wrong-fd" => {
                let file = std::fs::File::open("/proc/self/exe")?;
                let event = eventfd(0, EventfdFlags::CLOEXEC)?;
                for fd in [file.as_fd(), event.as_fd()] {
                    let line = json!({"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": "a present"});
                    self.send_with(format!("{line}\n").as_bytes(), &[fd])?;
                }
            }
            "close-channel" => self.channel = None,
            "shutdown-read" | "shutdown-write" => {
                if let Some(channel) = &self.channel {
                    let how = if self.is("shutdown-read") { Shutdown::Read } else { Shutdown::Write };
                    rustix::net::shutdown(channel, how)?;
                    self.deaf = true;
                }
            }
            "never-read" => self.deaf = true,
            "flood" => {
                let mut line = format!("{}\n", json!({"flood": true, "filling": "0123456789"})).into_bytes();
                line = line.repeat(1024);
                let mut sent = 0;
                while sent < 64 << 20 {
                    self.send(&line)?;
                    sent += line.len();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fd_bomb(&mut self) -> io::Result<()> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let fds: Vec<_> = std::iter::repeat_n(event.as_fd(), 253).collect();
        let line = format!("{}\n", json!({"cmd": "NODE_HANDLE", "type": "net.Native", "msg": "bomb"}));
        for round in 0..278 {
            match self.send_with(line.as_bytes(), &fds) {
                Ok(()) => {}
                // Too many in flight, or the primary does not want any.
                Err(e) => {
                    say(&format!("fd-bomb: {e} after {round} messages"));
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Reads four bytes of a connection, waiting for them.
fn read4(fd: &OwnedFd) {
    let mut bytes = [0; 4];
    loop {
        match rustix::io::read(fd, &mut bytes) {
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], None);
            }
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}
