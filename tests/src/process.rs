//! Programs under test: what they print, what they are made of, how they end.
//!
//! [`Process`] is any program. [`Phalanx`] is one `phalanx run` with a runtime
//! directory of its own; it has to end well, see [`Phalanx::finish`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

use crate::lab;

pub use rustix::process::Signal;

/// How long a test waits for a fact. Not a measure of speed: reaching it means
/// that the fact will never come.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Present in the environment of everything that a test starts, with a value of
/// its own, so that whatever is left can be found.
const MARK: &str = "PHALANX_TEST_MARK";

// ---------------------------------------------------------------- /proc

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started })
    }

    /// Whether it still exists, as a zombie if nothing else.
    #[must_use]
    pub fn exists(self) -> bool {
        stat(self.pid).is_some_and(|it| it.started == self.started)
    }

    /// Whether it is more than a zombie.
    #[must_use]
    pub fn lives(self) -> bool {
        stat(self.pid).is_some_and(|it| it.started == self.started && !matches!(it.state, 'Z' | 'X'))
    }
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug)]
pub struct Stat {
    /// The name of the program, cut to 15 bytes.
    pub name: String,
    /// `R`, `S`, `T` (stopped), `Z` (zombie) …
    pub state: char,
    /// The parent.
    pub ppid: u32,
    /// Process group.
    pub pgrp: u32,
    /// Clock ticks in user mode.
    pub user: u64,
    /// Clock ticks in the kernel.
    pub system: u64,
    /// When it began, in clock ticks since boot.
    pub started: u64,
}

/// Reads [`Stat`]; `None` if there is no such process.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, so from the last parenthesis on.
    let (front, back) = (text.get(text.find('(')? + 1..text.rfind(')')?)?, text.get(text.rfind(')')? + 2..)?);
    let f: Vec<&str> = back.split_ascii_whitespace().collect();
    Some(Stat {
        name: front.to_owned(),
        state: f.first()?.chars().next()?,
        ppid: f.get(1)?.parse().ok()?,
        pgrp: f.get(2)?.parse().ok()?,
        user: f.get(11)?.parse().ok()?,
        system: f.get(12)?.parse().ok()?,
        started: f.get(19)?.parse().ok()?,
    })
}

