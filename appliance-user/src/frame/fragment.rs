//! IPv4 fragmentation (RFC 791 section 3.2).

use appliance_common::checksum::checksum;
use appliance_common::wire::IPV4_LEN;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
/// RFC 791 section 3.1: options copied into every fragment have this bit set.
const OPTION_COPIED: u8 = 0x80;

/// Why a packet can't be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Not a whole IPv4 packet: version, header length or total length contradict the bytes.
    #[error("split IPv4: not a whole packet")]
    Malformed,
    /// The header checksum is wrong; new headers would hide that.
    #[error("split IPv4: wrong header checksum")]
    Checksum,
    /// DF is set and it does not fit.
    #[error("split IPv4: does not fit and must not be split")]
    DontFragment,
    /// The MTU has no room for the header and eight bytes.
    #[error("split IPv4: MTU has no room for a header and eight bytes")]
    MtuTooSmall,
    /// The packet would end beyond 65 535 bytes when rejoined ("ping of death").
    #[error("split IPv4: fragment ends beyond 65535 bytes")]
    TooLong,
}

/// Length of the header of the IPv4 packet in `packet`, bytes, when version, header length and total
/// length agree with each other and with the bytes there are.
#[must_use]
pub fn ipv4_header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IPV4_LEN || packet.len() < header {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    (header <= total && total <= packet.len()).then_some(header)
}

/// Splits an IPv4 packet into pieces of at most `mtu` bytes, in order (RFC 791 section 3.2).
///
/// Bytes behind the total length (Ethernet padding) are left out. A packet that fits comes back as it
/// is. The packet may itself be a fragment. The first piece keeps all options, the others those with
/// the copied flag.
///
/// # Errors
///
/// See [`SplitError`].
pub fn split_v4(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, SplitError> {
    let header_len = ipv4_header_len(packet).ok_or(SplitError::Malformed)?;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let header = &packet[..header_len];
    let payload = &packet[header_len..total];
    if checksum(header) != 0 {
        return Err(SplitError::Checksum);
    }
    if total <= mtu {
        return Ok(vec![packet[..total].to_vec()]);
    }
    let word = u16::from_be_bytes([header[6], header[7]]);
    if word & DONT_FRAGMENT != 0 {
        return Err(SplitError::DontFragment);
    }
    let last_is_last = word & MORE_FRAGMENTS == 0;
    let first_offset = usize::from(word & OFFSET_MASK);
    if first_offset * 8 + payload.len() + header_len > usize::from(u16::MAX) {
        return Err(SplitError::TooLong);
    }
    let rest_header = later_header(header);
    // The first header is the longest: what fits behind it fits behind the others.
    if mtu < header_len + 8 {
        return Err(SplitError::MtuTooSmall);
    }

    let mut pieces = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let head: &[u8] = if at == 0 { header } else { &rest_header };
        let room = mtu - head.len();
        let left = payload.len() - at;
        let take = if left <= room { left } else { room & !7 };
        let more = at + take < payload.len() || !last_is_last;
        let offset = first_offset + at / 8;
        let flags = offset as u16 | if more { MORE_FRAGMENTS } else { 0 };

        let mut piece = Vec::with_capacity(head.len() + take);
        piece.extend_from_slice(head);
        piece.extend_from_slice(&payload[at..at + take]);
        let len = piece.len() as u16;
        piece[0] = 0x40 | (head.len() / 4) as u8;
        piece[2..4].copy_from_slice(&len.to_be_bytes());
        piece[6..8].copy_from_slice(&flags.to_be_bytes());
        piece[10..12].fill(0);
        let check = checksum(&piece[..head.len()]);
        piece[10..12].copy_from_slice(&check.to_ne_bytes());
        pieces.push(piece);
        at += take;
    }
    Ok(pieces)
}

/// The header of the second and later pieces: fixed part and the options with the copied flag, padded
/// to four bytes with "end of options".
fn later_header(header: &[u8]) -> Vec<u8> {
    let mut later = header[..IPV4_LEN].to_vec();
    let mut options = &header[IPV4_LEN..];
    while let [kind, tail @ ..] = options {
        let len = match kind {
            0 => break,
            1 => {
                options = tail;
                continue;
            }
            _ => usize::from(tail.first().copied().unwrap_or(0)),
        };
        // An option whose length lies ends the list: nothing behind it can be told apart.
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
