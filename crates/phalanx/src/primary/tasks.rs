//! The small tasks that wait for an fd, or for time, and then enter the driver.

use super::driver::Driver;
use super::output::Pipe;
use super::sockets;
use crate::watch::watch;
use phalanx_core::{SocketId, WorkerId};
use phalanx_os::steer::Watch;
use phalanx_os::{AcceptError, Channel, Process, Signal, listener};
use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::sync::Notify;

/// Connections accepted before others get a turn.
const BATCH: usize = 64;
/// How long a full channel rests when there is no fd to wait with.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// From the SIGTERM to the SIGKILL for what a worker leaves behind.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

/// A channel, as one task waits for it and the driver writes to it.
#[derive(Debug)]
pub(super) struct Link(pub(super) Channel);

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Enters the driver and lets it act on what happened. `None` when the cluster is over.
pub(super) fn enter<T>(driver: &Weak<RefCell<Driver>>, step: impl FnOnce(&mut Driver) -> T) -> Option<T> {
    let driver = driver.upgrade()?;
    let mut driver = driver.borrow_mut();
    let result = step(&mut driver);
    driver.drive();
    Some(result)
}

pub(super) async fn read_channel(driver: Weak<RefCell<Driver>>, worker: WorkerId, link: Rc<AsyncFd<Link>>) {
    loop {
        let Ok(mut ready) = link.readable().await else { return };
        match enter(&driver, |driver| driver.read(worker)) {
            // One read a turn: no worker's flood keeps the others waiting.
            Some(Some(true)) => tokio::task::yield_now().await,
            Some(Some(false)) | None => return,
            Some(None) => ready.clear_ready_matching(Ready::READABLE),
        }
    }
}

/// Writes again when a full channel has room. It is registered for that on a copy of the fd and only while it
/// is full: or every message that a worker reads would wake the cluster's thread.
pub(super) async fn write_channel(
    driver: Weak<RefCell<Driver>>,
    worker: WorkerId,
    link: Weak<AsyncFd<Link>>,
    full: Rc<Notify>,
) {
    loop {
        full.notified().await;
        let Some(copy) = link.upgrade().map(|link| link.get_ref().0.as_fd().try_clone_to_owned()) else {
            return;
        };
        match copy.and_then(|copy| watch(copy, Interest::WRITABLE)) {
            Ok(copy) => {
                if copy.writable().await.is_err() {
                    return;
                }
            }
            // Out of fds: nothing will tell, so look again.
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
        if enter(&driver, |driver| driver.flush(worker)).is_none() {
            return;
        }
    }
}

pub(super) async fn read_output(driver: Weak<RefCell<Driver>>, pipe: Rc<Pipe>) {
    loop {
        let Ok(mut ready) = pipe.fd.readable().await else { return };
        match enter(&driver, |driver| driver.print(&pipe)) {
            Some(Some(true)) => {}
            Some(Some(false)) | None => return,
            Some(None) => ready.clear_ready(),
        }
        tokio::task::yield_now().await;
    }
}

pub(super) async fn await_exit(driver: Weak<RefCell<Driver>>, worker: WorkerId, pidfd: OwnedFd) {
    let Ok(pidfd) = watch(pidfd, Interest::READABLE) else { return };
    loop {
        let Ok(mut ready) = pidfd.readable().await else { return };
        if enter(&driver, |driver| driver.reap(worker)).unwrap_or(true) {
            return;
        }
        ready.clear_ready();
    }
}

/// What a worker has left behind in its process group, and what ignores SIGTERM, is killed: after a while, or
/// when the cluster ends.
pub(super) async fn end_group(process: Process) {
    let _last = KillGroup(process);
    tokio::time::sleep(LEFT_BEHIND).await;
}

struct KillGroup(Process);

impl Drop for KillGroup {
    fn drop(&mut self) {
        let _ = self.0.signal_group(Signal::KILL);
    }
}

/// One signal may stand for many deaths (K-55): it means, look at all.
pub(super) async fn reap_on_sigchld(driver: Weak<RefCell<Driver>>) {
    let Ok(mut deaths) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) else {
        return;
    };
    loop {
        let looked = enter(&driver, |driver| {
            let ids: Vec<WorkerId> = driver.children.keys().copied().collect();
            for id in ids {
                driver.reap(id);
            }
            driver.reap_strangers();
        });
        if looked.is_none() || deaths.recv().await.is_none() {
            return;
        }
    }
}

pub(super) async fn accept(driver: Weak<RefCell<Driver>>, socket: SocketId, fd: Arc<OwnedFd>) {
    let Ok(door) = watch(fd, Interest::READABLE) else { return };
    'empty: loop {
        let Ok(mut ready) = door.readable().await else { return };
        for _ in 0..BATCH {
            match listener::accept(door.get_ref().as_ref()) {
                Ok((connection, peer)) => {
                    let still = enter(&driver, |driver| {
                        let peer = sockets::peer_of(peer, &connection);
                        driver.core.handle_connection(socket, peer, connection);
                        // What follows may be to stop accepting: that must be known before the next accept.
                        driver.drive();
                        driver.doors.get(&socket).is_some_and(|door| door.accepting.is_some())
                    });
                    if still != Some(true) {
                        return;
                    }
                }
                Err(AcceptError::WouldBlock) => {
                    ready.clear_ready();
                    continue 'empty;
                }
                Err(AcceptError::Connection(error)) => tracing::debug!(%error, "a connection broke"),
                Err(AcceptError::OutOfResources(error)) => {
                    tracing::warn!(%error, "cannot accept; this listener rests");
                    enter(&driver, |driver| {
                        let now = driver.now();
                        driver.core.handle_starved(now, socket);
                    });
                    return;
                }
                Err(AcceptError::Listener(error)) => {
                    tracing::error!(%error, "a listener is broken");
                    return;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Tells once when connections wait in a group. Registered for that one event: or every connection, which the
/// kernel has given to its worker already, would wake the cluster's thread.
pub(super) async fn stir(driver: Weak<RefCell<Driver>>, group: SocketId, queues: Arc<Watch>) {
    {
        let Ok(queues) = watch(queues, Interest::READABLE) else { return };
        if queues.readable().await.is_err() {
            return;
        }
    }
    enter(&driver, |driver| {
        let now = driver.now();
        driver.core.handle_stirred(now, group);
    });
}

/// Wakes core at its deadlines, and only then: an idle cluster wakes nobody.
pub(super) async fn keep_time(driver: Weak<RefCell<Driver>>) {
    loop {
        let Some((due, start, changed)) = driver.upgrade().map(|driver| {
            let driver = driver.borrow();
            (driver.core.poll_timeout(), driver.start, Rc::clone(&driver.timer))
        }) else {
            return;
        };
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until((start + at.since_start()).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {
                enter(&driver, |driver| {
                    let now = driver.now().max(due.unwrap_or_default());
                    driver.core.handle_timeout(now);
                });
            }
            () = changed.notified() => {}
        }
    }
}
