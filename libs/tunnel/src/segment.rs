//! What is inside a sealed message between two appliances: an 8-byte header, then a packet, a frame,
//! a fragment of one, or a word between the ends.
//!
//! ```text
//!  0       1       2       3       4       5       6       7
//! ┌───────┬───────────────────────┬───────────────┬───────┬───────┐
//! │ kind  │ network (24 bits)     │ stride        │ index │ last  │   big-endian
//! └───────┴───────────────────────┴───────────────┴───────┴───────┘
//!  whole:  stride = index = last = 0, body of 1 byte or more
//!  fragment:  index ≤ last, 1 ≤ last ≤ 15; offset = index × stride; every body is `stride` bytes,
//!          the last 1 to `stride`. Fragments of a packet are sealed with consecutive counters of one
//!          session, so (session, counter − index) names the packet: no identifier can wrap.
//! ```
//!
//! That layout leaves no overlap, gap or second reading for a hostile peer to use: a fragment either
//! has its one place in its packet or is refused. Memory is bounded by [`ReassemblyLimits`], taken once.

use std::time::Duration;

use thiserror::Error;

use crate::time::Instant;

/// Bytes of the segment header.
pub const HEADER_BYTES: usize = 8;
/// Fragments of one packet at most.
pub const MAX_FRAGMENTS: usize = 16;
/// Greatest network id: 24 bits.
pub const MAX_NETWORK: u32 = 0x00ff_ffff;

/// What a segment carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadKind {
    /// An IP packet, of a network stretched host by host (`proxy`).
    Ip,
    /// An Ethernet frame without its checksum, of a network stretched whole (`bridge`).
    Frame,
    /// A word between the two ends, see [`ControlMessage`].
    Control,
}

impl PayloadKind {
    const fn wire(self) -> u8 {
        match self {
            Self::Ip => 1,
            Self::Frame => 2,
            Self::Control => 3,
        }
    }

    const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Ip),
            2 => Some(Self::Frame),
            3 => Some(Self::Control),
            _ => None,
        }
    }
}

/// Why a segment is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidSegment {
    /// Shorter than a header and a byte.
    #[error("segment: shorter than its header and one byte; the peer is of another version")]
    Short,
    /// No such kind.
    #[error("segment: there is no kind {kind}; the peer is of another version")]
    UnknownKind {
        /// The byte found.
        kind: u8,
    },
    /// Fragment fields that contradict each other or the body's length.
    #[error("segment: fragment fields do not fit the body; the peer is broken")]
    FragmentFields,
    /// Longer than this end rejoins.
    #[error(
        "segment: the packet is longer than the {limit} bytes this end rejoins; give both ends the same MTU"
    )]
    TooLong {
        /// Bytes this end rejoins.
        limit: usize,
    },
    /// Contradicts other fragments of the same packet.
    #[error("segment: fragments of one packet contradict each other; the peer is broken")]
    Conflict,
    /// A control word that is none.
    #[error("segment: no such control word; the peer is of another version")]
    Control,
}

/// A segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// What the body is, or is a fragment of.
    pub kind: PayloadKind,
    /// The network it belongs to, at most [`MAX_NETWORK`].
    pub network: u32,
    /// Bytes of each fragment but the last; zero if the packet is whole.
    pub stride: u16,
    /// Which fragment, from zero.
    pub index: u8,
    /// Which fragment is the last; zero if the packet is whole.
    pub last: u8,
}

impl Header {
    /// The header of a whole packet.
    #[must_use]
    pub const fn whole(kind: PayloadKind, network: u32) -> Self {
        Self {
            kind,
            network: network & MAX_NETWORK,
            stride: 0,
            index: 0,
            last: 0,
        }
    }

