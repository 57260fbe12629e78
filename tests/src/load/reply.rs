//! Just enough HTTP/1.1 to know when a reply is whole.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::client::Stream;

/// A whole reply.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) worker: Option<String>,
    pub(super) nonce: Option<String>,
    /// The server said or did that nothing follows.
    pub(super) last: bool,
}

/// Why there is no whole reply.
pub(super) enum Broken {
    Eof(String),
    Reset(String),
    Silent(String),
    Error(io::Error),
}

enum Body {
    Length(usize),
    Chunked,
    UntilEof,
}

struct Head {
    status: u16,
    worker: Option<String>,
    nonce: Option<String>,
    close: bool,
    body: Body,
}

/// Reads replies off one connection, one after the other.
#[derive(Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads one whole reply. `silence` is how long the peer may say nothing.
    pub(super) async fn reply(&mut self, stream: &mut Stream, silence: Duration) -> Result<Reply, Broken> {
        loop {
            let end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                    break at;
                }
                if self.buffer.len() > 64 << 10 {
                    return Err(Broken::Eof("a reply head of more than 64 KiB".into()));
                }
                self.more(stream, silence, "head").await?;
            };
            let head = parse(&self.buffer[..end])
                .ok_or_else(|| Broken::Eof(format!("not HTTP: {:?}", preview(&self.buffer[..end]))))?;
            self.buffer.drain(..end + 4);
            if head.status / 100 == 1 {
                continue;
            }
            let mut last = head.close;
            match head.body {
                Body::Length(n) => {
                    while self.buffer.len() < n {
                        self.more(stream, silence, "body").await?;
                    }
                    self.buffer.drain(..n);
                }
                Body::Chunked => self.chunks(stream, silence).await?,
                Body::UntilEof => {
                    last = true;
                    loop {
                        match self.more(stream, silence, "body").await {
                            Ok(()) => {}
                            Err(Broken::Eof(_)) => break,
                            Err(other) => return Err(other),
                        }
                    }
                }
            }
            return Ok(Reply { status: head.status, worker: head.worker, nonce: head.nonce, last });
        }
    }

    async fn chunks(&mut self, stream: &mut Stream, silence: Duration) -> Result<(), Broken> {
        loop {
            let end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n") {
                    break at;
                }
                self.more(stream, silence, "chunk").await?;
            };
            let line = String::from_utf8_lossy(&self.buffer[..end]);
            let size = line.split(';').next().unwrap_or("").trim();
            let size =
                usize::from_str_radix(size, 16).map_err(|_| Broken::Eof(format!("not a chunk: {line:?}")))?;
            let whole = end + 2 + size + 2;
            while self.buffer.len() < whole {
                self.more(stream, silence, "chunk").await?;
            }
            self.buffer.drain(..whole);
            if size == 0 {
                return Ok(());
            }
        }
    }

    async fn more(&mut self, stream: &mut Stream, silence: Duration, part: &str) -> Result<(), Broken> {
        let seen = |buffer: &[u8]| match buffer.len() {
            0 => format!("nothing of its {part}"),
            n => format!("{n} bytes of its {part}: {:?}", preview(buffer)),
        };
        let mut chunk = [0; 16 << 10];
        match timeout(silence, stream.read(&mut chunk)).await {
            Err(_) => Err(Broken::Silent(format!("silent after {}", seen(&self.buffer)))),
            Ok(Ok(0)) => Err(Broken::Eof(format!("end of file after {}", seen(&self.buffer)))),
            Ok(Ok(n)) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                Err(Broken::Reset(format!("reset after {}", seen(&self.buffer))))
            }
            Ok(Err(e)) => Err(Broken::Error(e)),
        }
    }

    /// Bytes that came after the last reply.
    pub(super) fn left(&self) -> usize {
        self.buffer.len()
    }
}

fn preview(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn parse(head: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.splitn(3, ' ');
    let version = first.next()?.strip_prefix("HTTP/1.")?;
    let status = first.next()?.parse().ok()?;
    let mut out =
        Head { status, worker: None, nonce: None, close: version.starts_with('0'), body: Body::UntilEof };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "x-worker" => out.worker = Some(value.to_owned()),
            "x-nonce" => out.nonce = Some(value.to_owned()),
            "connection" => out.close = value.eq_ignore_ascii_case("close"),
            "content-length" => out.body = Body::Length(value.parse().ok()?),
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => out.body = Body::Chunked,
            _ => {}
        }
    }
    if matches!(status, 100..=199 | 204 | 304) {
        out.body = Body::Length(0);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_understood() {
        let head =
            parse(b"HTTP/1.1 200 OK\r\nX-Worker: 7\r\nContent-Length: 3\r\nConnection: close").unwrap();
        assert_eq!((head.status, head.worker.as_deref(), head.close), (200, Some("7"), true));
        assert!(matches!(head.body, Body::Length(3)));
        assert!(parse(b"hello").is_none());
        assert!(matches!(parse(b"HTTP/1.0 200 OK").unwrap().body, Body::UntilEof));
    }
}
