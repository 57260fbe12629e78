//! Every message, in either direction, already classified.

use super::{ListenRequest, Payload, Reply};

/// The number of a cluster message, counted by the process that sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// One message. W→P is from worker to primary, P→W the other way; who sent what is not checked here.
///
/// A `seq` in a variant is the one that was received. Writing a message always stamps the number
/// given to [`encode`](super::encode).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// W→P: the worker lives; its first message.
    Online,
    /// W→P: the worker wants to listen; wants a [`Reply`].
    QueryServer {
        /// What the reply refers to.
        seq: Seq,
        /// What it wants.
        request: ListenRequest,
    },
    /// W→P: the worker listens.
    Listening {
        /// The request again, `port` being the real one.
        request: ListenRequest,
    },
    /// W→P: the worker's server with this key is closed.
    Close {
        /// As given in the reply.
        key: String,
    },
    /// W→P: the worker leaves of its own will; wants a bare [`Reply`].
    LeaveNotice {
        /// What the reply refers to.
        seq: Seq,
    },
    /// W→P, v0.12: the worker leaves of its own will. An answer would kill it.
    Suicide,
    /// P→W, in an envelope: a connection; wants a receipt and a [`Reply`] with `accepted`.
    NewConnection {
        /// What the reply refers to.
        seq: Seq,
        /// Whose connection it is.
        key: String,
    },
    /// P→W: close all servers, finish, close the channel. Sent once.
    Disconnect,
    /// Either way: an answer.
    Reply(Reply),
    /// Either way: the oldest envelope without a receipt arrived with its descriptor.
    HandleAck,
    /// Either way: the oldest envelope without a receipt arrived without its descriptor.
    HandleNack,
    /// Owner to holder: say when no socket with this key is left.
    SocketNotifyClose {
        /// The envelope's key.
        key: String,
    },
    /// Owner to holder: how many sockets with this key are there?
    SocketGetCount {
        /// The envelope's key.
        key: String,
    },
    /// Holder to owner: no socket with this key is left.
    SocketAllClosed {
        /// The envelope's key.
        key: String,
    },
    /// Holder to owner: so many.
    SocketCount {
        /// The envelope's key.
        key: String,
        /// How many.
        count: u64,
    },
    /// Ours, W→P: the worker gave up its listeners; its connections may go on for a while.
    Draining,
    /// Ours, W→P: the worker says that it is ready.
    Ready,
    /// Ours, P→W: does the application run? Wants a [`Message::Pong`].
    Ping,
    /// Ours, W→P: the application runs; the first one, unasked, says that more can be had.
    Pong,
    /// Ours. W→P, with nothing: the worker wants the keys of TLS session tickets. P→W: here they are.
    TicketKeys {
        /// As text; only the library looks into it.
        keys: String,
    },
    /// Internal, but nothing we know, or an envelope without content: ignored (an envelope still
    /// wants its receipt). Never written.
    Unknown,
    /// A user's message.
    User(Payload),
    /// A user's message that JSON has no form for, or a longer one than permitted, as V8 serialized it; with a
    /// descriptor, the envelope included. Never written.
    Opaque(Box<[u8]>),
}