    /// Whether the body is a whole packet.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.last == 0
    }

    /// The header as it stands in front of the body.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let [_, n2, n1, n0] = self.network.to_be_bytes();
        let [s1, s0] = self.stride.to_be_bytes();
        [self.kind.wire(), n2, n1, n0, s1, s0, self.index, self.last]
    }

    /// Whether this header can stand in front of this body.
    const fn fits(&self, body: &[u8]) -> bool {
        let (stride, len) = (self.stride as usize, body.len());
        if self.is_whole() {
            return self.index == 0 && stride == 0 && len > 0;
        }
        (self.last as usize) < MAX_FRAGMENTS
            && !matches!(self.kind, PayloadKind::Control)
            && if self.index < self.last {
                len == stride && len > 0
            } else {
                self.index == self.last && len > 0 && len <= stride
            }
    }

    /// Reads header and body of a plaintext, and checks that they fit each other.
    ///
    /// # Errors
    /// [`InvalidSegment`] if they do not.
    pub fn parse(plaintext: &[u8]) -> Result<(Self, &[u8]), InvalidSegment> {
        let Some((&[kind, n2, n1, n0, s1, s0, index, last], body)) =
            plaintext.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(InvalidSegment::Short);
        };
        if body.is_empty() {
            return Err(InvalidSegment::Short);
        }
        let Some(kind) = PayloadKind::from_wire(kind) else {
            return Err(InvalidSegment::UnknownKind { kind });
        };
        let header = Self {
            kind,
            network: u32::from_be_bytes([0, n2, n1, n0]),
            stride: u16::from_be_bytes([s1, s0]),
            index,
            last,
        };
        if header.fits(body) {
            Ok((header, body))
        } else {
            Err(InvalidSegment::FragmentFields)
        }
    }
}

/// How a packet is cut to fit the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentLayout {
    /// Bytes of each fragment but the last; zero if the packet stays whole.
    pub stride: u16,
    /// Number of the last fragment; zero if the packet stays whole.
    pub last: u8,
}

impl FragmentLayout {
    /// Cuts `len` bytes into as few fragments as fit into `room` bytes each, of nearly equal length.
    /// `None` if that takes more than [`MAX_FRAGMENTS`], or there is nothing to cut.
    #[must_use]
    pub fn new(len: usize, room: usize) -> Option<Self> {
        let room = room.min(usize::from(u16::MAX));
        if len == 0 || room == 0 {
            return None;
        }
        if len <= room {
            return Some(Self { stride: 0, last: 0 });
        }
        let fragments = len.div_ceil(room);
        if fragments > MAX_FRAGMENTS {
            return None;
        }
        // ceil(len / fragments) ≤ room, and no fewer than `fragments` of them are needed: a shorter count
        // would need a stride of len / (fragments − 1) > room.
        let stride = len.div_ceil(fragments);
        let last = len.div_ceil(stride) - 1;
        Some(Self {
            stride: u16::try_from(stride).ok()?,
            last: u8::try_from(last).ok()?,
        })
    }

    /// Fragments, at least one.
    #[must_use]
    pub const fn fragments(&self) -> usize {
        self.last as usize + 1
    }

    /// The bytes of `packet` in fragment `index`; empty past the last.
    #[must_use]
    pub fn fragment<'a>(&self, packet: &'a [u8], index: u8) -> &'a [u8] {
        if self.last == 0 {
            return if index == 0 { packet } else { &[] };
        }
        let stride = usize::from(self.stride);
        let from = (usize::from(index) * stride).min(packet.len());
        &packet[from..(from + stride).min(packet.len())]
    }
}

/// Bounds of rejoining for one peer and lane. Memory taken, once: `slots × (max_packet + 64)` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Packets being rejoined at a time. The oldest gives way.
    pub slots: usize,
    /// Bytes of the longest packet rejoined.
    pub max_packet: usize,
    /// How long a packet may miss fragments.
    pub timeout: Duration,
}

impl Default for ReassemblyLimits {
    /// 32 packets of 9216 bytes, 500 ms: 290 KiB.
    fn default() -> Self {
        Self {
            slots: 32,
            max_packet: 9216,
            timeout: Duration::from_millis(500),
        }
    }
}

