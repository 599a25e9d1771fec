//! Announces moved addresses: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! For: several rounds of announcements at switch-over and failback, so that the neighbour caches
//! of hosts change at once instead of when their entries expire. Never: input, output or a clock;
//! frames come out of [`Announcer::poll`].
//!
//! ```text
//!   announce ─▶ round 1 now ─▶ 100 ms ─▶ 500 ms ─▶ 1 s ─▶ 2 s ─┬─▶ done
//!                 each round: IPv4 two frames (request and     └─▶ periodic: again every 30 s,
//!                 reply form), IPv6 one                            seldomer when there are many
//! ```
//!
//! Announcements may be lost, so there are several rounds (RFC 5227 section 2.3, RFC 4861 section
//! 7.2.6). All of them may be lost, and a router may keep a cache entry for hours, so an address
//! that the appliance holds is announced again without end. Thousands of addresses may move at
//! once, so a limit per millisecond protects the queues of NICs and switches; repetitions are
//! spread over their interval.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, as_v4};

use super::pacing::{Jitter, RateLimiter};
use crate::frame::{self, Port};

/// How announcements are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Start of each round, counted from the announcement; ascending.
    pub rounds: Vec<Duration>,
    /// Maximum frames per millisecond; at least 1.
    pub frames_per_ms: u32,
    /// Interval of the repetitions of a periodic announcement.
    pub repeat: Duration,
    /// Maximum repetitions per second, of all periodic announcements; at least 1. With more
    /// addresses than fit into `repeat` at this rate, the interval grows.
    pub repeats_per_second: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rounds: [0, 100, 500, 1000, 2000]
                .map(Duration::from_millis)
                .to_vec(),
            frames_per_ms: 50,
            repeat: Duration::from_secs(30),
            repeats_per_second: 200,
        }
    }
}

/// One address to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub address: Address,
    /// Its new MAC address: the port's own at switch-over, the machine's at failback.
    pub mac: [u8; 6],
    /// The port on which to announce it.
    pub port: Port,
    /// Whether it is a router's address: sets the Router flag of neighbour advertisements (IPv6
    /// only).
    pub router: bool,
    /// Whether it is announced again and again until it is cancelled.
    pub is_periodic: bool,
}

/// Key of an announcement: interface, outer and inner VLAN, address.
type Key = (u32, u16, u16, Address);

/// Sends announcements. See the [module](self).
#[derive(Debug)]
pub struct Announcer {
    settings: Settings,
    limiter: RateLimiter,
    pending: BTreeMap<Key, Pending>,
    /// The next round of each announcement, by time and then by order of announcement.
    due: BTreeSet<(Instant, u64, Key)>,
    sequence: u64,
    /// Number of pending periodic announcements.
    periodic: u32,
    jitter: Jitter,
    /// Unsent frames of the current round.
    ready: VecDeque<(Key, u32, Vec<u8>)>,
}

#[derive(Debug)]
struct Pending {
    announcement: Announcement,
    /// MAC addresses to announce to; empty: all hosts.
    receivers: Vec<[u8; 6]>,
    announced_at: Instant,
    round: usize,
    next_round_at: Instant,
    sequence: u64,
}

