//! Conflicts among rules, and rules that do not fit a tenant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::TenantContext;
use crate::{IpPrefix, Rule, RuleTarget};

/// Overlaps reported at most.
pub(super) const MAX_REPORTED: usize = 1000;

/// Pairs of rules that claim the same ports of the same address, with what both claim. At least one
/// of each pair is `touched` by the change, and is the first of the pair; if both are, the later by
/// name is the first. One pass over the ports of each address, because a tenant may have thousands
/// of rules.
pub(super) fn overlaps<'r>(
    rules: &'r BTreeMap<String, Rule>,
    touched: &BTreeSet<String>,
) -> Vec<(&'r Rule, &'r Rule, String)> {
    let mut of_address: BTreeMap<IpAddr, Vec<&Rule>> = BTreeMap::new();
    for rule in rules.values() {
        of_address.entry(rule.public_ip()).or_default().push(rule);
    }
    let ports = |rule: &Rule| match rule.target() {
        RuleTarget::Ports { public, .. } => (public.first(), public.last()),
        RuleTarget::OneToOne => (0, u16::MAX),
    };
    let mut found = Vec::new();
    for mut rules in of_address.into_values() {
        rules.sort_by_key(|rule| ports(rule));
        // Rules whose ports end behind the first port of the next rule.
        let mut open: Vec<&Rule> = Vec::new();
        for rule in rules {
            let (first, _) = ports(rule);
            open.retain(|other| ports(other).1 >= first);
            for other in &open {
                let (reported, other) = match (
                    touched.contains(rule.name()),
                    touched.contains(other.name()),
                ) {
                    (true, true) if rule.name() > other.name() => (rule, *other),
                    (true, false) => (rule, *other),
                    (_, true) => (*other, rule),
                    (false, false) => continue,
                };
                if let Some(claim) = reported.overlap(other) {
                    found.push((reported, other, claim));
                }
                if found.len() >= MAX_REPORTED {
                    return found;
                }
            }
            open.push(rule);
        }
    }
    found
}

/// 1:1 rules that map a machine which another 1:1 rule maps already, each with that rule. Of rules
/// that are all `touched`, the first by name keeps the machine.
pub(super) fn second_one_to_one<'r>(
    rules: &'r BTreeMap<String, Rule>,
    touched: &BTreeSet<String>,
) -> Vec<(&'r Rule, &'r Rule)> {
    let mut of_machine: BTreeMap<IpAddr, Vec<&Rule>> = BTreeMap::new();
    let whole = |rule: &&Rule| rule.target() == RuleTarget::OneToOne;
    for rule in rules.values().filter(whole) {
        of_machine.entry(rule.internal_ip()).or_default().push(rule);
    }
    let mut found = Vec::new();
    for mut rules in of_machine.into_values() {
        // A stable sort: by name among those that are touched.
        rules.sort_by_key(|rule| touched.contains(rule.name()));
        let Some((first, others)) = rules.split_first() else {
            continue;
        };
        let new = others.iter().filter(|rule| touched.contains(rule.name()));
        found.extend(new.map(|rule| (*rule, *first)));
    }
    found.truncate(MAX_REPORTED);
    found
}

pub(super) fn mapped_already(rule: &Rule, other: &Rule) -> String {
    format!(
        "internal_ip: {} is mapped 1:1 to {} already by rule {:?} ({other}), and a machine has one \
         such address: use another machine, forward ports instead, or remove rule {2:?}",
        rule.internal_ip(),
        other.public_ip(),
        other.name()
    )
}

pub(super) fn no_such_rule(rules: &BTreeMap<String, Rule>) -> String {
    if rules.is_empty() {
        return "there is no rule of this name, and there are no others".to_owned();
    }
    let names: Vec<&str> = rules.keys().map(String::as_str).collect();
    format!(
        "there is no rule of this name; the rules are: {}",
        shown(&names)
    )
}

/// The first names of a list, and the number of the others.
pub(crate) fn shown(names: &[&str]) -> String {
    const MAX_LISTED: usize = 10;
    match names {
        [] => "none".to_owned(),
        names if names.len() <= MAX_LISTED => names.join(", "),
        names => format!(
            "{} and {} more",
            names[..MAX_LISTED].join(", "),
            names.len() - MAX_LISTED
        ),
    }
}

/// Prefixes, separated by commas; `none` for no prefix.
pub(crate) fn list(nets: &[IpPrefix]) -> String {
    match nets {
        [] => "none".to_owned(),
        nets => nets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Why a tenant cannot have a rule. Empty if it can.
pub(super) fn tenant_problems(rule: &Rule, tenant: &TenantContext) -> Vec<String> {
    let mut problems = Vec::new();
    let public = rule.public_ip();
    if !tenant.allocation.iter().any(|net| net.contains(public)) {
        problems.push(format!(
            "public_ip: {public} is not one of tenant {:?}'s public addresses: {}",
            tenant.name,
            list(&tenant.allocation)
        ));
    }
    if let Some(reserved) = tenant.reserved.iter().find(|r| r.address == public) {
        problems.push(format!(
            "public_ip: {public} is {}, which no rule may use: use another of tenant {:?}'s public \
             addresses",
            reserved.owner, tenant.name
        ));
    }
    if rule.target() == RuleTarget::OneToOne && tenant.nat_addresses.contains(&public) {
        problems.push(format!(
            "public_ip: {public} is the source address of tenant {:?}'s internet access (nat) and \
             cannot be mapped 1:1: use another public address, or forward ports of this one",
            tenant.name
        ));
    }
    let internal = rule.internal_ip();
    if let Some(reserved) = tenant.reserved.iter().find(|r| r.address == internal) {
        problems.push(format!(
            "internal_ip: {internal} is {}: use the address of a machine",
            reserved.owner
        ));
    }
    let network = tenant.networks.iter().find_map(|network| {
        let prefix = network.prefixes.iter().find(|p| p.contains(internal))?;
        Some((network, prefix))
    });
    match network {
        None => {
            let networks: Vec<String> = tenant
                .networks
                .iter()
                .map(|network| format!("{} ({})", network.name, list(&network.prefixes)))
                .collect();
            problems.push(format!(
                "internal_ip: {internal} is in no network of tenant {:?}; its networks are: {}",
                tenant.name,
                networks.join(", ")
            ));
        }
        Some((network, _)) if network.excluded => problems.push(format!(
            "internal_ip: {internal} is in network {0:?}, which is not in the plan: add a \
             [[network]] with name = {0:?} to the plan, or use a machine in one of its networks",
            network.name
        )),
        Some((network, _)) if network.gateways.contains(&internal) => problems.push(format!(
            "internal_ip: {internal} is the gateway of network {:?}, which the appliance itself is \
             during a full failover: use the address of a machine",
            network.name
        )),
        Some(_) if tenant.allocation.iter().any(|net| net.contains(internal)) => {
            problems.push(format!(
                "internal_ip: {internal} is a public address of tenant {:?}, which the appliance \
                 itself answers for: use the address of a machine",
                tenant.name
            ));
        }
        Some((network, prefix)) if prefix.is_network_or_broadcast(internal) => {
            let name = &network.name;
            problems.push(format!(
                "internal_ip: {internal} is the network or broadcast address of {prefix} in \
                 network {name:?}: use the address of a machine"
            ));
        }
        Some(_) => {}
    }
    problems
}
