//! Failover plans: what fails over as a whole, in which order, and how it is reached then.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Rule, kind, mapping::require_network, yes};
use crate::{
    Condition, Conflict, Mode, Nothing, Object, Observed, Refusal, State,
    draft::Draft,
    name::{
        DESCRIPTION_RULE, FOREIGN_RULE, LIST, LIST_RULE, NAME_RULE, is_description,
        is_foreign_name, is_name,
    },
    object::Rules,
    refusal::Problems,
    schema::{AddressText, ForeignName, HookText, Line, ObjectName, PathText},
    tenant_view::TenantView,
};

/// Delay after a machine unless configured, seconds.
const DEFAULT_DELAY_SECONDS: u32 = 60;
/// Longest delay after a machine, seconds: a day.
const MAX_DELAY_SECONDS: u32 = 86_400;
/// Time that a health check may take unless configured, seconds, and at most.
const DEFAULT_TIMEOUT_SECONDS: u32 = 300;
const MAX_TIMEOUT_SECONDS: u32 = 3600;
/// Port of HTTP unless configured.
const DEFAULT_HTTP_PORT: u16 = 80;
/// Longest path of a health check, characters.
const MAX_PATH_CHARS: usize = 1024;
/// Most machines of a plan.
const MAX_VMS: usize = 1000;

/// A plan for full site failover. It is data; a run of it takes a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The tenant's networks that fail over, at least one. Their default gateways, and the policies
    /// between them, are those of the tenant.
    #[schema(min_items = 1, max_items = 256)]
    pub networks: Vec<PlanNetwork>,
    /// The machines, at least one, in the order in which they start.
    #[schema(min_items = 1, max_items = 1000)]
    pub vms: Vec<PlanVm>,
    /// The tenant's public IP rules that are in force during the failover.
    #[serde(default)]
    #[schema(value_type = Vec<ObjectName>, max_items = 256)]
    pub rules: Vec<String>,
    /// Commands before and after a run.
    #[serde(default)]
    pub hooks: Hooks,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// A network that a plan fails over, with its settings in full failover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanNetwork {
    /// The tenant's network.
    #[schema(value_type = ObjectName)]
    pub name: String,
    /// Whether its machines reach the internet; only for networks with internet access. The
    /// default is the network's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet: Option<bool>,
    /// Whether the appliance sends router advertisements in the network.
    #[serde(default = "yes")]
    pub router_advertisements: bool,
}

/// A machine of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanVm {
    /// The machine, as the tenant's platform names it.
    #[schema(value_type = ForeignName)]
    pub name: String,
    /// Its addresses, as far as they are known.
    #[serde(default)]
    #[schema(value_type = Vec<AddressText>, max_items = 256)]
    pub addresses: Vec<IpAddr>,
    /// Time until the next machine starts, seconds, at most a day.
    #[serde(default = "default_delay")]
    #[schema(maximum = 86400)]
    pub delay_seconds: u32,
    /// Group of machines that start together: those of a group follow each other in the list, and
    /// the machine or group after them waits for the longest of their delays. A machine without a
    /// group starts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ObjectName>)]
    pub group: Option<String>,
    /// How a run finds out that the machine serves; it needs an address. The machine or group after
    /// it waits for that, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

/// A probe of a machine after its start, repeated until one of the machine's addresses answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "probe", rename_all = "kebab-case", deny_unknown_fields)]
pub enum HealthCheck {
    /// An ICMP echo request is answered.
    Ping {
        /// Longest time until an answer, seconds, 1 to 3600.
        #[serde(default = "default_timeout")]
        #[schema(minimum = 1, maximum = 3600)]
        timeout_seconds: u32,
    },
    /// A TCP connection is accepted.
    Tcp {
        /// The port, 1 to 65535.
        #[schema(minimum = 1, maximum = 65535)]
        port: u16,
        /// Longest time until a connection, seconds, 1 to 3600.
        #[serde(default = "default_timeout")]
        #[schema(minimum = 1, maximum = 3600)]
        timeout_seconds: u32,
    },
    /// A request by HTTP is answered with a status below 400.
    Http {
        /// The port, 1 to 65535.
        #[serde(default = "default_http_port")]
        #[schema(minimum = 1, maximum = 65535)]
        port: u16,
        /// The path, which begins with a slash.
        #[serde(default = "default_path")]
        #[schema(value_type = PathText)]
        path: String,
        /// Longest time until such an answer, seconds, 1 to 3600.
        #[serde(default = "default_timeout")]
        #[schema(minimum = 1, maximum = 3600)]
        timeout_seconds: u32,
    },
}

