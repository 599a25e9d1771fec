//! ARP frames for Ethernet and IPv4 (RFC 826, RFC 5227).

use appliance_common::wire::{ARP_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4};

use super::{BROADCAST, Port, begin};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An ARP request for `target` from `sender`, an address that is the appliance's to use on the
/// port and that it answers for there. Never 0.0.0.0: a host that probes for its own address must
/// take a request with that sender for another claimant (RFC 5227 section 2.1.1), and ARP
/// inspection drops it. `destination` is the MAC address of one host, or `None` for a broadcast.
#[must_use]
pub fn arp_request(
    port: &Port,
    sender: [u8; 4],
    target: [u8; 4],
    destination: Option<[u8; 6]>,
) -> Vec<u8> {
    arp(
        port,
        port.mac,
        destination.unwrap_or(BROADCAST),
        REQUEST,
        sender,
        [0; 6],
        target,
    )
}

/// An announcement of `address` at `mac` (RFC 5227 section 2.3, "gratuitous ARP"): broadcast,
/// sender and target address are both `address`. `reply` makes it an ARP reply with the target
/// hardware address set to `mac` (RFC 5944 section 4.6), for hosts that accept only that form.
#[must_use]
pub fn arp_announcement(port: &Port, address: [u8; 4], mac: [u8; 6], reply: bool) -> Vec<u8> {
    let (operation, target_mac) = if reply {
        (REPLY, mac)
    } else {
        (REQUEST, [0; 6])
    };
    arp(
        port, mac, BROADCAST, operation, address, target_mac, address,
    )
}

fn arp(
    port: &Port,
    sender_mac: [u8; 6],
    destination: [u8; 6],
    operation: u16,
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
) -> Vec<u8> {
    // The frame's source is always our own MAC address. With the announced one, a switch would
    // learn that the other machine is behind this port, and virtual switches drop forged sources.
    let mut frame = begin(port, destination, port.mac, ETHERTYPE_ARP, ARP_LEN);
    frame.extend_from_slice(&1u16.to_be_bytes()); // Ethernet
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    frame.extend_from_slice(&[6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&sender_mac);
    frame.extend_from_slice(&sender);
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&target);
    frame
}
