//! What the maps should hold for tenants in full failover: routes, policies, translation, public IP rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use appliance_common::{
    addr::{Address, from_ip},
    limits::{
        MAX_MAPPINGS, MAX_POLICIES, MAX_PUBLIC, MAX_ROUTES, MAX_RULE_PORTS, MAX_RULE_SOURCES,
        MAX_RULES,
    },
    maps::{Policy, PolicyKey, Route, RouteKey},
    nat::{
        MachineKey, Nat, NatAddress, PublicAddress, RULE_KEY_BITS, Rule, RuleKey, RuleSlot,
        SOURCE_KEY_BITS, SourceKey, TenantQuota, Words, public_flags, rule_flags,
    },
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP},
};
use failover::{IpPrefix, Plan, PlanErrors, Protocol, ReservedAddress, RuleTarget, TenantContext};

use super::{MapContents, local_addresses};
use crate::{
    config::{Config, Tenant},
    kernel::underlay::{DEFAULT_ROUTE_PROBES, Snapshot},
    state::{Doing, State, rule_key},
};

/// The ports of a tenant's own address: all but the system's, of which 22 is never public (RFC 6335 section 6).
const DEDICATED_PORTS: (u16, u16) = (1024, u16::MAX);
/// Entries that a hash map keeps back on its CPUs, so that it is never filled to the brim.
const RESERVE: u32 = 1024;

/// An address as the translation's maps have it.
#[must_use]
pub fn address_words(address: &Address) -> Words {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The zone of the tenant in a slot.
#[must_use]
pub const fn zone_of(slot: u32) -> u16 {
    slot as u16 + 1
}

/// Bits of a prefix in the 16-byte form.
fn bits(net: &IpPrefix) -> u32 {
    u32::from(net.length()) + if net.address().is_ipv4() { 96 } else { 0 }
}

/// Addresses that no tenant may have, whatever its allocation says, and whose they are: the appliance's own, and
/// those of the routers on the ways that are watched. As far as the kernel has told.
fn taken(config: &Config, snapshot: &Snapshot) -> BTreeMap<IpAddr, String> {
    let mut taken = BTreeMap::new();
    // Where the two are the same there is no router between.
    for (to, hop) in snapshot.next_hops.iter().filter(|(to, hop)| to != hop) {
        if DEFAULT_ROUTE_PROBES.contains(to) {
            taken.insert(*hop, "the router on the way to the outside".to_owned());
        } else {
            let whose = || format!("the router on the way to {to}");
            taken.entry(*hop).or_insert_with(whose);
        }
    }
    for address in local_addresses(config, snapshot) {
        taken.insert(address, "the appliance's own (uplink.local)".to_owned());
    }
    for (name, link) in &snapshot.links {
        for (address, _) in &link.addresses {
            taken.insert(*address, format!("the appliance's own address on {name}"));
        }
    }
    taken
}

/// Those of a tenant's allocation.
fn taken_of(taken: &BTreeMap<IpAddr, String>, allocation: &[IpPrefix]) -> Vec<ReservedAddress> {
    let theirs = taken
        .iter()
        .filter(|(address, _)| allocation.iter().any(|net| net.contains(**address)));
    theirs
        .map(|(address, whose)| ReservedAddress {
            address: *address,
            owner: whose.clone(),
        })
        .collect()
}

/// The tenant of that name as failover plans are checked against it now.
#[must_use]
pub fn plan_tenant(config: &Config, snapshot: &Snapshot, name: &str) -> Option<TenantContext> {
    let mut tenant = config.tenant_of(name)?;
    tenant.reserved = taken_of(&taken(config, snapshot), &tenant.allocation);
    Some(tenant)
}

/// What a tenant is seen as, by family: its own address, or one of the uplink. One of its own that is taken is not
/// used, and no other in its place: the tenant would be seen as somebody else.
#[must_use]
pub fn nat_addresses(config: &Config, snapshot: &Snapshot, tenant: &Tenant) -> Vec<IpAddr> {
    seen_as(
        &local_addresses(config, snapshot),
        &taken(config, snapshot),
        tenant,
    )
}

fn seen_as(local: &[IpAddr], taken: &BTreeMap<IpAddr, String>, tenant: &Tenant) -> Vec<IpAddr> {
    [true, false]
        .into_iter()
        .filter_map(|v4| {
            let mut addresses = tenant.nat.iter().chain(local);
            addresses.find(|a| a.is_ipv4() == v4).copied()
        })
        .filter(|a| !(tenant.nat.contains(a) && taken.contains_key(a)))
        .collect()
}

/// What is wrong with the addresses that a tenant is to be seen as.
#[must_use]
pub fn nat_problems(config: &Config, snapshot: &Snapshot, tenant: &Tenant) -> Vec<String> {
    wrong_nat(&taken(config, snapshot), tenant).collect()
}

fn wrong_nat(taken: &BTreeMap<IpAddr, String>, tenant: &Tenant) -> impl Iterator<Item = String> {
    tenant.nat.iter().filter_map(|address| {
        let whose = taken.get(address)?;
        Some(format!(
            "tenant {:?}: nat: {address} is {whose}, and cannot be used: write another of the tenant's public addresses",
            tenant.name
        ))
    })
}

/// What a configuration would make wrong that is right by the one in force, or wrong otherwise.
#[must_use]
pub fn new_problems(now: &Config, new: &Config, state: &State, snapshot: &Snapshot) -> Vec<String> {
    let before = failover_problems(now, state, snapshot);
    let mut after = failover_problems(new, state, snapshot);
    after.retain(|problem| !before.contains(problem));
    after
}

/// Everything of failovers, in force or to come, that does not fit the configuration or what the kernel says. What
/// it names is not in force.
#[must_use]
pub fn failover_problems(config: &Config, state: &State, snapshot: &Snapshot) -> Vec<String> {
    let taken = taken(config, snapshot);
    let mut problems = Vec::new();
    for (name, mode) in &state.modes {
        let plan = mode.doing.plan();
        match (config.tenant_alone(name), &mode.doing) {
            (_, Doing::Idle) | (Some(_), Doing::Partial) => {}
            (Some(mut tenant), Doing::Full(plan)) => {
                tenant.reserved = taken_of(&taken, &tenant.allocation);
                let errors = plan.check(&tenant).err();
                problems.extend(errors.iter().flat_map(PlanErrors::iter).map(|problem| {
                    let rule = problem.at.starts_with("rule ");
                    let but = if rule { "; the rule cannot be in force" } else { "" };
                    format!("tenant {name:?}: {problem}{but}")
                }));
            }
            (None, doing) => problems.push(format!(
                "tenant {name:?} is in {} failover{} and is not configured: put it back into the configuration, or undo \
                 the failover (`causeway-appliance mode --tenant {name} idle`)",
                if *doing == Doing::Partial { "partial" } else { "full" },
                plan.map_or_else(String::new, |p| format!(" by plan {:?}", p.name())),
            )),
        }
    }
    let tenants = config.tenants.iter();
    problems.extend(tenants.flat_map(|tenant| wrong_nat(&taken, tenant)));
    problems
}

/// The tenants in full failover, their slots and plans.
fn in_full<'a>(
    config: &'a Config,
    state: &'a State,
) -> impl Iterator<Item = (&'a Tenant, u32, &'a Plan)> {
    config.tenants.iter().filter_map(|tenant| {
        let slot = *state.slots.tenants.get(&tenant.name)?;
        let plan = state.modes.get(&tenant.name)?.doing.plan()?;
        Some((tenant, slot, plan))
    })
}

