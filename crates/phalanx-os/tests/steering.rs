//! Steering: the kernel does what the program and we believe.
//!
//! These tests load eBPF. Where that is refused they print a line that begins with `SKIP` and pass; under
//! `CI=true` they fail.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use phalanx_os::steer::{
    self, Counts, Even, Exact, Group, OpenCount, Rule, Seen, Totals, Transport, Watch, diag,
};
use phalanx_os::{conn, listener};
use rustix::event::{PollFd, PollFlags, poll};

/// The program, or `None` where it may not be loaded.
fn load(transport: Transport, rule: Rule) -> Option<Exact> {
    match Exact::load(transport, rule) {
        Ok(exact) => Some(exact),
        Err(e) if std::env::var_os("CI").is_none() && e.source.raw_os_error() == Some(libc::EPERM) => {
            println!("SKIP: {e}");
            None
        }
        Err(e) => panic!("{e}\n{:?}", e.verifier),
    }
}

/// A group with its program and members, each at the place of its number, tagged with that and 100.
struct Steered {
    exact: Exact,
    group: Group,
    members: Vec<OwnedFd>,
}

const BACKLOG: u32 = 4096;

impl Steered {
    fn new(rule: Rule, members: u32) -> Option<Self> {
        Self::at("127.0.0.1:0", rule, members)
    }

    fn at(address: &str, rule: Rule, members: u32) -> Option<Self> {
        let exact = load(Transport::Tcp, rule)?;
        let group = Group::open(Transport::Tcp, address.parse().unwrap(), false, BACKLOG).unwrap();
        let mut steered = Self { exact, group, members: Vec::new() };
        for place in 0..members {
            steered.members.push(steered.group.join().unwrap());
            if place == 0 {
                steered.exact.open(steered.group.park(), &steered.members[0]).unwrap();
            }
            steered.set(place);
        }
        Some(steered)
    }

    fn set(&self, place: u32) {
        self.exact.set(place, place + 100, &self.members[place as usize]).unwrap();
    }

    fn connect(&self, connections: usize) -> Vec<TcpStream> {
        (0..connections).map(|_| TcpStream::connect(self.group.address()).unwrap()).collect()
    }

    /// How many wait at each member, once all these do. The last step of a handshake is the kernel's own
    /// business and may come after connect returned.
    fn queues(&self, all: usize) -> Vec<usize> {
        loop {
            let queues: Vec<usize> = self.members.iter().map(queued).collect();
            if queues.iter().sum::<usize>() + queued(self.group.park()) == all {
                return queues;
            }
            std::thread::yield_now();
        }
    }

    fn given(&self) -> Vec<Counts> {
        (0..self.members.len() as u32).map(|place| self.exact.counts(place)).collect()
    }
}

fn queued(socket: impl AsFd) -> usize {
    listener::queue(socket).map_or(0, |queue| queue.queued as usize)
}

/// The connections in a queue, each answered with what it has sent.
fn serve(socket: impl AsFd) -> usize {
    let mut served = 0;
    while let Ok((connection, _)) = listener::accept(&socket) {
        conn::set_nonblocking(&connection, false).unwrap();
        let mut connection = TcpStream::from(connection);
        let mut word = [0; 4];
        connection.read_exact(&mut word).unwrap();
        connection.write_all(&word).unwrap();
        served += 1;
    }
    served
}

/// Accepts and closes what waits.
fn drain(socket: &OwnedFd) {
    while listener::accept(socket).is_ok() {}
}

