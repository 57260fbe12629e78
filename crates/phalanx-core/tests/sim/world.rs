//! A cluster in a bottle: one real primary, real workers, and everything between them simulated.

use crate::deploy::{Build, Deploys};
use crate::kinds::{SOCKETS, Told, place};
use crate::net::{Conn, Dice, Open};
use crate::process::Process;
use phalanx_core::wire::{Family, Serialization};
use phalanx_core::{
    Action, BindSpec, Blocked, Carried, Config, Ended, Event, Examined, GroupError, Hurry, Lives, Mechanism,
    Policy, Primary, SocketId, Speaks, Time, WorkerEvent, WorkerId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

const EADDRINUSE: i32 = 98;
pub(crate) const LONGEST_REST: Duration = Duration::from_millis(100);
pub(crate) const MAX: usize = 1 << 20;
pub(crate) const PORT: i32 = 8000;

/// What may go wrong, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Faults {
    pub(crate) refuse: usize,
    pub(crate) block: usize,
    pub(crate) spawn: usize,
    pub(crate) bind: usize,
    pub(crate) starve: usize,
    /// A worker ignores the stop signal, and the end of its channel.
    pub(crate) stubborn: usize,
    /// A worker dies between taking a connection and saying so.
    pub(crate) mute: usize,
    /// A worker has no descriptors free, and a handle is lost on the way.
    pub(crate) lose: usize,
}

pub(crate) struct Socket {
    spec: BindSpec,
    accepting: bool,
    /// The primary's own copy.
    fd: Conn,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) online: bool,
    pub(crate) disconnect: bool,
    pub(crate) exit: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Up(WorkerId),
    Down(WorkerId),
    Eof(WorkerId),
    Hangup(WorkerId),
    Reap(WorkerId),
    Writable(WorkerId),
    Decide(WorkerId),
    CloseOwn(WorkerId),
    Accept(SocketId),
    AcceptOwn(WorkerId),
}

pub(crate) struct World {
    pub(crate) primary: Primary<Conn>,
    pub(crate) now: Time,
    pub(crate) open: Open,
    pub(crate) faults: Faults,
    pub(crate) delay_ms: usize,
    pub(crate) dice: Dice,
    pub(crate) window: u32,
    pub(crate) strict_pump: bool,
    pub(crate) processes: BTreeMap<WorkerId, Process>,
    pub(crate) sockets: BTreeMap<SocketId, Socket>,
    /// Completed connections that nobody has accepted.
    pub(crate) backlog: VecDeque<(SocketAddr, Conn)>,
    pub(crate) next: u64,
    /// Who served what.
    pub(crate) served: BTreeMap<u64, WorkerId>,
    pub(crate) seen: BTreeMap<WorkerId, Seen>,
    pub(crate) finished: u32,
    /// How many refusals there were, and when the latest was.
    pub(crate) refused: (u64, Time),
    pub(crate) deploys: Deploys,
    /// What kind of address workers listen on.
    pub(crate) family: Family,
    pub(crate) speaks: Speaks,
    pub(crate) serialization: Serialization,
    pub(crate) violators: BTreeSet<WorkerId>,
    pub(crate) told: Told,
    pub(crate) max_unavailable: u32,
    /// As they were at the start.
    pub(crate) lives: Lives,
    /// Workers answer heartbeats: then there is always something to wait for.
    pub(crate) beats: bool,
}

impl World {
    pub(crate) fn new(seed: u64, policy: Policy, window: u32, faults: Faults) -> World {
        World::with(seed, policy, window, faults, |_| {})
    }

    pub(crate) fn with(
        seed: u64,
        policy: Policy,
        window: u32,
        faults: Faults,
        change: impl FnOnce(&mut Config),
    ) -> World {
        let mut config = Config::default();
        config.policy = policy;
        config.mechanism = Mechanism::Handoff;
        config.window = window;
        config.seed = seed;
        config.pending_max = 8;
        change(&mut config);
        World {
            family: Family::Tcp4,
            speaks: config.speaks,
            serialization: config.serialization,
            violators: BTreeSet::new(),
            told: Told::default(),
            max_unavailable: config.lives.max_unavailable,
            lives: config.lives.clone(),
            beats: false,
            primary: Primary::new(config),
            now: Time::ZERO,
            open: Open::default(),
            faults,
            delay_ms: 20,
            dice: Dice(seed),
            window,
            strict_pump: policy == Policy::RoundRobin && faults.block == 0,
            processes: BTreeMap::new(),
            sockets: BTreeMap::new(),
            backlog: VecDeque::new(),
            next: 0,
            served: BTreeMap::new(),
            seen: BTreeMap::new(),
            finished: 0,
            refused: (0, Time::ZERO),
            deploys: Deploys::new(faults.bind > 0),
        }
    }

