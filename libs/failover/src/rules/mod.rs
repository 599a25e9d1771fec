//! The public IP rules of one tenant, checked as a whole.

mod check;
#[cfg(test)]
mod tests;

pub(crate) use check::{list, shown};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::{IpPrefix, Rule, RuleTarget};
use check::{mapped_already, no_such_rule, overlaps, second_one_to_one, tenant_problems};

/// The facts that rules and plans are checked against: a tenant's networks and public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantContext {
    pub name: String,
    /// Public addresses that are allocated to the tenant.
    pub allocation: Vec<IpPrefix>,
    /// Source addresses of its networks' internet access. A 1:1 rule cannot have one of them.
    pub nat_addresses: Vec<IpAddr>,
    /// Addresses that no rule may use, although they may be allocated; empty where they are not
    /// known.
    pub reserved: Vec<ReservedAddress>,
    pub networks: Vec<NetworkContext>,
    /// Names of other tenants' networks, for better messages; empty where this tenant must not
    /// learn of them.
    pub other_networks: Vec<String>,
}

/// An address that no rule may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedAddress {
    pub address: IpAddr,
    /// Its description, as in "the appliance's own address on eth0".
    pub owner: String,
}

/// A network of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkContext {
    pub name: String,
    pub prefixes: Vec<IpPrefix>,
    /// Gateway addresses, which the appliance takes over during a full failover.
    pub gateways: Vec<IpAddr>,
    /// Whether the network is not in the failover plan: no rule may lead there.
    pub excluded: bool,
}

/// One step of a change of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleChange {
    /// Add this rule.
    Add(Rule),
    /// Replace the rule of the same name.
    Replace(Rule),
    /// Remove the rule of this name.
    Remove(String),
}

/// The error of a rule, for this tenant or among other rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleProblem {
    /// The rule's name.
    pub rule: String,
    /// The error and the remedy.
    pub message: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {:?}: {}", self.rule, self.message)
    }
}

/// The rules of one tenant: no two claim the same ports, and the tenant may have each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    rules: BTreeMap<String, Rule>,
}

impl RuleSet {
    /// Checks rules as a whole.
    ///
    /// # Errors
    /// All problems, sorted by rule.
    pub fn new(tenant: &TenantContext, rules: Vec<Rule>) -> Result<Self, Vec<RuleProblem>> {
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        Self::default().apply(tenant, changes)
    }

    /// The set after a change. This set stays as it is.
    ///
    /// # Errors
    /// All problems of the change, sorted by rule. Nothing is changed then.
    pub fn apply(
        &self,
        tenant: &TenantContext,
        changes: Vec<RuleChange>,
    ) -> Result<Self, Vec<RuleProblem>> {
        self.apply_for(Some(tenant), changes)
    }

    /// A set of rules of any tenant: only overlaps are checked.
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
        // First remove rules, so that others can take their ports in the same change.
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
                problem(name, no_such_rule(&self.rules));
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
                        "a rule of this name exists already: {there}; remove it first, or use \
                         another name"
                    ),
                );
                continue;
            }
            touched.insert(name.clone());
            rules.insert(name, rule.clone());
        }
        for name in &touched {
            if let (Some(tenant), Some(rule)) = (tenant, rules.get(name)) {
                for message in tenant_problems(rule, tenant) {
                    problem(name, message);
                }
            }
        }
        for (rule, other, claim) in overlaps(&rules, &touched) {
            problem(
                rule.name(),
                format!(
                    "{claim} is already used by rule {:?} ({other}): change one of the two",
                    other.name()
                ),
            );
        }
        // Stored rules are read without this check: `active_rules` leaves such rules out.
        if tenant.is_some() {
            for (rule, other) in second_one_to_one(&rules, &touched) {
                problem(rule.name(), mapped_already(rule, other));
            }
        }
        if problems.is_empty() {
            return Ok(Self { rules });
        }
        problems.sort();
        Err(problems)
    }

    /// The rules that the tenant may have as it is now, and the problems of the others. A public
    /// address may have been allocated elsewhere since a rule was made.
    #[must_use]
    pub fn active_rules(&self, tenant: &TenantContext) -> (Vec<&Rule>, Vec<RuleProblem>) {
        let (mut rules, mut problems) = (Vec::new(), Vec::new());
        let mut mapped: BTreeMap<IpAddr, &Rule> = BTreeMap::new();
        for rule in self.rules.values() {
            let mut messages = tenant_problems(rule, tenant);
            if messages.is_empty() && rule.target() == RuleTarget::OneToOne {
                match mapped.get(&rule.internal_ip()) {
                    Some(other) => messages.push(mapped_already(rule, other)),
                    None => drop(mapped.insert(rule.internal_ip(), rule)),
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

    /// The rules, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// The rule of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.rules.get(name)
    }

    /// Number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}
