//! Look-ups, and the questions about an address that every direction asks.

use appliance_common::{
    addr::Prefix,
    limits::MAX_PREFIXES,
    maps::{
        Config, Mode, Neighbour, Network, SCHEMA_VERSION, Tunnel, TunnelKey, neighbour_flags,
        network_flags,
    },
};

use crate::{
    addr::{Words, bytes, key, words},
    maps::{CONFIG, ENDPOINTS, NEIGHBOURS, NETWORKS, TENANTS, TUNNELS},
};

/// The configuration.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether user space has configured us, in the layout that we read.
#[inline(always)]
pub fn configured() -> bool {
    config().is_some_and(|c| c.version == SCHEMA_VERSION)
}

/// The network in `slot`, if it is in force.
#[inline(always)]
pub fn network(slot: u32) -> Option<&'static Network> {
    NETWORKS
        .get(slot)
        .filter(|n| n.flags & network_flags::ACTIVE != 0)
}

/// Whether the network's tenant is in partial failover.
#[inline(always)]
pub fn is_partial(network: &Network) -> bool {
    TENANTS
        .get(network.tenant)
        .is_some_and(|t| t.mode == Mode::Partial as u32)
}

/// Whether this is the side of the replicas.
#[inline(always)]
pub fn is_provider(network: &Network) -> bool {
    network.flags & network_flags::PROVIDER != 0
}

/// Whether the network's tunnel is encrypted.
#[inline(always)]
pub fn is_secure(network: &Network) -> bool {
    network.flags & network_flags::SECURE != 0
}

/// Whether the address is failed over.
#[inline(always)]
pub fn is_endpoint(network: &Network, address: Words) -> bool {
    ENDPOINTS.get_ptr(key(network.vni, address)).is_some()
}

/// Whether the address is on this side of the tunnel, in partial failover.
#[inline(always)]
pub fn is_here(network: &Network, address: Words) -> bool {
    is_endpoint(network, address) == is_provider(network)
}

/// The prefix of the network that holds `address`.
#[inline(always)]
pub fn prefix_of(network: &Network, address: Words) -> Option<&Prefix> {
    let address = bytes(address);
    let mut i = 0;
    while i < MAX_PREFIXES {
        if i >= network.prefix_count as usize {
            return None;
        }
        let prefix = &network.prefixes[i];
        if prefix.contains(&address) {
            return Some(prefix);
        }
        i += 1;
    }
    None
}

/// The router of the network for the family of `address`, if one is configured.
#[inline(always)]
pub fn gateway(network: &Network, ipv6: bool) -> Option<Words> {
    let gateway = words(if ipv6 {
        network.gateway_v6
    } else {
        network.gateway_v4
    });
    if gateway == [0; 4] {
        return None;
    }
    Some(gateway)
}

/// How to reach a host of the network on this side; notes that it was used.
#[inline(always)]
pub fn neighbour(network: &Network, address: Words) -> Option<*mut Neighbour> {
    let neighbour = NEIGHBOURS.get_ptr_mut(key(network.vni, address))?;
    // SAFETY: the map returned a value. User space and the other CPU may write it meanwhile; what
    // is read or lost then is a flag bit that the next packet sets again.
    unsafe {
        let flags = (*neighbour).flags;
        if flags & neighbour_flags::USED == 0 {
            (*neighbour).flags = flags | neighbour_flags::USED;
        }
    }
    Some(neighbour)
}

/// The network that `peer` may send to us under `vni`.
#[inline(always)]
pub fn tunnel(vni: u32, peer: Words) -> Option<&'static Tunnel> {
    // SAFETY: the value is read whole before the program ends; preallocated entries are not unmapped.
    unsafe {
        TUNNELS.get(TunnelKey {
            vni,
            peer: bytes(peer),
        })
    }
}
