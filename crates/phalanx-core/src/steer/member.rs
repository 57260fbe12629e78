//! One steered worker: what is known of it, and what it counts for.

use super::facts::{Budget, PlaceFacts};
use super::place::Standing;
use crate::{Slot, SocketId, Time, WorkerId};
use std::time::Duration;

/// Numbers of a slot, its former workers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) assigned: u64,
    pub(crate) by_cookie: u64,
    pub(crate) moved_in: u64,
    pub(crate) moved_out: u64,
    pub(crate) taken: u64,
    pub(crate) lags: u64,
    pub(crate) queued: u32,
    pub(crate) queue_limit: u32,
    pub(crate) open: Option<u32>,
    pub(crate) weight: u32,
    pub(crate) lagging: bool,
    pub(crate) worker: Option<WorkerId>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) worker: WorkerId,
    pub(super) slot: Slot,
    pub(super) socket: SocketId,
    pub(super) standing: Standing,
    /// What it had taken when last looked at, at most.
    pub(super) taken: u64,
    /// Connections that were moved away.
    pub(super) moved_out: u64,
    pub(super) facts: PlaceFacts,
    /// It has taken nothing since then although connections waited.
    pub(super) waiting_since: Option<Time>,
    pub(super) hung: bool,
    pub(super) rests: u32,
    pub(super) lags: u64,
    /// It cannot say when it accepts: when it is tried, if it is not seen to before.
    pub(super) grace: Option<Time>,
    pub(super) budget: Option<Budget>,
    pub(super) open: Option<u32>,
}

impl Numbers {
    pub(super) fn add(&mut self, member: &Member) {
        self.assigned += member.facts.assigned;
        self.by_cookie += member.facts.by_cookie;
        self.moved_in += member.facts.moved_in;
        self.moved_out += member.moved_out;
        self.taken += member.taken;
        self.lags += member.lags;
    }
}

impl Member {
    /// Takes in what was seen; returns how many connections it has taken since the last look, at most.
    pub(super) fn see(&mut self, last: Time, now: Time, facts: &PlaceFacts) -> u64 {
        let arrived = facts.assigned + facts.by_cookie + facts.moved_in;
        let taken = arrived.saturating_sub(self.moved_out + u64::from(facts.queued));
        let before = self.facts;
        self.facts = *facts;
        // `taken` never counts too few: if it stands still, nothing was taken.
        let took = taken.saturating_sub(self.taken);
        self.taken = self.taken.max(taken);
        if took > 0 || facts.queued == 0 && before.queued == 0 && self.standing == Standing::Serving {
            self.waiting_since = None;
        } else if facts.queued > 0 {
            // What waited at the last look still does.
            self.waiting_since.get_or_insert(if before.queued > 0 { last } else { now });
        }
        took
    }

    pub(super) fn is_stuck(&self, now: Time, after: Duration) -> bool {
        self.facts.queued > 0 && self.waiting_since.is_some_and(|since| now.since(since) >= after)
    }
}
