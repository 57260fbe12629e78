//! A service without a cluster: binds, accepts, serves, and ends when it is asked to.
#![cfg(any(not(target_os = "linux"), phalanx_standalone))]

use std::io::{Read, Write};
use std::net::TcpStream;

use phalanx::net;
use tokio::io::AsyncWriteExt;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn there_is_no_primary() {
    phalanx::init().expect("nothing to do");
    assert!(phalanx::worker().expect("nothing to do").is_none());
    let found = runtime().block_on(net::TcpListener::named("http"));
    assert_eq!(found.expect_err("no primary").kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn datagrams_come_and_go() {
    runtime().block_on(async {
        let one = net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let other = net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        one.send_to(b"x", other.local_addr().expect("bound")).await.expect("sent");
        let mut bytes = [0; 2];
        assert_eq!(other.recv(&mut bytes).await.expect("received"), 1);
    });
}

#[test]
fn the_blocking_one_needs_no_runtime() {
    let listener = net::blocking::TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("somebody listens");
    let (mut stream, _) = listener.accept().expect("accepted");
    stream.write_all(b"x").expect("written");
    client.read_exact(&mut [0]).expect("read");
}

#[cfg(unix)]
#[test]
fn a_service_serves_until_it_is_asked_to_end() {
    use std::process::Command;
    // A process of its own: the signal would end the other tests' serving too.
    if std::env::var_os("PHALANX_SERVES").is_none() {
        let me = std::env::current_exe().expect("this test");
        let mut child = Command::new(me);
        child.args(["--exact", "a_service_serves_until_it_is_asked_to_end"]).env("PHALANX_SERVES", "1");
        let output = child.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    runtime().block_on(async {
        let draining = phalanx::draining();
        let listener = net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let client = std::thread::spawn(move || {
            let mut text = String::new();
            TcpStream::connect(address).expect("somebody listens").read_to_string(&mut text).expect("read");
            let pid = std::process::id().to_string();
            assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
            text
        });
        let (mut stream, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"served").await.expect("written");
        drop(stream);
        draining.await;
        assert_eq!(client.join().expect("a client"), "served");
        // It waits for ever now.
        let _late = TcpStream::connect(address).expect("the socket is still there");
        let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err());
    });
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_served() {
    runtime().block_on(async {
        let path = std::env::temp_dir().join(format!("phalanx-standalone-{}", std::process::id()));
        let listener = net::UnixListener::bind(&path).await.expect("bound");
        let client = std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
        listener.accept().await.expect("accepted");
        drop(client);
        std::fs::remove_file(path).expect("removed");
    });
}
