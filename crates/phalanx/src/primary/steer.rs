//! Groups of sockets, as core wants them.

use super::driver::{Door, Driver};
use super::sockets::{self, Socket};
use super::tasks;
use phalanx_core::steer::{Budget, Counted, Engine, GroupFacts, GuardFacts, PlaceFacts, Rule};
use phalanx_core::{Action, BindSpec, BoundAddress, GroupError, Place, SocketId, WorkerId};
use phalanx_os::steer::{self, Even, Exact, Group, MAX_PLACES, Transport, Watch, allows, diag};
use phalanx_os::{conn, listener};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::task::AbortHandle;

/// One group, with what chooses in it.
#[derive(Debug)]
pub(super) struct Steered {
    group: Group,
    transport: Transport,
    chooser: Chooser,
    members: BTreeMap<u32, Member>,
    ring: Vec<u32>,
    watch: Arc<Watch>,
    /// The task that waits for connections to wait, while it does.
    pub(super) watching: Option<AbortHandle>,
}

#[derive(Debug)]
enum Chooser {
    Exact(Box<Exact>),
    Even(Even),
}

#[derive(Debug)]
struct Member {
    fd: Arc<OwnedFd>,
    tag: u32,
}

impl Steered {
    pub(super) fn open(
        spec: &BindSpec,
        backlog: u32,
        engine: Engine,
        rule: Rule,
    ) -> Result<(Steered, BoundAddress), GroupError> {
        let (transport, ip, port, v6only) = match spec {
            BindSpec::Tcp { address, port, v6only } => (Transport::Tcp, *address, *port, *v6only),
            BindSpec::Udp { address, port, v6only, .. } => (Transport::Udp, Some(*address), *port, *v6only),
            _ => return Err(GroupError::Address(22)),
        };
        // BEFORE the address is taken: who cannot steer must not have held it for a moment.
        let chooser = match engine {
            Engine::Even => Chooser::Even(Even::new()),
            Engine::Exact => Chooser::Exact(Box::new(load(transport, rule).map_err(GroupError::Engine)?)),
        };
        let open = |ip: IpAddr| Group::open(transport, SocketAddr::new(ip, port), v6only, backlog);
        let group = match ip {
            Some(ip) => open(ip),
            // Any address means both families, or IPv4 where there is no IPv6 (LISTEN-04).
            None => open(Ipv6Addr::UNSPECIFIED.into()).or_else(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    Err(error)
                } else {
                    open(Ipv4Addr::UNSPECIFIED.into())
                }
            }),
        };
        let address = |error: io::Error| GroupError::Address(error.raw_os_error().unwrap_or(22));
        let group = group.map_err(address)?;
        let watch = Watch::new().map_err(address)?;
        watch.add(group.park()).map_err(address)?;
        let bound = BoundAddress::Inet(group.address());
        let steered = Steered {
            group,
            transport,
            chooser,
            members: BTreeMap::new(),
            ring: Vec::new(),
            watch: Arc::new(watch),
            watching: None,
        };
        Ok((steered, bound))
    }

    pub(super) fn park(&self) -> &Arc<OwnedFd> {
        self.group.park()
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    pub(super) fn join(&mut self, Place(place): Place, tag: u32, backlog: u32) -> io::Result<Arc<OwnedFd>> {
        let fd = self.group.join()?;
        if self.transport == Transport::Tcp {
            listener::listen(&fd, backlog)?;
        }
        match &mut self.chooser {
            Chooser::Exact(exact) => {
                exact.set(place, tag, &fd)?;
                // A socket that is alone has no group; so the first member brings the program.
                exact.open(self.group.park(), &fd)?;
            }
            Chooser::Even(even) => {
                even.joined(place);
                even.choose(&fd, &self.ring)?;
            }
        }
        self.watch.add(&fd)?;
        let fd = Arc::new(fd);
        self.members.insert(place, Member { fd: Arc::clone(&fd), tag });
        Ok(fd)
    }

    pub(super) fn choose(&mut self, ring: &[Place]) -> io::Result<()> {
        self.ring = ring.iter().map(|place| place.0).collect();
        match &mut self.chooser {
            Chooser::Exact(exact) => {
                exact.ring(&self.ring);
                Ok(())
            }
            Chooser::Even(even) => match self.members.values().next() {
                Some(member) => even.choose(&member.fd, &self.ring),
                None => Ok(()),
            },
        }
    }

    pub(super) fn budget(&self, budgets: &[Budget]) {
        if let Chooser::Exact(exact) = &self.chooser {
            for budget in budgets {
                exact.budget(budget.place.0, budget.base, budget.limit);
            }
        }
    }

    pub(super) fn gone(&self, gone: &[(Place, u64)]) {
        if let Chooser::Exact(exact) = &self.chooser {
            for (place, gone) in gone {
                exact.set_gone(place.0, *gone);
            }
        }
    }

    /// Returns how many were moved: the kernel does it before the call returns.
    pub(super) fn rescue(&mut self, place: Option<Place>, backlog: u32) -> io::Result<u64> {
        let before = self.moved();
        self.flush(place, backlog)?;
        Ok(self.moved() - before)
    }

    fn moved(&self) -> u64 {
        match &self.chooser {
            Chooser::Exact(exact) => {
                let members = self.members.keys().map(|&place| exact.counts(place).moved_in);
                members.sum::<u64>() + exact.totals().parked
            }
            Chooser::Even(_) => 0,
        }
    }

    /// Without the program what waits would be reset, and any worker can take it off. BEFORE anything is moved.
    fn attach(&self) {
        let listening = self.members.values().find(|member| self.listens(member));
        if let (Chooser::Exact(exact), Some(member)) = (&self.chooser, listening) {
            let _ = exact.open(self.group.park(), &member.fd);
        }
    }

    /// One that was shut down would get a group of its own by a program, and could never listen with the others
    /// again.
    fn listens(&self, member: &Member) -> bool {
        self.transport == Transport::Udp || listener::queue(&member.fd).is_ok()
    }

    fn flush(&mut self, place: Option<Place>, backlog: u32) -> io::Result<()> {
        self.attach();
        let Some(Place(place)) = place else {
            steer::flush(self.group.park(), backlog)?;
            self.attach();
            return Ok(());
        };
        let member = self.members.get(&place).ok_or(io::ErrorKind::NotFound)?;
        steer::flush(&member.fd, backlog)?;
        match &mut self.chooser {
            Chooser::Exact(exact) => exact.set(place, member.tag, &member.fd),
            Chooser::Even(even) => {
                // Leaving and joining again: it is the last now.
                even.left(place);
                even.joined(place);
                even.choose(&member.fd, &self.ring)
            }
        }
    }

    /// Closes a member. One whose worker is dead may still be held by what that has left behind: so it is shut
    /// down as well.
    pub(super) fn part(&mut self, Place(place): Place, orphaned: bool) {
        self.attach();
        let Some(member) = self.members.remove(&place) else { return };
        let _ = self.watch.remove(&member.fd);
        if self.transport == Transport::Tcp && orphaned {
            steer::shut_down(&member.fd);
        }
        match &mut self.chooser {
            // The kernel drops the entry by itself, unless others hold the socket and it is UDP.
            Chooser::Exact(exact) => drop(exact.clear(place)),
            Chooser::Even(even) => {
                even.left(place);
                if let Some(other) = self.members.values().next() {
                    let _ = even.choose(&other.fd, &self.ring);
                }
            }
        }
    }

    /// What waits there, for whoever accepts it by hand.
    pub(super) fn drain(&self, fd: &OwnedFd) -> Vec<(OwnedFd, Option<SocketAddr>)> {
        // Whether it blocks is the same for everybody who holds it, and its worker may have wanted it to.
        if conn::set_nonblocking(fd, true).is_err() {
            return Vec::new();
        }
        std::iter::from_fn(|| listener::accept(fd).ok()).collect()
    }

    pub(super) fn look(&self, busy: impl Fn(Place) -> Option<bool>) -> GroupFacts {
        let queue = |fd: &OwnedFd| listener::queue(fd).ok();
        let (totals, exact) = match &self.chooser {
            Chooser::Exact(exact) => (exact.totals(), Some(exact)),
            Chooser::Even(_) => (steer::Totals::default(), None),
        };
        let places = self.members.iter().map(|(&place, member)| {
            let mut facts = PlaceFacts::new(Place(place));
            // The queue BEFORE the counts: what comes in between looks taken, never stuck.
            if self.transport == Transport::Tcp {
                match queue(&member.fd) {
                    Some(queue) => {
                        facts.queued = queue.queued;
                        facts.queue_limit = queue.limit;
                    }
                    None => facts.listening = false,
                }
            }
            if let Some(exact) = exact {
                let counts = exact.counts(place);
                facts.assigned = counts.syn;
                facts.by_cookie = counts.ack;
                facts.moved_in = counts.moved_in;
                facts.given = counts.given;
            }
            facts.busy = busy(Place(place));
            facts
        });
        GroupFacts {
            places: places.collect(),
            park_queued: match self.transport {
                Transport::Tcp => queue(self.group.park()).map_or(0, |queue| queue.queued),
                Transport::Udp => 0,
            },
            parked: totals.parked,
            odd: totals.odd,
            failed: totals.failed,
        }
    }

    /// Puts right what a worker may have done, and counts who else listens here.
    pub(super) fn guard(&self) -> GuardFacts {
        let mut found = GuardFacts::default();
        match &self.chooser {
            Chooser::Exact(exact) => {
                self.attach();
                for (&place, member) in &self.members {
                    let there = exact.cookie(place).ok().flatten();
                    // One that does not listen is noticed by the next look.
                    if self.listens(member) && there != conn::cookie(&member.fd).ok() {
                        let _ = exact.set(place, member.tag, &member.fd);
                        found.lost.push(Place(place));
                    }
                }
            }
            Chooser::Even(even) => {
                if let Some(member) = self.members.values().find(|member| self.listens(member)) {
                    let _ = even.choose(&member.fd, &self.ring);
                }
            }
        }
        found.strangers = self.strangers().unwrap_or(0);
        found
    }

    fn strangers(&self) -> io::Result<u32> {
        let address = self.group.address();
        let ours: BTreeSet<u64> = self
            .members
            .values()
            .map(|member| &member.fd)
            .chain([self.group.park()])
            .filter_map(|fd| conn::cookie(fd).ok())
            .collect();
        let meets = |other: SocketAddr| {
            other == address || address.ip().is_unspecified() || other.ip().is_unspecified()
        };
        let all = diag::listeners(self.transport, address.port())?;
        Ok(all.iter().filter(|each| meets(each.address) && !ours.contains(&each.cookie)).count() as u32)
    }

    /// Open connections by place.
    pub(super) fn count(&self) -> io::Result<Vec<Counted>> {
        let Chooser::Exact(exact) = &self.chooser else { return Ok(Vec::new()) };
        // BEFORE the dump: what is given meanwhile counts as open, never the other way round.
        let given: BTreeMap<u32, u64> =
            self.members.keys().map(|&place| (place, exact.counts(place).given)).collect();
        let open = exact.open_connections()?;
        let counted = self.members.iter().map(|(place, member)| {
            let count = open.get(&member.tag).copied().unwrap_or_default();
            Counted { place: Place(*place), given: given[place], open: count.accepted, queued: count.queued }
        });
        Ok(counted.collect())
    }

    pub(super) fn poke(fd: impl AsFd) {
        // It does not listen any more: then nobody waits.
        let _ = steer::poke(fd);
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        if let Some(task) = self.watching.take() {
            task.abort();
        }
    }
}

