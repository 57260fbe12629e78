//! Time as an argument.

use std::ops::Add;
use std::time::Duration;

/// An instant, as the time passed since an arbitrary start.
///
/// Core never reads a clock. Whoever drives it chooses the start (the driver: its own start, on the
/// monotonic clock; a simulation: zero) and hands in the present with every call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The start itself.
    pub const ZERO: Time = Time(Duration::ZERO);

    /// The instant that lies `passed` after the start.
    pub const fn from_start(passed: Duration) -> Time {
        Time(passed)
    }

    /// How long after the start this is.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    pub const fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, rest: Duration) -> Time {
        Time(self.0.saturating_add(rest))
    }
}
