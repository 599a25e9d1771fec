//! A failover plan: which networks of a tenant fail over whole, and what they get.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer, ValueDeserializer},
};

use crate::{
    IpPrefix, NetworkContext, Rule, RuleChange, RuleProblem, RuleSet, TenantContext,
    rule::{self, DESCRIPTION, NAME, is_description, is_host, is_name},
    rules::{list, shown},
};

/// The network part of a failover plan, checked whole. Gateways that were left out are filled in, so that a plan
/// that is kept does not change with the configuration. One that is read again holds together; whether it still is
/// what its tenant has, [`check`](Plan::check) says.
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

/// A network that fails over whole. It has a gateway, of one family at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNetwork {
    name: String,
    gateway_v4: Option<Ipv4Addr>,
    gateway_v6: Option<Ipv6Addr>,
    internet: bool,
    router_advertisements: bool,
}

/// Routing from one network of the plan to another; what is not allowed is not routed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[allow]]")]
pub struct Allow {
    from: String,
    to: String,
    #[serde(default = "yes")]
    both: bool,
}

/// One thing wrong in a plan: where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanProblem {
    /// The key or the line, as `network "web": gateway`.
    pub at: String,
    /// What is wrong, and what to write.
    pub message: String,
}

/// Everything that is wrong in a plan, in the order of the file; one thing at least. Nothing of the plan is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(problems))]
pub struct PlanErrors {
    problems: Vec<PlanProblem>,
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan: {}: {}", self.at, self.message)
    }
}

impl PlanErrors {
    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &PlanProblem> {
        self.problems.iter()
    }
}

impl PlanNetwork {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 gateway, which the appliance becomes.
    #[must_use]
    pub const fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.gateway_v4
    }

    /// Its IPv6 gateway, likewise; may be link-local.
    #[must_use]
    pub const fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.gateway_v6
    }

    /// The gateways of both families.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.gateway_v4.map(IpAddr::V4);
        v4.into_iter().chain(self.gateway_v6.map(IpAddr::V6))
    }

    /// Whether its machines reach the internet, by source NAT.
    #[must_use]
    pub const fn internet(&self) -> bool {
        self.internet
    }

    /// Whether the appliance sends router advertisements there.
    #[must_use]
    pub const fn router_advertisements(&self) -> bool {
        self.router_advertisements
    }
}

/// What of it is to be seen: `gateway 10.1.0.1, internet, no router advertisements`.
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
    /// Where packets are from.
    #[must_use]
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Where they are to.
    #[must_use]
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Whether the other direction is allowed, too. Without it answers need an [`Allow`] of their own.
    #[must_use]
    pub const fn both(&self) -> bool {
        self.both
    }

    /// The directions: from and to.
    pub fn directions(&self) -> impl Iterator<Item = (&str, &str)> {
        let back = self.both.then_some((self.to.as_str(), self.from.as_str()));
        [(self.from.as_str(), self.to.as_str())]
            .into_iter()
            .chain(back)
    }
}

impl Plan {
    /// Reads a plan and checks it against the tenant, as the configuration has it.
    ///
    /// # Errors
    /// Everything that is wrong; a text that is no TOML is told with the line where it stops to be.
    pub fn parse(text: &str, tenant: &TenantContext) -> Result<Self, PlanErrors> {
        let mut problems = Problems::default();
        match DeTable::parse(text) {
            Ok(table) => {
                let draft = Reader { text }.draft(table, &mut problems);
                draft.check(Some(tenant), problems)
            }
            Err(error) => {
                problems.add(line(text, error.span()), one_line(error.message()));
                Err(problems.errors())
            }
        }
    }

    /// Checks a plan that was kept against the tenant as the configuration has it now.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self, tenant: &TenantContext) -> Result<(), PlanErrors> {
        let draft = Draft::from(File::from(self.clone()));
        draft.check(Some(tenant), Problems::default()).map(|_| ())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose networks it is about.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// For people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Its networks, as written; one at least.
    #[must_use]
    pub fn networks(&self) -> &[PlanNetwork] {
        &self.networks
    }

    /// A network by its name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&PlanNetwork> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// What is routed between its networks, as written.
    #[must_use]
    pub fn allow(&self) -> &[Allow] {
        &self.allow
    }

    /// Whether packets of one network are routed to another; those of a network to itself are not, they need not
    /// be.
    #[must_use]
    pub fn allows(&self, from: &str, to: &str) -> bool {
        let mut directions = self.allow.iter().flat_map(Allow::directions);
        directions.any(|direction| direction == (from, to))
    }

    /// Its public IP rules.
    #[must_use]
    pub const fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// The same plan with other rules, which were checked against the tenant as it is [`tenant_in_failover`](Self::tenant_in_failover) it.
    #[must_use]
    pub fn with_rules(self, rules: RuleSet) -> Self {
        Self { rules, ..self }
    }

    /// The plan after a change of its rules, all of it. This one stays as it is.
    ///
    /// # Errors
    /// Every problem of the change, by rule: then none of it is done.
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

    /// The rules that are in force while the tenant is as it is now, and why others are not.
    #[must_use]
    pub fn active_rules(&self, tenant: &TenantContext) -> (Vec<&Rule>, Vec<RuleProblem>) {
        self.rules.active_rules(&self.tenant_in_failover(tenant))
    }

    /// What is different in `new`, a line each for a person: description, networks, routing, rules. Empty exactly
    /// if a failover by the one does what it does by the other: the order of tables does nothing.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.description != new.description {
            lines.push("description: changed".to_owned());
        }
        let network = |n: &PlanNetwork| (format!("network {:?}", n.name), n.clone());
        changed(
            self.networks.iter().map(network).collect(),
            new.networks.iter().map(network).collect(),
            ToString::to_string,
            &mut lines,
        );
        let directions = |plan: &Self| -> BTreeMap<String, ()> {
            let all = plan.allow.iter().flat_map(Allow::directions);
            all.map(|(from, to)| (allow_at(from, to), ())).collect()
        };
        changed(
            directions(self),
            directions(new),
            |()| String::new(),
            &mut lines,
        );
        let rule = |rule: &Rule| (format!("rule {:?}", rule.name()), rule.clone());
        changed(
            self.rules.iter().map(rule).collect(),
            new.rules.iter().map(rule).collect(),
            whole,
            &mut lines,
        );
        lines
    }

    /// The tenant as it is in a failover by this plan: with the plan's gateways, its other networks left out.
    #[must_use]
    pub fn tenant_in_failover(&self, tenant: &TenantContext) -> TenantContext {
        during(tenant, &self.networks, |name| self.network(name).is_some())
    }
}

