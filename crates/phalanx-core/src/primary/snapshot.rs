//! The present, for `status`.

use super::Primary;
use crate::status::{LedgerStatus, ListenerStatus, SlotStatus, Status, WorkerStatus};
use crate::{Mechanism, Slot, Time};

impl<C> Primary<C> {
    /// A snapshot. What only the system knows (memory, kernel queues) is left for the driver to fill in.
    pub fn status(&self, now: Time) -> Status {
        let mut workers: Vec<WorkerStatus> = self
            .seats
            .iter()
            .map(|(&id, seat)| {
                let record = self.slots.get(&seat.slot);
                WorkerStatus {
                    slot: seat.slot,
                    id,
                    pid: seat.pid,
                    state: seat.life.state(),
                    ready: seat.ready && !self.is_leaving(id),
                    due: seat.due.clone(),
                    hung: seat.hung,
                    generation: seat.generation,
                    uptime_ms: now.since(seat.since).as_millis() as u64,
                    restarts: record.map_or(0, |record| record.starts.saturating_sub(1)),
                    degraded: record.is_some_and(|record| record.backoff.is_degraded()),
                    last_end: record.and_then(|record| record.last_end.clone()),
                    unacknowledged: seat.ledger.len() as u32,
                    taken: seat.taken,
                    rss_kib: None,
                    changed: false,
                }
            })
            .collect();
        workers.sort_by_key(|worker| (worker.slot, worker.id));
        let listeners = self.listeners.iter().map(|(id, listener)| {
            let handoff = listener.mechanism == Mechanism::Handoff;
            let slots = listener.counts.iter().map(|(&slot, count)| {
                let worker = if handoff {
                    listener.dispatch.workers().find(|w| self.slot_of(*w) == Some(slot))
                } else {
                    self.slots.get(&slot).and_then(|record| record.worker)
                };
                let queued = worker.and_then(|w| self.seats.get(&w)).map(|seat| seat.ledger.count(id));
                SlotStatus {
                    slot,
                    worker,
                    assigned: handoff.then_some(count.assigned),
                    queued: handoff.then_some(queued.unwrap_or(0)),
                    taken: handoff.then_some(count.taken),
                }
            });
            ListenerStatus {
                key: listener.key.clone(),
                name: listener.name.clone(),
                address: listener.address().cloned(),
                mechanism: listener.mechanism,
                policy: listener.policy,
                why: listener.why,
                accepting: listener.accepting,
                pending: listener.dispatch.pending(),
                queued: None,
                queue_limit: None,
                slots: slots.collect(),
                socket: listener.socket,
            }
        });
        Status {
            workers,
            listeners: listeners.collect(),
            ledger: self.ledger(),
            wanted: self.wanted,
            output_dropped: 0,
            stopping: self.stopping || self.timers.is_set(crate::timer::Timer::Shutdown),
            ready: self.places().iter().filter(|place| place.serves_slot(self.wanted)).count() as u32,
            generation: self.stable,
            reloading: self.generations().1,
        }
    }

    /// What became of connections.
    pub fn ledger(&self) -> LedgerStatus {
        LedgerStatus {
            totals: self.totals,
            pending: self.listeners.iter().map(|(_, l)| l.dispatch.pending() as u64).sum(),
            in_flight: self.seats.values().map(|seat| seat.ledger.len() as u64).sum::<u64>()
                + self.examining.len() as u64,
        }
    }

    fn slot_of(&self, worker: crate::WorkerId) -> Option<Slot> {
        self.seats.get(&worker).map(|seat| seat.slot)
    }
}