/// How many descriptors a process has open.
#[must_use]
pub fn fd_count(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// What those descriptors are, by number: `socket:[123]`, `/dev/null`, `anon_inode:[eventpoll]`.
#[must_use]
pub fn fds(pid: u32) -> BTreeMap<u32, String> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    dir.flatten()
        .filter_map(|it| {
            let number = it.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(it.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// Resident memory of a process in KiB.
#[must_use]
pub fn rss_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in KiB.
#[must_use]
pub fn peak_rss_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|it| it.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

fn all_pids() -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process, zombies among them, in order of their start.
#[must_use]
pub fn children(pid: u32) -> Vec<ProcessId> {
    let mut found: Vec<_> = all_pids()
        .into_iter()
        .filter_map(|it| {
            let stat = stat(it)?;
            (stat.ppid == pid).then_some(ProcessId { pid: it, started: stat.started })
        })
        .collect();
    found.sort_by_key(|it| (it.started, it.pid));
    found
}

/// Children, their children and so on.
#[must_use]
pub fn descendants(pid: u32) -> BTreeSet<ProcessId> {
    let mut found = BTreeSet::new();
    let mut open = vec![pid];
    while let Some(next) = open.pop() {
        for child in children(next) {
            if found.insert(child) {
                open.push(child.pid);
            }
        }
    }
    found
}

/// The children of a process that died and were not reaped.
#[must_use]
pub fn zombies(pid: u32) -> Vec<ProcessId> {
    children(pid).into_iter().filter(|it| stat(it.pid).is_some_and(|s| s.state == 'Z')).collect()
}

/// Processes whose environment carries a mark.
fn marked(mark: &str) -> BTreeSet<ProcessId> {
    let wanted = format!("{MARK}={mark}");
    let me = std::process::id();
    all_pids()
        .into_iter()
        .filter(|pid| *pid != me)
        .filter(|pid| environment(*pid).split(|b| *b == 0).any(|it| it == wanted.as_bytes()))
        .filter_map(ProcessId::of)
        .collect()
}

/// The environment that a process was given. In the middle of an exec it looks
/// empty, so an empty one is looked at again.
fn environment(pid: u32) -> Vec<u8> {
    for _ in 0..5 {
        match fs::read(format!("/proc/{pid}/environ")) {
            Err(_) => break,
            Ok(env) if !env.is_empty() => return env,
            Ok(_) => {}
        }
        // Zombies and threads of the kernel have none.
        if stat(pid).is_none_or(|it| it.state == 'Z' || it.pgrp == 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Vec::new()
}

/// Sends a signal to a process by number.
///
/// # Errors
/// What `kill` says: no such process, for one.
pub fn kill(pid: u32, signal: Signal) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// A loopback port that was free just now. Nothing keeps it free: for programs
/// that cannot be told to choose one.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its number").port()
}

/// Asks until a fact holds. For facts that announce themselves in no other way.
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Asks until there is an answer.
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(it) = answer() {
            return it;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until somebody *answers* on a loopback port (that it accepts proves
/// little: the socket may be held by somebody who does not serve).
///
/// # Panics
/// After [`DEADLINE`].
#[track_caller]
pub fn wait_answer(port: u16) {
    wait_until(&format!("an answer on port {port}"), || {
        crate::load::Load::port(port).connections(1).silence(Duration::from_secs(5)).run().served == 1
    });
}

// ---------------------------------------------------------------- any program

/// Which of its two streams a program wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamOf {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A line that a program printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where.
    pub stream: StreamOf,
    /// What, without the newline.
    pub text: String,
}

#[derive(Default)]
struct Log {
    lines: Vec<Line>,
    open: usize,
}

#[derive(Default)]
struct Lines {
    log: Mutex<Log>,
    changed: Condvar,
}

impl Lines {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, stream: StreamOf, from: impl Read + Send + 'static) {
        self.log().open += 1;
        let lines = Arc::clone(self);
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while from.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
                lines.log().lines.push(Line { stream, text });
                lines.changed.notify_all();
                bytes.clear();
            }
            lines.log().open -= 1;
            lines.changed.notify_all();
        });
    }
}

/// A program that runs, with all that it prints. Dropping it kills it and
/// whatever it has started.
pub struct Process {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    status: Option<ExitStatus>,
    lines: Arc<Lines>,
    mark: String,
    known: Mutex<BTreeSet<ProcessId>>,
}

impl Process {
    /// Starts a program with both streams captured and a pipe for its input.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env(MARK, &mark);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let lines = Arc::new(Lines::default());
        lines.follow(StreamOf::Out, child.stdout.take().expect("a pipe"));
        lines.follow(StreamOf::Err, child.stderr.take().expect("a pipe"));
        let stdin = child.stdin.take();
        Self { what, child, stdin, status: None, lines, mark, known: Mutex::default() }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lines.log().lines.clone()
    }

    /// How many lines it has printed so far, for [`wait_line_after`](Self::wait_line_after).
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.lines.log().lines.len()
    }

    /// Waits for a line that contains a text, from the very first one on.
    ///
    /// # Panics
    /// If it closes its streams without, or after [`DEADLINE`].
    #[track_caller]
    pub fn wait_line(&self, text: &str) -> String {
        self.wait_line_after(0, text)
    }

    /// The same, past the first `from` lines.
    ///
    /// # Panics
    /// If it closes its streams without, or after [`DEADLINE`].
    #[track_caller]
    pub fn wait_line_after(&self, from: usize, text: &str) -> String {
        self.wait_lines(&format!("a line with {text:?}"), |lines| {
            lines.iter().skip(from).find(|it| it.text.contains(text)).map(|it| it.text.clone())
        })
    }

    /// Waits until all its lines so far give an answer; asked after each line.
    ///
    /// # Panics
    /// If it closes its streams without, or after [`DEADLINE`].
    #[track_caller]
    pub fn wait_lines<T>(&self, what: &str, mut answer: impl FnMut(&[Line]) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut log = self.lines.log();
        loop {
            if let Some(it) = answer(&log.lines) {
                return it;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(log.open > 0, "{} ended without {what}; it printed:\n{}", self.what, show(&log.lines));
            assert!(!left.is_zero(), "{} never gave {what}; it printed:\n{}", self.what, show(&log.lines));
            log = self.lines.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// If it does not read any more.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is closed");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("a program that reads");
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has been waited for already.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.what);
        kill(self.pid(), signal).expect("a signal to a child");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child of ours");
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After [`DEADLINE`], with what it printed and what it is made of.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        if !self.wait_at_most(DEADLINE) {
            panic!("{} does not end\n{}", self.what, self.describe());
        }
        self.status.expect("waited for")
    }

    fn wait_at_most(&mut self, time: Duration) -> bool {
        if self.ended().is_some() {
            return true;
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        // By descriptor: no signal handler, no clock.
        if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
            let end = Instant::now() + time;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let left = rustix::event::Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: left.subsec_nanos().into(),
                };
                match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
                    Err(rustix::io::Errno::INTR) => {}
                    _ => break,
                }
            }
        }
        self.ended().is_some()
    }

    /// Waits until both its streams are at their end, so that [`lines`](Self::lines) is all of it.
    fn drain_lines(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        let mut log = self.lines.log();
        while log.open > 0 && Instant::now() < end {
            log = self
                .lines
                .changed
                .wait_timeout(log, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Notes who descends from it now; they are looked for at the end.
    pub fn note_descendants(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(descendants(self.pid()));
        known.extend(marked(&self.mark));
        known.retain(|it| it.pid != self.pid());
    }

    /// Who of all that it ever started still exists.
    #[must_use]
    pub fn left_over(&self) -> Vec<ProcessId> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(marked(&self.mark));
        known.iter().filter(|it| it.pid != self.pid() && it.exists()).copied().collect()
    }

    /// For the eyes: what it printed and what it consists of.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("--- {} (pid {})\n", self.what, self.pid());
        for id in descendants(self.pid()).into_iter().chain(self.left_over()).chain(ProcessId::of(self.pid()))
        {
            if let Some(s) = stat(id.pid) {
                let _ = writeln!(
                    text,
                    "    {} {} {} ppid {} fds {:?}",
                    id.pid,
                    s.state,
                    s.name,
                    s.ppid,
                    fd_count(id.pid)
                );
            }
        }
        text + &show(&self.lines())
    }

    fn kill_all(&mut self) {
        self.note_descendants();
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for left in self.left_over() {
            let _ = kill(left.pid, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        }
        self.kill_all();
    }
}

fn show(lines: &[Line]) -> String {
    let mut text = String::new();
    let skipped = lines.len().saturating_sub(200);
    if skipped > 0 {
        let _ = writeln!(text, "    … {skipped} lines before");
    }
    for line in &lines[skipped..] {
        let mark = if line.stream == StreamOf::Out { ' ' } else { '!' };
        let _ = writeln!(text, "  {mark} {}", line.text);
    }
    text
}

// ---------------------------------------------------------------- phalanx

/// What to run; [`start`](Builder::start) runs it.
pub struct Builder {
    name: String,
    program: Option<PathBuf>,
    options: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
}

impl Builder {
    /// Another program than the `phalanx` of this workspace.
    #[must_use]
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.program = Some(path.as_ref().to_owned());
        self
    }

    /// Workers (`-w`).
    #[must_use]
    pub fn workers(self, n: usize) -> Self {
        self.options(["-w", &n.to_string()])
    }

    /// Options of `phalanx run`, before the `--`.
    #[must_use]
    pub fn options<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.options.extend(options.into_iter().map(|it| it.as_ref().to_owned()));
        self
    }

    /// A variable of the primary's environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Without a variable that would be inherited.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Its working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Runs `phalanx run -n NAME OPTIONS -- COMMAND`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(self, command: impl IntoIterator<Item = S>) -> Phalanx {
        let mut arguments: Vec<OsString> = vec!["run".into(), "-n".into(), self.name.clone().into()];
        arguments.extend(self.options);
        arguments.push("--".into());
        arguments.extend(command.into_iter().map(|it| it.as_ref().to_owned()));
        let program = self.program.unwrap_or_else(|| lab::binary("phalanx"));
        Phalanx::start(self.name, program, arguments, self.env, self.dir)
    }
}

