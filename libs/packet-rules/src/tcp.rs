//! The MSS that a TCP SYN announces, and its clamping to an MTU; the reset that answers a segment.

use crate::{Bytes, checksum};

/// Bytes of a header without options (RFC 9293 section 3.1).
pub const HEADER_LEN: usize = 20;
/// Offset of the flags in the header.
pub const FLAGS_AT: usize = 13;
/// Offset of the checksum in the header.
pub const CHECKSUM_AT: usize = 16;
/// The FIN bit of the flags.
pub const FIN: u8 = 0x01;
/// The SYN bit of the flags.
pub const SYN: u8 = 0x02;
/// The RST bit of the flags.
pub const RST: u8 = 0x04;
/// The ACK bit of the flags.
pub const ACK: u8 = 0x10;
/// TCP options that [`find_mss`] walks at most; 40 bytes of options hold at most this many that any
/// stack sends in front of the MSS.
pub const MAX_OPTIONS: usize = 8;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// Whether a segment with these flags announces an MSS.
#[inline(always)]
#[must_use]
pub const fn is_syn(flags: u8) -> bool {
    flags & SYN != 0
}

/// The MSS that fits an inner MTU: the MTU less the IP and TCP headers without options (RFC 9293
/// section 3.7.1, RFC 6691). Host byte order.
#[inline(always)]
#[must_use]
pub const fn mss_for(inner_mtu: u16, ipv6: bool) -> u16 {
    let headers = if ipv6 { 60 } else { 40 };
    inner_mtu.saturating_sub(headers)
}

/// The reset that answers a segment: its header but for the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetOf {
    ports: [u8; 4],
    /// Sequence number, host byte order.
    pub sequence: u32,
    /// Acknowledgment number, host byte order; zero without the flag.
    pub acknowledgment: u32,
    pub flags: u8,
}

/// The reset that answers the segment of `len` bytes whose header begins with `header`; `None` for
/// a reset, or a header that is longer than its segment (RFC 9293 section 3.10.7.1: a reset takes
/// its sequence number from the acknowledgment, if there is one, and else acknowledges the
/// segment).
#[inline(always)]
#[must_use]
pub const fn reset_of(header: &[u8; 14], len: u32) -> Option<ResetOf> {
    let [a, b, c, d, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags] = *header;
    let header_len = (offset >> 4) as u32 * 4;
    if flags & RST != 0 || header_len < HEADER_LEN as u32 || header_len > len {
        return None;
    }
    let ports = [c, d, a, b];
    if flags & ACK != 0 {
        return Some(ResetOf {
            ports,
            sequence: u32::from_be_bytes([a0, a1, a2, a3]),
            acknowledgment: 0,
            flags: RST,
        });
    }
    let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
    let mut taken = len - header_len;
    if flags & SYN != 0 {
        taken += 1;
    }
    if flags & FIN != 0 {
        taken += 1;
    }
    Some(ResetOf {
        ports,
        sequence: 0,
        acknowledgment: sequence.wrapping_add(taken),
        flags: RST | ACK,
    })
}

impl ResetOf {
    /// The header's first four words in memory order: ports, numbers, length and flags with an
    /// empty window. The checksum and the urgent pointer, the fifth, are zero.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        const OFFSET: u8 = (HEADER_LEN as u8 / 4) << 4;
        [
            u32::from_ne_bytes(self.ports),
            self.sequence.to_be(),
            self.acknowledgment.to_be(),
            u32::from_ne_bytes([OFFSET, self.flags, 0, 0]),
        ]
    }
}

/// An MSS option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mss {
    /// Offset of its value in the packet.
    pub at: u32,
    /// Its value, host byte order.
    pub value: u16,
}

