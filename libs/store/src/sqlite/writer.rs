//! The thread that owns the connection.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rusqlite::{
    Connection, OptionalExtension as _, ToSql, TransactionBehavior, named_params, params,
    params_from_iter, types::Value,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Options, log_copier::LogCopier, sql_error};
use crate::{
    Campaign, Change, Changes, CommitError, Entry, Error, Fence, MAX_CHANGES, MAX_CHANGES_BYTES,
    Precondition, ReadError, Revision, Snapshot, Transaction,
    lease::{Leases, PREFIX},
};

/// Transactions in one commit of SQLite.
const GROUP: usize = 256;
/// Pages of the write-ahead log from which it is copied into the file, beside the commits: a page
/// that several commits have written is copied once.
const MAX_LOG_PAGES: i64 = 2000;
/// Pages of the log from which commits wait for the copy, so that it stays short under a load
/// without a pause.
const MAX_WAITING_PAGES: i64 = 2500;
/// Prepared statements that are kept: more than there are.
const STATEMENTS: usize = 32;
/// Rows of the log that one statement inserts.
const LOG_ROWS: usize = 32;
/// Time by which a row of the log may be ahead of the clock.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// Rows of the log that are deleted after a commit, unless one revision has more.
const MAX_TRIMMED_ROWS: usize = 256;

/// A request to the thread.
#[derive(Debug)]
pub(super) enum Request {
    Snapshot {
        prefix: String,
        reply: oneshot::Sender<Result<Snapshot, Error>>,
    },
    Commit {
        transaction: Arc<Transaction>,
        fence: Option<Fence>,
        reply: oneshot::Sender<Result<Revision, CommitError>>,
    },
    Changes {
        prefix: String,
        after: Revision,
        reply: oneshot::Sender<Result<Changes, ReadError>>,
    },
    Probe {
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Campaign {
        name: String,
        holder: String,
        ttl: Duration,
        reply: oneshot::Sender<Result<Campaign, Error>>,
    },
    KeepAlive {
        fence: Fence,
        ttl: Duration,
        reply: oneshot::Sender<bool>,
    },
    Resign {
        fence: Fence,
        reply: oneshot::Sender<()>,
    },
}

/// A commit that waits for the commit of its group.
struct Waiting {
    transaction: Arc<Transaction>,
    fence: Option<Fence>,
    reply: oneshot::Sender<Result<Revision, CommitError>>,
}

pub(super) struct Writer {
    connection: Connection,
    copier: LogCopier,
    path: PathBuf,
    options: Options,
    sender: watch::Sender<Revision>,
    revision: Revision,
    compacted: Revision,
    leases: Leases,
}

impl Writer {
    /// Leases of an earlier process have ended: their keys are deleted, and no fence of theirs
    /// holds.
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        options: Options,
        sender: watch::Sender<Revision>,
    ) -> Result<Self, Error> {
        let number = |name| number(&connection, name).map_err(sql_error("read", &path));
        let (revision, compacted) = (number("revision")?, number("compacted")?);
        let copier = LogCopier::start(&path)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let mut writer = Self {
            connection,
            copier,
            path,
            options,
            sender,
            revision,
            compacted,
            leases: Leases::default(),
        };
        let old = writer.snapshot(PREFIX)?;
        let mut transaction = Transaction::default();
        transaction
            .delete
            .extend(old.entries.into_iter().map(|entry| entry.key));
        let ended = writer.commit_all(&[(&transaction, None)])?;
        debug_assert!(ended.iter().all(Result::is_ok), "it has no preconditions");
        writer.sender.send_replace(writer.revision);
        Ok(writer)
    }

