//! The primary's side: handles to a cluster that runs on a thread of its own.

mod channels;
mod child;
pub(crate) mod driver;
mod facts;
mod inspect;
mod letters;
mod lives;
mod outlet;
mod output;
mod program;
mod reload;
mod setup;
mod sockets;
mod steer;
mod tasks;

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::event::{Events, Hub};
use crate::message::{Handle, SendError};
use driver::{Command, Driver};
pub use inspect::Inspect;
use letters::Letter;
use phalanx_core::wire::Payload;
use phalanx_core::{BoundAddress, Hurry, Slot, State, Status, WorkerId, WorkerView};
use phalanx_os::Signal;
pub use reload::{Reload, ReloadError};
use serde::Serialize;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// A running cluster. Works from any thread and any runtime, or none. When the last handle is dropped, the
/// cluster stops.
#[derive(Clone, Debug)]
pub struct Primary {
    commands: Arc<Commands>,
}

#[derive(Debug)]
struct Commands {
    sender: mpsc::UnboundedSender<Command>,
    /// Held while somebody changes the settings.
    configuring: Mutex<()>,
    /// For the first who asks.
    events: Mutex<Option<Events>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Commands {
    fn drop(&mut self) {
        let _ = self.sender.send(Box::new(|driver| driver.stop(Hurry::Graceful)));
    }
}

impl Primary {
    pub(crate) fn new(sender: mpsc::UnboundedSender<Command>, events: Events) -> Primary {
        let events = Mutex::new(Some(events));
        Primary { commands: Arc::new(Commands { sender, configuring: Mutex::new(()), events }) }
    }

