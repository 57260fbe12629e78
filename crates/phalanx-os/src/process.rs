//! A child of ours, from its start until somebody has learnt how it ended.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::signal::Signal;
use crate::wait::{self, Then, Whose};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It returned or called exit: the status, 0 to 255.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// Which.
        signal: Signal,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signaled { signal, core_dumped: false } => write!(f, "killed by {signal}"),
            Self::Signaled { signal, core_dumped: true } => write!(f, "killed by {signal} (core dumped)"),
        }
    }
}

/// A child of this process.
///
/// Dropping it neither ends nor reaps the child; one that has ended then stays a zombie until
/// [`host::reap_strangers`](crate::host::reap_strangers) or the end of this process takes it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    state: State,
    /// The child leads a process group that was made for it.
    leads_group: bool,
    /// The group was seen empty, so that its number may belong to others. Never goes back.
    group_gone: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not reaped: the number is certainly the child's, be it alive or a zombie.
    Ours,
    Ended(Ended),
    /// Somebody else reaped it; how it ended will not be known.
    Lost,
}

impl Process {
    /// Takes a child that was just forked, before anybody could have reaped it.
    ///
    /// Fails only when there is no fd for the pidfd; the caller still has the child to deal with.
    pub(crate) fn adopt(pid: Pid, leads_group: bool) -> io::Result<Self> {
        Ok(Self {
            pid,
            pidfd: open_pidfd(pid)?,
            state: State::Ours,
            leads_group,
            group_gone: AtomicBool::new(false),
        })
    }

    /// Its number. After the end was learnt it may be somebody else's: for the eyes only.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// An fd that polls readable once the process has ended (`pidfd_open(2)`, Linux 5.3), close-on-exec.
    ///
    /// `None` where there is no such thing: then [`try_wait`](Self::try_wait) is asked after every SIGCHLD,
    /// of every child, because several ends can make one signal.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// How it ended; `None` while it runs. Never waits.
    ///
    /// The first time it reaps the child, later it repeats what it knows.
    ///
    /// # Errors
    /// `ECHILD` when somebody else has reaped it, or SIGCHLD was ignored so that nobody had to. It is gone
    /// then, and how it ended is lost.
    pub fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        match self.state {
            State::Ended(ended) => return Ok(Some(ended)),
            State::Lost => return Err(Errno::CHILD.into()),
            State::Ours => {}
        }
        match wait::ended(Whose::Pid(self.pid()), Then::Reap) {
            Ok(None) => Ok(None),
            Ok(Some((_, ended))) => {
                self.state = State::Ended(ended);
                Ok(Some(ended))
            }
            Err(e) => {
                if e.raw_os_error() == Some(libc::ECHILD) {
                    self.state = State::Lost;
                }
                Err(e)
            }
        }
    }

    /// Sends it a signal; `false` when it was gone already.
    ///
    /// `true` means that the kernel took it. A stopped process acts on none but KILL and CONT until it goes
    /// on; one that has ended and was not reaped yet takes any, to no effect.
    ///
    /// # Errors
    /// `EPERM` for a program that changed its user.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let sent = match (&self.state, &self.pidfd) {
            // After reaping, the number can be another process's.
            (State::Ended(_) | State::Lost, _) => return Ok(false),
            (State::Ours, Some(pidfd)) => rustix::process::pidfd_send_signal(pidfd, signal.rustix()),
            // Nobody else reaps our children and `try_wait` needs `&mut self`: until this returns the child
            // is at least a zombie, and its number nobody else's.
            (State::Ours, None) => rustix::process::kill_process(self.pid, signal.rustix()),
        };
        gone_is_false(sent)
    }

    /// Sends a signal to every process of the group that was made for this child; `false` when there was
    /// none left, or no group was made.
    ///
    /// Works after the child itself was reaped, for those it left behind. Processes that moved to a group or
    /// session of their own are not reached.
    ///
    /// # Errors
    /// `EPERM` when not one of them may be signalled.
    pub fn signal_group(&self, signal: Signal) -> io::Result<bool> {
        if !self.leads_group || self.group_gone.load(Ordering::Relaxed) {
            return Ok(false);
        }
        // The number of a group is given to no new process while the group has a member. So while the child
        // is not reaped, it is ours. After that it is ours until the group is empty; then a new process can
        // get the number and make a group of it. Such a process shows: ours with that number was reaped, so
        // if there is one, the group was empty in between.
        if !matches!(self.state, State::Ours)
            && rustix::process::test_kill_process(self.pid) != Err(Errno::SRCH)
        {
            self.group_gone.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        let sent = gone_is_false(rustix::process::kill_process_group(self.pid, signal.rustix()))?;
        if !sent {
            self.group_gone.store(true, Ordering::Relaxed);
        }
        Ok(sent)
    }
}

fn gone_is_false(sent: rustix::io::Result<()>) -> io::Result<bool> {
    match sent {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A pidfd, or `None` where the kernel has none or a sandbox hides it.
fn open_pidfd(pid: Pid) -> io::Result<Option<OwnedFd>> {
    if cfg!(phalanx_force_sigchld) {
        return Ok(None);
    }
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(crate::fd::above_stdio(pidfd)?)),
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        let killed = Ended::Signaled { signal: Signal::KILL, core_dumped: false };
        assert_eq!(killed.to_string(), "killed by SIGKILL");
        assert_eq!(Ended::Exited(3).to_string(), "exited with status 3");
    }
}
