//! The packet inside: what the programs check of a plain tunnel's packet, for those that workers open.

use appliance_common::{
    addr::{Address, mapped},
    checksum,
    counters::Counter,
    limits::{MAX_EXTENSION_HEADERS, MAX_TCP_OPTIONS},
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, mss_for,
    },
};

/// The SYN bit in byte 13 of a TCP header.
const SYN: u8 = 0x02;

/// An IP packet whose header holds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inner {
    /// Bytes of the packet by its own account, at most those given.
    pub len: usize,
    /// Its Ethernet type, host byte order.
    pub ethertype: u16,
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Offset of its TCP header, if it is a SYN.
    pub syn: Option<usize>,
}

/// Reads an IP packet, and refuses what is never carried: no unicast host at either end, link-local
/// addresses, neighbour discovery. The counter says why.
pub(crate) fn parse(packet: &[u8]) -> Result<Inner, Counter> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => ipv4(packet),
        Some(6) => ipv6(packet),
        _ => Err(Counter::DropMalformed),
    }
}

fn ipv4(packet: &[u8]) -> Result<Inner, Counter> {
    let head: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(Counter::DropMalformed)?;
    let header = usize::from(head[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if header < IPV4_LEN || total < header || total > packet.len() {
        return Err(Counter::DropMalformed);
    }
    let source = [head[12], head[13], head[14], head[15]];
    let destination = [head[16], head[17], head[18], head[19]];
    if is_v4_link_local(source) || is_v4_link_local(destination) {
        return Err(Counter::DropLinkLocal);
    }
    if !is_v4_host(destination) {
        return Err(Counter::DropNotCarried);
    }
    if !is_v4_host(source) {
        return Err(Counter::DropInnerSource);
    }
    let first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
    let syn = (first && head[9] == IPPROTO_TCP)
        .then_some(header)
        .filter(|at| is_syn(packet, *at, total));
    Ok(Inner {
        len: total,
        ethertype: ETHERTYPE_IPV4,
        source: mapped(source),
        destination: mapped(destination),
        syn,
    })
}

fn ipv6(packet: &[u8]) -> Result<Inner, Counter> {
    let head: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(Counter::DropMalformed)?;
    let total = IPV6_LEN + usize::from(u16::from_be_bytes([head[4], head[5]]));
    if total > packet.len() {
        return Err(Counter::DropMalformed);
    }
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&head[8..24]);
    destination.copy_from_slice(&head[24..40]);
    if is_v6_link_local(&source) || is_v6_link_local(&destination) {
        return Err(Counter::DropLinkLocal);
    }
    if !is_v6_host(&destination) {
        return Err(Counter::DropNotCarried);
    }
    let (protocol, at) = behind_extensions(&packet[..total], head[6]);
    // The other side never sends discovery; with the hop limit kept, it would pass for on-link.
    if protocol == IPPROTO_ICMPV6
        && packet[..total]
            .get(at)
            .is_none_or(|kind| matches!(kind, 133..=137))
    {
        return Err(Counter::DropNotCarried);
    }
    if !is_v6_host(&source) {
        return Err(Counter::DropInnerSource);
    }
    let syn = (protocol == IPPROTO_TCP)
        .then_some(at)
        .filter(|at| is_syn(packet, *at, total));
    Ok(Inner {
        len: total,
        ethertype: ETHERTYPE_IPV6,
        source,
        destination,
        syn,
    })
}

/// The destination of an IP packet, without any check of the rest.
pub(crate) fn destination(packet: &[u8]) -> Option<Address> {
    match packet.first()? >> 4 {
        4 => mapped(*packet.get(16..20)?.first_chunk()?).into(),
        6 => packet.get(24..40)?.first_chunk().copied(),
        _ => None,
    }
}

/// Protocol and offset behind at most [`MAX_EXTENSION_HEADERS`] extension headers that TCP may follow;
/// what cannot be followed ends as the extension header's own number.
fn behind_extensions(packet: &[u8], next: u8) -> (u8, usize) {
    let (mut next, mut at) = (next, IPV6_LEN);
    for _ in 0..MAX_EXTENSION_HEADERS {
        // Hop-by-hop, routing, destination options (RFC 8200 section 4).
        if !matches!(next, 0 | 43 | 60) {
            break;
        }
        let Some([following, words]) = packet.get(at..).and_then(<[u8]>::first_chunk) else {
            break;
        };
        next = *following;
        at += (usize::from(*words) + 1) * 8;
    }
    (next, at)
}

fn is_syn(packet: &[u8], at: usize, end: usize) -> bool {
    at + 20 <= end && packet[at + 13] & SYN != 0
}

const fn is_v4_host(address: [u8; 4]) -> bool {
    address[0] != 0 && address[0] != 127 && address[0] < 224
}

const fn is_v4_link_local(address: [u8; 4]) -> bool {
    address[0] == 169 && address[1] == 254
}

const fn is_v6_link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

fn is_v6_host(address: &Address) -> bool {
    address[0] != 0xff && address[..8] != [0; 8]
}

/// Lowers the MSS option of the SYN whose TCP header is at `at` to what `mtu` leaves, and mends the
/// checksum (RFC 1624). Returns whether it did. Malformed options are left: the receiver refuses them.
pub(crate) fn clamp(packet: &mut [u8], at: usize, mtu: u16, ipv6: bool) -> bool {
    let limit = mss_for(mtu, ipv6);
    let Some(data) = packet.get(at + 12).map(|b| usize::from(b >> 4) * 4) else {
        return false;
    };
    let Some(tcp) = packet.get_mut(at..at + data) else {
        return false;
    };
    let mut option = 20;
    for _ in 0..MAX_TCP_OPTIONS {
        match tcp.get(option..) {
            Some([1, ..]) => option += 1,
            Some([2, 4, high, low, ..]) => {
                let mss = u16::from_be_bytes([*high, *low]);
                if mss <= limit {
                    return false;
                }
                // An option at an odd offset changes halves of two words: the same sum, bytes exchanged.
                let (old, new) = if option.is_multiple_of(2) {
                    (mss.to_be(), limit.to_be())
                } else {
                    (mss.to_be().swap_bytes(), limit.to_be().swap_bytes())
                };
                let check = u16::from_ne_bytes([tcp[16], tcp[17]]);
                let check = checksum::update(check, old, new).to_ne_bytes();
                tcp[option + 2..option + 4].copy_from_slice(&limit.to_be_bytes());
                tcp[16..18].copy_from_slice(&check);
                return true;
            }
            Some([kind, size, ..]) if *kind > 1 && *size >= 2 => option += usize::from(*size),
            _ => return false,
        }
    }
    false
}
