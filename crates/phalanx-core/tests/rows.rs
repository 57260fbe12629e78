//! Node's cluster, row by row (`docs/conformance.md`): one primary against workers that say what a test has them say.

#[path = "rows/handing.rs"]
mod handing;
#[path = "rows/keys.rs"]
mod keys;
#[path = "rows/leaving.rs"]
mod leaving;
#[path = "rows/listeners.rs"]
mod listeners;
#[path = "rows/lives.rs"]
mod lives;
#[path = "rows/stage.rs"]
mod stage;
#[path = "rows/stub.rs"]
mod stub;
