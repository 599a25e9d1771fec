//! The appliance daemon inside a host: start, kill, and queries by its command line.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    config::{Circuit, Places, render},
    daemon::{CLI, Daemon},
    error::{During as _, Error, Result},
    interrupt,
    process::{self, Output, Process},
    site::{Lab, wait},
    topology::Appliance,
};

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

    /// Starts what the topology has besides hosts: gateways and the director's server, then every
    /// appliance. Waits until all are ready. Appliances whose circuits have a way over TLS start
    /// after the far end, whose certificate they know.
    ///
    /// # Errors
    /// As [`Handle::start`].
    pub fn start_appliances(&self) -> Result<()> {
        self.start_cloud()?;
        let handles = |wanted: &dyn Fn(&str) -> bool| -> Vec<Handle<'_>> {
            let all = self.topology().appliances.iter();
            all.filter(|a| wanted(&a.host))
                .map(|appliance| Handle {
                    lab: self,
                    appliance,
                })
                .collect()
        };
        // An appliance is ready once it has a tunnel, which needs the late ones.
        let late = |host: &str| self.topology().cloud.has_tls(host, 0);
        let all = [handles(&|host| !late(host)), handles(&late)].concat();
        for handle in &all {
            handle.launch()?;
        }
        all.iter().try_for_each(|h| h.await_ready())
    }
}

