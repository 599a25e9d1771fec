//! The sections `[[peer]]`, but for circuits and TLS.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use appliance_common::wire::SECURE_PORT;
use service::config::Checker;

use super::{address, gateways, is_host, is_link_local, networks::prefixes};
use crate::config::{Identity, IpPrefix, Network, Peer, PeerKind, Role, Tunnel, Uplink, file};

pub(super) fn check(
    c: &mut Checker,
    peers: &[file::Peer],
    uplink: &Uplink,
    tunnel: Option<&Tunnel>,
    role: Role,
) -> Vec<Peer> {
    c.unique("peer", peers.iter().map(|p| p.name.as_str()));
    let mut out: Vec<Peer> = Vec::new();
    for peer in peers {
        c.name("peer.name", &peer.name);
        let kind = match peer.kind.as_deref() {
            Some("vxlan") => vxlan(c, peer, uplink, &out),
            None | Some("appliance") => {
                identity(c, peer, uplink, (tunnel, role), &out).map(|identity| {
                    if role == Role::Tenant
                        && identity.addresses.is_empty()
                        && peer.circuit.is_none()
                    {
                        c.problem(
                        format!("peer {:?}: address", peer.name),
                        "the tenant's end dials: give the address of the provider, or the circuit \
                         by which gateways reach it",
                    );
                    }
                    refuse_keys(c, peer, &["network", "allowed", "keepalive"]);
                    PeerKind::Appliance(identity)
                })
            }
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

/// Refuses keys that have no meaning for this kind of peer.
fn refuse_keys(c: &mut Checker, peer: &file::Peer, keys: &[&str]) {
    for (key, there) in [
        ("addresses", !peer.addresses.is_empty()),
        ("public_key", peer.public_key.is_some()),
        ("preshared_key_file", peer.preshared_key_file.is_some()),
        ("preshared_key", peer.preshared_key.is_some()),
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

/// Checks that the address can be a peer's.
fn check_address(c: &mut Checker, at: &str, address: IpAddr, uplink: &Uplink) {
    if !is_host(address) || is_link_local(address) {
        c.problem(at, format!("{address} cannot be the end of a tunnel"));
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
            format!("{address}: uplink.local has no address of this family"),
        );
    }
}

fn vxlan(c: &mut Checker, peer: &file::Peer, uplink: &Uplink, others: &[Peer]) -> Option<PeerKind> {
    let at = format!("peer {:?}: address", peer.name);
    refuse_keys(
        c,
        peer,
        &[
            "addresses",
            "public_key",
            "preshared_key_file",
            "preshared_key",
            "network",
            "allowed",
            "keepalive",
            "circuit",
            "tls",
        ],
    );
    let Some(text) = &peer.address else {
        c.problem(
            &at,
            "is missing: a plain tunnel needs the address of its other end",
        );
        return None;
    };
    let address = address(c, &at, text)?;
    check_address(c, &at, address, uplink);
    if let Some(other) = others.iter().find(|o| o.plain() == Some(address)) {
        c.problem(
            &at,
            format!("{address} is also the address of peer {:?}", other.name),
        );
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
            "an encrypted peer needs a [tunnel] section with this appliance's private_key_file \
             (`causeway-appliance keygen`); for a plain tunnel write kind = \"vxlan\"",
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
        check_address(c, &at(key), address.ip(), uplink);
        if addresses.contains(&address) {
            c.problem(at(key), format!("{address} is listed twice"));
        }
        addresses.push(address);
    }
    let preshared_key = gateways::key_source(
        c,
        &at,
        ("preshared_key_file", peer.preshared_key_file.as_ref()),
        ("preshared_key", peer.preshared_key.as_ref()),
    );
    let Some(text) = &peer.public_key else {
        c.problem(
            at("public_key"),
            "is missing: `causeway-appliance pubkey` on the other end prints it; for a plain \
             tunnel write kind = \"vxlan\"",
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
            format!(
                "is also the key of peer {:?}; give each peer its own",
                other.name
            ),
        );
    }
    Some(Identity {
        public_key,
        preshared_key,
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
    refuse_keys(c, peer, &["circuit", "tls"]);
    let identity = identity(c, peer, uplink, (tunnel, role), others);
    let Some(network) = &peer.network else {
        c.problem(
            at("network"),
            "is missing: write the network that the peer joins",
        );
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
            c.problem(
                at("keepalive"),
                format!("{seconds}: write 1 to 65535 seconds"),
            );
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

/// Checks WireGuard peers against the networks they join, and networks against such peers.
pub(super) fn members(c: &mut Checker, peers: &[Peer], networks: &[Network]) {
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
                    "network {name:?} has a plain peer; a WireGuard peer can join only a network \
                     whose own peer is encrypted"
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
            // Prefixes of one peer were compared with each other when they were parsed.
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
