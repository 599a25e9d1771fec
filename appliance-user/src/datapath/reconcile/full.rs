//! Map contents of tenants in full failover: routes, policies, translation and public IP rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use appliance_common::{
    addr::from_ip,
    maps::{Policy, PolicyKey, Route, RouteKey},
    nat::{
        MachineKey, Nat, NatAddress, PublicAddress, Rule, RuleKey, RuleSlot, SourceKey,
        TenantQuota, nat_address_slot, public_flags, rule_flags,
    },
    wire::{
        IPPROTO_ESP, IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP,
        IPPROTO_UDP,
    },
};
use failover::{IpPrefix, Plan, PlanErrors, Protocol, ReservedAddress, RuleTarget, TenantContext};
use packet_rules::addr::words;

use super::{MapContents, local_addresses};
use crate::{
    config::{Config, Tenant},
    datapath::nat::over_quota_limit,
    kernel::underlay::{DEFAULT_ROUTE_PROBES, Snapshot},
    state::{FailoverState, State, rule_key},
};

/// Translation ports of a tenant's own address: all except system ports (RFC 6335 section 6).
const DEDICATED_PORTS: (u16, u16) = (1024, u16::MAX);

/// The zone of the tenant in a slot.
#[must_use]
pub const fn zone_of(slot: u32) -> u16 {
    slot as u16 + 1
}

/// Length of a prefix in its 16-byte form, bits.
fn bits(net: &IpPrefix) -> u32 {
    u32::from(net.length()) + if net.address().is_ipv4() { 96 } else { 0 }
}

/// Addresses that no tenant may use even if they are in its allocation, with their owners: the
/// appliance's own, and those of the routers on the watched paths, as far as the underlay knows
/// them.
fn reserved_addresses(config: &Config, snapshot: &Snapshot) -> BTreeMap<IpAddr, String> {
    let mut reserved = BTreeMap::new();
    // If both are the same, the destination is on-link and there is no router.
    for (to, hop) in snapshot.next_hops.iter().filter(|(to, hop)| to != hop) {
        if DEFAULT_ROUTE_PROBES.contains(to) {
            reserved.insert(*hop, "the default router".to_owned());
        } else {
            let owner = || format!("the router towards {to}");
            reserved.entry(*hop).or_insert_with(owner);
        }
    }
    for address in local_addresses(config, snapshot) {
        reserved.insert(address, "the appliance's own (uplink.local)".to_owned());
    }
    for (name, link) in &snapshot.links {
        for (address, _) in &link.addresses {
            reserved.insert(*address, format!("the appliance's own address on {name}"));
        }
    }
    reserved
}

/// The reserved addresses within a tenant's allocation.
fn reserved_in(
    reserved: &BTreeMap<IpAddr, String>,
    allocation: &[IpPrefix],
) -> Vec<ReservedAddress> {
    let within = reserved
        .iter()
        .filter(|(address, _)| allocation.iter().any(|net| net.contains(**address)));
    within
        .map(|(address, owner)| ReservedAddress {
            address: *address,
            owner: owner.clone(),
        })
        .collect()
}

/// The tenant `name` with the data that failover plans are checked against.
#[must_use]
pub fn plan_tenant(config: &Config, snapshot: &Snapshot, name: &str) -> Option<TenantContext> {
    let mut tenant = config.tenant_of(name)?;
    tenant.reserved = reserved_in(&reserved_addresses(config, snapshot), &tenant.allocation);
    Some(tenant)
}

/// Translated source addresses of a tenant: of each family its own, or the uplink's. A reserved
/// address of its own is neither used nor replaced by the uplink's, because that would be another
/// tenant's identity.
#[must_use]
pub fn nat_addresses(config: &Config, snapshot: &Snapshot, tenant: &Tenant) -> Vec<IpAddr> {
    source_addresses(
        &local_addresses(config, snapshot),
        &reserved_addresses(config, snapshot),
        tenant,
    )
}

fn source_addresses(
    local: &[IpAddr],
    reserved: &BTreeMap<IpAddr, String>,
    tenant: &Tenant,
) -> Vec<IpAddr> {
    [true, false]
        .into_iter()
        .flat_map(|v4| {
            let own = tenant.nat.iter().filter(move |a| a.is_ipv4() == v4);
            let spare = local.iter().find(move |a| a.is_ipv4() == v4);
            let spare = spare.filter(|_| own.clone().next().is_none());
            let own = own.filter(|a| !reserved.contains_key(a));
            own.chain(spare).copied()
        })
        .collect()
}

