//! `cargo xtask test`: every test of the workspace, tier by tier, timed and counted.
//!
//! For: building everything once, running each test program, and a summary whose last line is
//! `N passed, N failed, N skipped`. Never: a list of packages or files ([`targets`](crate::targets)
//! asks cargo), nor a lab that a person raised (only those that ended tests left are taken down).
//!
//! ```text
//!   build ─▶ ┌ unit tests, fuzz targets, examples ┐ ─▶ lab tests, four at once ─▶ timed ones
//!            └ packet tests, two at once          ┘        ─▶ virtual machines, where asked for
//!                                                           ─▶ failed tests again, each alone
//! ```

mod build;
mod libtest;
mod program;
mod repeat;
mod report;

use std::{
    collections::{BTreeMap, VecDeque},
    panic::resume_unwind,
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::Context as _;

use self::{
    build::{Profile, Program, build, whole_workspace},
    libtest::{Outcome, Status},
    program::{Settings, TestOrder},
    report::{Part, Report, Stage},
};
use crate::{
    bpf::{Route, ToolchainChoice},
    cargo::cargo,
    fuzz, qemu, run, setup,
    step::step,
    summary::{Counts, total},
    target,
    targets::{Tier, Workspace},
};

/// The variable that `--long` sets: each test then runs its whole series instead of the bounded
/// form.
const LONG: &str = "CAUSEWAY_LONG";
/// How much longer than otherwise a test may take with `--long`.
const LONG_LIMIT: u32 = 6;

/// The requested run.
#[derive(Debug)]
pub struct Options {
    /// How to build the BPF programs.
    pub bpf: ToolchainChoice,
    /// Only these tiers; all if empty.
    pub tiers: Vec<Tier>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// A test that lacks privilege fails.
    pub require_privileged: bool,
    /// The whole series, and unit tests once more with debug assertions.
    pub long: bool,
}

impl Options {
    fn includes(&self, tier: Tier) -> bool {
        match self.tiers.is_empty() {
            true => tier != Tier::Qemu || self.long,
            false => self.tiers.contains(&tier),
        }
    }

    fn settings(&self, tier: Tier) -> Settings {
        let mut environment = Vec::new();
        if self.require_privileged {
            environment.push(("CAUSEWAY_REQUIRE_PRIVILEGED", "1".to_owned()));
        }
        let mut limit = tier.limit();
        if self.long {
            environment.push((LONG, "1".to_owned()));
            limit *= LONG_LIMIT;
        }
        Settings {
            filter: self.filter.clone(),
            environment,
            limit,
        }
    }
}

/// Runs the tests; fails if one does, or if none matches.
///
/// # Errors
/// If something cannot be built or started.
pub fn test(options: &Options) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let report = Report::default();
    let workspace = Workspace::read()?;
    let privileged = [Tier::Packets, Tier::Lab, Tier::Qemu];
    let privileged = privileged.into_iter().any(|tier| options.includes(tier));
    let route = privileged
        .then(|| setup::packages(options.bpf))
        .transpose()?;
    report.stage(Stage::Packages, begun);
    let built = Instant::now();
    let programs = thread::scope(|scope| {
        // Beside the build, because much of both runs on one processor.
        let tools = scope.spawn(|| tools(options, route));
        let programs = build(&workspace, Profile::Release, |target| {
            options.includes(target.tier)
        });
        let tools = tools.join().unwrap_or_else(|panic| resume_unwind(panic));
        programs.and_then(|programs| tools.map(|()| programs))
    })?;
    report.stage(Stage::Build, built);
    if privileged {
        take_down_abandoned_labs()?;
    }

    let of = |tier| {
        programs
            .iter()
            .filter(move |p| p.target.tier == tier)
            .collect::<Vec<_>>()
    };
    let at = Instant::now();
    thread::scope(|scope| {
        // The scope waits for it, and panics if it did.
        scope.spawn(|| {
            packets(
                &of(Tier::Packets),
                &options.settings(Tier::Packets),
                &report,
            )
        });
        let settings = options.settings(Tier::Unit);
        run_each(&of(Tier::Unit), TestOrder::Parallel, &settings, &report);
        if options.includes(Tier::Unit) {
            fuzz_targets(options, &report)?;
            examples(options, &workspace, &report)?;
        }
        anyhow::Ok(())
    })?;
    report.stage(Stage::UnitAndPackets, at);
    if options.includes(Tier::Lab) {
        lab(&of(Tier::Lab), &options.settings(Tier::Lab), &report);
    }
    if options.includes(Tier::Qemu) {
        let at = Instant::now();
        let settings = options.settings(Tier::Qemu);
        run_each(&of(Tier::Qemu), TestOrder::Serial, &settings, &report);
        report.stage(Stage::VirtualMachines, at);
    }
    if options.long && options.includes(Tier::Unit) {
        let at = Instant::now();
        let programs = build(&workspace, Profile::Dev, |target| target.tier == Tier::Unit)?;
        let settings = options.settings(Tier::Unit);
        let programs: Vec<_> = programs.iter().collect();
        run_each(&programs, TestOrder::Parallel, &settings, &report);
        report.stage(Stage::Dev, at);
    }
    // A long run is reported as it went.
    if !options.long {
        if privileged {
            // That of a failed test would run beside its repetition.
            take_down_abandoned_labs()?;
        }
        let at = Instant::now();
        let settings = |tier| options.settings(tier);
        if repeat::failures(&programs, settings, &report) {
            report.stage(Stage::Repeats, at);
        }
    }
    if privileged {
        take_down_abandoned_labs()?;
    }

    let sum = report.finish(begun, !options.long);
    let empty = sum == Counts::default();
    if empty {
        errln!("xtask: no test matched");
    }
    outln!(
        "{} passed, {} failed, {} skipped",
        sum.passed,
        sum.failed,
        sum.skipped
    );
    let skipped = options.require_privileged && sum.skipped > 0;
    if skipped {
        errln!("xtask: tests were skipped, which --require-privileged forbids");
    }
    Ok(if empty || skipped || sum.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Installs what tests need of tools, by the `route` to BPF programs, and builds these.
fn tools(options: &Options, route: Option<Route>) -> anyhow::Result<()> {
    if let Some(route) = route {
        run::prepare_bpf(route)?;
    }
    if options.includes(Tier::Lab)
        && setup::is_root()
        && let Err(error) = setup::install_boringtun()
    {
        errln!("xtask: {error:#}; the tests that need it are skipped");
    }
    if options.includes(Tier::Qemu)
        && setup::is_root()
        && let Err(error) = qemu::prepare()
    {
        errln!("xtask: {error:#}; the tests in virtual machines are skipped");
    }
    Ok(())
}

/// Refuses a program of a folder `tests` without a test, such as one with `harness = false`: its
/// tests would not be counted.
fn not_empty(program: &Program, names: &[String], settings: &Settings) -> anyhow::Result<()> {
    anyhow::ensure!(
        !names.is_empty() || settings.filter.is_some() || program.target.kind != "test",
        "{} lists no test: remove the target, or its `harness = false`",
        program.target.label()
    );
    Ok(())
}

/// The tests of a program. One that lists none has failed, and the run goes on with the others.
fn listed(program: &Program, settings: &Settings, report: &Report) -> Vec<String> {
    let begun = Instant::now();
    let names = program::tests(program, settings).and_then(|names| {
        not_empty(program, &names, settings)?;
        Ok(names)
    });
    names.unwrap_or_else(|error| {
        fail(program, "list of its tests", &error, begun, report);
        Vec::new()
    })
}

/// Processes that run packet tests at once, each with programs of its own: about half of the tests
/// wait for a sweeper or a clock.
const PACKET_LANES: usize = 2;

/// Runs packet tests, every second one in the same process.
fn packets(programs: &[&Program], settings: &Settings, report: &Report) {
    for program in programs {
        let names = listed(program, settings, report);
        thread::scope(|scope| {
            for lane in 0..PACKET_LANES {
                let names = names.iter().skip(lane).step_by(PACKET_LANES);
                let names: Vec<_> = names.cloned().collect();
                if !names.is_empty() {
                    scope.spawn(move || {
                        run_tests(program, &names, TestOrder::Serial, settings, report);
                    });
                }
            }
        });
    }
}

/// Counts an error of a program as a failed test.
fn fail(program: &Program, name: &str, error: &anyhow::Error, begun: Instant, report: &Report) {
    let outcome = Outcome {
        name: name.to_owned(),
        status: Status::Failed,
        seconds: begun.elapsed().as_secs_f64(),
        output: format!("{error:#}\n"),
        died: true,
    };
    report.add(&part(program), outcome, true);
}

fn part(program: &Program) -> Part {
    Part {
        tier: program.target.tier,
        name: program.target.label(),
    }
}

/// Runs programs one after another.
fn run_each(programs: &[&Program], order: TestOrder, settings: &Settings, report: &Report) {
    for program in programs {
        let names = listed(program, settings, report);
        run_tests(program, &names, order, settings, report);
    }
}

/// Runs tests of a program. If it cannot be run, that is a failure, and the run goes on.
fn run_tests(
    program: &Program,
    names: &[String],
    order: TestOrder,
    settings: &Settings,
    report: &Report,
) {
    let begun = Instant::now();
    let part = part(program);
    let result = program::run(program, names, order, settings, |outcome| {
        report.add(&part, outcome, order == TestOrder::Serial);
    });
    if let Err(error) = result {
        fail(program, "the program itself", &error, begun, report);
    }
}

/// One lab test, which runs in a separate process.
struct LabTest<'a> {
    program: &'a Program,
    name: String,
}

impl LabTest<'_> {
    /// Whether it asserts times or rates, so that it runs alone: it is in a module
    /// `timed`.
    fn is_timed(&self) -> bool {
        self.name.split("::").any(|module| module == "timed")
    }

    /// Its outermost module; empty for a test at the root.
    fn module(&self) -> String {
        let module = self.name.split_once("::");
        module.map_or("", |(module, _)| module).to_owned()
    }
}

