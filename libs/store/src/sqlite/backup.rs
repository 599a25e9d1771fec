//! Backups, and stores made of them.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};

use super::{
    SIDE_FILE_SUFFIXES, file_error, folder, give, lock,
    schema::{self, Empty},
    sql_error, with_suffix,
    writer::{entries, number},
};
use crate::{Error, Revision, Snapshot};

/// Revisions that a restored store leaves out, so that none means two commits: more than a store
/// makes after its last backup.
const RESTORE_REVISION_GAP: i64 = 1 << 32;

/// Copies a store that is in use. `VACUUM INTO` reads one snapshot; the online backup of SQLite
/// would begin again after each commit of another connection.
pub(super) fn backup(path: &Path, to: &Path) -> Result<(), Error> {
    let part = new_file(to)?;
    let copy = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(sql_error("open", path))?;
        let text = part.to_str().ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
            file_error("write", to, error)
        })?;
        let mut statement = connection
            .prepare("VACUUM INTO ?")
            .map_err(sql_error("copy", path))?;
        statement.execute([text]).map_err(sql_error("copy", path))?;
        Backup::open(&part)?;
        publish(&part, to)
    };
    copy().inspect_err(|_| remove(&part))
}

/// Makes a store of a backup, at a path where there is none, nor a file that SQLite keeps beside a
/// store. Its next revision is far behind the backup's last, so that a watch of the lost store does
/// not take other commits for its own: its revision.
///
/// # Errors
/// [`Error::Exists`] if there is a store, [`Error::Leftover`] if there is a file of another one,
/// [`Error::NoStore`] if the backup is not whole, and others.
pub fn restore(backup: &Path, path: &Path) -> Result<Revision, Error> {
    let _lock = lock(path)?;
    let from = Backup::open(backup)?.revision()?;
    refuse_existing(path)?;
    for companion in SIDE_FILE_SUFFIXES {
        schema::refuse_leftover(path, companion)?;
    }
    let part = new_file(path)?;
    let copy = || {
        let failed = |source| file_error("copy", backup, source);
        // Not the permissions of the backup: it may be read-only.
        let mut to = OpenOptions::new().write(true).open(&part).map_err(failed)?;
        let mut whole = File::open(backup).map_err(failed)?;
        io::copy(&mut whole, &mut to).map_err(failed)?;
        // Migrates it, too.
        let connection = schema::open(&part)?;
        let failed = sql_error("restore", path);
        connection
            .execute(
                "UPDATE numbers SET value = value + ? WHERE name = 'revision'",
                [RESTORE_REVISION_GAP],
            )
            .map_err(&failed)?;
        connection
            .execute(
                "UPDATE numbers SET value = (SELECT value FROM numbers WHERE name = 'revision')
                 WHERE name = 'compacted'",
                [],
            )
            .map_err(&failed)?;
        connection.execute("DELETE FROM log", []).map_err(&failed)?;
        // One file, without a write-ahead log.
        connection
            .pragma_update(None, "journal_mode", "DELETE")
            .map_err(&failed)?;
        connection.close().map_err(|(_, error)| failed(error))?;
        publish(&part, path)
    };
    copy().inspect_err(|_| remove(&part))?;
    let restored = Backup::open(path)?.revision()?;
    if restored == from.saturating_add_signed(RESTORE_REVISION_GAP) {
        return Ok(restored);
    }
    Err(Error::NoStore {
        path: path.to_owned(),
        reason: format!("it has revision {restored}, and its backup has {from}"),
    })
}

fn refuse_existing(path: &Path) -> Result<(), Error> {
    match path.exists() {
        true => Err(Error::Exists {
            path: path.to_owned(),
        }),
        false => Ok(()),
    }
}

/// Creates an empty file beside `to`, for its owner alone. It gets the name `to` when it is whole.
pub(crate) fn new_file(to: &Path) -> Result<PathBuf, Error> {
    refuse_existing(to)?;
    let part = with_suffix(to, ".part");
    // Those of a process that was killed: SQLite would take them for the new file's.
    let old = SIDE_FILE_SUFFIXES.map(|companion| with_suffix(&part, companion));
    for file in std::iter::once(&part).chain(&old) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("replace", file, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let failed = |source| file_error("create", &part, source);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed)?;
    give(&file, &part).map_err(failed)?;
    Ok(part)
}

/// Removes a file that did not become whole, and what SQLite made beside it.
fn remove(part: &Path) {
    for companion in SIDE_FILE_SUFFIXES {
        let _ = fs::remove_file(with_suffix(part, companion));
    }
    let _ = fs::remove_file(part);
}

/// Writes a whole file to the disk and gives it its name, unless there is a file of that name.
pub(crate) fn publish(part: &Path, to: &Path) -> Result<(), Error> {
    let sync = |path: &Path| File::open(path)?.sync_all();
    sync(part).map_err(|source| file_error("write", part, source))?;
    fs::hard_link(part, to).map_err(|source| file_error("create", to, source))?;
    fs::remove_file(part).map_err(|source| file_error("remove", part, source))?;
    let folder = folder(to);
    sync(folder).map_err(|source| file_error("write", folder, source))
}

/// A backup, for reading. Its file is not changed, and no file is made beside it.
#[derive(Debug)]
pub struct Backup {
    connection: Connection,
    path: PathBuf,
}

impl Backup {
    /// Opens a backup and checks that it is whole.
    ///
    /// # Errors
    /// [`Error::NoStore`] if it is not, [`Error::NotClosed`] for a store that is in use or was not
    /// closed, and others.
    pub fn open(path: &Path) -> Result<Self, Error> {
        for companion in SIDE_FILE_SUFFIXES {
            let file = with_suffix(path, companion);
            if file.exists() {
                return Err(Error::NotClosed {
                    path: path.to_owned(),
                    file,
                });
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        // A file that does not change needs neither a lock nor a shared memory beside it.
        let mut uri = OsString::from("file:");
        uri.push(encoded(path));
        uri.push("?immutable=1");
        let connection =
            Connection::open_with_flags(uri, flags).map_err(sql_error("open", path))?;
        schema::check(&connection, path, Empty::Refused)?;
        let result: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(sql_error("check", path))?;
        if result != "ok" {
            return Err(Error::NoStore {
                path: path.to_owned(),
                reason: result,
            });
        }
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// The last commit.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn revision(&self) -> Result<Revision, Error> {
        number(&self.connection, "revision").map_err(sql_error("read", &self.path))
    }

    /// All values whose keys begin with `prefix`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn snapshot(&self, prefix: &str) -> Result<Snapshot, Error> {
        let found = entries(&self.connection, prefix);
        Ok(Snapshot {
            entries: found.map_err(sql_error("read", &self.path))?,
            revision: self.revision()?,
        })
    }
}

/// A path in a URI of SQLite.
fn encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                text.push(char::from(*byte));
            }
            byte => text += &format!("%{byte:02X}"),
        }
    }
    text
}
