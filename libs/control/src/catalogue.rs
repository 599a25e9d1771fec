//! The kinds as a list, for programs that treat all alike, such as the command line.

use serde_json::Value;

use crate::{
    Address, AddressPool, Appliance, Gateway, GatewayPool, HardwarePlan, Host, Kind, Mapping,
    Network, Plan, Policy, Rule, Scope, Subscription, Tenant, VlanPool, state::for_all_kinds,
};

/// The name of a kind or of its collection as words of a sentence: of `vlan-pools`, `VLAN pools`.
#[must_use]
pub fn in_words(name: &str) -> String {
    name.replace("vlan", "VLAN").replace('-', " ")
}

/// The name of a kind as words with their article: of `address-pool`, `an address pool`.
#[must_use]
pub fn with_article(kind: &str) -> String {
    let words = in_words(kind);
    // No name of a kind begins with a vowel that is not spoken as one.
    let article = match words.starts_with(['a', 'e', 'i', 'o', 'u']) {
        true => "an",
        false => "a",
    };
    format!("{article} {words}")
}

/// A kind as data.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// Name of the kind, such as `vlan-pool`.
    pub kind: &'static str,
    /// Name of its collection in paths of the API, such as `vlan-pools`.
    pub plural: &'static str,
    /// Name space of the objects.
    pub scope: Scope,
    normalize: fn(Value) -> serde_json::Result<Value>,
}

impl KindInfo {
    /// Path of the collection in the API; `tenant` is of no use for kinds of the provider.
    #[must_use]
    pub fn collection(&self, tenant: &str) -> String {
        match self.scope {
            Scope::Provider => format!("/v1/{}", self.plural),
            Scope::Tenant => format!("/v1/tenants/{tenant}/{}", self.plural),
        }
    }

    /// A spec as the director answers it, with its defaults.
    ///
    /// # Errors
    /// When it is no spec of this kind: the field, and the expected type.
    pub fn normalize(&self, spec: Value) -> serde_json::Result<Value> {
        (self.normalize)(spec)
    }
}

fn normalize<K: Kind>(spec: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<K>(spec)?)
}

macro_rules! list {
    ($($kind:ty),*) => {
        &[$(KindInfo {
            kind: <$kind as Kind>::KIND,
            plural: <$kind as Kind>::PLURAL,
            scope: <$kind as Kind>::SCOPE,
            normalize: normalize::<$kind>,
        }),*]
    };
}

/// All kinds, each after those that its objects refer to: the order in which a set of objects can
/// be created.
pub const KINDS: &[KindInfo] = for_all_kinds!(list);

/// Why the audit must have the reason for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonFor {
    /// It is forced: it overrules what protects others.
    Force,
    /// The provider changes an object that is the tenant's own.
    TenantsOwn,
}

/// Kinds of a tenant's own objects: the tenant makes them, not the provider.
const TENANTS_OWN: [&str; 5] = ["network", "mapping", "policy", "rule", "plan"];

/// Whether a change of an object of this kind must have a reason, and why. `force` tells whether it
/// is forced, `by_provider` whether a user of the provider makes it. A dry run needs none.
#[must_use]
pub fn reason_for(kind: &str, force: bool, by_provider: bool) -> Option<ReasonFor> {
    match (force, by_provider && TENANTS_OWN.contains(&kind)) {
        (true, _) => Some(ReasonFor::Force),
        (false, true) => Some(ReasonFor::TenantsOwn),
        (false, false) => None,
    }
}

/// The kind of this name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|info| info.kind == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn specs_get_their_defaults() {
        let policy = kind("policy").unwrap();
        assert_eq!(policy.collection("acme"), "/v1/tenants/acme/policies");
        let spec = policy.normalize(json!({ "from": "a", "to": "b" })).unwrap();
        assert_eq!(spec, json!({ "from": "a", "to": "b", "both": true }));
        let error = policy.normalize(json!({ "form": "a" })).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `form`"),
            "{error}"
        );
        assert!(kind("nothing").is_none());
    }

    #[test]
    fn words_of_a_name_keep_its_abbreviations() {
        assert_eq!(in_words("vlan-pools"), "VLAN pools");
        assert_eq!(in_words("hardware-plan"), "hardware plan");
    }

    #[test]
    fn words_of_every_kind_have_their_article() {
        let with_an = KINDS.iter().map(|info| with_article(info.kind));
        let mut with_an: Vec<_> = with_an.filter(|words| words.starts_with("an ")).collect();
        with_an.sort();
        assert_eq!(with_an, ["an address", "an address pool", "an appliance"]);
        assert_eq!(with_article("vlan-pool"), "a VLAN pool");
    }

    #[test]
    fn forced_changes_and_those_of_a_tenants_own_objects_have_a_reason() {
        for info in KINDS {
            let name = info.kind;
            assert_eq!(reason_for(name, true, false), Some(ReasonFor::Force));
            assert_eq!(reason_for(name, true, true), Some(ReasonFor::Force));
            assert_eq!(reason_for(name, false, false), None);
            let own = TENANTS_OWN.contains(&name);
            let expected = own.then_some(ReasonFor::TenantsOwn);
            assert_eq!(reason_for(name, false, true), expected, "{name}");
            assert!(!own || info.scope == Scope::Tenant, "{name}");
        }
        for name in TENANTS_OWN {
            assert!(kind(name).is_some(), "{name}");
        }
    }

    #[test]
    fn kinds_come_after_those_that_they_refer_to() {
        let place = |name| KINDS.iter().position(|info| info.kind == name).unwrap();
        for (first, then) in [
            ("host", "vlan-pool"),
            ("vlan-pool", "hardware-plan"),
            ("gateway", "gateway-pool"),
            ("gateway-pool", "tenant"),
            ("tenant", "subscription"),
            ("subscription", "network"),
            ("address", "rule"),
            ("rule", "plan"),
        ] {
            assert!(place(first) < place(then), "{first}, {then}");
        }
    }
}
