//! Checks a whole file and collects everything that is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use appliance_common::{
    limits::{MAX_ATTACHMENTS, MAX_NETWORKS, MAX_PEERS, MAX_PREFIXES, MAX_TENANTS, MIN_INNER_MTU},
    wire::{
        ETHERTYPE_8021AD, ETHERTYPE_8021Q, OVERHEAD_V4, OVERHEAD_V6, SECURE_OVERHEAD_V4,
        SECURE_PORT, VNI_MAX, VXLAN_PORT,
    },
};
use tunnel::CipherChoice;
use tunnel_worker::{WaitMode, pipeline::LANES};

use super::{
    Config, Identity, IpPrefix, Memory, Network, Peer, PeerKind, Problem, Role, Tunnel, Uplink,
    Vlan, Xdp, file, gateways, nat,
};

/// Largest MTU that XDP takes on any NIC we know, bytes: a page less headroom and tail.
const MAX_MTU: u16 = 3498;

pub(super) struct Checker {
    problems: Vec<Problem>,
}

impl Checker {
    pub(super) fn problem(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem {
            at: at.into(),
            what: what.into(),
        });
    }

    pub(super) fn name(&mut self, at: &str, name: &str) {
        if let Err(what) = service::config::name(name) {
            self.problem(at, what);
        }
    }

    fn interface(&mut self, at: &str, name: &str) {
        // dev_valid_name(), net/core/dev.c
        let fits = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && !name
                .bytes()
                .any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0);
        if !fits {
            self.problem(
                at,
                format!("{name:?} is not an interface name: 1 to 15 characters, no /, : or space"),
            );
        }
    }

    fn xdp(&mut self, at: &str, value: Option<&str>) -> Xdp {
        match value {
            None | Some("native") => Xdp::Native,
            Some("generic") => Xdp::Generic,
            Some("auto") => Xdp::Auto,
            Some(other) => {
                self.problem(
                    at,
                    format!("{other:?}: write \"native\", \"generic\" or \"auto\""),
                );
                Xdp::Native
            }
        }
    }

    pub(super) fn address(&mut self, at: &str, text: &str) -> Option<IpAddr> {
        match text.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) => {
                self.problem(at, format!("{text:?} is not an IPv4 or IPv6 address"));
                None
            }
        }
    }

    fn mtu(&mut self, at: &str, value: Option<i64>) -> Option<u16> {
        let value = value?;
        match u16::try_from(value) {
            Ok(mtu) if (MIN_INNER_MTU..=MAX_MTU).contains(&mtu) => Some(mtu),
            _ => {
                self.problem(
                    at,
                    format!("{value}: an MTU here is {MIN_INNER_MTU} (IPv6's least) to {MAX_MTU} (what XDP takes)"),
                );
                None
            }
        }
    }

    pub(super) fn unique<'a>(&mut self, what: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.problem(
                    format!("{what} {name:?}"),
                    "the name is used twice; give each its own",
                );
            }
        }
    }
}

