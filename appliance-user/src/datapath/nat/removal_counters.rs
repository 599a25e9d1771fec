//! Counts of removed connections and mappings, by reason.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Why an entry was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its timeout has passed.
    Expired,
    /// Its failover has ended.
    Stale,
    /// The table fills, and the connection is over.
    Closed,
    /// The table fills, and the connection is closing, was reset, or is a UDP query.
    Transitory,
    /// The table of mappings fills, and the connection is unanswered.
    Unanswered,
    /// Another tenant needs the entry, and the connection is beyond its own tenant's quota.
    OverQuota,
    /// A mapping that no connection uses.
    UnusedMapping,
}

impl Reason {
    /// All reasons, with their stable names in metrics.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Expired, "expired"),
        (Self::Stale, "stale"),
        (Self::Closed, "closed"),
        (Self::Transitory, "transitory"),
        (Self::Unanswered, "unanswered"),
        (Self::OverQuota, "over_quota"),
        (Self::UnusedMapping, "unused_mapping"),
    ];
}

/// The counts since the start. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Removals(Arc<[AtomicU64; Reason::ALL.len()]>);

impl Removals {
    /// Adds removed entries.
    pub fn add(&self, reason: Reason, entries: usize) {
        self.0[reason as usize].fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// The counts, by the names of the reasons.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let all = Reason::ALL.iter();
        all.map(|(reason, name)| (*name, self.0[*reason as usize].load(Ordering::Relaxed)))
    }
}
