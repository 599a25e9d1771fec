//! Pauses between attempts at something that fails. Pure.

use std::time::Duration;

/// Pauses that double from the first to the longest. The caller passes the chance by which each is
/// shortened, so that machines that lost the same service together do not return together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// The chance that shortens no pause, for attempts that disturb no other machine.
    pub const WHOLE: u32 = u32::MAX;

    /// The next pause is `first`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The next attempt has succeeded: the pauses begin again.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause, or `least` if that is longer; `chance` 0 makes it half as long,
    /// [`Backoff::WHOLE`] leaves it whole, and numbers between do in proportion.
    pub fn pause(&mut self, least: Duration, chance: u32) -> Duration {
        let whole = self.next.max(least);
        self.next = self.next.saturating_mul(2).min(self.longest);
        let half = whole / 2;
        let share = f64::from(Self::WHOLE - chance) / f64::from(Self::WHOLE);
        whole.saturating_sub(half.mul_f64(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(SECOND * 5, SECOND * 60);
        let mut pause = || backoff.pause(Duration::ZERO, Backoff::WHOLE).as_secs();
        assert_eq!([(); 6].map(|()| pause()), [5, 10, 20, 40, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.pause(Duration::ZERO, Backoff::WHOLE), SECOND * 5);
    }

    #[test]
    fn chance_shortens_a_pause_by_up_to_a_half() {
        let pause = |chance| {
            let mut backoff = Backoff::new(SECOND, SECOND * 60);
            backoff.pause(SECOND * 10, chance)
        };
        assert_eq!(pause(Backoff::WHOLE), SECOND * 10, "the least is longer");
        assert_eq!(pause(0), SECOND * 5);
        let middle = pause(u32::MAX / 2);
        assert!((SECOND * 7..SECOND * 8).contains(&middle), "{middle:?}");
        // The least changes no later pause.
        let mut backoff = Backoff::new(SECOND, SECOND * 60);
        backoff.pause(SECOND * 10, 0);
        assert_eq!(backoff.pause(Duration::ZERO, Backoff::WHOLE), SECOND * 2);
    }
}
