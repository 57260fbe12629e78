//! Exit codes: few, and documented in `phalanx --help`.

use std::fmt;
use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// All went well.
    Ok,
    /// A worker or an operation failed.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// An address is in use.
    AddressInUse,
    /// The system does not permit it.
    NotPermitted,
    /// It runs already, or there is no such instance.
    Instance,
    /// Ended by a signal.
    Signal(u8),
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(match code {
            Code::Ok => 0,
            Code::Failed => 1,
            Code::Usage => 2,
            Code::AddressInUse => 3,
            Code::NotPermitted => 4,
            Code::Instance => 5,
            Code::Signal(number) => 128 + number,
        })
    }
}

/// What `--help` says about them.
pub(crate) const HELP: &str = "\
Exit codes: 0 all well; 1 a worker or an operation failed; 2 wrong usage or configuration;
3 an address is in use; 4 not permitted; 5 runs already, or no such instance; 130, 143 ended by a signal";

/// Something went wrong: what, to what, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) sentence: String,
}

impl Failure {
    pub(crate) fn new(code: Code, sentence: impl Into<String>) -> Failure {
        Failure { code, sentence: sentence.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<phalanx::Error> for Failure {
    fn from(error: phalanx::Error) -> Failure {
        use std::io::ErrorKind;
        match &error {
            phalanx::Error::Listen { address, source } => match source.kind() {
                ErrorKind::AddrInUse => Failure::new(
                    Code::AddressInUse,
                    format!("{address} is in use: stop who holds it, or listen elsewhere with -l"),
                ),
                ErrorKind::PermissionDenied => Failure::new(
                    Code::NotPermitted,
                    format!(
                        "may not listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; \
                         use a higher port"
                    ),
                ),
                _ => Failure::new(Code::Failed, error.to_string()),
            },
            phalanx::Error::User { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Failure::new(Code::NotPermitted, error.to_string())
            }
            phalanx::Error::User { .. }
            | phalanx::Error::Program { .. }
            | phalanx::Error::NoProgram
            | phalanx::Error::Config(_)
            | phalanx::Error::IsWorker => Failure::new(Code::Usage, error.to_string()),
            _ => Failure::new(Code::Failed, error.to_string()),
        }
    }
}
