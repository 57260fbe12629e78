//! The names of things: newtypes, never bare integers.

use serde::Serialize;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One incarnation of a worker. Counts from 1 and is never reused (FORK-01).
    WorkerId(u32)
}
id! {
    /// A worker's stable place, `0..N`. A successor carries the slot of the worker that it replaces.
    Slot(u32)
}
id! {
    /// Which code a worker runs. Counts from 1.
    Generation(u32)
}
id! {
    /// One accepted connection, from accept until somebody else owns it.
    ConnId(u64)
}
id! {
    /// One listener. The worker knows it by its key, a string; inside, by this.
    ListenerId(u32)
}
id! {
    /// One listening or bound socket that the primary holds.
    SocketId(u32)
}
id! {
    /// A steered worker's index in the kernel's map of sockets: one for each incarnation, used again after it.
    Place(u32)
}
