//! Heartbeats: whether the application of a worker runs, and not only the thread that reads its channel.
//!
//! Only who has said so can answer: a first `pong`, unasked. After a while without a sign of life it is asked. What
//! it takes is a sign as good as an answer, so nobody is asked while connections flow.

use super::{Hang, Primary};
use crate::timer::Timer;
use crate::wire::Message;
use crate::{Time, WorkerId};
use std::time::Duration;

/// Without a sign of life for this part of `hang_timeout`, a worker is asked for one.
const PAUSE: u32 = 2;
/// Looks for the answer within `hang_timeout`: a primary that stood still itself must read what has come first.
const LOOKS: u32 = 4;

/// How it stands between the primary and one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Heartbeat {
    /// Nothing is known of its application, and nothing is asked.
    #[default]
    Unable,
    /// It ran then. A timer is set.
    Ran(Time),
    /// It was asked, and that often the answer was looked for in vain.
    Asked { looks: u32 },
}

fn part(of: Duration, parts: u32) -> Duration {
    (of / parts).max(Duration::from_millis(1))
}

impl<C> Primary<C> {
    /// A worker has answered, or said that it would.
    pub(super) fn pong(&mut self, now: Time, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let Some(timeout) = seat.hang_timeout else { return };
        if seat.heartbeat == Heartbeat::Unable {
            seat.heartbeat = Heartbeat::Ran(now);
            self.timers.set(Timer::Heartbeat(worker), now + part(timeout, PAUSE));
        } else {
            self.runs(now, worker);
        }
    }

    /// The application of a worker has done something.
    pub(super) fn runs(&mut self, now: Time, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        match &mut seat.heartbeat {
            Heartbeat::Unable => {}
            Heartbeat::Ran(then) => *then = now,
            Heartbeat::Asked { .. } => {
                seat.heartbeat = Heartbeat::Ran(now);
                let was_silent = seat.hung == Some(Hang::Silent);
                if let Some(timeout) = seat.hang_timeout {
                    self.timers.set(Timer::Heartbeat(worker), now + part(timeout, PAUSE));
                }
                if was_silent {
                    self.moves(worker);
                }
            }
        }
    }

