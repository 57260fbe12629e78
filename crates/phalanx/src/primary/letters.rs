//! Messages to workers, and those that wait for room.

use phalanx_core::wire::{Envelope, Payload};
use phalanx_core::{Primary, SendError, WorkerId};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;

/// Hears what became of a message.
pub(super) type Sent = oneshot::Sender<Result<(), SendError>>;

/// A message, and the handle that goes along.
pub(super) struct Letter {
    pub(super) message: Payload,
    pub(super) handle: Option<(Envelope, OwnedFd)>,
}

/// Those that wait, by worker and in order. Their senders wait, too: that bounds them.
#[derive(Default)]
pub(super) struct Letters(BTreeMap<WorkerId, VecDeque<(Letter, Sent)>>);

impl Letters {
    /// Whether anything waits for room at this worker.
    pub(super) fn wait_for(&self, worker: WorkerId) -> bool {
        self.0.contains_key(&worker)
    }

    pub(super) fn push(&mut self, worker: WorkerId, letter: Letter, sent: Sent) {
        self.0.entry(worker).or_default().push_back((letter, sent));
    }

    /// Sends what there is room for. Whether anything was sent.
    pub(super) fn send(&mut self, core: &mut Primary<OwnedFd>) -> bool {
        let mut any = false;
        self.0.retain(|worker, letters| {
            while core.can_send(*worker) != Err(SendError::Full) {
                let Some((letter, sent)) = letters.pop_front() else { break };
                // Nobody waits any more for one that was given up.
                if !sent.is_closed() {
                    any = true;
                    let _ = sent.send(core.send(*worker, &letter.message, letter.handle));
                }
            }
            !letters.is_empty()
        });
        any
    }
}
