//! The demo: failover and failback, checked and measured on real hosts.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum;
use lab::{Error, Lab, Options, Paths, Topology, interrupt, sites};
use serde::Serialize;

mod full;
mod partial;

const HTTP_BYTES: u64 = 20_000_000;
/// The pace of the series that runs across a switch.
const SEND_INTERVAL: Duration = Duration::from_millis(10);

/// The failover to show.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Partial site failover: one machine, and back.
    Partial,
    /// Full site failover: two whole sites, reached from the internet by public addresses, and
    /// back.
    Full,
    /// Both, one after the other.
    All,
}

/// The report of `--json`. Its keys are stable.
#[derive(Default, Serialize)]
struct Outcome {
    /// `partial`, `full` or `all`. With `all`, names of steps and figures begin with their
    /// scenario.
    scenario: &'static str,
    steps: Vec<Step>,
    measured: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Step {
    name: String,
    ok: bool,
    ms: u64,
    detail: String,
}

impl Outcome {
    /// Runs one step, prints its line, keeps its result. `None`: it failed.
    fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut BTreeMap<String, f64>) -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<Option<T>> {
        let began = Instant::now();
        let result = interrupt::check()
            .map_err(anyhow::Error::from)
            .and_then(|()| work(&mut self.measured));
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = &result
            && matches!(error.downcast_ref::<Error>(), Some(Error::Interrupted))
        {
            anyhow::bail!("interrupted");
        }
        let (ok, value, detail) = match result {
            Ok((value, detail)) => (true, Some(value), detail),
            Err(error) => (false, None, format!("{error:#}")),
        };
        let word = if ok { "ok    " } else { "FAILED" };
        service::outln!("  {word} {ms:>6} ms  {name:<44} {detail}");
        self.steps.push(Step {
            name: name.to_owned(),
            ok,
            ms,
            detail,
        });
        Ok(value)
    }

    /// Adds the steps and figures of another scenario.
    fn add(&mut self, other: Self) {
        let scenario = other.scenario;
        self.steps.extend(other.steps.into_iter().map(|step| Step {
            name: format!("{scenario}: {}", step.name),
            ..step
        }));
        let figures = other.measured.into_iter();
        self.measured
            .extend(figures.map(|(name, value)| (format!("{scenario}_{name}"), value)));
    }
}

/// Raises the sites of the scenario, runs its steps, takes the lab down, and writes the result.
pub(crate) fn demo(
    scenario: Scenario,
    options: Options,
    name: &str,
    paths: Paths,
    json: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let partial = || DemoScenario {
        scenario: "partial",
        begin: ["raise both sites", "start both appliances"],
        topology: sites::partial_by_gateways(options),
        scenes: partial::scenes,
        table: partial::table,
    };
    let full = || DemoScenario {
        scenario: "full",
        begin: ["raise the sites", "start the appliances"],
        topology: sites::full(options),
        scenes: full::scenes,
        table: full::table,
    };
    let outcome = match scenario {
        Scenario::Partial => partial().run(name, paths)?,
        Scenario::Full => full().run(name, paths)?,
        Scenario::All => {
            let mut all = Outcome {
                scenario: "all",
                ..Outcome::default()
            };
            all.add(partial().run(name, paths.clone())?);
            all.add(full().run(name, paths)?);
            all
        }
    };
    let ok = outcome.steps.iter().all(|s| s.ok);
    service::outln!(
        "\n{} of {} steps passed, {:.0} s",
        outcome.steps.iter().filter(|s| s.ok).count(),
        outcome.steps.len(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&outcome).context("writing the result")?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One scenario.
struct DemoScenario {
    scenario: &'static str,
    /// Names of the first two steps.
    begin: [&'static str; 2],
    topology: Topology,
    scenes: fn(&Lab, &mut Outcome) -> anyhow::Result<()>,
    table: fn(&Outcome),
}

impl DemoScenario {
    /// Raises the lab, runs the steps, takes the lab down.
    fn run(self, name: &str, paths: Paths) -> anyhow::Result<Outcome> {
        service::outln!("{}", self.topology.picture);
        let mut outcome = Outcome {
            scenario: self.scenario,
            ..Outcome::default()
        };
        // Kept until it is taken down: no other process may use the name until then.
        let mut raised_lab = None;
        let result = (|| {
            let raised = outcome.step(self.begin[0], |_| {
                let lab = Lab::up(self.topology, name, paths)?;
                let detail = format!("{} namespaces", lab.topology().hosts.len());
                Ok((lab, detail))
            })?;
            let Some(lab) = raised else {
                return Ok(());
            };
            let lab = raised_lab.insert(lab);
            let ready = outcome.step(self.begin[1], |_| {
                lab.start_appliances()?;
                Ok(((), "ready".to_owned()))
            })?;
            match ready {
                Some(()) => (self.scenes)(lab, &mut outcome),
                None => Ok(()),
            }
        })();
        // From here on an interrupt would leave parts of the lab behind.
        let interrupted = interrupt::clear();
        let down = if raised_lab.is_some() {
            outcome.step("take everything down", |_| {
                Lab::down(name)?;
                let left: Vec<_> = lab::list_namespaces()?
                    .into_iter()
                    .filter(|n| n.starts_with(&lab::namespace_name(name, "")))
                    .collect();
                anyhow::ensure!(left.is_empty(), "left behind: {}", left.join(", "));
                Ok(((), "nothing left behind".to_owned()))
            })
        } else {
            Ok(None)
        };
        drop(raised_lab);
        result.and(down.map(drop))?;
        if interrupted {
            anyhow::bail!("interrupted");
        }
        (self.table)(&outcome);
        Ok(outcome)
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn key(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "v4" } else { "v6" }
}
