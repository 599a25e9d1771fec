//! The stored state: the last desired state that was put in force, and whether the gateway drains.
//!
//! ```text
//!   control loop ─ job ─▶ thread: write, fsync ─▶ done ─▶ the reply to the operator or agent
//!
//!   desired.jsonl   first line: a whole state; then a delta a line. A new whole state replaces the
//!                   file by rename. Long files are joined into one state.
//!   draining        exists while the gateway drains until `undrain`
//! ```
//!
//! Nothing here runs on a thread that carries connections or datagrams.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use gateway_model::{
    Delta, Model, Snapshot,
    stored::{self, VERSION},
};
use service::replace::NewFile;
use zeroize::Zeroizing;

/// Bytes of deltas after which they are joined with their state, at least.
const COMPACTION_BYTES: u64 = 1 << 20;

/// Why the state cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// There is no folder.
    #[error("there is no folder for the state: write gateway.state_dir")]
    Nowhere,
    /// A newer gateway wrote the file.
    #[error(
        "{} is of version {found}, and this gateway reads version {VERSION}: run the version that \
         wrote it, or move the file away",
        path.display()
    )]
    Version { path: PathBuf, found: u32 },
    /// The file has no state: for a check, as a start moves it away.
    #[error(
        "the stored desired state {} cannot be read: {problem}; at its start the gateway moves the \
         file to {}, and refuses everything until `apply`: restore the file from a copy before, or \
         apply a snapshot then",
        path.display(),
        away(path).display()
    )]
    Unreadable { path: PathBuf, problem: String },
}

impl Error {
    /// Whether this user may not do it.
    pub fn is_denied(&self) -> bool {
        let denied = io::ErrorKind::PermissionDenied;
        matches!(self, Self::Io { source, .. } if source.kind() == denied)
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// The stored state, as it was read.
#[derive(Debug, Default)]
pub struct Stored {
    /// The last state; `None`: there is none.
    pub model: Option<Model>,
    /// Whether the gateway drained.
    pub draining: bool,
    /// Whether deltas can be appended to the file.
    complete: bool,
}

/// Called on the store's thread with the outcome.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A state or a change to be stored.
#[derive(Debug)]
pub enum Job {
    /// A whole state.
    State(Box<Snapshot>),
    /// A change of the stored state.
    Delta(Box<Delta>),
    Draining(bool),
}

/// Stores states in a folder, on a thread of its own. Its drop waits for the last.
#[derive(Debug)]
pub struct Store {
    jobs: Option<Sender<(Job, Done)>>,
    /// The file is not the state in force: the next job must be a whole state.
    behind: Arc<AtomicBool>,
    /// The same of `draining`.
    draining_behind: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Reads what is stored in `dir`, and starts the thread.
    ///
    /// # Errors
    /// When the folder cannot be used, or a newer gateway wrote it. A damaged file is moved away.
    pub fn open(dir: &Path) -> Result<(Self, Stored), Error> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let stored = read(dir)?;
        let behind = Arc::new(AtomicBool::new(!stored.complete));
        let draining_behind = Arc::default();
        let (jobs, received) = channel();
        let mut writer = Writer {
            dir: dir.to_owned(),
            open: None,
            behind: Arc::clone(&behind),
            draining_behind: Arc::clone(&draining_behind),
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(io_error("start a thread for", dir))?;
        let store = Self {
            jobs: Some(jobs),
            behind,
            draining_behind,
            thread: Some(thread),
        };
        Ok((store, stored))
    }

    /// Stores something after all that was given before.
    pub fn put(&self, job: Job, done: Done) {
        if let Some(jobs) = &self.jobs {
            // The thread ends with this value.
            let _ = jobs.send((job, done));
        }
    }

    /// Whether a delta is not enough.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Whether the last drain, or its end, is not stored.
    pub fn is_draining_behind(&self) -> bool {
        self.draining_behind.load(Ordering::Relaxed)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the store thread panicked");
        }
    }
}

fn desired(dir: &Path) -> PathBuf {
    dir.join("desired.jsonl")
}

fn draining(dir: &Path) -> PathBuf {
    dir.join("draining")
}

/// The text of the stored state, of this version; `None`: there is none.
fn text(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Zeroizing::default(),
        Err(source) => return Err(io_error("read", path)(source)),
    };
    match stored::other_version(&text) {
        Some(found) => Err(Error::Version {
            path: path.to_owned(),
            found,
        }),
        None => Ok(Some(text)),
    }
}

/// The state that the next start would read, and what is wrong with the rest of the file; `None`:
/// there is none. Changes nothing.
///
/// # Errors
/// As [`Store::open`], when the file cannot be read, also for lack of permission, and
/// [`Error::Unreadable`].
pub(super) fn stored_model(dir: &Path) -> Result<Option<(Model, Option<String>)>, Error> {
    let path = desired(dir);
    let Some(text) = text(&path)? else {
        return Ok(None);
    };
    let read = stored::read(&text);
    read.map(Some)
        .map_err(|problem| Error::Unreadable { path, problem })
}

