//! IPv4 fragmentation (RFC 791 section 3.2).

use packet_rules::checksum::checksum;
use packet_rules::ipv4::{self, HEADER_LEN, Lengths, MORE_FRAGMENTS, OFFSET_MASK, may_fragment};

/// RFC 791 section 3.1: options copied into every fragment have this bit set.
const OPTION_COPIED: u8 = 0x80;

/// Why a packet cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Version, header length or total length do not match the bytes.
    #[error("split IPv4: header does not match the packet's length")]
    Malformed,
    /// The header checksum is wrong. The new headers would hide that.
    #[error("split IPv4: wrong header checksum")]
    Checksum,
    /// The packet exceeds the MTU and has DF set.
    #[error("split IPv4: packet exceeds the MTU and has DF set")]
    DontFragment,
    /// The MTU has no room for the header and eight bytes.
    #[error("split IPv4: MTU has no room for a header and eight bytes")]
    MtuTooSmall,
    /// The reassembled packet would be longer than 65 535 bytes ("ping of death").
    #[error("split IPv4: fragment ends beyond 65535 bytes")]
    TooLong,
}

/// Lengths of the IPv4 packet at the start of `packet`, if version, header length and total length
/// match each other and the bytes.
#[must_use]
pub fn ipv4_lengths(packet: &[u8]) -> Option<Lengths> {
    let header: &[u8; HEADER_LEN] = packet.first_chunk()?;
    let total = u16::from_be_bytes([header[2], header[3]]);
    ipv4::lengths(header[0], total, 0, packet.len())
}

/// Splits an IPv4 packet into fragments of at most `mtu` bytes, in order (RFC 791 section 3.2).
///
/// Bytes behind the total length (Ethernet padding) are left out. A packet that fits is returned
/// unchanged. The packet may itself be a fragment. The first fragment keeps all options, the others
/// keep those with the copied flag.
///
/// # Errors
///
/// See [`SplitError`].
pub fn split_v4(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, SplitError> {
    let lengths = ipv4_lengths(packet).ok_or(SplitError::Malformed)?;
    let (header_len, total) = (lengths.header, lengths.total);
    let header = &packet[..header_len];
    let payload = &packet[header_len..total];
    if checksum(header) != 0 {
        return Err(SplitError::Checksum);
    }
    if total <= mtu {
        return Ok(vec![packet[..total].to_vec()]);
    }
    let field = u16::from_be_bytes([header[6], header[7]]);
    if !may_fragment(field) {
        return Err(SplitError::DontFragment);
    }
    let ends_datagram = field & MORE_FRAGMENTS == 0;
    let first_offset = usize::from(field & OFFSET_MASK);
    if first_offset * 8 + payload.len() + header_len > usize::from(u16::MAX) {
        return Err(SplitError::TooLong);
    }
    let later_header = later_header(header);
    // The first header is the longest, so the later ones leave at least as much space.
    if mtu < header_len + 8 {
        return Err(SplitError::MtuTooSmall);
    }

    let mut fragments = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let head: &[u8] = if at == 0 { header } else { &later_header };
        let room = mtu - head.len();
        let left = payload.len() - at;
        let take = if left <= room { left } else { room & !7 };
        let more = at + take < payload.len() || !ends_datagram;
        let offset = first_offset + at / 8;
        let flags = offset as u16 | if more { MORE_FRAGMENTS } else { 0 };

        let mut fragment = Vec::with_capacity(head.len() + take);
        fragment.extend_from_slice(head);
        fragment.extend_from_slice(&payload[at..at + take]);
        let len = fragment.len() as u16;
        fragment[0] = 0x40 | (head.len() / 4) as u8;
        fragment[2..4].copy_from_slice(&len.to_be_bytes());
        fragment[6..8].copy_from_slice(&flags.to_be_bytes());
        fragment[10..12].fill(0);
        let check = checksum(&fragment[..head.len()]);
        fragment[10..12].copy_from_slice(&check.to_ne_bytes());
        fragments.push(fragment);
        at += take;
    }
    Ok(fragments)
}

/// The header of the second and later fragments: the fixed part and the options with the copied
/// flag, padded to four bytes with "end of options".
fn later_header(header: &[u8]) -> Vec<u8> {
    let mut later = header[..HEADER_LEN].to_vec();
    let mut options = &header[HEADER_LEN..];
    while let [kind, tail @ ..] = options {
        let len = match kind {
            0 => break,
            1 => {
                options = tail;
                continue;
            }
            _ => usize::from(tail.first().copied().unwrap_or(0)),
        };
        // Behind an option with an invalid length, no other option can be found.
        if len < 2 || len > options.len() {
            break;
        }
        if kind & OPTION_COPIED != 0 {
            later.extend_from_slice(&options[..len]);
        }
        options = &options[len..];
    }
    later.resize(later.len().next_multiple_of(4), 0);
    later
}
