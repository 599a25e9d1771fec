//! The file of SQLite: its lock, its log, backups and restored stores.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use store::{Campaign, CommitError, Error, Options, ReadError, Sqlite, Store as _, restore};

use super::{Manual, block_on, put, puts, values};

fn open(path: &Path) -> Result<Sqlite, Error> {
    Sqlite::open(path, Options::default())
}

/// The text of an error, without the folder.
fn text<T: std::fmt::Debug>(result: Result<T, Error>, folder: &Path) -> String {
    let error = result.expect_err("an error").to_string();
    error.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn a_store_keeps_its_values_and_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = open(&path).unwrap();
    let first = block_on(put(&store, &[("a", Some("1")), ("b", Some("1"))]));
    drop(store);
    let store = open(&path).unwrap();
    let second = block_on(put(&store, &[("b", None), ("c", Some("2"))]));
    assert!(second > first);
    let expected = [("a", "1"), ("c", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(block_on(values(&store, "")), expected);
    let changes = block_on(store.changes("", first)).unwrap();
    assert_eq!(changes.changes.len(), 2, "the log is kept, too");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for its owner alone");
}

#[test]
fn a_store_has_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = open(&path).unwrap();
    assert_eq!(
        text(open(&path), folder.path()),
        "the store store is open in another process: stop that process first, or use another file"
    );
    let backup = folder.path().join("backup");
    store.backup(&backup).unwrap();
    let error = text(restore(&backup, &path), folder.path());
    assert!(error.contains("is open in another process"), "{error}");
    drop(store);
    open(&path).unwrap();
}

#[test]
fn leases_end_with_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let long = Duration::from_secs(1000);
    let store = open(&path).unwrap();
    let Campaign::Elected(fence) = block_on(store.campaign("runs", "one", long)).unwrap() else {
        panic!("it is free");
    };
    drop(store);
    let store = open(&path).unwrap();
    let late = block_on(store.commit(puts(&[("a", Some("1"))]), Some(fence)));
    assert!(matches!(late, Err(CommitError::Fenced { .. })), "{late:?}");
    let other = block_on(store.campaign("runs", "two", long)).unwrap();
    assert!(matches!(other, Campaign::Elected(_)), "{other:?}");
}

#[test]
fn other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::write(&path, "x".repeat(9000)).unwrap();
    let error = text(open(&path), folder.path());
    assert!(
        error.starts_with("store is not a store that can be used: "),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE a (x INTEGER)").unwrap();
    let error = text(open(&path), folder.path());
    assert!(error.contains("another program wrote it"), "{error}");
    drop(other);
    fs::remove_file(&path).unwrap();
    drop(open(&path).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = text(open(&path), folder.path());
    assert!(
        error.starts_with("the store store has schema 99, and this program knows "),
        "{error}"
    );
    let error = text(open(&folder.path().join("no/store")), folder.path());
    assert!(
        error.starts_with("cannot create no/store.lock: No such file"),
        "{error}"
    );
}

#[test]
fn old_changes_are_forgotten_in_small_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let clock = Manual::default();
    let keep_log = Duration::from_secs(60);
    let options = Options {
        keep_log,
        clock: Arc::new(clock.clone()),
    };
    let store = Sqlite::open(&path, options).unwrap();
    block_on(async {
        let mut last = 0;
        for number in 0..600 {
            last = put(
                &store,
                &[("a", Some(&number.to_string())), ("b", Some("x"))],
            )
            .await;
        }
        assert_eq!(store.changes("", 0).await.unwrap().changes.len(), 1000);
        clock.advance(keep_log);
        let edge = put(&store, &[("c", Some("1"))]).await;
        assert!(
            store.changes("", 0).await.is_ok(),
            "exactly 60 s old changes are kept"
        );
        clock.advance(Duration::from_millis(1));
        let mut steps = 0;
        while store.changes("", last).await.is_ok() && store.changes("", last - 1).await.is_ok() {
            put(&store, &[("d", Some("1"))]).await;
            steps += 1;
            assert!(steps < 100, "the log is not trimmed");
        }
        assert_eq!(steps, 5, "1200 rows by 256");
        let forgotten = store.changes("", 0).await;
        assert!(
            matches!(forgotten, Err(ReadError::Compacted { after: 0 })),
            "{forgotten:?}"
        );
        let kept = store.changes("", last).await.unwrap();
        assert_eq!(kept.changes[0].revision, edge);
        assert_eq!(
            values(&store, "a").await,
            [("a".to_owned(), "599".to_owned())]
        );
    });
    let rows = rusqlite::Connection::open(&path).unwrap();
    let rows: i64 = rows
        .query_row("SELECT count(*) FROM log", [], |row| row.get(0))
        .unwrap();
    assert!(rows < 20, "{rows} rows");
}

