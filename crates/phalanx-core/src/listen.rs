//! The listener table: keys, sockets by slot, members, and who waits for an answer.
//!
//! A listener is a set of sockets by worker. Share and hand-off are the cases of one socket for everybody: lent to
//! the workers, or kept by the primary, which then accepts for them. In steering each has one of its own.

use crate::dispatch::{Dispatch, Peer};
use crate::steer::{Engine, Rule, Steering};
use crate::wire::{Family, ListenRequest, NewConnectionLine, Seq};
use crate::{BindSpec, BoundAddress, ListenerId, Mechanism, Policy, Slot, SocketId, WorkerId};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Linux error numbers that core itself answers with.
pub(crate) mod errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const EMFILE: i32 = 24;
    pub(crate) const EPROTOTYPE: i32 = 91;
    pub(crate) const EOPNOTSUPP: i32 = 95;
    pub(crate) const EADDRINUSE: i32 = 98;
    pub(crate) const ECANCELED: i32 = 125;
}

/// A worker that asked to listen and has no answer yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) worker: WorkerId,
    pub(crate) seq: Seq,
}

/// How far a listener is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The driver is binding; these wait for the answer.
    Binding(Vec<Waiting>),
    /// It has an address.
    Bound(BoundAddress),
}

/// What a slot of a listener has had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotCount {
    pub(crate) assigned: u64,
    pub(crate) taken: u64,
}

/// One listener.
#[derive(Debug)]
pub(crate) struct Listener<C> {
    pub(crate) key: String,
    /// Named in the configuration: it stays, always.
    pub(crate) name: Option<String>,
    pub(crate) spec: BindSpec,
    pub(crate) mechanism: Mechanism,
    pub(crate) policy: Policy,
    pub(crate) why: Cow<'static, str>,
    /// The policy that was asked for.
    pub(crate) wanted: Policy,
    /// Its workers need a listening socket.
    pub(crate) needs_socket: bool,
    pub(crate) progress: Progress,
    /// The socket that workers are lent in share, that the primary accepts from in hand-off, and where
    /// connections wait for a worker in steering.
    pub(crate) socket: SocketId,
    /// The sockets of workers, and who may be chosen.
    pub(crate) steering: Option<Steering>,
    /// Workers whose socket is being made.
    pub(crate) joining: Vec<(SocketId, Waiting)>,
    pub(crate) backlog: u32,
    /// The first one that a member brought along (DATA-01).
    pub(crate) data: Option<Box<RawValue>>,
    pub(crate) dispatch: Dispatch<C>,
    pub(crate) counts: BTreeMap<Slot, SlotCount>,
    /// What the driver was last told.
    pub(crate) accepting: bool,
    /// The pending queue was full and is not half empty yet.
    pub(crate) paused: bool,
    /// Out of file descriptors: how long it rests.
    pub(crate) starved: Option<Duration>,
    /// It rests now.
    pub(crate) resting: bool,
    /// The line that offers one of its connections.
    pub(crate) line: NewConnectionLine,
    /// Taken connections that were open when last looked, by peer; kept for [`Policy::LeastConnections`].
    pub(crate) open: BTreeMap<Peer, WorkerId>,
    /// They were counted lately.
    pub(crate) counted: bool,
}

impl<C> Listener<C> {
    pub(crate) fn is_bound(&self) -> bool {
        matches!(self.progress, Progress::Bound(_))
    }

    pub(crate) fn address(&self) -> Option<&BoundAddress> {
        match &self.progress {
            Progress::Bound(address) => Some(address),
            Progress::Binding(_) => None,
        }
    }

    /// Whether this worker is a member or waits to become one.
    pub(crate) fn involves(&self, worker: WorkerId) -> bool {
        self.dispatch.holds(worker)
            || self.joining.iter().any(|(_, waiting)| waiting.worker == worker)
            || matches!(&self.progress, Progress::Binding(waiting) if waiting.iter().any(|w| w.worker == worker))
    }

