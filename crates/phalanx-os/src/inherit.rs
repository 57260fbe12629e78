//! What this process was born with: a channel to a primary, sockets from a service manager.
//!
//! The environment says where they are. It says so to everybody below as well, so each variable is good for
//! one process only: ours name its pid, as systemd's do; Node's cannot, and are to be removed
//! ([`forget_env`]) before any child is started.
#![expect(unsafe_code, reason = "an inherited fd is known by its number only, and the environment is global")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::FdFlags;

use crate::channel::Channel;

/// `FD:PID`: the channel of a worker of phalanx, and the only process it is meant for.
pub const PHALANX_CHANNEL: &str = "PHALANX_CHANNEL";
/// The worker's id, decimal.
pub const PHALANX_WORKER_ID: &str = "PHALANX_WORKER_ID";
/// The worker's slot, decimal.
pub const PHALANX_SLOT: &str = "PHALANX_SLOT";
/// Which code the worker runs, decimal.
pub const PHALANX_GENERATION: &str = "PHALANX_GENERATION";
/// The name of the cluster.
pub const PHALANX_CLUSTER: &str = "PHALANX_CLUSTER";
/// Present when the program of the primary is that of the worker, which is to serve and nothing else.
pub const PHALANX_RUN: &str = "PHALANX_RUN";
/// Present when the primary receives handles from the worker.
pub const PHALANX_HANDLES: &str = "PHALANX_HANDLES";
/// `FD:PID`: the configuration that the primary passed, and the only process it is meant for.
pub const PHALANX_CONFIG: &str = "PHALANX_CONFIG";
/// Node's variables: the fd of the channel, the worker's id, and how messages are written.
pub const NODE_CHANNEL_FD: &str = "NODE_CHANNEL_FD";
/// See [`NODE_CHANNEL_FD`]. Its presence makes a process a cluster worker.
pub const NODE_UNIQUE_ID: &str = "NODE_UNIQUE_ID";
/// See [`NODE_CHANNEL_FD`]. `json` or `advanced`; without it, `json`.
pub const NODE_CHANNEL_SERIALIZATION_MODE: &str = "NODE_CHANNEL_SERIALIZATION_MODE";
/// `sd_listen_fds(3)`: the process that the sockets are for.
pub const LISTEN_PID: &str = "LISTEN_PID";
/// `sd_listen_fds(3)`: how many there are, from fd 3 on.
pub const LISTEN_FDS: &str = "LISTEN_FDS";
/// `sd_listen_fds(3)`: their names, with colons between.
pub const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// All that [`forget_env`] removes.
const FORGOTTEN: &[&str] = &[
    NODE_CHANNEL_FD,
    NODE_UNIQUE_ID,
    NODE_CHANNEL_SERIALIZATION_MODE,
    PHALANX_CHANNEL,
    PHALANX_CONFIG,
    PHALANX_RUN,
    PHALANX_HANDLES,
];

/// The first fd that a service manager passes.
const LISTEN_FDS_START: RawFd = 3;

/// No sane limit of open files lets more than that through; it only bounds the search.
const MOST_LISTEN_FDS: RawFd = 65_536;

/// The channel that a process was born with, by who is at the other end.
#[derive(Debug)]
pub enum Birth {
    /// A primary that speaks as Node's does.
    Node {
        /// The id that it gave to this worker.
        worker_id: u32,
        /// The channel.
        channel: Channel,
        /// Messages are V8 structured clones instead of JSON lines.
        advanced: bool,
    },
    /// A primary of phalanx.
    Phalanx {
        /// The channel.
        channel: Channel,
        /// The id that it gave to this worker.
        worker_id: Option<u32>,
        /// The slot of this worker.
        slot: Option<u32>,
        /// Which code it runs.
        generation: Option<u32>,
        /// The name of the cluster.
        cluster: Option<String>,
        /// The primary receives handles from this worker.
        handles: bool,
    },
}

/// Why a process that was meant to be a worker cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// A variable is there, but of no use.
    #[error("the environment variable {variable}={value:?} is unusable: {reason}")]
    Unusable {
        /// Its name.
        variable: &'static str,
        /// Its value, damaged characters replaced; empty if it is missing.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The fd that a variable names is no channel.
    #[error("the environment variable {variable} names file descriptor {fd}, which is no channel")]
    Descriptor {
        /// Its name.
        variable: &'static str,
        /// The number.
        fd: RawFd,
        /// `EBADF` for one that is not open.
        #[source]
        source: io::Error,
    },
    /// The channel was taken before; there is one owner.
    #[error("the channel of this process was taken already")]
    Taken,
}

