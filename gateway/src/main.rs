//! `causeway-gateway`: the daemon, and the commands that talk to it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use gateway::{
    config::Config,
    control::{self, Brief, Request, Status, UpdateReply, render},
    daemon::{self, StoredCheck},
};
use gateway_client::wire::Key;
use gateway_model::{DesiredPage, Objects, Snapshot, Update, Withdrawal};
use service::{
    cli::{self, RunArgs},
    socket::{AskError, Client, Page},
    support_bundle::{self, Bundle},
};
use zeroize::Zeroizing;

/// The program, and its unit.
const PROGRAM: &str = "causeway-gateway";
/// Configuration file of the unit.
const CONFIG: &str = "/etc/causeway/gateway.toml";

/// The cloud gateway of Causeway: one address and port for the control connections and tunnels of
/// tenants.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the gateway, for commands that ask it.
    #[arg(
        long,
        global = true,
        env = "CAUSEWAY_GATEWAY_SOCKET",
        default_value = "/run/causeway-gateway/gateway.sock"
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Run(RunArgs),
    /// Check a configuration file. Every wrong value is listed; a syntax error, an unknown or
    /// missing key, or a wrong type ends the reading.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Show the state of the gateway: listeners, limits, tenants and circuits.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Omit tenants and circuits.
        #[arg(long, conflicts_with = "tenant")]
        summary: bool,
        /// Show circuits of this tenant only.
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Print the key that a gateway has for an end of a circuit, for `keys` of the gateway's file.
    CircuitKey {
        /// Name of the gateway.
        #[arg(long, value_name = "NAME")]
        gateway: String,
        /// File with the key of the end, as `causeway-appliance preshared-key` writes it.
        file: PathBuf,
    },
    /// Apply a snapshot or delta of the desired state, completely or not at all. The
    /// configuration file must have no tenants, circuits, backends and routes.
    Apply {
        /// File with the snapshot or delta, as JSON.
        file: PathBuf,
    },
    /// Print the desired state in force as a snapshot, which `apply` accepts if it has the keys.
    Desired {
        /// Also print the keys of circuits, which are secrets.
        #[arg(long)]
        keys: bool,
    },
    /// Read the configuration file again. If it has a problem, the running configuration stays in
    /// force.
    Reload,
    /// Accept no new connections and binds, and tell the ends of circuits to use another gateway.
    /// The gateway goes on running: `undrain` ends the drain, `systemctl stop` the gateway.
    Drain,
    /// Accept connections and binds again.
    Undrain,
    /// Write a file for support: status, configuration, journal and what the kernel tells of the
    /// machine, without keys and passwords. It works also while the gateway is down.
    SupportBundle(support_bundle::Args),
}

fn main() -> ExitCode {
    cli::main(PROGRAM, || run(cli::parse(|cli: &Cli| cli.command.asks())))
}

