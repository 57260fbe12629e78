//! Connections whose listener goes away.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use phalanx_os::steer::{self, Counts, OpenCount, Rule};
use phalanx_os::{Process, Signal, Spawn, conn, listener};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{BACKLOG, Steered, queued, serve, settle, until};

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
fn a_member_that_was_shut_down_serves_again() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 2) else { return };
    steered.exact.ring(&[0]);
    for _ in 0..2 {
        rustix::net::shutdown(&steered.members[0], rustix::net::Shutdown::Read).ok();
    }
    assert!(listener::queue(&steered.members[0]).is_err());
    steer::flush(&steered.members[0], BACKLOG).unwrap();
    steered.set(0);
    let mut clients = steered.connect(1);
    clients[0].write_all(b"data").unwrap();
    until(|| queued(&steered.members[0]) == 1);
    let (accepted, _) = listener::accept(&steered.members[0]).unwrap();
    conn::set_nonblocking(&accepted, false).unwrap();
    let mut bytes = [0; 4];
    assert_eq!(rustix::io::read(&accepted, &mut bytes), Ok(4));
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

/// A program that has the socket and does nothing with it.
fn holder(socket: &OwnedFd) -> Process {
    let mut spawn = Spawn::new("/bin/sleep");
    spawn.args = vec!["1000".into()];
    spawn.fds = vec![(3, socket.as_fd().try_clone_to_owned().unwrap())];
    spawn.spawn().unwrap()
}

fn answered(clients: &mut [TcpStream]) {
    for client in clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
}

#[test]
fn a_stopped_workers_queue_moves_while_it_lives_and_when_it_dies() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 3) else { return };
    let mut worker = holder(&steered.members[0]);
    worker.signal(Signal::STOP).unwrap();
    steered.exact.ring(&[0]);
    let mut first = steered.connect(20);
    assert_eq!(steered.queues(20), [20, 0, 0]);
    steered.exact.ring(&[1, 2]);
    settle();
    steer::flush(&steered.members[0], BACKLOG).unwrap();
    steered.set(0);
    assert_eq!(steered.queues(20), [0, 10, 10]);
    // It gets some more, and dies; its copy is not the last, so nothing happens by itself.
    steered.exact.ring(&[0]);
    let mut second = steered.connect(10);
    assert_eq!(steered.queues(30), [10, 10, 10]);
    steered.exact.ring(&[1, 2]);
    worker.signal(Signal::KILL).unwrap();
    if let Some(pidfd) = worker.pidfd() {
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
    }
    until(|| worker.try_wait().unwrap().is_some());
    assert_eq!(queued(&steered.members[0]), 10);
    settle();
    // The last close moves it.
    steered.members.remove(0);
    assert_eq!(steered.queues(30), [15, 15]);
    assert_eq!(steered.exact.cookie(0).unwrap(), None);
    for client in first.iter_mut().chain(&mut second) {
        client.write_all(b"data").unwrap();
    }
    assert_eq!(steered.members.iter().map(serve).sum::<usize>(), 30);
    answered(&mut first);
    answered(&mut second);
    assert_eq!(steered.exact.totals().failed, 0);
}

#[test]
fn deaths_under_load_lose_nothing() {
    const EACH: usize = 150;
    let Some(mut steered) = Steered::new(Rule::Rotate, 4) else { return };
    let address = steered.group.address();
    steered.exact.ring(&[0, 1, 2, 3]);
    let (mut served, mut deaths) = (0, 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.write_all(b"data").unwrap();
                    client.read_exact(&mut [0; 4]).unwrap();
                }
            });
        }
        while served < 4 * EACH {
            // One is out of the ring, dies with what it has, and its successor takes the place.
            let place = deaths % 4;
            let rest: Vec<u32> = (0..4).filter(|each| *each != place).collect();
            steered.exact.ring(&rest);
            settle();
            let successor = steered.group.join().unwrap();
            steered.members[place as usize] = successor;
            steered.exact.set(place, 1000 + deaths, &steered.members[place as usize]).unwrap();
            steered.exact.ring(&[0, 1, 2, 3]);
            deaths += 1;
            served += steered.members.iter().map(serve).sum::<usize>();
        }
    });
    assert_eq!(served, 4 * EACH);
    assert_eq!((steered.exact.totals().failed, steered.exact.totals().parked), (0, 0));
}
