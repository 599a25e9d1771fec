//! The tables, and how a store of an earlier version gets them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{file_error, give, sql_error, with_suffix};
use crate::Error;

/// `application_id` of the file: "CWst".
pub(super) const APPLICATION: i32 = 0x4357_7374;

/// Bytes of a file's header up to the version of reading (SQLite, "Database File Format", 1.3.3),
/// and its place and value for a file that has no write-ahead log.
const HEADER: u64 = 20;
const READ_VERSION: usize = 19;
const NO_LOG: u8 = 1;
/// Memory for pages of the file, KiB.
const CACHE: i64 = 32 << 10;

/// Steps from nothing to the current schema. `user_version` is the number of steps that a file has
/// taken. A released step is never changed.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO numbers VALUES ('revision', 0), ('compacted', 0);
    CREATE TABLE entries (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE log (
        revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        value TEXT,
        at INTEGER NOT NULL,
        PRIMARY KEY (revision, key)
    ) STRICT, WITHOUT ROWID;
"];

/// Opens a store with the current schema, or creates it for its owner alone.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    let mut header = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER).read_to_end(&mut header));
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error("read", path, error));
        }
        Ok(_) | Err(_) => {}
    }
    // A log beside a file that never had one is that of another file, such as the store that a copy
    // of a backup replaces: SQLite would write it over this one, or remove it.
    let version = header.get(READ_VERSION);
    if version.is_none_or(|version| *version == NO_LOG) {
        refuse_leftover(path, "-wal")?;
    }
    let mut file = OpenOptions::new();
    file.read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let failed = |source| file_error("create", path, source);
    let file = file.open(path).map_err(failed)?;
    give(&file, path).map_err(failed)?;
    drop(file);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = sql_error("open", path);
    let mut connection = Connection::open_with_flags(path, flags).map_err(&failed)?;
    check(&connection, path, Empty::Allowed)?;
    // FULL: a commit is on the disk when it is acknowledged, also if the power fails.
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(&failed)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(&failed)?;
    // The writer touches pages of all tenants; those that it has not read again and again from the
    // file. KiB, negative.
    connection
        .pragma_update(None, "cache_size", -CACHE)
        .map_err(&failed)?;
    // The writer copies the write-ahead log into the file after its answers, not within a commit.
    connection
        .pragma_update(None, "wal_autocheckpoint", 0)
        .map_err(&failed)?;
    connection
        .pragma_update(None, "foreign_keys", "ON")
        .map_err(&failed)?;
    migrate(&mut connection, path, &MIGRATIONS)?;
    Ok(connection)
}

/// Refuses a path that has another store's file beside it.
pub(super) fn refuse_leftover(path: &Path, ending: &str) -> Result<(), Error> {
    let file = with_suffix(path, ending);
    match file.symlink_metadata() {
        Ok(_) => Err(Error::Leftover {
            path: path.to_owned(),
            file,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(file_error("read", &file, source)),
    }
}

/// Whether an empty file is a store, to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empty {
    Allowed,
    Refused,
}

/// Checks that a file is a store that this program knows.
pub(super) fn check(connection: &Connection, path: &Path, empty: Empty) -> Result<(), Error> {
    let no_store = |reason: String| Error::NoStore {
        path: path.to_owned(),
        reason,
    };
    let number = |pragma| {
        let found: Result<i32, _> = connection.pragma_query_value(None, pragma, |row| row.get(0));
        found.map_err(|error| no_store(error.to_string()))
    };
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| no_store(error.to_string()))?;
    if tables == 0 && empty == Empty::Allowed {
        return Ok(());
    }
    if number("application_id")? != APPLICATION {
        return Err(no_store("another program wrote it".to_owned()));
    }
    let found = u32::try_from(number("user_version")?).unwrap_or(u32::MAX);
    let known = MIGRATIONS.len() as u32;
    if found > known {
        return Err(Error::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(())
}

/// Takes the steps that a file has not taken yet, all or none.
fn migrate(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), Error> {
    let failed = sql_error("migrate", path);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&failed)?;
    let taken: u32 = transaction
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(&failed)?;
    for step in steps.iter().skip(taken as usize) {
        transaction.execute_batch(step).map_err(&failed)?;
    }
    if (taken as usize) < steps.len() {
        tracing::info!(from = taken, to = steps.len(), "store migrated");
        transaction
            .pragma_update(None, "user_version", steps.len() as u32)
            .map_err(&failed)?;
        transaction
            .pragma_update(None, "application_id", APPLICATION)
            .map_err(&failed)?;
    }
    transaction.commit().map_err(&failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> u32 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    }

    /// Columns of the current schema's tables.
    fn columns(connection: &Connection) -> Vec<(String, String)> {
        let mut statement = connection
            .prepare(
                "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c
                 ORDER BY 1, 2",
            )
            .unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn every_earlier_version_is_migrated() {
        let path = Path::new("memory");
        let mut newest = Connection::open_in_memory().unwrap();
        migrate(&mut newest, path, &MIGRATIONS).unwrap();
        assert!(columns(&newest).len() > 5);
        for taken in 0..=MIGRATIONS.len() {
            let mut old = Connection::open_in_memory().unwrap();
            migrate(&mut old, path, &MIGRATIONS[..taken]).unwrap();
            assert_eq!(version(&old) as usize, taken);
            migrate(&mut old, path, &MIGRATIONS).unwrap();
            assert_eq!(version(&old) as usize, MIGRATIONS.len());
            assert_eq!(columns(&old), columns(&newest), "from version {taken}");
        }
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let path = Path::new("memory");
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = [
            "CREATE TABLE a (x INTEGER) STRICT",
            "CREATE TABLE a (y INTEGER) STRICT",
        ];
        let error = migrate(&mut connection, path, &steps)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot migrate the store memory: "),
            "{error}"
        );
        assert_eq!(version(&connection), 0);
        assert!(columns(&connection).is_empty());
    }
}
