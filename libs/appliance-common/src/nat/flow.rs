//! One direction of a connection: the key that finds it, and the translation of its packets.

use super::{Direction, TcpState, Words, flow_flags};
use crate::wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP};

/// Key of `FLOWS` and `OPENING`: a packet as it arrives.
///
/// For ICMP and ICMPv6 queries, the identifier is the source port and the destination port is zero;
/// for replies the other way round. Also the key of `FRAGMENTS`, with the halves of the
/// identification as ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Source address.
    pub source: Words,
    /// Destination address.
    pub destination: Words,
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
    /// The zone it comes from: [`OUTSIDE`](super::OUTSIDE), or a tenant's; host byte order.
    pub zone: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Padding, always zero.
    pub reserved: u8,
}

/// Value of `FLOWS`, `OPENING` and `FRAGMENTS`: the translation of a packet, and where it goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// New source address.
    pub source: Words,
    /// New destination address.
    pub destination: Words,
    /// New source port, network byte order.
    pub source_port: u16,
    /// New destination port, network byte order.
    pub destination_port: u16,
    /// The zone it goes to: [`OUTSIDE`](super::OUTSIDE), or a tenant's; host byte order.
    pub to_zone: u16,
    /// A [`TcpState`]; for other protocols, the directions that have sent.
    pub state: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// Slot of the network it goes to, or [`UPLINK`](super::UPLINK); host byte order.
    pub to: u32,
    /// Slot of the network it comes from, or [`UPLINK`](super::UPLINK); host byte order.
    pub from: u32,
    /// Epoch of the tenant that it goes to; zero for the outside.
    pub to_epoch: u32,
    /// Epoch of the tenant that it comes from; zero for the outside.
    pub from_epoch: u32,
    /// The rule that allowed it: its slot plus one; zero for none.
    pub rule: u32,
    /// The rule's epoch when the connection was opened.
    pub rule_epoch: u32,
    /// When a packet was last seen, [`ticks`] of the kernel's monotonic clock.
    pub last_seen: u32,
    /// [`FlowKey::entry_hash`] of its key: shows that an entry was recycled for another flow while
    /// being read.
    pub entry_hash: u32,
    /// Packets of this direction.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// For the uplink: the next hop's MAC address, then ours.
    pub egress_macs: [u8; 12],
    /// [`egress_stamp`] of the FIB lookup that found them.
    pub egress_stamp: u16,
    /// The longest packet that a FIB lookup accepted, bytes; zero: no lookup yet.
    pub egress_max_len: u16,
}

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 104);
    assert!(size_of::<Timeouts>() == 28);
};

/// Bits of [`Flow::state`] of protocols other than TCP.
const SEEN_ORIGINAL: u8 = 1;
const SEEN_REPLY: u8 = 2;

impl FlowKey {
    /// A hash of the key.
    #[inline(always)]
    #[must_use]
    pub const fn entry_hash(&self) -> u32 {
        let mut hash = mix(0x9e37_79b9, self.source[0]);
        hash = mix(hash, self.source[1]);
        hash = mix(hash, self.source[2]);
        hash = mix(hash, self.source[3]);
        hash = mix(hash, self.destination[0]);
        hash = mix(hash, self.destination[1]);
        hash = mix(hash, self.destination[2]);
        hash = mix(hash, self.destination[3]);
        hash = mix(
            hash,
            (self.source_port as u32) << 16 | self.destination_port as u32,
        );
        mix(hash, (self.zone as u32) << 8 | self.protocol as u32)
    }
}

/// One round of the finalizer of MurmurHash3.
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let mut hash = (hash ^ word).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash
}

/// A time in nanoseconds in the units of [`Flow::last_seen`] and [`Timeouts`], 2^30 ns: a shift,
/// not a division.
#[inline(always)]
#[must_use]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// A stamp that changes when the result of a FIB lookup must be refreshed: at the latest after four
/// ticks, and whenever user space increments [`Nat::route_generation`](super::Nat), here `changes`.
#[inline(always)]
#[must_use]
pub const fn egress_stamp(changes: u32, now: u32) -> u16 {
    ((changes << 8) as u16) | ((now >> 2) & 0xff) as u16
}

