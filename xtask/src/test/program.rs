//! Runs a test program: follows its tests, times them, and ends it when a test hangs.
//!
//! Never: the end of a process that it did not start. A test program gets a process group of its
//! own, which is what is killed; daemons that a lab test started are taken down by the lab's
//! record.
//!
//! ```text
//!   test program ── stdout and stderr, one pipe ──▶ reader thread ──▶ ProgramRun ─▶ Outcome
//!        ▲                                                               │
//!        └────────── SIGKILL to its process group, when a test hangs ────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{BufRead as _, BufReader, PipeReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    build::Program,
    libtest::{Event, Outcome, Status, listed, parse, skipped},
};
use crate::{run::with_paths, step::show};

/// How often the time of running tests is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// After a program's end its output may stay open this long, in the hands of a process it left
/// behind.
const DRAIN: Duration = Duration::from_secs(1);
/// Lines of output shown when a program dies.
const TAIL_LINES: usize = 60;

/// How to run programs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Environment of every test program.
    pub environment: Vec<(&'static str, String)>,
    /// A test that takes longer is killed.
    pub limit: Duration,
}

/// How one program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestOrder {
    /// Tests in as many threads as there are processors; only a failed test shows what it prints.
    Parallel,
    /// One test at a time, each shown with what it prints.
    Serial,
}