fn settle() {
    // Between taking a member out of the ring and shutting it down; see `flush`.
    std::thread::sleep(Duration::from_millis(10));
}

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
fn nobody_enabled_means_parked_until_somebody_is() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 2) else { return };
    let mut clients = steered.connect(10);
    assert_eq!(steered.queues(10), [0, 0]);
    assert_eq!(steered.exact.totals().parked, 10);
    for client in &mut clients {
        client.write_all(b"data").unwrap();
    }
    steered.exact.ring(&[0, 1]);
    settle();
    steer::flush(steered.group.park(), BACKLOG).unwrap();
    steered.exact.open(steered.group.park(), &steered.members[0]).unwrap();
    assert_eq!(steered.queues(10), [5, 5]);
    assert_eq!(steered.given(), [Counts { syn: 0, ack: 0, moved_in: 5, given: 5 }; 2]);
    assert_eq!(steered.members.iter().map(serve).sum::<usize>(), 10);
    for client in &mut clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
    // It can park again.
    steered.exact.ring(&[]);
    let _clients = steered.connect(3);
    assert_eq!(queued(steered.group.park()), 3);
}

#[test]
fn a_queue_moves_and_its_socket_goes_on() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 3) else { return };
    steered.exact.ring(&[0, 1, 2]);
    let mut clients = steered.connect(90);
    for client in &mut clients {
        client.write_all(b"data").unwrap();
    }
    assert_eq!(steered.queues(90), [30, 30, 30]);
    let cookie = conn::cookie(&steered.members[0]).unwrap();
    assert_eq!(steered.exact.cookie(0).unwrap(), Some(cookie));
    steered.exact.ring(&[1, 2]);
    settle();
    steer::flush(&steered.members[0], BACKLOG).unwrap();
    assert_eq!(steered.queues(90), [0, 45, 45]);
    // The kernel has dropped it.
    assert_eq!(steered.exact.cookie(0).unwrap(), None);
    steered.set(0);
    steered.set(0);
    assert_eq!(steered.exact.cookie(0).unwrap(), Some(cookie));
    // The same tag: the counts go on.
    assert_eq!(steered.exact.counts(0).given, 30);
    for member in &steered.members[1..] {
        steer::poke(member).unwrap();
    }
    assert_eq!(serve(&steered.members[1]) + serve(&steered.members[2]), 90);
    for client in &mut clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
    steered.exact.ring(&[0]);
    let _clients = steered.connect(5);
    assert_eq!(steered.queues(5), [5, 0, 0]);
    // Another tag at the place: from the beginning.
    steered.exact.set(0, 7, &steered.members[0]).unwrap();
    assert_eq!(steered.exact.counts(0), Counts::default());
}

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
fn even_steering_gives_to_the_enabled_only() {
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, BACKLOG).unwrap();
    let mut even = Even::new();
    let mut members: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    let join = |even: &mut Even, members: &mut BTreeMap<u32, OwnedFd>, place| {
        members.insert(place, group.join().unwrap());
        even.joined(place);
    };
    let served = |members: &BTreeMap<u32, OwnedFd>| {
        let clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(group.address()).unwrap()).collect();
        let mut got: BTreeMap<u32, usize> = BTreeMap::new();
        while got.values().sum::<usize>() + queued(group.park()) < clients.len() {
            for (place, member) in members {
                while listener::accept(member).is_ok() {
                    *got.entry(*place).or_default() += 1;
                }
            }
        }
        got.into_keys().collect::<Vec<u32>>()
    };
    for place in 0..4 {
        join(&mut even, &mut members, place);
    }
    even.choose(&members[&0], &[0, 1, 3]).unwrap();
    assert_eq!(served(&members), [0, 1, 3]);
    // 3 takes the number of 1.
    members.remove(&1);
    even.left(1);
    even.choose(&members[&0], &[3]).unwrap();
    assert_eq!(served(&members), [3]);
    join(&mut even, &mut members, 4);
    even.choose(&members[&0], &[2, 4]).unwrap();
    assert_eq!(served(&members), [2, 4]);
    // A flush is a leave and a join.
    steer::flush(&members[&2], BACKLOG).unwrap();
    even.left(2);
    even.joined(2);
    even.choose(&members[&0], &[2, 0]).unwrap();
    assert_eq!(served(&members), [0, 2]);
    even.choose(&members[&0], &[]).unwrap();
    assert_eq!(served(&members), []);
}

