//! A tenant's appliance on a host of the provider.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Subscription, Uplink,
    agent::of_agent,
    kind,
    subscription::declaring,
    uplink::{refuse_inside, refuse_router, refuse_taken},
};
use crate::{
    Condition, Conflict, Object, Observed, Refusal, State,
    draft::Draft,
    name::{DESCRIPTION_RULE, is_description},
    object::Rules,
    refusal::Problems,
    schema::Line,
};

/// A tenant's appliance on one host of the provider. A subscription makes it; it has the host's
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// Address on the provider's production network.
    pub uplink: Uplink,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// Where an appliance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplianceStatus {
    /// Name of the provider's host that it runs on.
    pub host: String,
}

kind!(
    Appliance,
    "appliance",
    "appliances",
    Tenant,
    appliances,
    ApplianceStatus
);

impl Rules for Appliance {
    fn check(&self, problems: &mut Problems) {
        self.uplink.check("uplink", problems);
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let Some(address) = object.spec.uplink.address() else {
            return Ok(());
        };
        let own = Some((object.tenant(), object.name()));
        refuse_taken(state, address, own, None)?;
        refuse_router(state, object)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_provider();
        let Some(old) = old else {
            return Err(by_subscription(new));
        };
        let declared = declaring(draft.state, new.tenant(), new.name(), None);
        if let Some((subscription, uplink)) = declared
            && old.spec.uplink != new.spec.uplink
        {
            let (name, field) = (subscription.name(), "appliance.uplink");
            return Err(Refusal::conflict(
                format!("uplink: subscription {name:?} declares it: change it there"),
                vec![Conflict::new::<Subscription>(name, field, uplink).of(new.tenant())],
            ));
        }
        Self::check_against(new, draft.state)?;
        refuse_inside(draft.state, new)
    }

    fn delete(old: &Object<Self>, _: &mut Draft<'_>) -> Result<(), Refusal> {
        Err(by_subscription(old))
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        of_agent(object, observed)
    }
}

fn by_subscription(appliance: &Object<Appliance>) -> Refusal {
    let (tenant, name) = (appliance.tenant(), appliance.name());
    Refusal::conflict(
        format!(
            "appliance {name:?} of tenant {tenant:?}: the tenant has one on each host of its \
             subscriptions: subscribe to a hardware plan there, or end the subscriptions there"
        ),
        vec![Conflict::new::<Appliance>(name, "name", name).of(tenant)],
    )
}
