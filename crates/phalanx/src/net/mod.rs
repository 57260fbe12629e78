//! Sockets that are the same in a worker, under a service manager, and alone.

pub mod blocking;
mod options;
mod source;
mod tcp;
mod udp;
mod unix;

pub use blocking::listen_std;
pub use options::ListenOptions;
pub use tcp::{TcpIncoming, TcpListener};
pub use udp::UdpSocket;
pub use unix::{UnixIncoming, UnixListener};
