//! A tenant's subscription to a hardware plan: its networks, their VLANs, and an appliance.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Appliance, ApplianceStatus, HardwarePlan, Network, NetworkStatus, Uplink, VlanPool,
    hardware_plan::used,
    kind, uses_of_network,
    vlan_pool::{claim_vlans, release_vlan},
};
use crate::{
    Condition, Conflict, Kind, Metadata, Object, Observed, Refusal,
    draft::{Draft, SUBSCRIPTION_NAME, shown},
    name::{NAME_RULE, is_name},
    object::Rules,
    refusal::Problems,
    schema::ObjectName,
};

/// A tenant's subscription to a hardware plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The hardware plan. Cannot be changed.
    #[schema(value_type = ObjectName)]
    pub hardware_plan: String,
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
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_provider();
        let (tenant, name) = (new.tenant().to_owned(), new.name().to_owned());
        if let Some(old) = old {
            return Err(Refusal::conflict(
                format!(
                    "subscription {name:?} of tenant {tenant:?} is to hardware plan {:?}: end it \
                     and make another one, because its networks would change",
                    old.spec.hardware_plan
                ),
                vec![subscribed_to(old)],
            ));
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
        if let Some(other) = others.find(|other| other.spec == new.spec) {
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
        for internet in [true, false] {
            add_networks(draft, new, pool, internet, plan.spec.networks(internet))?;
        }
        let host = &pool.spec.host;
        if draft.state.appliances.get(&tenant, host).is_none() {
            draft.write(&appliance(draft, &tenant, host));
        }
        Ok(())
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
    let names: Vec<_> = (subscription.status.next..)
        .map(|number| format!("{}-{number}", subscription.name()))
        .take(count)
        .collect();
    let vlans = claim_vlans(draft, pool, internet, &tenant, &names)?;
    for (name, vlan) in names.into_iter().zip(vlans) {
        let network = Object {
            metadata: metadata::<Network>(draft, &tenant, &name),
            spec: Network::default(),
            status: NetworkStatus {
                subscription: subscription.name().to_owned(),
                pool: pool.name().to_owned(),
                host: pool.spec.host.clone(),
                switch: pool.spec.switch.clone(),
                internet,
                vlan,
            },
        };
        draft.write(&network);
        subscription.status.networks.push(name);
        subscription.status.next += 1;
    }
    Ok(())
}

/// Removes the newest networks of a subscription that have no settings and that nothing uses.
pub(super) fn remove_networks(
    draft: &mut Draft<'_>,
    subscription: &mut Object<Subscription>,
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
        draft.must_be_idle(subscription.tenant(), "remove networks")?;
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

fn appliance(draft: &Draft<'_>, tenant: &str, host: &str) -> Object<Appliance> {
    Object {
        metadata: metadata::<Appliance>(draft, tenant, host),
        spec: Appliance {
            uplink: Uplink::Dhcp,
            description: String::new(),
        },
        status: ApplianceStatus {
            host: host.to_owned(),
        },
    }
}