/// The place of a file that has no state.
fn away(path: &Path) -> PathBuf {
    path.with_extension("jsonl.unreadable")
}

/// Reads what is stored.
fn read(dir: &Path) -> Result<Stored, Error> {
    let path = desired(dir);
    let draining = draining(dir).exists();
    let Some(text) = text(&path)? else {
        return Ok(Stored {
            draining,
            ..Stored::default()
        });
    };
    match stored::read(&text) {
        Ok((model, problem)) => {
            if let Some(problem) = &problem {
                tracing::warn!(
                    path = %path.display(), revision = model.revision(), problem,
                    "the stored state is cut off; an earlier revision of it is used"
                );
            }
            Ok(Stored {
                model: Some(model),
                draining,
                complete: problem.is_none(),
            })
        }
        Err(problem) => {
            let away = away(&path);
            fs::rename(&path, &away).map_err(io_error("move away", &path))?;
            tracing::error!(
                path = %away.display(), problem,
                "the stored state is unreadable and was moved away; the gateway has none until one \
                 is applied"
            );
            Ok(Stored {
                draining,
                ..Stored::default()
            })
        }
    }
}

/// The thread of the store.
struct Writer {
    dir: PathBuf,
    /// The file, if this process has written it, with its length and that of its first line.
    open: Option<(File, u64, u64)>,
    behind: Arc<AtomicBool>,
    draining_behind: Arc<AtomicBool>,
}

impl Writer {
    fn run(&mut self, jobs: &Receiver<(Job, Done)>) {
        while let Ok((job, done)) = jobs.recv() {
            let result = match &job {
                Job::State(snapshot) => self.state(snapshot),
                Job::Delta(delta) => self.delta(delta),
                Job::Draining(draining) => self.draining(*draining),
            };
            match (&job, &result) {
                (Job::State(_), Ok(())) => self.behind.store(false, Ordering::Relaxed),
                (Job::State(_) | Job::Delta(_), Err(_)) => {
                    self.open = None;
                    self.behind.store(true, Ordering::Relaxed);
                }
                (Job::Draining(_), result) => {
                    self.draining_behind
                        .store(result.is_err(), Ordering::Relaxed);
                }
                (Job::Delta(_), Ok(())) => {}
            }
            if let Err(error) = &result {
                tracing::error!(%error, "cannot store the state in force");
            }
            done(result);
        }
    }