/// The MSS option of the segment whose header is at `tcp` in a packet that ends at `end`; `None`
/// for a segment that is no SYN, without the option (the receiver then assumes 536, RFC 9293
/// section 3.7.1, which always fits), or with malformed options, which the receiver refuses.
#[inline(always)]
pub fn find_mss<B: Bytes + ?Sized>(packet: &B, tcp: u32, end: u32) -> Option<Mss> {
    if tcp + HEADER_LEN as u32 > end {
        return None;
    }
    let [length, flags] = packet.load::<2>(tcp + 12)?;
    if !is_syn(flags) {
        return None;
    }
    let options_end = tcp + (length >> 4) as u32 * 4;
    if options_end > end {
        return None;
    }
    let mut at = tcp + HEADER_LEN as u32;
    for _ in 0..MAX_OPTIONS {
        // Fewer bytes hold no MSS.
        if at + MSS_LEN as u32 > options_end {
            return None;
        }
        let [kind, size, high, low] = packet.load::<4>(at)?;
        match kind {
            END_OF_OPTIONS => return None,
            NO_OPERATION => at += 1,
            MSS if size == MSS_LEN => {
                return Some(Mss {
                    at: at + 2,
                    value: u16::from_be_bytes([high, low]),
                });
            }
            MSS => return None,
            _ if size < 2 => return None,
            _ => at += size as u32,
        }
    }
    None
}

/// The segment's checksum, memory order, when the MSS `value` found at `mss_at` becomes `limit`
/// (RFC 1624); `tcp` is the offset of the TCP header.
///
/// Words of the checksum begin at even offsets of the TCP header. An option at an odd one changes
/// the low half of one word and the high half of the next, which is the same sum with the bytes
/// exchanged.
#[inline(always)]
#[must_use]
pub const fn clamped_checksum(check: u16, tcp: u32, mss: Mss, limit: u16) -> u16 {
    // Without a branch: the verifier would walk through both for each offset.
    let odd = 8 * ((mss.at - tcp) & 1);
    let old = mss.value.to_be().rotate_left(odd);
    let new = limit.to_be().rotate_left(odd);
    checksum::update(check, old, new)
}

