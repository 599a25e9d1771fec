//! Neighbour discovery frames for IPv6 (RFC 4861).

use appliance_common::addr::{Address, multicast_mac_v6, solicited_node};
use appliance_common::wire::{ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPV6_LEN};
use packet_rules::{
    checksum,
    icmp::{
        NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, OPTION_SOURCE_LINK, OPTION_TARGET_LINK,
        ROUTER_ADVERTISEMENT,
    },
};

use super::{Port, begin};

/// Length of a neighbour solicitation or advertisement with one link-layer address option, bytes.
const NEIGHBOUR_LEN: usize = 32;
const OPTION_PREFIX: u8 = 3;
/// RFC 4861 section 4.6.2: the L bit.
const FLAG_ON_LINK: u8 = 0x80;
/// Hop limit that hosts should use, the value of RFC 1700.
const CUR_HOP_LIMIT: u8 = 64;
/// RFC 4861 section 4.4: the R and O bits.
const FLAG_ROUTER: u8 = 0x80;
const FLAG_OVERRIDE: u8 = 0x20;
/// ff02::1 (RFC 4291 section 2.7.1).
const ALL_NODES: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The link-local address of a MAC address (RFC 4291 appendix A).
#[must_use]
pub const fn link_local(mac: &[u8; 6]) -> Address {
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        mac[0] ^ 2,
        mac[1],
        mac[2],
        0xff,
        0xfe,
        mac[3],
        mac[4],
        mac[5],
    ]
}

/// A neighbour solicitation for `target` (RFC 4861 section 4.3) from `source`, an address that is
/// answered for on the port; never `::`, which is duplicate address detection (RFC 4862 section
/// 5.4.3). It carries the port's MAC address as source link-layer option, so that the host can
/// answer without a solicitation of its own. `destination` is the MAC address of one host, to whose
/// unicast address the solicitation goes, or `None` for the solicited-node group.
#[must_use]
pub fn neighbour_solicitation(
    port: &Port,
    source: &Address,
    target: &Address,
    destination: Option<[u8; 6]>,
) -> Vec<u8> {
    let (ip, mac) = match destination {
        Some(mac) => (*target, mac),
        None => {
            let group = solicited_node(target);
            (group, multicast_mac_v6(&group))
        }
    };
    neighbour_message(
        port,
        port.mac,
        mac,
        source,
        &ip,
        NEIGHBOUR_SOLICITATION,
        0,
        target,
        OPTION_SOURCE_LINK,
    )
}

/// A neighbour solicitation for `target` to its group, without the source link-layer option, which
/// a solicitation from `::` must not have (RFC 4861 section 4.3).
pub(super) fn solicitation_without_option(
    port: &Port,
    source: &Address,
    target: &Address,
) -> Vec<u8> {
    let group = solicited_node(target);
    let mut message = [0u8; 24];
    message[0] = NEIGHBOUR_SOLICITATION;
    message[8..24].copy_from_slice(target);
    icmpv6_frame(port, multicast_mac_v6(&group), source, &group, &mut message)
}

/// An unsolicited neighbour advertisement of `address` at `mac` to all nodes (RFC 4861 section
/// 7.2.6), with the Override flag, so that caches change at once. `router` sets the Router flag:
/// without it, hosts would remove a router from their default router lists (section 7.2.5).
#[must_use]
pub fn unsolicited_advertisement(
    port: &Port,
    address: &Address,
    mac: [u8; 6],
    router: bool,
) -> Vec<u8> {
    let flags = FLAG_OVERRIDE | if router { FLAG_ROUTER } else { 0 };
    neighbour_message(
        port,
        mac,
        multicast_mac_v6(&ALL_NODES),
        address,
        &ALL_NODES,
        NEIGHBOUR_ADVERTISEMENT,
        flags,
        address,
        OPTION_TARGET_LINK,
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "the fields of one message, given once each"
)]
fn neighbour_message(
    port: &Port,
    mac: [u8; 6],
    destination_mac: [u8; 6],
    source: &Address,
    destination: &Address,
    kind: u8,
    flags: u8,
    target: &Address,
    option: u8,
) -> Vec<u8> {
    let mut message = [0u8; NEIGHBOUR_LEN];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(target);
    message[24] = option;
    message[25] = 1; // in units of 8 bytes
    message[26..32].copy_from_slice(&mac);
    icmpv6_frame(port, destination_mac, source, destination, &mut message)
}

/// The frame of an ICMPv6 message of at most 65 535 bytes. Fills in the checksum, which must be
/// zero.
fn icmpv6_frame(
    port: &Port,
    destination_mac: [u8; 6],
    source: &Address,
    destination: &Address,
    message: &mut [u8],
) -> Vec<u8> {
    // RFC 8200 section 8.1: the pseudo-header's addresses, length and next header.
    let len = (message.len() as u16).to_be_bytes();
    let pseudo = [0, 0, len[0], len[1], 0, 0, 0, IPPROTO_ICMPV6];
    let sum = [&source[..], &destination[..], &pseudo[..], &message[..]]
        .iter()
        .map(|part| u32::from(checksum::fold(checksum::sum(part))))
        .sum();
    let check = !checksum::fold(sum);
    message[2..4].copy_from_slice(&check.to_ne_bytes());

    let mut frame = begin(
        port,
        destination_mac,
        // Always our own MAC address: with another one, a switch would learn a wrong port for it.
        port.mac,
        ETHERTYPE_IPV6,
        IPV6_LEN + message.len(),
    );
    frame.extend_from_slice(&[0x60, 0, 0, 0, len[0], len[1], IPPROTO_ICMPV6, 255]);
    frame.extend_from_slice(source);
    frame.extend_from_slice(destination);
    frame.extend_from_slice(message);
    frame
}

/// A router advertisement (RFC 4861 section 4.2) from the link-local address `source` to all nodes,
/// with our MAC address and the on-link prefixes. The Autonomous flag is clear: hosts form no
/// addresses from the prefixes. `lifetime` is the router lifetime in seconds; 0 withdraws the
/// router.
#[must_use]
pub fn router_advertisement(
    port: &Port,
    source: &Address,
    lifetime: u16,
    prefixes: &[(Address, u8)],
) -> Vec<u8> {
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, CUR_HOP_LIMIT, 0];
    message.extend_from_slice(&lifetime.to_be_bytes());
    // Reachable time and retransmission timer: unspecified.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[OPTION_SOURCE_LINK, 1]);
    message.extend_from_slice(&port.mac);
    for (prefix, length) in prefixes {
        message.extend_from_slice(&[OPTION_PREFIX, 4, *length, FLAG_ON_LINK]);
        // Valid and preferred lifetime.
        for _ in 0..2 {
            message.extend_from_slice(&u32::from(lifetime).to_be_bytes());
        }
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(prefix);
    }
    let mac = multicast_mac_v6(&ALL_NODES);
    icmpv6_frame(port, mac, source, &ALL_NODES, &mut message)
}
