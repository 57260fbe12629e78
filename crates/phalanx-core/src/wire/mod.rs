//! What travels on the channel between a primary and a worker: Node's JSON lines.
//!
//! Nothing outside this module knows a JSON key. A [`Decoder`] turns the chunks of a stream socket
//! and the descriptors that came with them into [`Frame`]s, [`encode`] and its siblings write lines,
//! an [`Outbox`] decides which bytes and which descriptor the next system call may take.
//!
//! Node's other [`Serialization`] is a coat over the same lines: what comes is turned into JSON before
//! anybody looks at it, what goes is turned into it when all is written.
//!
//! Everything here is pure: no descriptor is touched (they are whatever type the caller chooses), no
//! clock is read. A peer's bytes can cause a [`Violation`], never a panic and never more memory than
//! the longest permitted line plus one chunk (a frame, and as much again for the line made of it).

mod advanced;
mod decode;
mod decoder;
mod encode;
mod envelope;
mod fast;
mod fields;
mod listen;
mod message;
mod outbox;
mod payload;
mod reply;
mod scan;
mod serialization;
mod v8;
mod violation;

pub use decoder::{DEFAULT_MAX_MESSAGE, Decoder, Frame, Frames};
pub use encode::{
    HANDLE_ACK, HANDLE_NACK, NewConnectionLine, encode, encode_answer, encode_enveloped,
    encode_new_connection,
};
pub use envelope::{Envelope, HandleKind};
pub use listen::{Family, ListenRequest};
pub use message::{Message, Seq};
pub use outbox::{Outbox, Transmit};
pub use payload::{NotJson, Payload};
pub use reply::{Reply, SockName};
pub use serialization::{Serialization, UnknownSerialization};
pub use violation::{Excerpt, Violation};