impl HealthCheck {
    fn check(&self, problems: &mut Problems) {
        let (Self::Ping { timeout_seconds }
        | Self::Tcp {
            timeout_seconds, ..
        }
        | Self::Http {
            timeout_seconds, ..
        }) = self;
        problems.require(
            (1..=MAX_TIMEOUT_SECONDS).contains(timeout_seconds),
            "vms.health.timeout_seconds",
            timeout_seconds,
            format_args!("write 1 to {MAX_TIMEOUT_SECONDS} seconds"),
        );
        if let Self::Tcp { port, .. } | Self::Http { port, .. } = self {
            problems.require(*port != 0, "vms.health.port", port, "write 1 to 65535");
        }
        if let Self::Http { path, .. } = self {
            problems.require(
                is_path(path),
                "vms.health.path",
                path,
                format_args!(
                    "write a path such as /health, without spaces, of at most {MAX_PATH_CHARS} \
                     characters"
                ),
            );
        }
    }
}

/// Commands before and after a run. Each is the name of an executable in the hook folder of the
/// director, or the `https://` address of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Before the first machine starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HookText>)]
    pub before: Option<String>,
    /// After the last machine has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HookText>)]
    pub after: Option<String>,
}

const fn default_delay() -> u32 {
    DEFAULT_DELAY_SECONDS
}

const fn default_timeout() -> u32 {
    DEFAULT_TIMEOUT_SECONDS
}

const fn default_http_port() -> u16 {
    DEFAULT_HTTP_PORT
}

fn default_path() -> String {
    "/".to_owned()
}

fn is_path(path: &str) -> bool {
    path.len() <= MAX_PATH_CHARS
        && path.starts_with('/')
        && path.bytes().all(|b| b.is_ascii_graphic())
}

kind!(Plan, "plan", "plans", Tenant, plans, Nothing);

