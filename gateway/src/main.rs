//! `causeway-gateway`: the daemon, and the commands that talk to it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use gateway::{
    config::Config,
    control::{self, Request, Status, render},
    daemon,
};
use service::{
    cli::{self, RunArgs},
    socket,
};

/// The cloud gateway of Causeway: one address and port for the control connections and tunnels of
/// tenants.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the gateway.
    #[arg(
        long,
        global = true,
        env = "CAUSEWAY_GATEWAY_SOCKET",
        default_value = "/run/causeway/gateway.sock"
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Run(RunArgs),
    /// Check a configuration file and list every problem.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Show the state of the gateway: listeners, limits, tenants and circuits.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read the configuration file again. If it has a problem, the running configuration stays in
    /// force.
    Reload,
    /// Accept no new connections, and stop when the existing ones have ended or `gateway.drain` has
    /// passed.
    Drain,
}

fn main() -> ExitCode {
    cli::main("causeway-gateway", || run(Cli::parse()))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let ask = |request: &Request| -> Result<Status, socket::AskError> {
        socket::ask(&control::SOCKET, &cli.socket, request)
    };
    match cli.command {
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file } => {
            let config = Config::load(&file)?;
            service::outln!(
                "{}: good: {} tenants, {} backends, {} circuits",
                file.display(),
                config.tenants.len(),
                config.backends.len(),
                config.circuits.list.len()
            );
        }
        Command::Status { json } => {
            let status = ask(&Request::Status)?;
            if json {
                cli::print_json(&status)?;
            } else {
                service::stdout::print(render::status(&status));
            }
        }
        Command::Reload => {
            ask(&Request::Reload)?;
            service::outln!("reloaded");
        }
        Command::Drain => {
            let status = ask(&Request::Drain)?;
            service::outln!(
                "{}: draining; {} connections left",
                status.name,
                status.connections
            );
        }
    }
    Ok(())
}
