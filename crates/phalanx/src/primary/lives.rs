//! Births and deaths of workers.

use super::child::Born;
use super::driver::{Child, Driver};
use super::output::Pipe;
use super::tasks::{self, Link};
use crate::event::Event;
use crate::watch::watch;
use phalanx_core::{Ended, Spawn, WorkerId};
use phalanx_os::Signal;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::sync::Notify;

impl Driver {
    pub(super) fn spawn(&mut self, spawn: &Spawn) {
        let lent: Vec<(String, Arc<OwnedFd>)> = spawn
            .lend
            .iter()
            .filter_map(|(name, socket)| Some((name.clone(), Arc::clone(&self.doors.get(socket)?.socket.fd))))
            .collect();
        let program = Rc::clone(self.programs.get(&spawn.generation).unwrap_or(&self.latest));
        let port = self.inspect_port(program.is.inspect, spawn.worker, spawn.slot);
        let notify = self.notify.as_ref().map(|socket| socket.path());
        let lent_fds = lent.iter().map(|(_, fd)| Arc::clone(fd)).collect();
        let born =
            program.spawn(spawn, &lent, notify, port).and_then(|born| self.adopt(spawn, born, lent_fds));
        if let Err(error) = &born {
            self.fork_error = Some(error.clone());
            self.ports.give_back(spawn.worker);
        }
        let now = self.now();
        self.core.handle_spawned(now, spawn.worker, born);
    }

    fn adopt(&mut self, spawn: &Spawn, born: Born, lent: Vec<Arc<OwnedFd>>) -> Result<u32, String> {
        let pid = born.process.pid();
        let worker = spawn.worker;
        let mut pipes = Vec::new();
        for (is_stderr, pipe) in born.pipes {
            let pipe = Pipe::new(worker, spawn.slot, is_stderr, pipe)
                .map_err(|error| format!("cannot watch a worker's output: {error}"))?;
            let pipe = Rc::new(pipe);
            tokio::task::spawn_local(tasks::read_output(self.me.clone(), Rc::clone(&pipe)));
            pipes.push(pipe);
        }
        let writable = Rc::new(Notify::new());
        let mut child = Child { process: born.process, link: None, reader: None, writable, pipes, lent };
        if let Some(channel) = born.channel {
            let link = watch(Link(channel), Interest::READABLE)
                .map_err(|error| format!("cannot watch a channel: {error}"))?;
            let link = Rc::new(link);
            let reader = tasks::read_channel(self.me.clone(), worker, Rc::clone(&link));
            child.reader = Some(tokio::task::spawn_local(reader).abort_handle());
            tokio::task::spawn_local(tasks::write_channel(
                self.me.clone(),
                worker,
                Rc::downgrade(&link),
                Rc::clone(&child.writable),
            ));
            child.link = Some(link);
        }
        if let Some(pidfd) = child.process.pidfd() {
            let pidfd = pidfd.try_clone_to_owned().map_err(|error| error.to_string())?;
            tokio::task::spawn_local(tasks::await_exit(self.me.clone(), worker, pidfd));
        }
        self.children.insert(worker, child);
        Ok(pid)
    }

    /// The process has ended, or may have.
    pub(super) fn reap(&mut self, worker: WorkerId) -> bool {
        let Some(child) = self.children.get_mut(&worker) else { return true };
        let ended = match child.process.try_wait() {
            Ok(Some(phalanx_os::Ended::Exited(code))) => Ended::Code(code),
            Ok(Some(phalanx_os::Ended::Signaled { signal, core_dumped })) => {
                Ended::Signal(signal.as_raw(), core_dumped)
            }
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(%worker, %error, "cannot wait for a worker");
                Ended::Code(-1)
            }
        };
        let ended = self.explain(ended);
        // BEFORE the exit is told: what it acknowledged and then died is in the channel (K-15).
        while self.read(worker) == Some(true) {}
        self.last_words(worker);
        let now = self.now();
        // What it left behind in its process group goes with it.
        if let Some(child) = self.children.get(&worker) {
            let _ = child.process.signal_group(Signal::TERM);
        }
        self.core.handle_exit(now, worker, ended);
        self.drive();
        true
    }

    /// A worker that was killed may have been so by the kernel, which says it elsewhere.
    fn explain(&mut self, ended: Ended) -> Ended {
        if !matches!(ended, Ended::Signal(signal, _) if signal == Signal::KILL.as_raw()) {
            return ended;
        }
        let kills = phalanx_os::cgroup::oom_kills().unwrap_or(self.oom_kills);
        if std::mem::replace(&mut self.oom_kills, kills) < kills { Ended::OutOfMemory } else { ended }
    }

    /// What is no worker and has ended. A fork and its place in the table are one step, so none of ours is taken.
    pub(super) fn reap_strangers(&self) {
        let known = |pid| self.children.values().any(|child| child.process.pid() == pid);
        if self.strangers
            && let Err(error) = phalanx_os::host::reap_strangers(known)
        {
            tracing::warn!(%error, "cannot wait for orphans");
        }
    }

    /// Reads a pipe of a worker's once, as [`Output::read`] does.
    pub(super) fn print(&mut self, pipe: &Pipe) -> Option<bool> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let more = self.output.read(pipe, &mut chunk);
        self.chunk = chunk;
        if self.output.burst() {
            self.hub.tell(&Event::OutputDropped { dropped: self.output.dropped() });
        }
        more
    }

    /// What a dead worker printed last, before its end is told. A pipe holds no more than two reads get, and
    /// whoever inherited it may go on.
    fn last_words(&mut self, worker: WorkerId) {
        let pipes = self.children.get(&worker).map(|child| child.pipes.clone()).unwrap_or_default();
        for pipe in pipes {
            let _ = self.print(&pipe).and_then(|_| self.print(&pipe));
            self.output.end_line(&pipe);
        }
    }
}
