//! Facts about sockets and programs that steering goes by, and what needs no privilege.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use phalanx_os::steer::{self, Even, Group, Transport, Watch, diag};
use phalanx_os::{conn, listener};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{drain, queued, until};

#[test]
fn the_address_is_exclusive() {
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let group = Group::open(Transport::Tcp, address.parse().unwrap(), false, 16).unwrap();
        assert_ne!(group.address().port(), 0);
        let again = Group::open(Transport::Tcp, group.address(), false, 16);
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
        let _member = group.join().unwrap();
        assert_eq!(TcpListener::bind(group.address()).unwrap_err().kind(), ErrorKind::AddrInUse);
        let again = Group::open(Transport::Tcp, group.address(), false, 16);
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
    }
    let group = Group::open(Transport::Udp, "127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
    let _member = group.join().unwrap();
    let again = Group::open(Transport::Udp, group.address(), false, 16);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_watch_is_readable_while_connections_wait_or_somebody_shut_a_socket_down() {
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, 16).unwrap();
    let member = group.join().unwrap();
    let mut even = Even::new();
    even.joined(0);
    even.choose(&member, &[0]).unwrap();
    let watch = Watch::new().unwrap();
    let readable = |timeout| poll(&mut [PollFd::new(&watch, PollFlags::IN)], timeout).unwrap() == 1;
    let now = Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 });
    watch.add(&member).unwrap();
    assert!(!readable(now));
    let _client = TcpStream::connect(group.address()).unwrap();
    assert!(readable(None));
    until(|| listener::accept(&member).is_ok());
    assert!(!readable(now));
    rustix::net::shutdown(&member, rustix::net::Shutdown::Read).unwrap();
    assert!(readable(None));
    listener::listen(&member, 16).unwrap();
    assert!(!readable(now), "a flush is over before anybody looks");
    watch.remove(&member).unwrap();
    assert!(watch.remove(&member).is_err());
}

#[test]
fn the_census_shows_members_and_strangers() {
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, 16).unwrap();
    let members: Vec<OwnedFd> = (0..3).map(|_| group.join().unwrap()).collect();
    let census = diag::listeners(Transport::Tcp, group.address().port()).unwrap();
    assert_eq!(census.len(), 4);
    for member in members.iter().chain([&**group.park()]) {
        let cookie = conn::cookie(member).unwrap();
        let found = census.iter().find(|each| each.cookie == cookie).unwrap();
        assert_eq!(found.inode, conn::inode(member).unwrap());
        assert_eq!(found.uid, rustix::process::geteuid().as_raw());
        assert_eq!(found.address, group.address());
    }
    let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(group.address()).unwrap()).collect();
    let open = || -> BTreeMap<SocketAddr, bool> {
        let all = diag::connections(group.address().port()).unwrap();
        all.iter().map(|each| (each.peer, each.is_open())).collect()
    };
    let peers = |is_open| clients.iter().map(|client| (client.local_addr().unwrap(), is_open)).collect();
    until(|| open() == peers(false));
    let mut accepted = Vec::new();
    while accepted.len() < 3 {
        accepted
            .extend(members.iter().chain([&**group.park()]).filter_map(|each| listener::accept(each).ok()));
    }
    assert_eq!(open(), peers(true));
    drop(accepted);
    assert!(open().values().all(|is_open| !is_open));

    let group = Group::open(Transport::Udp, "[::1]:0".parse().unwrap(), true, 16).unwrap();
    let _member = group.join().unwrap();
    let census = diag::listeners(Transport::Udp, group.address().port()).unwrap();
    assert_eq!(census.iter().map(|each| each.address).collect::<Vec<_>>(), [group.address(); 2]);
}

#[test]
fn unix_sockets_are_listed_while_they_live() {
    let (a, _b) = conn::unix_pair().unwrap();
    let inode = conn::inode(&a).unwrap();
    assert!(conn::unix_inodes().unwrap().contains(&inode));
    drop(a);
    assert!(!conn::unix_inodes().unwrap().contains(&inode));
}

#[test]
#[expect(unsafe_code, reason = "select(2) takes pointers")]
fn a_program_that_waits_for_connections_is_recognised() {
    use rustix::event::epoll;
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, 16).unwrap();
    let socket = group.join().unwrap();
    let other = group.join().unwrap();
    let pid = std::process::id();
    let waits = |socket: &OwnedFd| steer::waits_for(pid, socket).unwrap();
    assert!(!waits(&socket));
    // In an epoll set, but not for connections; then for them.
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&set, &socket, data, epoll::EventFlags::HUP).unwrap();
    assert!(!waits(&socket));
    epoll::modify(&set, &socket, data, epoll::EventFlags::IN | epoll::EventFlags::HUP).unwrap();
    assert!(waits(&socket));
    assert!(!waits(&other));
    drop(set);
    assert!(!waits(&socket));
    // Asleep in accept, poll and select; each is woken by a connection, which may go to anybody.
    conn::set_nonblocking(&socket, false).unwrap();
    let asleep = |wait: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(wait);
            until(|| waits(&socket));
            assert!(!waits(&other));
            let mut clients = Vec::new();
            while queued(&socket) == 0 && waits(&socket) {
                clients.push(TcpStream::connect(group.address()).unwrap());
            }
        });
        assert!(!waits(&socket));
        drain(&other);
        drain(group.park());
    };
    asleep(&|| drop(listener::accept(&socket).unwrap()));
    conn::set_nonblocking(&socket, true).unwrap();
    drain(&socket);
    asleep(&|| {
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
    });
    drain(&socket);
    asleep(&|| {
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        // SAFETY: a set of plain bits, a number below its size, and no other pointers.
        unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(number, &raw mut set);
            let null = std::ptr::null_mut();
            libc::select(number + 1, &raw mut set, null, null, null.cast());
        }
    });
    // Asleep in a call that receives datagrams.
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| udp.recv(&mut [0]).unwrap());
        until(|| steer::waits_for(pid, &udp).unwrap());
        udp.send_to(b"x", udp.local_addr().unwrap()).unwrap();
    });
    assert!(!steer::waits_for(pid, &udp).unwrap());
    assert_eq!(steer::waits_for(1 << 30, &socket).unwrap_err().kind(), ErrorKind::NotFound);
}
