//! The socket that workers tell their readiness to, as they would tell systemd (`sd_notify(3)`).

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, bind, recvmsg, socket_with, sockopt,
};

use crate::fd;

/// More than anybody says about its state.
const LONGEST: usize = 4096;

/// A datagram socket that learns from the kernel which process sent what. Its file, and the directory of that,
/// go when it is dropped.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    directory: PathBuf,
    path: PathBuf,
}

/// What somebody sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The process that sent it, as the kernel says; 0 if it is outside of our pid namespace.
    pub pid: u32,
    /// `READY=1`, and other lines of that kind.
    pub text: String,
}

impl Notice {
    /// Whether one of its lines is this.
    #[must_use]
    pub fn says(&self, line: &str) -> bool {
        self.text.lines().any(|one| one == line)
    }
}

impl NotifySocket {
    /// Makes one in a new directory below `base`. The directory can be entered by everybody and listed by
    /// nobody else, and everybody may write: workers may have another user. Who wrote is for the reader to check.
    ///
    /// # Errors
    /// `PermissionDenied`; `ENAMETOOLONG` for a base of more than some eighty characters.
    pub fn new(base: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = fd::above_stdio(socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?)?;
        sockopt::set_socket_passcred(&fd, true)?;
        let directory = fresh_directory(base)?;
        let path = directory.join("notify");
        let made = Self { fd, directory, path };
        // The umask may have taken something away.
        fs::set_permissions(&made.directory, Permissions::from_mode(0o711))?;
        bind(&made.fd, &SocketAddrUnix::new(&made.path)?)?;
        fs::set_permissions(&made.path, Permissions::from_mode(0o666))?;
        Ok(made)
    }

    /// Its path, for `NOTIFY_SOCKET`.
    #[must_use]
    pub fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }

    /// The next notice; `None` when there is none now. Fds that came along are closed.
    ///
    /// # Errors
    /// None is expected.
    pub fn recv(&self) -> io::Result<Option<Notice>> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        };
        let pid = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => {
                Some(sender.pid.as_raw_nonzero().get().unsigned_abs())
            }
            _ => None,
        });
        let text = bytes.get(..received.bytes).unwrap_or_default();
        Ok(Some(Notice { pid: pid.unwrap_or(0), text: String::from_utf8_lossy(text).into_owned() }))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for NotifySocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.directory);
    }
}

fn fresh_directory(base: &Path) -> io::Result<PathBuf> {
    for n in 0..1000 {
        let directory = base.join(format!("phalanx-{}-{n}", std::process::id()));
        match DirBuilder::new().mode(0o711).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn the_kernel_says_who_it_was_and_nothing_is_left() {
        let socket = NotifySocket::new(&std::env::temp_dir()).unwrap();
        assert_eq!(socket.recv().unwrap(), None);
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"STATUS=warm\nREADY=1\n", socket.path()).unwrap();
        let notice = socket.recv().unwrap().unwrap();
        assert_eq!(notice.pid, std::process::id());
        assert!(notice.says("READY=1") && !notice.says("READY"));
        let path = PathBuf::from(socket.path());
        drop(socket);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
}
