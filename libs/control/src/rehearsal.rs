//! Changes tried one after the other on a copy of the objects, before any of them is asked for.

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Accepted, Address, AddressPool, Appliance, Claim, Conflict, Corrupt, Difference, Gateway,
    GatewayPool, HardwarePlan, Host, Kind, KindInfo, Mapping, Network, Options, Origin, Plan,
    Policy, Reason, Refusal, Rule, Scope, State, Subscription, Tenant, VlanPool, create, remove,
    replace,
    state::{address_claim, for_all_kinds, vlan_claim, vlan_domain},
};

/// A copy of a director's objects, and the changes that were tried on it.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    state: State,
    now: Timestamp,
}

/// A change to try.
#[derive(Clone, Copy, Debug)]
pub enum RehearsedChange<'v> {
    /// Creation with this spec.
    Create(&'v Value),
    /// This spec in place of the one before.
    Replace(&'v Value),
    /// Removal.
    Remove,
}

impl Rehearsal {
    /// A rehearsal without objects. `now` decides whether leases have ended.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            state: State::default(),
            now,
        }
    }

    /// Adds an object as the director answers it. After the last one comes [`Self::ready`].
    ///
    /// # Errors
    /// [`Corrupt`]: it is no object of the kind that this version knows.
    pub fn add(&mut self, info: &KindInfo, object: &Value) -> Result<(), Corrupt> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let key = key(info, text("tenant"), text("name"));
        let mut stored = object.clone();
        if let Some(fields) = stored.as_object_mut() {
            // Computed with each answer.
            fields.remove("conditions");
        }
        let revision = object["metadata"]["revision"].as_u64().unwrap_or_default();
        self.state.set(&key, Some(&stored.to_string()), revision)?;
        let newest = self.state.revision().max(revision);
        self.state.set_revision(newest);
        Ok(())
    }

    /// Claims the VLANs and addresses of the objects. Those of networks whose host was not added
    /// are left out.
    pub fn ready(&mut self) {
        let mut claims = Vec::new();
        for network in self.state.networks.iter() {
            let status = &network.status;
            if let Some(domain) = vlan_domain(&self.state, &status.host, &status.switch) {
                let claim = Claim {
                    pool: status.pool.clone(),
                    tenant: network.tenant().to_owned(),
                    owner: network.name().to_owned(),
                };
                claims.push((vlan_claim(&domain, status.vlan), claim));
            }
        }
        for address in self.state.addresses.iter() {
            if let Some(public) = address.status.address {
                let claim = Claim {
                    pool: address.spec.pool.clone(),
                    tenant: address.tenant().to_owned(),
                    owner: address.name().to_owned(),
                };
                claims.push((address_claim(public), claim));
            }
        }
        self.state.claims.extend(claims);
    }

    /// An object as it is by now; `tenant` is empty for objects of the provider.
    #[must_use]
    pub fn get(&self, info: &KindInfo, tenant: &str, name: &str) -> Option<Value> {
        self.state.value(&key(info, tenant, name))
    }

    /// The specs of a kind's other objects of the same tenant, as they are by now.
    #[must_use]
    pub fn others(&self, info: &KindInfo, tenant: &str, name: &str) -> Vec<Value> {
        fn specs<K: Kind>(state: &State, tenant: &str, name: &str) -> Vec<Value> {
            let objects = K::table(state).of_tenant(tenant);
            let others = objects.filter(|object| object.name() != name);
            let specs = others.map(|object| serde_json::to_value(&object.spec));
            specs.filter_map(Result::ok).collect()
        }
        macro_rules! kinds {
            ($($kind:ty),*) => {
                match info.kind {
                    $(<$kind as Kind>::KIND => specs::<$kind>(&self.state, tenant, name),)*
                    _ => Vec::new(),
                }
            };
        }
        for_all_kinds!(kinds)
    }

    /// Makes a change on the copy, as the director would: the differences of all objects.
    ///
    /// # Errors
    /// [`Refusal`], and nothing is changed.
    pub fn change(
        &mut self,
        info: &KindInfo,
        tenant: &str,
        name: &str,
        change: RehearsedChange<'_>,
        options: Options,
    ) -> Result<Vec<Difference>, Refusal> {
        let tenant = (info.scope == Scope::Tenant).then_some(tenant);
        macro_rules! kinds {
            ($($kind:ty),*) => {
                match info.kind {
                    $(<$kind as Kind>::KIND => {
                        self.change_of::<$kind>(tenant, name, change, options)
                    })*
                    kind => Err(unreadable(kind, tenant, name, "there is no such kind")),
                }
            };
        }
        for_all_kinds!(kinds)
    }

    fn change_of<K: Kind>(
        &mut self,
        tenant: Option<&str>,
        name: &str,
        change: RehearsedChange<'_>,
        options: Options,
    ) -> Result<Vec<Difference>, Refusal> {
        let revision = self.state.revision() + 1;
        let origin = Origin {
            now: self.now,
            // Differs from those of the other changes; nothing depends on its value.
            uid: Uuid::from_u128(revision.into()),
        };
        let state = &self.state;
        let spec = |spec: &Value| {
            serde_json::from_value::<K>(spec.clone())
                .map_err(|error| unreadable(K::KIND, tenant, name, &format!("spec: {error}")))
        };
        let accepted: Accepted<K> = match change {
            RehearsedChange::Create(new) => {
                create(state, tenant, name, spec(new)?, origin, options)?
            }
            RehearsedChange::Replace(new) => {
                replace(state, tenant, name, spec(new)?, origin, options)?
            }
            RehearsedChange::Remove => remove(state, tenant, name, origin, options)?,
        };
        let applied = self.state.apply(&accepted.transaction, revision);
        applied.map_err(|error| unreadable(K::KIND, tenant, name, &error.to_string()))?;
        Ok(accepted.differences)
    }
}

