//! Programs under test: what they print, what they are made of, how they end.
//!
//! [`Process`] is any program. [`Phalanx`] is one `phalanx run` with a runtime
//! directory of its own; it has to end well, see [`Phalanx::finish`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

pub use rustix::process::Signal;

/// How long a test waits for a fact. Not a measure of speed: reaching it means
/// that the fact will never come.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Present in the environment of everything that a test starts, with a value of
/// its own, so that whatever is left can be found.
const MARK: &str = "PHALANX_TEST_MARK";

mod phalanx;
mod proc;

use proc::marked;

pub use phalanx::{Builder, Phalanx, is_error, socket_files};
pub use proc::{
    ProcessId, Stat, children, descendants, fd_count, fds, free_port, kill, peak_rss_kib, rss_kib, stat,
    wait_answer, wait_for, wait_until, zombies,
};

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

    /// What `primary.js` has told of so many events of this name.
    ///
    /// # Panics
    /// As [`wait_lines`](Self::wait_lines).
    #[track_caller]
    pub fn wait_events(&self, name: &str, count: usize) -> Vec<Value> {
        let wanted = format!("{{\"event\":\"{name}\"");
        self.wait_lines(&format!("{count} × {name}"), |lines| {
            let told = lines.iter().filter(|it| it.text.starts_with(&wanted));
            let told: Vec<Value> = told.filter_map(|it| serde_json::from_str(&it.text).ok()).collect();
            (told.len() >= count).then_some(told)
        })
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
