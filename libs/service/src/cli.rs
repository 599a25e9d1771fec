//! The common part of the command lines of all daemons.

use std::{error::Error, ffi::OsString, io, path::PathBuf, process::ExitCode};

use clap::{Parser, error::ErrorKind, parser::ValueSource};
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

/// Parses the command line of a daemon's program, whose option `--socket` names the control socket.
/// `asks` tells whether a command asks the daemon: another one would ignore the option, which is
/// refused then. Exits after `--help`, and with 2 if the command line is wrong.
pub fn parse<C: Parser>(asks: impl FnOnce(&C) -> bool) -> C {
    parse_from(std::env::args_os(), asks).unwrap_or_else(|error| error.exit())
}

fn parse_from<C: Parser>(
    words: impl IntoIterator<Item = OsString>,
    asks: impl FnOnce(&C) -> bool,
) -> Result<C, clap::Error> {
    let mut command = C::command();
    let matches = command.try_get_matches_from_mut(words)?;
    let cli = C::from_arg_matches(&matches)?;
    let is_given = matches.value_source("socket") == Some(ValueSource::CommandLine);
    if is_given && !asks(&cli) {
        let name = matches.subcommand_name().unwrap_or_default();
        let text = format!("--socket: `{name}` does not ask the daemon: omit the option");
        return Err(command.error(ErrorKind::ArgumentConflict, text));
    }
    Ok(cli)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(long, global = true, default_value = "/run/socket")]
        socket: PathBuf,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Status,
        Check,
    }

    #[test]
    fn the_socket_is_refused_where_it_is_not_used() {
        let parsed = |words: &str| {
            let words = std::iter::once("program").chain(words.split_whitespace());
            let words = words.map(OsString::from);
            parse_from(words, |cli: &Cli| matches!(cli.command, Command::Status))
        };
        for words in ["--socket /a status", "status --socket /a"] {
            assert_eq!(parsed(words).expect(words).socket, PathBuf::from("/a"));
        }
        for words in ["status", "check"] {
            let path = PathBuf::from("/run/socket");
            assert_eq!(parsed(words).expect(words).socket, path);
        }
        for words in ["--socket /a check", "check --socket /a"] {
            let error = parsed(words).expect_err(words);
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains("`check` does not ask the daemon"), "{text}");
        }
    }
}
