//! `causeway-bench`: how fast, beside what.
//!
//! For: figures that somebody else can repeat: every ratio is of runs made side by side, medians are
//! printed with minimum and maximum, the machine and kernel are named. Never: a test; an aim that is not
//! met is reported and is no failure.
//!
//! ```text
//!   xdp-cost   ns a packet of each program, by BPF_PROG_TEST_RUN, beside a MAC swap
//!   plain      packets a second and TCP through a pair of appliances, beside kernel VXLAN and a bridge
//!   nat        packets and new connections a second through translation, beside nftables
//!   switch     the store of a switch of modes, and packets lost
//!   encrypted  TCP, small packets, round trips and CPU time, beside other encrypted tunnels
//!   relay      datagrams and connections through the gateway, beside other relays
//! ```

mod around;
mod encrypted;
mod nat;
mod plain;
mod relay;
mod report;
mod switch;
mod xdp_cost;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

/// How fast, beside what.
#[derive(Parser)]
struct Cli {
    /// Which benchmark.
    name: Name,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the ratios.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Runs of each case; the median counts.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// The CPU to stay on (`forward` only).
    #[arg(long, hide = true, default_value_t = 0)]
    cpu: usize,
    /// Only contenders (`encrypted`, `relay`) or cases (`nat`) whose name has this in it, or one of these, between commas; of
    /// `relay` also only `datagrams`, or only `connections`.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Nanoseconds a packet.
    XdpCost,
    /// Through a pair of appliances, unencrypted.
    Plain,
    /// Through a pair of machines that encrypt.
    Encrypted,
    /// Translation, beside nftables.
    Nat,
    /// Through the gateway.
    Relay,
    /// A switch of modes under traffic.
    Switch,
    /// A part of `encrypted`: forwards between two links until it is ended.
    #[value(hide = true)]
    Forward,
}

fn main() -> ExitCode {
    let done = run(&Cli::parse()).and_then(|()| Ok(service::stdout::finish()?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            service::errln!("causeway-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    anyhow::ensure!(cli.runs >= 1, "--runs is at least 1");
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "needs root: BPF programs and network namespaces"
    );
    let report = match cli.name {
        Name::XdpCost => xdp_cost::run(cli.runs)?,
        Name::Plain => plain::run(cli.runs)?,
        Name::Encrypted => encrypted::run(cli.runs, cli.only.as_deref())?,
        Name::Nat => nat::run(cli.runs, cli.only.as_deref())?,
        Name::Relay => relay::run(cli.runs, cli.only.as_deref())?,
        Name::Switch => switch::run(cli.runs)?,
        Name::Forward => return encrypted::causeway::forward(cli.cpu),
    };
    report.print();
    if let Some(path) = &cli.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &cli.svg {
        std::fs::write(path, report.svg())?;
    }
    Ok(())
}
