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
                next start, peers and gateways refuse this appliance until it has caught up");
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
