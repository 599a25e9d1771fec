//! Writes to a store as fast as it commits, and prints the number of each commit that was
//! acknowledged. For the test that kills it, and to measure a disk:
//! `causeway-store-load FILE [SECONDS]`.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use control::Transaction;
use store::{Options, Sqlite, Store as _};

/// Writers at once.
const WRITERS: usize = 16;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: causeway-store-load FILE [SECONDS]";
    let path = PathBuf::from(arguments.next().ok_or(usage)?);
    let seconds = match arguments.next() {
        Some(text) => Some(text.to_str().ok_or(usage)?.parse().map_err(|_| usage)?),
        None => None,
    };
    let store = Sqlite::open(&path, Options::default())?;
    // Numbers go on where an earlier run ended.
    let written = store.snapshot("pair/a/").await?.entries;
    let numbers = written
        .iter()
        .filter_map(|entry| entry.key.rsplit('/').next()?.parse::<u64>().ok());
    let first = numbers.max().map_or(0, |number| number + 1);
    let next = Arc::new(AtomicU64::new(first));
    let start = Instant::now();
    let end = seconds.map(|seconds| start + Duration::from_secs(seconds));
    let writers = (0..WRITERS).map(|writer| {
        let (store, next) = (store.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            while end.is_none_or(|end| Instant::now() < end) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let revision = store.commit(pair(writer, number), None).await?;
                // The reader of the output has closed it: nothing more is to be acknowledged.
                if writeln!(std::io::stdout().lock(), "{writer} {number} {revision}").is_err() {
                    break;
                }
            }
            Ok::<_, store::CommitError>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    let commits = next.load(Ordering::Relaxed) - first;
    let rate = commits as f64 / start.elapsed().as_secs_f64();
    writeln!(std::io::stderr(), "{commits} commits, {rate:.0} a second")?;
    Ok(())
}

/// Two keys that are written together, each for the first time.
fn pair(writer: usize, number: u64) -> Transaction {
    let mut transaction = Transaction::default();
    for side in ["a", "b"] {
        let key = format!("pair/{side}/{writer}/{number}");
        transaction.create(key, "x".repeat(512));
    }
    transaction
}
