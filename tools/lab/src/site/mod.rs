//! A standing lab, and reaching into it: commands, background processes, work in its namespaces.

mod down;
mod raise;

use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use crate::{
    error::{During as _, Error, Result},
    interrupt, netns,
    paths::Paths,
    process::{self, Output, Process},
    record::{Entry, Record},
    topology::{Host, Topology},
};

/// Run directories of all labs.
pub const RUN_ROOT: &str = "/run/causeway-lab";
/// The BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Pins of all labs.
pub const PIN_ROOT: &str = "/sys/fs/bpf/causeway-lab";

/// Names of labs that tests raise start like this, followed by the id of the test's process.
pub const TEST_PREFIX: &str = "test-";

/// Time for one iproute2 or ethtool run.
const TOOL: Duration = Duration::from_secs(30);

/// A lab that is up. Dropping it leaves it up: use [`Lab::down`] or [`Scoped`].
#[derive(Debug)]
pub struct Lab {
    name: String,
    topology: Topology,
    run_dir: PathBuf,
    record: Mutex<Record>,
    paths: Paths,
    /// Held by the process that raised it, for as long as it uses it.
    _owner: Option<UnixListener>,
}

/// A lab that is taken down when dropped, a panic included. For tests.
#[derive(Debug)]
pub struct Scoped(Lab);

impl Scoped {
    /// Takes `lab` down at the end of the scope.
    #[must_use]
    pub fn new(lab: Lab) -> Self {
        Self(lab)
    }
}

impl std::ops::Deref for Scoped {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        if let Err(e) = Lab::down(&self.0.name) {
            service::errln!("lab {}: {e}", self.0.name);
        }
    }
}

/// One line of [`Lab::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The lab.
    pub name: String,
    /// Its topology's name; empty if that was not written down yet.
    pub topology: String,
    pub hosts: Vec<String>,
    /// Hosts whose appliance daemon runs.
    pub appliances: Vec<String>,
    /// Hosts whose gateway daemon runs.
    pub gateways: Vec<String>,
    /// Machines that are failed over.
    pub failed_over: Vec<String>,
}

impl Lab {
    /// A lab that another process raised.
    ///
    /// # Errors
    /// [`Error::NotUp`], or if its run directory cannot be read.
    pub fn open(name: &str, paths: Paths) -> Result<Self> {
        let run_dir = Path::new(RUN_ROOT).join(name);
        let path = run_dir.join("topology.json");
        let Ok(text) = fs::read_to_string(&path) else {
            return Err(Error::NotUp {
                name: name.to_owned(),
            });
        };
        let topology = serde_json::from_str(&text).map_err(|e| Error::Output {
            what: path.display().to_string(),
            reason: e.to_string(),
        })?;
        Ok(Self {
            name: name.to_owned(),
            topology,
            record: Mutex::new(Record::open(&run_dir)?),
            run_dir,
            paths,
            _owner: None,
        })
    }

