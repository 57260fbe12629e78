//! A file in memory that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::fd;

/// Such a file with these bytes. Whoever holds it can read it, and neither write to it nor change its length.
///
/// # Errors
/// Out of memory or of fds.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd::above_stdio(fd)?);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file.into())
}

/// Its bytes. The position of the file, which all holders have in common, is left alone.
///
/// # Errors
/// It is no file that can be read.
pub fn read(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd.as_fd().try_clone_to_owned()?);
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_read_again_and_again_and_not_changed() {
        let fd = sealed("test", b"hello").unwrap();
        assert_eq!(read(&fd).unwrap(), b"hello");
        assert_eq!(read(&fd).unwrap(), b"hello");
        let mut file = File::from(fd);
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }
}
