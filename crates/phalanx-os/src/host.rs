//! The machine and the process: limits, memory, open fds, children nobody asked for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Resource;

use crate::wait::{self, Then, Whose};
use crate::{conn, fd, sockopt as rawopt};

/// How many workers `auto` means: the CPUs this process may use, less if a cgroup's quota allows less, and at
/// least 1.
///
/// This is [`std::thread::available_parallelism`], which looks at the affinity mask and at the quotas of
/// cgroup v1 and v2, rounding down. Node looks at the mask only.
#[must_use]
pub fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Raises the soft limit of open files of this process to the hard one. Gives the old soft limit and the one
/// now in force; `u64::MAX` for none.
///
/// The old one is to be kept: children inherit the raised limit, and a program that uses `select(2)` corrupts
/// its memory with fds above 1024. [`Spawn::open_files`](crate::Spawn::open_files) gives it back to them.
///
/// # Errors
/// None is expected.
pub fn raise_open_files() -> io::Result<(u64, u64)> {
    let old = rustix::process::getrlimit(Resource::Nofile);
    let mut new = old;
    new.current = old.maximum;
    if new.current != old.current {
        rustix::process::setrlimit(Resource::Nofile, new)?;
    }
    Ok((old.current.unwrap_or(u64::MAX), new.current.unwrap_or(u64::MAX)))
}

/// Makes this process the new parent of the orphans among its descendants (`PR_SET_CHILD_SUBREAPER`). From
/// then on they have to be reaped: see [`reap_strangers`]. Children do not inherit it.
///
/// # Errors
/// None is expected since Linux 3.4.
pub fn become_subreaper() -> io::Result<()> {
    // Any pid stands for "on".
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// The memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it has in RAM, shared pages included, in KiB. The kernel's figure can be behind by some pages
    /// per thread.
    pub rss_kib: u64,
}

/// How much memory a process has in RAM (`/proc/PID/statm`). Works for processes of other users as well.
///
/// # Errors
/// `NotFound` when there is no such process, or no `/proc`.
pub fn memory_kib(pid: u32) -> io::Result<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(Memory { rss_kib: pages.saturating_mul(rustix::param::page_size() as u64) / 1024 })
}

/// Random bytes that nobody can guess.
///
/// # Errors
/// None is expected once the system is up.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Whether the main thread of a process runs, waits for a disk or is stopped, and does not sleep.
///
/// # Errors
/// `NotFound` when there is no such process, or no `/proc`.
pub fn is_busy(pid: u32) -> io::Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may contain anything, spaces and brackets too: the state follows its last bracket.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    Ok(matches!(state.ok_or(io::ErrorKind::InvalidData)?, 'R' | 'D' | 'T' | 't'))
}

