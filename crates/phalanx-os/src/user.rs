//! Users and groups by name, and whether this process may become one.
#![expect(unsafe_code, reason = "the account database is asked through the C library")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

use rustix::thread::CapabilitySet;

use crate::spawn::User;

/// No sane account needs more than that.
const MOST: usize = 1 << 20;

/// A user as the account database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What a process of it runs as.
    pub user: User,
    /// Its login name; `None` for a number that the database does not know.
    pub name: Option<String>,
    /// Its home directory.
    pub home: Option<PathBuf>,
}

/// The account that a text names: `NAME`, `UID`, or either with `:GROUP` (a name or a number) in place of its own
/// group. With its supplementary groups.
///
/// # Errors
/// `NotFound` with a sentence when there is no such user or group, or a bare number that has no account (and so no
/// group); else what the system says.
pub fn lookup(text: &str) -> io::Result<Account> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let group = group.map(group_id).transpose()?;
    let entry = match user.parse::<u32>() {
        Ok(uid) => passwd(By::Id(uid))?,
        Err(_) => passwd(By::Name(&c_string(user)?))?,
    };
    match (entry, user.parse::<u32>(), group) {
        (Some(entry), _, group) => {
            let gid = group.unwrap_or(entry.gid);
            let groups = groups_of(&entry.name, gid)?;
            let user = User { uid: entry.uid, gid, groups };
            let name = Some(entry.name.to_string_lossy().into_owned());
            Ok(Account { user, name, home: Some(entry.home) })
        }
        (None, Ok(uid), Some(gid)) => {
            Ok(Account { user: User { uid, gid, groups: Vec::new() }, name: None, home: None })
        }
        (None, Ok(uid), None) => {
            Err(not_found(format!("user {uid} has no account, and so no group: write {uid}:GROUP")))
        }
        (None, Err(_), _) => Err(not_found(format!("there is no user `{user}`"))),
    }
}

/// Whether a child of this process can be given these rights: they are our own, or we have `CAP_SETUID` and
/// `CAP_SETGID`.
#[must_use]
pub fn may_become(user: &User) -> bool {
    let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective.contains(CapabilitySet::SETUID) && sets.effective.contains(CapabilitySet::SETGID)
    });
    let groups = || rustix::process::getgroups().unwrap_or_default();
    capable
        || rustix::process::geteuid().as_raw() == user.uid
            && rustix::process::getegid().as_raw() == user.gid
            && user.groups.iter().all(|wanted| groups().iter().any(|have| have.as_raw() == *wanted))
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn not_found(sentence: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, sentence)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| not_found("a name holds no NUL".to_owned()))
}

struct Entry {
    uid: u32,
    gid: u32,
    name: CString,
    home: PathBuf,
}

enum By<'a> {
    Name(&'a CStr),
    Id(u32),
}

/// Calls one of the `get*_r` functions with a buffer that grows until it is enough. Gives whether it found
/// something.
fn growing(mut call: impl FnMut(&mut [c_char]) -> (c_int, bool)) -> io::Result<(Vec<c_char>, bool)> {
    let mut buffer: Vec<c_char> = vec![0; 1024];
    loop {
        match call(&mut buffer) {
            (0, found) => return Ok((buffer, found)),
            (libc::ERANGE, _) if buffer.len() < MOST => buffer.resize(buffer.len() * 2, 0),
            (libc::EINTR, _) => {}
            // Some databases say so when there is no such entry.
            (libc::ENOENT | libc::ESRCH, _) => return Ok((buffer, false)),
            (errno, _) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn passwd(by: By<'_>) -> io::Result<Option<Entry>> {
    // SAFETY: a struct of integers and pointers, for which zeros are valid.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let (_buffer, found) = growing(|buffer| {
        let mut result = ptr::null_mut();
        let (room, len) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: every pointer is to something that lives and is as long as is said.
        let errno = unsafe {
            match by {
                By::Name(name) => libc::getpwnam_r(name.as_ptr(), &raw mut entry, room, len, &raw mut result),
                By::Id(uid) => libc::getpwuid_r(uid, &raw mut entry, room, len, &raw mut result),
            }
        };
        (errno, !result.is_null())
    })?;
    if !found {
        return Ok(None);
    }
    // SAFETY: what was found points to strings in the buffer, which is still there.
    let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
    let home = PathBuf::from(OsStr::from_bytes(home.to_bytes()));
    Ok(Some(Entry { uid: entry.pw_uid, gid: entry.pw_gid, name: name.to_owned(), home }))
}

fn group_id(text: &str) -> io::Result<u32> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let name = c_string(text)?;
    // SAFETY: a struct of integers and pointers, for which zeros are valid.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    let (_buffer, found) = growing(|buffer| {
        let mut result = ptr::null_mut();
        // SAFETY: every pointer is to something that lives and is as long as is said.
        let errno = unsafe {
            let (room, len) = (buffer.as_mut_ptr(), buffer.len());
            libc::getgrnam_r(name.as_ptr(), &raw mut entry, room, len, &raw mut result)
        };
        (errno, !result.is_null())
    })?;
    if found { Ok(entry.gr_gid) } else { Err(not_found(format!("there is no group `{text}`"))) }
}

/// The supplementary groups of a user, without its own.
fn groups_of(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = c_int::try_from(groups.len()).unwrap_or(c_int::MAX);
        // SAFETY: room for as many as `count` says, which is set to how many there are.
        let fits =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) } >= 0;
        let needed = usize::try_from(count).unwrap_or_default();
        if fits {
            groups.truncate(needed);
            groups.retain(|group| *group != gid);
            return Ok(groups);
        }
        if groups.len() >= MOST {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        groups.resize(needed.max(groups.len() * 2), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_or_explained() {
        let root = lookup("root").unwrap();
        assert_eq!((root.user.uid, root.user.gid, root.name.as_deref()), (0, 0, Some("root")));
        assert_eq!(lookup("0").unwrap(), root);
        let other = lookup("root:12345").unwrap();
        assert_eq!((other.user.uid, other.user.gid), (0, 12345));
        let bare = lookup("54321:54321").unwrap();
        assert_eq!((bare.user.uid, bare.user.gid, bare.name), (54321, 54321, None));
        for nobody in ["no-such-user", "54321", "root:no-such-group", "", "a\0b"] {
            let error = lookup(nobody).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{nobody}: {error}");
        }
    }

    #[test]
    fn everybody_may_be_who_he_is() {
        let groups = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert!(may_become(&User { uid, gid, groups }));
    }
}
