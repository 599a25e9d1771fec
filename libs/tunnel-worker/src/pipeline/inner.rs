//! The packet inside: what the programs check of a plain tunnel's packet, for those that workers
//! open.

use appliance_common::{
    addr::{Address, mapped},
    checksum,
    counters::Counter,
    limits::{MAX_EXTENSION_HEADERS, MAX_TCP_OPTIONS},
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, mss_for,
    },
};

/// An ICMPv6 header with what every message has behind it, bytes.
const ICMPV6_LEN: usize = 8;
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
    /// Whether its source can be a host's.
    pub from_host: bool,
    /// Its destination.
    pub destination: Address,
    /// Offset of its TCP header, if it is a SYN.
    pub syn: Option<usize>,
    /// Whether it is neighbour discovery behind extension headers.
    pub discovery: bool,
}

/// Reads an IP packet, and refuses what is never carried: to no unicast host, link-local addresses,
/// neighbour discovery. The counter says why. What is left to see is checked by the caller, in the
/// order that the programs have: source, sides, and discovery behind extension headers.
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
    let first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
    let syn = (first && head[9] == IPPROTO_TCP)
        .then_some(header)
        .filter(|at| is_syn(packet, *at, total));
    Ok(Inner {
        len: total,
        ethertype: ETHERTYPE_IPV4,
        source: mapped(source),
        from_host: is_v4_host(source),
        destination: mapped(destination),
        syn,
        discovery: false,
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
    let packet = &packet[..total];
    // The other side never sends discovery; with the hop limit kept, it would pass for on-link.
    if head[6] == IPPROTO_ICMPV6 {
        let message = packet.get(IPV6_LEN..IPV6_LEN + ICMPV6_LEN);
        if is_discovery(message.ok_or(Counter::DropMalformed)?[0]) {
            return Err(Counter::DropNotCarried);
        }
    }
    let (protocol, at) = behind_extensions(packet, head[6]);
    let discovery = protocol == IPPROTO_ICMPV6 && packet.get(at).copied().is_some_and(is_discovery);
    let syn = (protocol == IPPROTO_TCP)
        .then_some(at)
        .filter(|at| is_syn(packet, *at, total));
    Ok(Inner {
        len: total,
        ethertype: ETHERTYPE_IPV6,
        source,
        from_host: is_v6_host(&source),
        destination,
        syn,
        discovery,
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

/// Protocol and offset behind at most [`MAX_EXTENSION_HEADERS`] extension headers that TCP may
/// follow. What cannot be followed to its end is hop-by-hop options, which nothing is done about.
fn behind_extensions(packet: &[u8], next: u8) -> (u8, usize) {
    let (mut next, mut at) = (next, IPV6_LEN);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        // Each has at least eight bytes.
        let Some([following, words, ..]) = packet.get(at..at + 8) else {
            return (0, at);
        };
        next = *following;
        at += (usize::from(*words) + 1) * 8;
    }
    if is_extension(next) || at >= packet.len() {
        return (0, at);
    }
    (next, at)
}

/// Hop-by-hop options, routing, destination options (RFC 8200 section 4).
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 60)
}

/// Router and neighbour discovery and redirect (RFC 4861 section 4).
const fn is_discovery(kind: u8) -> bool {
    matches!(kind, 133..=137)
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
/// checksum (RFC 1624). Returns whether it did. Malformed options are left: the receiver refuses
/// them.
pub(crate) fn clamp_mss(packet: &mut [u8], at: usize, mtu: u16, ipv6: bool) -> bool {
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
                // An option at an odd offset changes halves of two words: the same sum, bytes
                // exchanged.
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
            Some([kind, size, ..]) if *kind > 2 && *size >= 2 => option += usize::from(*size),
            _ => return false,
        }
    }
    false
}
