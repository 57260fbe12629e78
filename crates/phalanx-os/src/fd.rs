//! Keeping fds away from the three standard streams.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The first number that is not a standard stream.
const FIRST: i32 = 3;

/// Moves `fd` to a number of 3 or above if it is below.
///
/// A process that was started with a closed stdin gets the next fd there, and whoever prints or reads
/// through the standard streams would then talk to a peer. The old number is closed in either case; it is
/// close-on-exec again at the new one. Fails with `EMFILE` when there is no number left.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, FIRST)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_fd_stays_where_it_is() {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let number = fd.as_raw_fd();
        assert_eq!(above_stdio(fd).unwrap().as_raw_fd(), number);
    }
}
