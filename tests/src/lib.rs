//! The test laboratory: what it takes to prove that a cluster keeps its word.
//!
//! - [`load`]: a client that accounts for every connection it makes;
//! - [`network`]: networks of a test's own, and floods and scans in them;
//! - [`process`]: programs under test, what they print, and how they must end;
//! - [`steering`]: clusters of each kind of worker, in which the kernel chooses;
//! - [`budget`]: what is lost when things go wrong;
//! - [`mutations`]: small damages to the source, which tests must notice;
//! - [`lab`]: the foreign programs (Node in several versions, uvicorn) and our fixtures.
//!
//! Nothing here depends on how fast a machine is: one waits for facts, and a
//! deadline is only there so that a broken test ends.

pub mod budget;
pub mod lab;
pub mod load;
pub mod mutations;
pub mod network;
pub mod process;
pub mod raw;
pub mod steering;
