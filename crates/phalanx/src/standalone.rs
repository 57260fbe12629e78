//! This process as a worker, where there are no clusters: it never is one.

use std::fmt;

use phalanx_core::{Generation, Slot, WorkerId};

use crate::drain::Draining;

/// A worker that cannot be taken. There is none here.
#[derive(Clone, Copy, Debug)]
pub enum InitError {}

impl fmt::Display for InitError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for InitError {}

impl From<InitError> for std::io::Error {
    fn from(error: InitError) -> Self {
        match error {}
    }
}

/// This process, as a worker of a cluster. There is none here.
#[derive(Clone, Debug)]
pub enum Worker {}

impl Worker {
    /// The number that the primary gave to this worker.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        match *self {}
    }

    /// The place that this worker fills.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        match *self {}
    }

    /// Which code it runs.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        match *self {}
    }

    /// What the cluster is called.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        match *self {}
    }

    /// Resolves when this worker is asked to leave.
    pub fn draining(&self) -> Draining {
        match *self {}
    }

    /// Tells the primary that this worker is ready to work.
    pub fn ready(&self) {
        match *self {}
    }
}

/// Does nothing.
///
/// # Errors
/// None.
#[must_use = "it says whether this worker can be one"]
pub fn init() -> Result<(), InitError> {
    Ok(())
}

/// `None`: this program runs by itself.
///
/// # Errors
/// None.
#[must_use = "it says whether this is a worker"]
pub fn worker() -> Result<Option<Worker>, InitError> {
    Ok(None)
}

pub(crate) fn drain() {}
