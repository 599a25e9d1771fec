//! Sites as data: hosts, switches, WAN links, appliances, machines that can fail over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    addr::{Cidr, Vlan, fixed_mac, mac_text},
    cloud::Cloud,
    error::{Error, Result},
};

/// The longest interface name Linux takes (`IFNAMSIZ` less the zero).
pub const MAX_INTERFACE_NAME: usize = 15;

/// Everything that a lab raises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// `partial`, `two-tenants`, `full`, `gateways`, or a test's own; `[a-z0-9-]`, 24 at most.
    pub name: String,
    /// Machines with a stack of their own, routers and appliances included.
    pub hosts: Vec<Host>,
    /// Virtual switches.
    pub switches: Vec<Switch>,
    /// Point-to-point links with an MTU of their own.
    pub wans: Vec<Wan>,
    /// Which hosts run the appliance daemon, and its configuration.
    pub appliances: Vec<Appliance>,
    /// Machines that have a replica.
    pub machines: Vec<Machine>,
    /// Sites that can fail over whole, a tenant each.
    pub failovers: Vec<Failover>,
    /// Gateways, and the circuits by which appliances reach each other through them.
    pub cloud: Cloud,
    /// What routers do to packets besides forwarding them.
    pub rules: Vec<Rules>,
    /// How links and stacks behave.
    pub options: Options,
    /// A drawing for people; may be empty.
    pub picture: String,
}

/// How links and stacks behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// MTU of every WAN link, bytes.
    pub wan_mtu: u16,
    /// MTU of every other link, bytes.
    pub lan_mtu: u16,
    /// `false`: wire-like, TSO, GSO and GRO off on hosts and switch ports. `true`: as the kernel
    /// sets them, with GRO where an appliance's cable ends. Hosts always send whole checksums.
    pub offloads: bool,
    /// `false`: no duplicate address detection, addresses are usable at once.
    pub dad: bool,
    /// Whether the appliances' tunnels are encrypted; else they are VXLAN.
    pub encrypted: bool,
    /// Workers of each appliance, and queues of its links.
    pub workers: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wan_mtu: 1500,
            lan_mtu: 1500,
            offloads: true,
            dad: true,
            encrypted: true,
            workers: 1,
        }
    }
}

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A plain machine.
    Machine,
    /// Forwards between its links.
    Router,
    /// Runs the appliance daemon: its links' far ends get an XDP program, which veth needs for
    /// what native XDP sends.
    Appliance,
    /// Runs the gateway daemon; far ends as an appliance's.
    Gateway,
}

impl Kind {
    /// Whether its daemon sends by XDP, for which the far ends of its links need a program.
    pub(crate) const fn sends_by_xdp(self) -> bool {
        matches!(self, Self::Appliance | Self::Gateway)
    }
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `[a-z0-9-]`, unique.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its NICs.
    pub links: Vec<Link>,
    /// Its routes besides the connected ones.
    pub routes: Vec<Route>,
    /// `false`: its NICs stay down until [`crate::Lab::power`].
    pub powered: bool,
}

/// One NIC of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Unique in its host, 15 bytes at most.
    pub name: String,
    /// Where its cable goes.
    pub to: Attach,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
}

/// Where a cable goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// An access port: untagged towards the host, in this VLAN of the switch, or in the switch's
    /// untagged network.
    Access {
        /// The switch.
        switch: String,
        /// The port group's VLAN.
        vlan: Option<Vlan>,
    },
    /// A trunk port: every VLAN of the switch, tagged, and its untagged network without a tag.
    Trunk {
        /// The switch.
        switch: String,
    },
    /// One of the two ends of a WAN link.
    Wan {
        /// The link.
        wan: String,
    },
}

/// A route of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination, `0.0.0.0/0` for the default.
    pub to: Cidr,
    /// Where packets go.
    pub hop: Hop,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hop {
    /// To this router, on one of the host's links.
    Via(IpAddr),
    /// To the destination itself, which is asked for on this link.
    OnLink(String),
}

/// A virtual switch: one kernel bridge per VLAN, and trunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// `[a-z0-9-]`, unique among hosts too.
    pub name: String,
    /// Tag type of the outer tag of QinQ VLANs: 0x88a8 or 0x8100.
    pub outer_ethertype: u16,
}

