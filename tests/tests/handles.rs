//! Sockets that go along with messages, both ways, with Node and with Rust.

use phalanx::{
    Cluster, Event, Events, Handle, Hurry, Output, Primary, SendError, Serialization, Speaks, WorkerRef,
};
use phalanx_tests::lab;
use phalanx_tests::process::{Signal, fds, free_port, kill, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Serves what it is sent, and sends what it makes.
const NODE: &str = "
    const net = require('net'), dgram = require('dgram');
    const exclusive = { port: 0, host: '127.0.0.1', address: '127.0.0.1', exclusive: true };
    process.on('message', (what, handle) => {
        if (what === 'connection') handle.end('node');
        if (what === 'listener') {
            handle.on('connection', (connection) => connection.end('node'));
            process.send('serving');
        }
        if (what === 'datagrams') {
            handle.on('message', (text, from) => handle.send('node ' + text, from.port, from.address));
            process.send('serving');
        }
        if (what.connect) {
            const socket = net.connect(what.connect, '127.0.0.1', () => process.send('connection', socket));
        }
        if (what === 'listen') {
            const server = net.createServer();
            server.listen(exclusive, () =>
                process.send('listener', server, () => server.close(() => process.send('closed'))));
        }
        if (what === 'bind') {
            const socket = dgram.createSocket('udp4');
            socket.bind(exclusive, () => process.send('datagrams', socket));
        }
    });
    process.send('up');
";

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn hear(events: &mut Events) -> (Value, Option<Handle>) {
    let message = std::iter::from_fn(|| events.blocking_recv()).find_map(|event| match event {
        Event::Message { message, handle, .. } => Some((message, handle.and_then(|handle| handle.take()))),
        _ => None,
    });
    message.expect("a message")
}

fn read(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("text");
    text
}

fn ask(address: SocketAddr) -> String {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("a bound");
    client.send_to(b"hello", address).expect("sent");
    let mut buffer = [0; 64];
    let count = client.recv(&mut buffer).expect("an answer");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
    (ours, listener.accept().expect("accepted").0)
}

fn sockets() -> usize {
    fds(std::process::id()).values().filter(|fd| fd.starts_with("socket:")).count()
}

fn start(builder: phalanx::Builder) -> (Primary, Events, WorkerRef) {
    let primary = builder.output(Output::Inherit).receive_handles(true).start().expect("a primary");
    let events = primary.events();
    let worker = primary.fork([("PORT", free_port().to_string())]).expect("a worker");
    (primary, events, worker)
}

#[test]
fn sockets_go_to_and_from_node() {
    let by = [Serialization::Json, Serialization::Advanced];
    for (version, by) in ["18", "20", "22", "26"].into_iter().flat_map(|version| by.map(|by| (version, by))) {
        let Some(node) = lab::node(version) else { continue };
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("handles.js");
        std::fs::write(&script, NODE).expect("a script");
        let (primary, mut events, worker) =
            start(Cluster::builder().exec(node).args([script]).channel(Speaks::Node).serialization(by));
        assert_eq!(hear(&mut events).0, "up");
        let before = sockets();

        let (ours, theirs) = tcp_pair();
        block_on(worker.send_with("connection", theirs)).expect("sent");
        assert_eq!(read(ours), "node");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        worker.try_send_with("connection", theirs).expect("sent");
        assert_eq!(read(ours), "node");

        // In a cluster, Node 18 asks the primary for what it has just been given.
        if version != "18" {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("its address");
            block_on(worker.send_with("listener", listener)).expect("sent");
            assert_eq!(hear(&mut events).0, "serving");
            assert_eq!(read(TcpStream::connect(address).expect("it listens")), "node");
        }

        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("its address");
        block_on(worker.send_with("datagrams", socket)).expect("sent");
        assert_eq!(hear(&mut events).0, "serving");
        assert_eq!(ask(address), "node hello");

        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = server.local_addr().expect("its address").port();
        block_on(worker.send(&json!({ "connect": port }))).expect("sent");
        let Some(Handle::TcpStream(mut connection)) = hear(&mut events).1 else { panic!("a connection") };
        connection.write_all(b"rust").expect("room");
        drop(connection);
        assert_eq!(read(server.accept().expect("accepted").0), "rust", "v{version}: the only copy");
        block_on(worker.send("listen")).expect("sent");
        let Some(Handle::TcpListener(listener)) = hear(&mut events).1 else { panic!("a listener") };
        // Until then it is Node's as well: who blocks blocks both, and either may accept.
        assert_eq!(hear(&mut events).0, "closed");
        listener.set_nonblocking(false).expect("a mode");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("it listens");
        listener.accept().expect("accepted").0.write_all(b"rust").expect("room");
        assert_eq!(read(client), "rust");
        block_on(worker.send("bind")).expect("sent");
        let Some(Handle::UdpSocket(socket)) = hear(&mut events).1 else { panic!("a socket") };
        assert!(socket.local_addr().expect("its address").port() > 0);

        drop((server, listener, socket));
        wait_until("no copy is left here", || sockets() <= before);
        primary.stop(Hurry::Graceful).wait();
    }
}

#[test]
fn sockets_go_to_and_from_rust() {
    let (primary, mut events, worker) = start(Cluster::builder().exec(lab::binary("examples/cluster")));
    for n in 0..50 {
        // An echo: ours comes back, and is what it was.
        let (mut ours, theirs) = tcp_pair();
        block_on(worker.send_with(&n, theirs)).expect("sent");
        let (message, Some(Handle::TcpStream(mut back))) = hear(&mut events) else { panic!("a connection") };
        assert_eq!(message, n);
        back.write_all(b"there and back").expect("room");
        drop(back);
        let mut text = String::new();
        ours.read_to_string(&mut text).expect("text");
        assert_eq!(text, "there and back");
    }
    primary.stop(Hurry::Graceful).wait();
}

#[test]
fn handles_that_nobody_wants_do_not_arrive() {
    let primary = Cluster::builder().exec(lab::binary("examples/cluster")).start().expect("a primary");
    let mut events = primary.events();
    let worker = primary.fork([("PORT", free_port().to_string())]).expect("a worker");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    block_on(worker.send_with("with", theirs)).expect("sent");
    assert_eq!(hear(&mut events).0, "refused");
    // Every copy is closed.
    assert_eq!(read(ours), "");
    primary.stop(Hurry::Graceful).wait();
}

#[test]
fn a_sender_waits_for_room() {
    let (primary, mut events, worker) = start(Cluster::builder().exec(lab::binary("examples/cluster")));
    worker.try_send("up").expect("room");
    hear(&mut events);
    kill(worker.pid().expect("it lives"), Signal::STOP).expect("stopped");
    let long = "x".repeat(100_000);
    let mut sent = 1;
    while worker.try_send(&long).is_ok() {
        sent += 1;
    }
    assert_eq!(worker.try_send("short"), Err(SendError::Full));
    let waiting = worker.clone();
    let sender = std::thread::spawn(move || block_on(waiting.send("at last")));
    kill(worker.pid().expect("it lives"), Signal::CONT).expect("continued");
    sender.join().expect("no panic").expect("sent");
    for _ in 1..sent {
        assert_eq!(hear(&mut events).0.as_str().map(str::len), Some(long.len()));
    }
    assert_eq!(hear(&mut events).0, "at last");
    primary.stop(Hurry::Graceful).wait();
    assert_eq!(block_on(worker.send("nobody")), Err(SendError::Closed));
}
