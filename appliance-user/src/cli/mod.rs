//! The command line: `args` says what may be typed, `commands` does it.
//!
//! Every command but `run`, `check`, `keygen`, `pubkey` and `detach` is one request to the daemon.

mod args;
mod commands;
mod trace;

pub use args::Cli;
pub use commands::run;
