//! What the kernel tells of processes, and waiting for what is to come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

use super::*;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started })
    }

    /// Whether it still exists, as a zombie if nothing else.
    #[must_use]
    pub fn exists(self) -> bool {
        stat(self.pid).is_some_and(|it| it.started == self.started)
    }

    /// Whether it is more than a zombie.
    #[must_use]
    pub fn lives(self) -> bool {
        stat(self.pid).is_some_and(|it| it.started == self.started && !matches!(it.state, 'Z' | 'X'))
    }
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug)]
pub struct Stat {
    /// The name of the program, cut to 15 bytes.
    pub name: String,
    /// `R`, `S`, `T` (stopped), `Z` (zombie) …
    pub state: char,
    /// The parent.
    pub ppid: u32,
    /// Process group.
    pub pgrp: u32,
    /// Clock ticks in user mode.
    pub user: u64,
    /// Clock ticks in the kernel.
    pub system: u64,
    /// When it began, in clock ticks since boot.
    pub started: u64,
}

/// Reads [`Stat`]; `None` if there is no such process.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, so from the last parenthesis on.
    let (front, back) = (text.get(text.find('(')? + 1..text.rfind(')')?)?, text.get(text.rfind(')')? + 2..)?);
    let f: Vec<&str> = back.split_ascii_whitespace().collect();
    Some(Stat {
        name: front.to_owned(),
        state: f.first()?.chars().next()?,
        ppid: f.get(1)?.parse().ok()?,
        pgrp: f.get(2)?.parse().ok()?,
        user: f.get(11)?.parse().ok()?,
        system: f.get(12)?.parse().ok()?,
        started: f.get(19)?.parse().ok()?,
    })
}

/// How many descriptors a process has open.
#[must_use]
pub fn fd_count(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// What those descriptors are, by number: `socket:[123]`, `/dev/null`, `anon_inode:[eventpoll]`.
#[must_use]
pub fn fds(pid: u32) -> BTreeMap<u32, String> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    dir.flatten()
        .filter_map(|it| {
            let number = it.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(it.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// Resident memory of a process in KiB.
#[must_use]
pub fn rss_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in KiB.
#[must_use]
pub fn peak_rss_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|it| it.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

fn all_pids() -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process, zombies among them, in order of their start.
#[must_use]
pub fn children(pid: u32) -> Vec<ProcessId> {
    let mut found: Vec<_> = all_pids()
        .into_iter()
        .filter_map(|it| {
            let stat = stat(it)?;
            (stat.ppid == pid).then_some(ProcessId { pid: it, started: stat.started })
        })
        .collect();
    found.sort_by_key(|it| (it.started, it.pid));
    found
}

/// Children, their children and so on.
#[must_use]
pub fn descendants(pid: u32) -> BTreeSet<ProcessId> {
    let mut found = BTreeSet::new();
    let mut open = vec![pid];
    while let Some(next) = open.pop() {
        for child in children(next) {
            if found.insert(child) {
                open.push(child.pid);
            }
        }
    }
    found
}

/// The children of a process that died and were not reaped.
#[must_use]
pub fn zombies(pid: u32) -> Vec<ProcessId> {
    children(pid).into_iter().filter(|it| stat(it.pid).is_some_and(|s| s.state == 'Z')).collect()
}

/// Processes whose environment carries a mark.
pub(super) fn marked(mark: &str) -> BTreeSet<ProcessId> {
    let wanted = format!("{MARK}={mark}");
    let me = std::process::id();
    all_pids()
        .into_iter()
        .filter(|pid| *pid != me)
        .filter(|pid| environment(*pid).split(|b| *b == 0).any(|it| it == wanted.as_bytes()))
        .filter_map(ProcessId::of)
        .collect()
}

/// The environment that a process was given. In the middle of an exec it looks
/// empty, so an empty one is looked at again.
fn environment(pid: u32) -> Vec<u8> {
    for _ in 0..5 {
        match fs::read(format!("/proc/{pid}/environ")) {
            Err(_) => break,
            Ok(env) if !env.is_empty() => return env,
            Ok(_) => {}
        }
        // Zombies and threads of the kernel have none.
        if stat(pid).is_none_or(|it| it.state == 'Z' || it.pgrp == 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Vec::new()
}

/// Sends a signal to a process by number.
///
/// # Errors
/// What `kill` says: no such process, for one.
pub fn kill(pid: u32, signal: Signal) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// A loopback port that was free just now. Nothing keeps it free: for programs
/// that cannot be told to choose one.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its number").port()
}

/// Asks until a fact holds. For facts that announce themselves in no other way.
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Asks until there is an answer.
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(it) = answer() {
            return it;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until somebody *answers* on a loopback port (that it accepts proves
/// little: the socket may be held by somebody who does not serve).
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_answer(port: u16) {
    wait_until(&format!("an answer on port {port}"), || {
        crate::load::Load::port(port).connections(1).silence(Duration::from_secs(5)).run().served == 1
    });
}
