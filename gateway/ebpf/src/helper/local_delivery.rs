//! Finds frames without plain headers that the kernel would deliver to a listen address.
//!
//! The stack accepts what `datagram` does not: IPv4 options, IPv6 extension headers, fragments, a
//! UDP length below that of the packet, frames to a group's MAC address, priority tags. Such a
//! datagram would reach user space past all budgets, and no end of a circuit sends one.

use aya_ebpf::programs::XdpContext;
use gateway_common::maps::Admission;
use packet_rules::{
    ethernet::{ETHERTYPE_8021AD, ETHERTYPE_8021Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    ipv4::is_later_fragment,
    ipv6::{FRAGMENT, is_extension},
};
use xdp_frame::Window;

use crate::{
    helper::{
        admission::{ANY_PORT, is_listened},
        datagram::{IPV4_LEN, IPV6_LEN, UDP},
    },
    maps::ADMISSION,
};

/// VLAN tags that are walked at most.
const MAX_TAGS: usize = 3;
/// IPv6 extension headers that are walked at most; no stack sends so many.
const MAX_HEADERS: usize = 8;

/// Whether the kernel may deliver the frame as a datagram to an address of `gateway.listen`. A
/// later fragment alone delivers nothing.
#[inline(never)]
pub fn is_to_listen_address(ctx: &XdpContext) -> bool {
    let Some(admission) = ADMISSION.get(0) else {
        return false;
    };
    if admission.complete == 0 {
        return false;
    }
    let mut at = 12;
    let mut kind = ETHERTYPE_8021Q;
    for _ in 0..=MAX_TAGS {
        let Some(window) = Window::<2>::within(ctx, at) else {
            return false;
        };
        kind = u16::from_be(window.get::<u16, 0>());
        if kind != ETHERTYPE_8021Q && kind != ETHERTYPE_8021AD {
            break;
        }
        at += 4;
    }
    // Unknown to the verifier, which would follow each number of tags by itself.
    let at = core::hint::black_box(at + 2);
    match kind {
        ETHERTYPE_IPV4 => is_ipv4_to(ctx, admission, at),
        ETHERTYPE_IPV6 => is_ipv6_to(ctx, admission, at),
        _ => false,
    }
}

/// Whether the IPv4 packet at `at` is.
#[inline(never)]
fn is_ipv4_to(ctx: &XdpContext, admission: &Admission, at: u32) -> bool {
    let Some(ip) = Window::<IPV4_LEN>::within(ctx, at) else {
        return false;
    };
    let first = ip.get::<u8, 0>();
    if first >> 4 != 4
        || first < 0x45
        || ip.get::<u8, 9>() != UDP
        || is_later_fragment(u16::from_be(ip.get::<u16, 6>()))
    {
        return false;
    }
    let to = [0, 0, 0, ip.get::<u32, 16>()];
    match Window::<4>::within(ctx, at + u32::from(first & 0x0f) * 4) {
        Some(udp) => is_listened(admission, 4, &to, udp.get::<u16, 2>().into()),
        None => false,
    }
}

/// Whether the IPv6 packet at `at` is. True also for one to the address whose headers are more than
/// [`MAX_HEADERS`], or do not end within the frame.
#[inline(never)]
fn is_ipv6_to(ctx: &XdpContext, admission: &Admission, at: u32) -> bool {
    let Some(ip) = Window::<IPV6_LEN>::within(ctx, at) else {
        return false;
    };
    if ip.get::<u8, 0>() >> 4 != 6 {
        return false;
    }
    let to = ip.get::<[u32; 4], 24>();
    let mut next = ip.get::<u8, 6>();
    let mut at = at + IPV6_LEN as u32;
    let mut port = ANY_PORT;
    for _ in 0..MAX_HEADERS {
        let is_udp = next == UDP;
        if !is_udp && next != FRAGMENT && !is_extension(next) {
            return false;
        }
        let Some(header) = Window::<4>::within(ctx, at) else {
            break;
        };
        if is_udp {
            port = header.get::<u16, 2>().into();
            break;
        }
        if next != FRAGMENT {
            at += (u32::from(header.get::<u8, 1>()) + 1) * 8;
        } else if u16::from_be(header.get::<u16, 2>()) & 0xfff8 == 0 {
            at += 8;
        } else {
            return false;
        }
        next = header.get::<u8, 0>();
    }
    // As above: each number of headers.
    is_listened(admission, 6, &to, core::hint::black_box(port))
}
