//! The present, for `status`.

use super::Primary;
use crate::listen::Listener;
use crate::status::{LedgerStatus, ListenerStatus, SlotStatus, Status, SteeringStatus, WorkerStatus};
use crate::steer::Steering;
use crate::{ListenerId, Mechanism, Policy, Slot, Time};
use std::collections::BTreeSet;

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
        let listeners = self.listeners.iter().map(|(id, listener)| self.listener_status(id, listener));
        Status {
            workers,
            listeners: listeners.collect(),
            ledger: self.ledger(),
            wanted: self.wanted,
            output_dropped: 0,
            stopping: self.stopping
                || self.closing.is_some()
                || self.timers.is_set(crate::timer::Timer::Shutdown),
            ready: self.places().iter().filter(|place| place.serves_slot(self.wanted)).count() as u32,
            generation: self.stable,
            reloading: self.generations().1,
        }
    }

    fn listener_status(&self, id: ListenerId, listener: &Listener<C>) -> ListenerStatus {
        let steering = listener.steering.as_ref();
        let numbers = steering.map(Steering::numbers).unwrap_or_default();
        let slots: BTreeSet<Slot> = listener.counts.keys().chain(numbers.keys()).copied().collect();
        let slots = slots.into_iter().map(|slot| {
            let worker = listener.dispatch.workers().find(|w| self.slot_of(*w) == Some(slot));
            let count = listener.counts.get(&slot).copied().unwrap_or_default();
            match (listener.mechanism, numbers.get(&slot)) {
                (Mechanism::Steer, Some(numbers)) => SlotStatus {
                    slot,
                    worker: numbers.worker,
                    weight: numbers.weight,
                    assigned: Some(numbers.assigned + count.assigned),
                    by_cookie: Some(numbers.by_cookie),
                    moved_in: Some(numbers.moved_in),
                    moved_out: Some(numbers.moved_out),
                    queued: Some(u64::from(numbers.queued)),
                    queue_limit: Some(numbers.queue_limit),
                    taken: Some(numbers.taken + count.taken),
                    open: numbers.open,
                    lagging: numbers.lagging,
                    lags: Some(numbers.lags),
                },
                (mechanism, _) => {
                    let handoff = mechanism == Mechanism::Handoff;
                    let seat = worker.and_then(|w| self.seats.get(&w));
                    let open = worker
                        .filter(|_| listener.policy == Policy::LeastConnections)
                        .map(|worker| listener.open.values().filter(|w| **w == worker).count() as u32);
                    SlotStatus {
                        slot,
                        worker: if handoff {
                            worker
                        } else {
                            self.slots.get(&slot).and_then(|record| record.worker)
                        },
                        weight: self.weight(slot),
                        assigned: handoff.then_some(count.assigned),
                        by_cookie: None,
                        moved_in: None,
                        moved_out: None,
                        queued: handoff.then(|| seat.map_or(0, |seat| seat.ledger.count(id))),
                        queue_limit: None,
                        taken: handoff.then_some(count.taken),
                        open,
                        lagging: false,
                        lags: None,
                    }
                }
            }
        });
        let slots: Vec<SlotStatus> = slots.collect();
        ListenerStatus {
            key: listener.key.clone(),
            name: listener.name.clone(),
            address: listener.address().cloned(),
            mechanism: listener.mechanism,
            policy: listener.policy,
            why: listener.why.to_string(),
            engine: steering.map(Steering::engine),
            accepting: listener.accepting,
            pending: listener.dispatch.pending(),
            queued: None,
            queue_limit: None,
            steering: steering.map(|steering| SteeringStatus {
                park_queued: steering.totals().park_queued,
                parked: steering.totals().parked,
                odd: steering.totals().odd,
                failed: steering.totals().failed,
                strangers: steering.strangers,
                tampered: steering.tampered,
            }),
            slots,
            socket: listener.socket,
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
