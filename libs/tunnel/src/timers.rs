//! Durations, and the pauses between attempts.

use std::time::Duration;

use crate::random::Random;

/// Pauses between handshake attempts: `min(first × 2^n, max)`, and up to `spread` of that more, at
/// random, so that many ends that lost one path do not come back in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// First pause.
    pub first: Duration,
    /// Longest pause, without the spread.
    pub max: Duration,
    /// Random part, per cent of the pause.
    pub spread_percent: u32,
}

impl Backoff {
    /// The pause after attempt `attempt`, from zero.
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

    /// The longest pause there can be.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.max + self.max * self.spread_percent / 100
    }
}

/// Every duration of a peer's state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerConfig {
    /// Age of a session at which its initiator starts the next.
    pub rekey_after: Duration,
    /// Age at which a session is over.
    pub reject_after: Duration,
    /// Silence of our own after which received content is answered by a keep-alive.
    pub keepalive: Duration,
    /// Silence of the peer after something that wants an answer, at which a handshake is started.
    pub silence: Duration,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// How long attempts go on; `None`: until one succeeds.
    pub give_up: Option<Duration>,
    /// An echo this often, for round-trip time, loss and path MTU; `None`: never.
    pub echo: Option<Duration>,
    /// A keep-alive at least this often whether or not anything was received; `None`: never.
    pub persistent_keepalive: Option<Duration>,
    /// Initiations of a peer closer together than this are dropped.
    pub initiation_gap: Duration,
    /// New handshake after so many messages, if fewer than the cipher's own bound.
    pub rekey_after_messages: Option<u64>,
    /// No message after so many, if fewer than the cipher's own bound.
    pub reject_after_messages: Option<u64>,
}

impl TimerConfig {
    /// WireGuard's own (white paper, section 6.1), for WireGuard peers.
    #[must_use]
    pub const fn wireguard() -> Self {
        Self {
            rekey_after: Duration::from_secs(120),
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

    /// Between appliances: the same life of keys, but a lost peer is noticed within a second and
    /// called again at least every 800 ms, for as long as it takes.
    #[must_use]
    pub const fn causeway() -> Self {
        Self {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;

    #[test]
    fn pauses_grow_to_their_bound_and_differ() {
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
