//! Small damages to the source, each with the test that must notice (`tests/conformance/mutations`).
//!
//! A file holds one after the other:
//!
//! ```text
//! ## a number is used again
//! row: FORK-01
//! file: crates/phalanx-core/src/primary/group.rs
//! test: phalanx-core::rows lives::numbers_grow_and_never_come_again
//! --- from
//!         self.next_worker += 1;
//! --- to
//! ```
//!
//! What is between `from` and `to` stands in the file once; what is after `to` comes in its place.

use crate::lab;
use std::fs;
use std::path::Path;

/// One of them.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The name of the file that it stands in.
    pub group: String,
    /// What it does wrong.
    pub name: String,
    /// Which behaviour that breaks.
    pub row: String,
    /// Where, from the root of the workspace on.
    pub file: String,
    /// Who must notice: the binary's name as nextest has it, a space, the test's name.
    pub test: String,
    /// Whole lines.
    pub from: String,
    /// What comes in their place.
    pub to: String,
}

impl Mutation {
    fn parse(group: &str, text: &str) -> Result<Mutation, String> {
        let (head, rest) = text.split_once("--- from\n").ok_or("no `--- from`")?;
        let (from, to) = rest.split_once("--- to\n").ok_or("no `--- to`")?;
        let mut lines = head.lines();
        let name = lines.next().unwrap_or_default().trim().to_owned();
        let mut field = |wanted: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(wanted));
            line.map(|value| value.trim().to_owned()).ok_or(format!("{name}: no `{wanted}`"))
        };
        let (row, file, test) = (field("row:")?, field("file:")?, field("test:")?);
        Ok(Mutation {
            group: group.to_owned(),
            name,
            row,
            file,
            test,
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }

    /// The damaged file.
    ///
    /// # Errors
    /// What is to be replaced does not stand there, or more than once.
    pub fn damage(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.from).count() {
            1 => Ok(source.replacen(&self.from, &self.to, 1)),
            count => Err(format!("{}: what it changes stands {count} times in {}", self.name, self.file)),
        }
    }
}

/// All of them, by group.
///
/// # Panics
/// When a file cannot be read or understood.
#[must_use]
pub fn all() -> Vec<Mutation> {
    let dir = lab::root().join("tests/conformance/mutations");
    let mut files: Vec<_> =
        fs::read_dir(&dir).expect("mutations").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().flat_map(|file| read(file)).collect()
}

fn read(file: &Path) -> Vec<Mutation> {
    let group = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = fs::read_to_string(file).expect("a text");
    // An empty line stands between two of them.
    let text = format!("\n{}\n", text.trim_end());
    text.split("\n## ")
        .skip(1)
        .map(|it| {
            let whole = format!("{}\n", it.trim_end());
            Mutation::parse(&group, &whole).unwrap_or_else(|why| panic!("{}: {why}", file.display()))
        })
        .collect()
}
