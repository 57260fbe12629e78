//! Where a start failed, and why.

use std::fmt;
use std::io;
use std::path::PathBuf;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)+) => {
        /// The step of a start that failed, in the order in which they come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Step {
            $($(#[$doc])* $name,)+
        }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name,)+];

            const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)+ }
            }
        }
    };
}

steps! {
    /// Something that cannot be passed on: a NUL, a variable without a name or with `=` in it, an fd number
    /// that is negative or given twice, an id of `u32::MAX`. The errno is `EINVAL`.
    Prepare = "preparing the arguments",
    /// The pipe that tells how it went.
    Pipe = "making a pipe",
    /// The fork; `EAGAIN` is the limit of processes.
    Fork = "fork",
    /// The pidfd; there is no fd left.
    Pidfd = "opening a pidfd",
    /// Reading how it went.
    Status = "reading the status",
    /// The new process group.
    ProcessGroup = "making a process group",
    /// The fd map; `EMFILE` and `EINVAL` mean that the limit of open files is below the numbers asked for.
    Descriptors = "placing the file descriptors",
    /// The limit of open files.
    Limit = "setting the limit of open files",
    /// The supplementary groups.
    Groups = "setting the groups",
    /// The group.
    Gid = "setting the group",
    /// The user.
    Uid = "setting the user",
    /// Giving up the capabilities.
    Capabilities = "giving up the capabilities",
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges = "setting no_new_privs",
    /// The rights read back are not those asked for.
    Verify = "verifying the user",
    /// Entering the directory.
    Cwd = "entering the working directory",
    /// The signal for the end of the parent.
    DeathSignal = "setting the death signal",
    /// The parent was gone already. Nobody is there to be told.
    ParentGone = "looking for the parent",
    /// The exec.
    Exec = "exec",
}

impl Step {
    /// As a byte for the pipe.
    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Why a program was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnError {
    /// Where.
    pub step: Step,
    /// Why.
    pub errno: i32,
    /// What.
    pub program: PathBuf,
}

impl SpawnError {
    /// The errno as an error.
    #[must_use]
    pub fn io(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // std appends the number, which says nothing to a reader, and begins as a sentence would.
        let text = self.io().to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut chars = text.chars();
        let first = chars.next().map(|c| c.to_ascii_lowercase()).into_iter();
        let reason: String = first.chain(chars).collect();
        write!(f, "cannot start {}: {reason} ({})", self.program.display(), self.step)
    }
}

impl std::error::Error for SpawnError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_a_sentence() {
        let e = SpawnError { step: Step::Exec, errno: libc::EACCES, program: "/x/y".into() };
        assert_eq!(e.to_string(), "cannot start /x/y: permission denied (exec)");
    }

    #[test]
    fn every_step_survives_the_pipe() {
        for step in Step::ALL {
            assert_eq!(Step::from_code(step.code()), Some(*step));
        }
        assert_eq!(Step::from_code(u8::MAX), None);
    }
}
