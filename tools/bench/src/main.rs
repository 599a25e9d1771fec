//! `causeway-bench`: the speed of Causeway, as ratios against contenders.
//!
//! For: figures that anyone can repeat. Contenders take turns within one run; the report has
//! median, minimum and maximum, and names the machine and the kernel. Never: a test of speed. A
//! missed aim is reported and is not a failure. `--smoke` shows that each case still works; the lab
//! tests run it.
//!
//! ```text
//!   xdp-cost   ns per packet of each program, by BPF_PROG_TEST_RUN, against a MAC swap
//!   plain      packets per second and TCP through two appliances, against kernel VXLAN and a bridge
//!   nat        packets and new connections per second through NAT, against nftables
//!   switch     time of a mode switch, and lost packets
//!   encrypted  TCP, small packets, round trips and CPU time, against other encrypted tunnels
//!   relay      datagrams and connections through the gateway, against other relays
//!
//!   rig/       namespaces, commands, processes and loads that the benchmarks share
//!   report/    rows, ratios and aims
//! ```

mod encrypted;
mod nat;
mod plain;
mod relay;
mod report;
mod rig;
mod switch;
mod xdp_cost;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

use crate::rig::{extent::Extent, lock::BenchLock};

/// Measures the speed of Causeway, as ratios against contenders in the same run.
#[derive(Parser)]
struct Cli {
    /// The benchmark.
    name: Name,
    /// Write the report as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the ratios as SVG into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Number of runs of each case. The median is compared.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Run each kind of case once with a short load, and fail if one does not work. The figures
    /// mean nothing. Other projects' programs take part where they are installed.
    #[arg(long, conflicts_with_all = ["runs", "json", "svg"])]
    smoke: bool,
    /// The CPU to run on (`forward` only).
    #[arg(long, hide = true, default_value_t = 0)]
    cpu: usize,
    /// Only contenders (`encrypted`, `relay`) or cases (`nat`) whose name contains one of these
    /// comma-separated words. `relay` also takes `datagrams` or `connections`.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Nanoseconds per packet of each XDP program.
    XdpCost,
    /// Two appliances with a plain tunnel.
    Plain,
    /// Two appliances with an encrypted tunnel.
    Encrypted,
    /// NAT, against nftables.
    Nat,
    /// The gateway.
    Relay,
    /// A mode switch under traffic.
    Switch,
    /// Part of `encrypted`: forwards between two links until it is killed.
    #[value(hide = true)]
    Forward,
}

impl Name {
    /// As on the command line.
    fn text(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
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
    anyhow::ensure!(cli.runs >= 1, "--runs must be at least 1");
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "run it as root: it loads BPF programs and makes network namespaces"
    );
    let _lock = match cli.name {
        // Part of a run that has the lock.
        Name::Forward => None,
        name => Some(BenchLock::acquire(&name.text())?),
    };
    let (runs, extent) = match cli.smoke {
        true => (1, Extent::Smoke),
        false => (cli.runs, Extent::Full),
    };
    let only = cli.only.as_deref();
    let report = match cli.name {
        Name::XdpCost => xdp_cost::run(runs, extent)?,
        Name::Plain => plain::run(runs, extent)?,
        Name::Encrypted => encrypted::run(runs, only, extent)?,
        Name::Nat => nat::run(runs, only, extent)?,
        Name::Relay => relay::run(runs, only, extent)?,
        Name::Switch => switch::run(runs, extent)?,
        Name::Forward => return encrypted::causeway::forward(cli.cpu),
    };
    if cli.smoke {
        report.print_smoke();
        return report.check();
    }
    report.print();
    if let Some(path) = &cli.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &cli.svg {
        std::fs::write(path, report.svg())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_has_a_smoke_test() {
        let folder = test_support::repository::root().join("tests/tests/lab");
        let files = ["benchmarks.rs", "timed/benchmarks.rs"];
        let tests: String = files
            .iter()
            .map(|file| std::fs::read_to_string(folder.join(file)).unwrap())
            .collect();
        let names = Name::value_variants().iter().map(|name| name.text());
        for name in names.filter(|name| *name != Name::Forward.text()) {
            let call = format!("smoke(\"causeway-bench\", &[\"{name}\"]);");
            assert!(tests.contains(&call), "no test has `{call}`");
        }
    }

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("causeway-bench", &[]), ("cargo xtask bench", &[])],
            table: None,
            except: &["cargo xtask bench director", "cargo xtask bench {"],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
