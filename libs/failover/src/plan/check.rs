//! Checks of a plan: names, networks, gateways, routes, rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Allow, Plan, PlanErrors, PlanNetwork, PlanProblem, allow_at,
    file::{File, FileNetwork},
};
use crate::{
    IpPrefix, NetworkContext, Rule, RuleSet, TenantContext,
    rule::{DESCRIPTION, NAME, is_description, is_host, is_name},
    rules::{list, shown},
};

/// The parts of a plan that could be parsed.
pub(super) struct Draft {
    /// The keys of the plan itself; its lists are empty.
    pub(super) head: Option<File>,
    pub(super) networks: Vec<FileNetwork>,
    /// Names of the networks that could not be parsed, empty for one without a name. They count as
    /// part of the plan, so that a mistake is reported once.
    pub(super) unread: Vec<String>,
    pub(super) allow: Vec<Allow>,
    pub(super) rules: Vec<Rule>,
}

impl From<File> for Draft {
    fn from(mut file: File) -> Self {
        Self {
            networks: std::mem::take(&mut file.network),
            unread: Vec::new(),
            allow: std::mem::take(&mut file.allow),
            rules: std::mem::take(&mut file.rule),
            head: Some(file),
        }
    }
}

impl TryFrom<File> for Plan {
    type Error = PlanErrors;

    fn try_from(file: File) -> Result<Self, PlanErrors> {
        Draft::from(file).check(None, Problems::default())
    }
}

/// Problems, in the order in which they are found.
#[derive(Default)]
pub(super) struct Problems(Vec<PlanProblem>);

impl Problems {
    pub(super) fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.0.push(PlanProblem {
            at: at.into(),
            message: message.into(),
        });
    }

    pub(super) fn into_errors(self) -> PlanErrors {
        PlanErrors { problems: self.0 }
    }
}

impl Draft {
    /// Checks the draft. Without a tenant, only what holds for any tenant.
    pub(super) fn check(
        self,
        tenant: Option<&TenantContext>,
        mut problems: Problems,
    ) -> Result<Plan, PlanErrors> {
        let is_tenants = self.check_head(tenant, &mut problems);
        // In a plan of another tenant everything is wrong: that is reported once.
        let asked = tenant.filter(|_| is_tenants);
        let networks = self.check_networks(asked, is_tenants, &mut problems);
        self.check_allow(&networks, &mut problems);
        let rules = match asked {
            None => RuleSet::for_any_tenant(self.rules),
            Some(tenant) => {
                let inside = |name: &str| {
                    let read = networks.iter().any(|network| network.name == name);
                    read || is_among(&self.unread, name)
                };
                RuleSet::new(&tenant_in_failover(tenant, &networks, inside), self.rules)
            }
        };
        match (rules, self.head) {
            (Ok(rules), Some(head)) if problems.0.is_empty() => Ok(Plan {
                name: head.name,
                tenant: head.tenant,
                description: head.description,
                networks,
                allow: self.allow,
                rules,
            }),
            (rules, _) => {
                for problem in rules.err().into_iter().flatten() {
                    problems.add(format!("rule {:?}", problem.rule), problem.message);
                }
                Err(problems.into_errors())
            }
        }
    }

    /// Checks name, description and tenant. False if the plan is of another tenant.
    fn check_head(&self, tenant: Option<&TenantContext>, problems: &mut Problems) -> bool {
        let Some(head) = &self.head else {
            return true;
        };
        if !is_name(&head.name) {
            problems.add(
                "name",
                format!(
                    "{:?}: write 1 to {NAME} characters of a to z, 0 to 9, '.', '_' and '-'",
                    head.name
                ),
            );
        }
        if !is_description(&head.description) {
            problems.add(
                "description",
                format!("write at most {DESCRIPTION} characters, on one line"),
            );
        }
        let Some(tenant) = tenant.filter(|tenant| tenant.name != head.tenant) else {
            return true;
        };
        problems.add(
            "tenant",
            format!(
                "the plan is for tenant {:?} and was given for {:?}: give it for {:?}, or write \
                 tenant = {:?}",
                head.tenant, tenant.name, head.tenant, tenant.name
            ),
        );
        false
    }

