//! Where things are: our own programs, the foreign ones, the fixtures.
//!
//! The foreign ones are brought by `tests/setup`. What could not be had is
//! skipped with a line on a user's machine, and is an error under `CI=true`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The versions of Node that the laboratory knows, oldest first.
pub const NODE_VERSIONS: [&str; 5] = ["0.12", "18", "20", "22", "26"];

/// The Node that a test uses when any will do.
pub const NODE: &str = "20";

/// The workspace.
#[must_use]
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.ancestors().find(|it| it.join("tests/node/fixtures").is_dir()).unwrap_or(&here).to_owned()
}

/// Where `tests/setup` installs; `PHALANX_LAB` moves it.
#[must_use]
pub fn dir() -> PathBuf {
    std::env::var_os("PHALANX_LAB").map_or_else(|| root().join("target/lab"), PathBuf::from)
}

/// A binary of this workspace, built beside the running test. `PHALANX_BIN`
/// names another `phalanx`.
///
/// # Panics
/// If it is not there: it has to be built first (`cargo build --workspace`).
#[must_use]
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    if name == "phalanx"
        && let Some(path) = std::env::var_os("PHALANX_BIN")
    {
        return path.into();
    }
    let exe = std::env::current_exe().expect("the path of this test");
    let mut dir = exe.parent().expect("a directory");
    if dir.file_name().is_some_and(|it| it == "deps") {
        dir = dir.parent().expect("a directory");
    }
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not built; run `cargo build --workspace --bins --examples`",
        path.display()
    );
    path
}

/// The hostile worker (see `tests/src/bin/raw_worker.rs`).
#[must_use]
#[track_caller]
pub fn raw_worker() -> PathBuf {
    binary("raw_worker")
}

/// A Node binary by [version](NODE_VERSIONS), if it is installed.
#[must_use]
#[track_caller]
pub fn node(version: &str) -> Option<PathBuf> {
    let path = dir().join(format!("node/node_modules/node-v{version}/bin/node"));
    have(&format!("node v{version}"), path)
}

/// The uvicorn program, if it is installed.
#[must_use]
#[track_caller]
pub fn uvicorn() -> Option<PathBuf> {
    have("uvicorn", dir().join("venv/bin/uvicorn"))
}

/// The directory of `app.py` (for uvicorn's `--app-dir`).
#[must_use]
pub fn python() -> PathBuf {
    root().join("tests/python")
}

/// A Node program of ours, such as `express.js`.
///
/// # Panics
/// If there is no such file.
#[must_use]
#[track_caller]
pub fn fixture(name: &str) -> PathBuf {
    let path = root().join("tests/node/fixtures").join(name);
    assert!(path.is_file(), "no fixture {}", path.display());
    path
}

/// The environment in which fixtures find express and socket.io.
#[must_use]
pub fn node_path() -> (OsString, OsString) {
    ("NODE_PATH".into(), dir().join("node/node_modules").into())
}

/// A command that runs a fixture under a version of Node, if that is installed.
#[must_use]
#[track_caller]
pub fn node_command(version: &str, name: &str) -> Option<Command> {
    let mut command = Command::new(node(version)?);
    command.arg(fixture(name)).envs([node_path()]);
    Some(command)
}

/// Whether the long tests are asked for (`PHALANX_LONG=1`).
#[must_use]
pub fn long() -> bool {
    std::env::var_os("PHALANX_LONG").is_some_and(|it| it == "1")
}

/// Whether this is continuous integration, where nothing may be missing.
#[must_use]
pub fn ci() -> bool {
    std::env::var_os("CI").is_some_and(|it| it == "true" || it == "1")
}

/// Says that a test, or a part of one, is left out.
///
/// # Panics
/// Under continuous integration.
#[track_caller]
pub fn skip(why: &str) {
    assert!(!ci(), "{why}: not acceptable under CI=true");
    eprintln!("SKIP: {why}");
}

#[track_caller]
fn have(what: &str, path: PathBuf) -> Option<PathBuf> {
    if Path::new(&path).is_file() {
        return Some(path);
    }
    skip(&format!("{what} is not installed (tests/setup brings it)"));
    None
}
