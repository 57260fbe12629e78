//! Programs that are really started: what they get, how they end, and what is left behind when they do not.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_os::{Ended, Process, Signal, Spawn, SpawnError, Step, User, conn, host};
use rustix::event::{PollFd, PollFlags, poll};

/// The fds and the children of the process are counted here, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count() -> usize {
    host::open_fds(None).unwrap().len()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn args(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

/// A shell that runs `script`, with a stdout to read from.
fn shell(script: &str) -> (Spawn, File) {
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new("/bin/sh");
    spawn.args = args(&["-c", script]);
    spawn.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spawn.fds = vec![(1, write)];
    (spawn, read.into())
}

fn text(mut from: File) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// Until it has ended. With a pidfd by way of it, else by asking; either way it waits for the fact.
fn wait(process: &mut Process) -> Ended {
    if let Some(pidfd) = process.pidfd() {
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        return process.try_wait().unwrap().expect("the pidfd said that it has ended");
    }
    loop {
        if let Some(ended) = process.try_wait().unwrap() {
            return ended;
        }
        std::thread::yield_now();
    }
}

fn run(script: &str) -> (String, Ended) {
    let (spawn, out) = shell(script);
    let mut process = spawn.spawn().unwrap();
    let text = text(out);
    (text, wait(&mut process))
}

fn failure(spawn: Spawn) -> SpawnError {
    let before = count() - spawn.fds.len();
    let e = spawn.spawn().unwrap_err();
    assert_eq!(count(), before, "{e}");
    // Nobody is left to be waited for.
    assert_eq!(
        rustix::process::wait(rustix::process::WaitOptions::NOHANG).unwrap_err(),
        rustix::io::Errno::CHILD
    );
    e
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

#[test]
fn it_runs_and_its_end_is_learnt_once_and_remembered() {
    let _turn = alone();
    let before = count();
    let (spawn, out) = shell("echo hello; exit 7");
    let mut process = spawn.spawn().unwrap();
    assert_eq!(text(out), "hello\n");
    assert_eq!(wait(&mut process), Ended::Exited(7));
    assert_eq!(process.try_wait().unwrap(), Some(Ended::Exited(7)));
    assert!(!process.signal(Signal::KILL).unwrap());
    assert!(!process.signal_group(Signal::KILL).unwrap());
    drop(process);
    assert_eq!(count(), before);
}

#[test]
fn a_signal_ends_it() {
    let _turn = alone();
    let (spawn, _out) = shell("kill -STOP $$; exit 1");
    let mut process = spawn.spawn().unwrap();
    assert_eq!(process.try_wait().unwrap(), None);
    // A stopped process, or one about to stop, acts on KILL only.
    assert!(process.signal(Signal::TERM).unwrap());
    assert!(process.signal(Signal::KILL).unwrap());
    let Ended::Signaled { signal, core_dumped } = wait(&mut process) else { panic!() };
    assert!([Signal::KILL, Signal::TERM].contains(&signal));
    assert!(!core_dumped);
}

#[test]
fn the_environment_is_exact_and_knows_the_pid() {
    let _turn = alone();
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new("/usr/bin/env");
    spawn.env = vec![("A".into(), "1".into()), ("EMPTY".into(), "".into()), ("CHANNEL".into(), "old".into())];
    spawn.pid_env = vec![("CHANNEL".into(), "5:".into()), ("LISTEN_PID".into(), "".into())];
    spawn.fds = vec![(1, write)];
    let mut process = spawn.spawn().unwrap();
    let pid = process.pid();
    assert_eq!(text(read.into()), format!("A=1\nEMPTY=\nCHANNEL=5:{pid}\nLISTEN_PID={pid}\n"));
    assert_eq!(wait(&mut process), Ended::Exited(0));
}

#[test]
fn signals_are_as_by_default_and_unblocked() {
    let _turn = alone();
    // This process ignores SIGPIPE, as all Rust programs do; let the thread block something, too.
    let mut set = std::mem::MaybeUninit::<libc_set::Set>::uninit();
    libc_set::block_usr1(&mut set);
    // Nor is 32 spared, which libc keeps for itself: some starters ignore it.
    libc_set::ignore_32();
    let before = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_ne!(u64::from_str_radix(field(&before, "SigIgn"), 16).unwrap() & (1 << 12), 0);
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new("/bin/cat");
    spawn.args = args(&["/proc/self/status"]);
    spawn.fds = vec![(1, write)];
    let mut process = spawn.spawn().unwrap();
    let status = text(read.into());
    assert_eq!(wait(&mut process), Ended::Exited(0));
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    // And ours is as it was.
    let ours = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_eq!(field(&ours, "SigBlk"), "0000000000000200");
    assert_eq!(field(&ours, "SigIgn"), field(&before, "SigIgn"));
}

/// Blocking a signal in the calling thread, for one test.
mod libc_set {
    #![expect(unsafe_code, reason = "signal masks have no safe interface")]

    use std::mem::MaybeUninit;

    pub(crate) type Set = libc::sigset_t;

    /// As the kernel sees it: libc would refuse. Only where its layout is this one, which is enough for a
    /// test.
    pub(crate) fn ignore_32() {
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
            let null = std::ptr::null_mut::<u64>();
            // SAFETY: the kernel reads a struct sigaction: handler, flags, restorer, mask. No code of ours
            // runs by it, and no thread is cancelled here.
            unsafe { libc::syscall(libc::SYS_rt_sigaction, 32, ignore.as_ptr(), null, 8usize) };
        }
    }

    pub(crate) fn block_usr1(set: &mut MaybeUninit<Set>) {
        // SAFETY: the set is initialised before it is read; only this thread's mask changes.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
        }
    }
}

