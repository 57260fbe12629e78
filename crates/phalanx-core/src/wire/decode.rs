//! One line in, one message out.

use std::ops::Range;

use super::{
    Envelope, Excerpt, Family, HandleKind, ListenRequest, Message, Payload, Reply, Seq, SockName, Violation,
    fields::{Fields, Member, Wrong},
    scan::scan,
};

/// How many envelopes may be wrapped around each other; Node wraps a retransmission twice.
const MAX_ENVELOPES: usize = 8;

/// How deep a control message may nest; `data` is the only field in which anything does.
const MAX_DEPTH: usize = 64;

/// How long a control message may be; TLS session keys are 96 digits.
const MAX_CONTROL: usize = 256 * 1024;

/// A decoded line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) body: Body,
    /// The innermost one: a retransmitted envelope keeps its own type and key inside.
    pub(super) envelope: Option<Envelope>,
}

/// What stands in the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    Control(Message),
    /// A user message: where it stands. Copying it is the caller's business.
    User(Range<usize>),
}

impl Body {
    /// With a copy of what stands in this line.
    pub(super) fn into_message(self, line: &[u8]) -> Message {
        match self {
            Self::Control(message) => message,
            Self::User(span) => Message::User(Payload::trusted(&line[span])),
        }
    }
}

/// Decodes a line without its newline.
pub(super) fn decode(line: &[u8]) -> Result<Line, Violation> {
    let mut text = line;
    let mut envelope = None;
    for _ in 0..=MAX_ENVELOPES {
        let mut fields = Fields::default();
        let report = scan(text, |name, value| fields.put(name, value))
            .map_err(|_| Violation::NotJson(Excerpt::of(line)))?;
        let Some(cmd) = fields.internal() else {
            let base = text.as_ptr().addr() - line.as_ptr().addr();
            let span = base + report.span.start..base + report.span.end;
            return Ok(Line { body: Body::User(span), envelope });
        };
        if *cmd == *b"NODE_HANDLE" {
            envelope = Some(read_envelope(&fields).map_err(|wrong| field(wrong, line))?);
            if let Some(msg) = fields.raw(Member::Msg) {
                text = msg;
                continue;
            }
            // Node delivers `undefined` to the application; there is nothing to deliver.
            return Ok(Line { body: Body::Control(Message::Unknown), envelope });
        }
        if std::str::from_utf8(text).is_err() {
            return Err(Violation::NotUtf8(Excerpt::of(line)));
        }
        let message = control(&cmd, &fields).map_err(|wrong| field(wrong, line))?;
        if message != Message::Unknown {
            if text.len() > MAX_CONTROL {
                return Err(Violation::TooLong { limit: MAX_CONTROL, line: Excerpt::of(line) });
            }
            if report.depth > MAX_DEPTH {
                return Err(Violation::TooDeep(Excerpt::of(line)));
            }
        }
        return Ok(Line { body: Body::Control(message), envelope });
    }
    Err(Violation::TooDeep(Excerpt::of(line)))
}

fn field(Wrong(key): Wrong, line: &[u8]) -> Violation {
    Violation::Field { field: key.name(), line: Excerpt::of(line) }
}

fn read_envelope(fields: &Fields<'_>) -> Result<Envelope, Wrong> {
    if let Some(key) = fields.twice() {
        return Err(Wrong(key));
    }
    // A type that we do not know is no offence: it still wants its receipt.
    let kind = fields.string(Member::Type)?.map_or(HandleKind::Unknown, |name| HandleKind::from_name(&name));
    let dgram_type = read_family(fields, Member::DgramType)?;
    if dgram_type.is_some_and(|family| !family.is_udp()) {
        return Err(Wrong(Member::DgramType));
    }
    Ok(Envelope { kind, key: fields.string(Member::Key)?, dgram_type })
}

