//! The appliance daemon inside a host: started, killed, asked by its own command line.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    config::{Places, render},
    error::{During as _, Error, Result},
    interrupt,
    process::{self, Output, Process},
    record::{Entry, Record},
    site::{Lab, wait},
    topology::Appliance,
};

/// Time for one command to an appliance.
const CLI: Duration = Duration::from_secs(10);
/// Time for a daemon to become ready.
const READY: Duration = Duration::from_secs(15);

/// One appliance of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Handle<'a> {
    lab: &'a Lab,
    appliance: &'a Appliance,
}

impl Lab {
    /// The appliance on `host`.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn appliance(&self, host: &str) -> Result<Handle<'_>> {
        let all = &self.topology().appliances;
        all.iter()
            .find(|a| a.host == host)
            .map(|appliance| Handle {
                lab: self,
                appliance,
            })
            .ok_or_else(|| self.unknown("appliance", host, all.iter().map(|a| &a.host)))
    }

    /// Starts every appliance of the topology and waits until all are ready.
    ///
    /// # Errors
    /// As [`Handle::start`].
    pub fn start_appliances(&self) -> Result<()> {
        let handles: Vec<_> = self
            .topology()
            .appliances
            .iter()
            .map(|appliance| Handle {
                lab: self,
                appliance,
            })
            .collect();
        for handle in &handles {
            handle.launch()?;
        }
        handles.iter().try_for_each(|h| h.await_ready())
    }

    /// The daemon on `host`, if it runs.
    pub(crate) fn daemon(&self, host: &str) -> Result<Option<Process>> {
        let wanted = process_name(host);
        Ok(Record::read(self.run_dir())?
            .into_iter()
            .rev()
            .filter_map(|e| match e {
                Entry::Process { pid, start, name } if name == wanted => {
                    Some(Process { pid, start })
                }
                _ => None,
            })
            .find(|p| p.is_alive()))
    }
}

fn process_name(host: &str) -> String {
    format!("appliance:{host}")
}

