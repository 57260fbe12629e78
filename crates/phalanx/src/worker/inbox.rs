//! Messages of the primary, kept until somebody asks.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::message::{Attached, Content};

/// Messages that are kept for the first who asks for them.
const EARLY_MESSAGES: usize = 1024;

/// A message of the primary.
pub(crate) type Received = (Content, Option<Attached>);

/// Messages on their way to the application.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<InboxState>);

#[derive(Debug, Default)]
struct InboxState {
    early: VecDeque<Received>,
    subscribers: Vec<mpsc::UnboundedSender<Received>>,
    asked: bool,
    ended: bool,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, InboxState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self) -> mpsc::UnboundedReceiver<Received> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.asked = true;
        for message in state.early.drain(..) {
            let _ = sender.send(message);
        }
        if !state.ended {
            state.subscribers.push(sender);
        }
        receiver
    }

    pub(super) fn deliver(&self, message: &Received) {
        let mut state = self.state();
        if state.asked {
            state.subscribers.retain(|subscriber| subscriber.send(message.clone()).is_ok());
        } else if state.early.len() < EARLY_MESSAGES {
            state.early.push_back(message.clone());
        } else {
            tracing::warn!("nobody reads the messages of the primary: one is dropped");
        }
    }

    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.subscribers.clear();
    }
}