#[test]
fn a_watch_tells_once_until_it_is_armed_again() {
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, 16).unwrap();
    let member = group.join().unwrap();
    Even::new().choose(&member, &[]).unwrap();
    let connect = || TcpStream::connect(group.address()).unwrap();
    let mut even = Even::new();
    even.joined(0);
    even.choose(&member, &[0]).unwrap();
    let mut watch = Watch::new().unwrap();
    let read = |watch: &mut Watch| {
        let mut seen = Vec::new();
        watch.ready(&mut seen).unwrap();
        seen
    };
    let wait = |watch: &Watch| poll(&mut [PollFd::new(watch, PollFlags::IN)], None).unwrap();
    watch.add(&member, 7).unwrap();
    let _first = connect();
    while queued(&member) < 1 {
        std::thread::yield_now();
    }
    assert_eq!(read(&mut watch), []);
    watch.arm(7).unwrap();
    wait(&watch);
    assert_eq!(read(&mut watch), [Seen::Waiting(7)]);
    let _second = connect();
    assert_eq!(read(&mut watch), []);
    // Moved here, or looked at and left: it says so again when asked again.
    watch.arm(7).unwrap();
    wait(&watch);
    assert_eq!(read(&mut watch), [Seen::Waiting(7)]);
    // A hang-up is told though it is not armed.
    rustix::net::shutdown(&member, rustix::net::Shutdown::Read).unwrap();
    wait(&watch);
    assert_eq!(read(&mut watch), [Seen::HungUp(7)]);
    assert_eq!(read(&mut watch), []);
    listener::listen(&member, 16).unwrap();
    // A flush is over before anybody looks.
    watch.arm(7).unwrap();
    steer::flush(&member, 16).unwrap();
    assert_eq!(read(&mut watch), []);
    watch.remove(7);
    watch.remove(7);
    assert!(watch.arm(7).is_err());
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

/// Looks until it is so.
fn until(mut what: impl FnMut() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_open_is_known_by_tag_even_after_it_moved() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 3) else { return };
    steered.exact.ring(&[0, 1, 2]);
    let clients = steered.connect(30);
    steered.queues(30);
    let open = |accepted, queued| OpenCount { accepted, queued };
    let expect = |steered: &Steered, wanted: [(u32, OpenCount); 3]| {
        until(|| steered.exact.open_connections().unwrap() == BTreeMap::from(wanted));
    };
    let mut accepted: Vec<OwnedFd> =
        (0..4).map(|_| listener::accept(&steered.members[0]).unwrap().0).collect();
    expect(&steered, [(100, open(4, 6)), (101, open(0, 10)), (102, open(0, 10))]);
    // Closed is not open, whoever closes; half closed by the client is.
    accepted.truncate(3);
    clients[0].shutdown(std::net::Shutdown::Write).unwrap();
    expect(&steered, [(100, open(3, 6)), (101, open(0, 10)), (102, open(0, 10))]);
    // The queue of 0 goes to 1 and 2, what was accepted stays.
    steered.exact.ring(&[1, 2]);
    settle();
    steer::flush(&steered.members[0], BACKLOG).unwrap();
    expect(&steered, [(100, open(3, 0)), (101, open(0, 13)), (102, open(0, 13))]);
    let moved: Vec<OwnedFd> = (0..13).map(|_| listener::accept(&steered.members[1]).unwrap().0).collect();
    expect(&steered, [(100, open(3, 0)), (101, open(13, 0)), (102, open(0, 13))]);
    // From 2 to the parking socket, and some of those a second time.
    steered.exact.ring(&[]);
    settle();
    steer::flush(&steered.members[2], BACKLOG).unwrap();
    expect(&steered, [(100, open(3, 0)), (101, open(13, 0)), (steer::PARK_TAG, open(0, 13))]);
    drop((accepted, moved, clients));
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
    assert_eq!(steer::waits_for(1 << 30, &socket).unwrap_err().kind(), ErrorKind::NotFound);
}
