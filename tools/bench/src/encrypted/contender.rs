//! What takes part, and what it left running.

use std::{
    any::Any,
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tempfile::TempDir;

use super::sites::{self, Layer, Machine, Sites};

/// What a contender is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Encrypts nothing: what the topology itself costs.
    Floor,
    /// An encrypted tunnel of somebody else's.
    Peer,
    /// Ours.
    Causeway,
}

/// What one worker on one core carries.
#[derive(Clone, Copy, Debug)]
pub struct OneCore {
    /// Bytes of each packet.
    pub bytes: usize,
    /// Packets a second, received at the far end.
    pub packets_per_second: f64,
}

/// Something that joins the two sites.
pub trait Contender {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// What it is there for.
    fn role(&self) -> Role {
        Role::Peer
    }

    /// What it carries.
    fn layer(&self) -> Layer;

    /// Why it cannot take part on this machine.
    fn missing(&self) -> Option<String>;

    /// Whether it reads packets before the kernel fills in checksums (as XDP does): then the hosts fill
    /// them in themselves, with offloads on too. That takes TSO from the hosts.
    fn needs_checksums(&self) -> bool {
        false
    }

    /// Joins the sites. The caller waits until the hosts reach each other.
    ///
    /// What it starts goes through [`Running::start`], so that it ends with the run and its CPU time is
    /// found.
    fn up(&self, sites: &Sites) -> anyhow::Result<Running>;

    /// Takes apart what [`Contender::up`] made, beyond what ends with `running` and the namespaces.
    fn down(&self, _sites: &Sites, running: Running) -> anyhow::Result<()> {
        drop(running);
        Ok(())
    }

    /// What one worker on one core carries of packets of 1420 bytes, for those that can tell: the
    /// contenders `causeway` and [`super::FORWARD`], which is the same worker without a cipher.
    /// Called wire-like only, after the other figures.
    fn one_core(&self, _sites: &Sites, _running: &Running) -> anyhow::Result<Option<OneCore>> {
        Ok(None)
    }
}

/// A contender that is up: ended, and its files removed, when dropped.
pub struct Running {
    // Dropped in this order: processes, what they use, their files.
    daemons: Vec<Daemon>,
    kept: Vec<Box<dyn Any>>,
    directory: TempDir,
}

impl Running {
    /// Nothing yet, with a directory of its own that only root reads.
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

    /// Where keys and configurations go; removed at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a process that ends with the run; its output goes to a log.
    pub fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = self.directory().join(format!("{name}.log"));
        self.daemons.push(Daemon::start(command, log)?);
        Ok(())
    }

    /// Keeps something until the end, as loaded programs.
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

    /// CPU seconds of its processes and their descendants so far: user and system, all threads.
    pub fn cpu_seconds(&self) -> f64 {
        let mut pids: Vec<u32> = self.daemons.iter().map(|d| d.child.id()).collect();
        let mut seconds = 0.0;
        while let Some(pid) = pids.pop() {
            seconds += cpu_seconds_of(pid).unwrap_or(0.0);
            pids.extend(children(pid));
        }
        seconds
    }

    /// Whether it has processes whose CPU time counts.
    pub fn has_processes(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// The last lines of the logs, for a message.
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

    /// A command in a machine, to be given to [`Running::start`], in the contender's directory.
    pub fn command(&self, machine: Machine, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = sites::command(machine.namespace, program);
        command.current_dir(self.directory());
        command
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

/// A process that is ended when dropped, and by the kernel if we are killed.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, away from the terminal's ctrl-C.
    pub fn start(command: &mut Command, log: PathBuf) -> anyhow::Result<Self> {
        let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .process_group(0);
        // SAFETY: the closure only makes a system call.
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
        // Children that it started may outlive it (socat's do). They are asked first, while it is there to keep their ids; and a child
        // of ours that was not awaited keeps its own. So no other process is signalled.
        let mut pids = vec![self.child.id()];
        let mut place = 0;
        while let Some(pid) = pids.get(place) {
            pids.extend(children(*pid));
            place += 1;
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
        // Ended meanwhile is as good.
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

/// The processes that any thread of a process started.
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

/// Why a contender cannot take part: the first of `programs` that cannot be found.
pub fn lacks(programs: &[&str]) -> Option<String> {
    programs.iter().find(|p| find(p).is_none()).map(|p| {
        format!("{p} is not installed; `cargo xtask bench encrypted` installs it as root on Debian")
    })
}

/// Where a program is: among what xtask built for us, or on the path.
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
    fn an_absent_program_is_named() {
        let why = lacks(&["sh", "no-such-program-at-all"]).unwrap();
        assert!(why.starts_with("no-such-program-at-all "), "{why}");
        assert_eq!(lacks(&["sh"]), None);
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
                None => assert!(Instant::now() < until, "it never forked"),
            }
        };
        pids.push(forked);
        assert!(running.has_processes());
        drop(running);
        assert!(!directory.exists());
        // The last one is nobody's child any more: whoever takes it does so in its own time.
        let is_there = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while pids.iter().any(is_there) {
            assert!(Instant::now() < until, "one of {pids:?} is left");
        }
    }
}