/// Whether a host may have the address and send from it.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_multicast()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The file as a configuration, or all that is wrong with it.
pub(super) fn check(file: file::File) -> Result<Config, Vec<Problem>> {
    let mut c = Checker {
        problems: Vec::new(),
    };
    let a = file.appliance;
    c.name("appliance: name", &a.name);
    let role = match a.role.as_str() {
        "tenant" => Role::Tenant,
        "provider" => Role::Provider,
        other => {
            c.problem(
                "appliance: role",
                format!("{other:?}: write \"tenant\" or \"provider\""),
            );
            Role::Tenant
        }
    };
    let mut dir = |key: &str, value: Option<PathBuf>, default: &str| {
        let path = value.unwrap_or_else(|| PathBuf::from(default));
        if !path.is_absolute() {
            c.problem(
                format!("appliance: {key}"),
                format!("{}: write an absolute path", path.display()),
            );
        }
        path
    };
    let state_dir = dir("state_dir", a.state_dir, "/var/lib/causeway");
    let pin_dir = dir("pin_dir", a.pin_dir, "/sys/fs/bpf/causeway");
    let control_socket = dir(
        "control_socket",
        a.control_socket,
        "/run/causeway/appliance.sock",
    );
    // sun_path, unix(7)
    if control_socket.as_os_str().len() > 107 {
        c.problem(
            "appliance: control_socket",
            "longer than the 107 bytes that a socket's path may have",
        );
    }

    let uplink = uplink(&mut c, file.uplink);
    let mut interfaces = BTreeMap::new();
    c.unique("interface", file.interface.iter().map(|i| i.name.as_str()));
    for interface in &file.interface {
        let at = format!("interface {:?}", interface.name);
        c.interface(&at, &interface.name);
        if interface.name == uplink.interface {
            c.problem(&at, "is the uplink; its settings belong in [uplink]");
        }
        if !file.network.iter().any(|n| n.interface == interface.name) {
            c.problem(
                &at,
                "no network names it; remove it or name it in a [[network]]",
            );
        }
        let xdp = c.xdp(&format!("{at}: xdp"), interface.xdp.as_deref());
        interfaces.insert(interface.name.clone(), xdp);
    }

    c.unique("tenant", file.tenant.iter().map(|t| t.name.as_str()));
    for tenant in &file.tenant {
        c.name("tenant: name", &tenant.name);
    }
    let tunnel = file.tunnel.map(|t| tunnel(&mut c, t, &uplink));
    let peers = peers(&mut c, &file.peer, &uplink, tunnel.as_ref(), role);
    let networks = networks(&mut c, &file.network, &uplink, (&file.peer, &peers), role);
    members(&mut c, &peers, &networks);
    let gateways = gateways::gateways(&mut c, file.gateways, &file.gateway, &uplink, role);
    gateways::together(&mut c, &gateways, &peers, role);
    let tls = gateways::arrivals(&mut c, file.tls.as_ref(), role);
    let nat = nat::check(&mut c, &file.nat, &uplink, tunnel.as_ref(), &peers);
    let tenants = nat::tenants(&mut c, &file.tenant, role, (&uplink, &peers, &networks));
    for network in &file.network {
        if !file.tenant.iter().any(|t| t.name == network.tenant) {
            c.problem(
                format!("network {:?}: tenant", network.name),
                format!("there is no [[tenant]] named {:?}", network.tenant),
            );
        }
    }
    for (what, count, most) in [
        ("tenant", file.tenant.len(), MAX_TENANTS),
        ("peer", file.peer.len(), MAX_PEERS),
        (
            "network",
            file.network.len(),
            MAX_NETWORKS.min(MAX_ATTACHMENTS),
        ),
    ] {
        if count > most as usize {
            c.problem(what, format!("{count} of them; an appliance takes {most}"));
        }
    }
    if !c.problems.is_empty() {
        return Err(c.problems);
    }
    Ok(Config {
        name: a.name,
        role,
        state_dir,
        pin_dir,
        control_socket,
        bpf_object: a.bpf_object,
        uplink,
        tunnel,
        interfaces,
        gateways,
        tls,
        nat,
        tenants,
        peers,
        networks,
    })
}

fn uplink(c: &mut Checker, uplink: file::Uplink) -> Uplink {
    c.interface("uplink: interface", &uplink.interface);
    let xdp = c.xdp("uplink: xdp", uplink.xdp.as_deref());
    let local: Vec<IpAddr> = uplink
        .local
        .iter()
        .filter_map(|text| c.address("uplink: local", text))
        .collect();
    for address in &local {
        if !is_host(*address) {
            c.problem("uplink: local", format!("{address} is no host's address"));
        }
    }
    for v4 in [true, false] {
        if local.iter().filter(|a| a.is_ipv4() == v4).count() > 1 {
            c.problem("uplink: local", "at most one address of a family");
        }
    }
    let port = port(c, "uplink: port", uplink.port, VXLAN_PORT);
    let mtu = c.mtu("uplink: mtu", uplink.mtu);
    Uplink {
        interface: uplink.interface,
        xdp,
        local,
        port,
        mtu,
    }
}

