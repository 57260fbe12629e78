//! Plain workers around a steered listener.

use crate::kernel::{Conn, Kernel};
use phalanx_core::steer::{Counted, GuardFacts};
use phalanx_core::{
    Action, BindSpec, BoundAddress, Config, Ended, Event, GroupError, Mechanism, OnHang, Policy, Primary,
    SocketId, Speaks, Time, WorkerId,
};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug)]
struct Process {
    socket: Option<SocketId>,
    slot: u32,
    up: Time,
    stopped: bool,
    pace: Duration,
    free: Time,
    leaving: bool,
}

pub(crate) struct World {
    pub(crate) primary: Primary<Conn>,
    pub(crate) kernel: Kernel,
    pub(crate) now: Time,
    /// How long a worker needs to come up.
    boot: Duration,
    pub(crate) served: BTreeMap<u64, (WorkerId, u32, u32)>,
    pub(crate) hung: Vec<WorkerId>,
    pub(crate) looks: u32,
    pub(crate) refusals: u32,
    refuse: bool,
    processes: BTreeMap<WorkerId, Process>,
    watched: Vec<WorkerId>,
    next: u64,
}

impl World {
    pub(crate) fn new(workers: u32, policy: Policy) -> World {
        World::made(workers, policy, Duration::from_millis(5), false, None)
    }

    /// Each worker is to take so many connections and no more.
    pub(crate) fn limited(workers: u32, max_connections: u64) -> World {
        World::made(workers, Policy::RoundRobin, Duration::from_millis(5), false, Some(max_connections))
    }

    /// Its workers need so long to come up.
    pub(crate) fn booting(workers: u32, policy: Policy, boot: Duration) -> World {
        World::made(workers, policy, boot, false, None)
    }

    /// Where steering is not possible.
    pub(crate) fn refusing(workers: u32, policy: Policy) -> World {
        World::made(workers, policy, Duration::from_millis(5), true, None)
    }

    fn made(
        workers: u32,
        policy: Policy,
        boot: Duration,
        refuse: bool,
        max_connections: Option<u64>,
    ) -> World {
        let mut config = Config::default();
        config.policy = policy;
        config.speaks = Speaks::Nothing;
        config.mechanism = Mechanism::Auto;
        config.lives.on_hang = OnHang::Report;
        config.lives.replacing.max_connections = max_connections;
        let mut world = World {
            primary: Primary::new(config),
            kernel: Kernel::default(),
            now: Time::ZERO,
            boot,
            served: BTreeMap::new(),
            hung: Vec::new(),
            looks: 0,
            refusals: 0,
            refuse,
            processes: BTreeMap::new(),
            watched: Vec::new(),
            next: 0,
        };
        for name in ["one", "two"].into_iter().take(1 + usize::from(refuse)) {
            let spec =
                BindSpec::Tcp { address: None, port: if name == "one" { 80 } else { 81 }, v6only: false };
            world.primary.configure_listener(name, spec, true).unwrap();
            world.outcomes();
        }
        world.primary.set_wanted(world.now, workers);
        world.outcomes();
        world
    }

    pub(crate) fn connect(&mut self, n: usize) -> &mut World {
        for _ in 0..n {
            self.arrive(self.next as u32 % 97);
        }
        self
    }

    /// One from each of so many clients.
    pub(crate) fn connect_each(&mut self, clients: u32) -> &mut World {
        for client in 0..clients {
            self.arrive(client);
        }
        self
    }

    fn arrive(&mut self, client: u32) {
        let conn = Conn { id: self.next, client };
        self.next += 1;
        if !self.refuse {
            self.kernel.arrive(conn, false);
        }
    }

    pub(crate) fn stop(&mut self, id: WorkerId) -> &mut World {
        self.process(id, |process| process.stopped = true)
    }

    pub(crate) fn resume(&mut self, id: WorkerId) -> &mut World {
        self.process(id, |process| process.stopped = false)
    }

