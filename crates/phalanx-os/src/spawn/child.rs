//! Between fork and exec.
//!
//! The child of a process with threads has one thread, and locks that nobody will ever release, the
//! allocator's among them. So everything is prepared before, and what is called here is a system call or
//! async-signal-safe: no allocation, no formatting, no lock, no panic.
#![expect(unsafe_code, reason = "plain system calls on prepared memory are all that is allowed here")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use libc::{c_char, c_int, c_ulong, gid_t, pid_t, uid_t};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::User;
use super::error::Step;
use crate::signal;

/// The status of a child that could not become the program; the parent reaps it and nobody sees it.
const FAILED: c_int = 126;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The digits of the highest pid, and the NUL.
const PID_ROOM: usize = 11;

/// One variable of the environment, as bytes with a NUL, maybe with room for the pid before it.
pub(super) struct Variable {
    bytes: Vec<u8>,
    pid_at: Option<usize>,
}

impl Variable {
    /// `None` when it cannot be passed on.
    pub(super) fn new(name: &OsStr, value: &OsStr, with_pid: bool) -> Option<Self> {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) || value.contains(&0) {
            return None;
        }
        let mut bytes = [name, b"=", value].concat();
        let pid_at = with_pid.then_some(bytes.len());
        bytes.resize(bytes.len() + if with_pid { PID_ROOM } else { 1 }, 0);
        Some(Self { bytes, pid_at })
    }
}

/// The user to become.
pub(super) struct Becoming {
    uid: uid_t,
    gid: gid_t,
    groups: Vec<gid_t>,
    /// The groups are not yet those; else they are left alone, which needs no privilege.
    set_groups: bool,
    /// Where they are read back into.
    seen: Vec<gid_t>,
}

impl Becoming {
    pub(super) fn new(user: &User) -> io::Result<Self> {
        if user.uid == u32::MAX || user.gid == u32::MAX || user.groups.contains(&u32::MAX) {
            // To the kernel it means "as it is".
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut groups = user.groups.clone();
        groups.sort_unstable();
        groups.dedup();
        let mut now: Vec<u32> = rustix::process::getgroups()?.into_iter().map(|g| g.as_raw()).collect();
        now.sort_unstable();
        Ok(Self {
            uid: user.uid,
            gid: user.gid,
            set_groups: now != groups,
            seen: vec![0; groups.len()],
            groups,
        })
    }
}

/// What the child is to do.
pub(super) struct Plan {
    pub(super) program: CString,
    /// What is run in its place.
    pub(super) image: Option<RawFd>,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<Variable>,
    pub(super) cwd: Option<CString>,
    /// Target and source.
    pub(super) fds: Vec<(RawFd, RawFd)>,
    /// The lowest number that is above every target and every standard stream.
    pub(super) floor: RawFd,
    pub(super) user: Option<Becoming>,
    pub(super) die_with_parent: Option<c_int>,
    pub(super) new_process_group: bool,
    pub(super) open_files: Option<u64>,
    pub(super) parent: pid_t,
}

/// A plan with the tables of pointers that exec takes.
pub(super) struct Prepared {
    plan: Plan,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Where the pid is to be written, with [`PID_ROOM`] bytes of room each.
    pid_at: Vec<*mut u8>,
}

impl Prepared {
    pub(super) fn new(mut plan: Plan) -> Self {
        let argv = plan.argv.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        let mut envp = Vec::with_capacity(plan.env.len() + 1);
        let mut pid_at = Vec::new();
        for variable in &mut plan.env {
            let start = variable.bytes.as_mut_ptr();
            envp.push(start.cast_const().cast::<c_char>());
            if let Some(at) = variable.pid_at {
                pid_at.push(start.wrapping_add(at));
            }
        }
        envp.push(ptr::null());
        // The heap blocks stay where they are when the plan moves, and nobody touches them by another way.
        Self { plan, argv, envp, pid_at }
    }
}

/// One failure, on its way through the pipe.
type Failure = (Step, c_int);

const WORD: usize = 5;

pub(super) fn encode(step: Step, errno: c_int) -> [u8; WORD] {
    let [a, b, c, d] = errno.to_ne_bytes();
    [step.code(), a, b, c, d]
}

/// `None` for a pipe that was closed without a word.
pub(super) fn decode(word: &[u8]) -> Option<Failure> {
    let [code, a, b, c, d] = *word else { return None };
    Some((Step::from_code(code)?, c_int::from_ne_bytes([a, b, c, d])))
}

/// Becomes the program, or tells why not and ends.
pub(super) fn run(prepared: &mut Prepared, report: RawFd) -> ! {
    let mut report = report;
    let (step, errno) = attempt(prepared, &mut report);
    let word = encode(step, errno);
    // SAFETY: system calls; `word` lives until the end. Five bytes into an empty pipe are written whole.
    unsafe {
        libc::write(report, word.as_ptr().cast(), word.len());
        libc::_exit(FAILED)
    }
}

/// Comes back only with a failure.
fn attempt(prepared: &mut Prepared, report: &mut RawFd) -> Failure {
    match set_up(prepared, report) {
        Err(failure) => failure,
        Ok(()) => {
            // From here on a signal acts as on any program: all is default, nothing of the parent's runs.
            signal::empty_mask();
            let (argv, envp) = (prepared.argv.as_ptr(), prepared.envp.as_ptr());
            // SAFETY: the tables end with a null and point to strings that end with one.
            unsafe {
                match prepared.plan.image {
                    None => libc::execve(prepared.plan.program.as_ptr(), argv, envp),
                    Some(image) => {
                        let empty = c"".as_ptr();
                        libc::syscall(libc::SYS_execveat, image, empty, argv, envp, libc::AT_EMPTY_PATH)
                            as c_int
                    }
                };
            }
            (Step::Exec, errno())
        }
    }
}

fn set_up(prepared: &mut Prepared, report: &mut RawFd) -> Result<(), Failure> {
    // While all signals are still blocked.
    signal::reset_all();
    write_pid(&prepared.pid_at);
    let plan = &mut prepared.plan;
    if plan.new_process_group {
        // SAFETY: a system call on integers.
        check(Step::ProcessGroup, unsafe { libc::setpgid(0, 0) })?;
    }
    if let Some(image) = &mut plan.image {
        *image = lift(*image, plan.floor)?;
    }
    place(&mut plan.fds, plan.floor, report)?;
    if let Some(soft) = plan.open_files {
        // After the fds are in place: numbers above the limit cannot be made, but those there are stay.
        limit_open_files(soft)?;
    }
    keep_bpf_to_ourselves();
    if let Some(user) = &mut plan.user {
        become_user(user)?;
    }
    if let Some(cwd) = &plan.cwd {
        // With the rights of the child, which may see other directories than we do.
        // SAFETY: a string that ends with a NUL.
        check(Step::Cwd, unsafe { libc::chdir(cwd.as_ptr()) })?;
    }
    if let Some(signal) = plan.die_with_parent {
        // After the change of user, which clears it. And if the parent ended before this call, no signal
        // will come: so ask afterwards whether it is still there.
        // SAFETY: system calls on integers.
        check(Step::DeathSignal, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, long(signal), 0, 0, 0) })?;
        // SAFETY: as above.
        if unsafe { libc::getppid() } != plan.parent {
            return Err((Step::ParentGone, libc::ESRCH));
        }
    }
    Ok(())
}