    /// Answers requests until all handles are dropped.
    pub(super) fn run(&mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            let other = loop {
                match next {
                    Some(Request::Commit {
                        transaction,
                        fence,
                        reply,
                    }) => group.push(Waiting {
                        transaction,
                        fence,
                        reply,
                    }),
                    other => break other,
                }
                if group.len() == GROUP {
                    break None;
                }
                next = queue.try_recv().ok();
            };
            if !group.is_empty() {
                self.commit_group(group);
            }
            if let Some(other) = other {
                self.answer(other);
            }
        }
    }

    /// Callers that have gone away get no reply.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Snapshot { prefix, reply } => drop(reply.send(self.snapshot(&prefix))),
            Request::Changes {
                prefix,
                after,
                reply,
            } => drop(reply.send(self.changes(&prefix, after))),
            Request::Probe { reply } => {
                let probed = self.probe();
                self.copy_long_log();
                let _ = reply.send(probed);
            }
            Request::Campaign {
                name,
                holder,
                ttl,
                reply,
            } => drop(reply.send(self.campaign(&name, &holder, ttl))),
            Request::KeepAlive { fence, ttl, reply } => {
                let now = self.options.clock.monotonic();
                let _ = reply.send(self.leases.extend(&fence, now, now + ttl));
            }
            Request::Resign { fence, reply } => {
                self.leases.resign(&fence);
                let _ = reply.send(());
            }
            Request::Commit {
                transaction,
                fence,
                reply,
            } => self.commit_group(vec![Waiting {
                transaction,
                fence,
                reply,
            }]),
        }
    }

    /// Commits a group and answers it; then copies the log, if it has become long.
    fn commit_group(&mut self, group: Vec<Waiting>) {
        self.commit_and_answer(group);
        self.copy_long_log();
    }

    fn copy_long_log(&self) {
        if let Err(error) = self.copy_log() {
            tracing::warn!(
                %error,
                store = %self.path.display(),
                "cannot copy the write-ahead log of SQLite into the store, so that it grows: \
                 check the disk"
            );
        }
    }

    /// Has a write-ahead log of many pages copied into the file; a later commit begins the log
    /// anew. SQLite would copy it within a commit, whose callers would wait for it.
    fn copy_log(&self) -> rusqlite::Result<()> {
        let mut statement = self
            .connection
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
        let pages = statement.query_row([], |row| row.get::<_, i64>(1))?;
        match pages {
            MAX_WAITING_PAGES.. => self.copier.copy(),
            MAX_LOG_PAGES.. => self.copier.ask(),
            _ => {}
        }
        Ok(())
    }

    fn commit_and_answer(&mut self, group: Vec<Waiting>) {
        let transactions: Vec<_> = group
            .iter()
            .map(|waiting| (&*waiting.transaction, waiting.fence.as_ref()))
            .collect();
        match self.commit_all(&transactions) {
            Ok(results) => {
                for (waiting, result) in group.into_iter().zip(results) {
                    drop(waiting.reply.send(result));
                }
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    commits = group.len(),
                    "cannot commit to the store, and wrote nothing: check the space and the \
                     errors of the disk"
                );
                for waiting in group {
                    drop(waiting.reply.send(Err(error.clone().into())));
                }
            }
        }
    }

    /// Commits transactions one after the other, in one transaction of SQLite. With an error, none
    /// of them.
    fn commit_all(
        &mut self,
        transactions: &[(&Transaction, Option<&Fence>)],
    ) -> Result<Vec<Result<Revision, CommitError>>, Error> {
        let failed = sql_error("write", &self.path);
        let now = self.options.clock.monotonic();
        let wall = self.options.clock.wall();
        let sql = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        let mut revision = self.revision;
        let mut results = Vec::new();
        for (transaction, fence) in transactions {
            if let Some(fence) = fence.filter(|fence| !self.leases.is_valid(fence, now)) {
                results.push(Err(CommitError::Fenced {
                    lease: fence.lease.clone(),
                }));
                continue;
            }
            // A transaction that is not alone must not have written anything when it is refused.
            let checked = match transactions.len() {
                1 => Checked::Unwritten,
                _ => Checked::All,
            };
            if let Some(key) = stale(&sql, transaction, checked).map_err(&failed)? {
                results.push(Err(CommitError::Stale { key }));
                continue;
            }
            if transaction.is_empty() {
                results.push(Ok(revision));
                continue;
            }
            if let Some(key) = write(&sql, transaction, revision + 1, wall).map_err(&failed)? {
                // It is alone: SQLite undoes what it has written.
                return Ok(vec![Err(CommitError::Stale { key })]);
            }
            revision += 1;
            results.push(Ok(revision));
        }
        if revision == self.revision {
            return Ok(results);
        }
        set_number(&sql, "revision", revision).map_err(&failed)?;
        let compacted = trim(&sql, wall, self.options.keep_log).map_err(&failed)?;
        sql.commit().map_err(&failed)?;
        self.revision = revision;
        self.compacted = compacted.unwrap_or(self.compacted);
        self.sender.send_replace(revision);
        Ok(results)
    }

    /// Counts probes in a number of its own, as SQLite does not write what is there already.
    fn probe(&mut self) -> Result<(), Error> {
        let failed = sql_error("write", &self.path);
        let sql = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        let count = "INSERT INTO numbers VALUES ('probe', 1)
                     ON CONFLICT (name) DO UPDATE SET value = (value + 1) & 0xffffffff";
        sql.prepare_cached(count)
            .and_then(|mut statement| statement.execute([]))
            .map_err(&failed)?;
        sql.commit().map_err(&failed)
    }

    fn campaign(&mut self, name: &str, holder: &str, ttl: Duration) -> Result<Campaign, Error> {
        let now = self.options.clock.monotonic();
        if let Some(held) = self.leases.other(name, holder, now) {
            return Ok(held);
        }
        let mut transaction = Transaction::default();
        transaction
            .put
            .insert(format!("{PREFIX}{name}"), holder.to_owned());
        self.commit_all(&[(&transaction, None)])?;
        Ok(self.leases.elect(name, holder, self.revision, now + ttl))
    }

    fn snapshot(&self, prefix: &str) -> Result<Snapshot, Error> {
        let found = entries(&self.connection, prefix);
        Ok(Snapshot {
            entries: found.map_err(sql_error("read", &self.path))?,
            revision: self.revision,
        })
    }

    fn changes(&self, prefix: &str, after: Revision) -> Result<Changes, ReadError> {
        if after < self.compacted || after > self.revision {
            return Err(ReadError::Compacted { after });
        }
        let read = || -> rusqlite::Result<Changes> {
            let mut statement = self.connection.prepare_cached(
                "SELECT key, value, revision FROM log
                 WHERE revision > :after AND key >= :prefix AND key < :end ORDER BY revision, key",
            )?;
            let mut rows = statement.query(
                named_params! { ":after": after.cast_signed(), ":prefix": prefix,
                ":end": end(prefix) },
            )?;
            let mut changes: Vec<Change> = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let revision = row.get::<_, i64>(2)?.cast_unsigned();
                let last = changes.last().map(|last| last.revision);
                let is_full = changes.len() >= MAX_CHANGES || bytes >= MAX_CHANGES_BYTES;
                if let Some(last) = last.filter(|last| is_full && *last != revision) {
                    return Ok(Changes {
                        changes,
                        through: last,
                    });
                }
                let value: Option<String> = row.get(1)?;
                bytes += value.as_ref().map_or(0, String::len);
                changes.push(Change {
                    key: row.get(0)?,
                    value,
                    revision,
                });
            }
            Ok(Changes {
                changes,
                through: self.revision,
            })
        };
        Ok(read().map_err(sql_error("read", &self.path))?)
    }
}

