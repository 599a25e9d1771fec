//! ICMP and ICMPv6 errors, made in place from the packet that they are about.
//!
//! ```text
//!   [Ethernet | IP packet] ──▶ [Ethernet, reversed | IP | ICMP error | first bytes of the packet]
//! ```

use appliance_common::{
    counters::Counter,
    limits::ICMP_QUOTE_BYTES,
    maps::Budget,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, generated::bpf_csum_diff},
    programs::XdpContext,
};

use packet_rules::{checksum::fold64, icmp::is_v4_error};

use crate::helper::{
    addr::{NONE, Words},
    budget,
    bytes::byte,
    count::count,
    frame::Frame,
    packet::{Outcome, Window, frame_len, reverse},
};

/// An ICMP or ICMPv6 error header, bytes.
const ICMP_LEN: usize = 8;

/// Whether the IPv4 packet with this protocol and its next header at `l4` is itself an ICMP error,
/// or cannot be classified: no error may be sent about it (RFC 1122 section 3.2.2).
#[inline(always)]
pub fn is_error(ctx: &XdpContext, l4: usize, protocol: u8) -> bool {
    protocol == IPPROTO_ICMP && byte(ctx, l4 as u32).is_none_or(is_v4_error)
}

/// Moves the Ethernet header `BY` bytes forward and reverses it, cuts the frame behind the quoted
/// bytes, and returns whether all of that succeeded.
#[inline(always)]
fn make_room<const L3: usize, const BY: usize, const QUOTE: usize>(
    ctx: &XdpContext,
    frame: &Frame,
) -> bool {
    // SAFETY: no pointer into the packet outlives the calls; the verifier checks it.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(BY as i32)) } != 0 {
        return false;
    }
    let delta = (L3 + BY + QUOTE) as i32 - frame_len(ctx) as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return false;
    }
    let (Some(old), Some(new)) = (Window::<22>::at(ctx, BY), Window::<22>::at(ctx, 0)) else {
        return false;
    };
    // Types and tags; `reverse` writes the addresses. With fewer tags this copies bytes that the IP
    // header overwrites.
    new.set::<u16, 12>(old.get::<u16, 12>());
    new.set::<u32, 14>(old.get::<u32, 14>());
    new.set::<u32, 18>(old.get::<u32, 18>());
    let Some(head) = Window::<12>::at(ctx, 0) else {
        return false;
    };
    reverse(head, frame.l2.source, frame.mac);
    true
}

/// The Internet checksum's 32-bit sum of the quoted bytes at `offset`, or `None` where the frame
/// does not reach.
#[inline(always)]
fn quote_sum<const QUOTE: usize>(ctx: &XdpContext, offset: usize) -> Option<u64> {
    let quote = Window::<QUOTE>::at(ctx, offset)?;
    // SAFETY: the window covers the bytes; `from` is empty.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            quote.as_ptr().cast(),
            QUOTE as u32,
            0,
        )
    };
    (sum >= 0).then_some(sum as u64)
}

/// Sends "fragmentation needed and DF set" with `mtu` (RFC 792, RFC 1191 section 4) from `from`
/// (for a tunnel: the destination of the packet) to the packet's source. Not rate-limited, as in
/// Linux (net/ipv4/icmp.c, icmpv4_mask_allow): it is smaller than the packet that it answers, and a
/// sender that misses it stalls.
#[inline(never)]
pub fn frag_needed<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    source: u32,
    from: u32,
    mtu: u16,
) -> Outcome {
    let kind = u32::from_ne_bytes([3, 4, 0, 0]);
    let sent = error_v4::<L3, ICMP_QUOTE_BYTES>(ctx, frame, [from, source], kind, mtu);
    if !sent {
        return Outcome::Drop(Counter::DropAdjust);
    }
    Outcome::Send(Counter::FragNeededSent, xdp_action::XDP_TX)
}