/// A `cat` that is ready: it has answered, so that its loader has closed what it opened.
fn ready_cat(mut spawn: Spawn, more: Vec<(RawFd, OwnedFd)>) -> (Process, File) {
    let (ours, theirs) = conn::unix_pair().unwrap();
    conn::set_nonblocking(&ours, false).unwrap();
    conn::set_nonblocking(&theirs, false).unwrap();
    spawn.fds = more;
    spawn.fds.push((1, theirs.try_clone().unwrap()));
    spawn.fds.push((0, theirs));
    let process = spawn.spawn().unwrap();
    let mut ours = File::from(ours);
    ours.write_all(b"?").unwrap();
    ours.read_exact(&mut [0]).unwrap();
    (process, ours)
}

#[test]
fn the_fd_map_is_exact() {
    let _turn = alone();
    let before = count();
    {
        // Not close-on-exec, as a careless library would have it.
        let null = File::open("/dev/null").unwrap();
        let careless = rustix::io::fcntl_dupfd_cloexec(&null, 100).unwrap();
        rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
        // Each has the number that the other is to get, and one stays where it is.
        let (a, b) = host::pipe().unwrap();
        let same: OwnedFd = File::open("/dev/zero").unwrap().into();
        let names = host::open_fds(None).unwrap();
        let name = |fd: BorrowedFd<'_>| names.iter().find(|(n, _)| *n == fd.as_raw_fd()).unwrap().1.clone();
        let (a_name, b_name) = (name(a.as_fd()), name(b.as_fd()));
        assert_eq!(a_name, b_name);
        let (a_number, b_number) = (a.as_raw_fd(), b.as_raw_fd());
        let same_number = same.as_raw_fd();
        let (x, _y) = conn::unix_pair().unwrap();
        let x_name = {
            let now = host::open_fds(None).unwrap();
            now.iter().find(|(n, _)| *n == x.as_raw_fd()).unwrap().1.clone()
        };
        // The socket takes the number of the pipe, the pipe that of the socket.
        let x_number = x.as_raw_fd();
        let more = vec![(x_number, a), (a_number, x), (same_number, same), (200, b)];
        let (mut process, ours) = ready_cat(Spawn::new("/bin/cat"), more);
        let fds = host::open_fds(Some(process.pid())).unwrap();
        let at = |n: RawFd| fds.iter().find(|(number, _)| *number == n).map(|(_, name)| name.clone());
        assert_eq!(at(x_number), Some(a_name));
        assert_eq!(at(a_number), Some(x_name));
        assert_eq!(at(same_number).as_deref(), Some("/dev/zero"));
        assert_eq!(at(200), Some(b_name));
        assert_eq!(at(100), None);
        assert_eq!(at(b_number), None);
        let mut numbers: Vec<RawFd> = vec![0, 1, 2, x_number, a_number, same_number, 200];
        numbers.sort_unstable();
        assert_eq!(fds.iter().map(|(n, _)| *n).collect::<Vec<_>>(), numbers);
        drop(ours);
        assert_eq!(wait(&mut process), Ended::Exited(0));
    }
    assert_eq!(count(), before);
}