/// Lowers the MSS option of the SYN whose TCP header is at `tcp` of `packet`, which ends with its
/// last byte, to `limit` if it is higher, and corrects the checksum. Returns whether it did.
pub fn clamp(packet: &mut [u8], tcp: usize, limit: u16) -> bool {
    let Some(mss) = find_mss(&*packet, tcp as u32, packet.len() as u32) else {
        return false;
    };
    if mss.value <= limit {
        return false;
    }
    let at = mss.at as usize;
    let field = tcp + CHECKSUM_AT;
    let check = u16::from_ne_bytes([packet[field], packet[field + 1]]);
    let check = clamped_checksum(check, tcp as u32, mss, limit);
    packet[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    packet[field..field + 2].copy_from_slice(&check.to_ne_bytes());
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::checksum;

    /// A TCP header with these options, padded to whole words, and a correct checksum of itself.
    fn segment(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0x11; HEADER_LEN];
        tcp.extend(options);
        tcp.resize(tcp.len().next_multiple_of(4), 0);
        tcp[12] = (tcp.len() as u8 / 4) << 4;
        tcp[FLAGS_AT] = flags;
        tcp[16..18].fill(0);
        let check = checksum(&tcp).to_ne_bytes();
        tcp[16..18].copy_from_slice(&check);
        tcp
    }

    fn found(tcp: &[u8]) -> Option<u16> {
        find_mss(tcp, 0, tcp.len() as u32).map(|mss| mss.value)
    }

    #[test]
    fn the_mss_fits_the_mtu() {
        assert_eq!(mss_for(1450, false), 1410);
        assert_eq!(mss_for(1450, true), 1390);
        assert_eq!(mss_for(0, true), 0);
    }

    #[test]
    fn a_reset_takes_the_acknowledged_number_or_acknowledges_the_segment() {
        let header = |flags: u8, words: u8| {
            let mut header = [0; 14];
            header[..4].copy_from_slice(&[0x9c, 0x40, 0, 22]);
            header[4..8].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
            header[8..12].copy_from_slice(&77u32.to_be_bytes());
            header[12] = words << 4;
            header[13] = flags;
            header
        };
        let reset = reset_of(&header(ACK | FIN, 5), 30).expect("a reset");
        assert_eq!((reset.sequence, reset.acknowledgment), (77, 0));
        assert_eq!(reset.flags, RST);
        assert_eq!(reset.words()[0].to_ne_bytes(), [0, 22, 0x9c, 0x40]);
        assert_eq!(reset.words()[3].to_ne_bytes(), [0x50, RST, 0, 0]);
        // Ten bytes of data, and one number for each of SYN and FIN; the numbers go round.
        for (flags, taken) in [(0, 10), (SYN, 11), (SYN | FIN, 12)] {
            let reset = reset_of(&header(flags, 6), 34).expect("a reset");
            let next = 0xffff_fffe_u32.wrapping_add(taken);
            assert_eq!((reset.sequence, reset.acknowledgment), (0, next));
            assert_eq!(reset.flags, RST | ACK);
        }
        assert_eq!(reset_of(&header(RST | ACK, 5), 20), None);
        assert_eq!(reset_of(&header(ACK, 4), 20), None, "a short header");
        assert_eq!(
            reset_of(&header(ACK, 6), 20),
            None,
            "longer than the segment"
        );
    }

    #[test]
    fn the_option_is_found_behind_others() {
        let mss = [2, 4, 5, 180];
        assert_eq!(found(&segment(SYN, &mss)), Some(1460));
        assert_eq!(found(&segment(SYN | 0x10, &mss)), Some(1460), "SYN and ACK");
        let behind = [&[1, 1, 3, 3, 7, 4, 2][..], &mss].concat();
        assert_eq!(found(&segment(SYN, &behind)), Some(1460));
    }

    #[test]
    fn no_option_is_found_where_there_is_none_or_it_is_malformed() {
        assert_eq!(found(&segment(0x10, &[2, 4, 5, 180])), None, "no SYN");
        assert_eq!(found(&segment(SYN, &[])), None);
        assert_eq!(
            found(&segment(SYN, &[0, 2, 4, 5, 180])),
            None,
            "behind the end"
        );
        assert_eq!(found(&segment(SYN, &[2, 3, 5, 180])), None, "length");
        assert_eq!(
            found(&segment(SYN, &[8, 1, 0, 0])),
            None,
            "size below the least"
        );
        let many = [&[1; 8][..], &[2, 4, 5, 180]].concat();
        assert_eq!(found(&segment(SYN, &many)), None, "too many in front of it");
        let mut tcp = segment(SYN, &[2, 4, 5, 180]);
        tcp.truncate(22);
        assert_eq!(found(&tcp), None, "cut");
    }

    proptest! {
        #[test]
        fn a_clamped_segment_has_a_correct_checksum(
            padding in 0usize..4,
            value: u16,
            limit: u16,
            payload in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut options = vec![1; padding];
            options.extend([2, 4]);
            options.extend(value.to_be_bytes());
            let mut packet = segment(SYN, &options);
            let end = packet.len();
            packet.extend(&payload);
            let before = packet.clone();
            let clamped = clamp(&mut packet, 0, limit);
            prop_assert_eq!(clamped, value > limit);
            prop_assert_eq!(found(&packet), Some(value.min(limit)));
            prop_assert_eq!(checksum(&packet[..end]), 0);
            if !clamped {
                prop_assert_eq!(packet, before);
            }
        }

        #[test]
        fn random_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            at in 0usize..100,
        ) {
            if let Some(flags) = bytes.get_mut(at + FLAGS_AT) {
                *flags |= SYN;
            }
            let length = bytes.len();
            clamp(&mut bytes, at, 1000);
            prop_assert_eq!(bytes.len(), length);
        }
    }
}
