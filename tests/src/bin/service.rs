//! A Rust service on the library, as small as can be, for tests and benchmarks.
//!
//! ```text
//! service tcp PORT | async PORT | keep PORT | unix PATH | udp PORT | named TCP UNIX UDP
//! ```
//!
//! `tcp` is a blocking loop, one connection at a time, `async` the same as tasks, `keep` one that goes on accepting, and
//! keeps its listener, until the last connection has ended; there the slot `SLOW_SLOT` rests `SLOW_US`
//! microseconds before each reply. With `BLOCK`, `async` blocks after a request with `X-Block`, all of it, while that file exists.
//! `HOST` is where they listen. Each says who answered: its slot, or `alone`.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use phalanx::net;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

fn name() -> String {
    std::env::var("PHALANX_SLOT").unwrap_or_else(|_| "alone".into())
}

fn reply(request: &[u8], name: &str) -> String {
    let request = String::from_utf8_lossy(request);
    let nonce = request.lines().find_map(|it| it.strip_prefix("X-Nonce: "));
    let nonce = nonce.map(|it| format!("x-nonce: {it}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 200 OK\r\nx-worker: {name}\r\n{nonce}Content-Length: 3\r\nConnection: close\r\n\r\nok\n"
    )
}

/// How long this worker rests before each reply.
fn rest() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let mine = variable("SLOW_SLOT").is_some_and(|slot| slot == name());
    mine.then(|| Duration::from_micros(variable("SLOW_US").and_then(|it| it.parse().ok()).unwrap_or(2000)))
}

fn address(port: &str) -> String {
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".into());
    format!("{host}:{port}")
}

fn tcp(port: &str) -> io::Result<()> {
    let listener = net::blocking::TcpListener::bind(address(port))?;
    let (name, rest) = (name(), rest());
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let (mut bytes, mut have) = ([0; 8192], 0);
        while !bytes[..have].ends_with(b"\r\n\r\n") {
            match stream.read(&mut bytes[have..]) {
                Ok(got) if got > 0 => have += got,
                _ => break,
            }
        }
        if let Some(rest) = rest {
            std::thread::sleep(rest);
        }
        // Who has gone needs no answer.
        let _ = stream.write_all(reply(&bytes[..have], &name).as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    Ok(())
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(8192);
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    if let Some(rest) = rest() {
        tokio::time::sleep(rest).await;
    }
    stream.write_all(reply(&bytes, &name()).as_bytes()).await?;
    stream.shutdown().await?;
    if let Ok(file) = std::env::var("BLOCK")
        && String::from_utf8_lossy(&bytes).contains("X-Block")
    {
        while std::path::Path::new(&file).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

async fn tasks(port: &str, keep: bool) -> io::Result<()> {
    let listener = net::TcpListener::bind(address(port)).await?;
    let mut connections = JoinSet::new();
    let mut draining = phalanx::draining();
    println!("listening");
    while !draining.is_draining() || (keep && !connections.is_empty()) {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(answer(accepted?.0));
            }
            Some(_) = connections.join_next() => {}
            () = &mut draining, if !draining.is_draining() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn unix(path: &str) -> io::Result<()> {
    let listener = net::UnixListener::bind(path).await?;
    let mut connections = JoinSet::new();
    println!("listening");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(answer(accepted?.0));
            }
            Some(_) = connections.join_next() => {}
            () = phalanx::draining() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn udp(port: &str) -> io::Result<()> {
    let socket = net::UdpSocket::bind(format!("127.0.0.1:{port}")).await?;
    let mut bytes = [0; 2048];
    println!("listening");
    loop {
        tokio::select! {
            received = socket.recv_from(&mut bytes) => {
                let (count, from) = received?;
                let answer = format!("{} {}", name(), String::from_utf8_lossy(&bytes[..count]));
                socket.send_to(answer.as_bytes(), from).await?;
            }
            () = phalanx::draining() => return Ok(()),
        }
    }
}

/// All that is configured, by its name, until it is told to end; who it is on each.
async fn named(tcp: &str, unix: &str, udp: &str) -> io::Result<()> {
    let tcp = net::TcpListener::named(tcp).await?;
    let unix = net::UnixListener::named(unix).await?;
    let udp = net::UdpSocket::named(udp).await?;
    let missing = net::UnixListener::named("no").await;
    assert!(missing.is_err_and(|error| error.kind() == io::ErrorKind::NotFound), "there is none");
    let mut bytes = [0; 64];
    println!("listening on {}", udp.local_addr()?);
    loop {
        tokio::select! {
            accepted = tcp.accept() => answer(accepted?.0).await?,
            accepted = unix.accept() => answer(accepted?.0).await?,
            received = udp.recv_from(&mut bytes) => {
                udp.send_to(name().as_bytes(), received?.1).await?;
            }
            () = phalanx::draining() => return Ok(()),
        }
    }
}

/// `FAIL=CODE` makes it exit before it listens; with `FAIL_SLOT=N` only in slot N.
fn fails() -> Option<ExitCode> {
    let code = std::env::var("FAIL").ok()?.parse::<u8>().ok()?;
    let here = std::env::var("FAIL_SLOT").is_ok_and(|slot| slot != name());
    (!here).then(|| ExitCode::from(code))
}

fn main() -> ExitCode {
    if let Some(code) = fails() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let [kind, place] = &arguments[..] else {
        if let [_, tcp, unix, udp] = &arguments[..] {
            return match runtime().and_then(|it| it.block_on(named(tcp, unix, udp))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        eprintln!("usage: service tcp PORT | async PORT | keep PORT | unix PATH | udp PORT");
        return ExitCode::from(2);
    };
    let result = match kind.as_str() {
        "tcp" => tcp(place),
        "async" => runtime().and_then(|it| it.block_on(tasks(place, false))),
        "keep" => runtime().and_then(|it| it.block_on(tasks(place, true))),
        "unix" => runtime().and_then(|it| it.block_on(unix(place))),
        "udp" => runtime().and_then(|it| it.block_on(udp(place))),
        _ => Err(io::Error::other(format!("no kind of service is called {kind}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("service: {error}");
            ExitCode::FAILURE
        }
    }
}