/// Problems of the translated source addresses of a tenant.
#[must_use]
pub fn nat_problems(config: &Config, snapshot: &Snapshot, tenant: &Tenant) -> Vec<String> {
    nat_address_problems(&reserved_addresses(config, snapshot), tenant).collect()
}

fn nat_address_problems(
    reserved: &BTreeMap<IpAddr, String>,
    tenant: &Tenant,
) -> impl Iterator<Item = String> {
    tenant.nat.iter().filter_map(|address| {
        let owner = reserved.get(address)?;
        Some(format!(
            "tenant {:?}: nat: {address} is {owner} and cannot be used: set another of the \
             tenant's public addresses",
            tenant.name
        ))
    })
}

/// Failover problems that the new configuration has and the present one does not.
#[must_use]
pub fn new_problems(
    present: &Config,
    new: &Config,
    state: &State,
    snapshot: &Snapshot,
) -> Vec<String> {
    let before = failover_problems(present, state, snapshot);
    let mut after = failover_problems(new, state, snapshot);
    after.retain(|problem| !before.contains(problem));
    after
}

/// Parts of active and planned failovers that contradict the configuration or the underlay. They
/// are not in force.
#[must_use]
pub fn failover_problems(config: &Config, state: &State, snapshot: &Snapshot) -> Vec<String> {
    let reserved = reserved_addresses(config, snapshot);
    let mut problems = Vec::new();
    for (name, mode) in &state.modes {
        let plan = mode.failover.plan();
        match (config.tenant_alone(name), &mode.failover) {
            (_, FailoverState::Idle) | (Some(_), FailoverState::Partial) => {}
            (Some(mut tenant), FailoverState::Full(plan)) => {
                tenant.reserved = reserved_in(&reserved, &tenant.allocation);
                let errors = plan.check(&tenant).err();
                problems.extend(errors.iter().flat_map(PlanErrors::iter).map(|problem| {
                    let rule = problem.at.starts_with("rule ");
                    let effect = if rule {
                        "; the rule is not in force"
                    } else {
                        ""
                    };
                    format!("tenant {name:?}: {problem}{effect}")
                }));
            }
            (None, failover) => problems.push(format!(
                "tenant {name:?} is in {} failover{} but is not configured: add it to the \
                 configuration again, or end the failover (`causeway-appliance mode --tenant \
                 {name} idle`)",
                if *failover == FailoverState::Partial {
                    "partial"
                } else {
                    "full"
                },
                plan.map_or_else(String::new, |p| format!(" by plan {:?}", p.name())),
            )),
        }
    }
    problems.extend(
        config
            .tenants
            .iter()
            .flat_map(|tenant| nat_address_problems(&reserved, tenant)),
    );
    problems
}

/// The tenants in full failover, with their slots and plans.
fn in_full<'a>(
    config: &'a Config,
    state: &'a State,
) -> impl Iterator<Item = (&'a Tenant, u32, &'a Plan)> {
    config.tenants.iter().filter_map(|tenant| {
        let slot = *state.slots.tenants.get(&tenant.name)?;
        let plan = state.modes.get(&tenant.name)?.failover.plan()?;
        Some((tenant, slot, plan))
    })
}

/// Adds the contents for tenants in full failover.
pub(super) fn add(contents: &mut MapContents, config: &Config, state: &State, snapshot: &Snapshot) {
    // Equal quotas, so that one tenant cannot use up the capacity of another. What is unused is
    // lent.
    let tenants = in_full(config, state).count().max(1) as u32;
    let reserved = reserved_addresses(config, snapshot);
    let local = local_addresses(config, snapshot);
    for (tenant, slot, plan) in in_full(config, state) {
        let quota = TenantQuota {
            connections: config.nat.connections / tenants,
            mappings: config.nat.mappings / tenants,
        };
        contents.quotas.insert(slot, quota);
        add_routes(contents, config, state, tenant, slot);
        for (from, to) in plan.allow().iter().flat_map(failover::Allow::directions) {
            if let (Some(from), Some(to)) = (config.network(from), config.network(to)) {
                let key = PolicyKey {
                    from: from.vni,
                    to: to.vni,
                };
                contents.policies.insert(key, Policy { flags: 1 });
            }
        }
        let mut used = [0, 0];
        for address in source_addresses(&local, &reserved, tenant) {
            let (first, last) = if tenant.nat.contains(&address) {
                DEDICATED_PORTS
            } else {
                (config.nat.own_ports.first(), config.nat.own_ports.last())
            };
            let used = &mut used[usize::from(address.is_ipv6())];
            let first_slot = nat_address_slot(slot, address.is_ipv6());
            contents.nat_addresses.insert(
                first_slot + *used,
                NatAddress {
                    address: words(&from_ip(address)),
                    first,
                    last,
                },
            );
            *used += 1;
            let all = public_flags::TCP | public_flags::UDP | public_flags::ICMP;
            add_public(contents, config, snapshot, (address, slot), all);
        }
        // Only rules that could be added now: the configuration or a router may have changed.
        let Some(mut of) = config.tenant_alone(&tenant.name) else {
            continue;
        };
        of.reserved = reserved_in(&reserved, &of.allocation);
        for rule in plan.active_rules(&of).0 {
            add_rule(contents, config, state, tenant, slot, rule);
            let mut flags = protocols_of(rule.target());
            if config.nat.answer_ping {
                flags |= public_flags::PING;
            }
            let public = (rule.public_ip(), slot);
            add_public(contents, config, snapshot, public, flags);
        }
    }
    let uplink = snapshot.links.get(&config.uplink.interface);
    if let (Some(link), Some(_)) = (uplink, in_full(config, state).next()) {
        contents.nat = Nat {
            uplink: link.ifindex,
            seed: state.nat_seed.unwrap_or_default(),
            timeouts: config.nat.timeouts,
            // The generation changes with links, routes and neighbours.
            route_generation: snapshot.generation as u32,
            over_quota_connections: over_quota_limit(config.nat.connections),
            over_quota_mappings: over_quota_limit(config.nat.mappings),
            mac: link.mac,
            mtu: uplink_mtu(config, link.mtu),
            log: config.nat.log.is_some().into(),
        };
    }
}

