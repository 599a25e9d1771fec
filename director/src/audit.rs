//! The audit: an entry for each change, in the transaction of the change, chained by hashes.
//!
//! ```text
//!   entry 1 ─ hash ─▶ entry 2 ─ hash ─▶ entry 3 ─ hash ─▶ head: number and hash of the last
//! ```
//!
//! An entry that is altered, left out or put in between breaks the chain at its place.

use control::{Difference, Must, Revision, Transaction};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::{people::Actor, roles::Role};

/// Prefix of the keys of entries.
pub const PREFIX: &str = "audit/";
/// Key of the head.
pub const HEAD: &str = "audit-head";

/// Hash of the entry before the first.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// An entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Number of the entry, from 1 without gaps.
    pub number: u64,
    /// Time of the change.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub user: String,
    /// The user's role.
    pub role: Role,
    /// The user's tenant, for roles of a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_tenant: Option<String>,
    /// The API token.
    pub token: String,
    /// The operation of the API.
    pub operation: String,
    /// Kind of the object.
    pub kind: String,
    /// Tenant of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of the object.
    pub name: String,
    /// The reason that the user gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// All objects that the change created, changed or removed.
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<Difference>,
    /// Hash of the entry before.
    pub previous: String,
    /// SHA-256 of this entry without this field, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// The last entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Its number; 0 if there is none.
    pub number: u64,
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            number: 0,
            hash: START.to_owned(),
        }
    }
}

/// The operation and object of an entry.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The operation of the API.
    pub operation: String,
    /// Kind of the object.
    pub kind: String,
    /// Tenant of the object.
    pub tenant: Option<String>,
    /// Name of the object.
    pub name: String,
    /// The reason that the user gave.
    pub reason: Option<String>,
}

/// Adds the next entry to the transaction of a change: the head after it.
///
/// # Errors
/// When the entry has no JSON form.
pub fn append(
    transaction: &mut Transaction,
    head: &Head,
    written: Option<Revision>,
    at: Timestamp,
    actor: &Actor,
    subject: &Subject,
    changes: Vec<Difference>,
) -> serde_json::Result<Head> {
    let mut entry = Entry {
        number: head.number + 1,
        at,
        user: actor.user.clone(),
        role: actor.role,
        user_tenant: actor.tenant.clone(),
        token: actor.token.clone(),
        operation: subject.operation.clone(),
        kind: subject.kind.clone(),
        tenant: subject.tenant.clone(),
        name: subject.name.clone(),
        reason: subject.reason.clone(),
        changes,
        previous: head.hash.clone(),
        hash: String::new(),
    };
    entry.hash = entry.computed_hash()?;
    let after = Head {
        number: entry.number,
        hash: entry.hash.clone(),
    };
    let must = written.map_or(Must::Absent, Must::At);
    transaction.must.insert(HEAD.to_owned(), must);
    transaction
        .put
        .insert(HEAD.to_owned(), serde_json::to_string(&after)?);
    let key = format!("{PREFIX}{:020}", entry.number);
    transaction.must.insert(key.clone(), Must::Absent);
    transaction.put.insert(key, serde_json::to_string(&entry)?);
    Ok(after)
}

impl Entry {
    fn computed_hash(&self) -> serde_json::Result<String> {
        let unsigned = Self {
            hash: String::new(),
            ..self.clone()
        };
        Ok(hex(&Sha256::digest(serde_json::to_vec(&unsigned)?)))
    }
}

/// The chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An entry does not follow the one before it.
    #[error("entry {number} does not follow entry {}: {reason}", number - 1)]
    Entry {
        number: u64,
        /// The difference.
        reason: &'static str,
    },
    /// The head is not that of the last entry.
    #[error("the last entry is {found}, and the head names entry {expected}")]
    Head {
        /// Number of the last entry.
        found: u64,
        /// Number in the head.
        expected: u64,
    },
    /// An entry cannot be read.
    #[error("an entry after {after} cannot be read: {reason}")]
    Unreadable {
        /// Number of the entry before.
        after: u64,
        /// The error.
        reason: String,
    },
}

/// Checks the chain of all entries, in order: the number of entries.
///
/// # Errors
/// [`Broken`]: the first place.
pub fn verify<'a>(entries: impl IntoIterator<Item = &'a str>, head: &Head) -> Result<u64, Broken> {
    let mut before = Head::default();
    for text in entries {
        let unreadable = |error: serde_json::Error| Broken::Unreadable {
            after: before.number,
            reason: error.to_string(),
        };
        let entry: Entry = serde_json::from_str(text).map_err(unreadable)?;
        let number = before.number + 1;
        let broken = |reason| Err(Broken::Entry { number, reason });
        if entry.number != number {
            return broken("an entry is missing, or there twice");
        }
        if entry.previous != before.hash {
            return broken("it names another hash");
        }
        if entry.computed_hash().map_err(unreadable)? != entry.hash {
            return broken("its content has another hash");
        }
        before = Head {
            number,
            hash: entry.hash,
        };
    }
    if before != *head {
        return Err(Broken::Head {
            found: before.number,
            expected: head.number,
        });
    }
    Ok(head.number)
}

/// Bytes as hexadecimal text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
