//! When to stop.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{LazyLock, Once};
use std::task::{Context, Poll};

use tokio::sync::watch;

use crate::background::{self, block_on};

static STATE: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));
static SIGNALS: Once = Once::new();

/// Resolves when this process is to end what it has and take nothing new.
///
/// In a worker that is when the primary asks it to leave, or it leaves by itself; and everywhere when SIGTERM
/// or SIGINT comes: from the first call on, neither ends the process any more. Works in any runtime and in
/// none. (Where there are no such signals, Ctrl-C.)
///
/// When the signals cannot be watched, that is logged and they keep their meaning.
pub fn draining() -> Draining {
    if let Err(error) = crate::worker::worker() {
        tracing::error!(%error, "this process cannot be the worker that it was started as");
    }
    SIGNALS.call_once(|| {
        if let Err(error) = watch_signals() {
            tracing::error!(%error, "SIGTERM and SIGINT cannot be watched");
        }
    });
    current()
}

/// Without starting anything.
pub(crate) fn current() -> Draining {
    Draining { state: STATE.subscribe(), waiting: None }
}

/// Whether it has begun.
pub(crate) fn begun() -> bool {
    *STATE.borrow()
}

/// It begins.
pub(crate) fn begin() {
    STATE.send_replace(true);
    #[cfg(all(target_os = "linux", not(phalanx_standalone)))]
    crate::net::give_up_all();
}

fn watch_signals() -> io::Result<()> {
    let handle = background::handle()?;
    let _inside = handle.enter();
    // Here and not in the task: when this returns, no signal is missed.
    let signal = signals()?;
    handle.spawn(async move {
        signal.await;
        begin();
        crate::worker::drain();
    });
    Ok(())
}

/// SIGTERM or SIGINT.
#[cfg(unix)]
fn signals() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(poll_fn(move |cx| {
        if terminate.poll_recv(cx).is_ready() || interrupt.poll_recv(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }))
}

/// Ctrl-C.
#[cfg(windows)]
fn signals() -> io::Result<impl Future<Output = ()> + Send> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(poll_fn(move |cx| interrupt.poll_recv(cx).map(drop)))
}

/// Resolves when draining begins; see [`draining`]. Clones resolve at the same moment, and once resolved,
/// every one is ready at once.
#[must_use = "nothing waits unless it is awaited"]
pub struct Draining {
    state: watch::Receiver<bool>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Draining {
    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.state.borrow()
    }

    /// Waits on this thread, which needs no runtime. In an asynchronous task, `await` instead.
    pub fn wait(&self) {
        block_on(self.clone());
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_draining() {
            self.waiting = None;
            return Poll::Ready(());
        }
        let this = &mut *self;
        let waiting = this.waiting.get_or_insert_with(|| {
            let mut state = this.state.clone();
            Box::pin(async move {
                // The sender is static and never gone.
                let _ = state.wait_for(|begun| *begun).await;
            })
        });
        waiting.as_mut().poll(cx)
    }
}

impl Clone for Draining {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), waiting: None }
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("is_draining", &self.is_draining()).finish_non_exhaustive()
    }
}