#[test]
fn the_child_is_the_only_one_that_holds_its_end() {
    let _turn = alone();
    let (mut process, ours) = ready_cat(Spawn::new("/bin/cat"), Vec::new());
    assert!(process.signal(Signal::KILL).unwrap());
    // The end is seen although nobody here has closed anything.
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    assert!(matches!(wait(&mut process), Ended::Signaled { signal: Signal::KILL, .. }));
}

#[test]
fn a_failed_exec_is_told_and_leaves_nothing() {
    let _turn = alone();
    let dir = std::env::temp_dir().join(format!("phalanx-os-{}-exec", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, content: &str, mode| -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let magic = file("magic", "no magic", 0o755);
    let interpreter = file("interpreter", "#!/no/such\n", 0o755);
    let busy = file("busy", "#!/bin/sh\n", 0o755);
    let writer = fs::OpenOptions::new().append(true).open(&busy).unwrap();
    for (program, errno) in [
        (dir.join("missing"), libc::ENOENT),
        (plain.clone(), libc::EACCES),
        (magic, libc::ENOEXEC),
        (interpreter, libc::ENOENT),
        (busy, libc::ETXTBSY),
        (dir.clone(), libc::EACCES),
        (plain.join("x"), libc::ENOTDIR),
    ] {
        let mut spawn = Spawn::new(&program);
        spawn.fds = vec![(5, File::open("/dev/null").unwrap().into())];
        let e = failure(spawn);
        assert_eq!((e.step, e.errno, &e.program), (Step::Exec, errno, &program));
    }
    drop(writer);
    let e = failure(Spawn::new(dir.join("missing")));
    let sentence =
        format!("cannot start {}: no such file or directory (exec)", dir.join("missing").display());
    assert_eq!(e.to_string(), sentence);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_cannot_be_passed_on_is_refused_before_the_fork() {
    let _turn = alone();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let bad: [fn(&mut Spawn, OwnedFd); 6] = [
        |s, _| s.args = vec!["a\0b".into()],
        |s, _| s.env = vec![("A=B".into(), "".into())],
        |s, _| s.pid_env = vec![("".into(), "".into())],
        |s, fd| s.fds = vec![(-1, fd)],
        |s, fd| s.fds = vec![(5, fd.try_clone().unwrap()), (5, fd)],
        |s, _| s.user = Some(User { uid: u32::MAX, gid: 0, groups: Vec::new() }),
    ];
    for change in bad {
        let mut spawn = Spawn::new("/bin/true");
        change(&mut spawn, null());
        let e = failure(spawn);
        assert_eq!((e.step, e.errno), (Step::Prepare, libc::EINVAL));
    }
}

#[test]
fn a_failed_step_names_itself() {
    let _turn = alone();
    let mut spawn = Spawn::new("/bin/true");
    spawn.cwd = Some("/no/such".into());
    let e = failure(spawn);
    assert_eq!((e.step, e.errno), (Step::Cwd, libc::ENOENT));

    let mut spawn = Spawn::new("/bin/true");
    spawn.fds = vec![(i32::MAX - 1, File::open("/dev/null").unwrap().into())];
    assert_eq!(failure(spawn).step, Step::Descriptors);

    let mut spawn = Spawn::new("/bin/true");
    spawn.open_files = Some(u64::MAX - 1);
    assert_eq!(failure(spawn).step, Step::Limit);
}

#[test]
fn directory_name_and_limit_are_as_asked() {
    let _turn = alone();
    let (mut spawn, out) = shell("pwd; echo $0; ulimit -Sn");
    spawn.cwd = Some("/".into());
    spawn.args = args(&["-c", "pwd; ulimit -Sn; tr '\\0' ' ' </proc/$$/cmdline"]);
    spawn.arg0 = Some("worker".into());
    spawn.open_files = Some(77);
    let mut process = spawn.spawn().unwrap();
    let out = text(out);
    assert!(out.starts_with("/\n77\nworker -c "), "{out}");
    assert_eq!(wait(&mut process), Ended::Exited(0));
}

#[test]
fn a_group_is_reached_after_its_leader_was_reaped() {
    let _turn = alone();
    host::become_subreaper().unwrap();
    // The leader leaves a child behind, which holds the pipe; it says so first.
    let (mut spawn, mut out) = shell("sleep 1000 & echo $!");
    spawn.new_process_group = true;
    let mut process = spawn.spawn().unwrap();
    let mut line = [0; 1];
    out.read_exact(&mut line).unwrap();
    assert_eq!(wait(&mut process), Ended::Exited(0));
    assert!(process.signal_group(Signal::KILL).unwrap());
    // The end of the pipe is the end of the last one.
    out.read_to_string(&mut String::new()).unwrap();
    // The dead one belongs to the group until its new parent, which is this process, has reaped it.
    reap_one_stranger();
    assert!(!process.signal_group(Signal::KILL).unwrap());
}

/// Until an orphan that came to us has ended and was reaped.
fn reap_one_stranger() {
    while host::reap_strangers(|_| false).unwrap() == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn without_a_group_of_its_own_no_group_is_signalled() {
    let _turn = alone();
    let (mut process, ours) = ready_cat(Spawn::new("/bin/cat"), Vec::new());
    assert!(!process.signal_group(Signal::KILL).unwrap());
    drop(ours);
    assert_eq!(wait(&mut process), Ended::Exited(0));
}

#[test]
fn a_child_runs_with_the_rights_asked_for() {
    let _turn = alone();
    // Without privilege one can only become oneself.
    let user = if is_root() {
        User { uid: 65534, gid: 65533, groups: vec![65533, 7, 65534, 7] }
    } else {
        User {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect(),
        }
    };
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new("/bin/cat");
    spawn.args = args(&["/proc/self/status"]);
    spawn.fds = vec![(1, write)];
    spawn.user = Some(user.clone());
    spawn.die_with_parent = Some(Signal::KILL);
    let mut process = spawn.spawn().unwrap();
    let status = text(read.into());
    assert_eq!(wait(&mut process), Ended::Exited(0));
    let numbers = |name| -> Vec<u32> {
        field(&status, name).split_ascii_whitespace().map(|n| n.parse().unwrap()).collect()
    };
    assert_eq!(numbers("Uid"), [user.uid; 4]);
    assert_eq!(numbers("Gid"), [user.gid; 4]);
    let (mut groups, mut expected) = (numbers("Groups"), user.groups);
    groups.sort_unstable();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(groups, expected);
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    if is_root() {
        assert_eq!(field(&status, "CapBnd"), "0000000000000000");
    }
}

#[test]
fn the_right_to_load_programs_is_not_passed_on() {
    use rustix::thread::{
        CapabilitySet, capabilities, capability_is_in_ambient_set, configure_capability_in_ambient_set,
        set_capabilities,
    };
    let _turn = alone();
    let mut sets = capabilities(None).unwrap();
    if !sets.permitted.contains(CapabilitySet::BPF) {
        eprintln!("SKIP: no CAP_BPF");
        return;
    }
    // As a service manager does it that makes it ambient; of this thread only.
    sets.inheritable |= CapabilitySet::BPF;
    set_capabilities(None, sets).unwrap();
    configure_capability_in_ambient_set(CapabilitySet::BPF, true).unwrap();
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new("/bin/cat");
    spawn.args = args(&["/proc/self/status"]);
    spawn.fds = vec![(1, write)];
    let mut process = spawn.spawn().unwrap();
    let status = text(read.into());
    assert_eq!(wait(&mut process), Ended::Exited(0));
    assert_eq!(field(&status, "CapAmb"), "0000000000000000");
    assert!(capability_is_in_ambient_set(CapabilitySet::BPF).unwrap(), "ours is as it was");
}

#[test]
fn without_privilege_nobody_else_can_be_become() {
    let _turn = alone();
    if is_root() {
        return;
    }
    let groups = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
    let mut spawn = Spawn::new("/bin/true");
    spawn.user = Some(User { uid: 0, gid: rustix::process::getgid().as_raw(), groups });
    let e = failure(spawn);
    assert_eq!((e.step, e.errno), (Step::Uid, libc::EPERM));
}

#[test]
fn strangers_are_reaped_and_known_ones_left() {
    let _turn = alone();
    let mut known: Vec<Process> = (0..3).map(|_| Spawn::new("/bin/true").spawn().unwrap()).collect();
    let mut strangers: Vec<Process> = (0..3).map(|_| Spawn::new("/bin/true").spawn().unwrap()).collect();
    // All have ended, and the known ones come first in the kernel's list.
    for process in known.iter().chain(&strangers) {
        while !is_zombie(process.pid()) {
            std::thread::yield_now();
        }
    }
    let pids: Vec<u32> = known.iter().map(Process::pid).collect();
    let mut reaped = host::reap_strangers(|pid| pids.contains(&pid)).unwrap();
    for process in &mut known {
        assert_eq!(wait(process), Ended::Exited(0));
    }
    // Where /proc does not list children, those behind the known ones come now.
    reaped += host::reap_strangers(|pid| pids.contains(&pid)).unwrap();
    assert_eq!(reaped, 3);
    for process in &mut strangers {
        // Their end is lost, and their numbers are not touched any more.
        for _ in 0..2 {
            assert_eq!(process.try_wait().unwrap_err().raw_os_error(), Some(libc::ECHILD));
        }
        assert!(!process.signal(Signal::KILL).unwrap());
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('Z')
}

/// Runs in a process of its own, see below: starts a child that is to die with it, and leaves.
#[test]
fn helper_that_leaves_a_child() {
    if std::env::var_os("PHALANX_OS_TEST_LEAVE").is_none() {
        return;
    }
    let mut spawn = Spawn::new("/bin/sleep");
    spawn.args = args(&["1000"]);
    spawn.die_with_parent = Some(Signal::KILL);
    // It inherits stdout, the pipe of the test.
    spawn.spawn().unwrap();
}

#[test]
fn a_child_dies_with_its_parent() {
    let _turn = alone();
    host::become_subreaper().unwrap();
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    let mut spawn = Spawn::new(std::env::current_exe().unwrap());
    spawn.args = args(&["--exact", "helper_that_leaves_a_child", "--nocapture"]);
    spawn.env = vec![("PHALANX_OS_TEST_LEAVE".into(), "1".into())];
    spawn.fds = vec![(1, write)];
    let mut process = spawn.spawn().unwrap();
    // The pipe ends when the last of both is gone; without the signal, in a quarter of an hour.
    let text = text(read.into());
    assert!(text.contains("1 passed"), "{text}");
    assert_eq!(wait(&mut process), Ended::Exited(0));
    reap_one_stranger();
}

#[test]
fn a_shell_script_sees_only_the_standard_streams() {
    let _turn = alone();
    let (out, ended) = run("for fd in 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && echo $fd; done; true");
    assert_eq!((out.as_str(), ended), ("", Ended::Exited(0)));
}

#[test]
fn an_open_image_is_run_whatever_has_its_name() {
    let _turn = alone();
    let dir = std::env::temp_dir().join(format!("phalanx-pinned-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let [program, other] = ["program", "other"].map(|name| dir.join(name));
    let copy = |name, to| {
        let found = phalanx_os::spawn::resolve(std::ffi::OsStr::new(name), None, &dir).unwrap();
        fs::copy(found, to).unwrap();
    };
    copy("true", &program);
    copy("false", &other);
    let image = phalanx_os::image::Image::open(&program).unwrap().unwrap();
    fs::rename(&other, &program).unwrap();
    let mut spawn = Spawn::new(&program);
    assert_eq!(wait(&mut spawn.spawn().unwrap()), Ended::Exited(1));
    spawn = Spawn::new(&program);
    spawn.image = Some(image.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(wait(&mut spawn.spawn().unwrap()), Ended::Exited(0));
    fs::remove_dir_all(&dir).unwrap();
}
