//! A tenant's subscription to a hardware plan: its networks, their VLANs, and an appliance.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Appliance, ApplianceStatus, HardwarePlan, Network, NetworkStatus, Uplink, VlanPool, kind,
    network::used,
    uplink::{refuse_inside, refuse_router, refuse_taken},
    uses_of_network,
    vlan_pool::{claim_vlan, claim_vlans, release_vlan},
};
use crate::{
    Condition, Conflict, Kind, Metadata, Object, Observed, Refusal, State, VlanRange,
    draft::{Draft, SUBSCRIPTION_NAME, must_be_idle, shown},
    name::{NAME_RULE, is_name},
    object::Rules,
    refusal::Problems,
    schema::ObjectName,
};

/// Greatest number of a network: it has six digits behind the subscription's name.
const MAX_NUMBER: u32 = 999_999;
/// Most networks of an allocation: as many as a hardware plan may have.
const MAX_ALLOCATED: usize = 50;

/// A tenant's subscription to a hardware plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The hardware plan. Cannot be changed.
    #[schema(value_type = ObjectName)]
    pub hardware_plan: String,
    /// Settings of the tenant's appliance on the plan's host. Where they are omitted, those of the
    /// appliance itself hold: DHCP for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appliance: Option<SubscribedAppliance>,
    /// Number of public addresses that the tenant may have by this subscription. Those of all
    /// subscriptions count together, and `limits.public_addresses` of the tenant holds in their
    /// place; without any of them there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    pub public_addresses: Option<u32>,
    /// Numbers and VLANs that a new subscription's networks get in place of the next free ones,
    /// as they were at another director. It is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub allocation: Option<Allocation>,
}

/// Settings of a tenant's appliance that a subscription makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscribedAppliance {
    /// Address on the provider's production network.
    pub uplink: Uplink,
}

/// Networks of a subscription as they were at another director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// The networks, in the order of their creation, at most as many as the hardware plan has. The
    /// others get the next free numbers and VLANs.
    #[serde(default)]
    #[schema(max_items = 50)]
    pub networks: Vec<AllocatedNetwork>,
    /// Least number of the next network, 1 to 1000000.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub next: u32,
}

/// A network of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllocatedNetwork {
    /// Number behind the subscription's name, 1 to 999999.
    #[schema(minimum = 1, maximum = 999_999)]
    pub number: u32,
    /// Whether it has internet access.
    pub internet: bool,
    /// VLAN, 1 to 4094, of the plan's pool.
    #[schema(minimum = 1, maximum = 4094)]
    pub vlan: u16,
}

/// Networks of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionStatus {
    /// Names of the tenant's networks that come from this subscription. They are the
    /// subscription's name with a number.
    pub networks: Vec<String>,
    /// Number of the next network. Numbers are not used again, so that a name means one network.
    pub next: u32,
    /// The host that the networks are on. The tenant's appliance there has the same name.
    pub host: String,
}

kind!(
    Subscription,
    "subscription",
    "subscriptions",
    Tenant,
    subscriptions,
    SubscriptionStatus
);

