//! Lines captured from Node v0.12 to v26: what they mean, and that we write the same ones.

use phalanx_core::wire::{
    Decoder, Envelope, Family, Frame, HandleKind, ListenRequest, Message, Payload, Reply, Seq, SockName,
    encode, encode_enveloped,
};

const KEY: &str = "127.0.0.1:8124:4:undefined:0";

fn decode(line: &str) -> Frame<u8> {
    let bytes = format!("{line}\n");
    let mut decoder = Decoder::new(1 << 20);
    let handle = line.contains("NODE_HANDLE\"").then_some(1);
    let mut frames: Vec<_> = decoder.feed(bytes.as_bytes(), handle).collect();
    assert_eq!(frames.len(), 1, "{line}");
    assert_eq!(decoder.stray_handles(), 0, "{line}");
    frames.remove(0).unwrap_or_else(|violation| panic!("{line}: {violation}"))
}

/// The number that a line was stamped with.
fn stamp(line: &str) -> Seq {
    let digits = line.rsplit_once("\"seq\":").map_or("0", |(_, rest)| rest.trim_end_matches('}'));
    Seq(digits.parse().unwrap_or(0))
}

/// The line means this, whatever the order of its fields.
fn reads(line: &str, message: Message) -> Option<Envelope> {
    let frame = decode(line);
    assert_eq!(frame.message, message, "{line}");
    assert_eq!(frame.handle.is_some(), frame.envelope.is_some());
    frame.envelope
}

/// The line means this, and we write it byte by byte.
fn golden(line: &str, message: Message) {
    let envelope = reads(line, message.clone());
    let mut out = Vec::new();
    match envelope {
        Some(envelope) => encode_enveloped(envelope, &message, stamp(line), &mut out),
        None => encode(&message, stamp(line), &mut out),
    }
    assert_eq!(String::from_utf8(out).unwrap(), format!("{line}\n"));
}

fn tcp(port: i32) -> ListenRequest {
    ListenRequest {
        address: Some("127.0.0.1".into()),
        port: Some(port),
        family: Some(Family::Tcp4),
        index: Some(0),
        ..Default::default()
    }
}

fn udp(port: i32) -> ListenRequest {
    ListenRequest { family: Some(Family::Udp4), fd: Some(-1), ..tcp(port) }
}

fn query(request: ListenRequest) -> Message {
    Message::QueryServer { seq: Seq(1), request }
}

fn user(text: &str) -> Message {
    Message::User(Payload::new(text).unwrap())
}

fn listen_reply(errno: Option<i32>, key: &str) -> Reply {
    Reply { ack: Seq(1), errno, key: Some(key.into()), ..Default::default() }
}

#[test]
fn a_worker_lives_and_leaves() {
    golden(r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#, Message::Online);
    golden(r#"{"cmd":"NODE_CLUSTER","act":"disconnect","seq":6}"#, Message::Disconnect);
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"close","key":"127.0.0.1:8124:4:undefined:0","seq":5}"#,
        Message::Close { key: KEY.into() },
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":4}"#,
        Message::LeaveNotice { seq: Seq(4) },
    );
    golden(r#"{"cmd":"NODE_CLUSTER","ack":4,"seq":1}"#, Message::Reply(Reply::bare(Seq(4))));
    golden(r#"{"cmd":"NODE_CLUSTER","act":"draining","seq":7}"#, Message::Draining);
    golden(r#"{"cmd":"NODE_CLUSTER","act":"ready","seq":8}"#, Message::Ready);
    golden(r#"{"cmd":"NODE_CLUSTER","act":"ping","seq":8}"#, Message::Ping);
    golden(r#"{"cmd":"NODE_CLUSTER","act":"pong","seq":8}"#, Message::Pong);
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"ticketKeys","key":"ab,cd","seq":9}"#,
        Message::TicketKeys { keys: "ab,cd".to_owned() },
    );
}

#[test]
fn a_worker_asks_to_listen() {
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"127.0.0.1","port":8124,"addressType":4,"flags":0,"backlog":0,"seq":1}"#,
        query(tcp(8124)),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":8124,"addressType":4,"backlog":0,"seq":1}"#,
        query(ListenRequest { address: None, ..tcp(8124) }),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":1,"data":{"ticketKeys":"00ff"},"address":"::1","port":0,"addressType":6,"flags":1,"backlog":33,"seq":1}"#,
        query(ListenRequest {
            address: Some("::1".into()),
            family: Some(Family::Tcp6),
            index: Some(1),
            flags: 1,
            backlog: 33,
            data: serde_json::from_str(r#"{"ticketKeys":"00ff"}"#).unwrap(),
            ..tcp(0)
        }),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"/srv/demo/app.sock","port":-1,"addressType":-1,"backlog":0,"readableAll":true,"writableAll":true,"seq":1}"#,
        query(ListenRequest {
            address: Some("/srv/demo/app.sock".into()),
            family: Some(Family::Unix),
            readable_all: true,
            writable_all: true,
            ..tcp(-1)
        }),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":null,"addressType":null,"fd":40,"backlog":0,"seq":1}"#,
        query(ListenRequest { fd: Some(40), index: Some(0), ..Default::default() }),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"127.0.0.1","port":8124,"addressType":"udp4","fd":-1,"flags":0,"seq":1}"#,
        query(udp(8124)),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"::1","port":0,"addressType":"udp6","fd":-1,"flags":4,"seq":1}"#,
        query(ListenRequest { address: Some("::1".into()), family: Some(Family::Udp6), flags: 4, ..udp(0) }),
    );
}

