//! What became of every connection.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

/// How one connection ended. There are no other ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every request that was begun on it got its whole reply.
    Served,
    /// Nobody listened.
    Refused,
    /// It was reset before the whole reply.
    Reset,
    /// End of file before the whole reply.
    Closed,
    /// No byte (or no handshake) for as long as the deadline.
    Hung,
    /// Our own fault (no port, no descriptor): the whole run proves nothing.
    HarnessError,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Hung => "hung",
            Self::HarnessError => "harness error",
        })
    }
}

/// One connection that was not served, told in full.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The nonce of the request that failed (the first one, if none was begun).
    pub nonce: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was seen: an error, how many bytes of a reply, where it stopped.
    pub detail: String,
    /// Our own end, if there was one.
    pub local: Option<String>,
    /// Whole replies that came on this connection before.
    pub replies: u64,
    /// When it was begun, in microseconds since the start of the run.
    pub begun_us: u64,
    /// When it ended.
    pub ended_us: u64,
}

/// Percentiles of the time to a whole reply, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Half of the replies were faster.
    pub p50_us: u64,
    /// 99 of 100 were.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// The account of a whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// Where the connections went.
    pub target: String,
    /// Connections begun.
    pub connections: u64,
    /// See [`Outcome::Served`].
    pub served: u64,
    /// See [`Outcome::Refused`].
    pub refused: u64,
    /// See [`Outcome::Reset`].
    pub reset: u64,
    /// See [`Outcome::Closed`].
    pub closed: u64,
    /// See [`Outcome::Hung`].
    pub hung: u64,
    /// See [`Outcome::HarnessError`].
    pub harness_error: u64,
    /// Connections begun whose end is not known yet; 0 when the run is over.
    pub in_flight: u64,
    /// Failures on a connection that had served requests before: the known race
    /// of keep-alive, which no server can close.
    pub failed_reused: u64,
    /// Connections that got at least one whole reply.
    pub answered: u64,
    /// Connections by the worker of their first reply (header `x-worker`).
    pub workers: BTreeMap<String, u64>,
    /// Answered connections whose reply named no worker.
    pub unattributed: u64,
    /// Requests begun.
    pub requests: u64,
    /// Whole replies.
    pub replies: u64,
    /// Replies by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Replies that repeated a nonce other than the one sent.
    pub wrong_nonce: u64,
    /// Connections on which two different workers answered.
    pub torn: u64,
    /// Keep-alive connections that the server ended between two requests.
    pub ended_early: u64,
    /// Served connections that the server did not close within the deadline
    /// although asked to (`Connection: close`).
    pub no_fin: u64,
    /// Connections by source address and worker, if there were several sources.
    pub sources: BTreeMap<IpAddr, BTreeMap<String, u64>>,
    /// Time to a whole reply.
    pub latency: Latency,
    /// How long the run took, in microseconds.
    pub elapsed_us: u64,
    /// The first thousand failures.
    pub failures: Vec<Failure>,
    #[serde(skip)]
    pub(super) samples: Vec<u32>,
}

