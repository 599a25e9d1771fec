//! The state of a TCP connection through NAT.
//!
//! The states follow both directions as far as a middlebox can see them (RFC 5382 section 4).
//!
//! ```text
//!   SYN ─▶ Opening ─ SYN back, then ACK, or SYN+ACK ─▶ Established ─ FIN ─▶ HalfClosed ─ FIN of the other ─▶ Closed
//!              │                                            │                    │                          │
//!              └──────────────── RST of either ─────────────┴────────────────────┴──────────────────────▶ Closed
//!   Closed ─ SYN of either end ─▶ Opening
//! ```

pub use packet_rules::tcp::{ACK, FIN, RST, SYN};

use super::Direction;

/// The state of a connection: bits, so that a map value holds it in a byte.
///
/// Zero means that nothing was seen, which no map entry has.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState(u8);

impl TcpState {
    const SYN_ORIGINAL: u8 = 0x01;
    const SYN_REPLY: u8 = 0x02;
    /// An ACK followed on both SYNs.
    const OPEN: u8 = 0x04;
    const FIN_ORIGINAL: u8 = 0x08;
    const FIN_REPLY: u8 = 0x10;
    const RESET: u8 = 0x20;

    /// From a map's byte.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The map's byte.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether a segment with these flags may open a connection: a SYN alone. Segments in the
    /// middle of an unknown connection are not translated, as its other end is unknown.
    #[inline(always)]
    #[must_use]
    pub const fn opens(flags: u8) -> bool {
        flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// The state after a packet with these flags.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, direction: Direction, flags: u8) -> Self {
        let (syn, fin) = match direction {
            Direction::Original => (Self::SYN_ORIGINAL, Self::FIN_ORIGINAL),
            Direction::Reply => (Self::SYN_REPLY, Self::FIN_REPLY),
        };
        if flags & RST != 0 {
            return Self(self.0 | Self::RESET);
        }
        if flags & SYN != 0 {
            // A reused port (RFC 6191): a SYN on a closed connection opens a new one.
            if self.is_closed() && flags & ACK == 0 {
                return Self(syn);
            }
            return Self(self.0 | syn);
        }
        let mut bits = self.0;
        if bits & Self::OPEN != 0 {
            // Segments after a reset show that it was forged or out of the window (RFC 7857 section
            // 2.2).
            bits &= !Self::RESET;
        }
        const BOTH: u8 = TcpState::SYN_ORIGINAL | TcpState::SYN_REPLY;
        if flags & ACK != 0 && bits & BOTH == BOTH {
            bits |= Self::OPEN;
        }
        if flags & FIN != 0 {
            bits |= fin;
        }
        Self(bits)
    }

    /// Whether both ends have agreed to the connection and neither has closed it.
    #[inline(always)]
    #[must_use]
    pub const fn is_established(self) -> bool {
        self.0 & Self::OPEN != 0
            && self.0 & (Self::FIN_ORIGINAL | Self::FIN_REPLY | Self::RESET) == 0
    }

