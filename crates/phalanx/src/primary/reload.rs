//! A reload under way, and what became of it.

use super::driver::Driver;
use super::program::{Description, Program};
use crate::builder::Builder;
use crate::error::Error;
use crate::settings::check_lives;
use phalanx_core::{Aborted, Generation, Refused};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// A reload did not happen: the workers of the generation before serve, and have served all the time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// It could not begin.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// The new description, or its program, is no good.
    #[error("{0}")]
    Description(#[from] Error),
    /// It was given up.
    #[error("{why}")]
    Aborted {
        /// The generation that will not be.
        generation: Generation,
        /// Why.
        why: Aborted,
        /// What the worker that failed printed last, oldest first, if output is captured.
        last_lines: Vec<String>,
    },
    /// The cluster has ended.
    #[error("the cluster has ended")]
    Ended,
}

pub(super) type Outcome = Result<Generation, ReloadError>;

/// A reload under way: a future, and [`wait`](Reload::wait) for code without a runtime. The answer is the new
/// generation, once all workers are of it, ready, and the others gone. Dropping it does not stop the reload.
#[derive(Debug)]
#[must_use = "a reload can fail"]
pub struct Reload(pub(super) oneshot::Receiver<Outcome>);

impl Reload {
    /// Waits without a runtime. Panics inside of one, as `tokio`'s blocking calls do.
    ///
    /// # Errors
    ///
    /// [`ReloadError`].
    pub fn wait(self) -> Result<Generation, ReloadError> {
        self.0.blocking_recv().unwrap_or(Err(ReloadError::Ended))
    }
}

impl Future for Reload {
    type Output = Result<Generation, ReloadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| outcome.unwrap_or(Err(ReloadError::Ended)))
    }
}

impl Driver {
    /// Begins a reload: to what is described now, or to what was described before, read anew.
    pub(super) fn reload(&mut self, described: Option<Builder>, done: oneshot::Sender<Outcome>) {
        match self.begin_reload(described) {
            Ok(generation) => {
                self.reloads.insert(generation, done);
                self.drive();
            }
            Err(error) => {
                let _ = done.send(Err(error));
            }
        }
    }

    fn begin_reload(&mut self, described: Option<Builder>) -> Outcome {
        let description = match described {
            Some(mut builder) => match builder.take_error() {
                Some(error) => return Err(error.into()),
                // What the cluster itself relies on stays.
                None => Description {
                    stdout: self.latest.is.stdout.clone(),
                    stderr: self.latest.is.stderr.clone(),
                    speaks: self.latest.is.speaks,
                    serialization: self.latest.is.serialization,
                    orphans: self.latest.is.orphans,
                    ..Description::of(&mut builder)?
                },
            },
            None => self.latest.is.clone(),
        };
        // BEFORE anything is touched: settings that do not go together, or a program that is not there, replace
        // nothing.
        check_lives(&description.lives, description.speaks)?;
        let program = Rc::new(Program::read(description)?);
        self.want_notices(&program.is.lives.ready)?;
        let now = self.now();
        let generation = self.core.reload(now, program.is.lives.clone())?;
        self.latest = Rc::clone(&program);
        self.programs.insert(generation, program);
        Ok(generation)
    }

    pub(super) fn reloaded(&mut self, generation: Generation) {
        if let Some(done) = self.reloads.remove(&generation) {
            let _ = done.send(Ok(generation));
        }
    }

    pub(super) fn reload_aborted(&mut self, generation: Generation, why: Aborted, last_lines: Vec<String>) {
        if let Some(done) = self.reloads.remove(&generation) {
            let _ = done.send(Err(ReloadError::Aborted { generation, why, last_lines }));
        }
    }
}
