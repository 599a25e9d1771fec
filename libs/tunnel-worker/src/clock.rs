//! Clocks: the one that the tunnels' timers share, and an ever-increasing wall clock.
//!
//! The tunnels go by `CLOCK_BOOTTIME`: unlike `CLOCK_MONOTONIC` it goes on while the machine is
//! suspended, so that sessions do not outlive their time.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tunnel::{Instant, Now};

/// `CLOCK_BOOTTIME`, nanoseconds.
#[must_use]
pub fn nanos() -> u64 {
    read(libc::CLOCK_BOOTTIME)
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
    // SAFETY: `time` is a live timespec; all clocks that are read here always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Now, by the clock of the tunnels.
#[must_use]
pub fn mono() -> Instant {
    Instant::from_nanos(nanos())
}

/// Now, by the clock of the tunnels and the wall clock.
#[must_use]
pub fn now() -> Now {
    Now {
        mono: mono(),
        unix: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

/// A clock whose times increase: nanoseconds since 1970, more at each call, in whatever thread,
/// even where the wall clock is set back.
#[derive(Debug, Default)]
pub struct IncreasingClock(AtomicU64);

impl IncreasingClock {
    /// A clock that has returned no time yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The next time; that of the wall clock, unless an earlier call returned a later one.
    pub fn next(&self, wall: u64) -> u64 {
        // Steps of two: the end of a circuit may add one.
        let next = |last: u64| Some(wall.max(last.saturating_add(2)));
        let last = self.0.fetch_update(Relaxed, Relaxed, next);
        wall.max(last.unwrap_or(wall).saturating_add(2))
    }

    /// Returns only times above this one from now on.
    pub fn start_above(&self, nanos: u64) {
        self.0.fetch_max(nanos, Relaxed);
    }

    /// The last returned time; 0: none yet.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The clock that marks the messages of circuits' ends, and hellos: gateways and listeners refuse
/// one that is not newer than the last.
pub static CIRCUIT_CLOCK: IncreasingClock = IncreasingClock::new();

/// The next time of [`CIRCUIT_CLOCK`].
#[must_use]
pub fn unix_nanos_increasing() -> u64 {
    let wall = u64::try_from(now().unix.as_nanos()).unwrap_or(u64::MAX / 2);
    CIRCUIT_CLOCK.next(wall)
}

/// The stored time of an [`IncreasingClock`], at which the next process continues: a time that the
/// clock has not reached, renewed before it does. Pure.
#[derive(Debug, Default)]
pub struct ClockReservation {
    reserved: u64,
}

/// Length of a reservation, nanoseconds: the next process starts that far ahead.
const RESERVATION_NS: u64 = 300_000_000_000;
/// A reservation is renewed when less than this is left of it, nanoseconds.
const RENEWAL_THRESHOLD_NS: u64 = 60_000_000_000;

impl ClockReservation {
    /// Continues from the stored time of an earlier process.
    #[must_use]
    pub const fn new(stored: u64) -> Self {
        Self { reserved: stored }
    }

    /// The time to store now, if the reservation is due; `last` is the last one that the clock
    /// gave.
    pub const fn renew(&mut self, last: u64) -> Option<u64> {
        if last == 0 || last.saturating_add(RENEWAL_THRESHOLD_NS) <= self.reserved {
            return None;
        }
        self.reserved = last.saturating_add(RESERVATION_NS);
        Some(self.reserved)
    }
}

/// Time until `at`; zero if it has passed.
#[must_use]
pub fn until(at: Instant) -> Duration {
    at.since(mono())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B18: the machine boots with a clock that is a day ahead, and later with the right one.
    #[test]
    fn times_increase_across_restarts_with_any_wall_clock() {
        const SECOND: u64 = 1_000_000_000;
        let right = 1_700_000_000 * SECOND;
        let day = 86_400 * SECOND;
        let (mut stored, mut newest) = (0, 0);
        for wall in [right + day, right + 10 * SECOND, right + 2 * day, right] {
            let clock = IncreasingClock::new();
            clock.start_above(stored);
            let mut reservation = ClockReservation::new(stored);
            for step in 0..1000 {
                let time = clock.next(wall + step * SECOND);
                assert!(time > newest, "refused at {step}");
                newest = time;
                stored = reservation.renew(clock.last()).unwrap_or(stored);
                assert!(stored > newest + 2, "what is stored is ahead");
            }
            // It is written seldom: every four minutes.
            let mut writes = 0;
            for step in 1000..4600 {
                let last = clock.next(wall + step * SECOND);
                newest = last;
                if let Some(time) = reservation.renew(last) {
                    (stored, writes) = (time, writes + 1);
                }
            }
            assert!(writes <= 16, "{writes} in an hour");
        }
    }

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