    /// Whether both ends have closed it, or one has reset it.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        const FINS: u8 = TcpState::FIN_ORIGINAL | TcpState::FIN_REPLY;
        self.0 & Self::RESET != 0 || self.0 & FINS == FINS
    }

    /// Whether nothing new is sent on it: both ends have closed it, or one has closed it and one
    /// has reset it. After a reset alone it may go on, because the reset may be forged, or lost
    /// before it reaches its receiver (RFC 7857 section 2.2).
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        const FINS: u8 = TcpState::FIN_ORIGINAL | TcpState::FIN_REPLY;
        self.0 & FINS == FINS || (self.0 & Self::RESET != 0 && self.0 & FINS != 0)
    }

    /// Whether it was reset before both ends had agreed to it.
    #[inline(always)]
    #[must_use]
    pub const fn is_refused(self) -> bool {
        self.0 & Self::RESET != 0 && self.0 & Self::OPEN == 0
    }

    /// Whether it is still being opened. Such connections have a table of their own, so that a
    /// flood of SYNs displaces no others.
    #[inline(always)]
    #[must_use]
    pub const fn is_opening(self) -> bool {
        self.0 & (Self::OPEN | Self::RESET) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    fn after(packets: &[(Direction, u8)]) -> TcpState {
        packets
            .iter()
            .fold(TcpState::default(), |state, (direction, flags)| {
                state.next(*direction, *flags)
            })
    }

    const OPEN: [(Direction, u8); 3] = [(Original, SYN), (Reply, SYN | ACK), (Original, ACK)];

    #[test]
    fn three_packets_establish() {
        for packets in 1..3 {
            assert!(after(&OPEN[..packets]).is_opening(), "{packets} packets");
            assert!(!after(&OPEN[..packets]).is_established());
        }
        let state = after(&OPEN);
        assert!(state.is_established() && !state.is_opening() && !state.is_closed());
    }

    #[test]
    fn a_simultaneous_open_establishes() {
        // RFC 9293 figure 8; RFC 5382 REQ-2.
        for last in [
            [(Original, SYN | ACK), (Reply, SYN | ACK)],
            [(Reply, SYN | ACK), (Original, SYN | ACK)],
        ] {
            let mut packets = vec![(Original, SYN), (Reply, SYN)];
            packets.extend(last);
            packets.push((Original, ACK));
            assert!(after(&packets).is_established(), "{packets:?}");
        }
        let crossed = [(Original, SYN), (Reply, SYN), (Original, ACK)];
        assert!(after(&crossed).is_established());
    }

    #[test]
    fn one_syn_alone_never_establishes_however_often() {
        let mut state = TcpState::default();
        for _ in 0..10 {
            state = state.next(Original, SYN);
            state = state.next(Original, ACK);
            assert!(state.is_opening() && !state.is_established());
        }
    }

    #[test]
    fn it_is_closed_when_both_have_or_one_resets() {
        let mut packets = OPEN.to_vec();
        packets.push((Original, FIN | ACK));
        let half = after(&packets);
        assert!(!half.is_established() && !half.is_closed() && !half.is_opening());
        packets.push((Reply, ACK));
        assert_eq!(after(&packets), half, "data and ACKs go on");
        packets.push((Reply, FIN | ACK));
        packets.push((Original, ACK));
        assert!(after(&packets).is_closed());
        for direction in [Original, Reply] {
            let mut packets = OPEN.to_vec();
            packets.push((direction, RST));
            assert!(after(&packets).is_closed());
            let refused = [(Original, SYN), (direction, RST | ACK)];
            assert!(after(&refused).is_closed() && !after(&refused).is_opening());
            assert!(after(&refused).is_refused() && !after(&packets).is_refused());
        }
    }

    #[test]
    fn it_is_over_after_two_fins_or_a_fin_and_a_reset() {
        let mut packets = OPEN.to_vec();
        packets.push((Reply, RST));
        assert!(!after(&packets).is_over(), "a reset alone may be forged");
        for (first, second) in [(Original, Reply), (Reply, Original)] {
            for last in [(second, FIN | ACK), (first, RST), (second, RST | ACK)] {
                let mut packets = OPEN.to_vec();
                packets.push((first, FIN | ACK));
                assert!(!after(&packets).is_over());
                packets.push(last);
                assert!(after(&packets).is_over(), "{packets:?}");
                packets.push((Original, SYN));
                assert!(!after(&packets).is_over(), "opened again");
            }
        }
    }

    #[test]
    fn a_forged_reset_does_not_end_what_goes_on() {
        let mut packets = OPEN.to_vec();
        packets.push((Reply, RST));
        assert!(after(&packets).is_closed());
        packets.push((Original, ACK));
        assert!(after(&packets).is_established());
        // A connection that was never open stays refused.
        let refused = [(Original, SYN), (Reply, RST | ACK), (Original, ACK)];
        assert!(after(&refused).is_closed());
    }

    #[test]
    fn a_port_used_again_begins_anew() {
        let mut packets = OPEN.to_vec();
        packets.extend([(Original, FIN | ACK), (Reply, FIN | ACK), (Original, ACK)]);
        packets.push((Original, SYN));
        assert!(after(&packets).is_opening());
        packets.extend(&OPEN[1..]);
        assert!(after(&packets).is_established());
        // A SYN within a connection that is open changes nothing: it may be an old one, or forged.
        let mut packets = OPEN.to_vec();
        packets.push((Reply, SYN));
        assert!(after(&packets).is_established());
    }

    #[test]
    fn only_a_syn_begins() {
        for flags in 0..=u8::MAX {
            let begins = flags & 0x17 == SYN;
            assert_eq!(TcpState::opens(flags), begins, "{flags:02x}");
        }
    }

    #[test]
    fn every_state_is_of_one_kind_and_a_byte_gives_it_back() {
        for bits in 0..0x40 {
            let state = TcpState::from_bits(bits);
            assert_eq!(state.bits(), bits);
            let kinds = [
                state.is_established(),
                state.is_opening(),
                !state.is_established() && !state.is_opening(),
            ];
            assert_eq!(kinds.iter().filter(|is| **is).count(), 1, "{bits:02x}");
            for direction in [Original, Reply] {
                for flags in 0..=u8::MAX {
                    let next = state.next(direction, flags);
                    assert!(next.bits() < 0x40);
                    assert!(next.bits() != 0 || bits == 0, "a state is never forgotten");
                }
            }
        }
    }
}
