//! What the maps should hold, and the writes that get them there. Pure: a function of configuration,
//! state and what the underlay says.

mod full;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use appliance_common::{
    addr::{Address, UNSPECIFIED, from_ip},
    limits::{MAX_PREFIXES, MIN_INNER_MTU},
    maps::{
        self, Attachment, AttachmentKey, Endpoint, HostKey, Mode, Network, Policy, PolicyKey,
        Route, RouteKey, SCHEMA_VERSION, Tenant, Tunnel, TunnelKey, attachment_flags,
        network_flags,
    },
    nat::{
        MachineKey, Nat, NatAddress, PublicAddress, Rule, RuleKey, RuleSlot, SourceKey, TenantQuota,
    },
    wire::{OVERHEAD_V4, OVERHEAD_V6, SECURE_OVERHEAD_V4, SECURE_OVERHEAD_V6},
};

use crate::{
    config::{Config, Role, prefix_of},
    kernel::underlay::{Snapshot, UnderlayPath},
    state::{Doing, State},
};

pub use full::{
    address_words, assign_rule_epochs, failover_problems, nat_addresses, nat_problems,
    new_problems, plan_tenant, port_bits, rule_targets, source_bits, zone_of,
};

/// The contents of every map that user space writes from configuration and state. `NEIGHBOURS` is the
/// neighbour engine's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapContents {
    /// `CONFIG`.
    pub config: maps::Config,
    /// `ATTACHMENTS`.
    pub attachments: BTreeMap<AttachmentKey, Attachment>,
    /// `NETWORKS`; a slot that is missing is all zero.
    pub networks: BTreeMap<u32, Network>,
    /// `TENANTS`, likewise.
    pub tenants: BTreeMap<u32, Tenant>,
    /// `PEERS`, likewise.
    pub peers: BTreeMap<u32, maps::Peer>,
    /// `TUNNELS`.
    pub tunnels: BTreeMap<TunnelKey, Tunnel>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<HostKey, Endpoint>,
    /// `ROUTES`, by bits of the prefix and key.
    pub routes: BTreeMap<(u32, RouteKey), Route>,
    /// `POLICIES`.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// `NAT`.
    pub nat: Nat,
    /// `NAT_ADDRESSES`; a slot that is missing is all zero.
    pub nat_addresses: BTreeMap<u32, NatAddress>,
    /// `SHARES`, by tenant's slot.
    pub shares: BTreeMap<u32, TenantQuota>,
    /// `PUBLIC`.
    pub public: BTreeMap<Address, PublicAddress>,
    /// `RULES`; a slot that is missing is all zero. One that nothing is in keeps its epoch.
    pub rules: BTreeMap<u32, Rule>,
    /// `RULE_PORTS`, by bits of the port and key.
    pub rule_ports: BTreeMap<(u32, RuleKey), RuleSlot>,
    /// `RULE_SOURCES`, by bits of the address and key.
    pub rule_sources: BTreeMap<(u32, SourceKey), RuleSlot>,
    /// `ONE_TO_ONE`.
    pub one_to_one: BTreeMap<MachineKey, RuleSlot>,
}

/// What the encrypted tunnels' end says: nothing where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptedTunnels {
    /// Where the sockets of each interface are in `XSKS`, by index.
    pub socket_slots: BTreeMap<u32, u16>,
    /// Longest IP packet that goes whole to each encrypted peer, by name, where it is known, bytes.
    pub mtus: BTreeMap<String, u16>,
}

/// One write. `None` deletes, or zeroes a slot.
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
    /// To `SHARES`.
    Share(u32, Option<TenantQuota>),
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

/// The addresses the tunnels use: configured ones, else the interface's first of a family that is not
/// link-local.
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

/// Largest IP packet of a network, bytes: what is configured, else what the path leaves.
#[must_use]
pub fn network_mtu(
    config: &Config,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
    network: &crate::config::Network,
) -> u16 {
    if let Some(mtu) = network.mtu {
        return mtu;
    }
    // What is too long for one of those who share the network is learned before it is lost.
    let members = config.peers.iter().filter(|p| {
        matches!(&p.kind, crate::config::PeerKind::WireGuard { network: of, .. } if *of == network.name)
    });
    let least = members
        .filter_map(|p| encrypted.mtus.get(&p.name))
        .min()
        .copied()
        .unwrap_or(u16::MAX);
    own_mtu(config, snapshot, encrypted, network)
        .min(least)
        .max(MIN_INNER_MTU)
}

