//! The written form of a plan, with serde.

use serde::{Deserialize, Serialize};

use super::{Allow, Plan};
use crate::Rule;

/// A plan as it is written in files and in the stored state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) tenant: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) description: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) network: Vec<FileNetwork>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) allow: Vec<Allow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rule: Vec<Rule>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[network]]")]
pub(super) struct FileNetwork {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<Vec<String>>,
    #[serde(default)]
    pub(super) internet: bool,
    #[serde(default = "yes")]
    pub(super) router_advertisements: bool,
}

pub(super) const fn yes() -> bool {
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
