//! Finds the frames that may carry a datagram of a circuit: to our MAC address, untagged or with
//! one VLAN tag, IPv4 or IPv6.

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::Outcome;
use packet_rules::ethernet::{ETHERTYPE_8021Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use xdp_frame::{Window, ingress};

use crate::{
    helper::{
        datagram::{self, Datagram, TAGGED, UNTAGGED},
        local_delivery,
    },
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

/// A frame to our MAC address: forwards its datagram, or decides whether user space gets it.
#[inline(always)]
fn plain(ctx: &XdpContext, w: Window<14>, ingress: u32) -> Result<u32, Outcome> {
    // One datagram for all encapsulations, so that the program has what follows only once.
    let d = datagram(ctx, w)?;
    match forward(ctx, &d, ingress) {
        Err(why @ (Outcome::Message | Outcome::UnknownCircuit | Outcome::WrongSource)) => {
            Err(admit(ctx, &d, why))
        }
        result => result,
    }
}

#[inline(always)]
fn datagram(ctx: &XdpContext, w: Window<14>) -> Result<Datagram, Outcome> {
    match u16::from_be(w.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => datagram::ipv4::<UNTAGGED>(ctx, 0),
        ETHERTYPE_IPV6 => datagram::ipv6::<UNTAGGED>(ctx, 0),
        ETHERTYPE_8021Q => {
            let w = Window::<TAGGED>::at(ctx, 0).ok_or(Outcome::Other)?;
            let vlan = u16::from_be(w.get::<u16, 14>()) & 0x0fff;
            // A priority tag names no VLAN, and would be sent out again.
            if vlan == 0 {
                return Err(Outcome::Other);
            }
            match u16::from_be(w.get::<u16, 16>()) {
                ETHERTYPE_IPV4 => datagram::ipv4::<TAGGED>(ctx, vlan),
                ETHERTYPE_IPV6 => datagram::ipv6::<TAGGED>(ctx, vlan),
                _ => Err(Outcome::Other),
            }
        }
        _ => Err(Outcome::Other),
    }
}
