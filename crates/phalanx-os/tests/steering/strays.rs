//! Packets that are no connections, and connections without a SYN: in a network namespace of one's own.
#![expect(unsafe_code, reason = "unshare has no safe interface")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use phalanx_os::steer::{Counts, Rule, Totals};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use rustix::thread::UnshareFlags;

use crate::{Steered, skip, until};

/// Runs in a thread that has a network of its own, with a loopback device that is up.
fn with_own_network(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let own = || {
            // SAFETY: only this thread's network changes, no table of fds.
            match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
                Ok(()) => {}
                Err(Errno::PERM) => return skip("no network namespace without CAP_SYS_ADMIN"),
                Err(e) => panic!("unshare: {e}"),
            }
            loopback_up();
            test();
        };
        let outcome = scope.spawn(own).join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// `ip link set lo up`.
fn loopback_up() {
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 5;
    const UP: u32 = 1;
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
    let mut request = Vec::new();
    // struct nlmsghdr, struct ifinfomsg with the device's number, 1, its flags, and which of them to change.
    for word in [32, u32::from(NEW_LINK) | u32::from(REQUEST_AND_ACK) << 16, 1, 0, 0, 1, UP, UP] {
        request.extend(word.to_le_bytes());
    }
    rustix::net::send(&socket, &request, SendFlags::empty()).unwrap();
    let mut answer = [0; 64];
    rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4], "an errno");
}

#[test]
fn connections_by_cookies_are_shared_evenly() {
    with_own_network(|| {
        // Always, not only when the queue of handshakes is full.
        std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap();
        let Some(mut steered) = Steered::new(Rule::Rotate, 4) else { return };
        steered.exact.ring(&[0, 1, 2, 3]);
        let _clients = steered.connect(200);
        assert_eq!(steered.queues(200), [50; 4]);
        assert_eq!(steered.given(), [Counts { syn: 50, ack: 50, moved_in: 0, given: 100 }; 4]);
    });
}

/// A TCP packet to the group, from a port where nobody is.
fn packet(to: SocketAddr, flags: u8) -> Vec<u8> {
    let IpAddr::V4(target) = to.ip() else { panic!("{to}") };
    let from = Ipv4Addr::LOCALHOST;
    let mut tcp = Vec::new();
    tcp.extend(9_u16.to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
    let pseudo = [&from.octets()[..], &target.octets(), &[0, 6, 0, 20], &tcp].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    // The kernel fills in the lengths and the checksum of the IP header.
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(target.octets());
    ip.extend(tcp);
    ip
}

#[test]
fn stray_packets_move_nothing() {
    with_own_network(|| {
        let Some(mut steered) = Steered::new(Rule::Rotate, 2) else { return };
        let raw: OwnedFd =
            rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let to = steered.group.address();
        let send = |flags| {
            rustix::net::sendto(&raw, &packet(to, flags), SendFlags::empty(), &to).unwrap();
        };
        steered.exact.ring(&[0, 1]);
        let mut odd = 0;
        for (turn, flags) in (1_usize..).zip([0x00, 0x01, 0x04, 0x12, 0x03, 0x29, 0x14]) {
            send(flags);
            odd += 1;
            until(|| steered.exact.totals().odd == odd);
            let _client = steered.connect(1);
            // The turn of the next is what it would have been.
            let syns = steered.given().iter().map(|counts| counts.syn as usize).collect::<Vec<_>>();
            assert_eq!(syns, [turn.div_ceil(2), turn / 2]);
        }
        // A stray ACK looks like the end of a handshake by cookie; it moves the cursor of those only.
        send(0x10);
        until(|| steered.given().iter().any(|counts| counts.ack == 1));
        let before = steered.given();
        let _clients = steered.connect(2);
        for (now, before) in steered.given().iter().zip(before) {
            assert_eq!(*now, Counts { syn: before.syn + 1, given: before.given + 1, ..before });
        }
        assert_eq!(steered.exact.totals(), Totals { odd, failed: 0, parked: 0 });
    });
}