/// Adds what tenants in full failover need.
pub(super) fn add(tables: &mut MapContents, config: &Config, state: &State, snapshot: &Snapshot) {
    // Equal shares, so that whatever happens to one tenant takes nothing from another.
    let sharing = in_full(config, state).count().max(1) as u32;
    let taken = taken(config, snapshot);
    let local = local_addresses(config, snapshot);
    for (tenant, slot, plan) in in_full(config, state) {
        let share = TenantQuota {
            connections: config.nat.connections / sharing,
            mappings: MAX_MAPPINGS / sharing,
        };
        tables.shares.insert(slot, share);
        add_routes(tables, config, state, tenant, slot);
        for (from, to) in plan.allow().iter().flat_map(failover::Allow::directions) {
            if let (Some(from), Some(to)) = (config.network(from), config.network(to)) {
                let key = PolicyKey {
                    from: from.vni,
                    to: to.vni,
                };
                tables.policies.insert(key, Policy { flags: 1 });
            }
        }
        for address in seen_as(&local, &taken, tenant) {
            let (first, last) = if tenant.nat.contains(&address) {
                DEDICATED_PORTS
            } else {
                (config.nat.own_ports.first(), config.nat.own_ports.last())
            };
            tables.nat_addresses.insert(
                2 * slot + u32::from(address.is_ipv6()),
                NatAddress {
                    address: address_words(&from_ip(address)),
                    first,
                    last,
                },
            );
            add_public(tables, config, snapshot, address);
        }
        // Not those that nobody could add now: the configuration may have changed while nobody looked, or a router.
        let Some(mut of) = config.tenant_alone(&tenant.name) else {
            continue;
        };
        of.reserved = taken_of(&taken, &of.allocation);
        for rule in plan.active_rules(&of).0 {
            add_rule(tables, config, state, tenant, slot, rule);
            add_public(tables, config, snapshot, rule.public_ip());
        }
    }
    let uplink = snapshot.links.get(&config.uplink.interface);
    if let (Some(link), Some(_)) = (uplink, in_full(config, state).next()) {
        tables.nat = Nat {
            uplink: link.ifindex,
            seed: state.nat_seed.unwrap_or_default(),
            timeouts: config.nat.timeouts,
            // It is raised whenever links, routes or neighbours change.
            route_generation: snapshot.generation as u32,
            mac: link.mac,
            reserved: [0; 2],
        };
    }
}

