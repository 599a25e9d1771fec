//! A contender's processes, files and CPU time.

use std::{
    any::Any,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tempfile::TempDir;

use super::command;

/// A running contender. Its processes end, and its files are removed, when it is dropped.
pub struct Running {
    // Dropped in this order: processes, the objects they use, their files.
    daemons: Vec<Daemon>,
    kept: Vec<Box<dyn Any>>,
    directory: TempDir,
}

impl Running {
    /// No process yet; a separate directory that only root reads.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("causeway-bench-")
            .tempdir()
            .context("make a directory for a contender's files")?;
        Ok(Self {
            daemons: Vec::new(),
            kept: Vec::new(),
            directory,
        })
    }

    /// Directory of keys and configurations; removed at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a process that ends with the run. Its output goes to the log `NAME.log`.
    pub fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = self.directory().join(format!("{name}.log"));
        self.daemons.push(Daemon::start(command, log)?);
        Ok(())
    }

    /// Keeps an object, such as loaded programs, until the end.
    pub fn keep(&mut self, thing: impl Any) {
        self.kept.push(Box::new(thing));
    }

    /// The process that was started under this name.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.daemons
            .iter()
            .find(|d| d.log.file_stem().is_some_and(|stem| stem == name))
            .map(Daemon::pid)
    }

    /// CPU seconds that its processes and their descendants have used: user and system, all
    /// threads.
    pub fn cpu_seconds(&self) -> f64 {
        let mut pids: Vec<u32> = self.daemons.iter().map(|d| d.child.id()).collect();
        let mut seconds = 0.0;
        while let Some(pid) = pids.pop() {
            seconds += cpu_seconds_of(pid).unwrap_or(0.0);
            pids.extend(children(pid));
        }
        seconds
    }

    /// Whether it has processes whose CPU time can be measured.
    pub fn has_processes(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// The last lines of the logs, for an error message.
    pub fn logs(&self) -> String {
        let tails = self.daemons.iter().map(|daemon| {
            let text = std::fs::read_to_string(&daemon.log).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(3).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
        });
        tails
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join(" // ")
    }

    /// A command in a namespace, for [`Running::start`], in the contender's directory.
    pub fn command(&self, namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command::command(namespace, program);
        command.current_dir(self.directory());
        command
    }

    /// Kills a process that [`Running::start`] started, and waits until its files are closed.
    pub fn end(&self, name: &str) -> anyhow::Result<()> {
        let pid = self
            .pid(name)
            .with_context(|| format!("{name} was not started"))?;
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
        let until = Instant::now() + Duration::from_secs(5);
        // A zombie without threads has no open files.
        while fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) > 1
            || fs::read_link(format!("/proc/{pid}/exe")).is_ok()
        {
            ensure!(Instant::now() < until, "{name} does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Writes a file into the contender's directory.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// A process that ends when it is dropped; the kernel ends it if this program is killed.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it in a separate process group, so that the terminal's Ctrl-C does not reach it.
    pub fn start(command: &mut Command, log: PathBuf) -> anyhow::Result<Self> {
        let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .process_group(0);
        // SAFETY: the closure makes one system call, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("start {:?}", command.get_args().collect::<Vec<_>>()))?;
        Ok(Self { child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its children may outlive it (socat's do). They get SIGTERM first, while their parent
        // still holds their ids; our own child keeps its id until we wait for it. So no other
        // process is signalled.
        let mut pids = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            pids.extend(children(*pid));
            next += 1;
        }
        for pid in pids.into_iter().rev() {
            if let Ok(pid) = i32::try_from(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process, seconds (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds_of(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu_seconds(&text)
}

fn parse_cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    // USER_HZ is 100 on every architecture that we run on (times(2)).
    Some((ticks()? + ticks()?) / 100.0)
}

/// The child processes of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            let pids: Vec<u32> = text
                .split_whitespace()
                .filter_map(|p| p.parse().ok())
                .collect();
            pids
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_reads_past_spaces_and_parentheses_in_the_name() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194304 1 2 3 4 150 50 7 8 20 0 1 0 123456 9 9";
        assert_eq!(parse_cpu_seconds(stat), Some(2.0));
        assert_eq!(parse_cpu_seconds("42 (x) S 1"), None);
    }

    #[test]
    fn a_contender_that_is_dropped_ends_with_its_processes_and_files() {
        let mut running = Running::new().unwrap();
        let directory = running.directory().to_owned();
        running
            .start("sleep", Command::new("sleep").arg("60"))
            .unwrap();
        running
            .start("forks", Command::new("sh").args(["-c", "sleep 61 & wait"]))
            .unwrap();
        let pids = running.daemons.iter().map(Daemon::pid);
        let mut pids: Vec<u32> = pids.collect();
        let until = Instant::now() + Duration::from_secs(10);
        let forked = loop {
            match children(pids[1]).first() {
                Some(pid) => break *pid,
                None => assert!(Instant::now() < until, "the shell did not fork"),
            }
        };
        pids.push(forked);
        assert!(running.has_processes());
        drop(running);
        assert!(!directory.exists());
        // The last one is an orphan: its new parent reaps it at some time.
        let is_there = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while pids.iter().any(is_there) {
            assert!(Instant::now() < until, "one of {pids:?} is left");
        }
    }
}