    /// Every lab that has a run directory, in order.
    ///
    /// # Errors
    /// If [`RUN_ROOT`] is there but cannot be read.
    pub fn list() -> Result<Vec<Listed>> {
        let mut labs = Vec::new();
        for name in recorded_labs()? {
            let Ok(lab) = Self::open(&name, Paths::find()) else {
                labs.push(Listed {
                    name,
                    topology: String::new(),
                    hosts: Vec::new(),
                    appliances: Vec::new(),
                    gateways: Vec::new(),
                    failed_over: Vec::new(),
                });
                continue;
            };
            let running_of =
                |kind: &str, hosts: &mut dyn Iterator<Item = &String>| -> Vec<String> {
                    let runs = |host: &&String| matches!(running(&lab, kind, host), Ok(Some(_)));
                    hosts.filter(runs).cloned().collect()
                };
            let appliances = lab.topology.appliances.iter();
            let gateways = lab.topology.cloud.gateways.iter();
            labs.push(Listed {
                topology: lab.topology.name.clone(),
                hosts: lab.topology.hosts.iter().map(|h| h.name.clone()).collect(),
                appliances: running_of("appliance", &mut appliances.map(|a| &a.host)),
                gateways: running_of("gateway", &mut gateways.map(|g| &g.host)),
                failed_over: lab.failed_over()?,
                name,
            });
        }
        Ok(labs)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Its run directory: `log/`, `etc/`, `capture/`, `state/`, `record.jsonl`, `topology.json`.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The built files that it uses.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The namespace of a host or switch.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn namespace(&self, host: &str) -> Result<String> {
        let known = || {
            self.topology
                .hosts
                .iter()
                .map(|h| &h.name)
                .chain(self.topology.switches.iter().map(|s| &s.name))
        };
        if known().any(|n| n == host) {
            return Ok(netns::name(&self.name, host));
        }
        Err(self.unknown("host", host, known()))
    }

    pub(crate) fn unknown<'a>(
        &self,
        kind: &'static str,
        name: &str,
        known: impl Iterator<Item = &'a String>,
    ) -> Error {
        Error::Unknown {
            kind,
            name: name.to_owned(),
            lab: self.name.clone(),
            known: known.cloned().collect::<Vec<_>>().join(", "),
        }
    }

    fn host(&self, name: &str) -> Result<&Host> {
        self.topology
            .find_host(name)
            .ok_or_else(|| self.unknown("host", name, self.topology.hosts.iter().map(|h| &h.name)))
    }

    /// Runs `words` in a host or switch to its end, for at most `within`; kills it after that.
    /// `/sys` is the machine's own, so bpffs is there.
    ///
    /// # Errors
    /// If it cannot be started, on a timeout, on an interrupt. A status other than 0 is no error:
    /// look at [`Output::status`].
    pub fn exec<S: Into<OsString> + Clone>(
        &self,
        host: &str,
        words: &[S],
        within: Duration,
    ) -> Result<Output> {
        let mut command = self.command_in(host, words, false)?;
        process::run(&mut command, within)
    }

    /// As [`Lab::exec`], but a status other than 0 is an error with the command's output. Returns
    /// its standard output.
    ///
    /// # Errors
    /// As [`Lab::exec`], and [`Error::Command`].
    pub fn must<S: Into<OsString> + Clone>(
        &self,
        host: &str,
        words: &[S],
        within: Duration,
    ) -> Result<String> {
        let mut command = self.command_in(host, words, false)?;
        process::must(&mut command, None, within, interrupt::check).map(|o| o.stdout)
    }

    /// A command that will run in a host or switch, for a caller that configures it further.
    /// `foreground`: it stays in the caller's process group, as an interactive one must; else it
    /// has its own, and dies with the calling thread.
    ///
    /// # Errors
    /// If there is no such host, or no word.
    pub fn command_in<S: Into<OsString> + Clone>(
        &self,
        host: &str,
        words: &[S],
        foreground: bool,
    ) -> Result<Command> {
        let namespace = netns::open(&self.namespace(host)?)?;
        let mut command = process::command(words)?;
        process::in_namespace(&mut command, namespace, foreground);
        if !foreground {
            process::die_with_parent(&mut command);
        }
        Ok(command)
    }

