//! Prints what each test did, and sums it up.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::libtest::{Outcome, Status};
use crate::{summary::Counts, targets::Tier};

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

/// A stage of a run. The first five run without `--long`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Packages,
    Build,
    UnitAndPackets,
    Lab,
    Timed,
    VirtualMachines,
    Dev,
    Repeats,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Packages => "packages",
            Self::Build => "tools, BPF programs and build",
            Self::UnitAndPackets => "unit and packet tests",
            Self::Lab => "lab tests, four at once",
            Self::Timed => "lab tests that assert times, one at a time",
            Self::VirtualMachines => "tests in virtual machines",
            Self::Dev => "unit tests with overflow checks and debug assertions",
            Self::Repeats => "failed tests once more, each alone",
        }
    }

    /// Seconds that it may take from a clean clone on a machine with 2 cores. The rest of CI's 30
    /// minutes is for lints, and for what is still to come. `None` where there is no budget.
    const fn budget(self) -> Option<u32> {
        match self {
            Self::Packages => Some(20),
            Self::Build => Some(560),
            Self::UnitAndPackets => Some(200),
            Self::Lab => Some(390),
            Self::Timed => Some(330),
            Self::VirtualMachines | Self::Dev | Self::Repeats => None,
        }
    }
}

/// The stages that took longer than their budgets, with the seconds beyond them.
fn beyond(stages: &[(Stage, f64)]) -> Vec<(Stage, f64)> {
    let beyond = stages.iter().filter_map(|(stage, seconds)| {
        let more = seconds - f64::from(stage.budget()?);
        (more > 0.0).then_some((*stage, more))
    });
    beyond.collect()
}

/// A part of a run: the tests of one program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub tier: Tier,
    /// The program under test.
    pub name: String,
}

/// Outcomes so far. Parts that run at the same time share it.
#[derive(Debug, Default)]
pub struct Report(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    parts: BTreeMap<Part, (Counts, f64)>,
    slow: Vec<(f64, String)>,
    failed: Vec<Failure>,
    unstable: Vec<Failure>,
    stages: Vec<(Stage, f64)>,
}

/// A test that failed once.
#[derive(Clone, Debug)]
pub struct Failure {
    pub part: Part,
    /// Path of the test in its program; empty for a part that is no test program.
    pub test: String,
    /// Output of the run that failed.
    pub output: String,
    /// Whether the program died, or was killed, while it ran.
    pub died: bool,
}

impl Failure {
    fn name(&self) -> String {
        match self.test.is_empty() {
            true => self.part.name.clone(),
            false => format!("{}: {}", self.part.name, self.test),
        }
    }
}

impl Report {
    /// Prints an outcome, with what the test printed if `shown`, or if it failed; and counts it.
    pub fn add(&self, part: &Part, outcome: Outcome, shown: bool) {
        let name = format!("{}: {}", part.name, outcome.name);
        let text = block(&name, &outcome, shown);
        let mut inner = self.lock();
        // While locked, so that blocks stay whole.
        outln!("{text}");
        let (counts, seconds) = inner.parts.entry(part.clone()).or_default();
        match outcome.status {
            Status::Passed => counts.passed += 1,
            Status::Failed => counts.failed += 1,
            Status::Skipped => counts.skipped += 1,
        }
        *seconds += outcome.seconds;
        inner.slow.push((outcome.seconds, name.clone()));
        if outcome.status == Status::Failed {
            inner.failed.push(Failure {
                part: part.clone(),
                test: outcome.name,
                output: outcome.output,
                died: outcome.died,
            });
        }
    }

    /// The failures so far.
    pub fn failures(&self) -> Vec<Failure> {
        self.lock().failed.clone()
    }

    /// Prints an outcome of a repeated run, which is not counted.
    pub fn repeated(&self, part: &Part, outcome: &Outcome) {
        let name = format!("{} (repeated): {}", part.name, outcome.name);
        let text = block(&name, outcome, true);
        let _whole = self.lock();
        outln!("{text}");
    }

