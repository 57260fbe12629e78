//! Sockets that are the same in a worker, under a service manager, and alone.

mod options;
pub use options::ListenOptions;

#[cfg(feature = "axum-08")]
mod axum;

#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod linux {
    pub use super::listen_std::listen_std;
    pub use super::tcp::{TcpIncoming, TcpListener};
    pub use super::udp::UdpSocket;
    pub use super::unix::{UnixIncoming, UnixListener};
}
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
pub mod blocking;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod held;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod listen_std;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod source;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod tcp;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod udp;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod unix;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
mod wait;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
pub(crate) use held::give_up_all;
#[cfg(all(target_os = "linux", not(phalanx_standalone)))]
pub use linux::*;

#[cfg(any(not(target_os = "linux"), phalanx_standalone))]
mod standalone;
#[cfg(any(not(target_os = "linux"), phalanx_standalone))]
pub use standalone::*;