/// What the environment says of a channel; nothing is known of the fd yet.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Node { worker_id: u32, fd: RawFd, advanced: bool },
    Phalanx { fd: RawFd, worker_id: Option<u32>, slot: Option<u32>, generation: Option<u32> },
}

/// Whether this process was started as a worker, well or badly. Takes nothing.
#[must_use]
pub fn is_worker() -> bool {
    !matches!(parse(|name| std::env::var_os(name), std::process::id()), Ok(None))
}

/// The channel that this process was started with, or `None` for an ordinary process.
///
/// A channel of ours that is meant for another process, a parent most likely, does not count: see
/// [`foreign_channel`]. `NODE_CHANNEL_FD` without `NODE_UNIQUE_ID` is the channel of a `child_process.fork`,
/// not of a cluster, and does not count either. Ours goes before Node's.
///
/// It is given out once. What the variables name is taken for granted to belong to nobody else in this
/// process, as with any fd that is inherited by number: call it before opening things by hand, and set no
/// such variable in your own process.
///
/// # Errors
/// A variable that is present but unusable is an error, never a process that is half a worker. Then the fd,
/// if there is one, is left as it is.
pub fn channel() -> Result<Option<Birth>, InheritError> {
    let Some(claim) = parse(|name| std::env::var_os(name), std::process::id())? else { return Ok(None) };
    Ok(Some(match claim {
        Claim::Node { worker_id, fd, advanced } => {
            Birth::Node { worker_id, channel: take_channel(NODE_CHANNEL_FD, fd)?, advanced }
        }
        Claim::Phalanx { fd, worker_id, slot, generation } => Birth::Phalanx {
            channel: take_channel(PHALANX_CHANNEL, fd)?,
            worker_id,
            slot,
            generation,
            cluster: std::env::var(PHALANX_CLUSTER).ok(),
            handles: std::env::var_os(PHALANX_HANDLES).is_some(),
        },
    }))
}

/// Whether the environment speaks of a channel of ours that is meant for another process: this one is a child
/// of a worker, not a worker.
#[must_use]
pub fn foreign_channel() -> bool {
    std::env::var_os(PHALANX_CHANNEL)
        .and_then(|value| fd_and_pid(value.to_str()?))
        .is_some_and(|(_, pid)| pid != std::process::id())
}

/// The sockets that a service manager passed to this process (`sd_listen_fds(3)`), each with its name or "".
///
/// Each keeps its number, from 3 on, which is its place in the manager's list. They are made close-on-exec;
/// nothing else is changed on them, so they may be blocking, and the kind is for the caller to find out
/// ([`conn::kind`](crate::conn::kind)). Fds that are no sockets are not given out, and stay open, close-on-exec as well.
///
/// Given out once: a second call finds none. Variables that make no sense, or are meant for another process,
/// mean that there are none. As to who owns the fds, see [`channel`].
#[must_use]
pub fn listen_fds() -> Vec<(String, OwnedFd)> {
    let named = parse_listen(|name| std::env::var_os(name), std::process::id());
    let mut sockets = Vec::new();
    for (name, number) in named {
        // SAFETY: only looked at, and not beyond this turn of the loop; a number that is not open gives
        // EBADF below.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if is_claimed(number) || rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).is_err() {
            continue;
        }
        if rustix::net::sockopt::socket_type(fd).is_ok() {
            sockets.extend(claim(number).map(|fd| (name, fd)));
        }
    }
    sockets
}

/// The configuration that the primary passed to this process. Given out once.
#[must_use]
pub fn config() -> Option<OwnedFd> {
    let (number, pid) = fd_and_pid(std::env::var_os(PHALANX_CONFIG)?.to_str()?)?;
    if pid != std::process::id() || number < LISTEN_FDS_START {
        return None;
    }
    // SAFETY: only looked at, and not beyond the next line; a number that is not open gives EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    claim(number)
}

/// Whether the primary runs the very program that this process runs, and started it to be one of its workers.
#[must_use]
pub fn is_own_worker() -> bool {
    std::env::var_os(PHALANX_RUN).is_some()
}

/// [`forget_env`], if this process has no other thread yet. Whether it had none.
pub fn forget_env_if_alone() -> bool {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        // SAFETY: there is no other thread that could look at the environment, and we start none meanwhile.
        unsafe { forget_env() };
    }
    alone
}

/// Removes from the environment what [`channel`] reads, so that no child takes it for its own. What names the
/// process it is meant for (`LISTEN_PID`) stays, and so do facts that children may want.
///
/// # Safety
/// As for [`std::env::remove_var`]: no other thread may read or write the environment meanwhile, other than
/// through `std::env`. In effect: call it while the process has one thread.
pub unsafe fn forget_env() {
    for name in FORGOTTEN {
        // SAFETY: the caller keeps other threads away from the environment.
        unsafe { std::env::remove_var(name) };
    }
}

