//! The appliances' and gateways' configuration files, from the topology.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    cloud::{Access, Drawn, Gateway, TLS_PORT},
    topology::{Appliance, Role, Topology},
};

/// Paths of one appliance.
#[derive(Clone, Debug)]
pub(crate) struct Places<'a> {
    pub state_dir: &'a Path,
    pub pin_dir: &'a Path,
    pub control_socket: &'a Path,
    pub bpf_object: &'a Path,
    /// The private key, and the public keys by peer name; `None` for plain tunnels.
    pub keys: Option<(&'a Path, &'a BTreeMap<String, String>)>,
    /// The circuits to peers, by peer name.
    pub circuits: &'a BTreeMap<&'a str, Circuit>,
}

/// The circuit to a peer, as one appliance has it.
#[derive(Clone, Debug)]
pub(crate) struct Circuit {
    pub id: String,
    /// Path of its side's key.
    pub key_file: PathBuf,
    /// Server name and fingerprint of the way over TLS.
    pub tls: Option<(String, String)>,
}

#[derive(Serialize)]
struct File<'a> {
    appliance: Section<'a>,
    uplink: Uplink<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<Tunnel<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<&'a Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateway: Vec<GatewayEntry<'a>>,
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
struct Tls {
    listen: Vec<String>,
    from: Vec<IpAddr>,
    proxy: bool,
}

#[derive(Serialize)]
struct GatewayEntry<'a> {
    name: &'a str,
    addresses: Vec<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    load: u16,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit: Option<PeerCircuit<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<PeerTls<'a>>,
}

#[derive(Serialize)]
struct PeerCircuit<'a> {
    id: &'a str,
    key_file: &'a Path,
}

#[derive(Serialize)]
struct PeerTls<'a> {
    name: &'a str,
    fingerprint: &'a str,
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
        gateways: topology
            .cloud
            .of(&appliance.host, 0)
            .next()
            .map(|circuit| &circuit.access),
        tls: topology.cloud.has_tls(&appliance.host, 1).then(|| Tls {
            listen: vec![format!("0.0.0.0:{TLS_PORT}")],
            from: topology
                .cloud
                .gateways
                .iter()
                .flat_map(|g| topology.addresses_of(&g.host))
                .collect(),
            proxy: true,
        }),
        gateway: topology
            .cloud
            .gateways
            .iter()
            .filter(|_| !places.circuits.is_empty())
            .map(|g| GatewayEntry {
                name: &g.host,
                addresses: topology.gateway_addresses(&g.host),
                pool: g.pool.as_deref(),
                load: g.load,
            })
            .collect(),
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
                    circuit: None,
                    tls: None,
                },
                Some((_, public)) => Peer {
                    name,
                    kind: "appliance",
                    // The tenant's end dials; the provider's learns where from. Through gateways
                    // neither does.
                    address: (appliance.role == Role::Tenant
                        && !places.circuits.contains_key(name.as_str()))
                    .then(|| address.to_string()),
                    public_key: public.get(name).map(String::as_str),
                    circuit: places.circuits.get(name.as_str()).map(|c| PeerCircuit {
                        id: &c.id,
                        key_file: &c.key_file,
                    }),
                    tls: places
                        .circuits
                        .get(name.as_str())
                        .and_then(|c| c.tls.as_ref())
                        .map(|(name, fingerprint)| PeerTls { name, fingerprint }),
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

#[derive(Serialize)]
struct GatewayFile<'a> {
    gateway: GatewaySection<'a>,
    tenant: Vec<GatewayTenant<'a>>,
    circuit: Vec<GatewayCircuit<'a>>,
    backend: Vec<Backend<'a>>,
    route: Vec<Route<'a>>,
}

#[derive(Serialize)]
struct GatewaySection<'a> {
    name: &'a str,
    control_socket: &'a Path,
    metrics: &'static str,
    drain: u64,
}

#[derive(Serialize)]
struct GatewayTenant<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct GatewayCircuit<'a> {
    id: &'a str,
    tenant: &'a str,
    keys: [String; 2],
}

