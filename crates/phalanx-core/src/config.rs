//! What a cluster is told before it begins.

use crate::lifecycle::{Limits, Speaks};
use crate::policy::{Policy, PolicyImpl};
use crate::ready::Ready;
use crate::restart::Restart;
use crate::wire::Serialization;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a connection gets to its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mechanism {
    /// The best that can deliver the policy for the listener at hand.
    #[default]
    Auto,
    /// One socket for each worker; the kernel chooses among them.
    Steer,
    /// The primary accepts and passes the connection over the worker's channel.
    Handoff,
    /// Every worker gets the same listening socket.
    Share,
}

impl Mechanism {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Auto => "auto",
            Mechanism::Steer => "steer",
            Mechanism::Handoff => "handoff",
            Mechanism::Share => "share",
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a mechanism.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mechanism `{0}`: use one of auto, steer, handoff, share")]
pub struct UnknownMechanism(String);

impl FromStr for Mechanism {
    type Err = UnknownMechanism;

    fn from_str(text: &str) -> Result<Mechanism, UnknownMechanism> {
        match text {
            "auto" => Ok(Mechanism::Auto),
            "steer" => Ok(Mechanism::Steer),
            "handoff" => Ok(Mechanism::Handoff),
            "share" => Ok(Mechanism::Share),
            _ => Err(UnknownMechanism(text.to_owned())),
        }
    }
}

/// What happens to a worker that hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnHang {
    /// It is told, and nothing else.
    Report,
    /// It is told, and the worker is ended; what it had not taken goes to others.
    #[default]
    Replace,
}

/// The text does not say what to do about a hang.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that can be done about a hang: use report or replace")]
pub struct UnknownOnHang(String);

impl FromStr for OnHang {
    type Err = UnknownOnHang;

    fn from_str(text: &str) -> Result<OnHang, UnknownOnHang> {
        match text {
            "report" => Ok(OnHang::Report),
            "replace" => Ok(OnHang::Replace),
            _ => Err(UnknownOnHang(text.to_owned())),
        }
    }
}

/// When a healthy worker is replaced. Its successor is ready first (or as `max_surge` and `max_unavailable`
/// say), and each limit differs by up to a tenth from worker to worker, so that they do not all go at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replacing {
    /// Resident memory in bytes. Looked at every two seconds, if set.
    pub max_rss: Option<u64>,
    /// Time since it was started.
    pub max_age: Option<Duration>,
    /// Connections that it has taken by hand-off or steering. Steered ones are looked at every second, if set.
    pub max_connections: Option<u64>,
}

/// How workers come, are replaced and go: what a reload may change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lives {
    /// Whether a worker that ended is replaced, when a number is wanted.
    pub restart: Restart,
    /// Times and signals.
    pub limits: Limits,
    /// What makes a worker ready.
    pub ready: Ready,
    /// Workers that may run above the wanted number while others are replaced.
    pub max_surge: u32,
    /// Wanted workers that may be missing while others are replaced.
    pub max_unavailable: u32,
    /// When healthy workers are replaced.
    pub replacing: Replacing,
    /// A worker that takes none of the connections that wait for it, or that it was handed, for so long hangs.
    /// `None`: never.
    pub hang_timeout: Option<Duration>,
    /// What happens then.
    pub on_hang: OnHang,
    /// From the order to stop to the beginning of the drain: load balancers hear that we are not ready, and
    /// those that have not heard yet are still served.
    pub shutdown_delay: Duration,
}

impl Default for Lives {
    fn default() -> Lives {
        Lives {
            restart: Restart::Always,
            limits: Limits::default(),
            ready: Ready::Auto,
            max_surge: 1,
            max_unavailable: 0,
            replacing: Replacing::default(),
            hang_timeout: Some(Duration::from_secs(10)),
            on_hang: OnHang::Replace,
            shutdown_delay: Duration::ZERO,
        }
    }
}

/// Makes a policy for each listener, in place of the built-in ones.
pub type PolicyFactory = Box<dyn Fn() -> Box<dyn PolicyImpl> + Send>;

/// The settings of a [`Primary`](crate::Primary).
#[non_exhaustive]
pub struct Config {
    /// Who should get the next connection.
    pub policy: Policy,
    /// What [`Policy::Custom`] means. It chooses in hand-off.
    pub custom_policy: Option<PolicyFactory>,
    /// How it gets there.
    pub mechanism: Mechanism,
    /// Weights of slots, from slot 0; 1 where none is given. A weight of 0 gets nothing new.
    pub weights: Vec<u32>,
    /// A steered worker that takes nothing for so long, while connections wait for it, lags: it is passed over
    /// and what waits goes to the others. At most so often are queues looked at.
    pub lag_after: Duration,
    /// What workers are given to speak on.
    pub speaks: Speaks,
    /// How messages to and from workers are written.
    pub serialization: Serialization,
    /// Connections a worker may hold unacknowledged, on all its listeners together.
    pub window: u32,
    /// Connections that wait in the primary, for each listener. Full means: stop accepting, the kernel's
    /// backlog holds; half empty: go on.
    pub pending_max: usize,
    /// The smallest backlog (of listen(2)) of any listener; a larger one on request.
    pub backlog: u32,
    /// How many workers are wanted. `None`: whoever forks decides, and nothing is replaced.
    pub wanted: Option<u32>,
    /// How workers come, are replaced and go.
    pub lives: Lives,
    /// Bytes queued towards a worker before the sender of a message hears that it is full.
    pub outbox_max: usize,
    /// Longest line or frame a worker may send.
    pub max_message: usize,
    /// Listeners that a worker may hold or wait for at a time.
    pub max_listeners: usize,
    /// Only what is configured may be listened on (and port 0).
    pub only_configured: bool,
    /// For jitter.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            policy: Policy::RoundRobin,
            custom_policy: None,
            mechanism: Mechanism::Auto,
            weights: Vec::new(),
            lag_after: Duration::from_millis(10),
            speaks: Speaks::Phalanx,
            serialization: Serialization::Json,
            window: 16,
            pending_max: 1024,
            backlog: 4096,
            wanted: None,
            lives: Lives::default(),
            outbox_max: 1 << 20,
            max_message: 16 << 20,
            max_listeners: 1024,
            only_configured: false,
            seed: 0,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("policy", &self.policy)
            .field("mechanism", &self.mechanism)
            .field("speaks", &self.speaks)
            .field("window", &self.window)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}
