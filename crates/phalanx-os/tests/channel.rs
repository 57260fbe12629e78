//! The channel on real socket pairs: what arrives, what is lost, and that no fd is left over.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_os::{Channel, Received, RecvError, SendError, host};
use rustix::fs::OFlags;
use rustix::io::FdFlags;

/// The fds of the process are counted here, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count() -> usize {
    host::open_fds(None).unwrap().len()
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn is_cloexec(fd: impl AsFd) -> bool {
    rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
}

fn is_nonblocking(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

fn both() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, Channel::from_fd(theirs).unwrap())
}

#[test]
fn both_ends_are_born_close_on_exec() {
    let _turn = alone();
    let (ours, theirs) = Channel::pair().unwrap();
    assert!(is_cloexec(&ours) && is_cloexec(&theirs));
    assert!(is_nonblocking(&ours) && !is_nonblocking(&theirs));
}

#[test]
fn bytes_and_a_handle_arrive_together() {
    let _turn = alone();
    let before = count();
    {
        let (a, b) = both();
        let handle = null();
        assert_eq!(a.send(b"plain\n", None).unwrap(), 6);
        assert_eq!(a.send(b"with\n", Some(handle.as_fd())).unwrap(), 5);
        assert_eq!(a.send(b"after\n", None).unwrap(), 6);
        drop(handle);
        let (mut buf, mut handles) = ([0; 64], Vec::new());
        let first = b.recv(&mut buf, &mut handles).unwrap();
        assert_eq!(&buf[..first.len], b"plain\nwith\n");
        assert_eq!(handles.len(), 1);
        assert!(is_cloexec(&handles[0]) && handles[0].as_raw_fd() > 2);
        let second = b.recv(&mut buf, &mut handles).unwrap();
        assert_eq!(&buf[..second.len], b"after\n");
        assert_eq!(handles.len(), 1);
        assert!(matches!(b.recv(&mut buf, &mut handles), Err(RecvError::WouldBlock)));
    }
    assert_eq!(count(), before);
}

#[test]
fn handles_that_nobody_received_are_closed_with_the_channel() {
    let _turn = alone();
    let before = count();
    let (mut reader, writer) = UnixStream::pair().unwrap();
    {
        let (a, _b) = both();
        assert_eq!(a.send(b"x", Some(writer.as_fd())).unwrap(), 1);
        drop(writer);
    }
    // The end is seen only when the last copy, the one in flight, is gone.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    drop(reader);
    assert_eq!(count(), before);
}

#[test]
fn an_hostile_peer_sends_as_many_as_it_can() {
    let _turn = alone();
    let before = count();
    {
        let (a, b) = both();
        let handle = null();
        let all = vec![handle.as_fd(); 253];
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&all)));
        let bytes = [std::io::IoSlice::new(b"x")];
        rustix::net::sendmsg(&a, &bytes, &mut control, rustix::net::SendFlags::empty()).unwrap();
        let mut handles = Vec::new();
        let received = b.recv(&mut [0; 16], &mut handles).unwrap();
        assert_eq!(received, Received { len: 1, truncated: false });
        assert_eq!(handles.len(), 253);
        assert!(handles.iter().all(|handle| is_cloexec(handle) && handle.as_raw_fd() > 2));
    }
    assert_eq!(count(), before);
}

#[test]
fn a_receiver_without_room_is_told() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let _turn = alone();
    let before = count();
    {
        let (a, b) = both();
        let handle = null();
        assert_eq!(a.send(b"x", Some(handle.as_fd())).unwrap(), 1);
        let old = getrlimit(Resource::Nofile);
        let mut none = old;
        // Those that are open stay open; no new one can be made.
        none.current = Some(0);
        setrlimit(Resource::Nofile, none).unwrap();
        let mut handles = Vec::new();
        let received = b.recv(&mut [0; 16], &mut handles);
        setrlimit(Resource::Nofile, old).unwrap();
        assert_eq!(received.unwrap(), Received { len: 1, truncated: true });
        assert!(handles.is_empty());
    }
    assert_eq!(count(), before);
}

#[test]
fn a_full_channel_says_so_and_takes_no_handle() {
    let _turn = alone();
    let before = count();
    {
        let (a, b) = both();
        let handle = null();
        let mut sent = 0;
        let end = loop {
            match a.send(&[0; 300], Some(handle.as_fd())) {
                Ok(300) => sent += 1,
                other => break other,
            }
        };
        // Which limit comes first depends on the user and the limit of open files.
        assert!(matches!(end, Err(SendError::WouldBlock | SendError::TooManyInFlight)), "{end:?}");
        assert!(sent > 0);
        let (mut handles, mut buf) = (Vec::new(), [0; 65536]);
        while b.recv(&mut buf, &mut handles).is_ok() {}
        assert_eq!(handles.len(), sent);
        assert_eq!(a.send(&[0; 300], Some(handle.as_fd())).unwrap(), 300);
    }
    assert_eq!(count(), before);
}

#[test]
fn what_a_dead_peer_wrote_comes_before_the_end() {
    let _turn = alone();
    let (ours, theirs) = Channel::pair().unwrap();
    // The peer leaves something unread, so the kernel makes a reset of its close.
    assert_eq!(ours.send(b"unread", None).unwrap(), 6);
    let mut theirs = UnixStream::from(theirs);
    theirs.write_all(b"last words").unwrap();
    drop(theirs);
    assert!(matches!(ours.send(b"x", None), Err(SendError::Closed)));
    let (mut buf, mut handles) = ([0; 64], Vec::new());
    assert_eq!(ours.recv(&mut buf, &mut handles).unwrap().len, 10);
    for _ in 0..2 {
        assert_eq!(ours.recv(&mut buf, &mut handles).unwrap(), Received { len: 0, truncated: false });
    }
}