/// Any internal message but an envelope.
fn control(cmd: &[u8], fields: &Fields<'_>) -> Result<Message, Wrong> {
    let key = || fields.text(Member::Key);
    let message = match cmd {
        b"NODE_CLUSTER" => cluster(fields)?,
        b"NODE_HANDLE_ACK" => Message::HandleAck,
        b"NODE_HANDLE_NACK" => Message::HandleNack,
        b"NODE_SOCKET_NOTIFY_CLOSE" => Message::SocketNotifyClose { key: key()? },
        b"NODE_SOCKET_GET_COUNT" => Message::SocketGetCount { key: key()? },
        b"NODE_SOCKET_ALL_CLOSED" => Message::SocketAllClosed { key: key()? },
        b"NODE_SOCKET_COUNT" => Message::SocketCount {
            key: key()?,
            count: fields.integer(Member::Count)?.ok_or(Wrong(Member::Count))?,
        },
        _ => return Ok(Message::Unknown),
    };
    match fields.twice() {
        Some(key) if message != Message::Unknown => Err(Wrong(key)),
        _ => Ok(message),
    }
}

fn cluster(fields: &Fields<'_>) -> Result<Message, Wrong> {
    let seq = || Ok(Seq(fields.integer(Member::Seq)?.ok_or(Wrong(Member::Seq))?));
    if let Some(ack) = fields.integer::<i64>(Member::Ack)? {
        // Nobody ever asked by a negative number: like any other that is unknown, it changes nothing (WIRE-06).
        let ack = u64::try_from(ack).map_or(Seq(u64::MAX), Seq);
        return Ok(Message::Reply(read_reply(ack, fields)?));
    }
    let Some(act) = fields.string(Member::Act)? else { return Ok(Message::Unknown) };
    Ok(match act.as_str() {
        "online" => Message::Online,
        "queryServer" => Message::QueryServer { seq: seq()?, request: read_request(fields)? },
        "listening" => Message::Listening { request: read_request(fields)? },
        "close" => Message::Close { key: fields.text(Member::Key)? },
        "exitedAfterDisconnect" => Message::LeaveNotice { seq: seq()? },
        "suicide" => Message::Suicide,
        "newconn" => Message::NewConnection { seq: seq()?, key: fields.text(Member::Key)? },
        "disconnect" => Message::Disconnect,
        "draining" => Message::Draining,
        "ready" => Message::Ready,
        "ping" => Message::Ping,
        "pong" => Message::Pong,
        "ticketKeys" => Message::TicketKeys { keys: fields.string(Member::Key)?.unwrap_or_default() },
        _ => Message::Unknown,
    })
}

fn read_reply(ack: Seq, fields: &Fields<'_>) -> Result<Reply, Wrong> {
    let errno = fields.integer::<i32>(Member::Errno)?;
    if errno.is_some_and(|errno| errno > 0) {
        return Err(Wrong(Member::Errno));
    }
    Ok(Reply {
        ack,
        accepted: fields.boolean(Member::Accepted)?,
        errno,
        key: fields.string(Member::Key)?,
        data: fields.opaque(Member::Data)?,
        sockname: read_sockname(fields)?,
    })
}

fn read_sockname(fields: &Fields<'_>) -> Result<Option<SockName>, Wrong> {
    let Some(inner) = object(fields, Member::SockName)? else { return Ok(None) };
    let Some(address) = inner.string(Member::Address)? else { return Ok(None) };
    let ipv6 = match inner.raw(Member::Family) {
        Some(b"\"IPv4\"" | b"4") => false,
        Some(b"\"IPv6\"" | b"6") => true,
        _ => return Err(Wrong(Member::Family)),
    };
    let port = inner.integer(Member::Port)?.ok_or(Wrong(Member::Port))?;
    Ok(Some(SockName { address, ipv6, port }))
}

