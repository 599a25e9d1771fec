//! The whole state of the provider, in memory.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeMap, fmt, ops::Bound};

use serde::{Deserialize, Serialize};

use crate::{
    Address, AddressPool, Appliance, Gateway, GatewayPool, HardwarePlan, Host, Kind, Mapping,
    Network, Object, Plan, Policy, Revision, Rule, Scope, Subscription, Tenant, Transaction,
    VlanPool, name::segment,
};

/// First segment of the keys of claims.
const CLAIM: &str = "claim";
/// First segment of the keys of guards.
const GUARD: &str = "guard";

/// Calls a macro with all kinds, each after those that its objects refer to.
macro_rules! for_all_kinds {
    ($macro:ident) => {
        $macro!(
            Host,
            VlanPool,
            AddressPool,
            HardwarePlan,
            Gateway,
            GatewayPool,
            Tenant,
            Subscription,
            Network,
            Appliance,
            Address,
            Mapping,
            Policy,
            Rule,
            Plan
        )
    };
}

pub(crate) use for_all_kinds;

/// Tenant and name of an object. A table is asked for borrowed ones: a change of a plan looks up
/// thousands of objects.
trait ObjectKey {
    fn parts(&self) -> (&str, &str);
}

impl ObjectKey for (String, String) {
    fn parts(&self) -> (&str, &str) {
        (&self.0, &self.1)
    }
}

impl ObjectKey for (&str, &str) {
    fn parts(&self) -> (&str, &str) {
        *self
    }
}

impl<'p> Borrow<dyn ObjectKey + 'p> for (String, String) {
    fn borrow(&self) -> &(dyn ObjectKey + 'p) {
        self
    }
}

impl PartialEq for dyn ObjectKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn ObjectKey + '_ {}

impl PartialOrd for dyn ObjectKey + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn ObjectKey + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// The objects of one kind, by tenant and name.
#[derive(Clone, Debug, PartialEq)]
pub struct Table<K: Kind>(BTreeMap<(String, String), Object<K>>);

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Kind> Table<K> {
    /// The object of this name; `tenant` is empty for objects of the provider.
    #[must_use]
    pub fn get(&self, tenant: &str, name: &str) -> Option<&Object<K>> {
        self.0.get(&(tenant, name) as &dyn ObjectKey)
    }

    /// All objects, sorted by tenant and name.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Object<K>> {
        self.0.values()
    }

    /// The objects of a tenant, sorted by name.
    pub fn of_tenant(&self, tenant: &str) -> impl Iterator<Item = &Object<K>> {
        let objects = self.range_from(Bound::Included((tenant, "")));
        objects
            .take_while(move |((of, _), _)| of == tenant)
            .map(|(_, object)| object)
    }

    /// The objects after this one, sorted by tenant and name; all for `None`.
    pub fn after(&self, last: Option<(&str, &str)>) -> impl Iterator<Item = &Object<K>> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.range_from(from).map(|(_, object)| object)
    }

    fn range_from(
        &self,
        key: Bound<(&str, &str)>,
    ) -> std::collections::btree_map::Range<'_, (String, String), Object<K>> {
        let key = key.as_ref().map(|key| key as &dyn ObjectKey);
        self.0.range::<dyn ObjectKey, _>((key, Bound::Unbounded))
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The use of one VLAN or one public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The pool that it was taken from.
    pub pool: String,
    /// The tenant that it was given to.
    pub tenant: String,
    /// The tenant's network (VLAN) or address (public address).
    pub owner: String,
}

/// For people: `"web-1" of tenant "acme" (pool "p")`.
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pool,
            tenant,
            owner,
        } = self;
        write!(f, "{owner:?} of tenant {tenant:?} (pool {pool:?})")
    }
}

/// A stored value cannot be read. The state is not used then: a part of it would look like a
/// withdrawal of the rest.
#[derive(Debug, thiserror::Error)]
pub enum Corrupt {
    /// The key is of no known kind.
    #[error(
        "the stored key {key:?} is of no kind that this version knows: start the version that \
         wrote it, or restore a backup"
    )]
    Key {
        /// As it is stored.
        key: String,
    },
    /// The value is no object of the key's kind.
    #[error(
        "the stored value of {key:?} cannot be read: {source}; start the version that wrote it, or \
         restore a backup"
    )]
    Value {
        /// Where the value is stored.
        key: String,
        /// The error.
        source: serde_json::Error,
    },
}

