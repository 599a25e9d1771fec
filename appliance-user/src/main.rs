//! `causeway-appliance`: the daemon, and the commands of its operator.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    service::cli::main("causeway-appliance", || {
        cli::run(service::cli::parse(|cli: &cli::Cli| cli.command.asks()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("causeway-appliance", &[])],
            table: Some("docs/appliance.md"),
            except: &[],
            command: <crate::cli::Cli as clap::CommandFactory>::command,
        });
    }
}