fn port(c: &mut Checker, at: &str, value: Option<i64>, default: u16) -> u16 {
    match value {
        None => default,
        Some(value) => match u16::try_from(value) {
            Ok(port) if port != 0 => port,
            _ => {
                c.problem(at, format!("{value}: a UDP port is 1 to 65535"));
                default
            }
        },
    }
}

fn tunnel(c: &mut Checker, tunnel: file::Tunnel, uplink: &Uplink) -> Tunnel {
    absolute(c, "tunnel: private_key_file", &tunnel.private_key_file);
    let port = port(c, "tunnel: port", tunnel.port, SECURE_PORT);
    if port == uplink.port {
        c.problem(
            "tunnel: port",
            format!("{port} is uplink.port, the plain tunnels'; give the encrypted ones another"),
        );
    }
    let cipher = tunnel.cipher.as_deref().unwrap_or("auto");
    let cipher = cipher.parse::<CipherChoice>().unwrap_or_else(|_| {
        c.problem(
            "tunnel: cipher",
            format!("{cipher:?}: write \"auto\", \"aes-256-gcm\" or \"chacha20-poly1305\""),
        );
        CipherChoice::Auto
    });
    let workers = match u32::try_from(tunnel.workers.unwrap_or(1)) {
        Ok(workers) if (1..=LANES).contains(&workers) => workers,
        _ => {
            c.problem(
                "tunnel: workers",
                format!(
                    "write 1 to {LANES}, and not more than the machine has CPUs to spare: each \
                     worker has a queue of every interface"
                ),
            );
            1
        }
    };
    let cpus: Vec<usize> = tunnel
        .cpus
        .iter()
        .filter_map(|cpu| match usize::try_from(*cpu) {
            Ok(cpu) if cpu < 1024 => Some(cpu),
            _ => {
                c.problem(
                    "tunnel: cpus",
                    format!("{cpu}: a CPU's number is 0 to 1023"),
                );
                None
            }
        })
        .collect();
    let waiting = match tunnel.waiting.as_deref() {
        None | Some("wake") => WaitMode::Wake,
        Some("busy") => WaitMode::Busy,
        Some(other) => {
            c.problem(
                "tunnel: waiting",
                format!("{other:?}: write \"wake\" or \"busy\""),
            );
            WaitMode::Wake
        }
    };
    let memory = match tunnel.memory.as_deref() {
        None | Some("copy") => Memory::Copy,
        Some("zero-copy") => Memory::ZeroCopy,
        Some(other) => {
            c.problem(
                "tunnel: memory",
                format!("{other:?}: write \"copy\" or \"zero-copy\""),
            );
            Memory::Copy
        }
    };
    Tunnel {
        private_key_file: tunnel.private_key_file,
        port,
        cipher,
        workers,
        cpus,
        waiting,
        memory,
    }
}

pub(super) fn absolute(c: &mut Checker, at: &str, path: &std::path::Path) {
    if !path.is_absolute() {
        c.problem(at, format!("{}: write an absolute path", path.display()));
    }
}

