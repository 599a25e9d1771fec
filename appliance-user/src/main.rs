//! `causeway-appliance`: the daemon, and what an operator says to it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use appliance_common::wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};
use appliance_user::{
    config::Config,
    control::{self, CounterStatus, Request, Status, render, rules},
    daemon, datapath,
    trace::{PacketFilter, Step},
};
use clap::{Parser, Subcommand};
use failover::{IpPrefix, Rule};
use service::socket;
use tunnel::{PresharedKey, SecretKey};
use tunnel_worker::keys::{self, OsRandom};

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
        /// `idle`, `partial` or `full`; left out: only show.
        mode: Option<String>,
        /// The plan of a full failover; that in force again: what is different in it changes, and is told.
        #[arg(long)]
        plan: Option<PathBuf>,
        /// A full failover may end a partial one.
        #[arg(long)]
        force: bool,
        /// The partial failover becomes the full one, its addresses stay.
        #[arg(long, conflicts_with = "force")]
        promote: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Show or switch maintenance: new failovers are refused, running ones can be undone.
    Maintenance {
        /// `on` or `off`; left out: only show.
        #[arg(value_parser = ["on", "off"])]
        switch: Option<String>,
    },
    /// Public IP rules of a full failover.
    Rule {
        #[command(subcommand)]
        command: RuleCommand,
    },
    /// Connections of full failover, those that move most bytes first.
    Flows {
        /// For programs.
        #[arg(long)]
        json: bool,
        /// Of this tenant only.
        #[arg(long)]
        tenant: Option<String>,
        /// `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
        #[arg(long, value_parser = protocol)]
        protocol: Option<u8>,
        /// With this address only, before or after translation.
        #[arg(long)]
        address: Option<IpAddr>,
        /// With this port only, likewise.
        #[arg(long)]
        port: Option<u16>,
        /// How many at most, up to 10000.
        #[arg(long, default_value_t = 100)]
        top: usize,
    },
    /// Failed-over addresses.
    Endpoint {
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// Follow packets through the programs, with what is decided at each step, until interrupted.
    ///
    /// Programs that do so take the place of the usual ones for that time, without a gap.
    Trace {
        /// Only what comes in on this interface.
        #[arg(long)]
        interface: Option<String>,
        /// Only with this outer VLAN identifier.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4094))]
        vlan: Option<u16>,
        /// Only this IP protocol: tcp, udp, icmp, icmpv6, or a number.
        #[arg(long, value_parser = protocol)]
        protocol: Option<u8>,
        /// Only from or to this address, as it comes in.
        #[arg(long)]
        address: Option<IpAddr>,
        /// Only from or to this port of TCP or UDP, as it comes in.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// End after so many packets.
        #[arg(long)]
        count: Option<usize>,
        /// End after so many seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// For programs: a JSON object a line.
        #[arg(long)]
        json: bool,
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

#[derive(Subcommand)]
enum RuleCommand {
    /// One rule, or those of a file, all or none.
    Add {
        /// The tenant; may be left out where there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// Its name.
        #[arg(required_unless_present = "file", requires = "line")]
        name: Option<String>,
        /// `203.0.113.20:443/tcp -> 10.1.0.10:8443`, or `203.0.113.20 -> 10.1.0.10` for all but port 22.
        line: Option<String>,
        /// A source that may come, address or prefix; left out: everybody.
        #[arg(long)]
        allow: Vec<IpPrefix>,
        /// For people.
        #[arg(long)]
        description: Option<String>,
        /// A file with a `[[rule]]` for each.
        #[arg(long, conflicts_with_all = ["name", "line", "allow", "description"])]
        file: Option<PathBuf>,
    },
    /// Rules go, all or none.
    Remove {
        /// The tenant; may be left out where there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show them.
    List {
        /// Of one tenant only.
        #[arg(long)]
        tenant: Option<String>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Say what adding a file's rules would be refused for, and change nothing.
    Check {
        /// The tenant; may be left out where there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// A file with a `[[rule]]` for each.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = run(Cli::parse())
        .and_then(|()| service::stdout::finish().context("write to standard output"));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            service::errln!(
                "causeway-appliance: {}",
                service::error_chain(error.as_ref())
            );
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let ask = |request: &Request| socket::ask(&control::SOCKET, &cli.socket, request);
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
            service::outln!(
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
                service::outln!("{value}");
            } else {
                let status: Status = serde_json::from_value(value).context("read the status")?;
                service::stdout::print(render::status(&status));
            }
        }
        Command::Counters { json } => {
            let value = ask(&Request::Counters)?;
            if json {
                service::outln!("{value}");
            } else {
                let counters: Vec<CounterStatus> =
                    serde_json::from_value(value).context("read the counters")?;
                service::stdout::print(render::counters(&counters));
            }
        }
        Command::Mode {
            tenant,
            mode,
            plan,
            force,
            promote,
            json,
        } => {
            let plan = plan.as_deref().map(read).transpose()?;
            let value = ask(&Request::Mode {
                tenant,
                mode,
                plan,
                force,
                promote,
            })?;
            if json {
                service::outln!("{value}");
            } else {
                for tenant in value.as_array().into_iter().flatten() {
                    let plan = tenant["plan"].as_str().map(|plan| format!(" ({plan})"));
                    service::outln!(
                        "{}: {}{}",
                        tenant["name"].as_str().unwrap_or_default(),
                        tenant["mode"].as_str().unwrap_or_default(),
                        plan.unwrap_or_default()
                    );
                    if let Some(changes) = tenant["changes"].as_array() {
                        if changes.is_empty() {
                            service::outln!("  nothing changed: the plan is in force as it is");
                        }
                        for change in changes {
                            service::outln!("  {}", change.as_str().unwrap_or_default());
                        }
                    }
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
                service::outln!("{}", key.public());
            }
        }
        Command::Pubkey { private_key } => {
            service::outln!("{}", keys::private(&private_key)?.public());
        }
        Command::Flows {
            json,
            tenant,
            protocol,
            address,
            port,
            top,
        } => {
            let value = ask(&Request::Flows {
                tenant,
                protocol,
                address,
                port,
                top,
                text: !json,
            })?;
            match value.as_str() {
                Some(text) if !json => service::stdout::print(text),
                _ => service::outln!("{value}"),
            };
        }
        Command::Maintenance { switch } => {
            let on = switch.map(|switch| switch == "on");
            let value = ask(&Request::Maintenance { on })?;
            let on = value["maintenance"].as_bool().unwrap_or_default();
            service::outln!("maintenance: {}", if on { "on" } else { "off" });
        }
        Command::Rule { command } => rule(&ask, command)?,
        Command::Endpoint { command } => endpoint(&ask, command)?,
        Command::Trace {
            interface,
            vlan,
            protocol,
            address,
            port,
            count,
            seconds,
            json,
        } => {
            let wanted = PacketFilter {
                interface,
                vlan,
                protocol,
                address,
                port,
            };
            trace(&ask, wanted, count, seconds, json)?;
        }
        Command::Reload => {
            ask(&Request::Reload)?;
            service::outln!("reloaded");
        }
        Command::Detach { config } => {
            let config = Config::load(&config)?;
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.control_socket).is_err(),
                "the appliance is running (it answers at {}); stop it first",
                config.control_socket.display()
            );
            let removed = datapath::detach(&config.pin_dir)?;
            service::outln!("removed {removed} pins; nothing is forwarded any more");
        }
    }
    Ok(())
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(IPPROTO_TCP),
        "udp" => Ok(IPPROTO_UDP),
        "icmp" => Ok(IPPROTO_ICMP),
        "icmpv6" => Ok(IPPROTO_ICMPV6),
        _ => text
            .parse()
            .map_err(|_| "write tcp, udp, icmp, icmpv6, or a number of 0 to 255".to_owned()),
    }
}

/// Longest file that is read for the appliance, bytes: a plan of ten thousand rules has less than two million.
const LONGEST: u64 = 6 << 20;

fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;

    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    let length = file
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    anyhow::ensure!(
        length as u64 <= LONGEST,
        "{} is too large: a plan or a file of rules has at most {LONGEST} bytes",
        path.display()
    );
    Ok(text)
}

