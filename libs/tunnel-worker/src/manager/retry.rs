//! When something that failed (a bind, a listener) is tried again: with back-off, and for ever.
//! Pure.

use std::time::Duration;

use gateway_client::backoff::Backoff;
use tunnel::Instant;

/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// Attempts at one thing.
#[derive(Debug)]
pub(super) struct Retry {
    backoff: Backoff,
    next: Option<Instant>,
}

impl Default for Retry {
    /// Nothing has failed.
    fn default() -> Self {
        Self {
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
            next: None,
        }
    }
}

impl Retry {
    /// Takes the result of an attempt.
    pub fn attempted(&mut self, now: Instant, succeeded: bool) {
        if succeeded {
            *self = Self::default();
            return;
        }
        let pause = self.backoff.pause(Duration::ZERO, Backoff::WHOLE);
        self.next = Some(now + pause);
    }

    /// Whether the next attempt is due.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_go_on_for_ever_with_bounded_pauses() {
        let mut retry = Retry::default();
        let start = Instant::from_nanos(1);
        assert!(!retry.is_due(start), "nothing has failed");
        retry.attempted(start, false);
        let (mut now, mut attempts) = (start, 0);
        while now.since(start) < Duration::from_secs(3600) {
            now = now + Duration::from_millis(100);
            if retry.is_due(now) {
                attempts += 1;
                retry.attempted(now, false);
                assert!(!retry.is_due(now + Duration::from_millis(400)));
            }
        }
        assert!((440..470).contains(&attempts), "{attempts}");
        retry.attempted(now, true);
        assert!(!retry.is_due(now + Duration::from_secs(100)));
    }
}
