//! Runs the fuzz targets of tunnel, tunnel workers, gateway and appliance under libFuzzer, or lints
//! their wrappers.
//!
//! The same functions, bounded, are `tests/corpus.rs` of `tunnel`, `tunnel-worker`, `gateway` and
//! `appliance-user`, which any `cargo test` runs.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};

use crate::{
    bpf::{self, Route},
    cargo::cargo,
    step::{output, show, step},
    summary::Counts,
    target, workspace,
};

/// Longest input, bytes; `fuzzing::MAX_LEN`.
const MAX_LEN: u32 = 768;
/// Seconds; an input that takes longer is a finding.
const SLOW_INPUT_SECONDS: u32 = 20;
/// How often a line of progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Lines of libFuzzer's output shown with a finding.
const MAX_OUTPUT_LINES: usize = 60;

/// The result of a target.
struct Row {
    name: String,
    executions: Option<u64>,
    seconds: f64,
    /// Whether there was no finding.
    ok: bool,
}

/// Fuzzes one target or all; fails on a finding.
pub fn fuzz(only: Option<&str>, seconds: u64) -> anyhow::Result<ExitCode> {
    let names: Vec<_> = targets()?
        .into_iter()
        .filter(|name| only.is_none_or(|only| only == name))
        .collect();
    if names.is_empty() {
        bail!("no such target; there are: {}", targets()?.join(" "));
    }
    install()?;
    step("fuzz targets", || {
        names.iter().try_for_each(|name| {
            let mut command = cargo_fuzz("build", name)?;
            command.arg(name);
            crate::step::run(&mut command)
        })
    })
    .context("libFuzzer needs a C++ compiler: apt-get install -y g++")?;
    let mut rows = Vec::new();
    for name in names {
        let row = step(&format!("{name} for {seconds} s"), || one(&name, seconds))?;
        if !row.ok {
            print_reproduction(&row.name)?;
        }
        rows.push(row);
    }
    outln!();
    for row in &rows {
        let executions = row
            .executions
            .map_or_else(|| "?".to_owned(), |n| n.to_string());
        outln!(
            "{:<12} {executions:>12} runs  {:>7.1} s{}",
            row.name,
            row.seconds,
            if row.ok { "" } else { "  FINDING" }
        );
    }
    Ok(if rows.iter().all(|row| row.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Lints the wrappers of the targets whose name contains `filter`, with this toolchain and their
/// own lock files. One without a warning counts as a passed test. The targets themselves are
/// libraries of the workspace (`*/fuzz-targets`), which clippy checks with it.
pub fn check(filter: Option<&str>) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for folder in &folders()? {
        let mut names = targets_of(folder)?;
        names.retain(|name| filter.is_none_or(|part| name.contains(part)));
        if names.is_empty() {
            continue;
        }
        let mut command = check_command(folder);
        let shown = show(&command);
        let status = command
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("start `{shown}`"))?;
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        if status.success() {
            counts.passed += count;
        } else {
            counts.failed += count;
            errln!(
                "xtask: the fuzz targets of {folder} have errors or warnings: {}. Fix them. If \
                 Cargo.lock is out of date, run `cargo metadata --format-version 1 --manifest-path \
                 {folder}/Cargo.toml` and commit it",
                names.join(" ")
            );
        }
    }
    Ok(counts)
}

fn check_command(folder: &str) -> Command {
    let manifest = workspace().join(folder).join("Cargo.toml");
    let mut command = cargo();
    command
        .args(["clippy", "--release", "--locked", "--bins"])
        .arg("--manifest-path")
        .arg(&manifest)
        // With the profile and in the folder of the workspace's own build: what has the same
        // version and features there is not compiled again.
        .arg("--target-dir")
        .arg(target())
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        // libfuzzer-sys compiles libFuzzer, which takes a C++ compiler, unless a library is named.
        // Nothing is linked here, so any file will do.
        .env("CUSTOM_LIBFUZZER_PATH", &manifest)
        .args(["--", "-D", "warnings"]);
    command
}

/// Folders of fuzz crates in the workspace: those that are named `fuzz` and have a manifest.
fn folders() -> anyhow::Result<Vec<String>> {
    let root = workspace();
    let mut found = Vec::new();
    let mut left = vec![root.clone()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            // Neither what cargo or git made nor a link is the workspace's own.
            let is_own = name != "target" && !name.as_encoded_bytes().starts_with(b".");
            if !is_own || !entry.file_type()?.is_dir() {
                continue;
            }
            if name == "fuzz" && path.join("Cargo.toml").exists() {
                let below = path.strip_prefix(&root).unwrap_or(&path);
                found.push(below.display().to_string());
            } else {
                left.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folder of a target.
fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let file = Path::new("fuzz_targets").join(name).with_extension("rs");
    folders()?
        .iter()
        .map(|folder| workspace().join(folder))
        .find(|folder| folder.join(&file).exists())
        .with_context(|| format!("no fuzz crate has the target {name}"))
}

/// Targets of all folders.
pub fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in folders()? {
        names.append(&mut targets_of(&folder)?);
    }
    names.sort();
    Ok(names)
}

/// Targets, by the names of their files.
fn targets_of(folder: &str) -> anyhow::Result<Vec<String>> {
    let folder = workspace().join(folder).join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(stem)) = (
            path.extension().and_then(|part| part.to_str()),
            path.file_stem().and_then(|part| part.to_str()),
        ) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Installs cargo-fuzz and nightly where they are missing.
fn install() -> anyhow::Result<()> {
    let tools = bpf::tools();
    if output(tools.join("bin/cargo-fuzz"), &["--version"]).is_none() {
        step("cargo-fuzz, about a minute", || {
            let mut command = Command::new("cargo");
            command.args(["install", "cargo-fuzz", "--locked", "--root"]);
            command.arg(&tools);
            command.env_remove("CARGO_TARGET_DIR");
            crate::step::run(&mut command)
        })
        .with_context(|| {
            format!(
                "install it by hand: cargo install cargo-fuzz --locked --root {}",
                tools.display()
            )
        })?;
    }
    if output("rustup", &["run", "nightly", "rustc", "--version"]).is_none() {
        step("the nightly toolchain", || {
            crate::step::run(Command::new("rustup").args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
            ]))
        })
        .context(
            "libFuzzer needs rustup's nightly: rustup toolchain install nightly --profile minimal; \
             without it `cargo test -p tunnel --test corpus` runs the same targets, bounded",
        )?;
    }
    Ok(())
}

