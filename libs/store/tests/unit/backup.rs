//! Backups and restored stores, beside what a killed process leaves.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

use store::{Backup, Error, Options, Sqlite, Store as _, restore, with_suffix};
use test_support::skip;

use super::{
    block_on,
    kill::{random_pause, write_until_killed},
    put, values,
};

fn open(path: &Path) -> Result<Sqlite, Error> {
    Sqlite::open(path, Options::default())
}

/// Names of a folder's files.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("a file").file_name().into_string());
    let mut names: Vec<_> = names.collect::<Result<_, _>>().expect("text");
    names.sort();
    names
}

/// The text of an error, without the folder.
fn text<T: std::fmt::Debug>(result: Result<T, Error>, folder: &Path) -> String {
    let error = result.expect_err("an error").to_string();
    error.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn a_killed_store_does_not_reach_the_restored_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    write_until_killed(&path, random_pause());
    let store = open(&path).unwrap();
    store.backup(&backup).unwrap();
    let saved = block_on(store.snapshot("pair/")).unwrap();
    drop(store);
    write_until_killed(&path, random_pause());
    assert!(
        with_suffix(&path, "-wal").exists(),
        "{:?}",
        files(folder.path())
    );

    // "Move the store away", and no more.
    fs::rename(&path, folder.path().join("old")).unwrap();
    let expected = "store-wal belongs to another store, and SQLite would replay it into store: \
                    move it next to its own store; it has commits of that store";
    assert_eq!(text(restore(&backup, &path), folder.path()), expected);
    assert!(!path.exists() && !with_suffix(&path, ".part").exists());
    // Nor does an empty store, or a copy of the backup, take them.
    assert_eq!(text(open(&path), folder.path()), expected);
    assert!(!path.exists());
    fs::copy(&backup, &path).unwrap();
    assert_eq!(text(open(&path), folder.path()), expected);
    fs::remove_file(&path).unwrap();

    for ending in ["-wal", "-shm"] {
        let to = with_suffix(&folder.path().join("old"), ending);
        fs::rename(with_suffix(&path, ending), to).unwrap();
    }
    let restored = restore(&backup, &path).unwrap();
    assert_eq!(restored, saved.revision + (1 << 32));
    let store = open(&path).unwrap();
    let found = block_on(store.snapshot("pair/")).unwrap();
    assert_eq!(found.revision, restored);
    assert!(found.entries == saved.entries, "other entries than saved");
    drop(store);
    // The killed store is whole where its files are together.
    let old = open(&folder.path().join("old")).unwrap();
    let all = block_on(old.snapshot("pair/")).unwrap();
    assert!(all.entries.len() > saved.entries.len());
}

#[test]
fn a_killed_restore_leaves_nothing_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&path).unwrap();
    block_on(put(&store, &[("a", Some("1"))]));
    store.backup(&backup).unwrap();
    block_on(put(&store, &[("a", Some("2"))]));
    // As a process leaves it that is killed between the copy and its new name.
    for ending in ["", "-wal"] {
        let to = folder.path().join(format!("new.part{ending}"));
        fs::copy(with_suffix(&path, ending), to).unwrap();
    }
    drop(store);
    let new = folder.path().join("new");
    restore(&backup, &new).unwrap();
    let restored = open(&new).unwrap();
    let found = block_on(values(&restored, ""));
    assert_eq!(found, [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn a_backup_is_read_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("store"), folder.path().join("a %?#b"));
    let store = open(&path).unwrap();
    let revision = block_on(put(&store, &[("a", Some("1")), ("b", Some("2"))]));
    store.backup(&backup).unwrap();
    let in_use = text(Backup::open(&path), folder.path());
    assert!(
        in_use.starts_with("store-wal exists: store is a store that is in use"),
        "{in_use}"
    );
    drop(store);
    fs::set_permissions(&backup, fs::Permissions::from_mode(0o400)).unwrap();
    let (before, names) = (fs::read(&backup).unwrap(), files(folder.path()));
    let read = Backup::open(&backup).unwrap();
    let found = read.snapshot("b").unwrap();
    assert_eq!((found.revision, found.entries.len()), (revision, 1));
    assert_eq!(found.entries[0].value, "2");
    drop(read);
    assert!(fs::read(&backup).unwrap() == before, "the file is changed");
    assert_eq!(files(folder.path()), names);
    // The store of a read-only backup can be written.
    let new = folder.path().join("new");
    restore(&backup, &new).unwrap();
    let mode = fs::metadata(&new).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // So can a backup that was opened as a store be read, whose header has the log's version.
    block_on(put(&open(&new).unwrap(), &[("c", Some("3"))]));
    let read = Backup::open(&new).unwrap();
    assert_eq!(read.snapshot("").unwrap().entries.len(), 3);
}

#[test]
fn files_that_root_makes_belong_to_the_owner_of_the_folder() {
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    if fs::metadata(folder.path()).unwrap().uid() != 0 {
        return skip("it needs root, to make files for another user");
    }
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    let (path, backup) = (theirs.join("store"), folder.path().join("backup"));
    let store = open(&path).unwrap();
    block_on(put(&store, &[("a", Some("1"))]));
    store.backup(&backup).unwrap();
    store.backup(&theirs.join("backup")).unwrap();
    let owners = || {
        let names = files(&theirs).into_iter();
        let owned = names.map(|name| (fs::metadata(theirs.join(&name)).unwrap().uid(), name));
        owned.collect::<Vec<_>>()
    };
    let is_theirs = || owners().iter().all(|(uid, _)| *uid == NOBODY);
    assert!(is_theirs(), "{:?}", owners());
    assert_eq!(owners().len(), 5, "{:?}", owners());
    drop(store);
    fs::remove_file(&path).unwrap();
    restore(&backup, &path).unwrap();
    assert!(is_theirs(), "{:?}", owners());
    assert_eq!(fs::metadata(&backup).unwrap().uid(), 0);
}