/// All objects, claims and guards of one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(crate) revision: Revision,
    pub(crate) hosts: Table<Host>,
    pub(crate) vlan_pools: Table<VlanPool>,
    pub(crate) address_pools: Table<AddressPool>,
    pub(crate) hardware_plans: Table<HardwarePlan>,
    pub(crate) tenants: Table<Tenant>,
    pub(crate) subscriptions: Table<Subscription>,
    pub(crate) networks: Table<Network>,
    pub(crate) appliances: Table<Appliance>,
    pub(crate) addresses: Table<Address>,
    pub(crate) gateways: Table<Gateway>,
    pub(crate) gateway_pools: Table<GatewayPool>,
    pub(crate) mappings: Table<Mapping>,
    pub(crate) policies: Table<Policy>,
    pub(crate) rules: Table<Rule>,
    pub(crate) plans: Table<Plan>,
    pub(crate) claims: BTreeMap<String, Claim>,
    pub(crate) guards: BTreeMap<String, Revision>,
}

impl State {
    /// The state of a snapshot of the store: its keys, values and their revisions.
    ///
    /// # Errors
    /// [`Corrupt`] for the first value that cannot be read.
    pub fn load<'a>(
        values: impl IntoIterator<Item = (&'a str, &'a str, Revision)>,
        revision: Revision,
    ) -> Result<Self, Corrupt> {
        let mut state = Self::default();
        for (key, value, written) in values {
            state.set(key, Some(value), written)?;
        }
        state.revision = revision;
        Ok(state)
    }

    /// Prefixes of all keys of a state, for snapshots of a store that has other keys, too.
    #[must_use]
    pub fn prefixes() -> Vec<String> {
        macro_rules! kinds {
            ($($kind:ty),*) => { [CLAIM, GUARD, $(<$kind as Kind>::KIND),*] };
        }
        let kinds = for_all_kinds!(kinds);
        kinds.iter().map(|kind| format!("{kind}/")).collect()
    }

    /// The revision of the last commit that is in the state.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The objects of a kind.
    #[must_use]
    pub fn all<K: Kind>(&self) -> &Table<K> {
        K::table(self)
    }

    /// An object; `tenant` is `None` for objects of the provider.
    #[must_use]
    pub fn get<K: Kind>(&self, tenant: Option<&str>, name: &str) -> Option<&Object<K>> {
        K::table(self).get(tenant.unwrap_or_default(), name)
    }

    /// The claims of VLANs and public addresses, by key.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &Claim)> {
        self.claims.iter().map(|(key, claim)| (key.as_str(), claim))
    }

    /// Applies a committed transaction.
    ///
    /// # Errors
    /// [`Corrupt`]; the state is then to be loaded again.
    pub fn apply(&mut self, transaction: &Transaction, revision: Revision) -> Result<(), Corrupt> {
        for (key, value) in transaction.changes() {
            self.set(key, value, revision)?;
        }
        self.revision = revision;
        Ok(())
    }

    /// Reads one value of a commit, or its deletion, without a state: it can be done while the
    /// commit is written.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn read(key: &str, value: Option<&str>) -> Result<Step, Corrupt> {
        let (kind, _) = key.split_once('/').unwrap_or((key, ""));
        macro_rules! kinds {
            ($($kind:ty),*) => {
                match kind {
                    CLAIM => read_claim(key, value),
                    GUARD => {
                        let (key, is_there) = (key.to_owned(), value.is_some());
                        Ok(Step::new(move |state, revision| {
                            match is_there {
                                true => state.guards.insert(key, revision),
                                false => state.guards.remove(&key),
                            };
                        }))
                    }
                    $(<$kind as Kind>::KIND => read_object::<$kind>(key, value),)*
                    _ => Err(Corrupt::Key { key: key.to_owned() }),
                }
            };
        }
        for_all_kinds!(kinds)
    }

    /// Applies one value of a commit, or its deletion.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn set(
        &mut self,
        key: &str,
        value: Option<&str>,
        revision: Revision,
    ) -> Result<(), Corrupt> {
        Self::read(key, value)?.apply(self, revision);
        Ok(())
    }

    /// Sets the revision after all values of a commit have been applied.
    pub fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// An object as JSON, by its key; `None` for keys of other things.
    pub(crate) fn value(&self, key: &str) -> Option<serde_json::Value> {
        let (kind, _) = key.split_once('/')?;
        macro_rules! kinds {
            ($($kind:ty),*) => {
                match kind {
                    $(<$kind as Kind>::KIND => self.json::<$kind>(key),)*
                    _ => None,
                }
            };
        }
        for_all_kinds!(kinds)
    }

    fn json<K: Kind>(&self, key: &str) -> Option<serde_json::Value> {
        let (tenant, name) = place::<K>(key)?;
        serde_json::to_value(K::table(self).get(tenant, name)?).ok()
    }
}