impl Handle<'_> {
    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.appliance.host
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        let file = format!("{}.toml", self.host());
        self.lab.run_dir().join("etc").join(file)
    }

    /// Its control socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.lab.run_dir().join(format!("{}.sock", self.host()))
    }

    /// Where it keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.lab.run_dir().join("state").join(self.host())
    }

    /// Its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.lab.log_path(&process_name(self.host()))
    }

    /// Its process, if it runs.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn process(&self) -> Result<Option<Process>> {
        self.lab.daemon(self.host())
    }

    /// Its private key.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        let file = format!("{}.key", self.host());
        self.lab.run_dir().join("etc").join(file)
    }

    /// Its public key; a private one is made first where there is none.
    ///
    /// # Errors
    /// If `causeway-appliance keygen` fails.
    pub fn public_key(&self) -> Result<String> {
        let path = self.key_path();
        let verb = if path.exists() { "pubkey" } else { "keygen" };
        let mut command = Command::new(&self.lab.paths().appliance);
        command.args([verb, "--private-key"]).arg(&path);
        process::must(&mut command, None, CLI, interrupt::check)
            .map(|output| output.stdout.trim().to_owned())
    }

    /// Public keys of its peers, by their names in its configuration.
    fn peer_keys(&self) -> Result<BTreeMap<String, String>> {
        let topology = self.lab.topology();
        let mut keys = BTreeMap::new();
        for (name, address) in &self.appliance.peers {
            let other = topology.appliances.iter().find(|other| {
                topology
                    .find_host(&other.host)
                    .and_then(|h| h.links.iter().find(|l| l.name == other.uplink))
                    .is_some_and(|l| l.addresses.iter().any(|c| c.addr == *address))
            });
            if let Some(other) = other {
                keys.insert(name.clone(), self.lab.appliance(&other.host)?.public_key()?);
            }
        }
        Ok(keys)
    }

    /// Writes the configuration file that the topology says, and keys where its tunnels are encrypted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self) -> Result<()> {
        let key = self.key_path();
        let keys = if self.lab.topology().options.encrypted {
            self.public_key()?;
            Some(self.peer_keys()?)
        } else {
            None
        };
        let pins = self.lab.pin_dir(self.host());
        let text = render(
            self.lab.topology(),
            self.appliance,
            &Places {
                state_dir: &self.state_dir(),
                pin_dir: &pins,
                control_socket: &self.socket_path(),
                bpf_object: &self.lab.paths().bpf_object,
                keys: keys.as_ref().map(|public| (key.as_path(), public)),
            },
        )
        .map_err(|e| Error::Output {
            what: format!("the configuration of {}", self.host()),
            reason: e.to_string(),
        })?;
        let path = self.config_path();
        fs::write(&path, text).during(|| format!("writing {}", path.display()))
    }

    /// Starts the daemon and waits until it is ready. A configuration file that is already there is
    /// kept, so that a test may have changed it.
    ///
    /// # Errors
    /// If it cannot be started, ends, or is not ready in time; the error ends with its log.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    /// Starts the daemon, and does not wait until it is ready.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&self) -> Result<()> {
        let paths = self.lab.paths();
        for (path, hint) in [
            (
                &paths.appliance,
                "build it with `cargo build -p appliance-user`, or name it in CAUSEWAY_APPLIANCE",
            ),
            (
                &paths.bpf_object,
                "build it with `cargo xtask build-ebpf`, or name it in CAUSEWAY_BPF_OBJECT",
            ),
        ] {
            if !path.exists() {
                return Err(Error::Missing {
                    path: path.clone(),
                    hint,
                });
            }
        }
        if self.process()?.is_some() {
            return Ok(());
        }
        if !self.config_path().exists() {
            self.write_config()?;
        }
        let state = self.state_dir();
        fs::create_dir_all(&state).during(|| format!("creating {}", state.display()))?;
        self.lab.make_pin_dir(self.host())?;
        let mut command = Command::new(&paths.appliance);
        command
            .arg("run")
            .arg("--config")
            .arg(self.config_path())
            .env("CAUSEWAY_BPF_OBJECT", &paths.bpf_object);
        self.lab
            .spawn_command(self.host(), &process_name(self.host()), &mut command)
            .map(drop)
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// If it ended, or after 15 s; the error ends with its log.
    pub fn await_ready(&self) -> Result<()> {
        let mut seen = String::new();
        let ready = wait(
            &format!("readiness of {}", self.host()),
            READY,
            Duration::from_millis(20),
            || {
                if self.process()?.is_none() {
                    return Err(Error::Command {
                        command: format!("causeway-appliance on {}", self.host()),
                        status: "it ended".to_owned(),
                        stderr: String::new(),
                    });
                }
                let output = self.cli(&["status", "--json"])?;
                seen = format!("{}{}", output.stdout.trim(), output.stderr.trim());
                let status: Option<serde_json::Value> = serde_json::from_str(&output.stdout).ok();
                Ok(
                    if output.ok() && status.is_some_and(|s| s["ready"] == true) {
                        Ok(())
                    } else {
                        Err(seen.clone())
                    },
                )
            },
        );
        ready.map_err(|e| match e {
            Error::Interrupted => Error::Interrupted,
            other => Error::Output {
                what: format!("{other}; log of {}", self.host()),
                reason: self.log_tail(20),
            },
        })
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// SIGTERM, and waits. Forwarding goes on by what is pinned.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<()> {
        self.process()?
            .map_or(Ok(()), |p| p.stop(Duration::from_secs(5)))
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill(&self) -> Result<()> {
        self.process()?.map_or(Ok(()), Process::kill)
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Handle::stop`] and [`Handle::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Runs its command line against its socket: `causeway-appliance --socket S WORDS…`.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than 10 s. A status other than 0 is no error.
    pub fn cli<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<Output> {
        process::run(&mut self.cli_command(words), CLI)
    }

    /// As [`Handle::cli`], but a status other than 0 is an error. Returns standard output.
    ///
    /// # Errors
    /// As [`Handle::cli`], and [`Error::Command`] with what it said.
    pub fn must<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<String> {
        process::must(&mut self.cli_command(words), None, CLI, interrupt::check).map(|o| o.stdout)
    }

    /// As [`Handle::must`], read as JSON.
    ///
    /// # Errors
    /// As [`Handle::must`], and if it is no JSON.
    pub fn json<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<serde_json::Value> {
        let text = self.must(words)?;
        serde_json::from_str(&text).map_err(|e| Error::Output {
            what: process::text_of(&self.cli_command(words)),
            reason: format!("{e}: {text}"),
        })
    }

    fn cli_command<S: Into<OsString> + Clone>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.lab.paths().appliance);
        command.arg("--socket").arg(self.socket_path());
        command.args(words.iter().map(|w| w.clone().into()));
        command
    }
}