    /// Whether its real address is what is asked for: one that was given or chosen is in no spec.
    fn sits_at(&self, spec: &BindSpec) -> bool {
        match (self.address(), spec) {
            (Some(BoundAddress::Unix(here)), BindSpec::Unix { path, .. }) => here == path,
            (Some(BoundAddress::Inet(here)), _) => endpoint(spec).is_some_and(|(stream, ip, port)| {
                let here_ip = Some(here.ip()).filter(|ip| !ip.is_unspecified());
                // Who passes a socket for all addresses means it for each of them.
                let all = here_ip.is_none() && matches!(self.spec, BindSpec::Inherited { .. });
                stream == self.spec.is_stream() && port == here.port() && (all || ip == here_ip)
            }),
            _ => false,
        }
    }

    /// A worker has taken a connection from this peer.
    pub(crate) fn opened(&mut self, peer: Peer, worker: WorkerId) {
        if let Some(former) = self.open.insert(peer, worker) {
            self.dispatch.change_open(former, -1);
        }
        self.dispatch.change_open(worker, 1);
    }

    /// Of all connections that were taken, only those from these peers are open.
    pub(crate) fn still_open(&mut self, peers: &BTreeSet<Peer>) {
        let dispatch = &mut self.dispatch;
        self.open.retain(|peer, worker| {
            let open = peers.contains(peer);
            if !open {
                dispatch.change_open(*worker, -1);
            }
            open
        });
    }

    /// The socket that a worker is lent.
    pub(crate) fn lend(&self, worker: WorkerId) -> SocketId {
        self.steering.as_ref().and_then(|steering| steering.socket_of(worker)).unwrap_or(self.socket)
    }
}

/// All listeners.
#[derive(Debug)]
pub(crate) struct ListenTable<C> {
    listeners: BTreeMap<ListenerId, Listener<C>>,
    next: u32,
    next_socket: u32,
}

impl<C> Default for ListenTable<C> {
    fn default() -> ListenTable<C> {
        ListenTable { listeners: BTreeMap::new(), next: 0, next_socket: 0 }
    }
}

/// What a new listener is made of.
pub(crate) struct NewListener {
    pub(crate) key: String,
    pub(crate) name: Option<String>,
    pub(crate) spec: BindSpec,
    pub(crate) wanted: Policy,
    pub(crate) needs_socket: bool,
    pub(crate) backlog: u32,
    pub(crate) pending_max: usize,
}

impl<C> ListenTable<C> {
    /// It has no mechanism yet.
    pub(crate) fn insert(&mut self, new: NewListener) -> ListenerId {
        let id = ListenerId(self.next);
        let socket = self.new_socket();
        self.next += 1;
        self.listeners.insert(
            id,
            Listener {
                line: NewConnectionLine::new(&new.key),
                key: new.key,
                name: new.name,
                spec: new.spec,
                mechanism: Mechanism::Auto,
                policy: new.wanted,
                why: Cow::Borrowed(""),
                wanted: new.wanted,
                needs_socket: new.needs_socket,
                progress: Progress::Binding(Vec::new()),
                socket,
                steering: None,
                joining: Vec::new(),
                backlog: new.backlog,
                data: None,
                dispatch: Dispatch::new(new.wanted.instance(), new.pending_max),
                counts: BTreeMap::new(),
                accepting: false,
                paused: false,
                starved: None,
                resting: false,
                open: BTreeMap::new(),
                counted: false,
            },
        );
        id
    }

    /// A name for a socket; never used again.
    pub(crate) fn new_socket(&mut self) -> SocketId {
        let socket = SocketId(self.next_socket);
        self.next_socket += 1;
        socket
    }

    pub(crate) fn get(&self, id: ListenerId) -> Option<&Listener<C>> {
        self.listeners.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ListenerId) -> Option<&mut Listener<C>> {
        self.listeners.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: ListenerId) -> Option<Listener<C>> {
        self.listeners.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ListenerId, &Listener<C>)> {
        self.listeners.iter().map(|(id, listener)| (*id, listener))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ListenerId, &mut Listener<C>)> {
        self.listeners.iter_mut().map(|(id, listener)| (*id, listener))
    }

    pub(crate) fn ids(&self) -> Vec<ListenerId> {
        self.listeners.keys().copied().collect()
    }

