//! A failover plan: which networks of a tenant fail over as a whole, with which gateways, routes
//! and public IP rules.
//!
//! ```text
//!   text ─▶ parse: Reader ─▶ Draft ─┬─▶ check ─▶ Plan, or every problem
//!   stored state ─▶ file: File ─────┘
//!   two plans ─▶ diff ─▶ a line for each difference
//! ```

mod check;
mod diff;
mod file;
mod parse;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{Rule, RuleChange, RuleProblem, RuleSet, TenantContext};
use check::{Draft, Problems};
use file::{File, yes};

/// A failover plan that was checked as a whole. Omitted gateways are filled in, so that a stored
/// plan does not change with the configuration. A stored plan is consistent when it is read again;
/// whether it still fits its tenant, [`check`](Plan::check) tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct Plan {
    name: String,
    tenant: String,
    description: String,
    networks: Vec<PlanNetwork>,
    allow: Vec<Allow>,
    rules: RuleSet,
}

/// A network that fails over as a whole. It has a gateway of at least one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNetwork {
    name: String,
    gateway_v4: Option<Ipv4Addr>,
    gateway_v6: Option<Ipv6Addr>,
    internet: bool,
    router_advertisements: bool,
}

/// Permission to route from one network of the plan to another. Nothing else is routed between
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[allow]]")]
pub struct Allow {
    from: String,
    to: String,
    #[serde(default = "yes")]
    both: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanProblem {
    /// The key or the line, as in `network "web": gateway`.
    pub at: String,
    /// The error, and the text to write instead.
    pub message: String,
}

/// All problems of a plan, at least one, in the order of the file. Nothing of the plan is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", join_lines(problems))]
pub struct PlanErrors {
    problems: Vec<PlanProblem>,
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan: {}: {}", self.at, self.message)
    }
}

impl PlanErrors {
    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &PlanProblem> {
        self.problems.iter()
    }
}

impl PlanNetwork {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// IPv4 address of the gateway, which the appliance takes over.
    #[must_use]
    pub const fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.gateway_v4
    }

    /// IPv6 address of the gateway, which the appliance takes over. May be link-local.
    #[must_use]
    pub const fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.gateway_v6
    }

    /// The gateway addresses of both families.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.gateway_v4.map(IpAddr::V4);
        v4.into_iter().chain(self.gateway_v6.map(IpAddr::V6))
    }

    /// Whether the network's machines reach the internet, with source NAT.
    #[must_use]
    pub const fn internet(&self) -> bool {
        self.internet
    }

    /// Whether the appliance sends router advertisements in the network (RFC 4861).
    #[must_use]
    pub const fn router_advertisements(&self) -> bool {
        self.router_advertisements
    }
}

/// For people: `gateway 10.1.0.1, internet, no router advertisements`.
impl fmt::Display for PlanNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateways: Vec<String> = self.gateways().map(|g| g.to_string()).collect();
        let no = |on: bool| if on { "" } else { "no " };
        write!(f, "gateway {}", gateways.join(" and "))?;
        write!(f, ", {}internet", no(self.internet))?;
        write!(
            f,
            ", {}router advertisements",
            no(self.router_advertisements)
        )
    }
}

impl Allow {
    /// Network that packets come from.
    #[must_use]
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Network that packets go to.
    #[must_use]
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Whether the other direction is allowed too. Otherwise replies need an [`Allow`] of their
    /// own.
    #[must_use]
    pub const fn both(&self) -> bool {
        self.both
    }

    /// The allowed directions, as pairs of networks: from, to.
    pub fn directions(&self) -> impl Iterator<Item = (&str, &str)> {
        let back = self.both.then_some((self.to.as_str(), self.from.as_str()));
        [(self.from.as_str(), self.to.as_str())]
            .into_iter()
            .chain(back)
    }
}

impl Plan {
    /// Parses a plan (TOML) and checks it against the configured tenant.
    ///
    /// # Errors
    /// All problems. If the text is not TOML, the only one, with the line of the error.
    pub fn parse(text: &str, tenant: &TenantContext) -> Result<Self, PlanErrors> {
        parse::parse(text, tenant)
    }

    /// Checks a stored plan against the tenant as it is configured now.
    ///
    /// # Errors
    /// All problems.
    pub fn check(&self, tenant: &TenantContext) -> Result<(), PlanErrors> {
        let draft = Draft::from(File::from(self.clone()));
        draft.check(Some(tenant), Problems::default()).map(|_| ())
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of the tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Description, for people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The networks, at least one, in the order of the file.
    #[must_use]
    pub fn networks(&self) -> &[PlanNetwork] {
        &self.networks
    }

    /// The network of this name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&PlanNetwork> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// Permissions to route between the networks, in the order of the file.
    #[must_use]
    pub fn allow(&self) -> &[Allow] {
        &self.allow
    }

    /// Whether packets are routed from one network to another. False for a network and itself:
    /// machines of one network need no router.
    #[must_use]
    pub fn allows(&self, from: &str, to: &str) -> bool {
        let mut directions = self.allow.iter().flat_map(Allow::directions);
        directions.any(|direction| direction == (from, to))
    }

    /// The public IP rules.
    #[must_use]
    pub const fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// The same plan with other rules. They must have been checked against
    /// [`tenant_in_failover`](Self::tenant_in_failover).
    #[must_use]
    pub fn with_rules(self, rules: RuleSet) -> Self {
        Self { rules, ..self }
    }

    /// The plan after a change of its rules. This plan stays as it is.
    ///
    /// # Errors
    /// All problems of the change, sorted by rule. Nothing is changed then.
    pub fn apply(
        &self,
        tenant: &TenantContext,
        changes: Vec<RuleChange>,
    ) -> Result<Self, Vec<RuleProblem>> {
        let rules = self
            .rules
            .apply(&self.tenant_in_failover(tenant), changes)?;
        Ok(self.clone().with_rules(rules))
    }

    /// The rules that the tenant may have as it is now, and the problems of the others, which are
    /// not active.
    #[must_use]
    pub fn active_rules(&self, tenant: &TenantContext) -> (Vec<&Rule>, Vec<RuleProblem>) {
        self.rules.active_rules(&self.tenant_in_failover(tenant))
    }

    /// The tenant during a failover by this plan: with the plan's gateways, and with networks that
    /// are not in the plan excluded.
    #[must_use]
    pub fn tenant_in_failover(&self, tenant: &TenantContext) -> TenantContext {
        check::tenant_in_failover(tenant, &self.networks, |name| self.network(name).is_some())
    }
}

fn allow_at(from: &str, to: &str) -> String {
    format!("allow {from:?} to {to:?}")
}

fn join_lines(problems: &[PlanProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
