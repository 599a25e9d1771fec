//! Builds all test programs and daemons in one call of cargo, so that no crate is compiled twice.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    cargo::cargo,
    step::{show, step},
    targets::{Target, Workspace},
};

/// A built test program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its test target.
    pub target: Target,
    /// The file to run.
    pub path: PathBuf,
}

/// How cargo optimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As the daemons are shipped; the profile of every ordinary run.
    Release,
    /// With overflow checks and debug assertions.
    Dev,
}

/// Builds every package of the workspace that is not compiled for BPF; the programs of `wanted`.
///
/// # Errors
/// If something does not compile, or cargo names no program for a target.
pub fn build(
    workspace: &Workspace,
    profile: Profile,
    wanted: impl Fn(&Target) -> bool,
) -> anyhow::Result<Vec<Program>> {
    let targets: Vec<_> = workspace.targets.iter().filter(|t| wanted(t)).collect();
    let what = match profile {
        Profile::Release => "build all daemons, tools and test programs",
        Profile::Dev => "build test programs with overflow checks and debug assertions",
    };
    step(what, || {
        let mut command = cargo();
        match profile {
            // Always everything, so that features are resolved in the same way each time. `build`,
            // since `test --no-run` builds no program of a package without integration tests.
            Profile::Release => command.args(["build", "--release", "--lib", "--bins", "--tests"]),
            Profile::Dev => {
                command.args(["test", "--no-run", "--lib", "--bins"]);
                let tests = targets.iter().filter(|t| t.kind == "test");
                command.args(tests.flat_map(|t| ["--test", &t.name]))
            }
        };
        command.args(["--locked", "--message-format=json-render-diagnostics"]);
        whole_workspace(&mut command, workspace);
        let artifacts = run(&mut command)?;
        targets
            .into_iter()
            .map(|target| {
                let built = artifacts.iter().find(|a| is_of(a, target));
                let path = built
                    .and_then(|a| a["executable"].as_str())
                    .with_context(|| {
                        format!("cargo built no test program for {}", target.label())
                    })?;
                Ok(Program {
                    target: target.clone(),
                    path: path.into(),
                })
            })
            .collect()
    })
}

/// All packages but those that are compiled for BPF.
pub fn whole_workspace(command: &mut Command, workspace: &Workspace) {
    command.arg("--workspace");
    for (package, _) in &workspace.bpf {
        command.args(["--exclude", package]);
    }
}

/// Whether an artifact is the test program of a target.
fn is_of(artifact: &Value, target: &Target) -> bool {
    artifact["profile"]["test"] == true
        && artifact["package_id"] == target.package_id.as_str()
        && artifact["target"]["name"] == target.name.as_str()
        && artifact["target"]["kind"][0] == target.kind.as_str()
}

/// Runs cargo; its messages about artifacts.
fn run(command: &mut Command) -> anyhow::Result<Vec<Value>> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let mut artifacts = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read cargo's messages")?;
            match serde_json::from_str::<Value>(&line) {
                Ok(message) if message["reason"] == "compiler-artifact" => artifacts.push(message),
                _ => {}
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(artifacts)
}