impl Rules for Subscription {
    fn check(&self, problems: &mut Problems) {
        let plan = &self.hardware_plan;
        problems.require(is_name(plan), "hardware_plan", plan, NAME_RULE);
        if let Some(appliance) = &self.appliance {
            appliance.uplink.check("appliance.uplink", problems);
        }
        if let Some(allocation) = &self.allocation {
            allocation.check(problems);
        }
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_provider();
        let (tenant, name) = (new.tenant().to_owned(), new.name().to_owned());
        if let Some(old) = old {
            return change(old, new, draft);
        }
        if name.len() > SUBSCRIPTION_NAME {
            let mut problems = Problems::new::<Self>(Some(&tenant), &name);
            problems.add(
                "name",
                &name,
                format!(
                    "write at most {SUBSCRIPTION_NAME} characters: networks add a number to it"
                ),
            );
            problems.into_result()?;
        }
        let (plan, pool) = plan_and_pool(draft, &new.spec)?;
        let mut others = draft.state.subscriptions.of_tenant(&tenant);
        let is_same = |other: &&Object<Self>| other.spec.hardware_plan == plan.name();
        if let Some(other) = others.find(is_same) {
            return Err(Refusal::conflict(
                format!(
                    "tenant {tenant:?} is subscribed to hardware plan {:?} already, by {:?}: \
                     subscribe to another plan, or grow this one",
                    plan.name(),
                    other.name()
                ),
                vec![subscribed_to(other)],
            ));
        }
        new.status.next = 1;
        new.status.host.clone_from(&pool.spec.host);
        let mut missing = BTreeMap::from([true, false].map(|of| (of, plan.spec.networks(of))));
        if let Some(allocation) = new.spec.allocation.take() {
            restore_networks(draft, new, (plan, pool), &allocation, &mut missing)?;
        }
        for internet in [true, false] {
            add_networks(draft, new, pool, internet, missing[&internet])?;
        }
        settle_appliance(draft, new)
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        draft.guard_provider();
        draft.must_be_idle(old.tenant(), "end a subscription")?;
        let networks: Vec<_> = networks(draft, old).collect();
        let mut conflicts = Vec::new();
        let mut texts = Vec::new();
        for network in &networks {
            let uses = uses_of_network(draft.state, network);
            if !uses.is_empty() {
                texts.push(used(network, &uses));
                conflicts.extend(uses);
            }
        }
        if !conflicts.is_empty() {
            return Err(Refusal::conflict(
                format!(
                    "subscription {:?}: networks are in use: {}: remove these objects first",
                    old.name(),
                    texts.join("; ")
                ),
                conflicts,
            ));
        }
        end(draft, old);
        Ok(())
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        let plan = observed
            .state
            .hardware_plans
            .get("", &object.spec.hardware_plan);
        let wanted = plan.map_or(0, |plan| {
            plan.spec.networks(true) + plan.spec.networks(false)
        });
        let there = object.status.networks.len();
        let reason = match there == wanted {
            true => "AllNetworks",
            false => "OtherNetworks",
        };
        let text = format!("{there} networks of {wanted} in the hardware plan");
        vec![Condition::new(
            object,
            "Fulfilled",
            there == wanted,
            reason,
            text,
        )]
    }
}

impl Allocation {
    fn check(&self, problems: &mut Problems) {
        let count = self.networks.len();
        problems.require(
            count <= MAX_ALLOCATED,
            "allocation.networks",
            count,
            format_args!("write at most {MAX_ALLOCATED}"),
        );
        problems.require(
            (1..=MAX_NUMBER + 1).contains(&self.next),
            "allocation.next",
            self.next,
            format_args!("write 1 to {}", MAX_NUMBER + 1),
        );
        let (mut numbers, mut vlans) = (BTreeSet::new(), BTreeSet::new());
        for network in self.networks.iter().take(MAX_ALLOCATED) {
            let AllocatedNetwork { number, vlan, .. } = network;
            problems.require(
                (1..=MAX_NUMBER).contains(number) && numbers.insert(number),
                "allocation.networks.number",
                number,
                format_args!("write 1 to {MAX_NUMBER}, and each number once"),
            );
            problems.require(
                (1..=VlanRange::MAX).contains(vlan) && vlans.insert(vlan),
                "allocation.networks.vlan",
                vlan,
                format_args!("write 1 to {}, and each VLAN once", VlanRange::MAX),
            );
        }
    }
}

/// A change of a subscription: all but its plan and its networks.
fn change(
    old: &Object<Subscription>,
    new: &mut Object<Subscription>,
    draft: &mut Draft<'_>,
) -> Result<(), Refusal> {
    let (tenant, name) = (new.tenant().to_owned(), new.name().to_owned());
    if old.spec.hardware_plan != new.spec.hardware_plan {
        return Err(Refusal::conflict(
            format!(
                "subscription {name:?} of tenant {tenant:?} is to hardware plan {:?}: end it \
                 and make another one, because its networks would change",
                old.spec.hardware_plan
            ),
            vec![subscribed_to(old)],
        ));
    }
    if new.spec.allocation.is_some() {
        let networks = old.status.networks.join(", ");
        return Err(Refusal::conflict(
            format!(
                "subscription {name:?} of tenant {tenant:?} has its networks: allocation is for \
                 a new subscription: omit it"
            ),
            vec![Conflict::new::<Subscription>(&name, "networks", networks).of(&tenant)],
        ));
    }
    settle_appliance(draft, new)
}

