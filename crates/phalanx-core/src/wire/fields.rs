//! The members of a message that mean something to us, and how their values are read.

use std::borrow::Cow;

use serde_json::value::RawValue;

macro_rules! names {
    ($($key:ident = $name:literal,)+) => {
        /// The name of a member.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Member { $($key,)+ }

        impl Member {
            const COUNT: usize = [$(Self::$key,)+].len();

            /// As it is spelt on the wire.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$key => $name,)+ }
            }

            fn from_name(name: &[u8]) -> Option<Self> {
                $(if name == $name.as_bytes() { return Some(Self::$key); })+
                None
            }
        }
    };
}

names! {
    Cmd = "cmd",
    Act = "act",
    Ack = "ack",
    Seq = "seq",
    Key = "key",
    Type = "type",
    Msg = "msg",
    DgramType = "dgramType",
    Accepted = "accepted",
    Errno = "errno",
    Data = "data",
    SockName = "sockname",
    Index = "index",
    Address = "address",
    Port = "port",
    AddressType = "addressType",
    Fd = "fd",
    Flags = "flags",
    Backlog = "backlog",
    ReadableAll = "readableAll",
    WritableAll = "writableAll",
    Count = "count",
    Family = "family",
    Phalanx = "phalanx",
    Socket = "socket",
    Policy = "policy",
    Mode = "mode",
    Name = "name",
}

/// This field of a control message is missing or wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) Member);

/// The raw values of the known members of one object.
#[derive(Default)]
pub(super) struct Fields<'a> {
    raw: [Option<&'a [u8]>; Member::COUNT],
    twice: Option<Member>,
}

impl<'a> Fields<'a> {
    /// Takes a member as [`scan`](super::scan::scan) shows it; of equal names the last counts, as in
    /// JavaScript.
    pub(super) fn put(&mut self, name: &[u8], value: &'a [u8]) {
        let key = if name.contains(&b'\\') {
            unescape(name).and_then(|name| Member::from_name(name.as_bytes()))
        } else {
            Member::from_name(name)
        };
        if let Some(key) = key
            && self.raw[key as usize].replace(value).is_some()
        {
            self.twice = Some(key);
        }
    }

    /// A name that came twice. JavaScript allows that, nobody honest does it.
    pub(super) fn twice(&self) -> Option<Member> {
        self.twice
    }

    /// The raw value.
    pub(super) fn raw(&self, key: Member) -> Option<&'a [u8]> {
        self.raw[key as usize]
    }

    /// The raw value, unless it is `null`.
    fn some(&self, key: Member) -> Option<&'a [u8]> {
        self.raw(key).filter(|&raw| raw != b"null")
    }

    /// `cmd`, if it makes the message internal: a string that starts with `NODE_` and is longer.
    pub(super) fn internal(&self) -> Option<Cow<'a, [u8]>> {
        let raw = content(self.raw(Member::Cmd)?)?;
        // One that cannot be decoded (a lone surrogate) can still start like this.
        let name = match raw.contains(&b'\\').then(|| unescape(raw)).flatten() {
            Some(name) => Cow::Owned(name.into_bytes()),
            None => Cow::Borrowed(raw),
        };
        (name.len() > 5 && name.starts_with(b"NODE_")).then_some(name)
    }

    /// A string; `null` is like absence.
    pub(super) fn string(&self, key: Member) -> Result<Option<String>, Wrong> {
        let Some(raw) = self.some(key) else { return Ok(None) };
        let raw = content(raw).ok_or(Wrong(key))?;
        if raw.contains(&b'\\') {
            return unescape(raw).map(Some).ok_or(Wrong(key));
        }
        let text = std::str::from_utf8(raw).map_err(|_| Wrong(key))?;
        Ok(Some(text.to_owned()))
    }

    /// A string that must be there.
    pub(super) fn text(&self, key: Member) -> Result<String, Wrong> {
        self.string(key)?.ok_or(Wrong(key))
    }

    /// A whole number within the range of `T`; `null` is like absence.
    pub(super) fn integer<T: TryFrom<i64>>(&self, key: Member) -> Result<Option<T>, Wrong> {
        let Some(raw) = self.some(key) else { return Ok(None) };
        let number = std::str::from_utf8(raw).ok().and_then(|text| text.parse::<i64>().ok());
        let number = number.and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or(Wrong(key))
    }

    /// The same, where JavaScript's other falsy values are like absence too.
    pub(super) fn integer_or_falsy<T: TryFrom<i64>>(&self, key: Member) -> Result<Option<T>, Wrong> {
        if self.truthy(key) { self.integer(key) } else { Ok(None) }
    }

    /// `true` or `false`; `null` is like absence.
    pub(super) fn boolean(&self, key: Member) -> Result<Option<bool>, Wrong> {
        match self.some(key) {
            None => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(_) => Err(Wrong(key)),
        }
    }

    /// What an `if` in JavaScript would make of it.
    pub(super) fn truthy(&self, key: Member) -> bool {
        match self.raw(key) {
            None | Some(b"null" | b"false" | b"\"\"") => false,
            Some(number @ [b'-' | b'0'..=b'9', ..]) => {
                let mantissa = number.split(|byte| matches!(byte, b'e' | b'E')).next();
                mantissa.is_some_and(|digits| digits.iter().any(|byte| matches!(byte, b'1'..=b'9')))
            }
            Some(_) => true,
        }
    }

    /// Any value, unread; falsy is like absence.
    pub(super) fn opaque(&self, key: Member) -> Result<Option<Box<RawValue>>, Wrong> {
        if !self.truthy(key) {
            return Ok(None);
        }
        let text = self.raw(key).and_then(|raw| String::from_utf8(raw.to_vec()).ok());
        let value = text.and_then(|text| RawValue::from_string(text).ok());
        value.map(Some).ok_or(Wrong(key))
    }
}

