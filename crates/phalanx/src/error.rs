//! What can go wrong on the primary's side.

use std::io;
use std::path::PathBuf;

/// A cluster could not be started or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This process is a worker itself.
    #[error("this process is a worker: only a primary can start a cluster")]
    IsWorker,
    /// [`Builder::run`](crate::Builder::run) was called inside of a runtime.
    #[error(
        "`run` is called inside of a runtime, and would block it: call it in a `main` that is not async, or \
         use `start`"
    )]
    InsideRuntime,
    /// This process was started as a worker and cannot be one.
    #[error(transparent)]
    Init(#[from] crate::worker::InitError),
    /// The service failed: in this worker; or, in the primary, in every worker before any of them listened.
    #[error("{0}")]
    Service(#[source] crate::run::BoxError),
    /// This process is a test, and would start itself, with all tests, again and again.
    #[error(
        "this is a test: a cluster of this very program would run the tests again in each worker; start the \
         program of the service instead, with `testing::Cluster::new(env!(\"CARGO_BIN_EXE_name\"))`"
    )]
    InTest,
    /// There is nothing to run.
    #[error("no program to run: name one with `exec`, or use `run`")]
    NoProgram,
    /// The program cannot be run.
    #[error("cannot run `{}`: {}", .program.display(), program_hint(.source))]
    Program {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A listener cannot be made.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Workers cannot be given the rights of this user.
    #[error("cannot run workers as `{user}`: {source}")]
    User {
        /// As configured.
        user: String,
        /// Why: not found, or not permitted.
        #[source]
        source: io::Error,
    },
    /// Settings that do not go together, or make no sense.
    #[error("{0}")]
    Config(String),
    /// A worker could not be started.
    #[error("{0}")]
    Fork(String),
    /// Workers are forked by hand: there is no number of them to change.
    #[error("workers are forked by hand here: whoever forks them scales")]
    ForkedByHand,
    /// A reload did not happen.
    #[error(transparent)]
    Reload(Box<crate::ReloadError>),
    /// A message was not sent.
    #[error(transparent)]
    Send(#[from] crate::SendError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cluster has ended.
    #[error("the cluster has ended")]
    Ended,
}

impl From<crate::ReloadError> for Error {
    fn from(error: crate::ReloadError) -> Error {
        Error::Reload(Box::new(error))
    }
}

fn program_hint(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => "no such program; check the name, or give its path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "it is not executable; `chmod +x` it, or name its interpreter".to_owned()
        }
        _ => source.to_string(),
    }
}

/// What a `Result` of this crate usually holds.
pub type Result<T, E = Error> = std::result::Result<T, E>;
