//! A change: what is wanted, what is computed, and what came of it.

use control::{Difference, Revision, Transaction};
use serde_json::Value;

use crate::{audit::Subject, people::Actor};

/// A computed change.
pub(crate) struct Planned {
    pub transaction: Transaction,
    /// Body of the answer.
    pub body: Value,
    pub warnings: Vec<String>,
    /// Of objects; those of users and tokens follow from the transaction.
    pub differences: Vec<Difference>,
}

/// A change that was made, or would be made.
pub(crate) struct Applied {
    pub status: u16,
    pub body: Value,
    pub warnings: Vec<String>,
    /// For a dry run.
    pub differences: Vec<Difference>,
    /// The commit; `None` for a dry run, and if nothing changes.
    pub revision: Option<Revision>,
}

/// A request of a change.
pub(crate) struct Wanted<'a> {
    pub actor: &'a Actor,
    pub subject: Subject,
    /// Compute only.
    pub dry_run: bool,
    /// Status of the answer.
    pub status: u16,
    /// Key of the stored answer, and the hash of the request.
    pub idempotency: Option<(String, String)>,
}

/// Why a change that is none of an object was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError<E> {
    /// The plan refuses.
    #[error("{0}")]
    Refused(E),
    /// The store cannot be used, or the director stops.
    #[error("the store cannot be used, or the director stops")]
    Unavailable,
}
