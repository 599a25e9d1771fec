//! Rate limits of tenants: token buckets that several threads use without a lock.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const SECOND: u64 = 1_000_000_000;

/// A token bucket, stored as the time at which it is full again (GCRA, ITU-T I.371 annex A). All
/// users of a bucket count time from the same origin.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens a second; 0: no limit.
    rate: AtomicU64,
    /// Time to fill an empty bucket, nanoseconds.
    depth: u64,
    /// The time at which it is full again, nanoseconds since the origin, as long as it is not
    /// shared.
    own: AtomicU64,
    /// The same in memory that an XDP program shares.
    shared: OnceLock<Box<dyn SharedBucket>>,
}

/// The state of a bucket that an XDP program uses, too. Its drop releases the map entry.
pub trait SharedBucket: fmt::Debug + Send + Sync {
    /// The time at which the bucket is full again, nanoseconds since the origin.
    fn full_at(&self) -> &AtomicU64;

    /// Index of the map entry.
    fn index(&self) -> u32;

    /// Changes the rate that the program uses, tokens a second.
    fn set_rate(&self, rate: u64);
}

impl Bucket {
    /// A full bucket: `rate` tokens a second, and at once the tokens of the time `depth`. A rate of
    /// 0 is no limit.
    #[must_use]
    pub const fn new(rate: u64, depth: Duration) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            depth: nanos(depth),
            own: AtomicU64::new(0),
            shared: OnceLock::new(),
        }
    }

    /// Has an XDP program use the bucket, too, with its present level. Tokens that other threads
    /// take meanwhile are not counted. A bucket that is shared already stays as it is.
    pub fn share(&self, shared: Box<dyn SharedBucket>) {
        let level = self.own.load(Ordering::Relaxed);
        shared.full_at().store(level, Ordering::Relaxed);
        shared.set_rate(self.rate());
        // The entry of a second one is released.
        let _ = self.shared.set(shared);
    }

    fn full_at(&self) -> &AtomicU64 {
        match self.shared.get() {
            Some(shared) => shared.full_at(),
            None => &self.own,
        }
    }

    /// Index of the map entry that an XDP program uses; `None`: the bucket is not shared.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        self.shared.get().map(|shared| shared.index())
    }

    /// Time to fill an empty bucket.
    #[must_use]
    pub const fn depth(&self) -> Duration {
        Duration::from_nanos(self.depth)
    }

    /// Tokens a second; 0: no limit.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Changes the rate in place; all users of the bucket have the new one at once. A debt is kept:
    /// in tokens when the rate rises, in time when it falls. So a raised limit does not wait for
    /// the old rate, and a lowered one does not wait longer than the old one.
    pub fn set_rate(&self, now: Duration, rate: u64) {
        let now = nanos(now);
        let before = self.rate.swap(rate, Ordering::Relaxed);
        if let Some(shared) = self.shared.get() {
            shared.set_rate(rate);
        }
        if before == rate {
            return;
        }
        // It fails only if the bucket is full, and then there is no debt.
        let _ = self
            .full_at()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let debt = full_at.checked_sub(now).filter(|debt| *debt > 0)?;
                let debt = match (before, rate) {
                    (0, _) | (_, 0) => 0,
                    (before, rate) if rate > before => {
                        let tokens = u128::from(debt) * u128::from(before);
                        u64::try_from(tokens / u128::from(rate)).unwrap_or(u64::MAX)
                    }
                    (_, _) => debt,
                };
                Some(now.saturating_add(debt))
            });
    }

    /// Takes all of `tokens` or none; returns whether it took them. A bucket with any token left
    /// gives more than it holds, and then none until the debt is paid: a request larger than the
    /// whole bucket passes at the rate, too.
    pub fn take(&self, now: Duration, tokens: u64) -> bool {
        let now = nanos(now);
        let Some(cost) = tokens.saturating_mul(SECOND).checked_div(self.rate()) else {
            return true;
        };
        let taken = self
            .full_at()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now);
                (full_at - now < self.depth).then(|| full_at.saturating_add(cost))
            });
        taken.is_ok()
    }
}

const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_flood_gets_the_rate_and_the_depth_once() {
        let bucket = Bucket::new(1000, Duration::from_millis(100));
        let given = (0..1_000_000u64).filter(|n| bucket.take(Duration::from_micros(*n), 1));
        let given = given.count();
        assert!((1099..=1101).contains(&given), "{given}");
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_at_the_rate() {
        let bucket = Bucket::new(1000, Duration::from_millis(100));
        let given = (0..60u64).filter(|n| bucket.take(Duration::from_secs(*n), 10_000));
        assert_eq!(given.count(), 6);
    }

    #[test]
    fn a_changed_rate_does_not_forget_the_level() {
        let second = Duration::from_secs(1);
        let bucket = Bucket::new(1000, Duration::from_millis(100));
        // A debt of ten seconds is one of ten milliseconds at a thousand times the rate.
        assert!(bucket.take(second, 10_000));
        bucket.set_rate(second, 1_000_000);
        assert!(bucket.take(second, 90_000), "the rest of the bucket");
        assert!(!bucket.take(second, 1), "and not a full one");
        // An empty bucket at a lower rate is empty for no longer than before.
        bucket.set_rate(second, 10);
        assert!(!bucket.take(second + Duration::from_millis(0), 1));
        assert!(bucket.take(second + Duration::from_millis(1), 1));
        // No limit, and a limit again: full.
        bucket.set_rate(second, 0);
        assert!((0..1_000_000).all(|_| bucket.take(second, 1_000_000)));
        bucket.set_rate(second, 1000);
        assert!(bucket.take(second, 100) && !bucket.take(second, 1));
    }

    proptest! {
        #[test]
        fn a_bucket_never_gives_more_than_its_rate_and_depth(
            rate in 1u64..2_000_000,
            depth in 1u64..1000,
            draws in vec((0u64..50_000_000, 1u64..2000), 1..300),
        ) {
            let bucket = Bucket::new(rate, Duration::from_millis(depth));
            let (mut now, mut given, mut largest) = (0, 0, 0);
            for (step, tokens) in draws {
                now += step;
                if bucket.take(Duration::from_nanos(now), tokens) {
                    given += tokens;
                }
                largest = largest.max(tokens);
                let share = rate as f64 * (now as f64 / 1e9 + depth as f64 / 1e3);
                // Each cost is rounded down by under a nanosecond.
                let slack = largest as f64 + 1.0 + given as f64 * rate as f64 / 1e9;
                prop_assert!(given as f64 <= share + slack, "{given} of {share}");
            }
        }
    }
}