fn peers(
    c: &mut Checker,
    peers: &[file::Peer],
    uplink: &Uplink,
    tunnel: Option<&Tunnel>,
    role: Role,
) -> Vec<Peer> {
    c.unique("peer", peers.iter().map(|p| p.name.as_str()));
    let mut out: Vec<Peer> = Vec::new();
    for peer in peers {
        c.name("peer: name", &peer.name);
        let kind = match peer.kind.as_deref() {
            Some("vxlan") => vxlan(c, peer, uplink, &out),
            None | Some("appliance") => identity(c, peer, uplink, (tunnel, role), &out).map(|identity| {
                if role == Role::Tenant
                    && identity.addresses.is_empty()
                    && peer.circuit.is_none()
                {
                    c.problem(
                        format!("peer {:?}: address", peer.name),
                        "the tenant's end dials: give the address of the provider, or the circuit by which gateways reach it",
                    );
                }
                without(c, peer, &["network", "allowed", "keepalive"]);
                PeerKind::Appliance(identity)
            }),
            Some("wireguard") => wireguard(c, peer, uplink, (tunnel, role), &out),
            Some(other) => {
                c.problem(
                    format!("peer {:?}: kind", peer.name),
                    format!("{other:?}: write \"appliance\", \"wireguard\" or \"vxlan\""),
                );
                None
            }
        };
        if let Some(kind) = kind {
            out.push(Peer {
                name: peer.name.clone(),
                kind,
            });
        }
    }
    out
}

/// Keys that have no meaning for this kind of peer.
fn without(c: &mut Checker, peer: &file::Peer, keys: &[&str]) {
    for (key, there) in [
        ("addresses", !peer.addresses.is_empty()),
        ("public_key", peer.public_key.is_some()),
        ("preshared_key_file", peer.preshared_key_file.is_some()),
        ("network", peer.network.is_some()),
        ("allowed", !peer.allowed.is_empty()),
        ("keepalive", peer.keepalive.is_some()),
        ("circuit", peer.circuit.is_some()),
        ("tls", peer.tls.is_some()),
    ] {
        if there && keys.contains(&key) {
            c.problem(
                format!("peer {:?}: {key}", peer.name),
                format!(
                    "has no meaning for kind = {:?}; remove it",
                    peer.kind.as_deref().unwrap_or("appliance")
                ),
            );
        }
    }
}

/// Whether the address may be a peer's.
fn remote(c: &mut Checker, at: &str, address: IpAddr, uplink: &Uplink) {
    if !is_host(address) || is_link_local(address) {
        c.problem(at, format!("{address} cannot be a tunnel's end"));
    }
    if uplink.local.contains(&address) {
        c.problem(at, format!("{address} is this appliance's own"));
    }
    if !uplink.local.is_empty()
        && !uplink
            .local
            .iter()
            .any(|l| l.is_ipv4() == address.is_ipv4())
    {
        c.problem(
            at,
            format!("{address} is of a family that uplink.local has no address of"),
        );
    }
}

fn vxlan(c: &mut Checker, peer: &file::Peer, uplink: &Uplink, others: &[Peer]) -> Option<PeerKind> {
    let at = format!("peer {:?}: address", peer.name);
    without(
        c,
        peer,
        &[
            "addresses",
            "public_key",
            "preshared_key_file",
            "network",
            "allowed",
            "keepalive",
            "circuit",
            "tls",
        ],
    );
    let Some(text) = &peer.address else {
        c.problem(&at, "a plain tunnel needs the address of its other end");
        return None;
    };
    let address = c.address(&at, text)?;
    remote(c, &at, address, uplink);
    if let Some(other) = others.iter().find(|o| o.plain() == Some(address)) {
        c.problem(&at, format!("{address} is also peer {:?}'s", other.name));
    }
    Some(PeerKind::Vxlan(address))
}

