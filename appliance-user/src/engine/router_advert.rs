//! Router advertisements (RFC 4861 section 6.2) for the networks whose router we are in full
//! failover.
//!
//! For: advertising the router of a network at the start of a failover, at intervals and when a
//! host solicits it, and withdrawing it at the end. Never: input, output or a clock; frames come
//! out of [`RouterAdvertiser::poll`]. Never address autoconfiguration: hosts keep their
//! addresses.
//!
//! ```text
//!   set_routers ─▶ now ─▶ 16 s ─▶ 16 s ─▶ every 200 s ─ removed ─▶ one last, with lifetime 0
//!                          solicited ─▶ after a delay, at most every 3 s
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use appliance_common::addr::Address;

use crate::frame::{self, Port};

/// Time for which hosts keep the router and its prefixes after an advertisement, seconds (RFC 4861
/// section 6.2.1, `AdvDefaultLifetime`).
const LIFETIME: u16 = 1800;
/// Number of initial advertisements (RFC 4861 section 10, `MAX_INITIAL_RTR_ADVERTISEMENTS`).
const INITIAL_COUNT: u32 = 3;
/// Time between initial advertisements (RFC 4861 section 10, `MAX_INITIAL_RTR_ADVERT_INTERVAL`).
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Time between later advertisements.
const INTERVAL: Duration = Duration::from_secs(200);
/// Minimum time between two advertisements (RFC 4861 section 10, `MIN_DELAY_BETWEEN_RAS`).
const MIN_INTERVAL: Duration = Duration::from_secs(3);

/// The router of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvertisedRouter {
    /// The port on which it is advertised.
    pub port: Port,
    /// Its link-local address, the source of the advertisements.
    pub source: Address,
    /// On-link prefixes, with their lengths in bits.
    pub prefixes: Vec<(Address, u8)>,
}

#[derive(Debug)]
struct Schedule {
    router: AdvertisedRouter,
    /// Advertisements sent.
    sent: u32,
    last: Option<Instant>,
    next: Instant,
}

/// Sends router advertisements. See the [module](self).
#[derive(Debug, Default)]
pub struct RouterAdvertiser {
    /// By VNI.
    routers: BTreeMap<u32, Schedule>,
    ready: VecDeque<(u32, Vec<u8>)>,
}

impl RouterAdvertiser {
    /// Sets the routers to advertise, by VNI. A router that is no longer among them is withdrawn by
    /// an advertisement with lifetime 0; a new or changed one starts with the initial
    /// advertisements.
    pub fn set_routers(&mut self, now: Instant, routers: BTreeMap<u32, AdvertisedRouter>) {
        let removed: Vec<u32> = self
            .routers
            .keys()
            .filter(|vni| !routers.contains_key(vni))
            .copied()
            .collect();
        for Schedule { router, .. } in removed.iter().filter_map(|vni| self.routers.remove(vni)) {
            self.ready
                .push_back((router.port.ifindex, frame(&router, 0)));
        }
        for (vni, router) in routers {
            let known = self.routers.get(&vni);
            if known.is_none_or(|known| known.router != router) {
                let schedule = Schedule {
                    router,
                    sent: 0,
                    last: None,
                    next: now,
                };
                self.routers.insert(vni, schedule);
            }
        }
    }

    /// Handles a router solicitation on a network (RFC 4861 section 6.2.6): all hosts of the
    /// network get an advertisement after `delay`, but not before the minimum interval has passed.
    pub fn solicited(&mut self, now: Instant, vni: u32, delay: Duration) {
        if let Some(schedule) = self.routers.get_mut(&vni) {
            let earliest = schedule.last.map_or(now, |last| last + MIN_INTERVAL);
            schedule.next = schedule.next.min(earliest.max(now + delay));
        }
    }

    /// The next frame to send and the interface to send it on, or `None` until
    /// [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        let schedule = self.routers.values_mut().find(|s| s.next <= now)?;
        schedule.sent = schedule.sent.saturating_add(1);
        schedule.last = Some(now);
        schedule.next = now
            + if schedule.sent < INITIAL_COUNT {
                INITIAL_INTERVAL
            } else {
                INTERVAL
            };
        let router = &schedule.router;
        Some((router.port.ifindex, frame(router, LIFETIME)))
    }

    /// When [`poll`](Self::poll), having returned `None`, next has a frame.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.routers.values().map(|s| s.next).min()
    }
}

fn frame(router: &AdvertisedRouter, lifetime: u16) -> Vec<u8> {
    // The withdrawal names no prefixes: another router may advertise the same ones.
    let prefixes = if lifetime == 0 {
        &[]
    } else {
        &router.prefixes[..]
    };
    frame::router_advertisement(&router.port, &router.source, lifetime, prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::testing::UNTAGGED as PORT;

    fn routers(last: u8) -> BTreeMap<u32, AdvertisedRouter> {
        let mut source = frame::link_local(&PORT.mac);
        source[15] = last;
        let router = AdvertisedRouter {
            port: PORT,
            source,
            prefixes: vec![([0x20; 16], 64)],
        };
        BTreeMap::from([(1001, router)])
    }

    /// Polls up to second `end`; returns the frames' times in seconds and their router lifetimes.
    fn run(advertiser: &mut RouterAdvertiser, start: Instant, end: u64) -> Vec<(u64, u16)> {
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
    fn initial_advertisements_then_periodic_ones_then_a_withdrawal() {
        let start = Instant::now();
        let mut advertiser = RouterAdvertiser::default();
        advertiser.set_routers(start, routers(1));
        let out = run(&mut advertiser, start, 500);
        assert_eq!(
            out,
            [(0, 1800), (16, 1800), (32, 1800), (232, 1800), (432, 1800)]
        );
        advertiser.set_routers(start, BTreeMap::new());
        assert_eq!(run(&mut advertiser, start, 5000), [(0, 0)]);
        assert_eq!(advertiser.next_deadline(), None);
    }

    #[test]
    fn solicitations_are_answered_at_most_every_three_seconds() {
        let start = Instant::now();
        let mut advertiser = RouterAdvertiser::default();
        advertiser.set_routers(start, routers(1));
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
    fn only_a_changed_router_restarts_the_initial_advertisements() {
        let start = Instant::now();
        let mut advertiser = RouterAdvertiser::default();
        advertiser.set_routers(start, routers(1));
        run(&mut advertiser, start, 100);
        advertiser.set_routers(start, routers(1));
        assert_eq!(run(&mut advertiser, start, 100), []);
        advertiser.set_routers(start, routers(2));
        assert_eq!(run(&mut advertiser, start, 20), [(0, 1800), (16, 1800)]);
    }
}
