//! Prints what each test did, and sums it up.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{
    Tier,
    libtest::{Outcome, Status},
    summary::Counts,
};

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

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
    failed: Vec<(String, String)>,
    tiers: Vec<(String, f64)>,
}

impl Report {
    /// Prints an outcome, with what the test printed if `shown`, or if it failed; and counts it.
    pub fn add(&self, part: &Part, outcome: Outcome, shown: bool) {
        let name = format!("{}: {}", part.name, outcome.name);
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
            inner.failed.push((name, outcome.output));
        }
    }

    /// Counts a part that is no test program.
    pub fn count(&self, part: &Part, counts: Counts, seconds: f64) {
        let mut inner = self.lock();
        let row = inner.parts.entry(part.clone()).or_default();
        row.0 += counts;
        row.1 += seconds;
        if counts.failed > 0 {
            inner.failed.push((part.name.clone(), String::new()));
        }
    }

    /// Notes how long a stage of the run took.
    pub fn stage(&self, name: &str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        self.lock().tiers.push((name.to_owned(), seconds));
    }

    /// Prints the table, the slowest tests and the sum; the sum.
    pub fn finish(&self, begun: Instant) -> Counts {
        let inner = &mut *self.lock();
        for (name, output) in &inner.failed {
            outln!("\n==== FAILED: {name}");
            for line in output.lines() {
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
        for (name, seconds) in &inner.tiers {
            outln!("{seconds:>9.1} s  {name}");
        }
        outln!("{:>9.1} s  all", begun.elapsed().as_secs_f64());
        outln!();
        sum
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
