//! NICs: prepared for XDP, each with its program, and listening to the groups that we answer in.

use std::collections::{BTreeMap, BTreeSet};

use appliance_common::{
    addr::{as_v4, multicast_mac_v6, solicited_node},
    maps::HostKey,
};

use super::engines::Claims;
use crate::{
    config::Config,
    control::{InterfaceStatus, mac_text},
    datapath::{Datapath, Error},
    frame::Port,
    kernel::nic::{self, Nic},
    kernel::underlay::Snapshot,
};

/// All routers, where router solicitations go (RFC 4291 section 2.7.1).
const ALL_ROUTERS: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];

/// The interfaces that the configuration names, by name.
#[derive(Default)]
pub(super) struct Interfaces {
    nics: BTreeMap<String, Nic>,
    /// Why an interface has no program.
    errors: BTreeMap<String, String>,
    /// Ethernet groups that we joined, by interface name.
    groups: BTreeSet<(String, [u8; 6])>,
}

/// The interfaces that the configuration names.
pub(super) fn names(config: &Config) -> Vec<String> {
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
    /// Prepares the NICs and has each run its program. What one interface is refused for is kept as
    /// its error, and the others go on.
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
            if !running || !self.nics.get(name).is_some_and(|n| n.problems.is_empty()) {
                let tagged = |n: &crate::config::Network| n.interface == *name && n.vlan.outer != 0;
                let wants = nic::Requirements {
                    tags: config.networks.iter().any(tagged),
                    mtu: link.mtu,
                };
                match nic::prepare(name, wants) {
                    Ok(nic) => drop(self.nics.insert(name.clone(), nic)),
                    Err(error) => {
                        errors.insert(name.clone(), format!("interface {name}: ethtool: {error}"));
                        continue;
                    }
                }
            }
            match datapath.attach(name, link.ifindex, *kind, *xdp) {
                Ok(()) if !running => {
                    if let Some(attached) = datapath.attached().get(name) {
                        tracing::info!(
                            interface = name,
                            program = attached.kind.program(),
                            mode = attached.mode.name(),
                            asked = xdp.name(),
                            adopted = attached.adopted,
                            "XDP attached"
                        );
                    }
                }
                Ok(()) => {}
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
        Ok(())
    }

    /// Whether some interface has no program.
    pub fn incomplete(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Why an interface cannot carry packets, if it cannot.
    pub fn problem(&self, name: &str) -> Option<String> {
        self.errors.get(name).cloned().or_else(|| {
            let problem = self.nics.get(name)?.problems.first()?;
            Some(format!("{name}: {problem}"))
        })
    }

    /// All that is wrong with the interfaces.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        let of_nic = |(name, nic): (&String, &Nic)| -> Vec<String> {
            nic.problems
                .iter()
                .map(|p| format!("{name}: {p}"))
                .collect()
        };
        let nics = self.nics.iter().flat_map(of_nic);
        self.errors.values().cloned().chain(nics)
    }

    /// Joins the multicast groups in which hosts ask for the IPv6 addresses of `claims`, and leaves
    /// the others.
    pub fn join_groups(&mut self, claims: &Claims, snapshot: &Snapshot) {
        let name = |ifindex: u32| {
            let mut links = snapshot.links.values();
            links.find(|l| l.ifindex == ifindex).map(|l| l.name.clone())
        };
        let mut groups = BTreeSet::new();
        for ((port, address), router) in claims {
            let Some(name) = name(port.ifindex).filter(|_| as_v4(address).is_none()) else {
                continue;
            };
            let group = multicast_mac_v6(&solicited_node(address));
            if *router {
                groups.insert((name.clone(), ALL_ROUTERS));
            }
            groups.insert((name, group));
        }
        for (name, group) in self.groups.difference(&groups) {
            if let Err(error) = nic::set_multicast_group(name, *group, false) {
                tracing::debug!(interface = name, %error, "cannot leave a multicast group");
            }
        }
        let mut joined: BTreeSet<_> = self.groups.intersection(&groups).cloned().collect();
        for (name, group) in groups.difference(&self.groups) {
            match nic::set_multicast_group(name, *group, true) {
                Ok(()) => drop(joined.insert((name.clone(), *group))),
                Err(error) => {
                    tracing::warn!(
                        interface = name,
                        %error,
                        "cannot join a multicast group: neighbour solicitations for our IPv6 \
                         addresses may not be received"
                    );
                }
            }
        }
        self.groups = joined;
    }

    /// For status.
    pub fn status(
        &self,
        config: &Config,
        snapshot: &Snapshot,
        datapath: &Datapath,
    ) -> Vec<InterfaceStatus> {
        let status = |(name, (asked, _)): (String, (crate::config::Xdp, _))| {
            let link = snapshot.links.get(&name);
            let attached = datapath.attached().get(&name);
            let nic = self.nics.get(&name);
            let mut problems: Vec<String> = self.errors.get(&name).cloned().into_iter().collect();
            problems.extend(nic.into_iter().flat_map(|n| n.problems.iter().cloned()));
            InterfaceStatus {
                ifindex: link.map(|l| l.ifindex),
                driver: nic.map(|n| n.driver.clone()).unwrap_or_default(),
                mac: link.map(|l| mac_text(l.mac)).unwrap_or_default(),
                mtu: link.map_or(0, |l| l.mtu),
                up: link.is_some_and(|l| l.up),
                program: attached.map(|a| a.kind.program().to_owned()),
                xdp_asked: asked.name().to_owned(),
                xdp: attached.map(|a| a.mode.name().to_owned()),
                adopted: attached.is_some_and(|a| a.adopted),
                problems,
                name,
            }
        };
        config.ports().into_iter().map(status).collect()
    }
}