#[test]
fn a_backup_is_one_commit_of_a_store_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = open(&path).unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    block_on(async {
        let writer = tokio::spawn({
            let (store, is_done) = (store.clone(), Arc::clone(&is_done));
            async move {
                let mut number = 0;
                while !is_done.load(Ordering::Relaxed) {
                    number += 1;
                    let text = number.to_string();
                    // Two keys that are always equal, and one that is new.
                    let new = format!("new/{number}");
                    put(
                        &store,
                        &[("x", Some(&text)), ("y", Some(&text)), (&new, Some(&text))],
                    )
                    .await;
                }
                number
            }
        });
        let mut before = 0;
        for number in 0..5 {
            let (from, to) = (
                store.clone(),
                folder.path().join(format!("backup-{number}")),
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::task::spawn_blocking(move || from.backup(&to))
                .await
                .unwrap()
                .unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        let written = writer.await.unwrap();
        for number in 0..5 {
            let (backup, path) = (format!("backup-{number}"), format!("restored-{number}"));
            let (backup, path) = (folder.path().join(backup), folder.path().join(path));
            restore(&backup, &path).unwrap();
            let restored = open(&path).unwrap();
            let found = values(&restored, "").await;
            let get = |key: &str| &found.iter().find(|(k, _)| k == key).unwrap().1;
            assert_eq!(get("x"), get("y"));
            let x: usize = get("x").parse().unwrap();
            assert_eq!(found.len(), x + 2, "all commits up to one");
            assert!(x > before && x <= written, "{before} {x} {written}");
            before = x;
        }
    });
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_restored_store_repeats_no_revision() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&path).unwrap();
    block_on(put(&store, &[("a", Some("1"))]));
    store.backup(&backup).unwrap();
    let lost = block_on(put(&store, &[("a", Some("2"))]));
    drop(store);
    assert_eq!(
        text(restore(&backup, &path), folder.path()),
        "store exists: write another path, or move that file away first"
    );
    fs::remove_file(&path).unwrap();
    restore(&backup, &path).unwrap();
    let store = open(&path).unwrap();
    assert_eq!(
        block_on(values(&store, "")),
        [("a".to_owned(), "1".to_owned())]
    );
    let watch = block_on(store.watch("", lost).next());
    assert!(
        matches!(watch, Err(ReadError::Compacted { .. })),
        "{watch:?}"
    );
    let next = block_on(put(&store, &[("a", Some("3"))]));
    assert!(next > lost + 1_000_000, "{next} after {lost}");
}

#[test]
fn a_damaged_backup_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&path).unwrap();
    for number in 0..200 {
        block_on(put(
            &store,
            &[(&format!("k/{number}"), Some(&"x".repeat(500)))],
        ));
    }
    store.backup(&backup).unwrap();
    drop(store);
    assert_eq!(
        text(open(&path).unwrap().backup(&backup), folder.path()),
        "backup exists: write another path, or move that file away first"
    );
    let whole = fs::read(&backup).unwrap();
    let mut damaged = whole.clone();
    damaged.truncate(whole.len() / 2);
    let other = folder.path().join("damaged");
    let to = folder.path().join("new");
    fs::write(&other, &damaged).unwrap();
    restore(&other, &to).expect_err("half a backup");
    let mut damaged = whole;
    let middle = damaged.len() / 2;
    damaged[middle..middle + 2000].fill(0xff);
    fs::write(&other, &damaged).unwrap();
    let error = text(restore(&other, &to), folder.path());
    assert!(error.contains("damaged"), "{error}");
    fs::write(&other, "").unwrap();
    let error = text(restore(&other, &to), folder.path());
    assert!(error.contains("another program wrote it"), "{error}");
    assert!(!to.exists(), "no store was made");
}