    /// It needs so long for each.
    pub(crate) fn pace(&mut self, id: WorkerId, pace: Duration) -> &mut World {
        self.process(id, |process| process.pace = pace)
    }

    fn process(&mut self, id: WorkerId, change: impl FnOnce(&mut Process)) -> &mut World {
        if let Some(process) = self.processes.get_mut(&id) {
            change(process);
        }
        self
    }

    pub(crate) fn kill(&mut self, id: WorkerId) -> &mut World {
        self.die(id, Ended::Signal(9, false));
        self
    }

    fn die(&mut self, id: WorkerId, ended: Ended) {
        if self.processes.remove(&id).is_some() {
            self.primary.handle_exit(self.now, id, ended);
            self.outcomes();
        }
    }

    pub(crate) fn living(&self) -> Vec<WorkerId> {
        self.processes.keys().copied().collect()
    }

    pub(crate) fn pick(&self, n: usize) -> Option<WorkerId> {
        let living = self.living();
        (!living.is_empty()).then(|| living[n % living.len()])
    }

    pub(crate) fn worker_in(&self, slot: u32) -> WorkerId {
        *self.processes.iter().find(|(_, process)| process.slot == slot).expect("somebody").0
    }

    pub(crate) fn served_by(&self, id: WorkerId) -> usize {
        self.served.values().filter(|(worker, ..)| *worker == id).count()
    }

    pub(crate) fn served_by_slot(&self, slot: u32) -> usize {
        self.served.values().filter(|(_, by, _)| *by == slot).count()
    }

    /// The slot that served each client last.
    pub(crate) fn slots_by_client(&self) -> Vec<u32> {
        let last: BTreeMap<u32, u32> =
            self.served.values().map(|(_, slot, client)| (*client, *slot)).collect();
        last.into_values().collect()
    }

    /// So much time, a millisecond at a time while something happens.
    pub(crate) fn run(&mut self, passed: Duration) -> &mut World {
        let end = self.now + passed;
        while self.now < end {
            let step = if self.busy() { Duration::from_millis(1) } else { Duration::from_millis(250) };
            let next = (self.now + step).min(end);
            let due = self.primary.poll_timeout().filter(|due| *due > self.now);
            self.now = due.map_or(next, |due| due.min(next));
            if self.primary.poll_timeout().is_some_and(|due| due <= self.now) {
                self.primary.handle_timeout(self.now);
                self.outcomes();
            }
            if self.kernel.stirs() {
                self.primary.handle_stirred(self.now, SocketId(0));
                self.outcomes();
            }
            self.work();
            for id in std::mem::take(&mut self.watched) {
                match self.processes.get(&id) {
                    Some(process) if process.up <= self.now => {
                        self.primary.handle_waits(self.now, id);
                        self.outcomes();
                    }
                    Some(_) => self.watched.push(id),
                    None => {}
                }
            }
        }
        self
    }

    fn busy(&self) -> bool {
        self.kernel.places().any(|(.., queued)| queued > 0)
            || self.kernel.facts().park_queued > 0
            || self.processes.values().any(|process| process.up > self.now || process.leaving)
    }

    /// Everybody takes what waits, before anybody is told that it does.
    pub(crate) fn work(&mut self) {
        for (&id, process) in &mut self.processes {
            let Some(socket) = process.socket else { continue };
            while !process.stopped && !process.leaving && process.up <= self.now && process.free <= self.now {
                let Some(conn) = self.kernel.accept(socket) else { break };
                process.free = self.now + process.pace;
                let again = self.served.insert(conn.id, (id, process.slot, conn.client));
                assert!(again.is_none(), "served twice");
            }
        }
        let leaving: Vec<WorkerId> =
            self.processes.iter().filter(|(_, p)| p.leaving && !p.stopped).map(|(id, _)| *id).collect();
        for id in leaving {
            self.die(id, Ended::Code(0));
        }
    }

