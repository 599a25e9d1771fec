//! A tenant's network at the provider: its VLAN, and the tenant's settings for it.

use std::net::IpAddr;

use failover::IpPrefix;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Address, Mapping, Plan, Policy, Rule, kind};
use crate::{
    Conflict, Object, Refusal, State,
    addressing::prefix_problem,
    draft::Draft,
    name::{DESCRIPTION_RULE, is_description},
    object::Rules,
    refusal::Problems,
    schema::{AddressText, Line, PrefixText},
    tenant_view::TenantView,
};

/// Most prefixes of a network.
const MAX_PREFIXES: usize = 16;
/// Most default gateways of a network: one of each address family.
const MAX_GATEWAYS: usize = 2;

/// A tenant's settings for one of its networks at the provider, where replicas are. A subscription
/// makes the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Prefixes of the production network, IPv4 and IPv6.
    #[serde(default)]
    #[schema(value_type = Vec<PrefixText>, max_items = 16)]
    pub prefixes: Vec<IpPrefix>,
    /// Default gateways of its machines, at most one of each address family. In full failover the
    /// appliance takes them over.
    #[serde(default)]
    #[schema(value_type = Vec<AddressText>, max_items = 2)]
    pub gateways: Vec<IpAddr>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// Where a network is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkStatus {
    /// The tenant's subscription that it belongs to.
    pub subscription: String,
    /// The VLAN pool.
    pub pool: String,
    /// Name of the provider's host that the switch belongs to.
    pub host: String,
    /// The virtual switch of the host.
    pub switch: String,
    /// Whether it has internet access in full failover.
    pub internet: bool,
    /// VLAN, 1 to 4094.
    pub vlan: u16,
}

kind!(
    Network,
    "network",
    "networks",
    Tenant,
    networks,
    NetworkStatus
);

impl Rules for Network {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            self.prefixes.len() <= MAX_PREFIXES,
            "prefixes",
            self.prefixes.len(),
            format_args!("write at most {MAX_PREFIXES}"),
        );
        problems.require(
            self.gateways.len() <= MAX_GATEWAYS,
            "gateways",
            self.gateways.len(),
            "write at most one IPv4 and one IPv6 address",
        );
        for (place, prefix) in self.prefixes.iter().enumerate() {
            if let Some(problem) = prefix_problem(prefix) {
                problems.add("prefixes", prefix, problem);
            }
            let before = &self.prefixes[..place];
            if let Some(other) = before.iter().find(|other| other.overlaps(prefix)) {
                problems.add(
                    "prefixes",
                    prefix,
                    format_args!("{prefix} and {other} overlap: write each address once"),
                );
            }
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        refuse_overlap(state, object)?;
        refuse_public_gateways(state, object)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        let (tenant, name) = (new.tenant().to_owned(), new.name().to_owned());
        let Some(old) = old else {
            return Err(by_subscription(&tenant, &name, "made"));
        };
        let is_address =
            (&old.spec.prefixes, &old.spec.gateways) != (&new.spec.prefixes, &new.spec.gateways);
        if !is_address {
            return Ok(());
        }
        draft.must_be_idle(&tenant, "change a network")?;
        refuse_overlap(draft.state, new)?;
        refuse_public_gateways(draft.state, new)?;
        let mut view = TenantView::of(draft.state, &tenant);
        view.set_network(new);
        view.check_gateways(new)?;
        view.check_all(&format!("network {name:?} cannot be changed"))
    }

    fn delete(old: &Object<Self>, _: &mut Draft<'_>) -> Result<(), Refusal> {
        Err(by_subscription(old.tenant(), old.name(), "removed"))
    }
}

fn by_subscription(tenant: &str, name: &str, done: &str) -> Refusal {
    Refusal::conflict(
        format!(
            "network {name:?} of tenant {tenant:?}: networks are {done} by subscriptions: \
             subscribe to a hardware plan, change its number of networks, or end the subscription"
        ),
        vec![Conflict::new::<Network>(name, "subscription", "").of(tenant)],
    )
}

/// Refuses prefixes that overlap those of another network of the tenant: there would be no telling
/// where an address is.
fn refuse_overlap(state: &State, new: &Object<Network>) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for other in state.networks.of_tenant(new.tenant()) {
        if other.name() == new.name() {
            continue;
        }
        for prefix in &other.spec.prefixes {
            if new.spec.prefixes.iter().any(|ours| ours.overlaps(prefix)) {
                let conflict = Conflict::new::<Network>(other.name(), "prefixes", prefix);
                conflicts.push(conflict.of(new.tenant()));
            }
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "network {:?}: a prefix overlaps {} of network {:?}: change one of the two",
            new.name(),
            first.value,
            first.name
        )
    })
}

/// Refuses a default gateway that is a public address of the tenant: the appliance has both.
fn refuse_public_gateways(state: &State, new: &Object<Network>) -> Result<(), Refusal> {
    let tenant = new.tenant();
    let mut conflicts = Vec::new();
    for address in state.addresses.of_tenant(tenant) {
        if let Some(public) = address.status.address
            && new.spec.gateways.contains(&public)
        {
            let conflict = Conflict::new::<Address>(address.name(), "address", public);
            conflicts.push(conflict.of(tenant));
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "network {:?}: gateway {} is the tenant's public address {:?}: write the address of \
             the network's router",
            new.name(),
            first.value,
            first.name
        )
    })
}

/// The tenant's network that has this default gateway.
pub(super) fn with_gateway<'s>(
    state: &'s State,
    tenant: &str,
    address: IpAddr,
) -> Option<&'s Object<Network>> {
    let mut networks = state.networks.of_tenant(tenant);
    networks.find(|network| network.spec.gateways.contains(&address))
}

/// The objects of the tenant that use a network.
pub(crate) fn uses(state: &State, network: &Object<Network>) -> Vec<Conflict> {
    let (tenant, name) = (network.tenant(), network.name());
    let mut uses = Vec::new();
    for mapping in state.mappings.of_tenant(tenant) {
        if mapping.spec.replica == name {
            uses.push(Conflict::new::<Mapping>(mapping.name(), "replica", name).of(tenant));
        }
    }
    for policy in state.policies.of_tenant(tenant) {
        for (field, network) in [("from", &policy.spec.from), ("to", &policy.spec.to)] {
            if network == name {
                uses.push(Conflict::new::<Policy>(policy.name(), field, name).of(tenant));
            }
        }
    }
    for rule in state.rules.of_tenant(tenant) {
        let internal = rule.spec.internal_ip;
        if network
            .spec
            .prefixes
            .iter()
            .any(|prefix| prefix.contains(internal))
        {
            uses.push(Conflict::new::<Rule>(rule.name(), "internal_ip", internal).of(tenant));
        }
    }
    for plan in state.plans.of_tenant(tenant) {
        if plan
            .spec
            .networks
            .iter()
            .any(|network| network.name == name)
        {
            uses.push(Conflict::new::<Plan>(plan.name(), "networks", name).of(tenant));
        }
    }
    uses
}

/// A network that is used, as a conflict with the object that uses it.
pub(super) fn used(network: &Object<Network>, uses: &[Conflict]) -> String {
    let users: Vec<_> = uses.iter().map(Conflict::to_string).collect();
    format!(
        "network {:?} of tenant {:?} ({})",
        network.name(),
        network.tenant(),
        users.join(", ")
    )
}