    pub(crate) fn by_key(&self, key: &str) -> Option<ListenerId> {
        self.iter().find(|(_, listener)| listener.key == key).map(|(id, _)| id)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<ListenerId> {
        self.iter().find(|(_, listener)| listener.name.as_deref() == Some(name)).map(|(id, _)| id)
    }

    pub(crate) fn by_socket(&self, socket: SocketId) -> Option<ListenerId> {
        self.iter().find(|(_, listener)| listener.socket == socket).map(|(id, _)| id)
    }

    /// The configured listener for an endpoint, however it is spelled.
    pub(crate) fn configured(&self, spec: &BindSpec) -> Option<ListenerId> {
        self.iter()
            .find(|(_, listener)| {
                listener.name.is_some() && (same_endpoint(&listener.spec, spec) || listener.sits_at(spec))
            })
            .map(|(id, _)| id)
    }

    /// A configured listener by its number for LISTEN_FDS: 3 is the first. Never a raw number of the primary's.
    pub(crate) fn by_number(&self, number: i32) -> Option<ListenerId> {
        let at = usize::try_from(number.checked_sub(3)?).ok()?;
        self.iter().filter(|(_, listener)| listener.name.is_some()).nth(at).map(|(id, _)| id)
    }

    /// The listener of ours that keeps a new one from being bound.
    pub(crate) fn holder(&self, spec: &BindSpec, except: ListenerId) -> Option<&str> {
        self.iter()
            .find(|(id, listener)| {
                *id != except
                    && listener.is_bound()
                    && (clash(&listener.spec, spec) || listener.sits_at(spec))
            })
            .map(|(_, listener)| listener.key.as_str())
    }

    /// How many listeners a worker holds or waits for.
    pub(crate) fn held_by(&self, worker: WorkerId) -> usize {
        self.iter().filter(|(_, listener)| listener.involves(worker)).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }
}

/// The endpoint of a TCP or UDP spec: family-blind for wildcards.
fn endpoint(spec: &BindSpec) -> Option<(bool, Option<IpAddr>, u16)> {
    let (stream, address, port) = match spec {
        BindSpec::Tcp { address, port, .. } => (true, *address, *port),
        BindSpec::Udp { address, port, .. } => (false, Some(*address), *port),
        BindSpec::Unix { .. } | BindSpec::Inherited { .. } => return None,
    };
    Some((stream, address.filter(|ip| !ip.is_unspecified()), port))
}

fn same_endpoint(a: &BindSpec, b: &BindSpec) -> bool {
    match (a, b) {
        (BindSpec::Unix { path: a, .. }, BindSpec::Unix { path: b, .. }) => a == b,
        (BindSpec::Inherited { index: a, .. }, BindSpec::Inherited { index: b, .. }) => a == b,
        _ => match (endpoint(a), endpoint(b)) {
            (Some(a), Some(b)) => a == b && a.2 != 0,
            _ => false,
        },
    }
}

fn clash(a: &BindSpec, b: &BindSpec) -> bool {
    match (endpoint(a), endpoint(b)) {
        (Some((stream_a, ip_a, port_a)), Some((stream_b, ip_b, port_b))) => {
            stream_a == stream_b && port_a == port_b && (ip_a == ip_b || ip_a.is_none() || ip_b.is_none())
        }
        _ => same_endpoint(a, b),
    }
}

/// What a request asks to bind; an error number if it makes no sense.
pub(crate) fn spec_of(request: &ListenRequest) -> Result<BindSpec, i32> {
    let v6only = request.flags & 1 != 0;
    let address = |text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        // A zone index names an interface that only the worker's resolver knew about.
        Some(text) => text.parse::<IpAddr>().map(Some).map_err(|_| errno::EINVAL),
    };
    let port = || u16::try_from(request.port.unwrap_or(0)).map_err(|_| errno::EINVAL);
    match request.family {
        Some(Family::Unix) => {
            let path = request.address.clone().filter(|path| !path.is_empty()).ok_or(errno::EINVAL)?;
            if path.contains('\0') {
                return Err(errno::EINVAL);
            }
            Ok(BindSpec::Unix {
                path,
                mode: request.mode,
                readable_all: request.readable_all,
                writable_all: request.writable_all,
            })
        }
        Some(Family::Tcp4 | Family::Tcp6) | None => {
            Ok(BindSpec::Tcp { address: address(&request.address)?, port: port()?, v6only })
        }
        Some(family @ (Family::Udp4 | Family::Udp6)) => {
            let any = if family == Family::Udp4 {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            } else {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            };
            Ok(BindSpec::Udp {
                address: address(&request.address)?.unwrap_or(any),
                port: port()?,
                v6only,
                reuse_addr: request.flags & 4 != 0,
            })
        }
    }
}

