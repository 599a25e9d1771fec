//! `causeway-gateway`: the daemon, and what an operator says to it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use gateway::{
    config::Config,
    control::{self, Request, Status, render},
    daemon,
};
use service::socket;

/// The cloud gateway of Causeway: one port for all that tenants send.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the gateway to talk to.
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
    Run {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Check a configuration file and say everything that is wrong with it.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Show what the gateway is doing.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Read the configuration file again; a bad one leaves the running one in force.
    Reload,
    /// Take no more connections, and stop when those that are there have ended.
    Drain,
}

fn main() -> ExitCode {
    let done = run(Cli::parse())
        .and_then(|()| service::stdout::finish().context("write to standard output"));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            service::errln!("causeway-gateway: {}", service::error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let ask = |request: &Request| -> Result<Status, socket::AskError> {
        socket::ask(&control::SOCKET, &cli.socket, request)
    };
    match cli.command {
        Command::Run { config } => {
            service::abort_on_panic();
            tracing_subscriber::fmt()
                .with_env_filter(
                    tracing_subscriber::EnvFilter::try_from_env("CAUSEWAY_LOG")
                        .unwrap_or_else(|_| "info".into()),
                )
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .init();
            // For what an operator says; connections and circuits have threads of their own.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?
                .block_on(daemon::run(&config))?;
        }
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
                service::outln!(
                    "{}",
                    serde_json::to_string(&status).context("write the status")?
                );
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
                "{}: draining; {} connections are left",
                status.name,
                status.connections
            );
        }
    }
    Ok(())
}
