//! The rules of one tenant, as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::{IpPrefix, Rule, RuleTarget};

/// What a tenant has, as far as rules ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantContext {
    /// Its name.
    pub name: String,
    /// Its public addresses.
    pub allocation: Vec<IpPrefix>,
    /// Those of them that its networks with internet are seen as: no machine has one to itself.
    pub nat_addresses: Vec<IpAddr>,
    /// Addresses that are somebody's already, whatever the allocation says; empty where nobody knows.
    pub reserved: Vec<ReservedAddress>,
    /// Its networks.
    pub networks: Vec<NetworkContext>,
    /// Names of other tenants' networks, so that they are told from misspelt ones; empty where this tenant is not
    /// to learn of them.
    pub other_networks: Vec<String>,
}

/// An address that no rule may take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedAddress {
    /// The address.
    pub address: IpAddr,
    /// Whose it is, as in "the appliance's own address on eth0".
    pub owner: String,
}

/// A network of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkContext {
    /// Its name.
    pub name: String,
    /// Its prefixes.
    pub prefixes: Vec<IpPrefix>,
    /// The addresses of its gateway, which are the appliance's in full failover.
    pub gateways: Vec<IpAddr>,
    /// Whether the failover plan leaves it out: then no rule leads there.
    pub excluded: bool,
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleChange {
    /// A rule more.
    Add(Rule),
    /// The rule of this name is another.
    Replace(Rule),
    /// The rule of this name is gone.
    Remove(String),
}

/// What is wrong with a rule beside the others, or of this tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleProblem {
    /// The rule.
    pub rule: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {:?}: {}", self.rule, self.message)
    }
}

/// The rules of one tenant: no two claim the same, and each is the tenant's to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    rules: BTreeMap<String, Rule>,
}

impl RuleSet {
    /// A set of rules, checked whole.
    ///
    /// # Errors
    /// Every problem, by rule.
    pub fn new(tenant: &TenantContext, rules: Vec<Rule>) -> Result<Self, Vec<RuleProblem>> {
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        Self::default().apply(tenant, changes)
    }

    /// The set after a change, all of it. This one stays as it is.
    ///
    /// # Errors
    /// Every problem of the change, by rule: then none of it is done.
    pub fn apply(
        &self,
        tenant: &TenantContext,
        changes: Vec<RuleChange>,
    ) -> Result<Self, Vec<RuleProblem>> {
        self.apply_for(Some(tenant), changes)
    }

    /// A set of rules, whoever's they are.
    pub(crate) fn for_any_tenant(rules: Vec<Rule>) -> Result<Self, Vec<RuleProblem>> {
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        Self::default().apply_for(None, changes)
    }

    fn apply_for(
        &self,
        tenant: Option<&TenantContext>,
        changes: Vec<RuleChange>,
    ) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Vec::new();
        let mut problem = |rule: &str, message: String| {
            problems.push(RuleProblem {
                rule: rule.to_owned(),
                message,
            });
        };
        let mut rules = self.rules.clone();
        let mut touched = BTreeSet::new();
        let mut gone = BTreeSet::new();
        // First what goes, so that its place can be taken in the same change.
        for change in &changes {
            let name = match change {
                RuleChange::Remove(name) => name.as_str(),
                RuleChange::Replace(rule) => rule.name(),
                RuleChange::Add(_) => continue,
            };
            if !gone.insert(name) {
                problem(
                    name,
                    "is named twice in one change: name it once".to_owned(),
                );
            } else if rules.remove(name).is_none() {
                problem(name, there_is_none(&self.rules));
            }
        }
        for change in &changes {
            let (RuleChange::Add(rule) | RuleChange::Replace(rule)) = change else {
                continue;
            };
            let name = rule.name().to_owned();
            if let Some(there) = rules.get(&name) {
                problem(
                    &name,
                    format!(
                        "there is a rule of this name already: {there}; remove it first, or give another name"
                    ),
                );
                continue;
            }
            touched.insert(name.clone());
            rules.insert(name, rule.clone());
        }
        for name in &touched {
            if let (Some(tenant), Some(rule)) = (tenant, rules.get(name)) {
                for message in of_tenant(rule, tenant) {
                    problem(name, message);
                }
            }
        }
        for (rule, other, what) in overlaps(&rules, &touched) {
            problem(
                rule.name(),
                format!("{what} is rule {:?}'s already ({other})", other.name()),
            );
        }
        // Of rules that were kept it is asked which are in force; they are read all the same.
        if tenant.is_some() {
            for (rule, other) in same_machine(&rules, &touched) {
                problem(rule.name(), has_one_already(rule, other));
            }
        }
        if problems.is_empty() {
            return Ok(Self { rules });
        }
        problems.sort();
        Err(problems)
    }

    /// The rules that the tenant may have as it is now, and why others are not in force. What was the tenant's
    /// when a rule was made may have become somebody else's since.
    #[must_use]
    pub fn active_rules(&self, tenant: &TenantContext) -> (Vec<&Rule>, Vec<RuleProblem>) {
        let (mut rules, mut problems) = (Vec::new(), Vec::new());
        let mut whole: BTreeMap<IpAddr, &Rule> = BTreeMap::new();
        for rule in self.rules.values() {
            let mut messages = of_tenant(rule, tenant);
            if messages.is_empty() && rule.target() == RuleTarget::OneToOne {
                match whole.get(&rule.internal_ip()) {
                    Some(other) => messages.push(has_one_already(rule, other)),
                    None => drop(whole.insert(rule.internal_ip(), rule)),
                }
            }
            if messages.is_empty() {
                rules.push(rule);
            }
            problems.extend(messages.into_iter().map(|message| RuleProblem {
                rule: rule.name().to_owned(),
                message,
            }));
        }
        (rules, problems)
    }

    /// The rules, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// A rule by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.rules.get(name)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// Overlaps told at most: whoever has more has enough to mend.