#[test]
fn nodes_many_ways_to_say_nothing() {
    reads(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":false,"address":"127.0.0.1","port":8124,"addressType":4,"flags":null,"backlog":false,"readableAll":false,"seq":1}"#,
        query(tcp(8124)),
    );
    reads(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":"","address":null,"port":null,"addressType":"udp4","fd":17,"flags":null,"seq":1}"#,
        query(ListenRequest { address: None, port: None, fd: Some(17), ..udp(0) }),
    );
}

#[test]
fn a_worker_listens() {
    golden(
        r#"{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":null,"port":35939,"addressType":null,"fd":40,"backlog":0,"seq":2}"#,
        Message::Listening {
            request: ListenRequest { fd: Some(40), port: Some(35939), index: Some(0), ..Default::default() },
        },
    );
    reads(
        r#"{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":"127.0.0.1","port":34985,"addressType":4,"flags":0,"backlog":false,"seq":2}"#,
        Message::Listening { request: tcp(34985) },
    );
}

#[test]
fn a_primary_replies() {
    let sockname = Some(SockName { address: "127.0.0.1".into(), ipv6: false, port: 8124 });
    golden(
        r#"{"cmd":"NODE_CLUSTER","errno":null,"key":"127.0.0.1:8124:4:undefined:0","ack":1,"data":null,"sockname":{"address":"127.0.0.1","family":"IPv4","port":8124},"seq":0}"#,
        Message::Reply(Reply { sockname: sockname.clone(), ..listen_reply(None, KEY) }),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","errno":null,"key":"/srv/demo/app.sock:-1:-1:undefined:0","ack":1,"data":null,"seq":0}"#,
        Message::Reply(listen_reply(None, "/srv/demo/app.sock:-1:-1:undefined:0")),
    );
    golden(
        r#"{"cmd":"NODE_CLUSTER","errno":-98,"key":"127.0.0.1:8124:4:undefined:0","ack":1,"data":null,"seq":0}"#,
        Message::Reply(listen_reply(Some(-98), KEY)),
    );
    golden(
        r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","errno":0,"key":"127.0.0.1:8124:4:undefined:0","ack":1,"data":null,"seq":0}}"#,
        Message::Reply(listen_reply(Some(0), KEY)),
    );
    let line = r#"{"cmd":"NODE_HANDLE","type":"dgram.Native","msg":{"cmd":"NODE_CLUSTER","errno":0,"key":"127.0.0.1:8124:udp4:-1:0","ack":1,"data":null,"seq":0}}"#;
    golden(line, Message::Reply(listen_reply(Some(0), "127.0.0.1:8124:udp4:-1:0")));
    assert_eq!(decode(line).envelope.unwrap().kind, HandleKind::DgramNative);
    // Node 18.0 to 18.3 said the family as a number.
    reads(
        r#"{"cmd":"NODE_CLUSTER","key":"127.0.0.1:8124:4:undefined:0","ack":1,"sockname":{"address":"127.0.0.1","family":4,"port":8124},"seq":0}"#,
        Message::Reply(Reply { sockname, ..listen_reply(None, KEY) }),
    );
}

