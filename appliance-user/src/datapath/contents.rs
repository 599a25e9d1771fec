//! The contents of the maps as plain values, and single updates of them.
//!
//! `reconcile` computes the wanted contents and the updates that lead to them; `maps` reads
//! contents from the kernel and writes updates to it.

use std::collections::BTreeMap;

use appliance_common::{
    addr::Address,
    limits::{MAX_POLICIES, MAX_PUBLIC, MAX_ROUTES, MAX_RULE_PORTS, MAX_RULE_SOURCES, MAX_RULES},
    maps::{
        self, Attachment, AttachmentKey, Endpoint, HostKey, Network, Policy, PolicyKey, Route,
        RouteKey, Tenant, Tunnel, TunnelKey,
    },
    nat::{
        MachineKey, Nat, NatAddress, PublicAddress, RULE_KEY_BITS, Rule, RuleKey, RuleSlot,
        SOURCE_KEY_BITS, SourceKey, TenantQuota, rule_flags,
    },
};

/// Entries of a hash map that stay unused: the kernel keeps free elements on each CPU, so the last
/// ones may be unavailable to an insert.
const RESERVE: u32 = 1024;

/// The contents of all maps that user space computes from configuration and state. The neighbour
/// table writes `NEIGHBOURS` itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapContents {
    /// `CONFIG`.
    pub config: maps::Config,
    /// `ATTACHMENTS`.
    pub attachments: BTreeMap<AttachmentKey, Attachment>,
    /// `NETWORKS`, by slot; a missing slot is all zero.
    pub networks: BTreeMap<u32, Network>,
    /// `TENANTS`, by slot; a missing slot is all zero.
    pub tenants: BTreeMap<u32, Tenant>,
    /// `PEERS`, by slot; a missing slot is all zero.
    pub peers: BTreeMap<u32, maps::Peer>,
    /// `TUNNELS`.
    pub tunnels: BTreeMap<TunnelKey, Tunnel>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<HostKey, Endpoint>,
    /// `ROUTES`, by prefix length in bits and key.
    pub routes: BTreeMap<(u32, RouteKey), Route>,
    /// `POLICIES`.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// `NAT`.
    pub nat: Nat,
    /// `NAT_ADDRESSES`, by slot; a missing slot is all zero.
    pub nat_addresses: BTreeMap<u32, NatAddress>,
    /// `QUOTAS`, by slot of the tenant.
    pub quotas: BTreeMap<u32, TenantQuota>,
    /// `PUBLIC`.
    pub public: BTreeMap<Address, PublicAddress>,
    /// `RULES`, by slot; a missing slot is all zero. An unused slot keeps its epoch.
    pub rules: BTreeMap<u32, Rule>,
    /// `RULE_PORTS`, by prefix length of the port in bits and key.
    pub rule_ports: BTreeMap<(u32, RuleKey), RuleSlot>,
    /// `RULE_SOURCES`, by prefix length of the address in bits and key.
    pub rule_sources: BTreeMap<(u32, SourceKey), RuleSlot>,
    /// `ONE_TO_ONE`.
    pub one_to_one: BTreeMap<MachineKey, RuleSlot>,
}

/// One update of a map. `None` deletes an entry, or zeroes a slot of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum MapUpdate {
    /// To `CONFIG`.
    Config(maps::Config),
    /// To `ATTACHMENTS`.
    Attachment(AttachmentKey, Option<Attachment>),
    /// To `NETWORKS`.
    Network(u32, Option<Box<Network>>),
    /// To `TENANTS`.
    Tenant(u32, Option<Tenant>),
    /// To `PEERS`.
    Peer(u32, Option<Box<maps::Peer>>),
    /// To `TUNNELS`.
    Tunnel(TunnelKey, Option<Tunnel>),
    /// To `ENDPOINTS`.
    Endpoint(HostKey, Option<Endpoint>),
    /// To `ROUTES`.
    Route((u32, RouteKey), Option<Route>),
    /// To `POLICIES`.
    Policy(PolicyKey, Option<Policy>),
    /// To `NAT`.
    Nat(Nat),
    /// To `NAT_ADDRESSES`.
    NatAddress(u32, Option<NatAddress>),
    /// To `QUOTAS`.
    Quota(u32, Option<TenantQuota>),
    /// To `PUBLIC`.
    Public(Address, Option<PublicAddress>),
    /// To `RULES`.
    Rule(u32, Rule),
    /// To `RULE_PORTS`.
    RulePorts((u32, RuleKey), Option<RuleSlot>),
    /// To `RULE_SOURCES`.
    RuleSource((u32, SourceKey), Option<RuleSlot>),
    /// To `ONE_TO_ONE`.
    OneToOne(MachineKey, Option<RuleSlot>),
}

