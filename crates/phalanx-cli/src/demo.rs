//! `phalanx demo`.

use crate::args;
use crate::exit::{Code, Failure};

pub(crate) fn demo(_args: args::Demo) -> Result<Code, Failure> { Ok(Code::Ok) }
pub(crate) fn worker() -> Result<Code, Failure> { Ok(Code::Ok) }
