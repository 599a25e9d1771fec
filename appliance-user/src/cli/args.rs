//! Commands, options and their help.

use std::{net::IpAddr, path::PathBuf};

use appliance_common::wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};
use clap::{Args, Parser, Subcommand};
use failover::IpPrefix;
use service::{cli::RunArgs, support_bundle};

/// Causeway appliance: stretches the networks of tenants to the replicas of their machines.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    /// Control socket of the daemon, for commands that ask it.
    #[arg(
        long,
        global = true,
        env = "CAUSEWAY_SOCKET",
        default_value = "/run/causeway/appliance.sock"
    )]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Run(RunArgs),
    /// Check a configuration file. Every wrong value is listed; a syntax error, an unknown or
    /// missing key, or a wrong type ends the reading.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Show the state of the daemon: readiness, interfaces, tenants, peers, networks, neighbours.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show packet counters, with a counter for each reason to drop a packet.
    Counters {
        /// Print JSON, counters that are zero included.
        #[arg(long)]
        json: bool,
    },
    /// Show or switch the mode of a tenant.
    Mode(ModeArgs),
    /// Show or switch maintenance mode. In maintenance, new failovers are refused, and running ones
    /// can still be undone.
    Maintenance {
        /// `on` or `off`; without it, the present value is shown.
        #[arg(value_parser = ["on", "off"])]
        switch: Option<String>,
    },
    /// Add, remove, list or check public IP rules of a full failover.
    Rule {
        #[command(subcommand)]
        command: RuleCommand,
    },
    /// List connections of full failover, sorted by bytes.
    Flows(FlowArgs),
    /// Add, remove or list failed-over addresses.
    Endpoint {
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// Trace packets through the XDP programs until interrupted, with each step and its verdict.
    ///
    /// Tracing programs replace the normal ones meanwhile; no packet is lost. One client can trace
    /// at a time.
    Trace(TraceArgs),
    /// Create a private key and print its public key.
    Keygen {
        /// File to write the private key to; an existing file is not overwritten.
        #[arg(long)]
        private_key: PathBuf,
        /// As `preshared-key`.
        #[arg(long, hide = true)]
        preshared: bool,
    },
    /// Create a preshared key, for both ends of a tunnel or for an end of a circuit. Nothing is
    /// printed.
    PresharedKey {
        /// File to write the key to; an existing file is not overwritten.
        file: PathBuf,
    },
    /// Print the public key of a private key.
    Pubkey {
        /// File that holds the private key.
        #[arg(long)]
        private_key: PathBuf,
    },
    /// Apply a snapshot or delta of the desired state, completely or not at all. The
    /// configuration file must have no tenants, gateways, peers and networks.
    Apply {
        /// File with the update, JSON.
        file: PathBuf,
    },
    /// Print the desired state in force as a snapshot, which `apply` accepts if it has the keys.
    Desired {
        /// Also print the keys that updates contained, which are secrets.
        #[arg(long)]
        keys: bool,
    },
    /// Reload the configuration file. If it is refused, the running configuration stays in force.
    Reload,
    /// Write a file for support: status, counters, configuration, journal and what the kernel tells
    /// of the machine, without keys and passwords. It works also while the daemon is down.
    SupportBundle(support_bundle::Args),
    /// Remove the XDP programs and maps: forwarding ends. The daemon must not be running.
    Detach {
        /// Configuration file, which names the directory of the pins.
        #[arg(long)]
        config: PathBuf,
    },
}

impl Command {
    /// Whether it asks the running daemon.
    pub const fn asks(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::Counters { .. }
            | Self::Mode(_)
            | Self::Maintenance { .. }
            | Self::Rule { .. }
            | Self::Flows(_)
            | Self::Endpoint { .. }
            | Self::Trace(_)
            | Self::Apply { .. }
            | Self::Desired { .. }
            | Self::Reload
            | Self::SupportBundle(_) => true,
            Self::Run(_)
            | Self::Check { .. }
            | Self::Keygen { .. }
            | Self::PresharedKey { .. }
            | Self::Pubkey { .. }
            | Self::Detach { .. } => false,
        }
    }
}

