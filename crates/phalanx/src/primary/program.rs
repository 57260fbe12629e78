//! What the workers of one generation run: read once, when the generation begins.

use super::inspect::Inspect;
use crate::builder::{Builder, Output};
use crate::error::{Error, Result};
use crate::settings::Orphans;
use phalanx_core::wire::Serialization;
use phalanx_core::{Lives, Speaks};
use phalanx_os::Account;
use phalanx_os::image::{Identity, Image};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Description {
    /// As a shell would be told.
    pub(super) name: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    /// Next to nothing of our own environment is inherited.
    pub(super) env_clear: bool,
    pub(super) receive_handles: bool,
    /// As it was named, and who that is.
    pub(super) user: Option<String>,
    pub(super) account: Option<Account>,
    pub(super) cluster: Option<String>,
    /// What every worker gets to read.
    pub(super) config: Option<Arc<OwnedFd>>,
    pub(super) speaks: Speaks,
    pub(super) serialization: Serialization,
    /// The limit of open files that we were started with: ours may have been raised since.
    pub(super) open_files: Option<u64>,
    pub(super) orphans: Orphans,
    /// How its workers come, are replaced and go.
    pub(super) lives: Lives,
    pub(super) inspect: Inspect,
}

impl Description {
    /// Takes its part of what the user has described.
    pub(super) fn of(builder: &mut Builder) -> Result<Description> {
        let config = builder.payload.take().map(|bytes| phalanx_os::memory::sealed("phalanx-config", &bytes));
        let config = config
            .transpose()
            .map_err(|source| Error::System { what: "cannot keep the configuration in memory", source })?;
        let args = std::mem::take(&mut builder.args);
        Ok(Description {
            name: builder.program.take().ok_or(Error::NoProgram)?,
            env: std::mem::take(&mut builder.env),
            cwd: builder.cwd.take(),
            stdout: builder.stdout.clone(),
            stderr: builder.stderr.clone(),
            env_clear: builder.env_clear,
            receive_handles: builder.receive_handles,
            user: builder.user.take(),
            account: builder.account.take(),
            cluster: builder.name.take(),
            config: config.map(Arc::new),
            speaks: builder.config.speaks,
            serialization: builder.config.serialization,
            open_files: builder.open_files,
            orphans: builder.orphans,
            lives: builder.config.lives.clone(),
            inspect: builder.inspect.settle(builder.config.speaks, &args),
            args,
        })
    }
}

/// A program as it was when its generation began.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) is: Description,
    pub(super) path: PathBuf,
    /// A native program is held open: what replaces its file is not run before a reload says so.
    image: Option<Image>,
    /// The files that it is made of, as far as the command line names them.
    files: Vec<(PathBuf, Identity)>,
    /// Our own environment.
    pub(super) inherited: Vec<(OsString, OsString)>,
}

impl Program {
    pub(super) fn read(is: Description) -> Result<Program> {
        let cwd = is.cwd.clone().unwrap_or_else(|| ".".into());
        let path = phalanx_os::spawn::resolve(&is.name, std::env::var_os("PATH").as_deref(), &cwd)
            .map_err(|source| Error::Program { program: (&is.name).into(), source })?;
        let path = std::path::absolute(&path).unwrap_or(path);
        // One that may be run and not read is run by its name.
        let image = Image::open(&path).ok().flatten();
        let identity = |path: PathBuf| Identity::of(&path).ok().map(|identity| (path, identity));
        let named = is.args.iter().map(|arg| cwd.join(arg)).filter(|path| path.is_file());
        let files = std::iter::once(path.clone()).chain(named).filter_map(identity).collect();
        Ok(Program { is, path, image, files, inherited: std::env::vars_os().collect() })
    }

    /// Whether a file of it has changed since: the next reload runs something else. Scripts cannot be held, so
    /// of those even the next worker does.
    pub(super) fn has_changed(&self) -> bool {
        self.files.iter().any(|(path, identity)| !is_still(path, *identity))
    }

    /// The file to run, if the name means another one by now.
    pub(super) fn image(&self) -> Option<&Image> {
        self.image.as_ref().filter(|image| !is_still(&self.path, image.identity()))
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.is.name
    }
}

fn is_still(path: &Path, identity: Identity) -> bool {
    Identity::of(path).is_ok_and(|now| now == identity)
}
