//! Objects of the API: metadata, desired state and observed state.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    Condition, Observed, Refusal, Revision, State, Table, draft::Draft, refusal::Problems,
};

/// Which name space the objects of a kind are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Names are unique at the provider.
    Provider,
    /// Names are unique within a tenant.
    Tenant,
}

/// A kind of objects: the type of their desired state.
pub trait Kind:
    Clone
    + fmt::Debug
    + PartialEq
    + Serialize
    + DeserializeOwned
    + Sized
    + Send
    + Sync
    + Rules
    + 'static
{
    /// Name of the kind, such as `vlan-pool`. Stable: it is in keys and refusals.
    const KIND: &'static str;
    /// Name of the kind's collection in paths of the API, such as `vlan-pools`.
    const PLURAL: &'static str;
    /// Name space of the objects.
    const SCOPE: Scope;
    /// The observed state.
    type Status: Clone
        + fmt::Debug
        + Default
        + PartialEq
        + Send
        + Sync
        + Serialize
        + DeserializeOwned;

    /// The kind's objects.
    fn table(state: &State) -> &Table<Self>;

    /// The kind's objects, to apply a commit.
    #[doc(hidden)]
    fn table_mut(state: &mut State) -> &mut Table<Self>;

    /// Key of an object in the store.
    #[must_use]
    fn key(tenant: Option<&str>, name: &str) -> String {
        match tenant {
            None => format!("{}/{name}", Self::KIND),
            Some(tenant) => format!("{}/{tenant}/{name}", Self::KIND),
        }
    }
}

/// The rules of a kind, as pure functions. Callers use [`create`](crate::create),
/// [`replace`](crate::replace) and [`remove`](crate::remove).
#[doc(hidden)]
pub trait Rules: Sized {
    /// Collects the problems of an object by itself.
    fn check(&self, problems: &mut Problems)
    where
        Self: Kind;

    /// Checks an object against the others of the state, as far as every change of it does,
    /// whatever it was before. [`Rules::put`] has the checks that depend on that.
    ///
    /// # Errors
    /// [`Refusal`].
    fn check_against(_: &Object<Self>, _: &State) -> Result<(), Refusal>
    where
        Self: Kind,
    {
        Ok(())
    }

    /// Checks a new object or a new spec against the state, fills in its status, and adds other
    /// objects and claims to the draft. The caller adds the object itself.
    ///
    /// # Errors
    /// [`Refusal`].
    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal>
    where
        Self: Kind;

    /// Checks whether an object may be removed, and adds other objects and claims to the draft.
    ///
    /// # Errors
    /// [`Refusal`].
    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal>
    where
        Self: Kind;

    /// The conditions of an object now; none for kinds that have none.
    fn conditions(_: &Object<Self>, _: &mut Observed<'_>) -> Vec<Condition>
    where
        Self: Kind,
    {
        Vec::new()
    }
}

/// Data of an object that the director maintains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name: unique among objects of the kind, within the tenant for a tenant's objects.
    pub name: String,
    /// The tenant that the object belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Identity: differs from that of an earlier object of the same name.
    pub uid: Uuid,
    /// Number of the spec: 1 for the first, one more with each change of the spec.
    pub generation: u64,
    /// Time of creation.
    pub created: Timestamp,
    /// The commit that wrote the object last; 0 for an object that is not committed. Not part of
    /// the stored value.
    #[serde(default)]
    pub revision: Revision,
    /// The owner: a set of declarations that the object comes from, if it comes from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// An object of the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "", deny_unknown_fields)]
pub struct Object<K: Kind> {
    /// Data that the director maintains.
    pub metadata: Metadata,
    /// The desired state.
    pub spec: K,
    /// The observed state, and what the director has allocated.
    #[serde(default)]
    pub status: K::Status,
}

/// Status of kinds that have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Time and identity for what a change creates: the caller has a clock and a random source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Time of the change.
    pub now: Timestamp,
    /// A new identity. Objects that a change creates beside the requested one have identities
    /// derived from it.
    pub uid: Uuid,
}

impl Origin {
    /// The identity of another object that the change creates: the same for the same `key`.
    pub(crate) fn derived_uid(&self, key: &str) -> Uuid {
        Uuid::new_v5(&self.uid, key.as_bytes())
    }
}

/// An object as it is stored: without its revision.
#[derive(Serialize)]
#[serde(bound = "")]
struct Stored<'o, K: Kind> {
    metadata: Metadata,
    spec: &'o K,
    status: &'o K::Status,
}

impl<K: Kind> Object<K> {
    /// The text that is stored.
    pub(crate) fn stored(&self) -> String {
        let stored = Stored::<K> {
            metadata: Metadata {
                revision: 0,
                ..self.metadata.clone()
            },
            spec: &self.spec,
            status: &self.status,
        };
        // Keys are texts and numbers finite in every kind, so that there always is a JSON form.
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// The object's key in the store.
    #[must_use]
    pub fn key(&self) -> String {
        K::key(self.metadata.tenant.as_deref(), &self.metadata.name)
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The tenant's name; empty for an object of the provider.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.metadata.tenant.as_deref().unwrap_or_default()
    }
}