const OVERLAPS: usize = 1000;

/// Rules of a change that claim what another has, and what that is; of two that are both new, the later by name is
/// told. By one pass over the ports of each address: a tenant may have thousands of rules.
fn overlaps<'r>(
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
        // Those that reach as far as where the next begins.
        let mut open: Vec<&Rule> = Vec::new();
        for rule in rules {
            let (first, _) = ports(rule);
            open.retain(|other| ports(other).1 >= first);
            for other in &open {
                let (told, beside) = match (
                    touched.contains(rule.name()),
                    touched.contains(other.name()),
                ) {
                    (true, true) if rule.name() > other.name() => (rule, *other),
                    (true, false) => (rule, *other),
                    (_, true) => (*other, rule),
                    (false, false) => continue,
                };
                if let Some(what) = told.overlap(beside) {
                    found.push((told, beside, what));
                }
                if found.len() >= OVERLAPS {
                    return found;
                }
            }
            open.push(rule);
        }
    }
    found
}

/// Rules of a change that give a machine a second address to itself, each with the one that it has; of those that
/// are new, the first by name has it.
fn same_machine<'r>(
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
        // By name among themselves, as they came.
        rules.sort_by_key(|rule| touched.contains(rule.name()));
        let Some((first, others)) = rules.split_first() else {
            continue;
        };
        let new = others.iter().filter(|rule| touched.contains(rule.name()));
        found.extend(new.map(|rule| (*rule, *first)));
    }
    found.truncate(OVERLAPS);
    found
}

fn has_one_already(rule: &Rule, other: &Rule) -> String {
    format!(
        "internal_ip: {} has {} to itself already, by rule {:?} ({other}), and a machine is seen as one address: lead \
         this rule to another machine, or by ports, or remove the other",
        rule.internal_ip(),
        other.public_ip(),
        other.name()
    )
}

fn there_is_none(rules: &BTreeMap<String, Rule>) -> String {
    if rules.is_empty() {
        return "there is no such rule; there are none".to_owned();
    }
    let names: Vec<&str> = rules.keys().map(String::as_str).collect();
    format!("there is no such rule; there are: {}", shown(&names))
}

/// The first names of a list, and how many more there are.
pub(crate) fn shown(names: &[&str]) -> String {
    const SHOWN: usize = 10;
    match names {
        [] => "none".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!(
            "{} and {} more",
            names[..SHOWN].join(", "),
            names.len() - SHOWN
        ),
    }
}

/// A list of prefixes.
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

