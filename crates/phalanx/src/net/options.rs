//! How to listen.

use phalanx_core::Policy;
use serde_json::Value;

/// How to listen. Under a primary, what the first worker asks for holds for all that share the address.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ListenOptions {
    /// How many connections may wait to be accepted; `None` leaves it to the primary (alone: the most that
    /// the kernel allows).
    pub backlog: Option<u32>,
    /// An IPv6 listener takes no IPv4 connections.
    pub ipv6_only: bool,
    /// Who gets the next connection of this listener; without a meaning outside a cluster.
    pub policy: Option<Policy>,
    /// Permission bits of the file of a Unix socket.
    pub unix_mode: Option<u32>,
    /// In a worker: a socket of this worker's own, that no other shares and the primary does not know. Port 0 is then
    /// another one in each worker, and a port can be had by one of them.
    pub exclusive: bool,
    /// Anything; what the first worker brings is given to all that share the address.
    pub data: Option<Value>,
}

impl ListenOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`backlog`](Self::backlog).
    #[must_use]
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = Some(backlog);
        self
    }

    /// Sets [`ipv6_only`](Self::ipv6_only).
    #[must_use]
    pub fn ipv6_only(mut self, only: bool) -> Self {
        self.ipv6_only = only;
        self
    }

    /// Sets [`policy`](Self::policy).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets [`unix_mode`](Self::unix_mode).
    #[must_use]
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.unix_mode = Some(mode);
        self
    }

    /// Sets [`exclusive`](Self::exclusive).
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Sets [`data`](Self::data).
    #[must_use]
    pub fn data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_was_said() {
        let options = ListenOptions::new().backlog(7).ipv6_only(true).data(Value::from(1));
        assert_eq!(options.backlog, Some(7));
        assert!(options.ipv6_only);
        assert_eq!(options.data, Some(Value::from(1)));
        assert!(ListenOptions::default().policy.is_none());
    }
}
