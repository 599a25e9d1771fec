//! Lookups, and the predicates on addresses that every direction uses.

use appliance_common::{
    addr::Prefix,
    entry_hash,
    limits::MAX_PREFIXES,
    maps::{
        Config, MAX_L2_LEN, Mode, Neighbour, Network, PolicyKey, ROUTE_KEY_BITS, RouteKey,
        SCHEMA_VERSION, Tunnel, TunnelKey, network_flags,
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

/// A host found in `NEIGHBOURS`. The element may be reused for another host before it is read:
/// [`Host::read`] finds that out.
#[derive(Clone, Copy)]
pub struct Host {
    entry: *mut Neighbour,
    /// The key's part of the hash.
    hash: u64,
}

/// The content of an entry of `NEIGHBOURS`.
#[derive(Clone, Copy)]
pub struct Resolved {
    /// Interface to send on.
    pub ifindex: u32,
    /// `l2`, `l2_len` and `reserved` of [`Neighbour`], in memory order.
    pub header: [u64; 3],
}

impl Resolved {
    /// Used bytes of the Ethernet header.
    #[inline(always)]
    pub const fn l2_len(&self) -> u8 {
        self.header[2].to_ne_bytes()[MAX_L2_LEN - 16]
    }
}

impl Host {
    /// Used bytes of the Ethernet header. The element may be another host's by now.
    #[inline(always)]
    pub fn l2_len(self) -> u8 {
        // SAFETY: the map returned the value; preallocated elements are never unmapped.
        unsafe { (&raw const (*self.entry).l2_len).read_volatile() }
    }

    /// Whether the host did not answer when it was last asked for. The element may be another
    /// host's by now.
    #[inline(always)]
    pub fn is_absent(self) -> bool {
        self.l2_len() == 0
    }

    /// Reads the entry once. `None` if it is another host's by now, or partly written.
    #[inline(always)]
    pub fn read(self) -> Option<Resolved> {
        const { assert!(core::mem::offset_of!(Neighbour, l2).is_multiple_of(8)) };
        // SAFETY: as above; `l2` and the two bytes behind it are three aligned words. Volatile, so
        // that the words used are the words checked.
        let (resolved, hash) = unsafe {
            let words = (&raw const (*self.entry).l2).cast::<u64>();
            let header = [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
            ];
            let ifindex = (&raw const (*self.entry).ifindex).read_volatile();
            let hash = (&raw const (*self.entry).entry_hash).read_volatile();
            (Resolved { ifindex, header }, hash)
        };
        let content = entry_hash::neighbour(resolved.ifindex, resolved.header);
        (self.hash.wrapping_add(content) == hash).then_some(resolved)
    }

    /// Sets bits of [`neighbour_flags`].
    #[inline(always)]
    pub fn mark(self, flag: u32) {
        // SAFETY: as above. User space and other CPUs may write it meanwhile; at worst a flag bit
        // is lost, which the next packet sets again.
        unsafe {
            let flags = (*self.entry).flags;
            if flags & flag == 0 {
                (*self.entry).flags = flags | flag;
            }
        }
    }
}

/// The entry of a host on this side.
#[inline(always)]
pub fn neighbour(network: &Network, address: Words) -> Option<Host> {
    let entry = NEIGHBOURS.get_ptr_mut(key(network.vni, address))?;
    Some(Host {
        entry,
        hash: entry_hash::host(network.vni, address),
    })
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
