//! Why a change is refused, as data and as text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Kind;

/// Kind of a refusal. Each corresponds to one status of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The object itself is wrong, whatever else there is (422).
    Invalid,
    /// The object does not exist (404).
    NotFound,
    /// Other objects contradict the change (409).
    Conflict,
    /// A pool has no free VLAN or address left, or a tenant has reached its limit (507).
    Exhausted,
}

/// An object and the field of it that contradicts a change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conflict {
    /// Kind of the object, such as `vlan-pool`.
    pub kind: String,
    /// Tenant of the object, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of the object.
    pub name: String,
    /// Field of the object.
    pub field: String,
    /// The part of the field that contradicts the change, such as the VLANs of both ranges.
    pub value: String,
}

/// A change is refused, and nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// Kind of the refusal.
    pub reason: Reason,
    /// The reason, and what to do, for people.
    pub detail: String,
    /// The contradicting objects, at least one. For [`Reason::Invalid`], the fields of the object
    /// itself.
    pub conflicts: Vec<Conflict>,
}

impl Conflict {
    /// A conflict with an object of the provider.
    pub(crate) fn new<K: Kind>(name: &str, field: &str, value: impl fmt::Display) -> Self {
        Self {
            kind: K::KIND.to_owned(),
            tenant: None,
            name: name.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
        }
    }

    /// The same, with an object of a tenant.
    pub(crate) fn of(mut self, tenant: &str) -> Self {
        self.tenant = Some(tenant.to_owned());
        self
    }
}

/// For people: `network "web-1" of tenant "acme"`.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)?;
        match &self.tenant {
            Some(tenant) => write!(f, " of tenant {tenant:?}"),
            None => Ok(()),
        }
    }
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>, conflicts: Vec<Conflict>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            conflicts,
        }
    }

    /// Other objects contradict the change.
    pub(crate) fn conflict(detail: impl Into<String>, conflicts: Vec<Conflict>) -> Self {
        Self::new(Reason::Conflict, detail, conflicts)
    }

    /// Refuses if there are conflicts; `detail` tells what to do about the first.
    ///
    /// # Errors
    /// All conflicts in one refusal, if there are any.
    pub(crate) fn of_conflicts(
        conflicts: Vec<Conflict>,
        detail: impl FnOnce(&Conflict) -> String,
    ) -> Result<(), Self> {
        match conflicts.first() {
            Some(first) => Err(Self::conflict(detail(first), conflicts)),
            None => Ok(()),
        }
    }

    /// The object does not exist; `tenant` is `None` for objects of the provider. Callers answer
    /// the same for an object that the person who asks must not learn of.
    #[must_use]
    pub fn not_found<K: Kind>(tenant: Option<&str>, name: &str) -> Self {
        let mut conflict = Conflict::new::<K>(name, "name", name);
        conflict.tenant = tenant.map(ToOwned::to_owned);
        let of = tenant.map_or_else(String::new, |tenant| format!(" of tenant {tenant:?}"));
        Self::new(
            Reason::NotFound,
            format!(
                "{} {name:?}{of} does not exist: check the name with `list`",
                K::KIND
            ),
            vec![conflict],
        )
    }
}

/// Problems of one object by itself.
pub struct Problems {
    kind: &'static str,
    tenant: Option<String>,
    name: String,
    found: Vec<(Conflict, String)>,
}

impl Problems {
    pub(crate) fn new<K: Kind>(tenant: Option<&str>, name: &str) -> Self {
        Self {
            kind: K::KIND,
            tenant: tenant.map(ToOwned::to_owned),
            name: name.to_owned(),
            found: Vec::new(),
        }
    }

    /// Adds a problem of a field: `message` says what to write instead.
    pub(crate) fn add(
        &mut self,
        field: &str,
        value: impl fmt::Display,
        message: impl fmt::Display,
    ) {
        let conflict = Conflict {
            kind: self.kind.to_owned(),
            tenant: self.tenant.clone(),
            name: self.name.clone(),
            field: field.to_owned(),
            value: value.to_string(),
        };
        self.found.push((conflict, format!("{field}: {message}")));
    }

    /// Adds a problem of a field unless `holds`.
    pub(crate) fn require(
        &mut self,
        holds: bool,
        field: &str,
        value: impl fmt::Display,
        message: impl fmt::Display,
    ) {
        if !holds {
            self.add(field, value, message);
        }
    }

    /// # Errors
    /// All problems in one refusal, if there are any.
    pub(crate) fn into_result(self) -> Result<(), Refusal> {
        if self.found.is_empty() {
            return Ok(());
        }
        let head = format!("{} {:?}", self.kind, self.name);
        let (conflicts, messages): (Vec<_>, Vec<_>) = self.found.into_iter().unzip();
        Err(Refusal::new(
            Reason::Invalid,
            format!("{head}: {}", messages.join("; ")),
            conflicts,
        ))
    }
}