    /// Counts a failed test as passed, and as unstable.
    pub fn unstable(&self, failure: &Failure) {
        let inner = &mut *self.lock();
        let is_it = |f: &Failure| f.part == failure.part && f.test == failure.test;
        let Some(at) = inner.failed.iter().position(is_it) else {
            return;
        };
        let failure = inner.failed.remove(at);
        if let Some((counts, _)) = inner.parts.get_mut(&failure.part) {
            counts.failed -= 1;
            counts.passed += 1;
        }
        inner.unstable.push(failure);
    }

    /// Counts a part that is no test program.
    pub fn count(&self, part: &Part, counts: Counts, seconds: f64) {
        let mut inner = self.lock();
        let row = inner.parts.entry(part.clone()).or_default();
        row.0 += counts;
        row.1 += seconds;
        if counts.failed > 0 {
            inner.failed.push(Failure {
                part: part.clone(),
                test: String::new(),
                output: String::new(),
                died: false,
            });
        }
    }

    /// Notes how long a stage of the run took.
    pub fn stage(&self, stage: Stage, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        self.lock().stages.push((stage, seconds));
    }

    /// Prints the table, the slowest tests, and the stages, with their budgets if `has_budget`;
    /// the sum.
    pub fn finish(&self, begun: Instant, has_budget: bool) -> Counts {
        let inner = &mut *self.lock();
        for failure in &inner.failed {
            outln!("\n==== FAILED: {}", failure.name());
            for line in failure.output.lines() {
                outln!("{line}");
            }
        }
        outln!(
            "\n{:<8} {:<36} passed failed skipped  seconds of its tests",
            "tier",
            "part"
        );
        let mut sum = Counts::default();
        for (part, (counts, seconds)) in &inner.parts {
            sum += *counts;
            outln!(
                "{:<8} {:<36} {:>6} {:>6} {:>7}  {seconds:>8.1}{}",
                part.tier.name(),
                part.name,
                counts.passed,
                counts.failed,
                counts.skipped,
                if counts.failed > 0 { "  FAILED" } else { "" }
            );
        }
        inner.slow.sort_by(|a, b| b.0.total_cmp(&a.0));
        outln!("\nthe slowest tests");
        for (seconds, name) in inner.slow.iter().take(SLOWEST) {
            outln!("{seconds:>9.1} s  {name}");
        }
        outln!("\nstages");
        let beyond = if has_budget {
            beyond(&inner.stages)
        } else {
            Vec::new()
        };
        for (stage, seconds) in &inner.stages {
            let more = match beyond.iter().find(|(late, _)| late == stage) {
                Some((_, more)) => format!("  OVER ITS BUDGET by {more:.1} s"),
                None => String::new(),
            };
            outln!("{seconds:>9.1} s  {}{more}", stage.name());
        }
        outln!("{:>9.1} s  all", begun.elapsed().as_secs_f64());
        if !beyond.is_empty() {
            outln!(
                "\nThe budgets are for a clean clone on 2 cores. A stage beyond its budget fails \
                 no run: look at the slowest tests above, or measure again on an idle machine."
            );
        }
        // Once more at the end, where a log that is cut off in its middle still has them.
        for (title, tests) in [
            ("failed", &inner.failed),
            (
                "unstable: failed once, and passed each time alone",
                &inner.unstable,
            ),
        ] {
            if !tests.is_empty() {
                outln!("\n{title}");
            }
            for failure in tests {
                outln!("    {}", failure.name());
            }
        }
        outln!();
        sum
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines of an outcome: with what the test printed if `shown`, or if it did not pass.
fn block(name: &str, outcome: &Outcome, shown: bool) -> String {
    let mut text = format!(
        "{:<7} {:>8.3} s  {name}",
        outcome.status.label(),
        outcome.seconds
    );
    if shown || outcome.status != Status::Passed {
        for line in outcome.output.lines() {
            text.push_str("\n        | ");
            text.push_str(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_beyond_their_budgets_are_named_with_the_excess() {
        let stages = [
            (Stage::Build, 600.0),
            (Stage::Lab, 389.0),
            (Stage::Timed, 331.5),
            (Stage::Dev, 9999.0),
        ];
        let expected = [(Stage::Build, 40.0), (Stage::Timed, 1.5)];
        assert_eq!(beyond(&stages), expected);
    }
}
