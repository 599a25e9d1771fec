//! Number and duration of the sweeper's passes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Debug, Default)]
struct Times {
    count: AtomicU64,
    last_us: AtomicU64,
    longest_us: AtomicU64,
}

/// The passes since the start. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Passes(Arc<Times>);

impl Passes {
    /// Adds a pass that took this long, including the removal of entries.
    pub fn add(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        self.0.last_us.store(micros, Ordering::Relaxed);
        self.0.longest_us.fetch_max(micros, Ordering::Relaxed);
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Duration of the last one; zero before the first.
    #[must_use]
    pub fn last(&self) -> Duration {
        Duration::from_micros(self.0.last_us.load(Ordering::Relaxed))
    }

    /// Duration of the longest one; zero before the first.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.0.longest_us.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pass_is_kept() {
        let passes = Passes::default();
        for ms in [3, 9, 5] {
            passes.clone().add(Duration::from_millis(ms));
        }
        let of = Duration::from_millis;
        assert_eq!(
            (passes.count(), passes.last(), passes.longest()),
            (3, of(5), of(9))
        );
    }
}
