//! The common part of the command lines of all daemons.

use std::{error::Error, io, path::PathBuf, process::ExitCode};

use serde::Serialize;

use crate::{LogFormat, errln, error_chain, outln, stdout};

/// Arguments of the `run` command.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// Format of the log on standard error.
    #[arg(
        long,
        value_enum,
        env = "CAUSEWAY_LOG_FORMAT",
        default_value = "text",
        hide_default_value = false
    )]
    pub log_format: LogFormat,
}

/// Runs a command and turns its result into the exit code: an error is printed with its causes
/// after the name of the program. A failed write to standard output is an error, too.
pub fn main<E>(program: &str, command: impl FnOnce() -> Result<(), E>) -> ExitCode
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let result = match command() {
        Ok(()) => stdout::finish().map_err(|source| {
            let text = format!("write to standard output: {source}");
            io::Error::new(source.kind(), text).into()
        }),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("{program}: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Prints a reply as one line of JSON.
///
/// # Errors
/// When the value has no JSON form.
pub fn print_json(value: &impl Serialize) -> Result<(), serde_json::Error> {
    outln!("{}", serde_json::to_string(value)?);
    Ok(())
}
