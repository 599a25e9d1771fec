//! Benchmarks still work: `--smoke` runs each kind of case once. No figure is looked at, so that
//! these tests run beside others; `encrypted` alone is timed, as busy workers starve beside them.

use std::{process::Command, time::Duration};

use causeway_tests::{lab_lock::LabLock, site, skip};
use lab::Paths;

/// Longest time of a smoke run; each takes a tenth of it. The longest wait is for another process
/// that runs the same benchmark.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Runs a program beside the daemons, and requires that each of its cases worked.
pub fn smoke(program: &str, args: &[&str]) {
    if let Some(why) = site::missing() {
        skip(&why);
        return;
    }
    let path = Paths::find().appliance.with_file_name(program);
    if !path.exists() {
        skip(&format!(
            "{} is missing; `cargo xtask test` builds it",
            path.display()
        ));
        return;
    }
    let _lock = LabLock::acquire();
    let mut command = Command::new(path);
    command.args(args).arg("--smoke");
    let output = lab::run(&mut command, TIMEOUT).expect("the benchmark ends");
    println!("{}{}", output.stdout, output.stderr);
    assert!(
        output.ok(),
        "{program} {args:?} ended with {}",
        output.status
    );
    assert!(output.stdout.contains("the figures mean nothing"));
}

#[test]
fn xdp_cost() {
    smoke("causeway-bench", &["xdp-cost"]);
}

#[test]
fn plain() {
    smoke("causeway-bench", &["plain"]);
}

#[test]
fn nat() {
    smoke("causeway-bench", &["nat"]);
}

#[test]
fn relay() {
    smoke("causeway-bench", &["relay"]);
}

#[test]
fn switch() {
    smoke("causeway-bench", &["switch"]);
}

#[test]
fn director() {
    smoke("director-bench", &[]);
}
