//! Listen requests: who may listen where, and who is answered when.

use super::Primary;
use super::seat::{Carry, Receipt};
use crate::dispatch::Dispatch;
use crate::lifecycle::Speaks;
use crate::listen::{
    Choice, NewListener, Progress, Waiting, Wanted, choose, errno, key_of, rule_of, spec_of,
};
use crate::policy::{Candidate, Policy};
use crate::steer::Steering;
use crate::timer::Timer;
use crate::wire::{HandleKind, ListenRequest, Message, Reply, Seq, SockName};
use crate::{
    Action, BindSpec, BoundAddress, Event, ListenerId, ListeningInfo, Mechanism, Slot, SocketId, State, Time,
    WorkerId,
};
use serde_json::value::RawValue;

/// Why a worker leaves a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It closed that server.
    Closed,
    /// It leaves altogether, or is dead.
    Altogether,
}

impl<C> Primary<C> {
    /// Makes a listener that the configuration names. It stays, whoever comes or goes, until everything stops.
    /// [`Event::Bound`] or [`Event::BindFailed`] follows.
    ///
    /// # Errors
    ///
    /// The name is taken, or the mechanism cannot be had for it, as a sentence.
    pub fn configure_listener(
        &mut self,
        name: &str,
        spec: BindSpec,
        needs_socket: bool,
    ) -> Result<ListenerId, String> {
        if self.listeners.by_name(name).is_some() {
            return Err(format!("two listeners are called `{name}`: give each a name of its own"));
        }
        let policy = self.config.policy;
        let choice = self.choose(policy, needs_socket, &spec).map_err(|_| {
            format!("listener `{name}`: hand-off needs a channel, which a plain program does not have")
        })?;
        let key = key_of(&spec);
        Ok(self.bind(key, Some(name.to_owned()), spec, policy, choice, needs_socket, 0))
    }

    /// The answer to [`Action::Bind`]: the address, or the system's error number.
    pub fn handle_bound(&mut self, socket: SocketId, result: Result<BoundAddress, i32>) {
        let Some(id) = self.listeners.by_socket(socket) else { return };
        let Some(listener) = self.listeners.get_mut(id) else { return };
        match result {
            Ok(address) => {
                let before = std::mem::replace(&mut listener.progress, Progress::Bound(address.clone()));
                if let Some(name) = &listener.name {
                    self.events.push_back(Event::Bound { name: name.clone(), address });
                }
                if let Progress::Binding(waiting) = before {
                    for Waiting { worker, seq } in waiting {
                        self.join(id, worker, seq);
                    }
                }
                // Everybody who asked may be gone by now.
                self.close_if_empty(id);
            }
            Err(errno) => {
                let Some(listener) = self.listeners.remove(id) else { return };
                let held_by = self.listeners.holder(&listener.spec, id).map(str::to_owned);
                self.events.push_back(Event::BindFailed {
                    key: listener.key.clone(),
                    errno,
                    held_by,
                    configured: listener.name.is_some(),
                });
                if let Progress::Binding(waiting) = listener.progress {
                    for Waiting { worker, seq } in waiting {
                        let data = listener.data.clone();
                        self.refuse(worker, seq, &listener.key, data, errno);
                    }
                }
            }
        }
    }

    /// The address of a configured listener, once bound.
    pub fn address_of(&self, name: &str) -> Option<&BoundAddress> {
        self.listeners.by_name(name).and_then(|id| self.listeners.get(id)).and_then(|l| l.address())
    }

    /// A worker asks to listen.
    pub(super) fn query(&mut self, worker: WorkerId, seq: Seq, mut request: ListenRequest) {
        let Some(seat) = self.seats.get(&worker) else { return };
        if seat.life.state() > State::Listening {
            // A Node worker that gets an error while it drains crashes on it; left alone it drains (ruled).
            if self.config.speaks != Speaks::Node {
                self.refuse(worker, seq, &request.key(), None, errno::ECANCELED);
            }
            return;
        }
        let data = request.data.take();
        match self.place(worker, &mut request) {
            Ok(id) => {
                let Some(listener) = self.listeners.get_mut(id) else { return };
                if listener.data.is_none() {
                    listener.data = data;
                }
                let backlog = request.backlog;
                if backlog > listener.backlog {
                    listener.backlog = backlog;
                    if listener.is_bound() {
                        let members = listener.steering.iter().flat_map(|steering| steering.sockets());
                        let all = members.chain([listener.socket]);
                        self.actions.extend(all.map(|socket| Action::Listen { socket, backlog }));
                    }
                }
                match &mut listener.progress {
                    Progress::Binding(waiting) => waiting.push(Waiting { worker, seq }),
                    Progress::Bound(_) => self.join(id, worker, seq),
                }
            }
            Err(errno) => {
                let key = request.key();
                let known = self.listeners.by_key(&key).and_then(|id| self.listeners.get(id));
                let data = known.and_then(|listener| listener.data.clone()).or(data);
                if errno == errno::EACCES {
                    self.events.push_back(Event::BindFailed {
                        key: key.clone(),
                        errno,
                        held_by: None,
                        configured: false,
                    });
                }
                self.refuse(worker, seq, &key, data, errno);
            }
        }
    }

