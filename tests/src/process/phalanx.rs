//! A `phalanx run` under test.

use std::ffi::{OsStr, OsString};
use std::fs;

use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::lab;

use super::*;

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
