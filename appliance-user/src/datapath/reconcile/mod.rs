//! The wanted map contents, and the updates that lead to them.
//!
//! For: computing map contents from the configuration, the state file, the underlay and the
//! encrypted tunnels, and comparing them with the present contents. Never: input, output, or a map;
//! every function is pure.
//!
//! ```text
//!   config, state, Snapshot, EncryptedTunnels ─▶ desired ─▶ MapContents ─┐
//!     networks, peers, endpoints: this file                              ├─▶ diff ─▶ MapUpdates
//!     full failover, NAT, rules:  full                 present contents ─┘
//! ```

mod diff;
mod full;

use std::{collections::BTreeMap, net::IpAddr};

use appliance_common::{
    addr::{Address, UNSPECIFIED, from_ip},
    limits::{MAX_PREFIXES, MIN_INNER_MTU},
    maps::{
        self, Attachment, AttachmentKey, Endpoint, HostKey, Mode, Network, SCHEMA_VERSION, Tenant,
        Tunnel, TunnelKey, attachment_flags, network_flags,
    },
    wire::{OVERHEAD_V4, OVERHEAD_V6, SECURE_OVERHEAD_V4, SECURE_OVERHEAD_V6},
};

use crate::{
    config::{Config, PeerKind, Role, prefix_of},
    kernel::nic::SECOND_TAG,
    kernel::underlay::{Snapshot, UnderlayPath},
    state::{FailoverState, State},
};

pub use super::contents::{MapContents, MapUpdate};
pub use diff::{assign_rule_epochs, diff};
pub use full::{
    failover_problems, nat_addresses, nat_problems, new_problems, plan_tenant, rule_targets,
    zone_of,
};

/// State of the encrypted tunnels that map contents depend on; empty without such tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptedTunnels {
    /// First slot of each interface's sockets in `XSKS`, by interface index.
    pub socket_slots: BTreeMap<u32, u16>,
    /// MTU inside the tunnel to each encrypted peer, by peer name, where it is known, bytes.
    pub mtus: BTreeMap<String, u16>,
}