/// A plan as it is written down.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    tenant: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    network: Vec<FileNetwork>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<Allow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rule: Vec<Rule>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[network]]")]
struct FileNetwork {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<Vec<String>>,
    #[serde(default)]
    internet: bool,
    #[serde(default = "yes")]
    router_advertisements: bool,
}

const fn yes() -> bool {
    true
}

impl From<Plan> for File {
    fn from(plan: Plan) -> Self {
        let networks = plan.networks.into_iter().map(|network| FileNetwork {
            gateway: Some(network.gateways().map(|g| g.to_string()).collect()),
            internet: network.internet,
            router_advertisements: network.router_advertisements,
            name: network.name,
        });
        Self {
            name: plan.name,
            tenant: plan.tenant,
            description: plan.description,
            network: networks.collect(),
            allow: plan.allow,
            rule: plan.rules.iter().cloned().collect(),
        }
    }
}

impl TryFrom<File> for Plan {
    type Error = PlanErrors;

    fn try_from(file: File) -> Result<Self, PlanErrors> {
        Draft::from(file).check(None, Problems::default())
    }
}

/// What could be read of a plan.
struct Draft {
    /// The keys of the plan itself; nothing in its lists.
    head: Option<File>,
    networks: Vec<FileNetwork>,
    /// Names of the networks that could not be read; one without a name has an empty one. They are in the plan all
    /// the same, so that one mistake is told once.
    unread: Vec<String>,
    allow: Vec<Allow>,
    rules: Vec<Rule>,
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

/// Problems as they are found.
#[derive(Default)]
struct Problems(Vec<PlanProblem>);

impl Problems {
    fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.0.push(PlanProblem {
            at: at.into(),
            message: message.into(),
        });
    }

    fn errors(self) -> PlanErrors {
        PlanErrors { problems: self.0 }
    }
}

/// Reads each table by itself, so that one that cannot be read does not hide the others.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn draft(&self, mut table: Spanned<DeTable<'_>>, problems: &mut Problems) -> Draft {
        let mut take = |key: &'static str| Some((key, table.get_mut().remove(key)?));
        let lists = [take("network"), take("allow"), take("rule")];
        let head = File::deserialize(Deserializer::from(table));
        let head = head.map_err(|error| self.problem(problems, "", &error));
        let mut draft = Draft {
            head: head.ok(),
            networks: Vec::new(),
            unread: Vec::new(),
            allow: Vec::new(),
            rules: Vec::new(),
        };
        for (key, value) in lists.into_iter().flatten() {
            let at = format!("{key}: {}", line(self.text, Some(value.span())));
            let DeValue::Array(array) = value.into_inner() else {
                problems.add(
                    at,
                    format!("write [[{key}]], in double brackets: there may be more than one"),
                );
                if key == "network" {
                    draft.unread.push(String::new());
                }
                continue;
            };
            for value in array {
                self.table(key, value, &mut draft, problems);
            }
        }
        draft
    }

    /// One table of a list.
    fn table(
        &self,
        key: &'static str,
        value: Spanned<DeValue<'_>>,
        draft: &mut Draft,
        problems: &mut Problems,
    ) {
        let said = |key: &str| {
            let value = value.get_ref().get(key)?.get_ref();
            value.as_str().map(ToOwned::to_owned)
        };
        let name = said("name");
        let at = match (key, &name, said("from"), said("to")) {
            ("allow", _, Some(from), Some(to)) => allow_at(&from, &to) + ": ",
            ("network" | "rule", Some(name), ..) => format!("{key} {name:?}: "),
            _ => format!("{key}: "),
        };
        match key {
            "network" => match self.read(&at, value, problems) {
                Some(network) => draft.networks.push(network),
                None => draft.unread.push(name.unwrap_or_default()),
            },
            "allow" => draft.allow.extend(self.read::<Allow>(&at, value, problems)),
            _ => {
                let Some(file) = self.read::<rule::File>(&at, value, problems) else {
                    return;
                };
                let at = format!("rule {:?}", file.name);
                match Rule::try_from(file) {
                    Ok(rule) => draft.rules.push(rule),
                    Err(error) => {
                        let text = error.to_string();
                        let message = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text);
                        problems.add(&at, message);
                    }
                }
            }
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        at: &str,
        value: Spanned<DeValue<'_>>,
        problems: &mut Problems,
    ) -> Option<T> {
        T::deserialize(ValueDeserializer::from(value))
            .map_err(|error| self.problem(problems, at, &error))
            .ok()
    }

    fn problem(&self, problems: &mut Problems, at: &str, error: &toml::de::Error) {
        let at = format!("{at}{}", line(self.text, error.span()));
        // Without the text, which it was not given, it is the message and, on a line of its own, the key.
        let text = error.to_string();
        let key = text.strip_prefix(error.message()).unwrap_or_default();
        let key = key.trim().strip_prefix("in `");
        match key.and_then(|key| key.strip_suffix('`')) {
            Some(key) => problems.add(
                format!("{at}: {}", one_line(key)),
                one_line(error.message()),
            ),
            None => problems.add(at, one_line(error.message())),
        }
    }
}

