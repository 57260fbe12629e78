//! This process as a worker: its channel to the primary.

pub(crate) mod config;
pub(crate) mod driver;
mod inbox;
pub(crate) mod queue;

use std::io;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use phalanx_core::wire::{Payload, Serialization};
use phalanx_core::{Generation, Slot, WorkerId};
use phalanx_os::Channel;
use phalanx_os::inherit::{self, Birth};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::background;
use crate::drain::Draining;
use crate::message::{Attached, Content, Handle, SendError};
pub use config::ConfigError;
use driver::{Command, Commands, Letter};
use inbox::{Inbox, Received};

/// How long [`Worker::kill`] waits for its last word to be written.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long [`Worker::flush`] waits.
const FLUSH_BOUND: Duration = Duration::from_secs(5);

/// Why a process that was started as a worker cannot be one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// What the environment says of the channel is unusable.
    #[error("the channel to the primary cannot be used")]
    Inherit(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The thread of the channel could not be started.
    #[error("the worker's thread cannot be started")]
    Thread(#[source] Arc<io::Error>),
}

impl From<InitError> for io::Error {
    fn from(error: InitError) -> Self {
        Self::other(error)
    }
}

/// This process, as a worker of a cluster. Clones are the same worker.
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: WorkerId,
    slot: Option<Slot>,
    generation: Option<Generation>,
    cluster: Option<String>,
    node: bool,
    own: bool,
    handles: bool,
    commands: Commands,
    inbox: Arc<Inbox>,
}

static WORKER: OnceLock<Result<Option<Worker>, InitError>> = OnceLock::new();
static FOREIGN: Once = Once::new();

/// Takes the channel to the primary if this process was born with one; else does nothing.
///
/// Optional: whatever needs the channel takes it. As the first line of `main` it reports an unusable channel
/// before anything else happens, and removes the variables that name it, so that no child of this process takes
/// itself for the worker. Later, when there are other threads (inside of `#[tokio::main]`, for one), they stay,
/// because nobody may change the environment then. Ours name this process and are harmless to its children;
/// Node's (`NODE_CHANNEL_FD`, `NODE_UNIQUE_ID`) are not: a worker of a Node primary that starts programs calls
/// this first. [`Builder::run`](crate::Builder::run) does.
///
/// # Errors
/// [`InitError`]; a second call gives the same result.
pub fn init() -> Result<(), InitError> {
    worker().map(drop)
}

/// This process as a worker; `None` in a primary and in a program that runs by itself.
///
/// # Errors
/// [`InitError`]; every call gives the same result.
pub fn worker() -> Result<Option<Worker>, InitError> {
    WORKER.get_or_init(take).clone()
}

/// The worker, if it was taken already.
fn known() -> Option<Worker> {
    WORKER.get()?.as_ref().ok()?.clone()
}

/// A signal asks this process to end: the primary is to know.
pub(crate) fn drain() {
    if let Some(worker) = known() {
        worker.tell(Command::Drain);
    }
}

fn take() -> Result<Option<Worker>, InitError> {
    let birth = inherit::channel().map_err(|error| InitError::Inherit(Arc::new(error)))?;
    let _ = config::take();
    let own = inherit::is_own_worker();
    // BEFORE the first thread of ours.
    inherit::forget_env_if_alone();
    match birth {
        None => {
            if inherit::foreign_channel() {
                FOREIGN.call_once(|| {
                    tracing::warn!(
                        "PHALANX_CHANNEL is meant for another process: this one is no worker and binds by \
                         itself; start it without a shell or wrapper in between"
                    );
                });
            }
            Ok(None)
        }
        Some(Birth::Node { worker_id, channel, advanced }) => {
            let serialization = if advanced { Serialization::Advanced } else { Serialization::Json };
            start(channel, serialization, |commands, inbox| Inner {
                id: WorkerId(worker_id),
                slot: None,
                generation: None,
                cluster: None,
                node: true,
                handles: true,
                own,
                commands,
                inbox,
            })
        }
        Some(Birth::Phalanx { channel, worker_id, slot, generation, cluster, handles }) => {
            start(channel, Serialization::Json, |commands, inbox| Inner {
                id: WorkerId(worker_id.unwrap_or_default()),
                slot: slot.map(Slot),
                generation: generation.map(Generation),
                cluster,
                node: false,
                handles,
                own,
                commands,
                inbox,
            })
        }
    }
}