fn read_request(fields: &Fields<'_>) -> Result<ListenRequest, Wrong> {
    let port = fields.integer::<i32>(Member::Port)?;
    if port.is_some_and(|port| !(-1..=65_535).contains(&port)) {
        return Err(Wrong(Member::Port));
    }
    let fd = fields.integer::<i32>(Member::Fd)?;
    if fd.is_some_and(|fd| fd < -1) {
        return Err(Wrong(Member::Fd));
    }
    let ours = object(fields, Member::Phalanx)?.unwrap_or_default();
    Ok(ListenRequest {
        address: fields.string(Member::Address)?,
        port,
        family: read_family(fields, Member::AddressType)?,
        fd,
        index: fields.integer(Member::Index)?,
        flags: fields.integer_or_falsy(Member::Flags)?.unwrap_or(0),
        backlog: fields.integer_or_falsy(Member::Backlog)?.unwrap_or(0),
        data: fields.opaque(Member::Data)?,
        readable_all: fields.truthy(Member::ReadableAll),
        writable_all: fields.truthy(Member::WritableAll),
        socket: ours.boolean(Member::Socket)?.unwrap_or(false),
        policy: ours.string(Member::Policy)?,
        mode: ours.integer(Member::Mode)?,
        name: ours.string(Member::Name)?,
    })
}

fn read_family(fields: &Fields<'_>, key: Member) -> Result<Option<Family>, Wrong> {
    Ok(Some(match fields.raw(key) {
        None | Some(b"null") => return Ok(None),
        Some(b"4") => Family::Tcp4,
        Some(b"6") => Family::Tcp6,
        Some(b"-1") => Family::Unix,
        Some(b"\"udp4\"") => Family::Udp4,
        Some(b"\"udp6\"") => Family::Udp6,
        Some(_) => return Err(Wrong(key)),
    }))
}

