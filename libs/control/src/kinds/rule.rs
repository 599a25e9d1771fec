//! Public IP rules.

use std::net::IpAddr;

use failover::{IpPrefix, PortRange, Protocol, RuleChange};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Plan, kind};
use crate::{
    Conflict, Nothing, Object, Refusal,
    draft::{Draft, shown},
    name::{LIST, LIST_RULE},
    object::Rules,
    refusal::Problems,
    schema::{AddressText, Line, PortsText, PrefixText, ProtocolText},
    tenant_view::TenantView,
};

/// A public IP rule: which part of a public address of the tenant leads to which machine. Public
/// port 22 is refused: the appliance is managed over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A public address of the tenant.
    #[schema(value_type = AddressText)]
    pub public_ip: IpAddr,
    /// Public port, or a range such as `8000-8100`; omitted for a whole address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PortsText>)]
    pub public_port: Option<PortRange>,
    /// The machine's address.
    #[schema(value_type = AddressText)]
    pub internal_ip: IpAddr,
    /// First port of the machine; the public one if it is omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65535)]
    pub internal_port: Option<u16>,
    /// Protocols; TCP if they are omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ProtocolText>)]
    pub protocol: Option<Protocol>,
    /// Whether the whole address but port 22 leads to the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_to_one: bool,
    /// Sources that the rule admits; empty for every source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<PrefixText>, max_items = 256)]
    pub allow: Vec<IpPrefix>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

kind!(Rule, "rule", "rules", Tenant, rules, Nothing);

impl Rule {
    /// The rule as the appliance has it, by the checks of the crate `failover`.
    ///
    /// # Errors
    /// The first problem: the field and what to write.
    pub(crate) fn to_failover(&self, name: &str) -> Result<failover::Rule, (String, String)> {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["name"] = name.into();
        serde_json::from_value(value).map_err(|error| {
            let text = error.to_string();
            let text = text
                .strip_prefix(&format!("rule {name:?}: "))
                .unwrap_or(&text);
            match text.split_once(": ") {
                Some((field, text)) if !field.contains(' ') => (field.to_owned(), text.to_owned()),
                Some(_) | None => ("public_port".to_owned(), text.to_owned()),
            }
        })
    }
}

impl Rules for Rule {
    fn check(&self, problems: &mut Problems) {
        let count = self.allow.len();
        problems.require(count <= LIST, "allow", count, LIST_RULE);
        // The name has a check of its own.
        if let Err((field, text)) = self.to_failover("r") {
            let value = match field.as_str() {
                "public_port" => self.public_port.map(|ports| ports.to_string()),
                "internal_port" => self.internal_port.map(|port| port.to_string()),
                "public_ip" => Some(self.public_ip.to_string()),
                "internal_ip" => Some(self.internal_ip.to_string()),
                _ => None,
            };
            problems.add(&field, value.unwrap_or_default(), text);
        }
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        let tenant = new.tenant().to_owned();
        let mut view = TenantView::of(draft.state, &tenant);
        view.rules.remove(new.name());
        let others = view.rule_set()?;
        let rule = new.spec.to_failover(new.name()).map_err(|(field, text)| {
            Refusal::conflict(
                format!("rule {:?}: {field}: {text}", new.name()),
                vec![Conflict::new::<Self>(new.name(), &field, "").of(&tenant)],
            )
        })?;
        let changed = others.apply(&view.context(), vec![RuleChange::Add(rule.clone())]);
        if let Err(problems) = changed {
            let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let mut conflicts: Vec<_> = others
                .iter()
                .filter_map(|other| {
                    let claim = rule.overlap(other)?;
                    Some(Conflict::new::<Self>(other.name(), "public_port", claim).of(&tenant))
                })
                .collect();
            if conflicts.is_empty() {
                let is_internal = texts.iter().all(|text| text.contains("internal_ip: "));
                let (field, value) = match is_internal {
                    true => ("internal_ip", new.spec.internal_ip),
                    false => ("public_ip", new.spec.public_ip),
                };
                conflicts.push(Conflict::new::<Self>(new.name(), field, value).of(&tenant));
            }
            return Err(Refusal::conflict(texts.join("; "), conflicts));
        }
        if old.is_some() {
            view.rules.insert(new.name().to_owned(), new.spec.clone());
            view.check_all(&format!("rule {:?} cannot be changed", new.name()))?;
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let (tenant, name) = (old.tenant(), old.name());
        let plans = draft.state.plans.of_tenant(tenant);
        let conflicts: Vec<_> = plans
            .filter(|plan| plan.spec.rules.iter().any(|rule| rule == name))
            .map(|plan| Conflict::new::<Plan>(plan.name(), "rules", name).of(tenant))
            .collect();
        if conflicts.is_empty() {
            return Ok(());
        }
        let plans: Vec<_> = conflicts.iter().map(|conflict| &conflict.name).collect();
        Err(Refusal::conflict(
            format!(
                "rule {name:?} is in plans {}: take it out of them first",
                shown(&plans)
            ),
            conflicts,
        ))
    }
}
