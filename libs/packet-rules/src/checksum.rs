//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are of 16- or 32-bit words **as loaded from memory**: RFC 1071 section 2(B) shows that the
//! result, stored the same way, is correct in either byte order.

use crate::Bytes;

/// Folds a sum of at most 65 536 16-bit words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Folds a sum of at most 2^32 32-bit words into 16 bits: 2^16 is 1 in this arithmetic (RFC 1071
/// section 2(C)).
#[inline(always)]
#[must_use]
pub const fn fold64(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field of a header that held `check` before the 16-bit word `old` became `new`
/// (RFC 1624 equation 3: HC' = ~(~HC + ~m + m')). All three in memory order.
#[inline(always)]
#[must_use]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold((!check as u32) + (!old as u32) + (new as u32))
}

/// Checksum changes of several words, to be added up and given to [`apply`].
pub type Delta = u64;

/// The change when the 16-bit word `old` becomes `new`. Memory order.
#[inline(always)]
#[must_use]
pub const fn delta16(old: u16, new: u16) -> Delta {
    (!old) as u64 + new as u64
}

/// The change when the 32-bit word `old` becomes `new`. Memory order.
#[inline(always)]
#[must_use]
pub const fn delta32(old: u32, new: u32) -> Delta {
    (!old) as u64 + new as u64
}

/// The checksum field that held `check` before a change of `delta` (RFC 1624 equation 3).
#[inline(always)]
#[must_use]
pub const fn apply(check: u16, delta: Delta) -> u16 {
    !fold64((!check) as u64 + delta)
}

/// As [`apply`], for the checksum field of UDP: zero means "no checksum" (RFC 768), so zero stays
/// zero and no other value becomes zero.
#[inline(always)]
#[must_use]
pub const fn apply_udp(check: u16, delta: Delta) -> u16 {
    if check == 0 {
        return 0;
    }
    let check = apply(check, delta);
    if check == 0 { 0xffff } else { check }
}

/// The folded sum of `bytes` in memory order; an odd last byte is padded with zero (RFC 1071
/// section 4.1).
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total = 0u64;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    fold64(total).into()
}

/// The checksum of `bytes`, to be stored in memory order; zero over bytes that contain a correct
/// one.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The folded sum of the pseudo-header of a TCP segment or UDP datagram of `len` bytes, memory
/// order; `addresses` is the sum of the words of its addresses. Those of an IPv4 address in mapped
/// form give the same, as they are a multiple of 65 535 more.
#[inline(always)]
#[must_use]
pub const fn pseudo_sum(addresses: u64, protocol: u8, len: usize) -> u16 {
    let protocol = (protocol as u16).to_be();
    fold64(addresses + protocol as u64 + (len as u16).to_be() as u64)
}

/// Longest segment or datagram that [`is_partial`] looks at, bytes.
pub const MAX_PARTIAL_LEN: u32 = 512;

