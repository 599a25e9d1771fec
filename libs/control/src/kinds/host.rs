//! Virtualization hosts of the provider, and their virtual switches.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{VlanPool, kind};
use crate::{
    Appliance, Conflict, Nothing, Object, Refusal,
    draft::{Draft, shown},
    name::{DESCRIPTION_RULE, FOREIGN_RULE, LIST, LIST_RULE, is_description, is_foreign_name},
    object::Rules,
    refusal::Problems,
    schema::{ForeignName, Line},
};

/// Virtualization platform of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// VMware ESXi.
    Esxi,
    /// Microsoft Hyper-V.
    HyperV,
    /// KVM, with QEMU or a product built on it.
    Kvm,
}

/// A virtualization host of the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Virtualization platform.
    pub platform: Platform,
    /// Virtual switches that tenants' networks may be on.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub switches: Vec<Switch>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// A virtual switch of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// The name that the platform has for it.
    #[schema(value_type = ForeignName)]
    pub name: String,
    /// The trunk that the switch is attached to. Switches with the same trunk share their VLANs,
    /// so no VLAN is given out twice among them. Without it, the switch has VLANs of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ForeignName>)]
    pub trunk: Option<String>,
}

kind!(Host, "host", "hosts", Provider, hosts, Nothing);

impl Rules for Host {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            self.switches.len() <= LIST,
            "switches",
            self.switches.len(),
            LIST_RULE,
        );
        let mut names = BTreeSet::new();
        for switch in &self.switches {
            let name = &switch.name;
            problems.require(is_foreign_name(name), "switches.name", name, FOREIGN_RULE);
            problems.require(
                names.insert(name),
                "switches.name",
                name,
                format_args!("{name:?} is listed twice: name each switch once"),
            );
            if let Some(trunk) = &switch.trunk {
                problems.require(
                    is_foreign_name(trunk),
                    "switches.trunk",
                    trunk,
                    FOREIGN_RULE,
                );
            }
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        let Some(old) = old else {
            return Ok(());
        };
        let is_changed = |pool: &&Object<VlanPool>| {
            let switch = |host: &Host| {
                let mut switches = host.switches.iter();
                switches.find(|s| s.name == pool.spec.switch).cloned()
            };
            pool.spec.host == old.name() && switch(&old.spec) != switch(&new.spec)
        };
        let pools: Vec<_> = draft.state.vlan_pools.iter().filter(is_changed).collect();
        if pools.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = pools.iter().map(|pool| pool.name()).collect();
        let conflicts = pools
            .iter()
            .map(|pool| Conflict::new::<VlanPool>(pool.name(), "switch", &pool.spec.switch));
        Err(Refusal::conflict(
            format!(
                "host {:?}: a switch of VLAN pools {} would be removed or change its trunk: remove \
                 these pools first, or keep the switch as it is",
                old.name(),
                shown(&names)
            ),
            conflicts.collect(),
        ))
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let mut conflicts = Vec::new();
        for pool in draft.state.vlan_pools.iter() {
            if pool.spec.host == old.name() {
                conflicts.push(Conflict::new::<VlanPool>(pool.name(), "host", old.name()));
            }
        }
        for appliance in draft.state.appliances.iter() {
            if appliance.name() == old.name() {
                let conflict = Conflict::new::<Appliance>(old.name(), "name", old.name());
                conflicts.push(conflict.of(appliance.tenant()));
            }
        }
        if conflicts.is_empty() {
            return Ok(());
        }
        let users: Vec<_> = conflicts.iter().map(Conflict::to_string).collect();
        Err(Refusal::conflict(
            format!(
                "host {:?} is in use by {}: remove these pools, and end these subscriptions first",
                old.name(),
                shown(&users)
            ),
            conflicts,
        ))
    }
}
