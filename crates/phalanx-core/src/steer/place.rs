//! The standing of one steered worker: whether the kernel may choose it, and what becomes of what waits for it.

use crate::Time;
use std::time::Duration;

/// Between taking a place out of the choice and moving what waits there. A handshake that ends in the very
/// microseconds of the move would be reset; 20 µs are enough for those that had chosen before.
pub(crate) const SETTLE: Duration = Duration::from_millis(10);

/// How a worker stands towards the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has its socket; whether it accepts is not known yet.
    Joined,
    /// It is chosen.
    Serving,
    /// It gets one connection at a time, to show that it takes them.
    Trial,
    /// It lags: out of the choice; what waits is moved at `at`, unless it moves by itself before.
    Settling { at: Time },
    /// What waited has been moved. It is tried again at `until`.
    Resting { until: Time },
    /// It leaves: out of the choice for good. What its worker has not taken at `at`, or comes in late, is moved;
    /// the worker itself may take some until it closes its copy.
    Leaving { at: Option<Time> },
    /// Its worker is dead, or has closed its copy: at `at` the socket is closed and what waits moves.
    Dead { at: Time },
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Its worker accepts: it said so, or was seen to.
    Ready,
    /// Nothing can be learnt about its worker without trying.
    Try,
    /// Its worker has taken a connection since the last look.
    Took,
    /// Connections have waited long, and it took none, while others take theirs.
    Stuck,
    /// It is worth trying again.
    Rested,
    /// It is not: look again at that time.
    StillBusy(Time),
    /// Its worker gets nothing new.
    Leave,
    /// Its worker is dead, or has closed its copy.
    Gone,
    /// What waited there has been moved, and it rests until then.
    Moved(Time),
    /// Nothing waits there any more.
    Empty,
}

impl Standing {
    /// Whether the kernel may choose it.
    pub(crate) const fn is_chosen(self) -> bool {
        matches!(self, Standing::Serving | Standing::Trial)
    }

    /// When something must happen.
    pub(crate) const fn due(self) -> Option<Time> {
        match self {
            Standing::Settling { at } | Standing::Dead { at } => Some(at),
            Standing::Leaving { at } => at,
            Standing::Resting { until } => Some(until),
            Standing::Joined | Standing::Serving | Standing::Trial => None,
        }
    }

    /// What follows from `input`.
    #[must_use]
    pub(crate) fn on(self, now: Time, input: Input) -> Standing {
        use Standing::{Dead, Joined, Leaving, Resting, Serving, Settling, Trial};
        match (self, input) {
            (Joined, Input::Ready | Input::Took) => Serving,
            (Joined, Input::Try) => Trial,
            (Joined, Input::Stuck | Input::Rested | Input::StillBusy(_) | Input::Moved(_) | Input::Empty) => {
                Joined
            }
            // Nothing was ever given to it: nothing to wait for.
            (Joined, Input::Leave) => Leaving { at: Some(now) },
            (Joined, Input::Gone) => Dead { at: now },

            (Serving, Input::Stuck) => Settling { at: now + SETTLE },
            (Serving, Input::Leave) => Leaving { at: Some(now + SETTLE) },
            (Serving, Input::Gone) => Dead { at: now + SETTLE },
            (
                Serving,
                Input::Ready
                | Input::Try
                | Input::Took
                | Input::Rested
                | Input::StillBusy(_)
                | Input::Moved(_)
                | Input::Empty,
            ) => Serving,

            (Trial, Input::Took | Input::Ready) => Serving,
            (Trial, Input::Stuck) => Settling { at: now + SETTLE },
            (Trial, Input::Leave) => Leaving { at: Some(now + SETTLE) },
            (Trial, Input::Gone) => Dead { at: now + SETTLE },
            (Trial, Input::Try | Input::Rested | Input::StillBusy(_) | Input::Moved(_) | Input::Empty) => {
                Trial
            }

            (Settling { .. }, Input::Took) => Serving,
            (Settling { .. }, Input::Moved(until)) => Resting { until },
            (Settling { at }, Input::Leave) => Leaving { at: Some(at) },
            (Settling { at }, Input::Gone) => Dead { at },
            (
                Settling { .. },
                Input::Ready | Input::Try | Input::Stuck | Input::Rested | Input::StillBusy(_) | Input::Empty,
            ) => self,

            (Resting { .. }, Input::Took) => Serving,
            (Resting { .. }, Input::Rested) => Trial,
            (Resting { .. }, Input::StillBusy(until)) => Resting { until },
            (Resting { .. }, Input::Leave) => Leaving { at: Some(now) },
            (Resting { .. }, Input::Gone) => Dead { at: now },
            (Resting { .. }, Input::Ready | Input::Try | Input::Stuck | Input::Moved(_) | Input::Empty) => {
                self
            }

            (Leaving { at }, Input::Gone) => Dead { at: at.unwrap_or(now) },
            // More may come in late: handshakes that had begun before end here.
            (Leaving { .. }, Input::Moved(until)) => Leaving { at: Some(until) },
            (Leaving { .. }, Input::Empty) => Leaving { at: None },
            (
                Leaving { .. },
                Input::Ready
                | Input::Try
                | Input::Took
                | Input::Stuck
                | Input::Rested
                | Input::StillBusy(_)
                | Input::Leave,
            ) => self,

            (
                Dead { .. },
                Input::Ready
                | Input::Try
                | Input::Took
                | Input::Stuck
                | Input::Rested
                | Input::StillBusy(_)
                | Input::Leave
                | Input::Gone
                | Input::Moved(_)
                | Input::Empty,
            ) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Time = Time::ZERO;

    #[test]
    fn what_was_chosen_settles_before_it_moves() {
        for chosen in [Standing::Serving, Standing::Trial] {
            for input in [Input::Stuck, Input::Leave, Input::Gone] {
                let next = chosen.on(T, input);
                assert!(!next.is_chosen());
                assert_eq!(next.due(), Some(T + SETTLE), "{chosen:?} {input:?}");
            }
        }
        assert_eq!(Standing::Joined.on(T, Input::Gone).due(), Some(T));
    }

    #[test]
    fn nobody_comes_back_from_leaving_or_death() {
        let inputs = [
            Input::Ready,
            Input::Try,
            Input::Took,
            Input::Stuck,
            Input::Rested,
            Input::StillBusy(T),
            Input::Leave,
            Input::Moved(T),
            Input::Empty,
            Input::Gone,
        ];
        for last in [Standing::Leaving { at: Some(T) }, Standing::Dead { at: T }] {
            for input in inputs {
                let next = last.on(T, input);
                assert!(matches!(next, Standing::Leaving { .. } | Standing::Dead { .. }), "{input:?}");
                if matches!(last, Standing::Dead { .. }) {
                    assert!(matches!(next, Standing::Dead { .. }));
                }
            }
        }
    }

    #[test]
    fn a_lagging_worker_comes_back_by_a_trial_or_by_itself() {
        let settling = Standing::Serving.on(T, Input::Stuck);
        assert_eq!(settling.on(T, Input::Took), Standing::Serving);
        let resting = settling.on(T, Input::Moved(T + SETTLE));
        assert!(!resting.is_chosen());
        assert_eq!(resting.on(T, Input::Rested), Standing::Trial);
        assert_eq!(Standing::Trial.on(T, Input::Took), Standing::Serving);
    }
}