/// The subscription of a tenant that declares the settings of its appliance on a host, other than
/// the named one.
pub(super) fn declaring<'s>(
    state: &'s State,
    tenant: &str,
    host: &str,
    except: Option<&str>,
) -> Option<(&'s Object<Subscription>, &'s Uplink)> {
    let mut subscriptions = state.subscriptions.of_tenant(tenant);
    subscriptions.find_map(|subscription| {
        let uplink = &subscription.spec.appliance.as_ref()?.uplink;
        let is_other = Some(subscription.name()) != except;
        (is_other && subscription.status.host == host).then_some((subscription, uplink))
    })
}

/// Makes the appliance on the subscription's host if there is none, and gives it the settings that
/// the subscription declares.
fn settle_appliance(
    draft: &mut Draft<'_>,
    subscription: &Object<Subscription>,
) -> Result<(), Refusal> {
    let (tenant, host) = (subscription.tenant(), &subscription.status.host);
    let declared = subscription.spec.appliance.as_ref().map(|of| &of.uplink);
    let there = draft.state.appliances.get(tenant, host);
    let Some(uplink) = declared else {
        if there.is_none() {
            draft.write(&appliance(draft, tenant, host, Uplink::Dhcp));
        }
        return Ok(());
    };
    let other = declaring(draft.state, tenant, host, Some(subscription.name()));
    if let Some((other, theirs)) = other.filter(|(_, theirs)| *theirs != uplink) {
        let field = "appliance.uplink";
        return Err(Refusal::conflict(
            format!(
                "appliance: subscription {:?} declares another uplink of the appliance on host \
                 {host:?}: write the same in both, or omit it in one",
                other.name()
            ),
            vec![Conflict::new::<Subscription>(other.name(), field, theirs).of(tenant)],
        ));
    }
    if let Some(address) = uplink.address() {
        refuse_taken(draft.state, address, Some((tenant, host)), None)?;
    }
    match there {
        None => {
            let new = appliance(draft, tenant, host, uplink.clone());
            refuse_router(draft.state, &new)?;
            refuse_inside(draft.state, &new)?;
            draft.write(&new);
        }
        Some(there) if there.spec.uplink != *uplink => {
            let mut changed = there.clone();
            changed.spec.uplink = uplink.clone();
            changed.metadata.generation += 1;
            refuse_router(draft.state, &changed)?;
            refuse_inside(draft.state, &changed)?;
            draft.write(&changed);
        }
        Some(_) => {}
    }
    Ok(())
}

/// Most public addresses of a tenant, and the objects that say so: the tenant by its limits, or
/// else all its subscriptions together. `None` for no limit.
pub(crate) fn public_address_limit(
    state: &State,
    tenant: &Object<super::Tenant>,
) -> Option<(u32, Vec<Conflict>)> {
    let name = tenant.name();
    if let Some(limit) = tenant.spec.limits.public_addresses {
        let field = "limits.public_addresses";
        return Some((
            limit,
            vec![Conflict::new::<super::Tenant>(name, field, limit)],
        ));
    }
    let mut sum = None;
    let mut conflicts = Vec::new();
    for subscription in state.subscriptions.of_tenant(name) {
        if let Some(count) = subscription.spec.public_addresses {
            sum = Some(sum.unwrap_or(0_u32).saturating_add(count));
            let conflict =
                Conflict::new::<Subscription>(subscription.name(), "public_addresses", count);
            conflicts.push(conflict.of(name));
        }
    }
    sum.map(|sum| (sum, conflicts))
}

