//! Who gets a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_os::listener;
use phalanx_os::steer::{Counts, Group, RING, Rule, Totals, Transport, bucket};
use rustix::net::{AddressFamily, SocketType};

use crate::{BACKLOG, Steered, drain, load, serve};

#[test]
fn rotation_is_exact() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 4) else { return };
    steered.exact.ring(&[0, 1, 2, 3]);
    let _clients = steered.connect(400);
    assert_eq!(steered.queues(400), [100; 4]);
    assert_eq!(steered.given(), [Counts { syn: 100, ack: 0, moved_in: 0, given: 100 }; 4]);
    // Weights are a matter of the ring.
    steered.exact.ring(&[0, 1, 0, 2, 0]);
    let _more = steered.connect(500);
    assert_eq!(steered.queues(900), [400, 200, 200, 100]);
    assert_eq!(steered.exact.totals(), Totals::default());
}

#[test]
fn a_detached_program_is_attached_again() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 2) else { return };
    steered.exact.ring(&[1]);
    for _ in 0..3 {
        steered.exact.attach(&steered.members[0]).unwrap();
    }
    detach(&steered.members[1]);
    let _anywhere = steered.connect(20);
    assert_eq!(steered.exact.counts(1).given, 0);
    steered.queues(20);
    steered.members.iter().chain([&**steered.group.park()]).for_each(drain);
    for _ in 0..3 {
        steered.exact.attach(&steered.members[0]).unwrap();
    }
    let _clients = steered.connect(20);
    assert_eq!(steered.queues(20), [0, 20]);
    // A socket that is alone has no group.
    let alone = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(steered.exact.attach(&alone).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_group_reached_by_both_families_is_one() {
    let Some(mut steered) = Steered::at("[::]:0", Rule::Rotate, 3) else { return };
    steered.exact.ring(&[0, 1, 2]);
    let port = steered.group.address().port();
    let addresses =
        ["127.0.0.1", "::1", "::ffff:127.0.0.1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
    let _clients: Vec<TcpStream> =
        addresses.iter().cycle().take(30).map(|address| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(steered.queues(30), [10, 10, 10]);
}

/// Takes the program off the group, as any worker can (`SO_DETACH_REUSEPORT_BPF`).
#[expect(unsafe_code, reason = "setsockopt takes a pointer")]
fn detach(member: &OwnedFd) {
    let fd = std::os::fd::AsRawFd::as_raw_fd(member);
    let unused: libc::c_int = 0;
    let (option, size) = (libc::SO_DETACH_REUSEPORT_BPF, size_of_val(&unused) as libc::socklen_t);
    // SAFETY: pointer and size describe an integer that outlives the call.
    let rc = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const unused).cast(), size) };
    assert_eq!(rc, 0);
}

#[test]
fn budgets_are_kept() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 3) else { return };
    steered.exact.ring(&[0, 1, 2]);
    steered.exact.budget(1, 0, Some(4));
    let _clients = steered.connect(61);
    // Skipped once it has more than four more.
    let queues = steered.queues(61);
    assert_eq!(queues[1], 5);
    steered.exact.budget(1, 5, Some(4));
    let _more = steered.connect(30);
    assert_eq!(steered.queues(91)[1], 10);
    steered.exact.budget(1, 0, None);
    let _yet_more = steered.connect(30);
    assert_eq!(steered.queues(121)[1], 20);
    assert_eq!(steered.exact.totals(), Totals::default());
}

