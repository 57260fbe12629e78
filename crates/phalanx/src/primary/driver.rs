//! The one loop: core's actions become system calls, and facts become calls on core.
//!
//! The driver is one OS thread with a runtime of its own, alive as long as the cluster. Each fd has a small
//! task that waits for it and then enters the [`Driver`], which never waits: so every step runs to its end
//! before the next fact is looked at. All forks happen on this thread: a child with a death signal dies when
//! the thread that forked it ends (K-52).

use super::Primary as Handle;
use super::facts;
use super::inspect::Ports;
use super::letters::{Letter, Letters};
use super::output::{Output, Pipe};
use super::program::{Description, Program};
use super::reload::Outcome;
use super::sockets::{self, Socket};
use super::steer::Steered;
use super::tasks::{self, Link};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::event::{Hub, told};
use phalanx_core::wire::Payload;
use phalanx_core::{
    Action, Event as CoreEvent, Examined, Generation, Hurry, Primary, Ready, SendError, Slot, SocketId,
    State, Status, Time, WorkerId,
};
use phalanx_os::notify::NotifySocket;
use phalanx_os::{Process, Signal, Touched, conn, listener};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, LocalSet};

/// What a handle asks of the cluster's thread.
pub(super) type Command = Box<dyn FnOnce(&mut Driver) + Send>;

/// Read from a channel at a time, as Node does.
const CHUNK: usize = 65_536;

pub(super) struct Child {
    pub(super) process: Process,
    pub(super) link: Option<Rc<AsyncFd<Link>>>,
    /// The task that reads the channel.
    pub(super) reader: Option<AbortHandle>,
    pub(super) writable: Rc<Notify>,
    pub(super) pipes: Vec<Rc<Pipe>>,
    /// Sockets that it was born with.
    pub(super) lent: Vec<Arc<OwnedFd>>,
}

pub(super) struct Door {
    pub(super) socket: Socket,
    /// The task that accepts, while it does.
    pub(super) accepting: Option<AbortHandle>,
}

type Waiter = (WorkerId, fn(State) -> bool, oneshot::Sender<()>);

/// Everything that the cluster's thread has.
pub(crate) struct Driver {
    pub(super) core: Primary<OwnedFd>,
    pub(super) start: Instant,
    /// What the latest generation that was asked for runs.
    pub(super) latest: Rc<Program>,
    pub(super) programs: BTreeMap<Generation, Rc<Program>>,
    pub(super) reloads: BTreeMap<Generation, oneshot::Sender<Outcome>>,
    pub(super) notify: Option<Rc<NotifySocket>>,
    /// What the kernel has killed for lack of memory, as far as we have looked.
    pub(super) oom_kills: u64,
    pub(super) children: BTreeMap<WorkerId, Child>,
    pub(super) doors: BTreeMap<SocketId, Door>,
    pub(super) groups: BTreeMap<SocketId, Steered>,
    inherited: Vec<Arc<OwnedFd>>,
    pub(super) ports: Ports,
    pub(super) output: Output,
    waiters: Vec<Waiter>,
    /// Messages that wait for room.
    pub(super) letters: Letters,
    receive_handles: bool,
    /// Orphans become children of this process, and nobody else reaps them.
    pub(super) strangers: bool,
    finished: Vec<oneshot::Sender<()>>,
    pub(super) fork_error: Option<String>,
    bind_error: Option<i32>,
    pub(super) chunk: Vec<u8>,
    pub(super) timer: Rc<Notify>,
    /// When the timer's task believes that core is due.
    due: Option<Time>,
    over: Rc<Notify>,
    /// Once nobody is left, the thread ends. A cluster of plain forks can be used again (LIFE-19).
    ending: bool,
    pub(super) me: Weak<RefCell<Driver>>,
    /// Last: whoever hears that the events are over has heard all that was printed.
    pub(super) hub: Hub,
}