impl Rules for Plan {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            !self.networks.is_empty(),
            "networks",
            "",
            "the plan has none: write the networks that fail over",
        );
        problems.require(
            (1..=MAX_VMS).contains(&self.vms.len()),
            "vms",
            self.vms.len(),
            format_args!("write 1 to {MAX_VMS} machines"),
        );
        for (field, count) in [
            ("networks", self.networks.len()),
            ("rules", self.rules.len()),
        ] {
            problems.require(count <= LIST, field, count, LIST_RULE);
        }
        let mut seen = BTreeSet::new();
        for network in &self.networks {
            let name = &network.name;
            problems.require(is_name(name), "networks.name", name, NAME_RULE);
            let text = format_args!("{name:?} is listed twice: write each network once");
            problems.require(seen.insert(name), "networks.name", name, text);
        }
        let mut seen = BTreeSet::new();
        for vm in &self.vms {
            let (name, delay) = (&vm.name, vm.delay_seconds);
            let count = vm.addresses.len();
            problems.require(count <= LIST, "vms.addresses", count, LIST_RULE);
            problems.require(is_foreign_name(name), "vms.name", name, FOREIGN_RULE);
            let text = format_args!("{name:?} is listed twice: write each machine once");
            problems.require(seen.insert(name), "vms.name", name, text);
            let text = format_args!("write 0 to {MAX_DELAY_SECONDS} seconds for {name:?}");
            problems.require(delay <= MAX_DELAY_SECONDS, "vms.delay_seconds", delay, text);
            if let Some(group) = &vm.group {
                problems.require(is_name(group), "vms.group", group, NAME_RULE);
            }
            if let Some(health) = &vm.health {
                let text = format_args!("write an address of {name:?}, which the check probes");
                problems.require(count > 0, "vms.addresses", "", text);
                health.check(problems);
            }
        }
        for group in split_groups(&self.vms) {
            let text = "its machines do not follow each other: list them one after the other";
            problems.add("vms.group", group, format_args!("{group:?}: {text}"));
        }
        let mut seen = BTreeSet::new();
        for rule in &self.rules {
            problems.require(is_name(rule), "rules", rule, NAME_RULE);
            let text = format_args!("{rule:?} is listed twice: write each rule once");
            problems.require(seen.insert(rule), "rules", rule, text);
        }
        for (field, hook) in [
            ("hooks.before", &self.hooks.before),
            ("hooks.after", &self.hooks.after),
        ] {
            if let Some(hook) = hook {
                problems.require(
                    is_hook(hook),
                    field,
                    without_password(hook),
                    "write the name of an executable in the hook folder (a to z, 0 to 9, '.', '_' \
                     and '-'), or an address that begins with https:// and has no user and \
                     password",
                );
            }
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let tenant = object.tenant();
        check_networks(object, state)?;
        refuse_vms_of_others(object, state)?;
        let missing: Vec<_> = object
            .spec
            .rules
            .iter()
            .filter(|rule| state.rules.get(tenant, rule).is_none())
            .map(|rule| Conflict::new::<Rule>(rule, "name", rule).of(tenant))
            .collect();
        Refusal::of_conflicts(missing, |first| {
            format!(
                "rules: {:?} does not exist: create the rule first",
                first.name
            )
        })
    }

    fn put(
        _: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        Self::check_against(new, draft.state)?;
        let tenant = new.tenant().to_owned();
        let mut view = TenantView::of(draft.state, &tenant);
        view.plans.insert(new.name().to_owned(), new.spec.clone());
        view.check_plan(new.name(), &new.spec).map_err(|text| {
            let networks: Vec<_> = new.spec.networks.iter().map(|n| n.name.as_str()).collect();
            let value = networks.join(", ");
            let conflict = Conflict::new::<Self>(new.name(), "networks", value).of(&tenant);
            Refusal::conflict(text, vec![conflict])
        })?;
        let vms = &new.spec.vms;
        let mut groups = vms.chunk_by(|a, b| a.group.is_some() && a.group == b.group);
        let last = groups.next_back().unwrap_or_default();
        if last
            .iter()
            .any(|vm| vm.delay_seconds != DEFAULT_DELAY_SECONDS)
        {
            draft.warn("the delay of the last machine has no effect: no machine starts after it");
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let (tenant, name) = (old.tenant(), old.name());
        let mode = &draft.tenant(tenant)?.status.mode;
        if matches!(mode, Mode::Full { plan } if plan == name) {
            return draft.must_be_idle(tenant, "remove its plan");
        }
        Ok(())
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        let problems = problems_of_a_run(object, observed);
        let (reason, text) = match problems.first() {
            None => (
                "Checked",
                "nothing that the director knows prevents a run".to_owned(),
            ),
            Some((reason, _)) => {
                let texts: Vec<_> = problems.iter().map(|(_, text)| text.as_str()).collect();
                (*reason, texts.join("; "))
            }
        };
        vec![Condition::new(
            object,
            "Valid",
            problems.is_empty(),
            reason,
            text,
        )]
    }
}

/// Why a plan could not run, as far as the director knows: reasons and texts.
fn problems_of_a_run(
    plan: &Object<Plan>,
    observed: &mut Observed<'_>,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let tenant = plan.tenant();
    if let Some(of) = observed.state.tenants.get("", tenant) {
        if !of.spec.enabled {
            found.push(("TenantDisabled", "the tenant is disabled".to_owned()));
        }
        if let Some(end) = of.spec.lease_ends.filter(|end| *end <= observed.now) {
            found.push(("LeaseEnded", format!("the tenant's lease ended at {end}")));
        }
    }
    for wanted in &plan.spec.networks {
        let network = observed.state.networks.get(tenant, &wanted.name);
        if network.is_none_or(|network| network.spec.gateways.is_empty()) {
            let text = format!("network {:?} has no default gateway", wanted.name);
            found.push(("NoDefaultGateway", text));
        }
    }
    if let Err(text) = observed.view(tenant).check_plan(plan.name(), &plan.spec) {
        found.push(("Contradiction", text));
    }
    found
}

