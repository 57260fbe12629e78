//! What must be done.

use crate::steer::{Budget, Engine, Rule};
use crate::{ConnId, Generation, ListenerId, Place, Slot, SocketId, WorkerId};
use serde::Serialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What the driver must do. Actions name things; the driver fetches them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Start a process; answer with [`handle_spawned`](crate::Primary::handle_spawned) before anything else.
    Spawn(Spawn),
    /// Make a socket; answer with [`handle_bound`](crate::Primary::handle_bound).
    Bind {
        /// Its name from now on.
        socket: SocketId,
        /// For whom.
        listener: ListenerId,
        /// Where.
        spec: BindSpec,
        /// Backlog of listen(2), for a stream socket.
        backlog: u32,
    },
    /// Open a group of sockets on one address, for steering, with the socket where connections wait while
    /// nobody is there to take them. Answer with [`handle_grouped`](crate::Primary::handle_grouped).
    Group {
        /// The name of that first socket, and of the group.
        group: SocketId,
        /// For whom.
        listener: ListenerId,
        /// Where.
        spec: BindSpec,
        /// Backlog of listen(2) of every socket.
        backlog: u32,
        /// What chooses.
        engine: Engine,
        /// How it chooses.
        rule: Rule,
    },
    /// Make a socket of a group, for one worker; answer with
    /// [`handle_joined`](crate::Primary::handle_joined).
    Join {
        /// Of which group.
        group: SocketId,
        /// Its name from now on.
        socket: SocketId,
        /// Its index in the kernel's map.
        place: Place,
        /// What marks its connections; never used again.
        tag: u32,
        /// Backlog of listen(2).
        backlog: u32,
    },
    /// From now on, connections of a group go to these places in turn (or by bucket).
    Ring {
        /// Which group.
        group: SocketId,
        /// Empty: they wait in the group's first socket.
        ring: Vec<Place>,
    },
    /// How many connections places may have waiting.
    Budgets {
        /// Which group.
        group: SocketId,
        /// What has changed.
        budgets: Vec<Budget>,
    },
    /// How many connections of each place are over, for [`Rule::Least`].
    Gone {
        /// Which group.
        group: SocketId,
        /// By place.
        gone: Vec<(Place, u64)>,
    },
    /// Move what waits on a socket to the others and let it go on listening. Nothing has been given to it for
    /// the last 10 ms. The answer is [`Primary::handle_rescued`](crate::Primary::handle_rescued).
    Rescue {
        /// Of which group.
        group: SocketId,
        /// From which socket.
        socket: SocketId,
        /// Its index; `None`: the group's first socket.
        place: Option<Place>,
        /// Backlog.
        backlog: u32,
    },
    /// Accept what waits on a socket, as if it had been accepted on its group's first socket.
    Drain {
        /// Of which group.
        group: SocketId,
        /// From which socket.
        socket: SocketId,
    },
    /// Wake who waits on these sockets: something was moved there, and older kernels do not say so.
    Poke {
        /// Which.
        sockets: Vec<SocketId>,
    },
    /// Close a socket of a group, with its index. What waits there moves to the others.
    Part {
        /// Of which group.
        group: SocketId,
        /// Which.
        socket: SocketId,
        /// Its index.
        place: Place,
        /// Nobody lives who waits on it: shut it down for whoever else may have inherited it. Who does live would
        /// get errors from it before it has been told to leave.
        orphaned: bool,
    },
    /// Tell, once, with [`handle_stirred`](crate::Primary::handle_stirred), when a connection waits on any
    /// socket of a group.
    WatchQueues {
        /// Which group.
        group: SocketId,
    },
    /// Look at a group: answer with [`handle_looked`](crate::Primary::handle_looked).
    Look {
        /// Which group.
        group: SocketId,
        /// Whether these workers' processes are busy or stopped is wanted too.
        busy: Vec<(Place, WorkerId)>,
    },
    /// Put right what a worker may have done to a group: answer with
    /// [`handle_guarded`](crate::Primary::handle_guarded).
    Guard {
        /// Which group.
        group: SocketId,
    },
    /// Make a key for TLS session tickets from true randomness; answer with
    /// [`handle_ticket_key`](crate::Primary::handle_ticket_key).
    MakeTicketKey,
    /// Count the open connections of a listener: answer with
    /// [`handle_counted`](crate::Primary::handle_counted) for a group, or
    /// [`handle_peers`](crate::Primary::handle_peers) for any other.
    Count {
        /// The listener's socket, or group.
        socket: SocketId,
    },
    /// Call listen(2) again with this backlog: somebody may have made it smaller.
    Listen {
        /// On which socket.
        socket: SocketId,
        /// Backlog.
        backlog: u32,
    },
    /// Begin or stop to accept.
    Accept {
        /// On which socket.
        socket: SocketId,
        /// Begin (true) or stop.
        on: bool,
    },
    /// Let nobody new in: handshakes that have not begun do not begin, while those under way go on and what waits
    /// can be accepted. Where that is not possible nothing changes. It may be asked for again.
    Bar {
        /// Which socket.
        socket: SocketId,
    },
    /// Count who is still on the way in at the sockets that are barred, or waits there to be accepted: answer with
    /// [`handle_waiting`](crate::Primary::handle_waiting).
    CountWaiting,
    /// Close the socket. Its file, if it is a Unix socket, goes too.
    Unbind {
        /// Which.
        socket: SocketId,
    },
    /// Something waits to be sent: call [`poll_transmit`](crate::Primary::poll_transmit) until it is dry or
    /// the channel is full.
    Flush {
        /// To whom.
        worker: WorkerId,
    },
    /// Close our end of the worker's channel.
    CloseChannel {
        /// Whose.
        worker: WorkerId,
    },
    /// Send a signal.
    Signal {
        /// To whom.
        worker: WorkerId,
        /// Its number.
        signal: i32,
    },
    /// Has anybody read or written on this connection? Answer with
    /// [`handle_examined`](crate::Primary::handle_examined) before anything else.
    Examine {
        /// Which.
        connection: ConnId,
    },
    /// Tell with [`handle_waits`](crate::Primary::handle_waits) when the kernel shows this worker waiting on a
    /// socket that it was lent; needless once it is ready or gone.
    Watch {
        /// Whom.
        worker: WorkerId,
    },
    /// Send a GET request to this very worker and answer with
    /// [`handle_probed`](crate::Primary::handle_probed).
    Probe {
        /// Whom.
        worker: WorkerId,
        /// The key of a listener that it holds.
        key: String,
        /// What to get.
        path: String,
    },
    /// Tell this worker's memory with [`handle_memory`](crate::Primary::handle_memory), if it can be known.
    Measure {
        /// Whose.
        worker: WorkerId,
    },
    /// Nobody runs this generation any more, and nobody will.
    Retire {
        /// Which.
        generation: Generation,
    },
    /// Nothing refers to this worker any more.
    Forget {
        /// Whom.
        worker: WorkerId,
    },
}

