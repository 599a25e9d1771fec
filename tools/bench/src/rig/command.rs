//! Commands that are run to their end.

use std::{ffi::OsStr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, bail};

/// A command may take this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A command in a namespace, not started yet.
pub fn command(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// Runs `words` in a namespace and returns its standard output.
pub fn exec(namespace: &str, words: &str) -> anyhow::Result<String> {
    output(
        Command::new("ip")
            .args(["netns", "exec", namespace])
            .args(words.split_whitespace()),
    )
}

/// Runs `words`.
pub fn sh(words: &str) -> anyhow::Result<()> {
    let mut parts = words.split_whitespace();
    let program = parts.next().context("a command")?;
    output(Command::new(program).args(parts)).map(drop)
}

/// Runs a command, for 60 s at most, and returns its standard output. An exit status other than 0
/// is an error that quotes the command and its output.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = lab::run(command, TIMEOUT)?;
    if output.ok() {
        return Ok(output.stdout);
    }
    let text = format!("{}\n{}", output.stdout.trim(), output.stderr.trim());
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy())
        .collect();
    bail!(
        "`{}` ended with {}: {}",
        words.join(" "),
        output.status,
        text.trim()
    )
}

/// The file of a program: a tool that xtask built, or one on the path.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.is_file());
    }
    let tools = std::env::var_os("CAUSEWAY_BENCH_TOOLS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin"].map(PathBuf::from);
    tools
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|p| p.is_file())
}

/// The first of `programs` that is not installed, with the command that installs it.
pub fn lacks(bench: &str, programs: &[&str]) -> Option<String> {
    programs.iter().find(|p| find(p).is_none()).map(|p| {
        format!("{p} is not installed; `cargo xtask bench {bench}` installs it as root on Debian")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_program_is_named() {
        let why = lacks("relay", &["sh", "no-such-program-at-all"]).unwrap();
        assert!(why.starts_with("no-such-program-at-all "), "{why}");
        assert!(why.contains("bench relay"), "{why}");
        assert_eq!(lacks("relay", &["sh"]), None);
    }
}