/// Appends our pid to the variables that ask for it.
fn write_pid(places: &[*mut u8]) {
    // SAFETY: a system call.
    let mut rest = unsafe { libc::getpid() }.unsigned_abs();
    let mut digits = [0u8; PID_ROOM - 1];
    let mut from = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        from -= 1;
        if rest == 0 {
            break;
        }
    }
    let text = digits.get(from..).unwrap_or_default();
    for place in places {
        // SAFETY: `Variable::new` left room for ten digits and a NUL, all NUL so far, at this place, which
        // is in a block of its own that nobody else uses.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), *place, text.len()) };
    }
}

/// Puts the fds where they belong.
fn place(fds: &mut [(RawFd, RawFd)], floor: RawFd, report: &mut RawFd) -> Result<(), Failure> {
    // A source may have the number that is another's target. So first all of them, and the report, go above
    // every target, and only then down.
    for (_, source) in fds.iter_mut() {
        *source = lift(*source, floor)?;
    }
    *report = lift(*report, floor)?;
    // The belt: everything ours is close-on-exec already, but a library linked to us may have opened
    // something without. Before Linux 5.11 there is no such call; then it is as good as everybody's care.
    // SAFETY: a system call on integers.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    for (target, source) in fds.iter() {
        // The copy is not close-on-exec, and is never the same number.
        // SAFETY: a system call on integers.
        check(Step::Descriptors, unsafe { libc::dup2(*source, *target) })?;
    }
    Ok(())
}

fn lift(fd: RawFd, floor: RawFd) -> Result<RawFd, Failure> {
    // SAFETY: a system call on integers.
    check(Step::Descriptors, unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, floor) })
}

fn limit_open_files(soft: u64) -> Result<(), Failure> {
    // Both are bare system calls.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(soft);
    setrlimit(Resource::Nofile, limit).map_err(|e| (Step::Limit, e.raw_os_error()))
}

/// The right to load programs into the kernel is for who steers. A service manager may have made it ambient, and
/// then whatever is executed would have it.
fn keep_bpf_to_ourselves() {
    const CAP_BPF: c_ulong = 39;
    // SAFETY: a system call on integers. It fails only where there is nothing of the kind.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            c_ulong::from(libc::PR_CAP_AMBIENT_LOWER as u32),
            CAP_BPF,
            long(0),
            long(0),
        )
    };
}

