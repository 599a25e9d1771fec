//! Frames and datagrams of the fixtures: those that arrive, and those expected.

use super::{A_MAC, B_MAC, NEXT_HOP_MAC, PORT, SECURE_PORT, TRUNK_MAC, UPLINK_MAC};

use crate::packet::ip;

/// The 802.1Q tag of VLAN `vid`.
#[must_use]
pub const fn tag(vid: u16) -> (u16, u16) {
    (0x8100, vid)
}

/// The 802.1ad tag of VLAN `vid`.
#[must_use]
pub const fn service_tag(vid: u16) -> (u16, u16) {
    (0x88a8, vid)
}

/// A frame from replica `A` on the provider's VLAN 101 to our MAC.
#[must_use]
pub fn replica(l3: &[u8]) -> Vec<u8> {
    crate::packet::frame(TRUNK_MAC, A_MAC, &[tag(101)], l3)
}

/// A frame from production machine `B` on the tenant's net1 to our MAC.
#[must_use]
pub fn production(l3: &[u8]) -> Vec<u8> {
    crate::packet::frame(UPLINK_MAC, B_MAC, &[], l3)
}

/// A tunnel datagram as a peer sends it to our uplink: `l3` in network `vni`.
#[must_use]
pub fn tunnelled(from: &str, to: &str, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mac = appliance_common::wire::inner_mac(vni);
    let inner = crate::packet::frame(mac, mac, &[], l3);
    let vxlan = crate::packet::vxlan(8, vni, &inner);
    let outer = crate::packet::udp_no_checksum(ip(from), ip(to), 50_000, PORT, &vxlan);
    crate::packet::frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &outer)
}

/// The expected encapsulated packet, byte for byte, except for the source port, which is taken from
/// `got`.
#[must_use]
pub fn expect_tunnelled(got: &[u8], from: &str, to: &str, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mac = appliance_common::wire::inner_mac(vni);
    let inner = crate::packet::frame(mac, mac, &[], l3);
    let vxlan = crate::packet::vxlan(8, vni, &inner);
    let udp = if ip(from).is_ipv4() { 34 } else { 54 };
    let port = crate::packet::be16(got, udp).unwrap_or(0);
    let outer = crate::packet::udp_no_checksum(ip(from), ip(to), port, PORT, &vxlan);
    crate::packet::frame(NEXT_HOP_MAC, UPLINK_MAC, &[], &outer)
}

/// The expected packet for a worker to seal, byte for byte, except for the hash of its flow,
/// which is taken from `got`.
#[must_use]
pub fn expect_to_seal(got: &[u8], slot: u32, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mut out = slot.to_ne_bytes().to_vec();
    out.extend_from_slice(got.get(4..8).unwrap_or(&[0; 4]));
    out.push(1);
    out.extend_from_slice(&vni.to_be_bytes()[1..]);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(l3);
    out
}

/// A datagram as a peer sends it to the port of our encrypted tunnels.
#[must_use]
pub fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let l3 = crate::packet::udp(ip(from), ip(to), SECURE_PORT, SECURE_PORT, payload);
    crate::packet::frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3)
}

/// A message of `kind` (WireGuard white paper, sections 5.4.2 to 5.4.7): of a handshake with its
/// one length; else with 64 bytes of content, and the index 1 of a session.
#[must_use]
pub fn message(kind: u8) -> Vec<u8> {
    let mut out = match kind {
        1 => vec![0x5a; 148],
        2 => vec![0x5a; 92],
        3 => vec![0x5a; 64],
        _ => data(1, 64),
    };
    out[..4].copy_from_slice(&[kind, 0, 0, 0]);
    out
}

/// A data message (type 4) of session `index` with `len` bytes of content, cipher 0, counter 7.
#[must_use]
pub fn data(index: u32, len: usize) -> Vec<u8> {
    let mut out = vec![4, 0, 0, 0];
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&7u64.to_le_bytes());
    out.resize(16 + len + 16, 0xc3);
    out
}