/// A point-to-point link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wan {
    /// Unique.
    pub name: String,
    /// Bytes, both ends.
    pub mtu: u16,
}

/// An appliance's part in the topology: what its configuration file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appliance {
    /// The host it runs on, and its name.
    pub host: String,
    /// Its role.
    pub role: Role,
    /// The link that tunnels use.
    pub uplink: String,
    /// Its tenants.
    pub tenants: Vec<Tenant>,
    /// Name and tunnel address of each peer. Where a circuit joins the two, the address only says who it is.
    pub peers: Vec<(String, IpAddr)>,
    /// The networks that it stretches.
    pub networks: Vec<Network>,
}

/// A tenant, as one appliance sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// The public addresses allocated to it; at the provider, and only where it may fail over whole.
    pub public: Vec<Cidr>,
    /// Those of them that its networks with internet are seen as, one per family at most; empty: the appliance's
    /// choice.
    pub nat: Vec<IpAddr>,
}

impl Tenant {
    /// A tenant without public addresses.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

/// The two roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// At the production site.
    Tenant,
    /// At the provider.
    Provider,
}

/// One stretched network, as one appliance sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Unique in the appliance; the same at both ends.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// The peer at the other end.
    pub peer: String,
    /// 24 bits; the same at both ends.
    pub vni: u32,
    /// The appliance's link.
    pub interface: String,
    /// Its tag there.
    pub vlan: Option<Vlan>,
    /// Its prefixes.
    pub prefixes: Vec<Cidr>,
    /// Its default gateways, one per family at most.
    pub gateway: Vec<IpAddr>,
}

/// A machine that can fail over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The production host; also the machine's name.
    pub production: String,
    /// The replica's host.
    pub replica: String,
    /// The tenant.
    pub tenant: String,
    /// The stretched network.
    pub network: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Host of the appliance at its production site.
    pub tenant_appliance: String,
    /// Host of the appliance at the provider.
    pub provider_appliance: String,
}

/// A site that can fail over whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// The tenant whose site it is; its machines are those of [`Topology::machines`].
    pub tenant: String,
    /// Host of the appliance at the provider.
    pub appliance: String,
    /// The WAN link that cuts the production site off when it is cut.
    pub wan: String,
    /// The failover plan, TOML.
    pub plan: String,
}

/// Nftables rules of a host, loaded when the lab comes up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The host.
    pub host: String,
    /// What `nft` is told.
    pub nft: String,
}

impl Topology {
    /// An empty one.
    #[must_use]
    pub fn new(name: &str, options: Options) -> Self {
        Self {
            name: name.to_owned(),
            hosts: Vec::new(),
            switches: Vec::new(),
            wans: Vec::new(),
            appliances: Vec::new(),
            machines: Vec::new(),
            failovers: Vec::new(),
            cloud: Cloud::default(),
            rules: Vec::new(),
            options,
            picture: String::new(),
        }
    }

    /// Adds a switch.
    #[must_use]
    pub fn switch(mut self, name: &str) -> Self {
        self.switches.push(Switch {
            name: name.to_owned(),
            outer_ethertype: 0x88a8,
        });
        self
    }

    /// Adds a WAN link with the options' MTU.
    #[must_use]
    pub fn wan(mut self, name: &str) -> Self {
        self.wans.push(Wan {
            name: name.to_owned(),
            mtu: self.options.wan_mtu,
        });
        self
    }

    /// Adds a host.
    #[must_use]
    pub fn host(mut self, host: Host) -> Self {
        self.hosts.push(host);
        self
    }

