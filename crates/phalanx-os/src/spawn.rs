//! Starting a program, with exactly the fds, environment and rights that were asked for.
//!
//! Here is what happens before the fork and after it in the parent; `spawn/child.rs` is what happens in between.
//! Not `std::process::Command`, because a hook between its fork and exec may not allocate, and because the
//! pid, the exact fd map and the order of the drop of rights are needed there.
#![expect(unsafe_code, reason = "fork")]

mod child;
mod error;
mod resolve;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::pipe::PipeFlags;
use rustix::process::Pid;

pub use self::error::{SpawnError, Step};
pub use self::resolve::resolve;
use crate::fd;
use crate::process::Process;
use crate::signal::{Blocked, Signal};
use crate::wait;

/// A program to start.
///
/// The child gets what is written here and nothing else: all signals as by default and unblocked, no fd but
/// those in `fds` and the standard streams, no variable but those in `env` and `pid_env`. The umask, the
/// session, the scheduling and the limits but one are inherited.
#[derive(Debug)]
pub struct Spawn {
    /// The file to run; [`resolve`] finds it. If it is relative, it is so to `cwd`.
    pub program: PathBuf,
    /// The file itself, if it is held open: it is run, whatever has its name by now
    /// ([`Image`](crate::image::Image)). `program` is then only a name.
    pub image: Option<OwnedFd>,
    /// What the program sees as its own name; `None`: the file.
    pub arg0: Option<OsString>,
    /// The arguments after the name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Variables with the child's pid at the end of their value: name and prefix. They go before those of
    /// the same name in `env`.
    pub pid_env: Vec<(OsString, OsString)>,
    /// The directory to start in, entered with the child's own rights; `None`: the current one.
    pub cwd: Option<PathBuf>,
    /// Which fd the child gets under which number; each number once. Of 0, 1 and 2, those not named are
    /// inherited; nothing else is. Our copies are closed when [`spawn`](Self::spawn) returns, either way.
    pub fds: Vec<(RawFd, OwnedFd)>,
    /// Whose rights it gets; `None`: ours.
    pub user: Option<User>,
    /// The signal it gets when the **thread** that started it ends (`PR_SET_PDEATHSIG`), so that it is not
    /// left alone. A thread of a pool that ends when idle would end the children it started.
    pub die_with_parent: Option<Signal>,
    /// Whether it leads a process group of its own; then [`Process::signal_group`] reaches its children.
    pub new_process_group: bool,
    /// Its soft limit of open files; `None`: ours. Above the hard limit it is refused.
    pub open_files: Option<u64>,
}

/// Whose rights a child gets.
///
/// For any uid but 0: all capabilities are given up, the bounding set too where that is allowed,
/// `no_new_privs` is set so that no set-uid program gives anything back, and all of it is read back before
/// the exec. A step that fails ends the child: it never runs with more rights than asked for. Needs
/// `CAP_SETUID` and `CAP_SETGID`, unless it names just what we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Real, effective and saved.
    pub uid: u32,
    /// Real, effective and saved.
    pub gid: u32,
    /// The supplementary groups: all of them, in any order.
    pub groups: Vec<u32>,
}

