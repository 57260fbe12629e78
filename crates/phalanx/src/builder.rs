//! How a cluster is described.

use crate::error::{Error, Result};
use crate::primary::{Inspect, Primary, driver};
use crate::settings::Orphans;
use phalanx_core::policy::PolicyImpl;
use phalanx_core::wire::Serialization;
use phalanx_core::{BindSpec, Config, Mechanism, Policy, Restart, SocketKind, Speaks};
use phalanx_os::{Signal, conn};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A cluster that does not exist yet.
#[derive(Debug)]
pub struct Cluster;

impl Cluster {
    /// Describes a cluster.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Hears a line; an error says that it is lost.
pub type OnLine = Arc<dyn Fn(&Line<'_>) -> io::Result<()> + Send + Sync>;

/// Where a worker's output goes.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Output {
    /// Where ours goes.
    #[default]
    Inherit,
    /// Nowhere.
    Null,
    /// To the end of this file, which is made if need be, and opened anew for each worker.
    Append(PathBuf),
    /// Line by line to this function, on a thread of its own for each of the two streams. While it blocks, lines
    /// wait, up to a mebibyte. What does not fit, and what it returns an error for, is lost and counted
    /// ([`Event::OutputDropped`](crate::Event::OutputDropped), `output_dropped` in the status).
    Lines(OnLine),
}

impl Output {
    /// What hears its lines.
    pub(crate) fn tell(&self) -> Option<OnLine> {
        match self {
            Output::Lines(tell) => Some(Arc::clone(tell)),
            Output::Inherit | Output::Null | Output::Append(_) => None,
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Output::Inherit => "Inherit",
            Output::Null => "Null",
            Output::Append(path) => return f.debug_tuple("Append").field(path).finish(),
            Output::Lines(_) => "Lines",
        })
    }
}

/// One line that a worker printed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Line<'a> {
    /// Who.
    pub worker: crate::WorkerId,
    /// Where.
    pub slot: crate::Slot,
    /// On stderr, else on stdout.
    pub is_stderr: bool,
    /// The line, without its end; bytes that are not UTF-8 are replaced.
    pub text: &'a str,
}

/// A configured listener.
#[derive(Clone, Debug)]
pub(crate) struct Configured {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) spec: BindSpec,
}

/// A number of workers: a number, or `"auto"` for one for each processor that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count(Result<u32, String>);

impl Count {
    fn from_number<N: TryInto<u32> + fmt::Display + Copy>(number: N) -> Count {
        Count(number.try_into().map_err(|_| number.to_string()))
    }
}

impl From<u32> for Count {
    fn from(number: u32) -> Count {
        Count(Ok(number))
    }
}

impl From<i32> for Count {
    fn from(number: i32) -> Count {
        Count::from_number(number)
    }
}

impl From<usize> for Count {
    fn from(number: usize) -> Count {
        Count::from_number(number)
    }
}

impl From<&str> for Count {
    fn from(text: &str) -> Count {
        match text {
            "auto" => Count::from(phalanx_os::host::parallelism()),
            number => Count(number.parse().map_err(|_| number.to_owned())),
        }
    }
}

/// Describes a cluster, step by step.
#[derive(Debug)]
pub struct Builder {
    pub(crate) program: Option<OsString>,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) open_files: Option<u64>,
    pub(crate) name: Option<String>,
    pub(crate) env_clear: bool,
    /// Whose rights workers get: as it was named, and who that is.
    pub(crate) user: Option<String>,
    pub(crate) account: Option<phalanx_os::Account>,
    /// The configuration, as JSON.
    pub(crate) payload: Option<Vec<u8>>,
    /// Of the runtime that `run` makes in a worker.
    pub(crate) threads: usize,
    pub(crate) receive_handles: bool,
    pub(crate) reap_strangers: bool,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) listen: Vec<Configured>,
    /// Those of `listen` that exist already: they come first.
    pub(crate) inherited: Vec<Arc<OwnedFd>>,
    pub(crate) config: Config,
    pub(crate) orphans: Orphans,
    pub(crate) inspect: Inspect,
    window: Option<u32>,
    pub(crate) errors: Vec<Error>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            program: None,
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            open_files: None,
            name: None,
            env_clear: false,
            user: None,
            account: None,
            payload: None,
            threads: 1,
            receive_handles: false,
            reap_strangers: false,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
            listen: Vec::new(),
            inherited: Vec::new(),
            config: Config::default(),
            orphans: Orphans::default(),
            inspect: Inspect::default(),
            window: None,
            errors: Vec::new(),
        }
    }
}

