//! The sections `[[network]]`.

use std::net::IpAddr;

use appliance_common::{
    limits::{MAX_PREFIXES, MIN_INNER_MTU},
    wire::{
        ETHERTYPE_8021AD, ETHERTYPE_8021Q, OVERHEAD_V4, OVERHEAD_V6, SECURE_OVERHEAD_V4, VNI_MAX,
    },
};
use service::config::Checker;

use super::{address, is_host, is_link_local, mtu};
use crate::config::{IpPrefix, Network, Peer, Role, Uplink, Vlan, file};

pub(super) fn check(
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
        c.name("network.name", &n.name);
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
                "is the uplink; on a provider's appliance networks need an interface of their own",
            );
        }
        let prefixes = prefixes(c, &at("prefixes"), &n.prefixes);
        let (gateway_v4, gateway_v6) = gateways(c, &at("gateway"), &n.gateway, &prefixes);
        let mtu = mtu(c, &at("mtu"), n.mtu);
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
                // The least overhead; where the path is IPv6, longer packets go in pieces.
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
                    format!("{vni} is also the VNI of network {:?}", other.name),
                );
            }
            let same_port = (other.vlan.outer, other.vlan.inner) == (vlan.outer, vlan.inner);
            if other.interface == n.interface && same_port {
                c.problem(
                    at("vlan"),
                    format!(
                        "{vlan} on {} is also the port of network {:?}",
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
                            "{mine} overlaps {theirs} of network {:?}, of the same tenant",
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
                "outer_ethertype has no meaning without a vlan; remove it",
            );
        }
    }
    vlan
}

pub(super) fn prefixes(c: &mut Checker, at: &str, texts: &[String]) -> Vec<IpPrefix> {
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
        let Some(address) = address(c, at, text) else {
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