    /// The listener for a request: one that exists, or a new one.
    fn place(&mut self, worker: WorkerId, request: &mut ListenRequest) -> Result<ListenerId, i32> {
        if self.listeners.held_by(worker) >= self.config.max_listeners {
            return Err(errno::EMFILE);
        }
        if let Some(name) = &request.name {
            let id = self.listeners.by_name(name).ok_or(errno::ENOENT)?;
            return self.join_existing(id, worker, request);
        }
        if let Some(number) = request.fd.filter(|fd| *fd >= 0) {
            // FD-01 as ruled.
            let id = self.listeners.by_number(number).ok_or(errno::EINVAL)?;
            return self.join_existing(id, worker, request);
        }
        let spec = spec_of(request)?;
        let anonymous = matches!(&spec, BindSpec::Tcp { port: 0, .. } | BindSpec::Udp { port: 0, .. });
        let several = matches!(&spec, BindSpec::Udp { reuse_addr: true, .. });
        if several || (anonymous && request.index.is_none()) {
            request.index = Some(self.count_index(worker, request));
        } else if !anonymous {
            // Node's ordinal counts what has failed, too. Whether a worker asks twice for one endpoint is a matter
            // of membership, before any bind is tried (DEC-08, DEF-39).
            request.index = Some(0);
        }
        if let Some(id) = self.find(request, &spec) {
            return self.join_existing(id, worker, request);
        }
        if self.config.only_configured && !anonymous {
            return Err(errno::EACCES);
        }
        let policy = match &request.policy {
            Some(policy) => policy.parse::<Policy>().map_err(|_| errno::EINVAL)?,
            None => self.config.policy,
        };
        let choice = self.choose(policy, request.socket, &spec)?;
        Ok(self.bind(request.key(), None, spec, policy, choice, request.socket, request.backlog))
    }

    fn choose(&self, policy: Policy, needs_socket: bool, spec: &BindSpec) -> Result<Choice, i32> {
        let wanted =
            Wanted { mechanism: self.config.mechanism, policy, needs_socket, refused: &self.refused };
        choose(wanted, spec)
    }

    fn join_existing(
        &self,
        id: ListenerId,
        worker: WorkerId,
        request: &ListenRequest,
    ) -> Result<ListenerId, i32> {
        let listener = self.listeners.get(id).ok_or(errno::EINVAL)?;
        if !request.fits(listener.spec.kind()) {
            Err(errno::EPROTOTYPE)
        } else if listener.involves(worker) {
            Err(errno::EADDRINUSE)
        } else if request.socket && listener.mechanism == Mechanism::Handoff {
            Err(errno::EOPNOTSUPP)
        } else {
            Ok(id)
        }
    }

    fn find(&self, request: &ListenRequest, spec: &BindSpec) -> Option<ListenerId> {
        self.listeners.by_key(&request.key()).or_else(|| self.listeners.configured(spec))
    }

    /// For a worker that does not count (v0.12), or whose count does not matter: the first index that it does not
    /// hold.
    fn count_index(&self, worker: WorkerId, request: &ListenRequest) -> u32 {
        let mut request = request.clone();
        (0..)
            .find(|&index| {
                request.index = Some(index);
                self.listeners
                    .by_key(&request.key())
                    .and_then(|id| self.listeners.get(id))
                    .is_none_or(|listener| !listener.involves(worker))
            })
            .unwrap_or(0)
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where a listener is made")]
    fn bind(
        &mut self,
        key: String,
        name: Option<String>,
        spec: BindSpec,
        wanted: Policy,
        choice: Choice,
        needs_socket: bool,
        backlog: u32,
    ) -> ListenerId {
        let backlog = backlog.max(self.config.backlog);
        let pending_max = self.config.pending_max;
        let id = self.listeners.insert(NewListener {
            key,
            name,
            spec,
            wanted,
            needs_socket,
            backlog,
            pending_max,
        });
        self.open(id, choice);
        id
    }

    /// Opens a listener by this choice.
    pub(super) fn open(&mut self, id: ListenerId, choice: Choice) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let instance = match &self.config.custom_policy {
            Some(make) if choice.policy == Policy::Custom => make(),
            _ => choice.policy.instance(),
        };
        listener.dispatch = Dispatch::new(instance, self.config.pending_max);
        listener.mechanism = choice.mechanism;
        listener.policy = choice.policy;
        listener.why = choice.why;
        let (socket, spec, backlog) = (listener.socket, listener.spec.clone(), listener.backlog);
        self.actions.push_back(if choice.mechanism == Mechanism::Steer {
            let rule = rule_of(&spec, choice.policy);
            let (lag_after, hang) = (self.config.lag_after, self.config.lives.hang_timeout);
            let weights = self.config.weights.clone();
            listener.steering = Some(Steering::new(rule, choice.engine, lag_after, hang, weights));
            Action::Group { group: socket, listener: id, spec, backlog, engine: choice.engine, rule }
        } else {
            Action::Bind { socket, listener: id, spec, backlog }
        });
    }

