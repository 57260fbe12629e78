//! Files of variables, as `--env-file` takes them.

use crate::exit::{Code, Failure};
use std::path::Path;

/// How a file is written, for `--help`.
pub(crate) const SYNTAX: &str = "\
A file for --env-file has a NAME=VALUE on each line. `export ` before it, blanks around name and value, empty lines
and those that begin with # are ignored. A value in 'single quotes' is taken as it is; in \"double quotes\", \\n, \\t,
\\\", \\\\ and \\$ are replaced. Both may go over several lines. Without quotes, a # after a blank begins a comment.
Nothing is expanded.";

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let usage = |why: String| Failure::new(Code::Usage, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path)
        .map_err(|error| usage(format!("the file of variables cannot be read: {error}")))?;
    parse(&text).map_err(|(line, why)| usage(format!("line {line}: {why}")))
}

/// The variables, or the line and what is wrong there.
fn parse(text: &str) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut variables = Vec::new();
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) =
            line.split_once('=').ok_or_else(|| (number, format!("`{line}` is no NAME=VALUE")))?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err((number, format!("`{name}` cannot be the name of a variable")));
        }
        let value = value.trim_start();
        let value = match value.chars().next() {
            Some(quote @ ('\'' | '"')) => {
                let mut raw = value[1..].to_owned();
                loop {
                    match quoted(&raw, quote) {
                        Some((value, rest)) if rest.is_empty() || rest.starts_with('#') => break value,
                        Some((_, rest)) => {
                            return Err((number, format!("`{rest}` stands behind the closing quote")));
                        }
                        None => {
                            let (more, _) =
                                lines.next().ok_or((number, format!("the {quote} is never closed")))?;
                            raw.push('\n');
                            raw.push_str(more);
                        }
                    }
                }
            }
            _ => match value.split_once(" #") {
                Some((value, _comment)) => value.trim_end().to_owned(),
                None => value.to_owned(),
            },
        };
        if value.contains('\0') {
            return Err((number, "a value holds no NUL".to_owned()));
        }
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

/// The text up to the closing quote, and what follows it; `None` when it is not closed.
fn quoted(raw: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = raw.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((value, raw[at + c.len_utf8()..].trim())),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                c @ ('"' | '\\' | '$') => value.push(c),
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_documented() {
        let text = "\u{feff}# a comment\n\nA=1\nexport B = two words # not this\nC='$HOME # \"x\"'\n\
                    D=\"a\\nb\\\"\\$\" # c\nE=\nF=a#b=c\nG='one\ntwo'\nH=\"é\"\r\n";
        let found = parse(text).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            found,
            [
                ("A", "1"),
                ("B", "two words"),
                ("C", "$HOME # \"x\""),
                ("D", "a\nb\"$"),
                ("E", ""),
                ("F", "a#b=c"),
                ("G", "one\ntwo"),
                ("H", "é"),
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_line() {
        for (text, line, words) in [
            ("A=1\nnonsense", 2, "NAME=VALUE"),
            ("=1", 1, "name"),
            ("A B=1", 1, "name"),
            ("A=1\nB='x\ny", 2, "never closed"),
            ("A='x' y", 1, "behind"),
        ] {
            let (at, why) = parse(text).unwrap_err();
            assert!(at == line && why.contains(words), "{text:?}: {at} {why}");
        }
    }
}