impl Flow {
    /// The direction of its packets.
    #[inline(always)]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        if self.flags & flow_flags::REPLY == 0 {
            Direction::Original
        } else {
            Direction::Reply
        }
    }

    /// Writes the other direction of the flow with `key`, with zero counts.
    #[inline(always)]
    pub const fn inverse(&self, key: &FlowKey, back_key: &mut FlowKey, back: &mut Self) {
        self.other_key(key.protocol, back_key);
        back.source = key.destination;
        back.destination = key.source;
        back.source_port = key.destination_port;
        back.destination_port = key.source_port;
        back.to_zone = key.zone;
        back.state = self.state;
        back.flags = self.flags ^ flow_flags::REPLY;
        back.to = self.from;
        back.from = self.to;
        back.to_epoch = self.from_epoch;
        back.from_epoch = self.to_epoch;
        back.rule = self.rule;
        back.rule_epoch = self.rule_epoch;
        back.last_seen = self.last_seen;
        back.entry_hash = back_key.entry_hash();
        back.packets = 0;
        back.bytes = 0;
        back.egress_macs = [0; 12];
        back.egress_stamp = 0;
        back.egress_max_len = 0;
    }

    /// Whether two flows translate a packet alike.
    #[inline(always)]
    #[must_use]
    pub const fn same_translation(&self, other: &Self) -> bool {
        equal(&self.source, &other.source)
            && equal(&self.destination, &other.destination)
            && self.source_port == other.source_port
            && self.destination_port == other.destination_port
            && self.to_zone == other.to_zone
            && self.to == other.to
            && self.rule == other.rule
    }

    /// The state after a packet of this direction; `flags` are those of TCP.
    #[inline(always)]
    #[must_use]
    pub const fn next(&self, protocol: u8, flags: u8) -> u8 {
        if protocol == IPPROTO_TCP {
            return TcpState::from_bits(self.state)
                .next(self.direction(), flags)
                .bits();
        }
        match self.direction() {
            Direction::Original => self.state | SEEN_ORIGINAL,
            Direction::Reply => self.state | SEEN_REPLY,
        }
    }

    /// Whether both ends have agreed to it: TCP is or was established; of other protocols, both
    /// ends have sent.
    #[inline(always)]
    #[must_use]
    pub const fn is_assured(protocol: u8, state: u8) -> bool {
        if protocol == IPPROTO_TCP {
            let state = TcpState::from_bits(state);
            return !state.is_opening() && !state.is_refused();
        }
        state & (SEEN_ORIGINAL | SEEN_REPLY) == SEEN_ORIGINAL | SEEN_REPLY
    }

    /// Writes the key of the other direction of a flow of this protocol.
    #[inline(always)]
    pub const fn other_key(&self, protocol: u8, key: &mut FlowKey) {
        key.source = self.destination;
        key.destination = self.source;
        key.source_port = self.destination_port;
        key.destination_port = self.source_port;
        key.zone = self.to_zone;
        key.protocol = protocol;
        key.reserved = 0;
    }

    /// Whether its packets may be delivered. Those to another machine's mapping may once that
    /// machine has sent to this one's (RFC 4787 REQ-9, with the filtering of section 5).
    #[inline(always)]
    #[must_use]
    pub const fn may_deliver(&self) -> bool {
        // For TCP, the bit means that the SYN of the other end was seen.
        self.flags & flow_flags::MUTUAL == 0 || self.state & SEEN_REPLY != 0
    }

    /// Whether its timeout has passed at `now`, [`ticks`].
    #[inline(always)]
    #[must_use]
    pub const fn is_expired(&self, protocol: u8, now: u32, timeouts: &Timeouts) -> bool {
        self.age(now) > timeouts.of(protocol, self.state, self.flags)
    }

    /// Ticks since its last packet.
    #[inline(always)]
    #[must_use]
    pub const fn age(&self, now: u32) -> u32 {
        // Another CPU may have read the clock slightly later: no negative age.
        let age = now.wrapping_sub(self.last_seen) as i32;
        if age > 0 { age as u32 } else { 0 }
    }
}

#[inline(always)]
const fn equal(a: &Words, b: &Words) -> bool {
    a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
}

