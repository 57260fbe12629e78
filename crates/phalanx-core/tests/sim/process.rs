//! A worker's process: the real worker's end, and what it does with what it gets.

use crate::net::{Conn, Pipe};
use crate::world::MAX;
use phalanx_core::wire::{Family, ListenRequest, Serialization};
use phalanx_core::{Ended, Listen, Offer, Time, Worker};

/// One worker's process, and both directions of its channel.
pub(crate) struct Process {
    pub(crate) worker: Worker<Conn>,
    pub(crate) alive: bool,
    pub(crate) stubborn: bool,
    /// Set when it is dead and nobody has been told.
    pub(crate) ended: Option<Ended>,
    pub(crate) down: Pipe,
    pub(crate) up: Pipe,
    /// The primary's end, and the worker's.
    pub(crate) ours: bool,
    pub(crate) theirs: bool,
    /// The primary has been told of the end of its channel.
    pub(crate) hung_up: bool,
    /// The worker has seen the end of its channel.
    pub(crate) eof: bool,
    pub(crate) full: bool,
    pub(crate) leaving: bool,
    pub(crate) closing: bool,
    pub(crate) stalled: bool,
    /// It does not know that it has a channel.
    pub(crate) plain: bool,
    pub(crate) listens: Vec<Listen>,
    /// Listening sockets of its own: asked for, and what it was started with.
    pub(crate) shared: Vec<(Listen, Conn)>,
    pub(crate) lent: Vec<Conn>,
    pub(crate) offers: Vec<(Time, Offer, Listen, Conn)>,
    pub(crate) served: Vec<Conn>,
}

impl Process {
    pub(crate) fn new(serialization: Serialization, stubborn: bool) -> Process {
        Process {
            worker: Worker::new(serialization, MAX, MAX),
            alive: true,
            stubborn,
            ended: None,
            down: Pipe::default(),
            up: Pipe::default(),
            ours: true,
            theirs: true,
            hung_up: false,
            eof: false,
            full: false,
            leaving: false,
            closing: false,
            stalled: false,
            plain: false,
            listens: Vec::new(),
            shared: Vec::new(),
            lent: Vec::new(),
            offers: Vec::new(),
            served: Vec::new(),
        }
    }

    /// A plain program: with a channel that it does not know of, or without any.
    pub(crate) fn silence(&mut self, has_channel: bool) {
        self.plain = true;
        self.ours = has_channel;
        self.theirs = has_channel;
    }

    /// Whether it accepts by itself.
    pub(crate) fn accepts(&self) -> bool {
        !self.lent.is_empty() || !self.shared.is_empty()
    }

    pub(crate) fn listen(&mut self, port: i32, family: Family) {
        let (address, port) = match family {
            Family::Unix => (format!("/run/{port}.sock"), -1),
            _ => ("127.0.0.1".to_owned(), port),
        };
        self.worker.listen(ListenRequest {
            address: Some(address),
            port: Some(port),
            family: Some(family),
            ..ListenRequest::default()
        });
    }

    pub(crate) fn close_servers(&mut self) {
        for (listen, _socket) in std::mem::take(&mut self.shared) {
            self.offers.retain(|(_, _, of, _)| *of != listen);
            self.worker.close(listen);
        }
        for listen in std::mem::take(&mut self.listens) {
            // BEFORE the refusal: the primary gives its own copy to another worker.
            self.offers.retain(|(_, _, of, _)| *of != listen);
            self.worker.close(listen);
        }
    }

    /// What it wrote stays in the channel; what it had open is closed.
    pub(crate) fn die(&mut self, ended: Ended) {
        if !std::mem::replace(&mut self.alive, false) {
            return;
        }
        self.ended = Some(ended);
        self.theirs = false;
        self.down.clear();
        self.offers.clear();
        self.served.clear();
        self.shared.clear();
        self.lent.clear();
    }
}
