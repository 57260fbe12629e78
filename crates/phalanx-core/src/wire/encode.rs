//! Messages to lines, spelt as Node spells them.

use serde_json::value::RawValue;

use super::{Envelope, Family, ListenRequest, Message, Reply, Seq, SockName};

/// The receipt for a descriptor that arrived.
pub const HANDLE_ACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";

/// The receipt for an envelope that arrived without its descriptor.
pub const HANDLE_NACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_NACK\"}\n";

const CLUSTER: &[u8] = b"{\"cmd\":\"NODE_CLUSTER\"";

/// Appends the line for `message`. `seq` is the sender's own counter and is stamped on cluster
/// messages, whatever number the message remembers; the others have none.
///
/// [`Message::Unknown`] and [`Message::Opaque`] are never written.
pub fn encode(message: &Message, seq: Seq, out: &mut Vec<u8>) {
    if write(message, seq, out) {
        out.push(b'\n');
    }
}

/// Appends the line for a message that leaves with a descriptor. A [`HandleKind`](super::HandleKind) is an envelope
/// that says no more than its type.
pub fn encode_enveloped(envelope: impl Into<Envelope>, message: &Message, seq: Seq, out: &mut Vec<u8>) {
    let Envelope { kind, key, dgram_type } = envelope.into();
    let start = out.len();
    out.extend_from_slice(b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(b"\",\"msg\":");
    if !write(message, seq, out) {
        out.truncate(start);
        return;
    }
    if let Some(key) = key {
        text_field(out, "key", &key);
    }
    if let Some(family) = dgram_type.filter(|family| family.is_udp()) {
        text_field(out, "dgramType", family.name());
    }
    out.extend_from_slice(b"}\n");
}

/// Appends the line of a new connection for the server `key`.
pub fn encode_new_connection(key: &str, seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":");
    new_connection(key, seq, out);
    out.extend_from_slice(b"}\n");
}

/// Appends the answer to a new connection.
pub fn encode_answer(ack: Seq, accepted: bool, seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_CLUSTER\",\"ack\":");
    number(out, ack.0);
    out.extend_from_slice(if accepted { b",\"accepted\":true" } else { b",\"accepted\":false" });
    end(seq, out);
    out.push(b'\n');
}

/// The line of a new connection for one server, whose key is escaped only once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewConnectionLine(Box<[u8]>);

impl NewConnectionLine {
    /// For the server `key`.
    #[must_use]
    pub fn new(key: &str) -> Self {
        let mut line = Vec::with_capacity(96 + key.len());
        encode_new_connection(key, Seq(0), &mut line);
        line.truncate(line.len() - b"0}}\n".len());
        Self(line.into())
    }

    /// Appends the line.
    pub fn write(&self, seq: Seq, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
        number(out, seq.0);
        out.extend_from_slice(b"}}\n");
    }
}

/// Writes the JSON text; says whether there was anything to write.
fn write(message: &Message, seq: Seq, out: &mut Vec<u8>) -> bool {
    match message {
        Message::Online => act("online", seq, out),
        Message::QueryServer { request, .. } => listen("queryServer", request, seq, out),
        Message::Listening { request } => listen("listening", request, seq, out),
        Message::Close { key } => {
            out.extend_from_slice(CLUSTER);
            out.extend_from_slice(b",\"act\":\"close\"");
            text_field(out, "key", key);
            end(seq, out);
        }
        Message::LeaveNotice { .. } => act("exitedAfterDisconnect", seq, out),
        Message::Suicide => act("suicide", seq, out),
        Message::NewConnection { key, .. } => new_connection(key, seq, out),
        Message::Disconnect => act("disconnect", seq, out),
        Message::Reply(answer) => reply(answer, seq, out),
        Message::HandleAck => out.extend_from_slice(HANDLE_ACK.trim_ascii_end()),
        Message::HandleNack => out.extend_from_slice(HANDLE_NACK.trim_ascii_end()),
        Message::SocketNotifyClose { key } => socket("NOTIFY_CLOSE", key, None, out),
        Message::SocketGetCount { key } => socket("GET_COUNT", key, None, out),
        Message::SocketAllClosed { key } => socket("ALL_CLOSED", key, None, out),
        Message::SocketCount { key, count } => socket("COUNT", key, Some(*count), out),
        Message::Draining => act("draining", seq, out),
        Message::Ready => act("ready", seq, out),
        Message::Ping => act("ping", seq, out),
        Message::Pong => act("pong", seq, out),
        Message::TicketKeys { keys } => {
            out.extend_from_slice(CLUSTER);
            out.extend_from_slice(b",\"act\":\"ticketKeys\"");
            text_field(out, "key", keys);
            end(seq, out);
        }
        Message::Unknown | Message::Opaque(_) => return false,
        Message::User(payload) => out.extend_from_slice(payload.as_bytes()),
    }
    true
}