/// Idle timeouts of connections, in [`ticks`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP. At least 7440 s (RFC 5382 REQ-5).
    pub established: u32,
    /// TCP that one end has closed or reset: at least 240 s (RFC 5382 REQ-5, RFC 7857 section 2.2).
    pub transitory: u32,
    /// TCP that is over, [`TcpState::is_over`]: neither end sends anything new on it.
    pub closed: u32,
    /// TCP that is being opened, which RFC 5382 counts as transitory. A flood may evict it earlier.
    pub opening: u32,
    /// UDP: at least 120 s, better 300 (RFC 4787 REQ-5).
    pub udp: u32,
    /// UDP with [`flow_flags::SHORT`]: queries to a well-known port (RFC 4787 REQ-5a).
    pub udp_short: u32,
    /// ICMP queries: at least 60 s (RFC 5508 REQ-1).
    pub icmp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            established: Self::seconds(7440),
            transitory: Self::seconds(240),
            closed: Self::seconds(10),
            opening: Self::seconds(240),
            udp: Self::seconds(300),
            udp_short: Self::seconds(30),
            icmp: Self::seconds(60),
        }
    }
}

impl Timeouts {
    /// Seconds in [`ticks`], rounded up. At most 2^31 s.
    #[must_use]
    pub const fn seconds(seconds: u32) -> u32 {
        ((seconds as u64 * 1_000_000_000).div_ceil(1 << 30)) as u32
    }

