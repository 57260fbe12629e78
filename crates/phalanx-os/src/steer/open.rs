//! What is open now, by tag, whatever program has accepted it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use super::diag::{self, CONNECTED, Found, state};
use super::{Exact, Transport};

/// Connections of one tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenCount {
    /// A process has accepted them and has not closed them.
    pub accepted: u32,
    /// They wait to be accepted.
    pub queued: u32,
}

impl Exact {
    /// The connections of the group that exist now, by the tag of the place that they were given to; those at
    /// the parking socket under [`PARK_TAG`](super::PARK_TAG). What has moved counts where it is now.
    ///
    /// The work of one look grows with the number of connections: about 1 µs for each.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF, which this takes every time; `EAFNOSUPPORT` where a sandbox forbids netlink;
    /// `InvalidInput` before [`open`](Self::open).
    pub fn open_connections(&self) -> io::Result<BTreeMap<u32, OpenCount>> {
        let address = self.address.get().ok_or(io::ErrorKind::InvalidInput)?;
        let mut found = Vec::new();
        diag::dump(Transport::Tcp, CONNECTED, address.port(), Some(self.tags.as_fd()), |each| {
            if let Some(tag) = each.stored {
                found.push((tag, each));
            }
        })?;
        let anything_moved = self.anything_moved();
        let mut open: BTreeMap<u32, OpenCount> = BTreeMap::new();
        for (tag, Found { state, inode, cookie, .. }) in found {
            // A connection keeps the tag that it was born with; the program has noted where it went.
            let moved = if anything_moved { self.moves.get(cookie)? } else { None };
            let count = open.entry(moved.map_or(tag, |tag| tag as u32)).or_default();
            match (inode, state) {
                (0, state::ESTABLISHED | state::CLOSE_WAIT | state::SYN_RECV) => count.queued += 1,
                (0, _) => {} // closed, and on its way out
                _ => count.accepted += 1,
            }
        }
        Ok(open)
    }
}