/// Groups whose machines do not follow each other.
fn split_groups(vms: &[PlanVm]) -> BTreeSet<&str> {
    let runs = vms.chunk_by(|a, b| a.group == b.group);
    let groups = runs.filter_map(|run| run.first()?.group.as_deref());
    let mut seen = BTreeSet::new();
    groups.filter(|group| !seen.insert(*group)).collect()
}

/// The text of a hook for a refusal, which logs and screens show: without a user and password.
fn without_password(hook: &str) -> String {
    let parts = hook.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        Some(format!("{scheme}://(hidden){}", &rest[at..]))
    });
    parts.unwrap_or_else(|| hook.to_owned())
}

fn is_hook(hook: &str) -> bool {
    let is_plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    let is_file = !hook.starts_with('.') && !hook.is_empty() && hook.chars().all(is_plain);
    let is_webhook = hook.strip_prefix("https://").is_some_and(|rest| {
        // A password in the address would be read by all who may read the plan.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !authority.is_empty()
            && !authority.contains('@')
            && rest.chars().all(|c| c.is_ascii_graphic())
    });
    hook.len() <= 1024 && (is_file || is_webhook)
}

/// Checks that the networks exist, have a default gateway, and may have internet access.
fn check_networks(plan: &Object<Plan>, state: &State) -> Result<(), Refusal> {
    let tenant = plan.tenant();
    for wanted in &plan.spec.networks {
        let name = &wanted.name;
        let network = require_network(state, tenant, "networks", name)?;
        let conflict =
            |field, value| vec![Conflict::new::<super::Network>(name, field, value).of(tenant)];
        if network.spec.gateways.is_empty() {
            return Err(Refusal::conflict(
                format!(
                    "plan {:?}: network {name:?} has no default gateway: set `gateways` of the \
                     network to the address that its machines use as their router",
                    plan.name()
                ),
                conflict("gateways", ""),
            ));
        }
        if wanted.internet == Some(true) && !network.status.internet {
            return Err(Refusal::conflict(
                format!(
                    "plan {:?}: network {name:?} is one without internet access: omit `internet`, \
                     or use a network with internet access",
                    plan.name()
                ),
                conflict("internet", "false"),
            ));
        }
    }
    Ok(())
}

/// Refuses machines that another plan of the tenant has, and addresses of other machines there: the
/// prefixes of a tenant's networks do not overlap, so that an address is in one network.
fn refuse_vms_of_others(plan: &Object<Plan>, state: &State) -> Result<(), Refusal> {
    let tenant = plan.tenant();
    let vms = plan.spec.vms.iter();
    let names: BTreeSet<_> = vms.clone().map(|vm| vm.name.as_str()).collect();
    let addresses: BTreeSet<_> = vms.flat_map(|vm| &vm.addresses).collect();
    let mut conflicts = Vec::new();
    let mut texts = Vec::new();
    for other in state.plans.of_tenant(tenant) {
        if other.name() == plan.name() {
            continue;
        }
        let of = |value: &dyn std::fmt::Display| {
            Conflict::new::<Plan>(other.name(), "vms", value).of(tenant)
        };
        for vm in &other.spec.vms {
            if names.contains(vm.name.as_str()) {
                conflicts.push(of(&vm.name));
                texts.push(format!(
                    "machine {:?} is in plan {:?}: a machine is in one plan at most",
                    vm.name,
                    other.name()
                ));
            }
            for address in vm.addresses.iter().filter(|a| addresses.contains(a)) {
                conflicts.push(of(address));
                texts.push(format!(
                    "machine {:?} in plan {:?} has {address}: an address is that of one machine",
                    vm.name,
                    other.name()
                ));
            }
        }
    }
    let text = texts.first().cloned().unwrap_or_default();
    Refusal::of_conflicts(conflicts, |_| format!("plan {:?}: {text}", plan.name()))
}
