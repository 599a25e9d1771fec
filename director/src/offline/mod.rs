//! Changes of a store that no director has open: another way in, another key of the audit, claims
//! made again, and the note that a backup was restored. Each has its audit entry, whose user is
//! that of the system.

pub(crate) mod init;
pub mod transfer;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use control::{ClaimError, Precondition, Revision, Transaction};
use jiff::Timestamp;
use store::{CommitError, Options, Sqlite, Store as _};

use crate::{
    Environment,
    audit::{self, Checkpoint, Head, Outcome, Subject},
    audit_key,
    live::{Live, LoadError},
    people::{Actor, USERS, User, add_token, check_password, hash_password},
    roles::Role,
};

/// The change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no store.
    #[error("there is no store {}: run `causeway-director init` first", path.display())]
    Absent { path: PathBuf },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The commit failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The user has another role.
    #[error("user {user:?} is no provider-admin: name another one by --user")]
    Role { user: String },
    /// The password cannot be used.
    #[error("{0}")]
    Password(String),
    /// The state cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The objects contradict each other.
    #[error("no claims can be made of objects that contradict each other: {0}; restore a backup")]
    Objects(Box<ClaimError>),
    /// The key of the audit cannot be used.
    #[error(transparent)]
    AuditKey(#[from] audit_key::Error),
    /// The file of a new key cannot be put in place.
    #[error(
        "the audit is signed by the key in {} now, which cannot be renamed: {source}; run the \
         command again",
        path.display()
    )]
    Rename {
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The kernel refuses random bytes, or a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A value cannot be read, or has no JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// A store that is open for one change.
struct Closed {
    store: Sqlite,
    head: Head,
    written: Option<Revision>,
    actor: Actor,
    now: Timestamp,
}

impl Closed {
    async fn open(path: &Path, environment: &dyn Environment) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::Absent {
                path: path.to_owned(),
            });
        }
        let store = Sqlite::open(path, Options::default())?;
        let head = store.snapshot(audit::HEAD).await?.entries.pop();
        let written = head.as_ref().map(|entry| entry.revision);
        let head = head.map(|entry| serde_json::from_str(&entry.value));
        let uid = fs::metadata("/proc/self")?.uid();
        Ok(Self {
            store,
            head: head.transpose()?.unwrap_or_default(),
            written,
            actor: Actor {
                // No user of the director has such a name.
                user: format!("uid:{uid}"),
                role: Role::ProviderAdmin,
                tenant: None,
                object: None,
                token: String::new(),
            },
            now: environment.now(),
        })
    }

    /// Adds the audit entry: the head after it.
    fn audit(
        &self,
        transaction: &mut Transaction,
        operation: &str,
        kind: &str,
        name: &str,
    ) -> Result<Head, Error> {
        let subject = Subject {
            operation: operation.to_owned(),
            kind: kind.to_owned(),
            tenant: None,
            name: name.to_owned(),
            reason: None,
            address: None,
            outcome: Outcome::done(200),
        };
        let (head, now, actor) = (&self.head, self.now, &self.actor);
        let changes = Vec::new();
        let head = audit::append(
            transaction,
            head,
            self.written,
            now,
            actor,
            &subject,
            changes,
        )?;
        Ok(head)
    }

    async fn last_checkpoint(&self) -> Result<Option<Checkpoint>, Error> {
        let last = self.store.snapshot(audit::CHECKPOINTS).await?.entries.pop();
        Ok(last
            .map(|entry| serde_json::from_str(&entry.value))
            .transpose()?)
    }
}

