//! What the primary passed to read.

use serde::de::DeserializeOwned;
use std::io;
use std::sync::OnceLock;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The primary passed none.
    #[error("the primary passed no configuration")]
    Missing,
    /// It cannot be read.
    #[error("the configuration cannot be read")]
    Read(#[source] io::Error),
    /// It is something else than asked for.
    #[error("the configuration is not what this worker expects")]
    Decode(#[source] serde_json::Error),
}

static PASSED: OnceLock<Option<io::Result<Vec<u8>>>> = OnceLock::new();
static OWN: OnceLock<Vec<u8>> = OnceLock::new();

/// Used when the primary passed none.
pub(crate) fn fall_back(bytes: Vec<u8>) {
    let _ = OWN.set(bytes);
}

/// Takes it, so that no child of this process inherits it.
pub(crate) fn take() -> &'static Option<io::Result<Vec<u8>>> {
    PASSED.get_or_init(|| phalanx_os::inherit::config().map(phalanx_os::memory::read))
}

pub(crate) fn get<T: DeserializeOwned>() -> Result<T, ConfigError> {
    let bytes = match take() {
        Some(Ok(bytes)) => bytes,
        Some(Err(error)) => return Err(ConfigError::Read(io::Error::new(error.kind(), error.to_string()))),
        None => OWN.get().ok_or(ConfigError::Missing)?,
    };
    serde_json::from_slice(bytes).map_err(ConfigError::Decode)
}