/// The members of an object within; falsy is like absence.
fn object<'a>(fields: &Fields<'a>, key: Member) -> Result<Option<Fields<'a>>, Wrong> {
    let Some(raw) = fields.raw(key).filter(|_| fields.truthy(key)) else { return Ok(None) };
    let mut inner = Fields::default();
    if !raw.starts_with(b"{") || scan(raw, |name, value| inner.put(name, value)).is_err() {
        return Err(Wrong(key));
    }
    Ok(Some(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(line: &str) -> Message {
        match decode(line.as_bytes()).unwrap().body {
            Body::Control(message) => message,
            Body::User(span) => panic!("user message at {span:?}"),
        }
    }

    fn violation(line: impl AsRef<[u8]>) -> Violation {
        decode(line.as_ref()).unwrap_err()
    }

    #[test]
    fn what_kills_nodes_primary_is_an_error_here() {
        for line in ["", "garbage", "{", "\0", "{}{}", "undefined"] {
            assert!(matches!(violation(line), Violation::NotJson(_)), "{line:?}");
        }
    }

    #[test]
    fn white_space_around_is_no_offence() {
        assert_eq!(control("  {\"cmd\": \"NODE_CLUSTER\",\t\"act\" :\"online\"} \r"), Message::Online);
        let line = decode(b" [1] \r").unwrap();
        assert_eq!(line.body, Body::User(1..4));
    }

    #[test]
    fn wrong_fields_are_named() {
        let query = |rest: &str| format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{rest}}}"#);
        let reply = |rest: &str| format!(r#"{{"cmd":"NODE_CLUSTER","ack":1,{rest}}}"#);
        for (line, name) in [
            (query(r#""port":"x""#), "port"),
            (query(r#""port":65536"#), "port"),
            (query(r#""port":-2"#), "port"),
            (query(r#""port":80.5"#), "port"),
            (query(r#""index":-1"#), "index"),
            (query(r#""index":4294967296"#), "index"),
            (query(r#""backlog":-1"#), "backlog"),
            (query(r#""backlog":true"#), "backlog"),
            (query(r#""flags":"1""#), "flags"),
            (query(r#""fd":-2"#), "fd"),
            (query(r#""fd":99999999999"#), "fd"),
            (query(r#""address":1"#), "address"),
            (query(r#""addressType":5"#), "addressType"),
            (query(r#""addressType":"tcp""#), "addressType"),
            (query(r#""phalanx":1"#), "phalanx"),
            (query(r#""phalanx":{"mode":-1}"#), "mode"),
            (query(r#""seq":1"#), "seq"),
            (reply(r#""errno":98"#), "errno"),
            (reply(r#""errno":"EADDRINUSE""#), "errno"),
            (reply(r#""accepted":1"#), "accepted"),
            (reply(r#""key":0"#), "key"),
            (reply(r#""sockname":[]"#), "sockname"),
            (reply(r#""sockname":{"address":"::1","family":"IPX","port":1}"#), "family"),
            (reply(r#""sockname":{"address":"::1","family":"IPv6","port":65536}"#), "port"),
            (r#"{"cmd":"NODE_CLUSTER","act":"queryServer"}"#.into(), "seq"),
            (r#"{"cmd":"NODE_CLUSTER","act":"close"}"#.into(), "key"),
            (r#"{"cmd":"NODE_CLUSTER","act":"newconn","seq":-1,"key":"a"}"#.into(), "seq"),
            (r#"{"cmd":"NODE_CLUSTER","act":7}"#.into(), "act"),
            (r#"{"cmd":"NODE_CLUSTER","ack":1.5}"#.into(), "ack"),
            (r#"{"cmd":"NODE_SOCKET_COUNT","key":"a","count":-1}"#.into(), "count"),
            (r#"{"cmd":"NODE_HANDLE","type":7,"msg":1}"#.into(), "type"),
            (r#"{"cmd":"NODE_HANDLE","type":"dgram.Socket","msg":1,"dgramType":"x"}"#.into(), "dgramType"),
        ] {
            match violation(&line) {
                Violation::Field { field, .. } => assert_eq!(field, name, "{line}"),
                other => panic!("{line}: {other}"),
            }
        }
    }

    #[test]
    fn unknown_internal_messages_are_let_through() {
        for line in [
            r#"{"cmd":"NODE_DEBUG_ENABLED"}"#,
            r#"{"cmd":"NODE_X","port":"x","port":1}"#,
            r#"{"cmd":"NODE_CLUSTER"}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"dance","port":"x"}"#,
            r#"{"cmd":"NODE_HANDLE","type":"net.Native"}"#,
        ] {
            assert_eq!(control(line), Message::Unknown, "{line}");
        }
    }

    #[test]
    fn nesting_is_bounded_for_control_and_free_for_users() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(decode(deep.as_bytes()).unwrap().body, Body::User(_)));
        let inside = format!(r#"{{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{deep}}}"#);
        assert!(matches!(decode(inside.as_bytes()).unwrap().body, Body::User(_)));
        let bomb = format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"data":{deep}}}"#);
        assert!(matches!(violation(bomb), Violation::TooDeep(_)));
        let matryoshka = format!("{}1{}", r#"{"cmd":"NODE_HANDLE","msg":"#.repeat(1000), "}".repeat(1000));
        assert!(matches!(violation(matryoshka), Violation::TooDeep(_)));
    }

    #[test]
    fn long_control_messages_are_refused() {
        let key = "k".repeat(MAX_CONTROL);
        let line = format!(r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{key}"}}"#);
        assert!(matches!(violation(line), Violation::TooLong { limit: MAX_CONTROL, .. }));
        let user = format!(r#"{{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"{key}"}}"#);
        assert!(decode(user.as_bytes()).is_ok());
    }

    #[test]
    fn bad_utf8_is_the_users_own_business() {
        assert!(matches!(decode(b"{\"a\":\"\xff\"}").unwrap().body, Body::User(_)));
        assert!(matches!(decode(b"{\"cmd\":\"NODE_HANDLE\",\"msg\":\"\xff\"}").unwrap().body, Body::User(_)));
        let line = b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\",\"key\":\"\xff\"}";
        assert!(matches!(violation(line), Violation::NotUtf8(_)));
    }

    #[test]
    fn the_innermost_envelope_counts() {
        let line = br#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"sock","key":"4:127.0.0.1:8126"}}"#;
        let decoded = decode(line).unwrap();
        let envelope = decoded.envelope.unwrap();
        assert_eq!(envelope.kind, HandleKind::NetSocket);
        assert_eq!(envelope.key.as_deref(), Some("4:127.0.0.1:8126"));
        let Body::User(span) = decoded.body else { panic!() };
        assert_eq!(&line[span], b"\"sock\"");
    }
}
