//! The fragment buffer: fragments that arrived before the first fragment of their datagram.
//!
//! For: translation of fragments out of order (RFC 4787 REQ-14). Only the first fragment has ports,
//! so the XDP programs can translate the others only after they have seen the first one and noted
//! its translation in the map `FRAGMENTS`. Earlier fragments wait here, and go through the programs
//! again once that entry exists. Never: input, output, a map or a clock; the caller looks the entry
//! up and reinjects the frames. Number and time are bounded, so a flood of fragments only loses its
//! own.
//!
//! ```text
//!   SLOW_PACKETS ─▶ push ─▶ wait 1, 2, 4 … 64 ms ─▶ entry in FRAGMENTS? ─ yes ─▶ reinject
//!                                  ▲                        │ no
//!                                  └────────────────────────┴─ after 2 s ─▶ drop
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use appliance_common::{
    nat::{FlowKey, Words},
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6},
};
use packet_rules::{addr::v4_mapped, ipv6};

use super::pacing::RateLimiter;

/// Maximum number of buffered fragments in total.
const MAX_FRAGMENTS: usize = 4096;
/// Maximum number of buffered fragments of one owner, so that one tenant's cannot take all places.
const MAX_PER_OWNER: usize = 512;
/// Maximum number of buffered fragments of one datagram: 64 KiB in fragments of 1 KiB.
const MAX_PER_DATAGRAM: usize = 64;
/// Fragments that are released in a second, and at once, of all owners together: each costs the
/// control thread a run of a program, about 10 µs.
const RELEASES: u32 = 4000;
const RELEASE_BURST: u32 = 256;
/// Maximum time in the buffer. A first fragment later than this is taken as lost.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Time before the first lookup; it doubles with each lookup up to [`MAX_INTERVAL`].
const FIRST_INTERVAL: Duration = Duration::from_millis(1);
const MAX_INTERVAL: Duration = Duration::from_millis(64);

#[derive(Debug)]
struct Fragment {
    ifindex: u32,
    frame: Vec<u8>,
    expires: Instant,
}

/// The buffered fragments of one datagram, the oldest first; never empty.
#[derive(Debug)]
struct Datagram {
    owner: u32,
    fragments: VecDeque<Fragment>,
    next_lookup: Instant,
    interval: Duration,
}

/// Buffered fragments. See the [module](self).
#[derive(Debug)]
pub struct FragmentBuffer {
    limiter: RateLimiter,
    datagrams: BTreeMap<FlowKey, Datagram>,
    /// The next lookup of each datagram.
    lookups: BTreeSet<(Instant, FlowKey)>,
    /// Buffered fragments, by owner and in total.
    owned: BTreeMap<u32, usize>,
    total: usize,
    /// Hashes of released frames, each with the time until which it is remembered. A released frame
    /// that comes back is dropped, so that no frame circulates.
    released_hashes: BTreeMap<u64, Instant>,
    /// The same in the order of time.
    released_order: VecDeque<(Instant, u64)>,
    /// Fragments buffered.
    pub buffered: u64,
    /// Fragments released to the programs.
    pub released: u64,
    /// Fragments dropped: the buffer was full, or the first fragment did not come in time.
    pub dropped: u64,
}

/// The key in the map `FRAGMENTS` of the fragment `packet`, which starts with its IP header and
/// came from `zone`. `None` if its headers are incomplete, or if it is IPv6 without a fragment
/// header. IPv4 packets must be fragments.
#[must_use]
pub fn fragment_key(packet: &[u8], zone: u16) -> Option<FlowKey> {
    let word = |at: usize| -> Option<u32> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (source, destination, protocol, identification): (Words, Words, u8, u32) =
        match packet.first()? >> 4 {
            4 => {
                let id: [u8; 2] = packet.get(4..6)?.try_into().ok()?;
                (
                    v4_mapped(word(12)?),
                    v4_mapped(word(16)?),
                    *packet.get(9)?,
                    u16::from_ne_bytes(id).into(),
                )
            }
            6 => {
                let (protocol, at) = fragment_header(packet)?;
                (
                    [word(8)?, word(12)?, word(16)?, word(20)?],
                    [word(24)?, word(28)?, word(32)?, word(36)?],
                    protocol,
                    word(at + 4)?,
                )
            }
            _ => return None,
        };
    let of_family = match packet.first()? >> 4 {
        4 => protocol != IPPROTO_ICMPV6,
        _ => protocol != IPPROTO_ICMP,
    };
    of_family.then_some(FlowKey {
        source,
        destination,
        source_port: identification as u16,
        destination_port: (identification >> 16) as u16,
        zone,
        protocol,
        reserved: 0,
    })
}