    fn check_networks(
        &self,
        tenant: Option<&TenantContext>,
        is_tenants: bool,
        problems: &mut Problems,
    ) -> Vec<PlanNetwork> {
        if self.networks.is_empty() && self.unread.is_empty() {
            let which = tenant.map_or_else(String::new, |tenant| {
                format!("; the tenant's networks are: {}", names(tenant))
            });
            problems.add(
                "network",
                format!("the plan has none: write a [[network]] for each that fails over{which}"),
            );
        }
        let mut networks: Vec<PlanNetwork> = Vec::new();
        for file in &self.networks {
            let at = format!("network {:?}", file.name);
            if networks.iter().any(|network| network.name == file.name) {
                problems.add(at, "is in the plan twice: remove one of the two");
                continue;
            }
            let of = |tenant: &'_ TenantContext| {
                let mut all = tenant.networks.iter();
                all.find(|network| network.name == file.name).cloned()
            };
            let configured = tenant.and_then(of);
            if let Some(tenant) = tenant.filter(|_| configured.is_none()) {
                let what = if tenant.other_networks.contains(&file.name) {
                    "belongs to another tenant: remove it"
                } else {
                    "does not exist"
                };
                problems.add(
                    &at,
                    format!(
                        "{what}; tenant {:?}'s networks are: {}",
                        tenant.name,
                        names(tenant)
                    ),
                );
            }
            // The gateway of a network that does not exist is not known.
            let must = is_tenants && tenant.is_some() == configured.is_some();
            let (gateway_v4, gateway_v6) = gateways(
                file,
                configured.as_ref(),
                must,
                &format!("{at}: gateway"),
                problems,
            );
            networks.push(PlanNetwork {
                name: file.name.clone(),
                gateway_v4,
                gateway_v6,
                internet: file.internet,
                router_advertisements: file.router_advertisements,
            });
        }
        networks
    }

    fn check_allow(&self, networks: &[PlanNetwork], problems: &mut Problems) {
        for (place, allow) in self.allow.iter().enumerate() {
            let at = allow_at(&allow.from, &allow.to);
            if allow.from == allow.to {
                problems.add(
                    &at,
                    "machines of one network reach each other without it: remove it",
                );
            }
            for (key, name) in [("from", &allow.from), ("to", &allow.to)] {
                let read = networks.iter().any(|network| network.name == *name);
                // The same name twice is reported once.
                let reported = key == "to" && allow.from == allow.to;
                if !read && !reported && !is_among(&self.unread, name) {
                    let there: Vec<&str> = networks.iter().map(PlanNetwork::name).collect();
                    problems.add(
                        format!("{at}: {key}"),
                        format!(
                            "network {name:?} is not in the plan: add a [[network]] with name = \
                             {name:?}, or use one of its networks: {}",
                            shown(&there)
                        ),
                    );
                }
            }
            let before = self.allow.iter().take(place).find(|before| {
                let mut directions = before.directions();
                directions.any(|direction| allow.directions().any(|ours| ours == direction))
            });
            if let Some(before) = before {
                let both = if before.both && !(before.from == allow.from && before.to == allow.to) {
                    ", which has both = true"
                } else {
                    ""
                };
                problems.add(
                    &at,
                    format!(
                        "is covered by allow {:?} to {:?}{both}: remove one of the two",
                        before.from, before.to
                    ),
                );
            }
        }
    }
}

