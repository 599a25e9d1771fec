//! The contract of the trait, on every implementation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use store::{
    Campaign, Changes, CommitError, Error, Export, Fence, IMPORT, ImportError, Memory, Options,
    Precondition, ReadError, Revision, Snapshot, Sqlite, Store, Transaction, is_unfinished,
};
use tokio::time::timeout;

use super::{Manual, block_on, put, puts, require, values};

const TTL: Duration = Duration::from_secs(3);

/// A test of each implementation.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $test() {
                let clock = super::Manual::default();
                let store = super::Memory::new(super::Arc::new(clock.clone()));
                super::block_on(super::$test(store, clock));
            })*
        }
        mod sqlite {
            $(#[test] fn $test() {
                let clock = super::Manual::default();
                let folder = tempfile::tempdir().expect("a folder");
                let options = super::Options {
                    clock: super::Arc::new(clock.clone()),
                    ..super::Options::default()
                };
                let path = folder.path().join("store");
                let store = super::Sqlite::open(&path, options).expect("a store");
                super::block_on(super::$test(store, clock));
            })*
        }
    };
}

on_every_store!(
    values_are_written_and_deleted_together,
    a_stale_precondition_writes_nothing,
    a_prefix_is_all_keys_that_begin_with_it,
    concurrent_changes_of_one_key_are_in_some_order,
    changes_are_whole_commits_in_order,
    a_watch_waits_and_resumes,
    a_watch_of_another_store_is_told_to_take_a_snapshot,
    one_holder_has_a_lease,
    a_fence_of_an_earlier_holder_writes_nothing,
    an_export_is_imported_byte_for_byte,
    an_import_that_is_cut_is_known_and_begun_again,
    an_import_leaves_other_keys_alone,
);

async fn values_are_written_and_deleted_together(store: impl Store, _: Manual) {
    assert_eq!(store.snapshot("").await.expect("empty").revision, 0);
    let first = put(&store, &[("a", Some("1")), ("b", Some("2"))]).await;
    let second = put(
        &store,
        &[
            ("a", None),
            ("b", Some("3")),
            ("c", Some("ü\n\"")),
            ("x", None),
        ],
    )
    .await;
    assert!(second > first);
    let snapshot = store.snapshot("").await.expect("a snapshot");
    assert_eq!(snapshot.revision, second);
    let found: Vec<_> = snapshot
        .entries
        .iter()
        .map(|e| (e.key.as_str(), e.value.as_str(), e.revision))
        .collect();
    assert_eq!(found, [("b", "3", second), ("c", "ü\n\"", second)]);
    let nothing = store
        .commit(puts(&[]), None)
        .await
        .expect("nothing to write");
    assert_eq!(nothing, second);
}

async fn a_stale_precondition_writes_nothing(store: impl Store, _: Manual) {
    let first = put(&store, &[("a", Some("1"))]).await;
    let change = puts(&[("a", Some("2")), ("b", Some("2"))]);
    for (key, precondition) in [
        ("a", Precondition::Absent),
        ("a", Precondition::At(first + 1)),
        ("b", Precondition::At(first)),
    ] {
        let stale = require(change.clone(), key, precondition);
        for stale in [stale, require(puts(&[]), key, precondition)] {
            match store.commit(stale, None).await {
                Err(CommitError::Stale { key: named }) => assert_eq!(named, key),
                other => panic!("{key} {precondition:?}: {other:?}"),
            }
        }
    }
    assert_eq!(values(&store, "").await, [("a".to_owned(), "1".to_owned())]);
    assert_eq!(
        store.snapshot("").await.expect("a snapshot").revision,
        first
    );
    let right = require(
        require(change, "a", Precondition::At(first)),
        "b",
        Precondition::Absent,
    );
    let second = store.commit(right.clone(), None).await.expect("a commit");
    let again = store.commit(right, None).await;
    assert!(matches!(again, Err(CommitError::Stale { .. })), "{again:?}");
    assert_eq!(
        store.snapshot("").await.expect("a snapshot").revision,
        second
    );
}

async fn a_prefix_is_all_keys_that_begin_with_it(store: impl Store, _: Manual) {
    let keys = [
        "a",
        "a/1",
        "a/2",
        "a/é",
        "a/\u{10ffff}",
        "a0",
        "b/1",
        "\u{10ffff}x",
    ];
    let all: Vec<_> = keys.iter().map(|key| (*key, Some("x"))).collect();
    put(&store, &all).await;
    let found = |prefix: &'static str| {
        let store = store.clone();
        async move {
            let values = values(&store, prefix).await;
            values.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        }
    };
    assert_eq!(found("a/").await, ["a/1", "a/2", "a/é", "a/\u{10ffff}"]);
    assert_eq!(found("b/1").await, ["b/1"]);
    assert_eq!(found("a/\u{10ffff}").await, ["a/\u{10ffff}"]);
    assert_eq!(found("\u{10ffff}").await, ["\u{10ffff}x"]);
    assert_eq!(found("c").await, [""; 0]);
    assert_eq!(found("").await.len(), keys.len());
    let changes = store.changes("a/", 0).await.expect("changes");
    assert_eq!(changes.changes.len(), 4);
}

