//! Pauses between attempts to connect.

use std::time::Duration;

use gateway_client::{backoff::Backoff, random::SplitMix64};

/// First pause.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Pauses that double from a second to a minute, each shortened by up to a half by chance, so that
/// machines which lost the director together do not return together.
#[derive(Clone, Debug)]
pub(crate) struct Pauses {
    backoff: Backoff,
    chance: SplitMix64,
}

impl Pauses {
    /// The first pause is of a second at most. Machines have different seeds.
    pub const fn new(seed: u64) -> Self {
        Self {
            backoff: Backoff::new(FIRST, LONGEST),
            chance: SplitMix64::new(seed),
        }
    }

    /// A stream was open for this time: after a long one the pauses begin again.
    pub fn was_open(&mut self, time: Duration) {
        if time >= LONGEST {
            self.backoff.reset();
        }
    }

    /// The next pause; at least half of `least`.
    pub fn next(&mut self, least: Duration) -> Duration {
        let chance = self.random();
        self.backoff.pause(least, chance)
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
        let mut pauses = Pauses::new(1);
        let mut longest = FIRST;
        for _ in 0..10 {
            let pause = pauses.next(Duration::ZERO);
            assert!((longest / 2..=longest).contains(&pause), "{pause:?}");
            longest = (longest * 2).min(LONGEST);
        }
        pauses.was_open(Duration::from_secs(59));
        assert!(pauses.next(Duration::ZERO) >= LONGEST / 2);
        pauses.was_open(Duration::from_secs(60));
        assert!(pauses.next(Duration::ZERO) <= FIRST);
        assert!(pauses.next(LONGEST) >= LONGEST / 2);
    }

    #[test]
    fn machines_have_different_pauses() {
        let pauses: Vec<_> = (0..100)
            .map(|seed| Pauses::new(seed).next(LONGEST))
            .collect();
        let least = pauses.iter().min().expect("some");
        let most = pauses.iter().max().expect("some");
        assert!(*most - *least > LONGEST / 3, "{least:?} to {most:?}");
    }
}
