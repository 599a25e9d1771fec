//! Clocks: the monotonic one that the tunnels and the owner's timers share, and an ever-increasing
//! wall clock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tunnel::{Instant, Now};

/// `CLOCK_MONOTONIC`, nanoseconds.
#[must_use]
pub fn nanos() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_THREAD_CPUTIME_ID`: CPU time of this thread, nanoseconds.
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

/// Now, by the monotonic clock.
#[must_use]
pub fn mono() -> Instant {
    Instant::from_nanos(nanos())
}

/// Now, by the monotonic clock and the wall clock.
#[must_use]
pub fn now() -> Now {
    Now {
        mono: mono(),
        unix: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

/// Nanoseconds since 1970, more at each call, in whatever thread, even where the clock is set back.
/// It marks the messages of circuits' ends: gateways and listeners refuse one that is not newer
/// than the last.
#[must_use]
pub fn unix_nanos_increasing() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let wall = u64::try_from(now().unix.as_nanos()).unwrap_or(u64::MAX / 2);
    // Two apart: the end of a circuit may add one.
    let next = |last: u64| Some(wall.max(last + 2));
    let last = LAST.fetch_update(Relaxed, Relaxed, next).unwrap_or(wall);
    wall.max(last + 2)
}

/// Time until `at`; zero if it has passed.
#[must_use]
pub fn until(at: Instant) -> Duration {
    at.since(mono())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_increasing_clock_gives_no_time_twice() {
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .map(|_| unix_nanos_increasing())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let all = threads.into_iter().map(|t| t.join().expect("a thread"));
            all.collect::<Vec<_>>()
        });
        for of_a_thread in &all {
            assert!(of_a_thread.is_sorted_by(|a, b| a + 1 < *b));
        }
        let mut together = all.concat();
        together.sort_unstable();
        together.dedup();
        assert_eq!(together.len(), 4000);
    }
}