async fn concurrent_changes_of_one_key_are_in_some_order(store: impl Store, _: Manual) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 25;
    put(&store, &[("sum", Some("0"))]).await;
    let writers = (0..WRITERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < EACH {
                let snapshot = store.snapshot("sum").await.expect("a snapshot");
                let entry = &snapshot.entries[0];
                let sum = entry.value.parse::<u64>().expect("a number") + 1;
                let change = puts(&[("sum", Some(&sum.to_string()))]);
                let change = require(change, "sum", Precondition::At(entry.revision));
                match store.commit(change, None).await {
                    Ok(_) => done += 1,
                    Err(CommitError::Stale { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    let expected = (WRITERS * EACH).to_string();
    assert_eq!(values(&store, "sum").await, [("sum".to_owned(), expected)]);
}

async fn changes_are_whole_commits_in_order(store: impl Store, _: Manual) {
    // More than fit into one answer, and one commit that has more by itself.
    const COMMITS: usize = 400;
    for number in 0..COMMITS {
        let text = number.to_string();
        let keys = ["k/a", "k/b", "k/c", "other"].map(|key| (key, Some(text.as_str())));
        put(&store, &keys).await;
    }
    let keys: Vec<_> = (0..1500).map(|number| format!("k/{number}")).collect();
    let large: Vec<_> = keys.iter().map(|key| (key.as_str(), Some("x"))).collect();
    let last = put(&store, &large).await;
    let (mut after, mut answers, mut all) = (0, 0, Vec::new());
    while after < last {
        let changes = store.changes("k/", after).await.expect("changes");
        assert!(changes.through > after);
        assert!(
            changes
                .changes
                .iter()
                .all(|c| c.revision > after && c.revision <= changes.through)
        );
        after = changes.through;
        answers += 1;
        all.extend(changes.changes);
    }
    assert!(
        answers > 1 && all.len() == 3 * COMMITS + 1500,
        "{answers} {}",
        all.len()
    );
    assert!(all.is_sorted_by_key(|change| (change.revision, change.key.clone())));
    let deleted = put(&store, &[("k/a", None), ("k/none", None)]).await;
    let changes = store.changes("k/", last).await.expect("changes").changes;
    let found: Vec<_> = changes
        .iter()
        .map(|c| (c.key.as_str(), c.value.as_deref()))
        .collect();
    assert_eq!(
        found,
        [("k/a", None)],
        "a key that was not there is no change"
    );
    assert_eq!(changes[0].revision, deleted);
}

async fn a_watch_waits_and_resumes(store: impl Store, _: Manual) {
    let first = put(&store, &[("w/a", Some("1"))]).await;
    let mut watch = store.watch("w/", 0);
    assert_eq!(watch.next().await.expect("changes").through, first);
    put(&store, &[("elsewhere", Some("1"))]).await;
    let waits = timeout(Duration::from_millis(50), watch.next()).await;
    assert!(waits.is_err(), "a change below another prefix: {waits:?}");
    let writer = store.clone();
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        put(&writer, &[("w/b", Some("2"))]).await
    });
    let next = timeout(Duration::from_secs(10), watch.next()).await;
    let next = next.expect("within 10 s").expect("changes");
    assert_eq!(next.through, late.await.expect("no panic"));
    assert_eq!(next.changes[0].key, "w/b");
    let again = store.watch("w/", first).next().await.expect("changes");
    assert_eq!(
        again, next,
        "another watch from the same revision sees the same"
    );
}

async fn a_watch_of_another_store_is_told_to_take_a_snapshot(store: impl Store, _: Manual) {
    let last = put(&store, &[("a", Some("1"))]).await;
    match store.watch("", last + 7).next().await {
        Err(ReadError::Compacted { after }) => assert_eq!(after, last + 7),
        other => panic!("{other:?}"),
    }
}

async fn one_holder_has_a_lease(store: impl Store, clock: Manual) {
    let elected = |campaign| match campaign {
        Campaign::Elected(fence) => fence,
        Campaign::Held { by, .. } => panic!("{by} has it"),
    };
    let first = elected(store.campaign("runs", "one", TTL).await.expect("a lease"));
    clock.advance(TTL / 3);
    let held = store.campaign("runs", "two", TTL).await.expect("an answer");
    let remaining = TTL - TTL / 3;
    assert_eq!(
        held,
        Campaign::Held {
            by: "one".to_owned(),
            remaining
        }
    );
    elected(
        store
            .campaign("another", "two", TTL)
            .await
            .expect("a lease"),
    );
    assert!(store.keep_alive(&first, TTL).await.expect("an answer"));
    clock.advance(TTL - Duration::from_millis(1));
    assert!(store.keep_alive(&first, TTL).await.expect("an answer"));
    clock.advance(TTL);
    assert!(
        !store.keep_alive(&first, TTL).await.expect("an answer"),
        "it has ended"
    );
    let second = elected(store.campaign("runs", "two", TTL).await.expect("a lease"));
    assert!(second.revision > first.revision);
    store.resign(first).await.expect("an answer");
    let held = store.campaign("runs", "one", TTL).await.expect("an answer");
    assert!(
        matches!(held, Campaign::Held { .. }),
        "an earlier fence ends nothing: {held:?}"
    );
    store.resign(second).await.expect("an answer");
    elected(store.campaign("runs", "one", TTL).await.expect("a lease"));
}

async fn a_fence_of_an_earlier_holder_writes_nothing(store: impl Store, clock: Manual) {
    async fn campaign(store: &impl Store, holder: &str) -> Fence {
        match store
            .campaign("runs", holder, TTL)
            .await
            .expect("an answer")
        {
            Campaign::Elected(fence) => fence,
            Campaign::Held { by, .. } => panic!("{by} has it"),
        }
    }
    async fn is_fenced(store: &impl Store, fence: &Fence) -> bool {
        match store
            .commit(puts(&[("a", Some("1"))]), Some(fence.clone()))
            .await
        {
            Ok(_) => false,
            Err(CommitError::Fenced { lease }) => lease == "runs",
            Err(error) => panic!("{error}"),
        }
    }
    let first = campaign(&store, "one").await;
    assert!(!is_fenced(&store, &first).await);
    let again = campaign(&store, "one").await;
    assert!(
        is_fenced(&store, &first).await,
        "the holder has asked again"
    );
    assert!(!is_fenced(&store, &again).await);
    clock.advance(TTL);
    assert!(is_fenced(&store, &again).await, "the lease has ended");
    let second = campaign(&store, "two").await;
    assert!(is_fenced(&store, &again).await && !is_fenced(&store, &second).await);
    store.resign(second.clone()).await.expect("an answer");
    assert!(is_fenced(&store, &second).await, "the holder has resigned");
}

/// A store with objects, texts that are none, and more keys than fit into one commit of an import.
async fn filled(store: &impl Store) -> Vec<(String, String)> {
    let mut all = vec![
        ("a/object".to_owned(), r#"{"b": 1.0,"a":[{}]}"#.to_owned()),
        ("a/cut".to_owned(), r#"{"b":1"#.to_owned()),
        ("a/two".to_owned(), "{}{}".to_owned()),
        ("a/text".to_owned(), "ü\n\"\\ \u{10ffff}".to_owned()),
        ("a/lines".to_owned(), "{\n}".to_owned()),
        ("a/\"}\u{e9}".to_owned(), String::new()),
        ("a/number".to_owned(), "7".to_owned()),
        ("a/string".to_owned(), r#""x""#.to_owned()),
    ];
    all.extend((0..150).map(|number| (format!("n/{number:03}"), format!("{{\"n\":{number}}}"))));
    let keys: Vec<_> = all
        .iter()
        .map(|(k, v)| (k.as_str(), Some(v.as_str())))
        .collect();
    put(store, &keys).await;
    all.sort();
    all
}

fn text(export: &Export) -> Vec<u8> {
    let mut text = Vec::new();
    export.write(&mut text).expect("text");
    text
}

async fn an_export_is_imported_byte_for_byte(store: impl Store, _: Manual) {
    let source = Memory::default();
    let all = filled(&source).await;
    source.campaign("runs", "one", TTL).await.expect("a lease");
    let export = Export::of(&source).await.expect("an export");
    assert_eq!(export.entries, all, "without the lease");
    let read = Export::read(&mut text(&export).as_slice()).expect("an export");
    assert_eq!(read, export);
    read.import(&store).await.expect("an import");
    assert_eq!(values(&store, "").await, all);
    assert!(!is_unfinished(&store).await.expect("an answer"));
    let again = Export::of(&store).await.expect("an export");
    assert_eq!(again.entries, all, "and back");
}

/// A store that fails after some commits.
#[derive(Clone, Debug)]
struct Failing<S>(S, Arc<AtomicUsize>);

impl<S: Store> Store for Failing<S> {
    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, Error> {
        self.0.snapshot(prefix).await
    }

    async fn commit(
        &self,
        transaction: impl Into<Arc<Transaction>> + Send,
        fence: Option<Fence>,
    ) -> Result<Revision, CommitError> {
        let transaction = transaction.into();
        let left = self.1.load(Ordering::Relaxed);
        if left == 0 {
            return Err(Error::Stopped.into());
        }
        self.1.store(left - 1, Ordering::Relaxed);
        self.0.commit(transaction, fence).await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<Changes, ReadError> {
        self.0.changes(prefix, after).await
    }

    fn revisions(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.0.revisions()
    }

    async fn campaign(&self, name: &str, holder: &str, ttl: Duration) -> Result<Campaign, Error> {
        self.0.campaign(name, holder, ttl).await
    }

    async fn keep_alive(&self, fence: &Fence, ttl: Duration) -> Result<bool, Error> {
        self.0.keep_alive(fence, ttl).await
    }

    async fn resign(&self, fence: Fence) -> Result<(), Error> {
        self.0.resign(fence).await
    }
}

async fn an_import_that_is_cut_is_known_and_begun_again(store: impl Store, _: Manual) {
    let source = Memory::default();
    filled(&source).await;
    let first = Export::of(&source).await.expect("an export");
    put(&source, &[("a/cut", None), ("z", Some("{}"))]).await;
    let second = Export::of(&source).await.expect("an export");
    let mut commits = 0;
    loop {
        let failing = Failing(store.clone(), Arc::new(AtomicUsize::new(commits)));
        match first.import(&failing).await {
            Ok(()) => break,
            Err(ImportError::Commit(_)) => {}
            Err(error) => panic!("{error}"),
        }
        let unfinished = is_unfinished(&store).await.expect("an answer");
        assert_eq!(unfinished, commits > 0, "after {commits} commits");
        second.import(&store).await.expect("an import");
        assert_eq!(values(&store, "").await, second.entries);
        let keys: Vec<_> = second
            .entries
            .iter()
            .map(|(k, _)| (k.as_str(), None))
            .collect();
        put(&store, &keys).await;
        commits += 1;
    }
    assert!(commits > 4, "the import took {commits} commits");
    assert_eq!(values(&store, "").await, first.entries);
}

async fn an_import_leaves_other_keys_alone(store: impl Store, _: Manual) {
    let source = Memory::default();
    filled(&source).await;
    let export = Export::of(&source).await.expect("an export");
    put(&store, &[("other", Some("1"))]).await;
    let refused = export.import(&store).await;
    assert!(matches!(refused, Err(ImportError::NotEmpty)), "{refused:?}");
    assert_eq!(
        values(&store, "").await,
        [("other".to_owned(), "1".to_owned())]
    );
    assert!(!is_unfinished(&store).await.expect("an answer"));
    // A key that begins alike is another one.
    put(&store, &[(&format!("{IMPORT}/x"), Some("1"))]).await;
    assert!(!is_unfinished(&store).await.expect("an answer"));
}

#[test]
fn an_export_that_is_not_whole_is_refused() {
    let export = block_on(async {
        let source = Memory::default();
        filled(&source).await;
        Export::of(&source).await.expect("an export")
    });
    let whole = text(&export);
    let read = |mut bytes: &[u8]| Export::read(&mut bytes).map_err(|error| error.to_string());
    assert_eq!(read(&whole), Ok(export));
    let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for at in 0..lines.len() {
        let without: Vec<_> = lines[..at]
            .iter()
            .chain(&lines[at + 1..])
            .copied()
            .collect();
        read(&without.concat()).expect_err("a line is missing");
        let mut twice = lines.clone();
        twice.insert(at, lines[at]);
        read(&twice.concat()).expect_err("a line is there twice");
        let mut cut = lines[..=at].concat();
        cut.pop();
        read(&cut).expect_err("the text is cut");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
        read(&changed).expect_err("a byte is another one");
    }
    let newer = String::from_utf8(whole).expect("text");
    let newer = newer.replacen("\"version\":1", "\"version\":2", 1);
    let error = read(newer.as_bytes()).expect_err("a newer version");
    assert!(error.contains("has version 2"), "{error}");
}

#[test]
fn changes_that_memory_forgot_are_compacted() {
    block_on(async {
        let store = Memory::default();
        let first = put(&store, &[("a", Some("1"))]).await;
        let second = put(&store, &[("a", Some("2"))]).await;
        store.compact(first);
        assert!(matches!(
            store.changes("", 0).await,
            Err(ReadError::Compacted { after: 0 })
        ));
        let kept = store.changes("", first).await.expect("changes");
        assert_eq!((kept.changes.len(), kept.through), (1, second));
    });
}
