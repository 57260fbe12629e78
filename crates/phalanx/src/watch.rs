//! The one place where an fd is registered with the runtime.

use std::io;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches an fd. Whatever is registered owns its fd (or shares the ownership) and gives out the same one for
/// as long as it lives, which is what the unsafe constructor wants promised and this one does not ask.
#[expect(deprecated, reason = "the safe constructor; every type registered here owns its fd")]
pub(crate) fn watch<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}
