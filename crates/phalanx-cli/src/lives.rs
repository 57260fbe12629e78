//! The flags of `phalanx run` about how workers come, are replaced and go.

use crate::units::{self, MaybeNever};
use clap::{Args, ValueEnum};
use phalanx::{Builder, OnHang, Orphans, Ready, Restart, Signal};
use std::time::Duration;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RestartWhen {
    /// However it ended
    Always,
    /// Unless it ended with exit code 0
    OnFailure,
    /// Never
    Never,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Workers' lives")]
pub(crate) struct Lives {
    /// What makes a worker ready: auto, online, listening, message (`process.send('ready')`), notify (READY=1 to
    /// NOTIFY_SOCKET), or http:/PATH. A reload goes on when the new worker is ready
    #[arg(long, default_value = "auto", value_name = "R")]
    ready: Ready,
    /// Whether a worker that ended is replaced
    #[arg(long, default_value = "always", value_enum, value_name = "WHEN")]
    restart: RestartWhen,
    /// A new worker must be online, and one that others wait for ready, within this; or `never`
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = units::duration_or_never)]
    start_timeout: MaybeNever,
    /// From the order to leave to the stop signal
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = units::duration)]
    drain_timeout: Duration,
    /// From the stop signal to SIGKILL
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = units::duration)]
    term_timeout: Duration,
    /// The signal that ends a worker
    #[arg(long, default_value = "SIGTERM", value_name = "SIGNAL", value_parser = units::signal)]
    stop_signal: Signal,
    /// From the first order to stop to the beginning of the drain: time for load balancers to notice
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = units::duration)]
    shutdown_delay: Duration,
    /// A worker hangs when it takes none of the connections that wait for it for so long, or, if it uses the phalanx
    /// crate, when its runtime runs no task; or `never`
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = units::duration_or_never)]
    hang_timeout: MaybeNever,
    /// What happens to a worker that hangs: report or replace
    #[arg(long, default_value = "replace", value_name = "WHAT")]
    on_hang: OnHang,
    /// Workers that may run above the wanted number while others are replaced
    #[arg(long, default_value_t = 1, value_name = "N")]
    max_surge: u32,
    /// Wanted workers that may be missing while others are replaced
    #[arg(long, default_value_t = 0, value_name = "N")]
    max_unavailable: u32,
    /// Replace a worker that has more memory than this, as in 512MiB
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    max_rss: Option<u64>,
    /// Replace a worker that has run for so long
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    max_age: Option<Duration>,
    /// Replace a worker that has taken so many connections (not with share)
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// What workers do when phalanx itself is killed: exit, drain or serve
    #[arg(long, default_value = "exit", value_name = "WHAT")]
    pub(crate) orphans: Orphans,
}

impl Lives {
    pub(crate) fn describe(&self, builder: Builder) -> Builder {
        let restart = match self.restart {
            RestartWhen::Always => Restart::Always,
            RestartWhen::OnFailure => Restart::OnFailure,
            RestartWhen::Never => Restart::Never,
        };
        let mut builder = builder
            .ready(self.ready.clone())
            .restart(restart)
            .start_timeout(self.start_timeout.0)
            .drain_timeout(self.drain_timeout)
            .term_timeout(self.term_timeout)
            .stop_signal(self.stop_signal)
            .shutdown_delay(self.shutdown_delay)
            .hang_timeout(self.hang_timeout.0)
            .on_hang(self.on_hang)
            .max_surge(self.max_surge)
            .max_unavailable(self.max_unavailable)
            .orphans(self.orphans);
        if let Some(bytes) = self.max_rss {
            builder = builder.max_rss(bytes);
        }
        if let Some(age) = self.max_age {
            builder = builder.max_age(age);
        }
        if let Some(connections) = self.max_connections {
            builder = builder.max_connections(connections);
        }
        builder
    }
}
