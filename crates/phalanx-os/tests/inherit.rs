//! Processes that are born with a channel or with sockets. This binary starts itself to be one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use phalanx_os::conn::{self, SocketKind};
use phalanx_os::inherit::{self, Birth, InheritError};
use phalanx_os::{Channel, Ended, Spawn, host};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::FdFlags;

/// Which part of this binary a child is to play; the tests of the same name do nothing without it.
const ROLE: &str = "PHALANX_OS_TEST_ROLE";

fn plays(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|it| it == role)
}

fn child(role: &str, env: &[(&str, &str)]) -> Spawn {
    let mut spawn = Spawn::new(std::env::current_exe().unwrap());
    spawn.args = ["--exact", role, "--nocapture", "--test-threads=1"].map(OsString::from).to_vec();
    spawn.env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    spawn.env.push((ROLE.into(), role.into()));
    spawn
}

/// Runs it to its end; its output is shown if it failed.
fn succeed(mut spawn: Spawn) {
    let (read, write) = host::pipe().unwrap();
    conn::set_nonblocking(&read, false).unwrap();
    spawn.fds.push((2, write.try_clone().unwrap()));
    spawn.fds.push((1, write));
    let mut process = spawn.spawn().unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    if let Some(pidfd) = process.pidfd() {
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
    }
    let ended = loop {
        if let Some(ended) = process.try_wait().unwrap() {
            break ended;
        }
        std::thread::yield_now();
    };
    assert_eq!(ended, Ended::Exited(0), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

fn is_cloexec(fd: impl AsFd) -> bool {
    rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
}

fn forget() {
    #![expect(unsafe_code, reason = "the environment is global")]
    // SAFETY: nothing else runs in this process but the harness, which waits for us.
    unsafe { inherit::forget_env() };
}

#[test]
fn role_phalanx() {
    if !plays("role_phalanx") {
        return;
    }
    assert!(!inherit::foreign_channel());
    let Birth::Phalanx { channel, worker_id, slot, .. } = inherit::channel().unwrap().unwrap() else {
        panic!()
    };
    assert_eq!((worker_id, slot), (Some(9), Some(0)));
    assert_eq!(channel.as_fd().as_raw_fd(), 57);
    assert!(is_cloexec(&channel));
    assert!(matches!(inherit::channel(), Err(InheritError::Taken)));
    assert_eq!(channel.send(b"hello", None).unwrap(), 5);
    assert!(!inherit::forget_env_if_alone(), "the harness has a thread of its own");
    assert!(std::env::var_os(inherit::PHALANX_CHANNEL).is_some());
    forget();
    assert!(inherit::channel().unwrap().is_none());
    assert!(std::env::var_os(inherit::PHALANX_CHANNEL).is_none());
    assert!(std::env::var_os(inherit::PHALANX_WORKER_ID).is_some());
}

#[test]
fn a_worker_of_ours_finds_its_channel() {
    let (ours, theirs) = Channel::pair().unwrap();
    let mut spawn = child("role_phalanx", &[("PHALANX_WORKER_ID", "9"), ("PHALANX_SLOT", "0")]);
    spawn.pid_env = vec![("PHALANX_CHANNEL".into(), "57:".into())];
    spawn.fds = vec![(57, theirs)];
    succeed(spawn);
    let mut buf = [0; 16];
    assert_eq!(ours.recv(&mut buf, &mut Vec::new()).unwrap().len, 5);
    // A child of another test has it too, between its fork and its exec.
    poll(&mut [PollFd::new(&ours, PollFlags::IN)], None).unwrap();
    assert_eq!(ours.recv(&mut buf, &mut Vec::new()).unwrap().len, 0);
}

#[test]
fn role_node() {
    if !plays("role_node") {
        return;
    }
    let Birth::Node { worker_id, channel, advanced } = inherit::channel().unwrap().unwrap() else { panic!() };
    assert_eq!((worker_id, advanced), (4, true));
    assert_eq!(channel.send(b"hello", None).unwrap(), 5);
    forget();
    for name in ["NODE_CHANNEL_FD", "NODE_UNIQUE_ID", "NODE_CHANNEL_SERIALIZATION_MODE"] {
        assert!(std::env::var_os(name).is_none(), "{name}");
    }
}

#[test]
fn a_worker_of_node_finds_its_channel() {
    let (ours, theirs) = Channel::pair().unwrap();
    let mut spawn = child(
        "role_node",
        &[("NODE_CHANNEL_FD", "3"), ("NODE_UNIQUE_ID", "4"), ("NODE_CHANNEL_SERIALIZATION_MODE", "advanced")],
    );
    spawn.fds = vec![(3, theirs)];
    succeed(spawn);
    assert_eq!(ours.recv(&mut [0; 16], &mut Vec::new()).unwrap().len, 5);
}

#[test]
fn role_unusable() {
    if !plays("role_unusable") {
        return;
    }
    match inherit::channel() {
        Err(InheritError::Descriptor { variable, fd: 3, source }) => {
            assert_eq!(variable, "NODE_CHANNEL_FD");
            println!("{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_channel_that_is_none_is_an_error() {
    let env = [("NODE_CHANNEL_FD", "3"), ("NODE_UNIQUE_ID", "4")];
    // Not open.
    succeed(child("role_unusable", &env));
    // Open, but something else.
    let mut spawn = child("role_unusable", &env);
    spawn.fds = vec![(3, File::open("/dev/null").unwrap().into())];
    succeed(spawn);
    let mut spawn = child("role_unusable", &env);
    spawn.fds = vec![(3, TcpListener::bind("127.0.0.1:0").unwrap().into())];
    succeed(spawn);
}

#[test]
fn role_foreign() {
    if !plays("role_foreign") {
        return;
    }
    assert!(inherit::foreign_channel());
    assert!(inherit::channel().unwrap().is_none());
    assert!(inherit::listen_fds().is_empty());
}

#[test]
fn what_is_meant_for_the_parent_is_not_taken() {
    let ours = std::process::id().to_string();
    let (a, _b) = UnixStream::pair().unwrap();
    let channel = format!("3:{ours}");
    let env = [("PHALANX_CHANNEL", channel.as_str()), ("LISTEN_PID", ours.as_str()), ("LISTEN_FDS", "1")];
    let mut spawn = child("role_foreign", &env);
    spawn.fds = vec![(3, OwnedFd::from(a))];
    succeed(spawn);
}

#[test]
fn role_listen() {
    if !plays("role_listen") {
        return;
    }
    // The channel is among the numbers; who takes it first has it.
    let Some(Birth::Phalanx { channel, .. }) = inherit::channel().unwrap() else { panic!() };
    let sockets = inherit::listen_fds();
    let seen: Vec<(&str, i32, SocketKind)> =
        sockets.iter().map(|(name, fd)| (name.as_str(), fd.as_raw_fd(), conn::kind(fd))).collect();
    assert_eq!(seen, [("web", 3, SocketKind::TcpListener), ("", 6, SocketKind::UnixStream)]);
    assert!(sockets.iter().all(|(_, fd)| is_cloexec(fd)));
    assert!(inherit::listen_fds().is_empty());
    // They say themselves whom they are meant for, so they may stay.
    forget();
    assert!(std::env::var_os("LISTEN_PID").is_some());
    let (_, mut last) = sockets.into_iter().next_back().map(|(n, fd)| (n, File::from(fd))).unwrap();
    last.write_all(b"!").unwrap();
    drop(channel);
}

#[test]
fn sockets_keep_their_place_and_are_given_out_once() {
    let (_ours, theirs) = Channel::pair().unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    let mut spawn = child("role_listen", &[("LISTEN_FDS", "5"), ("LISTEN_FDNAMES", "web:null:chan")]);
    spawn.pid_env = vec![("LISTEN_PID".into(), "".into()), ("PHALANX_CHANNEL".into(), "5:".into())];
    spawn.fds = vec![
        (3, TcpListener::bind("127.0.0.1:0").unwrap().into()),
        (4, File::open("/dev/null").unwrap().into()),
        (5, theirs),
        (6, far.into()),
        // Number 7 is not open.
    ];
    succeed(spawn);
    near.read_exact(&mut [0]).unwrap();
}
