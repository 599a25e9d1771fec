//! A store in memory, for tests. It keeps all changes, until it is told to forget them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    Campaign, Change, Changes, Clock, CommitError, Entry, Error, Fence, MAX_CHANGES, Precondition,
    ReadError, Revision, Snapshot, Store, System, Transaction,
    lease::{Leases, PREFIX},
};

/// A store in memory.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    revision: watch::Sender<Revision>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<String, (String, Revision)>,
    log: Vec<Change>,
    revision: Revision,
    /// Changes up to this commit are forgotten.
    compacted: Revision,
    leases: Leases,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Arc::new(System::default()))
    }
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::default(),
            revision: watch::Sender::new(0),
            clock,
        }))
    }

    /// Forgets the changes up to a commit.
    pub fn compact(&self, through: Revision) {
        let mut inner = self.lock();
        inner.compacted = through.min(inner.revision);
        let compacted = inner.compacted;
        inner.log.retain(|change| change.revision > compacted);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.clock.monotonic()
    }

    fn commit_now(
        &self,
        inner: &mut Inner,
        transaction: &Transaction,
    ) -> Result<Revision, CommitError> {
        for (key, precondition) in &transaction.preconditions {
            let there = inner.entries.get(key).map(|(_, revision)| *revision);
            let holds = match precondition {
                Precondition::Absent => there.is_none(),
                Precondition::At(revision) => there == Some(*revision),
            };
            if !holds {
                return Err(CommitError::Stale { key: key.clone() });
            }
        }
        if transaction.is_empty() {
            return Ok(inner.revision);
        }
        inner.revision += 1;
        let revision = inner.revision;
        let mut changes = Vec::new();
        for key in &transaction.delete {
            if inner.entries.remove(key).is_some() {
                changes.push((key.clone(), None));
            }
        }
        for (key, value) in &transaction.put {
            inner.entries.insert(key.clone(), (value.clone(), revision));
            changes.push((key.clone(), Some(value.clone())));
        }
        changes.sort();
        inner
            .log
            .extend(changes.into_iter().map(|(key, value)| Change {
                key,
                value,
                revision,
            }));
        self.0.revision.send_replace(revision);
        Ok(revision)
    }
}

impl Store for Memory {
    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, Error> {
        let inner = self.lock();
        let entries = inner.entries.range(prefix.to_owned()..);
        let entries = entries.take_while(|(key, _)| key.starts_with(prefix));
        let entries = entries.map(|(key, (value, revision))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        });
        Ok(Snapshot {
            entries: entries.collect(),
            revision: inner.revision,
        })
    }

    async fn commit(
        &self,
        transaction: impl Into<Arc<Transaction>> + Send,
        fence: Option<Fence>,
    ) -> Result<Revision, CommitError> {
        let transaction = transaction.into();
        let mut inner = self.lock();
        if let Some(fence) = fence.filter(|fence| !inner.leases.is_valid(fence, self.now())) {
            return Err(CommitError::Fenced { lease: fence.lease });
        }
        self.commit_now(&mut inner, &transaction)
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<Changes, ReadError> {
        let inner = self.lock();
        if after < inner.compacted || after > inner.revision {
            return Err(ReadError::Compacted { after });
        }
        let from = inner.log.partition_point(|change| change.revision <= after);
        let mut changes: Vec<Change> = Vec::new();
        for change in &inner.log[from..] {
            let last = changes.last().map(|last| last.revision);
            if changes.len() >= MAX_CHANGES && last != Some(change.revision) {
                return Ok(Changes {
                    through: last.unwrap_or(after),
                    changes,
                });
            }
            if change.key.starts_with(prefix) {
                changes.push(change.clone());
            }
        }
        Ok(Changes {
            changes,
            through: inner.revision,
        })
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.0.revision.subscribe()
    }

    async fn campaign(&self, name: &str, holder: &str, ttl: Duration) -> Result<Campaign, Error> {
        let mut inner = self.lock();
        let now = self.now();
        if let Some(held) = inner.leases.other(name, holder, now) {
            return Ok(held);
        }
        let mut transaction = Transaction::default();
        transaction
            .put
            .insert(format!("{PREFIX}{name}"), holder.to_owned());
        // It has no precondition that could be stale.
        let revision = self
            .commit_now(&mut inner, &transaction)
            .unwrap_or_default();
        Ok(inner.leases.elect(name, holder, revision, now + ttl))
    }

    async fn keep_alive(&self, fence: &Fence, ttl: Duration) -> Result<bool, Error> {
        let now = self.now();
        Ok(self.lock().leases.extend(fence, now, now + ttl))
    }

    async fn resign(&self, fence: Fence) -> Result<(), Error> {
        self.lock().leases.resign(&fence);
        Ok(())
    }
}
