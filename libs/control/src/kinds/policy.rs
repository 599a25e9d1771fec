//! Permission to route between two networks of a tenant.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{kind, mapping::require_network, yes};
use crate::{
    Conflict, Nothing, Object, Refusal, State,
    draft::Draft,
    name::{NAME_RULE, is_name},
    object::Rules,
    refusal::Problems,
    schema::ObjectName,
};

/// Permission to route from one network of a tenant to another during full failover. Nothing else
/// is routed between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Network that packets come from.
    #[schema(value_type = ObjectName)]
    pub from: String,
    /// Network that packets go to.
    #[schema(value_type = ObjectName)]
    pub to: String,
    /// Whether the other direction is allowed, too. Otherwise replies need a policy of their own.
    #[serde(default = "yes")]
    pub both: bool,
}

kind!(Policy, "policy", "policies", Tenant, policies, Nothing);

impl Policy {
    /// The allowed directions: from, to.
    fn directions(&self) -> impl Iterator<Item = (&str, &str)> {
        let back = self.both.then_some((self.to.as_str(), self.from.as_str()));
        [(self.from.as_str(), self.to.as_str())]
            .into_iter()
            .chain(back)
    }
}

impl Rules for Policy {
    fn check(&self, problems: &mut Problems) {
        for (field, name) in [("from", &self.from), ("to", &self.to)] {
            problems.require(is_name(name), field, name, NAME_RULE);
        }
        problems.require(
            self.from != self.to,
            "to",
            &self.to,
            "machines of one network reach each other without a policy: write another network",
        );
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let tenant = object.tenant();
        for (field, network) in [("from", &object.spec.from), ("to", &object.spec.to)] {
            require_network(state, tenant, field, network)?;
        }
        let mut conflicts = Vec::new();
        for other in state.policies.of_tenant(tenant) {
            if other.name() == object.name() {
                continue;
            }
            let mut theirs = other.spec.directions();
            let both = theirs.find(|theirs| object.spec.directions().any(|ours| ours == *theirs));
            if let Some((from, to)) = both {
                let value = format!("{from} to {to}");
                conflicts.push(Conflict::new::<Self>(other.name(), "from", value).of(tenant));
            }
        }
        Refusal::of_conflicts(conflicts, |first| {
            format!(
                "policy {:?}: {} is allowed by policy {:?} already: change one of the two",
                object.name(),
                first.value,
                first.name
            )
        })
    }

    fn put(
        _: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        Self::check_against(new, draft.state)
    }

    fn delete(_: &Object<Self>, _: &mut Draft<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}
