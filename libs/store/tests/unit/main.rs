//! Stores by the contract of the trait, and what SQLite adds to it.

mod backup;
mod conformance;
mod kill;
mod sqlite;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use store::{Clock, Precondition, Revision, Store, Transaction};

/// A clock that stands still until it is moved.
#[derive(Clone, Debug, Default)]
pub struct Manual(Arc<Mutex<Duration>>);

impl Manual {
    pub fn advance(&self, by: Duration) {
        *self.0.lock().expect("no panic") += by;
    }

    pub fn set_back(&self, by: Duration) {
        *self.0.lock().expect("no panic") -= by;
    }
}

impl Clock for Manual {
    fn wall(&self) -> Duration {
        self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().expect("no panic")
    }
}

/// Runs a test on a runtime of its own.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test)
}

/// A transaction of puts, and deletions where there is no value.
pub fn puts(values: &[(&str, Option<&str>)]) -> Transaction {
    let mut transaction = Transaction::default();
    for (key, value) in values {
        match value {
            Some(value) => drop(
                transaction
                    .put
                    .insert((*key).to_owned(), (*value).to_owned()),
            ),
            None => drop(transaction.delete.insert((*key).to_owned())),
        }
    }
    transaction
}

pub fn require(mut transaction: Transaction, key: &str, precondition: Precondition) -> Transaction {
    transaction
        .preconditions
        .insert(key.to_owned(), precondition);
    transaction
}

/// Commits puts without preconditions.
pub async fn put(store: &impl Store, values: &[(&str, Option<&str>)]) -> Revision {
    store.commit(puts(values), None).await.expect("a commit")
}

/// Keys and values below a prefix.
pub async fn values(store: &impl Store, prefix: &str) -> Vec<(String, String)> {
    let snapshot = store.snapshot(prefix).await.expect("a snapshot");
    let entries = snapshot.entries.into_iter();
    entries.map(|entry| (entry.key, entry.value)).collect()
}
