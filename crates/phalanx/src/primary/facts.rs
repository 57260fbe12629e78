//! How the facts that make a worker ready are found out.

use super::driver::Driver;
use super::tasks::enter;
use crate::watch::watch;
use phalanx_core::WorkerId;
use phalanx_os::notify::NotifySocket;
use phalanx_os::steer::waits_for;
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Between two looks at a program that is not waiting for connections yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOOK_SELDOM: Duration = Duration::from_millis(500);
/// An answer to a probe comes within this, or it has failed.
const ANSWER: Duration = Duration::from_secs(5);
/// The head of an answer may not be longer.
const HEAD: u64 = 16 * 1024;

/// Looks until the kernel shows a plain program waiting on one of its sockets.
pub(super) async fn watch_sockets(
    driver: Weak<RefCell<Driver>>,
    worker: WorkerId,
    pid: u32,
    sockets: Vec<Arc<OwnedFd>>,
) {
    let mut rest = LOOK_AGAIN;
    loop {
        let waits = sockets.iter().any(|socket| waits_for(pid, socket.as_ref()).unwrap_or(false));
        let done = enter(&driver, |driver| {
            if waits {
                let now = driver.now();
                driver.core.handle_waits(now, worker);
            }
            driver.core.worker(worker).is_none_or(|view| view.ready)
        });
        if waits || done != Some(false) {
            return;
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LOOK_SELDOM);
    }
}

/// Asks one worker for a page.
pub(super) async fn probe(
    driver: Weak<RefCell<Driver>>,
    worker: WorkerId,
    connection: io::Result<std::os::unix::net::UnixStream>,
    path: String,
) {
    let answer = async {
        let connection = connection?;
        connection.set_nonblocking(true)?;
        ask(UnixStream::from_std(connection)?, &path).await
    };
    let result = match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(status)) if (200..400).contains(&status) => Ok(()),
        Ok(Ok(status)) => Err(format!("it answered with status {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not answer within {} s", ANSWER.as_secs())),
    };
    enter(&driver, |driver| {
        let now = driver.now();
        driver.core.handle_probed(now, worker, result);
    });
}

async fn ask(mut connection: UnixStream, path: &str) -> io::Result<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    let mut connection = connection.take(HEAD);
    while !head.contains(&b'\n') {
        match connection.read(&mut chunk).await? {
            0 => return Err(io::Error::other("it closed the connection without an answer")),
            count => head.extend(chunk.get(..count).unwrap_or_default()),
        }
    }
    status(&head).ok_or_else(|| io::Error::other("its answer is not HTTP"))
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next()?.starts_with("HTTP/1.").then(|| words.next()?.trim().parse().ok())?
}

/// Where a socket for notices can be: where this user may write and others may enter.
pub(super) fn notify_socket() -> io::Result<NotifySocket> {
    let mut last = None;
    for base in [PathBuf::from("/run"), std::env::temp_dir()] {
        match NotifySocket::new(&base) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Hears notices. Only what a worker's own process says counts.
pub(super) async fn hear_notices(driver: Weak<RefCell<Driver>>, socket: Rc<NotifySocket>) {
    let Ok(readable) = watch(Rc::clone(&socket), Interest::READABLE) else { return };
    loop {
        let Ok(mut ready) = readable.readable().await else { return };
        match socket.recv() {
            Ok(Some(notice)) => {
                let heard = enter(&driver, |driver| {
                    if notice.says("READY=1") {
                        driver.notified(notice.pid);
                    }
                });
                if heard.is_none() {
                    return;
                }
            }
            Ok(None) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "cannot hear what workers say about their readiness");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn the_status_is_in_the_first_line() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(status(b"SSH-2.0-x\r\n"), None);
        assert_eq!(status(b"\n"), None);
    }
}