    /// The host of that name.
    #[must_use]
    pub fn find_host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|h| h.name == name)
    }

    /// The appliance whose uplink has this address.
    #[must_use]
    pub fn appliance_at(&self, address: IpAddr) -> Option<&Appliance> {
        self.appliances.iter().find(|appliance| {
            let links = self
                .find_host(&appliance.host)
                .into_iter()
                .flat_map(|h| &h.links);
            let uplink = links.filter(|l| l.name == appliance.uplink);
            uplink.flat_map(|l| &l.addresses).any(|c| c.addr == address)
        })
    }

    /// MTU of a link, bytes. A trunk of a switch with QinQ VLANs has room for the second tag.
    #[must_use]
    pub fn mtu(&self, link: &Link) -> u16 {
        match &link.to {
            Attach::Wan { wan } => self
                .wans
                .iter()
                .find(|w| &w.name == wan)
                .map_or(self.options.wan_mtu, |w| w.mtu),
            Attach::Access { .. } => self.options.lan_mtu,
            Attach::Trunk { switch } => {
                let qinq = self
                    .vlans(switch)
                    .iter()
                    .any(|v| v.is_some_and(|v| v.inner.is_some()));
                self.options.lan_mtu + if qinq { 4 } else { 0 }
            }
        }
    }

    /// The VLANs of a switch, `None` being its untagged network; in order, each once.
    #[must_use]
    pub fn vlans(&self, switch: &str) -> Vec<Option<Vlan>> {
        let set: BTreeSet<_> = self
            .links()
            .filter_map(|(_, link)| match &link.to {
                Attach::Access { switch: s, vlan } if s == switch => Some(*vlan),
                _ => None,
            })
            .collect();
        set.into_iter().collect()
    }

    /// Every link with its host, in declared order.
    pub fn links(&self) -> impl Iterator<Item = (&Host, &Link)> {
        self.hosts
            .iter()
            .flat_map(|h| h.links.iter().map(move |l| (h, l)))
    }

    /// The switch and the name of the port that a link's cable ends in; `None` for WAN links and
    /// for names that do not exist. Ports are `p0`, `p1`, … in declared order.
    #[must_use]
    pub fn port_of(&self, host: &str, link: &str) -> Option<(String, String)> {
        let (at, switch) = self.links().find_map(|(h, l)| {
            if h.name != host || l.name != link {
                return None;
            }
            match &l.to {
                Attach::Access { switch, .. } | Attach::Trunk { switch } => Some((l, switch)),
                Attach::Wan { .. } => None,
            }
        })?;
        let number = self
            .links()
            .filter(|(_, l)| match &l.to {
                Attach::Access { switch: s, .. } | Attach::Trunk { switch: s } => s == switch,
                Attach::Wan { .. } => false,
            })
            .position(|(_, l)| std::ptr::eq(l, at))?;
        Some((switch.clone(), format!("p{number}")))
    }

    /// Checks everything that raising it relies on.
    ///
    /// # Errors
    /// [`Error::Topology`] names the first thing that is wrong, in the topology's own names.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason: String| {
            Err(Error::Topology {
                topology: self.name.clone(),
                reason,
            })
        };
        if let Err(reason) = check_name(&self.name, 24) {
            return fail(format!("its own name {reason}"));
        }
        let mut names = BTreeSet::new();
        for name in self
            .hosts
            .iter()
            .map(|h| &h.name)
            .chain(self.switches.iter().map(|s| &s.name))
        {
            if let Err(reason) = check_name(name, 32) {
                return fail(format!("host or switch {name:?} {reason}"));
            }
            if !names.insert(name) {
                return fail(format!("there are two hosts or switches named {name:?}"));
            }
        }
        for switch in &self.switches {
            if ![0x88a8, 0x8100].contains(&switch.outer_ethertype) {
                return fail(format!(
                    "switch {:?}: outer ethertype {:#06x}; use 0x88a8 or 0x8100",
                    switch.name, switch.outer_ethertype
                ));
            }
        }
        for mtu in self
            .wans
            .iter()
            .map(|w| w.mtu)
            .chain([self.options.lan_mtu])
        {
            if !(1280..=9000).contains(&mtu) {
                return fail(format!("MTU {mtu} is not within 1280..=9000"));
            }
        }
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for wan in &self.wans {
            if ends.insert(&wan.name, 0).is_some() {
                return fail(format!("there are two WAN links named {:?}", wan.name));
            }
        }
        let mut macs = BTreeMap::new();
        for host in &self.hosts {
            if let Err(reason) = self.check_host(host, &mut ends, &mut macs) {
                return fail(format!("host {:?}: {reason}", host.name));
            }
        }
        for (wan, ends) in ends {
            if ends != 2 {
                return fail(format!("WAN link {wan:?} has {ends} ends; it needs two"));
            }
        }
        for switch in &self.switches {
            let vlans = self.vlans(&switch.name);
            for vlan in vlans.iter().flatten().filter(|v| v.inner.is_some()) {
                if vlans.contains(&Some(Vlan::single(vlan.outer))) {
                    return fail(format!(
                        "switch {:?}: VLAN {} is both a VLAN of its own and the outer tag of {vlan}",
                        switch.name, vlan.outer
                    ));
                }
            }
        }
        for appliance in &self.appliances {
            if let Err(reason) = self.check_appliance(appliance) {
                return fail(format!("appliance {:?}: {reason}", appliance.host));
            }
        }
        for machine in &self.machines {
            if let Err(reason) = self.check_machine(machine) {
                return fail(format!("machine {:?}: {reason}", machine.production));
            }
        }
        for failover in &self.failovers {
            if let Err(reason) = self.check_failover(failover) {
                return fail(format!("failover of {:?}: {reason}", failover.tenant));
            }
        }
        if let Err(reason) = self.check_cloud() {
            return fail(reason);
        }
        Ok(())
    }

    fn check_host<'a>(
        &'a self,
        host: &'a Host,
        ends: &mut BTreeMap<&'a str, usize>,
        macs: &mut BTreeMap<[u8; 6], String>,
    ) -> Result<(), String> {
        let mut names = BTreeSet::from(["lo"]);
        for link in &host.links {
            let name = link.name.as_str();
            if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
                return Err(format!(
                    "link {name:?} has {} characters; Linux takes 1 to {MAX_INTERFACE_NAME}",
                    name.len()
                ));
            }
            if !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                return Err(format!("link {name:?}: use letters, digits, '-', '_', '.'"));
            }
            if !names.insert(name) {
                return Err(format!("there are two links named {name:?}"));
            }
            match &link.to {
                Attach::Access { switch, vlan } => {
                    self.check_switch(name, switch)?;
                    if let Some(vlan) = vlan
                        && !vlan.is_valid()
                    {
                        return Err(format!(
                            "link {name:?}: VLAN {vlan} is bad; an id is 1 to 4094"
                        ));
                    }
                }
                Attach::Trunk { switch } => self.check_switch(name, switch)?,
                Attach::Wan { wan } => match ends.get_mut(wan.as_str()) {
                    Some(count) => *count += 1,
                    None => return Err(format!("link {name:?}: there is no WAN link {wan:?}")),
                },
            }
            let mac = fixed_mac(&host.name, name);
            let owner = format!("{} {name}", host.name);
            if let Some(other) = macs.insert(mac, owner) {
                return Err(format!(
                    "link {name:?} gets the MAC {} that {other} has; rename one",
                    mac_text(mac)
                ));
            }
        }
        let mut seen = BTreeSet::new();
        for cidr in host.links.iter().flat_map(|l| &l.addresses) {
            if !seen.insert(cidr.addr) {
                return Err(format!("address {} is there twice", cidr.addr));
            }
        }
        for route in &host.routes {
            match &route.hop {
                Hop::Via(via) => {
                    if route.to.addr.is_ipv4() != via.is_ipv4() {
                        return Err(format!(
                            "route to {} via {via}: not of one family",
                            route.to
                        ));
                    }
                    let on_link = host
                        .links
                        .iter()
                        .flat_map(|l| &l.addresses)
                        .any(|c| c.contains(*via));
                    if !on_link {
                        return Err(format!(
                            "route to {} via {via}: that is on none of its links",
                            route.to
                        ));
                    }
                }
                Hop::OnLink(name) => {
                    if !host.links.iter().any(|l| &l.name == name) {
                        return Err(format!(
                            "route to {} on {name:?}: there is no such link",
                            route.to
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_switch(&self, link: &str, switch: &str) -> Result<(), String> {
        if self.switches.iter().any(|s| s.name == switch) {
            return Ok(());
        }
        let known: Vec<_> = self.switches.iter().map(|s| s.name.as_str()).collect();
        Err(format!(
            "link {link:?}: there is no switch {switch:?} (there are: {})",
            known.join(", ")
        ))
    }

    fn check_appliance(&self, appliance: &Appliance) -> Result<(), String> {
        let host = self
            .find_host(&appliance.host)
            .ok_or("there is no such host")?;
        if host.kind != Kind::Appliance {
            return Err("its host is not of kind appliance".to_owned());
        }
        let has = |name: &str| host.links.iter().any(|l| l.name == name);
        if !has(&appliance.uplink) {
            return Err(format!("its host has no link {:?}", appliance.uplink));
        }
        for network in &appliance.networks {
            let name = &network.name;
            if !has(&network.interface) {
                return Err(format!(
                    "network {name:?}: its host has no link {:?}",
                    network.interface
                ));
            }
            if !appliance.tenants.iter().any(|t| t.name == network.tenant) {
                return Err(format!(
                    "network {name:?}: there is no tenant {:?}",
                    network.tenant
                ));
            }
            if !appliance.peers.iter().any(|(p, _)| p == &network.peer) {
                return Err(format!(
                    "network {name:?}: there is no peer {:?}",
                    network.peer
                ));
            }
            if network.vlan.is_some_and(|v| !v.is_valid()) {
                return Err(format!("network {name:?}: a VLAN id is 1 to 4094"));
            }
        }
        for tenant in &appliance.tenants {
            let public = |a: &IpAddr| tenant.public.iter().any(|p| p.contains(*a));
            if let Some(address) = tenant.nat.iter().find(|a| !public(a)) {
                return Err(format!(
                    "tenant {:?}: NAT address {address} is none of its public addresses",
                    tenant.name
                ));
            }
        }
        Ok(())
    }

    fn check_machine(&self, machine: &Machine) -> Result<(), String> {
        for host in [&machine.production, &machine.replica] {
            if self.find_host(host).is_none() {
                return Err(format!("there is no host {host:?}"));
            }
        }
        for host in [&machine.tenant_appliance, &machine.provider_appliance] {
            let appliance = self
                .appliances
                .iter()
                .find(|a| &a.host == host)
                .ok_or_else(|| format!("there is no appliance {host:?}"))?;
            if !appliance
                .networks
                .iter()
                .any(|n| n.name == machine.network && n.tenant == machine.tenant)
            {
                return Err(format!(
                    "appliance {host:?} has no network {:?} of tenant {:?}",
                    machine.network, machine.tenant
                ));
            }
        }
        Ok(())
    }

    fn check_failover(&self, failover: &Failover) -> Result<(), String> {
        let appliance = self
            .appliances
            .iter()
            .find(|a| a.host == failover.appliance && a.role == Role::Provider)
            .ok_or_else(|| format!("there is no provider's appliance {:?}", failover.appliance))?;
        if !appliance.tenants.iter().any(|t| t.name == failover.tenant) {
            return Err(format!("appliance {:?} has no such tenant", appliance.host));
        }
        if !self.wans.iter().any(|w| w.name == failover.wan) {
            return Err(format!("there is no WAN link {:?}", failover.wan));
        }
        Ok(())
    }
}

/// Whether `name` is `[a-z0-9-]{1,max}` and starts and ends with a letter or digit.
pub(crate) fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() || name.len() > max {
        return Err(format!(
            "has {} characters; 1 to {max} are allowed",
            name.len()
        ));
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !name.bytes().all(|b| plain(b) || b == b'-') || name.starts_with('-') || name.ends_with('-')
    {
        return Err("may only have a-z, 0-9 and '-' inside".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites;

    fn reason(topology: &Topology) -> String {
        topology.validate().unwrap_err().to_string()
    }

    fn partial() -> Topology {
        sites::partial(Options::default())
    }

    #[test]
    fn the_built_in_topologies_are_valid() {
        partial().validate().unwrap();
        sites::two_tenants(Options::default()).validate().unwrap();
        sites::full(Options::default()).validate().unwrap();
        sites::gateways(Options::default()).validate().unwrap();
        sites::partial_by_gateways(Options::default())
            .validate()
            .unwrap();
    }

    #[test]
    fn duplicate_hosts_are_refused_by_name() {
        let mut t = partial();
        let twin = t.hosts[0].clone();
        t.hosts.push(twin);
        assert!(reason(&t).contains("two hosts or switches named \"prod-a\""));
    }

    #[test]
    fn a_host_may_not_be_named_as_a_switch_is() {
        let mut t = partial();
        t.switches[0].name = "prod-a".to_owned();
        assert!(reason(&t).contains("\"prod-a\""));
    }

    #[test]
    fn long_interface_names_are_refused_with_the_limit() {
        let mut t = partial();
        t.hosts[0].links[0].name = "sixteen-letters-".to_owned();
        let reason = reason(&t);
        assert!(
            reason.contains("16 characters") && reason.contains("15"),
            "{reason}"
        );
    }

    #[test]
    fn an_unknown_switch_is_named_beside_the_known_ones() {
        let mut t = partial();
        t.hosts[0].links[0].to = Attach::Access {
            switch: "nowhere".to_owned(),
            vlan: None,
        };
        let reason = reason(&t);
        assert!(reason.contains("no switch \"nowhere\"") && reason.contains("tenant-net1"));
    }

    #[test]
    fn bad_vlans_are_refused() {
        for vlan in [Vlan::single(0), Vlan::single(4095), Vlan::qinq(5, 0)] {
            let mut t = partial();
            let host = t.hosts.iter_mut().find(|h| h.name == "replica-a").unwrap();
            host.links[0].to = Attach::Access {
                switch: "provider-net".to_owned(),
                vlan: Some(vlan),
            };
            assert!(reason(&t).contains("1 to 4094"), "{vlan}");
        }
    }

    #[test]
    fn a_vlan_may_not_also_be_an_outer_tag() {
        let mut t = partial();
        let host = t.hosts.iter_mut().find(|h| h.name == "replica-c").unwrap();
        host.links[0].to = Attach::Access {
            switch: "provider-net".to_owned(),
            vlan: Some(Vlan::qinq(101, 7)),
        };
        assert!(reason(&t).contains("outer tag of 101.7"));
    }

    #[test]
    fn a_wan_link_needs_two_ends() {
        let t = partial().wan("loose");
        assert!(reason(&t).contains("\"loose\" has 0 ends"));
    }

    #[test]
    fn a_route_needs_a_next_hop_on_a_link() {
        let mut t = partial();
        t.hosts[0].routes[0].hop = Hop::Via("192.0.2.1".parse().unwrap());
        assert!(reason(&t).contains("none of its links"));
        t.hosts[0].routes[0].hop = Hop::OnLink("eth9".to_owned());
        assert!(reason(&t).contains("no such link"));
    }

    #[test]
    fn machines_need_their_hosts_and_appliances() {
        let mut t = partial();
        t.machines[0].replica = "nobody".to_owned();
        assert!(reason(&t).contains("no host \"nobody\""));
        let mut t = partial();
        t.machines[0].network = "net9".to_owned();
        assert!(reason(&t).contains("no network \"net9\""));
    }

    #[test]
    fn a_failover_needs_its_appliance_tenant_and_wan() {
        let with = |change: fn(&mut Failover)| {
            let mut t = sites::full(Options::default());
            change(&mut t.failovers[0]);
            reason(&t)
        };
        let no_provider = with(|f| f.appliance = "tenant-appliance".to_owned());
        assert!(no_provider.contains("no provider's appliance"));
        assert!(with(|f| f.tenant = "nobody".to_owned()).contains("no such tenant"));
        assert!(with(|f| f.wan = "nowhere".to_owned()).contains("no WAN link \"nowhere\""));
    }

    #[test]
    fn a_nat_address_is_a_public_one_of_its_tenant() {
        let mut t = sites::full(Options::default());
        let provider = t
            .appliances
            .iter_mut()
            .find(|a| a.role == Role::Provider)
            .unwrap();
        provider.tenants[0].nat = vec!["203.0.113.99".parse().unwrap()];
        assert!(reason(&t).contains("203.0.113.99 is none of its public addresses"));
    }

    #[test]
    fn trunks_of_qinq_switches_have_room_for_the_second_tag() {
        let mut t = partial();
        let trunk = |t: &Topology| {
            let host = t.find_host("provider-appliance").unwrap();
            t.mtu(&host.links[1])
        };
        assert_eq!(trunk(&t), 1500);
        let host = t.hosts.iter_mut().find(|h| h.name == "replica-c").unwrap();
        host.links[0].to = Attach::Access {
            switch: "provider-net".to_owned(),
            vlan: Some(Vlan::qinq(200, 7)),
        };
        assert_eq!(trunk(&t), 1504);
    }

    #[test]
    fn topologies_survive_a_round_trip_through_json() {
        for t in [
            sites::two_tenants(Options::default()),
            sites::full(Options::default()),
            sites::gateways(Options::default()),
        ] {
            let text = serde_json::to_string(&t).unwrap();
            assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), t);
        }
    }
}