/// All values whose keys begin with `prefix`, sorted by key.
pub(super) fn entries(connection: &Connection, prefix: &str) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = connection.prepare_cached(
        "SELECT key, value, revision FROM entries
         WHERE key >= :prefix AND key < :end ORDER BY key",
    )?;
    let entries = statement.query_map(
        named_params! { ":prefix": prefix, ":end": end(prefix) },
        |row| {
            Ok(Entry {
                key: row.get(0)?,
                value: row.get(1)?,
                revision: row.get::<_, i64>(2)?.cast_unsigned(),
            })
        },
    )?;
    entries.collect()
}

/// A revision of the store that has a name.
pub(super) fn number(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    let statement = "SELECT value FROM numbers WHERE name = ?";
    let value = connection.query_row(statement, [name], |row| row.get::<_, i64>(0));
    value.map(i64::cast_unsigned)
}

/// The smallest value that is greater than every key with the prefix. SQLite compares texts by
/// their bytes, which is the order of their characters, and every blob is greater than every text.
fn end(prefix: &str) -> Value {
    let mut characters: Vec<_> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            characters.push(next);
            return Value::Text(characters.into_iter().collect());
        }
    }
    Value::Blob(Vec::new())
}

/// Keys whose preconditions are looked up before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checked {
    All,
    /// Those that [`write`] does not check with its statements: a change of a plan writes a
    /// thousand keys, and each is found once then.
    Unwritten,
}

/// The first of the checked keys that is not as the transaction must have it.
fn stale(
    sql: &rusqlite::Transaction<'_>,
    transaction: &Transaction,
    checked: Checked,
) -> rusqlite::Result<Option<String>> {
    let mut statement = sql.prepare_cached("SELECT revision FROM entries WHERE key = ?")?;
    for (key, precondition) in &transaction.preconditions {
        let is_written = match precondition {
            Precondition::Absent => transaction.put.contains_key(key),
            Precondition::At(_) => {
                transaction.put.contains_key(key) || transaction.delete.contains(key)
            }
        };
        if is_written && checked == Checked::Unwritten {
            continue;
        }
        let there: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
        let holds = match precondition {
            Precondition::Absent => there.is_none(),
            Precondition::At(revision) => there == Some(revision.cast_signed()),
        };
        if !holds {
            return Ok(Some(key.clone()));
        }
    }
    Ok(None)
}

