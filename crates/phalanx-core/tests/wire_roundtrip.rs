//! Whatever is written is read again.

use phalanx_core::wire::{
    Decoder, Envelope, Family, HandleKind, ListenRequest, Message, Outbox, Payload, Reply, Seq,
    Serialization, SockName, encode, encode_enveloped,
};
use proptest::{option, prelude::*};
use serde_json::value::RawValue;

fn seq() -> impl Strategy<Value = Seq> {
    (0..1_u64 << 53).prop_map(Seq)
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(vec![Family::Tcp4, Family::Tcp6, Family::Unix, Family::Udp4, Family::Udp6])
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|members| { serde_json::Value::Object(members.into_iter().collect()) }),
        ]
    })
}

/// Opaque data; falsy ones come back as none, so they are left out.
fn data() -> impl Strategy<Value = Option<Box<RawValue>>> {
    option::of(json().prop_map(|value| RawValue::from_string(format!("[{value}]")).unwrap()))
}

fn request() -> impl Strategy<Value = ListenRequest> {
    let where_to = (
        option::of(any::<String>()),
        option::of(-1..=65_535_i32),
        option::of(family()),
        option::of(-1..i32::MAX),
        option::of(any::<u32>()),
        any::<u32>(),
        any::<u32>(),
        data(),
        any::<bool>(),
        any::<bool>(),
    );
    let ours =
        (any::<bool>(), option::of(any::<String>()), option::of(any::<u32>()), option::of(any::<String>()));
    (where_to, ours).prop_map(
        |(
            (address, port, family, fd, index, flags, backlog, data, readable_all, writable_all),
            (socket, policy, mode, name),
        )| {
            ListenRequest {
                address,
                port,
                family,
                fd,
                index,
                flags,
                backlog,
                data,
                readable_all,
                writable_all,
                socket,
                policy,
                mode,
                name,
            }
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let sockname = (any::<String>(), any::<bool>(), any::<u16>())
        .prop_map(|(address, ipv6, port)| SockName { address, ipv6, port });
    (
        seq(),
        option::of(any::<bool>()),
        option::of(i32::MIN..=0),
        option::of(any::<String>()),
        data(),
        option::of(sockname),
    )
        .prop_map(|(ack, accepted, errno, key, data, sockname)| Reply {
            ack,
            accepted,
            errno,
            key,
            data,
            sockname,
        })
}

/// `seq` is the number it will be stamped with.
fn message(seq: Seq) -> impl Strategy<Value = Message> {
    let key = any::<String>;
    prop_oneof![
        prop::sample::select(vec![
            Message::Online,
            Message::LeaveNotice { seq },
            Message::Suicide,
            Message::Disconnect,
            Message::HandleAck,
            Message::HandleNack,
            Message::Draining,
            Message::Ready,
            Message::Ping,
            Message::Pong,
        ]),
        request().prop_map(move |request| Message::QueryServer { seq, request }),
        request().prop_map(|request| Message::Listening { request }),
        key().prop_map(|keys| Message::TicketKeys { keys }),
        key().prop_map(|key| Message::Close { key }),
        key().prop_map(move |key| Message::NewConnection { seq, key }),
        reply().prop_map(Message::Reply),
        key().prop_map(|key| Message::SocketNotifyClose { key }),
        key().prop_map(|key| Message::SocketGetCount { key }),
        key().prop_map(|key| Message::SocketAllClosed { key }),
        (key(), 0..1_u64 << 53).prop_map(|(key, count)| Message::SocketCount { key, count }),
        json().prop_map(|value| Message::User(Payload::encode(&value).unwrap())),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let kinds = vec![
        HandleKind::NetNative,
        HandleKind::DgramNative,
        HandleKind::NetSocket,
        HandleKind::NetServer,
        HandleKind::DgramSocket,
        HandleKind::NetBoundSocket,
    ];
    (prop::sample::select(kinds), option::of(any::<String>()), option::of(family()))
        .prop_map(|(kind, key, family)| (kind, key, family.filter(|family| family.is_udp())))
        .prop_map(|(kind, key, dgram_type)| Envelope { kind, key, dgram_type })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        (seq, message) in seq().prop_flat_map(|seq| (Just(seq), message(seq))),
        envelope in option::of(envelope()),
    ) {
        let mut line = Vec::new();
        match envelope.clone() {
            Some(envelope) => encode_enveloped(envelope, &message, seq, &mut line),
            None => encode(&message, seq, &mut line),
        }
        prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_ok());
        let mut decoder = Decoder::new(1 << 20);
        let frame = decoder.feed(&line, envelope.is_some().then_some(())).next().unwrap().unwrap();
        prop_assert_eq!(&frame.message, &message);
        prop_assert_eq!(&frame.envelope, &envelope);
        prop_assert_eq!(frame.handle.is_some(), envelope.is_some());

        // And again, byte by byte.
        let mut again = Vec::new();
        match frame.envelope {
            Some(envelope) => encode_enveloped(envelope, &frame.message, seq, &mut again),
            None => encode(&frame.message, seq, &mut again),
        }
        prop_assert_eq!(again, line);
    }

    /// The same in a frame of V8's, where numbers are doubles and names come once.
    #[test]
    fn what_is_written_as_v8_does_is_read(
        (seq, message) in seq().prop_flat_map(|seq| (Just(seq), message(seq))),
        envelope in option::of(envelope()),
    ) {
        let mut outbox = Outbox::new().serialization(Serialization::Advanced);
        outbox.push_with(None::<()>, |out| match envelope.clone() {
            Some(envelope) => encode_enveloped(envelope, &message, seq, out),
            None => encode(&message, seq, out),
        });
        let frame = outbox.peek().unwrap().bytes;
        prop_assert_eq!(&frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
        let mut decoder = Decoder::new(1 << 20).serialization(Serialization::Advanced);
        let frame = decoder.feed(frame, envelope.is_some().then_some(())).next().unwrap().unwrap();
        prop_assert_eq!(&frame.envelope, &envelope);
        prop_assert_eq!(frame.handle.is_some(), envelope.is_some());
        if let (Message::User(read), Message::User(written)) = (&frame.message, &message) {
            let rounded = |payload: &Payload| round(payload.decode().unwrap());
            prop_assert_eq!(rounded(read), rounded(written));
        } else {
            prop_assert_eq!(&rounded(frame.message), &rounded(message));
        }
    }
}

/// Numbers as JavaScript has them.
fn round(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(number) => number.as_f64().unwrap().into(),
        serde_json::Value::Array(items) => items.into_iter().map(round).collect(),
        serde_json::Value::Object(members) => {
            members.into_iter().map(|(name, value)| (name, round(value))).collect()
        }
        other => other,
    }
}

/// With the numbers in `data` rounded: all others are exact.
fn rounded(mut message: Message) -> Message {
    let data = match &mut message {
        Message::QueryServer { request, .. } | Message::Listening { request } => &mut request.data,
        Message::Reply(reply) => &mut reply.data,
        _ => return message,
    };
    if let Some(data) = data {
        let value = round(serde_json::from_str(data.get()).unwrap());
        *data = RawValue::from_string(value.to_string()).unwrap();
    }
    message
}