/// Lets an administrator in again: makes the user a `provider-admin` if there is none of that name,
/// and a token for 24 hours. With a password, that is the user's from now on, and an authenticator
/// is removed. Returns the secret of the token.
///
/// # Errors
/// [`Error`].
pub async fn recover(
    path: &Path,
    user: &str,
    password: Option<&str>,
    environment: &dyn Environment,
) -> Result<String, Error> {
    let store = Closed::open(path, environment).await?;
    let key = format!("{USERS}{user}");
    let found = store.store.snapshot(&key).await?.entries;
    let found = found.into_iter().find(|entry| entry.key == key);
    let mut transaction = Transaction::default();
    let precondition = found.as_ref().map_or(Precondition::Absent, |entry| {
        Precondition::At(entry.revision)
    });
    transaction.preconditions.insert(key.clone(), precondition);
    let mut admin = match found {
        Some(entry) => serde_json::from_str(&entry.value)?,
        None => User {
            name: user.to_owned(),
            role: Role::ProviderAdmin,
            tenant: None,
            object: None,
            totp: None,
            password: None,
        },
    };
    if admin.role != Role::ProviderAdmin {
        return Err(Error::Role {
            user: user.to_owned(),
        });
    }
    if let Some(password) = password {
        check_password(password).map_err(Error::Password)?;
        admin.password = Some(hash_password(password, environment)?);
        admin.totp = None;
    }
    transaction.put.insert(key, serde_json::to_string(&admin)?);
    let secret = add_token(&mut transaction, user, "recover", store.now, environment)?;
    store.audit(&mut transaction, "recover", "user", user)?;
    store.store.commit(transaction, None).await?;
    Ok(secret)
}

/// Notes in the audit that the store was made of a backup.
///
/// # Errors
/// [`Error`].
pub async fn note_restore(
    path: &Path,
    backup: &Path,
    environment: &dyn Environment,
) -> Result<(), Error> {
    let store = Closed::open(path, environment).await?;
    let mut transaction = Transaction::default();
    let backup = backup.display().to_string();
    store.audit(&mut transaction, "restore", "store", &backup)?;
    store.store.commit(transaction, None).await?;
    Ok(())
}

/// Makes the claims of VLANs and public addresses again of the objects: the number of claims that
/// were written or deleted. Nothing is written if they are right.
///
/// # Errors
/// [`Error`].
pub async fn repair_claims(path: &Path, environment: &dyn Environment) -> Result<usize, Error> {
    let store = Closed::open(path, environment).await?;
    let live = Live::load_unchecked(&store.store).await?;
    let mut transaction = live.state.repaired_claims().map_err(Error::Objects)?;
    let count = transaction.changes().count();
    if count > 0 {
        store.audit(&mut transaction, "claims.repair", "store", "claims")?;
        store.store.commit(transaction, None).await?;
    }
    Ok(count)
}

/// Replaces the key that signs the audit: the public part of the new one, hexadecimal. The old key
/// signs that the new one is the next, unless it is lost: then those who check the audit by the old
/// key must be told the new one.
///
/// # Errors
/// [`Error`].
pub async fn replace_audit_key(
    path: &Path,
    key: &Path,
    is_lost: bool,
    environment: &dyn Environment,
) -> Result<String, Error> {
    let store = Closed::open(path, environment).await?;
    let last = store.last_checkpoint().await?;
    let signer = last.as_ref().map(Checkpoint::signer);
    let mut new = key.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match audit_key::load_signer(&new, signer) {
        // An earlier run was ended before it renamed the file.
        Ok(found) if signer.is_some() => {
            rename(&new, key)?;
            return Ok(audit_key::public(&found));
        }
        Err(audit_key::Error::Missing { .. }) => {}
        Ok(_) | Err(_) => fs::remove_file(&new)?,
    }
    let old = match is_lost {
        true => None,
        false => Some(audit_key::load_signer(key, signer)?),
    };
    let pair = audit_key::create(&new, environment)?;
    let public = audit_key::public(&pair);
    let operation = match is_lost {
        true => "audit-key.replace-lost",
        false => "audit-key.replace",
    };
    let mut transaction = Transaction::default();
    let head = store.audit(&mut transaction, operation, "audit-key", &public)?;
    if let Some(old) = &old {
        let next = Some(public.clone());
        audit::sign(&mut transaction, &head, store.now, old, next)?;
    }
    audit::sign(&mut transaction, &head, store.now, &pair, None)?;
    store.store.commit(transaction, None).await?;
    rename(&new, key)?;
    Ok(public)
}

fn rename(new: &Path, key: &Path) -> Result<(), Error> {
    service::replace::rename(new, key).map_err(|source| Error::Rename {
        path: new.to_owned(),
        source,
    })
}
