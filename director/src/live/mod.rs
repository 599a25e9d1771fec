//! The state in memory: objects, users, tokens, the head of the audit and stored answers.

mod agents;
mod removal;

pub(crate) use agents::KnownAgents;
pub(crate) use removal::{delete_user, forget_machine, remove_users_of_deleted};

use std::collections::BTreeMap;

use control::{ClaimError, Corrupt, Refusal, Revision, State, Step, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use store::Store;

use crate::{
    audit::{self, Checkpoint, Head},
    machines::{AUTHORITIES, ENROLMENTS, Enrolment, IDENTITIES, MachineIdentity, StoredAuthority},
    people::{Actor, TOKENS, Token, USERS, User},
};

/// Prefix of the keys of stored answers.
pub(crate) const STORED_ANSWER_PREFIX: &str = "idempotency/";
/// Prefix of the keys of the numbers of the audit's entries by which tenants were made, by name.
pub(crate) const CREATION_PREFIX: &str = "tenant-creation/";
/// Prefixes of the director's own keys that are read at the start: all but entries of the audit.
const LOADED: [&str; 9] = [
    USERS,
    ENROLMENTS,
    IDENTITIES,
    AUTHORITIES,
    CREATION_PREFIX,
    TOKENS,
    STORED_ANSWER_PREFIX,
    audit::HEAD,
    audit::CHECKPOINTS,
];
/// Time that an answer is kept for requests with the same `Idempotency-Key`.
pub(crate) const ANSWER_LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// Most stored answers of a user.
pub(crate) const MAX_STORED_ANSWERS: usize = 1000;
/// Longest body that is kept, bytes.
pub(crate) const MAX_STORED_ANSWER_LEN: usize = 16 << 10;
/// Most tokens of a user, without sessions.
pub(crate) const MAX_TOKENS: usize = 100;
/// Most sessions of a user: a further one ends the oldest.
pub(crate) const MAX_SESSIONS: usize = 32;
/// Most users of a tenant, and of the provider: people and machines.
pub(crate) const MAX_USERS: usize = 1000;

/// The answer to a request with an `Idempotency-Key`, in the transaction of its change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredAnswer {
    /// Time of the request.
    pub at: Timestamp,
    /// SHA-256 of method, path, query and body.
    pub request: String,
    /// Status of the answer.
    pub status: u16,
    /// Body of the answer, with revision 0 in place of that of its commit; the revision of the
    /// object if the request changed nothing.
    pub body: Value,
    /// Warnings of the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The request changed nothing, and its commit has only this answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unchanged: bool,
}

/// The state in memory.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub state: State,
    pub users: BTreeMap<String, (User, Revision)>,
    /// By hash of the secret.
    pub tokens: BTreeMap<String, (Token, Revision)>,
    pub head: Head,
    /// The commit that wrote the head.
    pub head_written: Option<Revision>,
    /// The last checkpoint of the audit.
    pub checkpoint: Option<Checkpoint>,
    pub stored_answers: BTreeMap<String, (StoredAnswer, Revision)>,
    /// Numbers of the audit's entries by which tenants were made, by name. Tenants of earlier
    /// versions have none.
    pub creations: BTreeMap<String, (u64, Revision)>,
    /// Enrolment tokens, by hash of the secret.
    pub enrolments: BTreeMap<String, (Enrolment, Revision)>,
    /// Identities of machines, by key of the machine's object.
    pub identities: BTreeMap<String, (MachineIdentity, Revision)>,
    /// Authorities, by hash of the certificate.
    pub authorities: BTreeMap<String, (StoredAuthority, Revision)>,
}