/// Writes a transaction: the first of the written keys that is not as the transaction must have it.
/// The keys before it are written then, and the caller undoes that.
fn write(
    sql: &rusqlite::Transaction<'_>,
    transaction: &Transaction,
    revision: Revision,
    wall: Duration,
) -> rusqlite::Result<Option<String>> {
    let (revision, at) = (revision.cast_signed(), milliseconds(wall));
    let mut log: Vec<(&str, Option<&str>)> = Vec::new();
    let mut delete = sql.prepare_cached("DELETE FROM entries WHERE key = ?")?;
    let mut delete_at = sql.prepare_cached("DELETE FROM entries WHERE key = ? AND revision = ?")?;
    for key in &transaction.delete {
        let is_deleted = match transaction.preconditions.get(key) {
            Some(Precondition::At(before)) => {
                if delete_at.execute(params![key, before.cast_signed()])? == 0 {
                    return Ok(Some(key.clone()));
                }
                true
            }
            Some(Precondition::Absent) | None => delete.execute([key])? > 0,
        };
        if is_deleted {
            log.push((key, None));
        }
    }
    // To replace a row is to delete and insert it: an update finds it once.
    let mut update =
        sql.prepare_cached("UPDATE entries SET value = ?2, revision = ?3 WHERE key = ?1")?;
    let mut update_at = sql.prepare_cached(
        "UPDATE entries SET value = ?2, revision = ?3 WHERE key = ?1 AND revision = ?4",
    )?;
    let mut insert =
        sql.prepare_cached("INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT DO NOTHING")?;
    for (key, value) in &transaction.put {
        let written = match transaction.preconditions.get(key) {
            Some(Precondition::Absent) => insert.execute(params![key, value, revision])?,
            Some(Precondition::At(before)) => {
                update_at.execute(params![key, value, revision, before.cast_signed()])?
            }
            None => match update.execute(params![key, value, revision])? {
                0 => insert.execute(params![key, value, revision])?,
                updated => updated,
            },
        };
        if written == 0 {
            return Ok(Some(key.clone()));
        }
        log.push((key, Some(value)));
    }
    write_log(sql, revision, at, log)?;
    Ok(None)
}

/// The statement that inserts [`LOG_ROWS`] rows of the log. Its parameters are revision and time,
/// then key and value of each row.
static INSERT_LOG_ROWS: LazyLock<String> = LazyLock::new(|| {
    let row = |number: usize| format!("(?1, ?{}, ?{}, ?2)", 2 * number + 3, 2 * number + 4);
    let rows: Vec<_> = (0..LOG_ROWS).map(row).collect();
    format!("INSERT INTO log VALUES {}", rows.join(", "))
});

/// Writes the rows of the log in the order of their keys, many with each statement: those of a new
/// revision are the last of the table, and SQLite finds the place of the first one only.
fn write_log(
    sql: &rusqlite::Transaction<'_>,
    revision: i64,
    at: i64,
    mut rows: Vec<(&str, Option<&str>)>,
) -> rusqlite::Result<()> {
    rows.sort_unstable_by_key(|(key, _)| *key);
    let (many, rest) = rows.as_chunks::<LOG_ROWS>();
    if !many.is_empty() {
        let mut statement = sql.prepare_cached(&INSERT_LOG_ROWS)?;
        for rows in many {
            let head = [&revision as &dyn ToSql, &at];
            let rows = rows
                .iter()
                .flat_map(|(key, value)| [key as &dyn ToSql, value]);
            statement.execute(params_from_iter(head.into_iter().chain(rows)))?;
        }
    }
    let mut statement = sql.prepare_cached("INSERT INTO log VALUES (?, ?, ?, ?)")?;
    for (key, value) in rest {
        statement.execute(params![revision, key, value, at])?;
    }
    Ok(())
}

fn set_number(
    sql: &rusqlite::Transaction<'_>,
    name: &str,
    value: Revision,
) -> rusqlite::Result<()> {
    let mut statement = sql.prepare_cached("UPDATE numbers SET value = ? WHERE name = ?")?;
    statement.execute(params![value.cast_signed(), name])?;
    Ok(())
}

/// Deletes whole revisions of the log that are older than `oldest`, about [`MAX_TRIMMED_ROWS`]
/// rows: the last revision that was deleted. Rows of a time that is still to come were written
/// before the clock was set back: they count as of now, so that they do not stay until then.
fn trim(
    sql: &rusqlite::Transaction<'_>,
    now: Duration,
    keep: Duration,
) -> rusqlite::Result<Option<Revision>> {
    let oldest = now.saturating_sub(keep);
    let latest = milliseconds(now + CLOCK_TOLERANCE);
    let mut statement =
        sql.prepare_cached("SELECT revision, at FROM log ORDER BY revision, key LIMIT ?")?;
    let mut rows = statement.query([MAX_TRIMMED_ROWS as i64])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let at: i64 = row.get(1)?;
        if at > latest {
            let mut set = sql.prepare_cached("UPDATE log SET at = ?1 WHERE at > ?1")?;
            set.execute([milliseconds(now)])?;
            break;
        }
        if at >= milliseconds(oldest) {
            break;
        }
        last = Some(row.get::<_, i64>(0)?.cast_unsigned());
    }
    if let Some(last) = last {
        let mut delete = sql.prepare_cached("DELETE FROM log WHERE revision <= ?")?;
        delete.execute([last.cast_signed()])?;
        set_number(sql, "compacted", last)?;
    }
    Ok(last)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
