//! Limit of the control messages of one peer that a worker handles.
//!
//! An authenticated peer may send control messages at the speed of its line, and each costs an
//! answer or the manager's time. An honest peer sends an echo a second, and some tens of
//! path-MTU probes after a change of the path.

use std::time::Duration;

use tunnel::Instant;

/// Control messages that are handled at once.
const BURST: u32 = 32;
/// Interval at which one more is handled.
const INTERVAL: Duration = Duration::from_millis(20);

/// A token bucket.
#[derive(Debug, Default)]
pub(super) struct ControlBudget {
    /// When the bucket is full again.
    full_at: Instant,
}

impl ControlBudget {
    /// Whether one more message is handled.
    pub fn take(&mut self, now: Instant) -> bool {
        let from = self.full_at.max(now);
        if from.since(now) > INTERVAL * (BURST - 1) {
            return false;
        }
        self.full_at = from + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        let mut budget = ControlBudget::default();
        let start = Instant::from_nanos(1_000_000_000);
        let at = |us: u64| start + Duration::from_micros(us);
        let handled = (0..100_000).filter(|n| budget.take(at(n * 10))).count();
        assert!((80..=83).contains(&handled), "{handled} in a second");
        // After a pause the burst is there again, and no more.
        let later = at(10_000_000);
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), 32);
    }

    #[test]
    fn an_honest_peer_is_never_over_its_budget() {
        let mut budget = ControlBudget::default();
        for second in 0..100 {
            let at = Instant::from_nanos((1 + second) * 1_000_000_000);
            // A search of the path MTU whose probes are all answered at once.
            assert!((0..24).all(|_| budget.take(at)));
        }
    }
}