fn key(info: &KindInfo, tenant: &str, name: &str) -> String {
    match info.scope {
        Scope::Provider => format!("{}/{name}", info.kind),
        Scope::Tenant => format!("{}/{tenant}/{name}", info.kind),
    }
}

fn unreadable(kind: &str, tenant: Option<&str>, name: &str, text: &str) -> Refusal {
    let conflict = Conflict {
        kind: kind.to_owned(),
        tenant: tenant.map(ToOwned::to_owned),
        name: name.to_owned(),
        field: "spec".to_owned(),
        value: String::new(),
    };
    Refusal::new(
        Reason::Invalid,
        format!("{kind} {name:?}: {text}"),
        vec![conflict],
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Object, kind};

    fn info(name: &str) -> &'static KindInfo {
        kind(name).unwrap()
    }

    /// The objects of a state, as a director answers them.
    fn copy(state: &State) -> Rehearsal {
        let mut copy = Rehearsal::new(Timestamp::UNIX_EPOCH);
        fn add<K: Kind>(state: &State, copy: &mut Rehearsal) {
            for object in state.all::<K>().iter() {
                let mut value = serde_json::to_value::<&Object<K>>(object).unwrap();
                value["conditions"] = json!([]);
                copy.add(info(K::KIND), &value).unwrap();
            }
        }
        macro_rules! kinds {
            ($($kind:ty),*) => { $(add::<$kind>(state, &mut copy);)* };
        }
        for_all_kinds!(kinds);
        copy.ready();
        copy
    }

    fn filled() -> Rehearsal {
        let mut rehearsal = Rehearsal::new(Timestamp::UNIX_EPOCH);
        for (kind, tenant, name, spec) in [
            (
                "host",
                "",
                "h1",
                json!({"platform": "kvm", "switches": [{"name": "br0"}]}),
            ),
            (
                "vlan-pool",
                "",
                "pool",
                json!({"host": "h1", "switch": "br0", "with_internet": ["101-102"]}),
            ),
            (
                "hardware-plan",
                "",
                "small",
                json!({"vlan_pool": "pool", "networks_with_internet": 2}),
            ),
            ("tenant", "", "acme", json!({})),
            (
                "subscription",
                "acme",
                "web",
                json!({"hardware_plan": "small"}),
            ),
            (
                "address-pool",
                "",
                "public",
                json!({"ranges": ["192.0.2.10"]}),
            ),
            ("address", "acme", "one", json!({"pool": "public"})),
        ] {
            let change = RehearsedChange::Create(&spec);
            let done = rehearsal.change(info(kind), tenant, name, change, Options::default());
            assert!(!done.unwrap().is_empty(), "{kind} {name}");
        }
        rehearsal
    }

    #[test]
    fn a_copy_of_the_objects_has_their_claims_and_refuses_the_same() {
        let original = filled();
        let mut copied = copy(&original.state);
        assert_eq!(copied.state.claims, original.state.claims);
        assert_eq!(copied.state.claims.len(), 3);
        let tenant = json!({});
        let create = RehearsedChange::Create(&tenant);
        let usual = Options::default;
        let globex = copied.change(info("tenant"), "", "globex", create, usual());
        globex.unwrap();
        let spec = json!({"hardware_plan": "small"});
        let create = RehearsedChange::Create(&spec);
        let refused = copied.change(info("subscription"), "globex", "web", create, usual());
        assert_eq!(refused.unwrap_err().reason, Reason::Exhausted);
        let gone = copied.change(
            info("subscription"),
            "acme",
            "web",
            RehearsedChange::Remove,
            usual(),
        );
        assert_eq!(gone.unwrap().len(), 4);
        let done = copied.change(info("subscription"), "globex", "web", create, usual());
        assert_eq!(done.unwrap().len(), 4);
        // The original has not changed.
        assert!(
            original
                .state
                .get::<Subscription>(Some("acme"), "web")
                .is_some()
        );
        assert!(original.get(info("network"), "acme", "web-1").is_some());
        assert!(copied.get(info("network"), "acme", "web-1").is_none());
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let mut rehearsal = filled();
        let host = json!({"metadata": {"name": "h2"}, "spec": {}, "status": {}});
        rehearsal.add(info("host"), &host).unwrap_err();
        let spec = json!({"platform": "vax"});
        let change = RehearsedChange::Create(&spec);
        let refused = rehearsal.change(info("host"), "", "h2", change, Options::default());
        let text = refused.unwrap_err().detail;
        assert!(text.contains("unknown variant `vax`"), "{text}");
        assert!(rehearsal.state.get::<Host>(None, "h2").is_none());
        let others = rehearsal.others(info("vlan-pool"), "", "other");
        assert_eq!(others[0]["with_internet"], json!(["101-102"]));
    }
}
