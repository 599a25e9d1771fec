//! Validates packets that workers open, by the rules of `packet-rules`, which the XDP program
//! `uplink` applies to those of plain tunnels.

use appliance_common::{
    addr::{Address, v4_mapped},
    counters::Counter,
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, mss_for,
    },
};
use packet_rules::{
    addr::{v4_is_host, v4_is_link_local, v6_is_host, v6_is_link_local, words},
    icmp::is_discovery,
    ipv4::{is_later_fragment, lengths},
    ipv6::{skip_extensions, total_len},
    tcp,
};

/// An ICMPv6 header with the four bytes that follow it in every message, bytes.
const ICMPV6_LEN: usize = 8;

/// An IP packet with a valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inner {
    /// Length of the packet by its header, bytes; at most that of the buffer.
    pub len: usize,
    /// Its Ethernet type, host byte order.
    pub ethertype: u16,
    pub source: Address,
    /// Whether its source can be a host's.
    pub from_host: bool,
    pub destination: Address,
    /// Offset of its TCP header, if it is a SYN.
    pub syn: Option<usize>,
    /// Whether it is neighbour discovery behind extension headers.
    pub discovery: bool,
}

/// Reads an IP packet, and refuses packets that are never carried: to no unicast host, link-local
/// addresses, neighbour discovery. The counter gives the reason. The caller makes the remaining
/// checks in the order of the programs: source, sides, and discovery behind extension headers.
pub(crate) fn parse(packet: &[u8]) -> Result<Inner, Counter> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => ipv4(packet),
        Some(6) => ipv6(packet),
        _ => Err(Counter::DropMalformed),
    }
}

fn ipv4(packet: &[u8]) -> Result<Inner, Counter> {
    let head: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(Counter::DropMalformed)?;
    let total = u16::from_be_bytes([head[2], head[3]]);
    let size = lengths(head[0], total, 0, packet.len()).ok_or(Counter::DropMalformed)?;
    let source = [head[12], head[13], head[14], head[15]];
    let destination = [head[16], head[17], head[18], head[19]];
    let [from, to] = [source, destination].map(u32::from_ne_bytes);
    if v4_is_link_local(from) || v4_is_link_local(to) {
        return Err(Counter::DropLinkLocal);
    }
    if !v4_is_host(to) {
        return Err(Counter::DropNotCarried);
    }
    let first = !is_later_fragment(u16::from_be_bytes([head[6], head[7]]));
    let syn = (first && head[9] == IPPROTO_TCP)
        .then_some(size.header)
        .filter(|at| is_syn(packet, *at, size.total));
    Ok(Inner {
        len: size.total,
        ethertype: ETHERTYPE_IPV4,
        source: v4_mapped(source),
        from_host: v4_is_host(from),
        destination: v4_mapped(destination),
        syn,
        discovery: false,
    })
}

fn ipv6(packet: &[u8]) -> Result<Inner, Counter> {
    let head: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(Counter::DropMalformed)?;
    let payload = u16::from_be_bytes([head[4], head[5]]);
    let total = total_len(head[0], payload, 0, packet.len()).ok_or(Counter::DropMalformed)?;
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&head[8..24]);
    destination.copy_from_slice(&head[24..40]);
    let (from, to) = (words(&source), words(&destination));
    if v6_is_link_local(from) || v6_is_link_local(to) {
        return Err(Counter::DropLinkLocal);
    }
    if !v6_is_host(to) {
        return Err(Counter::DropNotCarried);
    }
    let packet = &packet[..total];
    // The other side never sends discovery; with its hop limit, hosts would take it for on-link.
    if head[6] == IPPROTO_ICMPV6 {
        let message = packet.get(IPV6_LEN..IPV6_LEN + ICMPV6_LEN);
        if is_discovery(message.ok_or(Counter::DropMalformed)?[0]) {
            return Err(Counter::DropNotCarried);
        }
    }
    let (protocol, at) = skip_extensions(packet, IPV6_LEN as u32, head[6], total as u32);
    let at = at as usize;
    let discovery = protocol == IPPROTO_ICMPV6 && packet.get(at).copied().is_some_and(is_discovery);
    let syn = (protocol == IPPROTO_TCP)
        .then_some(at)
        .filter(|at| is_syn(packet, *at, total));
    Ok(Inner {
        len: total,
        ethertype: ETHERTYPE_IPV6,
        source,
        from_host: v6_is_host(from),
        destination,
        syn,
        discovery,
    })
}

/// The destination of an IP packet; nothing else is checked.
pub(crate) fn destination(packet: &[u8]) -> Option<Address> {
    match packet.first()? >> 4 {
        4 => v4_mapped(*packet.get(16..20)?.first_chunk()?).into(),
        6 => packet.get(24..40)?.first_chunk().copied(),
        _ => None,
    }
}

fn is_syn(packet: &[u8], at: usize, end: usize) -> bool {
    at + tcp::HEADER_LEN <= end && tcp::is_syn(packet[at + tcp::FLAGS_AT])
}

/// Lowers the MSS option of the SYN whose TCP header is at `at` to what `mtu` leaves, and corrects
/// the checksum. Returns whether it did. Malformed options are left: the receiver refuses them.
pub(crate) fn clamp_mss(packet: &mut [u8], at: usize, mtu: u16, ipv6: bool) -> bool {
    tcp::clamp(packet, at, mss_for(mtu, ipv6))
}