/// One `phalanx run` in a runtime directory of its own.
///
/// It must end well: [`finish`](Self::finish) says what that is, and dropping it
/// does the same.
pub struct Phalanx {
    process: Process,
    name: String,
    program: PathBuf,
    runtime: Option<TempDir>,
    announced: Vec<String>,
    finished: bool,
}

impl std::ops::Deref for Phalanx {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for Phalanx {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Phalanx {
    /// A `phalanx run` with this instance name.
    #[must_use]
    pub fn run(name: &str) -> Builder {
        Builder { name: name.to_owned(), program: None, options: Vec::new(), env: Vec::new(), dir: None }
    }

    #[track_caller]
    fn start(
        name: String,
        program: PathBuf,
        arguments: Vec<OsString>,
        env: Vec<(OsString, Option<OsString>)>,
        dir: Option<PathBuf>,
    ) -> Self {
        // Short, as socket paths have 107 bytes.
        let runtime = tempfile::Builder::new().prefix("phx").tempdir_in("/tmp").expect("a runtime directory");
        let mut command = Command::new(&program);
        command.args(arguments).env("XDG_RUNTIME_DIR", runtime.path()).envs([lab::node_path()]);
        for (key, value) in env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(dir) = dir {
            command.current_dir(dir);
        }
        let process = Process::start(&mut command);
        Self { process, name, program, runtime: Some(runtime), announced: Vec::new(), finished: false }
    }

