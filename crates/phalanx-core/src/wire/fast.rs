//! The three lines that a busy channel consists of, recognised by their exact bytes.
//!
//! Node always spells them the same way. Whatever differs by a byte takes the general path, which
//! must come to the same result.

use super::{
    HandleKind, Message, Reply, Seq,
    decode::{Body, Line},
};

const ACK: &[u8] = b"HANDLE_ACK\"}\n";
const ANSWER: &[u8] = b"CLUSTER\",\"ack\":";
const NEW_CONNECTION: &[u8] =
    b"HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"";

/// Takes a whole line, newline included, off the front of `bytes`: what it says and its length.
pub(super) fn take(bytes: &[u8]) -> Option<(Line, usize)> {
    let rest = bytes.strip_prefix(b"{\"cmd\":\"NODE_")?;
    let (line, rest) = if let Some(rest) = rest.strip_prefix(ACK) {
        (Line { body: Body::Control(Message::HandleAck), envelope: None }, rest)
    } else if let Some(rest) = rest.strip_prefix(ANSWER) {
        answer(rest)?
    } else {
        new_connection(rest.strip_prefix(NEW_CONNECTION)?)?
    };
    Some((line, bytes.len() - rest.len()))
}

fn answer(rest: &[u8]) -> Option<(Line, &[u8])> {
    let (ack, rest) = number(rest)?;
    let rest = rest.strip_prefix(b",\"accepted\":")?;
    let (accepted, rest) = match rest.strip_prefix(b"true,\"seq\":") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix(b"false,\"seq\":")?),
    };
    let (_, rest) = number(rest)?;
    let reply = Reply::answer(Seq(ack), accepted);
    Some((Line { body: Body::Control(Message::Reply(reply)), envelope: None }, rest.strip_prefix(b"}\n")?))
}

fn new_connection(rest: &[u8]) -> Option<(Line, &[u8])> {
    let end = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || !(b' '..0x7f).contains(&byte))?;
    let (key, rest) = rest.split_at(end);
    let (seq, rest) = number(rest.strip_prefix(b"\",\"seq\":")?)?;
    let rest = rest.strip_prefix(b"}}\n")?;
    let key = String::from_utf8(key.to_vec()).ok()?;
    let message = Message::NewConnection { seq: Seq(seq), key };
    Some((Line { body: Body::Control(message), envelope: Some(HandleKind::NetNative.into()) }, rest))
}

/// A number of at most 16 digits without superfluous zeros.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    let mut at = 0;
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        value = value * 10 + u64::from(digit - b'0');
        at += 1;
        if at > 16 {
            return None;
        }
    }
    if at == 0 || (at > 1 && bytes[0] == b'0') { None } else { Some((value, &bytes[at..])) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::decode::decode;

    const LINES: [&str; 5] = [
        "{\"cmd\":\"NODE_HANDLE_ACK\"}\n",
        "{\"cmd\":\"NODE_CLUSTER\",\"ack\":2,\"accepted\":true,\"seq\":3}\n",
        "{\"cmd\":\"NODE_CLUSTER\",\"ack\":1234567890,\"accepted\":false,\"seq\":0}\n",
        "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"127.0.0.1:8124:4:undefined:0\",\"seq\":2}}\n",
        "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"\",\"seq\":9007199254740991}}\n",
    ];

    fn agree(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Some((line, length)) = take(bytes) {
            prop_assert_eq!(bytes[length - 1], b'\n');
            prop_assert_eq!(decode(&bytes[..length - 1]), Ok(line));
        }
        Ok(())
    }

    #[test]
    fn nodes_own_lines_are_taken_whole() {
        for line in LINES {
            let more = format!("{line}more");
            let (_, length) = take(more.as_bytes()).unwrap();
            assert_eq!(length, line.len());
            agree(more.as_bytes()).unwrap();
            assert_eq!(take(&line.as_bytes()[..line.len() - 1]), None);
        }
    }

    proptest! {
        #[test]
        fn one_byte_off_never_disagrees(which in 0..LINES.len(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut line = LINES[which].as_bytes().to_vec();
            let at = at.index(line.len());
            line[at] = byte;
            agree(&line)?;
        }

        #[test]
        fn one_byte_more_or_less_never_disagrees(which in 0..LINES.len(), at in any::<prop::sample::Index>(), byte: Option<u8>) {
            let mut line = LINES[which].as_bytes().to_vec();
            let at = at.index(line.len());
            match byte {
                Some(byte) => line.insert(at, byte),
                None => _ = line.remove(at),
            }
            agree(&line)?;
        }
    }
}