fn rule(
    ask: &dyn Fn(&Request) -> Result<serde_json::Value, socket::AskError>,
    command: RuleCommand,
) -> anyhow::Result<()> {
    match command {
        RuleCommand::Add {
            tenant,
            name,
            line,
            allow,
            description,
            file,
        } => {
            let rules = match (file, name, line) {
                (Some(file), _, _) => {
                    let (rules, problems) = rules::read(&read(&file)?);
                    anyhow::ensure!(
                        problems.is_empty(),
                        "{}: nothing was changed:\n{}",
                        file.display(),
                        problems.join("\n")
                    );
                    rules
                }
                (None, Some(name), Some(line)) => vec![
                    Rule::from_line(&name, &line)?
                        .with_allow(allow)?
                        .with_description(&description.unwrap_or_default())?,
                ],
                (None, _, _) => anyhow::bail!("give a name and a line, or --file FILE"),
            };
            let count = rules.len();
            ask(&Request::RuleAdd { tenant, rules })?;
            service::outln!("{count} added");
        }
        RuleCommand::Remove { tenant, names } => {
            let count = names.len();
            ask(&Request::RuleRemove { tenant, names })?;
            service::outln!("{count} removed");
        }
        RuleCommand::List { tenant, json } => {
            let value = ask(&Request::RuleList { tenant })?;
            if json {
                service::outln!("{value}");
            } else {
                service::stdout::print(render::rules(&value));
            }
        }
        RuleCommand::Check { tenant, file } => {
            let (rules, mut problems) = rules::read(&read(&file)?);
            let count = rules.len();
            let value = ask(&Request::RuleCheck { tenant, rules })?;
            let refused = value["refused"].as_array().into_iter().flatten();
            problems.extend(refused.filter_map(|p| p.as_str().map(ToOwned::to_owned)));
            anyhow::ensure!(
                problems.is_empty(),
                "{} would be refused:\n{}",
                file.display(),
                problems.join("\n")
            );
            service::outln!("{}: good: {count} rules", file.display());
        }
    }
    Ok(())
}

