//! A program's file, held open: what later stands on the disk under its name does not matter.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which file it is, and which content: what changes when somebody writes to it or puts another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Identity {
    /// Of the file that has this name now, links followed.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_metadata(&std::fs::metadata(path)?))
    }

    fn from_metadata(of: &Metadata) -> Self {
        Self { device: of.dev(), inode: of.ino(), size: of.size(), modified: (of.mtime(), of.mtime_nsec()) }
    }
}

/// An open executable, which can be run however its name is used meanwhile.
#[derive(Debug)]
pub struct Image {
    file: File,
    identity: Identity,
}

impl Image {
    /// Opens the native executable of this name. `None` for a script: its interpreter opens it by its name, so
    /// it cannot be held.
    ///
    /// # Errors
    /// `PermissionDenied` also for a program that may be run and not read.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        match file.read_exact(&mut magic) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let identity = Identity::from_metadata(&file.metadata()?);
        Ok((magic == *b"\x7fELF").then_some(Self { file, identity }))
    }

    /// Which file it was when it was opened.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_script_cannot_be_held_and_a_change_shows() {
        let dir = std::env::temp_dir().join(format!("phalanx-image-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let file = dir.join("it");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(Image::open(&file).unwrap().is_none());
        let before = Identity::of(&file).unwrap();
        fs::write(dir.join("new"), "#!/bin/sh\n").unwrap();
        fs::rename(dir.join("new"), &file).unwrap();
        assert_ne!(Identity::of(&file).unwrap(), before);

        let own = std::env::current_exe().unwrap();
        let image = Image::open(&own).unwrap().unwrap();
        assert_eq!(image.identity(), Identity::of(&own).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