/// A cluster message without fields of its own.
fn act(name: &str, seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(CLUSTER);
    text_field(out, "act", name);
    end(seq, out);
}

/// Every cluster message ends like this.
fn end(seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"seq\":");
    number(out, seq.0);
    out.push(b'}');
}

fn new_connection(key: &str, seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\"");
    text_field(out, "key", key);
    end(seq, out);
}

/// Node leaves out what the application did not say. Absent and zero mean the same, so this only
/// serves those who compare lines.
fn listen(act: &str, request: &ListenRequest, seq: Seq, out: &mut Vec<u8>) {
    out.extend_from_slice(CLUSTER);
    text_field(out, "act", act);
    if let Some(index) = request.index {
        number_field(out, "index", i64::from(index));
    }
    name(out, "data");
    raw(out, request.data.as_deref());
    match &request.address {
        Some(address) => text_field(out, "address", address),
        None => null_field(out, "address"),
    }
    match request.port {
        Some(port) => number_field(out, "port", i64::from(port)),
        None => null_field(out, "port"),
    }
    match request.family {
        Some(udp) if udp.is_udp() => text_field(out, "addressType", udp.name()),
        Some(family) => {
            name(out, "addressType");
            out.extend_from_slice(family.name().as_bytes());
        }
        None => null_field(out, "addressType"),
    }
    if let Some(fd) = request.fd {
        number_field(out, "fd", i64::from(fd));
    }
    let has_flags = request.address.is_some() && request.family != Some(Family::Unix);
    if request.flags != 0 || has_flags {
        number_field(out, "flags", i64::from(request.flags));
    }
    if request.backlog != 0 || !request.family.is_some_and(Family::is_udp) {
        number_field(out, "backlog", i64::from(request.backlog));
    }
    for (key, set) in [("readableAll", request.readable_all), ("writableAll", request.writable_all)] {
        if set {
            name(out, key);
            out.extend_from_slice(b"true");
        }
    }
    if request.has_extras() {
        extras(request, out);
    }
    end(seq, out);
}

/// Ours, in an object of its own, so that no future name of Node's can mean something else.
fn extras(request: &ListenRequest, out: &mut Vec<u8>) {
    name(out, "phalanx");
    let comma = out.len();
    if request.socket {
        name(out, "socket");
        out.extend_from_slice(b"true");
    }
    if let Some(policy) = &request.policy {
        text_field(out, "policy", policy);
    }
    if let Some(mode) = request.mode {
        number_field(out, "mode", i64::from(mode));
    }
    if let Some(listener) = &request.name {
        text_field(out, "name", listener);
    }
    out[comma] = b'{';
    out.push(b'}');
}

fn reply(reply: &Reply, seq: Seq, out: &mut Vec<u8>) {
    let listen = reply.is_listen_reply();
    out.extend_from_slice(CLUSTER);
    if listen {
        match reply.errno {
            Some(errno) => number_field(out, "errno", i64::from(errno)),
            None => null_field(out, "errno"),
        }
        if let Some(key) = &reply.key {
            text_field(out, "key", key);
        }
    }
    name(out, "ack");
    number(out, reply.ack.0);
    if let Some(accepted) = reply.accepted {
        name(out, "accepted");
        out.extend_from_slice(if accepted { b"true" } else { b"false" });
    }
    if listen {
        name(out, "data");
        raw(out, reply.data.as_deref());
        if let Some(sockname) = &reply.sockname {
            sockname_field(sockname, out);
        }
    }
    end(seq, out);
}

fn sockname_field(sockname: &SockName, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"sockname\":{\"address\":");
    text(out, &sockname.address);
    text_field(out, "family", if sockname.ipv6 { "IPv6" } else { "IPv4" });
    number_field(out, "port", i64::from(sockname.port));
    out.push(b'}');
}