/// A value of a commit that has been read, or a deletion.
pub struct Step(Box<Change>);

/// The effect of a step on a state, with the revision of its commit.
type Change = dyn FnOnce(&mut State, Revision) + Send;

impl Step {
    fn new(step: impl FnOnce(&mut State, Revision) + Send + 'static) -> Self {
        Self(Box::new(step))
    }

    /// Applies it, with the revision of its commit.
    pub fn apply(self, state: &mut State, revision: Revision) {
        (self.0)(state, revision);
    }
}

fn read_claim(key: &str, value: Option<&str>) -> Result<Step, Corrupt> {
    let claim: Option<Claim> = value.map(|value| parse(key, value)).transpose()?;
    let key = key.to_owned();
    Ok(Step::new(move |state, _| {
        match claim {
            Some(claim) => state.claims.insert(key, claim),
            None => state.claims.remove(&key),
        };
    }))
}

fn read_object<K: Kind>(key: &str, value: Option<&str>) -> Result<Step, Corrupt> {
    let unknown = || Corrupt::Key {
        key: key.to_owned(),
    };
    let (tenant, name) = place::<K>(key).ok_or_else(unknown)?;
    let at = (tenant.to_owned(), name.to_owned());
    let Some(value) = value else {
        return Ok(Step::new(move |state, _| {
            drop(K::table_mut(state).0.remove(&at));
        }));
    };
    let mut object: Object<K> = parse(key, value)?;
    if (object.tenant(), object.name()) != (tenant, name) {
        return Err(unknown());
    }
    Ok(Step::new(move |state, revision| {
        object.metadata.revision = revision;
        K::table_mut(state).0.insert(at, object);
    }))
}

/// Tenant and name of a key of the kind; the tenant is empty for objects of the provider.
fn place<K: Kind>(key: &str) -> Option<(&str, &str)> {
    let mut segments = key.split('/').skip(1);
    let (first, second) = (segments.next()?, segments.next());
    match (K::SCOPE, second, segments.next()) {
        (Scope::Provider, None, None) => Some(("", first)),
        (Scope::Tenant, Some(name), None) => Some((first, name)),
        (Scope::Provider | Scope::Tenant, _, _) => None,
    }
}

fn parse<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Result<T, Corrupt> {
    serde_json::from_str(value).map_err(|source| Corrupt::Value {
        key: key.to_owned(),
        source,
    })
}

/// Key of the claim of a VLAN. `domain` is that of [`vlan_domain`].
pub(crate) fn vlan_claim(domain: &str, vlan: u16) -> String {
    vlan_claims(domain) + &vlan.to_string()
}

/// The keys of claims of a domain's VLANs begin with this.
pub(crate) fn vlan_claims(domain: &str) -> String {
    format!("{CLAIM}/vlan/{domain}/")
}

/// Key of the claim of a public address.
pub(crate) fn address_claim(address: std::net::IpAddr) -> String {
    format!("{CLAIM}/address/{address}")
}

/// Key of the guard of the provider's objects, and of what tenants take from its pools.
pub(crate) fn provider_guard() -> String {
    format!("{GUARD}/provider")
}

/// Key of the guard of a tenant's objects.
pub(crate) fn tenant_guard(tenant: &str) -> String {
    format!("{GUARD}/tenant/{tenant}")
}

/// The part of keys that stands for one set of VLANs: a trunk that several switches share, or a
/// switch by itself. `None` if there is no such switch.
pub(crate) fn vlan_domain(state: &State, host: &str, switch: &str) -> Option<String> {
    let found = state.hosts.get("", host)?;
    let mut switches = found.spec.switches.iter();
    let found = switches.find(|found| found.name == switch)?;
    Some(match &found.trunk {
        Some(trunk) => format!("trunk/{}", segment(trunk)),
        None => format!("switch/{}/{}", segment(host), segment(switch)),
    })
}