fn cargo_fuzz(verb: &str, name: &str) -> anyhow::Result<Command> {
    let mut command = bpf::cargo(Route::Nightly);
    command
        .args(["fuzz", verb, "--fuzz-dir"])
        .arg(folder(name)?)
        .arg("--target-dir")
        .arg(target().join("fuzz"));
    Ok(command)
}

fn one(name: &str, seconds: u64) -> anyhow::Result<Row> {
    let folder = folder(name)?;
    let corpus = folder.join("corpus").join(name);
    fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let mut command = cargo_fuzz("run", name)?;
    command.arg(name).arg(corpus);
    for kind in ["seeds", "regressions"] {
        let inputs = folder.join(kind).join(name);
        if inputs.exists() {
            command.arg(inputs);
        }
    }
    command.arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_LEN}"),
        // Long inputs from the start: slow targets would not reach them in hours otherwise.
        "-len_control=0".to_owned(),
        format!("-timeout={SLOW_INPUT_SECONDS}"),
        "-print_final_stats=1".to_owned(),
    ]);
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start cargo fuzz run")?;
    let mut last = VecDeque::new();
    let mut executions = None;
    let mut shown = Instant::now();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("read libFuzzer's output")?;
            let line = String::from_utf8_lossy(&line).into_owned();
            executions = executed(&line).or(executions);
            if line.starts_with('#') && shown.elapsed() >= PROGRESS_INTERVAL {
                errln!("    {line}");
                shown = Instant::now();
            }
            if last.len() == MAX_OUTPUT_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    let ok = child.wait().context("wait for cargo fuzz run")?.success();
    if !ok {
        for line in last {
            errln!("{line}");
        }
    }
    Ok(Row {
        name: name.to_owned(),
        executions,
        seconds: begun.elapsed().as_secs_f64(),
        ok,
    })
}

