//! One worker's life, as a full match over state and input.
//!
//! ```text
//! Starting ──► Online ──► Listening ─┐          asked to leave, or says that it leaves
//!    │           │            │      ├────────► Draining
//!    └───────────┴────────────┴──────┘             │
//!                │                                 │
//!        channel closed ──► Disconnected ◄─────────┤      (either may come first,
//!        process ended  ──► Exited       ◄─────────┘       each happens at most once)
//!                └─────────────► Gone ◄──────┘
//! ```
//!
//! `Disconnected` still has a process, `Exited` still has a channel, `Gone` has neither.

pub use crate::end::{Cause, Ended};
use crate::wire::Violation;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A worker's state. The latest event set it (LIFE-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Its process runs; it has not said `online`. (Node: `none`.)
    Starting,
    /// It has said `online`, or has no channel to say it on.
    Online,
    /// It listens on at least one key.
    Listening,
    /// It gets nothing new and ends what it has.
    Draining,
    /// Its channel is closed, its process lives.
    Disconnected,
    /// Its process has ended, its channel is not at its end.
    Exited,
    /// Both are over.
    Gone,
}

impl State {
    /// Its name in `status` and events.
    pub const fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Online => "online",
            State::Listening => "listening",
            State::Draining => "draining",
            State::Disconnected => "disconnected",
            State::Exited => "exited",
            State::Gone => "gone",
        }
    }

    /// Whether its process lives.
    pub const fn is_alive(self) -> bool {
        !matches!(self, State::Exited | State::Gone)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a worker was given to speak on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Speaks {
    /// Node's IPC, by Node's variables.
    Node,
    /// The same wire, by our own variable.
    Phalanx,
    /// The same as `Phalanx`, offered to a program that may not know what it is. Until it says `online`
    /// it is treated as having none.
    Perhaps,
    /// Nothing: a plain program.
    Nothing,
}

/// The times and signals of a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// From spawn to `online`, for a worker that is sure to speak. `None`: for ever.
    pub start_timeout: Option<Duration>,
    /// From the order to leave to the stop signal.
    pub drain_timeout: Duration,
    /// From the stop signal to SIGKILL.
    pub term_timeout: Duration,
    /// Ends a worker that has drained, or that will not.
    pub stop_signal: i32,
}

/// SIGKILL has the same number everywhere on Linux.
pub(crate) const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// A worker whose channel closed unexpectedly has this long to end by itself (CHILD-02: it should at once).
const GRACE: Duration = Duration::from_secs(1);
/// From the moment when a worker gets nothing new to the order to leave, for those that close what they have accepted and
/// not read when it comes.
const YIELD: Duration = Duration::from_millis(50);

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            start_timeout: Some(Duration::from_secs(30)),
            drain_timeout: Duration::from_secs(30),
            term_timeout: Duration::from_secs(5),
            stop_signal: SIGTERM,
        }
    }
}

/// What can happen to a worker.
#[derive(Debug)]
pub(crate) enum Input {
    /// It said `online`.
    Online,
    /// One of its servers listens.
    Listening,
    /// It cannot say so, but was seen to wait for connections.
    Accepts,
    /// It said that it gives up its listeners.
    GaveUp,
    /// It said that it leaves by its own choice.
    LeaveNotice,
    /// It is to leave. With a signal: that one follows when it has drained, or would not.
    Leave { then: Option<i32> },
    /// It is to end now, without a drain.
    Terminate,
    /// It is to be killed.
    Kill,
    /// It broke the protocol.
    Violation(Violation),
    /// Its channel is at its end.
    ChannelClosed,
    /// Its process has ended, and what it had written to its channel has been read.
    Ended(Ended),
    /// Its deadline has passed.
    Timeout,
}

/// What must be done about it, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell it to leave.
    AskToLeave,
    /// It gets nothing new: take it off every listener.
    LeaveListeners,
    /// Send it a signal.
    Signal(i32),
    /// Close our end of its channel.
    CloseChannel,
    /// The fence is up: what it had not taken goes to others.
    Fence(Ended),
    /// Tell the user.
    Announce(Announce),
    /// Its record can be forgotten.
    Forget,
}

/// What the user hears about a worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    Online,
    Draining,
    Disconnect,
    Exit(Ended),
    Violation(String),
}

