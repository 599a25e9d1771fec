//! Path-MTU search by padded echoes, after RFC 8899 (datagram packetization layer PMTU discovery).
//!
//! ```text
//!            ┌────────── nothing left to try ─────────┐
//!            │                                        ▼
//!   ┌─────────────┐   echo of the size found      ┌───────┐
//!   │  Searching  │◀── lost three times, or ──────│ Found │──▶ confirmed every 10 s
//!   └─────────────┘    600 s passed               └───────┘
//! ```
//!
//! Sizes are bytes of UDP payload. Probes must be sent with "don't fragment" set. No probe carries
//! traffic, so that a lost probe does no harm. ICMP is not needed: it only makes the search check
//! the size in use at once.

use std::time::Duration;

use crate::data::MIN_DATAGRAM;
use crate::time::Instant;
use crate::wire::MAX_DATAGRAM;

/// Common UDP payloads, which are tried first: IP MTUs of 9000, 1500, PPPoE, common tunnels and
/// 1400, less headers of 28 bytes (IPv4) or 48 bytes (IPv6).
const COMMON_PAYLOADS: [usize; 12] = [
    8972, 8952, 4442, 1472, 1464, 1452, 1444, 1432, 1422, 1402, 1372, 1352,
];
/// The search ends when the unknown range is this small, bytes.
const PRECISION: usize = 8;
/// A size is too long after this many lost probes.
const MAX_LOST_PROBES: u8 = 3;

/// Limits and intervals of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmtuConfig {
    /// Longest datagram to try, bytes of UDP payload: the uplink's MTU less 28 (IPv4) or 48 (IPv6).
    pub ceiling: usize,
    /// Time after which an unanswered probe counts as lost.
    pub probe_timeout: Duration,
    /// Interval in which the size in use is confirmed.
    pub confirm_every: Duration,
    /// Interval in which a longer size is looked for.
    pub raise_every: Duration,
}

impl Default for PmtuConfig {
    fn default() -> Self {
        Self {
            ceiling: 1472,
            probe_timeout: Duration::from_secs(1),
            confirm_every: Duration::from_secs(10),
            raise_every: Duration::from_secs(600),
        }
    }
}

/// The search on one path.
#[derive(Debug, Clone)]
pub struct PathMtu {
    config: PmtuConfig,
    /// Longest size that was answered.
    good: usize,
    /// Shortest size known to be lost.
    bad: usize,
    probe: Option<Probe>,
    next: Instant,
    raise: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    size: usize,
    tries: u8,
    sent: Instant,
}

impl PathMtu {
    /// A search that starts at once.
    #[must_use]
    pub fn new(config: PmtuConfig, now: Instant) -> Self {
        let config = PmtuConfig {
            ceiling: config.ceiling.clamp(MIN_DATAGRAM, MAX_DATAGRAM),
            ..config
        };
        Self {
            config,
            good: MIN_DATAGRAM,
            bad: config.ceiling + 1,
            probe: None,
            next: now,
            raise: now + config.raise_every,
        }
    }

    /// Longest datagram known to pass, bytes of UDP payload; at least [`MIN_DATAGRAM`].
    #[must_use]
    pub const fn current(&self) -> usize {
        self.good
    }

    /// Whether the search has not ended.
    #[must_use]
    pub const fn searching(&self) -> bool {
        self.bad > self.good + PRECISION
    }

