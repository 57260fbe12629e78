//! (to be written)

#[cfg(target_os = "linux")]
pub mod drain;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod worker;