/// Starts the thread; returns when every configured listener is bound and the first workers were started.
pub(crate) fn start(builder: Builder) -> Result<Handle> {
    let (commands, mut inbox) = mpsc::unbounded_channel::<Command>();
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let (hub, events) = Hub::new();
    std::thread::Builder::new()
        .name("phalanx".to_owned())
        .spawn(move || {
            let runtime =
                match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
                    Ok(runtime) => runtime,
                    Err(source) => {
                        let _ = ready.send(Err(Error::System { what: "cannot start a runtime", source }));
                        return;
                    }
                };
            let tasks = LocalSet::new();
            tasks.block_on(&runtime, async move {
                let driver = match Driver::new(builder, hub) {
                    Ok(driver) => driver,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let over = Rc::clone(&driver.borrow().over);
                tokio::task::spawn_local(tasks::keep_time(Rc::downgrade(&driver)));
                if phalanx_force_sigchld() || driver.borrow().strangers {
                    tokio::task::spawn_local(tasks::reap_on_sigchld(Rc::downgrade(&driver)));
                }
                let _ = ready.send(Ok(()));
                loop {
                    tokio::select! {
                        biased;
                        command = inbox.recv() => match command {
                            Some(command) => {
                                let mut driver = driver.borrow_mut();
                                command(&mut driver);
                                driver.drive();
                            }
                            None => break,
                        },
                        () = over.notified() => {
                            let driver = driver.borrow();
                            if driver.ending && driver.core.is_empty() {
                                break;
                            }
                        }
                    }
                }
                // Before anybody hears that it is over, all that was printed is passed on.
                drop(driver);
                // Who asks at this very moment must hear that it is over. Merely dropped, the inbox forgets a command
                // whose sender has been counted but has not put it in yet; whoever waits for its answer has a sender
                // too, and so it would stay there for ever.
                inbox.close();
                while inbox.recv().await.is_some() {}
            });
        })
        .map_err(|source| Error::System { what: "cannot start the cluster's thread", source })?;
    match started.recv() {
        Ok(Ok(())) => Ok(Handle::new(commands, events)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Ended),
    }
}

/// Without pidfd, deaths are heard of by SIGCHLD only.
fn phalanx_force_sigchld() -> bool {
    cfg!(phalanx_force_sigchld)
}

impl Driver {
    fn new(mut builder: Builder, hub: Hub) -> Result<Rc<RefCell<Driver>>> {
        let tell = [&builder.stdout, &builder.stderr].map(crate::Output::tell);
        let program = Rc::new(Program::read(Description::of(&mut builder)?)?);
        let ready = builder.config.lives.ready.clone();
        let wanted = builder.config.wanted;
        let mut config = builder.config;
        config.seed = u64::from(std::process::id());
        let plain = matches!(config.speaks, phalanx_core::Speaks::Perhaps | phalanx_core::Speaks::Nothing);
        let driver = Rc::new_cyclic(|me| {
            RefCell::new(Driver {
                core: Primary::new(config),
                hub,
                start: Instant::now(),
                latest: Rc::clone(&program),
                programs: BTreeMap::from([(Generation(1), program)]),
                reloads: BTreeMap::new(),
                notify: None,
                oom_kills: phalanx_os::cgroup::oom_kills().unwrap_or(0),
                children: BTreeMap::new(),
                doors: BTreeMap::new(),
                groups: BTreeMap::new(),
                inherited: builder.inherited,
                ports: Ports::default(),
                output: Output::new(tell),
                waiters: Vec::new(),
                letters: Letters::default(),
                receive_handles: builder.receive_handles,
                strangers: builder.reap_strangers,
                finished: Vec::new(),
                fork_error: None,
                bind_error: None,
                chunk: vec![0; CHUNK],
                timer: Rc::new(Notify::new()),
                due: None,
                over: Rc::new(Notify::new()),
                ending: wanted.is_some(),
                me: me.clone(),
            })
        });
        {
            let mut it = driver.borrow_mut();
            it.want_notices(&ready)?;
            for listener in builder.listen {
                it.core.configure_listener(&listener.name, listener.spec, plain).map_err(Error::Config)?;
                it.drive();
                if let Some(errno) = it.bind_error.take() {
                    let source = io::Error::from_raw_os_error(errno);
                    return Err(Error::Listen { address: listener.address, source });
                }
            }
            if let Some(wanted) = wanted {
                let now = it.now();
                it.core.set_wanted(now, wanted);
                it.drive();
            }
        }
        Ok(driver)
    }