/// The key of a configured listener, as if a worker had asked for it (KEY-01, the form of Node v20).
pub(crate) fn key_of(spec: &BindSpec) -> String {
    match spec {
        BindSpec::Tcp { address: None, port, .. } => format!("null:{port}:4:undefined:0"),
        BindSpec::Tcp { address: Some(ip), port, .. } => {
            format!("{ip}:{port}:{}:undefined:0", if ip.is_ipv4() { 4 } else { 6 })
        }
        BindSpec::Udp { address, port, .. } => {
            format!("{address}:{port}:udp{}:-1:0", if address.is_ipv4() { 4 } else { 6 })
        }
        BindSpec::Unix { path, .. } => format!("{path}:-1:-1:undefined:0"),
        BindSpec::Inherited { index, .. } => format!("null:null:null:{}:0", index + 3),
    }
}

/// How a listener gets its connections to workers, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) mechanism: Mechanism,
    pub(crate) policy: Policy,
    pub(crate) why: Cow<'static, str>,
    /// In steering: what chooses.
    pub(crate) engine: Engine,
}

/// Engines that were refused here, with the reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) exact: Option<String>,
    pub(crate) even: Option<String>,
}

/// What is asked of the choice of a mechanism.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) mechanism: Mechanism,
    pub(crate) policy: Policy,
    /// The worker needs the listening socket itself: it has no channel, or asked for it.
    pub(crate) needs_socket: bool,
    pub(crate) refused: &'a Refusals,
}

/// The mechanism for a listener: the best that can deliver the policy, and why.
///
/// # Errors
///
/// EOPNOTSUPP when what was asked for cannot be had.
pub(crate) fn choose(wanted: Wanted<'_>, spec: &BindSpec) -> Result<Choice, i32> {
    let Wanted { mechanism, policy, needs_socket, refused } = wanted;
    let choice = |mechanism, policy, why: Cow<'static, str>| {
        Ok(Choice { mechanism, policy, why, engine: Engine::Exact })
    };
    let share = |why| choice(Mechanism::Share, Policy::None, why);
    if !spec.is_stream() {
        return match (mechanism, &refused.exact) {
            (Mechanism::Steer, None) => choice(Mechanism::Steer, Policy::None, "forced: by flow".into()),
            (Mechanism::Steer, Some(why)) => share(format!("steering is not possible here: {why}").into()),
            (Mechanism::Auto | Mechanism::Handoff | Mechanism::Share, _) => {
                share("UDP is shared unless steering is forced".into())
            }
        };
    }
    let unsteerable: Option<Cow<'static, str>> = match spec {
        BindSpec::Unix { .. } => Some("a Unix socket has one queue".into()),
        BindSpec::Inherited { .. } => Some("an inherited socket cannot be joined by others".into()),
        BindSpec::Tcp { .. } | BindSpec::Udp { .. } if policy == Policy::Custom => {
            Some("a policy of your own runs in the primary".into())
        }
        BindSpec::Tcp { .. } | BindSpec::Udp { .. } => {
            refused.exact.as_ref().map(|why| format!("steering is not possible here: {why}").into())
        }
    };
    match (mechanism, unsteerable) {
        (Mechanism::Share, _) => share("forced".into()),
        (Mechanism::Handoff, _) if needs_socket => Err(errno::EOPNOTSUPP),
        (Mechanism::Handoff, _) => choice(Mechanism::Handoff, policy, "forced".into()),
        (Mechanism::Auto | Mechanism::Steer, _) if policy == Policy::None => {
            share("the policy leaves it to the operating system".into())
        }
        (Mechanism::Auto | Mechanism::Steer, None) => {
            let forced = mechanism == Mechanism::Steer;
            let why = if forced { "forced" } else { "the kernel can choose by this policy" };
            choice(Mechanism::Steer, policy, why.into())
        }
        (Mechanism::Steer, Some(why))
            if policy == Policy::RoundRobin
                && matches!(spec, BindSpec::Tcp { .. })
                // What waits for one that dies can only be handed over, and not to those who hold sockets.
                && !needs_socket
                && refused.even.is_none() =>
        {
            let why = format!("{why}; forced, so at random instead of in turn").into();
            Ok(Choice { mechanism: Mechanism::Steer, policy, why, engine: Engine::Even })
        }
        (Mechanism::Auto | Mechanism::Steer, Some(why)) if needs_socket => share(why),
        (Mechanism::Auto | Mechanism::Steer, Some(why)) => choice(Mechanism::Handoff, policy, why),
    }
}

