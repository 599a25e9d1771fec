//! A Causeway daemon inside a host: start, kill, and queries by its command line.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    error::{Error, Result},
    interrupt,
    process::{self, Output, Process},
    site::{Lab, running, wait},
};

/// Time for one command to a daemon.
pub(crate) const CLI: Duration = Duration::from_secs(30);
/// Time for a daemon to become ready.
const READY: Duration = Duration::from_secs(45);

/// A daemon of a lab, and where its things are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Daemon<'a> {
    pub lab: &'a Lab,
    pub host: &'a str,
    /// `appliance` or `gateway`: what the record has in front of the host.
    pub kind: &'static str,
    pub program: &'a Path,
    pub hint: &'static str,
}

impl Daemon<'_> {
    fn name(&self) -> String {
        format!("{}:{}", self.kind, self.host)
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        let file = format!("{}.toml", self.host);
        self.lab.run_dir().join("etc").join(file)
    }

    /// Its control socket.
    pub fn socket_path(&self) -> PathBuf {
        self.lab.run_dir().join(format!("{}.sock", self.host))
    }

    pub fn log_path(&self) -> PathBuf {
        self.lab.log_path(&self.name())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Its process, if it runs.
    pub fn process(&self) -> Result<Option<Process>> {
        running(self.lab, self.kind, self.host)
    }

    /// Starts it with its configuration file.
    pub fn launch(&self, further: &[(&str, &Path)]) -> Result<()> {
        self.check_exists()?;
        let mut command = Command::new(self.program);
        command
            .arg("run")
            .arg("--config")
            .arg(self.config_path())
            .envs(further.iter().copied());
        let hosts = self.lab.hosts_path(self.host);
        if hosts.exists() {
            process::with_hosts(&mut command, &hosts)?;
        }
        self.lab
            .spawn_command(self.host, &self.name(), &mut command)
            .map(drop)
    }

    /// Whether the program is built.
    fn check_exists(&self) -> Result<()> {
        if self.program.exists() {
            return Ok(());
        }
        Err(Error::Missing {
            path: self.program.to_owned(),
            hint: self.hint,
        })
    }

    /// Waits until its status satisfies `ready`; the error ends with its log.
    pub fn await_ready(&self, ready: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        let said = wait(
            &format!("readiness of {}", self.host),
            READY,
            Duration::from_millis(20),
            || {
                if self.process()?.is_none() {
                    return Err(Error::Command {
                        command: format!("causeway-{} on {}", self.kind, self.host),
                        status: "it ended".to_owned(),
                        stderr: String::new(),
                    });
                }
                let output = self.cli(&["status", "--json"])?;
                let status: Option<serde_json::Value> = serde_json::from_str(&output.stdout).ok();
                Ok(if output.ok() && status.as_ref().is_some_and(&ready) {
                    Ok(())
                } else {
                    Err(format!("{}{}", output.stdout.trim(), output.stderr.trim()))
                })
            },
        );
        said.map_err(|e| match e {
            Error::Interrupted => Error::Interrupted,
            other => Error::Output {
                what: format!("{other}; log of {}", self.host),
                reason: self.log_tail(20),
            },
        })
    }

    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.process()?.map_or(Ok(()), |p| p.stop(grace))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process()?.map_or(Ok(()), |p| p.signal(signal))
    }

    pub fn kill(&self) -> Result<()> {
        self.process()?.map_or(Ok(()), Process::kill)
    }

    pub fn cli<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<Output> {
        process::run(&mut self.cli_command(words), CLI)
    }

    pub fn must<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<String> {
        process::must(&mut self.cli_command(words), None, CLI, interrupt::check).map(|o| o.stdout)
    }

    pub fn json<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<serde_json::Value> {
        let text = self.must(words)?;
        serde_json::from_str(&text).map_err(|e| Error::Output {
            what: process::text_of(&self.cli_command(words)),
            reason: format!("{e}: {text}"),
        })
    }

    fn cli_command<S: Into<OsString> + Clone>(&self, words: &[S]) -> Command {
        let mut command = Command::new(self.program);
        // Commands that ask no daemon ignore the variables, and refuse the option.
        for variable in ["CAUSEWAY_SOCKET", "CAUSEWAY_GATEWAY_SOCKET"] {
            command.env(variable, self.socket_path());
        }
        command.args(words.iter().map(|w| w.clone().into()));
        command
    }
}
