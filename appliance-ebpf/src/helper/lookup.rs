//! Lookups, and the predicates on addresses that every direction uses.

use appliance_common::{
    addr::Prefix,
    limits::MAX_PREFIXES,
    maps::{
        Config, Mode, Neighbour, Network, PolicyKey, ROUTE_KEY_BITS, RouteKey, SCHEMA_VERSION,
        Tunnel, TunnelKey, neighbour_flags, network_flags,
    },
};

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};

use packet_rules::source;

use crate::{
    helper::{
        addr::{Words, bytes, key, words},
        logging,
    },
    maps::{CONFIG, ENDPOINTS, NEIGHBOURS, NETWORKS, POLICIES, ROUTES, TENANTS, TUNNELS},
};

/// The configuration.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether user space has written the configuration, in the schema of this object. Another schema
/// is logged.
#[inline(always)]
pub fn is_configured(ctx: &XdpContext) -> bool {
    let version = config().map_or(0, |c| c.version);
    if version != SCHEMA_VERSION {
        logging::unknown_schema(ctx, version);
    }
    version == SCHEMA_VERSION
}

/// Whether the address is one of our own on the tunnels' port.
#[inline(always)]
pub fn is_local(address: Words) -> bool {
    config().is_some_and(|c| words(c.local_v4) == address || words(c.local_v6) == address)
}

/// The network in `slot`, if it is active.
#[inline(always)]
pub fn network(slot: u32) -> Option<&'static Network> {
    NETWORKS
        .get(slot)
        .filter(|n| n.flags & network_flags::ACTIVE != 0)
}

/// The [`Mode`] of the network's tenant. Read once for a packet: a mode switch is one store, and a
/// packet that read it twice could be treated by both modes.
#[inline(always)]
pub fn mode(network: &Network) -> u32 {
    TENANTS
        .get(network.tenant)
        .map_or(Mode::Idle as u32, |t| t.mode)
}

/// Whether the network's tenant is in partial failover.
#[inline(always)]
pub fn is_partial(network: &Network) -> bool {
    mode(network) == Mode::Partial as u32
}

/// Whether this appliance is on the side of the replicas.
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
    source::is_here(is_provider(network), is_endpoint(network, address))
}

/// Whether a host of the network may have the address, in full failover: it is within the prefixes
/// and not the gateway's, which is ours.
#[inline(always)]
pub fn is_host_of(network: &Network, address: Words) -> bool {
    gateway(network, false) != Some(address)
        && gateway(network, true) != Some(address)
        && prefix_of(network, address).is_some()
}

/// The slot of the tenant's network that holds `address`, by the longest prefix.
#[inline(always)]
pub fn route(tenant: u32, address: Words) -> Option<u32> {
    let key = Key::new(
        ROUTE_KEY_BITS + 128,
        RouteKey {
            tenant,
            address: bytes(address),
        },
    );
    ROUTES.get(&key).map(|route| route.network)
}

/// Whether a policy allows packets from one network to the other.
#[inline(always)]
pub fn is_allowed(from: &Network, to: &Network) -> bool {
    POLICIES
        .get_ptr(PolicyKey {
            from: from.vni,
            to: to.vni,
        })
        .is_some()
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

/// The router of the network for a family, if one is configured.
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

/// The neighbour entry of a host on this side; marks it as used.
#[inline(always)]
pub fn neighbour(network: &Network, address: Words) -> Option<*mut Neighbour> {
    let neighbour = NEIGHBOURS.get_ptr_mut(key(network.vni, address))?;
    // SAFETY: the map returned a value. User space and other CPUs may write it meanwhile; at worst
    // a flag bit is lost, which the next packet sets again.
    unsafe {
        let flags = (*neighbour).flags;
        if flags & neighbour_flags::USED == 0 {
            (*neighbour).flags = flags | neighbour_flags::USED;
        }
    }
    Some(neighbour)
}

/// The tunnel entry of `peer` for `vni`.
#[inline(always)]
pub fn tunnel(vni: u32, peer: Words) -> Option<&'static Tunnel> {
    // SAFETY: the value is read whole before the program ends; preallocated entries are not
    // unmapped.
    unsafe {
        TUNNELS.get(TunnelKey {
            vni,
            peer: bytes(peer),
        })
    }
}