    /// Asks the cluster's thread and waits for its answer, which never waits for anything else.
    fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&mut Driver) -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let command: Command = Box::new(move |driver| {
            let _ = answer.send(ask(driver));
        });
        self.commands.sender.send(command).map_err(|_| Error::Ended)?;
        answered.recv().map_err(|_| Error::Ended)
    }

    /// Starts one worker, with these variables on top of everybody's. Returns once its program runs.
    ///
    /// # Errors
    ///
    /// [`Error::Fork`]: the program could not be run, and no worker id was used up. [`Error::Ended`].
    pub fn fork<K: Into<String>, V: Into<String>>(
        &self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerRef> {
        let env = env.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let id = self.ask(move |driver| driver.fork(env))?.map_err(Error::Fork)?;
        Ok(WorkerRef { primary: self.clone(), id })
    }

    /// Everything that happens from now on. The first caller also gets what happened before, since the start, even
    /// if the cluster has ended: the first `Fork` and `Bound` are heard (of more than 1024 events, the latest).
    ///
    /// When the events end, everything that workers have printed was passed on.
    #[must_use]
    pub fn events(&self) -> Events {
        let first = lock(&self.commands.events).take();
        first
            .or_else(|| self.ask(|driver| driver.hub.subscribe()).ok())
            // One that has ended already.
            .unwrap_or_else(|| Hub::new().1)
    }

    /// Workers, listeners and the ledger at this moment: the very JSON of `phalanx status --json`, without the
    /// instance's own name and pid.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`].
    pub fn status(&self) -> Result<Status> {
        self.ask(|driver| driver.status())
    }

    /// Every worker that is not gone.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerRef> {
        let ids = self.ask(|driver| driver.core.workers().map(|view| view.id).collect::<Vec<_>>());
        ids.unwrap_or_default().into_iter().map(|id| WorkerRef { primary: self.clone(), id }).collect()
    }

    /// One worker, if it is not gone.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerRef> {
        self.ask(move |driver| driver.core.worker(id).is_some())
            .ok()
            .filter(|exists| *exists)
            .map(|_| WorkerRef { primary: self.clone(), id })
    }

    /// The address of a configured listener.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<BoundAddress> {
        let name = name.to_owned();
        self.ask(move |driver| driver.core.address_of(&name).cloned()).ok().flatten()
    }

    /// Asks every worker to leave, and leaves the processes alone.
    #[must_use]
    pub fn disconnect(&self) -> Progress {
        self.ending(|driver| driver.disconnect())
    }

    /// Ends everything: ask, drain, signal, kill, each with its deadline. May be called again with more hurry.
    #[must_use]
    pub fn stop(&self, hurry: Hurry) -> Progress {
        self.ending(move |driver| driver.stop(hurry))
    }

    fn ending(&self, begin: impl FnOnce(&mut Driver) + Send + 'static) -> Progress {
        let (done, progress) = oneshot::channel();
        let command: Command = Box::new(move |driver| {
            driver.when_finished(done);
            begin(driver);
        });
        let _ = self.commands.sender.send(command);
        Progress(progress)
    }

    /// Replaces every worker by one of a new generation, one after the other, with the program and our own
    /// environment read anew. The old ones serve until the new ones are ready ([`Ready`](crate::Ready)). The
    /// first new one that cannot start, ends or is not ready in time ends the reload, and all is as before. A
    /// reload that is under way is superseded.
    pub fn reload(&self) -> Reload {
        self.reloading(None)
    }

    /// The same, with the program, arguments, variables, directory, user and configuration described anew, and so
    /// how workers come, are replaced and go: what makes them ready, limits, times, signals, what is done about
    /// hangs. What is not described is as by default. New workers live by that from their start, and everybody once
    /// the reload is done; if it is given up, all is as before. What else there is stays: listeners, policy, channel,
    /// output, orphans, and the number of workers.
    pub fn reload_with(&self, described: Builder) -> Reload {
        self.reloading(Some(described))
    }

    fn reloading(&self, described: Option<Builder>) -> Reload {
        let (done, outcome) = oneshot::channel();
        let command: Command = Box::new(move |driver| driver.reload(described, done));
        let _ = self.commands.sender.send(command);
        Reload(outcome)
    }

    /// From now on so many workers are wanted, at least one. They come and go as in a reload. The answer is the
    /// number.
    ///
    /// # Errors
    ///
    /// [`Error::ForkedByHand`] without [`Builder::workers`]; [`Error::Ended`].
    pub fn scale(&self, workers: u32) -> Result<u32> {
        self.ask(move |driver| driver.scale(|_| workers))?.ok_or(Error::ForkedByHand)
    }

    /// The same, with so many more than now, or fewer.
    ///
    /// # Errors
    ///
    /// As [`scale`](Primary::scale).
    pub fn scale_by(&self, change: i32) -> Result<u32> {
        self.ask(move |driver| driver.scale(|wanted| wanted.saturating_add_signed(change)))?
            .ok_or(Error::ForkedByHand)
    }

    /// Replaces the worker of a slot by one that runs the same: the successor is ready first. One that waits to
    /// be started is started now. Whether there was anything to do.
    #[must_use]
    pub fn restart(&self, slot: Slot) -> bool {
        self.ask(move |driver| driver.restart(slot)).unwrap_or(false)
    }

    /// Opens the debuggers of Node workers ([`Inspect::OnSignal`]) by SIGUSR1; of those that are not online yet as soon
    /// as they are. Whether they have ports for that.
    #[must_use]
    pub fn open_inspectors(&self) -> bool {
        self.ask(|driver| driver.open_inspectors()).unwrap_or(false)
    }

    /// The last lines that the worker of a slot printed, oldest first, if output is captured.
    #[must_use]
    pub fn last_lines(&self, slot: Slot) -> Vec<String> {
        self.ask(move |driver| driver.last_lines(slot)).unwrap_or_default()
    }
}

/// Something under way. Dropping it does not stop it.
#[derive(Debug)]
pub struct Progress(oneshot::Receiver<()>);

impl Progress {
    /// Waits without a runtime. Panics inside of one, as `tokio`'s blocking calls do.
    pub fn wait(self) {
        let _ = self.0.blocking_recv();
    }
}

impl Future for Progress {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // The sender is dropped when the cluster ends: then it is over, too.
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

/// One worker, seen from the primary.
#[derive(Clone, Debug)]
pub struct WorkerRef {
    primary: Primary,
    id: WorkerId,
}

impl WorkerRef {
    /// Its incarnation.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// What is known of it now; `None` when it is gone.
    #[must_use]
    pub fn view(&self) -> Option<WorkerView> {
        let id = self.id;
        self.primary.ask(move |driver| driver.core.worker(id)).ok().flatten()
    }

