//! One pass over a JSON text: is it JSON, and which members does its outermost object have?
//!
//! There is no recursion, so depth costs one bit per level and never a stack. Bytes inside strings
//! are not checked for UTF-8, numbers and escapes only for their form: what cannot be *decoded* may
//! still be carried.

use std::ops::Range;

/// The text is not JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Syntax;

/// Who wants to see the parts of a text, in their order.
pub(super) trait Visit {
    /// An object begins, or an array.
    fn open(&mut self, _object: bool) {}
    /// The innermost object or array ends.
    fn close(&mut self) {}
    /// The name of a member, without its quotes.
    fn name(&mut self, _raw: &[u8]) {}
    /// A value that is neither object nor array; a string with its quotes.
    fn scalar(&mut self, _raw: &[u8]) {}
}

impl Visit for () {}

/// Shows all parts of `text`. After an error, what was shown was no JSON.
pub(super) fn walk(text: &[u8], visit: &mut impl Visit) -> Result<(), Syntax> {
    let mut scanner = Scanner { text, at: 0, depth: 0 };
    scanner.space();
    scanner.value(visit)?;
    scanner.space();
    if scanner.at < text.len() { Err(Syntax) } else { Ok(()) }
}

/// What there is to know about a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Where the value stands, without the white space around it.
    pub(super) span: Range<usize>,
    /// How deep its members nest below the outermost value.
    pub(super) depth: usize,
}

/// Checks `text` and shows each member of its outermost object, if it is one: the key without its
/// quotes, the value with everything, neither unescaped.
pub(super) fn scan<'a>(text: &'a [u8], mut member: impl FnMut(&'a [u8], &'a [u8])) -> Result<Report, Syntax> {
    let mut scanner = Scanner { text, at: 0, depth: 0 };
    scanner.space();
    let start = scanner.at;
    if scanner.peek() == Some(b'{') {
        scanner.object(&mut member)?;
    } else {
        scanner.value(&mut ())?;
    }
    let end = scanner.at;
    scanner.space();
    if scanner.at < text.len() {
        return Err(Syntax);
    }
    Ok(Report { span: start..end, depth: scanner.depth })
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Syntax> {
        if self.peek() != Some(byte) {
            return Err(Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// The outermost object.
    fn object(&mut self, member: &mut impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Syntax> {
        self.expect(b'{')?;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            let value = self.value(&mut ())?;
            member(key, value);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(Syntax),
            }
            self.space();
        }
        self.at += 1;
        Ok(())
    }

    /// A key, its colon and the space after that.
    fn key(&mut self) -> Result<&'a [u8], Syntax> {
        let key = self.string()?;
        self.space();
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    /// Any value, however deep.
    fn value(&mut self, visit: &mut impl Visit) -> Result<&'a [u8], Syntax> {
        let start = self.at;
        let mut open = Nest::default();
        loop {
            let scalar = self.at;
            match self.peek().ok_or(Syntax)? {
                bracket @ (b'{' | b'[') => {
                    let object = bracket == b'{';
                    visit.open(object);
                    self.at += 1;
                    self.space();
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        visit.close();
                        self.at += 1;
                        self.depth = self.depth.max(open.depth + 1);
                    } else {
                        open.push(object);
                        self.depth = self.depth.max(open.depth);
                        if open.depth > self.text.len() - self.at {
                            return Err(Syntax); // No room for all the closing ones.
                        }
                        if object {
                            visit.name(self.key()?);
                        }
                        continue;
                    }
                }
                first => {
                    match first {
                        b'"' => _ = self.string()?,
                        b't' => self.word(b"true")?,
                        b'f' => self.word(b"false")?,
                        b'n' => self.word(b"null")?,
                        _ => self.number()?,
                    }
                    visit.scalar(&self.text[scalar..self.at]);
                }
            }
            // A value has ended; so may any number of the brackets around it.
            loop {
                let Some(object) = open.top() else {
                    return Ok(&self.text[start..self.at]);
                };
                self.space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.space();
                        if object {
                            visit.name(self.key()?);
                        }
                        break;
                    }
                    Some(b'}') if object => open.pop(),
                    Some(b']') if !object => open.pop(),
                    _ => return Err(Syntax),
                }
                visit.close();
                self.at += 1;
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Syntax> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Syntax);
        }
        self.at += word.len();
        Ok(())
    }

    fn string(&mut self) -> Result<&'a [u8], Syntax> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.peek().ok_or(Syntax)? {
                b'"' => {
                    self.at += 1;
                    return Ok(&self.text[start..self.at - 1]);
                }
                b'\\' => {
                    self.at += 1;
                    match self.peek().ok_or(Syntax)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                        b'u' => {
                            let digits = self.text.get(self.at + 1..self.at + 5).ok_or(Syntax)?;
                            if !digits.iter().all(u8::is_ascii_hexdigit) {
                                return Err(Syntax);
                            }
                            self.at += 5;
                        }
                        _ => return Err(Syntax),
                    }
                }
                0..0x20 => return Err(Syntax),
                _ => self.at += 1,
            }
        }
    }

    fn number(&mut self) -> Result<(), Syntax> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Syntax> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(Syntax) } else { Ok(()) }
    }
}