/// The prefixes of all the tenant's networks, those that the plan leaves out as well: what is for them is refused
/// by policy, and never leaves for the outside.
fn add_routes(
    tables: &mut MapContents,
    config: &Config,
    state: &State,
    tenant: &Tenant,
    slot: u32,
) {
    for network in config.networks.iter().filter(|n| n.tenant == tenant.name) {
        let Some(to) = state.slots.networks.get(&network.name) else {
            continue;
        };
        for net in &network.prefixes {
            let key = RouteKey {
                tenant: slot,
                address: from_ip(net.address()),
            };
            let route = Route {
                network: *to,
                flags: 1,
            };
            tables.routes.insert((bits(net), key), route);
        }
    }
}

fn add_public(tables: &mut MapContents, config: &Config, snapshot: &Snapshot, address: IpAddr) {
    let link = snapshot.links.get(&config.uplink.interface);
    let on_link = link.is_some_and(|l| l.addresses.iter().any(|(a, _)| *a == address));
    let own = on_link || local_addresses(config, snapshot).contains(&address);
    let flags = public_flags::ACTIVE | if own { public_flags::OWN } else { 0 };
    tables
        .public
        .insert(from_ip(address), PublicAddress { flags });
}

fn add_rule(
    tables: &mut MapContents,
    config: &Config,
    state: &State,
    tenant: &Tenant,
    tenant_slot: u32,
    rule: &failover::Rule,
) {
    let internal_ip = rule.internal_ip();
    let network = config
        .networks
        .iter()
        .filter(|n| n.tenant == tenant.name)
        .find(|n| n.prefixes.iter().any(|p| p.contains(internal_ip)));
    let slot = state.slots.rules.get(&rule_key(&tenant.name, rule.name()));
    let network = network.and_then(|n| state.slots.networks.get(&n.name));
    let (Some(slot), Some(network)) = (slot.copied(), network) else {
        return;
    };
    let (public, internal) = (from_ip(rule.public_ip()), from_ip(internal_ip));
    let key = |protocol, port: u16| RuleKey {
        address: address_words(&public),
        protocol,
        reserved: 0,
        port: port.to_be_bytes(),
    };
    let mut value = Rule {
        epoch: 0,
        flags: rule_flags::ACTIVE,
        network: *network,
        zone: zone_of(tenant_slot),
        public_first: 0,
        internal_first: 0,
        reserved: 0,
        public: address_words(&public),
        internal: address_words(&internal),
    };
    match rule.target() {
        RuleTarget::Ports {
            public,
            internal,
            protocol,
        } => {
            value.public_first = public.first();
            value.internal_first = internal;
            let protocols: &[u8] = match protocol {
                Protocol::Tcp => &[IPPROTO_TCP],
                Protocol::Udp => &[IPPROTO_UDP],
                Protocol::Both => &[IPPROTO_TCP, IPPROTO_UDP],
            };
            for protocol in protocols {
                for (first, bits) in public.prefixes() {
                    let key = (u32::from(bits), key(*protocol, first));
                    tables.rule_ports.insert(key, RuleSlot { slot });
                }
            }
        }
        RuleTarget::OneToOne => {
            value.flags |= rule_flags::ONE_TO_ONE;
            let icmp = if rule.public_ip().is_ipv4() {
                IPPROTO_ICMP
            } else {
                IPPROTO_ICMPV6
            };
            for protocol in [IPPROTO_TCP, IPPROTO_UDP, icmp] {
                tables
                    .rule_ports
                    .insert((0, key(protocol, 0)), RuleSlot { slot });
            }
            let machine = MachineKey {
                zone: zone_of(tenant_slot).into(),
                address: address_words(&internal),
            };
            tables.one_to_one.insert(machine, RuleSlot { slot });
        }
    }
    if !rule.allow().is_empty() {
        value.flags |= rule_flags::LISTED;
    }
    for net in rule.allow() {
        let key = SourceKey {
            slot,
            address: address_words(&from_ip(net.address())),
        };
        tables
            .rule_sources
            .insert((bits(net), key), RuleSlot { slot });
    }
    tables.rules.insert(slot, value);
}