/// The gateways of a network: those in the plan, or else the configured ones.
fn gateways(
    file: &FileNetwork,
    configured: Option<&NetworkContext>,
    must: bool,
    at: &str,
    problems: &mut Problems,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    const WRITE: &str = "write the address that the network's machines use as their router";
    let (mut v4, mut v6) = (None, None);
    let mut given = Vec::new();
    for text in file.gateway.iter().flatten() {
        match text.parse::<IpAddr>() {
            Ok(address) => given.push(address),
            Err(_) => problems.add(
                at,
                format!(
                    "{text:?} is not an address: write an address without a length, such as {}",
                    example(configured)
                ),
            ),
        }
    }
    let left_out = file.gateway.is_none();
    if let Some(network) = configured.filter(|_| left_out) {
        given.clone_from(&network.gateways);
    }
    if must && given.is_empty() && file.gateway.as_ref().is_none_or(Vec::is_empty) {
        let but = match configured {
            Some(network) if !left_out && !network.gateways.is_empty() => {
                ", or omit the key to use the configured gateway"
            }
            Some(_) if left_out => ", because none is configured either",
            Some(_) | None => "",
        };
        problems.add(
            at,
            format!(
                "the network has none: {WRITE}, such as gateway = [\"{}\"]{but}",
                example(configured)
            ),
        );
    }
    for address in given {
        if let Some(why) = no_gateway(address, configured.map(|n| n.prefixes.as_slice())) {
            problems.add(at, format!("{address} {why}: {WRITE}"));
        }
        let other = match address {
            IpAddr::V4(address) => v4.replace(address).map(IpAddr::V4),
            IpAddr::V6(address) => v6.replace(address).map(IpAddr::V6),
        };
        if let Some(other) = other {
            problems.add(
                at,
                format!(
                    "{other} and {address} are of one address family: write at most one IPv4 and \
                     one IPv6 address"
                ),
            );
        }
    }
    (v4, v6)
}

/// Why an address cannot be the gateway of a network with these prefixes, if they are known.
fn no_gateway(address: IpAddr, prefixes: Option<&[IpPrefix]>) -> Option<String> {
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return None;
    }
    if !is_host(address) {
        return Some("is not a host address".to_owned());
    }
    let prefixes = prefixes?;
    match prefixes.iter().find(|prefix| prefix.contains(address)) {
        None => Some(format!(
            "is in none of the network's prefixes, {}",
            list(prefixes)
        )),
        Some(prefix) if prefix.is_network_or_broadcast(address) => {
            Some(format!("is the network or broadcast address of {prefix}"))
        }
        Some(_) => None,
    }
}

/// An example of a gateway address, for messages.
fn example(network: Option<&NetworkContext>) -> IpAddr {
    let prefixes = network.map_or(&[][..], |network| &network.prefixes);
    let first = |prefix: &IpPrefix| match prefix.address() {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).saturating_add(1).into()),
    };
    // The address itself, for a prefix that is one address.
    let mut examples = prefixes
        .iter()
        .map(first)
        .chain(prefixes.iter().map(IpPrefix::address));
    let fallback = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
    examples
        .find(|address| no_gateway(*address, Some(prefixes)).is_none())
        .unwrap_or(fallback)
}

/// The tenant during a failover of these networks; networks that are not `inside` are excluded.
pub(super) fn tenant_in_failover(
    tenant: &TenantContext,
    networks: &[PlanNetwork],
    inside: impl Fn(&str) -> bool,
) -> TenantContext {
    let mut tenant = tenant.clone();
    for network in &mut tenant.networks {
        network.excluded = !inside(&network.name);
        let mut all = networks.iter();
        if let Some(plan) = all.find(|plan| plan.name == network.name) {
            network.gateways = plan.gateways().collect();
        }
    }
    tenant
}

/// Whether a network is among those that could not be parsed.
fn is_among(unread: &[String], name: &str) -> bool {
    unread
        .iter()
        .any(|unread| unread.is_empty() || unread == name)
}

fn names(tenant: &TenantContext) -> String {
    let names: Vec<&str> = tenant.networks.iter().map(|n| n.name.as_str()).collect();
    shown(&names)
}
