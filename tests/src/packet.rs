//! Packet builders: every header from its RFC, checksums by the plain textbook loop, nothing shared
//! with the programs under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A MAC address.
pub type Mac = [u8; 6];

/// An address from text; for fixtures, where a typing error should stop the test.
///
/// # Panics
///
/// When `text` is not an address.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("{text} is not an address: {e}"))
}

/// The Internet checksum (RFC 1071) of `bytes`, as the number to store big-endian.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    finish(add(0, bytes))
}

fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    sum
}

fn finish(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of a transport segment with its pseudo-header (RFC 9293 section 3.1, RFC 8200
/// section 8.1): zero when `segment` holds a right one.
#[must_use]
pub fn transport_checksum(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    let mut sum = u64::from(proto) + segment.len() as u64;
    for address in [src, dst] {
        sum = match address {
            IpAddr::V4(a) => add(sum, &a.octets()),
            IpAddr::V6(a) => add(sum, &a.octets()),
        };
    }
    finish(add(sum, segment))
}

/// An Ethernet frame. `tags` are `(type, tag control information)` from the outside in.
#[must_use]
pub fn eth(dst: Mac, src: Mac, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(22 + payload.len());
    out.extend_from_slice(&dst);
    out.extend_from_slice(&src);
    for (kind, tci) in tags {
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&tci.to_be_bytes());
    }
    out.extend_from_slice(&ethertype.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The Ethernet type of an IP packet.
#[must_use]
pub fn ethertype_of(l3: &[u8]) -> u16 {
    if l3.first().is_some_and(|b| b >> 4 == 6) {
        0x86dd
    } else {
        0x0800
    }
}

/// An Ethernet frame around an IP packet.
#[must_use]
pub fn frame(dst: Mac, src: Mac, tags: &[(u16, u16)], l3: &[u8]) -> Vec<u8> {
    eth(dst, src, tags, ethertype_of(l3), l3)
}

/// Fields of an IPv4 header besides its addresses (RFC 791).
#[derive(Clone, Debug)]
pub struct V4 {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset, as one 16-bit number: 0x4000 is DF, 0x2000 is MF.
    pub frag: u16,
    /// Type of service.
    pub tos: u8,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

impl V4 {
    /// A header with DF, as most systems send.
    #[must_use]
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, proto: u8) -> Self {
        Self {
            src,
            dst,
            proto,
            ttl: 64,
            id: 0x1234,
            frag: 0x4000,
            tos: 0,
            options: Vec::new(),
        }
    }

    /// The packet.
    #[must_use]
    pub fn build(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + payload.len()) as u16;
        let mut out = vec![0u8; header];
        out[0] = 0x40 | (header / 4) as u8;
        out[1] = self.tos;
        out[2..4].copy_from_slice(&total.to_be_bytes());
        out[4..6].copy_from_slice(&self.id.to_be_bytes());
        out[6..8].copy_from_slice(&self.frag.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.proto;
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..20].copy_from_slice(&self.dst.octets());
        out[20..].copy_from_slice(&self.options);
        let check = checksum(&out);
        out[10..12].copy_from_slice(&check.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }
}

/// An IPv6 packet (RFC 8200); `next` is the type of what `payload` starts with.
#[must_use]
pub fn v6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; 40];
    out[0] = 0x60;
    out[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    out[6] = next;
    out[7] = hops;
    out[8..24].copy_from_slice(&src.octets());
    out[24..40].copy_from_slice(&dst.octets());
    out.extend_from_slice(payload);
    out
}

/// An IP packet of the family of its addresses: IPv4 with DF, hop limit 64.
///
/// # Panics
///
/// When the addresses are of two families.
#[must_use]
pub fn ip_packet(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => V4::new(src, dst, proto).build(payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6(src, dst, proto, 64, payload),
        _ => panic!("{src} and {dst} are of two families"),
    }
}

/// A UDP segment with its checksum (RFC 768).
#[must_use]
pub fn udp_segment(src: IpAddr, dst: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + payload.len());
    out.extend_from_slice(&sport.to_be_bytes());
    out.extend_from_slice(&dport.to_be_bytes());
    out.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    let check = match transport_checksum(src, dst, 17, &out) {
        0 => 0xffff,
        check => check,
    };
    out[6..8].copy_from_slice(&check.to_be_bytes());
    out
}

/// An IP packet with UDP.
#[must_use]
pub fn udp(src: IpAddr, dst: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    ip_packet(src, dst, 17, &udp_segment(src, dst, sport, dport, payload))
}

pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledgment.
    pub const ACK: u8 = 16;
}

/// A TCP segment (RFC 9293) with its checksum; `options` a multiple of four bytes.
#[must_use]
pub fn tcp_segment(
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut out = vec![0u8; 20];
    out[0..2].copy_from_slice(&sport.to_be_bytes());
    out[2..4].copy_from_slice(&dport.to_be_bytes());
    out[4..8].copy_from_slice(&0x0102_0304u32.to_be_bytes());
    if flags & tcp_flags::ACK != 0 {
        // The other end has sent as much as this one.
        out[8..12].copy_from_slice(&0x0102_0305u32.to_be_bytes());
    }
    out[12] = ((20 + options.len()) / 4) as u8 * 16;
    out[13] = flags;
    out[14..16].copy_from_slice(&0xfaf0u16.to_be_bytes());
    out.extend_from_slice(options);
    out.extend_from_slice(payload);
    let check = transport_checksum(src, dst, 6, &out);
    out[16..18].copy_from_slice(&check.to_be_bytes());
    out
}

