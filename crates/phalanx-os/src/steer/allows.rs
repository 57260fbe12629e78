//! What this kernel and this sandbox allow, for whoever has to explain a choice.
#![expect(unsafe_code, reason = "what a sandbox may kill for is tried in a forked child")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Pid, PidfdFlags};

use crate::conn;

use super::asm::Map;
use super::exact::shape;
use super::{Rule, Transport, diag, map, program};

/// How something went that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It works.
    Works,
    /// The kernel said this errno.
    Refused(i32),
    /// This signal killed the process that tried; `SIGSYS` is a seccomp filter.
    Killed(i32),
    /// What comes before it did not work.
    NotReached,
}

impl Tried {
    fn of<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Works,
            Err(e) => Self::Refused(e.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// It works.
    #[must_use]
    pub fn works(self) -> bool {
        self == Self::Works
    }
}

/// The capabilities of the calling thread that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As in `CAP_BPF`.
    pub name: &'static str,
    /// Can be used now.
    pub effective: bool,
    /// Can be made effective.
    pub permitted: bool,
    /// Can be had by executing a file that has it.
    pub bounding: bool,
    /// Is kept when a program without file capabilities is executed: workers would have it.
    pub ambient: bool,
}

/// What [`survey`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allows {
    /// As `uname -r`.
    pub kernel: String,
    /// The maps of [`Exact`](super::Exact) can be made.
    pub maps: Tried,
    /// Its program can be loaded.
    pub program: Tried,
    /// CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_NET_BIND_SERVICE.
    pub capabilities: Vec<Capability>,
    /// The sysctl `kernel.unprivileged_bpf_disabled`; none if it is not there. It does not help steering.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// The process is in a user namespace of its own, in which CAP_BPF is worth nothing.
    pub user_namespace: bool,
    /// The seccomp mode of the calling thread: 0 none, 2 a filter.
    pub seccomp: Option<u32>,
    /// Sockets can be listed ([`diag`]).
    pub socket_diag: Tried,
    /// Fds can be refused ([`conn::refuse_handles`]; Linux 6.16).
    pub refuse_handles: bool,
    /// Processes can be held by an fd (Linux 5.3).
    pub pidfd: bool,
}

/// The numbers from `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 5] = [
    ("CAP_BPF", 39),
    ("CAP_NET_ADMIN", 12),
    ("CAP_PERFMON", 38),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_NET_BIND_SERVICE", 10),
];

/// Tries and reads. What a seccomp filter could kill for is tried in a child process, which this reaps, so it
/// is not for a program that reaps children it does not know meanwhile.
#[must_use]
pub fn survey() -> Allows {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let set = |name: &str| field(name).and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    let [effective, permitted, bounding, ambient] = ["CapEff", "CapPrm", "CapBnd", "CapAmb"].map(set);
    let capabilities = CAPABILITIES.map(|(name, bit)| {
        let [effective, permitted, bounding, ambient] =
            [effective, permitted, bounding, ambient].map(|set| set >> bit & 1 == 1);
        Capability { name, effective, permitted, bounding, ambient }
    });
    let [maps, program] = try_in_child();
    Allows {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        maps,
        program,
        capabilities: capabilities.into(),
        unprivileged_bpf_disabled: fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
        user_namespace: fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_whole(&map)),
        seccomp: field("Seccomp").and_then(|mode| mode.parse().ok()),
        socket_diag: Tried::of(diag::listeners(Transport::Tcp, 0)),
        refuse_handles: conn::unix_pair()
            .and_then(|(socket, _)| conn::refuse_handles(socket))
            .unwrap_or(false),
        pidfd: rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).is_ok(),
    }
}

/// The signal that would kill this process for loading a program, if one would: what a seccomp filter may do.
/// Where there is a filter, it is tried in a child process, as by [`survey`].
#[must_use]
pub fn kills_for_it() -> Option<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered =
        status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    if !filtered {
        return None;
    }
    try_in_child().into_iter().find_map(|tried| match tried {
        Tried::Killed(signal) => Some(signal),
        Tried::Works | Tried::Refused(_) | Tried::NotReached => None,
    })
}

/// Whether a `uid_map` maps every user to itself, as that of the first namespace does.
fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Makes the maps and loads the program in a child, which ends at once.
fn try_in_child() -> [Tried; 2] {
    // The child of a process with threads may not allocate: all is made before.
    let mut source = program::program(Transport::Tcp, Rule::Rotate);
    source.link(|_| 0);
    let Ok((read, write)) = crate::host::pipe() else { return [Tried::Refused(libc::EMFILE); 2] };
    // SAFETY: the child makes system calls on memory that exists, and leaves by _exit.
    match unsafe { libc::fork() } {
        -1 => [Tried::of::<()>(Err(io::Error::last_os_error())), Tried::NotReached],
        0 => {
            // One byte for each step, an errno; a step that kills says nothing.
            let tell = |errno: i32| {
                let _ = rustix::io::write(write.as_fd(), &[errno.clamp(0, 255) as u8]);
            };
            match maps() {
                Ok(fds) => {
                    tell(0);
                    let insns = source.link(|map| fds[map as usize].as_raw_fd());
                    tell(errno(map::load(insns, &mut [])));
                }
                Err(e) => tell(errno::<()>(Err(e))),
            }
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(write);
            let signal = reap(pid);
            let mut bytes = [0; 2];
            let told = rustix::io::read(&read, &mut bytes).unwrap_or(0);
            let mut tried = [Tried::NotReached; 2];
            for (step, tried) in tried.iter_mut().enumerate() {
                *tried = match bytes[step] {
                    0 if step < told => Tried::Works,
                    errno if step < told => Tried::Refused(errno.into()),
                    _ => signal.map_or(Tried::NotReached, Tried::Killed),
                };
                if !tried.works() {
                    break;
                }
            }
            tried
        }
    }
}

/// One fd for each [`Map`], in its order, without allocating.
fn maps() -> io::Result<[std::os::fd::OwnedFd; 5]> {
    let fds = [
        map::create(&shape::GROUP, None)?,
        map::create(&shape::RINGS, None)?,
        map::create(&shape::PLACES, None)?,
        map::create(&shape::SOCKETS, None)?,
        map::create(&shape::MOVES, None)?,
    ];
    const { assert!(Map::Group as usize == 0 && Map::Moved as usize == 4) }
    let types = map::load_btf()?;
    map::create(&shape::TAGS, Some(types.as_fd()))?;
    Ok(fds)
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// Waits for the child; the signal that killed it, if one did.
fn reap(pid: libc::pid_t) -> Option<i32> {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty())
    });
    status.ok()??.1.terminating_signal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survey_agrees_with_what_is_tried() {
        let allows = survey();
        let loaded = super::super::Exact::load(Transport::Tcp, Rule::Rotate);
        assert_eq!(allows.program.works(), loaded.is_ok(), "{allows:?} {loaded:?}");
        assert!(allows.maps.works() || allows.program == Tried::NotReached);
        assert!(allows.socket_diag.works());
        assert_eq!(allows.capabilities.len(), 5);
        assert!(allows.pidfd);
        assert!(!allows.kernel.is_empty());
    }

    #[test]
    fn a_mapping_of_some_users_is_a_namespace() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n"));
    }
}
