//! The audit as the director keeps it: the keys of entries and checkpoints, and new ones. Their
//! form is that of [`control::audit`].

mod access;

pub(crate) use access::{Access, Accesses, DELAY, Take, WINDOW};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use control::{Difference, Precondition, Revision, Transaction};
use jiff::Timestamp;

pub use control::audit::{Broken, Chain, Checkpoint, Entry, Head, Outcome, Trust, hex};

use store::Store;

use crate::people::Actor;

/// Prefix of the keys of entries.
pub const PREFIX: &str = "audit/";
/// Key of the head.
pub const HEAD: &str = "audit-head";
/// Prefix of the keys of checkpoints.
pub const CHECKPOINTS: &str = "audit-checkpoint/";

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
    /// The address that the request came from.
    pub address: Option<std::net::IpAddr>,
    /// The result.
    pub outcome: Outcome,
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
    let entry = Entry {
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
        address: subject.address.map(|address| address.to_string()),
        result: Some(subject.outcome.clone()),
        changes,
        previous: head.hash.clone(),
        hash: String::new(),
    };
    let (text, hash) = entry.signed()?;
    let after = Head {
        number: entry.number,
        hash,
    };
    let precondition = written.map_or(Precondition::Absent, Precondition::At);
    transaction
        .preconditions
        .insert(HEAD.to_owned(), precondition);
    transaction
        .put
        .insert(HEAD.to_owned(), serde_json::to_string(&after)?);
    let key = format!("{PREFIX}{:020}", entry.number);
    transaction.create(key, text);
    Ok(after)
}

/// A transaction with a checkpoint of the last entry.
///
/// # Errors
/// When the checkpoint has no JSON form.
pub fn checkpoint(
    head: &Head,
    written: Option<Revision>,
    at: Timestamp,
    key: &Ed25519KeyPair,
) -> serde_json::Result<Transaction> {
    let mut transaction = Transaction::default();
    let precondition = written.map_or(Precondition::Absent, Precondition::At);
    transaction
        .preconditions
        .insert(HEAD.to_owned(), precondition);
    sign(&mut transaction, head, at, key, None)?;
    Ok(transaction)
}

/// Adds a checkpoint of the last entry to a transaction, which may write that entry. `next` is the
/// public key, hexadecimal, that signs later ones; it may sign the same entry in the same
/// transaction.
///
/// # Errors
/// When the checkpoint has no JSON form.
pub fn sign(
    transaction: &mut Transaction,
    head: &Head,
    at: Timestamp,
    key: &Ed25519KeyPair,
    next: Option<String>,
) -> serde_json::Result<()> {
    let mut checkpoint = Checkpoint {
        number: head.number,
        hash: head.hash.clone(),
        at,
        key: hex(key.public_key().as_ref()),
        next,
        signature: String::new(),
    };
    checkpoint.signature = hex(key.sign(checkpoint.text().as_bytes()).as_ref());
    let mut stored = format!("{CHECKPOINTS}{:020}", head.number);
    if transaction.put.contains_key(&stored) {
        stored += "-next";
    }
    transaction.create(stored, serde_json::to_string(&checkpoint)?);
    Ok(())
}

/// Checks the chain of all stored entries, in order, with its checkpoints: the number of entries,
/// and that of the last one that a checkpoint covers.
///
/// # Errors
/// [`Broken`]: the first place.
pub fn verify<'a>(
    entries: impl IntoIterator<Item = &'a str>,
    checkpoints: impl IntoIterator<Item = Checkpoint>,
    head: &Head,
    trust: &Trust,
) -> Result<(u64, Option<u64>), Broken> {
    let mut chain = Chain::new(checkpoints, trust)?;
    let mut after = 0;
    for text in entries {
        let entry: Entry = serde_json::from_str(text).map_err(|error| Broken::Unreadable {
            after,
            reason: error.to_string(),
        })?;
        chain.push(&entry)?;
        after = entry.number;
    }
    let (last, signed) = chain.finish()?;
    if last != *head {
        return Err(Broken::Head {
            found: last.number,
            expected: head.number,
        });
    }
    Ok((head.number, signed))
}

/// The audit of a store cannot be read, or its chain is broken.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The head or a checkpoint cannot be read.
    #[error("a value of the audit cannot be read: {0}")]
    Value(#[from] serde_json::Error),
    /// The chain is broken.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Checks the chain of a store's audit, as [`verify`] does.
///
/// # Errors
/// [`VerifyError`].
pub async fn verify_store(
    store: &impl Store,
    trust: &Trust,
) -> Result<(u64, Option<u64>), VerifyError> {
    let head = store.snapshot(HEAD).await?;
    let head: Head = match head.entries.first() {
        Some(entry) => serde_json::from_str(&entry.value)?,
        None => Head::default(),
    };
    let entries = store.snapshot(PREFIX).await?;
    let entries = entries.entries.iter().map(|entry| entry.value.as_str());
    let checkpoints = store.snapshot(CHECKPOINTS).await?;
    let checkpoints = checkpoints.entries.iter();
    let checkpoints: Vec<_> = checkpoints
        .map(|entry| serde_json::from_str(&entry.value))
        .collect::<Result<_, _>>()?;
    Ok(verify(entries, checkpoints, &head, trust)?)
}
