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
    collections::VecDeque,
    time::{Duration, Instant},
};

use appliance_common::{
    nat::{FlowKey, Words},
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6},
};
use packet_rules::{addr::v4_mapped, ipv6};

/// Maximum number of buffered fragments in total.
const MAX_FRAGMENTS: usize = 1024;
/// Maximum number of buffered fragments of one datagram: 64 KiB in fragments of 1 KiB.
const MAX_PER_DATAGRAM: usize = 64;
/// Maximum time in the buffer. A first fragment later than this is taken as lost.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Time before the first lookup; it doubles with each lookup up to [`MAX_INTERVAL`].
const FIRST_INTERVAL: Duration = Duration::from_millis(1);
const MAX_INTERVAL: Duration = Duration::from_millis(64);

#[derive(Debug)]
struct Fragment {
    key: FlowKey,
    ifindex: u32,
    frame: Vec<u8>,
    expires: Instant,
    next_lookup: Instant,
    interval: Duration,
}

/// Buffered fragments. See the [module](self).
#[derive(Debug, Default)]
pub struct FragmentBuffer {
    fragments: VecDeque<Fragment>,
    /// Hashes of released frames, each with the time until which it is remembered. A released frame
    /// that comes back is dropped, so that no frame circulates.
    released_hashes: VecDeque<(u64, Instant)>,
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

impl FragmentBuffer {
    /// Buffers a frame received on `ifindex`, or drops it if there is no room.
    pub fn push(&mut self, now: Instant, key: FlowKey, ifindex: u32, frame: &[u8]) {
        while self
            .released_hashes
            .front()
            .is_some_and(|(_, expires)| *expires <= now)
        {
            self.released_hashes.pop_front();
        }
        let hash = hash(ifindex, frame);
        if self.released_hashes.iter().any(|(known, _)| *known == hash) {
            self.dropped += 1;
            return;
        }
        let same_datagram = self
            .fragments
            .iter()
            .filter(|fragment| fragment.key == key)
            .count();
        if self.fragments.len() >= MAX_FRAGMENTS || same_datagram >= MAX_PER_DATAGRAM {
            self.dropped += 1;
            return;
        }
        self.buffered += 1;
        self.fragments.push_back(Fragment {
            key,
            ifindex,
            frame: frame.to_vec(),
            expires: now + TIMEOUT,
            next_lookup: now + FIRST_INTERVAL,
            interval: FIRST_INTERVAL,
        });
    }

    /// When [`FragmentBuffer::poll`] must be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.fragments
            .iter()
            .map(|fragment| fragment.next_lookup)
            .min()
    }

    /// Returns the frames, with their interfaces, whose first fragment `is_known` by now. Drops
    /// frames whose time is over.
    pub fn poll(
        &mut self,
        now: Instant,
        mut is_known: impl FnMut(&FlowKey) -> bool,
    ) -> Vec<(u32, Vec<u8>)> {
        let mut out = Vec::new();
        let mut waiting = VecDeque::with_capacity(self.fragments.len());
        for mut fragment in self.fragments.drain(..) {
            if fragment.next_lookup > now {
                waiting.push_back(fragment);
            } else if is_known(&fragment.key) {
                self.released += 1;
                self.released_hashes
                    .push_back((hash(fragment.ifindex, &fragment.frame), now + TIMEOUT));
                out.push((fragment.ifindex, fragment.frame));
            } else if fragment.expires <= now {
                self.dropped += 1;
            } else {
                fragment.interval = (fragment.interval * 2).min(MAX_INTERVAL);
                fragment.next_lookup = (now + fragment.interval).min(fragment.expires);
                waiting.push_back(fragment);
            }
        }
        self.fragments = waiting;
        out
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
        fragments.push(start, key_of(1), 7, b"one");
        fragments.push(start, key_of(2), 7, b"two");
        assert!(fragments.poll(start, |_| true).is_empty(), "not at once");
        let at = fragments.next_deadline().expect("a deadline");
        let out = fragments.poll(at, |key| *key == key_of(2));
        assert_eq!(out, [(7, b"two".to_vec())]);
        assert_eq!((fragments.buffered, fragments.released), (2, 1));
    }

    #[test]
    fn a_released_frame_that_comes_back_is_dropped() {
        // The programs may refuse a released frame again: it must not circulate for ever.
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        fragments.push(start, key_of(1), 7, b"one");
        let at = fragments.next_deadline().expect("a deadline");
        assert_eq!(fragments.poll(at, |_| true).len(), 1);
        fragments.push(at, key_of(1), 7, b"one");
        assert_eq!((fragments.next_deadline(), fragments.dropped), (None, 1));
        // Another fragment of the datagram is buffered, and so is the same frame much later.
        fragments.push(at, key_of(1), 7, b"two");
        fragments.push(at + TIMEOUT, key_of(1), 7, b"one");
        assert_eq!(fragments.buffered, 3);
    }

    #[test]
    fn a_fragment_is_dropped_at_its_timeout() {
        let start = Instant::now();
        let mut fragments = FragmentBuffer::default();
        fragments.push(start, key_of(1), 7, b"one");
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
    fn the_buffer_is_bounded() {
        let now = Instant::now();
        let mut fragments = FragmentBuffer::default();
        for _ in 0..100 {
            fragments.push(now, key_of(1), 7, b"of one datagram");
        }
        assert_eq!(fragments.buffered, MAX_PER_DATAGRAM as u64);
        for id in 0..5000 {
            fragments.push(now, key_of(id + 2), 7, b"of many");
        }
        assert_eq!(fragments.buffered, MAX_FRAGMENTS as u64);
        assert_eq!(fragments.dropped, 5100 - MAX_FRAGMENTS as u64);
    }

    proptest! {
        #[test]
        fn fragment_key_accepts_any_bytes(packet in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = fragment_key(&packet, 1);
        }
    }
}