    /// Its process, while it is not gone.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.view().map(|view| view.pid)
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.view().map_or(State::Gone, |view| view.state)
    }

    /// Sends it a message, when there is room for it: a worker that does not read keeps its senders waiting. It is
    /// queued when this returns, not received. Dropped before, it may be sent or not.
    ///
    /// # Errors
    ///
    /// [`SendError`]: its channel is closed, or the message has no form in JSON. Nothing was queued.
    pub async fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<(), SendError> {
        let letter = Letter { message: Payload::encode(message)?, handle: None };
        self.post(letter).await
    }

    /// As [`send`](Self::send), with a socket. Ours is closed once the worker has it, or cannot have it any more.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_with<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<(), SendError> {
        let letter = Letter { message: Payload::encode(message)?, handle: Some(handle.into().packed()) };
        self.post(letter).await
    }

    async fn post(&self, letter: Letter) -> Result<(), SendError> {
        let (sent, answer) = oneshot::channel();
        let id = self.id;
        let command: Command = Box::new(move |driver| driver.letters.push(id, letter, sent));
        let _ = self.primary.commands.sender.send(command);
        answer.await.map_or(Err(SendError::Closed), |sent| sent.map_err(SendError::from))
    }

    /// Sends it a message now or not at all.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendError::Full`]: too much waits to be read, or to be sent.
    pub fn try_send<T: Serialize + ?Sized>(&self, message: &T) -> Result<(), SendError> {
        self.try_post(Letter { message: Payload::encode(message)?, handle: None })
    }

    /// As [`try_send`](Self::try_send), with a socket, which is closed if that fails.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
    pub fn try_send_with<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<(), SendError> {
        self.try_post(Letter { message: Payload::encode(message)?, handle: Some(handle.into().packed()) })
    }

    fn try_post(&self, letter: Letter) -> Result<(), SendError> {
        let id = self.id;
        let sent = self.primary.ask(move |driver| driver.send(id, letter));
        sent.map_or(Err(SendError::Closed), |sent| sent.map_err(SendError::from))
    }

    /// Opens a connection to this very worker, on a listener that it holds: by hand-over, whatever the
    /// mechanism of the listener.
    ///
    /// # Errors
    ///
    /// It does not hold a listener with this key or name.
    pub fn connect(&self, listener: &str) -> std::io::Result<UnixStream> {
        let (id, key) = (self.id, listener.to_owned());
        self.primary
            .ask(move |driver| driver.connect(id, &key))
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    /// Asks it to leave, and leaves its process alone. Done when its channel is closed.
    #[must_use]
    pub fn disconnect(&self) -> Progress {
        self.leave(None, |state| state >= State::Disconnected)
    }

    /// Asks it to leave; this signal follows when it has drained, or did not in time, and then SIGKILL. Done
    /// when its process has ended.
    #[must_use]
    pub fn kill(&self, signal: Signal) -> Progress {
        self.leave(Some(signal.as_raw()), |state| !state.is_alive())
    }

    /// Ends it: drained first, by the stop signal at once, or by SIGKILL. Where a number of workers is wanted, it is
    /// replaced. Done when its process has ended.
    #[must_use]
    pub fn end(&self, hurry: Hurry) -> Progress {
        let (done, progress) = oneshot::channel();
        let id = self.id;
        let command: Command = Box::new(move |driver| {
            driver.when(id, |state| !state.is_alive(), done);
            driver.end(id, hurry);
        });
        let _ = self.primary.commands.sender.send(command);
        Progress(progress)
    }

    fn leave(&self, then: Option<i32>, until: fn(State) -> bool) -> Progress {
        let (done, progress) = oneshot::channel();
        let id = self.id;
        let command: Command = Box::new(move |driver| {
            driver.when(id, until, done);
            driver.leave(id, then);
        });
        let _ = self.primary.commands.sender.send(command);
        Progress(progress)
    }

    /// Sends a raw signal, now. Whether it was delivered.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> bool {
        let id = self.id;
        self.primary.ask(move |driver| driver.signal(id, signal)).unwrap_or(false)
    }
}
