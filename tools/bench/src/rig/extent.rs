//! How much a run measures: enough for figures, or only enough to see that each case works.

use std::time::{Duration, Instant};

/// Longest time to wait for the first arrival of a load. On a machine with other work, short loads
/// arrive late.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads counters after `time`, and then again until something has arrived, 5 s at most. Returns
/// what was read, with the seconds since the call.
pub fn counted<T>(
    time: Duration,
    read: impl Fn() -> anyhow::Result<T>,
    has_arrived: impl Fn(&T) -> bool,
) -> anyhow::Result<(T, f64)> {
    let begun = Instant::now();
    loop {
        std::thread::sleep(time);
        let found = read()?;
        let took = begun.elapsed();
        if has_arrived(&found) || took > ARRIVAL_TIMEOUT {
            return Ok((found, took.as_secs_f64()));
        }
    }
}

/// How much a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Enough for figures.
    Full,
    /// `--smoke`: enough to see that each case works.
    Smoke,
}

/// An amount of load, such as packets, connections or time, for each extent.
#[derive(Clone, Copy, Debug)]
pub struct Amount<T> {
    /// For [`Extent::Full`].
    pub full: T,
    /// For [`Extent::Smoke`].
    pub smoke: T,
}

impl<T: Copy> Amount<T> {
    /// The amount for an extent.
    pub const fn of(&self, extent: Extent) -> T {
        match extent {
            Extent::Full => self.full,
            Extent::Smoke => self.smoke,
        }
    }
}
