//! Values as V8 serializes them, as far as JSON has a form for them.
//!
//! A value is a header, then a tag and what belongs to it; objects and arrays end with a tag of their own and repeat
//! how much they hold. Whatever is not listed here (maps, dates, buffers, references, ...) is *foreign*: it has no form
//! in JSON, and is not looked into.

mod read;
mod write;

pub(super) use read::{Read, to_json};
pub(super) use write::from_json;

/// The first byte of the header; the version follows.
const HEADER: u8 = 0xff;

/// What is written: every reader knows it, and later versions differ in foreign values only.
const VERSION: u8 = 13;

/// The newest that is understood, which is what Node 18 to 26 write.
const NEWEST: u8 = 15;

/// Precedes two-byte strings, so that they stand on an even offset.
const PADDING: u8 = 0;
const UNDEFINED: u8 = b'_';
const NULL: u8 = b'0';
const TRUE: u8 = b'T';
const FALSE: u8 = b'F';
/// A zigzag varint.
const INT32: u8 = b'I';
/// A varint.
const UINT32: u8 = b'U';
/// Eight bytes, little endian.
const DOUBLE: u8 = b'N';
/// Length in bytes, then Latin-1.
const ONE_BYTE: u8 = b'"';
/// Length in bytes, then UTF-16LE.
const TWO_BYTE: u8 = b'c';
/// Length in bytes, then UTF-8. Node reads it and never writes it.
const UTF8: u8 = b'S';
/// Names and values, then the end and how many there were.
const OBJECT: u8 = b'o';
const OBJECT_END: u8 = b'{';
/// The length, then as many values; then properties, the end, how many properties, the length again.
const DENSE: u8 = b'A';
const DENSE_END: u8 = b'$';
/// Where a dense array has nothing.
const HOLE: u8 = b'-';
/// The length; then indexes and values, the end, how many of them, the length again.
const SPARSE: u8 = b'a';
const SPARSE_END: u8 = b'@';
