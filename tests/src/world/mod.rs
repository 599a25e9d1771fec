//! Appliances as fixtures: the contents of their maps.
//!
//! ```text
//!   provider                                       tenant
//!   ┌──────────┐ TRUNK 11  101 → net1 (acme)       ┌──────────┐ UPLINK 10  untagged → net1, shared
//!   │          ├──────────  201 → net2 (globex)    │          ├───────────  with the tunnels
//!   │          │        200.102 → net3 (IPv6       │          │
//!   │          │                  underlay)        │          │ ACCESS 12  untagged → net2
//!   │          │ ACCESS 12 untagged → net4         │          ├───────────
//!   │          ├──────────                         └──────────┘
//!   │          │ UPLINK 10 tunnels only
//!   └──────────┘
//! ```
//!
//! At the provider, net1 and net2 have the same prefixes, endpoints and gateway.
//!
//! [`World::encrypted`] is either of them with all networks encrypted but net2, and sockets' places
//! for every interface.

use std::net::IpAddr;

use appliance_common::addr::{Address, from_ip};
use appliance_common::maps::{
    Attachment, AttachmentKey, Config, HostKey, Neighbour, Network, Peer, PolicyKey, RouteKey,
    Tenant, Tunnel, TunnelKey,
};
use appliance_common::nat::{
    MachineKey, Nat, NatAddress, PublicAddress, Rule, RuleKey, SourceKey, TenantQuota,
};

mod build;
mod frames;
mod full;
mod names;
mod partial;

pub use frames::*;
pub use names::*;

/// Contents of the maps.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// `CONFIG`.
    pub config: Config,
    /// `ATTACHMENTS`.
    pub attachments: Vec<(AttachmentKey, Attachment)>,
    /// `NETWORKS`, by slot.
    pub networks: Vec<Network>,
    /// `TENANTS`, by slot.
    pub tenants: Vec<Tenant>,
    /// `PEERS`, by slot.
    pub peers: Vec<Peer>,
    /// `TUNNELS`.
    pub tunnels: Vec<(TunnelKey, Tunnel)>,
    /// `ENDPOINTS`.
    pub endpoints: Vec<HostKey>,
    /// `NEIGHBOURS`.
    pub neighbours: Vec<(HostKey, Neighbour)>,
    /// `SESSIONS`.
    pub sessions: Vec<u32>,
    /// `PEER_ADDRESSES`.
    pub peer_addresses: Vec<Address>,
    /// `ROUTES`: bits of the prefix, key, slot of the network.
    pub routes: Vec<(u32, RouteKey, u32)>,
    /// `POLICIES`.
    pub policies: Vec<PolicyKey>,
    /// `NAT`.
    pub nat: Nat,
    /// `NAT_ADDRESSES`, by slot.
    pub nat_addresses: Vec<NatAddress>,
    /// `PUBLIC`.
    pub public: Vec<(Address, PublicAddress)>,
    /// `RULES`, by slot.
    pub rules: Vec<Rule>,
    /// `RULE_PORTS`: bits of the prefix, key, slot of the rule.
    pub rule_ports: Vec<(u32, RuleKey, u32)>,
    /// `RULE_SOURCES`: bits of the prefix, key.
    pub rule_sources: Vec<(u32, SourceKey)>,
    /// `QUOTAS`, by tenant's slot.
    pub quotas: Vec<TenantQuota>,
    /// `ONE_TO_ONE`, to slot of the rule.
    pub one_to_one: Vec<(MachineKey, u32)>,
}

impl World {
    /// The slot of network `vni`.
    #[must_use]
    pub fn slot(&self, vni: u32) -> Option<usize> {
        self.networks.iter().position(|n| n.vni == vni)
    }

    /// The attachment of a port and tags.
    #[must_use]
    pub fn attachment(&self, ifindex: u32, outer: u16, inner: u16) -> Option<&Attachment> {
        let key = AttachmentKey {
            ifindex,
            outer,
            inner,
        };
        self.attachments
            .iter()
            .find_map(|(k, v)| (*k == key).then_some(v))
    }

    /// Whether `address` is failed over in `vni`.
    #[must_use]
    pub fn is_endpoint(&self, vni: u32, address: IpAddr) -> bool {
        let key = HostKey {
            vni,
            address: from_ip(address),
        };
        self.endpoints.contains(&key)
    }

    /// The neighbour entry of `address` in `vni`.
    #[must_use]
    pub fn neighbour_of(&self, vni: u32, address: &Address) -> Option<&Neighbour> {
        self.neighbours
            .iter()
            .find_map(|(k, v)| (k.vni == vni && k.address == *address).then_some(v))
    }
}