/// The state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A value cannot be read.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// An import into the store has not finished.
    #[error("the store has a part of an import only: import the file again")]
    Unfinished,
    /// Claims of VLANs and public addresses contradict the objects.
    #[error(
        "claims of VLANs and public addresses contradict the objects ({number} times), and VLANs \
         or addresses could be given out twice: {first}; restore a backup, or, with the director \
         stopped, make the claims of the objects by `causeway-director repair-claims`"
    )]
    Claims {
        /// One of the contradictions.
        first: Box<ClaimError>,
        /// Number of all.
        number: usize,
    },
    /// Objects break the rules by which changes are checked.
    #[error(
        "objects break the rules by which changes are checked ({number} times), as no director \
         writes them: {first}; restore a backup, or import the unedited export"
    )]
    Objects {
        /// One of the refusals.
        first: Box<Refusal>,
        /// Number of all.
        number: usize,
    },
    /// The store changes all the time.
    #[error("the store changed while it was read: another director writes to it; try again")]
    Changing,
}

impl Live {
    /// Reads all as [`Live::load`] does, and checks each object, by itself and with the others, by
    /// the rules of changes: a store may have been edited, and a backup or an export, too.
    pub async fn load_checked(store: &impl Store) -> Result<Self, LoadError> {
        let live = Self::load(store).await?;
        let mut errors = live.state.object_errors().into_iter();
        match errors.next() {
            None => Ok(live),
            Some(first) => Err(LoadError::Objects {
                first: Box::new(first),
                number: errors.len() + 1,
            }),
        }
    }

    /// Reads all but the entries of the audit, as one commit left them, and compares claims with
    /// objects.
    pub async fn load(store: &impl Store) -> Result<Self, LoadError> {
        let live = Self::load_unchecked(store).await?;
        let mut errors = live.state.claim_errors().into_iter();
        match errors.next() {
            None => Ok(live),
            Some(first) => Err(LoadError::Claims {
                first: Box::new(first),
                number: errors.len() + 1,
            }),
        }
    }

