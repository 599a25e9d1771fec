//! Repeats failed lab tests, each alone, to tell a fault from a starved machine.
//!
//! For: a run on a machine that others load, too, where one of the lab tests, which assert times
//! and run beside each other, now and then misses a deadline. Never: a failure that is hidden. Both
//! outputs are printed, the test is listed as unstable at the end, and `--long` repeats nothing.
//! Nor a test that draws random input, as those of the other tiers do: what it found once is a
//! fault, whatever the next draw finds; nor a program that died.

use super::{
    build::Program,
    libtest::Status,
    part,
    program::{self, Settings, TestOrder},
    report::{Failure, Report},
};
use crate::targets::Tier;

/// More failures than this are a fault, not chance: none of them is repeated.
const MAX_FAILURES: usize = 3;
/// Repeated runs of each, all of which must pass: a test that fails every second time when alone
/// is called unstable in one of eight runs.
const RUNS: usize = 3;

/// Runs each failed test [`RUNS`] times more, alone. Those that pass each time are unstable, and
/// count as passed. Returns whether it ran any.
pub fn failures(
    programs: &[Program],
    settings: impl Fn(Tier) -> Settings,
    report: &Report,
) -> bool {
    let failures = report.failures();
    if failures.len() > MAX_FAILURES {
        return false;
    }
    let mut repeated = false;
    for failure in failures {
        if failure.part.tier != Tier::Lab || failure.died {
            continue;
        }
        let program = programs.iter().find(|p| part(p) == failure.part);
        let Some(program) = program else {
            continue;
        };
        let settings = settings(failure.part.tier);
        // A failure of the program itself has no test of its name.
        let listed = program::tests(program, &settings).unwrap_or_default();
        if !listed.contains(&failure.test) {
            continue;
        }
        repeated = true;
        if (0..RUNS).all(|_| passes(program, &failure, &settings, report)) {
            report.unstable(&failure);
        }
    }
    repeated
}

fn passes(program: &Program, failure: &Failure, settings: &Settings, report: &Report) -> bool {
    let names = [failure.test.clone()];
    let mut outcomes = 0;
    let mut passed = true;
    let result = program::run(program, &names, TestOrder::Serial, settings, |outcome| {
        report.repeated(&failure.part, &outcome);
        outcomes += 1;
        passed &= outcome.status == Status::Passed;
    });
    result.is_ok() && outcomes == 1 && passed
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt as _,
        path::PathBuf,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{targets::Target, test::libtest::Outcome};

    /// A test program of a tier with the tests `a` and `b` that fails in its first `failing` runs.
    fn program(name: &str, failing: u32, tier: Tier) -> (PathBuf, Program) {
        let folder = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("make a folder");
        let path = folder.join("program");
        let script = format!(
            r#"#!/bin/sh
case "$*" in *--list*) printf 'a: test\nb: test\n'; exit;; esac
echo run >> runs
echo '{{ "type": "test", "event": "started", "name": "a" }}'
event=ok
test $(wc -l < runs) -gt {failing} || event=failed
echo '{{ "type": "test", "name": "a", "event": "'$event'" }}'
echo '{{ "type": "suite", "event": "'$event'" }}'
test $event = ok
"#
        );
        fs::write(&path, script).expect("write a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set a mode");
        let target = Target {
            package: "p".to_owned(),
            package_id: String::new(),
            folder: folder.clone(),
            kind: "test".to_owned(),
            name: name.to_owned(),
            tier,
        };
        (folder, Program { target, path })
    }

    /// Tests that passed and failed after these had failed and the program was run again, and the
    /// number of runs.
    fn counts(name: &str, failing: u32, failed: &[&str]) -> (u32, u32, usize) {
        counts_of(program(name, failing, Tier::Lab), failed, false)
    }

    fn counts_of(
        (folder, program): (PathBuf, Program),
        failed: &[&str],
        died: bool,
    ) -> (u32, u32, usize) {
        let report = Report::default();
        for test in failed {
            let outcome = Outcome {
                name: (*test).to_owned(),
                status: Status::Failed,
                seconds: 0.0,
                output: String::new(),
                died,
            };
            report.add(&part(&program), outcome, false);
        }
        let settings = |_| Settings {
            filter: None,
            environment: Vec::new(),
            limit: Duration::from_secs(10),
        };
        failures(&[program], settings, &report);
        let sum = report.finish(Instant::now(), true);
        let runs = fs::read_to_string(folder.join("runs")).unwrap_or_default();
        fs::remove_dir_all(folder).expect("remove a folder");
        (sum.passed, sum.failed, runs.lines().count())
    }

    #[test]
    fn a_failed_test_that_passes_three_times_alone_counts_as_passed() {
        assert_eq!(counts("unstable", 0, &["a"]), (1, 0, 3));
    }

    #[test]
    fn a_failed_test_that_fails_again_has_failed() {
        assert_eq!(counts("broken", 9, &["a"]), (0, 1, 1));
    }

    #[test]
    fn random_tests_and_programs_that_died_are_not_repeated() {
        let of_packets = program("packets", 0, Tier::Packets);
        assert_eq!(counts_of(of_packets, &["a"], false), (0, 1, 0));
        let of_lab = program("died", 0, Tier::Lab);
        assert_eq!(counts_of(of_lab, &["a"], true), (0, 1, 0));
    }

    #[test]
    fn many_failures_and_those_of_programs_are_not_repeated() {
        assert_eq!(counts("many", 0, &["a", "a2", "a3", "a4"]), (0, 4, 0));
        assert_eq!(counts("program", 0, &["the program itself"]), (0, 1, 0));
    }
}
