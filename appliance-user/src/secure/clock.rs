//! The monotonic clock, as the tunnel and the daemon's timers both see it.

use std::time::{Duration, SystemTime};

use tunnel::{Instant, Now};

/// `CLOCK_MONOTONIC`, nanoseconds.
#[must_use]
pub fn nanos() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of this thread, nanoseconds.
#[must_use]
pub fn thread_nanos() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live timespec; both clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Now, for a worker.
#[must_use]
pub fn mono() -> Instant {
    Instant::from_nanos(nanos())
}

/// Now by both clocks, for the control half.
#[must_use]
pub fn now() -> Now {
    Now {
        mono: mono(),
        unix: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

/// How long until `at`; zero if it has passed.
#[must_use]
pub fn until(at: Instant) -> Duration {
    at.since(mono())
}
