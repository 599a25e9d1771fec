//! Multicast listener reports (MLDv2, RFC 3810) and multicast router advertisements (RFC 4286),
//! which switches that snoop multicast read.

use appliance_common::addr::{Address, multicast_mac_v6};
use appliance_common::wire::{ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPV6_LEN};
use packet_rules::checksum;

use super::{Port, begin, link_local};

/// Groups in one report at most, so that it fits the least MTU of IPv6.
pub const MAX_GROUPS: usize = 60;

const REPORT: u8 = 143;
const ROUTER_ADVERTISEMENT: u8 = 151;
/// RFC 3810 section 5.2.12: the listener accepts the group from every source.
const MODE_IS_EXCLUDE: u8 = 2;
/// ff02::16, all MLDv2-capable routers.
const ALL_MLD_ROUTERS: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
/// ff02::6a, all snoopers.
const ALL_SNOOPERS: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x6a];
/// Hop-by-hop options in front of ICMPv6: router alert for MLD (RFC 2711), padding.
const ROUTER_ALERT: [u8; 8] = [IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0];

/// A report that the port listens to these groups, of which there are at most [`MAX_GROUPS`].
#[must_use]
pub fn listener_report(port: &Port, groups: &[Address]) -> Vec<u8> {
    let mut message = vec![REPORT, 0, 0, 0, 0, 0];
    message.extend_from_slice(&(groups.len() as u16).to_be_bytes());
    for group in groups {
        // No auxiliary data, no sources.
        message.extend_from_slice(&[MODE_IS_EXCLUDE, 0, 0, 0]);
        message.extend_from_slice(group);
    }
    frame(port, &ALL_MLD_ROUTERS, &mut message)
}

/// An advertisement that all multicast of the link is to be forwarded to the port, valid for at
/// least three intervals of `interval` seconds, 4 to 180.
#[must_use]
pub fn multicast_router_advertisement(port: &Port, interval: u8) -> Vec<u8> {
    // Query interval and robustness: not a querier.
    let mut message = [ROUTER_ADVERTISEMENT, interval, 0, 0, 0, 0, 0, 0];
    frame(port, &ALL_SNOOPERS, &mut message)
}

fn frame(port: &Port, destination: &Address, message: &mut [u8]) -> Vec<u8> {
    let source = link_local(&port.mac);
    let len = message.len() as u16;
    let [high, low] = len.to_be_bytes();
    let pseudo = [0, 0, high, low, 0, 0, 0, IPPROTO_ICMPV6];
    let parts = [&source[..], &destination[..], &pseudo[..], message];
    let sums = parts.map(|part| u32::from(checksum::fold(checksum::sum(part))));
    let check = !checksum::fold(sums.iter().sum());
    message[2..4].copy_from_slice(&check.to_ne_bytes());

    let payload = ROUTER_ALERT.len() + message.len();
    let mut frame = begin(
        port,
        multicast_mac_v6(destination),
        port.mac,
        ETHERTYPE_IPV6,
        IPV6_LEN + payload,
    );
    let [high, low] = (payload as u16).to_be_bytes();
    // Next header: hop-by-hop options. Hop limit 1.
    frame.extend_from_slice(&[0x60, 0, 0, 0, high, low, 0, 1]);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(destination);
    frame.extend_from_slice(&ROUTER_ALERT);
    frame.extend_from_slice(message);
    frame
}