fn identity(
    c: &mut Checker,
    peer: &file::Peer,
    uplink: &Uplink,
    (tunnel, role): (Option<&Tunnel>, Role),
    others: &[Peer],
) -> Option<Identity> {
    let at = |key: &str| format!("peer {:?}: {key}", peer.name);
    if tunnel.is_none() {
        c.problem(
            at("kind"),
            "an encrypted peer needs a [tunnel] section with our private_key_file (`causeway-appliance keygen`); for a plain tunnel write kind = \"vxlan\"",
        );
    }
    let default = tunnel.map_or(SECURE_PORT, |t| t.port);
    let mut addresses = Vec::new();
    for (key, text) in peer
        .address
        .iter()
        .map(|text| ("address", text))
        .chain(peer.addresses.iter().map(|text| ("addresses", text)))
    {
        let address = text
            .parse::<SocketAddr>()
            .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, default)));
        let Ok(address) = address else {
            c.problem(
                at(key),
                format!("{text:?} is neither an address nor address:port"),
            );
            continue;
        };
        if address.port() == 0 {
            c.problem(at(key), format!("{text:?}: a UDP port is 1 to 65535"));
        }
        remote(c, &at(key), address.ip(), uplink);
        if addresses.contains(&address) {
            c.problem(at(key), format!("{address} is there twice"));
        }
        addresses.push(address);
    }
    if let Some(path) = &peer.preshared_key_file {
        absolute(c, &at("preshared_key_file"), path);
    }
    let Some(text) = &peer.public_key else {
        c.problem(
            at("public_key"),
            "is missing: `causeway-appliance pubkey` prints it on the other end; for a plain tunnel write kind = \"vxlan\"",
        );
        return None;
    };
    let public_key = match text.parse() {
        Ok(key) => key,
        Err(error) => {
            c.problem(at("public_key"), format!("{text:?}: {error}"));
            return None;
        }
    };
    if let Some(other) = others
        .iter()
        .find(|o| o.identity().is_some_and(|i| i.public_key == public_key))
    {
        c.problem(
            at("public_key"),
            format!("is also peer {:?}'s; each has its own", other.name),
        );
    }
    Some(Identity {
        public_key,
        preshared_key_file: peer.preshared_key_file.clone(),
        circuit: gateways::circuit(c, peer, &addresses, role, others),
        addresses,
    })
}

fn wireguard(
    c: &mut Checker,
    peer: &file::Peer,
    uplink: &Uplink,
    (tunnel, role): (Option<&Tunnel>, Role),
    others: &[Peer],
) -> Option<PeerKind> {
    let at = |key: &str| format!("peer {:?}: {key}", peer.name);
    without(c, peer, &["circuit", "tls"]);
    let identity = identity(c, peer, uplink, (tunnel, role), others);
    let Some(network) = &peer.network else {
        c.problem(at("network"), "is missing: the network that it joins");
        return None;
    };
    // A bare address is one host.
    let allowed: Vec<String> = peer
        .allowed
        .iter()
        .map(|text| match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("{text}/32"),
            Ok(IpAddr::V6(_)) => format!("{text}/128"),
            Err(_) => text.clone(),
        })
        .collect();
    let allowed = prefixes(c, &at("allowed"), &allowed);
    let keepalive = peer.keepalive.and_then(|seconds| match seconds {
        1..=65_535 => Some(Duration::from_secs(seconds.unsigned_abs())),
        _ => {
            c.problem(at("keepalive"), format!("{seconds}: 1 to 65535 seconds"));
            None
        }
    });
    Some(PeerKind::WireGuard {
        identity: identity?,
        network: network.clone(),
        allowed,
        keepalive,
    })
}

/// WireGuard peers against the networks they join, and networks against such peers.
fn members(c: &mut Checker, peers: &[Peer], networks: &[Network]) {
    let mut taken: Vec<(&str, IpPrefix, &str)> = Vec::new();
    for peer in peers {
        let PeerKind::WireGuard {
            network: name,
            allowed,
            ..
        } = &peer.kind
        else {
            continue;
        };
        let at = |key: &str| format!("peer {:?}: {key}", peer.name);
        let Some(network) = networks.iter().find(|n| n.name == *name) else {
            c.problem(at("network"), format!("there is no network {name:?}"));
            continue;
        };
        let main = peers.iter().find(|p| p.name == network.peer);
        if main.is_some_and(|main| main.plain().is_some()) {
            c.problem(
                at("network"),
                format!(
                    "network {name:?} has a plain peer; a WireGuard peer joins a network whose own peer is encrypted"
                ),
            );
        }
        for net in allowed {
            let inside = network
                .prefixes
                .iter()
                .any(|p| p.contains(net.address()) && p.length() <= net.length());
            if !inside {
                c.problem(
                    at("allowed"),
                    format!("{net} is not inside the prefixes of network {name:?}"),
                );
            }
            // Its own were compared when they were read.
            if let Some((_, theirs, other)) = taken
                .iter()
                .find(|(n, theirs, other)| n == name && *other != peer.name && theirs.overlaps(net))
            {
                c.problem(
                    at("allowed"),
                    format!("{net} overlaps {theirs} of peer {other:?}"),
                );
            }
            taken.push((name, *net, &peer.name));
        }
    }
    for network in networks {
        let main = peers.iter().find(|p| p.name == network.peer);
        if let Some(PeerKind::WireGuard { network: of, .. }) = main.map(|p| &p.kind)
            && *of != network.name
        {
            c.problem(
                format!("network {:?}: peer", network.name),
                format!(
                    "WireGuard peer {:?} is in network {of:?} only",
                    network.peer
                ),
            );
        }
    }
}