/// The protocol behind the IPv6 fragment header (RFC 8200 section 4.5), and the offset of that
/// header.
fn fragment_header(packet: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*packet.get(6)?, 40);
    for _ in 0..=ipv6::MAX_EXTENSION_HEADERS {
        match next {
            ipv6::FRAGMENT => return Some((*packet.get(at)?, at)),
            extension if ipv6::is_extension(extension) => {
                next = *packet.get(at)?;
                at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}

fn hash(ifindex: u32, frame: &[u8]) -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};

    let mut hasher = ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher();
    hasher.write_u32(ifindex);
    hasher.write(frame);
    hasher.finish()
}

impl Default for FragmentBuffer {
    fn default() -> Self {
        Self {
            limiter: RateLimiter::new(RELEASES, RELEASE_BURST),
            datagrams: BTreeMap::new(),
            lookups: BTreeSet::new(),
            owned: BTreeMap::new(),
            total: 0,
            released_hashes: BTreeMap::new(),
            released_order: VecDeque::new(),
            buffered: 0,
            released: 0,
            dropped: 0,
        }
    }
}

impl FragmentBuffer {
    /// Buffers a frame received on `ifindex`, or drops it if there is no room. `owner` is the zone
    /// of the tenant that the frame counts for; zero for none.
    pub fn push(&mut self, now: Instant, key: FlowKey, owner: u32, ifindex: u32, frame: &[u8]) {
        self.forget_released(now);
        let has_returned = self.released_hashes.contains_key(&hash(ifindex, frame));
        let same_datagram = self.datagrams.get(&key).map_or(0, |d| d.fragments.len());
        let owned = self.owned.get(&owner).copied().unwrap_or(0);
        if has_returned
            || self.total >= MAX_FRAGMENTS
            || owned >= MAX_PER_OWNER
            || same_datagram >= MAX_PER_DATAGRAM
        {
            self.dropped += 1;
            return;
        }
        self.buffered += 1;
        self.total += 1;
        let lookups = &mut self.lookups;
        let datagram = self.datagrams.entry(key).or_insert_with(|| {
            let next_lookup = now + FIRST_INTERVAL;
            lookups.insert((next_lookup, key));
            Datagram {
                owner,
                fragments: VecDeque::new(),
                next_lookup,
                interval: FIRST_INTERVAL,
            }
        });
        *self.owned.entry(datagram.owner).or_default() += 1;
        datagram.fragments.push_back(Fragment {
            ifindex,
            frame: frame.to_vec(),
            expires: now + TIMEOUT,
        });
    }

