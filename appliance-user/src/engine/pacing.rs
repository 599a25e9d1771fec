//! Rate limits and jitter of the engines.
//!
//! The rate limit is a virtual-scheduling leaky bucket (GCRA, ITU-T I.371). A slot is a point in
//! time that can be reserved, so that each waiting entry needs one deadline only.

use std::time::{Duration, Instant};

use gateway_client::random::SplitMix64;

/// A rate limit with a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    tolerance: Duration,
    /// Theoretical arrival time (TAT) of the next slot.
    next: Option<Instant>,
}

impl RateLimiter {
    /// At most `burst` slots at once and `rate` per second in the long run; both are at least 1.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        Self::with_interval(Duration::from_secs(1) / rate.max(1), burst)
    }

    /// At most `burst` slots at once, at least 1, and one for each `interval` in the long run.
    pub(crate) fn with_interval(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            tolerance: interval * burst.max(1).saturating_sub(1),
            next: None,
        }
    }

    /// Time between two slots in the long run.
    pub(crate) const fn interval(&self) -> Duration {
        self.interval
    }

    /// The time of the next slot: `now` or later.
    pub(crate) fn next_slot(&self, now: Instant) -> Instant {
        let arrival = self.next.map_or(now, |next| next.max(now));
        arrival
            .checked_sub(self.tolerance)
            .map_or(now, |at| at.max(now))
    }

    /// The earliest time of the next slot, which may be in the past; `None` before the first slot.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.next
            .map(|next| next.checked_sub(self.tolerance).unwrap_or(next))
    }

    /// Reserves the next slot and returns its time.
    pub(crate) fn reserve(&mut self, now: Instant) -> Instant {
        let at = self.next_slot(now);
        self.next = Some(self.next.map_or(now, |next| next.max(now)) + self.interval);
        at
    }
}

/// Random durations from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(SplitMix64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// A random duration between `low` and `high` percent of `mean`.
    pub(crate) fn around(&mut self, mean: Duration, low: u32, high: u32) -> Duration {
        let span = u64::from(high.saturating_sub(low)) * 10;
        let permille = u64::from(low) * 10
            + if span == 0 {
                0
            } else {
                self.0.next_u64() % (span + 1)
            };
        Duration::from_nanos((mean.as_nanos() as u64 / 1000).saturating_mul(permille))
    }

    /// A random duration from zero up to `limit`.
    pub(crate) fn within(&mut self, limit: Duration) -> Duration {
        self.around(limit, 0, 100)
    }
}
