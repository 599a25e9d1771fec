//! Tells hosts that an address has moved: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! For: bursts of announcements at switch-over and failback, so that neighbour caches move at once
//! instead of when they expire. Never: input, output or a clock of its own; frames come out of
//! [`Announcer::poll`].
//!
//! ```text
//!   announce ─▶ round 1 now ─▶ 100 ms ─▶ 500 ms ─▶ 1 s ─▶ 2 s ─▶ done
//!                 each round: IPv4 two frames (request and reply form), IPv6 one
//! ```
//!
//! Announcements may be lost (RFC 5227 section 2.3, RFC 4861 section 7.2.6), hence several rounds.
//! Thousands of addresses move at once, hence a limit per millisecond that keeps queues on the way
//! from overflowing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, as_v4};

use crate::frames;
use crate::neighbour::{Pace, Port};

/// How announcements are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When each round goes out, counted from the announcement; ascending.
    pub rounds: Vec<Duration>,
    /// Most frames per millisecond; at least 1.
    pub frames_per_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rounds: [0, 100, 500, 1000, 2000]
                .map(Duration::from_millis)
                .to_vec(),
            frames_per_ms: 50,
        }
    }
}

/// One address to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The address.
    pub address: Address,
    /// The MAC address it is at from now on: the port's own at switch-over, the machine's at failback.
    pub mac: [u8; 6],
    /// Where to announce it.
    pub port: Port,
    /// Whether it is a router's: sets the Router flag of neighbour advertisements (IPv6 only).
    pub router: bool,
}

/// Where an address is announced: interface, outer and inner VLAN, address.
type Key = (u32, u16, u16, Address);

/// Sends announcements. See the [module](self).
#[derive(Debug)]
pub struct Announcer {
    settings: Settings,
    pace: Pace,
    pending: BTreeMap<Key, Pending>,
    /// The next round of each, in the order of their times, then of their announcement.
    due: BTreeSet<(Instant, u64, Key)>,
    sequence: u64,
    /// Frames of the round being sent.
    ready: VecDeque<(Key, u32, Vec<u8>)>,
}

#[derive(Debug)]
struct Pending {
    announcement: Announcement,
    began: Instant,
    round: usize,
    at: Instant,
    sequence: u64,
}

impl Announcer {
    /// An announcer with nothing to announce.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let per_ms = settings.frames_per_ms.max(1);
        Self {
            pace: Pace::new(per_ms.saturating_mul(1000), per_ms),
            settings,
            pending: BTreeMap::new(),
            due: BTreeSet::new(),
            sequence: 0,
            ready: VecDeque::new(),
        }
    }

    /// Announces an address, in all rounds. A newer announcement for the same port and address replaces
    /// the older, whose remaining frames are not sent.
    pub fn announce(&mut self, now: Instant, announcement: Announcement) {
        self.cancel(&announcement.port, &announcement.address);
        let Some(first) = self.settings.rounds.first() else {
            return;
        };
        let port = &announcement.port;
        let key = (port.ifindex, port.outer, port.inner, announcement.address);
        let pending = Pending {
            announcement,
            began: now,
            round: 0,
            at: now + *first,
            sequence: self.sequence,
        };
        self.sequence += 1;
        self.due.insert((pending.at, pending.sequence, key));
        self.pending.insert(key, pending);
    }

    /// Stops announcing an address on a port.
    pub fn cancel(&mut self, port: &Port, address: &Address) {
        self.forget((port.ifindex, port.outer, port.inner, *address));
    }

    /// Stops announcing everything on a port.
    pub fn cancel_port(&mut self, port: &Port) {
        let of_port = |address| (port.ifindex, port.outer, port.inner, address);
        let keys: Vec<Key> = self
            .pending
            .range(of_port([0; 16])..=of_port([0xff; 16]))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.forget(key);
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
            if at > now || self.pace.turn(now) > now {
                return None;
            }
            self.due.remove(&(at, sequence, key));
            self.start_round(key);
        }
        if self.pace.turn(now) > now {
            return None;
        }
        let (_, ifindex, frame) = self.ready.pop_front()?;
        self.pace.reserve(now);
        Some((ifindex, frame))
    }

    /// When [`poll`](Self::poll), once it has returned `None`, next has a frame.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let turn = self.pace.earliest();
        if self.ready.is_empty() {
            let (due, ..) = self.due.first()?;
            Some(turn.map_or(*due, |turn| turn.max(*due)))
        } else {
            turn
        }
    }

    /// Addresses with rounds still to go.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes the frames of a round and plans the next.
    fn start_round(&mut self, key: Key) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        let Announcement {
            address,
            mac,
            port,
            router,
        } = pending.announcement;
        match as_v4(&address) {
            Some(v4) => {
                for reply in [false, true] {
                    let frame = frames::arp_announcement(&port, v4, mac, reply);
                    self.ready.push_back((key, port.ifindex, frame));
                }
            }
            None => {
                let frame = frames::unsolicited_advertisement(&port, &address, mac, router);
                self.ready.push_back((key, port.ifindex, frame));
            }
        }
        pending.round += 1;
        match self.settings.rounds.get(pending.round) {
            Some(after) => {
                pending.at = pending.began + *after;
                self.due.insert((pending.at, pending.sequence, key));
            }
            None => {
                self.pending.remove(&key);
            }
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(old) = self.pending.remove(&key) {
            self.due.remove(&(old.at, old.sequence, key));
        }
        self.ready.retain(|(of, ..)| *of != key);
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::addr::mapped;

    use super::*;

    const PORT: Port = Port {
        ifindex: 3,
        outer: 101,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: [2, 0, 0, 0, 0, 9],
    };

    fn announcement(last: u8, mac: u8) -> Announcement {
        Announcement {
            address: mapped([10, 1, 0, last]),
            mac: [mac; 6],
            port: PORT,
            router: false,
        }
    }

    /// Runs until nothing is due any more; (milliseconds, frame).
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
            assert!(next > now, "a deadline that does nothing");
            now = next;
        }
    }

    #[test]
    fn every_round_goes_out_at_its_time_in_both_forms() {
        let start = Instant::now();
        let mut announcer = Announcer::new(Settings::default());
        announcer.announce(start, announcement(7, 6));
        let out = run(&mut announcer, start);
        let times: Vec<u128> = out.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 0, 100, 100, 500, 500, 1000, 1000, 2000, 2000]);
        assert_eq!(out[0].1[25], 1);
        assert_eq!(out[1].1[25], 2);
        assert_eq!(announcer.pending(), 0);
    }

    #[test]
    fn ipv6_is_advertised_with_the_router_flag_it_was_given() {
        let start = Instant::now();
        let mut announcer = Announcer::new(Settings::default());
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
    fn newer_announcement_replaces_the_older() {
        let start = Instant::now();
        let mut announcer = Announcer::new(Settings::default());
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
    fn cancelled_addresses_fall_silent_and_others_go_on() {
        let start = Instant::now();
        let mut announcer = Announcer::new(Settings::default());
        announcer.announce(start, announcement(7, 6));
        announcer.announce(start, announcement(8, 8));
        assert!(announcer.poll(start).is_some());
        announcer.cancel(&PORT, &mapped([10, 1, 0, 7]));
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
    fn thousands_of_addresses_keep_the_pace() {
        let start = Instant::now();
        let mut announcer = Announcer::new(Settings {
            rounds: vec![Duration::ZERO],
            frames_per_ms: 50,
        });
        for n in 0..5000u16 {
            let [high, low] = n.to_be_bytes();
            announcer.announce(
                start,
                Announcement {
                    address: mapped([10, 1, high, low]),
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
}
