//! phalanx where the kernel or a sandbox refuses steering: runs the `phalanx` beside it with the same arguments.
//!
//! `CONFINED` says how: `rights` (no CAP_BPF), `EPERM`, `ENOSYS`, `EINVAL` (a filter answers so to `bpf(2)`), or
//! `kill` (the filter kills for it).

use phalanx_tests::{lab, raw};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let how = std::env::var("CONFINED").unwrap_or_default();
    let confined = match how.as_str() {
        "rights" => [CapabilitySet::BPF, CapabilitySet::SYS_ADMIN]
            .into_iter()
            .try_for_each(remove_capability_from_bounding_set)
            .or_else(|error| {
                // Who has no right to drop it has none to use it.
                if error == rustix::io::Errno::PERM { Ok(()) } else { Err(error.into()) }
            }),
        "EPERM" => raw::refuse_bpf(Some(libc::EPERM as u16)),
        "ENOSYS" => raw::refuse_bpf(Some(libc::ENOSYS as u16)),
        "EINVAL" => raw::refuse_bpf(Some(libc::EINVAL as u16)),
        "kill" => raw::refuse_bpf(None),
        // Whoever only asks a running instance needs nothing.
        "" => Ok(()),
        _ => {
            eprintln!("confined: CONFINED is {how:?}; see the source");
            return ExitCode::from(2);
        }
    };
    let error = match confined {
        Ok(()) => Command::new(lab::binary("phalanx")).args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    };
    eprintln!("confined: {error}");
    ExitCode::FAILURE
}
