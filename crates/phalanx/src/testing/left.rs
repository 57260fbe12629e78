//! What a cluster has left behind, told from everything else on the machine.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use phalanx_core::BoundAddress;

/// In the environment of everything that a cluster starts, and of what that starts.
pub(super) const MARK: &str = "PHALANX_TEST_CLUSTER";

/// What is on its way out may take so long. Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A value of [`MARK`] that no other cluster has.
pub(super) fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Processes that live and have this mark, described. They are killed.
pub(super) fn processes(mark: &str) -> Vec<String> {
    let left = at_last(|| marked(mark));
    let said = left.iter().map(|pid| format!("{pid} ({})", command(*pid))).collect();
    for pid in left {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    }
    said
}

/// What is still there when there has been time for it to go.
fn at_last<T>(mut look: impl FnMut() -> Vec<T>) -> Vec<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = look();
        if left.is_empty() || Instant::now() >= until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie has no environment; it is told of by others.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}").into_bytes();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            // Others' cannot be read.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
        })
        .collect()
}

fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()
}

/// Descriptors of this process that still listen on one of these addresses, described.
pub(super) fn listeners(addresses: &[BoundAddress]) -> Vec<String> {
    at_last(|| open(addresses))
}

fn open(addresses: &[BoundAddress]) -> Vec<String> {
    addresses
        .iter()
        .flat_map(|address| {
            let inodes = match address {
                BoundAddress::Inet(_) => inet(address),
                BoundAddress::Unix(path) => unix(path),
            };
            inodes.into_iter().map(move |inode| (address, inode))
        })
        .filter_map(|(address, inode)| {
            let fd = own(&format!("socket:[{inode}]")).ok()??;
            Some(format!("fd {fd}, which listens on {address}"))
        })
        .collect()
}

/// The descriptor of this process that is this file.
fn own(target: &str) -> io::Result<Option<String>> {
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        // One that is closed meanwhile is not the one.
        if fs::read_link(entry.path()).is_ok_and(|file| file == Path::new(target)) {
            return Ok(entry.file_name().into_string().ok());
        }
    }
    Ok(None)
}

/// The inodes of what listens, or is bound for datagrams, at an internet address.
fn inet(address: &BoundAddress) -> Vec<String> {
    let BoundAddress::Inet(address) = address else { return Vec::new() };
    // As the kernel writes it: hexadecimal, each word as it lies in memory.
    let words: Vec<u8> = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ip: String = words
        .chunks_exact(4)
        .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
        .collect();
    let local = format!("{ip}:{:04X}", address.port());
    let (tcp, udp) = if address.is_ipv6() { ("tcp6", "udp6") } else { ("tcp", "udp") };
    [(tcp, "0A"), (udp, "07")]
        .into_iter()
        .flat_map(|(table, state)| {
            let table = fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
            let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
            rows.filter(|row| row.get(1) == Some(&local.as_str()) && row.get(3) == Some(&state))
                .filter_map(|row| row.get(9).map(ToString::to_string))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn unix(path: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    // Only what listens: what it has accepted has its path, too.
    rows.filter(|row| row.get(7) == Some(&path) && row.get(3) == Some(&"00010000"))
        .filter_map(|row| row.get(6).map(ToString::to_string))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listener_that_is_left_is_found_by_its_number() {
        for host in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let address = [BoundAddress::Inet(listener.local_addr().unwrap())];
            let said = format!("fd {}, which listens on {}", listener.as_raw_fd(), address[0]);
            assert_eq!(open(&address), [said]);
            drop(listener);
            assert!(open(&address).is_empty());
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(open(&[BoundAddress::Inet(socket.local_addr().unwrap())]).len(), 1);
        let dir = std::env::temp_dir().join(format!("phalanx-left-{}", mark()));
        let path = dir.to_str().unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let address = [BoundAddress::Unix(path.to_owned())];
        assert_eq!(open(&address).len(), 1);
        drop(listener);
        assert!(open(&address).is_empty());
        fs::remove_file(path).unwrap();
    }
}