impl Draft {
    /// Without a tenant only what holds of any.
    fn check(
        self,
        tenant: Option<&TenantContext>,
        mut problems: Problems,
    ) -> Result<Plan, PlanErrors> {
        let theirs = self.check_head(tenant, &mut problems);
        // Of another tenant's plan nothing is right, which need not be told.
        let asked = tenant.filter(|_| theirs);
        let networks = self.check_networks(asked, theirs, &mut problems);
        self.check_allow(&networks, &mut problems);
        let rules = match asked {
            None => RuleSet::for_any_tenant(self.rules),
            Some(tenant) => {
                let inside = |name: &str| {
                    let read = networks.iter().any(|network| network.name == name);
                    read || is_among(&self.unread, name)
                };
                RuleSet::new(&during(tenant, &networks, inside), self.rules)
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
                Err(problems.errors())
            }
        }
    }

    /// Whether the plan is that tenant's.
    fn check_head(&self, tenant: Option<&TenantContext>, problems: &mut Problems) -> bool {
        let Some(head) = &self.head else {
            return true;
        };
        if !is_name(&head.name) {
            problems.add(
                "name",
                format!(
                    "{:?}: write 1 to {NAME} of a to z, 0 to 9, '.', '_' and '-'",
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
                "this is a plan of tenant {:?} and was given for {:?}: give it for {:?}, or write tenant = {:?}",
                head.tenant, tenant.name, head.tenant, tenant.name
            ),
        );
        false
    }

    fn check_networks(
        &self,
        tenant: Option<&TenantContext>,
        theirs: bool,
        problems: &mut Problems,
    ) -> Vec<PlanNetwork> {
        if self.networks.is_empty() && self.unread.is_empty() {
            let which = tenant.map_or_else(String::new, |tenant| format!(", of {}", names(tenant)));
            problems.add(
                "network",
                format!("there is none: write a [[network]] for each that fails over{which}"),
            );
        }
        let mut networks: Vec<PlanNetwork> = Vec::new();
        for file in &self.networks {
            let at = format!("network {:?}", file.name);
            if networks.iter().any(|network| network.name == file.name) {
                problems.add(at, "is there twice: remove one of the two");
                continue;
            }
            let of = |tenant: &'_ TenantContext| {
                let mut all = tenant.networks.iter();
                all.find(|network| network.name == file.name).cloned()
            };
            let configured = tenant.and_then(of);
            if let Some(tenant) = tenant.filter(|_| configured.is_none()) {
                let what = if tenant.other_networks.contains(&file.name) {
                    "is another tenant's: remove it"
                } else {
                    "there is none of this name"
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
            // Of a network that is not there, nobody knows the gateway.
            let must = theirs && tenant.is_some() == configured.is_some();
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
                    "machines of one network reach each other without: remove it",
                );
            }
            for (key, name) in [("from", &allow.from), ("to", &allow.to)] {
                let read = networks.iter().any(|network| network.name == *name);
                // Of the same name twice, once is told.
                let told = key == "to" && allow.from == allow.to;
                if !read && !told && !is_among(&self.unread, name) {
                    let there: Vec<&str> = networks.iter().map(PlanNetwork::name).collect();
                    problems.add(
                        format!("{at}: {key}"),
                        format!(
                            "network {name:?} is not in the plan: add a [[network]] with name = {name:?}, or name one \
                             that is: {}",
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
                        "is in allow {:?} to {:?} already{both}: remove one of the two",
                        before.from, before.to
                    ),
                );
            }
        }
    }
}

/// The gateways that a network gets: those written, or else the configuration's.
fn gateways(
    file: &FileNetwork,
    configured: Option<&NetworkContext>,
    must: bool,
    at: &str,
    problems: &mut Problems,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    const WRITE: &str = "write the address that its machines have as their router";
    let (mut v4, mut v6) = (None, None);
    let mut given = Vec::new();
    for text in file.gateway.iter().flatten() {
        match text.parse::<IpAddr>() {
            Ok(address) => given.push(address),
            Err(_) => problems.add(
                at,
                format!(
                    "{text:?} is not an address: write one, without a length, such as {}",
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
                ", or leave the key out for the configuration's"
            }
            Some(_) if left_out => ", as the configuration has none either",
            Some(_) | None => "",
        };
        problems.add(
            at,
            format!(
                "there is none: {WRITE}, such as gateway = [\"{}\"]{but}",
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
                    "{other} and {address}: write at most one of IPv4 and one of IPv6: remove one of the two"
                ),
            );
        }
    }
    (v4, v6)
}

/// Why an address cannot be the gateway of a network with these prefixes, as far as they are known.
fn no_gateway(address: IpAddr, prefixes: Option<&[IpPrefix]>) -> Option<String> {
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return None;
    }
    if !is_host(address) {
        return Some("is not the address of a host".to_owned());
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

/// What has gone, come and changed, a line each.
fn changed<T: PartialEq>(
    old: BTreeMap<String, T>,
    new: BTreeMap<String, T>,
    text: impl Fn(&T) -> String,
    lines: &mut Vec<String>,
) {
    let mut line = |at: &str, what: &str, text: String| {
        let colon = if text.is_empty() { "" } else { ": " };
        lines.push(format!("{at}: {what}{colon}{text}"));
    };
    for (at, old) in old.iter().filter(|(at, _)| !new.contains_key(*at)) {
        line(at, "removed", text(old));
    }
    for (at, new) in &new {
        match old.get(at) {
            None => line(at, "added", text(new)),
            Some(old) if old != new => {
                line(at, "changed", format!("{}, was {}", text(new), text(old)));
            }
            Some(_) => {}
        }
    }
}

/// Everything of a rule but its name.
fn whole(rule: &Rule) -> String {
    let mut text = rule.to_string();
    if !rule.allow().is_empty() {
        text += &format!(" for {}", list(rule.allow()));
    }
    if !rule.description().is_empty() {
        text += &format!(" ({})", rule.description());
    }
    text
}

/// An address that could be the gateway.
fn example(network: Option<&NetworkContext>) -> IpAddr {
    let prefixes = network.map_or(&[][..], |network| &network.prefixes);
    let first = |prefix: &IpPrefix| match prefix.address() {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).saturating_add(1).into()),
    };
    // Of a prefix that is one address, that.
    let mut examples = prefixes
        .iter()
        .map(first)
        .chain(prefixes.iter().map(IpPrefix::address));
    let fallback = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
    examples
        .find(|address| no_gateway(*address, Some(prefixes)).is_none())
        .unwrap_or(fallback)
}

