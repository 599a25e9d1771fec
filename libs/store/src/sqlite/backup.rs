//! Backups, and stores made of them.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};

use super::{
    file_error, lock,
    schema::{self, Empty},
    sql_error,
};
use crate::Error;

/// Revisions that a restored store leaves out, so that none means two commits: more than a store
/// makes after its last backup.
const RESTORED: i64 = 1 << 32;

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
        verify(&part)?;
        publish(&part, to)
    };
    copy().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Makes a store of a backup, at a path where there is none. Its next revision is far behind the
/// backup's last, so that a watch of the lost store does not take other commits for its own.
///
/// # Errors
/// [`Error::Exists`] if there is a store, [`Error::NoStore`] if the backup is not whole, and
/// others.
pub fn restore(backup: &Path, path: &Path) -> Result<(), Error> {
    let _lock = lock(path)?;
    verify(backup)?;
    let part = new_file(path)?;
    let copy = || {
        fs::copy(backup, &part).map_err(|source| file_error("copy", backup, source))?;
        // Migrates it, too.
        let connection = schema::open(&part)?;
        let failed = sql_error("restore", path);
        connection
            .execute(
                "UPDATE numbers SET value = value + ? WHERE name = 'revision'",
                [RESTORED],
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
    copy().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Creates an empty file beside `to`, for its owner alone. It gets the name `to` when it is whole.
fn new_file(to: &Path) -> Result<PathBuf, Error> {
    if to.exists() {
        return Err(Error::Exists {
            path: to.to_owned(),
        });
    }
    let mut name = OsString::from(to);
    name.push(".part");
    let part = PathBuf::from(name);
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error("replace", &part, error));
        }
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(|source| file_error("create", &part, source))?;
    Ok(part)
}

/// Writes a whole file to the disk and gives it its name, unless there is a file of that name.
fn publish(part: &Path, to: &Path) -> Result<(), Error> {
    let sync = |path: &Path| File::open(path)?.sync_all();
    sync(part).map_err(|source| file_error("write", part, source))?;
    fs::hard_link(part, to).map_err(|source| file_error("create", to, source))?;
    fs::remove_file(part).map_err(|source| file_error("remove", part, source))?;
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    sync(folder).map_err(|source| file_error("write", folder, source))
}

/// Checks that a file is a whole store.
fn verify(path: &Path) -> Result<(), Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sql_error("open", path))?;
    schema::check(&connection, path, Empty::Refused)?;
    let result: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(sql_error("check", path))?;
    if result == "ok" {
        return Ok(());
    }
    Err(Error::NoStore {
        path: path.to_owned(),
        reason: result,
    })
}
