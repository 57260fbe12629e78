//! Listeners and connections: what is bound, what is accepted, what is known of a connection.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_os::conn::{self, SocketKind, Touched};
use phalanx_os::host;
use phalanx_os::listener::{self, AcceptError, Address, LocalAddress};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// The fds of the process are counted here, and its directory changed, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory of its own, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("phalanx-os-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tcp(addr: &str) -> Address {
    Address::Tcp { addr: addr.parse().unwrap(), v6only: true }
}

fn unix(path: &Path) -> Address {
    Address::Unix { path: path.to_owned(), mode: None }
}

fn inet(local: &LocalAddress) -> SocketAddr {
    match local {
        LocalAddress::Inet(addr) => *addr,
        other => panic!("{other:?}"),
    }
}

fn wait_readable(fd: impl AsFd) {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
}

/// Both ends of an established TCP connection, the accepted one second.
fn connection() -> (TcpStream, OwnedFd) {
    let bound = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    listener::listen(&bound.fd, 16).unwrap();
    let client = TcpStream::connect(inet(&bound.local)).unwrap();
    wait_readable(&bound.fd);
    let (server, peer) = listener::accept(&bound.fd).unwrap();
    assert_eq!(peer, Some(client.local_addr().unwrap()));
    (client, server)
}

/// Until the kernel has that many bytes for the reader.
fn wait_unread(fd: impl AsFd, bytes: u64) {
    while rustix::io::ioctl_fionread(&fd).unwrap() < bytes {
        std::thread::yield_now();
    }
}

#[test]
fn a_bound_socket_is_nonblocking_and_close_on_exec() {
    let _turn = alone();
    let bound = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    assert!(rustix::io::fcntl_getfd(&bound.fd).unwrap().contains(FdFlags::CLOEXEC));
    assert!(rustix::fs::fcntl_getfl(&bound.fd).unwrap().contains(OFlags::NONBLOCK));
    assert_ne!(inet(&bound.local).port(), 0);
    assert!(bound.file.is_none());
    // It does not listen yet.
    assert_eq!(conn::kind(&bound.fd), SocketKind::TcpStream);
    assert!(matches!(listener::accept(&bound.fd), Err(AcceptError::Listener(_))));
    listener::listen(&bound.fd, u32::MAX).unwrap();
    assert_eq!(conn::kind(&bound.fd), SocketKind::TcpListener);
    assert!(matches!(listener::accept(&bound.fd), Err(AcceptError::WouldBlock)));
}

#[test]
fn an_accepted_connection_is_nonblocking_and_close_on_exec() {
    let _turn = alone();
    let before = host::open_fds(None).unwrap().len();
    {
        let (_client, server) = connection();
        assert!(rustix::io::fcntl_getfd(&server).unwrap().contains(FdFlags::CLOEXEC));
        assert!(rustix::fs::fcntl_getfl(&server).unwrap().contains(OFlags::NONBLOCK));
    }
    assert_eq!(host::open_fds(None).unwrap().len(), before);
}

