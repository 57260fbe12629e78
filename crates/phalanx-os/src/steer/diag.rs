//! What sockets there are: the kernel's own list, `NETLINK_SOCK_DIAG`.
//!
//! It shows the sockets of all processes in this network namespace and needs no privilege. A sandbox can forbid
//! the family (`EAFNOSUPPORT`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, netlink};

use super::Transport;

/// States of `net/tcp_states.h`. Sockets for datagrams that are not connected have `CLOSE`.
pub(super) mod state {
    pub(in crate::steer) const ESTABLISHED: u8 = 1;
    pub(in crate::steer) const SYN_RECV: u8 = 3;
    pub(in crate::steer) const TIME_WAIT: u8 = 6;
    pub(in crate::steer) const CLOSE: u8 = 7;
    pub(in crate::steer) const CLOSE_WAIT: u8 = 8;
    pub(in crate::steer) const LISTEN: u8 = 10;
    pub(in crate::steer) const NEW_SYN_RECV: u8 = 12;
}

/// From `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x301;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;
/// A nested attribute has flags in its upper bits.
const TYPE_MASK: u16 = 0x3fff;

/// `struct nlmsghdr`, `struct inet_diag_msg` and `struct nlattr`, in bytes.
const HEADER: usize = 16;
const MESSAGE: usize = 72;
const ATTRIBUTE: usize = 4;

/// More than the kernel puts into one answer.
const ROOM: usize = 1 << 16;

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Its [cookie](crate::conn::cookie), by which the own ones are told from strangers.
    pub cookie: u64,
    /// Its [inode](crate::conn::inode), by which `/proc/PID/fd` shows who holds it.
    pub inode: u64,
    /// Whose it is.
    pub uid: u32,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Our end.
    pub local: SocketAddr,
    /// The client's.
    pub peer: SocketAddr,
    /// The state, as in `net/tcp_states.h`: 1 is established, 8 is closed by the peer only.
    pub state: u8,
    /// Its inode; 0 when no process has it: it waits to be accepted, or was closed and is finishing.
    pub inode: u64,
    /// Its [cookie](crate::conn::cookie).
    pub cookie: u64,
}

impl Connection {
    /// A process has it open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inode != 0
    }
}

/// Who listens at this port, on whatever address: the own members, and strangers. For UDP, who is bound to it
/// and not connected.
///
/// # Errors
/// What the kernel gives for the netlink socket; `ENOENT` when it was built without this.
pub fn listeners(transport: Transport, port: u16) -> io::Result<Vec<Listening>> {
    let wanted = match transport {
        Transport::Tcp => state::LISTEN,
        Transport::Udp => state::CLOSE,
    };
    let mut listening = Vec::new();
    dump(transport, 1 << wanted, port, None, |each| {
        listening.push(Listening {
            cookie: each.cookie,
            inode: each.inode,
            uid: each.uid,
            address: each.local,
        });
    })?;
    Ok(listening)
}

/// The TCP connections with this port at our end, from established to closed; without those that are in
/// TIME_WAIT or whose handshake goes on.
///
/// # Errors
/// As [`listeners`].
pub fn connections(port: u16) -> io::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    dump(Transport::Tcp, CONNECTED, port, None, |each| {
        let Found { local, peer, state, inode, cookie, .. } = each;
        connections.push(Connection { local, peer, state, inode, cookie });
    })?;
    Ok(connections)
}

/// How many handshakes with this port at our end have begun and not ended. (With SYN cookies the kernel remembers
/// none.)
///
/// # Errors
/// As [`listeners`].
pub fn handshakes(port: u16) -> io::Result<u64> {
    let mut handshakes = 0;
    dump(Transport::Tcp, 1 << state::SYN_RECV | 1 << state::NEW_SYN_RECV, port, None, |_| handshakes += 1)?;
    Ok(handshakes)
}

/// Every state of a connection, as a mask.
pub(super) const CONNECTED: u32 =
    !(1 << state::TIME_WAIT | 1 << state::CLOSE | 1 << state::LISTEN | 1 << state::NEW_SYN_RECV);

/// One socket of a dump.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) state: u8,
    pub(super) cookie: u64,
    pub(super) inode: u64,
    pub(super) uid: u32,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// What the socket has in the storage that was asked for.
    pub(super) stored: Option<u32>,
}

/// Asks for all sockets in one of `states` with this local port, and for what they have in `storage`, which
/// takes CAP_BPF.
pub(super) fn dump(
    transport: Transport,
    states: u32,
    port: u16,
    storage: Option<BorrowedFd<'_>>,
    mut found: impl FnMut(Found),
) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let request = request(family, transport, states, port, storage);
        retry_on_intr(|| rustix::net::send(&socket, &request, SendFlags::empty()))?;
        answers(&socket, &mut found)?;
    }
    Ok(())
}

