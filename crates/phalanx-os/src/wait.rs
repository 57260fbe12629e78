//! `waitid(2)`, with the one thing the safe wrappers leave out: whose end it is.
#![expect(unsafe_code, reason = "waitid writes through a raw pointer, and siginfo_t is a union")]

use std::io;
use std::mem::MaybeUninit;

use crate::process::Ended;
use crate::signal::Signal;

/// Whose end is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Whose {
    Anyone,
    Pid(u32),
}

/// Whether an ended child stays a zombie or is gone after the call.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// It stays: its number stays its own.
    Keep,
    Reap,
}

/// A child that has ended, or `None`. Never waits.
pub(crate) fn ended(whose: Whose, then: Then) -> io::Result<Option<(u32, Ended)>> {
    wait(whose, then, libc::WNOHANG)
}

/// Waits for that child to end and reaps it.
pub(crate) fn reap(pid: u32) -> io::Result<()> {
    wait(Whose::Pid(pid), Then::Reap, 0).map(|_| ())
}

fn wait(whose: Whose, then: Then, more: libc::c_int) -> io::Result<Option<(u32, Ended)>> {
    let (idtype, id) = match whose {
        Whose::Anyone => (libc::P_ALL, 0),
        Whose::Pid(pid) => (libc::P_PID, pid),
    };
    let keep = match then {
        Then::Keep => libc::WNOWAIT,
        Then::Reap => 0,
    };
    // Zeroed, because with WNOHANG and nobody to report the kernel leaves si_pid as it was.
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: `info` is a siginfo_t that outlives the call.
        let rc = unsafe { libc::waitid(idtype, id, info.as_mut_ptr(), libc::WEXITED | keep | more) };
        if rc == 0 {
            break;
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    // SAFETY: all zeros is a valid siginfo_t, and the kernel wrote a valid one over it or nothing.
    let info = unsafe { info.assume_init() };
    // SAFETY: si_pid and si_status are the fields that waitid fills in, or zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Some(pid) = u32::try_from(pid).ok().filter(|pid| *pid != 0) else { return Ok(None) };
    let ended = match info.si_code {
        libc::CLD_EXITED => Ended::Exited(status),
        code => Ended::Signaled {
            // The kernel reports no other numbers than those; KILL stands in for one that cannot be.
            signal: Signal::from_raw(status).unwrap_or(Signal::KILL),
            core_dumped: code == libc::CLD_DUMPED,
        },
    };
    Ok(Some((pid, ended)))
}