/// The order matters: groups while there is the right to set them, the bounding set while there is the right
/// to shrink it, the user after the group, and a look at the result at the end.
fn become_user(user: &mut Becoming) -> Result<(), Failure> {
    if user.set_groups {
        // SAFETY: pointer and length of a list that is not changed.
        check(Step::Groups, unsafe { libc::setgroups(user.groups.len() as _, user.groups.as_ptr()) })?;
    }
    // Root without capabilities would get them back at exec, so there is no point.
    let unprivileged = user.uid != 0;
    if unprivileged {
        shrink_bounding_set()?;
    }
    // SAFETY: system calls on integers.
    unsafe {
        check(Step::Gid, libc::setresgid(user.gid, user.gid, user.gid))?;
        check(Step::Uid, libc::setresuid(user.uid, user.uid, user.uid))?;
    }
    if unprivileged {
        clear_capabilities()?;
    }
    // SAFETY: a system call on integers.
    check(Step::NoNewPrivileges, unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, long(1), 0, 0, 0) })?;
    verify(user)
}

fn shrink_bounding_set() -> Result<(), Failure> {
    for capability in 0..64 {
        // SAFETY: a system call on integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, long(capability), 0, 0, 0) } == 0 {
            continue;
        }
        match errno() {
            // Beyond the last capability of this kernel; or without the right to shrink it, and then
            // no_new_privs keeps it from mattering.
            libc::EINVAL | libc::EPERM => break,
            errno => return Err((Step::Capabilities, errno)),
        }
    }
    Ok(())
}

/// Ambient, inheritable, permitted, effective: giving up is always allowed.
fn clear_capabilities() -> Result<(), Failure> {
    let header = [CAPABILITY_VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: the call takes the version and the pid, 0 for us, and two times three sets of 32 bits; it
    // writes to neither as the version is one that every kernel since 2.6.26 has.
    check(Step::Capabilities, unsafe {
        libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) as c_int
    })?;
    // Emptied with the inheritable set; said aloud for whoever reads the trace. Not before Linux 4.3.
    // SAFETY: a system call on integers.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, c_ulong::from(libc::PR_CAP_AMBIENT_CLEAR_ALL as u32), 0, 0, 0)
    };
    Ok(())
}

/// Reads back what was set, because a child with more rights than asked for must not run.
fn verify(user: &mut Becoming) -> Result<(), Failure> {
    let (mut r, mut e, mut s) = (u32::MAX, u32::MAX, u32::MAX);
    // SAFETY: writes three integers.
    check(Step::Verify, unsafe { libc::getresuid(&raw mut r, &raw mut e, &raw mut s) })?;
    let uid_is_right = [r, e, s] == [user.uid; 3];
    // SAFETY: writes three integers.
    check(Step::Verify, unsafe { libc::getresgid(&raw mut r, &raw mut e, &raw mut s) })?;
    let gid_is_right = [r, e, s] == [user.gid; 3];
    if !(uid_is_right && gid_is_right && groups_are_right(user)?) {
        return Err((Step::Verify, libc::EPERM));
    }
    // SAFETY: a system call on an integer. That it fails is the point.
    if user.uid != 0 && unsafe { libc::setuid(0) } == 0 {
        return Err((Step::Verify, libc::EPERM));
    }
    Ok(())
}

fn groups_are_right(user: &mut Becoming) -> Result<bool, Failure> {
    // With a size of 0 nothing is written, only counted; so there is room for what comes next.
    // SAFETY: as said.
    let count = check(Step::Verify, unsafe { libc::getgroups(0, ptr::null_mut()) })?;
    if usize::try_from(count) != Ok(user.seen.len()) {
        return Ok(false);
    }
    // SAFETY: room for `count` groups.
    check(Step::Verify, unsafe { libc::getgroups(count, user.seen.as_mut_ptr()) })?;
    // Without duplicates on our side, and equally many: the same set, in whatever order.
    Ok(user.groups.iter().all(|group| user.seen.contains(group)))
}

/// `prctl` is variadic, and reads longs.
fn long(number: c_int) -> c_ulong {
    number.unsigned_abs().into()
}

fn errno() -> c_int {
    // Neither allocates nor locks.
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(step: Step, result: c_int) -> Result<c_int, Failure> {
    if result < 0 { Err((step, errno())) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_ends_with_the_pid() {
        let variable = Variable::new(OsStr::new("CHANNEL"), OsStr::new("3:"), true).unwrap();
        let mut bytes = variable.bytes;
        write_pid(&[bytes.as_mut_ptr().wrapping_add(variable.pid_at.unwrap())]);
        let text = std::ffi::CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap();
        assert_eq!(text, format!("CHANNEL=3:{}", std::process::id()));
    }

    #[test]
    fn what_cannot_be_a_variable_is_refused() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
            assert!(Variable::new(OsStr::new(name), OsStr::new(value), false).is_none(), "{name:?}");
        }
    }

    #[test]
    fn a_failure_survives_the_pipe() {
        assert_eq!(decode(&encode(Step::Exec, libc::ENOENT)), Some((Step::Exec, libc::ENOENT)));
        assert_eq!(decode(&[]), None);
    }
}
