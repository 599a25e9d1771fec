//! Runs every test, tier by tier.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::Context as _;

use crate::{
    Tier,
    bpf::Asked,
    fuzz,
    libtest::{Counts, total},
    run::{self, cargo, with_paths},
    setup,
    step::step,
    target,
};

/// One run of cargo test.
struct Part {
    tier: Tier,
    name: &'static str,
    cargo: &'static [&'static str],
    /// For the test programs themselves.
    args: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
        tier: Tier::Unit,
        name: "unit and property tests",
        cargo: &[
            "--lib",
            "--bins",
            "--package",
            "appliance-common",
            "--package",
            "appliance-user",
            "--package",
            "causeway-gateway",
            "--package",
            "failover",
            "--package",
            "gateway-client",
            "--package",
            "gateway-common",
            "--package",
            "lab",
            "--package",
            "service",
            "--package",
            "xtask",
            "--features",
            "appliance-common/user",
        ],
        args: &[],
    },
    Part {
        tier: Tier::Unit,
        name: "tunnel: unit, interoperation, model",
        cargo: &["--release", "--package", "tunnel"],
        args: &[],
    },
    Part {
        tier: Tier::Unit,
        name: "gateway on loopback",
        cargo: &["--release", "--package", "causeway-gateway", "--test", "*"],
        args: &[],
    },
    Part {
        tier: Tier::Packets,
        name: "packet fixtures",
        cargo: &[
            "--release",
            "--package",
            "causeway-tests",
            "--lib",
            "--test",
            "[a-km-vx-z]*",
            "--test",
            "workers",
        ],
        args: &["--nocapture", "--test-threads=1"],
    },
    Part {
        tier: Tier::Lab,
        name: "sites in namespaces: parts",
        cargo: &[
            "--release",
            "--package",
            "lab",
            "--package",
            "appliance-user",
            "--test",
            "*",
        ],
        args: &["--nocapture", "--test-threads=1"],
    },
    Part {
        tier: Tier::Lab,
        name: "sites in namespaces: failover",
        cargo: &["--release", "--package", "causeway-tests", "--test", "lab*"],
        args: &["--nocapture", "--test-threads=1"],
    },
    Part {
        tier: Tier::Lab,
        name: "tunnel against other WireGuards",
        cargo: &[
            "--release",
            "--package",
            "causeway-tests",
            "--test",
            "wireguard*",
        ],
        args: &["--nocapture", "--test-threads=1"],
    },
];

/// What is no run of cargo test: fuzz targets compile.
const FUZZ: &str = "fuzz targets compile";

/// Runs the tiers (all when none are named); fails when any test does.
pub fn test(
    asked: Asked,
    tiers: &[Tier],
    filter: Option<&str>,
    require_privileged: bool,
) -> anyhow::Result<ExitCode> {
    let wanted = |tier: Tier| tiers.is_empty() || tiers.contains(&tier);
    let begun = Instant::now();
    if wanted(Tier::Packets) || wanted(Tier::Lab) {
        run::prepare(asked, &["appliance-user", "causeway-gateway", "lab"])?;
        clean_up()?;
    }
    if wanted(Tier::Lab)
        && setup::is_root()
        && let Err(error) = setup::peers()
    {
        // No reason to test nothing: the tests that need it say so.
        errln!("xtask: {error:#}; the tests against it are skipped");
    }
    let mut rows = Vec::new();
    let mut sum = Counts::default();
    let mut broken = false;
    for part in PARTS.iter().filter(|p| wanted(p.tier)) {
        let begun = Instant::now();
        let (counts, ok) = step(part.name, || one(part, filter, require_privileged))?;
        broken |= !ok;
        sum += counts;
        rows.push((part.name, counts, ok, begun.elapsed().as_secs_f64()));
    }
    if wanted(Tier::Unit) {
        let begun = Instant::now();
        let (counts, ok) = step(FUZZ, || fuzz::check(filter))?;
        broken |= !ok;
        sum += counts;
        rows.push((FUZZ, counts, ok, begun.elapsed().as_secs_f64()));
    }
    if wanted(Tier::Packets) || wanted(Tier::Lab) {
        clean_up()?;
    }
    outln!();
    for (name, counts, ok, seconds) in &rows {
        outln!(
            "{:<32} {:>4} passed {:>3} failed {:>3} skipped  {seconds:>6.1} s{}",
            name,
            counts.passed,
            counts.failed,
            counts.skipped,
            if *ok { "" } else { "  FAILED" }
        );
    }
    outln!("in {:.0} s", begun.elapsed().as_secs_f64());
    if broken && sum.failed == 0 {
        // A test program that did not build, or died before it could count.
        sum.failed = 1;
    }
    let empty = sum.passed + sum.failed + sum.skipped == 0;
    if empty {
        errln!("xtask: no test matched");
    }
    outln!(
        "{} passed, {} failed, {} skipped",
        sum.passed,
        sum.failed,
        sum.skipped
    );
    Ok(if broken || empty {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn one(
    part: &Part,
    filter: Option<&str>,
    require_privileged: bool,
) -> anyhow::Result<(Counts, bool)> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    command.args(part.cargo);
    command.arg("--").args(part.args);
    command.args(filter);
    with_paths(&mut command);
    if require_privileged {
        command.env("CAUSEWAY_REQUIRE_PRIVILEGED", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line =
                String::from_utf8_lossy(&line.context("read the tests' output")?).into_owned();
            outln!("{line}");
            lines.push(line);
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    Ok((total(lines.iter().map(String::as_str)), status.success()))
}

/// Takes down labs that an earlier run left behind.
fn clean_up() -> anyhow::Result<()> {
    if !setup::is_root() {
        return Ok(());
    }
    step("no lab stands", || {
        crate::step::run(
            Command::new(target().join("release/causeway-lab")).args(["down", "--all"]),
        )
    })
}
