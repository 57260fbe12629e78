//! Waiting for many listening sockets at once, without being woken for every connection.
#![expect(unsafe_code, reason = "epoll_ctl with the number of an fd that may be closed by now")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// An epoll instance for listening sockets, which may wait for *itself* in another: [`AsFd`] is readable when
/// there is something to [read](Self::ready).
///
/// A socket that was [added](Self::add) is watched for being shut down. Once it is [armed](Self::arm) it tells
/// *once* that connections are waiting.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    /// The number of each fd, for arming. Not owned: a copy would keep a closed socket alive.
    fds: BTreeMap<u64, RawFd>,
}

/// What a [`Watch`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seen {
    /// Connections wait in the queue of the socket with this token, which was armed and is not any more.
    Waiting(u64),
    /// It does not listen any more: somebody has shut it down. It is not watched until it is armed again.
    HungUp(u64),
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll: crate::fd::above_stdio(epoll)?, fds: BTreeMap::new() })
    }

    /// Watches for `socket` to be shut down, under a name of the caller's.
    ///
    /// It is to be [removed](Self::remove) before this process closes the fd: as long as others hold the same
    /// socket the kernel goes on watching it.
    ///
    /// # Errors
    /// `EEXIST` when it is watched already, `ENOSPC` at the limit of watches.
    pub fn add(&mut self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        self.control(libc::EPOLL_CTL_ADD, fd, 0, token)?;
        self.fds.insert(token, fd);
        Ok(())
    }

    /// Tells once when connections wait, at once if they do now.
    ///
    /// # Errors
    /// `ENOENT` for a token that was not added, or whose socket is gone.
    pub fn arm(&self, token: u64) -> io::Result<()> {
        self.change(token, libc::EPOLLIN)
    }

    /// Does not watch it any more. Does nothing for a token that was not added.
    pub fn remove(&mut self, token: u64) {
        if let Some(fd) = self.fds.remove(&token) {
            // The socket may be gone, and with it the watch.
            let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, token);
        }
    }

    /// Appends what there is to tell. Never waits.
    ///
    /// # Errors
    /// None is expected.
    pub fn ready(&mut self, seen: &mut Vec<Seen>) -> io::Result<()> {
        const AT_ONCE: usize = 64;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut events: Vec<epoll::Event> = Vec::with_capacity(AT_ONCE);
            rustix::io::retry_on_intr(|| epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)))?;
            for event in &events {
                let (flags, token) = (event.flags, event.data.u64());
                if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    seen.push(Seen::HungUp(token));
                } else {
                    seen.push(Seen::Waiting(token));
                    // Having told once, epoll would be silent about everything.
                    let _ = self.change(token, 0);
                }
            }
            if events.len() < AT_ONCE {
                return Ok(());
            }
        }
    }

    fn change(&self, token: u64, events: libc::c_int) -> io::Result<()> {
        let fd = *self.fds.get(&token).ok_or(rustix::io::Errno::NOENT)?;
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(&self, what: libc::c_int, fd: RawFd, events: libc::c_int, token: u64) -> io::Result<()> {
        let events = (events | libc::EPOLLONESHOT).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives until the call returns. `fd` may be closed, or be another by now: then the
        // kernel does not find it in this instance, because it looks for the number and the open file.
        let rc = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