/// Runs so far: from a line of progress (`#123 …`), or from the last statistics.
fn executed(line: &str) -> Option<u64> {
    let number = line
        .strip_prefix("stat::number_of_executed_units:")
        .or_else(|| line.strip_prefix('#'))?;
    number.split_whitespace().next()?.parse().ok()
}

/// Prints how to keep and reproduce a finding.
fn print_reproduction(name: &str) -> anyhow::Result<()> {
    let folder = folder(name)?;
    let artifacts = folder.join("artifacts").join(name);
    let input = newest(&artifacts).map_or_else(
        || format!("an input in {}", artifacts.display()),
        |path| path.display().to_string(),
    );
    errln!("\nxtask: {name} fails on {input}");
    let regressions = folder.join("regressions").join(name);
    let regressions = regressions.display();
    errln!("  keep the input: mkdir -p {regressions} && mv {input} {regressions}/WHAT-WAS-WRONG");
    errln!(
        "  reproduce it: cargo test -p tunnel -p tunnel-worker -p causeway-gateway -p \
         appliance-user --test corpus"
    );
    errln!("  then fix the defect and commit both");
    Ok(())
}

/// The file written last.
fn newest(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .max_by_key(|entry| {
            entry
                .metadata()
                .and_then(|data| data.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH)
        })
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crates_are_those_that_continuous_integration_formats() {
        let manifests = test_support::repository::files(&["Cargo.toml"]);
        let mut tracked: Vec<_> = manifests
            .iter()
            .filter_map(|manifest| manifest.parent())
            .filter(|folder| folder.ends_with("fuzz"))
            .map(|folder| {
                folder
                    .strip_prefix(workspace())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        tracked.sort();
        assert!(!tracked.is_empty());
        assert_eq!(folders().unwrap(), tracked);
        // The same, as git lists them.
        let script = fs::read_to_string(workspace().join(".ci/run")).unwrap();
        assert!(
            script.contains("git ls-files -- '*/fuzz/Cargo.toml'"),
            "{script}"
        );
    }

    #[test]
    fn every_target_has_seeds_and_an_entry() {
        let names = targets().unwrap();
        assert!(!names.is_empty());
        for name in names {
            let folder = folder(&name).unwrap();
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            assert!(folder.join("seeds").join(&name).is_dir(), "{name}");
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }

    #[test]
    fn they_are_checked_as_locked_without_a_compiler_of_cpp() {
        for folder in &folders().unwrap() {
            let command = check_command(folder);
            assert!(show(&command).contains(&format!(
                "clippy --release --locked --bins --manifest-path {}",
                workspace().join(folder).join("Cargo.toml").display()
            )));
            let custom = command
                .get_envs()
                .find(|(name, _)| *name == "CUSTOM_LIBFUZZER_PATH");
            assert!(
                custom.is_some_and(|(_, path)| path.is_some_and(|path| Path::new(path).exists()))
            );
            assert!(workspace().join(folder).join("Cargo.lock").exists());
        }
    }

    #[test]
    fn the_longest_input_is_the_targets_own() {
        let lib = fs::read_to_string(workspace().join("tools/fuzzing/src/lib.rs")).unwrap();
        assert!(lib.contains(&format!("MAX_LEN: usize = {MAX_LEN};")));
    }

    #[test]
    fn runs_are_read_from_progress_and_statistics() {
        assert_eq!(executed("#4096\tpulse  cov: 12 ft: 13"), Some(4096));
        assert_eq!(executed("stat::number_of_executed_units: 77"), Some(77));
        assert_eq!(executed("INFO: seed corpus"), None);
    }
}
