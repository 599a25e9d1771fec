//! Rate limits of tenants: token buckets that several threads use without a lock.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const SECOND: u64 = 1_000_000_000;

/// A token bucket, stored as the time at which it is full again (GCRA, ITU-T I.371 annex A). All
/// users of a bucket count time from the same origin.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens a second.
    rate: u64,
    /// Time to fill an empty bucket, nanoseconds.
    depth: u64,
    full_at: FullAt,
}

/// The state of a bucket that an XDP program uses, too. Its drop releases the map entry.
pub trait SharedBucket: fmt::Debug + Send + Sync {
    /// The time at which the bucket is full again, nanoseconds since the origin.
    fn full_at(&self) -> &AtomicU64;

    /// Index of the map entry.
    fn index(&self) -> u32;
}

/// The time at which a bucket is full again, nanoseconds since the origin.
#[derive(Debug)]
enum FullAt {
    /// In the bucket itself.
    Own(AtomicU64),
    /// In memory that an XDP program shares.
    Shared(Box<dyn SharedBucket>),
}

impl FullAt {
    fn get(&self) -> &AtomicU64 {
        match self {
            Self::Own(number) => number,
            Self::Shared(shared) => shared.full_at(),
        }
    }
}

impl Bucket {
    /// A full bucket: `rate` tokens a second (at least 1), and at once the tokens of the time
    /// `depth`.
    #[must_use]
    pub fn new(rate: u64, depth: Duration) -> Self {
        Self {
            rate: rate.max(1),
            depth: nanos(depth),
            full_at: FullAt::Own(AtomicU64::new(0)),
        }
    }

    /// A bucket that an XDP program uses, too.
    #[must_use]
    pub fn shared(rate: u64, depth: Duration, shared: Box<dyn SharedBucket>) -> Self {
        Self {
            rate: rate.max(1),
            depth: nanos(depth),
            full_at: FullAt::Shared(shared),
        }
    }

    /// Index of the map entry that an XDP program uses; `None`: the bucket is not shared.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        match &self.full_at {
            FullAt::Own(_) => None,
            FullAt::Shared(shared) => Some(shared.index()),
        }
    }

    /// Time to fill an empty bucket.
    #[must_use]
    pub const fn depth(&self) -> Duration {
        Duration::from_nanos(self.depth)
    }

    /// Tokens a second.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// Takes all of `tokens` or none; returns whether it took them. A bucket with any token left
    /// gives more than it holds, and then none until the debt is paid: a request larger than the
    /// whole bucket passes at the rate, too.
    pub fn take(&self, now: Duration, tokens: u64) -> bool {
        let now = nanos(now);
        let cost = tokens.saturating_mul(SECOND) / self.rate;
        let taken =
            self.full_at
                .get()
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                    let full_at = full_at.max(now);
                    (full_at - now < self.depth).then(|| full_at.saturating_add(cost))
                });
        taken.is_ok()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
