//! What has happened: the recent past, and whoever follows.

use phalanx::Event;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::broadcast;

/// Events that are kept.
const KEPT: usize = 256;
/// A longer one (a message may be of any size) is told and not kept.
const LONGEST: usize = 4096;
/// Events that one follower may be behind.
const BEHIND: usize = 1024;

/// An event, as one line of JSON.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    /// Milliseconds since 1970.
    time_ms: u64,
    #[serde(flatten)]
    event: &'a Event,
}

#[derive(Debug)]
pub(crate) struct Journal(Mutex<State>);

#[derive(Debug)]
struct State {
    recent: VecDeque<String>,
    followers: broadcast::Sender<String>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal(Mutex::new(State { recent: VecDeque::new(), followers: broadcast::Sender::new(BEHIND) }))
    }
}

impl Journal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, event: &Event) {
        let line = line(event);
        let mut state = self.state();
        if line.len() <= LONGEST {
            if state.recent.len() == KEPT {
                state.recent.pop_front();
            }
            state.recent.push_back(line.clone());
        }
        let _ = state.followers.send(line);
    }

    /// The recent past, oldest first, and everything after it.
    pub(crate) fn read(&self) -> (String, broadcast::Receiver<String>) {
        let state = self.state();
        (state.recent.iter().map(String::as_str).collect(), state.followers.subscribe())
    }
}

/// What a follower gets in place of what it was too slow for.
pub(crate) fn lagged(missed: u64) -> String {
    line(&Event::Lagged { missed })
}

fn line(event: &Event) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let mut line = serde_json::to_string(&Entry { time_ms, event }).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_past_is_kept_and_the_future_follows() {
        let journal = Journal::default();
        for _ in 0..KEPT + 5 {
            journal.write(&Event::Finished);
        }
        let (past, mut future) = journal.read();
        assert_eq!(past.lines().count(), KEPT);
        assert!(past.lines().all(|line| line.contains("time_ms") && line.contains("finished")), "{past}");
        assert!(future.try_recv().is_err());
        journal.write(&Event::Lagged { missed: 7 });
        assert!(future.try_recv().is_ok_and(|line| line.contains("\"missed\":7")));
    }
}
