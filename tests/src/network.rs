//! Networks of a test's own, and people who do not mean well in them.
//!
//! [`alone`] runs a closure in a network namespace with its own settings, where [`Flood`] and [`scan`] disturb
//! nobody else. It has one network beside loopback, [`HERE`], whose other hosts never answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketType, sendto, socket};

use crate::{lab, raw};

/// The address of the only host of its network that exists.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// Runs a closure in a network of its own, with these settings below `/proc/sys/net`; all threads and programs
/// that it starts are in it as well. `None` where that is not permitted.
///
/// # Panics
/// If the closure does, or if a setting cannot be made.
#[track_caller]
pub fn alone<T: Send>(settings: &[(&str, &str)], inside: impl FnOnce() -> T + Send) -> Option<T> {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| prepare(settings).map(|()| inside()))
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e))
    });
    match result {
        Ok(value) => Some(value),
        Err(why) => {
            lab::skip(&format!("no network of its own: {why}"));
            None
        }
    }
}

fn prepare(settings: &[(&str, &str)]) -> Result<(), String> {
    raw::leave_network().map_err(|e| e.to_string())?;
    // Whatever goes to the other end is for somebody who is not there.
    for command in [
        "link set lo up",
        "link add here type veth peer name there",
        "address add 10.9.0.1/16 dev here",
        "link set here arp off",
        "link set here up",
        "link set there up",
    ] {
        let out = Command::new("ip").args(command.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
        if !out.status.success() {
            return Err(format!("ip {command}: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
    }
    // Packets come from hosts that are elsewhere, by loopback.
    let open = [("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/lo/rp_filter", "0")];
    for (name, value) in open.iter().chain(settings) {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path} = {value}: {e}"));
    }
    Ok(())
}

/// A counter of this network's TCP, such as `SyncookiesSent`. To be called inside [`alone`].
///
/// # Panics
/// If there is no such counter.
#[must_use]
#[track_caller]
pub fn counter(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
    let mut lines = text.lines().filter_map(|it| it.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both.find(|(it, _)| *it == name).unwrap_or_else(|| panic!("no counter {name}"));
    value.parse().expect("a number")
}

/// Connections that are begun and not finished, in this network. To be called inside [`alone`].
///
/// # Panics
/// If the kernel does not tell.
#[must_use]
pub fn half_open() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("connections");
    text.lines().filter(|it| it.split_whitespace().nth(3) == Some("03")).count()
}

/// What a TCP packet says.
#[derive(Clone, Copy, Debug)]
pub struct Flags(u8);

impl Flags {
    /// The first of a connection.
    pub const SYN: Self = Self(0x02);
    /// All that make no sense, as scanners send them: none; FIN; FIN, PSH and URG.
    pub const SENSELESS: [Self; 3] = [Self(0), Self(0x01), Self(0x29)];
}

/// A raw socket.
struct Raw(OwnedFd);

impl Raw {
    fn open() -> io::Result<Self> {
        let number = RawProtocol::new(255).map(Protocol::from_raw);
        Ok(Self(socket(AddressFamily::INET, SocketType::RAW, number)?))
    }

    /// One packet of whoever it says.
    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, flags: Flags) -> io::Result<()> {
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(from.port().to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend(0x1234_5678_u32.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend([5 << 4, flags.0]);
        tcp.extend(65_535_u16.to_be_bytes());
        tcp.extend([0; 4]);
        let mut pseudo = Vec::with_capacity(32);
        pseudo.extend(from.ip().octets());
        pseudo.extend(to.ip().octets());
        pseudo.extend([0, 6, 0, 20]);
        pseudo.extend(&tcp);
        tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        // The kernel fills in length, identification and checksum of the IP header.
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(from.ip().octets());
        packet.extend(to.ip().octets());
        packet.extend(tcp);
        sendto(&self.0, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Connections that are begun and never finished, from addresses that do not answer, as fast as they go.
/// Dropping it ends it. To be started inside [`alone`].
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Begins.
    ///
    /// # Panics
    /// If packets may not be sent.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let raw = Raw::open().expect("a raw socket");
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let mut n = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                n = n.wrapping_add(1);
                let from = Ipv4Addr::new(10, 9, 1 + (n >> 8) as u8 % 250, n as u8);
                let from = SocketAddrV4::new(from, 1024 + (n % 60_000) as u16);
                match raw.send(from, SocketAddrV4::new(HERE, port), Flags::SYN) {
                    Ok(()) => _ = count.fetch_add(1, Ordering::Relaxed),
                    // What does not fit now fits later.
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// How many so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Looks for somebody on a port in all the usual ways: connects and hangs up without a word, begins and takes
/// it back, and sends packets that make no sense. To be called inside [`alone`].
///
/// # Errors
/// What the system says.
pub fn scan(port: u16) -> io::Result<()> {
    let to = SocketAddrV4::new(HERE, port);
    drop(TcpStream::connect(to)?);
    let raw = Raw::open()?;
    // The answer finds no socket of ours, so the kernel takes it back.
    raw.send(SocketAddrV4::new(HERE, 40_000), to, Flags::SYN)?;
    for flags in Flags::SENSELESS {
        raw.send(SocketAddrV4::new(HERE, 40_001), to, flags)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_internet_s() {
        // The example of RFC 1071.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