/// The largest IP packet to the outside, bytes: that of the interface, or a smaller one that the
/// configuration gives for a path that is narrower somewhere.
fn uplink_mtu(config: &Config, link: u32) -> u16 {
    let link = u16::try_from(link).unwrap_or(u16::MAX);
    config.uplink.mtu.map_or(link, |mtu| mtu.min(link))
}

/// Adds routes to the prefixes of all networks of the tenant, including those that are not in the
/// plan: packets to them are then refused by policy and never leave through the uplink.
fn add_routes(
    contents: &mut MapContents,
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
            contents.routes.insert((bits(net), key), route);
        }
    }
}

/// The protocols that a rule leads to its machine, as [`public_flags`].
const fn protocols_of(target: RuleTarget) -> u32 {
    match target {
        RuleTarget::OneToOne => {
            public_flags::TCP | public_flags::UDP | public_flags::ICMP | public_flags::OTHERS
        }
        RuleTarget::Ports { protocol, .. } => match protocol {
            Protocol::Tcp => public_flags::TCP,
            Protocol::Udp => public_flags::UDP,
            Protocol::Both => public_flags::TCP | public_flags::UDP,
        },
    }
}

/// Adds a public address of the tenant in a slot, which receives the protocols in `flags`
/// ([`public_flags`]).
fn add_public(
    contents: &mut MapContents,
    config: &Config,
    snapshot: &Snapshot,
    (address, tenant): (IpAddr, u32),
    flags: u32,
) {
    let link = snapshot.links.get(&config.uplink.interface);
    let on_link = link.is_some_and(|l| l.addresses.iter().any(|(a, _)| *a == address));
    let own = on_link || local_addresses(config, snapshot).contains(&address);
    let own = if own { public_flags::OWN } else { 0 };
    let zone = zone_of(tenant).into();
    let public = contents
        .public
        .entry(from_ip(address))
        .or_insert(PublicAddress { flags: 0, zone });
    public.flags |= public_flags::ACTIVE | own | flags;
    if public.zone != zone {
        public.zone = 0;
    }
}

fn add_rule(
    contents: &mut MapContents,
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
        address: words(&public),
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
        public: words(&public),
        internal: words(&internal),
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
                    contents.rule_ports.insert(key, RuleSlot { slot });
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
            let others = [IPPROTO_ESP, IPPROTO_GRE, IPPROTO_SCTP];
            for protocol in [IPPROTO_TCP, IPPROTO_UDP, icmp].into_iter().chain(others) {
                contents
                    .rule_ports
                    .insert((0, key(protocol, 0)), RuleSlot { slot });
            }
            let machine = MachineKey {
                zone: zone_of(tenant_slot).into(),
                address: words(&internal),
            };
            contents.one_to_one.insert(machine, RuleSlot { slot });
        }
    }
    if !rule.allow().is_empty() {
        value.flags |= rule_flags::LISTED;
    }
    for net in rule.allow() {
        let key = SourceKey {
            slot,
            address: words(&from_ip(net.address())),
        };
        contents
            .rule_sources
            .insert((bits(net), key), RuleSlot { slot });
    }
    contents.rules.insert(slot, value);
}

/// The internal hosts of all public IP rules of tenants in full failover.
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
