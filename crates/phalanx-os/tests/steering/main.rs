//! Steering: the kernel does what the program and we believe.
//!
//! These tests load eBPF, and some make network namespaces. Where that is refused they print a line that begins
//! with `SKIP` and pass; under `CI=true` they fail.

mod choice;
mod facts;
mod moves;
mod rights;
mod strays;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use phalanx_os::steer::{Counts, Exact, Group, Rule, Transport};
use phalanx_os::{conn, listener};

/// A test that cannot run here.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    println!("SKIP: {why}");
}

/// The program, or `None` where it may not be loaded.
fn load(transport: Transport, rule: Rule) -> Option<Exact> {
    match Exact::load(transport, rule) {
        Ok(exact) => Some(exact),
        Err(e) if e.source.raw_os_error() == Some(libc::EPERM) => {
            skip(&e.to_string());
            None
        }
        Err(e) => panic!("{e}\n{:?}", e.verifier),
    }
}

/// A group with its program and members, each at the place of its number, tagged with that and 100.
struct Steered {
    exact: Exact,
    group: Group,
    members: Vec<OwnedFd>,
}

const BACKLOG: u32 = 4096;

impl Steered {
    fn new(rule: Rule, members: u32) -> Option<Self> {
        Self::at("127.0.0.1:0", rule, members)
    }

    fn at(address: &str, rule: Rule, members: u32) -> Option<Self> {
        let exact = load(Transport::Tcp, rule)?;
        let group = Group::open(Transport::Tcp, address.parse().unwrap(), false, BACKLOG).unwrap();
        let mut steered = Self { exact, group, members: Vec::new() };
        for place in 0..members {
            steered.members.push(steered.group.join().unwrap());
            if place == 0 {
                steered.exact.open(steered.group.park(), &steered.members[0]).unwrap();
            }
            steered.set(place);
        }
        Some(steered)
    }

    fn set(&self, place: u32) {
        self.exact.set(place, place + 100, &self.members[place as usize]).unwrap();
    }

    fn connect(&self, connections: usize) -> Vec<TcpStream> {
        (0..connections).map(|_| TcpStream::connect(self.group.address()).unwrap()).collect()
    }

    /// How many wait at each member, once all these do. The last step of a handshake is the kernel's own
    /// business and may come after connect returned.
    fn queues(&self, all: usize) -> Vec<usize> {
        loop {
            let queues: Vec<usize> = self.members.iter().map(queued).collect();
            if queues.iter().sum::<usize>() + queued(self.group.park()) == all {
                return queues;
            }
            std::thread::yield_now();
        }
    }

    fn given(&self) -> Vec<Counts> {
        (0..self.members.len() as u32).map(|place| self.exact.counts(place)).collect()
    }
}

fn queued(socket: impl AsFd) -> usize {
    listener::queue(socket).map_or(0, |queue| queue.queued as usize)
}

/// The connections in a queue, each answered with what it has sent.
fn serve(socket: impl AsFd) -> usize {
    let mut served = 0;
    while let Ok((connection, _)) = listener::accept(&socket) {
        conn::set_nonblocking(&connection, false).unwrap();
        let mut connection = TcpStream::from(connection);
        let mut word = [0; 4];
        connection.read_exact(&mut word).unwrap();
        connection.write_all(&word).unwrap();
        served += 1;
    }
    served
}

/// Accepts and closes what waits.
fn drain(socket: &OwnedFd) {
    while listener::accept(socket).is_ok() {}
}

fn settle() {
    // Between taking a member out of the ring and shutting it down; see `flush`.
    std::thread::sleep(Duration::from_millis(10));
}

/// Looks until it is so.
fn until(mut what: impl FnMut() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}
