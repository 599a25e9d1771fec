//! Tables of a worker: its own copy of the maps that the programs read.
//!
//! The daemon sends every write of a map to the workers as well, in the same order, so that both
//! halves of the data path follow one desired state and neither waits for the other.

use ahash::{AHashMap, AHashSet, RandomState};
use appliance_common::{
    addr::{Address, Prefix, UNSPECIFIED},
    limits::{MAX_ENDPOINTS, MAX_NEIGHBOURS, MAX_NETWORKS, MAX_TENANTS},
    maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags},
};
use tunnel::Instant;

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub neighbour: Neighbour,
    /// When its use was last reported.
    pub reported: Option<Instant>,
}

/// A WireGuard peer that has some addresses of a network, in addition to the network's own peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRoute {
    /// The addresses it has.
    pub prefix: Prefix,
    /// Its slot.
    pub peer: u32,
}

pub(crate) struct Tables {
    networks: Box<[Network]>,
    by_vni: AHashMap<u32, u32>,
    tenants: Box<[Tenant]>,
    endpoints: AHashSet<HostKey>,
    hosts: AHashMap<HostKey, Host>,
    /// By VNI.
    members: AHashMap<u32, Box<[PeerRoute]>>,
}

impl Tables {
    /// Empty tables, with room for as many entries as the maps have: later writes allocate nothing.
    pub fn new(seed: u64) -> Self {
        // Keyed: a sender that chooses addresses cannot choose collisions.
        let state = || RandomState::with_seeds(seed, !seed, seed.rotate_left(17), 0x5bd1_e995);
        Self {
            networks: vec![Network::default(); MAX_NETWORKS as usize].into(),
            by_vni: AHashMap::with_capacity_and_hasher(MAX_NETWORKS as usize, state()),
            tenants: vec![Tenant::default(); MAX_TENANTS as usize].into(),
            endpoints: AHashSet::with_capacity_and_hasher(MAX_ENDPOINTS as usize, state()),
            hosts: AHashMap::with_capacity_and_hasher(MAX_NEIGHBOURS as usize, state()),
            members: AHashMap::with_hasher(state()),
        }
    }

    pub fn set_network(&mut self, slot: u32, network: Option<&Network>) {
        let Some(place) = self.networks.get_mut(slot as usize) else {
            return;
        };
        if place.flags & network_flags::ACTIVE != 0 && self.by_vni.get(&place.vni) == Some(&slot) {
            self.by_vni.remove(&place.vni);
        }
        *place = network.copied().unwrap_or_default();
        if place.flags & network_flags::ACTIVE != 0 {
            self.by_vni.insert(place.vni, slot);
        }
    }

    pub fn set_tenant(&mut self, slot: u32, tenant: Tenant) {
        if let Some(place) = self.tenants.get_mut(slot as usize) {
            *place = tenant;
        }
    }

    pub fn set_endpoint(&mut self, key: HostKey, there: bool) {
        if there {
            self.endpoints.insert(key);
        } else {
            self.endpoints.remove(&key);
        }
    }

    pub fn set_neighbour(&mut self, key: HostKey, neighbour: Option<Neighbour>) {
        match neighbour {
            Some(neighbour) => {
                let reported = self.hosts.get(&key).and_then(|host| host.reported);
                self.hosts.insert(
                    key,
                    Host {
                        neighbour,
                        reported,
                    },
                );
            }
            None => drop(self.hosts.remove(&key)),
        }
    }

    pub fn set_members(&mut self, vni: u32, members: Box<[PeerRoute]>) {
        if members.is_empty() {
            self.members.remove(&vni);
        } else {
            self.members.insert(vni, members);
        }
    }

    /// The network in a slot, if it is in force.
    #[inline]
    pub fn network(&self, slot: u32) -> Option<&Network> {
        self.networks
            .get(slot as usize)
            .filter(|network| network.flags & network_flags::ACTIVE != 0)
    }

    /// The slot of a VNI.
    #[inline]
    pub fn slot(&self, vni: u32) -> Option<u32> {
        self.by_vni.get(&vni).copied()
    }

    #[inline]
    pub fn is_partial(&self, network: &Network) -> bool {
        self.tenants
            .get(network.tenant as usize)
            .is_some_and(|tenant| tenant.mode == Mode::Partial as u32)
    }

    /// Whether the address is on this side of the tunnel.
    #[inline]
    pub fn is_here(&self, network: &Network, address: Address) -> bool {
        let key = HostKey {
            vni: network.vni,
            address,
        };
        self.endpoints.contains(&key) == is_provider(network)
    }

    #[inline]
    pub fn host(&mut self, key: &HostKey) -> Option<&mut Host> {
        self.hosts.get_mut(key)
    }

    /// The peer that has `address` of a network: a member, by the longest prefix, else the
    /// network's.
    #[inline]
    pub fn peer_of(&self, network: &Network, address: &Address) -> u32 {
        if self.members.is_empty() {
            return network.peer;
        }
        self.members
            .get(&network.vni)
            .into_iter()
            .flatten()
            .filter(|member| member.prefix.contains(address))
            .max_by_key(|member| {
                member.prefix.mask[0].count_ones() + member.prefix.mask[1].count_ones()
            })
            .map_or(network.peer, |member| member.peer)
    }
}

/// Whether this is the side of the replicas.
#[inline]
pub(crate) const fn is_provider(network: &Network) -> bool {
    network.flags & network_flags::PROVIDER != 0
}

/// The prefix of a network that holds `address`.
#[inline]
pub(crate) fn prefix_of<'n>(network: &'n Network, address: &Address) -> Option<&'n Prefix> {
    network
        .prefixes
        .iter()
        .take(usize::from(network.prefix_count))
        .find(|prefix| prefix.contains(address))
}

/// The router of a network for a family.
#[inline]
pub(crate) fn gateway(network: &Network, ipv6: bool) -> Option<Address> {
    let gateway = if ipv6 {
        network.gateway_v6
    } else {
        network.gateway_v4
    };
    (gateway != UNSPECIFIED).then_some(gateway)
}
