//! Durations of a peer's state machine, and the pauses between handshake attempts.

use std::time::Duration;

use crate::random::Random;

/// Exponential back-off between handshake attempts: `min(first × 2^n, max)`, plus a random part of
/// up to `spread_percent` of it, so that many ends that lost one path do not return in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first attempt, without the random part.
    pub first: Duration,
    /// Longest pause, without the random part.
    pub max: Duration,
    /// Greatest random part, per cent of the pause.
    pub spread_percent: u32,
}

impl Backoff {
    /// Pause after an attempt, counted from zero.
    #[must_use]
    pub fn pause(&self, attempt: u32, random: &mut dyn Random) -> Duration {
        let base = self
            .first
            .saturating_mul(1 << attempt.min(20))
            .min(self.max);
        let spread = base * self.spread_percent / 100;
        let nanos = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        base + Duration::from_nanos(if nanos == 0 {
            0
        } else {
            random.u64() % (nanos + 1)
        })
    }

    /// Longest pause, with the random part.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.max + self.max * self.spread_percent / 100
    }
}

/// Durations and limits of a peer's state machine (white paper, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerConfig {
    /// Age of a session at which its initiator starts a new handshake.
    pub rekey_after: Duration,
    /// Greatest random part by which a handshake starts before that age, so that sessions which
    /// were made together are not renewed together. At most half of the age counts.
    pub rekey_spread: Duration,
    /// Age at which a session expires: nothing is sealed or opened by it any more.
    pub reject_after: Duration,
    /// Time after which content that was received, and answered by nothing, gets a keep-alive.
    pub keepalive: Duration,
    /// Time without any message of the peer, after a message that expects a reply, at which a
    /// handshake starts.
    pub silence: Duration,
    /// Pauses between handshake attempts.
    pub backoff: Backoff,
    /// How long attempts go on; `None`: until one succeeds. Ignored for `InitiationPolicy::Always`.
    pub give_up: Option<Duration>,
    /// Interval of echoes, which measure round-trip time and loss; `None`: none are sent.
    pub echo: Option<Duration>,
    /// Longest time without any message in either direction before a keep-alive is sent; `None`: no
    /// such keep-alives.
    pub persistent_keepalive: Option<Duration>,
    /// Shortest time between two initiations of a peer that are worked on.
    pub initiation_gap: Duration,
    /// Messages after which a handshake starts, if fewer than the cipher's own limit.
    pub rekey_after_messages: Option<u64>,
    /// Messages after which nothing is sealed, if fewer than the cipher's own limit.
    pub reject_after_messages: Option<u64>,
}

impl TimerConfig {
    /// WireGuard's constants (white paper, section 6.1), for WireGuard peers.
    #[must_use]
    pub const fn wireguard() -> Self {
        Self {
            rekey_after: Duration::from_secs(120),
            rekey_spread: Duration::ZERO,
            reject_after: Duration::from_secs(180),
            keepalive: Duration::from_secs(10),
            silence: Duration::from_secs(15),
            backoff: Backoff {
                first: Duration::from_secs(5),
                max: Duration::from_secs(5),
                spread_percent: 6,
            },
            give_up: Some(Duration::from_secs(90)),
            echo: None,
            persistent_keepalive: None,
            initiation_gap: Duration::from_millis(20),
            rekey_after_messages: None,
            reject_after_messages: None,
        }
    }

    /// For appliances: the same key lifetimes, but a lost peer is noticed within a second, and
    /// tried at least every 800 ms until it answers.
    #[must_use]
    pub const fn causeway() -> Self {
        Self {
            rekey_spread: Duration::from_secs(20),
            keepalive: Duration::from_millis(300),
            silence: Duration::from_millis(900),
            backoff: Backoff {
                first: Duration::from_millis(100),
                max: Duration::from_millis(400),
                spread_percent: 100,
            },
            give_up: None,
            echo: Some(Duration::from_secs(1)),
            ..Self::wireguard()
        }
    }

    /// Age at which the end that initiated a session renews it. `index` is the session's index,
    /// which is random: sessions get different ages, and one session always gets the same.
    #[must_use]
    pub fn rekey_age(&self, index: u32) -> Duration {
        let spread = self.rekey_spread.min(self.rekey_after / 2);
        // The low bits of an index are zero; the product's upper half has bits of all others.
        let part = index.wrapping_mul(0x9e37_79b1) >> 16;
        self.rekey_after - spread * part / (1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;

    #[test]
    fn sessions_made_together_are_renewed_over_the_whole_spread() {
        let timers = TimerConfig::causeway();
        let mut random = Seeded::new(3);
        let mut ages: Vec<_> = (0..1000)
            .map(|_| timers.rekey_age(random.u32() & !63))
            .collect();
        ages.sort();
        assert!(ages[0] >= Duration::from_secs(100) && ages[999] <= timers.rekey_after);
        // In no second more than three times its share of 50.
        for second in 100..120 {
            let in_second = ages.iter().filter(|age| age.as_secs() == second).count();
            assert!(
                (1..150).contains(&in_second),
                "{in_second} in second {second}"
            );
        }
        let wireguard = TimerConfig::wireguard();
        assert_eq!(wireguard.rekey_age(random.u32()), wireguard.rekey_after);
    }

    #[test]
    fn pauses_stay_within_bounds_and_differ() {
        let backoff = TimerConfig::causeway().backoff;
        let mut random = Seeded::new(1);
        let mut seen = Vec::new();
        for attempt in 0..1000 {
            let pause = backoff.pause(attempt, &mut random);
            assert!(
                pause >= backoff.first && pause <= backoff.longest(),
                "{pause:?}"
            );
            seen.push(pause);
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 900);
        assert_eq!(backoff.longest(), Duration::from_millis(800));
    }
}
