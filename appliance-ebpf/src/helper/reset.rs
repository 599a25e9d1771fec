//! Makes a TCP segment its reset, in place (RFC 9293 section 3.10.7.1).
//!
//! ```text
//!   [Ethernet | IP | TCP | data] ──▶ [Ethernet, reversed | IP, reversed | TCP reset]
//! ```
//!
//! Resets are rare, so this reads and writes through helpers, at any offset: one copy of it serves
//! all numbers of tags.

use appliance_common::{
    counters::Counter,
    maps::Budget,
    wire::{IPPROTO_TCP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_adjust_tail, programs::XdpContext};
use packet_rules::{
    checksum::fold64,
    tcp::{HEADER_LEN, ResetOf, reset_of},
};

use crate::helper::{
    budget,
    bytes::{load, store},
    count::count,
    frame::Frame,
    packet::{Outcome, Window, frame_len, reverse},
};

/// Counts a drop for `reason` and answers the TCP segment behind the IP header at `l3`, without
/// options or extension headers and no fragment, with a reset: at a bounded rate, and none about
/// a reset.
#[inline(never)]
pub fn send(ctx: &XdpContext, frame: &Frame, l3: u32, ipv6: bool, reason: Counter) -> Outcome {
    count(reason);
    let header = if ipv6 { IPV6_LEN } else { IPV4_LEN } as u32;
    let Some(length) = load::<2>(ctx, l3 + if ipv6 { 4 } else { 2 }) else {
        return Outcome::DropCounted;
    };
    let length = u32::from(u16::from_be_bytes(length));
    let segment = if ipv6 {
        length
    } else {
        length.wrapping_sub(header)
    };
    let Some(tcp) = load::<14>(ctx, l3 + header) else {
        return Outcome::DropCounted;
    };
    let Some(answer) = reset_of(&tcp, segment) else {
        return Outcome::DropCounted;
    };
    if !budget::take(Budget::Reply, frame.network.tenant + 1) {
        return Outcome::DropCounted;
    }
    let len = l3 + header + HEADER_LEN as u32;
    let delta = len as i32 - frame_len(ctx) as i32;
    // SAFETY: no pointer into the packet outlives the call; the verifier checks it.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return Outcome::DropCounted;
    }
    let addresses = if ipv6 { ip_v6(ctx, l3) } else { ip_v4(ctx, l3) };
    let Some(addresses) = addresses else {
        return Outcome::DropCounted;
    };
    if !write(ctx, l3 + header, &answer, addresses) {
        return Outcome::DropCounted;
    }
    let Some(head) = Window::<12>::at(ctx, 0) else {
        return Outcome::DropCounted;
    };
    reverse(head, frame.l2.source, frame.mac);
    Outcome::Send(Counter::ResetSent, xdp_action::XDP_TX)
}

/// Makes the IPv4 header at `l3` that of the reset; returns the sum of its addresses.
#[inline(always)]
fn ip_v4(ctx: &XdpContext, l3: u32) -> Option<u64> {
    let [a, b, c, d, e, f, g, h] = load::<8>(ctx, l3 + 12)?;
    let source = u32::from_ne_bytes([a, b, c, d]);
    let destination = u32::from_ne_bytes([e, f, g, h]);
    let addresses = u64::from(source) + u64::from(destination);
    // Not to be split, hop limit of RFC 1700.
    let [high, low] = ((IPV4_LEN + HEADER_LEN) as u16).to_be_bytes();
    let first = u64::from_ne_bytes([0x45, 0, high, low, 0, 0, 0x40, 0]);
    let second = u32::from_ne_bytes([64, IPPROTO_TCP, 0, 0]);
    let sum = u64::from(first as u32) + (first >> 32) + u64::from(second) + addresses;
    let [check_0, check_1] = (!fold64(sum)).to_ne_bytes();
    let stored = store(ctx, l3, first.to_ne_bytes())
        && store(ctx, l3 + 8, [64, IPPROTO_TCP, check_0, check_1])
        && store(ctx, l3 + 12, [e, f, g, h, a, b, c, d]);
    stored.then_some(addresses)
}

/// Makes the IPv6 header at `l3` that of the reset; returns the sum of its addresses.
#[inline(always)]
fn ip_v6(ctx: &XdpContext, l3: u32) -> Option<u64> {
    let source = load::<16>(ctx, l3 + 8)?;
    let destination = load::<16>(ctx, l3 + 24)?;
    let [high, low] = (HEADER_LEN as u16).to_be_bytes();
    let stored = store(ctx, l3, [0x60, 0, 0, 0, high, low, IPPROTO_TCP, 64])
        && store(ctx, l3 + 8, destination)
        && store(ctx, l3 + 24, source);
    let addresses = sum(&source) + sum(&destination);
    stored.then_some(addresses)
}

/// The sum of the words of an address.
#[inline(always)]
fn sum(address: &[u8; 16]) -> u64 {
    let mut sum = 0;
    for word in address.as_chunks::<4>().0 {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    sum
}

/// Writes the TCP header at `at`. `addresses` is the sum of the IP header's addresses.
#[inline(always)]
fn write(ctx: &XdpContext, at: u32, answer: &ResetOf, addresses: u64) -> bool {
    let words = answer.words();
    let mut sum = addresses;
    for word in words {
        sum += u64::from(word);
    }
    sum += u64::from(u16::from(IPPROTO_TCP).to_be());
    sum += u64::from((HEADER_LEN as u16).to_be());
    let [check_0, check_1] = (!fold64(sum)).to_ne_bytes();
    store(ctx, at, words[0].to_ne_bytes())
        && store(ctx, at + 4, words[1].to_ne_bytes())
        && store(ctx, at + 8, words[2].to_ne_bytes())
        && store(ctx, at + 12, words[3].to_ne_bytes())
        && store(ctx, at + 16, [check_0, check_1, 0, 0])
}