/// Spreads the members of each group evenly: tests of one module often wait for each other.
fn spread<T, G: Ord + Clone>(tests: Vec<T>, group: impl Fn(&T) -> G) -> VecDeque<T> {
    let mut sizes = BTreeMap::<G, usize>::new();
    let mut numbered = Vec::new();
    for test in tests {
        let group = group(&test);
        let number = sizes.entry(group.clone()).or_default();
        numbered.push((group, *number, test));
        *number += 1;
    }
    // The middle of the part of the sequence that the member has, in twice the size of its group.
    let middle = |group: &G, number: usize| (2 * number + 1, 2 * sizes[group]);
    numbered.sort_by(|(a, i, _), (b, j, _)| {
        let ((a, of_a), (b, of_b)) = (middle(a, *i), middle(b, *j));
        (a * of_b).cmp(&(b * of_a))
    });
    numbered.into_iter().map(|(_, _, test)| test).collect()
}

/// Lab tests that run at once. They mostly wait; `LabLock` admits as many.
const FUNCTIONAL_LANES: usize = 4;

/// Lab tests that take a minute or more. They begin first: one that begins last leaves the other
/// lanes without work.
const LONG_LAB_TESTS: [&str; 4] = [
    "shipped_units_stay_up_reload_stop_and_restart",
    "routers::tunnels_follow_the_kernel_s_route_to_a_second_uplink_router",
    "routers::traffic_follows_a_gateway_that_moves_to_the_second_router",
    "gateway_names::a_tunnel_follows_the_name_of_its_gateway",
];

