//! The first user of a store.

use std::path::Path;

use control::{Precondition, Transaction};
use jiff::SignedDuration;
use store::{CommitError, Options, Sqlite, Store as _};

use crate::{
    Chance,
    audit::{self, Head, Subject},
    people::{Actor, TOKENS, Token, USERS, User, new_secret, token_hash},
    roles::Role,
};

/// Lifetime of the first token.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// The store cannot be initialised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It has been initialised already.
    #[error("the store has users already: log in as one of them")]
    Done,
    /// It has a part of an import.
    #[error("the store has a part of an import only: import the file again")]
    Unfinished,
    /// The commit failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// There are no random bytes.
    #[error("cannot make a token: {0}")]
    Random(#[from] std::io::Error),
    /// A value has no JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Creates a store and its first administrator: the secret of a token for 24 hours.
///
/// # Errors
/// [`Error`].
pub async fn init(path: &Path, user: &str, chance: &dyn Chance) -> Result<String, Error> {
    let store = Sqlite::open(path, Options::default())?;
    if store::is_unfinished(&store).await? {
        return Err(Error::Unfinished);
    }
    if !store.snapshot(USERS).await?.entries.is_empty() {
        return Err(Error::Done);
    }
    let secret = new_secret(chance)?;
    let (hash, now) = (token_hash(&secret), chance.now());
    let admin = User {
        name: user.to_owned(),
        role: Role::ProviderAdmin,
        tenant: None,
        object: None,
        totp: None,
        password: None,
    };
    let token = Token {
        id: hash[..16].to_owned(),
        user: user.to_owned(),
        description: "init".to_owned(),
        created: now,
        expires: now.checked_add(LIFETIME).unwrap_or(now),
    };
    let mut transaction = Transaction::default();
    for (key, value) in [
        (format!("{USERS}{user}"), serde_json::to_string(&admin)?),
        (format!("{TOKENS}{hash}"), serde_json::to_string(&token)?),
    ] {
        transaction
            .preconditions
            .insert(key.clone(), Precondition::Absent);
        transaction.put.insert(key, value);
    }
    let actor = Actor {
        user: user.to_owned(),
        role: Role::ProviderAdmin,
        tenant: None,
        object: None,
        token: token.id.clone(),
    };
    let subject = Subject {
        operation: "init".to_owned(),
        kind: "user".to_owned(),
        tenant: None,
        name: user.to_owned(),
        reason: None,
        address: None,
    };
    let head = Head::default();
    audit::append(
        &mut transaction,
        &head,
        None,
        now,
        &actor,
        &subject,
        Vec::new(),
    )?;
    store.commit(transaction, None).await?;
    Ok(secret)
}
