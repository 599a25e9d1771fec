//! Changes: computed over the state in memory, one at a time, and committed with their audit entry.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::signature::Ed25519KeyPair;
use control::{Difference, Origin, Precondition, Revision, Transaction, differences};
use jiff::Timestamp;
use serde_json::Value;
use store::{CommitError, Sqlite, Store as _};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, Semaphore};

use crate::{
    Chance,
    api::Problem,
    audit::{self, Subject},
    clock::uid,
    live::{KEEP, KEPT, Kept, Live, LoadError},
    metrics::Metrics,
    people::Actor,
};

/// Times that a change is computed again when another director was faster.
const ATTEMPTS: usize = 5;
/// Passwords that are hashed at once: each takes 19 MiB and a CPU for tens of milliseconds.
const PASSWORDS: usize = 2;
/// Kept answers that a change forgets at most.
const FORGET: usize = 16;

/// The director: its store, its state, and the order of changes.
#[derive(Debug)]
pub struct Director {
    pub(crate) store: Sqlite,
    live: RwLock<Live>,
    /// One change at a time is computed and committed.
    change_lock: Mutex<()>,
    /// The state in memory may not be that of the store.
    is_unknown: AtomicBool,
    pub(crate) chance: Arc<dyn Chance>,
    pub(crate) metrics: Metrics,
    /// Wrong codes of authenticators, by user: their number, and the time of the last.
    pub(crate) wrong_codes: std::sync::Mutex<HashMap<String, (u32, Timestamp)>>,
    /// Permits to hash a password.
    pub(crate) passwords: Semaphore,
}

/// A computed change.
pub(crate) struct Planned {
    pub transaction: Transaction,
    /// Body of the answer.
    pub body: Value,
    pub warnings: Vec<String>,
}

/// A change that was made, or would be made.
pub(crate) struct Done {
    pub status: u16,
    pub body: Value,
    pub warnings: Vec<String>,
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
    /// Key of the kept answer, and the hash of the request.
    pub idempotency: Option<(String, String)>,
}

impl Director {
    /// Reads the state of a store.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn new(store: Sqlite, chance: Arc<dyn Chance>) -> Result<Self, LoadError> {
        let live = Live::load(&store).await?;
        Ok(Self {
            store,
            live: RwLock::new(live),
            change_lock: Mutex::new(()),
            is_unknown: AtomicBool::new(false),
            chance,
            metrics: Metrics::default(),
            wrong_codes: std::sync::Mutex::default(),
            passwords: Semaphore::new(PASSWORDS),
        })
    }

    /// Whether there is any user.
    pub(crate) async fn has_users(&self) -> bool {
        !self.live.read().await.users.is_empty()
    }

    /// The state, for reading.
    pub(crate) async fn live(&self) -> Result<RwLockReadGuard<'_, Live>, Problem> {
        if self.is_unknown.load(Ordering::Acquire) {
            let _guard = self.change_lock.lock().await;
            self.reload().await?;
        }
        Ok(self.live.read().await)
    }

    /// Reads the state again after a commit whose result is not known.
    async fn reload(&self) -> Result<(), Problem> {
        if !self.is_unknown.load(Ordering::Acquire) {
            return Ok(());
        }
        let live = Live::load(&self.store).await.map_err(|error| {
            tracing::error!(%error, "cannot read the store");
            Problem::unavailable()
        })?;
        *self.live.write().await = live;
        self.is_unknown.store(false, Ordering::Release);
        Ok(())
    }

    /// Signs a checkpoint of the audit's last entry, unless it has one. Returns whether it did.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be used.
    pub async fn checkpoint(&self, key: &Ed25519KeyPair) -> Result<bool, Problem> {
        let _guard = self.change_lock.lock().await;
        self.reload().await?;
        let live = self.live.read().await;
        let last = live.checkpoint.as_ref().map_or(0, |last| last.number);
        if live.head.number <= last {
            return Ok(false);
        }
        let now = self.chance.now();
        let transaction = audit::checkpoint(&live.head, live.head_written, now, key)
            .map_err(|error| Problem::internal(&error))?;
        drop(live);
        match self.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(error) => {
                tracing::warn!(%error, "cannot commit a checkpoint of the audit");
                Err(Problem::unavailable())
            }
        }
    }

    /// Commits a transaction and applies it to the state in memory. If the caller goes away in
    /// between, as the handler of a request does whose client closes the connection, the state is
    /// read again before it is used.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let known = Known(&self.is_unknown);
        let revision = self.store.commit(transaction.clone(), None).await?;
        match self.live.write().await.apply(&transaction, revision) {
            Ok(()) => std::mem::forget(known),
            Err(error) => tracing::error!(%error, "cannot apply a commit"),
        }
        Ok(revision)
    }

    /// Computes a change and commits it with its audit entry.
    pub(crate) async fn change(
        &self,
        wanted: Wanted<'_>,
        plan: impl Fn(&Live, Origin) -> Result<Planned, Problem>,
    ) -> Result<Done, Problem> {
        let _guard = self.change_lock.lock().await;
        for _ in 0..ATTEMPTS {
            self.reload().await?;
            let origin = Origin {
                now: self.chance.now(),
                uid: uid(&*self.chance).map_err(|error| Problem::internal(&error))?,
            };
            let live = self.live.read().await;
            if let Some(done) = kept(&live, &wanted, origin.now)? {
                return Ok(done);
            }
            let planned = plan(&live, origin)?;
            let mut done = Done {
                status: wanted.status,
                body: planned.body,
                warnings: planned.warnings,
                differences: differences(&live.state, &planned.transaction),
                revision: None,
            };
            if wanted.dry_run || planned.transaction.is_empty() {
                return Ok(done);
            }
            let transaction = complete(&live, &wanted, planned.transaction, &done, origin.now)?;
            drop(live);
            match self.commit(transaction).await {
                Ok(revision) => {
                    done.revision = Some(revision);
                    set_revision(&mut done.body, revision);
                    self.metrics.commits.inc();
                    return Ok(done);
                }
                Err(CommitError::Stale { key }) => {
                    tracing::debug!(key, "objects changed meanwhile; computing the change again");
                }
                Err(error) => {
                    tracing::error!(%error, "cannot commit a change");
                    return Err(Problem::unavailable());
                }
            }
        }
        Err(Problem::unavailable())
    }
}