fn socket(verb: &str, key: &str, count: Option<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_SOCKET_");
    out.extend_from_slice(verb.as_bytes());
    out.push(b'"');
    text_field(out, "key", key);
    if let Some(count) = count {
        name(out, "count");
        number(out, count);
    }
    out.push(b'}');
}

/// `,"key":`
fn name(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn text_field(out: &mut Vec<u8>, key: &str, value: &str) {
    name(out, key);
    text(out, value);
}

fn number_field(out: &mut Vec<u8>, key: &str, value: i64) {
    name(out, key);
    if value < 0 {
        out.push(b'-');
    }
    number(out, value.unsigned_abs());
}

fn null_field(out: &mut Vec<u8>, key: &str) {
    name(out, key);
    out.extend_from_slice(b"null");
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A string as `JSON.stringify` writes it.
fn text(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        out.push(b'\\');
        match rest[at] {
            b'\n' => out.push(b'n'),
            b'\r' => out.push(b'r'),
            b'\t' => out.push(b't'),
            0x08 => out.push(b'b'),
            0x0c => out.push(b'f'),
            byte @ 0..0x20 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            byte => out.push(byte),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// A value that somebody else wrote. Line breaks between its tokens would end our line.
fn raw(out: &mut Vec<u8>, value: Option<&RawValue>) {
    let value = value.map_or("null", RawValue::get);
    out.extend(value.bytes().map(|byte| if byte == b'\n' || byte == b'\r' { b' ' } else { byte }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::HandleKind;

    fn line(message: &Message, seq: u64) -> String {
        let mut out = Vec::new();
        encode(message, Seq(seq), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_short_cuts_write_the_same_lines() {
        for key in ["127.0.0.1:8124:4:undefined:0", "/a \"b\"\n\u{1}ü:-1:-1:undefined:0"] {
            for seq in [0, 9, 10, 12345, u64::MAX] {
                let connection = Message::NewConnection { seq: Seq(7), key: key.into() };
                let mut general = Vec::new();
                encode_enveloped(HandleKind::NetNative, &connection, Seq(seq), &mut general);
                let mut quick = Vec::new();
                encode_new_connection(key, Seq(seq), &mut quick);
                assert_eq!(quick, general);
                quick.clear();
                NewConnectionLine::new(key).write(Seq(seq), &mut quick);
                assert_eq!(quick, general);

                let mut quick = Vec::new();
                encode_answer(Seq(seq), seq == 9, Seq(3), &mut quick);
                let answer = Message::Reply(Reply::answer(Seq(seq), seq == 9));
                assert_eq!(String::from_utf8(quick).unwrap(), line(&answer, 3));
            }
        }
        assert_eq!(line(&Message::HandleAck, 5).as_bytes(), HANDLE_ACK);
        assert_eq!(line(&Message::HandleNack, 5).as_bytes(), HANDLE_NACK);
    }

    #[test]
    fn our_own_fields_stand_apart() {
        let request = ListenRequest {
            socket: true,
            policy: Some("sticky".into()),
            mode: Some(0o660),
            name: Some("web".into()),
            data: RawValue::from_string("{\n}".into()).ok(),
            ..Default::default()
        };
        assert_eq!(
            line(&Message::QueryServer { seq: Seq(0), request }, 4),
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\",\"data\":{ },\"address\":null,\"port\":null,\
             \"addressType\":null,\"backlog\":0,\"phalanx\":{\"socket\":true,\"policy\":\"sticky\",\
             \"mode\":432,\"name\":\"web\"},\"seq\":4}\n"
        );
        let request = ListenRequest { name: Some("a".into()), ..Default::default() };
        assert!(line(&Message::Listening { request }, 4).contains(",\"phalanx\":{\"name\":\"a\"},"));
    }

    #[test]
    fn what_is_unknown_is_not_written() {
        assert_eq!(line(&Message::Unknown, 1), "");
        let mut out = b"before".to_vec();
        encode_enveloped(HandleKind::NetNative, &Message::Unknown, Seq(0), &mut out);
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn texts_and_numbers_are_json(value: String, amount: i64) {
            let mut out = Vec::new();
            text(&mut out, &value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&value).unwrap());
            let mut out = Vec::new();
            number_field(&mut out, "a", amount);
            prop_assert_eq!(out, format!(",\"a\":{amount}").into_bytes());
        }
    }
}
