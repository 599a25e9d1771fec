//! Errors of stores.

use std::{io, path::PathBuf, sync::Arc};

use crate::Revision;

/// The store cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed.
    #[error("cannot {operation} the store {}: {source}", path.display())]
    Sql {
        /// The operation, as in "open".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of SQLite.
        source: Arc<rusqlite::Error>,
    },
    /// A file cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// The operation, as in "create".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: Arc<io::Error>,
    },
    /// Another process has the store open.
    #[error(
        "the store {} is open in another process: stop that process first, or use another file",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is no store, or not whole.
    #[error("{} is not a store that can be used: {reason}; restore a backup", path.display())]
    NoStore {
        /// The file.
        path: PathBuf,
        /// As SQLite reports it, or a difference to a store.
        reason: String,
    },
    /// A newer program wrote the file.
    #[error(
        "the store {} has schema {found}, and this program knows {known}: use the program that \
         wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Schema of the file.
        found: u32,
        /// Greatest schema that this program knows.
        known: u32,
    },
    /// The file is there already.
    #[error("{} exists: write another path, or move that file away first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file of another store is beside the path.
    #[error(
        "{} belongs to another store, and SQLite would replay it into {}: move it next to its own \
         store; it has commits of that store",
        file.display(), path.display()
    )]
    Leftover {
        /// The store.
        path: PathBuf,
        /// The file of the other store.
        file: PathBuf,
    },
    /// A store in place of a backup.
    #[error(
        "{} exists: {} is a store that is in use or was not closed, and no backup; make one by \
         `causeway-director backup`, or start a director on that store once",
        file.display(), path.display()
    )]
    NotClosed {
        /// The store.
        path: PathBuf,
        /// The file beside it.
        file: PathBuf,
    },
    /// The thread of the store has ended.
    #[error("the store has stopped: see the log for the reason")]
    Stopped,
}

impl Error {
    /// Whether the disk, or the quota of it, is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sql { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::File { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }
}

/// A commit did not happen, or it is not known whether it did.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A key is not as the transaction must have it. Nothing was written.
    #[error("{key} has changed: read it again, and compute the change again")]
    Stale {
        /// The first one that differs from the precondition.
        key: String,
    },
    /// The holder of the fence does not have the lease any more. Nothing was written.
    #[error("the lease {lease:?} has ended, or another holder has it")]
    Fenced {
        /// Name of what the holder campaigned for.
        lease: String,
    },
    /// The store cannot be written. The commit may have happened.
    #[error(transparent)]
    Unavailable(#[from] Error),
}

/// Changes cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Changes after the revision are no longer known.
    #[error("changes after revision {after} are not known: take a snapshot")]
    Compacted {
        /// The revision.
        after: Revision,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Unavailable(#[from] Error),
}
