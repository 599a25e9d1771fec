//! Fragments that came before the first one of their datagram, whose ports say what connection they are of.
//!
//! The programs note what a first fragment became; what had come earlier is run through them again as soon as it is
//! noted, as if it had come just then (RFC 4787 REQ-14). Bounded in number and time; who sends many gains nothing.
//!
//! Pure: the clock is given, and looking and running again are the caller's.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use appliance_common::{
    nat::{FlowKey, Words},
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6},
};

/// Fragments held at once, of everybody.
const MOST: usize = 1024;
/// Fragments of one datagram: 64 KiB of the smallest usual ones.
const MOST_OF_ONE: usize = 64;
/// How long one waits. The first is late by a reordering in the network, or is lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon the first is looked for, and after each look twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

#[derive(Debug)]
struct Held {
    key: FlowKey,
    ifindex: u32,
    frame: Vec<u8>,
    until: Instant,
    look: Instant,
    pause: Duration,
}

/// The fragments that wait.
#[derive(Debug, Default)]
pub struct Fragments {
    held: VecDeque<Held>,
    /// Frames that were run again, by a hash, and until when that is remembered: one that comes back is let go.
    again: VecDeque<(u64, Instant)>,
    /// Held, so far.
    pub taken: u64,
    /// Run again.
    pub released: u64,
    /// Let go: too many, or no first in time.
    pub given_up: u64,
}

/// The key of `FRAGMENTS` for the fragment whose IP header is at the start of `packet`, from `zone`; `None` if it
/// is none.
#[must_use]
pub fn key(packet: &[u8], zone: u16) -> Option<FlowKey> {
    let word = |at: usize| -> Option<u32> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (source, destination, protocol, identification): (Words, Words, u8, u32) =
        match packet.first()? >> 4 {
            4 => {
                let id: [u8; 2] = packet.get(4..6)?.try_into().ok()?;
                let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
                (
                    [0, 0, mapped, word(12)?],
                    [0, 0, mapped, word(16)?],
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

/// The protocol that an IPv6 fragment header (RFC 8200 section 4.5) leads to, and where that header is.
fn fragment_header(packet: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*packet.get(6)?, 40);
    for _ in 0..=appliance_common::limits::MAX_EXTENSION_HEADERS {
        match next {
            44 => return Some((*packet.get(at)?, at)),
            0 | 43 | 60 => {
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

impl Fragments {
    /// Holds a frame that came in on `ifindex`.
    pub fn hold(&mut self, now: Instant, key: FlowKey, ifindex: u32, frame: &[u8]) {
        while self.again.front().is_some_and(|(_, until)| *until <= now) {
            self.again.pop_front();
        }
        let hash = hash(ifindex, frame);
        if self.again.iter().any(|(known, _)| *known == hash) {
            self.given_up += 1;
            return;
        }
        let of_one = self.held.iter().filter(|held| held.key == key).count();
        if self.held.len() >= MOST || of_one >= MOST_OF_ONE {
            self.given_up += 1;
            return;
        }
        self.taken += 1;
        self.held.push_back(Held {
            key,
            ifindex,
            frame: frame.to_vec(),
            until: now + PATIENCE,
            look: now + FIRST_LOOK,
            pause: FIRST_LOOK,
        });
    }

    /// When [`Fragments::poll`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.look).min()
    }

    /// The frames whose first fragment `is_known` by now, with their interfaces; those that waited too long are let
    /// go.
    pub fn poll(
        &mut self,
        now: Instant,
        mut is_known: impl FnMut(&FlowKey) -> bool,
    ) -> Vec<(u32, Vec<u8>)> {
        let mut out = Vec::new();
        let mut waiting = VecDeque::with_capacity(self.held.len());
        for mut held in self.held.drain(..) {
            if held.look > now {
                waiting.push_back(held);
            } else if is_known(&held.key) {
                self.released += 1;
                self.again
                    .push_back((hash(held.ifindex, &held.frame), now + PATIENCE));
                out.push((held.ifindex, held.frame));
            } else if held.until <= now {
                self.given_up += 1;
            } else {
                held.pause = (held.pause * 2).min(LONGEST);
                held.look = (now + held.pause).min(held.until);
                waiting.push_back(held);
            }
        }
        self.held = waiting;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A fragment of IPv4 with this identification.
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
        key(&v4(id), 1).expect("a fragment")
    }

    #[test]
    fn the_key_is_that_of_the_programs() {
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
        let key = super::key(&packet, 0).expect("a fragment");
        let id = u32::from(key.destination_port) << 16 | u32::from(key.source_port);
        assert_eq!(id.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(key.protocol, 17);
        packet[40] = 17;
        assert_eq!(super::key(&packet, 0), None, "it is whole");
    }

    #[test]
    fn it_goes_once_its_first_is_known() {
        let start = Instant::now();
        let mut fragments = Fragments::default();
        fragments.hold(start, key_of(1), 7, b"one");
        fragments.hold(start, key_of(2), 7, b"two");
        assert!(fragments.poll(start, |_| true).is_empty(), "not at once");
        let at = fragments.next_deadline().expect("a look");
        let out = fragments.poll(at, |key| *key == key_of(2));
        assert_eq!(out, [(7, b"two".to_vec())]);
        assert_eq!((fragments.taken, fragments.released), (2, 1));
    }

    #[test]
    fn what_was_run_again_and_comes_back_is_let_go() {
        // The programs may refuse what looked fit here: then it must not go round for ever.
        let start = Instant::now();
        let mut fragments = Fragments::default();
        fragments.hold(start, key_of(1), 7, b"one");
        let at = fragments.next_deadline().expect("a look");
        assert_eq!(fragments.poll(at, |_| true).len(), 1);
        fragments.hold(at, key_of(1), 7, b"one");
        assert_eq!((fragments.next_deadline(), fragments.given_up), (None, 1));
        // Another one of the datagram, or the same much later, is another matter.
        fragments.hold(at, key_of(1), 7, b"two");
        fragments.hold(at + PATIENCE, key_of(1), 7, b"one");
        assert_eq!(fragments.taken, 3);
    }

    #[test]
    fn it_is_let_go_in_the_end() {
        let start = Instant::now();
        let mut fragments = Fragments::default();
        fragments.hold(start, key_of(1), 7, b"one");
        let mut looks = 0;
        while let Some(at) = fragments.next_deadline() {
            assert!(at <= start + PATIENCE);
            assert!(fragments.poll(at, |_| false).is_empty());
            looks += 1;
        }
        assert!(looks > 20 && looks < 100, "{looks} looks");
        assert_eq!(fragments.given_up, 1);
    }

    #[test]
    fn they_are_bounded() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        for _ in 0..100 {
            fragments.hold(now, key_of(1), 7, b"of one datagram");
        }
        assert_eq!(fragments.taken, MOST_OF_ONE as u64);
        for id in 0..5000 {
            fragments.hold(now, key_of(id + 2), 7, b"of many");
        }
        assert_eq!(fragments.taken, MOST as u64);
        assert_eq!(fragments.given_up, 5100 - MOST as u64);
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_trouble(packet in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = key(&packet, 1);
        }
    }
}
