//! A store in one file of SQLite.
//!
//! ```text
//!   handles ─▶ queue ─▶ one thread, which owns the connection (writer.rs)
//!                          │ all commits that wait ─▶ BEGIN IMMEDIATE … COMMIT ─▶ fsync ─▶ answers
//!                          │ snapshot, changes: between two such transactions
//!                          │ with each: up to MAX_TRIMMED_ROWS old rows of the log are deleted
//!                          └ after the answers, if the write-ahead log is long
//!                               └─▶ log_copier.rs, a thread: copies it into the file meanwhile
//!   backup ─▶ a connection of its own, which reads one snapshot of the write-ahead log (backup.rs)
//! ```

mod backup;
mod log_copier;
mod schema;
mod writer;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

pub use backup::{Backup, restore};
pub(crate) use backup::{new_file, publish};

use crate::{
    Campaign, Changes, Clock, CommitError, Error, Fence, ReadError, Revision, Snapshot, Store,
    System, Transaction,
};
use writer::{Request, Writer};

/// Endings of the files that SQLite keeps beside a file, and takes for that file's by their names
/// alone.
const SIDE_FILE_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Bytes that a disk with room takes.
const ROOM: usize = 1 << 20;
/// Requests that wait for the thread; callers beyond them wait in turn.
const QUEUE: usize = 1024;

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Age of changes that a watch may still ask for.
    pub keep_log: Duration,
    /// Source of time.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_log: Duration::from_secs(3600),
            clock: Arc::new(System::default()),
        }
    }
}

/// A store in one file of SQLite. The file has one process at a time; the lock is a file beside it.
/// The last handle that is dropped closes the store.
#[derive(Clone, Debug)]
pub struct Sqlite(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    path: PathBuf,
    /// `None` while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    revision: watch::Receiver<Revision>,
    thread: Option<thread::JoinHandle<()>>,
    _lock: Lock,
}

/// The lock of a store. The kernel releases a lock when the last copy of its descriptor is closed,
/// and a child process has one between `fork` and `exec`: so it is unlocked when it is
/// dropped, whichever process has a copy.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Then it is released with the last descriptor.
        let _ = self.0.unlock();
    }
}

impl Sqlite {
    /// Opens the store, or creates it. Migrates a store of an earlier version.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(path: &Path, options: Options) -> Result<Self, Error> {
        let lock = lock(path)?;
        let connection = schema::open(path)?;
        let sender = watch::Sender::new(0);
        let revision = sender.subscribe();
        let mut writer = Writer::new(connection, path.to_owned(), options, sender)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| file_error("start a thread for", path, source))?;
        Ok(Self(Arc::new(Handle {
            path: path.to_owned(),
            requests: Some(requests),
            revision,
            thread: Some(thread),
            _lock: lock,
        })))
    }

    /// Writes a backup of the store to a new file, while the store goes on. The file is whole when
    /// it appears. Blocks until then.
    ///
    /// # Errors
    /// [`Error`], such as [`Error::Exists`].
    pub fn backup(&self, to: &Path) -> Result<(), Error> {
        backup::backup(&self.0.path, to)
    }

    /// Proves that the store can be written, by a commit that changes nothing and has no revision.
    ///
    /// # Errors
    /// When it cannot be written; [`Error::is_full`] tells whether the disk is full.
    pub async fn probe(&self) -> Result<(), Error> {
        self.ask(|reply| Request::Probe { reply }).await?
    }

    /// Proves that the disk has room for a change of some length, by a file beside the store, which
    /// is removed again. Blocks. A small commit may find room where a longer one does not.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn has_room(&self) -> io::Result<()> {
        let path = with_suffix(&self.0.path, ".probe");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(&vec![1; ROOM])?;
            file.sync_all()
        });
        // It may not be there.
        let _ = fs::remove_file(&path);
        written
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let requests = self.0.requests.as_ref().ok_or(Error::Stopped)?;
        let sent = requests.send(request(reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has closed its connection.
            let _ = thread.join();
        }
    }
}

impl Store for Sqlite {
    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, Error> {
        let prefix = prefix.to_owned();
        self.ask(|reply| Request::Snapshot { prefix, reply })
            .await?
    }

    async fn commit(
        &self,
        transaction: impl Into<Arc<Transaction>> + Send,
        fence: Option<Fence>,
    ) -> Result<Revision, CommitError> {
        let transaction = transaction.into();
        self.ask(|reply| Request::Commit {
            transaction,
            fence,
            reply,
        })
        .await?
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<Changes, ReadError> {
        let prefix = prefix.to_owned();
        self.ask(|reply| Request::Changes {
            prefix,
            after,
            reply,
        })
        .await?
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.0.revision.clone()
    }

    async fn campaign(&self, name: &str, holder: &str, ttl: Duration) -> Result<Campaign, Error> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.ask(|reply| Request::Campaign {
            name,
            holder,
            ttl,
            reply,
        })
        .await?
    }

    async fn keep_alive(&self, fence: &Fence, ttl: Duration) -> Result<bool, Error> {
        let fence = fence.clone();
        self.ask(|reply| Request::KeepAlive { fence, ttl, reply })
            .await
    }

    async fn resign(&self, fence: Fence) -> Result<(), Error> {
        self.ask(|reply| Request::Resign { fence, reply }).await
    }
}

pub(crate) fn file_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        operation,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn sql_error(operation: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::Sql {
        operation,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

/// The file in the same folder of which the name has this at its end: of `store` and `-wal`,
/// `store-wal`.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Gives a file that root has made to the owner of its folder: the director, which runs as that
/// user, could not open it otherwise.
///
/// # Errors
/// Those of the kernel.
pub fn give(file: &File, path: &Path) -> io::Result<()> {
    let folder = fs::metadata(folder(path))?;
    if file.metadata()?.uid() == 0 && folder.uid() != 0 {
        fchown(file, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

/// Takes the lock of a store: a file beside it, so that SQLite's own locks stay undisturbed.
fn lock(path: &Path) -> Result<Lock, Error> {
    let lock = with_suffix(path, ".lock");
    let failed = |source| file_error("create", &lock, source);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .map_err(failed)?;
    give(&file, &lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(file_error("lock", &lock, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_descriptor_in_a_child_does_not_keep_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Sqlite::open(&path, Options::default()).unwrap();
        // As a child that another thread has forked, before it executes its program.
        let copy = store.0._lock.0.try_clone().unwrap();
        drop(store);
        drop(Sqlite::open(&path, Options::default()).unwrap());
        // That child's end does not release the lock of the next process.
        let store = Sqlite::open(&path, Options::default()).unwrap();
        drop(copy);
        let second = Sqlite::open(&path, Options::default());
        assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
        drop(store);
    }
}