impl<'a> Handle<'a> {
    fn daemon(&self) -> Daemon<'a> {
        Daemon {
            lab: self.lab,
            host: &self.appliance.host,
            kind: "appliance",
            program: &self.lab.paths().appliance,
            hint: "build it with `cargo build -p appliance-user`, or name it in CAUSEWAY_APPLIANCE",
        }
    }

    #[must_use]
    pub fn host(&self) -> &str {
        &self.appliance.host
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.daemon().config_path()
    }

    /// Its control socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.daemon().socket_path()
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.lab.run_dir().join("state").join(self.host())
    }

    /// The file that its output is written to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.daemon().log_path()
    }

    /// Its process, if it runs.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn process(&self) -> Result<Option<Process>> {
        self.daemon().process()
    }

    /// Its private key.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        let file = format!("{}.key", self.host());
        self.lab.run_dir().join("etc").join(file)
    }

    /// Its public key. Generates the private key if it does not exist.
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

    /// Its peers that are appliances of this lab, by their names in its configuration.
    fn peers(&self) -> Result<BTreeMap<&'a str, Handle<'a>>> {
        let lab: &'a Lab = self.lab;
        let named = self.appliance.peers.iter();
        named
            .filter_map(|(name, address)| Some((name, lab.topology().appliance_at(*address)?)))
            .map(|(name, other)| Ok((name.as_str(), lab.appliance(&other.host)?)))
            .collect()
    }

    /// The circuits to its peers, by their names in its configuration.
    fn circuits(&self) -> Result<BTreeMap<&'a str, Circuit>> {
        let mut circuits = BTreeMap::new();
        for (name, peer) in self.peers()? {
            let cloud = &self.lab.topology().cloud;
            let Some((circuit, side)) = cloud.between(self.host(), peer.host()) else {
                continue;
            };
            let tls = circuit.tls.as_ref().filter(|_| side == 0);
            let of_peer = Circuit {
                id: self.lab.circuit(&circuit.tenant)?.id,
                key_file: self.lab.circuit_key_path(&circuit.tenant, side),
                tls: match tls {
                    Some(name) => Some((name.clone(), peer.fingerprint()?)),
                    None => None,
                },
            };
            circuits.insert(name, of_peer);
        }
        Ok(circuits)
    }

    /// The fingerprint of the certificate that it takes tunnels over TLS with, once it runs.
    fn fingerprint(&self) -> Result<String> {
        wait(
            &format!("the fingerprint of {}'s certificate", self.host()),
            CLI,
            Duration::from_millis(20),
            || {
                let said = self.cli(&["status", "--json"])?;
                let status: Option<serde_json::Value> = serde_json::from_str(&said.stdout).ok();
                let status = status.unwrap_or_default();
                let fingerprint = status["tls"]["fingerprint"].as_str();
                Ok(fingerprint
                    .map(str::to_owned)
                    .ok_or_else(|| format!("tls: {}; {}", status["tls"], said.stderr.trim())))
            },
        )
    }

    /// Writes the configuration file that the topology describes, and the keys of encrypted
    /// tunnels.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self) -> Result<()> {
        let key = self.key_path();
        let mut keys = None;
        if self.lab.topology().options.encrypted {
            self.public_key()?;
            let peers = self.peers()?.into_iter();
            let public = peers.map(|(name, peer)| Ok((name.to_owned(), peer.public_key()?)));
            keys = Some(public.collect::<Result<BTreeMap<_, _>>>()?);
        }
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
                circuits: &self.circuits()?,
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
        let object = &self.lab.paths().bpf_object;
        if !object.exists() {
            return Err(Error::Missing {
                path: object.clone(),
                hint: "build it with `cargo xtask build-ebpf`, or name it in CAUSEWAY_BPF_OBJECT",
            });
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
        self.daemon().launch(&[("CAUSEWAY_BPF_OBJECT", object)])
    }

    /// Waits until the daemon reports that it is ready.
    ///
    /// # Errors
    /// If it ended, or after 45 s; the error ends with its log.
    pub fn await_ready(&self) -> Result<()> {
        self.daemon().await_ready(|status| status["ready"] == true)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.daemon().log_tail(lines)
    }

    /// Sends SIGTERM and waits. The pinned programs and maps go on forwarding.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<()> {
        self.daemon().stop(Duration::from_secs(5))
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill(&self) -> Result<()> {
        self.daemon().kill()
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Handle::stop`] and [`Handle::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// The gateway that a peer is reached through, and by what (`udp`, `tls`); no name: directly,
    /// or not at all.
    ///
    /// # Errors
    /// If it does not answer, or has no such peer.
    pub fn peer_path(&self, peer: &str) -> Result<(String, String)> {
        let status = self.json(&["status", "--json"])?;
        let all = status["peers"].as_array();
        let found = all.into_iter().flatten().find(|p| p["name"] == peer);
        let found = found.ok_or_else(|| Error::Output {
            what: format!("peer {peer} in the status of {}", self.host()),
            reason: status["peers"].to_string(),
        })?;
        let text = |key: &str| found["tunnel"][key].as_str().unwrap_or_default().to_owned();
        Ok((text("gateway"), text("transport")))
    }

    /// Runs its command line, `causeway-appliance WORDS…`, against its socket.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than 30 s. A status other than 0 is no error.
    pub fn cli<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<Output> {
        self.daemon().cli(words)
    }

    /// As [`Handle::cli`], but a status other than 0 is an error. Returns standard output.
    ///
    /// # Errors
    /// As [`Handle::cli`], and [`Error::Command`] with its output.
    pub fn must<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<String> {
        self.daemon().must(words)
    }

    /// As [`Handle::must`], read as JSON.
    ///
    /// # Errors
    /// As [`Handle::must`], and if it is no JSON.
    pub fn json<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<serde_json::Value> {
        self.daemon().json(words)
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
    pub dad_done: Instant,
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
            // First the tenant's appliance releases the addresses. Otherwise its replies would make
            // the booting machine detect duplicates (RFC 4862 §5.4).
            change(tenant, "remove")?;
            change(provider, "remove")?;
            self.power(takes, true)?;
            Instant::now()
        };
        let switched = Instant::now();
        self.note_failed_over(&machine.production, over)?;
        self.wait_for_dad(takes)?;
        Ok(Switchover {
            began,
            off,
            on,
            switched,
            dad_done: Instant::now(),
        })
    }
}
