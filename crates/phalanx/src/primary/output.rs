//! What workers print: read from their pipes and cut into lines.

use super::outlet::{Outlet, Printed, Pushed};
use crate::builder::OnLine;
use crate::watch::watch;
use phalanx_core::{Slot, WorkerId};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lines that are kept of each worker.
const KEPT: usize = 20;
/// Workers of a slot whose lines are kept: the present one, its successor, and one that is gone.
const REMEMBERED: usize = 3;
/// A line is cut here.
const LONGEST: usize = 16 * 1024;

/// One stream of one worker.
#[derive(Debug)]
pub(super) struct Pipe {
    worker: WorkerId,
    slot: Slot,
    is_stderr: bool,
    pub(super) fd: AsyncFd<File>,
    /// The line that has no end yet.
    line: RefCell<Vec<u8>>,
}

impl Pipe {
    pub(super) fn new(worker: WorkerId, slot: Slot, is_stderr: bool, fd: OwnedFd) -> io::Result<Pipe> {
        let fd = watch(File::from(fd), Interest::READABLE)?;
        Ok(Pipe { worker, slot, is_stderr, fd, line: RefCell::default() })
    }
}

/// Where lines go, and the last ones of each slot.
#[derive(Default)]
pub(super) struct Output {
    /// Of stdout and stderr, here and below: who does not read the one still gets the other.
    tell: [Option<OnLine>; 2],
    outlets: [Option<Outlet>; 2],
    tails: BTreeMap<WorkerId, (Slot, VecDeque<String>)>,
    dropped: u64,
    /// See [`Outlet::is_losing`], at the last line.
    losing: [bool; 2],
    burst: bool,
}

impl Output {
    pub(super) fn new(tell: [Option<OnLine>; 2]) -> Output {
        Output { tell, ..Output::default() }
    }

    /// Reads a pipe once. `None`: nothing more now; `Some(false)`: it is at its end.
    pub(super) fn read(&mut self, pipe: &Pipe, chunk: &mut [u8]) -> Option<bool> {
        match pipe.fd.get_ref().read(chunk) {
            Ok(0) => {
                self.end_line(pipe);
                Some(false)
            }
            Ok(count) => {
                for &byte in chunk.get(..count).unwrap_or_default() {
                    if byte == b'\n' {
                        self.emit(pipe);
                        continue;
                    }
                    let mut line = pipe.line.borrow_mut();
                    if line.len() < LONGEST {
                        line.push(byte);
                    }
                }
                Some(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(true),
            Err(_) => Some(false),
        }
    }

    /// What has no end will not get one.
    pub(super) fn end_line(&mut self, pipe: &Pipe) {
        if !pipe.line.borrow().is_empty() {
            self.emit(pipe);
        }
    }

    fn emit(&mut self, pipe: &Pipe) {
        let line = std::mem::take(&mut *pipe.line.borrow_mut());
        let text = String::from_utf8_lossy(&line);
        let text: String =
            text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        self.keep(pipe, text.clone());
        let &Pipe { worker, slot, is_stderr, .. } = pipe;
        self.push(Printed { worker, slot, is_stderr, text });
    }

    fn keep(&mut self, pipe: &Pipe, text: String) {
        let (_, tail) = self.tails.entry(pipe.worker).or_insert_with(|| (pipe.slot, VecDeque::new()));
        let is_new = tail.is_empty();
        if tail.len() == KEPT {
            tail.pop_front();
        }
        tail.push_back(text);
        if is_new {
            let of_slot = self.tails.iter().filter(|(_, (slot, _))| *slot == pipe.slot);
            let mut old: Vec<WorkerId> = of_slot.map(|(id, _)| *id).collect();
            old.truncate(old.len().saturating_sub(REMEMBERED));
            self.tails.retain(|id, _| !old.contains(id));
        }
    }

    fn push(&mut self, line: Printed) {
        let at = usize::from(line.is_stderr);
        let (Some(tell), Some(outlet)) = (self.tell[at].as_ref(), self.outlets.get_mut(at)) else { return };
        if outlet.is_none() {
            *outlet = Outlet::start(tell.clone()).ok();
        }
        let losing = outlet.as_ref().is_some_and(Outlet::is_losing);
        self.burst |= losing && !std::mem::replace(&mut self.losing[at], losing);
        let pushed = outlet.as_ref().map_or(Pushed::Dropped { first: true }, |outlet| outlet.push(line));
        if let Pushed::Dropped { first } = pushed {
            self.dropped += 1;
            self.burst |= first;
        }
    }

    /// Lines that nobody got, because nobody read or they could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.outlets.iter().flatten().map(Outlet::lost).sum::<u64>()
    }

    /// Whether lines have begun to be dropped since the last call.
    pub(super) fn burst(&mut self) -> bool {
        std::mem::take(&mut self.burst)
    }

    /// The last lines of the latest worker of a slot that printed any, oldest first.
    pub(super) fn tail(&self, slot: Slot) -> Vec<String> {
        let latest = self.tails.values().rfind(|(of, _)| *of == slot);
        latest.map(|(_, tail)| tail.iter().cloned().collect()).unwrap_or_default()
    }

    /// The last lines of one worker, oldest first, for a while after its end.
    pub(super) fn tail_of(&self, worker: WorkerId) -> Vec<String> {
        self.tails.get(&worker).map(|(_, tail)| tail.iter().cloned().collect()).unwrap_or_default()
    }
}