    /// The timeout of a connection of a protocol in a state, with [`flow_flags`].
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, protocol: u8, state: u8, flags: u8) -> u32 {
        match protocol {
            IPPROTO_TCP => self.tcp(TcpState::from_bits(state)),
            IPPROTO_ICMP | IPPROTO_ICMPV6 => self.icmp,
            _ if flags & flow_flags::SHORT != 0 => self.udp_short,
            _ => self.udp,
        }
    }

    /// The timeout of a TCP connection in a state.
    #[inline(always)]
    #[must_use]
    pub const fn tcp(&self, state: TcpState) -> u32 {
        if state.is_established() {
            self.established
        } else if state.is_opening() {
            self.opening
        } else if state.is_over() {
            self.closed
        } else {
            self.transitory
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::{ACK, FIN, OUTSIDE, RST, SYN, UPLINK};
    use crate::wire::IPPROTO_UDP;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = FlowKey> {
        (any::<[u32; 8]>(), any::<[u16; 3]>(), any::<u8>()).prop_map(|(a, p, protocol)| FlowKey {
            source: [a[0], a[1], a[2], a[3]],
            destination: [a[4], a[5], a[6], a[7]],
            source_port: p[0],
            destination_port: p[1],
            zone: p[2],
            protocol,
            reserved: 0,
        })
    }

    fn any_flow() -> impl Strategy<Value = Flow> {
        (any_key(), any::<[u32; 7]>(), 0u8..64, 0u8..8).prop_map(|(k, n, state, flags)| Flow {
            source: k.source,
            destination: k.destination,
            source_port: k.source_port,
            destination_port: k.destination_port,
            to_zone: k.zone,
            state,
            flags,
            to: n[0],
            from: n[1],
            to_epoch: n[2],
            from_epoch: n[3],
            rule: n[4],
            rule_epoch: n[5],
            last_seen: n[6],
            entry_hash: 0,
            packets: 0,
            bytes: 0,
            egress_macs: [0; 12],
            egress_stamp: 0,
            egress_max_len: 0,
        })
    }

    proptest! {
        #[test]
        fn the_inverse_of_the_inverse_is_the_flow(key in any_key(), mut flow in any_flow()) {
            flow.entry_hash = key.entry_hash();
            let (mut k1, mut f1) = (FlowKey::default(), Flow::default());
            flow.inverse(&key, &mut k1, &mut f1);
            prop_assert_eq!(f1.entry_hash, k1.entry_hash());
            prop_assert!(f1.direction() != flow.direction());
            let (mut k2, mut f2) = (FlowKey::default(), Flow::default());
            f1.inverse(&k1, &mut k2, &mut f2);
            prop_assert_eq!(k2, key);
            prop_assert_eq!(f2, flow);
            prop_assert!(f2.same_translation(&flow));
        }

        #[test]
        fn a_change_of_any_bit_changes_the_hash(
            key in any_key(),
            word in 0usize..8,
            bit in 0u32..32,
        ) {
            let mut other = key;
            if word < 4 {
                other.source[word] ^= 1 << bit;
            } else {
                other.destination[word - 4] ^= 1 << bit;
            }
            prop_assert_ne!(key.entry_hash(), other.entry_hash());
        }
    }

    #[test]
    fn datagrams_are_agreed_on_once_both_have_spoken() {
        let mut there = Flow {
            to: UPLINK,
            to_zone: OUTSIDE,
            ..Flow::default()
        };
        there.state = there.next(IPPROTO_UDP, 0);
        assert!(!Flow::is_assured(IPPROTO_UDP, there.state));
        let (mut key, mut back) = (FlowKey::default(), Flow::default());
        there.inverse(&FlowKey::default(), &mut key, &mut back);
        back.state = back.next(IPPROTO_UDP, 0);
        assert!(Flow::is_assured(IPPROTO_UDP, back.state));
        // TCP by its own rules.
        let mut flow = Flow::default();
        for _ in 0..3 {
            flow.state = flow.next(IPPROTO_TCP, SYN);
            flow.state = flow.next(IPPROTO_TCP, ACK);
            assert!(!Flow::is_assured(IPPROTO_TCP, flow.state));
        }
    }

    #[test]
    fn silence_is_longer_than_the_timeout_and_never_of_the_future() {
        let timeouts = Timeouts::default();
        let flow = Flow {
            last_seen: 1000,
            ..Flow::default()
        };
        let limit = 1000 + timeouts.udp;
        assert!(!flow.is_expired(IPPROTO_UDP, limit, &timeouts));
        assert!(flow.is_expired(IPPROTO_UDP, limit + 1, &timeouts));
        assert!(!flow.is_expired(IPPROTO_UDP, 999, &timeouts));
        // The clock of 32 bits goes round.
        let flow = Flow {
            last_seen: u32::MAX - 5,
            ..Flow::default()
        };
        assert!(!flow.is_expired(IPPROTO_UDP, 10, &timeouts));
        assert!(flow.is_expired(IPPROTO_UDP, timeouts.udp, &timeouts));
    }

    #[test]
    fn timeouts_are_at_least_those_of_the_standards() {
        let seconds = |ticks: u32| f64::from(ticks) * f64::from(1 << 30) / 1e9;
        let timeouts = Timeouts::default();
        assert!(seconds(timeouts.established) >= 2.0 * 3600.0 + 4.0 * 60.0);
        assert!(seconds(timeouts.transitory) >= 240.0 && seconds(timeouts.opening) >= 240.0);
        assert!(seconds(timeouts.udp) >= 300.0 && seconds(timeouts.icmp) >= 60.0);
        assert!(seconds(timeouts.closed) >= 10.0 && seconds(timeouts.udp_short) >= 30.0);
        let open = TcpState::default()
            .next(Direction::Original, SYN)
            .next(Direction::Reply, SYN | ACK)
            .next(Direction::Original, ACK);
        assert_eq!(
            timeouts.of(IPPROTO_TCP, open.bits(), 0),
            timeouts.established
        );
        assert_eq!(timeouts.of(IPPROTO_TCP, 1, 0), timeouts.opening);
        assert_eq!(timeouts.of(IPPROTO_ICMP, 1, 0), timeouts.icmp);
        assert_eq!(timeouts.of(IPPROTO_ICMPV6, 1, 0), timeouts.icmp);
        let half = open.next(Direction::Reply, FIN | ACK);
        let reset = open.next(Direction::Reply, RST);
        let over = half.next(Direction::Original, FIN | ACK);
        for (state, timeout) in [
            (half, timeouts.transitory),
            (reset, timeouts.transitory),
            (over, timeouts.closed),
        ] {
            assert_eq!(timeouts.of(IPPROTO_TCP, state.bits(), 0), timeout);
        }
        assert_eq!(timeouts.of(IPPROTO_UDP, 3, 0), timeouts.udp);
        assert_eq!(
            timeouts.of(IPPROTO_UDP, 3, flow_flags::SHORT),
            timeouts.udp_short
        );
    }
}