/// Largest IP packet that goes whole to a network's own peer.
fn own_mtu(
    config: &Config,
    snapshot: &Snapshot,
    encrypted: &EncryptedTunnels,
    network: &crate::config::Network,
) -> u16 {
    let peer = config.peer(&network.peer);
    if let Some(room) = encrypted.mtus.get(&network.peer) {
        return *room;
    }
    let plain = peer.and_then(crate::config::Peer::plain);
    let dialed = peer
        .and_then(crate::config::Peer::identity)
        .and_then(|identity| identity.addresses.first())
        .map(|address| address.ip());
    let address = plain.or(dialed);
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

/// The mode a tenant has.
#[must_use]
pub fn mode_of(state: &State, tenant: &str) -> Mode {
    match state.modes.get(tenant).map(|mode| &mode.doing) {
        None | Some(Doing::Idle) => Mode::Idle,
        Some(Doing::Partial) => Mode::Partial,
        Some(Doing::Full(_)) => Mode::Full,
    }
}

/// What the maps should hold. Rules have no epochs yet: those are of what the maps held before ([`assign_rule_epochs`]).
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
    let mut tables = MapContents {
        config: maps::Config {
            version: SCHEMA_VERSION,
            // Nothing listens where nothing is configured.
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
        tables.tenants.insert(*slot, value);
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
            tables.peers.insert(*slot, header);
        }
    }
    for network in &config.networks {
        add_network(&mut tables, config, state, snapshot, encrypted, network);
    }
    full::add(&mut tables, config, state, snapshot);
    tables
}