impl Announcer {
    /// An announcer without announcements. `seed` starts the jitter of repetitions.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        let per_ms = settings.frames_per_ms.max(1);
        Self {
            limiter: RateLimiter::new(per_ms.saturating_mul(1000), per_ms),
            settings,
            pending: BTreeMap::new(),
            due: BTreeSet::new(),
            sequence: 0,
            periodic: 0,
            jitter: Jitter::new(seed),
            ready: VecDeque::new(),
        }
    }

    /// Starts all rounds of an announcement. It replaces an earlier one for the same port and
    /// address, whose remaining frames are not sent.
    pub fn announce(&mut self, now: Instant, announcement: Announcement) {
        self.announce_to(now, announcement, Vec::new());
    }

    /// As [`announce`](Self::announce), by unicast to these MAC addresses; to all hosts if there
    /// are none. A machine that still has the address must not hear that it is another's.
    pub fn announce_to(
        &mut self,
        now: Instant,
        announcement: Announcement,
        receivers: Vec<[u8; 6]>,
    ) {
        self.cancel(&announcement.port, &announcement.address);
        let Some(first) = self.settings.rounds.first() else {
            return;
        };
        let port = &announcement.port;
        let key = (port.ifindex, port.outer, port.inner, announcement.address);
        let pending = Pending {
            announcement,
            receivers,
            announced_at: now,
            round: 0,
            next_round_at: now + *first,
            sequence: self.sequence,
        };
        self.sequence += 1;
        self.due
            .insert((pending.next_round_at, pending.sequence, key));
        self.periodic += u32::from(announcement.is_periodic);
        self.pending.insert(key, pending);
    }

    /// Cancels the remaining rounds of an address on a port.
    pub fn cancel(&mut self, port: &Port, address: &Address) {
        self.remove((port.ifindex, port.outer, port.inner, *address));
    }

    /// Cancels all announcements on a port.
    pub fn cancel_port(&mut self, port: &Port) {
        let of_port = |address| (port.ifindex, port.outer, port.inner, address);
        let keys: Vec<Key> = self
            .pending
            .range(of_port([0; 16])..=of_port([0xff; 16]))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove(key);
        }
        self.ready.retain(|((ifindex, outer, inner, _), ..)| {
            (*ifindex, *outer, *inner) != (port.ifindex, port.outer, port.inner)
        });
    }

    /// The next frame to send and the interface to send it on, or `None` until
    /// [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        if self.ready.is_empty() {
            let (at, sequence, key) = *self.due.first()?;
            if at > now || self.limiter.next_slot(now) > now {
                return None;
            }
            self.due.remove(&(at, sequence, key));
            self.start_round(now, key);
        }
        if self.limiter.next_slot(now) > now {
            return None;
        }
        let (_, ifindex, frame) = self.ready.pop_front()?;
        self.limiter.reserve(now);
        Some((ifindex, frame))
    }

    /// When [`poll`](Self::poll), having returned `None`, next has a frame.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let slot = self.limiter.earliest();
        if self.ready.is_empty() {
            let (due, ..) = self.due.first()?;
            Some(slot.map_or(*due, |slot| slot.max(*due)))
        } else {
            slot
        }
    }

    /// Number of addresses with rounds left, or periodic.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Builds the frames of a round and schedules the next round.
    fn start_round(&mut self, now: Instant, key: Key) {
        let settings = &self.settings;
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        let Announcement {
            address,
            mac,
            port,
            router,
            is_periodic,
        } = pending.announcement;
        let frames = match as_v4(&address) {
            Some(v4) => [false, true]
                .map(|reply| frame::arp_announcement(&port, v4, mac, reply))
                .to_vec(),
            None => {
                let frame = frame::unsolicited_advertisement(&port, &address, mac, router);
                vec![frame]
            }
        };
        for receiver in &pending.receivers {
            for frame in &frames {
                let mut frame = frame.clone();
                frame[..receiver.len()].copy_from_slice(receiver);
                self.ready.push_back((key, port.ifindex, frame));
            }
        }
        if pending.receivers.is_empty() {
            let frames = frames.into_iter().map(|frame| (key, port.ifindex, frame));
            self.ready.extend(frames);
        }
        pending.round += 1;
        let next = match settings.rounds.get(pending.round) {
            Some(after) => pending.announced_at + *after,
            None if is_periodic => {
                let rate = settings.repeats_per_second.max(1);
                let interval = (Duration::from_secs(1) / rate * self.periodic).max(settings.repeat);
                // The first repetition at a random time of the interval, so that addresses that
                // moved together are not repeated together.
                let first = pending.round == settings.rounds.len();
                now + self
                    .jitter
                    .around(interval, if first { 0 } else { 90 }, 100)
            }
            None => {
                self.pending.remove(&key);
                return;
            }
        };
        pending.next_round_at = next;
        self.due.insert((next, pending.sequence, key));
    }

    fn remove(&mut self, key: Key) {
        if let Some(old) = self.pending.remove(&key) {
            self.due.remove(&(old.next_round_at, old.sequence, key));
            self.periodic -= u32::from(old.announcement.is_periodic);
        }
        self.ready.retain(|(of, ..)| *of != key);
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::addr::v4_mapped;

    use super::*;
    use crate::frame::testing::TAGGED as PORT;

    fn announcement(last: u8, mac: u8) -> Announcement {
        Announcement {
            address: v4_mapped([10, 1, 0, last]),
            mac: [mac; 6],
            port: PORT,
            router: false,
            is_periodic: false,
        }
    }

    fn announcer() -> Announcer {
        Announcer::new(Settings::default(), 7)
    }

    /// Polls until no announcement is left; returns the frames with their times in milliseconds.
    fn run(announcer: &mut Announcer, start: Instant) -> Vec<(u128, Vec<u8>)> {
        let mut now = start;
        let mut out = Vec::new();
        loop {
            while let Some((ifindex, frame)) = announcer.poll(now) {
                assert_eq!(ifindex, PORT.ifindex);
                out.push((now.duration_since(start).as_millis(), frame));
            }
            let Some(next) = announcer.next_deadline() else {
                return out;
            };
            assert!(next > now, "poll did nothing at its deadline");
            now = next;
        }
    }

    #[test]
    fn each_round_sends_both_arp_forms_on_time() {
        let start = Instant::now();
        let mut announcer = announcer();
        announcer.announce(start, announcement(7, 6));
        let out = run(&mut announcer, start);
        let times: Vec<u128> = out.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 0, 100, 100, 500, 500, 1000, 1000, 2000, 2000]);
        assert_eq!(out[0].1[25], 1);
        assert_eq!(out[1].1[25], 2);
        assert_eq!(announcer.pending(), 0);
    }

    #[test]
    fn ipv6_advertisement_carries_the_router_flag() {
        let start = Instant::now();
        let mut announcer = announcer();
        announcer.announce(
            start,
            Announcement {
                address: [0xfd; 16],
                router: true,
                ..announcement(0, 6)
            },
        );
        let out = run(&mut announcer, start);
        assert_eq!(out.len(), 5);
        assert_eq!(out[0].1[18 + 40 + 4], 0xa0);
    }

    #[test]
    fn newer_announcement_replaces_the_older_one() {
        let start = Instant::now();
        let mut announcer = announcer();
        announcer.announce(start, announcement(7, 6));
        assert!(announcer.poll(start).is_some());
        let later = start + Duration::from_millis(50);
        announcer.announce(later, announcement(7, 8));
        let out = run(&mut announcer, later);
        assert_eq!(out.len(), 10);
        assert!(
            out.iter()
                .all(|(_, frame)| frame[frame.len() - 20..frame.len() - 14] == [8; 6])
        );
    }

    #[test]
    fn cancelling_an_address_keeps_the_other_announcements() {
        let start = Instant::now();
        let mut announcer = announcer();
        announcer.announce(start, announcement(7, 6));
        announcer.announce(start, announcement(8, 8));
        assert!(announcer.poll(start).is_some());
        announcer.cancel(&PORT, &v4_mapped([10, 1, 0, 7]));
        let out = run(&mut announcer, start);
        assert_eq!(out.len(), 10);
        assert!(
            out.iter()
                .all(|(_, frame)| frame[frame.len() - 20..frame.len() - 14] == [8; 6])
        );
        announcer.announce(start, announcement(7, 6));
        announcer.cancel_port(&PORT);
        assert_eq!(announcer.poll(start), None);
        assert_eq!(announcer.next_deadline(), None);
    }

    #[test]
    fn thousands_of_addresses_stay_within_the_rate_limit() {
        let start = Instant::now();
        let settings = Settings {
            rounds: vec![Duration::ZERO],
            ..Settings::default()
        };
        let mut announcer = Announcer::new(settings, 7);
        for n in 0..5000u16 {
            let [high, low] = n.to_be_bytes();
            announcer.announce(
                start,
                Announcement {
                    address: v4_mapped([10, 1, high, low]),
                    ..announcement(0, 6)
                },
            );
        }
        let out = run(&mut announcer, start);
        assert_eq!(out.len(), 10_000);
        let mut per_ms = BTreeMap::new();
        for (at, _) in &out {
            *per_ms.entry(*at).or_insert(0u32) += 1;
        }
        // A burst may straddle the first millisecond.
        assert!(per_ms.values().all(|n| *n <= 100), "{per_ms:?}");
        assert!(per_ms.values().skip(1).all(|n| *n <= 51), "{per_ms:?}");
        assert!(out.last().expect("frames").0 >= 190);
    }
    /// The times in seconds at which each address is announced until `end`, by last byte.
    fn times(announcer: &mut Announcer, start: Instant, end: Duration) -> BTreeMap<u8, Vec<u64>> {
        let mut times: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        let mut now = start;
        while now <= start + end {
            while let Some((_, frame)) = announcer.poll(now) {
                let at = now.duration_since(start).as_secs();
                let of_address = times.entry(frame[frame.len() - 1]).or_default();
                if of_address.last() != Some(&at) {
                    of_address.push(at);
                }
            }
            now = announcer.next_deadline().expect("periodic announcements");
        }
        times
    }

    #[test]
    fn periodic_announcement_is_sent_at_least_twice_a_minute_until_it_is_cancelled() {
        let start = Instant::now();
        let mut announcer = announcer();
        for last in 0..50 {
            let is_periodic = true;
            announcer.announce(
                start,
                Announcement {
                    is_periodic,
                    ..announcement(last, 6)
                },
            );
        }
        let minutes = times(&mut announcer, start, Duration::from_secs(300));
        let mut first = BTreeSet::new();
        for (last, times) in &minutes {
            let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(gaps.iter().all(|gap| *gap <= 31), "{last}: {times:?}");
            assert!(times.len() <= 3 + 300 / 27 + 1, "{last}: {times:?}");
            first.insert(times[3]);
        }
        assert!(first.len() > 15, "repetitions are spread: {first:?}");
        for last in 0..50 {
            announcer.cancel(&PORT, &v4_mapped([10, 1, 0, last]));
        }
        assert_eq!((announcer.pending(), announcer.next_deadline()), (0, None));
        assert_eq!(announcer.periodic, 0);
    }

    #[test]
    fn many_periodic_announcements_keep_to_the_rate_of_repetitions() {
        let start = Instant::now();
        let mut announcer = announcer();
        for n in 0..20_000u16 {
            let [high, low] = n.to_be_bytes();
            announcer.announce(
                start,
                Announcement {
                    address: v4_mapped([10, 1, high, low]),
                    is_periodic: true,
                    ..announcement(0, 6)
                },
            );
        }
        let mut frames = 0;
        let mut now = start;
        while now <= start + Duration::from_secs(120) {
            while announcer.poll(now).is_some() {
                frames += u32::from(now >= start + Duration::from_secs(60));
            }
            now = announcer.next_deadline().expect("periodic announcements");
        }
        // 200 addresses a second, two frames each, for a minute; a fifth of tolerance.
        assert!((19_200..=28_800).contains(&frames), "{frames}");
    }
}