/// The open brackets, one bit each: set for an object.
#[derive(Default)]
struct Nest {
    /// The innermost ones, the last in bit 0.
    word: u64,
    outer: Vec<u64>,
    depth: usize,
}

impl Nest {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.word);
        }
        self.word = self.word << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.word >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.word = self.outer.pop().unwrap_or_default();
        }
    }

    fn top(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.word & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(text: &[u8]) -> bool {
        scan(text, |_, _| ()).is_ok()
    }

    #[test]
    fn members_are_shown_raw() {
        let mut seen = Vec::new();
        let text = br#" {"a":1, "b\n" : [{"x":"}"},[]] ,"c":"\"","a":null} "#;
        let report = scan(text, |key, value| seen.push((key, value))).unwrap();
        assert_eq!(
            seen,
            [(&b"a"[..], &b"1"[..]), (br"b\n", br#"[{"x":"}"},[]]"#), (b"c", br#""\"""#), (b"a", b"null")]
        );
        assert_eq!(report, Report { span: 1..text.len() - 1, depth: 2 });
    }

    #[test]
    fn deep_texts_cost_no_stack() {
        let mut text = vec![b'['; 1_000_000];
        assert!(!ok(&text));
        text.extend(vec![b']'; 1_000_000]);
        assert!(ok(&text));
        let at = text.len() - 500_000;
        text[at] = b'}';
        assert!(!ok(&text));
        let deep = [br#"{"a":["#.repeat(300), b"1".to_vec(), b"]}".repeat(300)].concat();
        assert_eq!(scan(&deep, |_, _| ()).unwrap().depth, 599);
    }

    #[test]
    fn form_is_checked_and_content_is_not() {
        for good in
            [&b"-0.5e+7"[..], b"\"\\ud800\"", b"\"\xff\xfe\"", b"0", b"[[],{}]", b"\t{}\r\n", b"1e999"]
        {
            assert!(ok(good), "{}", good.escape_ascii());
        }
        for bad in [
            &b""[..],
            b" ",
            b"\0",
            b"nul",
            b"+1",
            b"1.",
            b"1e",
            b"-",
            b".5",
            b"00",
            b"'a'",
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"\"\\u12",
            b"\"\t\"",
            b"{\"a\"}",
            b"{\"a\":}",
            b"{a:1}",
            b"{\"a\":1,}",
            b"[1,]",
            b"[1 2]",
            b"[}",
            b"{]",
            b"{}{}",
            b"\xef\xbb\xbf{}",
            b"\"",
            b"\"\\",
            b"{\"a\":[}",
            b"NaN",
        ] {
            assert!(!ok(bad), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_decoder(text in r#"[\[\]{},:"a0-9.eE+\\ utrfalsn-]{0,24}"#) {
            // A decoder refuses more: numbers beyond f64 and lone surrogates.
            match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
                Ok(_) => prop_assert!(ok(text.as_bytes())),
                Err(error) => prop_assert!(
                    !ok(text.as_bytes()) || error.to_string().contains("number out of range"),
                    "{error}"
                ),
            }
        }
    }
}