/// Counters of rejoining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReassemblyStats {
    /// Packets completed.
    pub completed: u64,
    /// Packets given up because fragments did not come in time.
    pub timed_out: u64,
    /// Packets given up to make room.
    pub evicted: u64,
    /// Fragments refused.
    pub refused: u64,
}

/// Rejoins packets from their fragments.
pub struct Reassembler {
    limits: ReassemblyLimits,
    /// Counter of each packet's first fragment; kept apart so that a search touches little memory.
    bases: Box<[u64]>,
    slots: Box<[Slot]>,
    buffer: Box<[u8]>,
    stats: ReassemblyStats,
}

#[derive(Clone, Copy)]
struct Slot {
    /// One bit per fragment that came; zero if the slot is free.
    have: u16,
    session: u32,
    header: Header,
    /// Bytes of the packet, known when the last fragment came.
    len: usize,
    since: Instant,
}

const FREE: Slot = Slot {
    have: 0,
    session: 0,
    header: Header::whole(PayloadKind::Ip, 0),
    len: 0,
    since: Instant::ORIGIN,
};

impl std::fmt::Debug for Reassembler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reassembler")
            .field("limits", &self.limits)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Reassembler {
    /// Takes the memory `limits` allow: at least one slot.
    #[must_use]
    pub fn new(limits: ReassemblyLimits) -> Self {
        let limits = ReassemblyLimits {
            slots: limits.slots.max(1),
            max_packet: limits.max_packet.max(1),
            ..limits
        };
        Self {
            limits,
            bases: vec![0; limits.slots].into(),
            slots: vec![FREE; limits.slots].into(),
            buffer: vec![0; limits.slots * limits.max_packet].into(),
            stats: ReassemblyStats::default(),
        }
    }

    /// Counters so far.
    #[must_use]
    pub const fn stats(&self) -> ReassemblyStats {
        self.stats
    }

    /// Packets that still miss fragments.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.slots.iter().filter(|slot| slot.have != 0).count()
    }

    /// Takes one authentic fragment, sealed as `counter` of `session`. Yields the packet if this was
    /// what it missed; it stays readable until the next call.
    ///
    /// # Errors
    /// [`InvalidSegment`] if the fragment does not fit. Fragments that contradict each other take their
    /// packet with them.
    pub fn offer(
        &mut self,
        now: Instant,
        session: u32,
        counter: u64,
        header: Header,
        body: &[u8],
    ) -> Result<Option<&[u8]>, InvalidSegment> {
        self.place(now, session, counter, header, body)
            .inspect_err(|_| self.stats.refused += 1)
            .map(|done| {
                done.map(|(slot, len)| {
                    self.stats.completed += 1;
                    let from = slot * self.limits.max_packet;
                    &self.buffer[from..from + len]
                })
            })
    }

    fn place(
        &mut self,
        now: Instant,
        session: u32,
        counter: u64,
        header: Header,
        body: &[u8],
    ) -> Result<Option<(usize, usize)>, InvalidSegment> {
        let stride = usize::from(header.stride);
        let offset = usize::from(header.index) * stride;
        let limit = self.limits.max_packet;
        if header.is_whole() || !header.fits(body) {
            return Err(InvalidSegment::FragmentFields);
        }
        // The shortest packet these fields can mean: all fragments but the last, and one byte.
        if offset + body.len() > limit || usize::from(header.last) * stride + 1 > limit {
            return Err(InvalidSegment::TooLong { limit });
        }
        let base = counter
            .checked_sub(u64::from(header.index))
            .ok_or(InvalidSegment::FragmentFields)?;
        let at = match self.find(session, base) {
            Some(at) if now.since(self.slots[at].since) < self.limits.timeout => at,
            Some(at) => {
                self.stats.timed_out += 1;
                self.open(at, now, session, base, header);
                at
            }
            None => {
                let at = self.make_room(now);
                self.open(at, now, session, base, header);
                at
            }
        };
        let slot = &mut self.slots[at];
        let bit = 1_u16 << header.index;
        let same = (
            slot.header.kind,
            slot.header.network,
            slot.header.stride,
            slot.header.last,
        ) == (header.kind, header.network, header.stride, header.last);
        if !same || slot.have & bit != 0 {
            *slot = FREE;
            return Err(InvalidSegment::Conflict);
        }
        slot.have |= bit;
        if header.index == header.last {
            slot.len = offset + body.len();
        }
        let from = at * limit + offset;
        self.buffer[from..from + body.len()].copy_from_slice(body);
        let all = if header.last == 15 {
            u16::MAX
        } else {
            (1 << (header.last + 1)) - 1
        };
        if slot.have != all {
            return Ok(None);
        }
        let len = slot.len;
        *slot = FREE;
        Ok(Some((at, len)))
    }

    /// Gives up packets whose fragments did not come in time.
    pub fn expire(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if slot.have != 0 && now.since(slot.since) >= self.limits.timeout {
                *slot = FREE;
                self.stats.timed_out += 1;
            }
        }
    }

    fn find(&self, session: u32, base: u64) -> Option<usize> {
        self.bases
            .iter()
            .zip(&self.slots)
            .position(|(&at, slot)| at == base && slot.have != 0 && slot.session == session)
    }

    /// A free slot, or the one that waits longest.
    fn make_room(&mut self, now: Instant) -> usize {
        let mut oldest = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.have == 0 {
                return at;
            }
            if slot.since < self.slots[oldest].since {
                oldest = at;
            }
        }
        if now.since(self.slots[oldest].since) >= self.limits.timeout {
            self.stats.timed_out += 1;
        } else {
            self.stats.evicted += 1;
        }
        oldest
    }

    fn open(&mut self, at: usize, now: Instant, session: u32, base: u64, header: Header) {
        self.bases[at] = base;
        self.slots[at] = Slot {
            have: 0,
            session,
            header,
            len: 0,
            since: now,
        };
    }
}