    /// Makes the socket that workers tell their readiness to, if that is how they do it.
    pub(super) fn want_notices(&mut self, ready: &Ready) -> Result<()> {
        if *ready == Ready::Notify && self.notify.is_none() {
            let socket = Rc::new(facts::notify_socket().map_err(|source| Error::System {
                what: "cannot make a socket for what workers say about their readiness",
                source,
            })?);
            self.notify = Some(Rc::clone(&socket));
            tokio::task::spawn_local(facts::hear_notices(self.me.clone(), socket));
        }
        Ok(())
    }

    pub(super) fn now(&self) -> Time {
        Time::from_start(self.start.elapsed())
    }

    pub(super) fn fork(&mut self, env: Vec<(String, String)>) -> Result<WorkerId, String> {
        self.tell_setup();
        let id = self.core.fork(env);
        self.fork_error = None;
        self.drive();
        self.fork_error.take().map_or(Ok(id), Err)
    }

    pub(super) fn stop(&mut self, hurry: Hurry) {
        let now = self.now();
        self.ending = true;
        self.core.stop(now, hurry);
        self.drive();
    }

    pub(super) fn disconnect(&mut self) {
        let now = self.now();
        self.core.disconnect(now);
        self.drive();
    }

    pub(super) fn leave(&mut self, worker: WorkerId, then: Option<i32>) {
        let now = self.now();
        self.core.leave(now, worker, then);
        self.drive();
    }

    /// Sends a message at once or not at all.
    pub(super) fn send(&mut self, worker: WorkerId, letter: Letter) -> Result<(), SendError> {
        if self.letters.wait_for(worker) {
            return Err(SendError::Full);
        }
        self.core.send(worker, &letter.message, letter.handle)
    }