/// What of a rule is not this tenant's to make.
fn of_tenant(rule: &Rule, tenant: &TenantContext) -> Vec<String> {
    let mut problems = Vec::new();
    let public = rule.public_ip();
    if !tenant.allocation.iter().any(|net| net.contains(public)) {
        problems.push(format!(
            "public_ip: {public} is not one of tenant {:?}'s public addresses: {}",
            tenant.name,
            list(&tenant.allocation)
        ));
    }
    if let Some(taken) = tenant.reserved.iter().find(|t| t.address == public) {
        problems.push(format!(
            "public_ip: {public} is {}, which the rule would take over: give another of tenant {:?}'s public addresses",
            taken.owner, tenant.name
        ));
    }
    if rule.target() == RuleTarget::OneToOne && tenant.nat_addresses.contains(&public) {
        problems.push(format!(
            "public_ip: {public} is what tenant {:?}'s networks with internet are seen as (nat), and no machine has it \
             to itself: give another public address, or lead ports of this one",
            tenant.name
        ));
    }
    let internal = rule.internal_ip();
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
            "internal_ip: {internal} is in network {0:?}, which the plan leaves out: add a [[network]] with name = \
             {0:?} to the plan, or lead the rule to a machine of one that is in it",
            network.name
        )),
        Some((network, _)) if network.gateways.contains(&internal) => problems.push(format!(
            "internal_ip: {internal} is the gateway of network {:?}, which the appliance is in a full failover",
            network.name
        )),
        Some((network, prefix)) if prefix.is_network_or_broadcast(internal) => problems.push(format!(
            "internal_ip: {internal} is the network or broadcast address of {prefix} in network {:?}, which no machine has",
            network.name
        )),
        Some(_) => {}
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MANAGEMENT_PORT, PortRange, Protocol};
    use proptest::prelude::*;

    fn acme() -> TenantContext {
        let net = |text: &str| text.parse().expect("a prefix");
        TenantContext {
            name: "acme".to_owned(),
            allocation: vec![net("203.0.113.16/28"), net("2001:db8:f::/64")],
            nat_addresses: vec!["203.0.113.16".parse().expect("an address")],
            reserved: Vec::new(),
            networks: vec![
                NetworkContext {
                    name: "net1".to_owned(),
                    prefixes: vec![net("10.1.0.0/24"), net("2001:db8:1::/64")],
                    gateways: vec!["10.1.0.1".parse().expect("an address")],
                    excluded: false,
                },
                NetworkContext {
                    name: "net2".to_owned(),
                    prefixes: vec![net("10.2.0.0/24")],
                    ..NetworkContext::default()
                },
            ],
            other_networks: Vec::new(),
        }
    }

    fn rule(name: &str, line: &str) -> Rule {
        Rule::from_line(name, line).expect("a rule")
    }

    fn set(rules: &[(&str, &str)]) -> Result<RuleSet, Vec<RuleProblem>> {
        RuleSet::new(
            &acme(),
            rules.iter().map(|(name, line)| rule(name, line)).collect(),
        )
    }

    fn messages(result: Result<RuleSet, Vec<RuleProblem>>) -> Vec<String> {
        result
            .expect_err("to be refused")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_is_not_the_tenant_s_is_refused_and_everything_is_told() {
        assert_eq!(
            messages(set(&[
                ("a", "198.51.100.9:80/tcp -> 10.9.0.1"),
                ("b", "203.0.113.20:80/tcp -> 10.1.0.1"),
                ("c", "203.0.113.21:80/tcp -> 10.1.0.255"),
                ("d", "203.0.113.22:80/tcp -> 10.2.0.0"),
            ])),
            [
                "rule \"a\": internal_ip: 10.9.0.1 is in no network of tenant \"acme\"; its networks are: net1 (10.1.0.0/24, 2001:db8:1::/64), net2 (10.2.0.0/24)",
                "rule \"a\": public_ip: 198.51.100.9 is not one of tenant \"acme\"'s public addresses: 203.0.113.16/28, 2001:db8:f::/64",
                "rule \"b\": internal_ip: 10.1.0.1 is the gateway of network \"net1\", which the appliance is in a full failover",
                "rule \"c\": internal_ip: 10.1.0.255 is the network or broadcast address of 10.1.0.0/24 in network \"net1\", which no machine has",
                "rule \"d\": internal_ip: 10.2.0.0 is the network or broadcast address of 10.2.0.0/24 in network \"net2\", which no machine has",
            ]
        );
    }

    #[test]
    fn no_rule_leads_to_a_network_that_the_plan_leaves_out() {
        let mut tenant = acme();
        tenant.networks[1].excluded = true;
        let inside = rule("a", "203.0.113.20:80/tcp -> 10.1.0.10");
        let excluded = rule("b", "203.0.113.21:80/tcp -> 10.2.0.10");
        assert_eq!(
            messages(RuleSet::new(&tenant, vec![inside, excluded])),
            [
                "rule \"b\": internal_ip: 10.2.0.10 is in network \"net2\", which the plan leaves out: add a [[network]] with name = \"net2\" to the plan, or lead the rule to a machine of one that is in it"
            ]
        );
    }

    #[test]
    fn an_overlap_names_the_other_rule_and_what_both_claim() {
        for (a, b, what) in [
            (
                "203.0.113.20:443/tcp -> 10.1.0.10",
                "203.0.113.20:443/tcp -> 10.1.0.11",
                "203.0.113.20 tcp 443",
            ),
            (
                "203.0.113.20:80-90/tcp -> 10.1.0.10",
                "203.0.113.20:85-99/both -> 10.1.0.11",
                "203.0.113.20 tcp 85-90",
            ),
            (
                "203.0.113.20:53/both -> 10.1.0.10",
                "203.0.113.20:50-60/both -> 10.1.0.11",
                "203.0.113.20 tcp and udp 53",
            ),
            (
                "203.0.113.20 -> 10.1.0.10",
                "203.0.113.20:443/udp -> 10.1.0.11",
                "203.0.113.20 udp 443",
            ),
            (
                "203.0.113.20 -> 10.1.0.10",
                "203.0.113.20 -> 10.1.0.11",
                "203.0.113.20",
            ),
            (
                "[2001:db8:f::1]:443/tcp -> 2001:db8:1::10",
                "[2001:db8:f::1]:1-21/tcp -> 2001:db8:1::11",
                "",
            ),
        ] {
            let result = set(&[("a", a), ("b", b)]);
            if what.is_empty() {
                assert!(result.is_ok());
                continue;
            }
            let a = rule("a", a);
            assert_eq!(
                messages(result),
                [format!("rule \"b\": {what} is rule \"a\"'s already ({a})")]
            );
        }
        let apart = [
            ("a", "203.0.113.20:443/tcp -> 10.1.0.10"),
            ("b", "203.0.113.20:443/udp -> 10.1.0.10"),
            ("c", "203.0.113.21:443/tcp -> 10.1.0.10"),
            ("d", "203.0.113.20:444/tcp -> 10.1.0.10:443"),
        ];
        assert_eq!(set(&apart).map(|set| set.len()), Ok(4));
    }

    #[test]
    fn what_the_networks_are_seen_as_is_no_machines_own() {
        assert_eq!(
            messages(set(&[("whole", "203.0.113.16 -> 10.1.0.10")])),
            [
                "rule \"whole\": public_ip: 203.0.113.16 is what tenant \"acme\"'s networks with internet are seen as (nat), and no machine has it to itself: give another public address, or lead ports of this one"
            ]
        );
        assert!(set(&[("web", "203.0.113.16:443/tcp -> 10.1.0.10")]).is_ok());
    }

    #[test]
    fn a_machine_has_one_address_to_itself() {
        let (one, two) = ("203.0.113.20 -> 10.1.0.10", "203.0.113.21 -> 10.1.0.10");
        let said = |rule: &str, has: &str, other: &str, line: &str| {
            format!(
                "rule {rule:?}: internal_ip: 10.1.0.10 has {has} to itself already, by rule {other:?} ({line}), and a machine is seen as one address: lead this rule to another machine, or by ports, or remove the other"
            )
        };
        assert_eq!(
            messages(set(&[("a", one), ("b", two)])),
            [said("b", "203.0.113.20", "a", one)]
        );
        // The one that is there has it, whatever the names.
        let there = set(&[("m", one)]).expect("a set");
        let more = |name: &str| there.apply(&acme(), vec![RuleChange::Add(rule(name, two))]);
        assert_eq!(messages(more("a")), [said("a", "203.0.113.20", "m", one)]);
        // Ports, another machine, and the same machine's other family are no second one.
        assert!(
            set(&[
                ("a", one),
                ("b", "203.0.113.21:443/tcp -> 10.1.0.10"),
                ("c", "203.0.113.22 -> 10.1.0.11"),
                ("d", "2001:db8:f::1 -> 2001:db8:1::10"),
            ])
            .is_ok()
        );
        let moved = vec![
            RuleChange::Remove("m".to_owned()),
            RuleChange::Add(rule("n", two)),
        ];
        assert!(there.apply(&acme(), moved).is_ok());
    }

    #[test]
    fn no_rule_takes_over_what_is_somebodys() {
        let mut tenant = acme();
        tenant.reserved = vec![ReservedAddress {
            address: "203.0.113.17".parse().expect("an address"),
            owner: "the router behind eth0".to_owned(),
        }];
        let web = rule("web", "203.0.113.17:443/tcp -> 10.1.0.10");
        assert_eq!(
            messages(RuleSet::new(&tenant, vec![web])),
            [
                "rule \"web\": public_ip: 203.0.113.17 is the router behind eth0, which the rule would take over: give another of tenant \"acme\"'s public addresses"
            ]
        );
    }

    #[test]
    fn what_is_not_the_tenant_s_any_more_is_not_in_force_and_the_rest_is() {
        let lines = [
            ("a", "203.0.113.17:443/tcp -> 10.1.0.10"),
            ("b", "203.0.113.18:443/tcp -> 10.1.0.10"),
            ("c", "203.0.113.19 -> 10.1.0.11"),
            ("d", "203.0.113.30:443/tcp -> 10.1.0.10"),
            ("e", "203.0.113.20 -> 10.1.0.11"),
        ];
        let rules: Vec<Rule> = lines.iter().map(|(n, line)| rule(n, line)).collect();
        // As kept: nobody asked for the machine then.
        let set = RuleSet::for_any_tenant(rules).expect("no overlap");
        let mut tenant = acme();
        tenant.allocation = vec!["203.0.113.16/29".parse().expect("a prefix")];
        tenant.reserved = vec![ReservedAddress {
            address: "203.0.113.17".parse().expect("an address"),
            owner: "the router behind eth0".to_owned(),
        }];
        let (there, not) = set.active_rules(&tenant);
        let names: Vec<&str> = there.iter().map(|r| r.name()).collect();
        assert_eq!(names, ["b", "c"]);
        let told: Vec<(&str, &str)> = not
            .iter()
            .map(|p| {
                (
                    p.rule.as_str(),
                    &p.message[..p.message.find(':').expect("where")],
                )
            })
            .collect();
        assert_eq!(
            told,
            [("a", "public_ip"), ("d", "public_ip"), ("e", "internal_ip")]
        );
        assert!(not[2].message.contains("by rule \"c\""), "{not:?}");
    }

    #[test]
    fn a_change_is_done_whole_or_not_at_all() {
        let before = set(&[
            ("web", "203.0.113.20:443/tcp -> 10.1.0.10"),
            ("mail", "203.0.113.20:25/tcp -> 10.1.0.11"),
        ])
        .expect("a set");
        let kept = before.clone();
        let refused = before.apply(
            &acme(),
            vec![
                RuleChange::Add(rule("good", "203.0.113.20:80/tcp -> 10.1.0.10")),
                RuleChange::Add(rule("web", "203.0.113.21:443/tcp -> 10.1.0.10")),
                RuleChange::Remove("wbe".to_owned()),
                RuleChange::Replace(rule("nail", "203.0.113.20:26/tcp -> 10.1.0.10")),
            ],
        );
        assert_eq!(
            messages(refused),
            [
                "rule \"nail\": there is no such rule; there are: mail, web",
                "rule \"wbe\": there is no such rule; there are: mail, web",
                "rule \"web\": there is a rule of this name already: 203.0.113.20:443/tcp -> 10.1.0.10:443; remove it first, or give another name",
            ]
        );
        assert_eq!(before, kept);
        // What one step leaves, another may take.
        let after = before
            .apply(
                &acme(),
                vec![
                    RuleChange::Add(rule("shop", "203.0.113.20:443/tcp -> 10.1.0.12")),
                    RuleChange::Remove("web".to_owned()),
                    RuleChange::Replace(rule("mail", "203.0.113.20:25/tcp -> 10.1.0.13")),
                ],
            )
            .expect("a change");
        let names: Vec<&str> = after.iter().map(Rule::name).collect();
        assert_eq!(names, ["mail", "shop"]);
        assert!(after.get("web").is_none() && !after.is_empty());
        assert_eq!(
            messages(RuleSet::default().apply(&acme(), vec![RuleChange::Remove("x".to_owned())])),
            ["rule \"x\": there is no such rule; there are none"]
        );
        let twice = vec![
            RuleChange::Remove("web".to_owned()),
            RuleChange::Remove("web".to_owned()),
        ];
        assert_eq!(
            messages(before.apply(&acme(), twice)),
            ["rule \"web\": is named twice in one change: name it once"]
        );
    }

    prop_compose! {
        fn some_rules()(
            specs in proptest::collection::vec((0u8..3, 1u16..40, 0u16..6, 0usize..5, 0u8..2), 1..8)
        ) -> Vec<Option<Rule>> {
            specs
                .into_iter()
                .enumerate()
                .map(|(at, (ip, first, more, what, machine))| {
                    let target = match what {
                        0..=2 => RuleTarget::Ports {
                            public: PortRange::new(first, first + more).expect("a range"),
                            internal: first,
                            protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Both][what],
                        },
                        _ => RuleTarget::OneToOne,
                    };
                    let public = IpAddr::from([203, 0, 113, [16, 20, 21][usize::from(ip)]]);
                    let internal = IpAddr::from([10, 1, 0, 10 + machine]);
                    Rule::new(&format!("r{at}"), public, internal, target, Vec::new(), "").ok()
                })
                .collect()
        }
    }

    /// Every (address, protocol, port) that a rule claims, one by one; where it gives a machine an address to
    /// itself both of them, too, as protocol and port zero.
    fn claims(rule: &Rule) -> Vec<(IpAddr, u8, u16)> {
        let protocols: &[u8] = match rule.target() {
            RuleTarget::Ports {
                protocol: Protocol::Tcp,
                ..
            } => &[6],
            RuleTarget::Ports {
                protocol: Protocol::Udp,
                ..
            } => &[17],
            RuleTarget::Ports {
                protocol: Protocol::Both,
                ..
            }
            | RuleTarget::OneToOne => &[6, 17],
        };
        let ports: Vec<u16> = match rule.target() {
            RuleTarget::Ports { public, .. } => (public.first()..=public.last()).collect(),
            RuleTarget::OneToOne => (1..60).filter(|port| *port != MANAGEMENT_PORT).collect(),
        };
        let whole = [(rule.public_ip(), 0, 0), (rule.internal_ip(), 0, 0)];
        let whole = whole
            .into_iter()
            .filter(|_| rule.target() == RuleTarget::OneToOne);
        protocols
            .iter()
            .flat_map(|protocol| {
                ports
                    .iter()
                    .map(|port| (rule.public_ip(), *protocol, *port))
            })
            .chain(whole)
            .collect()
    }

    #[test]
    fn thousands_of_rules_are_looked_at_once_each() {
        // Quadratic or worse, this would not end today.
        let rule = |n: u16, port: u16| {
            let target = RuleTarget::Ports {
                public: PortRange::one(port).expect("a port"),
                internal: port,
                protocol: Protocol::Tcp,
            };
            let (public, internal) = ("203.0.113.20", "10.1.0.10");
            Rule::new(
                &format!("r{n}"),
                public.parse().expect("an address"),
                internal.parse().expect("an address"),
                target,
                Vec::new(),
                "",
            )
            .expect("a rule")
        };
        let all: Vec<Rule> = (0..16_000).map(|n| rule(n, 1000 + n)).collect();
        let set = RuleSet::new(&acme(), all).expect("none overlaps");
        assert_eq!(set.len(), 16_000);
        // And as many that claim the same are told so, up to a bound.
        let same: Vec<Rule> = (0..16_000).map(|n| rule(n, 443)).collect();
        let problems = RuleSet::new(&acme(), same).expect_err("all overlap");
        assert_eq!(problems.len(), OVERLAPS);
    }

    proptest! {
        #[test]
        fn a_set_is_taken_exactly_if_nothing_is_claimed_twice(rules in some_rules()) {
            for rule in rules.iter().flatten() {
                prop_assert!(claims(rule).iter().all(|(.., port)| *port != MANAGEMENT_PORT));
            }
            let rules: Vec<Rule> = rules.into_iter().flatten().collect();
            // What the tenant's networks are seen as is claimed before any rule is there.
            let nat_addresses = acme().nat_addresses.into_iter().map(|address| (address, 0, 0));
            let mut all: Vec<_> = rules.iter().flat_map(claims).chain(nat_addresses).collect();
            let claimed = all.len();
            all.sort();
            all.dedup();
            let result = RuleSet::new(&acme(), rules.clone());
            prop_assert_eq!(result.is_ok(), all.len() == claimed, "{:?}", rules);
            if let Ok(set) = result {
                prop_assert_eq!(set.len(), rules.len());
            }
        }
    }
}