/// Gives back all that a subscription has. The caller erases the subscription itself.
pub(super) fn end(draft: &mut Draft<'_>, subscription: &Object<Subscription>) {
    let networks: Vec<_> = networks(draft, subscription).collect();
    for network in networks {
        release_vlan(draft, network);
        draft.erase(network);
    }
    let (tenant, host) = (subscription.tenant(), &subscription.status.host);
    let is_other = |other: &&Object<Subscription>| {
        other.name() != subscription.name() && other.status.host == *host
    };
    let state = draft.state;
    if !state
        .subscriptions
        .of_tenant(tenant)
        .any(|other| is_other(&other))
        && let Some(appliance) = state.appliances.get(tenant, host)
    {
        draft.erase(appliance);
    }
}

fn subscribed_to(subscription: &Object<Subscription>) -> Conflict {
    let plan = &subscription.spec.hardware_plan;
    Conflict::new::<Subscription>(subscription.name(), "hardware_plan", plan)
        .of(subscription.tenant())
}

fn plan_and_pool<'s>(
    draft: &Draft<'s>,
    spec: &Subscription,
) -> Result<(&'s Object<HardwarePlan>, &'s Object<VlanPool>), Refusal> {
    let state = draft.state;
    let name = &spec.hardware_plan;
    let Some(plan) = state.hardware_plans.get("", name) else {
        let plans: Vec<_> = state.hardware_plans.iter().map(Object::name).collect();
        return Err(Refusal::conflict(
            format!(
                "hardware_plan: {name:?} does not exist: create it first, or use one of {}",
                shown(&plans)
            ),
            vec![Conflict::new::<HardwarePlan>(name, "name", name)],
        ));
    };
    let name = &plan.spec.vlan_pool;
    let pool = state.vlan_pools.get("", name);
    pool.map(|pool| (plan, pool))
        .ok_or_else(|| Refusal::not_found::<VlanPool>(None, name))
}

/// The networks of a subscription, in the order of their creation.
fn networks<'s>(
    draft: &Draft<'s>,
    subscription: &Object<Subscription>,
) -> impl Iterator<Item = &'s Object<Network>> {
    let state = draft.state;
    let names = subscription.status.networks.iter();
    let networks = names.filter_map(|name| state.networks.get(subscription.tenant(), name));
    networks.collect::<Vec<_>>().into_iter()
}

/// Adds networks to a subscription, each with the next free VLAN of the pool.
pub(super) fn add_networks(
    draft: &mut Draft<'_>,
    subscription: &mut Object<Subscription>,
    pool: &Object<VlanPool>,
    internet: bool,
    count: usize,
) -> Result<(), Refusal> {
    let tenant = subscription.tenant().to_owned();
    let first = subscription.status.next;
    let numbers: Vec<_> = (first..).take(count).collect();
    let names: Vec<_> = numbers
        .iter()
        .map(|number| network_name(subscription, *number))
        .collect();
    let vlans = claim_vlans(draft, pool, internet, &tenant, &names)?;
    for (number, vlan) in numbers.into_iter().zip(vlans) {
        let network = AllocatedNetwork {
            number,
            internet,
            vlan,
        };
        add_network(draft, subscription, pool, network);
    }
    Ok(())
}

fn network_name(subscription: &Object<Subscription>, number: u32) -> String {
    format!("{}-{number}", subscription.name())
}

/// Adds a network whose VLAN is claimed.
fn add_network(
    draft: &mut Draft<'_>,
    subscription: &mut Object<Subscription>,
    pool: &Object<VlanPool>,
    new: AllocatedNetwork,
) {
    let name = network_name(subscription, new.number);
    let network = Object {
        metadata: metadata::<Network>(draft, subscription.tenant(), &name),
        spec: Network::default(),
        status: NetworkStatus {
            subscription: subscription.name().to_owned(),
            pool: pool.name().to_owned(),
            host: pool.spec.host.clone(),
            switch: pool.spec.switch.clone(),
            internet: new.internet,
            vlan: new.vlan,
        },
    };
    draft.write(&network);
    let status = &mut subscription.status;
    status.networks.push(name);
    status.next = status.next.max(new.number + 1);
}

