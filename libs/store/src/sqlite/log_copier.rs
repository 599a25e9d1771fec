//! The thread that copies the write-ahead log into the file, beside the commits.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use rusqlite::{Connection, OpenFlags};

use super::{file_error, sql_error};
use crate::Error;

/// Copies the log on request, with a connection of its own. Commits go on meanwhile: the pages that
/// they add are copied by the next request.
#[derive(Debug)]
pub(super) struct LogCopier {
    /// `None` while it is dropped.
    requests: Option<SyncSender<()>>,
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    thread: Option<thread::JoinHandle<()>>,
}

impl LogCopier {
    /// Starts the thread for a store that has its schema.
    ///
    /// # Errors
    /// [`Error`]: the file cannot be opened, or the thread cannot be started.
    pub fn start(path: &Path) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(sql_error("open", path))?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sql_error("open", path))?;
        let connection = Arc::new(Mutex::new(connection));
        // One request stands for all that come before it is done.
        let (requests, queue) = sync_channel(1);
        let (copied, of) = (Arc::clone(&connection), path.to_owned());
        let thread = thread::Builder::new()
            .name("store-log".to_owned())
            .spawn(move || {
                while queue.recv() == Ok(()) {
                    copy(&lock(&copied), &of);
                }
            })
            .map_err(|source| file_error("start a thread for", path, source))?;
        Ok(Self {
            requests: Some(requests),
            connection,
            path: path.to_owned(),
            thread: Some(thread),
        })
    }

    /// Has the log copied, without waiting for it.
    pub fn ask(&self) {
        if let Some(requests) = &self.requests {
            // The queue is full if a copy is asked for already.
            let _ = requests.try_send(());
        }
    }

    /// Copies the log, and waits for the end. Without a commit meanwhile, all of it is copied, and
    /// the next commit begins the log anew.
    pub fn copy(&self) {
        copy(&lock(&self.connection), &self.path);
    }
}

impl Drop for LogCopier {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies what can be copied: the next request copies the rest.
fn copy(connection: &Connection, path: &Path) {
    let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = copied {
        tracing::warn!(
            %error,
            store = %path.display(),
            "cannot copy the write-ahead log of SQLite into the store, so that it grows: check the \
             disk"
        );
    }
}
