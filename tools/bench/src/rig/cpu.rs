//! CPU time of the machine.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::extent::{Amount, Extent};

/// How long the machine is observed for [`others`].
const OBSERVATION_TIME: Amount<Duration> = Amount {
    full: Duration::from_millis(500),
    smoke: Duration::from_millis(20),
};
/// How long [`others`] waits for other work to end.
const IDLE_TIMEOUT: Amount<Duration> = Amount {
    full: Duration::from_secs(10),
    smoke: Duration::ZERO,
};
/// CPUs that other processes may use. Above it, the machine's CPU time is not comparable
/// between contenders.
pub const QUIET_ENOUGH: f64 = 0.1;

/// Seconds that all CPUs were busy since boot: user, nice, system, irq, softirq (proc(5)).
pub fn busy_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .context("the first line of /proc/stat")?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    let ticks: f64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    // USER_HZ is 100 on every architecture that we run on (times(2)).
    Ok(ticks / 100.0)
}

/// CPUs that other processes use before a contender is started. A full run waits up to 10 s for
/// them to end. It is not measured while the contender runs, because a contender that polls uses
/// CPU time when idle.
pub fn others(extent: Extent) -> anyhow::Result<f64> {
    let until = Instant::now() + IDLE_TIMEOUT.of(extent);
    loop {
        let (busy, begun) = (busy_seconds()?, Instant::now());
        std::thread::sleep(OBSERVATION_TIME.of(extent));
        let others = (busy_seconds()? - busy) / begun.elapsed().as_secs_f64();
        if others < QUIET_ENOUGH || Instant::now() > until {
            return Ok(others);
        }
        lab::interrupt::check()?;
    }
}

/// Says that other processes use CPU time that the figures then contain.
pub fn warn_if_busy(others: f64) {
    if others >= QUIET_ENOUGH {
        eprintln!(
            "  other processes use {others:.1} CPUs: CPU seconds are left out, and rates are too \
             low"
        );
    }
}
