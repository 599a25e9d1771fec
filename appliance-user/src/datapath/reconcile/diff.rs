//! The updates that lead from the present map contents to the wanted ones, in a safe order.

use std::collections::{BTreeMap, BTreeSet};

use appliance_common::{
    maps::{HostKey, Mode, Tenant},
    nat::{Rule, RuleKey, rule_flags},
};

use super::{MapContents, MapUpdate};

/// The updates that turn `from` into `to`. After each of them, packets are forwarded correctly or
/// not at all. References to an entry are removed before the entry and added after it. A mode is
/// entered after all entries it needs are present, and left before any of them is removed.
///
/// ```text
///   idle modes ─▶ removals, rules first ─▶ changes and additions, rules last
///              ─▶ removed networks and peers ─▶ partial and full modes ─▶ late endpoints, CONFIG
/// ```
#[must_use]
pub fn diff(from: &MapContents, to: &MapContents) -> Vec<MapUpdate> {
    let mut updates = Vec::new();
    let stops = |tenant: &Tenant| tenant.mode == Mode::Idle as u32;
    removed(&from.tenants, &to.tenants, |k| {
        updates.push(MapUpdate::Tenant(k, None));
    });
    changed(&from.tenants, &to.tenants, |k, v| {
        if stops(&v) {
            updates.push(MapUpdate::Tenant(k, Some(v)));
        }
    });
    // Endpoints of a partial failover that a full failover replaces stay until the switch of the
    // mode.
    let late = late_endpoints(from, to);
    push_removals(from, to, &late, &mut updates);
    push_changes(from, to, &mut updates);
    removed(&from.networks, &to.networks, |k| {
        updates.push(MapUpdate::Network(k, None));
    });
    removed(&from.peers, &to.peers, |k| {
        updates.push(MapUpdate::Peer(k, None));
    });
    changed(&from.tenants, &to.tenants, |k, v| {
        if !stops(&v) {
            updates.push(MapUpdate::Tenant(k, Some(v)));
        }
    });
    for key in late {
        updates.push(MapUpdate::Endpoint(key, None));
    }
    if to.nat.uplink == 0 && from.nat != to.nat {
        updates.push(MapUpdate::Nat(to.nat));
    }
    if from.config != to.config {
        updates.push(MapUpdate::Config(to.config));
    }
    updates
}

/// Endpoints that are removed because a full failover replaces a partial one.
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

/// Adds the removals.
fn push_removals(
    from: &MapContents,
    to: &MapContents,
    late: &BTreeSet<HostKey>,
    updates: &mut Vec<MapUpdate>,
) {
    for (slot, off) in switched_off(from, to) {
        updates.push(MapUpdate::Rule(slot, off));
    }
    removed(&from.one_to_one, &to.one_to_one, |k| {
        updates.push(MapUpdate::OneToOne(k, None));
    });
    removed(&from.rule_ports, &to.rule_ports, |k| {
        updates.push(MapUpdate::RulePorts(k, None));
    });
    removed(&from.rule_sources, &to.rule_sources, |k| {
        updates.push(MapUpdate::RuleSource(k, None));
    });
    removed(&from.quotas, &to.quotas, |k| {
        updates.push(MapUpdate::Quota(k, None));
    });
    removed(&from.nat_addresses, &to.nat_addresses, |k| {
        updates.push(MapUpdate::NatAddress(k, None));
    });
    removed(&from.public, &to.public, |k| {
        updates.push(MapUpdate::Public(k, None));
    });
    removed(&from.attachments, &to.attachments, |k| {
        updates.push(MapUpdate::Attachment(k, None));
    });
    removed(&from.tunnels, &to.tunnels, |k| {
        updates.push(MapUpdate::Tunnel(k, None));
    });
    removed(&from.endpoints, &to.endpoints, |k| {
        if !late.contains(&k) {
            updates.push(MapUpdate::Endpoint(k, None));
        }
    });
    removed(&from.policies, &to.policies, |k| {
        updates.push(MapUpdate::Policy(k, None));
    });
    removed(&from.routes, &to.routes, |k| {
        updates.push(MapUpdate::Route(k, None));
    });
}

/// Adds the changed and the new entries.
fn push_changes(from: &MapContents, to: &MapContents, updates: &mut Vec<MapUpdate>) {
    changed(&from.peers, &to.peers, |k, v| {
        updates.push(MapUpdate::Peer(k, Some(Box::new(v))));
    });
    changed(&from.networks, &to.networks, |k, v| {
        updates.push(MapUpdate::Network(k, Some(Box::new(v))));
    });
    changed(&from.routes, &to.routes, |k, v| {
        updates.push(MapUpdate::Route(k, Some(v)));
    });
    changed(&from.policies, &to.policies, |k, v| {
        updates.push(MapUpdate::Policy(k, Some(v)));
    });
    changed(&from.endpoints, &to.endpoints, |k, v| {
        updates.push(MapUpdate::Endpoint(k, Some(v)));
    });
    if to.nat.uplink != 0 && from.nat != to.nat {
        updates.push(MapUpdate::Nat(to.nat));
    }
    changed(&from.quotas, &to.quotas, |k, v| {
        updates.push(MapUpdate::Quota(k, Some(v)));
    });
    changed(&from.nat_addresses, &to.nat_addresses, |k, v| {
        updates.push(MapUpdate::NatAddress(k, Some(v)));
    });
    changed(&from.public, &to.public, |k, v| {
        updates.push(MapUpdate::Public(k, Some(v)));
    });
    changed(&from.rule_sources, &to.rule_sources, |k, v| {
        updates.push(MapUpdate::RuleSource(k, Some(v)));
    });
    let off = switched_off(from, to);
    for (slot, rule) in &to.rules {
        let now = off.get(slot).or_else(|| from.rules.get(slot));
        if now.copied().unwrap_or_default() != *rule {
            updates.push(MapUpdate::Rule(*slot, *rule));
        }
    }
    changed(&from.rule_ports, &to.rule_ports, |k, v| {
        updates.push(MapUpdate::RulePorts(k, Some(v)));
    });
    changed(&from.one_to_one, &to.one_to_one, |k, v| {
        updates.push(MapUpdate::OneToOne(k, Some(v)));
    });
    changed(&from.tunnels, &to.tunnels, |k, v| {
        updates.push(MapUpdate::Tunnel(k, Some(v)));
    });
    changed(&from.attachments, &to.attachments, |k, v| {
        updates.push(MapUpdate::Attachment(k, Some(v)));
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

/// Sets the epoch of every slot of `RULES` in `to`. A rule that is unchanged or only wider keeps
/// the epoch of `from`. Any other rule gets the next epoch, so that connections allowed by the old
/// rule become stale. An unused slot keeps its last epoch.
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

/// Slots of rules that lost a port, a source or a machine.
fn narrowed(from: &MapContents, to: &MapContents) -> BTreeSet<u32> {
    let ports = from.rule_ports.iter().filter(|((bits, key), slot)| {
        // When a range grows, its old block of ports lies inside a larger one.
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

/// Rules that must be switched off before their ports, sources or machines are removed or changed.
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