/// Sends "packet too big" with `mtu` (RFC 4443 section 3.2) from `from` (for a tunnel: the
/// destination of the packet) to the packet's source. Not rate-limited, as in Linux, whose default
/// net.ipv6.icmp.ratemask excludes this type.
#[inline(never)]
pub fn packet_too_big<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    source: &Words,
    from: &Words,
    mtu: u16,
) -> Outcome {
    let kind = u32::from_ne_bytes([2, 0, 0, 0]);
    let sent = error_v6::<L3, ICMP_QUOTE_BYTES>(ctx, frame, from, source, kind, mtu);
    if !sent {
        return Outcome::Drop(Counter::DropAdjust);
    }
    Outcome::Send(Counter::PacketTooBigSent, xdp_action::XDP_TX)
}

/// A packet that cannot be forwarded.
pub struct Undeliverable {
    /// Whether it is IPv6.
    pub ipv6: bool,
    /// Whether no error may be sent about it.
    pub silent: bool,
    pub source: Words,
    /// Bytes of its IP header.
    pub header: usize,
    /// The source of the error; unspecified: no error is sent.
    pub router: Words,
    /// Whether it came from outside.
    pub outside: bool,
}

/// Counts a drop for `reason` and sends "unreachable" from the network's gateway, at a bounded
/// rate: no route, no such host, no such port (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1) or
/// prohibited.
#[inline(never)]
pub fn unreachable<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    packet: &Undeliverable,
    reason: Counter,
) -> Outcome {
    let kind = match (packet.ipv6, reason) {
        (false, Counter::DropPolicy) => [3, 13, 0, 0],
        (false, Counter::DropHostAbsent) => [3, 1, 0, 0],
        (false, Counter::DropToGateway) => [3, 3, 0, 0],
        (false, _) => [3, 0, 0, 0],
        (true, Counter::DropPolicy) => [1, 1, 0, 0],
        (true, Counter::DropHostAbsent) => [1, 3, 0, 0],
        (true, Counter::DropToGateway) => [1, 4, 0, 0],
        (true, _) => [1, 0, 0, 0],
    };
    count(reason);
    send_error::<L3>(ctx, frame, packet, kind, Counter::UnreachableSent)
}

/// Counts a drop and sends "time exceeded" from the network's gateway, at a bounded rate (RFC 792,
/// RFC 4443 section 3.3).
#[inline(never)]
pub fn time_exceeded<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    packet: &Undeliverable,
) -> Outcome {
    let kind = if packet.ipv6 {
        [3, 0, 0, 0]
    } else {
        [11, 0, 0, 0]
    };
    count(Counter::DropHopLimit);
    send_error::<L3>(ctx, frame, packet, kind, Counter::TimeExceededSent)
}

/// Sends the error about a packet that is counted already, if one may be sent. It quotes 512 bytes
/// of a packet that has as many, else the least that identifies the packet: header and eight bytes.
#[inline(always)]
fn send_error<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    packet: &Undeliverable,
    kind: [u8; 4],
    counter: Counter,
) -> Outcome {
    // By reference: a copy would take stack of the longest chain of calls.
    let router = &packet.router;
    if packet.silent || *router == NONE {
        return Outcome::DropCounted;
    }
    // RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f).
    let budget = if packet.outside {
        Budget::OutsideError
    } else {
        Budget::IcmpError
    };
    if !budget::take(budget, frame.network.tenant + 1) {
        return Outcome::DropCounted;
    }
    let kind = u32::from_ne_bytes(kind);
    let long = frame_len(ctx) >= L3 + ICMP_QUOTE_BYTES;
    let sent = if packet.ipv6 {
        const MIN_QUOTE: usize = IPV6_LEN + 8;
        if long {
            error_v6::<L3, ICMP_QUOTE_BYTES>(ctx, frame, router, &packet.source, kind, 0)
        } else {
            error_v6::<L3, MIN_QUOTE>(ctx, frame, router, &packet.source, kind, 0)
        }
    } else {
        const MIN_QUOTE: usize = IPV4_LEN + 8;
        let addresses = [router[3], packet.source[3]];
        if long {
            error_v4::<L3, ICMP_QUOTE_BYTES>(ctx, frame, addresses, kind, 0)
        } else if packet.header == IPV4_LEN {
            error_v4::<L3, MIN_QUOTE>(ctx, frame, addresses, kind, 0)
        } else {
            // IP options: rare, and not worth a third length.
            return Outcome::DropCounted;
        }
    };
    if sent {
        Outcome::Send(counter, xdp_action::XDP_TX)
    } else {
        Outcome::DropCounted
    }
}

