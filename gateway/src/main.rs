//! `causeway-gateway`: the daemon, and the commands that talk to it.

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
    control::{self, Brief, Request, Status, render},
    daemon,
};
use gateway_client::wire::Key;
use service::{
    cli::{self, RunArgs},
    socket::{AskError, Client, Page},
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
        /// Leave tenants and circuits out.
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
        /// File with the key of the end, as `causeway-appliance keygen --preshared` writes it.
        file: PathBuf,
    },
    /// Read the configuration file again. If it has a problem, the running configuration stays in
    /// force.
    Reload,
    /// Accept no new connections and binds, and tell the ends of circuits to use another gateway.
    /// The gateway goes on running: `undrain` ends the drain, `systemctl stop` the gateway.
    Drain,
    /// Accept connections and binds again.
    Undrain,
}

fn main() -> ExitCode {
    cli::main("causeway-gateway", || run(Cli::parse()))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let client = Client::new(&control::SOCKET, cli.socket);
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
        Command::Status {
            json,
            summary,
            tenant,
        } => {
            let mut status: Status = client.ask(&Request::Status)?;
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
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let key = Key::from_base64(text.trim()).with_context(|| {
                format!(
                    "{}: not 32 bytes in base64: make it with `causeway-appliance keygen \
                     --preshared FILE`",
                    file.display()
                )
            })?;
            service::outln!("{}", key.for_gateway(&gateway).to_base64());
        }
        Command::Reload => {
            let _: Brief = client.ask(&Request::Reload)?;
            service::outln!("reloaded");
        }
        Command::Drain => {
            let brief: Brief = client.ask(&Request::Drain)?;
            service::outln!(
                "{}: draining; {} connections left",
                brief.name,
                brief.connections
            );
        }
        Command::Undrain => {
            let brief: Brief = client.ask(&Request::Undrain)?;
            service::outln!("{}: accepts connections", brief.name);
        }
    }
    Ok(())
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