/// A process to start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spawn {
    /// Its identity.
    pub worker: WorkerId,
    /// Its place.
    pub slot: Slot,
    /// Its code.
    pub generation: Generation,
    /// Variables of this fork, on top of everybody's.
    pub env: Vec<(String, String)>,
    /// Sockets that it is born with, by name, for LISTEN_FDS.
    pub lend: Vec<(String, SocketId)>,
}

/// Where to bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BindSpec {
    /// TCP.
    Tcp {
        /// `None`: any address, of both families where IPv6 exists (LISTEN-04).
        address: Option<IpAddr>,
        /// 0: choose one.
        port: u16,
        /// IPv6 only.
        v6only: bool,
    },
    /// UDP.
    Udp {
        /// The address.
        address: IpAddr,
        /// 0: choose one.
        port: u16,
        /// IPv6 only.
        v6only: bool,
        /// SO_REUSEADDR.
        reuse_addr: bool,
    },
    /// A Unix socket.
    Unix {
        /// Absolute path.
        path: String,
        /// Mode of the file; else what umask makes of it.
        mode: Option<u32>,
        /// Everybody may read.
        readable_all: bool,
        /// Everybody may write.
        writable_all: bool,
    },
    /// A socket that the primary was given.
    Inherited {
        /// Which, from 0 on, in the order in which they were given.
        index: u32,
        /// What it is.
        kind: SocketKind,
    },
}

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// A TCP listener.
    Tcp,
    /// A Unix listener.
    Unix,
    /// A UDP socket.
    Udp,
}

impl BindSpec {
    /// What comes of it.
    pub fn kind(&self) -> SocketKind {
        match self {
            BindSpec::Tcp { .. } => SocketKind::Tcp,
            BindSpec::Udp { .. } => SocketKind::Udp,
            BindSpec::Unix { .. } => SocketKind::Unix,
            BindSpec::Inherited { kind, .. } => *kind,
        }
    }

    /// Whether connections come from it (or datagrams).
    pub(crate) fn is_stream(&self) -> bool {
        self.kind() != SocketKind::Udp
    }
}

/// An address that was really bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum BoundAddress {
    /// An internet address.
    Inet(SocketAddr),
    /// The path of a Unix socket.
    Unix(String),
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddress::Inet(addr) => addr.fmt(f),
            BoundAddress::Unix(path) => path.fmt(f),
        }
    }
}
