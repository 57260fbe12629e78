//! JSON text to a serialized value.

use super::{
    DENSE, DENSE_END, DOUBLE, FALSE, HEADER, INT32, NULL, OBJECT, OBJECT_END, ONE_BYTE, PADDING, TRUE,
    TWO_BYTE, VERSION,
};
use crate::wire::scan::{Syntax, Visit, walk};
use std::ops::Range;

/// Appends the value of a JSON text, header included.
pub(in super::super) fn from_json(text: &[u8], out: &mut Vec<u8>) -> Result<(), Syntax> {
    let base = out.len();
    out.extend_from_slice(&[HEADER, VERSION]);
    walk(text, &mut Writer { out, base, open: Vec::new(), members: Vec::new() })
}

/// What has begun and not ended.
enum Open {
    /// The first of its `members`.
    Object {
        first: usize,
    },
    Array {
        length_at: usize,
        items: u32,
    },
}

/// Where a member stands, up to the next one or the end of its object, and its name.
struct Member {
    start: usize,
    name: Range<usize>,
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where the header stands: alignment counts from there.
    base: usize,
    open: Vec<Open>,
    /// Of all open objects.
    members: Vec<Member>,
}

impl Visit for Writer<'_> {
    fn open(&mut self, object: bool) {
        self.count();
        self.out.push(if object { OBJECT } else { DENSE });
        self.open.push(if object {
            Open::Object { first: self.members.len() }
        } else {
            // Known at the end only: room for the longest there is.
            let length_at = self.out.len();
            self.out.extend_from_slice(&[0; 5]);
            Open::Array { length_at, items: 0 }
        });
    }

    fn close(&mut self) {
        match self.open.pop() {
            Some(Open::Object { first }) => {
                let members = self.members.split_off(first);
                let count = self.settle(&members);
                self.out.push(OBJECT_END);
                self.varint(count as u32);
            }
            Some(Open::Array { length_at, items }) => {
                for (at, byte) in (0..).zip(&mut self.out[length_at..length_at + 5]) {
                    let more = if at < 4 { 0x80 } else { 0 };
                    *byte = (items >> (7 * at)) as u8 & 0x7f | more;
                }
                self.out.extend_from_slice(&[DENSE_END, 0]);
                self.varint(items);
            }
            None => {}
        }
    }

    fn name(&mut self, raw: &[u8]) {
        let start = self.out.len();
        self.string(raw);
        let padded = usize::from(self.out[start] == PADDING);
        self.members.push(Member { start, name: start + padded..self.out.len() });
    }

    fn scalar(&mut self, raw: &[u8]) {
        self.count();
        match raw {
            b"null" => self.out.push(NULL),
            b"true" => self.out.push(TRUE),
            b"false" => self.out.push(FALSE),
            [b'"', text @ .., b'"'] => self.string(text),
            number => self.number(number),
        }
    }
}

impl Writer<'_> {
    /// One item more, if this is in an array.
    fn count(&mut self) {
        if let Some(Open::Array { items, .. }) = self.open.last_mut() {
            *items += 1;
        }
    }

    /// Leaves one member of each name, the last as in JavaScript: two of a name are the death of a reader. How many
    /// are left.
    fn settle(&mut self, members: &[Member]) -> usize {
        let name = |n: &usize| &self.out[members[*n].name.clone()];
        let mut sorted: Vec<usize> = (0..members.len()).collect();
        sorted.sort_by(|a, b| name(a).cmp(name(b)).then(a.cmp(b)));
        let mut dropped: Vec<usize> =
            sorted.windows(2).filter(|pair| name(&pair[0]) == name(&pair[1])).map(|pair| pair[0]).collect();
        dropped.sort_unstable();
        for n in dropped.iter().rev() {
            let end = members.get(n + 1).map_or(self.out.len(), |next| next.start);
            // Two-byte strings may stand on an odd offset then: slower to read, no more.
            self.out.drain(members[*n].start..end);
        }
        members.len() - dropped.len()
    }

    fn number(&mut self, raw: &[u8]) {
        let number: f64 =
            std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        let whole = number as i32;
        if f64::from(whole).to_bits() == number.to_bits() {
            self.out.push(INT32);
            self.varint((whole << 1 ^ whole >> 31).cast_unsigned());
        } else {
            self.out.push(DOUBLE);
            self.out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// What is between the quotes of a JSON string.
    fn string(&mut self, raw: &[u8]) {
        if raw.is_ascii() && !raw.contains(&b'\\') {
            self.out.push(ONE_BYTE);
            self.varint(raw.len() as u32);
            self.out.extend_from_slice(raw);
            return;
        }
        let units = unescape(raw);
        let bytes: Option<Vec<u8>> = units.iter().map(|unit| u8::try_from(*unit).ok()).collect();
        if let Some(bytes) = bytes {
            self.out.push(ONE_BYTE);
            self.varint(bytes.len() as u32);
            self.out.extend_from_slice(&bytes);
            return;
        }
        let start = self.out.len();
        self.out.push(TWO_BYTE);
        self.varint(units.len() as u32 * 2);
        if (self.out.len() - self.base) % 2 == 1 {
            self.out.insert(start, PADDING);
        }
        self.out.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}

/// As UTF-16, in which a lone surrogate is nothing special; bytes that are not UTF-8 are replaced, as Node does.
fn unescape(raw: &[u8]) -> Vec<u16> {
    let mut units = Vec::with_capacity(raw.len());
    let mut parts = raw.split(|byte| *byte == b'\\');
    units.extend(String::from_utf8_lossy(parts.next().unwrap_or_default()).encode_utf16());
    let mut literal = false;
    for part in parts {
        // Behind an escaped backslash comes what is no escape.
        let (unit, rest) = match part {
            rest if std::mem::take(&mut literal) => (None, rest),
            [] => {
                literal = true;
                (Some(u16::from(b'\\')), part)
            }
            [b'u', a, b, c, d, rest @ ..] => {
                let digits = [a, b, c, d].map(|digit| char::from(*digit).to_digit(16).unwrap_or(0) as u16);
                (Some(digits.iter().fold(0, |unit, digit| unit << 4 | digit)), rest)
            }
            [escape, rest @ ..] => {
                let byte = match escape {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                };
                (Some(u16::from(byte)), rest)
            }
        };
        units.extend(unit);
        units.extend(String::from_utf8_lossy(rest).encode_utf16());
    }
    units
}