    /// A worker that may join does so, as soon as it has a socket where it needs one.
    fn join(&mut self, id: ListenerId, worker: WorkerId, seq: Seq) {
        let Some(slot) = self.seats.get(&worker).map(|seat| seat.slot) else { return };
        if self.listeners.get(id).is_some_and(|listener| listener.mechanism == Mechanism::Steer) {
            self.join_steered(id, Waiting { worker, seq }, slot);
        } else {
            self.admit(id, worker, seq);
        }
    }

    /// The answer to a worker that may join; from here on it is a member.
    pub(super) fn admit(&mut self, id: ListenerId, worker: WorkerId, ack: Seq) {
        let Some(seat) = self.seats.get(&worker) else { return };
        if seat.life.state() > State::Listening {
            return;
        }
        let candidate = Candidate {
            worker,
            slot: seat.slot,
            unacknowledged: seat.ledger.len() as u32,
            open: 0,
            weight: self.weight(seat.slot),
            window: seat.window,
            room: seat.has_room(),
        };
        self.answer_listen(id, worker, ack, 0);
        let Some(listener) = self.listeners.get_mut(id) else { return };
        listener.counts.entry(candidate.slot).or_default();
        listener.dispatch.join(candidate);
        // AFTER the reply: it precedes the first offer on the same channel (WIRE-15).
        self.pump(id);
    }

    /// The sockets that a worker of this slot is born with: the configured ones that are shared, for a program
    /// that may not be able to ask.
    pub(super) fn lend_at_birth(&mut self, worker: WorkerId, slot: Slot) -> Vec<(String, SocketId)> {
        if !matches!(self.config.speaks, Speaks::Perhaps | Speaks::Nothing) {
            return Vec::new();
        }
        let mut lent = Vec::new();
        for id in self.listeners.ids() {
            let Some(listener) = self.listeners.get_mut(id).filter(|listener| listener.is_bound()) else {
                continue;
            };
            let Some(name) = listener.name.clone() else { continue };
            listener.counts.entry(slot).or_default();
            let socket = match listener.mechanism {
                Mechanism::Share => Some(listener.socket),
                Mechanism::Steer => self.place_in(id, worker, slot),
                Mechanism::Handoff | Mechanism::Auto => None,
            };
            lent.extend(socket.map(|socket| (name, socket)));
        }
        lent
    }

    /// Sends the reply of a listener, with the socket itself in share.
    pub(super) fn answer_listen(&mut self, id: ListenerId, worker: WorkerId, ack: Seq, tries: u8) {
        let seq = self.next_seq();
        let (Some(seat), Some(listener)) = (self.seats.get_mut(&worker), self.listeners.get_mut(id)) else {
            return;
        };
        let sockname = match listener.address() {
            Some(BoundAddress::Inet(addr)) => Some(SockName::from(*addr)),
            _ => None,
        };
        let mut reply =
            Reply { ack, key: Some(listener.key.clone()), data: listener.data.clone(), ..Reply::default() };
        let socket = listener.lend(worker);
        if matches!(listener.mechanism, Mechanism::Share | Mechanism::Steer) {
            reply.errno = Some(0);
            let kind =
                if listener.spec.is_stream() { HandleKind::NetNative } else { HandleKind::DgramNative };
            let message = Message::Reply(reply);
            seat.outbox.push_with(Some(Carry::Socket(socket)), |out| {
                crate::wire::encode_enveloped(kind, &message, seq, out);
            });
            seat.receipts.push_back(Receipt::Listen { listener: id, ack, tries });
            self.flush(worker);
        } else {
            reply.sockname = sockname;
            self.say_as(worker, &Message::Reply(reply), seq);
        }
    }