    // Wishes.

    pub(crate) fn fork(&mut self, n: usize) -> &mut World {
        for _ in 0..n {
            self.primary.fork(Vec::new());
            self.outcomes();
        }
        self
    }

    pub(crate) fn want(&mut self, n: u32) -> &mut World {
        self.primary.set_wanted(self.now, n);
        self.outcomes();
        self
    }

    pub(crate) fn connect(&mut self, n: usize) -> &mut World {
        for _ in 0..n {
            let peer = SocketAddr::from(([10, 0, 0, (self.next % 7) as u8], 40_000));
            self.connect_from(peer);
        }
        self
    }

    pub(crate) fn connect_from(&mut self, peer: SocketAddr) -> u64 {
        let id = self.next;
        self.next += 1;
        self.backlog.push_back((peer, Conn::new(id, &self.open)));
        id
    }

    /// A connection for this worker and no other.
    pub(crate) fn address(&mut self, id: WorkerId) -> &mut World {
        let listeners = self.primary.status(self.now).listeners;
        if let Some(listener) = listeners.first() {
            let conn = Conn::new(self.next, &self.open);
            self.next += 1;
            // It comes back, and is closed, when this worker does not listen there.
            drop(self.primary.address(id, &listener.key, conn));
            self.outcomes();
        }
        self
    }

    pub(crate) fn living(&self) -> Vec<WorkerId> {
        self.processes.iter().filter(|(_, p)| p.alive).map(|(id, _)| *id).collect()
    }

    pub(crate) fn pick(&self, n: usize) -> Option<WorkerId> {
        let living = self.living();
        (!living.is_empty()).then(|| living[n % living.len()])
    }

