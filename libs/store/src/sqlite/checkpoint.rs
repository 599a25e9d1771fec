//! The thread that copies the write-ahead log into the file, beside the writer.
//!
//! A commit is safe as soon as it is in the log. SQLite would copy a log of a thousand pages into
//! the file within the next commit, which then takes several times as long.

use std::{
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
};

use rusqlite::{Connection, OpenFlags};

use super::{file_error, sql_error};
use crate::{Error, Transaction};

/// Bytes of committed keys and values after which the log is copied: not after each large commit,
/// as the disk would serve the copy and the next commit at once.
const CHECKPOINT_BYTES: usize = 16 << 20;
/// Bytes that a key costs beside its text: it touches a page of the table and one of the log.
const KEY: usize = 1 << 10;
/// Bytes after which the writer copies the log itself, as the thread does not keep up.
const TOO_MANY: usize = 128 << 20;

/// The writer's end of the thread.
#[derive(Debug)]
pub(super) struct Checkpoints {
    wake: Option<SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Bytes since the thread was woken.
    bytes: usize,
    /// Bytes since the log was last known to begin anew.
    unbounded: usize,
}

impl Checkpoints {
    /// Starts the thread, with a connection of its own.
    pub(super) fn start(path: &Path) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(sql_error("open", path))?;
        // One waiting wake-up stands for all.
        let (wake, woken) = sync_channel(1);
        let own = path.to_owned();
        let thread = thread::Builder::new()
            .name("store-log".to_owned())
            .spawn(move || run(&connection, &own, &woken))
            .map_err(|source| file_error("start a thread for", path, source))?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
            bytes: 0,
            unbounded: 0,
        })
    }

    /// Counts a commit, and wakes the thread if there is enough to copy.
    pub(super) fn count(&mut self, transactions: &[(&Transaction, Option<&crate::Fence>)]) {
        for (transaction, _) in transactions {
            let puts = transaction.put.iter();
            self.bytes += puts.map(|(k, v)| KEY + k.len() + v.len()).sum::<usize>();
            self.bytes += KEY * transaction.delete.len();
        }
        if self.bytes < CHECKPOINT_BYTES {
            return;
        }
        self.unbounded += self.bytes;
        self.bytes = 0;
        match self.wake.as_ref().map(|wake| wake.try_send(())) {
            // It is asleep, or will be woken: the log begins anew when it has been copied.
            Some(Ok(())) => self.unbounded = 0,
            Some(Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) | None => {}
        }
    }

    /// Whether the writer is to copy the log itself.
    pub(super) fn is_late(&mut self) -> bool {
        let is_late = self.unbounded > TOO_MANY;
        if is_late {
            self.unbounded = 0;
        }
        is_late
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has closed its connection.
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, path: &Path, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        if let Err(error) = copy(connection) {
            tracing::warn!(%error, store = %path.display(), "cannot copy the write-ahead log");
        }
    }
}

/// Copies the log into the file, as far as no connection reads from it. The next commit begins the
/// log anew when all of it is copied.
pub(super) fn copy(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
