//! Wire constants and the outer header of a plain tunnel.
//!
//! Constants that are compared with bytes loaded from a packet are given as `u16` values in host
//! byte order; the programs convert them at compile time.

/// Ethernet header, bytes.
pub const ETH_LEN: usize = 14;
/// One 802.1Q tag, bytes.
pub const VLAN_TAG_LEN: usize = 4;
/// UDP header, bytes.
pub const UDP_LEN: usize = 8;
/// VXLAN header, bytes (RFC 7348 section 5).
pub const VXLAN_LEN: usize = 8;
/// ARP for Ethernet and IPv4, bytes (RFC 826).
pub const ARP_LEN: usize = 28;

pub use packet_rules::{
    circuit::{ID_BYTES as CIRCUIT_ID_LEN, MESSAGE_BYTES as CIRCUIT_MESSAGE_BYTES},
    ethernet::{ETHERTYPE_8021AD, ETHERTYPE_8021Q, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    ipv4::HEADER_LEN as IPV4_LEN,
    ipv6::HEADER_LEN as IPV6_LEN,
};

/// ICMP (RFC 792).
pub const IPPROTO_ICMP: u8 = 1;
/// TCP (RFC 9293).
pub const IPPROTO_TCP: u8 = 6;
/// UDP (RFC 768).
pub const IPPROTO_UDP: u8 = 17;
/// GRE (RFC 2784).
pub const IPPROTO_GRE: u8 = 47;
/// ESP (RFC 4303).
pub const IPPROTO_ESP: u8 = 50;
/// ICMPv6 (RFC 4443).
pub const IPPROTO_ICMPV6: u8 = 58;
/// SCTP (RFC 9260).
pub const IPPROTO_SCTP: u8 = 132;

/// The IANA port of VXLAN (RFC 7348 section 8).
pub const VXLAN_PORT: u16 = 4789;
/// The `I` flag: the VNI is valid (RFC 7348 section 5).
pub const VXLAN_FLAG_VNI: u8 = 0x08;
/// Largest VXLAN network identifier: 24 bits.
pub const VNI_MAX: u32 = 0x00ff_ffff;

/// Lowest source port of a tunnel datagram; the range is 49152 to 65535 (RFC 7348 section 5).
pub const SOURCE_PORT_MIN: u16 = 49152;

/// Outer Ethernet, IPv4, UDP and VXLAN headers, bytes.
pub const OUTER_V4_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;
/// Outer Ethernet, IPv6, UDP and VXLAN headers, bytes.
pub const OUTER_V6_LEN: usize = ETH_LEN + IPV6_LEN + UDP_LEN + VXLAN_LEN;
/// Overhead of a plain tunnel over IPv4, bytes: outer headers and inner Ethernet.
pub const OVERHEAD_V4: u16 = (IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN) as u16;
/// Overhead of a plain tunnel over IPv6, bytes: outer headers and inner Ethernet.
pub const OVERHEAD_V6: u16 = (IPV6_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN) as u16;

/// A tunnel datagram's source port, host byte order, from a hash of the inner flow. It spreads
/// flows over the paths and queues between the appliances (RFC 7348 section 5).
#[inline(always)]
#[must_use]
pub const fn source_port(hash: u32) -> u16 {
    let mixed = hash.wrapping_mul(0x9e37_79b1);
    SOURCE_PORT_MIN | ((mixed >> 18) as u16 & 0x3fff)
}

/// The port of encrypted tunnels, and of all traffic from a tenant to its provider.
pub const SECURE_PORT: u16 = 6180;
/// An empty data message (type 4), bytes: header and tag.
pub const SECURE_DATA_MIN: usize = 32;
/// The header that the programs write in front of an IP packet for a worker, bytes: network slot
/// and flow hash (32 bits each, host byte order), and the segment header, which is encrypted with
/// the packet.
pub const WORKER_HEADER_LEN: usize = 16;
/// The segment header within it, bytes.
pub const SEGMENT_HEADER_LEN: usize = 8;
/// First byte of the segment header in front of an IP packet.
pub const SEGMENT_IP: u8 = 1;
/// Overhead of an encrypted tunnel over IPv4, bytes: outer headers, message and segment.
pub const SECURE_OVERHEAD_V4: u16 =
    (IPV4_LEN + UDP_LEN + SECURE_DATA_MIN + SEGMENT_HEADER_LEN) as u16;
/// Overhead of an encrypted tunnel over IPv6, bytes.
pub const SECURE_OVERHEAD_V6: u16 =
    (IPV6_LEN + UDP_LEN + SECURE_DATA_MIN + SEGMENT_HEADER_LEN) as u16;

/// The MAC address of the inner Ethernet header of network `vni`: a locally administered unicast
/// address that spells the VNI, for readers of captures. The receiving appliance routes by inner
/// IP address and writes an Ethernet header of its own.
#[inline(always)]
#[must_use]
pub const fn inner_mac(vni: u32) -> [u8; 6] {
    [
        0x02,
        0x43,
        0x57,
        (vni >> 16) as u8,
        (vni >> 8) as u8,
        vni as u8,
    ]
}

pub use packet_rules::tcp::mss_for;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overheads_are_those_of_rfc_7348() {
        assert_eq!(OVERHEAD_V4, 50);
        assert_eq!(OVERHEAD_V6, 70);
        assert_eq!(mss_for(1450, false), 1410);
        assert_eq!(mss_for(1450, true), 1390);
    }

    #[test]
    fn source_ports_stay_in_the_dynamic_range_and_spread() {
        let mut seen = std::collections::BTreeSet::new();
        for hash in 0..10_000u32 {
            let port = source_port(hash);
            assert!(port >= SOURCE_PORT_MIN);
            seen.insert(port);
        }
        assert!(seen.len() > 6_000, "only {} ports", seen.len());
    }
}