impl Builder {
    /// The program that every worker runs, looked up as a shell would.
    #[must_use]
    pub fn exec(mut self, program: impl AsRef<OsStr>) -> Builder {
        self.program = Some(program.as_ref().to_owned());
        self
    }

    /// Its arguments, after those given before.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Builder {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A variable for every worker, on top of our own environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Builder {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Leaves out our own environment, but for `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG`, `LC_*`, `TZ`,
    /// `TERM` and `TMPDIR`: what else a worker needs is named with [`env`](Builder::env). Without this, workers
    /// inherit all but what is meant for this process alone (the sockets and the watchdog of a service manager, a
    /// channel to another primary).
    #[must_use]
    pub fn env_clear(mut self) -> Builder {
        self.env_clear = true;
        self
    }

    /// Whose rights workers get: `NAME`, `UID`, or either with `:GROUP`; with its supplementary groups, no
    /// capabilities, and no way to gain any (`no_new_privs`). `USER`, `LOGNAME` and `HOME` are set accordingly.
    /// Listeners are bound with our own rights. Needs root, or `CAP_SETUID` and `CAP_SETGID`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Builder {
        match account(user) {
            Ok(account) => (self.user, self.account) = (Some(user.to_owned()), Some(account)),
            Err(error) => self.errors.push(error),
        }
        self
    }

    /// What the cluster is called. Workers find it in `PHALANX_CLUSTER` and as
    /// [`Worker::cluster`](crate::Worker::cluster).
    #[must_use]
    pub fn name(mut self, name: &str) -> Builder {
        self.name = Some(name.to_owned());
        self
    }

    /// What workers get to read with [`Worker::config`](crate::Worker::config): in memory that nobody can change, so
    /// that each successor finds the same as the first worker did.
    #[must_use]
    pub fn config<T: Serialize + ?Sized>(mut self, config: &T) -> Builder {
        match serde_json::to_vec(config) {
            Ok(bytes) => self.payload = Some(bytes),
            Err(error) => self
                .errors
                .push(Error::Config(format!("the configuration cannot be written as JSON: {error}"))),
        }
        self
    }

    /// Whether sockets that workers send with their messages are received
    /// ([`Event::Message`](crate::Event::Message)). If not, which is the default, they are refused or closed on
    /// arrival: each costs the primary an fd until somebody takes it.
    #[must_use]
    pub fn receive_handles(mut self, receive: bool) -> Builder {
        self.receive_handles = receive;
        self
    }

    /// Whether the cluster waits for every child of this process that ends, not for its workers alone. For a process
    /// that is number 1 or a subreaper: orphans become its children, and would stay zombies. Not for one that starts
    /// children of its own: their ends would be taken from it.
    #[must_use]
    pub fn reap_strangers(mut self, reap: bool) -> Builder {
        self.reap_strangers = reap;
        self
    }

    /// Threads of the runtime that [`run`](Builder::run) makes in each worker: 1, unless said otherwise.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Builder {
        if threads == 0 {
            self.errors
                .push(Error::Config("a runtime without threads runs nothing: ask for at least 1".to_owned()));
        }
        self.threads = threads;
        self
    }

    /// A policy of one's own, made anew for each listener. It chooses in hand-off. In place of
    /// [`policy`](Builder::policy).
    #[must_use]
    pub fn custom_policy<P: PolicyImpl + 'static>(
        mut self,
        make: impl Fn() -> P + Send + 'static,
    ) -> Builder {
        self.config.policy = Policy::Custom;
        self.config.custom_policy = Some(Box::new(move || Box::new(make())));
        self
    }

    /// The soft limit of open files that workers start with (RLIMIT_NOFILE); ours, unless said otherwise.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Builder {
        self.open_files = Some(limit);
        self
    }

    /// The directory that workers start in.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.cwd = Some(dir.into());
        self
    }

    /// How many workers are wanted. What ends is replaced. Without this, nothing starts before
    /// [`Primary::fork`], and nothing is replaced. `"auto"` is one for each processor that this process may
    /// use.
    #[must_use]
    pub fn workers(mut self, count: impl Into<Count>) -> Builder {
        match count.into().0 {
            Ok(0) => {
                self.errors.push(Error::Config("0 workers serve nobody: ask for at least 1".to_owned()));
            }
            Ok(count) => self.config.wanted = Some(count),
            Err(said) => self
                .errors
                .push(Error::Config(format!("`{said}` is no number of workers: give a number, or auto"))),
        }
        self
    }

    /// Who should get the next connection.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Builder {
        self.config.policy = policy;
        self
    }

    /// How it gets there.
    #[must_use]
    pub fn mechanism(mut self, mechanism: Mechanism) -> Builder {
        self.config.mechanism = mechanism;
        self
    }

    /// Weights of slots, from slot 0: their shares of new connections, in proportion. 1 where none is given; a
    /// weight of 0 gets none.
    #[must_use]
    pub fn weights(mut self, weights: impl IntoIterator<Item = u32>) -> Builder {
        self.config.weights = weights.into_iter().collect();
        if let Some(weight) = self.config.weights.iter().find(|weight| **weight > 1000) {
            self.errors.push(Error::Config(format!("a weight of {weight} is out of range: use 0 to 1000")));
        }
        self
    }

    /// A steered worker that has taken nothing for so long, while connections wait for it, lags: what waits goes
    /// to the others, and it is passed over until it takes connections again. 10 ms, unless said otherwise.
    #[must_use]
    pub fn lag_after(mut self, lag_after: Duration) -> Builder {
        if lag_after < Duration::from_millis(1) {
            self.errors
                .push(Error::Config("a lag shorter than 1 ms cannot be told: use 1 ms or more".to_owned()));
        }
        self.config.lag_after = lag_after;
        self
    }

    /// What workers are given to speak on.
    #[must_use]
    pub fn channel(mut self, speaks: Speaks) -> Builder {
        self.config.speaks = speaks;
        self
    }

    /// How messages to and from Node workers are written: Node's `serialization`. With
    /// [`Serialization::Advanced`], what JSON has no form for comes as [`Event::Opaque`](crate::Event::Opaque).
    #[must_use]
    pub fn serialization(mut self, serialization: Serialization) -> Builder {
        self.config.serialization = serialization;
        self
    }

    /// Connections that a worker may hold unacknowledged: 16, and 4 for Node, unless said otherwise. 1 suits
    /// work that keeps a processor busy.
    #[must_use]
    pub fn window(mut self, window: u32) -> Builder {
        if !(1..=64).contains(&window) {
            self.errors.push(Error::Config(format!("a window of {window} is out of range: use 1 to 64")));
        }
        self.window = Some(window);
        self
    }

    /// Whether a worker that ended is replaced.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Builder {
        self.config.lives.restart = restart;
        self
    }

    /// From spawn to `online`: 30 seconds, unless said otherwise; `None`: no limit. Who is not up by then is killed.
    #[must_use]
    pub fn start_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Builder {
        self.config.lives.limits.start_timeout = timeout.into();
        self
    }

    /// From the stop signal to SIGKILL: 5 seconds, unless said otherwise.
    #[must_use]
    pub fn term_timeout(mut self, timeout: Duration) -> Builder {
        self.config.lives.limits.term_timeout = timeout;
        self
    }

    /// The signal that ends a worker: SIGTERM, unless said otherwise.
    #[must_use]
    pub fn stop_signal(mut self, signal: Signal) -> Builder {
        self.config.lives.limits.stop_signal = signal.as_raw();
        self
    }

    /// From the order to leave to the stop signal: 30 seconds, unless said otherwise.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Builder {
        self.config.lives.limits.drain_timeout = timeout;
        self
    }

    /// Where workers' output goes, both streams.
    #[must_use]
    pub fn output(mut self, output: Output) -> Builder {
        self.stdout = output.clone();
        self.stderr = output;
        self
    }

    /// Where their standard output goes.
    #[must_use]
    pub fn stdout(mut self, output: Output) -> Builder {
        self.stdout = output;
        self
    }

    /// Where their standard error goes.
    #[must_use]
    pub fn stderr(mut self, output: Output) -> Builder {
        self.stderr = output;
        self
    }

    /// A listener that stays, whoever comes or goes: a port, an address with a port, or the path of a Unix
    /// socket; `udp:` with a port or an address with a port is a UDP socket. When any is configured, workers may
    /// listen on nothing else (and on port 0).
    #[must_use]
    pub fn listen(mut self, name: &str, address: &str) -> Builder {
        match check_name(name).and_then(|()| parse_address(address)) {
            Ok(spec) => {
                self.config.only_configured = true;
                self.listen.push(Configured { name: name.to_owned(), address: address.to_owned(), spec });
            }
            Err(error) => self.errors.push(error),
        }
        self
    }

    /// A listener that exists already: a listening TCP or Unix socket, or a bound UDP socket. It stays like one of
    /// [`listen`](Builder::listen), and goes before those, so that its number for `LISTEN_FDS` is its place among
    /// the inherited, from 3 on; that is what `listen({ fd: 3 })` of a Node worker means. Workers may also listen
    /// on other addresses. It is made non-blocking, for everybody who shares it.
    #[must_use]
    pub fn inherit_fd(mut self, name: &str, fd: OwnedFd) -> Builder {
        let kind = match conn::kind(&fd) {
            phalanx_os::SocketKind::TcpListener => SocketKind::Tcp,
            phalanx_os::SocketKind::UnixListener => SocketKind::Unix,
            phalanx_os::SocketKind::Udp => SocketKind::Udp,
            other => {
                self.errors.push(Error::Config(format!(
                    "`{name}` (file descriptor {}) cannot be a listener: it is no listening TCP or Unix socket \
                     and no UDP socket, but {other:?}",
                    fd.as_raw_fd()
                )));
                return self;
            }
        };
        if let Err(error) = check_name(name) {
            self.errors.push(error);
            return self;
        }
        let index = self.inherited.len();
        let spec = BindSpec::Inherited { index: index as u32, kind };
        let address = format!("inherited file descriptor {}", fd.as_raw_fd());
        self.listen.insert(index, Configured { name: name.to_owned(), address, spec });
        self.inherited.push(Arc::new(fd));
        self
    }

    /// Takes over the sockets that a service manager passed to this process (`LISTEN_FDS`, as systemd does), each
    /// under its name there (`LISTEN_FDNAMES`; `fd3` and so on for one without). A name that comes again gets
    /// `-2`, `-3` and so on. They are given out once in a process. Without any, does nothing.
    #[must_use]
    pub fn inherit_listen_fds(mut self) -> Builder {
        for (name, fd) in phalanx_os::inherit::listen_fds() {
            let name = if name.is_empty() { format!("fd{}", fd.as_raw_fd()) } else { name };
            let taken = |wanted: &str| self.listen.iter().any(|known| known.name == wanted);
            let name = if taken(&name) {
                (2..).map(|n| format!("{name}-{n}")).find(|name| !taken(name)).unwrap_or(name)
            } else {
                name
            };
            self = self.inherit_fd(&name, fd);
        }
        self
    }

    /// Starts the cluster on a thread of its own. Touches nothing process-wide.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is left behind. [`Error::IsWorker`] in a process that was started as a worker.
    pub fn start(mut self) -> Result<Primary> {
        if phalanx_os::inherit::is_worker() {
            return Err(Error::IsWorker);
        }
        if let Some(error) = self.errors.pop() {
            return Err(error);
        }
        if self.program.is_none() {
            return Err(if crate::run::in_test() { Error::InTest } else { Error::NoProgram });
        }
        if self.config.mechanism == Mechanism::Handoff && self.config.speaks == Speaks::Nothing {
            return Err(Error::Config(
                "hand-off needs a channel, and a plain program has none: use share, or give it one"
                    .to_owned(),
            ));
        }
        if self.config.mechanism == Mechanism::Share
            && matches!(self.config.policy, Policy::Sticky | Policy::LeastConnections)
        {
            return Err(Error::Config(format!(
                "share leaves the choice to the operating system, so it cannot be {}: use steer or handoff",
                self.config.policy
            )));
        }
        let custom = self.config.policy == Policy::Custom;
        if custom && (self.config.mechanism == Mechanism::Share || self.config.speaks == Speaks::Nothing) {
            return Err(Error::Config(
                "a policy of one's own chooses in hand-off: it needs that mechanism, and a channel"
                    .to_owned(),
            ));
        }
        if custom && self.config.custom_policy.is_none() {
            return Err(Error::Config(
                "there is no policy of one's own: give one with `custom_policy`".to_owned(),
            ));
        }
        if self.config.serialization != Serialization::Json && self.config.speaks != Speaks::Node {
            return Err(Error::Config(format!(
                "the serialization {} is Node's: other programs are told nothing of it; use json, or the channel of \
                 Node",
                self.config.serialization
            )));
        }
        self.check_settings()?;
        self.config.window = self.window.unwrap_or(if self.config.speaks == Speaks::Node { 4 } else { 16 });
        driver::start(self)
    }
}

