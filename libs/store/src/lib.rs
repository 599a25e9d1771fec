//! Where the director keeps its objects: texts under keys, with a revision for each commit.
//!
//! For: one narrow trait ([`Store`]) that SQLite implements today and etcd may implement later; a
//! store in memory ([`Memory`]) that tests use. Never: the meaning of keys and values, or rules
//! between objects: these are the crate `control`'s.
//!
//! ```text
//!   snapshot(prefix) ───────────▶ values and their revision
//!   commit(Transaction, Fence) ─▶ a new revision, or: stale (key), fenced
//!   watch(prefix, from) ────────▶ changes in the order of revisions, or: compacted
//!   campaign, keep_alive, resign  one holder of a lease; its Fence guards what it commits
//!
//!   Sqlite: callers ─▶ queue ─▶ one thread, one connection ─▶ a commit for all that wait ─▶ fsync
//! ```
//!
//! A commit that was acknowledged survives the end of the process and of the machine. A commit
//! without an answer may have happened or not; its preconditions make it safe to try again after a
//! new snapshot.

#![warn(missing_docs)]

mod clock;
mod error;
mod lease;
mod memory;
mod sqlite;
mod transfer;
mod watch;

use std::{sync::Arc, time::Duration};

pub use clock::{Clock, System};
pub use control::{Precondition, Revision, Transaction};
pub use error::{CommitError, Error, ReadError};
pub use lease::{Campaign, Fence};
pub use memory::Memory;
pub use sqlite::{Backup, Options, Sqlite, give, restore, with_suffix};
pub use transfer::{Export, FormatError, IMPORT, ImportError, is_unfinished};
pub use watch::Watch;

use tokio::sync::watch::Receiver;

/// A value at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is stored.
    pub key: String,
    /// The text that is stored there.
    pub value: String,
    /// The commit that wrote it.
    pub revision: Revision,
}

/// All values below a prefix, as one commit left them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The values, sorted by key.
    pub entries: Vec<Entry>,
    /// The last commit.
    pub revision: Revision,
}

/// A key that a commit wrote or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it was written or deleted.
    pub key: String,
    /// The new value; `None` if the key was deleted.
    pub value: Option<String>,
    /// The commit.
    pub revision: Revision,
}

/// Changes below a prefix. They have whole commits only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The changes, sorted by revision and key.
    pub changes: Vec<Change>,
    /// All commits up to this one are considered.
    pub through: Revision,
}

/// A store. Clones are handles of the same one.
pub trait Store: Clone + Send + Sync + 'static {
    /// All values whose keys begin with `prefix`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn snapshot(&self, prefix: &str) -> impl Future<Output = Result<Snapshot, Error>> + Send;

    /// Writes and deletes all keys of a transaction, or none. With a `fence`, only while its holder
    /// has the lease. A transaction that writes nothing checks its preconditions and answers the
    /// last revision.
    ///
    /// # Errors
    /// [`CommitError::Stale`] and [`CommitError::Fenced`]: nothing is written. With
    /// [`CommitError::Unavailable`], it may have been written.
    fn commit(
        &self,
        transaction: impl Into<Arc<Transaction>> + Send,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Revision, CommitError>> + Send;

    /// Some changes below `prefix` by commits after the given one; none if there are none yet.
    /// [`Watch`] is made of it.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] if changes after that commit are no longer known.
    fn changes(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<Changes, ReadError>> + Send;

    /// The revision of the last commit, as it changes.
    fn revisions(&self) -> Receiver<Revision>;

    /// Asks for a lease. It lasts for `ttl` unless it is kept alive. A holder that asks again gets
    /// a new fence, and the one before is void.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn campaign(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<Campaign, Error>> + Send;

    /// Extends a lease to `ttl` from now. False if the lease has ended.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn keep_alive(
        &self,
        fence: &Fence,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Ends a lease, so that another holder gets it at once.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn resign(&self, fence: Fence) -> impl Future<Output = Result<(), Error>> + Send;

    /// The changes below `prefix` after a commit, and all later ones as they come.
    fn watch(&self, prefix: &str, after: Revision) -> Watch<Self> {
        Watch::new(self.clone(), prefix, after)
    }
}

/// Most changes in one answer, and bytes of values after which it ends, unless one commit has more.
const MAX_CHANGES: usize = 1000;
const MAX_CHANGES_BYTES: usize = 4 << 20;
