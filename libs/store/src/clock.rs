//! The time, as a parameter.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

/// Source of time of a store.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Time since the Unix epoch, for the age of changes.
    fn wall(&self) -> Duration;

    /// Time since any fixed moment; never goes back. For leases.
    fn monotonic(&self) -> Duration;
}

/// The clocks of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct System {
    start: Instant,
}

impl Default for System {
    fn default() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Clock for System {
    fn wall(&self) -> Duration {
        SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