    /// The instance name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its runtime directory (`XDG_RUNTIME_DIR`).
    ///
    /// # Panics
    /// Never while it is alive.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        self.runtime.as_ref().expect("it is alive").path()
    }

    /// A subcommand on this very instance: `phalanx VERB -n NAME ARGUMENTS`, not
    /// yet started.
    #[must_use]
    #[track_caller]
    pub fn command<S: AsRef<OsStr>>(&self, verb: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([verb, "-n", &self.name])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.runtime_dir())
            .stdin(Stdio::null());
        command
    }

    /// Runs such a subcommand to its end, whatever that is.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn ask<S: AsRef<OsStr>>(&self, verb: &str, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(verb, arguments).output().expect("phalanx")
    }

    /// Runs such a subcommand, which must succeed, and gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn tell<S: AsRef<OsStr>>(&self, verb: &str, arguments: impl IntoIterator<Item = S>) -> String {
        let out = self.ask(verb, arguments);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(
            out.status.success(),
            "phalanx {verb}: {}\n{stdout}{stderr}\n{}",
            out.status,
            self.describe()
        );
        stdout.into_owned()
    }

    /// `phalanx status --json`.
    ///
    /// # Panics
    /// If that fails or is no JSON.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = self.tell("status", ["--json"]);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status is no JSON: {e}\n{text}"))
    }

    /// Asks for the status until it fulfils a condition, and gives it.
    ///
    /// # Panics
    /// After [`DEADLINE`], or if the primary ends.
    #[track_caller]
    pub fn wait_status(&mut self, what: &str, mut fulfilled: impl FnMut(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            // Early in its life there may be no control socket yet.
            let out = self.ask("status", ["--json"]);
            let status = serde_json::from_slice(&out.stdout).ok().filter(|_| out.status.success());
            if let Some(status) = status.filter(&mut fulfilled) {
                self.note_descendants();
                return status;
            }
            let over = self.ended();
            assert!(over.is_none(), "phalanx ended ({over:?}) before: {what}\n{}", self.describe());
            assert!(Instant::now() < end, "waited in vain for: {what}\n{}", self.describe());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until so many workers are there, and all of them listen.
    ///
    /// # Panics
    /// After [`DEADLINE`], or if the primary ends.
    #[track_caller]
    pub fn wait_listening(&mut self, workers: usize) -> Value {
        self.wait_status(&format!("{workers} workers listen"), |status| {
            let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
            all.len() == workers && all.iter().all(|worker| worker["state"] == "listening")
        })
    }

    /// The workers and whatever else the primary has started, in order of start.
    #[must_use]
    pub fn workers(&self) -> Vec<ProcessId> {
        self.note_descendants();
        children(self.pid()).into_iter().filter(|it| it.lives()).collect()
    }

    /// Announces that lines of level ERROR with this text will be printed, and are well.
    pub fn announce(&mut self, text: &str) {
        self.announced.push(text.to_owned());
    }

    /// Ends it with SIGTERM and asserts the free ending: exit status 0 or 143; no
    /// zombie before, no process after; no line of level ERROR that was not
    /// [announced](Self::announce); no socket file left.
    ///
    /// # Panics
    /// If it does not end so.
    #[track_caller]
    pub fn finish(mut self) {
        self.end();
    }

    /// Waits for an end that comes by itself (or was brought about), asserts its
    /// exit code and the rest of the free ending.
    ///
    /// # Panics
    /// If it does not end so.
    #[track_caller]
    pub fn finish_with(mut self, code: i32) {
        self.finished = true;
        self.note_descendants();
        let status = self.wait();
        assert!(status.code() == Some(code), "ended with {status}, not {code}\n{}", self.describe());
        self.assert_clean();
    }

    /// Kills the primary with SIGKILL, and waits until everything that it started
    /// is gone. What is left on the disk is given to the next one by
    /// keeping the runtime directory, which is returned.
    ///
    /// # Panics
    /// If somebody stays.
    #[track_caller]
    #[must_use]
    pub fn kill_primary(mut self) -> TempDir {
        self.finished = true;
        self.note_descendants();
        self.signal(Signal::KILL);
        let status = self.wait();
        assert!(status.signal() == Some(9), "killed, but {status}");
        wait_until("the end of all workers", || !self.left_over().iter().any(|it| it.lives()));
        self.runtime.take().expect("it was alive")
    }

    /// Kills the primary with SIGKILL, and leaves alone whoever stays, until this is dropped.
    ///
    /// # Panics
    /// If it ends otherwise.
    #[track_caller]
    pub fn orphan(&mut self) {
        self.finished = true;
        self.signal(Signal::KILL);
        let status = self.wait();
        assert!(status.signal() == Some(9), "killed, but {status}");
    }

    #[track_caller]
    fn end(&mut self) {
        self.finished = true;
        let pid = self.pid();
        if self.ended().is_none() {
            wait_until("every dead child to be reaped", || zombies(pid).is_empty());
            self.note_descendants();
            self.signal(Signal::TERM);
        }
        let status = self.wait();
        let well = matches!(status.code(), Some(0 | 143));
        assert!(well, "ended with {status}\n{}", self.describe());
        self.assert_clean();
    }

    #[track_caller]
    fn assert_clean(&self) {
        let left = self.left_over();
        assert!(left.is_empty(), "left behind: {left:?}\n{}", self.describe());
        self.drain_lines();
        let errors: Vec<_> = self
            .lines()
            .into_iter()
            .filter(|it| it.stream == StreamOf::Err && is_error(&it.text))
            .filter(|it| !self.announced.iter().any(|known| it.text.contains(known)))
            .map(|it| it.text)
            .collect();
        assert!(errors.is_empty(), "unannounced errors:\n{}\n{}", errors.join("\n"), self.describe());
        let sockets = socket_files(self.runtime_dir());
        assert!(sockets.is_empty(), "socket files left: {sockets:?}\n{}", self.describe());
    }
}

impl Drop for Phalanx {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            self.end();
        }
    }
}