fn start(
    channel: Channel,
    serialization: Serialization,
    inner: impl FnOnce(Commands, Arc<Inbox>) -> Inner,
) -> Result<Option<Worker>, InitError> {
    let thread = |error| InitError::Thread(Arc::new(error));
    let inbox = Arc::new(Inbox::default());
    let _inside = background::handle().map_err(thread)?.enter();
    let commands = driver::start(channel, serialization, Arc::clone(&inbox)).map_err(thread)?;
    Ok(Some(Worker(Arc::new(inner(commands, inbox)))))
}

impl Worker {
    /// The number that the primary gave to this worker; no other worker of it ever has the same.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.0.id
    }

    /// The place that this worker fills; its successor has the same. `None` under a Node primary.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.0.slot
    }

    /// Which code it runs: 1 for that of the cluster's start. `None` under a Node primary.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.0.generation
    }

    /// What the cluster is called, if it has a name.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.0.cluster.as_deref()
    }

    /// What the primary passed with [`Builder::config`](crate::Builder::config). Can be asked for again.
    ///
    /// A program that uses [`Builder::run`](crate::Builder::run) and is a worker of another primary, such as
    /// `phalanx run`, gets its own.
    ///
    /// # Errors
    /// [`ConfigError`]: there is none, or it is not a `T`.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        config::get()
    }

    /// Resolves when this worker is asked to leave; see [`draining`](crate::drain::draining).
    pub fn draining(&self) -> Draining {
        crate::drain::draining()
    }

    /// Tells the primary that this worker is ready to work, if it waits for that. Node ignores it.
    pub fn ready(&self) {
        self.tell(Command::Ready);
    }

    /// Sends a message to the primary, when there is room for it. It is queued when this returns, not received.
    /// Dropped before, it may be sent or not.
    ///
    /// # Errors
    /// [`SendError`]: the channel is closed, or the message has no form in JSON. Nothing was queued.
    pub async fn send<T: Serialize + ?Sized + Sync>(&self, message: &T) -> Result<(), SendError> {
        self.post(Payload::encode(message)?, None).await
    }

    /// As [`send`](Self::send), with a socket, which is closed here once the primary has it.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::Refused`]: a primary of phalanx must want handles
    /// ([`Builder::receive_handles`](crate::Builder::receive_handles)).
    pub async fn send_with<T: Serialize + ?Sized + Sync>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<(), SendError> {
        if !self.0.handles {
            return Err(SendError::Refused);
        }
        self.post(Payload::encode(message)?, Some(handle.into())).await
    }

    async fn post(&self, message: Payload, handle: Option<Handle>) -> Result<(), SendError> {
        let (sent, answer) = oneshot::channel();
        let letter = Letter { message, handle: handle.map(Handle::packed), sent };
        self.tell(Command::Send(letter));
        answer.await.map_or(Err(SendError::Closed), |sent| sent.map_err(SendError::from))
    }

    /// Sends a message now or not at all.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::Full`]: too much waits to be sent.
    pub fn try_send<T: Serialize + ?Sized>(&self, message: &T) -> Result<(), SendError> {
        let (sent, answer) = std::sync::mpsc::sync_channel(1);
        self.tell(Command::TrySend(Payload::encode(message)?, sent));
        answer.recv().map_or(Err(SendError::Closed), |sent| sent.map_err(SendError::from))
    }

    /// Waits until everything that was sent is written to the channel: a process that ends then loses none of it.
    /// At most 5 seconds, in case the primary does not read.
    pub async fn flush(&self) {
        let (flushed, answer) = oneshot::channel();
        self.tell(Command::Flush(flushed));
        let handle = background::handle();
        let bounded = handle.map(|handle| {
            let _inside = handle.enter();
            tokio::time::timeout(FLUSH_BOUND, answer)
        });
        if let Ok(bounded) = bounded {
            let _ = bounded.await;
        }
    }

    /// The messages of the primary from now on. Who asks first also gets those that came before.
    #[must_use]
    pub fn messages(&self) -> Messages {
        Messages(self.0.inbox.subscribe())
    }

    /// Leaves the cluster: gives up all listeners, tells the primary that this is meant, and closes the
    /// channel once the primary knows, or after 5 seconds. The process goes on.
    pub async fn disconnect(&self) {
        let (left, answer) = oneshot::channel();
        self.tell(Command::Leave(left));
        let _ = answer.await;
    }

    /// Tells the primary that this is meant, and ends the process with status 0. Connections are not waited
    /// for.
    pub fn kill(&self) -> ! {
        let (killed, answer) = std::sync::mpsc::channel();
        self.tell(Command::Kill(killed));
        let _ = answer.recv_timeout(LAST_WORD);
        std::process::exit(0)
    }

    /// Whether the primary runs this very program, by [`Builder::run`](crate::Builder::run).
    pub(crate) fn is_own(&self) -> bool {
        self.0.own
    }

    /// Whether the primary is Node's, which ignores what it does not know.
    pub(crate) fn under_node(&self) -> bool {
        self.0.node
    }

    pub(crate) fn tell(&self, command: Command) {
        let _ = self.0.commands.send(command);
    }
}

