//! The appliances' configuration files, from the topology.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use crate::topology::{Appliance, Role, Topology};

/// Where one appliance keeps its things.
#[derive(Clone, Debug)]
pub(crate) struct Places<'a> {
    pub state_dir: &'a Path,
    pub pin_dir: &'a Path,
    pub control_socket: &'a Path,
    pub bpf_object: &'a Path,
    /// The private key, and the public keys by peer name; `None` for plain tunnels.
    pub keys: Option<(&'a Path, &'a BTreeMap<String, String>)>,
}

#[derive(Serialize)]
struct File<'a> {
    appliance: Section<'a>,
    uplink: Uplink<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<Tunnel<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interface: Vec<Interface<'a>>,
    tenant: Vec<Tenant<'a>>,
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
struct Tunnel<'a> {
    private_key_file: &'a Path,
    workers: u8,
    cpus: Vec<usize>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    xdp: &'static str,
}

#[derive(Serialize)]
struct Tenant<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    public: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nat: Vec<String>,
}

#[derive(Serialize)]
struct Peer<'a> {
    name: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<&'a str>,
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
        tunnel: places.keys.map(|(private_key_file, _)| Tunnel {
            private_key_file,
            workers: topology.options.workers,
            cpus: cpus(topology, appliance),
        }),
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
            .map(|t| Tenant {
                name: &t.name,
                public: t.public.iter().map(ToString::to_string).collect(),
                nat: t.nat.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        peer: appliance
            .peers
            .iter()
            .map(|(name, address)| match places.keys {
                None => Peer {
                    name,
                    kind: "vxlan",
                    address: Some(address.to_string()),
                    public_key: None,
                },
                Some((_, public)) => Peer {
                    name,
                    kind: "appliance",
                    // The tenant's end dials; the provider's learns where from.
                    address: (appliance.role == Role::Tenant).then(|| address.to_string()),
                    public_key: public.get(name).map(String::as_str),
                },
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

/// The CPUs of an appliance's workers, each with one of its own as far as they go: with one worker each, the
/// two ends of a tunnel have different ones.
fn cpus(topology: &Topology, appliance: &Appliance) -> Vec<usize> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let place = topology
        .appliances
        .iter()
        .filter(|other| other.role == appliance.role)
        .position(|other| other.host == appliance.host);
    let side = match appliance.role {
        Role::Tenant => 0,
        Role::Provider => 1,
    };
    let workers = usize::from(topology.options.workers);
    let first = (place.unwrap_or(0) * 2 + side) * workers;
    (first..first + workers).map(|cpu| cpu % cpus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sites, topology::Options};

    fn rendered(host: &str, wan_mtu: u16, encrypted: bool) -> toml::Table {
        let options = Options {
            wan_mtu,
            encrypted,
            ..Options::default()
        };
        rendered_of(&sites::partial(options), host)
    }

    fn rendered_of(t: &Topology, host: &str) -> toml::Table {
        let encrypted = t.options.encrypted;
        let public = BTreeMap::from([
            ("tenant".to_owned(), "key-of-tenant".to_owned()),
            ("provider".to_owned(), "key-of-provider".to_owned()),
        ]);
        let appliance = t.appliances.iter().find(|a| a.host == host).unwrap();
        let text = render(
            t,
            appliance,
            &Places {
                state_dir: Path::new("/run/x/state"),
                pin_dir: Path::new("/sys/fs/bpf/x"),
                control_socket: Path::new("/run/x/sock"),
                bpf_object: Path::new("/x/appliance.bpf.o"),
                keys: encrypted.then_some((Path::new("/run/x/key"), &public)),
            },
        )
        .unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn the_provider_has_its_networks_on_vlans_of_the_trunk() {
        let c = rendered("provider-appliance", 1500, false);
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
        let c = rendered("tenant-appliance", 1500, false);
        assert!(c["network"][0].get("vlan").is_none());
        assert_eq!(c["network"][0]["interface"].as_str(), Some("eth0"));
        assert_eq!(c["network"][1]["interface"].as_str(), Some("eth1"));
        assert_eq!(c["interface"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn public_addresses_are_the_providers_and_only_where_there_are_any() {
        let t = sites::full(Options::default());
        let c = rendered_of(&t, "provider-appliance");
        let acme = &c["tenant"][0];
        assert_eq!(acme["public"][0].as_str(), Some("203.0.113.16/28"));
        assert_eq!(acme["public"][1].as_str(), Some("2001:db8:f::/64"));
        assert_eq!(acme["nat"][1].as_str(), Some("2001:db8:f::16"));
        let globex = &c["tenant"][1];
        assert_eq!(globex["public"][0].as_str(), Some("203.0.113.32/28"));
        assert!(globex.get("nat").is_none());
        let tenant = rendered_of(&t, "tenant-appliance");
        assert!(tenant["tenant"][0].get("public").is_none());
    }

    #[test]
    fn the_path_mtu_is_the_smallest_on_the_way() {
        let c = rendered("tenant-appliance", 1400, false);
        assert_eq!(c["uplink"]["mtu"].as_integer(), Some(1400));
    }

    #[test]
    fn the_tenant_dials_and_the_provider_listens() {
        let (tenant, provider) = (
            rendered("tenant-appliance", 1500, true),
            rendered("provider-appliance", 1500, true),
        );
        assert_eq!(tenant["peer"][0]["address"].as_str(), Some("203.0.113.5"));
        assert_eq!(
            tenant["peer"][0]["public_key"].as_str(),
            Some("key-of-provider")
        );
        assert!(provider["peer"][0].get("address").is_none());
        assert_eq!(
            provider["tunnel"]["private_key_file"].as_str(),
            Some("/run/x/key")
        );
    }
}