#[test]
fn a_refused_commit_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store")).unwrap();
    let first = block_on(put(&store, &[("b", Some("1")), ("c", Some("1"))]));
    block_on(put(&store, &[("c", Some("2"))]));
    let before = block_on(values(&store, ""));
    let revision = *store.revisions().borrow();
    for (key, precondition) in [
        ("b", store::Precondition::Absent),
        ("c", store::Precondition::At(first)),
        ("d", store::Precondition::At(first)),
    ] {
        for is_deleted in [false, true] {
            if is_deleted && precondition == store::Precondition::Absent {
                continue;
            }
            let mut transaction = store::Transaction::default();
            transaction.put.insert("a".to_owned(), "new".to_owned());
            transaction
                .preconditions
                .insert(key.to_owned(), precondition);
            match is_deleted {
                true => drop(transaction.delete.insert(key.to_owned())),
                false => drop(transaction.put.insert(key.to_owned(), "new".to_owned())),
            }
            let refused = block_on(store.commit(transaction, None));
            assert_eq!(refused.unwrap_err().to_string(), stale(key));
            assert_eq!(block_on(values(&store, "")), before, "{key}");
            let last = block_on(put(&store, &[("z", Some("1"))]));
            block_on(put(&store, &[("z", None)]));
            assert!(last > revision);
            assert_eq!(block_on(store.changes("a", revision)).unwrap().changes, []);
        }
    }
}

fn stale(key: &str) -> String {
    let key = key.to_owned();
    CommitError::Stale { key }.to_string()
}

#[test]
fn the_write_ahead_log_stays_short_under_a_load_of_large_commits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = open(&path).unwrap();
    let text = "x".repeat(4096);
    let keys: Vec<_> = (0..256).map(|number| format!("key/{number}")).collect();
    let values: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some(text.as_str())))
        .collect();
    for _ in 0..64 {
        block_on(put(&store, &values));
    }
    let log = fs::metadata(folder.path().join("store-wal")).unwrap().len();
    assert!(log < 16 << 20, "{log} bytes after 64 commits of 2 MiB");
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_old_changes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Manual::default();
    let keep_log = Duration::from_secs(60);
    let options = Options {
        keep_log,
        clock: Arc::new(clock.clone()),
    };
    let store = Sqlite::open(&folder.path().join("store"), options).unwrap();
    let ten_days = Duration::from_secs(10 * 86_400);
    clock.advance(keep_log + ten_days);
    block_on(async {
        let early = put(&store, &[("a", Some("1"))]).await;
        clock.set_back(ten_days);
        put(&store, &[("b", Some("1"))]).await;
        assert!(store.changes("", early - 1).await.is_ok());
        clock.advance(keep_log + Duration::from_secs(1));
        put(&store, &[("c", Some("1"))]).await;
        let forgotten = store.changes("", early - 1).await;
        assert!(
            matches!(forgotten, Err(ReadError::Compacted { .. })),
            "{forgotten:?}"
        );
    });
}

#[test]
fn long_changes_are_answered_in_parts_of_some_mebibytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("store"), Options::default()).unwrap();
    block_on(async {
        let long = "x".repeat(1 << 20);
        for _ in 0..6 {
            put(&store, &[("a", Some(&long))]).await;
        }
        let part = store.changes("", 0).await.unwrap();
        assert_eq!((part.changes.len(), part.through), (4, 4));
        let rest = store.changes("", part.through).await.unwrap();
        assert_eq!((rest.changes.len(), rest.through), (2, 6));
    });
}

#[test]
fn a_probe_writes_and_makes_no_revision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Sqlite::open(&path, Options::default()).unwrap();
    block_on(async {
        let revision = put(&store, &[("a", Some("1"))]).await;
        let log = || {
            std::fs::metadata(folder.path().join("store-wal"))
                .unwrap()
                .len()
        };
        let before = log();
        store.probe().await.unwrap();
        assert!(log() > before, "it writes");
        assert_eq!(store.snapshot("").await.unwrap().revision, revision);
        assert_eq!(store.changes("", revision).await.unwrap().changes, []);
        let other = rusqlite::Connection::open(&path).unwrap();
        let refuse =
            "CREATE TRIGGER t BEFORE UPDATE ON numbers BEGIN SELECT RAISE(ABORT, 'x'); END";
        other.execute_batch(refuse).unwrap();
        let error = store.probe().await.unwrap_err();
        assert!(!error.is_full(), "{error}");
    });
}