    /// Starts `words` in a host and leaves it running, its output in `log/<name>.log` of the run
    /// directory. It is in the record before it becomes the program, so [`Lab::down`] ends it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn<S: Into<OsString> + Clone>(
        &self,
        host: &str,
        name: &str,
        words: &[S],
    ) -> Result<Process> {
        let mut command = process::command(words)?;
        self.spawn_command(host, name, &mut command)
    }

    pub(crate) fn spawn_command(
        &self,
        host: &str,
        name: &str,
        command: &mut Command,
    ) -> Result<Process> {
        let namespace = netns::open(&self.namespace(host)?)?;
        process::in_namespace(command, namespace, false);
        let path = self.log_path(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .during(|| format!("opening {}", path.display()))?;
        process::spawn(command, name, &self.record(), log)
    }

    /// Writes the file that the daemon on a host has as `/etc/hosts`, if it is there before that
    /// starts. Later changes take effect at the daemon's next lookup.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_hosts(&self, host: &str, text: &str) -> Result<()> {
        let path = self.hosts_path(host);
        // In place: the daemon has the file, not its name.
        std::fs::write(&path, text).during(|| format!("writing {}", path.display()))
    }

    pub(crate) fn hosts_path(&self, host: &str) -> PathBuf {
        self.run_dir.join("etc").join(format!("{host}.hosts"))
    }

    /// Log of a background process.
    #[must_use]
    pub fn log_path(&self, name: &str) -> PathBuf {
        let file: String = name
            .chars()
            .map(|c| if c == '/' || c == ':' { '-' } else { c })
            .collect();
        self.run_dir.join("log").join(format!("{file}.log"))
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on a thread inside a host's or switch's namespace.
    ///
    /// # Errors
    /// If there is no such host, and whatever `work` returns.
    pub fn within<T: Send>(
        &self,
        host: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        netns::within(&self.namespace(host)?, work)
    }
}

/// Polls until `probe` returns `Ok(Ok(value))`; `Ok(Err(detail))` describes the present state.
///
/// # Errors
/// [`Error::Timeout`] with the last detail, an interrupt, and whatever `probe` fails with.
pub fn wait<T>(
    what: &str,
    within: Duration,
    pause: Duration,
    mut probe: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let until = Instant::now() + within;
    loop {
        interrupt::check()?;
        match probe()? {
            Ok(value) => return Ok(value),
            Err(detail) if Instant::now() >= until => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    within,
                    detail,
                });
            }
            Err(_) => thread::sleep(pause),
        }
    }
}

/// The process of that kind on `host`, if it runs.
pub(crate) fn running(lab: &Lab, kind: &str, host: &str) -> Result<Option<Process>> {
    let wanted = format!("{kind}:{host}");
    Ok(Record::read(lab.run_dir())?
        .into_iter()
        .rev()
        .filter_map(|e| match e {
            Entry::Process { pid, start, name } if name == wanted => Some(Process { pid, start }),
            _ => None,
        })
        .find(|p| p.is_alive()))
}

fn need_root() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Error::Io {
        operation: "raising or taking down a lab; run it as root, or inside a container that is"
            .to_owned(),
        source: std::io::Error::from_raw_os_error(libc::EPERM),
    })
}

/// `ip` with input; no check for interrupts, since each run is short and tear-down uses it too.
fn must_ip(words: &[&str], input: Option<&str>) -> Result<Output> {
    let mut command = Command::new("ip");
    command.args(words);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    process::die_with_parent(&mut command);
    let input = input.map(|lines| format!("{lines}\n"));
    process::must(&mut command, input.as_deref(), TOOL, || Ok(()))
}

fn recorded_labs() -> Result<Vec<String>> {
    let dir = match fs::read_dir(RUN_ROOT) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).during(|| format!("listing {RUN_ROOT}")),
    };
    let mut labs: Vec<_> = dir
        .filter_map(|e| e.ok())
        .filter(|e| e.path().is_dir())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    labs.sort();
    Ok(labs)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

/// Claims a lab's name for this process, until dropped or the process ends, however it ends: an
/// abstract socket address, which leaves nothing behind.
fn own(name: &str) -> Result<UnixListener> {
    let claim = || {
        let address = SocketAddr::from_abstract_name(format!("causeway-lab/{name}"))?;
        UnixListener::bind_addr(&address)
    };
    claim().map_err(|source| {
        if source.kind() == std::io::ErrorKind::AddrInUse {
            Error::InUse {
                name: name.to_owned(),
            }
        } else {
            Error::Io {
                operation: format!("claiming the lab name {name}"),
                source,
            }
        }
    })
}

/// Held while bpffs is mounted, unmounted, or gets a directory.
fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(RUN_ROOT).during(|| format!("creating {RUN_ROOT}"))?;
    let path = Path::new(RUN_ROOT).join(".lock");
    let file = File::create(&path).during(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .during(|| format!("locking {}", path.display()))
}