#[test]
fn a_connection_changes_hands() {
    golden(
        r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":"127.0.0.1:8124:4:undefined:0","seq":2}}"#,
        Message::NewConnection { seq: Seq(2), key: KEY.into() },
    );
    golden(r#"{"cmd":"NODE_HANDLE_ACK"}"#, Message::HandleAck);
    golden(r#"{"cmd":"NODE_HANDLE_NACK"}"#, Message::HandleNack);
    for accepted in [true, false] {
        golden(
            &format!(r#"{{"cmd":"NODE_CLUSTER","ack":2,"accepted":{accepted},"seq":3}}"#),
            Message::Reply(Reply::answer(Seq(2), accepted)),
        );
    }
    // Outside an envelope it can still be read; there is nothing to acknowledge.
    let frame = decode(r#"{"cmd":"NODE_CLUSTER","act":"newconn","key":"a","seq":2}"#);
    assert!(frame.envelope.is_none() && !frame.handle_missing());
}

#[test]
fn users_send_sockets() {
    golden(
        r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"take":1},"key":"4:127.0.0.1:8124"}"#,
        user(r#"{"take":1}"#),
    );
    golden(r#"{"cmd":"NODE_HANDLE","type":"net.Server","msg":"server"}"#, user("\"server\""));
    let line = r#"{"cmd":"NODE_HANDLE","type":"dgram.Socket","msg":"udp","dgramType":"udp4"}"#;
    golden(line, user("\"udp\""));
    assert_eq!(decode(line).envelope.unwrap().dgram_type, Some(Family::Udp4));
    golden(
        r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"pipe-sock","key":"-1:/srv/demo/app.sock:-1"}"#,
        user("\"pipe-sock\""),
    );
    golden(r#"{"cmd":"NODE_HANDLE","type":"net.BoundSocket","msg":"bound"}"#, user("\"bound\""));
    let envelope = reads(
        r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"sock","key":"4:127.0.0.1:8126"}}"#,
        user("\"sock\""),
    );
    assert_eq!(envelope.unwrap().kind, HandleKind::NetSocket);
    let envelope = reads(r#"{"cmd":"NODE_HANDLE","type":"net.Teapot","msg":1}"#, user("1"));
    assert_eq!(envelope.unwrap().kind, HandleKind::Unknown);
}

#[test]
fn sockets_given_away_are_counted() {
    let key = || "4:127.0.0.1:8124".to_owned();
    golden(
        r#"{"cmd":"NODE_SOCKET_GET_COUNT","key":"4:127.0.0.1:8124"}"#,
        Message::SocketGetCount { key: key() },
    );
    golden(
        r#"{"cmd":"NODE_SOCKET_COUNT","key":"4:127.0.0.1:8124","count":1}"#,
        Message::SocketCount { key: key(), count: 1 },
    );
    golden(
        r#"{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":"4:127.0.0.1:8124"}"#,
        Message::SocketNotifyClose { key: key() },
    );
    golden(
        r#"{"cmd":"NODE_SOCKET_ALL_CLOSED","key":"4:127.0.0.1:8124"}"#,
        Message::SocketAllClosed { key: key() },
    );
}

#[test]
fn users_send_anything() {
    for text in [
        "{\"hello\":\"wérld\\n\u{2028} \\u0000\\\"q\"}",
        "\"str\"",
        "42",
        "true",
        "null",
        "[1,{}]",
        "\"\\ud800\"",
        "123456789012345678901234567890",
        r#"{"cmd":"NODE_"}"#,
        r#"{"cmd":"node_cluster","act":"online"}"#,
        r#"{"msg":{"cmd":"NODE_CLUSTER","act":"online"}}"#,
    ] {
        golden(text, user(text));
    }
}

#[test]
fn node_0_12_speaks_differently() {
    reads(
        r#"{"cmd":"NODE_CLUSTER","data":null,"act":"queryServer","port":8124,"address":"127.0.0.1","addressType":4,"seq":1}"#,
        query(ListenRequest { index: None, ..tcp(8124) }),
    );
    reads(
        r#"{"cmd":"NODE_CLUSTER","sockname":{"address":"127.0.0.1","family":"IPv4","port":8124},"data":null,"ack":1,"key":"127.0.0.1:8124:4:","errno":null,"seq":0}"#,
        Message::Reply(Reply {
            sockname: Some(SockName { address: "127.0.0.1".into(), ipv6: false, port: 8124 }),
            ..listen_reply(None, "127.0.0.1:8124:4:")
        }),
    );
    reads(
        r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","key":"127.0.0.1:8124:4:","act":"newconn","seq":2}}"#,
        Message::NewConnection { seq: Seq(2), key: "127.0.0.1:8124:4:".into() },
    );
    reads(
        r#"{"cmd":"NODE_CLUSTER","accepted":true,"ack":2,"seq":3}"#,
        Message::Reply(Reply::answer(Seq(2), true)),
    );
    golden(r#"{"cmd":"NODE_CLUSTER","act":"suicide","seq":3}"#, Message::Suicide);
}
