//! What later workers run, said while the cluster lives: Node's `setupPrimary`.

use super::driver::Driver;
use super::program::{Description, Program};
use super::{Primary, lock};
use crate::builder::account;
use crate::error::Result;
use crate::event::Event;
use phalanx_core::Settings;
use std::rc::Rc;

impl Description {
    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.exec = self.name.clone();
        settings.args = self.args.clone();
        settings.env = self.env.clone();
        settings.cwd = self.cwd.clone();
        settings.user = self.user.clone();
        settings
    }

    fn settle(&mut self, settings: Settings) -> Result<()> {
        if settings.user != self.user {
            self.account = settings.user.as_deref().map(account).transpose()?;
        }
        self.inspect = self.inspect.settle(self.speaks, &settings.args);
        self.name = settings.exec;
        self.args = settings.args;
        self.env = settings.env;
        self.cwd = settings.cwd;
        self.user = settings.user;
        Ok(())
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
        self.latest.is.settings()
    }

    fn configure(&mut self, settings: Settings) -> Result<()> {
        let mut description = self.latest.is.clone();
        description.settle(settings)?;
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
