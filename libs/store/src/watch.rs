//! Watches: the changes below a prefix, from a revision on.

use tokio::sync::watch::Receiver;

use crate::{Changes, ReadError, Revision, Store};

/// Changes below a prefix, from a revision on. Nothing is queued for it: a watch that is read
/// slowly reads more at once, until the store no longer knows the changes.
#[derive(Debug)]
pub struct Watch<S> {
    store: S,
    prefix: String,
    after: Revision,
    revisions: Receiver<Revision>,
}

impl<S: Store> Watch<S> {
    pub(crate) fn new(store: S, prefix: &str, after: Revision) -> Self {
        Self {
            revisions: store.revisions(),
            store,
            prefix: prefix.to_owned(),
            after,
        }
    }

    /// The commit up to which the changes were read.
    #[must_use]
    pub const fn after(&self) -> Revision {
        self.after
    }

    /// Waits for the next changes, at least one. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadError::Compacted`]: take a snapshot, and watch from its revision. After other errors
    /// the watch goes on where it was.
    pub async fn next(&mut self) -> Result<Changes, ReadError> {
        loop {
            // Before the changes are read, so that a commit after that is noticed.
            self.revisions.borrow_and_update();
            let changes = self.store.changes(&self.prefix, self.after).await?;
            self.after = changes.through;
            if !changes.changes.is_empty() {
                return Ok(changes);
            }
            if self.revisions.changed().await.is_err() {
                return Err(crate::Error::Stopped.into());
            }
        }
    }
}
