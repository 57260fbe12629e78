//! How a worker's process is started: its environment and its fds, exactly.

use super::program::Program;
use crate::builder::Output;
use crate::settings::Orphans;
use phalanx_core::{Spawn, Speaks};
use phalanx_os::{Account, Channel, Process, Signal};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A process that has just started.
pub(super) struct Born {
    pub(super) process: Process,
    pub(super) channel: Option<Channel>,
    /// Pipes of stdout and stderr.
    pub(super) pipes: Vec<(bool, OwnedFd)>,
}

/// Never inherited: each of these names something of ours that is not the worker's.
const DENIED: &[&str] = &[
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    "PHALANX_CHANNEL",
    "PHALANX_CONFIG",
    "PHALANX_RUN",
    "PHALANX_HANDLES",
    "PHALANX_CLUSTER",
    "PHALANX_GENERATION",
    "PHALANX_ORPHANS",
    "CREDENTIALS_DIRECTORY",
];

/// All that is inherited when the environment is cleared: where programs are, who and where the user is.
const BASICS: &[&str] =
    &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR"];

impl Program {
    /// Starts one worker, with these sockets lent to it, a socket to tell its readiness to, and a port for its
    /// debugger.
    pub(super) fn spawn(
        &self,
        spawn: &Spawn,
        lent: &[(String, Arc<OwnedFd>)],
        notify: Option<&OsStr>,
        inspect: Option<u16>,
    ) -> Result<Born, String> {
        let sentence = |error: std::io::Error| format!("cannot start a worker: {error}");
        let mut command = phalanx_os::Spawn::new(&self.path);
        if let Some(image) = self.image() {
            command.image = Some(image.as_fd().try_clone_to_owned().map_err(sentence)?);
        }
        command.arg0 = Some(self.name().to_owned());
        command.args = self.is.args_with(inspect);
        command.cwd.clone_from(&self.is.cwd);
        command.new_process_group = true;
        command.die_with_parent = match self.is.orphans {
            Orphans::Exit => Some(Signal::KILL),
            Orphans::Drain => Signal::from_raw(self.is.lives.limits.stop_signal),
            Orphans::Serve => None,
        };
        command.open_files = self.is.open_files;
        let basic = |name: &OsStr| {
            BASICS.iter().any(|basic| name == *basic)
                || name.to_str().is_some_and(|name| name.starts_with("LC_"))
        };
        let mut env: Vec<(OsString, OsString)> = self
            .inherited
            .iter()
            .filter(|(name, _)| !DENIED.iter().any(|denied| name == denied))
            .filter(|(name, _)| !self.is.env_clear || basic(name))
            .cloned()
            .collect();
        if let Some(Account { user, name, home }) = &self.is.account {
            command.user = Some(user.clone());
            if let Some(name) = name {
                set(&mut env, "USER".as_ref(), name.as_ref());
                set(&mut env, "LOGNAME".as_ref(), name.as_ref());
            }
            if let Some(home) = home {
                set(&mut env, "HOME".as_ref(), home.as_ref());
            }
        }
        for (name, value) in &self.is.env {
            set(&mut env, name, value);
        }
        for (name, value) in &spawn.env {
            set(&mut env, name.as_ref(), value.as_ref());
        }
        let number = |n: u32| OsString::from(n.to_string());
        set(&mut env, "PHALANX_SLOT".as_ref(), &number(spawn.slot.0));
        set(&mut env, "PHALANX_WORKER_ID".as_ref(), &number(spawn.worker.0));
        set(&mut env, "NODE_APP_INSTANCE".as_ref(), &number(spawn.slot.0));

        set(&mut env, "PHALANX_GENERATION".as_ref(), &number(spawn.generation.0));
        set(&mut env, "PHALANX_ORPHANS".as_ref(), self.is.orphans.name().as_ref());
        for (name, value) in inspect.map(|port| self.is.inspect_env(port)).unwrap_or_default() {
            let before = env.iter().find(|(known, _)| known == name).map(|(_, before)| before.clone());
            let value = match before.filter(|_| name == "NODE_OPTIONS") {
                Some(mut before) => {
                    before.push(" ");
                    before.push(value);
                    before
                }
                None => value.into(),
            };
            set(&mut env, name.as_ref(), &value);
        }
        if let Some(notify) = notify {
            set(&mut env, "NOTIFY_SOCKET".as_ref(), notify);
        }
        if let Some(name) = &self.is.cluster {
            set(&mut env, "PHALANX_CLUSTER".as_ref(), name.as_ref());
        }

        let null = File::open("/dev/null").map_err(sentence)?;
        command.fds.push((0, null.into()));
        let mut pipes = Vec::new();
        for (target, is_stderr, output) in [(1, false, &self.is.stdout), (2, true, &self.is.stderr)] {
            let file = match output {
                Output::Inherit => continue,
                Output::Null => File::options().write(true).open("/dev/null").map_err(sentence)?.into(),
                Output::Append(path) => File::options()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|error| {
                        format!("cannot open {} for a worker's output: {error}", path.display())
                    })?
                    .into(),
                Output::Lines(_) => {
                    let (ours, theirs) = phalanx_os::host::pipe().map_err(sentence)?;
                    pipes.push((is_stderr, ours));
                    theirs
                }
            };
            command.fds.push((target, file));
        }
        let mut next = 3;
        if !lent.is_empty() {
            let names: Vec<&str> = lent.iter().map(|(name, _)| name.as_str()).collect();
            set(&mut env, "LISTEN_FDS".as_ref(), &number(lent.len() as u32));
            set(&mut env, "LISTEN_FDNAMES".as_ref(), names.join(":").as_ref());
            command.pid_env.push(("LISTEN_PID".into(), OsString::new()));
            for (_, fd) in lent {
                command.fds.push((next, fd.try_clone().map_err(sentence)?));
                next += 1;
            }
        }
        if self.is.receive_handles {
            set(&mut env, "PHALANX_HANDLES".as_ref(), "1".as_ref());
        }
        let mut channel = None;
        if self.is.speaks != Speaks::Nothing {
            let (ours, theirs) = Channel::pair().map_err(sentence)?;
            if self.is.speaks == Speaks::Node {
                set(&mut env, "NODE_CHANNEL_FD".as_ref(), &number(next as u32));
                set(&mut env, "NODE_UNIQUE_ID".as_ref(), &number(spawn.worker.0));
                let serialization = self.is.serialization.name();
                set(&mut env, "NODE_CHANNEL_SERIALIZATION_MODE".as_ref(), serialization.as_ref());
            } else {
                // Valid for the child's own pid only, so that a grandchild cannot mistake itself.
                command.pid_env.push(("PHALANX_CHANNEL".into(), format!("{next}:").into()));
                // Unless somebody wants them, handles flow to our workers only: what a hostile one sends does not
                // arrive (S-04). Where the kernel cannot refuse, they are closed on arrival.
                if !self.is.receive_handles {
                    let _ = ours.refuse_handles();
                }
            }
            command.fds.push((next, theirs));
            channel = Some(ours);
        }
        if let Some(config) = &self.is.config {
            next += i32::from(channel.is_some());
            command.pid_env.push(("PHALANX_CONFIG".into(), format!("{next}:").into()));
            command.fds.push((next, config.try_clone().map_err(sentence)?));
        }
        command.env = env;
        let process = command.spawn().map_err(|error| error.to_string())?;
        Ok(Born { process, channel, pipes })
    }
}

fn set(env: &mut Vec<(OsString, OsString)>, name: &OsStr, value: &OsStr) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => value.clone_into(known),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}
