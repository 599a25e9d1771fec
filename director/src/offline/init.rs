//! The first user of a store.

use std::path::Path;

use control::Transaction;
use store::{CommitError, Options, Sqlite, Store as _};

use crate::{
    Environment,
    audit::{self, Head, Outcome, Subject},
    people::{Actor, USERS, User, add_token, check_password, hash_password, token_hash},
    roles::Role,
};

/// The store cannot be initialised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It has been initialised already.
    #[error(
        "the store has users already: log in as one of them, or run `causeway-director recover`"
    )]
    AlreadyInitialised,
    /// It has a part of an import.
    #[error("the store has a part of an import only: import the file again")]
    Unfinished,
    /// The password cannot be used.
    #[error("{0}")]
    Password(String),
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

/// Creates a store and its first administrator, who may have a password: the secret of a token for
/// 24 hours.
///
/// # Errors
/// [`Error`].
pub async fn init(
    path: &Path,
    user: &str,
    password: Option<&str>,
    environment: &dyn Environment,
) -> Result<String, Error> {
    if let Some(password) = password {
        check_password(password).map_err(Error::Password)?;
    }
    let store = Sqlite::open(path, Options::default())?;
    if store::is_unfinished(&store).await? {
        return Err(Error::Unfinished);
    }
    if !store.snapshot(USERS).await?.entries.is_empty() {
        return Err(Error::AlreadyInitialised);
    }
    let now = environment.now();
    let password = password.map(|password| hash_password(password, environment));
    let admin = User {
        name: user.to_owned(),
        role: Role::ProviderAdmin,
        tenant: None,
        object: None,
        totp: None,
        password: password.transpose()?,
    };
    let mut transaction = Transaction::default();
    let key = format!("{USERS}{user}");
    transaction.create(key, serde_json::to_string(&admin)?);
    let secret = add_token(&mut transaction, user, "init", now, environment)?;
    let actor = Actor {
        user: user.to_owned(),
        role: Role::ProviderAdmin,
        tenant: None,
        object: None,
        token: token_hash(&secret)[..16].to_owned(),
    };
    let subject = Subject {
        operation: "init".to_owned(),
        kind: "user".to_owned(),
        tenant: None,
        name: user.to_owned(),
        reason: None,
        address: None,
        outcome: Outcome::done(200),
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
