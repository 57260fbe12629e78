//! What later workers run, said while the cluster lives: Node's `setupPrimary`.

use super::driver::Driver;
use super::program::{Description, Program};
use super::{Primary, lock};
use crate::builder::account;
use crate::error::Result;
use crate::event::Event;
use serde::Serialize;
use serde::ser::SerializeStruct;
use std::ffi::OsString;
use std::path::PathBuf;
use std::rc::Rc;

/// What workers run. A copy: it never changes by itself. As JSON, without the variables, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The program, looked up as a shell would.
    pub exec: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables on top of our own environment. Those of a single fork come on top of these.
    pub env: Vec<(OsString, OsString)>,
    /// The directory that workers start in; `None`: ours.
    pub cwd: Option<PathBuf>,
    /// Whose rights they get, as [`Builder::user`](crate::Builder::user) takes it; `None`: ours.
    pub user: Option<String>,
}

impl Settings {
    fn of(description: &Description) -> Settings {
        Settings {
            exec: description.name.clone(),
            args: description.args.clone(),
            env: description.env.clone(),
            cwd: description.cwd.clone(),
            user: description.user.clone(),
        }
    }

    fn apply(self, description: &mut Description) -> Result<()> {
        if self.user != description.user {
            description.account = self.user.as_deref().map(account).transpose()?;
        }
        description.inspect = description.inspect.settle(description.speaks, &self.args);
        description.name = self.exec;
        description.args = self.args;
        description.env = self.env;
        description.cwd = self.cwd;
        description.user = self.user;
        Ok(())
    }
}

impl Serialize for Settings {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let mut fields = serializer.serialize_struct("Settings", 4)?;
        fields.serialize_field("exec", &self.exec.to_string_lossy())?;
        fields.serialize_field("args", &args)?;
        fields.serialize_field("cwd", &self.cwd.as_ref().map(|cwd| cwd.to_string_lossy()))?;
        fields.serialize_field("user", &self.user)?;
        fields.end()
    }
}

impl Primary {
    /// What workers run, as it stands now.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`](crate::Error::Ended).
    pub fn settings(&self) -> Result<Settings> {
        self.ask(|driver| driver.settings())
    }

    /// Changes what later workers run; what is not changed stays. Where a number of workers is wanted, that is from
    /// the next [`reload`](Primary::reload) on: whoever replaces the dead runs what the dead ran. The policy and
    /// the listeners are settled by [`Builder::start`](crate::Builder::start). The answer is what holds now;
    /// [`Event::Setup`] tells it too.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or not as this user. Nothing has changed then.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) -> Result<Settings> {
        // Two threads must not overwrite each other's changes.
        let _alone = lock(&self.commands.configuring);
        let mut settings = self.settings()?;
        change(&mut settings);
        let changed = settings.clone();
        self.ask(move |driver| driver.configure(changed))??;
        Ok(settings)
    }
}

impl Driver {
    pub(super) fn settings(&self) -> Settings {
        Settings::of(&self.latest.is)
    }

    fn configure(&mut self, settings: Settings) -> Result<()> {
        let mut description = self.latest.is.clone();
        settings.apply(&mut description)?;
        let program = Rc::new(Program::read(description)?);
        self.latest = Rc::clone(&program);
        if self.core.wanted().is_none() {
            for known in self.programs.values_mut() {
                *known = Rc::clone(&program);
            }
        }
        self.tell_setup();
        Ok(())
    }

    /// As Node does at each fork, and whenever it is configured.
    pub(super) fn tell_setup(&mut self) {
        self.hub.tell(&Event::Setup { settings: Box::new(self.settings()) });
    }
}
