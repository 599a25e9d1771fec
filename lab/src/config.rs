//! The appliances' configuration files, from the topology.

use std::path::Path;

use serde::Serialize;

use crate::topology::{Appliance, Role, Topology};

/// Where one appliance keeps its things.
#[derive(Clone, Debug)]
pub(crate) struct Places<'a> {
    pub state_dir: &'a Path,
    pub pin_dir: &'a Path,
    pub control_socket: &'a Path,
    pub bpf_object: &'a Path,
}

#[derive(Serialize)]
struct File<'a> {
    appliance: Section<'a>,
    uplink: Uplink<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interface: Vec<Interface<'a>>,
    tenant: Vec<Named<'a>>,
    peer: Vec<Peer<'a>>,
    network: Vec<Network<'a>>,
}

#[derive(Serialize)]
struct Section<'a> {
    name: &'a str,
    role: Role,
    state_dir: &'a Path,
    pin_dir: &'a Path,
    control_socket: &'a Path,
    bpf_object: &'a Path,
}

#[derive(Serialize)]
struct Uplink<'a> {
    interface: &'a str,
    xdp: &'static str,
    local: Vec<String>,
    port: u16,
    mtu: u16,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    xdp: &'static str,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Peer<'a> {
    name: &'a str,
    address: String,
}

#[derive(Serialize)]
struct Network<'a> {
    name: &'a str,
    tenant: &'a str,
    peer: &'a str,
    vni: u32,
    interface: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<String>,
    prefixes: Vec<String>,
    gateway: Vec<String>,
}

/// The TOML text for `appliance`. The path MTU is the smallest on the way: the uplink's own and
/// every WAN link's.
pub(crate) fn render(
    topology: &Topology,
    appliance: &Appliance,
    places: &Places<'_>,
) -> Result<String, toml::ser::Error> {
    let uplink = topology
        .find_host(&appliance.host)
        .and_then(|h| h.links.iter().find(|l| l.name == appliance.uplink));
    let mut further: Vec<&str> = appliance
        .networks
        .iter()
        .map(|n| n.interface.as_str())
        .filter(|i| *i != appliance.uplink)
        .collect();
    further.sort_unstable();
    further.dedup();
    let mtu = topology
        .wans
        .iter()
        .map(|w| w.mtu)
        .chain(uplink.map(|l| topology.mtu(l)))
        .min()
        .unwrap_or(topology.options.lan_mtu);
    toml::to_string(&File {
        appliance: Section {
            name: &appliance.host,
            role: appliance.role,
            state_dir: places.state_dir,
            pin_dir: places.pin_dir,
            control_socket: places.control_socket,
            bpf_object: places.bpf_object,
        },
        uplink: Uplink {
            interface: &appliance.uplink,
            xdp: "native",
            local: uplink
                .iter()
                .flat_map(|l| &l.addresses)
                .map(|c| c.addr.to_string())
                .collect(),
            port: 4789,
            mtu,
        },
        interface: further
            .into_iter()
            .map(|name| Interface {
                name,
                xdp: "native",
            })
            .collect(),
        tenant: appliance
            .tenants
            .iter()
            .map(|name| Named { name })
            .collect(),
        peer: appliance
            .peers
            .iter()
            .map(|(name, address)| Peer {
                name,
                address: address.to_string(),
            })
            .collect(),
        network: appliance
            .networks
            .iter()
            .map(|n| Network {
                name: &n.name,
                tenant: &n.tenant,
                peer: &n.peer,
                vni: n.vni,
                interface: &n.interface,
                vlan: n.vlan.map(|v| v.to_string()),
                prefixes: n.prefixes.iter().map(ToString::to_string).collect(),
                gateway: n.gateway.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sites, topology::Options};

    fn rendered(host: &str, wan_mtu: u16) -> toml::Table {
        let t = sites::partial(Options {
            wan_mtu,
            ..Options::default()
        });
        let appliance = t.appliances.iter().find(|a| a.host == host).unwrap();
        let text = render(
            &t,
            appliance,
            &Places {
                state_dir: Path::new("/run/x/state"),
                pin_dir: Path::new("/sys/fs/bpf/x"),
                control_socket: Path::new("/run/x/sock"),
                bpf_object: Path::new("/x/appliance.bpf.o"),
            },
        )
        .unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn the_provider_has_its_networks_on_vlans_of_the_trunk() {
        let c = rendered("provider-appliance", 1500);
        assert_eq!(c["appliance"]["role"].as_str(), Some("provider"));
        assert_eq!(c["uplink"]["local"][0].as_str(), Some("203.0.113.5"));
        assert_eq!(c["interface"][0]["name"].as_str(), Some("eth1"));
        let network = &c["network"][0];
        assert_eq!(network["vlan"].as_str(), Some("101"));
        assert_eq!(network["vni"].as_integer(), Some(1001));
        assert_eq!(network["prefixes"][1].as_str(), Some("2001:db8:1::/64"));
        assert_eq!(c["peer"][0]["address"].as_str(), Some("10.1.0.5"));
    }

    #[test]
    fn the_tenant_side_is_untagged_and_its_uplink_is_a_network_too() {
        let c = rendered("tenant-appliance", 1500);
        assert!(c["network"][0].get("vlan").is_none());
        assert_eq!(c["network"][0]["interface"].as_str(), Some("eth0"));
        assert_eq!(c["network"][1]["interface"].as_str(), Some("eth1"));
        assert_eq!(c["interface"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn the_path_mtu_is_the_smallest_on_the_way() {
        let c = rendered("tenant-appliance", 1400);
        assert_eq!(c["uplink"]["mtu"].as_integer(), Some(1400));
    }
}