#[derive(Args)]
pub struct ModeArgs {
    /// Tenant; may be left out if there is only one.
    #[arg(long)]
    pub tenant: Option<String>,
    /// `idle`, `partial` or `full`; without it, the present mode is shown.
    pub mode: Option<String>,
    /// Failover plan file. Reapplying the active plan applies and prints the differences.
    #[arg(long)]
    pub plan: Option<PathBuf>,
    /// End a running partial failover, and begin the full failover.
    #[arg(long)]
    pub force: bool,
    /// Turn the running partial failover into the full failover; its addresses stay failed over.
    #[arg(long, conflicts_with = "force")]
    pub promote: bool,
    /// Take addresses over without asking whether another machine has them.
    #[arg(long)]
    pub take_over: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct FlowArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Only connections of this tenant.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Only this IP protocol: `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<u8>,
    /// Only connections with this address, before or after translation.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Only connections with this port, before or after translation.
    #[arg(long)]
    pub port: Option<u16>,
    /// Number of connections to list, up to 10000.
    #[arg(long, default_value_t = 100)]
    pub top: usize,
}

#[derive(Args)]
pub struct TraceArgs {
    /// Only packets that arrive on this interface.
    #[arg(long)]
    pub interface: Option<String>,
    /// Only packets with this outer VLAN identifier.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// Only this IP protocol: `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<u8>,
    /// Only packets from or to this address, as they arrive.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Only packets from or to this TCP or UDP port, as they arrive.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Stop after this number of packets.
    #[arg(long)]
    pub count: Option<usize>,
    /// Stop after this number of seconds.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Print JSON, an object a line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum EndpointCommand {
    /// Fail addresses over: their machines now run as replicas. All or none.
    Add {
        /// Network of the addresses.
        #[arg(long)]
        network: String,
        /// Addresses to fail over.
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Return addresses to production: their machines run at the production site again. All or
    /// none.
    Remove {
        /// Network of the addresses.
        #[arg(long)]
        network: String,
        /// Addresses to return.
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// List failed-over addresses.
    List {
        /// Only addresses of this network.
        #[arg(long)]
        network: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub enum RuleCommand {
    /// Add one rule, or the rules of a file, all or none.
    Add {
        /// Tenant; may be left out if there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// Name of the rule.
        #[arg(required_unless_present = "file", requires = "line")]
        name: Option<String>,
        /// The rule: `203.0.113.20:443/tcp -> 10.1.0.10:8443` for one port, or
        /// `203.0.113.20 -> 10.1.0.10` for all ports but 22.
        line: Option<String>,
        /// Source address or prefix that may connect; may be repeated. Without it, all may.
        #[arg(long)]
        allow: Vec<IpPrefix>,
        /// Description of the rule.
        #[arg(long)]
        description: Option<String>,
        /// File with a `[[rule]]` for each rule.
        #[arg(long, conflicts_with_all = ["name", "line", "allow", "description"])]
        file: Option<PathBuf>,
        /// Take new public addresses over without asking whether another machine has them.
        #[arg(long)]
        take_over: bool,
    },
    /// Remove rules, all or none.
    Remove {
        /// Tenant; may be left out if there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// Names of the rules.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the rules in force.
    List {
        /// Only rules of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check whether the rules of a file could be added; nothing is changed.
    Check {
        /// Tenant; may be left out if there is only one.
        #[arg(long)]
        tenant: Option<String>,
        /// File with a `[[rule]]` for each rule.
        file: PathBuf,
    },
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(IPPROTO_TCP),
        "udp" => Ok(IPPROTO_UDP),
        "icmp" => Ok(IPPROTO_ICMP),
        "icmpv6" => Ok(IPPROTO_ICMPV6),
        _ => text
            .parse()
            .map_err(|_| "write tcp, udp, icmp, icmpv6, or a number from 0 to 255".to_owned()),
    }
}
