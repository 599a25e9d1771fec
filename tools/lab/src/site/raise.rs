//! Raises labs: namespaces, cables, switches, addresses; powers hosts on and off.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use nix::mount::{MsFlags, mount};

use super::{BPFFS, Lab, PIN_ROOT, RUN_ROOT, TOOL, is_bpffs, lock, must_ip, need_root, own, wait};
use crate::{
    error::{During as _, Error, Result},
    interrupt, netns,
    paths::Paths,
    plan::{self, Plan},
    process,
    record::{Entry, Record},
    switch,
    topology::{Host, Kind, Topology, check_name},
};

impl Lab {
    /// Raises `topology` as lab `name`, without appliances and gateways
    /// ([`Lab::start_appliances`]). A lab of that name, whole or half, is cleared first, unless the
    /// process that raised it still uses it. Returns when every address of a powered host is
    /// usable.
    ///
    /// # Errors
    /// [`Error::InUse`]. If the topology is not valid, this is not root, a tool is missing or
    /// fails, or on a signal. The unfinished lab is taken down again.
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

    /// Brings a host's NICs up with addresses and routes, as a booting machine does, or takes them
    /// down. A machine that comes up announces itself: gratuitous ARP once its switch port
    /// forwards, unsolicited NA once duplicate address detection is through. Does not wait for
    /// that: [`Lab::wait_for_dad`].
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
        // The port forwards only now, so it dropped the announcements of the link's start.
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
    pub fn wait_for_dad(&self, host: &str) -> Result<()> {
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
            self.wait_for_dad(&host.name)?;
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

    /// Directory of a host's or switch's pins, including all of an appliance's.
    #[must_use]
    pub fn pin_dir(&self, host: &str) -> PathBuf {
        Path::new(PIN_ROOT).join(&self.name).join(host)
    }
}
