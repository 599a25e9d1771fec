//! Finds the frames that may carry a datagram of a circuit: to our MAC address, untagged or with
//! one VLAN tag, IPv4 or IPv6.

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::Outcome;
use packet_rules::ethernet::{ETHERTYPE_8021Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use xdp_frame::{Window, ingress};

use crate::{
    helper::{datagram, local_delivery},
    maps::PORTS,
    stage::forward::{admit, forward},
};

/// The XDP action for a frame that is forwarded.
///
/// # Errors
/// Why it is not.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Result<u32, Outcome> {
    let w = Window::<14>::at(ctx, 0).ok_or(Outcome::Other)?;
    let ingress = ingress(ctx);
    // SAFETY: an entry is replaced as a whole, and only when the interface has changed.
    let port = unsafe { PORTS.get(ingress) }.ok_or(Outcome::ForeignMac)?;
    let m = port.mac;
    let is_ours = w.get::<u32, 0>() == u32::from_ne_bytes([m[0], m[1], m[2], m[3]])
        && w.get::<u16, 4>() == u16::from_ne_bytes([m[4], m[5]]);
    // The kernel accepts a frame to a group for our address, and none to another MAC address.
    let is_to_group = w.get::<u8, 0>() & 1 != 0;
    if !is_ours && !is_to_group {
        return Err(Outcome::ForeignMac);
    }
    let result = if is_ours {
        plain(ctx, w, ingress)
    } else {
        Err(Outcome::ForeignMac)
    };
    match result {
        Err(
            Outcome::Other
            | Outcome::ForeignMac
            | Outcome::Fragment
            | Outcome::Options
            | Outcome::Malformed,
        ) if local_delivery::is_to_listen_address(ctx) => Err(Outcome::BadDatagram),
        result => result,
    }
}

/// A frame to our MAC address.
#[inline(always)]
fn plain(ctx: &XdpContext, w: Window<14>, ingress: u32) -> Result<u32, Outcome> {
    match u16::from_be(w.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => ipv4::<14>(ctx, ingress, 0),
        ETHERTYPE_IPV6 => ipv6::<14>(ctx, ingress, 0),
        ETHERTYPE_8021Q => {
            let w = Window::<18>::at(ctx, 0).ok_or(Outcome::Other)?;
            let vlan = u16::from_be(w.get::<u16, 14>()) & 0x0fff;
            // A priority tag names no VLAN, and would be sent out again.
            if vlan == 0 {
                return Err(Outcome::Other);
            }
            match u16::from_be(w.get::<u16, 16>()) {
                ETHERTYPE_IPV4 => ipv4::<18>(ctx, ingress, vlan),
                ETHERTYPE_IPV6 => ipv6::<18>(ctx, ingress, vlan),
                _ => Err(Outcome::Other),
            }
        }
        _ => Err(Outcome::Other),
    }
}

#[inline(always)]
fn ipv4<const L3: usize>(ctx: &XdpContext, ingress: u32, vlan: u16) -> Result<u32, Outcome> {
    let datagram = datagram::ipv4::<L3>(ctx, vlan)?;
    admitted::<L3>(ctx, &datagram, ingress)
}

#[inline(always)]
fn ipv6<const L3: usize>(ctx: &XdpContext, ingress: u32, vlan: u16) -> Result<u32, Outcome> {
    let datagram = datagram::ipv6::<L3>(ctx, vlan)?;
    admitted::<L3>(ctx, &datagram, ingress)
}

/// Forwards a datagram, or decides whether user space gets it.
#[inline(always)]
fn admitted<const L3: usize>(
    ctx: &XdpContext,
    d: &datagram::Datagram,
    ingress: u32,
) -> Result<u32, Outcome> {
    match forward::<L3>(ctx, d, ingress) {
        Err(why @ (Outcome::Message | Outcome::UnknownCircuit | Outcome::WrongSource)) => {
            Err(admit::<L3>(ctx, d, why))
        }
        result => result,
    }
}