/// Marks the state in memory as unknown unless it is forgotten.
struct Known<'d>(&'d AtomicBool);

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Writes the revision into the metadata of an answer's object.
fn set_revision(body: &mut Value, revision: Revision) {
    if let Some(metadata) = body.get_mut("metadata") {
        metadata["revision"] = revision.into();
    }
}

/// The answer that is kept for a request with the same key.
fn kept(live: &Live, wanted: &Wanted<'_>, now: Timestamp) -> Result<Option<Done>, Problem> {
    let Some((key, request)) = &wanted.idempotency else {
        return Ok(None);
    };
    let Some((kept, revision)) = live.kept.get(key) else {
        return Ok(None);
    };
    if now.duration_since(kept.at) >= KEEP {
        return Ok(None);
    }
    if kept.request != *request {
        return Err(Problem::idempotency_key());
    }
    let mut body = kept.body.clone();
    set_revision(&mut body, *revision);
    Ok(Some(Done {
        status: kept.status,
        body,
        warnings: Vec::new(),
        differences: Vec::new(),
        revision: Some(*revision),
    }))
}

/// Adds the audit entry and the kept answer, and forgets old ones.
fn complete(
    live: &Live,
    wanted: &Wanted<'_>,
    mut transaction: Transaction,
    done: &Done,
    now: Timestamp,
) -> Result<Transaction, Problem> {
    let failed = |error: serde_json::Error| Problem::internal(&error);
    audit::append(
        &mut transaction,
        &live.head,
        live.head_written,
        now,
        wanted.actor,
        &wanted.subject,
        done.differences.clone(),
    )
    .map_err(failed)?;
    let is_old = |kept: &Kept| now.duration_since(kept.at) >= KEEP;
    let old = live.kept.iter().filter(|(_, (kept, _))| is_old(kept));
    for (key, _) in old.take(FORGET) {
        transaction.delete.insert(format!("{KEPT}{key}"));
    }
    if let Some((key, request)) = &wanted.idempotency {
        let kept = Kept {
            at: now,
            request: request.clone(),
            status: done.status,
            body: done.body.clone(),
        };
        let stored = format!("{KEPT}{key}");
        let precondition = match live.kept.get(key) {
            Some((_, revision)) => Precondition::At(*revision),
            None => Precondition::Absent,
        };
        transaction.delete.remove(&stored);
        transaction
            .preconditions
            .insert(stored.clone(), precondition);
        transaction
            .put
            .insert(stored, serde_json::to_string(&kept).map_err(failed)?);
    }
    Ok(transaction)
}
