//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), over 16-bit words as loaded from memory: RFC 1071 section
//! 2(B) shows that the result, stored the same way, is right in either byte order.

/// Folds a sum of at most 2³² words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What a sum gains when the 32-bit word `old` becomes `new`.
#[inline(always)]
#[must_use]
pub const fn word(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// The checksum field that held `check` before a change of `delta` (RFC 1624 equation 3).
#[inline(always)]
#[must_use]
pub const fn update(check: u16, delta: u64) -> u16 {
    !fold((!check) as u64 + delta)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(words: &[u32]) -> u16 {
        !fold(words.iter().map(|word| u64::from(*word)).sum())
    }

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 section 3: bytes 00 01 f2 03 f4 f5 f6 f7 sum to ddf2.
        let words = [[0x00, 0x01, 0xf2, 0x03], [0xf4, 0xf5, 0xf6, 0xf7]];
        let sum = words
            .iter()
            .map(|w| u64::from(u32::from_ne_bytes(*w)))
            .sum();
        assert_eq!(fold(sum).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut words: [u32; 11], new: [u32; 11]) {
            words[0] = 0x45; // never all zero, as in any real header
            let check = checksum(&words);
            let delta = (1..11).map(|n| word(words[n], new[n])).sum();
            words[1..].copy_from_slice(&new[1..]);
            prop_assert_eq!(update(check, delta), checksum(&words));
        }
    }
}