    /// A connection to this very worker.
    pub(super) fn connect(
        &mut self,
        worker: WorkerId,
        key: &str,
    ) -> io::Result<std::os::unix::net::UnixStream> {
        let (ours, theirs) = conn::unix_pair()?;
        if !self.address(worker, key, theirs) {
            let why = format!("worker {worker} does not hold the listener `{key}`");
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        conn::set_nonblocking(&ours, false)?;
        Ok(ours.into())
    }

    /// A process says that it is ready.
    pub(super) fn notified(&mut self, pid: u32) {
        let worker = self.children.iter().find(|(_, child)| child.process.pid() == pid).map(|(id, _)| *id);
        if let Some(worker) = worker {
            let now = self.now();
            self.core.handle_notified(now, worker);
        }
    }

    pub(super) fn scale(&mut self, change: impl FnOnce(u32) -> u32) -> Option<u32> {
        let now = self.now();
        let wanted = change(self.core.wanted()?).max(1);
        self.core.set_wanted(now, wanted);
        self.drive();
        Some(wanted)
    }

    pub(super) fn restart(&mut self, slot: Slot) -> bool {
        let now = self.now();
        let begun = self.core.restart(now, slot);
        self.drive();
        begun
    }

    pub(super) fn end(&mut self, worker: WorkerId, hurry: Hurry) {
        let now = self.now();
        self.core.end(now, worker, hurry);
        self.drive();
    }

    pub(super) fn address(&mut self, worker: WorkerId, key: &str, connection: OwnedFd) -> bool {
        let given = self.core.address(worker, key, connection).is_ok();
        self.drive();
        given
    }

    pub(super) fn signal(&mut self, worker: WorkerId, signal: Signal) -> bool {
        self.children.get(&worker).is_some_and(|child| child.process.signal(signal).unwrap_or(false))
    }

    pub(super) fn when(&mut self, worker: WorkerId, until: fn(State) -> bool, done: oneshot::Sender<()>) {
        self.waiters.push((worker, until, done));
    }

    pub(super) fn when_finished(&mut self, done: oneshot::Sender<()>) {
        self.finished.push(done);
    }

    pub(super) fn last_lines(&self, slot: Slot) -> Vec<String> {
        self.output.tail(slot)
    }

    pub(super) fn status(&mut self) -> Status {
        let groups: Vec<SocketId> = self.core.groups().collect();
        for group in groups {
            self.look(group, &[]);
        }
        let counted: Vec<SocketId> = self.core.counted().collect();
        for socket in counted {
            self.count(socket);
        }
        self.drive();
        let mut status = self.core.status(self.now());
        for worker in &mut status.workers {
            worker.rss_kib = phalanx_os::host::memory_kib(worker.pid).ok().map(|memory| memory.rss_kib);
            let program = self.programs.get(&worker.generation);
            worker.changed = program.is_some_and(|program| program.has_changed());
        }
        for listener in &mut status.listeners {
            if let Some(queue) = self
                .doors
                .get(&listener.socket)
                .and_then(|door| listener::queue(door.socket.fd.as_ref()).ok())
            {
                listener.queued = Some(queue.queued);
                listener.queue_limit = Some(queue.limit);
            }
        }
        status.output_dropped = self.output.dropped();
        status
    }

    /// Does what core wants, until it wants nothing more.
    pub(super) fn drive(&mut self) {
        loop {
            while let Some(action) = self.core.poll_action() {
                self.act(action);
            }
            while let Some(event) = self.core.poll_event() {
                self.tell(event);
            }
            if !self.letters.send(&mut self.core) {
                break;
            }
        }
        if !self.waiters.is_empty() {
            let core = &self.core;
            let over = |id, until: fn(State) -> bool| core.worker(id).is_none_or(|view| until(view.state));
            let (done, rest) =
                std::mem::take(&mut self.waiters).into_iter().partition(|(id, until, _)| over(*id, *until));
            self.waiters = rest;
            let done: Vec<Waiter> = done;
            for (_, _, done) in done {
                let _ = done.send(());
            }
        }
        let due = self.core.poll_timeout();
        if due != self.due {
            self.due = due;
            self.timer.notify_one();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => self.spawn(&spawn),
            Action::Bind { socket, spec, backlog, .. } => {
                let result = sockets::bind(&spec, backlog, &self.inherited).map(|(bound, address)| {
                    self.doors.insert(socket, Door { socket: bound, accepting: None });
                    address
                });
                let result = result.map_err(|error| error.raw_os_error().unwrap_or(22));
                self.core.handle_bound(socket, result);
            }
            Action::Listen { socket, backlog } => {
                if let Some(door) = self.doors.get(&socket)
                    && let Err(error) = listener::listen(door.socket.fd.as_ref(), backlog)
                {
                    tracing::warn!(%error, "cannot set the backlog of a listener");
                }
            }
            Action::Accept { socket, on } => self.accept(socket, on),
            Action::Bar { socket } => {
                if let Some(door) = self.doors.get_mut(&socket)
                    && let Err(error) = door.socket.bar()
                {
                    tracing::warn!(%error, "cannot keep new connections out; those that come now may be reset");
                }
            }
            Action::CountWaiting => {
                let waiting = sockets::waiting(self.doors.values().map(|door| &door.socket));
                let now = self.now();
                self.core.handle_waiting(now, waiting);
            }
            Action::Unbind { socket } => {
                self.accept(socket, false);
                self.groups.remove(&socket);
                if let Some(file) = self.doors.remove(&socket).and_then(|door| door.socket.file)
                    && let Err(error) = file.remove()
                {
                    tracing::warn!(%error, "cannot remove the file of a Unix socket");
                }
            }
            Action::Flush { worker } => self.flush(worker),
            Action::CloseChannel { worker } => {
                if let Some(child) = self.children.get_mut(&worker) {
                    if let Some(reader) = child.reader.take() {
                        reader.abort();
                    }
                    child.link = None;
                }
            }
            Action::Signal { worker, signal } => {
                if let Some(signal) = Signal::from_raw(signal)
                    && let Some(child) = self.children.get(&worker)
                    && let Err(error) = child.process.signal(signal)
                {
                    tracing::warn!(%worker, %signal, %error, "cannot send a signal");
                }
            }
            Action::Examine { connection } => {
                let examined = match self.core.examining(connection).map(conn::touched) {
                    Some(Touched::Pristine) => Examined::Pristine,
                    Some(Touched::Unknown) => Examined::Unknown,
                    Some(Touched::Touched) | None => Examined::Touched,
                };
                self.core.handle_examined(connection, examined);
            }
            Action::Forget { worker } => {
                self.ports.give_back(worker);
                if let Some(child) = self.children.remove(&worker)
                    && child.process.signal_group(Signal::TERM).unwrap_or(false)
                {
                    tokio::task::spawn_local(tasks::end_group(child.process));
                }
            }
            Action::Measure { worker } => {
                let pid = self.children.get(&worker).map(|child| child.process.pid());
                if let Some(Ok(memory)) = pid.map(phalanx_os::host::memory_kib) {
                    let now = self.now();
                    self.core.handle_memory(now, worker, memory.rss_kib << 10);
                }
            }
            Action::Watch { worker } => {
                if let Some(child) = self.children.get(&worker) {
                    let (pid, lent) = (child.process.pid(), child.lent.clone());
                    tokio::task::spawn_local(facts::watch_sockets(self.me.clone(), worker, pid, lent));
                }
            }
            Action::Probe { worker, key, path } => {
                let connection = self.connect(worker, &key);
                tokio::task::spawn_local(facts::probe(self.me.clone(), worker, connection, path));
            }
            Action::MakeTicketKey => {
                // A name of 8 bytes, and 32 of the key itself (crate::tls).
                match phalanx_os::host::random::<40>() {
                    Ok(key) => {
                        let now = self.now();
                        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
                        self.core.handle_ticket_key(now, key);
                    }
                    Err(error) => tracing::error!(%error, "no random bytes: no key for TLS session tickets"),
                }
            }
            Action::Retire { generation } => {
                self.programs.remove(&generation);
            }
            other => self.steer(other),
        }
    }

    fn accept(&mut self, socket: SocketId, on: bool) {
        let me = self.me.clone();
        let Some(door) = self.doors.get_mut(&socket) else { return };
        if let Some(task) = door.accepting.take() {
            task.abort();
        }
        if on {
            let fd = Arc::clone(&door.socket.fd);
            door.accepting = Some(tokio::task::spawn_local(tasks::accept(me, socket, fd)).abort_handle());
        }
    }

    /// What core says, completed with what only we can know.
    fn tell(&mut self, mut event: CoreEvent<Payload, OwnedFd>) {
        match &mut event {
            CoreEvent::BindFailed { errno, configured: true, .. } => self.bind_error = Some(*errno),
            CoreEvent::Finished => {
                for done in self.finished.drain(..) {
                    let _ = done.send(());
                }
                self.over.notify_one();
            }
            CoreEvent::Reloaded { generation } => self.reloaded(*generation),
            CoreEvent::ReloadAborted { generation, why, last_lines } => {
                *last_lines = why.worker().map(|worker| self.output.tail_of(worker)).unwrap_or_default();
                self.reload_aborted(*generation, why.clone(), last_lines.clone());
            }
            CoreEvent::Exit { worker, last_lines, exited_after_disconnect: false, .. } => {
                *last_lines = self.output.tail_of(*worker);
            }
            CoreEvent::Hung { worker, seen, .. } => {
                let pid = self.children.get(worker).map(|child| child.process.pid());
                *seen = pid.map(phalanx_os::look::at).unwrap_or_default();
            }
            // Closed here, when nobody is to have it.
            CoreEvent::Message { handle, .. } | CoreEvent::Opaque { handle, .. } if !self.receive_handles => {
                *handle = None;
            }
            _ => {}
        }
        self.hub.tell(&told(event));
    }
}