#[derive(Serialize)]
struct Backend<'a> {
    name: &'a str,
    addresses: Vec<SocketAddr>,
    /// Whether it receives the client's address by the PROXY protocol.
    proxy: bool,
}

#[derive(Serialize)]
struct Route<'a> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    backend: &'a str,
}

/// The TOML text for `gateway`: every circuit, the director, and where circuits have a way over
/// TLS, the appliance that is their side b. Everything else is as the gateway has it by default,
/// but for the drain time, seconds.
pub(crate) fn render_gateway(
    topology: &Topology,
    gateway: &Gateway,
    circuits: &[Drawn],
    control_socket: &Path,
    drain: u64,
) -> Result<String, toml::ser::Error> {
    let tenants: BTreeSet<&str> = topology
        .appliances
        .iter()
        .flat_map(|a| &a.tenants)
        .map(|t| t.name.as_str())
        .collect();
    let at = |host: &str, port: u16| -> Vec<SocketAddr> {
        let addresses = topology.addresses_of(host);
        addresses.map(|a| SocketAddr::new(a, port)).collect()
    };
    let over_tls: Vec<_> = topology
        .cloud
        .circuits
        .iter()
        .filter_map(|c| Some((c, c.tls.as_deref()?)))
        .collect();
    let ends: BTreeSet<&str> = over_tls.iter().map(|(c, _)| c.ends[1].as_str()).collect();
    let mut backend: Vec<_> = ends
        .into_iter()
        .map(|host| Backend {
            name: host,
            addresses: at(host, TLS_PORT)
                .into_iter()
                .filter(SocketAddr::is_ipv4)
                .collect(),
            proxy: true,
        })
        .collect();
    let mut route: Vec<_> = over_tls
        .iter()
        .map(|(circuit, name)| Route {
            name: (*name).to_owned(),
            tenant: Some(&circuit.tenant),
            backend: &circuit.ends[1],
        })
        .collect();
    if let Some(director) = &topology.cloud.director {
        backend.push(Backend {
            name: "director",
            addresses: at(&director.host, director.port),
            proxy: false,
        });
        route.push(Route {
            name: director.name.clone(),
            tenant: None,
            backend: "director",
        });
        route.extend(tenants.iter().map(|tenant| Route {
            name: format!("{tenant}.{}", director.name),
            tenant: Some(tenant),
            backend: "director",
        }));
    }
    toml::to_string(&GatewayFile {
        gateway: GatewaySection {
            name: &gateway.host,
            control_socket,
            metrics: "127.0.0.1:9180",
            drain,
        },
        tenant: tenants.iter().map(|name| GatewayTenant { name }).collect(),
        circuit: circuits
            .iter()
            .map(|c| GatewayCircuit {
                id: &c.id,
                tenant: &c.tenant,
                keys: c.keys_at(&gateway.host),
            })
            .collect(),
        backend,
        route,
    })
}

