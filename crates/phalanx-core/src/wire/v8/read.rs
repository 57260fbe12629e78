//! A serialized value to JSON text.
//!
//! There is no recursion, and the text never grows beyond its limit by more than one character: a few bytes can stand
//! for an array of four billion holes.

use std::io::Write as _;

use super::{
    DENSE, DENSE_END, DOUBLE, FALSE, HEADER, HOLE, INT32, NEWEST, NULL, OBJECT, OBJECT_END, ONE_BYTE,
    PADDING, SPARSE, SPARSE_END, TRUE, TWO_BYTE, UINT32, UNDEFINED, UTF8, VERSION,
};

/// How deep values may nest; V8 itself gives up long before.
const DEEPEST: usize = 1 << 16;

/// The bytes are no serialized value.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Malformed;

/// What a serialized value came to.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Read {
    /// The JSON text that `JSON.stringify` would have made: members that are undefined are left out, holes and
    /// numbers that are none are `null`.
    Json(Vec<u8>),
    /// JSON has no form for it, or a longer one than permitted. If it is an object, this is as much of it as stands
    /// before that, else `null`.
    Foreign(Vec<u8>),
}

/// Reads the value. What stands behind it is ignored, as Node does.
pub(in super::super) fn to_json(bytes: &[u8], limit: usize) -> Result<Read, Malformed> {
    let mut reader = Reader { bytes, at: 0, out: Vec::with_capacity(bytes.len()), limit, members_end: None };
    match reader.header().and_then(|()| reader.value()) {
        Ok(()) => Ok(Read::Json(reader.out)),
        Err(Trouble::Malformed) => Err(Malformed),
        Err(Trouble::Foreign) => Ok(Read::Foreign(reader.before())),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Malformed,
    Foreign,
}

type Step<T = ()> = Result<T, Trouble>;

/// What has begun and not ended.
enum Open {
    Object {
        members: u32,
    },
    Dense {
        length: u32,
        items: u32,
    },
    /// `next`: the first index that has no item yet.
    Sparse {
        length: u32,
        next: u32,
        pairs: u32,
    },
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
    limit: usize,
    /// Where the latest whole member of the outermost object ends in `out`.
    members_end: Option<usize>,
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> Step {
        match (self.byte()?, self.byte()?) {
            (HEADER, VERSION..=NEWEST) => Ok(()),
            _ => Err(Trouble::Malformed),
        }
    }

    /// The outermost value, with all that is within.
    fn value(&mut self) -> Step {
        let mut open = Vec::new();
        loop {
            match self.tag()? {
                OBJECT => {
                    self.out.push(b'{');
                    open.push(Open::Object { members: 0 });
                }
                tag @ (DENSE | SPARSE) => {
                    let length = self.varint()?;
                    self.out.push(b'[');
                    open.push(if tag == DENSE {
                        Open::Dense { length, items: 0 }
                    } else {
                        Open::Sparse { length, next: 0, pairs: 0 }
                    });
                }
                UNDEFINED | HOLE if matches!(open.last(), Some(Open::Dense { .. } | Open::Sparse { .. })) => {
                    self.out.extend_from_slice(b"null");
                }
                tag => self.scalar(tag)?,
            }
            if self.out.len() > self.limit || open.len() > DEEPEST {
                return Err(Trouble::Foreign);
            }
            if !self.go_on(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Ends what ends here, and goes to where the next value begins. Whether there is one.
    fn go_on(&mut self, open: &mut Vec<Open>) -> Step<bool> {
        loop {
            let outermost = open.len() == 1;
            let over = match open.last_mut() {
                None => return Ok(false),
                Some(Open::Object { members }) => {
                    if outermost {
                        self.members_end = Some(self.out.len());
                    }
                    self.member(members)?
                }
                Some(Open::Dense { length, items }) => self.item(*length, items)?,
                Some(Open::Sparse { length, next, pairs }) => self.pair(*length, next, pairs)?,
            };
            match over {
                None => return Ok(true),
                Some(bracket) => self.out.push(bracket),
            }
            open.pop();
        }
    }

    /// The name of the next member with a value that JSON has, or the end of the object.
    fn member(&mut self, members: &mut u32) -> Step<Option<u8>> {
        loop {
            let before = self.out.len();
            match self.tag()? {
                OBJECT_END if self.varint()? == *members => return Ok(Some(b'}')),
                OBJECT_END => return Err(Trouble::Malformed),
                tag => {
                    *members += 1;
                    self.comma();
                    self.name(tag)?;
                }
            }
            let at = self.at;
            if self.tag()? != UNDEFINED {
                self.at = at;
                return Ok(None);
            }
            self.out.truncate(before);
        }
    }

    /// A name is a string, or a number that looks like one.
    fn name(&mut self, tag: u8) -> Step {
        match tag {
            ONE_BYTE | TWO_BYTE | UTF8 => self.scalar(tag)?,
            INT32 | UINT32 | DOUBLE => {
                self.out.push(b'"');
                self.scalar(tag)?;
                self.out.push(b'"');
            }
            _ => return Err(Trouble::Malformed),
        }
        self.out.push(b':');
        Ok(())
    }

    fn item(&mut self, length: u32, items: &mut u32) -> Step<Option<u8>> {
        if *items < length {
            *items += 1;
            self.comma();
            return Ok(None);
        }
        match self.tag()? {
            // The other arrays have properties besides their items.
            DENSE_END => self.array_end(0, length),
            _ => Err(Trouble::Foreign),
        }
    }

    fn pair(&mut self, length: u32, next: &mut u32, pairs: &mut u32) -> Step<Option<u8>> {
        let index = match self.tag()? {
            SPARSE_END => {
                self.holes(length - *next)?;
                return self.array_end(*pairs, length);
            }
            INT32 => u32::try_from(self.int32()?).ok(),
            UINT32 => Some(self.varint()?),
            // A property, or an index beyond 2^30: a thousand million holes.
            _ => None,
        };
        match index {
            Some(index) if (*next..length).contains(&index) => {
                self.holes(index - *next)?;
                self.comma();
                *next = index + 1;
                *pairs += 1;
                Ok(None)
            }
            _ => Err(Trouble::Foreign),
        }
    }

    fn array_end(&mut self, properties: u32, length: u32) -> Step<Option<u8>> {
        if (self.varint()?, self.varint()?) == (properties, length) {
            Ok(Some(b']'))
        } else {
            Err(Trouble::Malformed)
        }
    }

    fn holes(&mut self, count: u32) -> Step {
        for _ in 0..count {
            self.comma();
            self.out.extend_from_slice(b"null");
            self.check()?;
        }
        Ok(())
    }

    /// Before an item or member, unless it is the first.
    fn comma(&mut self) {
        // No value ends with one of these.
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    fn scalar(&mut self, tag: u8) -> Step {
        match tag {
            NULL => self.out.extend_from_slice(b"null"),
            TRUE => self.out.extend_from_slice(b"true"),
            FALSE => self.out.extend_from_slice(b"false"),
            INT32 => {
                let number = self.int32()?;
                self.print(format_args!("{number}"));
            }
            UINT32 => {
                let number = self.varint()?;
                self.print(format_args!("{number}"));
            }
            DOUBLE => self.double()?,
            ONE_BYTE => {
                let text = self.counted()?;
                self.string(text.iter().map(|byte| u16::from(*byte)))?;
            }
            TWO_BYTE => {
                let (units, odd) = self.counted()?.as_chunks::<2>();
                if !odd.is_empty() {
                    return Err(Trouble::Malformed);
                }
                self.string(units.iter().map(|unit| u16::from_le_bytes(*unit)))?;
            }
            UTF8 => {
                let text = String::from_utf8_lossy(self.counted()?);
                self.string(text.encode_utf16())?;
            }
            OBJECT_END | DENSE_END | SPARSE_END | HOLE => return Err(Trouble::Malformed),
            _ => return Err(Trouble::Foreign),
        }
        Ok(())
    }

    fn double(&mut self) -> Step {
        let bytes = self.take(8)?;
        let number = f64::from_le_bytes(bytes.try_into().map_err(|_| Trouble::Malformed)?);
        let size = number.abs();
        if !number.is_finite() {
            self.out.extend_from_slice(b"null");
        } else if size == 0.0 {
            self.out.push(b'0');
        } else if (1e-6..1e21).contains(&size) {
            self.print(format_args!("{number}"));
        } else if size < 1.0 {
            self.print(format_args!("{number:e}"));
        } else {
            let text = format!("{number:e}").replace('e', "e+");
            self.out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }

    fn string(&mut self, units: impl Iterator<Item = u16>) -> Step {
        self.out.push(b'"');
        for char in char::decode_utf16(units) {
            match char {
                Ok(char @ ('"' | '\\')) => self.out.extend_from_slice(&[b'\\', char as u8]),
                Ok('\n') => self.out.extend_from_slice(b"\\n"),
                Ok('\r') => self.out.extend_from_slice(b"\\r"),
                Ok('\t') => self.out.extend_from_slice(b"\\t"),
                Ok('\x08') => self.out.extend_from_slice(b"\\b"),
                Ok('\x0c') => self.out.extend_from_slice(b"\\f"),
                Ok(char @ ..' ') => self.print(format_args!("\\u{:04x}", char as u32)),
                Ok(char) => self.out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
                Err(lone) => self.print(format_args!("\\u{:04x}", lone.unpaired_surrogate())),
            }
            self.check()?;
        }
        self.out.push(b'"');
        Ok(())
    }

    /// As much of the outermost object as is whole.
    fn before(mut self) -> Vec<u8> {
        let Some(end) = self.members_end else { return b"null".to_vec() };
        self.out.truncate(end);
        self.out.push(b'}');
        self.out
    }

    fn check(&self) -> Step {
        if self.out.len() > self.limit { Err(Trouble::Foreign) } else { Ok(()) }
    }

    fn print(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.out.write_fmt(text);
    }

    fn tag(&mut self) -> Step<u8> {
        loop {
            let tag = self.byte()?;
            if tag != PADDING {
                return Ok(tag);
            }
        }
    }

    fn byte(&mut self) -> Step<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Trouble::Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(Trouble::Malformed)?;
        self.at += count;
        Ok(taken)
    }

    /// A length in bytes, and so many.
    fn counted(&mut self) -> Step<&'a [u8]> {
        let length = self.varint()?;
        self.take(length as usize)
    }

    fn varint(&mut self) -> Step<u32> {
        let mut value = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| Trouble::Malformed);
            }
        }
        Err(Trouble::Malformed)
    }

    /// A zigzag varint: the sign is in bit 0.
    fn int32(&mut self) -> Step<i32> {
        let folded = self.varint()?;
        Ok((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }
}
