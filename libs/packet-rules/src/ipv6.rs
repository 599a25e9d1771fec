//! The IPv6 header and its extension headers (RFC 8200).

use crate::Bytes;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// The next-header value of a fragment header (RFC 8200 section 4.5).
pub const FRAGMENT: u8 = 44;
/// Extension headers that [`skip_extensions`] walks at most.
pub const MAX_EXTENSION_HEADERS: usize = 4;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Bytes of a packet whose header begins at `start` of a frame that ends at `end`; `None` if the
/// header is not of version 6 or its length goes beyond the frame.
///
/// `first` is the header's first byte, `payload` its payload length in host byte order. The caller
/// has checked that the frame holds [`HEADER_LEN`] bytes at `start`.
#[inline(always)]
#[must_use]
pub const fn total_len(first: u8, payload: u16, start: usize, end: usize) -> Option<usize> {
    let total = HEADER_LEN + payload as usize;
    if first >> 4 != 6 || start + total > end {
        return None;
    }
    Some(total)
}

/// Whether a next-header value is an extension header that TCP may follow: hop-by-hop options,
/// routing, destination options (RFC 8200 section 4).
#[inline(always)]
#[must_use]
pub const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS)
}

/// The protocol behind at most [`MAX_EXTENSION_HEADERS`] extension headers and its offset. The
/// first header is of type `next` and begins at `offset`; the packet ends at `end`.
///
/// `(0, 0)` where the packet ends before its headers do, or there are more of them: type 0 is
/// hop-by-hop options, which nothing may follow with.
#[inline(always)]
pub fn skip_extensions<B: Bytes + ?Sized>(
    packet: &B,
    offset: u32,
    next: u8,
    end: u32,
) -> (u8, u32) {
    let mut offset = offset;
    let mut next = next;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        if offset + 8 > end {
            return (0, 0);
        }
        let Some([following, units]) = packet.load::<2>(offset) else {
            return (0, 0);
        };
        next = following;
        offset += (units as u32 + 1) * 8;
    }
    if is_extension(next) || offset >= end {
        return (0, 0);
    }
    (next, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_fits_the_frame() {
        assert_eq!(total_len(0x60, 0, 14, 54), Some(40));
        assert_eq!(total_len(0x6f, 8, 14, 80), Some(48), "padding");
        assert_eq!(total_len(0x45, 0, 14, 54), None, "version");
        assert_eq!(total_len(0x60, 1, 14, 54), None, "beyond the frame");
    }

    fn chain(headers: &[(u8, u8)]) -> Vec<u8> {
        let mut bytes = vec![];
        for (next, units) in headers {
            let mut header = vec![0; (usize::from(*units) + 1) * 8];
            header[..2].copy_from_slice(&[*next, *units]);
            bytes.extend(header);
        }
        bytes.extend([0; 8]);
        bytes
    }

    fn skip(headers: &[(u8, u8)], next: u8) -> (u8, u32) {
        let bytes = chain(headers);
        skip_extensions(&bytes[..], 0, next, bytes.len() as u32)
    }

    #[test]
    fn extension_headers_are_walked_to_the_protocol() {
        assert_eq!(skip(&[], 6), (6, 0));
        assert_eq!(skip(&[(6, 0)], HOP_BY_HOP), (6, 8));
        assert_eq!(skip(&[(60, 1), (43, 0), (17, 2)], HOP_BY_HOP), (17, 48));
        assert_eq!(skip(&[(60, 0), (60, 0), (60, 0), (6, 0)], 60), (6, 32));
        assert_eq!(skip(&[(FRAGMENT, 0)], 60), (FRAGMENT, 8));
    }

    #[test]
    fn what_does_not_end_within_the_packet_has_no_protocol() {
        assert_eq!(skip(&[(60, 0); 5], 60), (0, 0), "too many");
        assert_eq!(skip(&[(6, 255)], 60).0, 6);
        let bytes = chain(&[(6, 0)]);
        assert_eq!(skip_extensions(&bytes[..], 0, 60, 7), (0, 0), "cut header");
        assert_eq!(
            skip_extensions(&bytes[..], 0, 60, 8),
            (0, 0),
            "nothing behind it"
        );
        assert_eq!(skip_extensions(&[][..], 0, 60, 100), (0, 0), "no bytes");
    }
}