/// What the one deadline of a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// None is set.
    Idle,
    /// It must say `online`.
    Start,
    /// It must have read what it accepted last; then it is told to leave.
    Yield,
    /// It must have drained.
    Drain,
    /// It must have ended by itself.
    Grace,
    /// It must have ended by the stop signal.
    Term,
}

/// The life of one worker.
#[derive(Debug)]
pub(crate) struct Life {
    state: State,
    stage: Stage,
    speaks: Speaks,
    limits: Limits,
    /// Somebody replaces what ends: a worker that has drained is not left alone (DISC-05), and a dead one's
    /// channel is not kept for the sake of its children (LIFE-10).
    supervised: bool,
    exited_after_disconnect: Option<bool>,
    then: Option<i32>,
    cause: Option<Cause>,
    /// It has said `online`.
    spoke: bool,
}

impl Life {
    /// A worker whose process has just started, and when it must have come online.
    pub(crate) fn new(speaks: Speaks, limits: Limits, supervised: bool) -> (Life, Option<Duration>) {
        let deadline = match speaks {
            Speaks::Node | Speaks::Phalanx => limits.start_timeout,
            Speaks::Perhaps | Speaks::Nothing => None,
        };
        let life = Life {
            // A plain program cannot say `online`: that it runs is all there is to know.
            state: if speaks == Speaks::Nothing { State::Online } else { State::Starting },
            stage: if deadline.is_some() { Stage::Start } else { Stage::Idle },
            speaks,
            limits,
            supervised,
            exited_after_disconnect: None,
            then: None,
            cause: None,
            spoke: false,
        };
        (life, deadline)
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn exited_after_disconnect(&self) -> Option<bool> {
        self.exited_after_disconnect
    }

    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// What ends it.
    pub(crate) fn stop_signal(&self) -> i32 {
        self.limits.stop_signal
    }

    /// Says why what follows is done. The first cause is the one that counts.
    pub(crate) fn blame(&mut self, cause: Cause) {
        self.cause.get_or_insert(cause);
    }

    /// So much of the time that it would have had to drain is over.
    pub(crate) fn hurry(&mut self, spent: Duration) {
        self.limits.drain_timeout = self.limits.drain_timeout.saturating_sub(spent);
    }

    /// Whether it has said `online`.
    pub(crate) fn spoke(&self) -> bool {
        self.spoke
    }

    /// Whether it closes what it has accepted and not read when it is told to leave: servers without a channel do, and
    /// Node's since v26. Whoever only disconnects a Node worker says so at once, as Node does.
    fn reads_first(&self, then: Option<i32>) -> bool {
        !self.has_channel() || (self.speaks == Speaks::Node && then.is_some())
    }

    /// Whether it can be told anything.
    pub(crate) fn has_channel(&self) -> bool {
        match self.speaks {
            Speaks::Node | Speaks::Phalanx => true,
            Speaks::Perhaps => self.spoke,
            Speaks::Nothing => false,
        }
    }

    /// What follows from `input`: effects in order, and the new deadline counted from now (`Some(None)`: none
    /// any more; `None`: as it was).
    pub(crate) fn on(&mut self, input: Input, effects: &mut Vec<Effect>) -> Option<Option<Duration>> {
        use State::{Disconnected, Draining, Exited, Gone, Listening, Online, Starting};
        match (self.state, input) {
            (Starting, Input::Online) => {
                self.spoke = true;
                self.state = Online;
                effects.push(Effect::Announce(Announce::Online));
                self.deadline(Stage::Idle)
            }
            // Asked to leave before it was up: it still comes online, and then leaves (DISC-15).
            (Draining, Input::Online) => {
                self.spoke = true;
                effects.push(Effect::Announce(Announce::Online));
                None
            }
            // It has said something else before.
            (Listening, Input::Online) if !self.spoke => {
                self.spoke = true;
                effects.push(Effect::Announce(Announce::Online));
                self.deadline(Stage::Idle)
            }
            (Online | Listening | Disconnected | Exited | Gone, Input::Online) => {
                self.spoke = true;
                None
            }

            (Starting | Online | Listening, Input::Listening) => {
                self.state = Listening;
                None
            }
            (Draining | Disconnected | Exited | Gone, Input::Listening) => None,

            // A program that was offered a channel and serves without it: it is plain, as far as can be told.
            (Starting, Input::Accepts) => {
                self.state = Listening;
                effects.push(Effect::Announce(Announce::Online));
                self.deadline(Stage::Idle)
            }
            (Online, Input::Accepts) => {
                self.state = Listening;
                None
            }
            (Listening | Draining | Disconnected | Exited | Gone, Input::Accepts) => None,

            (Starting | Online | Listening, Input::GaveUp) => {
                self.state = Draining;
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Announce(Announce::Draining));
                self.drain(if self.supervised { Some(self.limits.stop_signal) } else { None })
            }
            (Draining | Disconnected | Exited | Gone, Input::GaveUp) => None,

            (Starting | Online | Listening, Input::LeaveNotice) => {
                self.exited_after_disconnect = Some(true);
                self.state = Draining;
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Announce(Announce::Draining));
                self.drain(if self.supervised { Some(self.limits.stop_signal) } else { None })
            }
            (Draining, Input::LeaveNotice) => {
                self.exited_after_disconnect = Some(true);
                None
            }
            (Disconnected | Exited | Gone, Input::LeaveNotice) => None,

            (Starting | Online | Listening, Input::Leave { then }) => {
                self.exited_after_disconnect = Some(true);
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Announce(Announce::Draining));
                self.state = Draining;
                if self.reads_first(then) {
                    self.then = then.or(self.then);
                    self.deadline(Stage::Yield)
                } else {
                    effects.push(Effect::AskToLeave);
                    self.drain(then)
                }
            }
            // Leaving already: a kill on top of a disconnect adds the signal and its deadline.
            (Draining, Input::Leave { then }) if self.then.is_none() && then.is_some() => {
                if !self.has_channel() {
                    effects.push(Effect::Signal(then.unwrap_or(self.limits.stop_signal)));
                }
                self.drain(then)
            }
            (Draining, Input::Leave { .. }) => None,
            (Disconnected, Input::Leave { then }) => match then {
                Some(signal) if self.stage != Stage::Term => {
                    self.exited_after_disconnect = Some(true);
                    effects.push(Effect::Signal(signal));
                    self.deadline(Stage::Term)
                }
                Some(_) | None => None,
            },
            (Exited | Gone, Input::Leave { .. }) => None,

