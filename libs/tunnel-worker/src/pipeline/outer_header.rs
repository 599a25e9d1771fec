//! The headers around a datagram: written from a template, and checked on receipt.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU64,
    ops::Range,
};

use appliance_common::{
    checksum,
    wire::{
        CIRCUIT_ID_LEN, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_UDP, IPV4_LEN, IPV6_LEN,
        UDP_LEN,
    },
};
use tunnel::PeerPath;

/// Ethernet, IPv4 and UDP headers, bytes.
const V4: usize = ETH_LEN + IPV4_LEN + UDP_LEN;
/// Ethernet, IPv6 and UDP headers, bytes.
const V6: usize = ETH_LEN + IPV6_LEN + UDP_LEN;

/// The headers in front of every datagram to a peer, ready but for lengths and checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterHeader {
    /// Interface to send on.
    pub ifindex: u32,
    /// Where to.
    pub path: PeerPath,
    header: [u8; V6 + CIRCUIT_ID_LEN],
    /// The length of the headers up to and including that of UDP.
    headers: usize,
    /// The length with the circuit's ID.
    len: usize,
}

impl OuterHeader {
    /// From `local` by a path of datagrams, and the next hop's MAC address. DF is set, hop limit is
    /// 64. `None` when the two are not of one family, or the path is a stream.
    #[must_use]
    pub fn new(
        ifindex: u32,
        next_hop: [u8; 6],
        source: [u8; 6],
        local: SocketAddr,
        path: impl Into<PeerPath>,
    ) -> Option<Self> {
        let path = path.into();
        let remote = path.address()?;
        let mut header = [0; V6 + CIRCUIT_ID_LEN];
        header[..6].copy_from_slice(&next_hop);
        header[6..12].copy_from_slice(&source);
        let ip = ETH_LEN;
        let headers = match (local.ip(), remote.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
                header[ip] = 0x45;
                header[ip + 6] = 0x40; // DF
                header[ip + 8] = 64;
                header[ip + 9] = IPPROTO_UDP;
                header[ip + 12..ip + 16].copy_from_slice(&from.octets());
                header[ip + 16..ip + 20].copy_from_slice(&to.octets());
                let check = checksum::checksum(&header[ip..ip + IPV4_LEN]);
                header[ip + 10..ip + 12].copy_from_slice(&check.to_ne_bytes());
                V4
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
                header[ip] = 0x60;
                header[ip + 6] = IPPROTO_UDP;
                header[ip + 7] = 64;
                header[ip + 8..ip + 24].copy_from_slice(&from.octets());
                header[ip + 24..ip + 40].copy_from_slice(&to.octets());
                V6
            }
            _ => return None,
        };
        let udp = headers - UDP_LEN;
        header[udp..udp + 2].copy_from_slice(&local.port().to_be_bytes());
        header[udp + 2..udp + 4].copy_from_slice(&remote.port().to_be_bytes());
        let mut len = headers;
        if let Some(id) = path.circuit() {
            len += CIRCUIT_ID_LEN;
            header[headers..len].copy_from_slice(&id.get().to_be_bytes());
        }
        Some(Self {
            ifindex,
            path,
            header,
            headers,
            len,
        })
    }

    /// Bytes in front of the datagram.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.len
    }

    /// For a stream: there are no headers, and no interface.
    #[must_use]
    pub const fn tls(id: NonZeroU64) -> Self {
        Self {
            ifindex: 0,
            path: PeerPath::Stream(id),
            header: [0; V6 + CIRCUIT_ID_LEN],
            headers: 0,
            len: 0,
        }
    }

    /// Writes the headers in front of the `payload` bytes that stand behind them in `frame`;
    /// returns the bytes of the frame. `None` when a length field would not hold it.
    pub fn finish(&self, frame: &mut [u8], payload: usize) -> Option<usize> {
        let total = self.len + payload;
        if self.headers == 0 {
            return (total <= frame.len()).then_some(total);
        }
        let udp = self.headers - UDP_LEN;
        let udp_len = u16::try_from(total - udp).ok()?;
        let (head, rest) = frame.get_mut(..total)?.split_at_mut(self.len);
        head.copy_from_slice(&self.header[..self.len]);
        head[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        if self.headers == V4 {
            let ip_len = udp_len.checked_add(IPV4_LEN as u16)?.to_be();
            head[ETH_LEN + 2..ETH_LEN + 4].copy_from_slice(&ip_len.to_ne_bytes());
            let check = u16::from_ne_bytes([head[ETH_LEN + 10], head[ETH_LEN + 11]]);
            let check = checksum::update(check, 0, ip_len);
            head[ETH_LEN + 10..ETH_LEN + 12].copy_from_slice(&check.to_ne_bytes());
            // The UDP checksum stays zero, "not computed" (RFC 768): the datagram is authenticated.
        } else {
            head[ETH_LEN + 4..ETH_LEN + 6].copy_from_slice(&udp_len.to_be_bytes());
            // Over IPv6 every receiver but a tunnel's wants one (RFC 8200 section 8.1).
            let sum = sum_words(&head[ETH_LEN + 8..ETH_LEN + 40])
                + u64::from(u16::from(IPPROTO_UDP).to_be())
                + u64::from(udp_len.to_be())
                + sum_words(&head[udp..])
                + sum_words(rest);
            let check = match !fold(sum) {
                0 => 0xffff,
                check => check,
            };
            head[udp + 6..udp + 8].copy_from_slice(&check.to_ne_bytes());
        }
        Some(total)
    }
}