#[test]
fn the_least_loaded_gets_it() {
    let Some(mut steered) = Steered::new(Rule::Least, 8) else { return };
    steered.exact.ring(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let _clients = steered.connect(80);
    assert_eq!(steered.queues(80), [10; 8]);
    steered.exact.set_gone(3, 5);
    let _more = steered.connect(5);
    assert_eq!(steered.queues(85), [10, 10, 10, 15, 10, 10, 10, 10]);
    steered.exact.ring(&[2]);
    let _others = steered.connect(5);
    assert_eq!(steered.queues(90)[2], 15);
}

/// A connection from an address of one's choice.
fn connect_from(client: IpAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(client, 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    socket.into()
}

/// The clients in the queues of all, each with the number of its member.
fn peers(steered: &Steered, all: usize) -> BTreeMap<IpAddr, u32> {
    steered.queues(all);
    let mut peers = BTreeMap::new();
    for (place, member) in (0..).zip(&steered.members) {
        while let Ok((_, peer)) = listener::accept(member) {
            peers.insert(peer.unwrap().ip().to_canonical(), place);
        }
    }
    peers
}

#[test]
fn a_client_address_has_one_member() {
    let Some(mut steered) = Steered::at("[::]:0", Rule::Sticky, 4) else { return };
    let port = steered.group.address().port();
    let mut clients: BTreeSet<IpAddr> =
        (0..200_u32).map(|number| Ipv4Addr::from_bits(0x7f00_0001 + number * 74_747).into()).collect();
    clients.insert("::1".parse().unwrap());
    let connect = || -> Vec<TcpStream> {
        let each = |client: &IpAddr| {
            let target = if client.is_ipv4() { "127.0.0.1" } else { "::1" };
            connect_from(*client, SocketAddr::new(target.parse().unwrap(), port))
        };
        clients.iter().map(each).collect()
    };
    let wanted = |table: &[u32]| -> BTreeMap<IpAddr, u32> {
        clients.iter().map(|client| (*client, table[bucket(*client) as usize])).collect()
    };
    let mut table: Vec<u32> = (0..RING as u32).map(|bucket| bucket % 4).collect();
    steered.exact.ring(&table);
    for _ in 0..2 {
        let _connections = connect();
        assert_eq!(peers(&steered, clients.len()), wanted(&table));
    }
    // One leaves: what waits there goes where its clients' next connections will go.
    let _connections = connect();
    steered.queues(clients.len());
    for (bucket, place) in table.iter_mut().enumerate() {
        if *place == 3 {
            *place = bucket as u32 / 4 % 3;
        }
    }
    steered.exact.ring(&table);
    crate::settle();
    phalanx_os::steer::flush(&steered.members[3], BACKLOG).unwrap();
    assert_eq!(peers(&steered, clients.len()), wanted(&table));
}

#[test]
fn a_ring_can_be_swapped_under_load() {
    const CLIENTS: usize = 2;
    const EACH: usize = 1500;
    let Some(mut steered) = Steered::new(Rule::Rotate, 4) else { return };
    let rings: [&[u32]; 4] = [&[0, 1, 2, 3], &[3, 1], &[2, 0, 0, 1, 3], &[1]];
    steered.exact.ring(rings[0]);
    let address = steered.group.address();
    let answered = AtomicUsize::new(0);
    let mut swaps = 0;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.write_all(b"data").unwrap();
                    client.read_exact(&mut [0; 4]).unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut served = 0;
        while served < CLIENTS * EACH {
            steered.exact.ring(rings[swaps % rings.len()]);
            swaps += 1;
            served += steered.members.iter().map(serve).sum::<usize>();
        }
    });
    assert_eq!(answered.into_inner(), CLIENTS * EACH);
    assert_eq!(steered.exact.totals(), Totals::default());
    let given: u64 = steered.given().iter().map(|counts| counts.given).sum();
    assert_eq!(given, (CLIENTS * EACH) as u64);
    assert!(swaps > 100, "{swaps}");
}

#[test]
fn datagrams_go_by_flow() {
    let Some(mut exact) = load(Transport::Udp, Rule::Rotate) else { return };
    let group = Group::open(Transport::Udp, "127.0.0.1:0".parse().unwrap(), true, 0).unwrap();
    let members: Vec<OwnedFd> = (0..3).map(|_| group.join().unwrap()).collect();
    exact.open(group.park(), &members[0]).unwrap();
    for (place, member) in (0..).zip(&members) {
        exact.set(place, place, member).unwrap();
    }
    let mut table: Vec<u32> = (0..RING as u32).map(|entry| entry % 3).collect();
    exact.ring(&table);
    let flows: Vec<UdpSocket> = (0..60).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let sockets: Vec<UdpSocket> =
        members.iter().map(|member| member.as_fd().try_clone_to_owned().unwrap().into()).collect();
    // Each flow with the members that got something of it.
    let send = || -> BTreeMap<SocketAddr, BTreeSet<usize>> {
        for flow in flows.iter().cycle().take(300) {
            flow.send_to(b"data", group.address()).unwrap();
        }
        let (mut got, mut all) = (BTreeMap::<_, BTreeSet<usize>>::new(), 0);
        while all < 300 {
            for (number, socket) in sockets.iter().enumerate() {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    got.entry(from).or_default().insert(number);
                    all += 1;
                }
            }
        }
        got
    };
    let before = send();
    assert!(before.values().all(|members| members.len() == 1));
    assert_eq!(before.values().flatten().collect::<BTreeSet<_>>().len(), 3);
    // One leaves the ring: only its flows move.
    table
        .iter_mut()
        .enumerate()
        .filter(|(_, place)| **place == 2)
        .for_each(|(entry, place)| *place = entry as u32 % 2);
    exact.ring(&table);
    let after = send();
    assert!(after.values().all(|members| members.len() == 1 && !members.contains(&2)));
    for (flow, members) in before.iter().filter(|(_, members)| !members.contains(&2)) {
        assert_eq!(&after[flow], members);
    }
    assert_eq!((0..3).map(|place| exact.counts(place).given).sum::<u64>(), 600);
    // Nobody is enabled: they are parked, and nobody reads them.
    exact.ring(&[]);
    flows[0].send_to(b"data", group.address()).unwrap();
    assert_eq!(exact.totals().parked, 1);
}