/// The messages of the primary, in order.
///
/// All but [`recv_any`](Messages::recv_any) leave out, with a warning, what has no form as a [`Value`]: a primary of
/// Node with `serialization: 'advanced'` can send that.
#[derive(Debug)]
pub struct Messages(mpsc::UnboundedReceiver<Received>);

impl Messages {
    /// The next message; `None` when the channel is closed. Nothing is lost if the future is dropped. A socket that
    /// came with it is closed, unless another subscriber takes it.
    pub async fn recv(&mut self) -> Option<Value> {
        self.recv_with().await.map(|(message, _)| message)
    }

    /// As [`recv`](Self::recv), with the socket that came with it.
    pub async fn recv_with(&mut self) -> Option<(Value, Option<Attached>)> {
        loop {
            let (content, handle) = self.recv_any().await?;
            if let Some(value) = value(content) {
                return Some((value, handle));
            }
        }
    }

    /// As [`recv_with`](Self::recv_with), whatever the message says.
    pub async fn recv_any(&mut self) -> Option<(Content, Option<Attached>)> {
        self.0.recv().await
    }

    /// The next message, for a thread without a runtime; `None` when the channel is closed.
    ///
    /// # Panics
    /// When called in an asynchronous task.
    pub fn blocking_recv(&mut self) -> Option<Value> {
        loop {
            let (content, _) = self.0.blocking_recv()?;
            if let Some(value) = value(content) {
                return Some(value);
            }
        }
    }
}

fn value(content: Content) -> Option<Value> {
    match content {
        Content::Json(value) => Some(value),
        Content::Opaque(bytes) => {
            tracing::warn!(
                bytes = bytes.len(),
                "a message of the primary has no form in JSON: `Messages::recv_any` would have it"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_values_gets_values() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut messages = Messages(receiver);
        let opaque = Content::Opaque([0xff].into());
        for content in
            [opaque.clone(), Content::Json(1.into()), opaque.clone(), Content::Json(2.into()), opaque.clone()]
        {
            sender.send((content, None)).unwrap();
        }
        assert_eq!(messages.blocking_recv(), Some(1.into()));
        assert_eq!(background::block_on(messages.recv()), Some(2.into()));
        assert_eq!(background::block_on(messages.recv_any()).unwrap().0, opaque);
        drop(sender);
        assert_eq!(messages.blocking_recv(), None);
    }
}