/// The account of this name, if we may become it.
pub(crate) fn account(user: &str) -> Result<phalanx_os::Account> {
    let failed = |source| Error::User { user: user.to_owned(), source };
    let account = phalanx_os::user::lookup(user).map_err(failed)?;
    if phalanx_os::user::may_become(&account.user) {
        return Ok(account);
    }
    Err(failed(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "that needs root, or CAP_SETUID and CAP_SETGID",
    )))
}

/// A name travels in `LISTEN_FDNAMES`, with colons between.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 255 || name.contains(|c: char| c == ':' || c.is_control()) {
        return Err(Error::Config(format!(
            "`{name}` cannot be the name of a listener: use 1 to 255 bytes without colons"
        )));
    }
    Ok(())
}

fn parse_address(text: &str) -> Result<BindSpec> {
    let (udp, endpoint) = match text.strip_prefix("udp:") {
        Some(endpoint) => (true, endpoint),
        None => (false, text),
    };
    let spec = |address: Option<IpAddr>, port| {
        if udp {
            let address = address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
            BindSpec::Udp { address, port, v6only: false, reuse_addr: false }
        } else {
            BindSpec::Tcp { address, port, v6only: false }
        }
    };
    if let Ok(port) = endpoint.parse::<u16>() {
        return Ok(spec(None, port));
    }
    if text.starts_with('/') || text.starts_with("./") || text.starts_with("unix:") {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path =
            std::path::absolute(path).map_err(|source| Error::Listen { address: text.to_owned(), source })?;
        return Ok(BindSpec::Unix {
            path: path.to_string_lossy().into_owned(),
            mode: None,
            readable_all: false,
            writable_all: false,
        });
    }
    let with_host = endpoint.strip_prefix(':').map(|port| format!("0.0.0.0:{port}"));
    let resolved: Option<SocketAddr> =
        with_host.as_deref().unwrap_or(endpoint).to_socket_addrs().ok().and_then(|mut all| all.next());
    match resolved {
        Some(addr) => Ok(spec(Some(addr.ip()), addr.port())),
        None => Err(Error::Config(format!(
            "`{text}` is no address to listen on: give a port, HOST:PORT or [IPv6]:PORT, with udp: before it for \
             UDP, or the path of a socket"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_or_explained() {
        assert!(matches!(parse_address("8080"), Ok(BindSpec::Tcp { address: None, port: 8080, .. })));
        assert!(matches!(parse_address("127.0.0.1:0"), Ok(BindSpec::Tcp { address: Some(_), port: 0, .. })));
        assert!(matches!(parse_address("[::1]:80"), Ok(BindSpec::Tcp { .. })));
        assert!(matches!(parse_address("/run/x.sock"), Ok(BindSpec::Unix { .. })));
        assert!(matches!(parse_address("udp:53"), Ok(BindSpec::Udp { port: 53, .. })));
        assert!(matches!(parse_address("udp:[::1]:53"), Ok(BindSpec::Udp { port: 53, .. })));
        assert!(parse_address("udp:/run/x.sock").is_err());
        assert!(parse_address("nonsense").unwrap_err().to_string().contains("no address"));
        assert!(parse_address("127.0.0.1:70000").is_err());
    }

    #[test]
    fn counts_are_numbers_or_auto() {
        let wanted = |builder: Builder| builder.config.wanted;
        assert_eq!(wanted(Cluster::builder().workers(3)), Some(3));
        assert_eq!(wanted(Cluster::builder().workers(3_usize)), Some(3));
        assert_eq!(wanted(Cluster::builder().workers("3")), Some(3));
        assert!(wanted(Cluster::builder().workers("auto")) >= Some(1));
        assert_eq!(wanted(Cluster::builder().workers("many")), None);
    }

    #[test]
    fn what_is_no_listener_cannot_be_inherited() {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let builder =
            Cluster::builder().listen("a", "8000").inherit_fd("b", listener()).inherit_fd("c", listener());
        let names: Vec<&str> = builder.listen.iter().map(|listener| listener.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"], "the inherited ones come first");
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for builder in [
            Cluster::builder().exec("/bin/true").inherit_fd("stream", stream.into()),
            Cluster::builder()
                .exec("/bin/true")
                .inherit_fd("file", std::fs::File::open("/dev/null").unwrap().into()),
            Cluster::builder().exec("/bin/true").inherit_fd("a:b", listener()),
            Cluster::builder().exec("/bin/true").listen("", "127.0.0.1:0"),
        ] {
            let error = builder.start().unwrap_err().to_string();
            assert!(error.contains("cannot be"), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_before_anything_starts() {
        for builder in [
            Cluster::builder().exec("/bin/true").workers(0),
            Cluster::builder().exec("/bin/true").workers(-1),
            Cluster::builder().exec("/bin/true").workers("many"),
            Cluster::builder().exec("/bin/true").window(0),
            Cluster::builder(),
            Cluster::builder().exec("/bin/true").channel(Speaks::Nothing).mechanism(Mechanism::Handoff),
            Cluster::builder().exec("/bin/true").policy(Policy::Custom),
            Cluster::builder().exec("/bin/true").serialization(Serialization::Advanced),
            Cluster::builder().exec("/bin/true").policy(Policy::Sticky).mechanism(Mechanism::Share),
        ] {
            assert!(builder.start().is_err());
        }
    }
}