    /// The same, whatever the claims are: for their repair.
    pub async fn load_unchecked(store: &impl Store) -> Result<Self, LoadError> {
        if store::is_unfinished(store).await? {
            return Err(LoadError::Unfinished);
        }
        let mut prefixes = State::prefixes();
        prefixes.extend(LOADED.map(ToOwned::to_owned));
        'again: for _ in 0..10 {
            let mut live = Self::default();
            let mut revision = None;
            for prefix in &prefixes {
                let snapshot = store.snapshot(prefix).await?;
                if *revision.get_or_insert(snapshot.revision) != snapshot.revision {
                    continue 'again;
                }
                for entry in &snapshot.entries {
                    live.set(&entry.key, Some(&entry.value), entry.revision)?;
                }
            }
            let revision = revision.unwrap_or_default();
            live.state.set_revision(revision);
            return Ok(live);
        }
        Err(LoadError::Changing)
    }

    /// Reads the objects of a transaction, while it is committed.
    pub fn read(transaction: &Transaction) -> Result<Vec<Step>, Corrupt> {
        let all = transaction.changes().filter(|(key, _)| !is_own(key));
        all.map(|(key, value)| State::read(key, value)).collect()
    }

    /// Applies a committed transaction, of which `objects` are those that [`Live::read`] has read.
    pub fn apply(
        &mut self,
        transaction: &Transaction,
        objects: Vec<Step>,
        revision: Revision,
    ) -> Result<(), Corrupt> {
        for (key, value) in transaction.changes().filter(|(key, _)| is_own(key)) {
            self.set(key, value, revision)?;
        }
        for object in objects {
            object.apply(&mut self.state, revision);
        }
        self.state.set_revision(revision);
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<&str>, revision: Revision) -> Result<(), Corrupt> {
        if let Some(name) = key.strip_prefix(USERS) {
            put(&mut self.users, name, key, value, revision)
        } else if let Some(hash) = key.strip_prefix(TOKENS) {
            put(&mut self.tokens, hash, key, value, revision)
        } else if let Some(name) = key.strip_prefix(STORED_ANSWER_PREFIX) {
            put(&mut self.stored_answers, name, key, value, revision)
        } else if let Some(name) = key.strip_prefix(CREATION_PREFIX) {
            put(&mut self.creations, name, key, value, revision)
        } else if let Some(hash) = key.strip_prefix(ENROLMENTS) {
            put(&mut self.enrolments, hash, key, value, revision)
        } else if let Some(name) = key.strip_prefix(IDENTITIES) {
            put(&mut self.identities, name, key, value, revision)
        } else if let Some(hash) = key.strip_prefix(AUTHORITIES) {
            put(&mut self.authorities, hash, key, value, revision)
        } else if key == audit::HEAD {
            self.head = value
                .map(|value| parse(key, value))
                .transpose()?
                .unwrap_or_default();
            self.head_written = value.map(|_| revision);
            Ok(())
        } else if key.starts_with(audit::CHECKPOINTS) {
            let found: Option<Checkpoint> = value.map(|value| parse(key, value)).transpose()?;
            // Keys are in the order of numbers.
            self.checkpoint = found.or(self.checkpoint.take());
            Ok(())
        } else if key.starts_with(audit::PREFIX) {
            Ok(())
        } else {
            self.state.set(key, value, revision)
        }
    }

    /// Keys of the stored answers of a user, without their prefix.
    pub fn stored_answers_of(&self, user: &str) -> impl Iterator<Item = &str> {
        let prefix = format!("{user}/");
        let answers = self.stored_answers.range(prefix.clone()..);
        answers
            .map(|(key, _)| key.as_str())
            .take_while(move |key| key.starts_with(&prefix))
    }

    /// Sessions of a user that have not expired, or its other tokens, each with its hash.
    pub fn tokens_of(
        &self,
        user: &str,
        session: bool,
        now: Timestamp,
    ) -> impl Iterator<Item = (&str, &Token)> {
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(hash, (token, _))| (hash.as_str(), token));
        tokens.filter(move |(_, token)| {
            token.user == user && token.session == session && now < token.expires
        })
    }

    /// Number of the audit's entries that no checkpoint covers.
    pub fn unsigned(&self) -> u64 {
        let signed = self.checkpoint.as_ref().map_or(0, |last| last.number);
        self.head.number.saturating_sub(signed)
    }

    /// Whether a user can log in, or has a token that holds.
    pub fn can_enter(&self, user: &User, now: Timestamp) -> bool {
        let mut tokens = self.tokens.values().map(|(token, _)| token);
        user.password.is_some()
            || tokens.any(|token| token.user == user.name && now < token.expires)
    }

    /// The user of a token.
    pub fn actor(&self, hash: &str, now: Timestamp) -> Option<Actor> {
        let (token, _) = self.tokens.get(hash)?;
        let (user, _) = self.users.get(&token.user)?;
        (now < token.expires).then(|| Actor {
            user: user.name.clone(),
            role: user.role,
            tenant: user.tenant.clone(),
            object: user.object.clone(),
            token: token.id.clone(),
        })
    }
}

/// Whether a key is the director's own, and none of the objects' state.
fn is_own(key: &str) -> bool {
    // A change of a hardware plan has a thousand keys, most of which begin with another letter.
    let first = key.as_bytes().first();
    let mut prefixes = LOADED.iter().chain([&audit::PREFIX]);
    prefixes.any(|prefix| prefix.as_bytes().first() == first && key.starts_with(prefix))
}

fn put<T: DeserializeOwned>(
    table: &mut BTreeMap<String, (T, Revision)>,
    name: &str,
    key: &str,
    value: Option<&str>,
    revision: Revision,
) -> Result<(), Corrupt> {
    match value {
        Some(value) => drop(table.insert(name.to_owned(), (parse(key, value)?, revision))),
        None => drop(table.remove(name)),
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(key: &str, value: &str) -> Result<T, Corrupt> {
    serde_json::from_str(value).map_err(|source| Corrupt::Value {
        key: key.to_owned(),
        source,
    })
}
