//! Does a program wait for connections, or datagrams, on a socket? A fact for programs that have no way to say
//! that they are ready.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::fstat;

/// The system calls that wait for one fd, or for some. Not every architecture has the older ones.
const TAKE: &[libc::c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_read,
    libc::SYS_readv,
];
#[cfg(target_arch = "x86_64")]
const POLL: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const POLL: &[libc::c_long] = &[libc::SYS_ppoll];
#[cfg(target_arch = "x86_64")]
const SELECT: &[libc::c_long] = &[libc::SYS_select, libc::SYS_pselect6];
#[cfg(not(target_arch = "x86_64"))]
const SELECT: &[libc::c_long] = &[libc::SYS_pselect6];

/// The most fds of a `poll` or `select` that are looked at.
const MOST: usize = 65_536;

/// Whether the process, or one of its descendants, waits for connections on this listening socket, or for
/// datagrams on this UDP socket, which it shares with us: the socket is in one of its epoll sets, or one of its
/// threads is asleep with it in `accept`, `poll`, `select` or a call that receives.
///
/// `true` is a fact. `false` may only mean that it waits in another way (`io_uring`), is busy with a connection,
/// or has not come so far.
///
/// # Errors
/// `NotFound` when the process is gone; `PermissionDenied` for one that may not be looked into, such as one of
/// another user, or one that has gained privileges.
pub fn waits_for(pid: u32, socket: impl AsFd) -> io::Result<bool> {
    let stat = fstat(socket)?;
    let socket = Socket { inode: stat.st_ino, device: stat.st_dev };
    let root = PathBuf::from(format!("/proc/{pid}"));
    if socket.waited_for_by(&root)? {
        return Ok(true);
    }
    let mut others = children(&root);
    while let Some(process) = others.pop() {
        // It may be gone by now.
        if socket.waited_for_by(&process).unwrap_or(false) {
            return Ok(true);
        }
        others.extend(children(&process));
    }
    Ok(false)
}

/// The directories of a process's children; none where the kernel does not list them.
fn children(process: &Path) -> Vec<PathBuf> {
    let pids = tasks(process).filter_map(|task| fs::read_to_string(task.join("children")).ok());
    pids.flat_map(|list| {
        list.split_ascii_whitespace().map(|pid| Path::new("/proc").join(pid)).collect::<Vec<_>>()
    })
    .collect()
}

fn tasks(process: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(process.join("task")).into_iter().flatten().filter_map(|task| Some(task.ok()?.path()))
}

struct Socket {
    inode: u64,
    device: u64,
}

impl Socket {
    fn waited_for_by(&self, process: &Path) -> io::Result<bool> {
        let name = format!("socket:[{}]", self.inode);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(process.join("fd"))? {
            let entry = entry?;
            // Closed since its name was read.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.as_os_str();
            if target == "anon_inode:[eventpoll]" {
                let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
                if info.is_ok_and(|info| info.lines().any(|line| self.is_target(line))) {
                    return Ok(true);
                }
            } else if target == name.as_str() {
                numbers.extend(entry.file_name().to_str().and_then(|number| number.parse::<u64>().ok()));
            }
        }
        Ok(!numbers.is_empty() && tasks(process).any(|task| asleep_with(&task, process, &numbers)))
    }

    /// A line of an epoll instance's `fdinfo`, such as
    /// `tfd:       14 events:       19 data:  a00000014  pos:0 ino:1d4e sdev:8`.
    fn is_target(&self, line: &str) -> bool {
        let field = |name: &str| {
            let rest = line.split_once(name)?.1.trim_start();
            u64::from_str_radix(rest.split(' ').next()?, 16).ok()
        };
        // The kernel's own number of a device, which stat(2) rearranges.
        let device = u64::from(libc::major(self.device)) << 20 | u64::from(libc::minor(self.device));
        line.starts_with("tfd:")
            && field("ino:") == Some(self.inode)
            && field("sdev:") == Some(device)
            && field("events:").is_some_and(|events| events & libc::EPOLLIN as u64 != 0)
    }
}

/// Whether a thread is asleep in a call that waits for one of these fds.
fn asleep_with(task: &Path, process: &Path, numbers: &[u64]) -> bool {
    // The number of the call and its arguments; the word "running" when it is not asleep.
    let Ok(line) = fs::read_to_string(task.join("syscall")) else { return false };
    let mut words = line.split_ascii_whitespace();
    let Some(call) = words.next().and_then(|call| call.parse::<libc::c_long>().ok()) else { return false };
    let arguments: Vec<u64> =
        words.filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()).collect();
    let &[first, second, ..] = &arguments[..] else { return false };
    // Bytes of the process's memory.
    let read = |at: u64, bytes: usize| {
        let mut memory = vec![0; bytes];
        File::open(process.join("mem"))
            .and_then(|file| file.read_exact_at(&mut memory, at))
            .ok()
            .map(|()| memory)
    };
    if TAKE.contains(&call) {
        return numbers.contains(&(first & u64::from(u32::MAX)));
    }
    if POLL.contains(&call) {
        // struct pollfd: the fd, what is asked for, what came.
        let count = (second as usize).min(MOST);
        return read(first, count * 8).is_some_and(|fds| {
            fds.chunks_exact(8).any(|each| {
                let [a, b, c, d, low, high, ..] = *each else { return false };
                let wants_input = i16::from_ne_bytes([low, high]) & libc::POLLIN != 0;
                wants_input && numbers.contains(&u32::from_ne_bytes([a, b, c, d]).into())
            })
        });
    }
    if SELECT.contains(&call) && second != 0 {
        // A set of as many bits as the first argument says, in words.
        let bits = (first as usize).min(MOST);
        return read(second, bits.div_ceil(64) * 8).is_some_and(|set| {
            let word = |number: u64| {
                let at = number as usize / 64 * 8;
                Some(u64::from_ne_bytes(*set.get(at..)?.first_chunk()?))
            };
            numbers.iter().any(|number| word(*number).is_some_and(|word| word >> (number % 64) & 1 == 1))
        });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let process = Path::new("/proc").join(child.id().to_string());
        assert!(children(Path::new("/proc/self")).contains(&process));
        assert!(children(&process).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_an_epoll_entry_for_input_counts() {
        let socket = Socket { inode: 0x1d4e, device: 8 };
        let line = "tfd:       14 events:       19 data:  a00000014  pos:0 ino:1d4e sdev:8";
        assert!(socket.is_target(line));
        assert!(!socket.is_target(&line.replace("19", "18")));
        assert!(!socket.is_target(&line.replace("1d4e", "1d4f")));
        assert!(!socket.is_target(&line.replace("sdev:8", "sdev:9")));
        assert!(!socket.is_target(""));
    }
}