/// An IP packet with TCP.
#[must_use]
pub fn tcp(
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let segment = tcp_segment(src, dst, sport, dport, flags, options, payload);
    ip_packet(src, dst, 6, &segment)
}

/// The options of a usual SYN: MSS, SACK permitted, timestamps, NOP, window scale.
#[must_use]
pub fn syn_options(mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    vec![
        2, 4, high, low, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ]
}

/// An ICMP or ICMPv6 message with its checksum; `rest` is what follows the checksum.
#[must_use]
pub fn icmp_message(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend_from_slice(rest);
    let check = if src.is_ipv4() {
        checksum(&out)
    } else {
        transport_checksum(src, dst, 58, &out)
    };
    out[2..4].copy_from_slice(&check.to_be_bytes());
    out
}

/// An IP packet with an ICMP or ICMPv6 message.
#[must_use]
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let proto = if src.is_ipv4() { 1 } else { 58 };
    ip_packet(src, dst, proto, &icmp_message(src, dst, kind, code, rest))
}

/// An echo request with `len` bytes of data.
#[must_use]
pub fn echo(src: IpAddr, dst: IpAddr, len: usize) -> Vec<u8> {
    let mut rest = vec![0x12, 0x34, 0, 1];
    rest.extend((0..len).map(|i| i as u8));
    icmp(src, dst, if src.is_ipv4() { 8 } else { 128 }, 0, &rest)
}

/// An ARP packet (RFC 826); 1 is a request, 2 a reply.
#[must_use]
pub fn arp(op: u16, sha: Mac, spa: Ipv4Addr, tha: Mac, tpa: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4];
    out.extend_from_slice(&op.to_be_bytes());
    out.extend_from_slice(&sha);
    out.extend_from_slice(&spa.octets());
    out.extend_from_slice(&tha);
    out.extend_from_slice(&tpa.octets());
    out
}

/// The solicited-node address of `target` (RFC 4291 section 2.7.1).
#[must_use]
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let o = target.octets();
    Ipv6Addr::from([
        0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15],
    ])
}

/// The Ethernet address of an IPv6 multicast address (RFC 2464 section 7).
#[must_use]
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let o = group.octets();
    [0x33, 0x33, o[12], o[13], o[14], o[15]]
}

/// A neighbour solicitation (RFC 4861 section 4.3), hop limit 255.
#[must_use]
pub fn ns(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, source_ll: Option<Mac>) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend_from_slice(&target.octets());
    if let Some(mac) = source_ll {
        rest.extend_from_slice(&[1, 1]);
        rest.extend_from_slice(&mac);
    }
    let message = icmp_message(src.into(), dst.into(), 135, 0, &rest);
    v6(src, dst, 58, 255, &message)
}

/// A neighbour advertisement (RFC 4861 section 4.4), hop limit 255; `flags` is its top byte: 0x80
/// R, 0x40 S, 0x20 O.
#[must_use]
pub fn na(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    target: Ipv6Addr,
    flags: u8,
    target_ll: Option<Mac>,
) -> Vec<u8> {
    let mut rest = vec![flags, 0, 0, 0];
    rest.extend_from_slice(&target.octets());
    if let Some(mac) = target_ll {
        rest.extend_from_slice(&[2, 1]);
        rest.extend_from_slice(&mac);
    }
    let message = icmp_message(src.into(), dst.into(), 136, 0, &rest);
    v6(src, dst, 58, 255, &message)
}

/// A VXLAN header (RFC 7348 section 5) and an inner frame.
#[must_use]
pub fn vxlan(flags: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, 0, 0, 0];
    out.extend_from_slice(&(vni << 8).to_be_bytes());
    out.extend_from_slice(inner);
    out
}

/// A UDP/IP packet with the UDP checksum zero, DF and hop limit 64, as tunnels send (RFC 7348
/// section 4.3, RFC 6935).
#[must_use]
pub fn udp_no_checksum(
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = udp_segment(src, dst, sport, dport, payload);
    segment[6..8].fill(0);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = V4::new(src, dst, 17);
            header.id = 0;
            header.build(&segment)
        }
        _ => ip_packet(src, dst, 17, &segment),
    }
}

/// Offsets of the parts of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2 {
    /// Number of tags of type 0x8100 or 0x88a8.
    pub tags: usize,
    /// VLAN identifiers, from the outside in, of at most two tags.
    pub vids: [u16; 2],
    /// The type after the tags.
    pub ethertype: u16,
    /// Offset of what follows the type.
    pub l3: usize,
}

/// Reads the Ethernet header; `None` when the frame ends before it does.
#[must_use]
pub fn l2(frame: &[u8]) -> Option<L2> {
    let mut at = 12;
    let mut tags = 0;
    let mut vids = [0; 2];
    loop {
        let ethertype = be16(frame, at)?;
        if ethertype != 0x8100 && ethertype != 0x88a8 {
            return Some(L2 {
                tags,
                vids,
                ethertype,
                l3: at + 2,
            });
        }
        let tci = be16(frame, at + 2)?;
        if let Some(vid) = vids.get_mut(tags) {
            *vid = tci & 0xfff;
        }
        tags += 1;
        at += 4;
    }
}

/// Big-endian 16 bits at `at`.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Big-endian 32 bits at `at`.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// The MAC at `at`.
///
/// # Panics
///
/// When the frame is shorter.
#[must_use]
pub fn mac_at(frame: &[u8], at: usize) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&frame[at..at + 6]);
    mac
}

/// A MAC address in text, as iproute2 takes it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
