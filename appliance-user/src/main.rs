//! `causeway-appliance`: the daemon, and what an operator says to it.

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use appliance_user::{
    config::Config,
    control::{CounterStatus, Request, Status, client, render},
    daemon, datapath,
    secure::keys::{self, OsRandom},
};
use clap::{Parser, Subcommand};
use tunnel::{PresharedKey, SecretKey};

/// The data plane of Causeway: stretches a tenant's networks to the replicas of its machines.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Control socket of the appliance to talk to.
    #[arg(
        long,
        global = true,
        env = "CAUSEWAY_SOCKET",
        default_value = "/run/causeway/appliance.sock"
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the appliance.
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
    /// Show what the appliance is doing.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Show what was counted, drops with their reasons.
    Counters {
        /// For programs; zeroes included.
        #[arg(long)]
        json: bool,
    },
    /// Show or switch a tenant's mode.
    Mode {
        /// The tenant; may be left out where there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// `idle` or `partial`; left out: only show.
        mode: Option<String>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Failed-over addresses.
    Endpoint {
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// Make a key of this appliance and print its public half.
    Keygen {
        /// Where to write the private key; never overwritten.
        #[arg(long)]
        private_key: PathBuf,
        /// Make a preshared key instead, for both ends; nothing is printed.
        #[arg(long)]
        preshared: bool,
    },
    /// Print the public half of a private key.
    Pubkey {
        /// The private key's file.
        #[arg(long)]
        private_key: PathBuf,
    },
    /// Read the configuration file again; a bad one leaves the running one in force.
    Reload,
    /// Take the data path down: remove its programs and maps. The appliance must not be running.
    Detach {
        /// Configuration file, for where the pins are.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum EndpointCommand {
    /// Addresses fail over: their machines now run as replicas. All or none.
    Add {
        /// The network.
        #[arg(long)]
        network: String,
        /// The addresses.
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Addresses go back: their machines run at the production site again. All or none.
    Remove {
        /// The network.
        #[arg(long)]
        network: String,
        /// The addresses.
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Show them.
    List {
        /// Of one network only.
        #[arg(long)]
        network: Option<String>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway-appliance: {}", said(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each said once: many of ours name their cause themselves.
fn said(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let ask = |request: &Request| client::ask(&cli.socket, request);
    match cli.command {
        Command::Run { config } => {
            tracing_subscriber::fmt()
                .with_env_filter(
                    tracing_subscriber::EnvFilter::try_from_env("CAUSEWAY_LOG")
                        .unwrap_or_else(|_| "info".into()),
                )
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .init();
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?
                .block_on(daemon::run(&config))?;
        }
        Command::Check { file } => {
            let config = Config::load(&file)?;
            daemon::check_keys(&config)?;
            config.check_ports()?;
            println!(
                "{}: good: {} side, {} tenants, {} peers, {} networks",
                file.display(),
                config.role.name(),
                config.tenants.len(),
                config.peers.len(),
                config.networks.len()
            );
        }
        Command::Status { json } => {
            let value = ask(&Request::Status)?;
            if json {
                println!("{value}");
            } else {
                let status: Status = serde_json::from_value(value).context("read the status")?;
                print!("{}", render::status(&status));
            }
        }
        Command::Counters { json } => {
            let value = ask(&Request::Counters)?;
            if json {
                println!("{value}");
            } else {
                let counters: Vec<CounterStatus> =
                    serde_json::from_value(value).context("read the counters")?;
                print!("{}", render::counters(&counters));
            }
        }
        Command::Mode { tenant, mode, json } => {
            let value = ask(&Request::Mode { tenant, mode })?;
            if json {
                println!("{value}");
            } else {
                for tenant in value.as_array().into_iter().flatten() {
                    println!(
                        "{}: {}",
                        tenant["name"].as_str().unwrap_or_default(),
                        tenant["mode"].as_str().unwrap_or_default()
                    );
                }
            }
        }
        Command::Keygen {
            private_key,
            preshared,
        } => {
            if preshared {
                let key = PresharedKey::generate(&mut OsRandom);
                keys::write(&private_key, &key.expose_base64())?;
            } else {
                let key = SecretKey::generate(&mut OsRandom);
                keys::write(&private_key, &key.expose_base64())?;
                println!("{}", key.public());
            }
        }
        Command::Pubkey { private_key } => println!("{}", keys::private(&private_key)?.public()),
        Command::Endpoint { command } => endpoint(&ask, command)?,
        Command::Reload => {
            ask(&Request::Reload)?;
            println!("reloaded");
        }
        Command::Detach { config } => {
            let config = Config::load(&config)?;
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.control_socket).is_err(),
                "the appliance is running (it answers at {}); stop it first",
                config.control_socket.display()
            );
            let removed = datapath::detach(&config.pin_dir)?;
            println!("removed {removed} pins; nothing is forwarded any more");
        }
    }
    Ok(())
}

fn endpoint(
    ask: &dyn Fn(&Request) -> Result<serde_json::Value, client::Error>,
    command: EndpointCommand,
) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Add { network, addresses } => {
            let count = addresses.len();
            ask(&Request::EndpointAdd {
                network: network.clone(),
                addresses,
            })?;
            println!("{network}: {count} failed over");
        }
        EndpointCommand::Remove { network, addresses } => {
            let count = addresses.len();
            ask(&Request::EndpointRemove {
                network: network.clone(),
                addresses,
            })?;
            println!("{network}: {count} back in production");
        }
        EndpointCommand::List { network, json } => {
            let value = ask(&Request::EndpointList { network })?;
            if json {
                println!("{value}");
            } else {
                for (network, addresses) in value.as_object().into_iter().flatten() {
                    for address in addresses.as_array().into_iter().flatten() {
                        println!("{network}  {}", address.as_str().unwrap_or_default());
                    }
                }
            }
        }
    }
    Ok(())
}
