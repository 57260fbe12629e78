//! How a worker ended, and why.

use serde::Serialize;
use std::fmt;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By a signal: its number, and whether it left a core dump.
    Signal(i32, bool),
    /// Killed by the kernel, because its control group was out of memory.
    #[serde(rename = "out-of-memory")]
    OutOfMemory,
}

impl Ended {
    /// Exit code 0.
    pub const fn is_success(self) -> bool {
        matches!(self, Ended::Code(0))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Code(code) => write!(f, "exit code {code}"),
            Ended::Signal(signal, false) => write!(f, "killed by signal {signal}"),
            Ended::Signal(signal, true) => write!(f, "killed by signal {signal}, core dumped"),
            Ended::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
        }
    }
}

/// Why phalanx itself acted against a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// It never said `online`.
    NeverOnline,
    /// It was not ready in time; the text says what was missing.
    NeverReady(String),
    /// Its connections did not end within the drain timeout.
    DrainTimeout,
    /// It ignored the stop signal.
    IgnoredStopSignal,
    /// It broke the protocol; the text says how.
    Protocol(String),
    /// It closed its channel without being asked to and went on running.
    ClosedChannel,
    /// It hung; the text says how that showed.
    Hung(String),
    /// A worker of another generation took its place.
    Reload,
    /// It had more memory than `max_rss`.
    MaxRss,
    /// It was older than `max_age`.
    MaxAge,
    /// It had taken more connections than `max_connections`.
    MaxConnections,
    /// Fewer workers were wanted.
    Scale,
    /// Everything stopped.
    Stop,
    /// Somebody asked for it.
    Asked,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NeverOnline => f.write_str("it never came online"),
            Cause::DrainTimeout => f.write_str("its connections did not end in time"),
            Cause::IgnoredStopSignal => f.write_str("it ignored the stop signal"),
            Cause::Protocol(how) => write!(f, "it broke the protocol: {how}"),
            Cause::ClosedChannel => f.write_str("it closed its channel"),
            Cause::NeverReady(missing) => write!(f, "it was not ready in time: {missing}"),
            Cause::Hung(how) => write!(f, "it hung: {how}"),
            Cause::Reload => f.write_str("a worker of another generation took its place"),
            Cause::MaxRss => f.write_str("it had more memory than it may have"),
            Cause::MaxAge => f.write_str("it was as old as a worker may get"),
            Cause::MaxConnections => f.write_str("it had taken as many connections as a worker may"),
            Cause::Scale => f.write_str("fewer workers were wanted"),
            Cause::Stop => f.write_str("everything stopped"),
            Cause::Asked => f.write_str("somebody asked for it"),
        }
    }
}