    pub(crate) fn outcomes(&mut self) {
        while let Some(action) = self.primary.poll_action() {
            self.act(action);
        }
        while let Some(event) = self.primary.poll_event() {
            match event {
                Event::Hung { worker, .. } => self.hung.push(worker),
                Event::SteeringRefused { .. } => self.refusals += 1,
                Event::Tampered { .. } => panic!("nobody tampered"),
                _ => {}
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Group { group, rule, .. } => {
                let result = if self.refuse {
                    Err(GroupError::Engine("forbidden".to_owned()))
                } else {
                    self.kernel.open(rule);
                    Ok(BoundAddress::Inet("127.0.0.1:80".parse().unwrap()))
                };
                self.primary.handle_grouped(group, result);
            }
            Action::Bind { socket, .. } => {
                let address = BoundAddress::Inet("127.0.0.1:80".parse().unwrap());
                self.primary.handle_bound(socket, Ok(address));
            }
            Action::Join { socket, place, .. } => {
                self.kernel.join(socket, place);
                self.primary.handle_joined(socket, Ok(()));
            }
            Action::Ring { ring, .. } => self.kernel.set_ring(ring),
            Action::Budgets { budgets, .. } => {
                budgets.into_iter().for_each(|budget| self.kernel.set_budget(budget));
            }
            Action::Gone { gone, .. } => {
                gone.into_iter().for_each(|(place, gone)| self.kernel.set_gone(place, gone));
            }
            Action::Rescue { group, socket, place, .. } => {
                let moved = self.kernel.rescue(place.map(|_| socket));
                self.primary.handle_rescued(group, socket, moved);
            }
            Action::Part { socket, .. } => self.kernel.part(socket, self.primary.status(self.now).stopping),
            Action::Poke { .. } | Action::Listen { .. } | Action::Accept { .. } => {}
            Action::WatchQueues { .. } => self.kernel.watch(),
            Action::Watch { worker } => self.watched.push(worker),
            Action::Retire { .. } => {}
            Action::Look { group, busy } => {
                self.looks += 1;
                let mut facts = self.kernel.facts();
                for facts in &mut facts.places {
                    let of = |asked: &[(phalanx_core::Place, WorkerId)]| {
                        asked.iter().find(|(place, _)| *place == facts.place).map(|(_, worker)| *worker)
                    };
                    facts.busy = of(&busy).and_then(|id| Some(self.processes.get(&id)?.stopped));
                }
                self.primary.handle_looked(self.now, group, &facts);
            }
            Action::Guard { group } => self.primary.handle_guarded(group, &GuardFacts::default()),
            Action::Count { socket } => {
                let counted: Vec<Counted> = self
                    .kernel
                    .places()
                    .map(|(place, given, queued)| Counted { place, given, open: 0, queued })
                    .collect();
                self.primary.handle_counted(self.now, socket, &counted);
            }
            Action::Bar { .. } => self.kernel.bar(),
            Action::CountWaiting => {
                let waiting = self.kernel.waiting();
                self.primary.handle_waiting(self.now, waiting);
            }
            Action::Unbind { .. } => self.kernel.close(),
            Action::Spawn(spawn) => {
                let socket = spawn.lend.first().map(|(_, socket)| *socket);
                self.processes.insert(
                    spawn.worker,
                    Process {
                        socket,
                        slot: spawn.slot.0,
                        up: self.now + self.boot,
                        stopped: false,
                        pace: Duration::ZERO,
                        free: self.now,
                        leaving: false,
                    },
                );
                self.primary.handle_spawned(self.now, spawn.worker, Ok(1));
            }
            Action::Signal { worker, signal: 9 } => self.die(worker, Ended::Signal(9, false)),
            Action::Signal { worker, .. } => {
                self.process(worker, |process| process.leaving = true);
            }
            Action::Forget { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