/// Whether the sender of a TCP segment or UDP datagram left its checksum to its NIC: the field then
/// holds the sum of the pseudo-header alone (Linux: CHECKSUM_PARTIAL). The transport header is at
/// `start`, its checksum at `field`, and the packet ends at `end`; `pseudo` is that sum, folded, in
/// memory order. False for more than [`MAX_PARTIAL_LEN`] bytes.
#[inline(always)]
pub fn is_partial<B: Bytes + ?Sized>(
    packet: &B,
    pseudo: u16,
    start: u32,
    field: u32,
    end: u32,
) -> bool {
    let Some(check) = packet.load::<2>(field) else {
        return false;
    };
    if u16::from_ne_bytes(check) != pseudo {
        return false;
    }
    // One in 65 536 whole checksums has this value too.
    let mut sum = u64::from(pseudo);
    let mut at = start;
    for _ in 0..MAX_PARTIAL_LEN / 4 {
        if at + 4 > end {
            break;
        }
        let Some(word) = packet.load::<4>(at) else {
            return false;
        };
        sum += u64::from(u32::from_ne_bytes(word));
        at += 4;
    }
    if at + 2 <= end {
        let Some(half) = packet.load::<2>(at) else {
            return false;
        };
        sum += u64::from(u16::from_ne_bytes(half));
        at += 2;
    }
    if at < end {
        let Some([byte]) = packet.load::<1>(at) else {
            return false;
        };
        sum += u64::from(u16::from_ne_bytes([byte, 0]));
        at += 1;
    }
    at == end && fold64(sum) != 0xffff
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 section 3: bytes 00 01 f2 03 f4 f5 f6 f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
        let words = [[0x00, 0x01, 0xf2, 0x03], [0xf4, 0xf5, 0xf6, 0xf7]];
        let total = words
            .iter()
            .map(|w| u64::from(u32::from_ne_bytes(*w)))
            .sum();
        assert_eq!(fold64(total).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 section 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000.
        let be = |v: u16| u16::from_ne_bytes(v.to_be_bytes());
        assert_eq!(update(be(0xdd2f), be(0x5555), be(0x3285)), 0x0000);
        assert_eq!(apply(be(0xdd2f), delta16(be(0x5555), be(0x3285))), 0x0000);
    }

    #[test]
    fn a_udp_checksum_stays_absent_and_never_becomes_absent() {
        let be = |v: u16| u16::from_ne_bytes(v.to_be_bytes());
        assert_eq!(apply_udp(0, delta16(1, 2)), 0);
        assert_eq!(
            apply_udp(be(0xdd2f), delta16(be(0x5555), be(0x3285))),
            0xffff
        );
    }

    #[test]
    fn a_partial_checksum_is_the_pseudo_headers() {
        const FIELD: usize = 6;
        for len in [8, 9, 10, 11, 12, 40, 511, 512] {
            let mut datagram: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let end = len as u32;
            let addresses = [10u8, 1, 0, 11, 10, 1, 0, 10];
            let words = |bytes: &[u8]| u64::from(sum(bytes));
            let pseudo = pseudo_sum(words(&addresses), 17, len);
            let mapped = pseudo_sum(words(&addresses) + 2 * 0xffff, 17, len);
            assert_eq!(pseudo, mapped, "in mapped form");
            let is_partial = |bytes: &[u8]| is_partial(bytes, pseudo, 0, FIELD as u32, end);
            datagram[FIELD..8].copy_from_slice(&pseudo.to_ne_bytes());
            assert!(is_partial(&datagram), "{len}");
            assert!(!is_partial(&datagram[..len - 1]), "{len}: cut");
            let mut whole = datagram.clone();
            whole[FIELD..8].fill(0);
            let total = u32::from(pseudo) + sum(&whole);
            whole[FIELD..8].copy_from_slice(&(!fold(total)).to_ne_bytes());
            assert!(!is_partial(&whole), "{len}: whole");
            // A whole checksum that happens to have the value of the pseudo-header: the rest then
            // sums to the complement of twice that value.
            let mut chance = datagram.clone();
            chance[4..6].fill(0);
            let rest = u32::from(pseudo) + sum(&chance);
            chance[4..6].copy_from_slice(&(!fold(rest)).to_ne_bytes());
            assert!(!is_partial(&chance), "{len}: right by chance");
        }
        let long = vec![0; 1000];
        assert!(
            !is_partial(&long[..], 0, 0, 6, 1000),
            "too long to be summed"
        );
    }

    /// The checksum of RFC 1071 section 4.1, word for word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn the_checksum_is_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(u16::from_be(checksum(&bytes)), reference(&bytes));
        }

        #[test]
        fn one_changed_word_equals_a_full_sum(
            mut header in prop::collection::vec(any::<u8>(), 20..=60),
            at in 0usize..8,
            new: u16,
        ) {
            header.truncate(header.len() & !1);
            header[0] = 0x45; // never all zero, as in any real header
            header[18] = 0; header[19] = 0;
            let check = checksum(&header);
            let at = 2 + at * 2;
            let old = u16::from_ne_bytes([header[at], header[at + 1]]);
            header[at..at + 2].copy_from_slice(&new.to_ne_bytes());
            prop_assert_eq!(update(check, old, new), checksum(&header));
            prop_assert_eq!(apply(check, delta16(old, new)), checksum(&header));
        }

        #[test]
        fn many_changed_words_equal_a_full_sum(mut words: [u32; 11], new: [u32; 11]) {
            words[0] = 0x45; // never all zero, as in any real header
            let full = |words: &[u32; 11]| !fold64(words.iter().map(|w| u64::from(*w)).sum());
            let check = full(&words);
            let delta = (1..11).map(|n| delta32(words[n], new[n])).sum();
            words[1..].copy_from_slice(&new[1..]);
            prop_assert_eq!(apply(check, delta), full(&words));
        }
    }
}