/// The open fds of a process, of this one for `None`, in order, each with what `/proc` calls it
/// (`socket:[1234]`, `/dev/null`). The fd used for looking is left out.
///
/// # Errors
/// `NotFound` when there is no such process or no `/proc`; `PermissionDenied` for another user's.
pub fn open_fds(pid: Option<u32>) -> io::Result<Vec<(RawFd, String)>> {
    let path = pid.map_or_else(|| "/proc/self/fd".to_owned(), |pid| format!("/proc/{pid}/fd"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let is_ours = pid.is_none_or(|pid| pid == std::process::id());
    // Iterating over a directory makes an fd of its own; both are ours and neither was there before.
    let mut entries = Dir::read_from(&directory)?;
    let looking = [directory.as_raw_fd(), entries.fd()?.as_raw_fd()];
    let mut fds = Vec::new();
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().ok().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if is_ours && looking.contains(&number) {
            continue;
        }
        // Closed since the name was read: then it is not open.
        let Ok(target) = rustix::fs::readlinkat(&directory, name, Vec::new()) else { continue };
        fds.push((number, target.to_string_lossy().into_owned()));
    }
    fds.sort_unstable();
    Ok(fds)
}

/// Who is at the other end of a `AF_UNIX` connection: pid, uid, gid (`SO_PEERCRED`).
///
/// As they were when it connected, or listened; of a socket pair, when it was made, so that a channel names
/// the primary on both ends. The pid is 0 for a process outside of our pid namespace, and is not proof of
/// anything later: the process may be gone and the number another's.
///
/// # Errors
/// `ENOTSOCK`; nothing is known (pid 0, ids `u32::MAX`) for sockets of other families.
pub fn peer_credentials(fd: impl AsFd) -> io::Result<(u32, u32, u32)> {
    let peer = rawopt::peer_credentials(fd)?;
    Ok((u32::try_from(peer.pid).unwrap_or(0), peer.uid, peer.gid))
}

/// Reaps the ended children of this process that nobody knows, and says how many they were.
///
/// For a subreaper, or a process that is number 1: orphans of others become its children and would stay
/// zombies. `known` tells which pids are somebody's business; those are left for
/// [`Process::try_wait`](crate::Process::try_wait). It has to know a child from its fork on, so this is called
/// from the thread that spawns.
///
/// # Errors
/// None is expected.
pub fn reap_strangers(known: impl Fn(u32) -> bool) -> io::Result<usize> {
    let mut reaped = 0;
    loop {
        // A look first, because a wait for anybody would take the end of a known child from its owner.
        match wait::ended(Whose::Anyone, Then::Keep) {
            Ok(Some((pid, _))) if !known(pid) => reaped += reap_one(pid)?,
            // The look shows the first that ended, for as long as its owner leaves it there; strangers may
            // be behind it.
            Ok(Some(_)) => break,
            Ok(None) => return Ok(reaped),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(reaped),
            Err(e) => return Err(e),
        }
    }
    for pid in children() {
        if !known(pid) {
            reaped += reap_one(pid)?;
        }
    }
    Ok(reaped)
}

fn reap_one(pid: u32) -> io::Result<usize> {
    match wait::ended(Whose::Pid(pid), Then::Reap) {
        Ok(ended) => Ok(usize::from(ended.is_some())),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(0),
        Err(e) => Err(e),
    }
}

/// The children of this process, zombies included, as `/proc` lists them; none where it does not
/// (`CONFIG_PROC_CHILDREN`). Then the strangers are found once the owners have reaped theirs.
fn children() -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A pipe: the end to read from, non-blocking, and the end to write to, blocking. Both are close-on-exec.
///
/// Meant for a child's output: the child finds its end as programs expect it.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let read = fd::above_stdio(read)?;
    conn::set_nonblocking(&read, true)?;
    Ok((read, fd::above_stdio(write)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_room_for_one_worker() {
        assert!(parallelism() >= 1);
    }

    #[test]
    fn memory_is_told_for_the_living_only() {
        assert!(memory_kib(std::process::id()).unwrap().rss_kib > 0);
        // No process has this number: it is beyond the highest that Linux gives.
        assert_eq!(memory_kib(1 << 30).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn no_random_bytes_come_twice() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }

    #[test]
    fn who_asks_is_busy() {
        // The main thread sleeps while this one runs the tests; a thread has a number of its own.
        let this = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        assert!(is_busy(this).unwrap());
        assert_eq!(is_busy(1 << 30).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_peer_of_a_pair_is_its_maker() {
        let (a, _b) = conn::unix_pair().unwrap();
        let (pid, uid, gid) = peer_credentials(&a).unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!(uid, rustix::process::geteuid().as_raw());
        assert_eq!(gid, rustix::process::getegid().as_raw());
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(peer_credentials(&null).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn the_census_shows_an_open_fd_with_its_target() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = open_fds(None).unwrap();
        assert!(fds.contains(&(null.as_raw_fd(), "/dev/null".to_owned())));
        assert!(fds.is_sorted());
    }

    #[test]
    fn the_limit_of_open_files_only_rises() {
        let (old, now) = raise_open_files().unwrap();
        assert!(now >= old);
        let (again, same) = raise_open_files().unwrap();
        assert_eq!((again, same), (now, now));
    }
}
