//! NICs: prepared for XDP, each with its program, and listening to the groups that we answer in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use appliance_common::{addr::multicast_mac_v6, maps::HostKey};
use service::xdp::{self, AttachMode, Setting};

use super::groups;
use crate::{
    config::{Config, Role},
    control::{InterfaceStatus, mac_text},
    datapath::{Datapath, Error},
    engine::group_reports::{GroupReporter, Groups},
    frame::Port,
    kernel::nic::{self, Nic, RedirectPort, Requirements},
    kernel::underlay::{LinkState, Snapshot},
};

/// Time between two readings of the settings of NICs, which operators and their tools change.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The interfaces that the configuration names, by name.
#[derive(Default)]
pub(in crate::daemon) struct Interfaces {
    nics: BTreeMap<String, Nic>,
    /// Why an interface has no program.
    errors: BTreeMap<String, String>,
    /// Why an interface would lose the frames that others redirect to it.
    redirects: BTreeMap<String, String>,
    /// Ethernet groups that we joined, by interface name.
    groups: BTreeSet<(String, [u8; 6])>,
    /// Interfaces that we made accept all groups.
    all_groups: BTreeSet<String>,
    /// Interfaces that should accept all groups and do not.
    deaf: BTreeMap<String, String>,
    reporter: GroupReporter,
    /// When the settings of all NICs were last read.
    checked: Option<Instant>,
}

/// The interfaces that the configuration names.
pub(in crate::daemon) fn names(config: &Config) -> Vec<String> {
    config.ports().into_keys().collect()
}

/// The networks' ports, by VNI. A network whose interface does not exist has none.
pub(super) fn network_ports(config: &Config, snapshot: &Snapshot) -> BTreeMap<u32, Port> {
    let port = |network: &crate::config::Network| {
        let link = snapshot.links.get(&network.interface)?;
        let port = Port {
            ifindex: link.ifindex,
            outer: network.vlan.outer,
            inner: network.vlan.inner,
            outer_ethertype: network.vlan.outer_ethertype,
            mac: link.mac,
        };
        Some((network.vni, port))
    };
    config.networks.iter().filter_map(port).collect()
}

/// The routers of the production networks.
pub(super) fn routers(config: &Config) -> Vec<HostKey> {
    let keys = |n: &crate::config::Network| -> Vec<HostKey> {
        let vni = n.vni;
        n.gateways()
            .map(|address| HostKey { vni, address })
            .collect()
    };
    config.networks.iter().flat_map(keys).collect()
}

impl Interfaces {
    /// Prepares the NICs and attaches the program of each. A failure at one interface is kept as
    /// its error, and the others are attached.
    ///
    /// # Errors
    /// When programs of interfaces that are no longer named, or pins of other versions, cannot be
    /// removed.
    pub fn attach(
        &mut self,
        config: &Config,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
    ) -> Result<(), Error> {
        let ports = config.ports();
        datapath.detach_others(|name| ports.contains_key(name))?;
        self.nics.retain(|name, _| ports.contains_key(name));
        let mut errors = BTreeMap::new();
        for (name, (xdp, kind)) in &ports {
            let Some(link) = snapshot.links.get(name) else {
                datapath.forget_interface(name)?;
                self.nics.remove(name);
                errors.insert(
                    name.clone(),
                    format!(
                        "interface {name} does not exist; add it, or correct the configuration"
                    ),
                );
                continue;
            };
            let running = datapath
                .attached()
                .get(name)
                .is_some_and(|a| a.ifindex == link.ifindex && a.kind == *kind);
            let attached = datapath.attached().get(name).filter(|_| running);
            let generic = attached.map_or(*xdp == Setting::Only(AttachMode::Generic), |a| {
                a.mode == AttachMode::Generic
            });
            if let Err(error) = self.prepare(config, link, generic, running) {
                errors.insert(name.clone(), error);
                continue;
            }
            match datapath.attach(name, link.ifindex, *kind, *xdp) {
                Ok(()) => {
                    let Some(attached) = datapath.attached().get(name) else {
                        continue;
                    };
                    if !running {
                        tracing::info!(
                            interface = name,
                            program = attached.kind.program(),
                            mode = attached.mode.name(),
                            configured = xdp.name(),
                            adopted = attached.adopted,
                            "XDP attached"
                        );
                    }
                    // Only an attached program tells the mode that `auto` selected.
                    let generic = attached.mode == AttachMode::Generic;
                    if let Err(error) = self.prepare(config, link, generic, true) {
                        errors.insert(name.clone(), error);
                    }
                }
                Err(error) => drop(errors.insert(name.clone(), error.to_string())),
            }
        }
        for (name, error) in &errors {
            if self.errors.get(name) != Some(error) {
                tracing::warn!(
                    interface = name,
                    reason = error,
                    "interface has no XDP program"
                );
            }
        }
        if errors.is_empty() {
            datapath.retire_other_versions()?;
        }
        self.errors = errors;
        self.check_redirects(config, snapshot, datapath);
        Ok(())
    }

