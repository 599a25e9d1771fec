//! Time as a value that the caller read from a clock.
//!
//! This crate never reads a clock itself, so that a test can choose the time and a failure replays.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A point on a monotonic clock, in nanoseconds since an origin of the caller's choosing.
///
/// All points given to one tunnel must come from the same clock. A clock that steps back does no
/// harm, because differences saturate at zero; but every deadline, also the end of a session, comes
/// later by that much.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    pub const ORIGIN: Self = Self(0);
    /// A point that is never reached, 584 years after the origin.
    pub const NEVER: Self = Self(u64::MAX);

    /// A point `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at [`Instant::NEVER`].
    fn add(self, rhs: Duration) -> Self {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// Both clocks at the same moment, for the control half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// The monotonic clock, for every timer.
    pub mono: Instant,
    /// The wall clock, since the Unix epoch. It is used for handshake timestamps only.
    pub unix: Duration,
}

/// A TAI64N label (D. J. Bernstein, "TAI64, TAI64N, and TAI64NA"): eight bytes of seconds and four
/// of nanoseconds, big-endian, so that byte order is time order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// 2^62, the label of the TAI epoch, and the ten seconds TAI was ahead of UTC in 1970. Leap
    /// seconds are not counted, as in WireGuard: only the order matters.
    const BASE: u64 = 0x4000_0000_0000_000a;
    /// Nanoseconds are rounded down to a multiple of this (16.8 ms), as in WireGuard, so that the
    /// label does not reveal the sender's timing.
    const LABEL_GRANULARITY: u32 = 0x0100_0000;

    /// The label of a wall-clock time since the Unix epoch, rounded down to 2^24 ns (16.8 ms).
    #[must_use]
    pub fn from_unix(unix: Duration) -> Self {
        Self::compose(
            Self::BASE.saturating_add(unix.as_secs()),
            unix.subsec_nanos() & !(Self::LABEL_GRANULARITY - 1),
        )
    }

    /// The label for the next initiation: that of `unix`, or the one after `last` if the wall clock
    /// has not passed it (it stood still or was set back).
    #[must_use]
    pub fn next(unix: Duration, last: Self) -> Self {
        let label = Self::from_unix(unix);
        if label > last {
            label
        } else {
            last.successor()
        }
    }

    fn compose(secs: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&secs.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    fn successor(self) -> Self {
        let mut secs = [0; 8];
        secs.copy_from_slice(&self.0[..8]);
        let mut nanos = [0; 4];
        nanos.copy_from_slice(&self.0[8..]);
        let (secs, nanos) = (u64::from_be_bytes(secs), u32::from_be_bytes(nanos));
        let next = (nanos & !(Self::LABEL_GRANULARITY - 1)).saturating_add(Self::LABEL_GRANULARITY);
        if next >= 1_000_000_000 {
            Self::compose(secs.saturating_add(1), 0)
        } else {
            Self::compose(secs, next)
        }
    }

    /// The label as it is in a message.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// A label from a message or from storage. Any twelve bytes are valid.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_order_as_the_clock_does() {
        let a = Tai64n::from_unix(Duration::new(1_700_000_000, 0));
        let b = Tai64n::from_unix(Duration::new(1_700_000_000, 20_000_000));
        let c = Tai64n::from_unix(Duration::new(1_700_000_001, 0));
        assert!(a < b && b < c);
        assert_eq!(a.as_bytes()[..2], [0x40, 0]);
    }

    #[test]
    fn labels_increase_even_if_the_wall_clock_does_not() {
        let mut last = Tai64n::default();
        for step in 0..200_u64 {
            let unix = Duration::from_secs(1_700_000_000 - step);
            let next = Tai64n::next(unix, last);
            assert!(next > last, "step {step}");
            last = next;
        }
    }

    #[test]
    fn differences_saturate() {
        let (a, b) = (Instant::from_nanos(5), Instant::from_nanos(9));
        assert_eq!(a.since(b), Duration::ZERO);
        assert_eq!(b.since(a), Duration::from_nanos(4));
        assert_eq!(Instant::NEVER + Duration::from_secs(1), Instant::NEVER);
    }
}
