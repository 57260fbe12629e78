//! When a dead worker's slot may start its successor.

use crate::Time;
use crate::rng::Rng;
use serde::Serialize;
use std::time::Duration;

/// Whether a worker that ended is replaced.
///
/// The wanted count rules: with `Always` it does not matter how the worker ended, nor who asked it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Restart {
    /// Whatever the reason.
    #[default]
    Always,
    /// Unless it ended with exit code 0.
    OnFailure,
    /// Never; the slot stays empty.
    Never,
}

/// The first successor starts at once; then this, doubled with every further death.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// No slot waits longer than this, before jitter.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A worker that stayed online this long has proved itself: the count starts anew.
const PROVEN: Duration = Duration::from_secs(10);
/// So many deaths before coming online, within [`CROWD`], make a slot degraded.
const DEGRADED_AFTER: usize = 5;
const CROWD: Duration = Duration::from_secs(60);

/// The back-off of one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
    early: Vec<Time>,
    degraded: bool,
}

impl Backoff {
    /// A worker of this slot died. Returns how long to wait before its successor starts.
    ///
    /// `online_since` is when it came online, if it ever did. The wait is 0 for a first death, then
    /// 100 ms × 2ⁿ up to 30 s, ± 20 % so that slots that died together do not start together.
    pub(crate) fn died(&mut self, now: Time, online_since: Option<Time>, rng: &mut Rng) -> Duration {
        match online_since {
            Some(since) if now.since(since) >= PROVEN => *self = Backoff::default(),
            Some(_) => {}
            None => {
                self.early.retain(|&at| now.since(at) < CROWD);
                self.early.push(now);
                self.degraded |= self.early.len() >= DEGRADED_AFTER;
            }
        }
        self.deaths = self.deaths.saturating_add(1);
        let delay = match self.deaths {
            0 | 1 => return Duration::ZERO,
            _ if self.degraded => LONGEST_DELAY,
            n => FIRST_DELAY.saturating_mul(1 << (n - 2).min(20)).min(LONGEST_DELAY),
        };
        let fifth = delay.as_millis() as u64 / 5;
        delay - Duration::from_millis(fifth) + Duration::from_millis(rng.below(2 * fifth + 1))
    }

    /// Whether deaths crowd together so that the slot is retried only at the longest interval.
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn the_first_is_free_and_the_rest_double_within_a_fifth_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(7);
        assert_eq!(backoff.died(at(0), Some(at(0)), &mut rng), Duration::ZERO);
        for n in 0..12u32 {
            let ideal = FIRST_DELAY.saturating_mul(1 << n).min(LONGEST_DELAY);
            let delay = backoff.died(at(1), Some(at(0)), &mut rng);
            assert!(delay >= ideal * 4 / 5 && delay <= ideal * 6 / 5, "{n}: {delay:?} for {ideal:?}");
        }
    }

    #[test]
    fn ten_seconds_online_clear_the_count() {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(7);
        for _ in 0..4 {
            backoff.died(at(0), Some(at(0)), &mut rng);
        }
        assert_eq!(backoff.died(at(10_000), Some(at(0)), &mut rng), Duration::ZERO);
    }

    #[test]
    fn five_deaths_before_online_within_a_minute_degrade_the_slot() {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(7);
        for n in 0..4 {
            backoff.died(at(n), None, &mut rng);
            assert!(!backoff.is_degraded());
        }
        assert!(backoff.died(at(5), None, &mut rng) >= LONGEST_DELAY * 4 / 5);
        assert!(backoff.is_degraded());

        let mut slow = Backoff::default();
        for n in 0..20 {
            slow.died(at(n * 15_000), None, &mut rng);
        }
        assert!(!slow.is_degraded(), "four a minute are no crowd");
    }
}