            (Starting | Online | Listening | Draining | Disconnected, Input::Terminate) => {
                self.cause.get_or_insert(Cause::Asked);
                self.exited_after_disconnect = Some(true);
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Signal(self.limits.stop_signal));
                self.then = Some(self.limits.stop_signal);
                self.deadline(Stage::Term)
            }
            (Starting | Online | Listening | Draining | Disconnected, Input::Kill) => {
                self.cause.get_or_insert(Cause::Asked);
                self.exited_after_disconnect = Some(true);
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Signal(SIGKILL));
                self.deadline(Stage::Idle)
            }
            (Exited | Gone, Input::Terminate | Input::Kill) => None,

            (Starting | Online | Listening | Draining, Input::Violation(violation)) => {
                self.violation(violation.to_string(), effects)
            }
            (Disconnected | Exited | Gone, Input::Violation(_)) => None,

            (Starting | Online | Listening, Input::ChannelClosed) => {
                let spoke = self.has_channel();
                self.speaks = Speaks::Nothing;
                if !spoke {
                    // A plain program closed the fd that it did not know. It never had a channel.
                    self.state = Online;
                    return None;
                }
                self.exited_after_disconnect.get_or_insert(false);
                self.state = Disconnected;
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::CloseChannel);
                effects.push(Effect::Announce(Announce::Disconnect));
                self.deadline(Stage::Grace)
            }
            // The channel's end after an order to leave means: drained.
            (Draining, Input::ChannelClosed) => {
                let spoke = self.has_channel();
                effects.push(Effect::CloseChannel);
                if !spoke {
                    return None;
                }
                self.state = Disconnected;
                self.exited_after_disconnect.get_or_insert(false);
                effects.push(Effect::Announce(Announce::Disconnect));
                match self.then {
                    Some(_) if self.stage == Stage::Term => None,
                    Some(signal) => {
                        effects.push(Effect::Signal(signal));
                        self.deadline(Stage::Term)
                    }
                    None => self.deadline(Stage::Idle),
                }
            }
            (Exited, Input::ChannelClosed) => {
                self.state = Gone;
                effects.push(Effect::CloseChannel);
                effects.push(Effect::Announce(Announce::Disconnect));
                effects.push(Effect::Forget);
                None
            }
            (Disconnected | Gone, Input::ChannelClosed) => None,

            (Starting | Online | Listening | Draining, Input::Ended(ended)) => {
                let spoke = self.has_channel();
                self.exited_after_disconnect.get_or_insert(false);
                effects.push(Effect::LeaveListeners);
                effects.push(Effect::Fence(ended));
                effects.push(Effect::Announce(Announce::Exit(ended)));
                if spoke && !self.supervised {
                    self.state = Exited;
                } else {
                    effects.push(Effect::CloseChannel);
                    if spoke {
                        effects.push(Effect::Announce(Announce::Disconnect));
                    }
                    self.state = Gone;
                    effects.push(Effect::Forget);
                }
                self.deadline(Stage::Idle)
            }
            (Disconnected, Input::Ended(ended)) => {
                self.state = Gone;
                effects.push(Effect::Fence(ended));
                effects.push(Effect::Announce(Announce::Exit(ended)));
                effects.push(Effect::Forget);
                self.deadline(Stage::Idle)
            }
            (Exited | Gone, Input::Ended(_)) => None,

            (Starting | Online | Listening | Draining | Disconnected, Input::Timeout) => {
                self.timeout(effects)
            }
            (Exited | Gone, Input::Timeout) => None,
        }
    }

    fn timeout(&mut self, effects: &mut Vec<Effect>) -> Option<Option<Duration>> {
        match self.stage {
            Stage::Idle => None,
            Stage::Start => {
                self.cause = Some(Cause::NeverOnline);
                effects.push(Effect::Signal(SIGKILL));
                self.deadline(Stage::Idle)
            }
            Stage::Yield => {
                effects.push(match self.has_channel() {
                    true => Effect::AskToLeave,
                    // It cannot be told: the signal is the order to drain.
                    false => Effect::Signal(self.then.unwrap_or(self.limits.stop_signal)),
                });
                self.deadline(Stage::Drain)
            }
            Stage::Drain if self.has_channel() => {
                self.cause.get_or_insert(Cause::DrainTimeout);
                effects.push(Effect::Signal(self.then.unwrap_or(self.limits.stop_signal)));
                self.deadline(Stage::Term)
            }
            // Its signal was the order to drain, so all that is left is the last one.
            Stage::Drain => {
                self.cause.get_or_insert(Cause::DrainTimeout);
                effects.push(Effect::Signal(SIGKILL));
                self.deadline(Stage::Idle)
            }
            Stage::Grace => {
                self.cause.get_or_insert(Cause::ClosedChannel);
                effects.push(Effect::Signal(self.limits.stop_signal));
                self.deadline(Stage::Term)
            }
            Stage::Term => {
                self.cause.get_or_insert(Cause::IgnoredStopSignal);
                effects.push(Effect::Signal(SIGKILL));
                self.deadline(Stage::Idle)
            }
        }
    }

    fn violation(&mut self, how: String, effects: &mut Vec<Effect>) -> Option<Option<Duration>> {
        self.state = State::Disconnected;
        self.exited_after_disconnect.get_or_insert(false);
        self.cause = Some(Cause::Protocol(how.clone()));
        effects.push(Effect::LeaveListeners);
        effects.push(Effect::CloseChannel);
        effects.push(Effect::Announce(Announce::Violation(how)));
        effects.push(Effect::Announce(Announce::Disconnect));
        self.deadline(Stage::Grace)
    }

    /// Nothing ends a drain that nobody asked to end: without a signal to follow, it has no deadline.
    fn drain(&mut self, then: Option<i32>) -> Option<Option<Duration>> {
        self.then = then.or(self.then);
        match (self.then, self.has_channel()) {
            (Some(_), _) | (None, false) => self.deadline(Stage::Drain),
            (None, true) => self.deadline(Stage::Idle),
        }
    }

    fn deadline(&mut self, stage: Stage) -> Option<Option<Duration>> {
        // The stop signal makes workers say that they drain. They get no more time for it.
        if self.stage == Stage::Term && matches!(stage, Stage::Yield | Stage::Drain) {
            return None;
        }
        self.stage = stage;
        Some(match stage {
            Stage::Idle => None,
            Stage::Start => self.limits.start_timeout,
            Stage::Yield => Some(YIELD),
            Stage::Drain => Some(self.limits.drain_timeout),
            Stage::Grace => Some(GRACE),
            Stage::Term => Some(self.limits.term_timeout),
        })
    }
}

#[cfg(test)]
mod tests;