/// Loads the program; a filter that would kill us for trying kills a child instead.
fn load(transport: Transport, rule: Rule) -> Result<Exact, String> {
    const { assert!(MAX_PLACES >= 1024) };
    if let Some(signal) = allows::kills_for_it() {
        return Err(format!(
            "a seccomp filter kills for bpf(2) (signal {signal}): let it refuse, or allow it"
        ));
    }
    let rule = match rule {
        Rule::Rotate | Rule::Flow => steer::Rule::Rotate,
        Rule::Sticky => steer::Rule::Sticky,
        Rule::Least => steer::Rule::Least,
    };
    Exact::load(transport, rule).map_err(|error| error.to_string())
}

impl Driver {
    /// Does what core wants of a group.
    pub(super) fn steer(&mut self, action: Action) {
        match action {
            Action::Group { group, spec, backlog, engine, rule, .. } => {
                let result = Steered::open(&spec, backlog, engine, rule).map(|(steered, address)| {
                    let park = Socket::new(Arc::clone(steered.park()), None);
                    self.doors.insert(group, Door { socket: park, accepting: None });
                    self.groups.insert(group, steered);
                    address
                });
                self.core.handle_grouped(group, result);
            }
            Action::Join { group, socket, place, tag, backlog } => {
                let joined = match self.groups.get_mut(&group) {
                    Some(steered) => steered.join(place, tag, backlog),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                let joined = joined.map(|fd| {
                    let socket_of = Socket::new(fd, None);
                    self.doors.insert(socket, Door { socket: socket_of, accepting: None });
                });
                let joined = joined.map_err(|error| error.raw_os_error().unwrap_or(22));
                self.core.handle_joined(socket, joined);
            }
            Action::Ring { group, ring } => {
                self.steered(group, |steered| steered.choose(&ring));
            }
            Action::Budgets { group, budgets } => {
                self.steered(group, |steered| {
                    steered.budget(&budgets);
                    Ok(())
                });
            }
            Action::Gone { group, gone } => {
                self.steered(group, |steered| {
                    steered.gone(&gone);
                    Ok(())
                });
            }
            Action::Rescue { group, socket, place, backlog } => {
                let mut moved = 0;
                self.steered(group, |steered| {
                    moved = steered.rescue(place, backlog)?;
                    Ok(())
                });
                self.core.handle_rescued(group, socket, moved);
            }
            Action::Drain { group, socket } => self.drain(group, socket),
            Action::Poke { sockets } => {
                for door in sockets.iter().filter_map(|socket| self.doors.get(socket)) {
                    Steered::poke(door.socket.fd.as_ref());
                }
            }
            Action::Part { group, socket, place, orphaned } => {
                self.steered(group, |steered| {
                    steered.part(place, orphaned);
                    Ok(())
                });
                self.doors.remove(&socket);
            }
            Action::WatchQueues { group } => {
                if let Some(steered) = self.groups.get_mut(&group) {
                    let task = tasks::stir(self.me.clone(), group, Arc::clone(steered.watch()));
                    steered.watching = Some(tokio::task::spawn_local(task).abort_handle());
                }
            }
            Action::Look { group, busy } => self.look(group, &busy),
            Action::Guard { group } => {
                if let Some(steered) = self.groups.get(&group) {
                    let found = steered.guard();
                    self.core.handle_guarded(group, &found);
                }
            }
            Action::Count { socket } => self.count(socket),
            other => tracing::error!(?other, "an action that this driver does not know"),
        }
    }

    fn steered(&mut self, group: SocketId, step: impl FnOnce(&mut Steered) -> io::Result<()>) {
        if let Some(steered) = self.groups.get_mut(&group)
            && let Err(error) = step(steered)
        {
            tracing::error!(%error, "cannot steer");
        }
    }

    pub(super) fn look(&mut self, group: SocketId, busy: &[(Place, WorkerId)]) {
        let Some(steered) = self.groups.get(&group) else { return };
        let facts = steered.look(|place| {
            let (_, worker) = busy.iter().find(|(asked, _)| *asked == place)?;
            phalanx_os::host::is_busy(self.children.get(worker)?.process.pid()).ok()
        });
        let now = self.now();
        self.core.handle_looked(now, group, &facts);
    }

    fn drain(&mut self, group: SocketId, socket: SocketId) {
        let (Some(steered), Some(door)) = (self.groups.get(&group), self.doors.get(&socket)) else { return };
        for (connection, peer) in steered.drain(&door.socket.fd) {
            self.core.handle_connection(group, peer.map(Into::into), connection);
        }
    }

    pub(super) fn count(&mut self, socket: SocketId) {
        if let Some(steered) = self.groups.get(&socket) {
            match steered.count() {
                Ok(counted) => {
                    let now = self.now();
                    self.core.handle_counted(now, socket, &counted);
                }
                Err(error) => tracing::debug!(%error, "cannot count open connections"),
            }
        } else if let Some(door) = self.doors.get(&socket) {
            let open = sockets::open_peers(door.socket.fd.as_ref());
            if let Err(error) = &open {
                tracing::debug!(%error, "cannot count open connections");
            }
            self.core.handle_peers(socket, open.ok().as_ref());
        }
    }
}
