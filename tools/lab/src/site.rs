//! A standing lab: raising it, taking it down, reaching into it.

use std::{
    collections::BTreeSet,
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
    mount::{MsFlags, mount, umount},
    sys::{
        signal::Signal,
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::geteuid,
};

use crate::{
    daemon,
    error::{During as _, Error, Result},
    interrupt, netns,
    paths::Paths,
    plan::{self, Plan},
    process::{self, Output, Process},
    record::{Entry, Record},
    switch,
    topology::{Host, Kind, Topology, check_name},
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

/// A lab that stands. Dropping it leaves it standing: [`Lab::down`], or [`Scoped`].
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
    /// Its hosts.
    pub hosts: Vec<String>,
    /// Hosts whose appliance daemon runs.
    pub appliances: Vec<String>,
    /// Hosts whose gateway daemon runs.
    pub gateways: Vec<String>,
    /// Machines that are failed over.
    pub failed_over: Vec<String>,
}

impl Lab {
    /// Raises `topology` as lab `name`, without appliances and gateways ([`Lab::start_appliances`]). A lab of
    /// that name, whole or half, is cleared first, unless the process that raised it still uses it.
    /// Returns when every address of a powered host is usable.
    ///
    /// # Errors
    /// [`Error::InUse`]. If the topology is not valid, this is not root, a tool is missing or fails, or a signal
    /// came. What was made until then is taken down again.
    pub fn up(topology: Topology, name: &str, paths: Paths) -> Result<Self> {
        topology.validate()?;
        check_name(name, 24).map_err(|reason| Error::Topology {
            topology: topology.name.clone(),
            reason: format!("the lab's name {name:?} {reason}"),
        })?;
        need_root()?;
        let owner = own(name)?;
        Self::down(name)?;
        let lab = Self::begin(topology, name, paths, owner)?;
        match lab.raise() {
            Ok(()) => Ok(lab),
            Err(error) => {
                if let Err(e) = Self::down(name) {
                    service::errln!("lab {name}: {e}");
                }
                Err(error)
            }
        }
    }

    fn begin(topology: Topology, name: &str, paths: Paths, owner: UnixListener) -> Result<Self> {
        let run_dir = Path::new(RUN_ROOT).join(name);
        for dir in ["", "log", "etc", "capture", "state"] {
            let dir = run_dir.join(dir);
            fs::create_dir_all(&dir).during(|| format!("creating {}", dir.display()))?;
        }
        let record = Record::open(&run_dir)?;
        let text = serde_json::to_string_pretty(&topology)
            .map_err(std::io::Error::from)
            .during(|| "writing the topology down".to_owned())?;
        let path = run_dir.join("topology.json");
        fs::write(&path, text).during(|| format!("writing {}", path.display()))?;
        let lab = Self {
            name: name.to_owned(),
            topology,
            run_dir,
            record: Mutex::new(record),
            paths,
            _owner: Some(owner),
        };
        lab.draw_circuits()?;
        Ok(lab)
    }

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
            let running = |kind: &str, hosts: &mut dyn Iterator<Item = &String>| -> Vec<String> {
                let runs =
                    |host: &&String| matches!(daemon::running(&lab, kind, host), Ok(Some(_)));
                hosts.filter(runs).cloned().collect()
            };
            let appliances = lab.topology.appliances.iter();
            let gateways = lab.topology.cloud.gateways.iter();
            labs.push(Listed {
                topology: lab.topology.name.clone(),
                hosts: lab.topology.hosts.iter().map(|h| h.name.clone()).collect(),
                appliances: running("appliance", &mut appliances.map(|a| &a.host)),
                gateways: running("gateway", &mut gateways.map(|g| &g.host)),
                failed_over: lab.failed_over()?,
                name,
            });
        }
        Ok(labs)
    }

    /// Takes lab `name` down, from its record alone: processes, pins, namespaces, mounts, its run
    /// directory; and namespaces of that name that no record knows. Nothing there is no error.
    ///
    /// # Errors
    /// The first thing that would not go. The rest is taken down nevertheless, and the record
    /// stays, so that it can be tried again.
    pub fn down(name: &str) -> Result<()> {
        need_root()?;
        let run_dir = Path::new(RUN_ROOT).join(name);
        let entries = Record::read(&run_dir)?;
        let mut first = None;
        let mut note = |result: Result<()>| {
            if let Err(e) = result {
                first.get_or_insert(e);
            }
        };

        stop_all(&entries, &mut note);
        for entry in &entries {
            if let Entry::Pins { path } = entry {
                note(remove_pins(path));
            }
        }
        // What a record that was lost knew of.
        note(remove_pins(&Path::new(PIN_ROOT).join(name)));
        let mut namespaces: Vec<String> = entries
            .iter()
            .filter_map(|e| match e {
                Entry::Namespace { name } => Some(name.clone()),
                _ => None,
            })
            .collect();
        let ours = netns::name(name, "");
        namespaces.extend(strays()?.into_iter().filter(|n| n.starts_with(&ours)));
        note(remove_namespaces(namespaces));
        for entry in &entries {
            if let Entry::Mount { path } = entry {
                note(unmount_if_unused(path));
            }
        }
        match first {
            Some(error) => Err(error),
            None => match fs::remove_dir_all(&run_dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(e).during(|| format!("removing {}", run_dir.display()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Takes every lab down, and every namespace with our prefix that no record knows. Returns the
    /// names of the labs.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down_all() -> Result<Vec<String>> {
        need_root()?;
        let labs = recorded_labs()?;
        for lab in &labs {
            Self::down(lab)?;
        }
        remove_namespaces(strays()?)?;
        Ok(labs)
    }

    /// Takes down every lab of tests ([`TEST_PREFIX`]) that no process uses any more: a test that was
    /// killed left it. Returns their names.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down_abandoned_tests() -> Result<Vec<String>> {
        need_root()?;
        let mut labs = recorded_labs()?;
        labs.retain(|lab| lab.starts_with(TEST_PREFIX));
        let mut taken = Vec::new();
        for lab in labs {
            match own(&lab) {
                Ok(_claim) => Self::down(&lab)?,
                Err(Error::InUse { .. }) => continue,
                Err(error) => return Err(error),
            }
            taken.push(lab);
        }
        Ok(taken)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was raised.
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

    /// As [`Lab::exec`], but a status other than 0 is an error with what the command said. Returns
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

    /// A command that will run in a host or switch, for a caller with needs of its own.
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

    /// Brings a host's NICs up with addresses and routes, as a booting machine does, or takes them
    /// down. A machine that comes up announces itself: gratuitous ARP once its switch port
    /// forwards, unsolicited NA once duplicate address detection is through. Does not wait for
    /// that: [`Lab::settle`].
    ///
    /// # Errors
    /// If there is no such host or iproute2 fails.
    pub fn power(&self, host: &str, on: bool) -> Result<()> {
        let host = self.host(host)?;
        let namespace = netns::name(&self.name, &host.name);
        if !on {
            return self.ip(&namespace, &plan::power_off(host));
        }
        self.ip(&namespace, &plan::power_on(&self.topology, host))?;
        self.await_ports(host)?;
        // The port forwards only now: what was announced when the link came up was not heard.
        // Setting the MAC that is already there makes the kernel announce again.
        let again: Vec<_> = host
            .links
            .iter()
            .map(|l| {
                let mac = crate::addr::fixed_mac(&host.name, &l.name);
                format!("link set {} address {}", l.name, crate::addr::mac_text(mac))
            })
            .collect();
        self.ip(&namespace, &again)
    }

    /// `ip -batch` lines for a host's links.
    pub(crate) fn link(&self, host: &str, lines: &[String]) -> Result<()> {
        self.ip(&self.namespace(host)?, lines)
    }

    /// Gives a host the addresses and routes again that it lost with a link.
    pub(crate) fn restore(&self, host: &str) -> Result<()> {
        let lines = plan::power_on(&self.topology, self.host(host)?);
        self.link(host, &lines)
    }

    /// Waits until the switch ports of a host forward.
    fn await_ports(&self, host: &Host) -> Result<()> {
        for link in &host.links {
            let Some((switch, port)) = self.topology.port_of(&host.name, &link.name) else {
                continue;
            };
            let namespace = netns::name(&self.name, &switch);
            wait(
                &format!("port {port} of {switch} forwarding"),
                Duration::from_secs(5),
                Duration::from_millis(2),
                || {
                    let text = self.ip_show(&namespace, &["-j", "link", "show", &port])?;
                    let links: serde_json::Value =
                        serde_json::from_str(&text).map_err(|e| Error::Output {
                            what: "`ip -j link`".to_owned(),
                            reason: e.to_string(),
                        })?;
                    Ok((links[0]["operstate"] == "UP")
                        .then_some(())
                        .ok_or_else(|| text.trim().to_owned()))
                },
            )?;
        }
        Ok(())
    }

    /// Waits until no address of `host` is held back by duplicate address detection.
    ///
    /// # Errors
    /// [`Error::Timeout`] after 8 s, naming the addresses.
    pub fn settle(&self, host: &str) -> Result<()> {
        let namespace = self.namespace(host)?;
        wait(
            &format!("addresses of {host} usable"),
            Duration::from_secs(8),
            Duration::from_millis(5),
            || {
                let tentative = netns::within(&namespace, netns::tentative)?;
                Ok(if tentative.is_empty() {
                    Ok(())
                } else {
                    Err(tentative.join(", "))
                })
            },
        )
    }

    fn raise(&self) -> Result<()> {
        let plan = plan::plan(&self.topology, &self.name);
        self.make_namespaces(&plan)?;
        must_ip(&["-batch", "-"], Some(&plan.cables.join("\n")))?;
        for features in &plan.features {
            let mut words = vec!["ethtool", "-K", &features.link];
            words.extend(&features.set);
            if features.set.is_empty() {
                continue;
            }
            let mut command = process::command(&words)?;
            process::in_namespace(&mut command, netns::open(&features.namespace)?, false);
            process::die_with_parent(&mut command);
            process::must(&mut command, None, TOOL, interrupt::check)?;
        }
        for inside in &plan.switches {
            self.ip(&inside.namespace, &inside.lines)?;
        }
        for trunk in &plan.trunks {
            netns::within(&trunk.namespace, || {
                switch::attach(
                    &self.paths.lab_bpf_object,
                    &trunk.port,
                    &trunk.vlans,
                    trunk.outer_ethertype,
                )
            })?;
        }
        for end in &plan.far_ends {
            let pins = self.make_pin_dir(&end.place)?;
            netns::within(&netns::name(&self.name, &end.place), || {
                switch::attach_far_end(&self.paths.lab_bpf_object, &end.link, &pins)
            })?;
        }
        for inside in &plan.hosts {
            self.ip(&inside.namespace, &inside.lines)?;
        }
        for rules in &self.topology.rules {
            self.nft(&rules.host, &rules.nft)?;
        }
        for host in self.topology.hosts.iter().filter(|h| h.powered) {
            self.await_ports(host)?;
        }
        for host in self.topology.hosts.iter().filter(|h| h.powered) {
            self.settle(&host.name)?;
        }
        Ok(())
    }

    fn make_namespaces(&self, plan: &Plan) -> Result<()> {
        let entries: Vec<_> = plan
            .namespaces
            .iter()
            .map(|name| Entry::Namespace { name: name.clone() })
            .collect();
        self.record().add(&entries)?;
        let lines: Vec<_> = plan
            .namespaces
            .iter()
            .map(|n| format!("netns add {n}"))
            .collect();
        must_ip(&["-batch", "-"], Some(&lines.join("\n")))?;
        for namespace in &plan.namespaces {
            let host = self
                .topology
                .hosts
                .iter()
                .find(|h| &netns::name(&self.name, &h.name) == namespace);
            let router = host.is_some_and(|h| h.kind == Kind::Router);
            let set = plan::sysctls(router, host.is_none(), self.topology.options.dad);
            netns::within(namespace, || {
                set.iter()
                    .try_for_each(|(key, value)| netns::sysctl(key, value))
            })?;
        }
        Ok(())
    }

    /// `ip -batch` inside a namespace.
    fn ip(&self, namespace: &str, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        must_ip(&["-n", namespace, "-batch", "-"], Some(&lines.join("\n"))).map(drop)
    }

    fn ip_show(&self, namespace: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["-n", namespace];
        all.extend(words);
        must_ip(&all, None).map(|o| o.stdout)
    }

    /// Mounts bpffs if it is not, and makes the directory for a host's or switch's pins.
    pub(crate) fn make_pin_dir(&self, host: &str) -> Result<PathBuf> {
        let path = self.pin_dir(host);
        let _lock = lock()?;
        if !is_bpffs(Path::new(BPFFS)) {
            self.record().add(&[Entry::Mount { path: BPFFS.into() }])?;
            mount(
                Some("bpf"),
                BPFFS,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            )
            .during(|| format!("mounting bpffs on {BPFFS}"))?;
        }
        self.record().add(&[Entry::Pins { path: path.clone() }])?;
        fs::create_dir_all(&path).during(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// Where a host's or switch's pins are; an appliance's are all in it.
    #[must_use]
    pub fn pin_dir(&self, host: &str) -> PathBuf {
        Path::new(PIN_ROOT).join(&self.name).join(host)
    }
}

/// Polls until `probe` says `Ok(Ok(value))`; `Ok(Err(detail))` says what it saw instead.
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

/// Namespaces with our prefix that no record knows.
fn strays() -> Result<Vec<String>> {
    let mut known = BTreeSet::new();
    for lab in recorded_labs()? {
        for entry in Record::read(&Path::new(RUN_ROOT).join(lab))? {
            if let Entry::Namespace { name } = entry {
                known.insert(name);
            }
        }
    }
    Ok(netns::list()?
        .into_iter()
        .filter(|n| !known.contains(n))
        .collect())
}

fn remove_namespaces(mut names: Vec<String>) -> Result<()> {
    let there: BTreeSet<_> = netns::list()?.into_iter().collect();
    names.sort();
    names.dedup();
    let lines: Vec<_> = names
        .iter()
        .filter(|n| there.contains(*n))
        .map(|n| format!("netns del {n}"))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    must_ip(&["-force", "-batch", "-"], Some(&lines.join("\n"))).map(drop)
}

/// SIGTERM to all, SIGKILL to those that are still there after a second and a half.
fn stop_all(entries: &[Entry], note: &mut impl FnMut(Result<()>)) {
    let processes: Vec<_> = entries
        .iter()
        .filter_map(|e| match e {
            Entry::Process { pid, start, .. } => Some(Process {
                pid: *pid,
                start: *start,
            }),
            _ => None,
        })
        .filter(|p| p.is_alive())
        .collect();
    for process in &processes {
        note(process.signal(Signal::SIGTERM));
    }
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until && processes.iter().any(|p| p.is_alive()) {
        thread::sleep(Duration::from_millis(5));
    }
    for process in processes {
        note(process.kill());
    }
}

/// Removes a directory of pins with all below it, and its parents that are empty then.
fn remove_pins(path: &Path) -> Result<()> {
    if !path.starts_with(PIN_ROOT) || path == Path::new(PIN_ROOT) {
        return Ok(());
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).during(|| format!("removing pins {}", path.display()));
        }
        _ => {}
    }
    for parent in path.ancestors().skip(1) {
        // Not empty: another appliance's or lab's.
        if !parent.starts_with(PIN_ROOT) || fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// Unmounts a bpffs that a lab mounted, unless somebody pins there by now.
fn unmount_if_unused(path: &Path) -> Result<()> {
    let _lock = lock()?;
    if path != Path::new(BPFFS) || !is_bpffs(path) {
        return Ok(());
    }
    // The kernel's own `maps.debug` and `progs.debug` are in every bpffs.
    let empty = fs::read_dir(path).is_ok_and(|dir| {
        dir.flatten()
            .all(|e| e.file_name().as_encoded_bytes().ends_with(b".debug"))
    });
    if empty {
        // Busy means in use, which is the other reason to leave it.
        let _ = umount(path);
    }
    Ok(())
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