fn endpoint(
    ask: &dyn Fn(&Request) -> Result<serde_json::Value, socket::AskError>,
    command: EndpointCommand,
) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Add { network, addresses } => {
            let count = addresses.len();
            ask(&Request::EndpointAdd {
                network: network.clone(),
                addresses,
            })?;
            service::outln!("{network}: {count} failed over");
        }
        EndpointCommand::Remove { network, addresses } => {
            let count = addresses.len();
            ask(&Request::EndpointRemove {
                network: network.clone(),
                addresses,
            })?;
            service::outln!("{network}: {count} back in production");
        }
        EndpointCommand::List { network, json } => {
            let value = ask(&Request::EndpointList { network })?;
            if json {
                service::outln!("{value}");
            } else {
                for (network, addresses) in value.as_object().into_iter().flatten() {
                    for address in addresses.as_array().into_iter().flatten() {
                        service::outln!("{network}  {}", address.as_str().unwrap_or_default());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Set by the interrupt of [`trace`].
static STOPPED: AtomicBool = AtomicBool::new(false);

fn trace(
    ask: &dyn Fn(&Request) -> Result<serde_json::Value, socket::AskError>,
    wanted: PacketFilter,
    count: Option<usize>,
    seconds: Option<u64>,
    json: bool,
) -> anyhow::Result<()> {
    extern "C" fn stop(_signal: i32) {
        STOPPED.store(true, Ordering::SeqCst);
    }
    use nix::sys::signal::{SigHandler, Signal, signal};

    for end in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { signal(end, SigHandler::Handler(stop)) }.context("listen for the interrupt")?;
    }
    ask(&Request::TraceStart(wanted))?;
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut packets = 0;
    let followed = (|| {
        while !STOPPED.load(Ordering::SeqCst) && until.is_none_or(|until| Instant::now() < until) {
            let steps: Vec<Step> =
                serde_json::from_value(ask(&Request::TraceNext)?).context("read the steps")?;
            let idle = steps.is_empty();
            for step in steps {
                let taken = if json {
                    service::outln!("{}", serde_json::to_string(&step)?)
                } else {
                    service::outln!("{}", step.render())
                };
                if !taken {
                    return Ok(());
                }
                packets += usize::from(step.step == "decided");
                if count.is_some_and(|count| packets >= count) {
                    return Ok(());
                }
            }
            if idle {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        anyhow::Ok(())
    })();
    ask(&Request::TraceStop)?;
    followed
}
