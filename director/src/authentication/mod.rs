//! Memory of log-ins and tokens that no commit keeps: wrong passwords and codes, last uses, and
//! tokens that had ended before the clock was set back. A process that starts knows none of it.

mod attempts;
mod expired_tokens;
mod last_use;

pub(crate) use attempts::{Attempts, WRONG_CODE};
pub(crate) use expired_tokens::Ended;
pub(crate) use last_use::LastUses;
