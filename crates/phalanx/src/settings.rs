//! How workers come, are replaced and go: the part of a cluster's description that is about their lives.

use crate::builder::Builder;
use crate::error::Error;
use crate::primary::Inspect;
use phalanx_core::{Lives, OnHang, Ready, Speaks};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What workers do when their primary is gone without having stopped them (SIGKILL, out of memory).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Orphans {
    /// They end at once: the kernel kills them.
    #[default]
    Exit,
    /// They are told to drain: by the stop signal, and workers that use this library by the end of their channel too;
    /// these end after 5 seconds at the latest. A Node worker ends at once, as under Node's own `cluster`.
    Drain,
    /// They go on. Only those that hold the listening socket themselves get new connections; a Node worker with
    /// a channel ends at once all the same. Their output must not go through this process.
    Serve,
}

impl Orphans {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Orphans::Exit => "exit",
            Orphans::Drain => "drain",
            Orphans::Serve => "serve",
        }
    }
}

impl Orphans {
    /// What our primary wants of us.
    pub(crate) fn of_this_worker() -> Orphans {
        std::env::var("PHALANX_ORPHANS").ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

impl fmt::Display for Orphans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text does not say what orphans do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that orphans can do: use exit, drain or serve")]
pub struct UnknownOrphans(String);

impl FromStr for Orphans {
    type Err = UnknownOrphans;

    fn from_str(text: &str) -> Result<Orphans, UnknownOrphans> {
        match text {
            "exit" => Ok(Orphans::Exit),
            "drain" => Ok(Orphans::Drain),
            "serve" => Ok(Orphans::Serve),
            _ => Err(UnknownOrphans(text.to_owned())),
        }
    }
}

impl Builder {
    /// What makes a worker ready: to take over from the one before it, and, where it says so itself, to get
    /// connections at all.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Builder {
        self.config.lives.ready = ready;
        self
    }

    /// How many workers may run above the wanted number while others are replaced: 1, unless said otherwise.
    /// Those that still drain count.
    #[must_use]
    pub fn max_surge(mut self, workers: u32) -> Builder {
        self.config.lives.max_surge = workers;
        self
    }

    /// How many of the wanted workers may be missing while others are replaced: none, unless said otherwise.
    #[must_use]
    pub fn max_unavailable(mut self, workers: u32) -> Builder {
        self.config.lives.max_unavailable = workers;
        self
    }

    /// Replaces a worker that has more resident memory than so many bytes. Its successor is ready first.
    #[must_use]
    pub fn max_rss(mut self, bytes: u64) -> Builder {
        self.config.lives.replacing.max_rss = Some(bytes);
        self
    }

    /// Replaces a worker that has run for so long, up to a tenth earlier so that they do not all go at once.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Builder {
        self.config.lives.replacing.max_age = Some(age);
        self
    }

    /// Replaces a worker that has taken so many connections, or up to a tenth fewer. Hand-off counts each as it is
    /// taken, exact steering every second; nobody counts what workers accept from a socket that they share.
    #[must_use]
    pub fn max_connections(mut self, connections: u64) -> Builder {
        self.config.lives.replacing.max_connections = Some(connections);
        self
    }

    /// A worker hangs when it takes none of the connections that wait for it for so long: 10 seconds, unless
    /// said otherwise; `None`: never.
    ///
    /// A worker of this library hangs as well when a runtime that accepts (not [`net::blocking`](crate::net::blocking))
    /// runs no task for so long, because all its threads are blocked. It is asked after half of this time without a
    /// connection, so this may take half as long again.
    #[must_use]
    pub fn hang_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Builder {
        self.config.lives.hang_timeout = timeout.into();
        self
    }

    /// What happens to a worker that hangs: it is replaced, unless said otherwise.
    #[must_use]
    pub fn on_hang(mut self, on_hang: OnHang) -> Builder {
        self.config.lives.on_hang = on_hang;
        self
    }

    /// Whether each worker gets a port for a debugger.
    #[must_use]
    pub fn inspect(mut self, inspect: Inspect) -> Builder {
        self.inspect = inspect;
        self
    }

    /// What workers do when this process is gone without having stopped them.
    #[must_use]
    pub fn orphans(mut self, orphans: Orphans) -> Builder {
        self.orphans = orphans;
        self
    }

    /// From the first graceful stop to the beginning of the drain. Meanwhile all goes on, and whoever asks hears
    /// that this service is not ready: time for load balancers to notice.
    #[must_use]
    pub fn shutdown_delay(mut self, delay: Duration) -> Builder {
        self.config.lives.shutdown_delay = delay;
        self
    }

    /// Nonsense that was described.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        self.errors.pop()
    }

    /// What does not go together.
    pub(crate) fn check_settings(&self) -> Result<(), Error> {
        check_lives(&self.config.lives, self.config.speaks)?;
        let piped = [&self.stdout, &self.stderr].into_iter().any(|output| output.tell().is_some());
        if self.orphans == Orphans::Serve && piped {
            return wrong(
                "orphans that serve on cannot print through this process when it is gone: let their output be \
                 inherited, or go to a file",
            );
        }
        Ok(())
    }
}

fn wrong(why: &str) -> Result<(), Error> {
    Err(Error::Config(why.to_owned()))
}

/// What does not go together in the part that a reload may change.
pub(crate) fn check_lives(lives: &Lives, speaks: Speaks) -> Result<(), Error> {
    if lives.max_surge == 0 && lives.max_unavailable == 0 {
        return wrong(
            "with no worker more (max_surge) and none less (max_unavailable), none can be replaced: allow one of them",
        );
    }
    if matches!(lives.ready, Ready::Http(_)) && speaks == Speaks::Nothing {
        return wrong(
            "a request to one worker needs a channel, which a plain program does not have: use `ready` notify or \
             listening",
        );
    }
    Ok(())
}