    pub(crate) fn crash(&mut self, id: WorkerId, ended: Ended) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id) {
            process.die(ended);
        }
        self
    }

    pub(crate) fn leave(&mut self, id: WorkerId, then: Option<i32>) -> &mut World {
        self.primary.leave(self.now, id, then);
        self.outcomes();
        self
    }

    pub(crate) fn end(&mut self, id: WorkerId, hurry: Hurry) -> &mut World {
        self.primary.end(self.now, id, hurry);
        self.outcomes();
        self
    }

    pub(crate) fn leave_voluntarily(&mut self, id: WorkerId) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id) {
            process.worker.notify_leave();
            self.write_up(id);
        }
        self
    }

    /// It closes its channel and lives on, with all that it was offered still open.
    pub(crate) fn cut(&mut self, id: WorkerId) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id).filter(|p| p.theirs) {
            process.theirs = false;
            process.worker.handle_channel_closed();
            process.down.clear();
            let offers = std::mem::take(&mut process.offers);
            process.served.extend(offers.into_iter().map(|(.., conn)| conn));
        }
        self
    }

    /// It does nothing any more, but die.
    pub(crate) fn stall(&mut self, id: WorkerId) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id) {
            process.stalled = true;
        }
        self
    }

    /// This is how much memory it has.
    pub(crate) fn memory(&mut self, id: WorkerId, bytes: u64) -> &mut World {
        let before = self.ready_slots();
        self.primary.handle_memory(self.now, id, bytes);
        self.outcomes();
        self.keeps_ready(before, 0);
        self
    }

    pub(crate) fn close_server(&mut self, id: WorkerId) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id) {
            process.close_servers();
            self.write_up(id);
        }
        self
    }

    pub(crate) fn listen_again(&mut self, id: WorkerId, port: i32) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id).filter(|p| p.alive && p.theirs && !p.leaving) {
            process.listen(port, self.family);
            self.write_up(id);
        }
        self
    }

    pub(crate) fn stop(&mut self, hurry: Hurry) -> &mut World {
        self.primary.stop(self.now, hurry);
        self.outcomes();
        self
    }

    // Running.

    /// Until nothing more happens at this instant.
    pub(crate) fn quiet(&mut self) -> &mut World {
        for _ in 0..100_000 {
            if !self.step() {
                return self;
            }
        }
        panic!("no quiet: {:?}", self.possible());
    }

    /// At most so many small steps, in an order of chance.
    pub(crate) fn steps(&mut self, n: usize) -> &mut World {
        for _ in 0..n {
            if !self.step() {
                break;
            }
        }
        self
    }

    /// So much time, from deadline to deadline.
    pub(crate) fn run(&mut self, passed: Duration) -> &mut World {
        let end = self.now + passed;
        self.quiet();
        while let Some(next) = self.deadline().filter(|next| *next <= end) {
            self.jump(next);
        }
        self.now = end;
        self
    }

    /// Until nothing is left to wait for.
    pub(crate) fn settle(&mut self) -> &mut World {
        self.quiet();
        for _ in 0..20_000 {
            match self.deadline() {
                None => return self,
                Some(next) => self.jump(next),
            }
        }
        panic!("no rest: {:?}", self.primary.status(self.now));
    }

    fn jump(&mut self, next: Time) {
        self.now = self.now.max(next);
        let before = self.ready_slots();
        if self.primary.poll_timeout().is_some_and(|at| at <= self.now) {
            self.primary.handle_timeout(self.now);
            self.outcomes();
        }
        self.check();
        self.keeps_ready(before, 0);
        self.quiet();
    }

    fn deadline(&self) -> Option<Time> {
        let offers = self
            .processes
            .values()
            .filter(|p| !p.stalled)
            .flat_map(|p| p.offers.iter().map(|(due, ..)| *due));
        self.primary.poll_timeout().into_iter().chain(offers).min()
    }

    fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (&id, p) in &self.processes {
            if p.ours && !p.up.is_empty() {
                steps.push(Step::Up(id));
            }
            // The end of the channel, and the end of the process: in either order, after the last byte.
            if p.up.is_empty() || !p.ours {
                if p.ours && !p.theirs && !p.hung_up {
                    steps.push(Step::Hangup(id));
                }
                if p.ended.is_some() {
                    steps.push(Step::Reap(id));
                }
            }
            if p.full && p.ours {
                steps.push(Step::Writable(id));
            }
            if p.alive && !p.stalled && p.accepts() && !self.backlog.is_empty() {
                steps.push(Step::AcceptOwn(id));
            }
            if p.alive && p.theirs && !p.stalled && !p.plain {
                if !p.down.is_empty() {
                    steps.push(Step::Down(id));
                } else if !p.ours && !p.eof {
                    steps.push(Step::Eof(id));
                }
                if p.offers.iter().any(|(due, ..)| *due <= self.now) {
                    steps.push(Step::Decide(id));
                }
                if p.closing && p.offers.is_empty() {
                    steps.push(Step::CloseOwn(id));
                }
            }
        }
        if !self.backlog.is_empty() {
            steps.extend(self.sockets.iter().filter(|(_, s)| s.accepting).map(|(id, _)| Step::Accept(*id)));
        }
        steps
    }

    fn step(&mut self) -> bool {
        let steps = self.possible();
        if steps.is_empty() {
            return false;
        }
        let step = steps[self.dice.below(steps.len())];
        let before = self.ready_slots();
        let room = 1 + self.dice.below(if self.dice.0.is_multiple_of(3) { 24 } else { 400 });
        match step {
            Step::Up(id) => {
                let Some(p) = self.processes.get_mut(&id) else { return true };
                let (chunk, handle) = p.up.read(room);
                self.primary.handle_bytes(self.now, id, &chunk, handle);
            }
            Step::Down(id) => {
                let Some(p) = self.processes.get_mut(&id) else { return true };
                let (chunk, handle) = p.down.read(room);
                let handle = handle.filter(|_| !self.dice.percent(self.faults.lose));
                p.worker.handle_bytes(&chunk, handle).expect("the primary keeps the protocol");
                self.hear(id);
            }
            Step::Eof(id) => {
                let Some(p) = self.processes.get_mut(&id) else { return true };
                p.eof = true;
                p.worker.handle_channel_closed();
                p.offers.clear();
                if !p.stubborn {
                    p.die(Ended::Code(0));
                }
            }
            Step::Hangup(id) => {
                if let Some(p) = self.processes.get_mut(&id) {
                    p.hung_up = true;
                }
                self.primary.handle_channel_closed(self.now, id);
            }
            Step::Reap(id) => {
                if let Some(ended) = self.processes.get_mut(&id).and_then(|p| p.ended.take()) {
                    self.primary.handle_exit(self.now, id, ended);
                }
            }
            Step::Writable(id) => {
                if let Some(p) = self.processes.get_mut(&id) {
                    p.full = false;
                }
                self.flush(id);
            }
            Step::Decide(id) => self.decide(id),
            Step::CloseOwn(id) => {
                if let Some(p) = self.processes.get_mut(&id) {
                    p.die(Ended::Code(0));
                }
            }
            Step::AcceptOwn(id) => self.accept_own(id),
            Step::Accept(socket) => {
                if self.dice.percent(self.faults.starve) {
                    self.primary.handle_starved(self.now, socket);
                } else if let Some((peer, conn)) = self.backlog.pop_front() {
                    self.primary.handle_connection(socket, Some(peer.into()), conn);
                }
            }
        }
        self.outcomes();
        self.check();
        // What a worker does by itself may cost that one.
        self.keeps_ready(before, 1);
        true
    }

    // The driver.

    pub(crate) fn outcomes(&mut self) {
        while let Some(action) = self.primary.poll_action() {
            self.act(action);
        }
        while let Some(event) = self.primary.poll_event() {
            self.event(&event);
            if matches!(event, Event::Finished) {
                assert!(self.primary.is_empty(), "finished: {:?}", self.primary.status(self.now));
            }
        }
        let refused = self.primary.ledger().totals.refused;
        if refused > self.refused.0 {
            self.refused = (refused, self.now);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => {
                let id = spawn.worker;
                if self.dice.percent(self.faults.spawn) {
                    self.primary.handle_spawned(self.now, id, Err("no more processes".to_owned()));
                    return;
                }
                let stubborn = self.dice.percent(self.faults.stubborn);
                let mut process = Process::new(self.serialization, stubborn);
                match self.speaks {
                    Speaks::Nothing => process.silence(false),
                    Speaks::Perhaps if self.dice.percent(50) => process.silence(true),
                    _ => {}
                }
                process.lent = spawn.lend.iter().map(|(_, socket)| self.sockets[socket].fd.dup()).collect();
                let build = self.deploys.build(spawn.generation);
                match build {
                    Build::Good | Build::Mute | Build::Exits => process.listen(PORT, self.family),
                    Build::Deaf => {}
                    Build::WrongPort => process.listen(PORT + 7, self.family),
                }
                assert!(self.processes.insert(id, process).is_none(), "{id:?} was given twice");
                self.primary.handle_spawned(self.now, id, Ok(1000 + self.next as u32));
                match build {
                    Build::Good | Build::Deaf | Build::WrongPort => self.write_up(id),
                    Build::Mute => {}
                    Build::Exits => drop(self.crash(id, Ended::Code(1))),
                }
            }
            Action::Bind { socket, spec, .. } => {
                let taken = self.sockets.values().any(|s| place(&s.spec) == place(&spec));
                if taken || self.dice.percent(self.faults.bind) {
                    self.primary.handle_bound(socket, Err(EADDRINUSE));
                } else {
                    let address = place(&spec);
                    let fd = Conn::new(SOCKETS + u64::from(socket.0), &self.open);
                    self.sockets.insert(socket, Socket { spec, accepting: false, fd });
                    self.primary.handle_bound(socket, Ok(address));
                }
            }
            Action::Listen { .. } => {}
            Action::Accept { socket, on } => {
                self.sockets.get_mut(&socket).expect("accept on a closed socket").accepting = on;
            }
            Action::Bar { socket } => {
                assert!(self.sockets.contains_key(&socket), "a bar on a closed socket");
            }
            Action::CountWaiting => self.primary.handle_waiting(self.now, self.backlog.len() as u64),
            Action::Unbind { socket } => {
                self.sockets.remove(&socket).expect("closed twice");
            }
            Action::Flush { worker } => self.flush(worker),
            Action::CloseChannel { worker } => {
                let p = self.processes.get_mut(&worker).expect("a channel of nobody");
                assert!(p.ours, "closed twice");
                p.ours = false;
                p.up.clear();
                if !p.theirs {
                    p.down.clear();
                }
            }
            Action::Signal { worker, signal } => {
                let p = self.processes.get_mut(&worker).expect("a signal to nobody");
                // A process that is dead and not reaped takes any signal.
                if signal == 9 || !p.stubborn {
                    p.die(Ended::Signal(signal, false));
                }
            }
            Action::Examine { connection } => {
                let conn = self.primary.examining(connection).expect("nothing to examine");
                let touched = self.served.contains_key(&conn.id);
                let examined = if touched { Examined::Touched } else { Examined::Pristine };
                self.primary.handle_examined(connection, examined);
            }
            Action::Forget { worker } => {
                let p = self.processes.remove(&worker).expect("forgotten twice");
                assert!(!p.alive && !p.ours && p.ended.is_none(), "{worker:?} forgotten too early");
            }
            Action::Measure { .. } | Action::Watch { .. } => {}
            Action::Retire { generation } => self.deploys.retired(generation),
            // Steering has a simulation of its own.
            Action::Group { group, .. } => {
                self.primary.handle_grouped(group, Err(GroupError::Engine("not here".to_owned())));
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn flush(&mut self, id: WorkerId) {
        let Some(p) = self.processes.get_mut(&id) else { return };
        if !p.ours || p.full {
            return;
        }
        while let Some(next) = self.primary.poll_transmit(id) {
            if self.dice.percent(self.faults.block) {
                // Only a channel that is full is reported when it is not any more.
                p.full = self.dice.percent(50);
                let why = if p.full { Blocked::Full } else { Blocked::TooManyInFlight };
                self.primary.handle_blocked(self.now, id, why);
                return;
            }
            let n = 1 + self.dice.below(next.bytes.len());
            let bytes = next.bytes[..n].to_vec();
            let handle = match next.carried {
                None => None,
                Some(Carried::Handle(conn)) => Some(conn.dup()),
                Some(Carried::Socket(socket)) => Some(self.sockets[&socket].fd.dup()),
            };
            // Nobody reads any more: the bytes vanish, and their handles are closed.
            if p.theirs {
                p.down.write(bytes, handle);
            }
            self.primary.handle_sent(id, n);
        }
    }

    // The workers' side.

    pub(crate) fn write_up(&mut self, id: WorkerId) {
        let Some(p) = self.processes.get_mut(&id).filter(|p| p.alive && p.theirs && !p.plain) else { return };
        while let Some(next) = p.worker.poll_transmit() {
            let n = 1 + self.dice.below(next.bytes.len());
            let bytes = next.bytes[..n].to_vec();
            let handle = match next.carried {
                Some(Carried::Handle(conn)) => Some(conn.dup()),
                None | Some(Carried::Socket(_)) => None,
            };
            if p.ours {
                p.up.write(bytes, handle);
            }
            p.worker.handle_sent(n);
        }
    }

    fn hear(&mut self, id: WorkerId) {
        let Some(p) = self.processes.get_mut(&id) else { return };
        while let Some(event) = p.worker.poll_event() {
            match event {
                WorkerEvent::Granted { listen, address, .. } => {
                    p.listens.push(listen);
                    p.worker.listening(listen, address.map(|name| i32::from(name.port)));
                    if self.beats {
                        p.worker.pong();
                    }
                }
                WorkerEvent::Shared { listen, socket, .. } => {
                    p.shared.push((listen, socket));
                    p.worker.listening(listen, Some(PORT));
                }
                WorkerEvent::Message { message, handle } => {
                    self.told.heard(id, message.decode().expect("a number"), handle.as_ref());
                }
                WorkerEvent::Refused { .. } => {}
                WorkerEvent::Ping => p.worker.pong(),
                WorkerEvent::Connection { listen, offer, connection } => {
                    let due = self.now + Duration::from_millis(self.dice.below(self.delay_ms + 1) as u64);
                    p.offers.push((due, offer, listen, connection));
                }
                WorkerEvent::Disconnect | WorkerEvent::Released => {
                    p.leaving = true;
                    p.closing = true;
                    p.close_servers();
                }
                other => unreachable!("{other:?}"),
            }
        }
        self.write_up(id);
    }

    fn decide(&mut self, id: WorkerId) {
        let refuse = self.dice.percent(self.faults.refuse);
        let Some(p) = self.processes.get_mut(&id) else { return };
        let Some(at) = p.offers.iter().position(|(due, ..)| *due <= self.now) else { return };
        let (_, offer, _, conn) = p.offers.remove(at);
        if refuse {
            drop(conn);
            assert!(p.worker.refuse(offer));
        } else {
            assert!(p.worker.accept(offer), "the offer stands");
            let before = self.served.insert(conn.id, id);
            assert_eq!(before, None, "connection {} is served twice", conn.id);
            p.served.push(conn);
        }
        if self.dice.percent(self.faults.mute) {
            p.die(Ended::Code(1));
        }
        self.write_up(id);
    }
}