    pub(super) fn refuse(
        &mut self,
        worker: WorkerId,
        ack: Seq,
        key: &str,
        data: Option<Box<RawValue>>,
        errno: i32,
    ) {
        let reply = Reply { ack, errno: Some(-errno), key: Some(key.to_owned()), data, ..Reply::default() };
        self.say(worker, &Message::Reply(reply));
    }

    /// The handle of a shared listener was lost on the way `tries` times.
    pub(super) fn listen_lost(&mut self, now: Time, id: ListenerId, worker: WorkerId, ack: Seq, tries: u8) {
        if tries < 3 && self.listeners.get(id).is_some() {
            self.answer_listen(id, worker, ack, tries + 1);
        } else if let Some(listener) = self.listeners.get(id) {
            let key = listener.key.clone();
            self.refuse(worker, ack, &key, None, errno::EMFILE);
            self.leave_one(now, id, worker, Leaving::Closed);
        }
    }

    /// One of a worker's servers listens.
    pub(super) fn listening(&mut self, now: Time, worker: WorkerId, request: &ListenRequest) {
        let info = ListeningInfo {
            address: request.address.clone(),
            port: request.port,
            family: request.family.map(crate::wire::Family::name),
            fd: request.fd,
        };
        self.events.push_back(Event::Listening { worker, info });
        self.restore_backlogs(worker);
        self.accepts(now, worker);
    }

    /// A worker's own listen() may have made the backlog of the socket that it was lent smaller (DEC-09).
    pub(super) fn restore_backlogs(&mut self, worker: WorkerId) {
        let plain = matches!(self.config.speaks, Speaks::Perhaps | Speaks::Nothing);
        for (_, listener) in self.listeners.iter() {
            if matches!(listener.mechanism, Mechanism::Share | Mechanism::Steer)
                && listener.spec.is_stream()
                && listener.is_bound()
                && (listener.dispatch.holds(worker) || plain && listener.name.is_some())
            {
                let backlog = listener.backlog;
                self.actions.push_back(Action::Listen { socket: listener.lend(worker), backlog });
            }
        }
    }

    /// A worker closed a server. An unknown key is normal: it may have been taken off before it said so.
    pub(super) fn close(&mut self, now: Time, worker: WorkerId, key: &str) {
        if let Some(id) = self.listeners.by_key(key) {
            self.leave_one(now, id, worker, Leaving::Closed);
        }
    }

    /// A worker leaves every listener.
    pub(super) fn leave_all(&mut self, now: Time, worker: WorkerId) {
        for id in self.listeners.ids() {
            self.leave_one(now, id, worker, Leaving::Altogether);
        }
    }

    fn leave_one(&mut self, now: Time, id: ListenerId, worker: WorkerId, why: Leaving) {
        self.steer(now, id, |steering, wishes| match why {
            Leaving::Closed => steering.gone(now, worker, wishes),
            Leaving::Altogether => steering.leave(now, worker, wishes),
        });
        let replaced = why == Leaving::Altogether && self.will_be_replaced();
        let Some(listener) = self.listeners.get_mut(id) else { return };
        if let Progress::Binding(waiting) = &mut listener.progress {
            waiting.retain(|w| w.worker != worker);
        }
        listener.joining.retain(|(_, waiting)| waiting.worker != worker);
        if !listener.dispatch.leave(worker) {
            return;
        }
        if why == Leaving::Closed {
            let key = listener.key.clone();
            self.events.push_back(Event::ListenerLeft { worker, key });
        }
        self.update_accept(id);
        if !replaced {
            self.close_if_empty(id);
        }
    }

    /// The last member has left: the listener goes, unless the configuration names it (RR-15).
    pub(super) fn close_if_empty(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get(id)
            && listener.is_bound()
            && listener.name.is_none()
            && listener.dispatch.members() == 0
            && listener.joining.is_empty()
        {
            self.close_listener(id);
        }
    }

    /// Nobody will come any more.
    pub(super) fn close_all_listeners(&mut self) {
        for id in self.listeners.ids() {
            self.close_listener(id);
        }
    }

    fn close_listener(&mut self, id: ListenerId) {
        let Some(mut listener) = self.listeners.remove(id) else { return };
        for timer in [Timer::Accept(id), Timer::Count(id)] {
            self.timers.stop(timer);
        }
        if let Some(mut steering) = listener.steering.take() {
            self.disband(id, listener.socket, &mut steering);
        }
        self.totals.closed.listener_closed += listener.dispatch.drain().count() as u64;
        self.actions.push_back(Action::Unbind { socket: listener.socket });
        self.events.push_back(Event::ListenerClosed { key: listener.key });
    }
}
