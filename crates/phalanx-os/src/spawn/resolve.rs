//! Finding the file of a program, as `execvp(3)` would.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

/// Where `execvp` looks without a PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The file that `program` means, as an absolute path.
///
/// With a slash in it, it is a path, relative to `cwd`. Without one it is looked for in the directories of
/// `path`, the value of a PATH, or in `/bin` and `/usr/bin` for `None`; relative ones, and the empty one that
/// stands for the current directory, are relative to `cwd` as well.
///
/// It is found if it is a regular file that **this** process, with its effective ids, may execute. A child
/// with another user may fare otherwise, and the file may be another by then: the exec has the last word.
///
/// # Errors
/// `NotFound` when there is no such file; `PermissionDenied` when there is one, on the way at least, that may
/// not be executed.
pub fn resolve(program: &OsStr, path: Option<&OsStr>, cwd: &Path) -> io::Result<PathBuf> {
    if program.is_empty() {
        return Err(Errno::NOENT.into());
    }
    if program.as_bytes().contains(&b'/') {
        return executable(&cwd.join(program));
    }
    let mut denied = false;
    for directory in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        match executable(&cwd.join(directory).join(program)) {
            Ok(found) => return Ok(found),
            // Another of that name, further on, may be executable; if not, this is what to tell.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied { Errno::ACCESS.into() } else { Errno::NOENT.into() })
}

fn executable(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if !std::fs::metadata(&path)?.is_file() {
        // What the exec of a directory gives.
        return Err(Errno::ACCESS.into());
    }
    rustix::fs::accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_found_as_execvp_would() {
        let dir = std::env::temp_dir().join(format!("phalanx-os-resolve-{}", std::process::id()));
        let file = |name: &str, mode| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let plain = file("first/tool", 0o644);
        let tool = file("second/tool", 0o755);
        file("first/data", 0o644);
        let find = |program: &str, path: &str| {
            resolve(OsStr::new(program), Some(OsStr::new(path)), &dir).map_err(|e| e.kind())
        };

        assert_eq!(find("tool", "first:second"), Ok(tool.clone()));
        assert_eq!(find("second/tool", "first"), Ok(tool.clone()));
        assert_eq!(find(tool.to_str().unwrap(), ""), Ok(tool.clone()));
        assert_eq!(find("tool", "nowhere:second/tool:second"), Ok(tool));
        assert_eq!(find("data", "first:second"), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(find(plain.to_str().unwrap(), ""), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(find("first/", "first"), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(find("nothing", "first:second"), Err(io::ErrorKind::NotFound));
        assert_eq!(find("first/nothing", "first"), Err(io::ErrorKind::NotFound));
        assert_eq!(find("", "first"), Err(io::ErrorKind::NotFound));
        assert!(resolve(OsStr::new("sh"), None, &dir).is_ok());

        let here = file("here", 0o755);
        assert_eq!(find("here", "first:"), Ok(here));
        fs::remove_dir_all(&dir).unwrap();
    }
}