fn add_network(
    tables: &mut MapContents,
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
    // In full failover we are the router, of the networks of the plan only.
    let plan = state.modes.get(&network.tenant);
    let plan = plan.and_then(|mode| mode.doing.plan());
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
    tables.networks.insert(
        *slot,
        Network {
            vni: network.vni,
            tenant: *tenant,
            peer: *peer_slot,
            flags: network_flags::ACTIVE | provider | secure | internet,
            mtu: network_mtu(config, snapshot, encrypted, network),
            lan_mtu: snapshot
                .links
                .get(&network.interface)
                .and_then(|link| u16::try_from(link.mtu).ok())
                .unwrap_or(1500),
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
        tables.tunnels.insert(
            TunnelKey {
                vni: network.vni,
                peer,
            },
            tunnel,
        );
    }
    if let Some(link) = snapshot.links.get(&network.interface) {
        let shared = network.interface == config.uplink.interface && network.vlan.outer == 0;
        tables.attachments.insert(
            AttachmentKey {
                ifindex: link.ifindex,
                outer: network.vlan.outer,
                inner: network.vlan.inner,
            },
            Attachment {
                network: *slot,
                flags: attachment_flags::ACTIVE | if shared { attachment_flags::HOST } else { 0 },
                mac: link.mac,
                xsk: xsk_of(encrypted, link.ifindex),
            },
        );
    }
    for address in state.endpoints.get(&network.name).into_iter().flatten() {
        tables
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

/// The key of an address in a network.
#[must_use]
pub fn host_key(vni: u32, address: IpAddr) -> HostKey {
    HostKey {
        vni,
        address: from_ip(address),
    }
}

/// The writes that turn `from` into `to`, in an order in which every step forwards right or not at
/// all: what leads to an entry is removed before it and added after it, and a mode is switched when
/// everything it needs is there and before anything it needed goes.
///
/// ```text
///   modes: idle ─▶ what goes, rules first ─▶ what changes and comes, rules last ─▶ modes: partial, full ─▶ the rest
/// ```
#[must_use]
pub fn diff(from: &MapContents, to: &MapContents) -> Vec<MapUpdate> {
    let mut writes = Vec::new();
    let stops = |tenant: &Tenant| tenant.mode == Mode::Idle as u32;
    removed(&from.tenants, &to.tenants, |k| {
        writes.push(MapUpdate::Tenant(k, None));
    });
    changed(&from.tenants, &to.tenants, |k, v| {
        if stops(&v) {
            writes.push(MapUpdate::Tenant(k, Some(v)));
        }
    });
    // Addresses that were failed over one by one, up to the moment in which all are.
    let late = late_endpoints(from, to);
    without(from, to, &late, &mut writes);
    with(from, to, &mut writes);
    removed(&from.networks, &to.networks, |k| {
        writes.push(MapUpdate::Network(k, None));
    });
    removed(&from.peers, &to.peers, |k| {
        writes.push(MapUpdate::Peer(k, None));
    });
    changed(&from.tenants, &to.tenants, |k, v| {
        if !stops(&v) {
            writes.push(MapUpdate::Tenant(k, Some(v)));
        }
    });
    for key in late {
        writes.push(MapUpdate::Endpoint(key, None));
    }
    if to.nat.uplink == 0 && from.nat != to.nat {
        writes.push(MapUpdate::Nat(to.nat));
    }
    if from.config != to.config {
        writes.push(MapUpdate::Config(to.config));
    }
    writes
}

/// Endpoints that go because a full failover takes the partial one's place.
fn late_endpoints(from: &MapContents, to: &MapContents) -> BTreeSet<HostKey> {
    let mode = |tables: &MapContents, slot| tables.tenants.get(&slot).map_or(0, |t| t.mode);
    let networks = from.networks.values().filter(|n| {
        mode(from, n.tenant) == Mode::Partial as u32 && mode(to, n.tenant) == Mode::Full as u32
    });
    let vnis: BTreeSet<u32> = networks.map(|n| n.vni).collect();
    let gone = from
        .endpoints
        .keys()
        .filter(|k| !to.endpoints.contains_key(k));
    gone.filter(|k| vnis.contains(&k.vni)).copied().collect()
}

/// What goes.
fn without(
    from: &MapContents,
    to: &MapContents,
    late: &BTreeSet<HostKey>,
    writes: &mut Vec<MapUpdate>,
) {
    for (slot, off) in full::switched_off(from, to) {
        writes.push(MapUpdate::Rule(slot, off));
    }
    removed(&from.one_to_one, &to.one_to_one, |k| {
        writes.push(MapUpdate::OneToOne(k, None));
    });
    removed(&from.rule_ports, &to.rule_ports, |k| {
        writes.push(MapUpdate::RulePorts(k, None));
    });
    removed(&from.rule_sources, &to.rule_sources, |k| {
        writes.push(MapUpdate::RuleSource(k, None));
    });
    removed(&from.shares, &to.shares, |k| {
        writes.push(MapUpdate::Share(k, None));
    });
    removed(&from.nat_addresses, &to.nat_addresses, |k| {
        writes.push(MapUpdate::NatAddress(k, None));
    });
    removed(&from.public, &to.public, |k| {
        writes.push(MapUpdate::Public(k, None));
    });
    removed(&from.attachments, &to.attachments, |k| {
        writes.push(MapUpdate::Attachment(k, None));
    });
    removed(&from.tunnels, &to.tunnels, |k| {
        writes.push(MapUpdate::Tunnel(k, None));
    });
    removed(&from.endpoints, &to.endpoints, |k| {
        if !late.contains(&k) {
            writes.push(MapUpdate::Endpoint(k, None));
        }
    });
    removed(&from.policies, &to.policies, |k| {
        writes.push(MapUpdate::Policy(k, None));
    });
    removed(&from.routes, &to.routes, |k| {
        writes.push(MapUpdate::Route(k, None));
    });
}

/// What changes, and what comes.
fn with(from: &MapContents, to: &MapContents, writes: &mut Vec<MapUpdate>) {
    changed(&from.peers, &to.peers, |k, v| {
        writes.push(MapUpdate::Peer(k, Some(Box::new(v))));
    });
    changed(&from.networks, &to.networks, |k, v| {
        writes.push(MapUpdate::Network(k, Some(Box::new(v))));
    });
    changed(&from.routes, &to.routes, |k, v| {
        writes.push(MapUpdate::Route(k, Some(v)));
    });
    changed(&from.policies, &to.policies, |k, v| {
        writes.push(MapUpdate::Policy(k, Some(v)));
    });
    changed(&from.endpoints, &to.endpoints, |k, v| {
        writes.push(MapUpdate::Endpoint(k, Some(v)));
    });
    if to.nat.uplink != 0 && from.nat != to.nat {
        writes.push(MapUpdate::Nat(to.nat));
    }
    changed(&from.shares, &to.shares, |k, v| {
        writes.push(MapUpdate::Share(k, Some(v)));
    });
    changed(&from.nat_addresses, &to.nat_addresses, |k, v| {
        writes.push(MapUpdate::NatAddress(k, Some(v)));
    });
    changed(&from.public, &to.public, |k, v| {
        writes.push(MapUpdate::Public(k, Some(v)));
    });
    changed(&from.rule_sources, &to.rule_sources, |k, v| {
        writes.push(MapUpdate::RuleSource(k, Some(v)));
    });
    let off = full::switched_off(from, to);
    for (slot, rule) in &to.rules {
        let now = off.get(slot).or_else(|| from.rules.get(slot));
        if now.copied().unwrap_or_default() != *rule {
            writes.push(MapUpdate::Rule(*slot, *rule));
        }
    }
    changed(&from.rule_ports, &to.rule_ports, |k, v| {
        writes.push(MapUpdate::RulePorts(k, Some(v)));
    });
    changed(&from.one_to_one, &to.one_to_one, |k, v| {
        writes.push(MapUpdate::OneToOne(k, Some(v)));
    });
    changed(&from.tunnels, &to.tunnels, |k, v| {
        writes.push(MapUpdate::Tunnel(k, Some(v)));
    });
    changed(&from.attachments, &to.attachments, |k, v| {
        writes.push(MapUpdate::Attachment(k, Some(v)));
    });
}

fn removed<K: Ord + Copy, V>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>, mut f: impl FnMut(K)) {
    for key in from.keys().filter(|k| !to.contains_key(k)) {
        f(*key);
    }
}

fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
    mut f: impl FnMut(K, V),
) {
    for (key, value) in to {
        if from.get(key) != Some(value) {
            f(*key, *value);
        }
    }
}

impl MapContents {
    /// Does one write on this copy, as the map does.
    pub fn apply(&mut self, write: &MapUpdate) {
        match write {
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
            MapUpdate::Share(k, v) => put(&mut self.shares, *k, *v),
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

/// Whether a host of the network may have this address, so that it can be failed over; else reason not.
///
/// # Errors
/// A sentence that says what to give instead.
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
            "{address} is the network or broadcast address of {prefix}; no machine has it"
        ));
    }
    if network.gateways().any(|g| g == bytes) {
        return Err(format!(
            "{address} is the router of network {name:?}; a partial failover leaves it at the production site"
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
