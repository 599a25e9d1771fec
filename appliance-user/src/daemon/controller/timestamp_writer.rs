//! Writes timestamps to the disk in a thread of its own: a disk that is slow or hangs must not hold
//! up the loop that keeps the tunnels up.
//!
//! ```text
//!   loop ─ newest timestamps ─▶ channel ─▶ thread: the newest waiting value ─▶ Store
//! ```

use std::{sync::mpsc, thread::JoinHandle};

use anyhow::Context as _;

use crate::state::{Store, Timestamps};

/// The timestamps to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PendingTimestamps {
    /// Handshake timestamps by the peer's public key.
    pub handshakes: Timestamps,
    /// A time, in nanoseconds since 1970, before which all messages to gateways and listeners are
    /// marked until the next writing.
    pub circuits: u64,
}

/// Removed peers whose timestamps are kept at most.
const MAX_REMOVED: usize = 4096;
/// How long timestamps of removed peers are kept, seconds of the handshakes' clock.
const RETENTION_SECONDS: u64 = 24 * 3600;

impl PendingTimestamps {
    /// Adds the timestamps of the present peers; returns whether any is new. Those of peers that
    /// are gone are kept for a day, as they may come back: the newest 4096.
    pub fn add_handshakes(&mut self, present: Timestamps) -> bool {
        /// Seconds of a TAI64N timestamp.
        fn seconds(timestamp: &[u8; 12]) -> u64 {
            timestamp[..8]
                .iter()
                .fold(0, |n, byte| n << 8 | u64::from(*byte))
        }
        let is_new = |(key, timestamp)| self.handshakes.get(key) != Some(timestamp);
        if !present.iter().any(is_new) {
            return false;
        }
        let newest = present.values().map(seconds).max().unwrap_or(0);
        let mut removed = std::mem::replace(&mut self.handshakes, present);
        removed.retain(|key, timestamp| {
            !self.handshakes.contains_key(key)
                && seconds(timestamp).saturating_add(RETENTION_SECONDS) >= newest
        });
        let excess = removed.len().saturating_sub(MAX_REMOVED);
        if excess > 0 {
            let mut oldest: Vec<_> = removed.iter().map(|(key, at)| (*at, key.clone())).collect();
            oldest.sort_unstable();
            for (_, key) in &oldest[..excess] {
                removed.remove(key);
            }
        }
        self.handshakes.extend(removed);
        true
    }
}

/// The thread. Dropping it waits until everything is written.
pub(super) struct TimestampWriter {
    sender: Option<mpsc::Sender<PendingTimestamps>>,
    thread: Option<JoinHandle<()>>,
}

impl TimestampWriter {
    /// # Errors
    /// When there is no thread left.
    pub fn spawn(store: Store) -> anyhow::Result<Self> {
        let (sender, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("timestamps".to_owned())
            .spawn(move || run(&store, &waiting))
            .context("start the thread that writes timestamps")?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Has these written, soon. They replace those that still wait.
    pub fn write(&self, written: PendingTimestamps) {
        if let Some(sender) = &self.sender {
            // The thread ends by a panic only, which ends the process.
            let _ = sender.send(written);
        }
    }
}

impl Drop for TimestampWriter {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(store: &Store, waiting: &mpsc::Receiver<PendingTimestamps>) {
    let mut last = PendingTimestamps::default();
    while let Ok(first) = waiting.recv() {
        let newest = waiting.try_iter().last().unwrap_or(first);
        let handshakes = newest.handshakes != last.handshakes;
        let circuits = newest.circuits != last.circuits;
        let mut results = Vec::new();
        if handshakes {
            results.push(store.save_timestamps(&newest.handshakes));
        }
        if circuits {
            results.push(store.save_circuit_clock(newest.circuits));
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "cannot save timestamps: if the clock is set back before the \
                next start, peers refuse this appliance until it has caught up");
        }
        last = newest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_timestamps_are_on_the_disk_when_the_writer_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = || Store::new(dir.path());
        let writer = TimestampWriter::spawn(store()).expect("a thread");
        for n in 1..=100u8 {
            writer.write(PendingTimestamps {
                handshakes: Timestamps::from([("peer".to_owned(), [n; 12])]),
                circuits: u64::from(n),
            });
        }
        drop(writer);
        assert_eq!(store().timestamps()["peer"], [100; 12]);
        assert_eq!(store().circuit_clock(), 100);
    }

    #[test]
    fn timestamps_of_removed_peers_are_few_and_end_after_a_day() {
        let at = |seconds: u64| {
            let mut timestamp = [0; 12];
            timestamp[..8].copy_from_slice(&((1 << 62) + seconds).to_be_bytes());
            timestamp
        };
        let one = |key: &str, seconds| Timestamps::from([(key.to_owned(), at(seconds))]);
        let mut pending = PendingTimestamps::default();
        // A director that replaces a peer each second.
        for n in 0..10_000 {
            assert!(pending.add_handshakes(one(&format!("p{n:05}"), n)));
            assert!(
                !pending.add_handshakes(one(&format!("p{n:05}"), n)),
                "the same again"
            );
            assert!(pending.handshakes.len() <= MAX_REMOVED + 1);
        }
        assert!(pending.handshakes.contains_key("p05903"), "the newest stay");
        assert!(!pending.handshakes.contains_key("p05902"));
        assert!(pending.add_handshakes(one("present", 10_000)));
        // It comes back within the day, and is still known.
        assert!(pending.add_handshakes(one("other", RETENTION_SECONDS + 9_999)));
        assert!(pending.handshakes.contains_key("p09999"));
        assert_eq!(pending.handshakes["present"], at(10_000));
        assert!(pending.add_handshakes(one("other", RETENTION_SECONDS + 10_001)));
        assert_eq!(pending.handshakes.len(), 1);
    }

    #[test]
    fn a_disk_that_refuses_ends_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let writer = TimestampWriter::spawn(Store::new(&dir.path().join("gone"))).expect("one");
        writer.write(PendingTimestamps {
            circuits: 7,
            ..PendingTimestamps::default()
        });
        drop(writer);
    }
}
