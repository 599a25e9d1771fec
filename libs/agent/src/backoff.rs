//! Pauses between attempts to connect.

use std::time::Duration;

use gateway_client::random::SplitMix64;

/// First pause, and the least.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Pauses that double from a second to a minute, each shortened by up to a half by chance, so that
/// machines which lost the director together do not return together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    chance: SplitMix64,
}

impl Backoff {
    /// The first pause is of a second at most. Machines have different seeds.
    pub const fn new(seed: u64) -> Self {
        Self {
            next: FIRST,
            chance: SplitMix64::new(seed),
        }
    }

    /// A stream was open for this time: after a long one the pauses begin again.
    pub fn was_open(&mut self, time: Duration) {
        if time >= LONGEST {
            self.next = FIRST;
        }
    }

    /// The next pause; at least half of `least`.
    pub fn pause(&mut self, least: Duration) -> Duration {
        let longest = self.next.max(least);
        self.next = (self.next * 2).min(LONGEST);
        let half = longest / 2;
        half + half.mul_f64(f64::from(self.random()) / f64::from(u32::MAX))
    }

    /// A random number, for pauses and times of renewal.
    pub fn random(&mut self) -> u32 {
        (self.chance.next_u64() >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_minute_and_begin_again_after_a_long_stream() {
        let mut backoff = Backoff::new(1);
        let mut longest = FIRST;
        for _ in 0..10 {
            let pause = backoff.pause(Duration::ZERO);
            assert!((longest / 2..=longest).contains(&pause), "{pause:?}");
            longest = (longest * 2).min(LONGEST);
        }
        backoff.was_open(Duration::from_secs(59));
        assert!(backoff.pause(Duration::ZERO) >= LONGEST / 2);
        backoff.was_open(Duration::from_secs(60));
        assert!(backoff.pause(Duration::ZERO) <= FIRST);
        assert!(backoff.pause(LONGEST) >= LONGEST / 2);
    }

    #[test]
    fn machines_have_different_pauses() {
        let pauses: Vec<_> = (0..100)
            .map(|seed| Backoff::new(seed).pause(LONGEST))
            .collect();
        let least = pauses.iter().min().expect("some");
        let most = pauses.iter().max().expect("some");
        assert!(*most - *least > LONGEST / 3, "{least:?} to {most:?}");
    }
}