impl Spawn {
    /// A program without arguments, environment or anything else.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            image: None,
            arg0: None,
            args: Vec::new(),
            env: Vec::new(),
            pid_env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            user: None,
            die_with_parent: None,
            new_process_group: false,
            open_files: None,
        }
    }

    /// Starts it. Returns once the exec has succeeded or something has failed, so it waits as long as the
    /// kernel needs to open the file.
    ///
    /// A signal that reaches the child right before its exec ends it with what is a success here: the
    /// [`Process`] then tells how it ended. A damaged program, or one that lacks a library, is also started
    /// with success and ends at once.
    ///
    /// # Errors
    /// What went wrong, and where. No process and no fd is left behind.
    pub fn spawn(self) -> Result<Process, SpawnError> {
        let failed = |step, errno| SpawnError { step, errno, program: self.program.clone() };
        let os = |step, e: &io::Error| failed(step, e.raw_os_error().unwrap_or(libc::EINVAL));

        let mut prepared = self.prepare().map_err(|e| os(Step::Prepare, &e))?;
        let (status, report) = status_pipe().map_err(|e| os(Step::Pipe, &e))?;

        // No handler of ours may run in the child, where it would act on what it shares with us, such as the
        // self-pipe: every signal waits until the child has set all to default, and here until after the
        // fork.
        let blocked = Blocked::all();
        // SAFETY: the child runs `child::run` only, which makes async-signal-safe calls on memory that is
        // prepared, and never returns.
        let pid = match unsafe { libc::fork() } {
            0 => child::run(&mut prepared, report.as_raw_fd()),
            pid => pid,
        };
        let fork_error = io::Error::last_os_error();
        drop(blocked);
        let Some(pid) = Pid::from_raw(pid.max(0)) else { return Err(os(Step::Fork, &fork_error)) };

        // Ours has to go, or the end of the pipe is never seen. It also makes room for the pidfd.
        drop(report);
        let process = Process::adopt(pid, self.new_process_group);
        let process = match process {
            Ok(process) => process,
            Err(e) => {
                // Not reaped yet, so the number is the child's.
                let _ = rustix::process::kill_process(pid, Signal::KILL.rustix());
                let _ = wait::reap(pid.as_raw_nonzero().get().unsigned_abs());
                return Err(os(Step::Pidfd, &e));
            }
        };

        // An exec closes the child's end of the pipe without a word; a failure writes one first.
        let mut word = Vec::new();
        if let Err(e) = File::from(status).read_to_end(&mut word) {
            word = child::encode(Step::Status, e.raw_os_error().unwrap_or(libc::EIO)).to_vec();
            let _ = process.signal(Signal::KILL);
        }
        match child::decode(&word) {
            None => Ok(process),
            Some((step, errno)) => {
                // It is on its way out. ECHILD means that nobody had to reap it.
                let _ = wait::reap(process.pid());
                Err(failed(step, errno))
            }
        }
    }

    /// All that the child will need, so that it need not allocate.
    fn prepare(&self) -> io::Result<child::Prepared> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let text = |s: &std::ffi::OsStr| CString::new(s.as_bytes()).map_err(|_| invalid());

        let mut argv = vec![text(self.arg0.as_deref().unwrap_or(self.program.as_os_str()))?];
        for arg in &self.args {
            argv.push(text(arg)?);
        }

        let mut env = Vec::new();
        for (name, value) in &self.env {
            if !self.pid_env.iter().any(|(own, _)| own == name) {
                env.push(child::Variable::new(name, value, false).ok_or_else(invalid)?);
            }
        }
        for (name, prefix) in &self.pid_env {
            env.push(child::Variable::new(name, prefix, true).ok_or_else(invalid)?);
        }

        let mut targets: Vec<RawFd> = self.fds.iter().map(|(target, _)| *target).collect();
        targets.sort_unstable();
        if targets.first().is_some_and(|lowest| *lowest < 0) || targets.windows(2).any(|w| w[0] == w[1]) {
            return Err(invalid());
        }
        let floor = targets.last().map_or(0, |highest| highest.saturating_add(1)).max(3);

        Ok(child::Prepared::new(child::Plan {
            program: text(self.program.as_os_str())?,
            image: self.image.as_ref().map(AsRawFd::as_raw_fd),
            argv,
            env,
            cwd: self.cwd.as_ref().map(|cwd| text(cwd.as_os_str())).transpose()?,
            fds: self.fds.iter().map(|(target, fd)| (*target, fd.as_raw_fd())).collect(),
            floor,
            user: self.user.as_ref().map(child::Becoming::new).transpose()?,
            die_with_parent: self.die_with_parent.map(Signal::as_raw),
            new_process_group: self.new_process_group,
            open_files: self.open_files,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
        }))
    }
}

/// The pipe through which the child tells of a failure. Close-on-exec, blocking.
fn status_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((fd::above_stdio(read)?, fd::above_stdio(write)?))
}
