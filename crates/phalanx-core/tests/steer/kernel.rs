//! A group of sockets as the kernel has it, with the program attached.

use phalanx_core::policy::bucket;
use phalanx_core::steer::{Budget, GroupFacts, PlaceFacts, Rule};
use phalanx_core::{Place, SocketId};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// A connection: its number, and its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) client: u32,
}

#[derive(Debug)]
struct Socket {
    place: Place,
    queue: VecDeque<Conn>,
    assigned: u64,
    moved_in: u64,
    gone: u64,
    budget: Option<Budget>,
}

impl Socket {
    fn given(&self) -> u64 {
        self.assigned + self.moved_in
    }
}

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    rule: Option<Rule>,
    sockets: BTreeMap<SocketId, Socket>,
    park: VecDeque<Conn>,
    parked: u64,
    ring: Vec<Place>,
    cursor: usize,
    watched: bool,
    open: bool,
    barred: bool,
}

impl Kernel {
    pub(crate) fn open(&mut self, rule: Rule) {
        self.rule = Some(rule);
        self.open = true;
    }

    pub(crate) fn join(&mut self, socket: SocketId, place: Place) {
        assert!(self.sockets.values().all(|s| s.place != place), "{place} is taken");
        let new = Socket { place, queue: VecDeque::new(), assigned: 0, moved_in: 0, gone: 0, budget: None };
        assert!(self.sockets.insert(socket, new).is_none());
    }

    pub(crate) fn set_ring(&mut self, ring: Vec<Place>) {
        for place in &ring {
            assert!(self.at(*place).is_some(), "{place} has no socket");
        }
        self.ring = ring;
    }

    pub(crate) fn set_budget(&mut self, budget: Budget) {
        if let Some(socket) = self.at(budget.place) {
            socket.budget = Some(budget);
        }
    }

    pub(crate) fn set_gone(&mut self, place: Place, gone: u64) {
        if let Some(socket) = self.at(place) {
            socket.gone = gone;
        }
    }

    pub(crate) fn watch(&mut self) {
        self.watched = true;
    }

    /// Whether a connection waits and nobody has been told.
    pub(crate) fn stirs(&mut self) -> bool {
        let waits = !self.park.is_empty() || self.sockets.values().any(|s| !s.queue.is_empty());
        waits && std::mem::take(&mut self.watched)
    }

    fn at(&mut self, place: Place) -> Option<&mut Socket> {
        self.sockets.values_mut().find(|socket| socket.place == place)
    }

    fn choose(&mut self, client: u32) -> Option<Place> {
        if self.ring.is_empty() {
            return None;
        }
        match self.rule {
            Some(Rule::Sticky | Rule::Flow) => {
                let ip = IpAddr::V4(Ipv4Addr::from_bits(client));
                return Some(self.ring[bucket::of(ip) as usize % self.ring.len()]);
            }
            Some(Rule::Least) => {
                let at = self.cursor;
                self.cursor += 1;
                let ring = self.ring.clone();
                let load = |kernel: &mut Kernel, place| {
                    kernel.at(place).map_or(u64::MAX, |s| s.given().saturating_sub(s.gone))
                };
                return (0..ring.len())
                    .map(|t| ring[(at + t) % ring.len()])
                    .min_by_key(|place| load(self, *place));
            }
            Some(Rule::Rotate) | None => {}
        }
        let at = self.cursor;
        self.cursor += 1;
        let ring = self.ring.clone();
        let over = |kernel: &mut Kernel, place| {
            let Some(socket) = kernel.at(place) else { return u64::MAX };
            let Some(Budget { base, limit: Some(limit), .. }) = socket.budget else { return 0 };
            (socket.given().saturating_sub(base)).saturating_sub(limit)
        };
        let tries: Vec<Place> = (0..8).map(|t| ring[(at + t) % ring.len()]).collect();
        tries
            .iter()
            .copied()
            .find(|place| over(self, *place) == 0)
            .or_else(|| tries.iter().copied().min_by_key(|place| over(self, *place)))
    }

    pub(crate) fn arrive(&mut self, conn: Conn, moved: bool) {
        assert!(self.open && (moved || !self.barred), "refused");
        match self.choose(conn.client).and_then(|place| self.at(place)) {
            Some(socket) => {
                if moved {
                    socket.moved_in += 1;
                } else {
                    socket.assigned += 1;
                }
                socket.queue.push_back(conn);
            }
            None => {
                self.parked += 1;
                self.park.push_back(conn);
            }
        }
    }

    pub(crate) fn rescue(&mut self, socket: Option<SocketId>) -> u64 {
        let moved = match socket {
            Some(socket) => {
                let socket = self.sockets.get_mut(&socket).expect("a socket that exists");
                let place = socket.place;
                let moved = std::mem::take(&mut socket.queue);
                assert!(!self.ring.contains(&place), "what may be chosen is not moved");
                moved
            }
            None => {
                assert!(!self.ring.is_empty(), "somebody to move to");
                std::mem::take(&mut self.park)
            }
        };
        let count = moved.len() as u64;
        for conn in moved {
            self.arrive(conn, true);
        }
        count
    }

    pub(crate) fn part(&mut self, socket: SocketId, closing: bool) {
        let gone = self.sockets.remove(&socket).expect("a socket that exists");
        assert!(closing || !self.ring.contains(&gone.place), "what may be chosen is not closed");
        for conn in gone.queue {
            self.arrive(conn, true);
        }
    }

    pub(crate) fn bar(&mut self) {
        self.barred = true;
    }

    pub(crate) fn waiting(&self) -> u64 {
        let queued: usize = self.sockets.values().map(|socket| socket.queue.len()).sum();
        assert!(self.barred, "nobody counts before");
        (queued + self.park.len()) as u64
    }

    pub(crate) fn close(&mut self) {
        self.open = false;
        self.park.clear();
    }

    pub(crate) fn accept(&mut self, socket: SocketId) -> Option<Conn> {
        self.sockets.get_mut(&socket)?.queue.pop_front()
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (Place, u64, u32)> + '_ {
        self.sockets.values().map(|s| (s.place, s.given(), s.queue.len() as u32))
    }

    pub(crate) fn facts(&self) -> GroupFacts {
        let places = self
            .sockets
            .values()
            .map(|socket| {
                let mut facts = PlaceFacts::new(socket.place);
                facts.queued = socket.queue.len() as u32;
                facts.queue_limit = 4096;
                facts.assigned = socket.assigned;
                facts.moved_in = socket.moved_in;
                facts.given = socket.given();
                facts
            })
            .collect();
        GroupFacts { places, park_queued: self.park.len() as u32, parked: self.parked, odd: 0, failed: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty() && !self.open
    }
}
