//! Rates: a virtual-scheduling leaky bucket (GCRA, ITU-T I.371), so that a turn is a time that can be
//! reserved, and many that wait cost one deadline each.

use std::time::{Duration, Instant};

/// A rate with a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    interval: Duration,
    tolerance: Duration,
    /// Theoretical arrival time of the next turn.
    next: Option<Instant>,
}

impl Pace {
    /// At most `burst` turns at once and `rate` per second in the long run; both at least 1.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self {
            interval,
            tolerance: interval * burst.max(1).saturating_sub(1),
            next: None,
        }
    }

    /// When the next turn is: `now` or later.
    pub(crate) fn turn(&self, now: Instant) -> Instant {
        let arrival = self.next.map_or(now, |next| next.max(now));
        arrival
            .checked_sub(self.tolerance)
            .map_or(now, |at| at.max(now))
    }

    /// When the next turn is, however long ago that was; `None` before the first.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.next
            .map(|next| next.checked_sub(self.tolerance).unwrap_or(next))
    }

    /// Takes the next turn and says when it is.
    pub(crate) fn reserve(&mut self, now: Instant) -> Instant {
        let at = self.turn(now);
        self.next = Some(self.next.map_or(now, |next| next.max(now)) + self.interval);
        at
    }
}

/// A small generator for jitter (SplitMix64); not for secrets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A time between `low` and `high` percent of `mean`.
    pub(crate) fn around(&mut self, mean: Duration, low: u32, high: u32) -> Duration {
        let span = u64::from(high.saturating_sub(low)) * 10;
        let permille = u64::from(low) * 10
            + if span == 0 {
                0
            } else {
                self.next() % (span + 1)
            };
        Duration::from_nanos((mean.as_nanos() as u64 / 1000).saturating_mul(permille))
    }

    /// A time from zero up to `limit`.
    pub(crate) fn within(&mut self, limit: Duration) -> Duration {
        self.around(limit, 0, 100)
    }
}