/// The local addresses of the tunnels: the configured ones, otherwise the uplink's first address of
/// each family that is not link-local.
#[must_use]
pub fn local_addresses(config: &Config, snapshot: &Snapshot) -> Vec<IpAddr> {
    if !config.uplink.local.is_empty() {
        return config.uplink.local.clone();
    }
    let Some(link) = snapshot.links.get(&config.uplink.interface) else {
        return Vec::new();
    };
    let usable = |a: &IpAddr| match a {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    [true, false]
        .into_iter()
        .filter_map(|v4| {
            link.addresses
                .iter()
                .map(|(a, _)| *a)
                .find(|a| a.is_ipv4() == v4 && usable(a))
        })
        .collect()
}

/// MTU of a network, bytes: the configured one, otherwise the path MTU without the tunnel's
/// overhead; at most what its LAN carries.
#[must_use]
pub fn network_mtu(
    config: &Config,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
    network: &crate::config::Network,
) -> u16 {
    let lan = lan_mtu(snapshot, network);
    if let Some(mtu) = network.mtu {
        return mtu.min(lan).max(MIN_INNER_MTU);
    }
    // Every WireGuard peer of the network must be able to receive the largest packet.
    let is_member = |peer: &&crate::config::Peer| match &peer.kind {
        PeerKind::WireGuard { network: of, .. } => *of == network.name,
        _ => false,
    };
    let members = config.peers.iter().filter(is_member);
    let least = members
        .filter_map(|p| encrypted.mtus.get(&p.name))
        .min()
        .copied()
        .unwrap_or(u16::MAX);
    tunnel_mtu(config, snapshot, encrypted, network)
        .min(least)
        .min(lan)
        .max(MIN_INNER_MTU)
}

/// Largest IP packet on the network's own LAN, bytes: its interface's MTU, less the second tag of a
/// QinQ port.
fn lan_mtu(snapshot: &Snapshot, network: &crate::config::Network) -> u16 {
    let link = snapshot.links.get(&network.interface);
    let mtu = link
        .and_then(|link| u16::try_from(link.mtu).ok())
        .unwrap_or(1500);
    let second = if network.vlan.inner == 0 {
        0
    } else {
        SECOND_TAG
    };
    mtu.saturating_sub(second)
}

/// MTU inside the tunnel to the network's own peer, bytes.
fn tunnel_mtu(
    config: &Config,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
    network: &crate::config::Network,
) -> u16 {
    let peer = config.peer(&network.peer);
    if let Some(mtu) = encrypted.mtus.get(&network.peer) {
        return *mtu;
    }
    let plain = peer.and_then(crate::config::Peer::plain);
    let dial_address = peer
        .and_then(crate::config::Peer::identity)
        .and_then(|identity| identity.addresses.first())
        .map(|address| address.ip());
    let address = plain.or(dial_address);
    let v4 = address.is_none_or(|a| a.is_ipv4());
    let path = config.uplink.mtu.or_else(|| {
        let path = address.and_then(|a| snapshot.paths.get(&a));
        match path {
            Some(UnderlayPath::Resolved { mtu, .. }) => u16::try_from(*mtu).ok(),
            _ => snapshot
                .links
                .get(&config.uplink.interface)
                .and_then(|l| u16::try_from(l.mtu).ok()),
        }
    });
    let overhead = match (plain.is_some(), v4) {
        (true, true) => OVERHEAD_V4,
        (true, false) => OVERHEAD_V6,
        (false, true) => SECURE_OVERHEAD_V4,
        (false, false) => SECURE_OVERHEAD_V6,
    };
    path.unwrap_or(1500)
        .saturating_sub(overhead)
        .max(MIN_INNER_MTU)
}

/// The failover mode of a tenant.
#[must_use]
pub fn mode_of(state: &State, tenant: &str) -> Mode {
    match state.modes.get(tenant).map(|mode| &mode.failover) {
        None | Some(FailoverState::Idle) => Mode::Idle,
        Some(FailoverState::Partial) => Mode::Partial,
        Some(FailoverState::Full(_)) => Mode::Full,
    }
}

/// The wanted map contents. Rules have no epochs yet: [`assign_rule_epochs`] derives them from the
/// present contents.
#[must_use]
pub fn desired(
    config: &Config,
    state: &State,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
) -> MapContents {
    let plain = config.plain_peers().next().is_some();
    let uplink = snapshot
        .links
        .get(&config.uplink.interface)
        .map(|link| link.ifindex);
    let local = local_addresses(config, snapshot);
    let of_family = |v4: bool| local.iter().find(|a| a.is_ipv4() == v4).copied();
    let mut contents = MapContents {
        config: maps::Config {
            version: SCHEMA_VERSION,
            // Port 0: no plain tunnels are configured.
            tunnel_port: if plain { config.uplink.port } else { 0 },
            secure_port: config.tunnel.as_ref().map_or(0, |t| t.port),
            uplink_xsk: uplink.map_or(maps::NO_XSK, |ifindex| xsk_of(encrypted, ifindex)),
            reserved: 0,
            local_v4: of_family(true).map_or(UNSPECIFIED, from_ip),
            local_v6: of_family(false).map_or(UNSPECIFIED, from_ip),
        },
        ..MapContents::default()
    };
    for tenant in &config.tenants {
        let Some(slot) = state.slots.tenants.get(&tenant.name) else {
            continue;
        };
        let value = Tenant {
            mode: mode_of(state, &tenant.name) as u32,
            epoch: state.modes.get(&tenant.name).map_or(0, |m| m.epoch),
        };
        contents.tenants.insert(*slot, value);
    }
    for peer in &config.peers {
        let Some(slot) = state.slots.peers.get(&peer.name) else {
            continue;
        };
        let Some(address) = peer.plain() else {
            continue;
        };
        let header = match snapshot.paths.get(&address) {
            Some(UnderlayPath::Resolved {
                ifindex,
                source_mac,
                next_hop_mac,
                ..
            }) => of_family(address.is_ipv4()).and_then(|local| {
                maps::Peer::new(
                    *ifindex,
                    *next_hop_mac,
                    *source_mac,
                    &from_ip(local),
                    &from_ip(address),
                    config.uplink.port,
                )
            }),
            _ => None,
        };
        if let Some(header) = header {
            contents.peers.insert(*slot, header);
        }
    }
    for network in &config.networks {
        add_network(&mut contents, config, state, snapshot, encrypted, network);
    }
    full::add(&mut contents, config, state, snapshot);
    contents
}

fn add_network(
    contents: &mut MapContents,
    config: &Config,
    state: &State,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
    network: &crate::config::Network,
) {
    let (Some(slot), Some(tenant), Some(peer_slot), Some(peer)) = (
        state.slots.networks.get(&network.name),
        state.slots.tenants.get(&network.tenant),
        state.slots.peers.get(&network.peer),
        config.peers.iter().find(|p| p.name == network.peer),
    ) else {
        return;
    };
    let mut prefixes = [appliance_common::addr::Prefix::default(); MAX_PREFIXES];
    for (to, from) in prefixes.iter_mut().zip(&network.prefixes) {
        *to = prefix_of(from);
    }
    let provider = match config.role {
        Role::Provider => network_flags::PROVIDER,
        Role::Tenant => 0,
    };
    let secure = match peer.plain() {
        Some(_) => 0,
        None => network_flags::SECURE,
    };
    // In full failover, the appliance is the router of the networks in the plan only.
    let plan = state.modes.get(&network.tenant);
    let plan = plan.and_then(|mode| mode.failover.plan());
    let (gateway_v4, gateway_v6, internet) = match plan.map(|plan| plan.network(&network.name)) {
        None => (network.gateway_v4, network.gateway_v6, false),
        Some(None) => (None, None, false),
        Some(Some(n)) => (
            n.gateway_v4().map(IpAddr::V4),
            n.gateway_v6().map(IpAddr::V6),
            n.internet(),
        ),
    };
    let internet = if internet { network_flags::INTERNET } else { 0 };
    contents.networks.insert(
        *slot,
        Network {
            vni: network.vni,
            tenant: *tenant,
            peer: *peer_slot,
            flags: network_flags::ACTIVE | provider | secure | internet,
            mtu: network_mtu(config, snapshot, encrypted, network),
            lan_mtu: lan_mtu(snapshot, network),
            prefix_count: network.prefixes.len() as u16,
            reserved: 0,
            gateway_v4: gateway_v4.map_or(UNSPECIFIED, from_ip),
            gateway_v6: gateway_v6.map_or(UNSPECIFIED, from_ip),
            prefixes,
        },
    );
    let tunnel = Tunnel {
        network: *slot,
        flags: 1,
    };
    let accepted = peer
        .plain()
        .into_iter()
        .flat_map(|address| [from_ip(address), UNSPECIFIED]);
    for peer in accepted {
        contents.tunnels.insert(
            TunnelKey {
                vni: network.vni,
                peer,
            },
            tunnel,
        );
    }
    if let Some(link) = snapshot.links.get(&network.interface) {
        let shared = network.interface == config.uplink.interface && network.vlan.outer == 0;
        let key = AttachmentKey {
            ifindex: link.ifindex,
            outer: network.vlan.outer,
            inner: network.vlan.inner,
        };
        let attachment = Attachment {
            network: *slot,
            flags: attachment_flags::ACTIVE | if shared { attachment_flags::HOST } else { 0 },
            mac: link.mac,
            xsk: xsk_of(encrypted, link.ifindex),
            entry_hash: 0,
        };
        contents.attachments.insert(key, attachment.hashed(&key));
    }
    for address in state.endpoints.get(&network.name).into_iter().flatten() {
        contents
            .endpoints
            .insert(host_key(network.vni, *address), Endpoint { flags: 1 });
    }
}

fn xsk_of(encrypted: &EncryptedTunnels, ifindex: u32) -> u16 {
    encrypted
        .socket_slots
        .get(&ifindex)
        .copied()
        .unwrap_or(maps::NO_XSK)
}

/// The key of an address in the network `vni`.
#[must_use]
pub fn host_key(vni: u32, address: IpAddr) -> HostKey {
    HostKey {
        vni,
        address: from_ip(address),
    }
}

/// Checks that a host of the network may have this address, so that the address can be an endpoint.
///
/// # Errors
/// A message that says why the address cannot be an endpoint.
pub fn check_endpoint(
    network: &crate::config::Network,
    own: &[Address],
    address: IpAddr,
) -> Result<(), String> {
    let name = &network.name;
    let bytes = from_ip(address);
    let Some(prefix) = network.prefixes.iter().find(|p| p.contains(address)) else {
        let prefixes: Vec<String> = network.prefixes.iter().map(ToString::to_string).collect();
        return Err(format!(
            "{address} is not in network {name:?} ({}); give an address of that network",
            prefixes.join(", ")
        ));
    };
    if prefix.is_network_or_broadcast(address) {
        return Err(format!(
            "{address} is the network or broadcast address of {prefix}; no machine can have it"
        ));
    }
    if network.gateways().any(|g| g == bytes) {
        return Err(format!(
            "{address} is the router of network {name:?}; a partial failover leaves it at the \
             production site"
        ));
    }
    if own.contains(&bytes) {
        return Err(format!("{address} is this appliance's own address"));
    }
    Ok(())
}

#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod tests;
