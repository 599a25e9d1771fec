//! The command line: `args` defines the commands and options, `commands` carries them out.
//!
//! Every command is one request to the daemon, but for those of which `Command::asks` says no.

mod args;
mod commands;
mod trace;

pub use args::Cli;
pub use commands::run;