    /// When to call [`PathMtu::poll`] next. Later than now once `poll` has returned.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.probe
            .map_or(self.next, |probe| probe.sent + self.config.probe_timeout)
    }

    /// The size to probe now, if any. `alive`: the peer answers plain echoes. Only then a lost
    /// probe says something about its size.
    pub fn poll(&mut self, now: Instant, alive: bool) -> Option<usize> {
        if let Some(probe) = self.probe {
            if now.since(probe.sent) < self.config.probe_timeout {
                return None;
            }
            if !alive {
                // The path is down: repeat the probe later.
                self.probe = Some(Probe { sent: now, ..probe });
                return None;
            }
            if probe.tries < MAX_LOST_PROBES {
                self.probe = Some(Probe {
                    tries: probe.tries + 1,
                    sent: now,
                    ..probe
                });
                return Some(probe.size);
            }
            self.lost(now, probe.size);
        }
        if now < self.next {
            return None;
        }
        if !alive {
            self.next = now + self.config.probe_timeout;
            return None;
        }
        if !self.searching() && now >= self.raise {
            self.bad = self.config.ceiling + 1;
            self.raise = now + self.config.raise_every;
        }
        let size = self.candidate();
        if size == MIN_DATAGRAM {
            // Every path is assumed to carry this size.
            self.next = now + self.config.confirm_every;
            return None;
        }
        self.probe = Some(Probe {
            size,
            tries: 1,
            sent: now,
        });
        Some(size)
    }

    /// A probe of `size` was answered. True if [`PathMtu::current`] has changed.
    pub fn answered(&mut self, now: Instant, size: usize) -> bool {
        if size > self.config.ceiling {
            return false;
        }
        if self.probe.is_some_and(|probe| probe.size == size) {
            self.probe = None;
        }
        let before = self.good;
        if size > self.good {
            self.good = size;
            self.bad = self.bad.max(size + 1);
        }
        self.next = if self.searching() {
            now
        } else {
            now + self.config.confirm_every
        };
        self.good != before
    }

    /// ICMP says that `size` is the longest that passes. ICMP is not authentic, so the size in use
    /// is only confirmed at once.
    pub fn hint(&mut self, now: Instant, size: usize) {
        if size < self.good && self.probe.is_none() {
            self.next = now;
        }
    }

    /// The path has changed (the peer moved, another gateway): starts over.
    pub fn restart(&mut self, now: Instant) {
        *self = Self::new(self.config, now);
    }

    /// The uplink takes datagrams of `ceiling` bytes from now on. True if [`PathMtu::current`] has
    /// changed: what is longer than the ceiling is not used any more. A longer ceiling is tried at
    /// once.
    pub fn set_ceiling(&mut self, now: Instant, ceiling: usize) -> bool {
        let ceiling = ceiling.clamp(MIN_DATAGRAM, MAX_DATAGRAM);
        if ceiling == self.config.ceiling {
            return false;
        }
        let was_open = self.bad > self.config.ceiling;
        let is_longer = ceiling > self.config.ceiling;
        self.config.ceiling = ceiling;
        let before = self.good;
        self.good = self.good.min(ceiling);
        // A size that the path has lost stays lost, unless the path may have become longer.
        self.bad = if is_longer || was_open {
            ceiling + 1
        } else {
            self.bad.min(ceiling + 1)
        };
        if self.probe.is_some_and(|probe| probe.size > ceiling) || is_longer {
            self.probe = None;
            self.next = now;
        }
        self.good != before
    }

    fn lost(&mut self, now: Instant, size: usize) {
        self.probe = None;
        self.next = now;
        self.bad = size;
        if size <= self.good {
            // The size in use no longer passes (a black hole): fall back, and search below it.
            self.good = MIN_DATAGRAM;
        }
        if !self.searching() {
            self.next = now + self.config.confirm_every;
        }
    }

    fn candidate(&self) -> usize {
        if !self.searching() {
            return self.good;
        }
        let longest = self.bad - 1;
        if longest == self.config.ceiling {
            return longest;
        }
        COMMON_PAYLOADS
            .into_iter()
            .find(|&size| size > self.good && size <= longest)
            .unwrap_or(self.good + (longest - self.good).div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs the search for `seconds` on a path that carries `path` bytes. Yields the number of
    /// probes.
    fn run(search: &mut PathMtu, now: &mut Instant, path: usize, seconds: u64, alive: bool) -> u32 {
        let end = *now + SECOND * seconds as u32;
        let mut probes = 0;
        while *now < end {
            if let Some(size) = search.poll(*now, alive) {
                probes += 1;
                if size <= path && alive {
                    search.answered(*now, size);
                    continue;
                }
            }
            *now = *now + Duration::from_millis(100);
        }
        probes
    }

    #[test]
    fn a_common_path_takes_one_probe() {
        let mut now = Instant::ORIGIN;
        let mut search = PathMtu::new(PmtuConfig::default(), now);
        assert_eq!(run(&mut search, &mut now, 1472, 1, true), 1);
        assert_eq!(search.current(), 1472);
    }

    #[test]
    fn a_black_hole_is_noticed_and_a_longer_path_found_later() {
        let mut now = Instant::ORIGIN;
        let mut search = PathMtu::new(PmtuConfig::default(), now);
        run(&mut search, &mut now, 1472, 5, true);
        run(&mut search, &mut now, 1410, 60, true);
        assert!((1402..=1410).contains(&search.current()), "{search:?}");
        run(&mut search, &mut now, 1472, 700, true);
        assert_eq!(search.current(), 1472);
    }

    #[test]
    fn a_dead_path_changes_no_size() {
        let mut now = Instant::ORIGIN;
        let mut search = PathMtu::new(PmtuConfig::default(), now);
        run(&mut search, &mut now, 1472, 5, true);
        run(&mut search, &mut now, 0, 300, false);
        assert_eq!(search.current(), 1472);
    }

    #[test]
    fn a_hint_confirms_the_size_at_once() {
        let mut now = Instant::ORIGIN;
        let mut search = PathMtu::new(PmtuConfig::default(), now);
        run(&mut search, &mut now, 1472, 2, true);
        assert_eq!(search.poll(now, true), None);
        search.hint(now, 1400);
        assert_eq!(search.poll(now, true), Some(1472));
        assert_eq!(search.current(), 1472, "a hint alone changes nothing");
    }

    #[test]
    fn another_ceiling_counts_at_once_and_a_longer_one_is_tried() {
        let mut now = Instant::ORIGIN;
        let mut search = PathMtu::new(PmtuConfig::default(), now);
        run(&mut search, &mut now, 1472, 5, true);
        assert!(search.set_ceiling(now, 1400));
        assert_eq!(search.current(), 1400);
        assert!(!search.set_ceiling(now, 1400));
        run(&mut search, &mut now, 1472, 60, true);
        assert_eq!(search.current(), 1400);
        assert!(
            !search.set_ceiling(now, 8972),
            "nothing longer is known yet"
        );
        run(&mut search, &mut now, 8972, 5, true);
        assert_eq!(search.current(), 8972);
        // A probe that the uplink does not take any more is given up.
        search.restart(now);
        assert_eq!(search.poll(now, true), Some(8972));
        search.set_ceiling(now, 1472);
        assert_eq!(search.poll(now, true), Some(1472));
    }

    proptest! {
        #[test]
        fn any_path_is_found_to_within_the_grain(
            path in MIN_DATAGRAM..9000,
            ceiling in 1300_usize..9000,
        ) {
            let mut now = Instant::ORIGIN;
            let mut search = PathMtu::new(PmtuConfig { ceiling, ..PmtuConfig::default() }, now);
            run(&mut search, &mut now, path, 120, true);
            let most = path.min(ceiling);
            prop_assert!(search.current() <= most && search.current() + PRECISION >= most, "{} of \
                {most}", search.current());
        }
    }
}
