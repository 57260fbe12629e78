//! Signals as a type, and the state of them that a program starts from.
#![expect(unsafe_code, reason = "signal dispositions and raw signal numbers have no safe interface")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::str::FromStr;

/// The highest signal number (`_NSIG`).
const HIGHEST: i32 = 64;

/// A signal: a number from 1 to 64 as this machine counts them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

impl Signal {
    /// Ask to end.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// Ask to end, from the keyboard.
    pub const INT: Self = Self(libc::SIGINT);
    /// Ask to end, from the keyboard, with a core dump by default.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// The terminal is gone; often: read your configuration again.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// End now. Cannot be caught, works on a stopped process as well.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Stop. Cannot be caught.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// Go on after a stop.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// Free for programs to use.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// Free for programs to use.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// A child changed its state.
    pub const CHLD: Self = Self(libc::SIGCHLD);

    /// The signal of that number; `None` unless it is from 1 to 64.
    #[must_use]
    pub const fn from_raw(number: i32) -> Option<Self> {
        if number >= 1 && number <= HIGHEST { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn as_raw(self) -> i32 {
        self.0
    }

    /// Its name, such as `SIGTERM`; `SIG35` and the like for those without one.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(number, _)| *number == self.0).map_or_else(|| unnamed(self.0), |(_, name)| name)
    }

    /// As the type of the system call wrappers.
    pub(crate) fn rustix(self) -> rustix::process::Signal {
        // SAFETY: it is passed on to kill and pidfd_send_signal only, and changes no disposition; the
        // numbers that libc keeps for itself are refused by nobody and harm only a receiver that uses them.
        unsafe { rustix::process::Signal::from_raw_unchecked(self.0) }
    }
}

/// All with a name of their own, the usual one first.
const NAMES: &[(i32, &str)] = &[
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGCONT, "SIGCONT"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGURG, "SIGURG"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGWINCH, "SIGWINCH"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSYS, "SIGSYS"),
    (16, "SIGSTKFLT"),
];

/// Names for the numbers that have none: 16 where it is free, and the real-time signals, whose usual names
/// depend on the C library.
fn unnamed(number: i32) -> &'static str {
    const FIRST: i32 = 32;
    const TABLE: [&str; 33] = [
        "SIG32", "SIG33", "SIG34", "SIG35", "SIG36", "SIG37", "SIG38", "SIG39", "SIG40", "SIG41", "SIG42",
        "SIG43", "SIG44", "SIG45", "SIG46", "SIG47", "SIG48", "SIG49", "SIG50", "SIG51", "SIG52", "SIG53",
        "SIG54", "SIG55", "SIG56", "SIG57", "SIG58", "SIG59", "SIG60", "SIG61", "SIG62", "SIG63", "SIG64",
    ];
    usize::try_from(number - FIRST).ok().and_then(|i| TABLE.get(i)).copied().unwrap_or("SIG?")
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal; write a name such as SIGTERM or TERM, or a number from 1 to 64")]
pub struct UnknownSignal(pub String);

impl FromStr for Signal {
    type Err = UnknownSignal;

    /// Reads `SIGTERM`, `TERM`, `term` or `15`, and whatever [`Signal::name`] writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownSignal(text.to_owned());
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().ok().and_then(Self::from_raw).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let short = upper.strip_prefix("SIG").unwrap_or(&upper);
        (1..=HIGHEST)
            .map(Self)
            .find(|signal| signal.name().strip_prefix("SIG") == Some(short))
            .ok_or_else(unknown)
    }
}

/// Puts this process's signals in order: SIGCHLD as by default, SIGPIPE ignored, the calling thread's mask
/// empty.
///
/// An ignored signal and a blocked one survive an exec, so a program can be born with either from whoever
/// started it. With SIGCHLD ignored no child's end could be learnt, with SIGTERM blocked nothing could stop
/// it.
///
/// For programs only, as the first thing in `main` while there is one thread: it is process-wide and would
/// undo what somebody else has set up. A library has no business here.
pub fn normalize() {
    set_disposition(libc::SIGCHLD, libc::SIG_DFL);
    set_disposition(libc::SIGPIPE, libc::SIG_IGN);
    empty_mask();
}

/// Every signal to its default. For a forked child before exec: async-signal-safe.
///
/// Caught signals become default at exec anyway; it has to be done *before* the mask is emptied, or a handler
/// of the parent's would run in the child, and write into the parent's self-pipe.
///
/// Straight to the kernel, because libc hides the two signals that it keeps for its threads (32 and 33), and
/// those, too, can be ignored by whoever started us.
pub(crate) fn reset_all() {
    // The size of the kernel's signal set, in bytes.
    const SET: usize = if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 16 } else { 8 };
    // The kernel's struct differs by architecture, but on all of them zeros mean SIG_DFL, no flags, an empty
    // mask, and 64 bytes are enough for it.
    let default = [0u64; 8];
    for signal in 1..=HIGHEST {
        // SAFETY: the kernel reads a struct sigaction from `default` and writes nothing. KILL and STOP are
        // refused, which is as well: they cannot be anything else.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), SET);
        }
    }
}

fn set_disposition(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: all zeros is a valid sigaction, with an empty mask and no flags; SIG_DFL and SIG_IGN run no
    // code of ours.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = handler;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// Unblocks every signal in the calling thread. Async-signal-safe.
pub(crate) fn empty_mask() {
    // SAFETY: `set` is initialised by sigemptyset before it is read.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

/// Every signal blocked in the calling thread, until dropped.
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    pub(crate) fn all() -> Self {
        // SAFETY: both sets are written by libc before they are read.
        unsafe {
            let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
            let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            Self(old.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by pthread_sigmask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for text in ["SIGTERM", "TERM", "term", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(Signal::TERM), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "TERMS", "99999999999", "1 5"] {
            assert_eq!(text.parse::<Signal>(), Err(UnknownSignal(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn every_number_has_a_name_of_its_own() {
        for number in 1..=HIGHEST {
            let signal = Signal::from_raw(number).unwrap();
            assert_eq!(signal.as_raw(), number);
            assert_eq!(signal.name().parse(), Ok(signal), "{signal}");
        }
        assert_eq!(Signal::from_raw(0), None);
        assert_eq!(Signal::from_raw(65), None);
        assert_eq!(
            format!("{} {:?} {:>8}", Signal::KILL, Signal::HUP, Signal::INT),
            "SIGKILL SIGHUP   SIGINT"
        );
    }
}