    /// Prepares a NIC, unless it was prepared for the same and is ready. `running`: it has its
    /// program.
    ///
    /// # Errors
    /// The message, if its settings cannot be read.
    fn prepare(
        &mut self,
        config: &Config,
        link: &LinkState,
        generic: bool,
        running: bool,
    ) -> Result<(), String> {
        let name = &link.name;
        let required = requirements(config, link, generic);
        let before = self.nics.get(name);
        let ready = |nic: &Nic| running && nic.problems.is_empty() && nic.required == required;
        if before.is_some_and(ready) {
            return Ok(());
        }
        let nic = nic::prepare(name, link.ifindex, required)
            .map_err(|error| format!("interface {name}: ethtool: {error}"))?;
        for problem in &nic.problems {
            if !before.is_some_and(|before| before.problems.contains(problem)) {
                tracing::warn!(interface = name, problem, "NIC is not ready");
            }
        }
        self.nics.insert(name.clone(), nic);
        Ok(())
    }

    /// Checks states that change without a notification: settings of NICs every 10 seconds, and
    /// whether drivers accept redirects.
    pub fn check(
        &mut self,
        now: Instant,
        config: &Config,
        snapshot: &Snapshot,
        datapath: &Datapath,
    ) {
        let due = |at: Instant| now.duration_since(at) >= CHECK_INTERVAL;
        if self.checked.is_none_or(due) {
            self.checked = Some(now);
            for (name, attached) in datapath.attached() {
                let Some(link) = snapshot.links.get(name) else {
                    continue;
                };
                let generic = attached.mode == AttachMode::Generic;
                if let Err(error) = self.prepare(config, link, generic, false) {
                    tracing::debug!(interface = name, error, "cannot check a NIC");
                }
            }
            let (groups, all) = (self.groups.clone(), self.all_groups.clone());
            self.set_groups(groups, all);
        }
        self.check_redirects(config, snapshot, datapath);
    }

    /// Checks that drivers accept what other interfaces redirect to them. It changes while the
    /// programs run: a driver may accept redirects only with an XDP program, or by its peer's.
    fn check_redirects(&mut self, config: &Config, snapshot: &Snapshot, datapath: &Datapath) {
        let port = |(name, attached): (&String, &crate::datapath::Attached)| {
            let link = snapshot.links.get(name)?;
            Some(RedirectPort {
                interface: name.clone(),
                driver: self.driver(name),
                native: attached.mode == AttachMode::Native,
                accepts: xdp::accepts_redirects(link.ifindex),
            })
        };
        let ports: Vec<RedirectPort> = datapath.attached().iter().filter_map(port).collect();
        let problems = nic::redirect_problems(&ports, &redirects(config));
        let problems: BTreeMap<String, String> = problems.into_iter().collect();
        for (name, problem) in &problems {
            if self.redirects.get(name) != Some(problem) {
                tracing::warn!(interface = name, problem, "redirected packets are lost");
            }
        }
        self.redirects = problems;
    }

    fn driver(&self, name: &str) -> String {
        let nic = self.nics.get(name);
        nic.map(|nic| nic.driver.clone()).unwrap_or_default()
    }

    /// The interfaces with driver and XDP mode, as text.
    pub fn summary(&self, datapath: &Datapath) -> String {
        let attached = datapath.attached().iter();
        let texts: Vec<String> = attached
            .map(|(name, a)| format!("{name}: {}, {}", self.driver(name), a.mode.name()))
            .collect();
        texts.join("; ")
    }

    /// Whether some interface has no program, or has a problem that its operator may solve.
    pub fn incomplete(&self) -> bool {
        !self.errors.is_empty() || self.nics.values().any(|nic| !nic.problems.is_empty())
    }

    /// Why an interface cannot carry packets, if it cannot.
    pub fn problem(&self, name: &str) -> Option<String> {
        let error = self.errors.get(name).cloned();
        error.or_else(|| {
            let problem = self.problems_of(name).into_iter().next()?;
            Some(format!("{name}: {problem}"))
        })
    }

    /// The problems of an interface, but for that it has no program.
    fn problems_of(&self, name: &str) -> Vec<String> {
        let nic = self.nics.get(name);
        let nic = nic.into_iter().flat_map(|nic| nic.problems.iter());
        let others = [&self.redirects, &self.deaf];
        let others = others.into_iter().filter_map(|of| of.get(name));
        nic.chain(others).cloned().collect()
    }