fn request(
    family: AddressFamily,
    transport: Transport,
    states: u32,
    port: u16,
    storage: Option<BorrowedFd<'_>>,
) -> Vec<u8> {
    let protocol = match transport {
        Transport::Tcp => ipproto::TCP,
        Transport::Udp => ipproto::UDP,
    };
    let mut request = vec![0; HEADER];
    // struct inet_diag_req_v2: family, protocol, extensions, states, and of the socket's name only the port.
    request.extend([family.as_raw() as u8, protocol.as_raw().get() as u8, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.extend(port.to_be_bytes());
    request.resize(HEADER + 56, 0);
    if let Some(fd) = storage {
        let inner = attribute(REQ_MAP_FD, &fd.as_raw_fd().to_ne_bytes());
        request.extend(attribute(REQ_SK_BPF_STORAGES, &inner));
    }
    let len = request.len() as u32;
    request[0..4].copy_from_slice(&len.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = (ATTRIBUTE + content.len()) as u16;
    [&len.to_ne_bytes()[..], &kind.to_ne_bytes()[..], content].concat()
}

/// Reads to the end of a dump.
fn answers(socket: &OwnedFd, found: &mut impl FnMut(Found)) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(ROOM);
    loop {
        buffer.clear();
        retry_on_intr(|| rustix::net::recv(socket, spare_capacity(&mut buffer), RecvFlags::empty()))?;
        let mut rest = &buffer[..];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                // Both begin with a negated errno, or 0.
                NLMSG_DONE | NLMSG_ERROR => {
                    let error = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    if error != 0 {
                        return Err(io::Error::from_raw_os_error(-error));
                    }
                    return Ok(());
                }
                SOCK_DIAG_BY_FAMILY => found(parse(body).ok_or(Errno::BADMSG)?),
                _ => {}
            }
            rest = next;
        }
        if buffer.is_empty() {
            return Err(Errno::BADMSG.into());
        }
    }
}

/// The type and content of the first message, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER..len)?;
    Some((u16_at(bytes, 4)?, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// A `struct inet_diag_msg` and its attributes.
fn parse(bytes: &[u8]) -> Option<Found> {
    let address = |port: usize, ip: usize| {
        let port = u16::from_be_bytes(*bytes.get(port..)?.first_chunk()?);
        let ip: IpAddr = if i32::from(*bytes.first()?) == libc::AF_INET {
            IpAddr::from(*bytes.get(ip..)?.first_chunk::<4>()?)
        } else {
            IpAddr::from(*bytes.get(ip..)?.first_chunk::<16>()?)
        };
        Some(SocketAddr::new(ip, port))
    };
    Some(Found {
        state: *bytes.get(1)?,
        local: address(4, 8)?,
        peer: address(6, 24)?,
        cookie: u64::from(u32_at(bytes, 44)?) | u64::from(u32_at(bytes, 48)?) << 32,
        uid: u32_at(bytes, 64)?,
        inode: u32_at(bytes, 68)?.into(),
        stored: stored(bytes.get(MESSAGE..)?),
    })
}

/// The value of the first storage among attributes.
fn stored(attributes: &[u8]) -> Option<u32> {
    let storages = find(attributes, SK_BPF_STORAGES)?;
    let storage = find(storages, STORAGE)?;
    u32_at(find(storage, STORAGE_VALUE)?, 0)
}

/// The content of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let content = attributes.get(ATTRIBUTE..len)?;
        if u16_at(attributes, 2)? & TYPE_MASK == kind {
            return Some(content);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_short_is_no_panic() {
        let whole =
            [attribute(9, b"12345678"), attribute(SK_BPF_STORAGES, &attribute(STORAGE, &[3; 12]))].concat();
        for len in 0..whole.len() {
            assert_eq!(stored(&whole[..len]), None);
            assert!(parse(&whole[..len]).is_none());
            assert!(message(&whole[..len]).is_none());
        }
        let value = attribute(STORAGE_VALUE, &7_u32.to_ne_bytes());
        let whole = attribute(SK_BPF_STORAGES | 0x8000, &attribute(STORAGE, &value));
        assert_eq!(stored(&whole), Some(7));
    }

    /// The client drops what the server answers.
    #[test]
    fn a_handshake_that_does_not_end_is_counted() {
        use crate::listener::{Address, LocalAddress, bind, listen};
        let bound = bind(&Address::Tcp { addr: "127.0.0.1:0".parse().unwrap(), v6only: false }).unwrap();
        listen(&bound.fd, 8).unwrap();
        let LocalAddress::Inet(address) = bound.local else { panic!("{:?}", bound.local) };
        assert_eq!(handshakes(address.port()).unwrap(), 0);
        let client =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)
                .unwrap();
        let drop_all = crate::sockopt::FilterStep { code: 0x06, jt: 0, jf: 0, k: 0 };
        crate::sockopt::attach_socket_filter(&client, &[drop_all]).unwrap();
        assert_eq!(rustix::net::connect(&client, &address), Err(Errno::INPROGRESS));
        assert_eq!(handshakes(address.port()).unwrap(), 1);
    }
}
