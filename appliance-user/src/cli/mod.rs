//! The command line: `args` defines the commands and options, `commands` carries them out.
//!
//! Every command but `run`, `check`, `keygen`, `preshared-key`, `pubkey` and `detach` is one
//! request to the daemon.

mod args;
mod commands;
mod trace;

pub use args::Cli;
pub use commands::run;
