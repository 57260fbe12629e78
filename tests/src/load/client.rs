//! One connection, from its first system call to the entry in the ledger.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::ledger::Outcome;
use super::reply::{Broken, Reader};
use super::{Load, Target};
use crate::raw;

/// Either kind of connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buffer).await,
            Self::Unix(s) => s.read(buffer).await,
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.write_all(bytes).await,
            Self::Unix(s) => s.write_all(bytes).await,
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_read(buffer),
            Self::Unix(s) => s.try_read(buffer),
        }
    }

    fn local(&self) -> Option<String> {
        match self {
            Self::Tcp(s) => s.local_addr().ok().map(|a| a.to_string()),
            Self::Unix(_) => None,
        }
    }
}

/// What one connection has to tell the ledger.
pub(super) struct Account {
    pub(super) outcome: Outcome,
    pub(super) detail: String,
    pub(super) nonce: String,
    pub(super) local: Option<String>,
    pub(super) worker: Option<String>,
    pub(super) requests: u64,
    /// Status of each whole reply.
    pub(super) statuses: Vec<u16>,
    pub(super) latencies: Vec<Duration>,
    pub(super) wrong_nonce: u64,
    pub(super) torn: bool,
    pub(super) ended_early: bool,
    pub(super) no_fin: bool,
}

/// The n-th of our source addresses: 127.1.0.1 and on, never a network or
/// broadcast address.
pub(super) fn source(n: u64) -> Ipv4Addr {
    let (n, low) = (n / 254, (n % 254) as u8 + 1);
    Ipv4Addr::new(127, (n / 256 % 254) as u8 + 1, (n % 256) as u8, low)
}

/// Makes connection number `index` and follows it to its end.
pub(super) async fn connection(load: &Load, index: u64, from: Option<IpAddr>, due: Instant) -> Account {
    let mut account = Account {
        outcome: Outcome::Served,
        detail: String::new(),
        nonce: nonce(load, index, 0),
        local: None,
        worker: None,
        requests: 0,
        statuses: Vec::new(),
        latencies: Vec::new(),
        wrong_nonce: 0,
        torn: false,
        ended_early: false,
        no_fin: false,
    };
    match timeout(load.silence, connect(&load.target, from)).await {
        Err(_) => {
            account.outcome = Outcome::Hung;
            account.detail = "the handshake did not end".into();
        }
        Ok(Err(e)) => {
            account.outcome = of_connect(&e);
            account.detail = format!("connect: {e}");
        }
        Ok(Ok(mut stream)) => {
            account.local = stream.local();
            if let Err((outcome, detail)) = talk(load, index, &mut stream, due, &mut account).await {
                account.outcome = outcome;
                account.detail = detail;
            }
        }
    }
    account
}

fn nonce(load: &Load, index: u64, request: u64) -> String {
    format!("{:x}.{index}.{request}", load.seed)
}

async fn connect(target: &Target, from: Option<IpAddr>) -> io::Result<Stream> {
    match target {
        Target::Tcp(addr) => {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(from) = from {
                raw::bind_address_no_port(&socket)?;
                socket.bind(SocketAddr::new(from, 0))?;
            }
            let stream = socket.connect(*addr).await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        // A full backlog is no refusal: a blocking client would wait here, so do we.
        // The caller's deadline bounds it.
        Target::Unix(path) => loop {
            match UnixStream::connect(path).await {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(1)).await,
                other => return other.map(Stream::Unix),
            }
        },
    }
}

fn of_connect(e: &io::Error) -> Outcome {
    match e.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Outcome::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Outcome::Reset,
        io::ErrorKind::TimedOut => Outcome::Hung,
        _ => Outcome::HarnessError,
    }
}

fn of_read(broken: Broken) -> (Outcome, String) {
    match broken {
        Broken::Eof(s) => (Outcome::Closed, s),
        Broken::Reset(s) => (Outcome::Reset, s),
        Broken::Silent(s) => (Outcome::Hung, s),
        Broken::Error(e) if e.kind() == io::ErrorKind::TimedOut => (Outcome::Hung, format!("read: {e}")),
        Broken::Error(e) => (Outcome::HarnessError, format!("read: {e}")),
    }
}

async fn talk(
    load: &Load,
    index: u64,
    stream: &mut Stream,
    due: Instant,
    account: &mut Account,
) -> Result<(), (Outcome, String)> {
    let mut reader = Reader::default();
    let mut begun = due;
    for n in 0..load.per_connection {
        if n > 0 {
            // A server that has already said goodbye is not asked again.
            if matches!(stream.try_read(&mut [0; 1]), Ok(0)) {
                account.ended_early = true;
                return Ok(());
            }
            begun = Instant::now();
        }
        let last = n + 1 == load.per_connection;
        account.nonce = nonce(load, index, n);
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nX-Nonce: {}\r\nConnection: {}\r\n{}\r\n",
            load.path,
            load.host,
            account.nonce,
            if last { "close" } else { "keep-alive" },
            load.headers
        );
        account.requests += 1;
        match timeout(load.silence, stream.write_all(request.as_bytes())).await {
            Err(_) => return Err((Outcome::Hung, "the request was not taken".into())),
            Ok(Ok(())) => {}
            // What the peer did is found out by reading.
            Ok(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err((Outcome::Reset, format!("write: {e}")));
            }
            Ok(Err(e)) => return Err((Outcome::HarnessError, format!("write: {e}"))),
        }
        let reply = reader.reply(stream, load.silence).await.map_err(of_read)?;
        account.latencies.push(begun.elapsed());
        account.statuses.push(reply.status);
        if reply.nonce.as_ref().is_some_and(|it| *it != account.nonce) {
            account.wrong_nonce += 1;
        }
        if n == 0 {
            account.worker = reply.worker;
        } else if account.worker != reply.worker {
            account.torn = true;
        }
        if reply.last || last {
            account.ended_early = !last;
            account.no_fin = !await_close(&mut reader, stream, load.silence).await;
            return Ok(());
        }
    }
    Ok(())
}

/// The server closes first: else our ports run out in TIME_WAIT, and a
/// descriptor that somebody still holds would go unnoticed.
async fn await_close(reader: &mut Reader, stream: &mut Stream, silence: Duration) -> bool {
    let mut chunk = [0; 512];
    if reader.left() > 0 {
        return false;
    }
    match timeout(silence, stream.read(&mut chunk)).await {
        Err(_) => false,
        Ok(Ok(n)) => n == 0,
        Ok(Err(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_addresses_are_loopback_and_distinct() {
        let all: std::collections::BTreeSet<_> = (0..70_000).map(source).collect();
        assert_eq!(all.len(), 70_000);
        assert!(all.iter().all(Ipv4Addr::is_loopback));
        assert_eq!(source(0), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(source(254), Ipv4Addr::new(127, 1, 1, 1));
    }
}