impl Command {
    /// Whether it asks the running gateway.
    const fn asks(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::Apply { .. }
            | Self::Desired { .. }
            | Self::Reload
            | Self::Drain
            | Self::Undrain
            | Self::SupportBundle(_) => true,
            Self::Run(_) | Self::Check { .. } | Self::CircuitKey { .. } => false,
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let client = Client::new(&control::SOCKET, cli.socket);
    match cli.command {
        Command::Run(args) => daemon::run(&args)?,
        Command::Check { file } => {
            let config = Config::load(&file)?;
            let Some(desired) = config.desired else {
                let stored = match daemon::check_stored(&config.local)? {
                    StoredCheck::Fits {
                        revision,
                        counts,
                        cut_off,
                    } => {
                        let cut_off = cut_off.map_or_else(String::new, |why| {
                            format!("; later revisions are lost: {why}")
                        });
                        format!(
                            "revision {revision}, {} tenants, {} backends, {} circuits{cut_off}",
                            counts.tenants, counts.backends, counts.circuits
                        )
                    }
                    StoredCheck::None => "none yet".to_owned(),
                    StoredCheck::Unchecked(why) => format!("not checked: {why}"),
                };
                service::outln!(
                    "{}: good: no desired state, so the last applied one is used: {stored}",
                    file.display()
                );
                return Ok(());
            };
            service::outln!(
                "{}: good: {} tenants, {} backends, {} circuits",
                file.display(),
                desired.tenants.len(),
                desired.backends.len(),
                desired.circuits.len()
            );
        }
        Command::Status {
            json,
            summary,
            tenant,
        } => {
            let mut status: Status = client.ask(&Request::Status {})?;
            if !summary {
                add_lists(&client, &mut status, tenant.as_deref())?;
            }
            if json {
                cli::print_json(&status)?;
            } else {
                service::stdout::print(render::status(&status));
            }
        }
        Command::CircuitKey { gateway, file } => {
            service::config::name(&gateway).map_err(anyhow::Error::msg)?;
            let text = read_secret(&file)?;
            let key = Key::from_base64(text.trim()).with_context(|| {
                format!(
                    "{}: not 32 bytes in base64: make it with `causeway-appliance \
                     preshared-key FILE`",
                    file.display()
                )
            })?;
            service::outln!("{}", key.for_gateway(&gateway).to_base64());
        }
        Command::Apply { file } => {
            let text = read_secret(&file)?;
            let update: Update = serde_json::from_str(&text)
                .with_context(|| format!("{}: neither a snapshot nor a delta", file.display()))?;
            let update = Box::new(update);
            let reply: UpdateReply = client.ask(&Request::Apply { update })?;
            let (put, removed) = (reply.applied.put, reply.applied.removed);
            for (kind, put, removed) in [
                ("tenants", put.tenants, removed.tenants),
                ("backends", put.backends, removed.backends),
                ("routes", put.routes, removed.routes),
                ("circuits", put.circuits, removed.circuits),
            ] {
                if put + removed > 0 {
                    service::outln!("{kind}: {put} added or changed, {removed} removed");
                }
            }
            let stored = if reply.stored {
                "stored"
            } else {
                "not stored: a restart loses it"
            };
            service::outln!("revision {} is in force; {stored}", reply.applied.revision);
        }
        Command::Desired { keys } => cli::print_json(&desired(&client, keys)?)?,
        Command::Reload => {
            let _: Brief = client.ask(&Request::Reload {})?;
            service::outln!("reloaded");
        }
        Command::Drain => {
            let brief: Brief = client.ask(&Request::Drain {})?;
            service::outln!(
                "{}: draining; {} connections left",
                brief.name,
                brief.connections
            );
            if brief.stored == Some(false) {
                service::outln!(
                    "not stored: a restart accepts connections again (gateway.state_dir, see the \
                     log)"
                );
            }
        }
        Command::SupportBundle(args) => support_bundle(&client, args)?,
        Command::Undrain => {
            let brief: Brief = client.ask(&Request::Undrain {})?;
            service::outln!("{}: accepts connections", brief.name);
            if brief.stored == Some(false) {
                service::outln!(
                    "not stored: a restart may drain again (gateway.state_dir, see the log)"
                );
            }
        }
    }
    Ok(())
}

fn support_bundle(client: &Client, args: support_bundle::Args) -> anyhow::Result<()> {
    let mut bundle = Bundle::of_this_machine(PROGRAM);
    let status: Result<Status, _> = client.ask(&Request::Status {});
    let status = status.and_then(|mut status| {
        add_lists(client, &mut status, None)?;
        Ok(status)
    });
    let answers = status.is_ok();
    bundle.json("status.json", status);
    // A gateway that hangs would be waited for once more.
    if answers {
        bundle.json("desired.json", desired(client, false));
    }
    bundle.configuration(args.config.as_deref().unwrap_or(Path::new(CONFIG)));
    bundle.journal(PROGRAM, args.lines);
    bundle.machine(Path::new("/"));
    let written = bundle.write(args.output, SystemTime::now());
    written.context("cannot write the support bundle")?.print();
    Ok(())
}

/// The text of a file that has keys, or may have some.
fn read_secret(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Zeroizing::new(text))
}

/// How often the pages of a desired state are read until all are of one revision.
const ATTEMPTS: u32 = 10;

/// The desired state, of one revision.
///
/// # Errors
/// As those of a request; and when the state changed while it was read, each time.
fn desired(client: &Client, keys: bool) -> anyhow::Result<Update> {
    'again: for _ in 0..ATTEMPTS {
        let mut objects = Objects::default();
        let mut after = None;
        let mut revision = None;
        loop {
            let page: DesiredPage = client.ask(&Request::Desired { after, keys })?;
            let position = (page.source, page.revision);
            if *revision.get_or_insert(position) != position {
                continue 'again;
            }
            objects.tenants.extend(page.objects.tenants);
            objects.backends.extend(page.objects.backends);
            objects.routes.extend(page.objects.routes);
            objects.circuits.extend(page.objects.circuits);
            after = page.next;
            if after.is_none() {
                return Ok(Update::Snapshot(Snapshot {
                    revision: page.revision,
                    withdrawal: Withdrawal::default(),
                    objects,
                }));
            }
        }
    }
    anyhow::bail!("the state changed during each of {ATTEMPTS} attempts to read it: try again")
}

/// Fills in tenants and circuits, page by page.
fn add_lists(client: &Client, status: &mut Status, tenant: Option<&str>) -> Result<(), AskError> {
    status.tenants = Page::collect(|after| client.ask(&Request::Tenants { after }))?;
    status.circuits.list = Page::collect(|after| {
        let tenant = tenant.map(str::to_owned);
        client.ask(&Request::Circuits { after, tenant })
    })?;
    if let Some(name) = tenant {
        status.tenants.retain(|tenant| tenant.name == name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("causeway-gateway", &[])],
            table: Some("docs/gateway.md"),
            except: &[],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
