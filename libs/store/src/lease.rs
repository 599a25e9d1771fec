//! Leases: one holder at a time. They live as long as the store's process, which alone has the file
//! open, and each has a key in the store, whose revision is the fence.

use std::{collections::BTreeMap, time::Duration};

use crate::Revision;

/// Prefix of the keys of leases.
pub(crate) const PREFIX: &str = "lease/";

/// Proof of having a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Name of what the holder campaigned for.
    pub lease: String,
    /// The commit that gave it to the holder.
    pub revision: Revision,
}

/// Answer to [`Store::campaign`](crate::Store::campaign).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Campaign {
    /// The lease is the asker's.
    Elected(Fence),
    /// Another holder has the lease.
    Held {
        /// The holder.
        by: String,
        /// Time after which it ends unless it is kept alive.
        remaining: Duration,
    },
}

#[derive(Debug)]
struct Lease {
    holder: String,
    revision: Revision,
    /// By the monotonic clock.
    ends: Duration,
}

/// The leases of a store.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<String, Lease>);

impl Leases {
    /// The holder of a lease other than the asker, and the time left.
    pub(crate) fn other(&self, name: &str, holder: &str, now: Duration) -> Option<Campaign> {
        let lease = self.0.get(name)?;
        let is_other = lease.holder != holder && now < lease.ends;
        is_other.then(|| Campaign::Held {
            by: lease.holder.clone(),
            remaining: lease.ends - now,
        })
    }

    /// Gives the lease to a holder by a commit that wrote its key.
    pub(crate) fn elect(
        &mut self,
        name: &str,
        holder: &str,
        revision: Revision,
        ends: Duration,
    ) -> Campaign {
        let lease = Lease {
            holder: holder.to_owned(),
            revision,
            ends,
        };
        self.0.insert(name.to_owned(), lease);
        Campaign::Elected(Fence {
            lease: name.to_owned(),
            revision,
        })
    }

    /// Whether the fence's holder has the lease.
    pub(crate) fn is_valid(&self, fence: &Fence, now: Duration) -> bool {
        self.0
            .get(&fence.lease)
            .is_some_and(|lease| lease.revision == fence.revision && now < lease.ends)
    }

    /// Moves the end of a lease; false if it has ended.
    pub(crate) fn extend(&mut self, fence: &Fence, now: Duration, ends: Duration) -> bool {
        if !self.is_valid(fence, now) {
            return false;
        }
        if let Some(lease) = self.0.get_mut(&fence.lease) {
            lease.ends = ends;
        }
        true
    }

    /// Ends a lease if it is the fence's.
    pub(crate) fn resign(&mut self, fence: &Fence) {
        if self
            .0
            .get(&fence.lease)
            .is_some_and(|lease| lease.revision == fence.revision)
        {
            self.0.remove(&fence.lease);
        }
    }
}