/// A word between the two ends, itself sealed. Not counted as traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlMessage {
    /// Asks for an [`ControlMessage::EchoReply`] with the same token. May be padded to try a datagram size.
    Echo {
        /// Opaque to the receiver.
        token: u64,
        /// Bytes of the datagram (UDP payload) that carries this; zero if it is not a trial.
        size: u16,
    },
    /// Answers an [`ControlMessage::Echo`].
    EchoReply {
        /// The token of the echo.
        token: u64,
        /// The size of the echo.
        size: u16,
    },
}

/// Bytes of a control word's body without padding.
pub const CONTROL_MESSAGE_BYTES: usize = 11;

impl ControlMessage {
    /// Body of a control segment.
    #[must_use]
    pub fn to_bytes(self) -> [u8; CONTROL_MESSAGE_BYTES] {
        let (op, token, size) = match self {
            Self::Echo { token, size } => (1, token, size),
            Self::EchoReply { token, size } => (2, token, size),
        };
        let mut out = [0; CONTROL_MESSAGE_BYTES];
        out[0] = op;
        out[1..9].copy_from_slice(&token.to_be_bytes());
        out[9..].copy_from_slice(&size.to_be_bytes());
        out
    }

    /// Reads the body of a control segment. Padding behind it must be zero.
    ///
    /// # Errors
    /// [`InvalidSegment::Control`] if it is none.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidSegment> {
        let Some((word, padding)) = body.split_first_chunk::<CONTROL_MESSAGE_BYTES>() else {
            return Err(InvalidSegment::Control);
        };
        let &[op, ref rest @ ..] = word;
        let (Some(token), Some(size)) = (rest.first_chunk::<8>(), rest.last_chunk::<2>()) else {
            return Err(InvalidSegment::Control);
        };
        let (token, size) = (u64::from_be_bytes(*token), u16::from_be_bytes(*size));
        if padding.iter().any(|&byte| byte != 0) {
            return Err(InvalidSegment::Control);
        }
        match op {
            1 => Ok(Self::Echo { token, size }),
            2 => Ok(Self::EchoReply { token, size }),
            _ => Err(InvalidSegment::Control),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn fragments(packet: &[u8], room: usize) -> Vec<(Header, Vec<u8>)> {
        let plan = FragmentLayout::new(packet.len(), room).expect("fits");
        (0..plan.fragments() as u8)
            .map(|index| {
                let header = Header {
                    kind: PayloadKind::Ip,
                    network: 5,
                    stride: plan.stride,
                    index,
                    last: plan.last,
                };
                (header, plan.fragment(packet, index).to_vec())
            })
            .collect()
    }

    #[test]
    fn a_full_ethernet_packet_goes_in_two_balanced_fragments() {
        let cut = fragments(&[7; 1500], 1432);
        assert_eq!(cut.len(), 2);
        assert_eq!((cut[0].1.len(), cut[1].1.len()), (750, 750));
    }

    #[test]
    fn missing_fragments_time_out_and_make_room() {
        let mut rejoin = Reassembler::new(ReassemblyLimits {
            slots: 2,
            max_packet: 4000,
            timeout: Duration::from_millis(100),
        });
        let cut = fragments(&[1; 3000], 1000);
        for n in 0..3_u64 {
            assert_eq!(
                rejoin.offer(at(n), 1, n * 10, cut[0].0, &cut[0].1),
                Ok(None)
            );
        }
        assert_eq!((rejoin.pending(), rejoin.stats().evicted), (2, 1));
        rejoin.expire(at(150));
        assert_eq!((rejoin.pending(), rejoin.stats().timed_out), (0, 2));
        // A late fragment opens its packet anew; it never joins what was given up.
        assert_eq!(rejoin.offer(at(151), 1, 11, cut[1].0, &cut[1].1), Ok(None));
        assert_eq!(rejoin.offer(at(151), 1, 12, cut[2].0, &cut[2].1), Ok(None));
        assert_eq!(rejoin.pending(), 1);
    }

    #[test]
    fn the_same_counters_of_another_session_are_another_packet() {
        let mut rejoin = Reassembler::new(ReassemblyLimits::default());
        let cut = fragments(&[1; 2000], 1000);
        assert_eq!(rejoin.offer(at(0), 1, 0, cut[0].0, &cut[0].1), Ok(None));
        assert_eq!(rejoin.offer(at(0), 2, 1, cut[1].0, &cut[1].1), Ok(None));
        assert!(
            rejoin
                .offer(at(0), 1, 1, cut[1].0, &cut[1].1)
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn contradicting_fragments_take_their_packet_with_them() {
        let mut rejoin = Reassembler::new(ReassemblyLimits::default());
        let cut = fragments(&[1; 2000], 1000);
        assert_eq!(rejoin.offer(at(0), 1, 0, cut[0].0, &cut[0].1), Ok(None));
        let other = Header {
            network: 6,
            ..cut[1].0
        };
        assert_eq!(
            rejoin.offer(at(0), 1, 1, other, &cut[1].1),
            Err(InvalidSegment::Conflict)
        );
        assert_eq!(rejoin.pending(), 0);
    }

    #[test]
    fn a_packet_of_sixteen_fragments_rejoins_backwards() {
        let packet: Vec<u8> = (0..16_000_u32).map(|n| n as u8).collect();
        let mut rejoin = Reassembler::new(ReassemblyLimits {
            max_packet: 16_000,
            ..ReassemblyLimits::default()
        });
        let cut = fragments(&packet, 1000);
        assert_eq!(cut.len(), MAX_FRAGMENTS);
        for (n, (header, body)) in cut.iter().enumerate().rev() {
            let got = rejoin
                .offer(at(0), 1, 100 + n as u64, *header, body)
                .unwrap();
            assert_eq!(got.is_some(), n == 0);
            if let Some(got) = got {
                assert_eq!(got, packet);
            }
        }
    }

    proptest! {
        #[test]
        fn headers_read_as_written(network in 0..=MAX_NETWORK, body in proptest::collection::vec(any::<u8>(), 1..50)) {
            let mut bytes = Header::whole(PayloadKind::Frame, network).to_bytes().to_vec();
            bytes.extend(&body);
            prop_assert_eq!(Header::parse(&bytes), Ok((Header::whole(PayloadKind::Frame, network), &body[..])));
        }

        #[test]
        fn control_words_read_as_written(token: u64, size: u16, pad in 0_usize..100) {
            for word in [ControlMessage::Echo { token, size }, ControlMessage::EchoReply { token, size }] {
                let mut bytes = word.to_bytes().to_vec();
                bytes.resize(bytes.len() + pad, 0);
                prop_assert_eq!(ControlMessage::parse(&bytes), Ok(word));
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
            let _ = ControlMessage::parse(&bytes);
        }

        #[test]
        fn packets_rejoin_whatever_the_order(
            len in 1_usize..9000,
            room in 600_usize..9000,
            order in any::<u64>(),
        ) {
            let packet: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
            let plan = FragmentLayout::new(len, room);
            prop_assert!(plan.is_some() || len.div_ceil(room) > MAX_FRAGMENTS);
            let Some(plan) = plan else { return Ok(()) };
            prop_assert!(plan.fragments() == len.div_ceil(room), "no more fragments than needed");
            if plan.last == 0 {
                prop_assert_eq!(plan.fragment(&packet, 0), &packet[..]);
                return Ok(());
            }
            let mut cut: Vec<_> = fragments(&packet, room).into_iter().enumerate().collect();
            let mut seed = order;
            for n in (1..cut.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                cut.swap(n, (seed >> 33) as usize % (n + 1));
            }
            let mut rejoin = Reassembler::new(ReassemblyLimits::default());
            let total = cut.len();
            for (n, (index, (header, body))) in cut.into_iter().enumerate() {
                prop_assert!(body.len() <= room && !body.is_empty());
                let mut bytes = header.to_bytes().to_vec();
                bytes.extend(&body);
                let (header, body) = Header::parse(&bytes).unwrap();
                let got = rejoin.offer(at(0), 9, 1000 + index as u64, header, body).unwrap();
                prop_assert_eq!(got.is_some(), n + 1 == total);
                if let Some(got) = got {
                    prop_assert_eq!(got, &packet[..]);
                }
            }
        }

        /// Whatever a hostile peer sends, memory stays what it was and no packet comes out longer
        /// than allowed, and none that mixes sessions: every byte is tagged with its session.
        #[test]
        fn hostile_fragments_stay_within_bounds(
            offers in proptest::collection::vec(
                (0_u64..200, 0_u32..3, 0_u64..40, 0_u16..700, 0_u8..20, 0_u8..20, 0_usize..700, 0_u32..2),
                1..400,
            ),
        ) {
            let limits = ReassemblyLimits { slots: 4, max_packet: 2000, timeout: Duration::from_millis(50) };
            let mut rejoin = Reassembler::new(limits);
            let mut clock = 0;
            for (step, session, counter, stride, index, last, len, network) in offers {
                clock += step;
                let header = Header { kind: PayloadKind::Ip, network, stride, index, last };
                let mut bytes = header.to_bytes().to_vec();
                bytes.extend(vec![session as u8; len]);
                let Ok((header, body)) = Header::parse(&bytes) else { continue };
                if header.is_whole() {
                    continue;
                }
                if let Ok(Some(packet)) = rejoin.offer(at(clock), session, counter, header, body) {
                    prop_assert!(packet.len() <= 2000 && packet.len() > usize::from(last) * usize::from(stride));
                    prop_assert!(packet.iter().all(|&byte| u32::from(byte) == session));
                }
                prop_assert!(rejoin.pending() <= 4);
            }
        }
    }
}