#[test]
fn a_taken_port_is_in_use_once_somebody_listens() {
    let _turn = alone();
    let first = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    listener::listen(&first.fd, 1).unwrap();
    let again = Address::Tcp { addr: inet(&first.local), v6only: true };
    assert_eq!(listener::bind(&again).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn ipv6_only_leaves_the_port_free_for_ipv4() {
    let _turn = alone();
    let Ok(six) = listener::bind(&tcp("[::]:0")) else { return };
    listener::listen(&six.fd, 1).unwrap();
    let port = inet(&six.local).port();
    let four = listener::bind(&tcp(&format!("0.0.0.0:{port}")));
    // Somebody else may have the port on IPv4, but then the option is still what was asked for.
    assert!(sockopt::ipv6_v6only(&six.fd).unwrap());
    if let Ok(four) = four {
        listener::listen(&four.fd, 1).unwrap();
    }
    let both = listener::bind(&Address::Tcp { addr: "[::]:0".parse().unwrap(), v6only: false }).unwrap();
    assert!(!sockopt::ipv6_v6only(&both.fd).unwrap());
}

#[test]
fn datagram_sockets_share_an_address_only_if_they_say_so() {
    let _turn = alone();
    let udp = |addr, reuse_addr| listener::bind(&Address::Udp { addr, v6only: true, reuse_addr });
    let any = "127.0.0.1:0".parse().unwrap();
    let first = udp(any, false).unwrap();
    assert_eq!(conn::kind(&first.fd), SocketKind::Udp);
    assert_eq!(udp(inet(&first.local), true).unwrap_err().kind(), ErrorKind::AddrInUse);
    let shared = udp(any, true).unwrap();
    assert!(udp(inet(&shared.local), true).is_ok());
}

#[test]
fn a_socket_file_is_removed_only_if_it_is_ours() {
    let _turn = alone();
    let dir = Directory::new("ours");
    let path = dir.0.join("s");
    let first = listener::bind(&unix(&path)).unwrap();
    assert_eq!(first.local, LocalAddress::Unix(path.clone()));
    assert_eq!(listener::local_address(&first.fd).unwrap(), LocalAddress::Unix(path.clone()));
    // Somebody takes the name.
    fs::remove_file(&path).unwrap();
    let second = listener::bind(&unix(&path)).unwrap();
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    let first_file = first.file.unwrap();
    if !first_file.remove().unwrap() {
        assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
        assert!(second.file.unwrap().remove().unwrap());
    } else {
        panic!("the file of another was removed");
    }
    assert!(!path.exists());
    let third = listener::bind(&unix(&path)).unwrap();
    drop(third.fd);
    third.file.unwrap().keep();
    assert!(path.exists());
}

#[test]
fn an_occupied_or_impossible_path_is_refused() {
    let _turn = alone();
    let dir = Directory::new("paths");
    let error = |path: &Path| listener::bind(&unix(path)).unwrap_err().raw_os_error();
    let plain = dir.0.join("plain");
    fs::write(&plain, "mine").unwrap();
    assert_eq!(error(&plain), Some(libc::EADDRINUSE));
    assert_eq!(fs::read(&plain).unwrap(), b"mine");
    let stale = dir.0.join("stale");
    drop(listener::bind(&unix(&stale)).unwrap());
    assert_eq!(error(&stale), Some(libc::EADDRINUSE));
    assert_eq!(error(&dir.0.join("no/such")), Some(libc::EACCES));
    assert_eq!(error(Path::new("")), Some(libc::EINVAL));
    assert_eq!(error(&dir.0.join("x".repeat(200))), Some(libc::ENAMETOOLONG));
}

#[test]
fn a_long_path_is_bound_relative_to_the_directory() {
    let _turn = alone();
    let dir = Directory::new("long");
    let deep = dir.0.join("d".repeat(100));
    fs::create_dir(&deep).unwrap();
    let path = deep.join("s");
    assert_eq!(listener::bind(&unix(&path)).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    let here = std::env::current_dir().unwrap();
    std::env::set_current_dir(&deep).unwrap();
    let bound = listener::bind(&unix(&path));
    std::env::set_current_dir(here).unwrap();
    let bound = bound.unwrap();
    assert_eq!(bound.local, LocalAddress::Unix(path.clone()));
    assert!(path.exists());
    // From another directory it is still found.
    assert!(bound.file.unwrap().remove().unwrap());
    assert!(!path.exists());
}

#[test]
fn a_unix_connection_has_no_address() {
    let _turn = alone();
    let dir = Directory::new("accept");
    let path = dir.0.join("s");
    let bound = listener::bind(&Address::Unix { path: path.clone(), mode: Some(0o600) }).unwrap();
    listener::listen(&bound.fd, 1).unwrap();
    assert_eq!(conn::kind(&bound.fd), SocketKind::UnixListener);
    let _client = UnixStream::connect(&path).unwrap();
    let (server, peer) = listener::accept(&bound.fd).unwrap();
    assert_eq!(peer, None);
    assert_eq!(conn::kind(&server), SocketKind::UnixStream);
    assert_eq!(conn::touched(&server), Touched::Unknown);
}

#[test]
fn the_queue_of_a_listener_is_counted() {
    let _turn = alone();
    let bound = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    assert_eq!(listener::queue(&bound.fd).unwrap_err().kind(), ErrorKind::InvalidInput);
    listener::listen(&bound.fd, 7).unwrap();
    assert_eq!(listener::queue(&bound.fd).unwrap(), listener::Queue { queued: 0, limit: 7 });
    let _clients: Vec<_> = (0..3).map(|_| TcpStream::connect(inet(&bound.local)).unwrap()).collect();
    // The last step of a handshake is the kernel's own business and may come after connect returned.
    while listener::queue(&bound.fd).unwrap().queued < 3 {
        std::thread::yield_now();
    }
    listener::listen(&bound.fd, 9).unwrap();
    assert_eq!(listener::queue(&bound.fd).unwrap(), listener::Queue { queued: 3, limit: 9 });
    assert!(listener::somaxconn() > 0);
}

#[test]
fn no_number_left_is_no_error_of_the_listener() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let _turn = alone();
    let bound = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    listener::listen(&bound.fd, 1).unwrap();
    let _client = TcpStream::connect(inet(&bound.local)).unwrap();
    wait_readable(&bound.fd);
    let old = getrlimit(Resource::Nofile);
    let mut none = old;
    none.current = Some(0);
    setrlimit(Resource::Nofile, none).unwrap();
    let accepted = listener::accept(&bound.fd);
    setrlimit(Resource::Nofile, old).unwrap();
    assert!(matches!(accepted, Err(AcceptError::OutOfResources(_))), "{accepted:?}");
    // It waited.
    assert!(listener::accept(&bound.fd).is_ok());
}

#[test]
fn kinds_are_told_apart() {
    let _turn = alone();
    let (client, _server) = connection();
    let dir = Directory::new("kinds");
    let (a, b) = conn::unix_pair().unwrap();
    assert_eq!(conn::kind(&client), SocketKind::TcpStream);
    assert_eq!(conn::kind(TcpListener::bind("127.0.0.1:0").unwrap()), SocketKind::TcpListener);
    assert_eq!(conn::kind(UdpSocket::bind("127.0.0.1:0").unwrap()), SocketKind::Udp);
    assert_eq!(conn::kind(UnixListener::bind(dir.0.join("s")).unwrap()), SocketKind::UnixListener);
    assert_eq!(conn::kind(UnixDatagram::unbound().unwrap()), SocketKind::UnixDatagram);
    assert_eq!(conn::kind(&a), SocketKind::UnixStream);
    assert_eq!(conn::kind(fs::File::open("/dev/null").unwrap()), SocketKind::Other);
    assert_eq!(conn::kind(host::pipe().unwrap().0), SocketKind::Other);
    assert_ne!(conn::cookie(&a).unwrap(), conn::cookie(&b).unwrap());
    assert_eq!(conn::cookie(&a).unwrap(), conn::cookie(a.try_clone().unwrap()).unwrap());
    assert_eq!(listener::local_address(&a).unwrap(), LocalAddress::Unnamed);
}

#[test]
fn a_connection_nobody_used_is_pristine() {
    let _turn = alone();
    let (mut client, server) = connection();
    assert_eq!(conn::touched(&server), Touched::Pristine);
    client.write_all(b"GET /").unwrap();
    wait_unread(&server, 5);
    assert_eq!(conn::touched(&server), Touched::Pristine);
    client.shutdown(Shutdown::Write).unwrap();
    // Whether the FIN is there already or not, the answer is the same; to see both, wait for it.
    assert_eq!(conn::touched(&server), Touched::Pristine);
    poll(&mut [PollFd::new(&server, PollFlags::RDHUP)], None).unwrap();
    assert_eq!(conn::touched(&server), Touched::Pristine);
}

#[test]
fn reading_one_byte_touches() {
    let _turn = alone();
    let (mut client, server) = connection();
    client.write_all(b"GET /").unwrap();
    wait_unread(&server, 5);
    let mut server = TcpStream::from(server);
    server.read_exact(&mut [0]).unwrap();
    assert_eq!(conn::touched(&server), Touched::Touched);
    client.shutdown(Shutdown::Write).unwrap();
    poll(&mut [PollFd::new(&server, PollFlags::RDHUP)], None).unwrap();
    assert_eq!(conn::touched(&server), Touched::Touched);
}

#[test]
fn writing_one_byte_touches() {
    let _turn = alone();
    let (_client, server) = connection();
    let mut server = TcpStream::from(server);
    server.write_all(b"x").unwrap();
    assert_eq!(conn::touched(&server), Touched::Touched);
}

#[test]
fn a_closing_connection_is_touched() {
    let _turn = alone();
    let (_client, server) = connection();
    let server = TcpStream::from(server);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(conn::touched(&server), Touched::Touched);
    assert_eq!(conn::touched(TcpListener::bind("127.0.0.1:0").unwrap()), Touched::Touched);
    assert_eq!(conn::touched(UdpSocket::bind("127.0.0.1:0").unwrap()), Touched::Unknown);
    assert_eq!(conn::touched(fs::File::open("/dev/null").unwrap()), Touched::Unknown);
}

#[test]
fn a_reset_connection_is_accepted_like_any_other() {
    let _turn = alone();
    let bound = listener::bind(&tcp("127.0.0.1:0")).unwrap();
    listener::listen(&bound.fd, 1).unwrap();
    let client = TcpStream::connect(inet(&bound.local)).unwrap();
    wait_readable(&bound.fd);
    sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    let (server, _) = listener::accept(&bound.fd).unwrap();
    poll(&mut [PollFd::new(&server, PollFlags::HUP)], None).unwrap();
    assert_eq!(conn::touched(&server), Touched::Touched);
    assert!(matches!(listener::accept(&bound.fd), Err(AcceptError::WouldBlock)));
}

#[test]
fn a_linger_time_is_taken_away() {
    let _turn = alone();
    let (_client, server) = connection();
    sockopt::set_socket_linger(&server, Some(std::time::Duration::from_secs(3600))).unwrap();
    conn::clear_linger(&server).unwrap();
    assert_eq!(sockopt::socket_linger(&server).unwrap(), None);
    assert!(conn::clear_linger(fs::File::open("/dev/null").unwrap()).is_err());
}

#[test]
fn a_barred_listener_serves_who_has_come_and_lets_nobody_in() {
    let _alone = alone();
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let bound = listener::bind(&tcp(addr)).unwrap();
        listener::listen(&bound.fd, 8).unwrap();
        let address = inet(&bound.local);
        assert!(!listener::waits(&bound.fd).unwrap());
        let mut early = TcpStream::connect(address).unwrap();
        listener::bar(&bound.fd).unwrap();
        listener::bar(&bound.fd).unwrap();

        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let late = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        assert_eq!(rustix::net::connect(&late, &address), Err(Errno::INPROGRESS));
        assert!(listener::waits(&bound.fd).unwrap());
        assert_eq!(listener::queue(&bound.fd).unwrap().queued, 1);
        let mut served = TcpStream::from(listener::accept(&bound.fd).unwrap().0);
        conn::set_nonblocking(&served, false).unwrap();
        assert!(!listener::waits(&bound.fd).unwrap(), "the late one is not there");
        early.write_all(b"ask").unwrap();
        let mut bytes = [0; 3];
        served.read_exact(&mut bytes).unwrap();
        served.write_all(b"all").unwrap();
        early.read_exact(&mut bytes).unwrap();

        drop(bound);
        poll(&mut [PollFd::new(&late, PollFlags::OUT)], None).unwrap();
        assert_eq!(sockopt::socket_error(&late).unwrap(), Err(Errno::CONNREFUSED));
    }
}
