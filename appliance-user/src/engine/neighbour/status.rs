//! The table as others see it: entries and counts.

use std::{ops::Bound, time::Instant};

use appliance_common::maps::HostKey;

use super::{Counters, EntryStatus, NeighbourTable};

impl NeighbourTable {
    /// All entries, sorted by network and address.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = EntryStatus> + '_ {
        self.entries_after(now, None)
    }

    /// The entries after `after`, sorted by network and address.
    pub fn entries_after(
        &self,
        now: Instant,
        after: Option<HostKey>,
    ) -> impl Iterator<Item = EntryStatus> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries.range((from, Bound::Unbounded));
        entries.map(move |(key, entry)| EntryStatus {
            key: *key,
            state: entry.state,
            mac: entry.mac,
            keep: entry.keep,
            age: now.saturating_duration_since(entry.since),
            confirmed: entry
                .confirmed_at
                .map(|at| now.saturating_duration_since(at)),
        })
    }

    /// Counts since [`new`](Self::new).
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}