    /// Replaces the file.
    fn state(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let path = desired(&self.dir);
        let write = || -> io::Result<(File, u64)> {
            let mut new = NewFile::create(&path, 0o600)?;
            let mut file = BufWriter::new(new.file());
            stored::write_state(&mut file, snapshot)?;
            file.flush()?;
            drop(file);
            let file = new.commit()?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = write().map_err(io_error("write", &path))?;
        self.open = Some((file, length, length));
        Ok(())
    }

    /// Appends to the file; joins a file that has become long.
    fn delta(&mut self, delta: &Delta) -> Result<(), Error> {
        let path = desired(&self.dir);
        let failed = |source| io_error("append to", &path)(source);
        if self.behind.load(Ordering::Relaxed) {
            // A whole state follows.
            return Err(failed(io::Error::other("an earlier change is missing")));
        }
        let (mut file, length, first) = match self.open.take() {
            Some(open) => open,
            None => reopen(&path).map_err(failed)?,
        };
        let mut line = Zeroizing::new(Vec::new());
        stored::write_delta(&mut *line, delta).map_err(failed)?;
        file.write_all(&line).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        let length = length + line.len() as u64;
        self.open = Some((file, length, first));
        if length > first * 2 + COMPACTION_BYTES {
            let text = Zeroizing::new(fs::read_to_string(&path).map_err(failed)?);
            match stored::read(&text) {
                Ok((model, None)) => self.state(&model.snapshot())?,
                Ok((_, Some(problem))) | Err(problem) => {
                    return Err(failed(io::Error::other(problem)));
                }
            }
        }
        Ok(())
    }

    fn draining(&self, is_draining: bool) -> Result<(), Error> {
        let path = draining(&self.dir);
        let write = || {
            if is_draining {
                File::create(&path)?.sync_all()?;
            } else {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(io_error("write", &path))
    }
}

/// The file of an earlier process, for appending.
fn reopen(path: &Path) -> io::Result<(File, u64, u64)> {
    let file = OpenOptions::new().append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length, length))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use gateway_model::{Objects, TenantSpec};

    use super::*;

    fn objects(names: &[&str]) -> Objects {
        let tenants = names
            .iter()
            .map(|n| ((*n).to_owned(), TenantSpec::default()));
        Objects {
            tenants: tenants.collect(),
            ..Objects::default()
        }
    }

    fn snapshot(revision: u64, names: &[&str]) -> Job {
        Job::State(Box::new(Snapshot {
            revision,
            objects: objects(names),
            ..Snapshot::default()
        }))
    }

    fn delta(base: u64, names: &[&str]) -> Job {
        Job::Delta(Box::new(Delta {
            base,
            revision: base + 1,
            put: objects(names),
            ..Delta::default()
        }))
    }

    fn put(store: &Store, job: Job) -> Result<(), Error> {
        let (sender, receiver) = sync_channel(1);
        store.put(
            job,
            Box::new(move |result| sender.send(result).expect("a test")),
        );
        receiver.recv().expect("an outcome")
    }

    fn names(stored: &Stored) -> (u64, Vec<String>) {
        let model = stored.model.as_ref().expect("a state");
        let names = model.tenants().map(|(name, _)| name.to_string());
        (model.revision(), names.collect())
    }

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn what_was_stored_is_read_back_by_the_next_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, stored) = Store::open(dir.path()).expect("empty");
        assert!(stored.model.is_none() && !stored.draining && store.is_behind());
        put(&store, delta(0, &["a"])).expect_err("there is no whole state yet");
        put(&store, snapshot(4, &["a"])).expect("stored");
        put(&store, delta(4, &["b"])).expect("stored");
        put(&store, Job::Draining(true)).expect("stored");
        drop(store);
        let (store, stored) = Store::open(dir.path()).expect("stored");
        assert_eq!(names(&stored), (5, list(&["a", "b"])));
        assert!(stored.draining && !store.is_behind());
        // The next process appends.
        put(&store, delta(5, &["c"])).expect("stored");
        put(&store, Job::Draining(false)).expect("stored");
        put(&store, Job::Draining(false)).expect("again");
        drop(store);
        let (_, stored) = Store::open(dir.path()).expect("stored");
        assert_eq!(names(&stored), (6, list(&["a", "b", "c"])));
        assert!(!stored.draining);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(desired(dir.path()))
                .expect("a file")
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o600, "it has keys");
    }

    #[test]
    fn a_cut_file_gives_the_last_complete_revision() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path()).expect("empty");
        put(&store, snapshot(1, &["a"])).expect("stored");
        put(&store, delta(1, &["b"])).expect("stored");
        put(&store, delta(2, &["c"])).expect("stored");
        drop(store);
        let path = desired(dir.path());
        let whole = fs::read(&path).expect("a file");
        let line = |n: usize| {
            let mut ends = (0..whole.len()).filter(|at| whole[*at] == b'\n');
            ends.nth(n).expect("a line") + 1
        };
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("write");
            let (store, stored) = Store::open(dir.path()).expect("readable or moved away");
            if length < line(0) {
                assert!(stored.model.is_none());
                assert!(path.with_extension("jsonl.unreadable").exists());
            } else if length < line(1) {
                assert_eq!(names(&stored), (1, list(&["a"])));
            } else {
                assert_eq!(names(&stored), (2, list(&["a", "b"])));
            }
            assert_eq!(store.is_behind(), ![line(0), line(1)].contains(&length));
        }
        // A file that is cut off is not appended to.
        fs::write(&path, &whole[..line(1) + 3]).expect("write");
        let (store, _) = Store::open(dir.path()).expect("readable");
        put(&store, delta(2, &["c"])).expect_err("behind");
        put(&store, snapshot(7, &["z"])).expect("stored");
        put(&store, delta(7, &["y"])).expect("stored");
        drop(store);
        let (_, stored) = Store::open(dir.path()).expect("stored");
        assert_eq!(names(&stored), (8, list(&["y", "z"])));
    }

    #[test]
    fn a_long_file_is_joined() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path()).expect("empty");
        put(&store, snapshot(1, &["a"])).expect("stored");
        let many: Vec<String> = (0..1000).map(|n| format!("tenant-{n:04}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let length = || fs::metadata(desired(dir.path())).expect("a file").len();
        let mut longest = 0;
        for n in 1..200 {
            put(&store, delta(n, &many)).expect("stored");
            longest = longest.max(length());
        }
        assert!(
            (COMPACTION_BYTES..2 * COMPACTION_BYTES).contains(&longest),
            "{longest}"
        );
        drop(store);
        let (_, stored) = Store::open(dir.path()).expect("stored");
        let (revision, names) = names(&stored);
        assert_eq!((revision, names.len()), (200, 1001));
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "{\"version\":2,\"states\":[]}\n";
        fs::write(desired(dir.path()), text).expect("write");
        let error = Store::open(dir.path()).expect_err("newer").to_string();
        assert!(error.contains("is of version 2"), "{error}");
        let kept = fs::read_to_string(desired(dir.path())).expect("a file");
        assert_eq!(kept, text);
    }
}
