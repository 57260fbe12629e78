//! A worker's process: the real worker's end, and what it does with what it gets.

use crate::net::{Conn, Pipe};
use crate::world::MAX;
use phalanx_core::wire::{Family, ListenRequest};
use phalanx_core::{Ended, Listen, Offer, Time, Worker};
use std::net::IpAddr;

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
    /// The worker has seen the end of its channel.
    pub(crate) eof: bool,
    pub(crate) full: bool,
    pub(crate) leaving: bool,
    pub(crate) closing: bool,
    pub(crate) stalled: bool,
    pub(crate) listens: Vec<Listen>,
    pub(crate) offers: Vec<(Time, Offer, Listen, Conn)>,
    pub(crate) served: Vec<Conn>,
}

impl Process {
    pub(crate) fn new(stubborn: bool) -> Process {
        Process {
            worker: Worker::new(MAX, MAX),
            alive: true,
            stubborn,
            ended: None,
            down: Pipe::default(),
            up: Pipe::default(),
            ours: true,
            theirs: true,
            eof: false,
            full: false,
            leaving: false,
            closing: false,
            stalled: false,
            listens: Vec::new(),
            offers: Vec::new(),
            served: Vec::new(),
        }
    }

    pub(crate) fn listen(&mut self, port: i32) {
        let address = Some(IpAddr::from([127, 0, 0, 1]).to_string());
        self.worker.listen(ListenRequest {
            address,
            port: Some(port),
            family: Some(Family::Tcp4),
            ..ListenRequest::default()
        });
    }

    pub(crate) fn close_servers(&mut self) {
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
    }
}
