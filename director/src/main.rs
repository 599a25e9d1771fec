//! `causeway-director`: the daemon, and the commands around it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use director::{
    Kernel, api,
    audit::{self, Head},
    config::Config,
    daemon::{self, Reply, Request},
    init, transfer,
};
use service::{
    cli::{self, RunArgs},
    socket,
};
use store::{Backup, restore};

/// The director of Causeway: the control plane of a provider.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the director.
    #[arg(
        long,
        global = true,
        env = "CAUSEWAY_DIRECTOR_SOCKET",
        default_value = "/run/causeway-director/director.sock"
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create the store and its first administrator, and print a token for 24 hours.
    Init {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Name of the administrator.
        #[arg(long, default_value = "admin")]
        user: String,
    },
    /// Run the director.
    #[command(alias = "serve")]
    Run(RunArgs),
    /// Check a configuration file and list every problem.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Show the state of the director: revision, numbers of tenants, networks and audit entries.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read the certificate and its key again. Other changed keys are refused until a restart.
    Reload,
    /// Write a backup of the running director's store to a new file.
    Backup {
        /// The file, as an absolute path.
        file: PathBuf,
    },
    /// Create the store from a backup. The store must not exist.
    Restore {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The backup.
        file: PathBuf,
    },
    /// Write the running director's store as text, a key a line, to a new file.
    Export {
        /// The file, as an absolute path.
        file: PathBuf,
    },
    /// Make a store of such a text, where there is none, whole or not at all.
    Import {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The text.
        file: PathBuf,
    },
    /// Check the chain of the audit in a backup, and its signed checkpoints.
    VerifyAudit {
        /// The backup.
        file: PathBuf,
        /// Public key that must have signed the checkpoints, hexadecimal.
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
    /// Print the document of the API (OpenAPI 3.1).
    Openapi,
}

fn main() -> ExitCode {
    cli::main("causeway-director", || run(Cli::parse()))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Init { config, user } => {
            let config = Config::load(&config)?;
            service::config::name(&user).map_err(anyhow::Error::msg)?;
            let secret = block_on(init(&config.store, &user, &Kernel))??;
            service::outln!("{secret}");
        }
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file } => {
            Config::load(&file)?;
            service::outln!("{}: good", file.display());
        }
        Command::Status { json } => {
            let reply = ask(&cli.socket, &Request::Status)?;
            match reply {
                Reply::Status {
                    revision,
                    tenants,
                    networks,
                    audit,
                } if !json => {
                    service::outln!(
                        "revision {revision}: {tenants} tenants, {networks} networks, {audit} \
                         audit entries"
                    );
                }
                reply => cli::print_json(&reply)?,
            }
        }
        Command::Reload => {
            ask(&cli.socket, &Request::Reload)?;
            service::outln!("reloaded");
        }
        Command::Backup { file } => {
            require_absolute(&file)?;
            ask(&cli.socket, &Request::Backup(file))?;
        }
        Command::Export { file } => {
            require_absolute(&file)?;
            ask(&cli.socket, &Request::Export(file))?;
        }
        Command::Import { config, file } => {
            let store = Config::load(&config)?.store;
            let (keys, entries) = block_on(transfer::import(&file, &store))??;
            service::outln!(
                "{}: {keys} keys, {entries} audit entries, whose chain is good",
                store.display()
            );
        }
        Command::Restore { config, file } => {
            restore(&file, &Config::load(&config)?.store)?;
        }
        Command::VerifyAudit { file, key } => {
            let (number, signed) = verify(&file, key.as_deref())?;
            let signed = signed.unwrap_or_default();
            service::outln!(
                "{}: good: {number} entries, the first {signed} of them signed",
                file.display()
            );
        }
        Command::Openapi => {
            service::outln!("{:#}", api::document());
        }
    }
    Ok(())
}

/// The director, which has a working folder of its own, writes the file.
fn require_absolute(file: &Path) -> anyhow::Result<()> {
    if !file.is_absolute() {
        bail!(
            "{}: write an absolute path: the director writes the file",
            file.display()
        );
    }
    Ok(())
}

fn ask(path: &Path, request: &Request) -> anyhow::Result<Reply> {
    Ok(socket::ask(&daemon::SOCKET, path, request)?)
}

fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Ok(runtime
        .context("cannot start the runtime")?
        .block_on(future))
}

fn verify(file: &Path, key: Option<&str>) -> anyhow::Result<(u64, Option<u64>)> {
    let backup = Backup::open(file)?;
    let head = backup.snapshot(audit::HEAD)?;
    let head: Head = match head.entries.first() {
        Some(entry) => serde_json::from_str(&entry.value)?,
        None => Head::default(),
    };
    let entries = backup.snapshot(audit::PREFIX)?;
    let entries = entries.entries.iter().map(|entry| entry.value.as_str());
    let checkpoints = backup.snapshot(audit::CHECKPOINTS)?;
    let checkpoints = checkpoints.entries.iter();
    let checkpoints: Vec<_> = checkpoints
        .map(|entry| serde_json::from_str(&entry.value))
        .collect::<Result<_, _>>()?;
    Ok(audit::verify(entries, checkpoints, &head, key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("causeway-director", &[])],
            table: None,
            except: &[],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