/// Runs lab tests: first those that assert no times, some at once, then the timed ones.
fn lab(programs: &[&Program], settings: &Settings, report: &Report) {
    let mut tests = Vec::new();
    for program in programs {
        let names = listed(program, settings, report);
        tests.extend(names.into_iter().map(|name| LabTest { program, name }));
    }
    let (timed, functional): (Vec<_>, Vec<_>) = tests.into_iter().partition(LabTest::is_timed);
    let at = Instant::now();
    let is_long = |test: &LabTest<'_>| LONG_LAB_TESTS.contains(&test.name.as_str());
    let (long, short): (Vec<_>, Vec<_>) = functional.into_iter().partition(is_long);
    let mut functional: VecDeque<_> = long.into();
    functional.extend(spread(short, |test| {
        (test.program.target.label(), test.module())
    }));
    lanes(FUNCTIONAL_LANES, functional, settings, report);
    report.stage(Stage::Lab, at);
    let at = Instant::now();
    lanes(1, timed.into(), settings, report);
    report.stage(Stage::Timed, at);
}

fn lanes(count: usize, tests: VecDeque<LabTest<'_>>, settings: &Settings, report: &Report) {
    let tests = Mutex::new(tests);
    let next = || {
        let mut tests = tests.lock().unwrap_or_else(PoisonError::into_inner);
        tests.pop_front()
    };
    let run = || {
        while let Some(test) = next() {
            run_tests(
                test.program,
                &[test.name],
                TestOrder::Serial,
                settings,
                report,
            );
        }
    };
    thread::scope(|scope| {
        let run = &run;
        // The scope waits for all, and panics if one did.
        for _ in 0..count {
            scope.spawn(run);
        }
    });
}

fn fuzz_targets(options: &Options, report: &Report) -> anyhow::Result<()> {
    let part = Part {
        tier: Tier::Unit,
        name: "fuzz targets compile".to_owned(),
    };
    let begun = Instant::now();
    let counts = step("check that the fuzz targets compile", || {
        fuzz::check(options.filter.as_deref())
    })?;
    report.count(&part, counts, begun.elapsed().as_secs_f64());
    Ok(())
}

