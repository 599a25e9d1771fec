//! Router advertisements (RFC 4861 section 6.2) on the networks whose router we are in full failover.
//!
//! For: telling hosts that the router of their network is here, now and at intervals, and that it is gone at the end.
//! Never: input, output or a clock of its own; frames come out of [`Advertiser::poll`]. No addresses are made from
//! them: hosts keep what they have (SPEC section 3).
//!
//! ```text
//!   set ─▶ now ─▶ 16 s ─▶ 16 s ─▶ every 200 s ─ no longer there ─▶ one more, of lifetime 0
//!                  solicited ─▶ soon, at most every 3 s
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use appliance_common::addr::Address;

use crate::{frames, neighbour::Port};

/// How long hosts keep the router and its prefixes after the last advertisement, seconds (RFC 4861 section 6.2.1,
/// AdvDefaultLifetime).
const LIFETIME: u16 = 1800;
/// Advertisements at the start (RFC 4861 section 10, MAX_INITIAL_RTR_ADVERTISEMENTS), and the time between them.
const INITIAL: (u32, Duration) = (3, Duration::from_secs(16));
/// Time between the others.
const INTERVAL: Duration = Duration::from_secs(200);
/// Shortest time between two (RFC 4861 section 10, MIN_DELAY_BETWEEN_RAS).
const SHORTEST: Duration = Duration::from_secs(3);

/// A network's router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    /// Where it is advertised.
    pub port: Port,
    /// Its link-local address.
    pub source: Address,
    /// Prefixes that are on the link, with their lengths.
    pub prefixes: Vec<(Address, u8)>,
}

#[derive(Debug)]
struct Sending {
    router: Router,
    /// Advertisements so far.
    sent: u32,
    last: Option<Instant>,
    next: Instant,
}

/// Advertises routers. See the [module](self).
#[derive(Debug, Default)]
pub struct Advertiser {
    /// By VNI.
    routers: BTreeMap<u32, Sending>,
    ready: VecDeque<(u32, Vec<u8>)>,
}

impl Advertiser {
    /// Advertises these from now on, by VNI; those that are no longer among them are taken back.
    pub fn set(&mut self, now: Instant, routers: BTreeMap<u32, Router>) {
        let gone: Vec<u32> = self
            .routers
            .keys()
            .filter(|vni| !routers.contains_key(vni))
            .copied()
            .collect();
        for Sending { router, .. } in gone.iter().filter_map(|vni| self.routers.remove(vni)) {
            self.ready
                .push_back((router.port.ifindex, frame(&router, 0)));
        }
        for (vni, router) in routers {
            let there = self.routers.get(&vni);
            if there.is_none_or(|there| there.router != router) {
                let sending = Sending {
                    router,
                    sent: 0,
                    last: None,
                    next: now,
                };
                self.routers.insert(vni, sending);
            }
        }
    }

    /// A host asks for the router of a network: it is told after `delay`, as all are, and not more often than is
    /// right.
    pub fn solicited(&mut self, now: Instant, vni: u32, delay: Duration) {
        if let Some(sending) = self.routers.get_mut(&vni) {
            let soonest = sending.last.map_or(now, |last| last + SHORTEST);
            sending.next = sending.next.min(soonest.max(now + delay));
        }
    }

    /// The next frame to send and the interface to send it on, or `None` until
    /// [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        let sending = self.routers.values_mut().find(|s| s.next <= now)?;
        sending.sent = sending.sent.saturating_add(1);
        sending.last = Some(now);
        sending.next = now
            + if sending.sent < INITIAL.0 {
                INITIAL.1
            } else {
                INTERVAL
            };
        let router = &sending.router;
        Some((router.port.ifindex, frame(router, LIFETIME)))
    }

    /// When [`poll`](Self::poll), once it has returned `None`, next has a frame.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.routers.values().map(|s| s.next).min()
    }
}

fn frame(router: &Router, lifetime: u16) -> Vec<u8> {
    // The last one takes back the router and leaves the prefixes to whoever else advertises them.
    let prefixes = if lifetime == 0 {
        &[]
    } else {
        &router.prefixes[..]
    };
    frames::router_advertisement(&router.port, &router.source, lifetime, prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port {
        ifindex: 3,
        outer: 0,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: [2, 0, 0, 0, 0, 9],
    };

    fn routers(last: u8) -> BTreeMap<u32, Router> {
        let mut source = frames::link_local(&PORT.mac);
        source[15] = last;
        let router = Router {
            port: PORT,
            source,
            prefixes: vec![([0x20; 16], 64)],
        };
        BTreeMap::from([(1001, router)])
    }

    /// Seconds at which frames come, up to `end`, and their lifetimes.
    fn run(advertiser: &mut Advertiser, start: Instant, end: u64) -> Vec<(u64, u16)> {
        let mut out = Vec::new();
        let mut now = start;
        loop {
            while let Some((ifindex, frame)) = advertiser.poll(now) {
                assert_eq!(ifindex, PORT.ifindex);
                let lifetime = u16::from_be_bytes([frame[14 + 40 + 6], frame[14 + 40 + 7]]);
                out.push((now.duration_since(start).as_secs(), lifetime));
            }
            match advertiser.next_deadline() {
                Some(next) if next.duration_since(start).as_secs() <= end => now = next,
                _ => return out,
            }
        }
    }

    #[test]
    fn three_come_soon_then_one_at_each_interval_and_one_at_the_end() {
        let start = Instant::now();
        let mut advertiser = Advertiser::default();
        advertiser.set(start, routers(1));
        let out = run(&mut advertiser, start, 500);
        assert_eq!(
            out,
            [(0, 1800), (16, 1800), (32, 1800), (232, 1800), (432, 1800)]
        );
        advertiser.set(start, BTreeMap::new());
        assert_eq!(run(&mut advertiser, start, 5000), [(0, 0)]);
        assert_eq!(advertiser.next_deadline(), None);
    }

    #[test]
    fn who_asks_is_answered_soon_and_a_flood_of_questions_every_three_seconds() {
        let start = Instant::now();
        let mut advertiser = Advertiser::default();
        advertiser.set(start, routers(1));
        run(&mut advertiser, start, 240);
        // The last was at 232 s.
        let mut times = Vec::new();
        for ms in (234_000..241_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            advertiser.solicited(now, 1001, Duration::from_millis(200));
            advertiser.solicited(now, 9999, Duration::ZERO);
            if advertiser.poll(now).is_some() {
                times.push(ms);
            }
        }
        assert_eq!(times, [235_000, 238_000]);
    }

    #[test]
    fn only_a_change_begins_anew() {
        let start = Instant::now();
        let mut advertiser = Advertiser::default();
        advertiser.set(start, routers(1));
        run(&mut advertiser, start, 100);
        advertiser.set(start, routers(1));
        assert_eq!(run(&mut advertiser, start, 100), []);
        advertiser.set(start, routers(2));
        assert_eq!(run(&mut advertiser, start, 20), [(0, 1800), (16, 1800)]);
    }
}