/// The machines that rules lead to, by VNI: those of tenants in full failover.
#[must_use]
pub fn rule_targets(config: &Config, state: &State) -> BTreeSet<appliance_common::maps::HostKey> {
    let mut hosts = BTreeSet::new();
    for (tenant, _, plan) in in_full(config, state) {
        for rule in plan.rules().iter() {
            let address = rule.internal_ip();
            let network = config
                .networks
                .iter()
                .filter(|n| n.tenant == tenant.name)
                .find(|n| n.prefixes.iter().any(|p| p.contains(address)));
            hosts.extend(network.map(|n| super::host_key(n.vni, address)));
        }
    }
    hosts
}

/// Gives every slot of `RULES` its epoch: that which `from` has where it leads as before or to more, else the next,
/// so that what was allowed by another rule, or by more of this one, is stale. A slot that nothing is in keeps its
/// last.
#[must_use]
pub fn assign_rule_epochs(from: &MapContents, mut to: MapContents) -> MapContents {
    let narrowed = narrowed(from, &to);
    let slots: BTreeSet<u32> = from.rules.keys().chain(to.rules.keys()).copied().collect();
    for slot in slots {
        let old = from.rules.get(&slot).copied().unwrap_or_default();
        let new = to.rules.entry(slot).or_default();
        new.epoch = old.epoch;
        if *new != old || narrowed.contains(&slot) {
            new.epoch = old.epoch.wrapping_add(1);
        }
    }
    to.rules.retain(|_, rule| *rule != Rule::default());
    to
}

/// Slots of rules that lost something: a port, a source, a machine.
fn narrowed(from: &MapContents, to: &MapContents) -> BTreeSet<u32> {
    let ports = from.rule_ports.iter().filter(|((bits, key), slot)| {
        // A block of ports is inside a larger one where a range has grown.
        !(0..=*bits).any(|bits| {
            let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            let port = u16::from_be_bytes(key.port) & mask;
            let port = port.to_be_bytes();
            to.rule_ports.get(&(bits, RuleKey { port, ..*key })) == Some(*slot)
        })
    });
    let sources = from
        .rule_sources
        .iter()
        .filter(|(key, slot)| to.rule_sources.get(*key) != Some(*slot));
    let machines = from
        .one_to_one
        .iter()
        .filter(|(key, slot)| to.one_to_one.get(*key) != Some(*slot));
    ports
        .map(|(_, slot)| slot.slot)
        .chain(sources.map(|(_, slot)| slot.slot))
        .chain(machines.map(|(_, slot)| slot.slot))
        .collect()
}

impl MapContents {
    /// Sees that everything has room in its map.
    ///
    /// # Errors
    /// What has not, and how much there is room for.
    pub fn check_capacity(&self) -> Result<(), String> {
        let rules = self.rules.values();
        let active = rules.filter(|r| r.flags & rule_flags::ACTIVE != 0).count();
        for (what, count, most) in [
            ("public IP rules", active, MAX_RULES - RESERVE),
            (
                "blocks of public ports (one for a port, up to 30 for a range)",
                self.rule_ports.len(),
                MAX_RULE_PORTS,
            ),
            (
                "sources that rules allow",
                self.rule_sources.len(),
                MAX_RULE_SOURCES,
            ),
            ("public addresses", self.public.len(), MAX_PUBLIC - RESERVE),
            ("prefixes that are routed", self.routes.len(), MAX_ROUTES),
            (
                "directions that are allowed",
                self.policies.len(),
                MAX_POLICIES - RESERVE,
            ),
        ] {
            if count > most as usize {
                return Err(format!(
                    "that would be {count} {what}; an appliance takes {most}"
                ));
            }
        }
        Ok(())
    }
}

/// The key of a block of ports behind the prefix length, and its bits.
#[must_use]
pub const fn port_bits(bits: u32) -> u32 {
    RULE_KEY_BITS + bits
}

/// Likewise of a source.
#[must_use]
pub const fn source_bits(bits: u32) -> u32 {
    SOURCE_KEY_BITS + bits
}

/// Rules that a step switches off before anything of them is taken away or changed.
pub(super) fn switched_off(from: &MapContents, to: &MapContents) -> BTreeMap<u32, Rule> {
    from.rules
        .iter()
        .filter(|(slot, old)| {
            old.flags & rule_flags::ACTIVE != 0 && to.rules.get(slot) != Some(*old)
        })
        .map(|(slot, _)| {
            let epoch = to.rules.get(slot).map_or(0, |new| new.epoch);
            let off = Rule {
                epoch,
                ..Rule::default()
            };
            (*slot, off)
        })
        .collect()
}