fn networks(
    c: &mut Checker,
    networks: &[file::Network],
    uplink: &Uplink,
    (written, peers): (&[file::Peer], &[Peer]),
    role: Role,
) -> Vec<Network> {
    c.unique("network", networks.iter().map(|n| n.name.as_str()));
    let mut out: Vec<Network> = Vec::new();
    for n in networks {
        let at = |key: &str| format!("network {:?}: {key}", n.name);
        c.name("network: name", &n.name);
        c.interface(&at("interface"), &n.interface);
        let vni = match u32::try_from(n.vni) {
            Ok(vni) if (1..=VNI_MAX).contains(&vni) => vni,
            _ => {
                c.problem(at("vni"), format!("{}: a VNI is 1 to {VNI_MAX}", n.vni));
                0
            }
        };
        let vlan = vlan(c, &at("vlan"), n.vlan.as_deref(), n.outer_ethertype);
        if n.interface == uplink.interface && role == Role::Provider {
            c.problem(
                at("interface"),
                "is the uplink; on a provider appliance tenants' networks need an interface of their own",
            );
        }
        let prefixes = prefixes(c, &at("prefixes"), &n.prefixes);
        let (gateway_v4, gateway_v6) = gateways(c, &at("gateway"), &n.gateway, &prefixes);
        let mtu = c.mtu(&at("mtu"), n.mtu);
        let peer = peers.iter().find(|p| p.name == n.peer);
        if !written.iter().any(|p| p.name == n.peer) {
            c.problem(
                at("peer"),
                format!("there is no [[peer]] named {:?}", n.peer),
            );
        }
        if let (Some(path), Some(peer)) = (uplink.mtu, peer) {
            let overhead = match peer.plain() {
                Some(address) if address.is_ipv4() => OVERHEAD_V4,
                Some(_) => OVERHEAD_V6,
                // The least it takes; where the path is IPv6, what does not fit goes in pieces.
                None => SECURE_OVERHEAD_V4,
            };
            let room = path - overhead;
            if room < MIN_INNER_MTU {
                c.problem(
                    at("mtu"),
                    format!(
                        "uplink.mtu {path} less {overhead} leaves {room}, below {MIN_INNER_MTU}"
                    ),
                );
            } else if mtu.is_some_and(|m| m > room) {
                c.problem(
                    at("mtu"),
                    format!("does not fit uplink.mtu {path} less {overhead}: at most {room}"),
                );
            }
        }
        for other in &out {
            if other.vni == vni && vni != 0 {
                c.problem(
                    at("vni"),
                    format!("{vni} is also network {:?}'s", other.name),
                );
            }
            let same_port = (other.vlan.outer, other.vlan.inner) == (vlan.outer, vlan.inner);
            if other.interface == n.interface && same_port {
                c.problem(
                    at("vlan"),
                    format!(
                        "{vlan} on {} is also network {:?}'s",
                        n.interface, other.name
                    ),
                );
            }
            if other.tenant != n.tenant {
                continue;
            }
            for (mine, theirs) in prefixes
                .iter()
                .flat_map(|m| other.prefixes.iter().map(move |t| (m, t)))
            {
                if mine.overlaps(theirs) {
                    c.problem(
                        at("prefixes"),
                        format!(
                            "{mine} overlaps {theirs} of network {:?}, the same tenant's",
                            other.name
                        ),
                    );
                }
            }
        }
        out.push(Network {
            name: n.name.clone(),
            tenant: n.tenant.clone(),
            peer: n.peer.clone(),
            vni,
            interface: n.interface.clone(),
            vlan,
            prefixes,
            gateway_v4,
            gateway_v6,
            mtu,
        });
    }
    out
}