    /// It is time to ask, or to look for the answer.
    pub(super) fn heartbeat(&mut self, now: Time, worker: WorkerId) {
        let leaves = self.is_leaving(worker);
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let Some(timeout) = seat.hang_timeout.filter(|_| !leaves) else {
            // Who leaves has a deadline of its own.
            seat.heartbeat = Heartbeat::Unable;
            return;
        };
        let next = match seat.heartbeat {
            Heartbeat::Unable => return,
            Heartbeat::Ran(then) if now.since(then) < part(timeout, PAUSE) => then + part(timeout, PAUSE),
            Heartbeat::Ran(_) => {
                seat.heartbeat = Heartbeat::Asked { looks: 0 };
                self.say(worker, &Message::Ping);
                now + part(timeout, LOOKS)
            }
            Heartbeat::Asked { looks } if looks + 1 < LOOKS => {
                seat.heartbeat = Heartbeat::Asked { looks: looks + 1 };
                now + part(timeout, LOOKS)
            }
            Heartbeat::Asked { .. } => return self.hung(now, worker, Hang::Silent),
        };
        self.timers.set(Timer::Heartbeat(worker), next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnHang;
    use crate::{Config, Event, Lives};

    const TIMEOUT: Duration = Duration::from_secs(8);
    const NOTHING: [bool; 0] = [];

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    struct Stage {
        primary: Primary<u32>,
        worker: WorkerId,
    }

    impl Stage {
        fn new() -> Stage {
            let lives = Lives { hang_timeout: Some(TIMEOUT), on_hang: OnHang::Report, ..Lives::default() };
            let config = Config { lives, ..Config::default() };
            let mut primary = Primary::new(config);
            let worker = primary.fork(Vec::new());
            primary.handle_spawned(Time::ZERO, worker, Ok(7));
            let mut stage = Stage { primary, worker };
            stage.say(0, "online");
            stage
        }

        fn say(&mut self, ms: u64, act: &str) {
            let line = format!("{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"{act}\",\"seq\":0}}\n");
            assert!(self.primary.handle_bytes(at(ms), self.worker, line.as_bytes(), []));
        }

        /// It becomes so late, with all that was due before; how often the worker was asked.
        fn until(&mut self, ms: u64) -> usize {
            let mut asked = 0;
            while let Some(due) = self.primary.poll_timeout().filter(|due| *due <= at(ms)) {
                self.primary.handle_timeout(due);
                asked += self.asked();
            }
            asked
        }

        fn asked(&mut self) -> usize {
            let mut text = Vec::new();
            while let Some(next) = self.primary.poll_transmit(self.worker) {
                let bytes = next.bytes.to_vec();
                text.extend_from_slice(&bytes);
                self.primary.handle_sent(self.worker, bytes.len());
            }
            String::from_utf8(text).expect("text").matches("\"ping\"").count()
        }

        fn hung(&mut self) -> Vec<bool> {
            let events = std::iter::from_fn(|| self.primary.poll_event());
            events
                .filter_map(|event| match event {
                    Event::Hung { how, .. } => {
                        assert_eq!(how, Hang::Silent);
                        Some(true)
                    }
                    Event::MovesAgain { .. } => Some(false),
                    _ => None,
                })
                .collect()
        }
    }

    #[test]
    fn who_never_said_that_it_answers_is_never_asked() {
        let mut stage = Stage::new();
        assert_eq!(stage.until(100_000), 0);
        assert_eq!((stage.primary.poll_timeout(), stage.hung()), (None, Vec::new()));
    }

    #[test]
    fn who_answers_is_asked_again_after_a_pause() {
        let mut stage = Stage::new();
        stage.say(0, "pong");
        for round in 1..20 {
            assert_eq!(stage.until(round * 4000 - 1), 0);
            assert_eq!(stage.until(round * 4000), 1);
            stage.say(round * 4000, "pong");
        }
        assert_eq!(stage.hung(), NOTHING);
    }

    #[test]
    fn who_does_not_answer_hangs_until_it_does() {
        let mut stage = Stage::new();
        stage.say(0, "pong");
        assert_eq!(stage.until(11_999), 1);
        assert_eq!(stage.hung(), NOTHING);
        assert_eq!(stage.until(100_000), 0, "one question is enough");
        assert_eq!(stage.hung(), [true]);
        stage.say(100_000, "pong");
        assert_eq!(stage.hung(), [false]);
        assert_eq!(stage.until(104_000), 1);
    }

    #[test]
    fn nobody_is_asked_while_it_takes_connections() {
        let mut stage = Stage::new();
        stage.say(0, "pong");
        for ms in (0..60_000).step_by(3000) {
            stage.primary.runs(at(ms), stage.worker);
            assert_eq!(stage.until(ms + 2999), 0);
        }
        assert_eq!(stage.until(62_000), 1);
        // What it takes is an answer as well.
        stage.primary.runs(at(63_000), stage.worker);
        assert_eq!(stage.until(66_999), 0);
        assert_eq!(stage.until(67_000), 1);
        assert_eq!(stage.hung(), NOTHING);
    }

    #[test]
    fn a_primary_that_stood_still_reads_the_answer_first() {
        let mut stage = Stage::new();
        stage.say(0, "pong");
        assert_eq!(stage.until(4000), 1);
        // All deadlines have passed, and the answer has come: whichever is looked at first.
        stage.primary.handle_timeout(at(500_000));
        stage.say(500_000, "pong");
        assert_eq!(stage.hung(), NOTHING);
    }

    #[test]
    fn who_leaves_is_not_asked() {
        let mut stage = Stage::new();
        stage.say(0, "pong");
        stage.primary.leave(at(1000), stage.worker, None);
        assert_eq!(stage.until(100_000), 0);
        assert_eq!(stage.hung(), NOTHING);
        assert_eq!(stage.primary.poll_timeout(), None);
    }
}
