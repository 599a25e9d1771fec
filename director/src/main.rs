//! `causeway-director`: the daemon, and the commands around it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{
    io::{BufRead as _, IsTerminal as _, stdin},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use director::{
    Kernel, api,
    audit::{self, Head, Trust},
    audit_key,
    config::Config,
    daemon::{self, Reply, Request},
    init,
    offline::{self, transfer},
};
use service::{
    cli::{self, RunArgs},
    socket,
};
use store::Backup;

/// The director of Causeway: the control plane of a provider.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the director, for commands that ask it.
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
    /// Create the store, the key of the audit and the first administrator, and print a token that
    /// is valid for 24 hours. On a terminal the command asks for the administrator's password.
    Init {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Name of the administrator.
        #[arg(long, default_value = "admin")]
        user: String,
        /// Read the password from the first line of standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Print a token of a provider-admin, valid for 24 hours, while the director is stopped. A user
    /// that does not exist is created.
    Recover {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Name of the administrator.
        #[arg(long, default_value = "admin")]
        user: String,
        /// Read another password from the first line of standard input, and remove the
        /// authenticator.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Replace the key that signs the audit, while the director is stopped, and print the public
    /// part of the new one. The old key signs the new one.
    ReplaceAuditKey {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Replace a lost key: the new one is not signed. Those who check the audit need the new
        /// public key.
        #[arg(long)]
        lost: bool,
    },
    /// Run the director.
    #[command(alias = "serve")]
    Run(RunArgs),
    /// Check a configuration file. Every wrong value is listed; a syntax error, an unknown or
    /// missing key, or a wrong type ends the reading.
    Check {
        /// Configuration file.
        file: PathBuf,
        /// Check the store, too, while the director is stopped: its objects, their claims of VLANs
        /// and public addresses, and the chain of the audit.
        #[arg(long)]
        store: bool,
    },
    /// Rebuild the claims of VLANs and public addresses from the objects that have them, while the
    /// director is stopped: for a store that is refused because claims contradict objects.
    RepairClaims {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
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
    /// Check a backup, and create the store from it. The store must not exist.
    Restore {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The backup.
        file: PathBuf,
    },
    /// Write the running director's store as text, one key per line, to a new file.
    Export {
        /// The file, as an absolute path.
        file: PathBuf,
    },
    /// Create the store from an export. The store must not exist; an invalid export creates none.
    Import {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The export.
        file: PathBuf,
    },
    /// Check the chain of the audit in a backup, and its signed checkpoints.
    VerifyAudit {
        /// The backup.
        file: PathBuf,
        /// Public key that must have signed the last checkpoints, hexadecimal; may be repeated.
        #[arg(long, value_name = "HEX")]
        key: Vec<String>,
        /// File with a checkpoint that was saved before: the chain must have its entry.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
    },
    /// Print the document of the API (OpenAPI 3.1).
    Openapi {
        /// Print the changes since this earlier document that break its clients instead, and fail
        /// if there are any.
        #[arg(long, value_name = "FILE")]
        compare: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    cli::main("causeway-director", || {
        run(cli::parse(|cli: &Cli| cli.command.asks()))
    })
}

impl Command {
    /// Whether it asks the running director.
    const fn asks(&self) -> bool {
        match self {
            Self::Status { .. } | Self::Reload | Self::Backup { .. } | Self::Export { .. } => true,
            Self::Init { .. }
            | Self::Recover { .. }
            | Self::ReplaceAuditKey { .. }
            | Self::Run(_)
            | Self::Check { .. }
            | Self::RepairClaims { .. }
            | Self::Restore { .. }
            | Self::Import { .. }
            | Self::VerifyAudit { .. }
            | Self::Openapi { .. } => false,
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Init {
            config,
            user,
            password_stdin,
        } => {
            let config = Config::load(&config)?;
            service::config::name(&user).map_err(anyhow::Error::msg)?;
            let password = match password_stdin {
                false if stdin().is_terminal() => asked()?,
                false => None,
                true => Some(line()?),
            };
            // A key that cannot be used is found before there is a store.
            audit_key::prepare(&config.audit_key, &config.store, &Kernel)?;
            let made = init(&config.store, &user, password.as_deref(), &Kernel);
            service::outln!("{}", block_on(made)??);
            audit_key::create(&config.audit_key, &Kernel)?;
        }
        Command::Recover {
            config,
            user,
            password_stdin,
        } => {
            let store = Config::load(&config)?.store;
            service::config::name(&user).map_err(anyhow::Error::msg)?;
            let password = password_stdin.then(line).transpose()?;
            let made = offline::recover(&store, &user, password.as_deref(), &Kernel);
            service::outln!("{}", block_on(made)??);
        }
        Command::ReplaceAuditKey { config, lost } => {
            let Config {
                store, audit_key, ..
            } = Config::load(&config)?;
            let replaced = offline::replace_audit_key(&store, &audit_key, lost, &Kernel);
            service::outln!("{}", block_on(replaced)??);
        }
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file, store } => {
            let config = Config::load(&file)?;
            service::outln!("{}: good", file.display());
            if store {
                let path = config.store;
                let entries = block_on(transfer::check_backup(&path))??;
                print_checked(&path, entries);
            }
        }
        Command::RepairClaims { config } => {
            let store = Config::load(&config)?.store;
            let count = block_on(offline::repair_claims(&store, &Kernel))??;
            service::outln!("{}: {count} claims written or deleted", store.display());
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
            let store = Config::load(&config)?.store;
            let entries = block_on(transfer::restore_backup(&file, &store))??;
            let noted = offline::note_restore(&store, &file, &Kernel);
            block_on(noted)?.context("the store is restored, but its audit has no entry of it")?;
            print_checked(&store, entries);
        }
        Command::VerifyAudit { file, key, since } => {
            let since = since.map(|path| {
                let failed = || format!("cannot read the checkpoint {}", path.display());
                let text = std::fs::read_to_string(&path).with_context(failed)?;
                serde_json::from_str(&text).with_context(failed)
            });
            let trust = Trust {
                keys: key,
                since: since.transpose()?,
            };
            let (number, signed) = verify(&file, &trust)?;
            let signed = signed.unwrap_or_default();
            service::outln!(
                "{}: good: {number} entries, the first {signed} of them signed",
                file.display()
            );
        }
        Command::Openapi { compare: None } => {
            service::outln!("{:#}", api::document());
        }
        Command::Openapi {
            compare: Some(file),
        } => compare(&file)?,
    }
    Ok(())
}

/// Tells that a store is good.
fn print_checked(store: &Path, entries: u64) {
    service::outln!(
        "{}: good: {entries} audit entries, whose chain is whole",
        store.display()
    );
}

/// Prints what breaks clients of an earlier document.
fn compare(file: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot read the document {}", file.display());
    let text = std::fs::read_to_string(file).with_context(failed)?;
    let before = serde_json::from_str(&text).with_context(failed)?;
    let broken = api::breaking_changes(&before, &api::document())
        .with_context(|| format!("{} is no document of the API", file.display()))?;
    for change in &broken {
        service::outln!("{change}");
    }
    if !broken.is_empty() {
        bail!(
            "{} changes break clients of {}: undo them, or make another version of the API",
            broken.len(),
            file.display()
        );
    }
    service::outln!("no change since {} breaks its clients", file.display());
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

/// The first line of standard input.
fn line() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = stdin().lock().read_line(&mut text);
    read.context("cannot read the password")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A password that is typed twice without an echo; `None` for no password.
fn asked() -> anyhow::Result<Option<String>> {
    let prompt = |text| rpassword::prompt_password(text).context("cannot read the password");
    let password = prompt("Password of the administrator (empty for none): ")?;
    if password.is_empty() {
        return Ok(None);
    }
    if prompt("The same again: ")? != password {
        bail!("the passwords differ");
    }
    Ok(Some(password))
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

fn verify(file: &Path, trust: &Trust) -> anyhow::Result<(u64, Option<u64>)> {
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
    Ok(audit::verify(entries, checkpoints, &head, trust)?)
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