/// What is between the quotes.
fn content(raw: &[u8]) -> Option<&[u8]> {
    raw.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// Decodes what is between two quotes. Only called when there is a backslash.
fn unescape(raw: &[u8]) -> Option<String> {
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice(&quoted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::scan::scan;

    fn fields(text: &str) -> Fields<'_> {
        let mut fields = Fields::default();
        scan(text.as_bytes(), |name, value| fields.put(name, value)).unwrap();
        fields
    }

    #[test]
    fn internal_is_decided_as_javascript_would() {
        for (text, internal) in [
            (r#"{"cmd":"NODE_X"}"#, true),
            (r#"{"cmd":"NODE_"}"#, false),
            (r#"{"cmd":"node_x"}"#, false),
            (r#"{"cmd":["NODE_X"]}"#, false),
            (r#"{"cmd":null}"#, false),
            (r#"{"\u0063md":"NODE\u005fX"}"#, true),
            (r#"{"cmd":"NODE_X","cmd":1}"#, false),
            (r#"{"cmd":1,"cmd":"NODE_X"}"#, true),
            (r#"{"cmd":"NODE_\ud800"}"#, true),
            (r#"["cmd","NODE_X"]"#, false),
        ] {
            assert_eq!(fields(text).internal().is_some(), internal, "{text}");
        }
    }

    #[test]
    fn values_are_read_loosely_where_node_is_loose() {
        let f = fields(
            r#"{"backlog":false,"flags":null,"port":-0,"fd":1.5,"data":{},"index":"","errno":0e9,"key":"a\tb","count":1e3}"#,
        );
        assert_eq!(f.integer_or_falsy::<u32>(Member::Backlog), Ok(None));
        assert_eq!(f.integer_or_falsy::<u32>(Member::Flags), Ok(None));
        assert_eq!(f.integer::<i32>(Member::Port), Ok(Some(0)));
        assert_eq!(f.integer::<i32>(Member::Fd), Err(Wrong(Member::Fd)));
        assert_eq!(f.opaque(Member::Data).unwrap().unwrap().get(), "{}");
        assert!(!f.truthy(Member::Index) && !f.truthy(Member::Errno) && f.truthy(Member::Count));
        assert_eq!(f.text(Member::Key).unwrap(), "a\tb");
        assert_eq!(f.text(Member::Act), Err(Wrong(Member::Act)));
        assert_eq!(fields(r#"{"seq":1,"seq":1}"#).twice(), Some(Member::Seq));
    }
}
