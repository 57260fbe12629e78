//! What workers run, in words. Core never reads it: it only travels along with events.

use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::ffi::OsString;
use std::path::PathBuf;

/// What workers run. A copy: it never changes by itself. As JSON, without the variables, which may be secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The program, looked up as a shell would.
    pub exec: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables on top of our own environment. Those of a single fork come on top of these.
    pub env: Vec<(OsString, OsString)>,
    /// The directory that workers start in; `None`: ours.
    pub cwd: Option<PathBuf>,
    /// Whose rights they get, `NAME`, `UID`, or either with `:GROUP`; `None`: ours.
    pub user: Option<String>,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let mut fields = serializer.serialize_struct("Settings", 4)?;
        fields.serialize_field("exec", &self.exec.to_string_lossy())?;
        fields.serialize_field("args", &args)?;
        fields.serialize_field("cwd", &self.cwd.as_ref().map(|cwd| cwd.to_string_lossy()))?;
        fields.serialize_field("user", &self.user)?;
        fields.end()
    }
}
