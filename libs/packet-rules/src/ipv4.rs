//! The IPv4 header (RFC 791 section 3.1).

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// In the flags and fragment field: the packet must not be split.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// In the flags and fragment field: other fragments follow this one.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// In the flags and fragment field: the offset, units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// The lengths that a valid header gives, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Of the header with its options, 20 to 60.
    pub header: usize,
    /// Of the packet with its header.
    pub total: usize,
}

/// The lengths of a packet whose header begins at `start` of a frame that ends at `end`; `None` if
/// the header is not of version 4 or its lengths contradict each other or the frame.
///
/// `first` is the header's first byte, `total` its total length in host byte order. The caller has
/// checked that the frame holds [`HEADER_LEN`] bytes at `start`.
#[inline(always)]
#[must_use]
pub const fn lengths(first: u8, total: u16, start: usize, end: usize) -> Option<Lengths> {
    let header = ((first & 0x0f) as usize) * 4;
    let total = total as usize;
    if first >> 4 != 4 || header < HEADER_LEN || total < header || start + total > end {
        return None;
    }
    Some(Lengths { header, total })
}

/// Whether a packet with this flags and fragment field, host byte order, is a fragment, the first
/// one included.
#[inline(always)]
#[must_use]
pub const fn is_fragment(field: u16) -> bool {
    field & (MORE_FRAGMENTS | OFFSET_MASK) != 0
}

/// Whether a packet with this flags and fragment field, host byte order, is a fragment other than
/// the first, so that it has no header of the next protocol.
#[inline(always)]
#[must_use]
pub const fn is_later_fragment(field: u16) -> bool {
    field & OFFSET_MASK != 0
}

/// Whether a packet with this flags and fragment field, host byte order, may be split.
#[inline(always)]
#[must_use]
pub const fn may_fragment(field: u16) -> bool {
    field & DONT_FRAGMENT == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_agree_with_each_other_and_the_frame() {
        let valid = |header, total| Some(Lengths { header, total });
        assert_eq!(lengths(0x45, 20, 14, 34), valid(20, 20));
        assert_eq!(lengths(0x45, 20, 14, 60), valid(20, 20), "padding");
        assert_eq!(lengths(0x4f, 60, 0, 60), valid(60, 60));
        assert_eq!(lengths(0x46, 1500, 18, 1518), valid(24, 1500));
        assert_eq!(lengths(0x65, 20, 0, 20), None, "version");
        assert_eq!(lengths(0x44, 20, 0, 20), None, "header below the least");
        assert_eq!(lengths(0x46, 20, 0, 24), None, "total below the header");
        assert_eq!(lengths(0x45, 21, 14, 34), None, "total beyond the frame");
        assert_eq!(lengths(0x45, u16::MAX, 0, 1500), None);
    }

    #[test]
    fn fragments_are_told_from_whole_packets() {
        for (field, fragment, later, may) in [
            (0x0000, false, false, true),
            (0x4000, false, false, false),
            (0x8000, false, false, true),
            (0x2000, true, false, true),
            (0x2001, true, true, true),
            (0x0001, true, true, true),
            (0x4001, true, true, false),
            (0x1fff, true, true, true),
        ] {
            assert_eq!(is_fragment(field), fragment, "{field:04x}");
            assert_eq!(is_later_fragment(field), later, "{field:04x}");
            assert_eq!(may_fragment(field), may, "{field:04x}");
        }
    }
}
