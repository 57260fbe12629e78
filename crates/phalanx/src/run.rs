//! One program that is the primary and its own workers.

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::primary::Primary;
use crate::worker::Worker;
use phalanx_core::{Hurry, Speaks};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Any error of a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Builder {
    /// Clusters this very program: in the primary, starts it again as often as workers are wanted (as many as
    /// there are processors, unless said otherwise) with the same arguments, and returns when all have ended;
    /// in a worker, runs `service` in a runtime (of one thread, unless [`threads`](Builder::threads) says otherwise) and returns when that is done.
    ///
    /// Sockets of a service manager (`LISTEN_FDS`) become listeners, as with
    /// [`inherit_listen_fds`](Builder::inherit_listen_fds).
    ///
    /// Whatever `main` does before this, every worker does again. SIGTERM or SIGINT stops the cluster: the
    /// first gracefully, the second without waiting for connections, the third at once. Under `phalanx run`,
    /// or as a worker of any other primary, the program is simply a worker, and this description is ignored.
    ///
    /// ```no_run
    /// fn main() -> phalanx::Result<()> {
    ///     phalanx::Cluster::builder().workers("auto").run(|worker| async move {
    ///         let listener = phalanx::net::TcpListener::bind("0.0.0.0:3000").await?;
    ///         # drop(listener);
    ///         worker.draining().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// In the primary, as [`start`](Builder::start); in a worker, [`Error::Service`] with what `service`
    /// returned. [`Error::InsideRuntime`] inside of a runtime.
    pub fn run<F, Fut>(self, service: F) -> Result<()>
    where
        F: FnOnce(Worker) -> Fut,
        Fut: Future<Output = Result<(), BoxError>>,
    {
        let threads = self.threads;
        self.run_blocking(move |worker| workers_runtime(threads)?.block_on(service(worker)))
    }

    /// As [`run`](Builder::run), for a service that needs no runtime, or has its own.
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    pub fn run_blocking<F>(self, service: F) -> Result<()>
    where
        F: FnOnce(Worker) -> Result<(), BoxError>,
    {
        if Handle::try_current().is_ok() {
            return Err(Error::InsideRuntime);
        }
        if let Some(worker) = crate::worker::worker()? {
            if let Some(payload) = self.payload {
                // For one who is the worker of somebody else's cluster, which passed none.
                crate::worker::config::fall_back(payload);
            }
            return service(worker).map_err(Error::Service);
        }
        let primary = self.of_this_program()?.inherit_listen_fds().start()?;
        supervise(&primary)
    }

    fn of_this_program(mut self) -> Result<Builder> {
        if self.config.wanted.is_none() {
            self = self.workers("auto");
        }
        if self.program.is_none() {
            let program = std::env::current_exe()
                .map_err(|source| Error::System { what: "cannot tell which program this is", source })?;
            self.program = Some(program.into());
            let own = std::env::args_os().skip(1);
            self.args.splice(0..0, own);
        }
        self.config.speaks = Speaks::Phalanx;
        Ok(self)
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime", source })
}

fn workers_runtime(threads: usize) -> Result<Runtime> {
    if threads <= 1 {
        return runtime();
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start a runtime", source })
}

/// Waits for the end, and hears signals meanwhile.
fn supervise(primary: &Primary) -> Result<()> {
    let deaf = |source| Error::System { what: "cannot hear signals", source };
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
        let mut events = primary.events();
        let mut hurries = [Hurry::Graceful, Hurry::Terminate].into_iter();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Finished) | None => return Ok(()),
                    Some(_) => continue,
                },
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            drop(primary.stop(hurries.next().unwrap_or(Hurry::Kill)));
        }
    })
}