/// How the kernel's program chooses by a policy.
pub(crate) fn rule_of(spec: &BindSpec, policy: Policy) -> Rule {
    match policy {
        _ if !spec.is_stream() => Rule::Flow,
        Policy::RoundRobin | Policy::None | Policy::Custom => Rule::Rotate,
        Policy::Sticky => Rule::Sticky,
        Policy::LeastConnections => Rule::Least,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: Option<&str>, port: u16) -> BindSpec {
        BindSpec::Tcp { address: address.map(|a| a.parse().unwrap()), port, v6only: false }
    }

    #[test]
    fn a_configured_endpoint_is_found_however_it_is_spelled() {
        assert!(same_endpoint(&tcp(None, 80), &tcp(Some("0.0.0.0"), 80)));
        assert!(same_endpoint(&tcp(Some("::"), 80), &tcp(Some("0.0.0.0"), 80)));
        assert!(!same_endpoint(&tcp(Some("127.0.0.1"), 80), &tcp(Some("0.0.0.0"), 80)));
        assert!(!same_endpoint(&tcp(None, 0), &tcp(None, 0)), "port 0 is never the same");
        assert!(clash(&tcp(Some("127.0.0.1"), 80), &tcp(Some("0.0.0.0"), 80)));
    }

    #[test]
    fn the_mechanism_follows_policy_need_and_what_is_possible() {
        use Mechanism::{Auto, Handoff, Share, Steer};
        let t = tcp(None, 80);
        let udp =
            BindSpec::Udp { address: "0.0.0.0".parse().unwrap(), port: 1, v6only: false, reuse_addr: false };
        let no = Refusals { exact: Some("no CAP_BPF".to_owned()), even: None };
        let pick = |mechanism, policy, spec: &BindSpec, needs_socket, refused: &Refusals| {
            choose(Wanted { mechanism, policy, needs_socket, refused }, spec)
                .map(|choice| (choice.mechanism, choice.policy, choice.engine))
        };
        let yes = Refusals::default();
        let (rr, sticky) = (Policy::RoundRobin, Policy::Sticky);
        assert_eq!(pick(Auto, rr, &t, false, &yes), Ok((Steer, rr, Engine::Exact)));
        assert_eq!(pick(Auto, sticky, &t, true, &yes), Ok((Steer, sticky, Engine::Exact)));
        assert_eq!(pick(Auto, rr, &t, false, &no), Ok((Handoff, rr, Engine::Exact)));
        assert_eq!(pick(Auto, sticky, &t, true, &no), Ok((Share, Policy::None, Engine::Exact)));
        assert_eq!(pick(Steer, rr, &t, false, &no), Ok((Steer, rr, Engine::Even)));
        assert_eq!(pick(Steer, rr, &t, true, &no), Ok((Share, Policy::None, Engine::Exact)));
        assert_eq!(pick(Steer, sticky, &t, false, &no), Ok((Handoff, sticky, Engine::Exact)));
        assert_eq!(pick(Auto, Policy::None, &t, false, &yes), Ok((Share, Policy::None, Engine::Exact)));
        assert_eq!(pick(Handoff, sticky, &t, true, &yes), Err(errno::EOPNOTSUPP));
        assert_eq!(pick(Handoff, rr, &udp, false, &yes), Ok((Share, Policy::None, Engine::Exact)));
        assert_eq!(pick(Steer, rr, &udp, false, &yes), Ok((Steer, Policy::None, Engine::Exact)));
        let custom = Policy::Custom;
        assert_eq!(pick(Auto, custom, &t, false, &yes), Ok((Handoff, custom, Engine::Exact)));
    }
}