    /// All that is wrong with the interfaces.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        let names: BTreeSet<&String> = self
            .nics
            .keys()
            .chain(self.redirects.keys())
            .chain(self.deaf.keys())
            .collect();
        let of_name = move |name: &String| -> Vec<String> {
            let problems = self.problems_of(name);
            problems.iter().map(|p| format!("{name}: {p}")).collect()
        };
        let others = names.into_iter().flat_map(of_name);
        self.errors.values().cloned().chain(others)
    }

    /// Has the NICs accept frames to the groups that their ports listen to, and no longer those to
    /// others; snooping switches are told of them.
    pub fn listen(&mut self, now: Instant, ports: &BTreeMap<Port, Groups>, snapshot: &Snapshot) {
        let name = |ifindex: u32| {
            let mut links = snapshot.links.values();
            links.find(|l| l.ifindex == ifindex).map(|l| l.name.clone())
        };
        let (mut groups, mut all) = (BTreeSet::new(), BTreeSet::new());
        for (port, of_port) in ports {
            let Some(name) = name(port.ifindex) else {
                continue;
            };
            let macs = of_port.addresses.iter().map(multicast_mac_v6);
            groups.extend(macs.map(|mac| (name.clone(), mac)));
            if of_port.all {
                all.insert(name);
            }
        }
        self.set_groups(groups, all);
        let reported = ports.iter().map(|(p, of)| (*p, groups::reported(of)));
        let reported = reported.filter(|(_, of)| of.all || !of.addresses.is_empty());
        self.reporter.set(now, &reported.collect());
    }

    /// Joins these groups, and leaves those joined before. Joins and flags are made again where
    /// they are already: another program may have undone them.
    fn set_groups(&mut self, groups: BTreeSet<(String, [u8; 6])>, all: BTreeSet<String>) {
        for (name, group) in self.groups.difference(&groups) {
            if let Err(error) = nic::set_multicast_group(name, *group, false) {
                tracing::debug!(interface = name, %error, "cannot leave a multicast group");
            }
        }
        for name in self.all_groups.difference(&all) {
            if let Err(error) = nic::set_all_multicast(name, false) {
                tracing::debug!(interface = name, %error, "cannot clear ALLMULTI");
            }
        }
        let mut deaf = BTreeMap::new();
        for (name, group) in &groups {
            if let Err(error) = nic::set_multicast_group(name, *group, true) {
                let problem = format!(
                    "cannot join the multicast group {}, so neighbour solicitations for IPv6 \
                     addresses may be lost ({error})",
                    mac_text(*group)
                );
                deaf.insert(name.clone(), problem);
            }
        }
        for name in &all {
            let error = match nic::set_all_multicast(name, true) {
                Ok(true) => continue,
                Ok(false) => "the kernel accepted the flag and did not keep it".to_owned(),
                Err(error) => error.to_string(),
            };
            let problem = format!(
                "does not accept all multicast, so neighbour solicitations for IPv6 addresses of \
                 the other site are lost: `ip link set {name} allmulticast on` ({error})"
            );
            deaf.insert(name.clone(), problem);
        }
        for (name, problem) in &deaf {
            if self.deaf.get(name) != Some(problem) {
                tracing::warn!(interface = name, problem, "NIC is not ready");
            }
        }
        (self.groups, self.all_groups, self.deaf) = (groups, all, deaf);
    }

    /// The next report to snooping switches, and the interface to send it on.
    pub fn poll_reports(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        self.reporter.poll(now)
    }

    /// When the next report is due.
    pub fn next_report(&self) -> Option<Instant> {
        self.reporter.next_deadline()
    }

    /// For status.
    pub fn status(
        &self,
        config: &Config,
        snapshot: &Snapshot,
        datapath: &Datapath,
    ) -> Vec<InterfaceStatus> {
        let status = |(name, (configured, _)): (String, (Setting, _))| {
            let link = snapshot.links.get(&name);
            let attached = datapath.attached().get(&name);
            let nic = self.nics.get(&name);
            let mut problems: Vec<String> = self.errors.get(&name).cloned().into_iter().collect();
            problems.extend(self.problems_of(&name));
            InterfaceStatus {
                ifindex: link.map(|l| l.ifindex),
                driver: nic.map(|n| n.driver.clone()).unwrap_or_default(),
                mac: link.map(|l| mac_text(l.mac)).unwrap_or_default(),
                mtu: link.map_or(0, |l| l.mtu),
                up: link.is_some_and(|l| l.up),
                program: attached.map(|a| a.kind.program().to_owned()),
                xdp_configured: configured.name().to_owned(),
                xdp: attached.map(|a| a.mode.name().to_owned()),
                adopted: attached.is_some_and(|a| a.adopted),
                problems,
                name,
            }
        };
        config.ports().into_iter().map(status).collect()
    }
}