/// Adds the networks of an allocation, and takes them from the numbers of those that are missing,
/// with internet access (`true`) and without.
fn restore_networks(
    draft: &mut Draft<'_>,
    subscription: &mut Object<Subscription>,
    (plan, pool): (&Object<HardwarePlan>, &Object<VlanPool>),
    allocation: &Allocation,
    missing: &mut BTreeMap<bool, usize>,
) -> Result<(), Refusal> {
    subscription.status.next = allocation.next;
    let tenant = subscription.tenant().to_owned();
    for network in &allocation.networks {
        let left = missing.entry(network.internet).or_default();
        let Some(fewer) = left.checked_sub(1) else {
            let (field, words) = match network.internet {
                true => ("networks_with_internet", "with"),
                false => ("networks_without_internet", "without"),
            };
            let count = plan.spec.networks(network.internet);
            return Err(Refusal::conflict(
                format!(
                    "allocation: it has more networks {words} internet than the {count} of \
                     hardware plan {:?}: leave some out, or grow the plan first",
                    plan.name()
                ),
                vec![Conflict::new::<HardwarePlan>(plan.name(), field, count)],
            ));
        };
        *left = fewer;
        let name = network_name(subscription, network.number);
        claim_vlan(draft, pool, network.internet, network.vlan, &tenant, &name)?;
        add_network(draft, subscription, pool, *network);
    }
    Ok(())
}

/// Removes the newest networks of a subscription that have no settings and that nothing uses.
/// `owner` is its tenant.
pub(super) fn remove_networks(
    draft: &mut Draft<'_>,
    subscription: &mut Object<Subscription>,
    owner: Option<&Object<super::Tenant>>,
    internet: bool,
    count: usize,
) -> Result<(), Refusal> {
    let mut gone = BTreeSet::new();
    let mut conflicts = Vec::new();
    let mut texts = Vec::new();
    let state = draft.state;
    let tenant = subscription.tenant();
    for name in subscription.status.networks.iter().rev() {
        if gone.len() == count {
            break;
        }
        let Some(network) = state.networks.get(tenant, name) else {
            continue;
        };
        if network.status.internet != internet {
            continue;
        }
        let mut uses = uses_of_network(draft.state, network);
        if network.spec != Network::default() {
            let prefixes: Vec<_> = network
                .spec
                .prefixes
                .iter()
                .map(ToString::to_string)
                .collect();
            let conflict =
                Conflict::new::<Network>(network.name(), "prefixes", prefixes.join(", "));
            uses.push(conflict.of(network.tenant()));
        }
        if uses.is_empty() {
            release_vlan(draft, network);
            draft.erase(network);
            gone.insert(network.name().to_owned());
        } else {
            texts.push(used(network, &uses));
            conflicts.extend(uses);
        }
    }
    if gone.len() < count {
        return Err(Refusal::conflict(
            format!(
                "hardware plan {:?} cannot shrink by {count} networks {}: in use are {}: clear the \
                 settings of networks that are not needed, and remove what uses them",
                subscription.spec.hardware_plan,
                if internet {
                    "with internet"
                } else {
                    "without internet"
                },
                texts.join("; ")
            ),
            conflicts,
        ));
    }
    if count > 0 {
        let owner = owner.ok_or_else(|| Refusal::not_found::<super::Tenant>(None, tenant))?;
        must_be_idle(owner, "remove networks")?;
    }
    subscription
        .status
        .networks
        .retain(|name| !gone.contains(name));
    Ok(())
}

fn metadata<K: Kind>(draft: &Draft<'_>, tenant: &str, name: &str) -> Metadata {
    Metadata {
        name: name.to_owned(),
        tenant: Some(tenant.to_owned()),
        uid: draft.origin.derived_uid(&K::key(Some(tenant), name)),
        generation: 1,
        created: draft.origin.now,
        revision: 0,
        owner: None,
    }
}

fn appliance(draft: &Draft<'_>, tenant: &str, host: &str, uplink: Uplink) -> Object<Appliance> {
    Object {
        metadata: metadata::<Appliance>(draft, tenant, host),
        spec: Appliance {
            uplink,
            description: String::new(),
        },
        status: ApplianceStatus {
            host: host.to_owned(),
        },
    }
}
