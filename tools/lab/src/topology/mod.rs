//! Sites as data: hosts, switches, WAN links, appliances, machines that can fail over.

mod check;
mod cloud;
mod text;

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

pub(crate) use self::check::check_name;
use crate::{
    addr::{Cidr, Vlan},
    cloud::Cloud,
};

/// The longest interface name Linux takes (`IFNAMSIZ` less the zero).
pub const MAX_INTERFACE_NAME: usize = 15;

/// Everything that a lab raises; as TOML in `src/sites`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// nftables rules of routers.
    pub rules: Vec<Rules>,
    /// How links and stacks behave.
    pub options: Options,
    /// A drawing for people; may be empty.
    pub picture: String,
}

/// How links and stacks behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// The kind of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A plain machine.
    #[default]
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
    /// Whether its daemon sends by XDP; then the far ends of its links need a program.
    pub(crate) const fn sends_by_xdp(self) -> bool {
        matches!(self, Self::Appliance | Self::Gateway)
    }
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// `[a-z0-9-]`, unique.
    pub name: String,
    #[serde(default)]
    pub kind: Kind,
    /// Its NICs.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Its routes besides the connected ones.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// `false`: its NICs stay down until [`crate::Lab::power`].
    #[serde(default = "yes")]
    pub powered: bool,
}

/// One NIC of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Unique in its host, 15 bytes at most.
    pub name: String,
    /// The other end of its cable.
    pub to: Attach,
    #[serde(default)]
    pub addresses: Vec<Cidr>,
}

/// The other end of a cable. As text: `access SWITCH`, `access SWITCH vlan VLAN`, `trunk SWITCH`,
/// `wan WAN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Attach {
    /// An access port: untagged towards the host, in this VLAN of the switch, or in the switch's
    /// untagged network.
    Access {
        switch: String,
        /// The port group's VLAN.
        vlan: Option<Vlan>,
    },
    /// A trunk port: every VLAN of the switch, tagged, and its untagged network without a tag.
    Trunk { switch: String },
    /// One of the two ends of a WAN link.
    Wan {
        /// The link.
        wan: String,
    },
}

/// A route of a host. As text: `PREFIX via ROUTER`, `PREFIX dev LINK`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Route {
    /// Destination, `0.0.0.0/0` for the default.
    pub to: Cidr,
    /// The next hop.
    pub hop: Hop,
}

/// The next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To this router, on one of the host's links.
    Via(IpAddr),
    /// The destination is resolved on this link.
    OnLink(String),
}

/// A virtual switch: one kernel bridge per VLAN, and trunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// `[a-z0-9-]`, unique among hosts too.
    pub name: String,
    /// Tag type of the outer tag of QinQ VLANs: 0x88a8 or 0x8100.
    #[serde(default = "service_tag")]
    pub outer_ethertype: u16,
}

/// A point-to-point link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wan {
    /// Unique.
    pub name: String,
    /// Bytes, both ends.
    #[serde(default)]
    pub mtu: u16,
}

/// An appliance's part of the topology, written to its configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// The host it runs on, and its name.
    pub host: String,
    pub role: Role,
    /// The link that tunnels use.
    pub uplink: String,
    pub tenants: Vec<Tenant>,
    /// Name and tunnel address of each peer. With a circuit, the address only
    /// identifies the peer.
    pub peers: Vec<(String, IpAddr)>,
    /// The networks that it stretches.
    pub networks: Vec<Network>,
}

/// A tenant, as one appliance sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    pub name: String,
    /// The public addresses allocated to it; at the provider, and only where it may fail over
    /// whole.
    pub public: Vec<Cidr>,
    /// Those of them that its networks with internet are seen as, one per family at most; empty:
    /// the appliance's choice.
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
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Unique in the appliance; the same at both ends.
    pub name: String,
    pub tenant: String,
    /// The peer at the other end.
    pub peer: String,
    /// 24 bits; the same at both ends.
    pub vni: u32,
    /// The appliance's link.
    pub interface: String,
    /// Its tag there.
    pub vlan: Option<Vlan>,
    pub prefixes: Vec<Cidr>,
    /// Its default gateways, one per family at most.
    pub gateway: Vec<IpAddr>,
}

/// A machine that can fail over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The production host; also the machine's name.
    pub production: String,
    /// The replica's host.
    pub replica: String,
    pub tenant: String,
    /// The stretched network.
    pub network: String,
    pub addresses: Vec<IpAddr>,
    /// Host of the appliance at its production site.
    pub tenant_appliance: String,
    /// Host of the appliance at the provider.
    pub provider_appliance: String,
}

/// A site that can fail over whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub host: String,
    /// Input of `nft`.
    pub nft: String,
}

/// The outer tag type of 802.1ad.
const fn service_tag() -> u16 {
    0x88a8
}

const fn yes() -> bool {
    true
}

impl Topology {
    /// An empty one.
    #[must_use]
    pub fn new(name: &str, options: Options) -> Self {
        Self {
            name: name.to_owned(),
            options,
            ..Self::default()
        }
    }

    /// Adds a switch.
    #[must_use]
    pub fn switch(mut self, name: &str) -> Self {
        self.switches.push(Switch {
            name: name.to_owned(),
            outer_ethertype: service_tag(),
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
}
