//! What happened, for whoever listens.

use crate::lifecycle::{Cause, Ended};
use crate::primary::{Aborted, Hang};
use crate::settings::Settings;
use crate::steer::Engine;
use crate::{BoundAddress, Generation, Slot, WorkerId};
use serde::{Serialize, Serializer};
use std::sync::Arc;

/// Writes the enum with its one variant that depends on what travels, and the way from one kind of message to another,
/// which leaves all other variants as they are.
macro_rules! events {
    ($( $(#[$doc:meta])* $name:ident $({ $( $(#[$about:meta])* $field:ident: $type:ty, )* })?, )*) => {
        /// Something that happened in a cluster. The record it names is as it was then.
        ///
        /// `M` is what a message is, and `H` the socket that may come with it.
        #[derive(Clone, Debug, Serialize)]
        #[serde(tag = "event", rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Event<M, H> {
            $( $(#[$doc])* $name $({ $( $(#[$about])* $field: $type, )* })?, )*
            /// A message from a worker.
            Message {
                /// Who.
                worker: WorkerId,
                /// What.
                message: M,
                /// The socket that came with it.
                #[serde(skip)]
                handle: Option<H>,
            },
            /// A message from a worker that JSON has no form for: with
            /// [`Serialization::Advanced`](crate::wire::Serialization::Advanced) a map, a date, a buffer or the like,
            /// or what holds one; with lines, text that is no Unicode.
            Opaque {
                /// Who.
                worker: WorkerId,
                /// What, as it came. In JSON, how long it is.
                #[serde(serialize_with = "length")]
                bytes: Arc<[u8]>,
                /// The socket that came with it.
                #[serde(skip)]
                handle: Option<H>,
            },
        }

        impl<M, H> Event<M, H> {
            /// The same event with another kind of message, or as opaque bytes what `message` makes none of; and with
            /// another kind of socket, or none.
            pub fn map_message<N, I>(
                self,
                message: impl FnOnce(M) -> Result<N, Arc<[u8]>>,
                handle: impl FnOnce(WorkerId, H) -> Option<I>,
            ) -> Event<N, I> {
                match self {
                    $( Self::$name $({ $($field),* })? => Event::$name $({ $($field),* })?, )*
                    Self::Message { worker, message: said, handle: came } => {
                        let handle = came.and_then(|came| handle(worker, came));
                        match message(said) {
                            Ok(message) => Event::Message { worker, message, handle },
                            Err(bytes) => Event::Opaque { worker, bytes, handle },
                        }
                    }
                    Self::Opaque { worker, bytes, handle: came } => {
                        Event::Opaque { worker, bytes, handle: came.and_then(|came| handle(worker, came)) }
                    }
                }
            }
        }
    };
}

fn length<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(bytes.len() as u64)
}

events! {
    /// A worker was started. Before its `Online`.
    Fork {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// Its process.
        pid: u32,
    },
    /// A worker could not be started. Nothing else is ever heard of it.
    ForkFailed {
        /// Where.
        slot: Slot,
        /// Why, as a sentence.
        error: String,
    },
    /// A worker said that it is up.
    Online {
        /// Who.
        worker: WorkerId,
    },
    /// One of a worker's servers listens.
    Listening {
        /// Who.
        worker: WorkerId,
        /// What.
        info: ListeningInfo,
    },
    /// A worker gave up one of its listeners.
    ListenerLeft {
        /// Who.
        worker: WorkerId,
        /// The key of the listener.
        key: String,
    },
    /// Nobody holds this listener any more, and it was closed.
    ListenerClosed {
        /// The key of the listener.
        key: String,
    },
    /// A listener could not be made.
    BindFailed {
        /// The key of the listener.
        key: String,
        /// Why: an error number of the system. As JSON, `error`, a sentence.
        #[serde(rename = "error", serialize_with = "sentence")]
        errno: i32,
        /// The key of the cluster's own listener that has the address already, if it is one.
        held_by: Option<String>,
        /// It is one of the configuration: no worker asked for it, so nobody else hears of it.
        #[serde(skip)]
        configured: bool,
    },
    /// A configured listener has its address.
    Bound {
        /// What the configuration calls it.
        name: String,
        /// Where it is.
        address: BoundAddress,
    },
    /// A worker gets nothing new any more and ends what it has.
    Draining {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is ready, by what makes it so.
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// A worker hangs.
    Hung {
        /// Who.
        worker: WorkerId,
        /// How that shows.
        how: Hang,
        /// What its process does, as far as the kernel tells: for people. Filled in by the driver.
        seen: Vec<String>,
    },
    /// It moves again, before anything was done about it.
    MovesAgain {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is to be replaced, as soon as its successor can.
    Due {
        /// Who.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A reload has begun.
    Reloading {
        /// To which generation.
        generation: Generation,
    },
    /// Every worker is of this generation and ready, and no other is left.
    Reloaded {
        /// Which.
        generation: Generation,
    },
    /// A reload was given up: the generation before stays, or comes back where it had left.
    ReloadAborted {
        /// Which will not be.
        generation: Generation,
        /// Why.
        why: Aborted,
        /// What the worker that failed printed last, oldest first. Filled in by the driver.
        last_lines: Vec<String>,
    },
    /// Everything will stop, after a delay in which it serves on.
    Stopping,
    /// A worker's channel is closed.
    Disconnect {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's process has ended.
    Exit {
        /// Who.
        worker: WorkerId,
        /// Where.
        slot: Slot,
        /// How.
        ended: Ended,
        /// What phalanx did to bring it about.
        cause: Option<Cause>,
        /// Whether somebody had asked it to leave.
        exited_after_disconnect: bool,
        /// Connections that it had taken by hand-off, or at most so many by steering.
        taken: u64,
        /// Connections that it had been handed and had not acknowledged: they went to others.
        unacknowledged: u64,
        /// What it printed last, oldest first, if nobody had asked it to leave. Filled in by the driver.
        last_lines: Vec<String>,
    },
    /// A worker broke the protocol: its channel was closed, it will be ended.
    Violation {
        /// Who.
        worker: WorkerId,
        /// How.
        how: String,
    },
    /// A slot's workers die before they come online, again and again. It is retried at the longest interval.
    Degraded {
        /// Which.
        slot: Slot,
    },
    /// Connections wait for a steered worker and it takes none: it is passed over until it does.
    Lags {
        /// Who.
        worker: WorkerId,
        /// On which listener.
        key: String,
    },
    /// An engine of steering is not possible here. Said once; listeners get the next best mechanism.
    SteeringRefused {
        /// Which.
        engine: Engine,
        /// Why, as part of a sentence.
        why: String,
    },
    /// Somebody had changed a group of steered sockets, and it was put right. Only a worker that holds one of them
    /// could have.
    Tampered {
        /// The listener.
        key: String,
    },
    /// Other sockets listen on the address of a steered listener, and may get some of its connections.
    Strangers {
        /// The listener.
        key: String,
        /// How many.
        count: u32,
    },
    /// The primary ran out of file descriptors: this listener rests.
    OutOfFiles {
        /// The key of the listener.
        key: String,
    },
    /// It accepts again.
    AcceptingAgain {
        /// The key of the listener.
        key: String,
    },
    /// Nobody is left and nobody will come: all have ended after a stop, or no slot may be filled again.
    Finished,
    /// What later workers run has been settled: because it was changed, or, as it stands, for a fork by hand. Told by
    /// the driver.
    Setup {
        /// As it was then.
        settings: Box<Settings>,
    },
    /// Nobody reads what workers print, or it cannot be written: from now on lines are dropped. Once for each time this begins. Told by the
    /// driver.
    OutputDropped {
        /// Lines dropped so far, of all workers.
        dropped: u64,
    },
    /// This listener to events was too slow; so many were dropped. Told by the driver.
    Lagged {
        /// How many.
        missed: u64,
    },
}

fn sentence<S: Serializer>(errno: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&std::io::Error::from_raw_os_error(*errno))
}

/// What `listening` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListeningInfo {
    /// As asked for, after name resolution; `None` if none was given.
    pub address: Option<String>,
    /// The port really bound; −1 for a Unix socket.
    pub port: Option<i32>,
    /// 4, 6, −1, `udp4`, `udp6` in Node's words; `None` for an inherited socket.
    pub family: Option<&'static str>,
    /// The number of an inherited socket.
    pub fd: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_json_it_says_what_people_understand() {
        let json = |event: Event<&str, ()>| serde_json::to_string(&event).unwrap();
        let failed = Event::BindFailed { key: "k".into(), errno: 98, held_by: None, configured: true };
        assert_eq!(
            json(failed),
            r#"{"event":"bind-failed","key":"k","error":"Address already in use (os error 98)","held_by":null}"#
        );
        let address = BoundAddress::Inet("[::1]:80".parse().unwrap());
        assert_eq!(
            json(Event::Bound { name: "web".into(), address }),
            r#"{"event":"bound","name":"web","address":"[::1]:80"}"#
        );
        assert_eq!(
            json(Event::Message { worker: WorkerId(1), message: "hi", handle: Some(()) }),
            r#"{"event":"message","worker":1,"message":"hi"}"#
        );
    }

    #[test]
    fn another_kind_of_message_changes_nothing_else() {
        let map = |event: Event<u8, u8>| {
            event.map_message(
                |message| if message < 9 { Ok(message.to_string()) } else { Err([message].into()) },
                |_, handle| (handle > 0).then(|| handle.to_string()),
            )
        };
        let worker = WorkerId(1);
        let told = map(Event::Message { worker, message: 7, handle: Some(2) });
        assert!(
            matches!(told, Event::Message { message, handle: Some(handle), .. } if message == "7" && handle == "2")
        );
        let told = map(Event::Message { worker, message: 9, handle: Some(0) });
        assert!(matches!(told, Event::Opaque { bytes, handle: None, .. } if *bytes == [9]));
        let told = map(Event::Opaque { worker, bytes: [1, 2].into(), handle: Some(3) });
        assert_eq!(serde_json::to_string(&told).unwrap(), r#"{"event":"opaque","worker":1,"bytes":2}"#);
        assert!(matches!(told, Event::Opaque { handle: Some(handle), .. } if handle == "3"));
        assert!(matches!(map(Event::Degraded { slot: Slot(3) }), Event::Degraded { slot: Slot(3) }));
    }
}
