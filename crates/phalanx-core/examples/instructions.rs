//! One piece of core's work, done so many times and nothing else: for counting instructions.
//!
//! `instructions CASE TIMES`. The cases are those of `tests/instructions.txt`; the test of the
//! same name runs this program twice under callgrind and looks at the difference.

#![expect(clippy::disallowed_methods, reason = "a program around core is told what to do")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::process::ExitCode;

use phalanx_core::wire::{
    Decoder, Family, HANDLE_ACK, ListenRequest, NewConnectionLine, Seq, Serialization, encode_answer,
    encode_new_connection,
};
use phalanx_core::{
    Action, BoundAddress, Config, Mechanism, Primary, SocketId, Time, Worker, WorkerEvent, WorkerId,
};

const KEY: &str = "127.0.0.1:8000:4:undefined:0";
const WORKERS: u32 = 4;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(case), Some(Ok(times))) = (arguments.next(), arguments.next().map(|n| n.parse::<u64>())) else {
        eprintln!("usage: instructions CASE TIMES");
        return ExitCode::from(2);
    };
    match case.as_str() {
        "decode-receipt" => decode(times, None, |_, line| line.extend_from_slice(HANDLE_ACK)),
        "decode-answer" => decode(times, None, |n, line| encode_answer(Seq(n), true, Seq(n), line)),
        "decode-connection" => decode(times, Some(7), |n, line| encode_new_connection(KEY, Seq(n), line)),
        "encode-connection" => encode(times),
        "hand-off" => Cluster::new().hand_over(times),
        _ => {
            eprintln!("instructions: no case {case}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Every line comes in a read of its own. It is made once: making it is not what is counted.
fn decode(times: u64, handle: Option<u64>, make: impl Fn(u64, &mut Vec<u8>)) {
    let mut decoder = Decoder::new(1 << 20);
    let mut line = Vec::new();
    make(123_456, &mut line);
    for _ in 0..times {
        for frame in decoder.feed(black_box(&line), handle) {
            black_box(frame).expect("a line of our own");
        }
    }
}

fn encode(times: u64) {
    let line = NewConnectionLine::new(KEY);
    let mut out = Vec::with_capacity(256);
    for n in 0..times {
        out.clear();
        black_box(&line).write(Seq(100_000 + n % 100_000), &mut out);
        black_box(&out);
    }
}

/// A primary whose workers listen on one address.
struct Cluster {
    primary: Primary<u64>,
    socket: SocketId,
}

impl Cluster {
    fn new() -> Self {
        let mut config = Config::default();
        config.mechanism = Mechanism::Handoff;
        let mut it = Self { primary: Primary::new(config), socket: SocketId(0) };
        it.primary.set_wanted(Time::ZERO, WORKERS);
        let mut born = Vec::new();
        while let Some(action) = it.primary.poll_action() {
            if let Action::Spawn(spawn) = action {
                it.primary.handle_spawned(Time::ZERO, spawn.worker, Ok(100 + spawn.worker.0));
                born.push(spawn.worker);
            }
        }
        for id in born {
            it.listen(id);
        }
        it
    }

    /// A worker comes up and listens.
    fn listen(&mut self, id: WorkerId) {
        let mut worker = Worker::<u64>::new(Serialization::Json, 1 << 20, 1 << 20);
        let address = Some("127.0.0.1".to_owned());
        let request = ListenRequest {
            address,
            port: Some(8000),
            family: Some(Family::Tcp4),
            ..ListenRequest::default()
        };
        let listen = worker.listen(request);
        let mut granted = false;
        while !granted {
            while let Some(next) = worker.poll_transmit() {
                let bytes = next.bytes.to_vec();
                worker.handle_sent(bytes.len());
                self.primary.handle_bytes(Time::ZERO, id, &bytes, None);
            }
            while let Some(action) = self.primary.poll_action() {
                match action {
                    Action::Bind { socket, .. } => {
                        self.socket = socket;
                        let address = BoundAddress::Inet(SocketAddr::from(([127, 0, 0, 1], 8000)));
                        self.primary.handle_bound(socket, Ok(address));
                    }
                    Action::Flush { worker: to } if to == id => {
                        while let Some(next) = self.primary.poll_transmit(to) {
                            let bytes = next.bytes.to_vec();
                            self.primary.handle_sent(to, bytes.len());
                            worker.handle_bytes(&bytes, None).expect("a primary of our own");
                        }
                    }
                    _ => {}
                }
            }
            while let Some(event) = worker.poll_event() {
                granted |= matches!(event, WorkerEvent::Granted { .. });
            }
        }
        worker.listening(listen, Some(8000));
        while let Some(next) = worker.poll_transmit() {
            let bytes = next.bytes.to_vec();
            worker.handle_sent(bytes.len());
            self.primary.handle_bytes(Time::ZERO, id, &bytes, None);
        }
        while self.primary.poll_event().is_some() {}
    }

    /// Connections one after the other: accepted, sent, received, taken.
    fn hand_over(&mut self, times: u64) {
        let peer = Some(SocketAddr::from(([127, 0, 0, 1], 40_000)));
        let mut answer = Vec::with_capacity(256);
        for n in 0..times {
            self.primary.handle_connection(self.socket, peer.map(Into::into), n);
            let mut to = None;
            while let Some(action) = self.primary.poll_action() {
                let Action::Flush { worker } = action else { continue };
                while let Some(next) = self.primary.poll_transmit(worker) {
                    let seq = seq(next.bytes);
                    let count = next.bytes.len();
                    answer.clear();
                    answer.extend_from_slice(HANDLE_ACK);
                    encode_answer(seq, true, Seq(n), &mut answer);
                    self.primary.handle_sent(worker, count);
                    to = Some(worker);
                }
            }
            let to = to.expect("somebody has room");
            self.primary.handle_bytes(Time::ZERO, to, &answer, None);
            while self.primary.poll_action().is_some() {}
            black_box(self.primary.poll_timeout());
        }
        let totals = self.primary.ledger().totals;
        assert_eq!((totals.accepted, totals.taken), (times, times), "every connection was taken");
    }
}

/// The number in a line that ends `"seq":N}}`.
fn seq(line: &[u8]) -> Seq {
    let digits = line.iter().rev().skip(3).take_while(|byte| byte.is_ascii_digit()).count();
    let end = line.len() - 3;
    Seq(line[end - digits..end].iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}
