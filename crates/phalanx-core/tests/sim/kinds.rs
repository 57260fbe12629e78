//! Shared sockets, messages with handles, and workers that break the protocol.

use crate::net::Conn;
use crate::world::World;
use phalanx_core::wire::{Family, Payload};
use phalanx_core::{BindSpec, BoundAddress, Primary, Speaks, WorkerId};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Listening sockets count as open copies, too; these are their numbers.
pub(crate) const SOCKETS: u64 = 1 << 40;

/// Where a socket is bound. The same port of another protocol is another place.
pub(crate) fn place(spec: &BindSpec) -> BoundAddress {
    match spec {
        BindSpec::Tcp { port, .. } => BoundAddress::Inet(SocketAddr::from(([127, 0, 0, 1], *port))),
        BindSpec::Udp { port, .. } => BoundAddress::Inet(SocketAddr::from(([127, 0, 0, 2], *port))),
        BindSpec::Unix { path, .. } => BoundAddress::Unix(path.clone()),
        other => unreachable!("{other:?}"),
    }
}

/// What was said, by whom and how far it has come: in order, once, each with its own handle.
#[derive(Default)]
pub(crate) struct Told {
    up: BTreeMap<WorkerId, u64>,
    down: BTreeMap<WorkerId, u64>,
    pub(crate) count: u64,
}

impl Told {
    /// A message is its number; with a handle, that of the handle.
    fn note(seen: &mut BTreeMap<WorkerId, u64>, worker: WorkerId, number: u64, handle: Option<&Conn>) {
        let last = seen.insert(worker, number);
        assert!(last.is_none_or(|last| last < number), "{worker:?}: {number} after {last:?}");
        if let Some(handle) = handle {
            assert_eq!(handle.id, number, "somebody else's handle");
        }
    }

    /// The primary hears of a worker.
    pub(crate) fn arrived(&mut self, worker: WorkerId, number: u64, handle: Option<&Conn>) {
        Told::note(&mut self.up, worker, number, handle);
        self.count += 1;
    }

    /// A worker hears of its primary.
    pub(crate) fn heard(&mut self, worker: WorkerId, number: u64, handle: Option<&Conn>) {
        Told::note(&mut self.down, worker, number, handle);
        self.count += 1;
    }
}

impl World {
    pub(crate) fn speaks(&self) -> bool {
        !matches!(self.speaks, Speaks::Nothing | Speaks::Perhaps)
    }

    /// A connection from a socket of the worker's own.
    pub(crate) fn accept_own(&mut self, id: WorkerId) {
        // A datagram is no connection.
        if matches!(self.family, Family::Udp4 | Family::Udp6) {
            self.backlog.pop_front();
            return;
        }
        let Some(p) = self.processes.get_mut(&id) else { return };
        if let Some((_, conn)) = self.backlog.pop_front() {
            assert_eq!(self.served.insert(conn.id, id), None, "{} is served twice", conn.id);
            p.served.push(conn);
        }
    }

    /// A listener that stays, whoever comes or goes.
    pub(crate) fn configure(&mut self, port: u16) -> &mut World {
        let spec = BindSpec::Tcp { address: Some([127, 0, 0, 1].into()), port, v6only: false };
        let plain = !self.speaks();
        self.primary.configure_listener("web", spec, plain).expect("it can be had");
        self.outcomes();
        self
    }

    fn message(&mut self, handle: bool) -> (Payload, Option<Conn>) {
        let number = self.next;
        self.next += 1;
        let conn = handle.then(|| Conn::new(number, &self.open));
        (Payload::encode(&number).expect("JSON"), conn)
    }

    /// The primary says something to a worker.
    pub(crate) fn say(&mut self, id: WorkerId, handle: bool) -> &mut World {
        let (message, conn) = self.message(handle);
        let handle = conn.map(|conn| (Primary::<Conn>::socket_envelope(), conn));
        // Whose channel is closed hears nothing.
        let _ = self.primary.send(id, &message, handle);
        self.outcomes();
        self
    }

    /// A worker says something to the primary.
    pub(crate) fn tell(&mut self, id: WorkerId, handle: bool) -> &mut World {
        let (message, conn) = self.message(handle);
        if let Some(p) = self.processes.get_mut(&id).filter(|p| p.alive && p.theirs && !p.plain) {
            let handle = conn.map(|conn| (Primary::<Conn>::socket_envelope(), conn));
            let _ = p.worker.send(message, handle);
            self.write_up(id);
        }
        self
    }

    /// A worker says what nobody may say.
    pub(crate) fn garble(&mut self, id: WorkerId) -> &mut World {
        if let Some(p) = self.processes.get_mut(&id).filter(|p| p.alive && p.theirs && p.ours && !p.plain) {
            p.up.write(b"{\"cmd\":\"NODE_CLUSTER\",\n".to_vec(), None);
            self.violators.insert(id);
        }
        self
    }
}