/// The requirements of the configuration on a NIC.
fn requirements(config: &Config, link: &LinkState, generic: bool) -> Requirements {
    let networks = || config.networks.iter().filter(|n| n.interface == link.name);
    let vlans = networks().filter(|n| n.vlan.outer != 0);
    let vlans: BTreeSet<_> = vlans
        .map(|n| (n.vlan.outer_ethertype, n.vlan.outer))
        .collect();
    Requirements {
        vlans: vlans.into_iter().collect(),
        two_tags: networks().any(|n| n.vlan.inner != 0),
        generic,
        mtu: link.mtu,
        largest_packet: networks().filter_map(|n| n.mtu).max(),
    }
}

/// The pairs of interfaces between which the programs redirect packets, from and to. Packets of
/// encrypted tunnels go through sockets instead.
fn redirects(config: &Config) -> Vec<(String, String)> {
    let uplink = &config.uplink.interface;
    let mut pairs = BTreeSet::new();
    for network in &config.networks {
        let plain = config
            .peer(&network.peer)
            .is_some_and(|p| p.plain().is_some());
        // In full failover packets to the internet are redirected too.
        if plain || config.role == Role::Provider {
            pairs.insert((&network.interface, uplink));
            pairs.insert((uplink, &network.interface));
        }
        if config.role == Role::Provider {
            let same = |n: &&crate::config::Network| n.tenant == network.tenant;
            let others = config.networks.iter().filter(same);
            pairs.extend(others.map(|n| (&network.interface, &n.interface)));
        }
    }
    let pairs = pairs.into_iter().filter(|(from, to)| from != to);
    pairs.map(|(a, b)| (a.clone(), b.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use appliance_common::wire::{ETHERTYPE_8021AD, ETHERTYPE_8021Q};

    use super::*;

    fn config(role: &str, kind: &str) -> Config {
        let peer = match kind {
            "vxlan" => "kind = \"vxlan\"\naddress = \"203.0.113.9\"".to_owned(),
            _ => format!(
                "kind = \"appliance\"\npublic_key = \"{}=\"\naddresses = [{}]",
                "A".repeat(42) + "E",
                if role == "tenant" {
                    "\"203.0.113.9:6180\""
                } else {
                    ""
                }
            ),
        };
        let text = format!(
            r#"
[appliance]
name = "a"
role = "{role}"
[uplink]
interface = "eth0"
[tunnel]
private_key_file = "/etc/key"
[[tenant]]
name = "acme"
[[peer]]
name = "other"
{peer}
[[network]]
name = "net1"
tenant = "acme"
peer = "other"
vni = 1001
interface = "eth1"
vlan = "101"
mtu = 1400
prefixes = ["10.1.0.0/24"]
[[network]]
name = "net2"
tenant = "acme"
peer = "other"
vni = 1002
interface = "eth2"
vlan = "200.102"
prefixes = ["10.2.0.0/24"]
"#
        );
        Config::parse(&text, Path::new("test")).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn packets_are_redirected_over_plain_tunnels_and_in_full_failover() {
        let pairs = |role, kind| -> Vec<String> {
            let pairs = redirects(&config(role, kind));
            pairs.iter().map(|(a, b)| format!("{a}-{b}")).collect()
        };
        let uplink = ["eth0-eth1", "eth0-eth2", "eth1-eth0", "eth2-eth0"];
        assert_eq!(pairs("tenant", "vxlan"), uplink);
        assert!(pairs("tenant", "appliance").is_empty());
        let all = [
            "eth0-eth1",
            "eth0-eth2",
            "eth1-eth0",
            "eth1-eth2",
            "eth2-eth0",
            "eth2-eth1",
        ];
        assert_eq!(pairs("provider", "appliance"), all);
    }

    #[test]
    fn a_nic_is_prepared_for_the_networks_on_it() {
        let link = |name: &str| LinkState {
            name: name.to_owned(),
            ifindex: 3,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            addresses: Vec::new(),
        };
        let config = config("tenant", "vxlan");
        let of = |name| requirements(&config, &link(name), false);
        assert_eq!(of("eth0").vlans, []);
        let eth1 = of("eth1");
        assert_eq!(eth1.vlans, [(ETHERTYPE_8021Q, 101)]);
        assert_eq!((eth1.two_tags, eth1.largest_packet), (false, Some(1400)));
        let eth2 = of("eth2");
        assert_eq!(eth2.vlans, [(ETHERTYPE_8021AD, 200)]);
        assert_eq!((eth2.two_tags, eth2.largest_packet), (true, None));
    }
}
