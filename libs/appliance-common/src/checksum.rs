//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept as `u32` of 16-bit words **as loaded from memory**: RFC 1071 section 2(B) shows the
//! result, stored the same way, is right in either byte order.

/// Folds a sum of at most 65 536 words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for a header that held `check` before the 16-bit word `old` became `new`
/// (RFC 1624 equation 3: HC' = ~(~HC + ~m + m')). All three in memory order.
#[inline(always)]
#[must_use]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold((!check as u32) + (!old as u32) + (new as u32))
}

/// Sum of `bytes` in memory order; an odd last byte is padded with zero (RFC 1071 section 4.1).
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total = 0u32;
    let (pairs, rest) = bytes.as_chunks::<2>();
    for pair in pairs {
        total += u32::from(u16::from_ne_bytes(*pair));
        total = (total & 0xffff) + (total >> 16);
    }
    if let [last] = rest {
        total += u32::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The checksum of `bytes`, to be stored in memory order; zero over bytes that hold a right one.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 section 3: bytes 00 01 f2 03 f4 f5 f6 f7 sum to ddf2.
        let s = fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(s.to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn rfc_1624_corner() {
        // RFC 1624 section 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000.
        let be = |v: u16| u16::from_ne_bytes(v.to_be_bytes());
        assert_eq!(update(be(0xdd2f), be(0x5555), be(0x3285)), 0x0000);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut header in prop::collection::vec(any::<u8>(), 20..=60), at in 0usize..8, new: u16) {
            header.truncate(header.len() & !1);
            header[0] = 0x45; // never all zero, as in any real header
            header[18] = 0; header[19] = 0;
            let check = checksum(&header);
            let at = 2 + at * 2;
            let old = u16::from_ne_bytes([header[at], header[at + 1]]);
            header[at..at + 2].copy_from_slice(&new.to_ne_bytes());
            prop_assert_eq!(update(check, old, new), checksum(&header));
        }
    }
}
