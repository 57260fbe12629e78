//! Node's `advanced` serialization: a length of four bytes, big endian, and so many bytes of a value as V8 serializes it.

use super::{
    Envelope, Excerpt, Message, Payload, Violation,
    decode::{Body, Line, decode},
    decoder::Extent,
    v8::{Read, from_json, to_json},
};

/// Bytes of the length.
const LENGTH: usize = 4;

/// Ours are a multiple of this.
const FRAME: usize = 4;

/// How much of `bytes` belongs to the frame that begins with `begun`. It ends with its own last byte.
pub(super) fn extent(begun: &[u8], bytes: &[u8], limit: usize) -> Extent {
    let mut length = [0; LENGTH];
    let mut known = 0;
    for (to, from) in length.iter_mut().zip(begun.iter().chain(bytes)) {
        *to = *from;
        known += 1;
    }
    let value = u32::from_be_bytes(length) as usize;
    if known == LENGTH && value > limit {
        return Extent::TooLong;
    }
    let missing = LENGTH + value - begun.len();
    if known < LENGTH || bytes.len() < missing {
        return Extent::Goes;
    }
    Extent::Ends { bytes: missing, next: missing }
}

/// Decodes a whole frame. As JSON it may be as long as a frame may be.
pub(super) fn decode_value(frame: &[u8], limit: usize) -> Result<(Message, Option<Envelope>), Violation> {
    let value = frame.get(LENGTH..).unwrap_or_default();
    match to_json(value, limit) {
        Ok(Read::Json(text)) => decode(&text).map(|Line { body, envelope }| match body {
            Body::User(span) => (Message::User(Payload::cut(text, span)), envelope),
            Body::Control(message) => (message, envelope),
        }),
        Ok(Read::Foreign(before)) => match decode(&before)? {
            Line { body: Body::User(_), envelope }
            // An envelope whose content is not among what stands before: that is what is foreign.
            | Line { body: Body::Control(Message::Unknown), envelope: envelope @ Some(_) } => {
                Ok((Message::Opaque(value.into()), envelope))
            }
            Line { body: Body::Control(Message::Unknown), envelope: None } => Ok((Message::Unknown, None)),
            Line { body: Body::Control(_), .. } => Err(Violation::Foreign(Excerpt::of(&before))),
        },
        Err(_) => Err(Violation::NotSerialized(Excerpt::of(frame))),
    }
}

/// Makes a frame of the JSON line behind `start`.
pub(super) fn seal(out: &mut Vec<u8>, start: usize) {
    if out.len() <= start {
        return;
    }
    let line = out.split_off(start);
    out.extend_from_slice(&[0; LENGTH]);
    let written = from_json(&line, out);
    // Node 18 never reads on when one of its reads ends inside of a length. They are 65,536 bytes long, or end where one
    // of our calls did: with frames of this size none ends there. What stands behind a value is ignored.
    while !(out.len() - start).is_multiple_of(FRAME) {
        out.push(0);
    }
    debug_assert!(written.is_ok(), "a line of ours is JSON");
    match u32::try_from(out.len() - start - LENGTH) {
        Ok(length) if written.is_ok() => out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes()),
        _ => out.truncate(start),
    }
}