/// The CPUs of an appliance's workers, different ones as far as possible. With one worker each, the
/// two ends of a tunnel use different CPUs.
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
        let circuits = appliance.peers.iter().filter_map(|(name, address)| {
            let other = &t.appliance_at(*address)?.host;
            let (circuit, side) = t.cloud.between(host, other)?;
            let tls = circuit.tls.clone().filter(|_| side == 0);
            let circuit = Circuit {
                id: "0100000100000000".to_owned(),
                key_file: "/run/x/circuit.key".into(),
                tls: tls.map(|name| (name, "aa".to_owned())),
            };
            Some((name.as_str(), circuit))
        });
        let text = render(
            t,
            appliance,
            &Places {
                state_dir: Path::new("/run/x/state"),
                pin_dir: Path::new("/sys/fs/bpf/x"),
                control_socket: Path::new("/run/x/sock"),
                bpf_object: Path::new("/x/appliance.bpf.o"),
                keys: encrypted.then_some((Path::new("/run/x/key"), &public)),
                circuits: &circuits.collect(),
            },
        )
        .unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn a_tenant_behind_gateways_has_a_circuit_and_no_address_to_dial() {
        let t = sites::gateways(Options::default());
        let tenant = rendered_of(&t, "acme-appliance");
        assert_eq!(tenant["gateways"]["pools"][0].as_str(), Some("gold"));
        assert_eq!(tenant["gateways"]["unpooled"].as_bool(), Some(true));
        let names = |c: &toml::Table| -> Vec<String> {
            let all = c["gateway"].as_array().unwrap().iter();
            all.map(|g| g["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&tenant), ["gw1", "gw2", "gw3"]);
        let gw1 = &tenant["gateway"][0];
        assert_eq!(gw1["pool"].as_str(), Some("gold"));
        assert_eq!(gw1["addresses"][0].as_str(), Some("192.0.2.10:6180"));
        assert_eq!(
            gw1["addresses"][1].as_str(),
            Some("[2001:db8:a:1::10]:6180")
        );
        assert!(tenant["gateway"][2].get("pool").is_none());
        let peer = &tenant["peer"][0];
        assert!(peer.get("address").is_none());
        assert_eq!(peer["circuit"]["id"].as_str(), Some("0100000100000000"));
        assert_eq!(peer["tls"]["fingerprint"].as_str(), Some("aa"));
        assert!(tenant.get("tls").is_none());

        let provider = rendered_of(&t, "provider-appliance");
        assert!(provider.get("gateways").is_none());
        assert_eq!(names(&provider).len(), 3);
        assert_eq!(provider["tls"]["listen"][0].as_str(), Some("0.0.0.0:6443"));
        assert_eq!(provider["tls"]["from"][0].as_str(), Some("192.0.2.10"));
        assert_eq!(provider["tls"]["proxy"].as_bool(), Some(true));
        assert!(provider["peer"][0].get("tls").is_none());

        let direct = rendered("tenant-appliance", 1500, true);
        for absent in ["gateways", "gateway", "tls"] {
            assert!(direct.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_gateway_has_every_circuit_and_a_route_for_each_server_name() {
        let t = sites::gateways(Options::default());
        let drawn = ["acme", "globex"].map(|tenant| Drawn {
            tenant: tenant.to_owned(),
            id: "0100000100000000".to_owned(),
            keys: ["A", "Q"].map(|last| format!("{}{last}=", "A".repeat(42))),
        });
        let socket = Path::new("/run/x/gw1.sock");
        let text = render_gateway(&t, &t.cloud.gateways[0], &drawn, socket, 5).unwrap();
        let c: toml::Table = text.parse().unwrap();
        assert_eq!(c["gateway"]["name"].as_str(), Some("gw1"));
        assert_eq!(c["circuit"].as_array().unwrap().len(), 2);
        let derived = gateway_client::wire::Key::from_base64(&drawn[1].keys[1])
            .unwrap()
            .for_gateway("gw1")
            .to_base64();
        assert_eq!(c["circuit"][1]["keys"][1].as_str(), Some(&*derived));
        let route = |name: &str| {
            let all = c["route"].as_array().unwrap();
            let found = all.iter().find(|r| r["name"].as_str() == Some(name));
            found.map(|r| r["backend"].as_str().unwrap().to_owned())
        };
        assert_eq!(route("director.example.net").as_deref(), Some("director"));
        assert_eq!(
            route("acme.director.example.net").as_deref(),
            Some("director")
        );
        assert_eq!(
            route("globex.tunnel.example.net").as_deref(),
            Some("provider-appliance")
        );
        let backend = &c["backend"][0];
        assert_eq!(backend["addresses"][0].as_str(), Some("203.0.113.5:6443"));
        assert_eq!(
            backend["proxy"].as_bool(),
            Some(true),
            "the director expects a PROXY header"
        );
        let director = &c["backend"][1];
        assert_eq!(director["proxy"].as_bool(), Some(false));
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
