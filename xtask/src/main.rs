//! `cargo xtask`: the commands for working with this workspace.
//!
//! For: installing missing tools, building in the right order, running. Never: a feature of the
//! product; the programs that it runs are other crates. It depends on none of them, so that it
//! builds in seconds.
//!
//! ```text
//!   setup ─▶ build-ebpf ─▶ build programs ─▶ demo | test | lab | bench
//!     │                                            fuzz (by itself)
//!     └─ doctor lists missing requirements and how to install them
//! ```

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when the reader has closed the pipe: use outln! and errln!"
)]

#[macro_use]
#[path = "../../libs/service/src/stdout.rs"]
mod stdout;

mod bpf;
mod build_ebpf;
mod cargo;
mod contenders;
mod doctor;
mod fuzz;
mod qemu;
mod run;
mod schemathesis;
mod setup;
mod step;
mod summary;
mod targets;
mod test;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use targets::Tier;

/// Set up, build, test, demonstrate and measure this workspace.
#[derive(Parser)]
struct Cli {
    /// How to build the BPF programs.
    #[arg(long, global = true, value_enum, default_value_t = bpf::ToolchainChoice::Auto)]
    bpf_toolchain: bpf::ToolchainChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install missing packages and tools. Does nothing if all are there.
    Setup,
    /// List requirements: which are met, which are missing, and how to install them.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Build the BPF programs to target/bpf.
    BuildEbpf,
    /// Raise sites in network namespaces, fail over and back, check and measure each step.
    Demo {
        /// Passed on to causeway-lab: --scenario partial|full|all, --json FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build everything and run every test; print the seconds of each and the reason of each skip.
    Test {
        /// Only these tiers. Without it, all but qemu, which --long includes.
        #[arg(long, value_enum)]
        tier: Vec<Tier>,
        /// Only tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
        /// A test that lacks the privilege to run fails instead of being skipped.
        #[arg(long)]
        require_privileged: bool,
        /// Run the full series (10 million packets, 1 GB relays, five minutes unplugged, every
        /// round of a timed test) in place of the bounded ones, and unit tests once more with debug
        /// assertions.
        #[arg(long)]
        long: bool,
    },
    /// Fuzz the parsers and state machines of tunnel, workers, gateway and appliance; fails on a
    /// finding.
    Fuzz {
        /// Only this target: bind, circuit, control, handshake, hello, keys, message, names,
        /// objects, pipeline, proxy, receiver, segment, state, stored, stream, updates.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 900)]
        seconds: u64,
    },
    /// Test the director's API against its OpenAPI document with schemathesis (installed if
    /// missing), without a token and by each role. Fails on an undocumented status and on a 5xx.
    Schemathesis {
        /// Generated requests for each operation, at most.
        #[arg(long, default_value_t = 20)]
        examples: u32,
        /// Only this role, or `no token`.
        #[arg(long)]
        role: Option<String>,
    },
    /// Raise, explore, disturb and take down sites: up, down, list, exec, capture, fail-over,
    /// fail-back, impair, gateway.
    Lab {
        /// Passed on to causeway-lab.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure, as ratios against other programs in the same run. `encrypted` and `relay` install
    /// them. `director` measures times.
    Bench {
        /// Passed on to causeway-bench, or for `director` to director-bench: NAME, --json FILE,
        /// --smoke.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// The root of the workspace.
fn workspace() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// Cargo's target directory.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let asked = cli.bpf_toolchain;
    let result = match cli.command {
        Command::Setup => setup::setup(asked).map(|()| ExitCode::SUCCESS),
        Command::Doctor { json } => doctor::doctor(asked, json),
        Command::BuildEbpf => setup::toolchain(asked)
            .and_then(build_ebpf::build)
            .map(|()| ExitCode::SUCCESS),
        Command::Demo { args } => run::lab(asked, "demo", &args),
        Command::Lab { args } => match args.split_first() {
            Some((verb, rest)) => run::lab(asked, verb, rest),
            None => run::lab(asked, "--help", &[]),
        },
        Command::Fuzz { target, seconds } => fuzz::fuzz(target.as_deref(), seconds),
        Command::Schemathesis { examples, role } => {
            schemathesis::schemathesis(examples, role.as_deref())
        }
        Command::Bench { args } => run::bench(asked, &args),
        Command::Test {
            tier,
            filter,
            require_privileged,
            long,
        } => test::test(&test::Options {
            bpf: asked,
            tiers: tier,
            filter,
            require_privileged,
            long,
        }),
    };
    let done = result.and_then(|code| {
        stdout::finish().context("write to standard output")?;
        Ok(code)
    });
    done.unwrap_or_else(|error| {
        errln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_of_fuzz_names_every_target() {
        let mut cli = <Cli as clap::CommandFactory>::command();
        let fuzz = cli.find_subcommand_mut("fuzz").unwrap();
        let help = fuzz
            .get_arguments()
            .find(|argument| argument.get_id() == "target")
            .and_then(|argument| argument.get_help())
            .unwrap()
            .to_string();
        let (_, names) = help.split_once(": ").unwrap();
        let names: Vec<_> = names.trim_end_matches('.').split(", ").collect();
        assert_eq!(names, fuzz::targets().unwrap());
    }

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("cargo xtask", &[])],
            table: None,
            except: &[],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