fn vlan(c: &mut Checker, at: &str, text: Option<&str>, ethertype: Option<i64>) -> Vlan {
    let mut vlan = Vlan::default();
    if let Some(text) = text {
        let ids: Option<Vec<u16>> = text
            .split('.')
            .map(|id| id.parse::<u16>().ok().filter(|id| (1..=4094).contains(id)))
            .collect();
        match ids.as_deref() {
            Some([outer]) => vlan.outer = *outer,
            Some([outer, inner]) => (vlan.outer, vlan.inner) = (*outer, *inner),
            _ => c.problem(
                at,
                format!(
                    "{text:?}: write \"101\", or \"200.101\" for outer and inner; each 1 to 4094"
                ),
            ),
        }
    }
    vlan.outer_ethertype = if vlan.inner != 0 {
        ETHERTYPE_8021AD
    } else {
        ETHERTYPE_8021Q
    };
    if let Some(value) = ethertype {
        match u16::try_from(value) {
            Ok(v) if v == ETHERTYPE_8021Q || v == ETHERTYPE_8021AD => vlan.outer_ethertype = v,
            _ => c.problem(
                at,
                format!("outer_ethertype {value:#x}: write 0x8100 or 0x88a8"),
            ),
        }
        if vlan.outer == 0 {
            c.problem(
                at,
                "outer_ethertype without a vlan has no meaning; remove it",
            );
        }
    }
    vlan
}

fn prefixes(c: &mut Checker, at: &str, texts: &[String]) -> Vec<IpPrefix> {
    if texts.is_empty() || texts.len() > MAX_PREFIXES {
        c.problem(
            at,
            format!("{} of them: write 1 to {MAX_PREFIXES}", texts.len()),
        );
    }
    let mut out: Vec<IpPrefix> = Vec::new();
    for text in texts {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?))
        });
        let Some((address, length)) = parsed else {
            c.problem(
                at,
                format!("{text:?} is not a prefix: write \"10.1.0.0/24\""),
            );
            continue;
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length == 0 || length > most {
            c.problem(at, format!("{text:?}: the length is 1 to {most}"));
            continue;
        }
        let Some(net) = IpPrefix::new_truncated(address, length) else {
            continue;
        };
        if net.address() != address {
            c.problem(at, format!("{text:?} has host bits: write {net}"));
            continue;
        }
        if !is_host(address) || is_link_local(address) {
            c.problem(at, format!("{text:?} cannot be a production network"));
            continue;
        }
        if let Some(other) = out.iter().find(|o| o.overlaps(&net)) {
            c.problem(at, format!("{net} overlaps {other}"));
        }
        out.push(net);
    }
    out
}

fn gateways(
    c: &mut Checker,
    at: &str,
    texts: &[String],
    prefixes: &[IpPrefix],
) -> (Option<IpAddr>, Option<IpAddr>) {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let Some(address) = c.address(at, text) else {
            continue;
        };
        let inside = prefixes.iter().any(|p| p.contains(address));
        if !is_host(address) || !(inside || is_link_local(address)) {
            c.problem(
                at,
                format!("{address} is neither inside the network's prefixes nor link-local"),
            );
        }
        let slot = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        if slot.replace(address).is_some() {
            c.problem(at, "at most one gateway of a family");
        }
    }
    (v4, v6)
}