/// The sum of the 16-bit words of a text, in the machine's byte order, not folded yet; a last odd
/// byte has a zero behind it (RFC 1071). Only the last part of a text may be odd.
///
/// It adds 32-bit words, so that the compiler uses vector instructions: RFC 1071 section 2(C).
fn sum_words(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<4>();
    let sum: u64 = chunks
        .iter()
        .map(|chunk| u64::from(u32::from_ne_bytes(*chunk)))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// A sum of words as one word, with every carry added.
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The path by which a datagram came, and its place in an Ethernet frame that the programs steered
/// here: no tags, no IP options. `None` for anything else.
#[must_use]
pub fn parse_datagram(frame: &[u8]) -> Option<(PeerPath, Range<usize>)> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let (ip, udp): (IpAddr, usize) = match ethertype {
        ETHERTYPE_IPV4 => {
            let head: &[u8; IPV4_LEN] = frame.get(ETH_LEN..)?.first_chunk()?;
            if head[0] != 0x45 || head[9] != IPPROTO_UDP {
                return None;
            }
            let ip = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
            (ip.into(), ETH_LEN + IPV4_LEN)
        }
        ETHERTYPE_IPV6 => {
            let head: &[u8; IPV6_LEN] = frame.get(ETH_LEN..)?.first_chunk()?;
            if head[0] >> 4 != 6 || head[6] != IPPROTO_UDP {
                return None;
            }
            let mut octets = [0; 16];
            octets.copy_from_slice(&head[8..24]);
            (Ipv6Addr::from(octets).into(), ETH_LEN + IPV6_LEN)
        }
        _ => return None,
    };
    let head: &[u8; UDP_LEN] = frame.get(udp..)?.first_chunk()?;
    let port = u16::from_be_bytes([head[0], head[1]]);
    let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
    if len < UDP_LEN || udp + len > frame.len() {
        return None;
    }
    let (from, at) = (SocketAddr::new(ip, port), udp + UDP_LEN..udp + len);
    Some(match circuit_id(&frame[at.clone()]) {
        None => (PeerPath::Direct(from), at),
        Some(id) => (
            PeerPath::Circuit { gateway: from, id },
            at.start + CIRCUIT_ID_LEN..at.end,
        ),
    })
}

/// The circuit's id in front of a message, if there is one: its third and fourth byte are not both
/// zero, a message's are.
#[must_use]
pub fn circuit_id(datagram: &[u8]) -> Option<NonZeroU64> {
    let id: &[u8; CIRCUIT_ID_LEN] = datagram.first_chunk()?;
    if id[2] | id[3] == 0 {
        return None;
    }
    NonZeroU64::new(u64::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum word by word, as RFC 1071 defines it.
    fn by_words(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum: u16, word| {
            let word = u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn the_sum_is_that_of_single_words_for_every_length() {
        let bytes: Vec<u8> = (0..2000u32)
            .map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8)
            .collect();
        for len in (0..70).chain([1431, 1432, 1433, 2000]) {
            for text in [&bytes[..len], &vec![0xff; len][..], &vec![0; len][..]] {
                assert_eq!(fold(sum_words(text)), by_words(text), "{len} bytes");
            }
        }
    }
}
