//! Waking a thread that waits for the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::retry_on_intr;

use crate::fd;

/// What one thread waits for, beside an fd, and others ring (`eventfd(2)`). A ring before the wait is kept.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(fd::above_stdio(eventfd(0, flags)?)?))
    }

    /// Ends a wait, the next one if there is none now.
    pub fn ring(&self) {
        // It fails where it has been rung 2^64 times and nobody came: it rings still.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Waits until somebody rings or the fd is readable, has failed or ended; without an fd until somebody rings.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn wait(&self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bell = self.0.as_fd();
        let mut fds = [bell, fd.unwrap_or(bell)].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        retry_on_intr(|| poll(&mut fds, None))?;
        if !fds[0].revents().is_empty() {
            // Emptied before its reason is looked for: who rings after that rings again.
            let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_once_for_each_wait() {
        let bell = Bell::new().unwrap();
        bell.ring();
        bell.ring();
        bell.wait(None).unwrap();
        let (ours, theirs) = crate::conn::unix_pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| bell.ring());
            bell.wait(Some(ours.as_fd())).unwrap();
        });
        rustix::io::write(&theirs, b"x").unwrap();
        bell.wait(Some(ours.as_fd())).unwrap();
    }
}
