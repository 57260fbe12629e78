//! Reading and writing the channels of workers.

use super::driver::Driver;
use phalanx_core::{Blocked, Carried, WorkerId};
use phalanx_os::conn;
use std::os::fd::AsFd;

impl Driver {
    /// Writes to a worker until nothing is left or its channel is full.
    pub(super) fn flush(&mut self, worker: WorkerId) {
        let now = self.now();
        loop {
            let Some(child) = self.children.get(&worker) else { return };
            let Some(link) = child.link.as_ref() else { return };
            let Some(next) = self.core.poll_transmit(worker) else { return };
            let handle = match next.carried {
                None => None,
                Some(Carried::Handle(fd)) => Some(fd.as_fd()),
                Some(Carried::Socket(socket)) => match self.doors.get(&socket) {
                    Some(door) => Some(door.socket.fd.as_fd()),
                    None => return,
                },
            };
            match link.get_ref().0.send(next.bytes, handle) {
                Ok(count) => self.core.handle_sent(worker, count),
                Err(phalanx_os::SendError::WouldBlock) => {
                    child.writable.notify_one();
                    self.core.handle_blocked(now, worker, Blocked::Full);
                    return;
                }
                Err(phalanx_os::SendError::TooManyInFlight) => {
                    self.core.handle_blocked(now, worker, Blocked::TooManyInFlight);
                    return;
                }
                // The reader will find the end, after what the worker said last.
                Err(phalanx_os::SendError::Closed | phalanx_os::SendError::Io(_)) => {
                    self.core.handle_blocked(now, worker, Blocked::Full);
                    return;
                }
            }
        }
    }

    /// Reads a channel once. `None`: nothing more now; `Some(false)`: it is at its end, or of no further interest.
    pub(super) fn read(&mut self, worker: WorkerId) -> Option<bool> {
        let link = self.children.get(&worker).and_then(|child| child.link.clone());
        // A reader that has just closed the channel itself must not wait for it again: where the peer's end is
        // closed too, that is no waiting at all.
        let Some(link) = link else { return Some(false) };
        let mut handles = Vec::new();
        let mut chunk = std::mem::take(&mut self.chunk);
        let received = link.get_ref().0.recv(&mut chunk, &mut handles);
        let now = self.now();
        let more = match received {
            Err(phalanx_os::RecvError::WouldBlock) => None,
            Err(phalanx_os::RecvError::Io(_)) | Ok(phalanx_os::Received { len: 0, .. }) => {
                self.core.handle_channel_closed(now, worker);
                Some(false)
            }
            Ok(received) => {
                for handle in &handles {
                    // What a worker sends may linger; our close must not wait for it (K-19).
                    let _ = conn::clear_linger(handle);
                }
                let whole = !handles.is_empty() || received.len == chunk.len();
                self.core.handle_bytes(now, worker, &chunk[..received.len], handles);
                let open = self.children.get(&worker).is_some_and(|child| child.link.is_some());
                // A short read that no handle cut off has emptied the socket.
                if open { whole.then_some(true) } else { Some(false) }
            }
        };
        self.chunk = chunk;
        more
    }
}