/// Makes the frame an ICMP error that quotes `QUOTE` bytes of it, between two addresses. Returns
/// whether that succeeded; if not, the frame must be dropped.
#[inline(always)]
fn error_v4<const L3: usize, const QUOTE: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    [from, to]: [u32; 2],
    kind: u32,
    mtu: u16,
) -> bool {
    const BY: usize = IPV4_LEN + ICMP_LEN;
    if frame_len(ctx) < L3 + QUOTE || !make_room::<L3, BY, QUOTE>(ctx, frame) {
        return false;
    }
    let Some(sum) = quote_sum::<QUOTE>(ctx, L3 + BY) else {
        return false;
    };
    let Some(w) = Window::<BY>::at(ctx, L3) else {
        return false;
    };
    let length = ((BY + QUOTE) as u16).to_be();
    // Version and header length, DSCP CS6 as routers use (RFC 1812 section 4.3.2.5).
    let first = u16::from_ne_bytes([0x45, 0xc0]);
    let ttl = u16::from_ne_bytes([64, IPPROTO_ICMP]);
    let header =
        u64::from(first) + u64::from(length) + u64::from(ttl) + u64::from(from) + u64::from(to);
    w.set::<u16, 0>(first);
    w.set::<u16, 2>(length);
    w.set::<u32, 4>(0);
    w.set::<u16, 8>(ttl);
    w.set::<u16, 10>(!fold64(header));
    w.set::<u32, 12>(from);
    w.set::<u32, 16>(to);
    let mtu = u32::from(mtu).to_be();
    let check = !fold64(sum + u64::from(kind) + u64::from(mtu));
    w.set::<u32, 20>(kind);
    w.set::<u16, 22>(check);
    w.set::<u32, 24>(mtu);
    true
}

/// Makes the frame an ICMPv6 error, as [`error_v4`].
#[inline(always)]
fn error_v6<const L3: usize, const QUOTE: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    from: &Words,
    to: &Words,
    kind: u32,
    mtu: u16,
) -> bool {
    const BY: usize = IPV6_LEN + ICMP_LEN;
    if frame_len(ctx) < L3 + QUOTE || !make_room::<L3, BY, QUOTE>(ctx, frame) {
        return false;
    }
    let Some(sum) = quote_sum::<QUOTE>(ctx, L3 + BY) else {
        return false;
    };
    let Some(w) = Window::<BY>::at(ctx, L3) else {
        return false;
    };
    let length = (ICMP_LEN + QUOTE) as u16;
    w.set::<u32, 0>(u32::from_be(0x6000_0000));
    w.set::<u16, 4>(length.to_be());
    w.set::<u16, 6>(u16::from_ne_bytes([IPPROTO_ICMPV6, 64]));
    w.set::<Words, 8>(*from);
    w.set::<Words, 24>(*to);
    let mtu = u32::from(mtu).to_be();
    let mut total = sum + u64::from(kind) + u64::from(mtu);
    total += u64::from(u32::from(length).to_be());
    total += u64::from(u32::from_ne_bytes([0, 0, 0, IPPROTO_ICMPV6]));
    for i in 0..4 {
        total += u64::from(to[i]) + u64::from(from[i]);
    }
    w.set::<u32, 40>(kind);
    w.set::<u16, 42>(!fold64(total));
    w.set::<u32, 44>(mtu);
    true
}