/// The numbers that were given out. They are never taken off: the variables still name them, whatever they
/// are by now.
static CLAIMED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

fn claimed() -> std::sync::MutexGuard<'static, Vec<RawFd>> {
    CLAIMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn is_claimed(number: RawFd) -> bool {
    claimed().contains(&number)
}

/// Becomes the owner of an open fd; `None` if that was done before.
fn claim(number: RawFd) -> Option<OwnedFd> {
    let mut claimed = claimed();
    if claimed.contains(&number) {
        return None;
    }
    claimed.push(number);
    // SAFETY: it was seen to be open, it was inherited, and by the list nobody got it from here before.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

fn take_channel(variable: &'static str, number: RawFd) -> Result<Channel, InheritError> {
    if is_claimed(number) {
        return Err(InheritError::Taken);
    }
    let failed = |source| InheritError::Descriptor { variable, fd: number, source };
    // SAFETY: only looked at, and not beyond the next line; a number that is not open gives EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Channel::check(fd).map_err(failed)?;
    let fd = claim(number).ok_or(InheritError::Taken)?;
    Channel::from_fd(fd).map_err(failed)
}

/// What the variables say to the process `pid`.
fn parse(lookup: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<Option<Claim>, InheritError> {
    // A value that is no text is no number either: damaged characters do not get in the way of saying so.
    let text = |name: &str| lookup(name).map(|value| value.to_string_lossy().into_owned());

    if let Some(value) = text(PHALANX_CHANNEL) {
        let (fd, owner) =
            fd_and_pid(&value).ok_or_else(|| unusable(PHALANX_CHANNEL, &value, "it is not FD:PID"))?;
        if owner == pid {
            let fd = above_stdio(PHALANX_CHANNEL, &value, fd)?;
            let worker_id = text(PHALANX_WORKER_ID).map(|v| number(PHALANX_WORKER_ID, &v)).transpose()?;
            let slot = text(PHALANX_SLOT).map(|v| number(PHALANX_SLOT, &v)).transpose()?;
            let generation = text(PHALANX_GENERATION).map(|v| number(PHALANX_GENERATION, &v)).transpose()?;
            return Ok(Some(Claim::Phalanx { fd, worker_id, slot, generation }));
        }
    }

    let Some(id) = text(NODE_UNIQUE_ID) else { return Ok(None) };
    let worker_id = number(NODE_UNIQUE_ID, &id)?;
    let value = text(NODE_CHANNEL_FD)
        .ok_or_else(|| unusable(NODE_CHANNEL_FD, "", "it is missing, and NODE_UNIQUE_ID is set"))?;
    let fd = digits(&value).ok_or_else(|| unusable(NODE_CHANNEL_FD, &value, "it is not a number"))?;
    let fd = above_stdio(NODE_CHANNEL_FD, &value, fd)?;
    let advanced = match text(NODE_CHANNEL_SERIALIZATION_MODE).as_deref() {
        None | Some("json") => false,
        Some("advanced") => true,
        Some(other) => {
            return Err(unusable(NODE_CHANNEL_SERIALIZATION_MODE, other, "it is neither json nor advanced"));
        }
    };
    Ok(Some(Claim::Node { worker_id, fd, advanced }))
}

/// Names and numbers of the fds that a service manager passed to the process `pid`.
fn parse_listen(lookup: impl Fn(&str) -> Option<OsString>, pid: u32) -> Vec<(String, RawFd)> {
    let text = |name: &str| lookup(name).and_then(|value| value.into_string().ok());
    if text(LISTEN_PID).and_then(|value| digits::<u32>(&value)) != Some(pid) {
        return Vec::new();
    }
    let Some(count) = text(LISTEN_FDS).and_then(|value| digits::<RawFd>(&value)) else { return Vec::new() };
    let names = text(LISTEN_FDNAMES).unwrap_or_default();
    let mut names = names.split(':');
    (LISTEN_FDS_START..LISTEN_FDS_START + count.min(MOST_LISTEN_FDS))
        .map(|fd| (names.next().unwrap_or_default().to_owned(), fd))
        .collect()
}

fn fd_and_pid(value: &str) -> Option<(RawFd, u32)> {
    let (fd, pid) = value.split_once(':')?;
    Some((digits(fd)?, digits(pid)?))
}

/// A decimal number without a sign, as `str::parse` would allow.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn number(variable: &'static str, value: &str) -> Result<u32, InheritError> {
    digits(value).ok_or_else(|| unusable(variable, value, "it is not a number"))
}

fn above_stdio(variable: &'static str, value: &str, fd: RawFd) -> Result<RawFd, InheritError> {
    if fd >= 3 { Ok(fd) } else { Err(unusable(variable, value, "it names a standard stream")) }
}

fn unusable(variable: &'static str, value: &str, reason: &'static str) -> InheritError {
    InheritError::Unusable { variable, value: value.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 42;

    /// `"A=1 B=2"` as an environment.
    fn environment(text: &str) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> = text
            .split(' ')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        move |name| pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn who_is_a_worker() {
        let node = |worker_id, fd, advanced| Some(Claim::Node { worker_id, fd, advanced });
        let ours = |fd, worker_id, slot| Some(Claim::Phalanx { fd, worker_id, slot, generation: None });
        for (text, expected) in [
            ("", None),
            ("NODE_CHANNEL_FD=3", None),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=3", node(7, 3, false)),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=57 NODE_CHANNEL_SERIALIZATION_MODE=json", node(7, 57, false)),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=3 NODE_CHANNEL_SERIALIZATION_MODE=advanced", node(7, 3, true)),
            ("PHALANX_CHANNEL=5:42", ours(5, None, None)),
            ("PHALANX_CHANNEL=5:42 PHALANX_WORKER_ID=9 PHALANX_SLOT=0", ours(5, Some(9), Some(0))),
            ("PHALANX_CHANNEL=5:42 NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=3", ours(5, None, None)),
            // Meant for another process: as if it were not there.
            ("PHALANX_CHANNEL=5:41", None),
            ("PHALANX_CHANNEL=5:41 PHALANX_WORKER_ID=nonsense", None),
            ("PHALANX_CHANNEL=5:41 NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=3", node(7, 3, false)),
            ("PHALANX_WORKER_ID=9", None),
        ] {
            assert_eq!(parse(environment(text), PID).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_unusable_variable_is_named() {
        for (text, expected) in [
            ("NODE_UNIQUE_ID=7", NODE_CHANNEL_FD),
            ("NODE_UNIQUE_ID= NODE_CHANNEL_FD=3", NODE_UNIQUE_ID),
            ("NODE_UNIQUE_ID=x NODE_CHANNEL_FD=3", NODE_UNIQUE_ID),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=", NODE_CHANNEL_FD),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=-1", NODE_CHANNEL_FD),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=+3", NODE_CHANNEL_FD),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=2", NODE_CHANNEL_FD),
            ("NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=99999999999", NODE_CHANNEL_FD),
            (
                "NODE_UNIQUE_ID=7 NODE_CHANNEL_FD=3 NODE_CHANNEL_SERIALIZATION_MODE=xml",
                NODE_CHANNEL_SERIALIZATION_MODE,
            ),
            ("PHALANX_CHANNEL=", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=5", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=5:", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=:42", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=5:42:1", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=0:42", PHALANX_CHANNEL),
            ("PHALANX_CHANNEL=5:42 PHALANX_WORKER_ID=", PHALANX_WORKER_ID),
            ("PHALANX_CHANNEL=5:42 PHALANX_SLOT=-1", PHALANX_SLOT),
        ] {
            match parse(environment(text), PID) {
                Err(InheritError::Unusable { variable, .. }) => assert_eq!(variable, expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn sockets_of_a_service_manager() {
        let named = |list: &[(&str, RawFd)]| -> Vec<(String, RawFd)> {
            list.iter().map(|(name, fd)| ((*name).to_owned(), *fd)).collect()
        };
        for (text, expected) in [
            ("", named(&[])),
            ("LISTEN_FDS=1", named(&[])),
            ("LISTEN_PID=41 LISTEN_FDS=1", named(&[])),
            ("LISTEN_PID=42", named(&[])),
            ("LISTEN_PID=42 LISTEN_FDS=x", named(&[])),
            ("LISTEN_PID=42 LISTEN_FDS=-1", named(&[])),
            ("LISTEN_PID=42 LISTEN_FDS=0", named(&[])),
            ("LISTEN_PID=42 LISTEN_FDS=2", named(&[("", 3), ("", 4)])),
            (
                "LISTEN_PID=42 LISTEN_FDS=3 LISTEN_FDNAMES=web::admin",
                named(&[("web", 3), ("", 4), ("admin", 5)]),
            ),
            ("LISTEN_PID=42 LISTEN_FDS=2 LISTEN_FDNAMES=web", named(&[("web", 3), ("", 4)])),
        ] {
            assert_eq!(parse_listen(environment(text), PID), expected, "{text}");
        }
        let many = parse_listen(environment("LISTEN_PID=42 LISTEN_FDS=2147483647"), PID);
        assert_eq!(many.len(), 65_536);
    }
}
