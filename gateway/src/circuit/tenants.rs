//! The tenants of circuits with their rate limits, which the XDP program shares where its map of
//! buckets has room.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use gateway_model::Tenant as Limits;

use super::{rate::Bucket, table::Tenant};

/// Burst of a tenant: the amount of this time at its rate.
const BURST_TIME: Duration = Duration::from_millis(100);

/// Has the XDP program share a bucket; returns false if its map is full.
pub(super) type Share<'a> = &'a dyn Fn(&Bucket) -> bool;

/// The tenants by name.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    all: HashMap<Arc<str>, Arc<Tenant>>,
    /// Those whose circuits use user space, because the map was full.
    waiting: BTreeSet<Arc<str>>,
}

impl Tenants {
    /// The tenant of this name; the model has checked that it is there.
    pub fn get(&self, name: &Arc<str>) -> Arc<Tenant> {
        match self.all.get(name) {
            Some(tenant) => Arc::clone(tenant),
            None => Arc::new(Tenant::unlimited(name)),
        }
    }

    /// Sets the limits of a tenant, and adds it if it is new. `now` is that of the buckets.
    pub fn set_limits(
        &mut self,
        now: Duration,
        name: &Arc<str>,
        limits: &Limits,
        share: Share<'_>,
    ) {
        let rates = [limits.datagrams, limits.bytes].map(|rate| rate.unwrap_or(0));
        if let Some(tenant) = self.all.get(name) {
            let buckets = [&tenant.datagrams, &tenant.bytes];
            for (bucket, rate) in buckets.into_iter().zip(rates) {
                bucket.set_rate(now, rate);
            }
            return;
        }
        let [datagrams, bytes] = rates.map(|rate| Bucket::new(rate, BURST_TIME));
        let tenant = Tenant {
            name: Arc::clone(name),
            datagrams,
            bytes,
        };
        if !share_both(&tenant, share) {
            if self.waiting.is_empty() {
                tracing::warn!(
                    tenant = &**name,
                    "XDP map BUCKETS is full (entries of removed tenants are reused after a \
                     second): circuits of this tenant, and of others that find no room, use user \
                     space until there is some; trying again every few seconds"
                );
            }
            self.waiting.insert(Arc::clone(name));
        }
        self.all.insert(Arc::clone(name), Arc::new(tenant));
    }

    pub fn remove(&mut self, name: &Arc<str>) {
        self.all.remove(name);
        self.waiting.remove(name);
    }

    /// Tries again to share the buckets of tenants that wait for room. Their circuits are in XDP
    /// once an end has bound again.
    pub fn share_again(&mut self, share: Share<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        let mut is_full = false;
        let all = &self.all;
        self.waiting.retain(|name| {
            is_full = is_full || all.get(name).is_some_and(|t| !share_both(t, share));
            is_full
        });
        if self.waiting.is_empty() {
            tracing::info!("XDP map BUCKETS has room for the buckets of all tenants again");
        }
    }

    /// Number of tenants whose circuits use user space, because the map is full.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// Shares what is not shared yet.
fn share_both(tenant: &Tenant, share: Share<'_>) -> bool {
    let mut buckets = [&tenant.datagrams, &tenant.bytes].into_iter();
    buckets.all(|bucket| bucket.index().is_some() || share(bucket))
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::circuit::rate::SharedBucket;

    #[derive(Debug, Default)]
    struct Entry {
        full_at: AtomicU64,
        rate: AtomicU64,
    }

    impl SharedBucket for Entry {
        fn full_at(&self) -> &AtomicU64 {
            &self.full_at
        }

        fn index(&self) -> u32 {
            7
        }

        fn set_rate(&self, rate: u64) {
            self.rate.store(rate, Ordering::Relaxed);
        }
    }

    const LIMITS: Limits = Limits {
        connections: 1,
        datagrams: Some(1000),
        bytes: None,
    };

    /// A map with so many free entries, which counts the attempts to take one.
    #[derive(Debug, Default)]
    struct Map {
        free: Cell<usize>,
        tried: Cell<usize>,
    }

    impl Map {
        fn share(&self, bucket: &Bucket) -> bool {
            self.tried.set(self.tried.get() + 1);
            let Some(free) = self.free.get().checked_sub(1) else {
                return false;
            };
            self.free.set(free);
            bucket.share(Box::new(Entry::default()));
            true
        }
    }

    fn is_shared(tenants: &Tenants, name: &str) -> bool {
        let tenant = tenants.get(&name.into());
        tenant.datagrams.index().is_some() && tenant.bytes.index().is_some()
    }

    #[test]
    fn a_tenant_without_room_in_the_map_gets_it_later() {
        let map = Map::default();
        map.free.set(3);
        let mut tenants = Tenants::default();
        for name in ["a", "b", "c"] {
            let share = |bucket: &Bucket| map.share(bucket);
            tenants.set_limits(Duration::ZERO, &name.into(), &LIMITS, &share);
        }
        let share = |bucket: &Bucket| map.share(bucket);
        let shared = |tenants: &Tenants| ["a", "b", "c"].map(|name| is_shared(tenants, name));
        assert_eq!(shared(&tenants), [true, false, false]);
        assert_eq!(tenants.waiting(), 2);
        // A full map is asked once each time, not for every tenant.
        map.tried.set(0);
        tenants.share_again(&share);
        assert_eq!((tenants.waiting(), map.tried.get()), (2, 1));
        // An entry becomes free, and then more: the tenants are the same as before.
        let before = tenants.get(&"b".into());
        map.free.set(1);
        tenants.share_again(&share);
        assert_eq!(shared(&tenants), [true, true, false]);
        assert!(Arc::ptr_eq(&before, &tenants.get(&"b".into())));
        tenants.remove(&"c".into());
        assert_eq!(tenants.waiting(), 0);
        // Without one that waits, the map is left alone.
        map.tried.set(0);
        tenants.share_again(&share);
        assert_eq!(map.tried.get(), 0);
    }

    #[test]
    fn a_bucket_that_is_shared_later_keeps_level_and_rate() {
        let map = Map::default();
        let share = |bucket: &Bucket| map.share(bucket);
        let mut tenants = Tenants::default();
        let (name, now) = (Arc::from("a"), Duration::from_secs(1));
        tenants.set_limits(now, &name, &LIMITS, &share);
        let tenant = tenants.get(&name);
        assert!(tenant.datagrams.take(now, 100), "the whole bucket");
        map.free.set(2);
        tenants.share_again(&share);
        assert!(!tenant.datagrams.take(now, 1), "it is not full again");
        assert!(tenant.datagrams.take(now + Duration::from_millis(1), 1));
        assert_eq!(tenant.datagrams.rate(), 1000);
    }
}