impl Ledger {
    /// Connections that were not served, whatever the reason.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refused + self.reset + self.closed + self.hung + self.harness_error
    }

    /// Served connections per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.elapsed_us == 0 { 0.0 } else { self.served as f64 * 1e6 / self.elapsed_us as f64 }
    }

    /// What does not add up, one sentence each; empty is well.
    #[must_use]
    pub fn imbalances(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut claim = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        let accounted = self.served + self.failed();
        claim(
            self.connections == accounted,
            format!("{} connections begun, {accounted} accounted for", self.connections),
        );
        claim(self.in_flight == 0, format!("{} connections still in flight", self.in_flight));
        claim(self.harness_error == 0, format!("{} errors of our own: run invalid", self.harness_error));
        claim(self.wrong_nonce == 0, format!("{} replies to somebody else", self.wrong_nonce));
        claim(self.torn == 0, format!("{} connections answered by two workers", self.torn));
        let named: u64 = self.workers.values().sum::<u64>() + self.unattributed;
        claim(named == self.answered, format!("{} connections answered, by {named}", self.answered));
        claim(
            self.answered >= self.served,
            format!("{} served, but only {} answered", self.served, self.answered),
        );
        let statuses: u64 = self.statuses.values().sum();
        claim(statuses == self.replies, format!("{} replies, {statuses} statuses", self.replies));
        claim(
            self.requests >= self.replies,
            format!("{} replies to {} requests", self.replies, self.requests),
        );
        wrong
    }

    /// The books must close: every connection is accounted for exactly once, and
    /// none failed by our own fault.
    ///
    /// # Panics
    /// If they do not, with all that is known.
    #[track_caller]
    pub fn assert_balanced(&self) {
        let wrong = self.imbalances();
        assert!(wrong.is_empty(), "the ledger does not balance:\n  {}\n{self}", wrong.join("\n  "));
    }

    /// Balanced, and not one connection lost.
    ///
    /// # Panics
    /// If one was, with all that is known.
    #[track_caller]
    pub fn assert_all_served(&self) {
        self.assert_balanced();
        assert!(self.connections > 0, "no connection was made\n{self}");
        assert!(self.failed() == 0, "{} of {} connections lost\n{self}", self.failed(), self.connections);
    }

    /// Balanced, and each of `workers` workers served exactly the same number.
    /// For runs that are sequential and whole multiples of `workers`.
    ///
    /// # Panics
    /// If the shares differ.
    #[track_caller]
    pub fn assert_equal_shares(&self, workers: usize) {
        self.assert_all_served();
        assert!(
            self.workers.len() == workers,
            "{} workers answered, not {workers}\n{self}",
            self.workers.len()
        );
        let mut shares = self.workers.values();
        let first = shares.next();
        assert!(shares.all(|n| Some(n) == first), "shares differ\n{self}");
    }

    pub(super) fn book(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Served => &mut self.served,
            Outcome::Refused => &mut self.refused,
            Outcome::Reset => &mut self.reset,
            Outcome::Closed => &mut self.closed,
            Outcome::Hung => &mut self.hung,
            Outcome::HarnessError => &mut self.harness_error,
        } += 1;
    }

    pub(super) fn finish(&mut self) {
        self.samples.sort_unstable();
        let at = |permille: usize| {
            let n = self.samples.len();
            if n == 0 { 0 } else { u64::from(self.samples[((n * permille).div_ceil(1000)).clamp(1, n) - 1]) }
        };
        self.latency = Latency { p50_us: at(500), p99_us: at(990), max_us: at(1000) };
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed_us as f64 / 1e6;
        writeln!(f, "{} connections to {} in {seconds:.2} s", self.connections, self.target)?;
        for (name, n) in [
            ("served", self.served),
            ("refused", self.refused),
            ("reset", self.reset),
            ("closed", self.closed),
            ("hung", self.hung),
            ("harness error", self.harness_error),
        ] {
            writeln!(f, "  {name:<14}{n:>10}")?;
        }
        for (name, n) in [
            ("in flight", self.in_flight),
            ("failed reused", self.failed_reused),
            ("ended early", self.ended_early),
            ("wrong nonce", self.wrong_nonce),
            ("torn", self.torn),
            ("no FIN", self.no_fin),
        ] {
            if n > 0 {
                writeln!(f, "  {name:<14}{n:>10}")?;
            }
        }
        writeln!(f, "  {:<14}{:>10.0} per second", "rate", self.rate())?;
        let l = self.latency;
        writeln!(f, "  {:<14}p50 {} µs, p99 {} µs, max {} µs", "latency", l.p50_us, l.p99_us, l.max_us)?;
        if self.replies != self.answered {
            writeln!(f, "  {:<14}{:>10}", "replies", self.replies)?;
        }
        for (status, n) in self.statuses.iter().filter(|(s, _)| **s != 200) {
            writeln!(f, "  status {status:<7}{n:>10}")?;
        }
        for (worker, n) in &self.workers {
            writeln!(f, "  worker {worker:<7}{n:>10}")?;
        }
        if self.unattributed > 0 {
            writeln!(f, "  {:<14}{:>10}", "worker unnamed", self.unattributed)?;
        }
        for x in self.failures.iter().take(20) {
            writeln!(
                f,
                "  {} {} from {}: {} (after {} replies, {}–{} µs)",
                x.outcome,
                x.nonce,
                x.local.as_deref().unwrap_or("-"),
                x.detail,
                x.replies,
                x.begun_us,
                x.ended_us
            )?;
        }
        if self.failures.len() > 20 {
            writeln!(f, "  … and {} more", self.failed() - 20)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_nobody_booked_is_noticed() {
        let mut ledger = Ledger { connections: 2, answered: 1, unattributed: 1, ..Ledger::default() };
        ledger.book(Outcome::Served);
        assert_eq!(ledger.imbalances(), ["2 connections begun, 1 accounted for"]);
        ledger.book(Outcome::Refused);
        ledger.assert_balanced();
    }

    #[test]
    fn an_error_of_our_own_makes_the_run_invalid() {
        let mut ledger = Ledger { connections: 1, ..Ledger::default() };
        ledger.book(Outcome::HarnessError);
        assert_eq!(ledger.imbalances().len(), 1);
    }

    #[test]
    fn percentiles_are_taken_from_the_samples() {
        let mut ledger = Ledger { samples: (1..=200).rev().collect(), ..Ledger::default() };
        ledger.finish();
        assert_eq!((ledger.latency.p50_us, ledger.latency.p99_us, ledger.latency.max_us), (100, 198, 200));
    }
}