    /// When [`FragmentBuffer::poll`] must be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let (at, _) = self.lookups.first()?;
        let slot = self.limiter.earliest();
        Some(slot.map_or(*at, |slot| slot.max(*at)))
    }

    /// Returns the frames, with their interfaces, whose first fragment `is_known` by now. Drops
    /// frames whose time is over. At a bounded rate; a datagram's fragments are released together.
    pub fn poll(
        &mut self,
        now: Instant,
        mut is_known: impl FnMut(&FlowKey) -> bool,
    ) -> Vec<(u32, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some((at, key)) = self.lookups.first().copied().filter(|(at, _)| *at <= now) {
            if self.limiter.next_slot(now) > now {
                break;
            }
            self.lookups.remove(&(at, key));
            let Some(mut datagram) = self.datagrams.remove(&key) else {
                continue;
            };
            let before = datagram.fragments.len();
            if is_known(&key) {
                for fragment in datagram.fragments.drain(..) {
                    self.released += 1;
                    self.limiter.reserve(now);
                    let hash = hash(fragment.ifindex, &fragment.frame);
                    self.released_hashes.insert(hash, now + TIMEOUT);
                    self.released_order.push_back((now + TIMEOUT, hash));
                    out.push((fragment.ifindex, fragment.frame));
                }
            } else {
                datagram.fragments.retain(|fragment| fragment.expires > now);
                self.dropped += (before - datagram.fragments.len()) as u64;
            }
            self.free(datagram.owner, before - datagram.fragments.len());
            if let Some(oldest) = datagram.fragments.front() {
                datagram.interval = (datagram.interval * 2).min(MAX_INTERVAL);
                datagram.next_lookup = (now + datagram.interval).min(oldest.expires);
                self.lookups.insert((datagram.next_lookup, key));
                self.datagrams.insert(key, datagram);
            }
        }
        out
    }

    /// Subtracts fragments that left the buffer.
    fn free(&mut self, owner: u32, fragments: usize) {
        self.total -= fragments;
        if let Some(owned) = self.owned.get_mut(&owner) {
            *owned -= fragments;
            if *owned == 0 {
                self.owned.remove(&owner);
            }
        }
    }

    /// Forgets released frames whose time is over.
    fn forget_released(&mut self, now: Instant) {
        while let Some((at, hash)) = self.released_order.front().copied() {
            if at > now {
                break;
            }
            self.released_order.pop_front();
            // Not if the same frame was released again since.
            if self.released_hashes.get(&hash) == Some(&at) {
                self.released_hashes.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 fragment with this identification.
    fn v4(id: u16) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[9] = 17;
        packet[12..16].copy_from_slice(&[10, 1, 0, 10]);
        packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
        packet
    }

    fn key_of(id: u16) -> FlowKey {
        fragment_key(&v4(id), 1).expect("a fragment")
    }

    #[test]
    fn fragment_key_matches_the_key_of_the_programs() {
        let key = key_of(0x0102);
        assert_eq!(key.source_port, 0x0102u16.to_be());
        assert_eq!((key.destination_port, key.protocol, key.zone), (0, 17, 1));
        let last = u32::from_ne_bytes([10, 1, 0, 10]);
        assert_eq!(
            key.source,
            [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), last]
        );
        // IPv6, behind destination options.
        let mut packet = vec![0; 40 + 8 + 8];
        packet[0] = 0x60;
        packet[6] = 60;
        packet[40] = 44;
        packet[48] = 17;
        packet[52..56].copy_from_slice(&[1, 2, 3, 4]);
        let key = fragment_key(&packet, 0).expect("a fragment");
        let id = u32::from(key.destination_port) << 16 | u32::from(key.source_port);
        assert_eq!(id.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(key.protocol, 17);
        packet[40] = 17;
        assert_eq!(fragment_key(&packet, 0), None, "not a fragment");
    }

    #[test]
    fn a_fragment_is_released_once_its_first_fragment_is_known() {
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        fragments.push(start, key_of(1), 1, 7, b"one");
        fragments.push(start, key_of(2), 1, 7, b"two");
        assert!(fragments.poll(start, |_| true).is_empty(), "not at once");
        let at = fragments.next_deadline().expect("a deadline");
        let out = fragments.poll(at, |key| *key == key_of(2));
        assert_eq!(out, [(7, b"two".to_vec())]);
        assert_eq!((fragments.buffered, fragments.released), (2, 1));
    }

    #[test]
    fn fragments_of_many_tenants_are_released_at_a_bounded_rate() {
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        // Ten tenants, 100 datagrams each in ten milliseconds, whose first fragments are known.
        let (mut released, mut now) = (0, start);
        for step in 0..100u16 {
            for owner in 0..10 {
                let key = FlowKey {
                    zone: owner,
                    ..key_of(step)
                };
                let frame = [owner.to_be_bytes(), step.to_be_bytes()].concat();
                fragments.push(now, key, owner.into(), 7, &frame);
            }
            released += fragments.poll(now, |_| true).len();
            now += Duration::from_millis(10);
        }
        let most = RELEASE_BURST as usize + RELEASES as usize;
        assert!((900..=1000).contains(&released), "{released}");
        // Ten times as many.
        let mut fragments = FragmentBuffer::default();
        let mut released = 0;
        for step in 0..1000u16 {
            for owner in 0..10 {
                let key = FlowKey {
                    zone: owner,
                    ..key_of(step)
                };
                let frame = [owner.to_be_bytes(), step.to_be_bytes()].concat();
                fragments.push(now, key, owner.into(), 7, &frame);
            }
            released += fragments.poll(now, |_| true).len();
            now += Duration::from_millis(1);
            assert!(
                fragments
                    .next_deadline()
                    .is_some_and(|at| at + TIMEOUT > now)
            );
        }
        assert!(
            (4000..=most).contains(&released),
            "{released}, at most {most}"
        );
    }

    #[test]
    fn a_released_frame_that_comes_back_is_dropped() {
        // The programs may refuse a released frame again: it must not circulate for ever.
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        fragments.push(start, key_of(1), 1, 7, b"one");
        let at = fragments.next_deadline().expect("a deadline");
        assert_eq!(fragments.poll(at, |_| true).len(), 1);
        fragments.push(at, key_of(1), 1, 7, b"one");
        assert_eq!((fragments.next_deadline(), fragments.dropped), (None, 1));
        // Another fragment of the datagram is buffered, and so is the same frame much later.
        fragments.push(at, key_of(1), 1, 7, b"two");
        fragments.push(at + TIMEOUT, key_of(1), 1, 7, b"one");
        assert_eq!(fragments.buffered, 3);
    }

    #[test]
    fn a_fragment_is_dropped_at_its_timeout() {
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        fragments.push(start, key_of(1), 1, 7, b"one");
        let mut lookups = 0;
        while let Some(at) = fragments.next_deadline() {
            assert!(at <= start + TIMEOUT);
            assert!(fragments.poll(at, |_| false).is_empty());
            lookups += 1;
        }
        assert!(lookups > 20 && lookups < 100, "{lookups} lookups");
        assert_eq!(fragments.dropped, 1);
    }

    #[test]
    fn the_buffer_is_bounded_for_each_datagram_owner_and_in_total() {
        let now = Instant::now();
        let mut fragments = FragmentBuffer::default();
        for _ in 0..100 {
            fragments.push(now, key_of(1), 1, 7, b"of one datagram");
        }
        assert_eq!(fragments.buffered, MAX_PER_DATAGRAM as u64);
        for id in 0..5000 {
            fragments.push(now, key_of(id + 2), 1, 7, b"of many");
        }
        assert_eq!(fragments.buffered, MAX_PER_OWNER as u64);
        // Another owner has room of its own.
        fragments.push(now, key_of(5002), 2, 7, b"of another");
        assert_eq!(fragments.buffered, MAX_PER_OWNER as u64 + 1);
        for id in 0..20_000u32 {
            fragments.push(now, key_of(6000 + id as u16), 3 + id / 100, 7, b"of all");
        }
        assert_eq!(fragments.buffered, MAX_FRAGMENTS as u64);
        assert_eq!(fragments.dropped, 25_101 - MAX_FRAGMENTS as u64);
    }

    #[test]
    fn a_lookup_is_for_a_datagram_and_the_time_for_a_fragment() {
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        for _ in 0..50 {
            fragments.push(start, key_of(1), 1, 7, b"early");
        }
        let mut lookups = 0;
        fragments.poll(start + FIRST_INTERVAL, |_| {
            lookups += 1;
            false
        });
        assert_eq!(lookups, 1);
        fragments.push(start + TIMEOUT / 2, key_of(1), 1, 7, b"late");
        assert!(fragments.poll(start + TIMEOUT, |_| false).is_empty());
        assert_eq!(fragments.dropped, 50);
        let at = fragments.next_deadline().expect("a deadline");
        assert_eq!(fragments.poll(at, |_| true), [(7, b"late".to_vec())]);
        assert_eq!((fragments.next_deadline(), fragments.total), (None, 0));
        assert!(fragments.owned.is_empty());
    }

    proptest! {
        #[test]
        fn fragment_key_accepts_any_bytes(packet in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = fragment_key(&packet, 1);
        }
    }
}