/// The tenant in a failover of these networks.
fn during(
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

/// Whether a network is among those that could not be read.
fn is_among(unread: &[String], name: &str) -> bool {
    unread
        .iter()
        .any(|unread| unread.is_empty() || unread == name)
}

fn names(tenant: &TenantContext) -> String {
    let names: Vec<&str> = tenant.networks.iter().map(|n| n.name.as_str()).collect();
    shown(&names)
}

fn allow_at(from: &str, to: &str) -> String {
    format!("allow {from:?} to {to:?}")
}

/// `line 7`, counted from 1.
fn line(text: &str, span: Option<Range<usize>>) -> String {
    let start = span.map_or(0, |span| span.start);
    let before = text.bytes().take(start);
    format!("line {}", before.filter(|byte| *byte == b'\n').count() + 1)
}

/// Others' messages may quote what was written.
fn one_line(message: &str) -> String {
    message.replace('\n', " ").replace(char::is_control, "?")
}

fn lines(problems: &[PlanProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acme() -> TenantContext {
        let net = |text: &str| text.parse().expect("a prefix");
        let network = |name: &str, prefixes: &[&str], gateways: &[&str]| NetworkContext {
            name: name.to_owned(),
            prefixes: prefixes.iter().map(|text| net(text)).collect(),
            gateways: gateways
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect(),
            excluded: false,
        };
        TenantContext {
            name: "acme".to_owned(),
            allocation: vec![net("203.0.113.16/28"), net("2001:db8:f::/64")],
            nat_addresses: Vec::new(),
            reserved: Vec::new(),
            networks: vec![
                network(
                    "web",
                    &["10.1.0.0/24", "2001:db8:1::/64"],
                    &["10.1.0.1", "fe80::1"],
                ),
                network("db", &["10.2.0.0/24"], &[]),
                network("lab", &["2001:db8:3::/64"], &[]),
            ],
            other_networks: vec!["hr".to_owned()],
        }
    }

    const HEAD: &str = "name = \"acme-dr\"\ntenant = \"acme\"\n";
    const WEB: &str = "[[network]]\nname = \"web\"\n";
    const DB: &str = "[[network]]\nname = \"db\"\ngateway = [\"10.2.0.1\"]\n";

    fn parse(text: &str) -> Result<Plan, PlanErrors> {
        Plan::parse(text, &acme())
    }

    /// A plan of these tables.
    fn plan(tables: &[&str]) -> Result<Plan, PlanErrors> {
        parse(&(HEAD.to_owned() + &tables.concat()))
    }

    fn told(result: Result<Plan, PlanErrors>) -> Vec<String> {
        let errors = result.expect_err("to be refused");
        let lines: Vec<String> = errors.to_string().lines().map(ToOwned::to_owned).collect();
        assert_eq!(lines.len(), errors.iter().count());
        lines
            .iter()
            .map(|line| {
                line.strip_prefix("plan: ")
                    .expect("its beginning")
                    .to_owned()
            })
            .collect()
    }

    fn rule(name: &str, port: u16, to: &str) -> String {
        format!(
            "[[rule]]\nname = \"{name}\"\npublic_ip = \"203.0.113.20\"\npublic_port = {port}\ninternal_ip = \"{to}\"\n"
        )
    }

    #[test]
    fn a_whole_plan_is_read() {
        let plan = parse(
            r#"
name = "acme-dr"
tenant = "acme"
description = "all of it"

[[network]]
name = "web"
gateway = ["10.1.0.254", "2001:db8:1::1"]
internet = true
router_advertisements = false

[[network]]
name = "db"
gateway = ["10.2.0.1"]

[[network]]
name = "lab"
gateway = ["fe80::2"]

[[allow]]
from = "web"
to = "db"

[[allow]]
from = "lab"
to = "web"
both = false

[[rule]]
name = "https"
public_ip = "203.0.113.20"
public_port = 443
internal_ip = "10.1.0.10"
"#,
        )
        .expect("a plan");
        assert_eq!(
            (plan.name(), plan.tenant(), plan.description()),
            ("acme-dr", "acme", "all of it")
        );
        let [web, db, lab] = plan.networks() else {
            panic!("{plan:?}");
        };
        let gateways = |network: &PlanNetwork| {
            let all: Vec<String> = network.gateways().map(|g| g.to_string()).collect();
            all.join(" ")
        };
        assert_eq!(gateways(web), "10.1.0.254 2001:db8:1::1");
        assert_eq!(web.gateway_v4(), Some(Ipv4Addr::new(10, 1, 0, 254)));
        assert!(web.internet() && !web.router_advertisements());
        assert_eq!((gateways(db).as_str(), db.gateway_v6()), ("10.2.0.1", None));
        assert!(!db.internet() && db.router_advertisements());
        assert_eq!((lab.name(), gateways(lab).as_str()), ("lab", "fe80::2"));
        assert_eq!(plan.network("db"), Some(db));
        assert_eq!(plan.network("hr"), None);
        for (from, to, allowed) in [
            ("web", "db", true),
            ("db", "web", true),
            ("lab", "web", true),
            ("web", "lab", false),
            ("db", "lab", false),
            ("web", "web", false),
        ] {
            assert_eq!(plan.allows(from, to), allowed, "{from} to {to}");
        }
        let [first, second] = plan.allow() else {
            panic!("{plan:?}");
        };
        assert!(first.both() && !second.both());
        assert_eq!((second.from(), second.to()), ("lab", "web"));
        assert_eq!(plan.rules().len(), 1);
        assert_eq!(plan.check(&acme()), Ok(()));
    }

    #[test]
    fn gateways_left_out_are_the_configuration_s() {
        let first = plan(&[WEB]).expect("a plan");
        let web = first.network("web").expect("the network");
        assert_eq!(web.gateway_v4(), Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!(
            web.gateway_v6().map(|g| g.to_string()),
            Some("fe80::1".to_owned())
        );
        // What is written is all there is: no IPv6 gateway, though there is an IPv6 prefix.
        let second = plan(&[WEB, "gateway = [\"10.1.0.2\"]\n"]).expect("a plan");
        let web = second.network("web").expect("the network");
        assert_eq!(
            web.gateways().collect::<Vec<_>>(),
            [IpAddr::from([10, 1, 0, 2])]
        );
        // A plan that is kept keeps them.
        let mut tenant = acme();
        tenant.networks[0].gateways = vec![IpAddr::from([10, 1, 0, 3])];
        assert_eq!(first.check(&tenant), Ok(()));
        let kept = serde_json::to_string(&first).expect("a value");
        assert_eq!(serde_json::from_str::<Plan>(&kept).ok(), Some(first));
    }

    #[test]
    fn another_tenant_s_plan_is_refused() {
        let text = HEAD.replace("acme\"", "umbrella\"") + WEB + &rule("a", 80, "10.9.0.1");
        assert_eq!(
            told(parse(&text)),
            [
                "tenant: this is a plan of tenant \"umbrella\" and was given for \"acme\": give it for \"umbrella\", or write tenant = \"acme\""
            ]
        );
    }

    #[test]
    fn networks_are_the_tenant_s_each_once_and_one_at_least() {
        assert_eq!(
            told(plan(&[])),
            [
                "network: there is none: write a [[network]] for each that fails over, of web, db, lab"
            ]
        );
        assert_eq!(
            told(plan(&[
                WEB,
                "[[network]]\nname = \"wbe\"\n",
                "[[network]]\nname = \"hr\"\n",
                WEB
            ])),
            [
                "network \"wbe\": there is none of this name; tenant \"acme\"'s networks are: web, db, lab",
                "network \"hr\": is another tenant's: remove it; tenant \"acme\"'s networks are: web, db, lab",
                "network \"web\": is there twice: remove one of the two",
            ]
        );
    }

    #[test]
    fn a_gateway_is_an_address_of_its_network() {
        let write = "write the address that its machines have as their router";
        for (gateway, message) in [
            (
                "[\"10.1.0\"]",
                "\"10.1.0\" is not an address: write one, without a length, such as 10.1.0.1"
                    .to_owned(),
            ),
            (
                "[\"10.1.0.1/24\"]",
                "\"10.1.0.1/24\" is not an address: write one, without a length, such as 10.1.0.1"
                    .to_owned(),
            ),
            (
                "[\"10.2.0.1\"]",
                format!("10.2.0.1 is in none of the network's prefixes, 10.1.0.0/24, 2001:db8:1::/64: {write}"),
            ),
            (
                "[\"2001:db8:2::1\"]",
                format!("2001:db8:2::1 is in none of the network's prefixes, 10.1.0.0/24, 2001:db8:1::/64: {write}"),
            ),
            (
                "[\"10.1.0.0\"]",
                format!("10.1.0.0 is the network or broadcast address of 10.1.0.0/24: {write}"),
            ),
            (
                "[\"10.1.0.255\"]",
                format!("10.1.0.255 is the network or broadcast address of 10.1.0.0/24: {write}"),
            ),
            (
                "[\"169.254.0.1\"]",
                format!("169.254.0.1 is not the address of a host: {write}"),
            ),
            (
                "[\"ff02::1\"]",
                format!("ff02::1 is not the address of a host: {write}"),
            ),
            (
                "[\"10.1.0.1\", \"10.1.0.2\"]",
                "10.1.0.1 and 10.1.0.2: write at most one of IPv4 and one of IPv6: remove one of the two"
                    .to_owned(),
            ),
            (
                "[\"fe80::1\", \"2001:db8:1::1\"]",
                "fe80::1 and 2001:db8:1::1: write at most one of IPv4 and one of IPv6: remove one of the two"
                    .to_owned(),
            ),
            (
                "[]",
                format!("there is none: {write}, such as gateway = [\"10.1.0.1\"], or leave the key out for the configuration's"),
            ),
        ] {
            assert_eq!(
                told(plan(&[WEB, "gateway = ", gateway, "\n"])),
                [format!("network \"web\": gateway: {message}")],
                "{gateway}"
            );
        }
        for gateway in ["[\"fe80::1\"]", "[\"10.1.0.1\"]", "[\"2001:db8:1::1\"]"] {
            assert!(
                plan(&[WEB, "gateway = ", gateway, "\n"]).is_ok(),
                "{gateway}"
            );
        }
    }

    #[test]
    fn a_network_without_any_gateway_is_refused() {
        let write = "there is none: write the address that its machines have as their router";
        assert_eq!(
            told(plan(&[
                "[[network]]\nname = \"db\"\n",
                "[[network]]\nname = \"lab\"\ngateway = []\n"
            ])),
            [
                format!(
                    "network \"db\": gateway: {write}, such as gateway = [\"10.2.0.1\"], as the configuration has none either"
                ),
                format!("network \"lab\": gateway: {write}, such as gateway = [\"2001:db8:3::1\"]"),
            ]
        );
    }

    #[test]
    fn routing_is_between_two_networks_of_the_plan_and_told_once() {
        let allow = |from: &str, to: &str, more: &str| {
            format!("[[allow]]\nfrom = \"{from}\"\nto = \"{to}\"\n{more}")
        };
        for (tables, message) in [
            (
                vec![allow("web", "lab", "")],
                "allow \"web\" to \"lab\": to: network \"lab\" is not in the plan: add a [[network]] with name = \"lab\", or name one that is: web, db",
            ),
            (
                vec![allow("hr", "web", "")],
                "allow \"hr\" to \"web\": from: network \"hr\" is not in the plan: add a [[network]] with name = \"hr\", or name one that is: web, db",
            ),
            (
                vec![allow("web", "web", "")],
                "allow \"web\" to \"web\": machines of one network reach each other without: remove it",
            ),
            (
                vec![allow("web", "db", ""), allow("web", "db", "both = false\n")],
                "allow \"web\" to \"db\": is in allow \"web\" to \"db\" already: remove one of the two",
            ),
            (
                vec![allow("web", "db", ""), allow("db", "web", "")],
                "allow \"db\" to \"web\": is in allow \"web\" to \"db\" already, which has both = true: remove one of the two",
            ),
            (
                vec![allow("web", "db", "both = false\n"), allow("db", "web", "")],
                "allow \"db\" to \"web\": is in allow \"web\" to \"db\" already: remove one of the two",
            ),
        ] {
            let mut all = vec![WEB, DB];
            all.extend(tables.iter().map(String::as_str));
            assert_eq!(told(plan(&all)), [message]);
        }
        let one = allow("web", "db", "both = false\n");
        let back = allow("db", "web", "both = false\n");
        let plan = plan(&[WEB, DB, &one, &back]).expect("a plan");
        assert!(plan.allows("web", "db") && plan.allows("db", "web"));
    }

    #[test]
    fn a_rule_leads_to_a_machine_of_a_network_of_the_plan() {
        assert_eq!(
            told(plan(&[
                WEB,
                "gateway = [\"10.1.0.7\"]\n",
                &rule("a", 80, "10.2.0.10"),
                &rule("b", 81, "10.1.0.7"),
                &rule("c", 82, "10.9.0.1"),
                &rule("d", 83, "10.1.0.255"),
                &rule("e", 22, "10.1.0.10"),
                &rule("f", 84, "10.1.0.1"),
                &rule("g", 84, "10.1.0.10"),
                &rule("g", 85, "10.1.0.10"),
                &rule("h", 86, "10.1.0.10").replace("203.0.113.20", "198.51.100.1"),
            ])),
            [
                "rule \"e\": public_port: 22 is refused: the appliance is managed over it; give another public port, such as 2222, and internal_port = 22 where the machine's is meant",
                "rule \"a\": internal_ip: 10.2.0.10 is in network \"db\", which the plan leaves out: add a [[network]] with name = \"db\" to the plan, or lead the rule to a machine of one that is in it",
                "rule \"b\": internal_ip: 10.1.0.7 is the gateway of network \"web\", which the appliance is in a full failover",
                "rule \"c\": internal_ip: 10.9.0.1 is in no network of tenant \"acme\"; its networks are: web (10.1.0.0/24, 2001:db8:1::/64), db (10.2.0.0/24), lab (2001:db8:3::/64)",
                "rule \"d\": internal_ip: 10.1.0.255 is the network or broadcast address of 10.1.0.0/24 in network \"web\", which no machine has",
                "rule \"g\": 203.0.113.20 tcp 84 is rule \"f\"'s already (203.0.113.20:84/tcp -> 10.1.0.1:84)",
                "rule \"g\": there is a rule of this name already: 203.0.113.20:84/tcp -> 10.1.0.10:84; remove it first, or give another name",
                "rule \"h\": public_ip: 198.51.100.1 is not one of tenant \"acme\"'s public addresses: 203.0.113.16/28, 2001:db8:f::/64",
            ]
        );
        // The configuration's gateway is a machine like others where the plan's is another.
        let moved = [
            WEB,
            "gateway = [\"10.1.0.7\"]\n",
            &rule("a", 80, "10.1.0.1"),
        ];
        assert!(plan(&moved).is_ok());
        let kept = [WEB, &rule("a", 80, "10.1.0.1")];
        assert_eq!(
            told(plan(&kept)),
            [
                "rule \"a\": internal_ip: 10.1.0.1 is the gateway of network \"web\", which the appliance is in a full failover"
            ]
        );
    }

    #[test]
    fn name_and_description_are_for_one_line() {
        for name in ["", "Acme", "a b", &"x".repeat(65)] {
            assert_eq!(
                told(parse(&(HEAD.replace("acme-dr", name) + WEB))),
                [format!(
                    "name: {name:?}: write 1 to 64 of a to z, 0 to 9, '.', '_' and '-'"
                )]
            );
        }
        assert_eq!(
            told(plan(&["description = \"two\\nlines\"\n", WEB])),
            ["description: write at most 256 characters, on one line"]
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        for (text, at) in [
            ("name = \"a\"\ntenant = acme\n", "line 2: "),
            ("name = \"a\"\n\n[[network]\n", "line 3: "),
            ("name = \"a\"\nname = \"b\"\n", "line 2: duplicate key"),
            ("name = \"a", "line 1: "),
        ] {
            let told = told(parse(text));
            assert!(told.len() == 1 && told[0].starts_with(at), "{told:?}");
        }
    }

    #[test]
    fn a_key_that_nobody_asked_for_is_told_with_its_line_and_hides_nothing_else() {
        assert_eq!(
            told(parse(
                "nmae = \"acme-dr\"\ntenant = \"acme\"\n\
                 [[network]]\nname = \"web\"\ngateways = [\"10.1.0.1\"]\n\
                 [[network]]\nname = \"db\"\ninternet = \"yes\"\n\
                 [[network]]\nname = \"lba\"\n\
                 [[allow]]\nfrom = \"web\"\nto = \"db\"\nback = true\n\
                 [[allow]]\nfrom = \"web\"\n\
                 [[allow]]\nfrom = \"db\"\nto = \"web\"\n\
                 [[rule]]\nname = \"https\"\npublic_ip = \"203.0.113\"\npublic_port = 443\ninternal_ip = \"10.1.0.10\"\n\
                 [[rule]]\nname = \"mail\"\npublic_ip = \"203.0.113.20\"\npublic_port = 70000\ninternal_ip = \"10.1.0.10\"\n\
                 [[rule]]\npublic_ip = \"203.0.113.20\"\none_to_one = true\ninternal_ip = \"10.1.0.10\"\n\
                 [[rule]]\nname = \"both\"\npublic_ip = \"203.0.113.20\"\none_to_one = true\ninternal_ip = \"2001:db8:1::10\"\n\
                 [[rule]]\nname = \"good\"\npublic_ip = \"203.0.113.20\"\none_to_one = true\ninternal_ip = \"10.2.0.10\"\n"
            )),
            [
                "line 1: unknown field `nmae`, expected one of `name`, `tenant`, `description`, `network`, `allow`, `rule`",
                "network \"web\": line 5: unknown field `gateways`, expected one of `name`, `gateway`, `internet`, `router_advertisements`",
                "network \"db\": line 8: internet: invalid type: string \"yes\", expected a boolean",
                "allow \"web\" to \"db\": line 14: unknown field `back`, expected one of `from`, `to`, `both`",
                "allow: line 15: missing field `to`",
                "rule \"https\": line 22: public_ip: \"203.0.113\" is not an address: write one such as 203.0.113.20 or 2001:db8::1",
                "rule \"mail\": line 28: public_port: \"70000\" is not a port: write one such as 443, or a range such as 8000-8100, of 1 to 65535",
                "rule: line 30: missing field `name`",
                "rule \"both\": 203.0.113.20 and 2001:db8:1::10: a rule does not lead from one address family to the other",
                "network \"lba\": there is none of this name; tenant \"acme\"'s networks are: web, db, lab",
            ]
        );
        for (table, message) in [
            (
                "[network]\nname = \"web\"\n",
                "network: line 3: write [[network]], in double brackets: there may be more than one",
            ),
            (
                "network = [5]\n",
                "network: line 3: invalid type: integer `5`, expected a table, such as [[network]]",
            ),
        ] {
            assert_eq!(told(plan(&[table])), [message]);
        }
    }

    #[test]
    fn what_is_quoted_stays_on_its_line() {
        assert_eq!(
            told(plan(&[
                "\"a\\nb\\u0007\" = 1\n",
                WEB,
                "[[network]]\nname = \"x\\ny\"\n"
            ])),
            [
                "line 3: unknown field `a b?`, expected one of `name`, `tenant`, `description`, `network`, `allow`, `rule`",
                "network \"x\\ny\": there is none of this name; tenant \"acme\"'s networks are: web, db, lab",
            ]
        );
    }

    #[test]
    fn rules_change_under_the_plan_s_gateways_and_networks() {
        let before = plan(&[
            WEB,
            "gateway = [\"10.1.0.7\"]\n",
            &rule("a", 80, "10.1.0.10"),
        ])
        .expect("a plan");
        let line = |name: &str, line: &str| Rule::from_line(name, line).expect("a rule");
        let refused = before.apply(
            &acme(),
            vec![
                RuleChange::Add(line("b", "203.0.113.20:81/tcp -> 10.1.0.7")),
                RuleChange::Add(line("c", "203.0.113.20:82/tcp -> 10.2.0.10")),
            ],
        );
        let problems = refused.expect_err("to be refused");
        assert!(
            problems[0]
                .message
                .contains("is the gateway of network \"web\"")
        );
        assert!(problems[1].message.contains("which the plan leaves out"));
        let add = RuleChange::Add(line("b", "203.0.113.20:81/tcp -> 10.1.0.1"));
        let after = before.apply(&acme(), vec![add]).expect("a change");
        assert_eq!((before.rules().len(), after.rules().len()), (1, 2));
        assert_eq!(after.check(&acme()), Ok(()));
        assert_eq!(after.with_rules(before.rules().clone()), before);
    }

    #[test]
    fn every_change_of_a_plan_is_told_on_a_line() {
        let old = plan(&[
            "description = \"one\"\n",
            WEB,
            DB,
            "[[allow]]\nfrom = \"db\"\nto = \"web\"\n",
            &rule("a", 80, "10.1.0.10"),
            &rule("b", 81, "10.1.0.10"),
        ])
        .expect("a plan");
        let new = plan(&[
            "description = \"two\"\n",
            WEB,
            "gateway = [\"10.1.0.7\"]\ninternet = true\n",
            "[[network]]\nname = \"lab\"\ngateway = [\"2001:db8:3::1\"]\nrouter_advertisements = false\n",
            DB,
            "[[allow]]\nfrom = \"web\"\nto = \"db\"\nboth = false\n",
            &rule("b", 81, "10.1.0.10"),
            "allow = [\"198.51.100.0/24\"]\ndescription = \"the shop\"\n",
            &rule("c", 82, "10.2.0.10"),
        ])
        .expect("a plan");
        assert_eq!(
            old.diff(&new),
            [
                "description: changed",
                "network \"lab\": added: gateway 2001:db8:3::1, no internet, no router advertisements",
                "network \"web\": changed: gateway 10.1.0.7, internet, router advertisements, was gateway 10.1.0.1 and \
                 fe80::1, no internet, router advertisements",
                "allow \"db\" to \"web\": removed",
                "rule \"a\": removed: 203.0.113.20:80/tcp -> 10.1.0.10:80",
                "rule \"b\": changed: 203.0.113.20:81/tcp -> 10.1.0.10:81 for 198.51.100.0/24 (the shop), was \
                 203.0.113.20:81/tcp -> 10.1.0.10:81",
                "rule \"c\": added: 203.0.113.20:82/tcp -> 10.2.0.10:82",
            ]
        );
        let back = new.diff(&old);
        assert_eq!(back.len(), 7);
        assert!(
            back.contains(&"allow \"db\" to \"web\": added".to_owned())
                && back
                    .contains(&"rule \"a\": added: 203.0.113.20:80/tcp -> 10.1.0.10:80".to_owned()),
            "{back:?}"
        );
        // Written otherwise, and the same.
        let allow = |from: &str, to: &str, both: bool| {
            format!("[[allow]]\nfrom = \"{from}\"\nto = \"{to}\"\nboth = {both}\n")
        };
        let one = plan(&[WEB, DB, &allow("db", "web", true)]).expect("a plan");
        let other = [allow("db", "web", false), allow("web", "db", false)].concat();
        let other = plan(&[DB, WEB, &other]).expect("a plan");
        assert_ne!(one, other);
        assert_eq!(one.diff(&other), Vec::<String>::new());
    }

    #[test]
    fn a_plan_that_was_kept_is_checked_again() {
        let kept = plan(&[WEB, DB, &rule("a", 80, "10.1.0.10")]).expect("a plan");
        let mut tenant = acme();
        tenant.networks.remove(1);
        tenant.networks[0].prefixes.remove(1);
        tenant.allocation.clear();
        let errors = kept.check(&tenant).expect_err("to be refused");
        assert_eq!(
            errors.to_string(),
            "plan: network \"db\": there is none of this name; tenant \"acme\"'s networks are: web, lab\n\
             plan: rule \"a\": public_ip: 203.0.113.20 is not one of tenant \"acme\"'s public addresses: none"
        );
        let json = serde_json::to_string(&kept).expect("a value");
        for (from, to, message) in [
            (
                "\"gateway\":[\"10.2.0.1\"],",
                "",
                "plan: network \"db\": gateway: there is none",
            ),
            (
                "10.2.0.1",
                "127.0.0.1",
                "plan: network \"db\": gateway: 127.0.0.1 is not the address",
            ),
            (
                "\"name\":\"db\"",
                "\"name\":\"web\"",
                "plan: network \"web\": is there twice",
            ),
            (
                "\"name\":\"acme-dr\"",
                "\"name\":\"\"",
                "plan: name: \"\": write 1 to 64",
            ),
            (
                "\"public_port\":80",
                "\"public_port\":22",
                "rule \"a\": public_port: 22 is refused",
            ),
            ("\"internet\"", "\"intranet\"", "unknown field `intranet`"),
        ] {
            assert!(json.contains(from), "{json}");
            let error = serde_json::from_str::<Plan>(&json.replace(from, to))
                .expect_err("to be refused")
                .to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    prop_compose! {
        /// The text of a plan, which may name a network that is not in it, or lead a rule to its gateway.
        fn texts()(
            web in 1u8..=20, db in 1u8..=254, flags: [bool; 6], machines in proptest::collection::vec(1u8..=20, 0..6),
            description in "[ -~]{0,20}",
        ) -> String {
            let [six, internet, advertise, second, allow, both] = flags;
            let gateway = if six { format!("10.1.0.{web}\", \"2001:db8:1::{web:x}") } else { format!("10.1.0.{web}") };
            let description = toml::Value::String(description);
            let mut text = format!(
                "{HEAD}description = {description}\n{WEB}gateway = [\"{gateway}\"]\ninternet = {internet}\nrouter_advertisements = {advertise}\n"
            );
            if second {
                text += &format!("[[network]]\nname = \"db\"\ngateway = [\"10.2.0.{db}\"]\n");
            }
            if allow {
                text += &format!("[[allow]]\nfrom = \"db\"\nto = \"web\"\nboth = {both}\n");
            }
            for (place, machine) in machines.into_iter().enumerate() {
                text += &rule(&format!("r{place}"), 1000 + place as u16, &format!("10.1.0.{machine}"));
            }
            text
        }
    }

    proptest! {
        #[test]
        fn file_and_state_give_the_plan_back(text in texts()) {
            let Ok(plan) = parse(&text) else {
                return Ok(());
            };
            let json = serde_json::to_string(&plan).expect("a value");
            prop_assert_eq!(serde_json::from_str::<Plan>(&json).ok(), Some(plan.clone()));
            let toml = toml::to_string(&plan).expect("a table");
            prop_assert_eq!(parse(&toml), Ok(plan.clone()));
            prop_assert_eq!(plan.check(&acme()), Ok(()));
            prop_assert!(plan.networks().iter().all(|network| network.gateways().count() > 0));
            for rule in plan.rules().iter() {
                let internal = rule.internal_ip();
                prop_assert!(plan.networks().iter().all(|n| n.gateways().all(|g| g != internal)));
            }
        }

        #[test]
        fn nothing_changes_exactly_between_a_plan_and_itself(one in texts(), other in texts()) {
            let (Ok(one), Ok(other)) = (parse(&one), parse(&other)) else {
                return Ok(());
            };
            let lines = one.diff(&other);
            prop_assert_eq!(lines.is_empty(), one == other, "{:?}", lines);
            prop_assert!(lines.iter().all(|line| !line.contains('\n')));
            prop_assert_eq!(other.diff(&one).len(), lines.len());
            prop_assert!(one.diff(&one).is_empty());
        }

        #[test]
        fn a_plan_is_taken_exactly_if_nothing_is_wrong_with_it(text in texts()) {
            let allow_without = text.contains("[[allow]]") && !text.contains("\"db\"\ngateway");
            let web = text.split("gateway = [\"").nth(1).and_then(|rest| rest.split('"').next());
            let to_gateway = web.is_some_and(|web| text.contains(&format!("internal_ip = \"{web}\"\n")));
            prop_assert_eq!(parse(&text).is_ok(), !allow_without && !to_gateway, "{}", text);
        }

        #[test]
        fn no_text_panics_and_every_problem_is_a_line(text: String, at in 0usize..400, good in texts()) {
            let at = (0..=at.min(good.len())).rev().find(|at| good.is_char_boundary(*at)).unwrap_or(0);
            for text in [text.clone(), format!("{}{text}{}", &good[..at], &good[at..]), good[..at].to_owned()] {
                if let Err(errors) = parse(&text) {
                    let lines = errors.to_string();
                    prop_assert!(errors.iter().count() > 0);
                    prop_assert_eq!(lines.lines().count(), errors.iter().count(), "{}", lines);
                    prop_assert!(lines.lines().all(|line| line.starts_with("plan: ")), "{}", lines);
                }
            }
        }
    }
}