impl MapContents {
    /// Applies an update to this copy, as the map does.
    pub fn apply(&mut self, update: &MapUpdate) {
        match update {
            MapUpdate::Config(v) => self.config = *v,
            MapUpdate::Attachment(k, v) => put(&mut self.attachments, *k, *v),
            MapUpdate::Network(k, v) => put(&mut self.networks, *k, v.as_deref().copied()),
            MapUpdate::Tenant(k, v) => put(&mut self.tenants, *k, *v),
            MapUpdate::Peer(k, v) => put(&mut self.peers, *k, v.as_deref().copied()),
            MapUpdate::Tunnel(k, v) => put(&mut self.tunnels, *k, *v),
            MapUpdate::Endpoint(k, v) => put(&mut self.endpoints, *k, *v),
            MapUpdate::Route(k, v) => put(&mut self.routes, *k, *v),
            MapUpdate::Policy(k, v) => put(&mut self.policies, *k, *v),
            MapUpdate::Nat(v) => self.nat = *v,
            MapUpdate::NatAddress(k, v) => put(&mut self.nat_addresses, *k, *v),
            MapUpdate::Quota(k, v) => put(&mut self.quotas, *k, *v),
            MapUpdate::Public(k, v) => put(&mut self.public, *k, *v),
            MapUpdate::Rule(k, v) => {
                let zero = *v == Rule::default();
                put(&mut self.rules, *k, (!zero).then_some(*v));
            }
            MapUpdate::RulePorts(k, v) => put(&mut self.rule_ports, *k, *v),
            MapUpdate::RuleSource(k, v) => put(&mut self.rule_sources, *k, *v),
            MapUpdate::OneToOne(k, v) => put(&mut self.one_to_one, *k, *v),
        }
    }

    /// The network of a VNI.
    #[must_use]
    pub fn network(&self, vni: u32) -> Option<&Network> {
        self.networks.values().find(|n| n.vni == vni)
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl MapContents {
    /// Checks that the contents fit into the maps.
    ///
    /// # Errors
    /// A message with the number of entries and the capacity of the first map that is too small.
    pub fn check_capacity(&self) -> Result<(), String> {
        let rules = self.rules.values();
        let active = rules.filter(|r| r.flags & rule_flags::ACTIVE != 0).count();
        for (what, count, max) in [
            ("public IP rules", active, MAX_RULES - RESERVE),
            (
                "blocks of public ports (one for a port, up to 30 for a range)",
                self.rule_ports.len(),
                MAX_RULE_PORTS,
            ),
            (
                "allowed sources of rules",
                self.rule_sources.len(),
                MAX_RULE_SOURCES,
            ),
            ("public addresses", self.public.len(), MAX_PUBLIC - RESERVE),
            ("routed prefixes", self.routes.len(), MAX_ROUTES),
            (
                "allowed directions between networks",
                self.policies.len(),
                MAX_POLICIES - RESERVE,
            ),
        ] {
            if count > max as usize {
                return Err(format!(
                    "too many {what}: {count}; an appliance supports at most {max}"
                ));
            }
        }
        Ok(())
    }
}

/// Prefix length of a `RULE_PORTS` key whose port has `bits` significant bits.
#[must_use]
pub const fn port_bits(bits: u32) -> u32 {
    RULE_KEY_BITS + bits
}

/// Prefix length of a `RULE_SOURCES` key whose address has `bits` significant bits.
#[must_use]
pub const fn source_bits(bits: u32) -> u32 {
    SOURCE_KEY_BITS + bits
}