/// The examples in documentation.
fn examples(options: &Options, workspace: &Workspace, report: &Report) -> anyhow::Result<()> {
    let part = Part {
        tier: Tier::Unit,
        name: "examples in documentation".to_owned(),
    };
    let begun = Instant::now();
    let counts = step("run the examples in documentation", || {
        let mut command = cargo();
        command.args(["test", "--doc", "--release", "--locked", "--no-fail-fast"]);
        whole_workspace(&mut command, workspace);
        command.arg("--").args(&options.filter);
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("start cargo test --doc")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut counts = total(text.lines());
        if !output.status.success() {
            outln!("{text}");
            counts.failed = counts.failed.max(1);
        }
        Ok(counts)
    })?;
    report.count(&part, counts, begun.elapsed().as_secs_f64());
    Ok(())
}

/// Takes down labs of tests that ended without doing so. A lab that a person raised has another
/// name, and one of a running test is in use.
fn take_down_abandoned_labs() -> anyhow::Result<()> {
    let lab = target().join("release/causeway-lab");
    if !setup::is_root() || !lab.exists() {
        return Ok(());
    }
    crate::step::run(Command::new(lab).args(["down", "--tests"]))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::targets::Target;

    #[test]
    fn the_long_lab_tests_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests");
        for name in LONG_LAB_TESTS {
            let file = match name.split_once("::") {
                Some((module, _)) => format!("lab/{module}.rs"),
                None => "units/main.rs".to_owned(),
            };
            let text = std::fs::read_to_string(root.join(&file)).expect("a file of tests");
            let function = name.rsplit("::").next().unwrap_or(name);
            assert!(text.contains(&format!("fn {function}(")), "{name}: {file}");
        }
    }

    #[test]
    fn tests_of_one_module_are_spread() {
        let tests = vec!["a1", "a2", "a3", "a4", "b1", "b2", "c1"];
        let spread = spread(tests, |test| test.as_bytes()[0]);
        assert_eq!(spread, ["a1", "b1", "a2", "c1", "a3", "b2", "a4"]);
    }

    #[test]
    fn timed_lab_tests_are_those_in_a_module_of_that_name() {
        let target = Target {
            package: String::new(),
            package_id: String::new(),
            folder: "/".into(),
            kind: "test".to_owned(),
            name: "lab".to_owned(),
            tier: Tier::Lab,
        };
        let program = Program {
            target,
            path: "/".into(),
        };
        let timed = |name: &str| {
            let name = name.to_owned();
            LabTest {
                program: &program,
                name,
            }
            .is_timed()
        };
        assert!(timed("restart::timed::a_killed_daemon_is_back"));
        assert!(timed("timed::a_test"));
        assert!(!timed("restart::timed_out"));
    }

    #[test]
    fn a_program_that_cannot_list_its_tests_has_failed_and_the_others_run() {
        let program = |path: &str| Program {
            target: Target {
                package: path.to_owned(),
                package_id: String::new(),
                folder: "/".into(),
                kind: "bin".to_owned(),
                name: String::new(),
                tier: Tier::Lab,
            },
            path: path.into(),
        };
        let settings = Settings {
            filter: None,
            environment: Vec::new(),
            limit: Duration::from_secs(10),
        };
        // The second lists nothing, as a program without tests does.
        let programs = ["/bin/false", "/bin/true", "/no-such-program"].map(program);
        let programs = programs.iter().collect::<Vec<_>>();
        for of_lab in [false, true] {
            let report = Report::default();
            match of_lab {
                true => lab(&programs, &settings, &report),
                false => run_each(&programs, TestOrder::Parallel, &settings, &report),
            }
            let sum = report.finish(Instant::now(), true);
            assert_eq!((sum.passed, sum.failed, sum.skipped), (0, 2, 0));
        }
    }

    #[test]
    fn virtual_machines_run_where_they_are_asked_for() {
        let wants = |tiers: &[Tier], long| {
            let options = Options {
                bpf: ToolchainChoice::Auto,
                tiers: tiers.to_vec(),
                filter: None,
                require_privileged: false,
                long,
            };
            (options.includes(Tier::Qemu), options.includes(Tier::Lab))
        };
        assert_eq!(wants(&[], false), (false, true));
        assert_eq!(wants(&[], true), (true, true));
        assert_eq!(wants(&[Tier::Qemu], false), (true, false));
        assert_eq!(wants(&[Tier::Lab], true), (false, true));
    }

    #[test]
    fn the_long_form_takes_its_time() {
        let options = |long| Options {
            bpf: ToolchainChoice::Auto,
            tiers: Vec::new(),
            filter: None,
            require_privileged: true,
            long,
        };
        let short = options(false).settings(Tier::Lab);
        assert_eq!(short.environment.len(), 1);
        let long = options(true).settings(Tier::Lab);
        assert!(long.environment.iter().any(|(name, _)| *name == LONG));
        assert_eq!(long.limit, short.limit * LONG_LIMIT);
    }
}
