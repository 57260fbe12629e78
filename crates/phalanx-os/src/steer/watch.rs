//! Waiting for many listening sockets at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll;

/// An epoll instance for listening sockets: [`AsFd`] is readable while connections wait in the queue of any, or
/// any has been shut down.
///
/// It is meant to be registered elsewhere for one event at a time. A registration that stays would wake its
/// owner for every connection.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self(crate::fd::above_stdio(epoll)?))
    }

    /// Watches a socket as well.
    ///
    /// It is to be [removed](Self::remove) before this process closes the fd: as long as others hold the same
    /// socket the kernel goes on watching it.
    ///
    /// # Errors
    /// `EEXIST` when it is watched already, `ENOSPC` at the limit of watches.
    pub fn add(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.0, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    /// Does not watch it any more.
    ///
    /// # Errors
    /// `ENOENT` for a socket that was not added.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, socket)?)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