/// When the steps of a failover or failback were done.
#[derive(Clone, Copy, Debug)]
pub struct Switchover {
    /// Before the first step.
    pub began: Instant,
    /// The machine that is left is off.
    pub off: Instant,
    /// The machine that takes over has its link up and has announced itself.
    pub on: Instant,
    /// Both appliances know.
    pub switched: Instant,
    /// No address of the machine that takes over is tentative any more.
    pub settled: Instant,
}

impl Lab {
    /// Names of the machines that are failed over.
    ///
    /// # Errors
    /// If the list is there but cannot be read.
    pub fn failed_over(&self) -> Result<Vec<String>> {
        let path = self.run_dir().join("failed-over.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| Error::Output {
                what: path.display().to_string(),
                reason: e.to_string(),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e).during(|| format!("reading {}", path.display())),
        }
    }

    pub(crate) fn note_failed_over(&self, machine: &str, is: bool) -> Result<()> {
        let mut all = self.failed_over()?;
        all.retain(|m| m != machine);
        if is {
            all.push(machine.to_owned());
        }
        let path = self.run_dir().join("failed-over.json");
        let text = serde_json::Value::from(all).to_string();
        fs::write(&path, text).during(|| format!("writing {}", path.display()))
    }

    /// Fails the machine of production host `machine` over: both appliances to mode partial if the
    /// tenant is idle, production off, replica on, its addresses added at the provider, then at the
    /// tenant's site.
    ///
    /// # Errors
    /// If there is no such machine, or a step fails.
    pub fn fail_over(&self, machine: &str) -> Result<Switchover> {
        self.switch_over(machine, true)
    }

    /// The way back: replica off, its addresses removed at the tenant's site, then at the provider,
    /// production on.
    ///
    /// # Errors
    /// If there is no such machine, or a step fails.
    pub fn fail_back(&self, machine: &str) -> Result<Switchover> {
        self.switch_over(machine, false)
    }

    fn switch_over(&self, machine: &str, over: bool) -> Result<Switchover> {
        let all = &self.topology().machines;
        let machine = all
            .iter()
            .find(|m| m.production == machine)
            .ok_or_else(|| self.unknown("machine", machine, all.iter().map(|m| &m.production)))?;
        let provider = self.appliance(&machine.provider_appliance)?;
        let tenant = self.appliance(&machine.tenant_appliance)?;
        if over {
            for appliance in [provider, tenant] {
                let mode = appliance.must(&["mode", "--tenant", &machine.tenant])?;
                if !mode.contains("partial") {
                    appliance.must(&["mode", "--tenant", &machine.tenant, "partial"])?;
                }
            }
        }
        let change = |appliance: Handle<'_>, verb: &str| {
            let mut words = vec!["endpoint", verb, "--network", &machine.network];
            let addresses: Vec<_> = machine.addresses.iter().map(ToString::to_string).collect();
            words.extend(addresses.iter().map(String::as_str));
            appliance.must(&words)
        };
        let (leaves, takes) = if over {
            (&machine.production, &machine.replica)
        } else {
            (&machine.replica, &machine.production)
        };
        let began = Instant::now();
        self.power(leaves, false)?;
        let off = Instant::now();
        let on = if over {
            self.power(takes, true)?;
            let on = Instant::now();
            change(provider, "add")?;
            change(tenant, "add")?;
            on
        } else {
            // First the tenant's appliance lets the addresses go, or it would tell the machine that
            // comes up that they are taken (RFC 4862 §5.4).
            change(tenant, "remove")?;
            change(provider, "remove")?;
            self.power(takes, true)?;
            Instant::now()
        };
        let switched = Instant::now();
        self.note_failed_over(&machine.production, over)?;
        self.settle(takes)?;
        Ok(Switchover {
            began,
            off,
            on,
            switched,
            settled: Instant::now(),
        })
    }
}