/// The names of a program's tests that the filter lets through.
///
/// # Errors
/// If the program does not list them.
pub fn tests(program: &Program, settings: &Settings) -> anyhow::Result<Vec<String>> {
    let mut command = command(program, settings);
    command.args(["--list", "--format", "terse"]);
    command.args(&settings.filter);
    let shown = show(&command);
    let output = command
        .output()
        .with_context(|| format!("start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}", output.status);
    }
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// Runs these tests of a program, each to an outcome, which `ended` gets at once. If a test
/// crashes the program, it is started again for the remaining tests.
///
/// # Errors
/// If the program cannot be started.
pub fn run(
    program: &Program,
    names: &[String],
    order: TestOrder,
    settings: &Settings,
    mut ended: impl FnMut(Outcome),
) -> anyhow::Result<()> {
    let mut left: BTreeSet<String> = names.iter().cloned().collect();
    while !left.is_empty() {
        let now = left.clone();
        let end = once(program, &now, order, settings, |outcome| {
            left.remove(&outcome.name);
            ended(outcome);
        })?;
        let why = match end.trouble {
            Some(why) => why,
            None if left.is_empty() => break,
            None => "it ended without running this test".to_owned(),
        };
        // The running tests failed; if there were none, all remaining tests; or the program, after
        // its last test.
        let mut blamed = end.running;
        if blamed.is_empty() {
            blamed = left.iter().map(|name| (name.clone(), 0.0)).collect();
        }
        if blamed.is_empty() {
            blamed.insert("the program itself".to_owned(), 0.0);
        }
        for (name, seconds) in blamed {
            left.remove(&name);
            ended(Outcome {
                output: format!("{}: {why}\n{}", program.target.label(), end.tail),
                name,
                status: Status::Failed,
                seconds,
                died: true,
            });
        }
    }
    Ok(())
}

/// How one run of a program ended.
struct End {
    /// Tests that had started and not ended, with their seconds.
    running: BTreeMap<String, f64>,
    /// A failure of the program itself.
    trouble: Option<String>,
    /// Its last output that belongs to no test that ended.
    tail: String,
}

fn once(
    program: &Program,
    names: &BTreeSet<String>,
    order: TestOrder,
    settings: &Settings,
    ended: impl FnMut(Outcome),
) -> anyhow::Result<End> {
    let mut command = command(program, settings);
    command.args([
        "-Z",
        "unstable-options",
        "--format",
        "json",
        "--report-time",
    ]);
    if order == TestOrder::Serial {
        command.args(["--test-threads", "1", "--nocapture"]);
    }
    command.arg("--exact").args(names);
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    command
        .stdout(writer.try_clone().context("duplicate a pipe")?)
        .stderr(writer);
    let child = command
        .spawn()
        .with_context(|| format!("start {}", program.path.display()))?;
    // It holds the writing ends: the output is at its end when all have closed them.
    drop(command);
    ProgramRun {
        child,
        lines: lines(reader),
        order,
        limit: settings.limit,
        ended,
        running: BTreeMap::new(),
        skipped: BTreeSet::new(),
        stray: None,
        raw: VecDeque::new(),
        counted: false,
        failed: false,
    }
    .follow()
}

/// The lines of a pipe, from a thread of their own.
fn lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A running program, and what is known of its tests.
struct ProgramRun<F> {
    child: Child,
    lines: Receiver<String>,
    order: TestOrder,
    limit: Duration,
    ended: F,
    running: BTreeMap<String, Instant>,
    skipped: BTreeSet<String>,
    /// A skip that is no running test's.
    stray: Option<String>,
    raw: VecDeque<String>,
    counted: bool,
    failed: bool,
}

impl<F: FnMut(Outcome)> ProgramRun<F> {
    fn follow(mut self) -> anyhow::Result<End> {
        let mut gone: Option<(ExitStatus, Instant)> = None;
        let mut hung = None;
        let mut last_event = Instant::now();
        loop {
            match self.lines.recv_timeout(CHECK_INTERVAL) {
                Ok(line) => {
                    self.line(line);
                    last_event = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if gone.is_some() => break,
                // It closed its output and runs on.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(CHECK_INTERVAL),
            }
            if gone.is_some_and(|(_, when)| when.elapsed() > DRAIN) {
                break;
            }
            if gone.is_none() {
                gone = self
                    .child
                    .try_wait()
                    .context("wait for a test program")?
                    .map(|status| (status, Instant::now()));
            }
            let late = self
                .running
                .iter()
                .find(|(_, since)| since.elapsed() > self.limit);
            if hung.is_none()
                && gone.is_none()
                && let Some((name, _)) = late
            {
                hung = Some(format!(
                    "{name} took longer than {} s, so its process group was killed",
                    self.limit.as_secs()
                ));
                kill_group(&self.child);
            } else if hung.is_none()
                && gone.is_none()
                && self.running.is_empty()
                && last_event.elapsed() > self.limit
            {
                hung = Some(format!(
                    "it ran no test for {} s, so its process group was killed",
                    self.limit.as_secs()
                ));
                kill_group(&self.child);
            }
        }
        let trouble = hung.or_else(|| match gone {
            Some((status, _)) if !self.counted => Some(format!(
                "it ended with {status} before it had counted its tests"
            )),
            Some((status, _)) if !status.success() && !self.failed => {
                Some(format!("all tests passed, and yet it ended with {status}"))
            }
            _ => None,
        });
        let stray = self.stray.take();
        let trouble = trouble.or_else(|| {
            stray.map(|line| {
                format!(
                    "it printed {line:?}, which names none of the running tests: call `skip` on \
                     the thread of the test"
                )
            })
        });
        let running = std::mem::take(&mut self.running);
        Ok(End {
            running: running
                .into_iter()
                .map(|(name, since)| (name, since.elapsed().as_secs_f64()))
                .collect(),
            trouble,
            tail: self.output(),
        })
    }

    fn line(&mut self, line: String) {
        let Some((before, event)) = parse(&line) else {
            self.record_output(line);
            return;
        };
        if !before.is_empty() {
            self.record_output(before.to_owned());
        }
        match event {
            Event::Started(name) => {
                if self.order == TestOrder::Serial {
                    self.raw.clear();
                }
                self.running.insert(name, Instant::now());
            }
            Event::Ended(mut outcome) => {
                self.running.remove(&outcome.name);
                if self.order == TestOrder::Serial {
                    outcome.output = self.output() + &outcome.output;
                }
                if outcome.status == Status::Passed && self.skipped.contains(&outcome.name) {
                    outcome.status = Status::Skipped;
                }
                self.failed |= outcome.status == Status::Failed;
                (self.ended)(outcome);
            }
            Event::Counted => self.counted = true,
            Event::Other => {}
        }
    }

    /// Keeps a line that is no event.
    fn record_output(&mut self, line: String) {
        if let Some(name) = skipped(&line) {
            // The only running test needs no name, which on libtest's main thread it has not.
            if self.order == TestOrder::Serial || self.running.len() == 1 {
                self.skipped.extend(self.running.keys().cloned());
            } else if self.running.contains_key(name) {
                self.skipped.insert(name.to_owned());
            } else {
                self.stray.get_or_insert_with(|| line.clone());
            }
        }
        if self.order == TestOrder::Parallel && self.raw.len() == TAIL_LINES {
            self.raw.pop_front();
        }
        self.raw.push_back(line);
    }

    /// Takes the lines that were kept.
    fn output(&mut self) -> String {
        let mut text = String::new();
        for line in self.raw.drain(..) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

fn command(program: &Program, settings: &Settings) -> Command {
    let mut command = Command::new(&program.path);
    command
        .current_dir(&program.target.folder)
        .env("CARGO_MANIFEST_DIR", &program.target.folder)
        // Seconds of each test and events as JSON are unstable options of libtest.
        .env("RUSTC_BOOTSTRAP", "1")
        .envs(
            settings
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::null())
        .process_group(0);
    with_paths(&mut command);
    // SAFETY: the closure only makes a system call.
    unsafe {
        command.pre_exec(|| {
            // It ends with this program, Ctrl-C included, which its own process group does not get.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    command
}

fn kill_group(child: &Child) {
    let Ok(group) = libc::pid_t::try_from(child.id()) else {
        return;
    };
    // SAFETY: kill(2) touches no memory; the child was not waited for, so its id is still its own.
    unsafe {
        libc::kill(-group, libc::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::targets::{Target, Tier};

    /// A program that is a shell script, in place of a test program.
    fn script(name: &str, text: &str) -> (PathBuf, Program) {
        let folder = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let target = Target {
            package: "p".to_owned(),
            package_id: String::new(),
            folder: folder.clone(),
            kind: "test".to_owned(),
            name: name.to_owned(),
            tier: Tier::Unit,
        };
        (folder, Program { target, path })
    }

    fn outcomes(name: &str, text: &str, names: &[&str]) -> Vec<Outcome> {
        outcomes_in(TestOrder::Serial, name, text, names)
    }

    fn outcomes_in(order: TestOrder, name: &str, text: &str, names: &[&str]) -> Vec<Outcome> {
        let (folder, program) = script(name, text);
        let settings = Settings {
            filter: None,
            environment: Vec::new(),
            limit: Duration::from_millis(700),
        };
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut all = Vec::new();
        run(&program, &names, order, &settings, |o| all.push(o)).unwrap();
        fs::remove_dir_all(folder).unwrap();
        all
    }

    const STARTED: &str = r#"echo '{ "type": "test", "event": "started", "name": "a" }'"#;
    const PASSED: &str =
        r#"echo '{ "type": "test", "name": "a", "event": "ok", "exec_time": 0.5 }'"#;
    const COUNTED: &str = r#"echo '{ "type": "suite", "event": "ok", "passed": 1 }'"#;

    #[test]
    fn a_passed_test_is_shown_with_its_output() {
        let text = format!("{STARTED}; echo said; {PASSED}; {COUNTED}");
        let all = outcomes("passes", &text, &["a"]);
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].status, all[0].output.as_str()),
            (Status::Passed, "said\n")
        );
    }

    #[test]
    fn a_test_that_prints_that_it_was_skipped_has_not_passed() {
        let text = format!("{STARTED}; echo 'SKIPPED: a: needs root' >&2; {PASSED}; {COUNTED}");
        assert_eq!(outcomes("skips", &text, &["a"])[0].status, Status::Skipped);
    }

    /// Two tests that run at once and pass, the first with this line in its output.
    fn two_with(name: &str, line: &str) -> Vec<(String, Status, String)> {
        let b = |text: &str| text.replace(r#""a""#, r#""b""#);
        let text = format!(
            "{STARTED}; {}; echo '{line}' >&2; {PASSED}; {}; {COUNTED}",
            b(STARTED),
            b(PASSED)
        );
        let all = outcomes_in(TestOrder::Parallel, name, &text, &["a", "b"]);
        all.into_iter()
            .map(|o| (o.name, o.status, o.output))
            .collect()
    }

    #[test]
    fn of_tests_that_run_at_once_the_named_one_is_skipped() {
        let all = two_with("skips-one", "SKIPPED: a: needs root");
        let all: Vec<_> = all
            .iter()
            .map(|(name, status, _)| (&**name, *status))
            .collect();
        assert_eq!(all, [("a", Status::Skipped), ("b", Status::Passed)]);
    }

    #[test]
    fn a_skip_that_is_no_test_s_is_a_failure_of_the_program() {
        let all = two_with("skips-none", "SKIPPED: worker: needs root");
        assert_eq!(all.len(), 3, "{all:?}");
        let (name, status, output) = &all[2];
        assert_eq!((&**name, *status), ("the program itself", Status::Failed));
        assert!(
            output.contains("names none of the running tests"),
            "{output}"
        );
    }

    #[test]
    fn a_program_that_fails_after_its_tests_has_failed() {
        let all = outcomes(
            "fails",
            &format!("{STARTED}; {PASSED}; {COUNTED}; exit 3"),
            &["a"],
        );
        let all: Vec<_> = all.iter().map(|o| (&*o.name, o.status)).collect();
        let expected = [
            ("a", Status::Passed),
            ("the program itself", Status::Failed),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_program_that_dies_fails_the_test_that_ran_and_the_rest_runs_again() {
        let text = format!(
            "case \"$*\" in *' a b') {STARTED}; kill -9 $$;; esac\n\
             echo '{{ \"type\": \"test\", \"name\": \"b\", \"event\": \"ok\" }}'; {COUNTED}"
        );
        let all = outcomes("dies", &text, &["a", "b"]);
        let of = |name: &str| all.iter().find(|o| o.name == name).unwrap().clone();
        assert_eq!(of("a").status, Status::Failed);
        assert!(
            of("a").output.contains("before it had counted"),
            "{}",
            of("a").output
        );
        assert_eq!(of("b").status, Status::Passed);
    }

    #[test]
    fn a_test_that_hangs_is_killed_and_named() {
        let all = outcomes("hangs", &format!("{STARTED}; sleep 60"), &["a"]);
        assert_eq!(all[0].status, Status::Failed);
        assert!(
            all[0].output.contains("a took longer than 0 s"),
            "{}",
            all[0].output
        );
    }

    #[test]
    fn a_program_that_hangs_before_its_first_test_is_killed() {
        let all = outcomes("stuck", "sleep 60", &["a"]);
        assert_eq!(all[0].status, Status::Failed);
        assert!(
            all[0].output.contains("it ran no test for 0 s"),
            "{}",
            all[0].output
        );
    }

    #[test]
    fn a_test_that_is_not_run_has_failed() {
        let all = outcomes("idle", COUNTED, &["a", "b"]);
        assert!(all.iter().all(|o| o.status == Status::Failed), "{all:?}");
    }
}