/// Whether a line of the log is of level ERROR, in JSON or for the eyes.
#[must_use]
pub fn is_error(line: &str) -> bool {
    if let Ok(Value::Object(it)) = serde_json::from_str(line) {
        return it.get("level").and_then(Value::as_str).is_some_and(|it| it.eq_ignore_ascii_case("error"));
    }
    let plain: String = {
        // Without colours.
        let mut inside = false;
        line.chars()
            .filter(|c| {
                let escape = *c == '\u{1b}';
                let shown = !inside && !escape;
                inside = (inside || escape) && *c != 'm';
                shown
            })
            .collect()
    };
    // A time stamp may stand before the level.
    plain.split_ascii_whitespace().take(3).any(|it| it == "ERROR")
}

/// The socket files below a directory.
#[must_use]
pub fn socket_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(it) if it.is_dir() => open.push(entry.path()),
                Ok(it) if it.is_socket() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_known_in_both_forms() {
        assert!(is_error(r#"{"timestamp":"x","level":"ERROR","message":"m"}"#));
        assert!(is_error("2024-05-05T00:00:00Z \u{1b}[31mERROR\u{1b}[0m driver: no"));
        assert!(!is_error(r#"{"level":"INFO","message":"ERROR"}"#));
        assert!(!is_error("INFO worker 3 says: ERROR 5"));
    }

    #[test]
    fn a_process_is_followed_to_its_end() {
        let mut sh = Process::start(Command::new("sh").args(["-c", "echo one; read x; echo $x >&2; exit 7"]));
        sh.wait_line("one");
        sh.say("two");
        sh.wait_line("two");
        assert_eq!(sh.wait().code(), Some(7));
        assert!(sh.left_over().is_empty());
    }

    #[test]
    fn whoever_is_left_is_found_and_killed() {
        let mut sh = Process::start(Command::new("sh").args(["-c", "sleep 600 >&- 2>&- & echo $!"]));
        let pid = sh.wait_lines("a pid", |it| it.first()?.text.parse::<u32>().ok());
        sh.wait();
        let left = sh.left_over();
        assert_eq!(left.iter().map(|it| it.pid).collect::<Vec<_>>(), [pid]);
        drop(sh);
        wait_until("the end of the sleeper", || !left[0].lives());
    }
}
