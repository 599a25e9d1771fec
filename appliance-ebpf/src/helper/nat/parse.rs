//! Parses a packet for translation: the key of its connection, and the offsets of the translated
//! fields.

use appliance_common::{
    counters::Counter,
    nat::{FlowKey, TcpState},
    wire::{
        IPPROTO_ESP, IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP,
        IPPROTO_UDP, IPV4_LEN, IPV6_LEN,
    },
};
use aya_ebpf::programs::XdpContext;

use packet_rules::{
    checksum::fold64,
    ipv4,
    ipv6::{FRAGMENT, is_extension, total_len},
};

use crate::{
    helper::{
        addr::{Words, v4_is_host, v4_is_link_local, v4_mapped, v6_is_host},
        bytes,
        packet::{Window, frame_len},
        words::unknown,
    },
    maps::{Kind, Packet},
};

/// Parses the packet at `l3`, from `zone`. Returns the drop reason, or `None` if it can be
/// translated.
#[inline(never)]
pub fn parse(
    ctx: &XdpContext,
    p: &mut Packet,
    key: &mut FlowKey,
    l3: u32,
    zone: u32,
) -> Option<Counter> {
    const MALFORMED: Option<Counter> = Some(Counter::DropMalformed);
    p.l3 = l3;
    p.kind = Kind::Query;
    p.more = 0;
    p.opens = 0;
    p.flags = 0;
    p.may_split = 0;
    p.identification = 0;
    p.one_to_one = 0;
    key.zone = zone as u16;
    key.reserved = 0;
    let Some(first) = Window::<1>::within(ctx, l3) else {
        return MALFORMED;
    };
    if first.get::<u8, 0>() >> 4 == 4 {
        let Some(w) = Window::<IPV4_LEN>::within(ctx, l3) else {
            return MALFORMED;
        };
        let total = u16::from_be(w.get::<u16, 2>());
        let Some(ipv4::Lengths { header, total }) =
            ipv4::lengths(w.get::<u8, 0>(), total, l3 as usize, frame_len(ctx))
        else {
            return MALFORMED;
        };
        let (header, total) = (header as u32, total as u32);
        let mut sum = u64::from(w.get::<u32, 0>())
            + u64::from(w.get::<u32, 4>())
            + u64::from(w.get::<u32, 8>())
            + u64::from(w.get::<u32, 12>())
            + u64::from(w.get::<u32, 16>());
        if header > IPV4_LEN as u32 {
            sum += match options(ctx, &mut p.l4, l3 + IPV4_LEN as u32, l3 + header) {
                Options::Sum(sum) => u64::from(sum),
                Options::Malformed => return MALFORMED,
                Options::Route => return Some(Counter::DropNatProtocol),
            };
        }
        // RFC 1812 section 5.2.2.
        if fold64(sum) != 0xffff {
            return MALFORMED;
        }
        let (source, destination) = (w.get::<u32, 12>(), w.get::<u32, 16>());
        if !v4_is_host(source) || v4_is_link_local(source) || v4_is_link_local(destination) {
            return Some(Counter::DropLinkLocal);
        }
        if !v4_is_host(destination) {
            return Some(Counter::DropNotCarried);
        }
        key.source = v4_mapped(source);
        key.destination = v4_mapped(destination);
        p.ipv6 = 0;
        p.hops = w.get::<u8, 8>();
        p.protocol = w.get::<u8, 9>();
        p.l4 = l3 + header;
        p.total = total;
        let fragment = u16::from_be(w.get::<u16, 6>());
        p.may_split = u8::from(ipv4::may_fragment(fragment));
        p.identification = u32::from(w.get::<u16, 4>());
        if ipv4::is_later_fragment(fragment) {
            p.kind = Kind::Fragment;
        } else if fragment & ipv4::MORE_FRAGMENTS != 0 {
            p.more = 1;
        }
    } else {
        let Some(w) = Window::<IPV6_LEN>::within(ctx, l3) else {
            return MALFORMED;
        };
        let payload = u16::from_be(w.get::<u16, 4>());
        let Some(total) = total_len(w.get::<u8, 0>(), payload, l3 as usize, frame_len(ctx)) else {
            return MALFORMED;
        };
        let total = total as u32;
        let (source, destination) = (w.get::<Words, 8>(), w.get::<Words, 24>());
        if !v6_is_host(source) {
            return Some(Counter::DropLinkLocal);
        }
        if !v6_is_host(destination) {
            return Some(Counter::DropNotCarried);
        }
        key.source = source;
        key.destination = destination;
        p.ipv6 = 1;
        p.hops = w.get::<u8, 7>();
        p.protocol = w.get::<u8, 6>();
        p.l4 = l3 + IPV6_LEN as u32;
        p.total = total;
        if is_extension(p.protocol) {
            let found = bytes::behind_extensions(ctx, p.l4, p.protocol, l3 + total);
            p.protocol = (found >> 32) as u8;
            p.l4 = found as u32;
        }
        if p.protocol == FRAGMENT {
            let Some(w) = Window::<8>::within(ctx, p.l4) else {
                return MALFORMED;
            };
            p.identification = w.get::<u32, 4>();
            let fragment = u16::from_be(w.get::<u16, 2>());
            p.protocol = w.get::<u8, 0>();
            p.l4 += 8;
            if fragment & 0xfff8 != 0 {
                p.kind = Kind::Fragment;
            } else if fragment & 1 != 0 {
                p.more = 1;
            }
        }
    }
    key.protocol = p.protocol;
    if matches!(p.kind, Kind::Fragment) {
        key.source_port = p.identification as u16;
        key.destination_port = (p.identification >> 16) as u16;
        return None;
    }
    if p.l4 + min_header_len(p.protocol) > l3 + p.total {
        return MALFORMED;
    }
    payload(ctx, p, key)
}

/// The options of an IPv4 header.
enum Options {
    /// Valid: their sum as 16-bit words in memory order, for the header's checksum.
    Sum(u32),
    /// They extend beyond the header.
    Malformed,
    /// A source route: the packet would not go to the translated address (RFC 7126 sections 4.3 and
    /// 4.4).
    Route,
}

/// Reads the options of an IPv4 header between two offsets, whole 32-bit words. `place` is any
/// field of a map.
#[inline(always)]
fn options(ctx: &XdpContext, place: &mut u32, at: u32, end: u32) -> Options {
    match walk_options(ctx, place, at, end) {
        MALFORMED_OPTIONS => Options::Malformed,
        SOURCE_ROUTE => Options::Route,
        sum => Options::Sum(sum as u32),
    }
}

const MALFORMED_OPTIONS: u64 = 1 << 32;
const SOURCE_ROUTE: u64 = 2 << 32;
/// Most bytes of options (RFC 791 section 3.1).
const MAX_OPTIONS: u32 = 40;

/// The sum, or one of the constants [`MALFORMED_OPTIONS`] and [`SOURCE_ROUTE`].
#[inline(never)]
fn walk_options(ctx: &XdpContext, place: &mut u32, at: u32, end: u32) -> u64 {
    let mut sum = 0u32;
    let mut next = at;
    for i in 0..MAX_OPTIONS {
        let here = at + i;
        if here >= end {
            break;
        }
        let Some(byte) = bytes::byte(ctx, here) else {
            return MALFORMED_OPTIONS;
        };
        // A 16-bit word in memory order.
        sum += if i & 1 == 0 {
            u32::from(u16::from_ne_bytes([byte, 0]))
        } else {
            u32::from(u16::from_ne_bytes([0, byte]))
        };
        if here != next {
            continue;
        }
        next = match byte {
            // End of the list: what follows is padding.
            0 => end,
            1 => here + 1,
            131 | 137 => return SOURCE_ROUTE,
            _ => match bytes::byte(ctx, here + 1) {
                Some(length) if length >= 2 && here + u32::from(length) <= end => {
                    here + u32::from(length)
                }
                _ => return MALFORMED_OPTIONS,
            },
        };
        next = unknown(place, next);
    }
    u64::from(sum)
}

/// The least length of a header of the protocol, bytes.
#[inline(always)]
const fn min_header_len(protocol: u8) -> u32 {
    match protocol {
        IPPROTO_TCP => 20,
        IPPROTO_SCTP => 12,
        IPPROTO_GRE => 4,
        _ => 8,
    }
}

/// Reads ports, identifiers, and the packet that an error quotes.
#[inline(always)]
fn payload(ctx: &XdpContext, p: &mut Packet, key: &mut FlowKey) -> Option<Counter> {
    if p.protocol == IPPROTO_ESP || p.protocol == IPPROTO_GRE {
        key.source_port = 0;
        key.destination_port = 0;
        p.opens = 1;
        p.one_to_one = 1;
        return None;
    }
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    match p.protocol {
        IPPROTO_SCTP => {
            key.source_port = w.get::<u16, 0>();
            key.destination_port = w.get::<u16, 2>();
            p.opens = 1;
            p.one_to_one = 1;
            None
        }
        IPPROTO_TCP => {
            key.source_port = w.get::<u16, 0>();
            key.destination_port = w.get::<u16, 2>();
            let Some(w) = Window::<20>::within(ctx, p.l4) else {
                return Some(Counter::DropMalformed);
            };
            p.flags = w.get::<u8, 13>();
            p.sequence = u32::from_be(w.get::<u32, 4>());
            p.acknowledgment = u32::from_be(w.get::<u32, 8>());
            p.opens = u8::from(TcpState::opens(p.flags));
            None
        }
        IPPROTO_UDP => {
            key.source_port = w.get::<u16, 0>();
            key.destination_port = w.get::<u16, 2>();
            p.opens = 1;
            None
        }
        IPPROTO_ICMP if p.ipv6 == 0 => match w.get::<u8, 0>() {
            // Echo and timestamp (RFC 5508 REQ-1). The other queries of RFC 792 and RFC 950 are
            // deprecated (RFC 6918).
            8 | 13 => query(p, key, w),
            0 | 14 => reply(key, w),
            // Unreachable, time exceeded, parameter problem (RFC 792). Source quench is deprecated
            // (RFC 6633); redirects are for their own link.
            3 | 11 | 12 if p.more == 0 => quoted_v4(ctx, p, key),
            // Photuris, extended echo (RFC 8335), experiments (RFC 4727) and unassigned ones.
            kind @ 40.. => other(p, key, kind),
            _ => Some(Counter::DropNatProtocol),
        },
        IPPROTO_ICMPV6 if p.ipv6 != 0 => match w.get::<u8, 0>() {
            128 => query(p, key, w),
            129 => reply(key, w),
            1..=4 if p.more == 0 => quoted_v6(ctx, p, key),
            // Node information, extended echo (RFC 8335), experiments (RFC 4443) and unassigned
            // ones. Those between belong to the link or to mobility.
            kind @ (139 | 140 | 160 | 161 | 200..=254) => other(p, key, kind),
            _ => Some(Counter::DropNatProtocol),
        },
        _ => Some(Counter::DropNatProtocol),
    }
}

#[inline(always)]
fn query(p: &mut Packet, key: &mut FlowKey, w: Window<8>) -> Option<Counter> {
    key.source_port = w.get::<u16, 4>();
    key.destination_port = 0;
    p.opens = 1;
    None
}

/// A message without an identifier that we know: a 1:1 rule translates its addresses only. Queries
/// and replies have a port that is zero, so the key is no other's.
#[inline(always)]
fn other(p: &mut Packet, key: &mut FlowKey, kind: u8) -> Option<Counter> {
    key.source_port = kind.into();
    key.destination_port = kind.into();
    p.opens = 1;
    p.one_to_one = 1;
    None
}

#[inline(always)]
fn reply(key: &mut FlowKey, w: Window<8>) -> Option<Counter> {
    key.source_port = 0;
    key.destination_port = w.get::<u16, 4>();
    None
}

#[inline(always)]
fn quoted_v4(ctx: &XdpContext, p: &mut Packet, key: &mut FlowKey) -> Option<Counter> {
    p.kind = Kind::Error;
    p.quoted_l3 = p.l4 + 8;
    let Some(w) = Window::<IPV4_LEN>::within(ctx, p.quoted_l3) else {
        return Some(Counter::DropMalformed);
    };
    let first = w.get::<u8, 0>();
    let header = u32::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IPV4_LEN as u32 {
        return Some(Counter::DropMalformed);
    }
    if ipv4::is_later_fragment(u16::from_be(w.get::<u16, 6>())) {
        // It quotes a later fragment, whose connection is not known.
        return Some(Counter::DropNoFlow);
    }
    let protocol = w.get::<u8, 9>();
    p.quoted_l4 = p.quoted_l3 + header;
    // An error takes the direction of replies to the quoted packet: from that packet's destination.
    let source = v4_mapped(w.get::<u32, 16>());
    if v4_mapped(w.get::<u32, 12>()) != key.destination {
        return Some(Counter::DropNoFlow);
    }
    quoted(ctx, p, key, protocol, source)
}

#[inline(always)]
fn quoted_v6(ctx: &XdpContext, p: &mut Packet, key: &mut FlowKey) -> Option<Counter> {
    p.kind = Kind::Error;
    p.quoted_l3 = p.l4 + 8;
    let Some(w) = Window::<IPV6_LEN>::within(ctx, p.quoted_l3) else {
        return Some(Counter::DropMalformed);
    };
    if w.get::<u8, 0>() >> 4 != 6 {
        return Some(Counter::DropMalformed);
    }
    let mut protocol = w.get::<u8, 6>();
    p.quoted_l4 = p.quoted_l3 + IPV6_LEN as u32;
    let source = w.get::<Words, 24>();
    if w.get::<Words, 8>() != key.destination {
        return Some(Counter::DropNoFlow);
    }
    if is_extension(protocol) {
        let found = bytes::behind_extensions(ctx, p.quoted_l4, protocol, p.l3 + p.total);
        protocol = (found >> 32) as u8;
        p.quoted_l4 = found as u32;
    }
    if protocol == FRAGMENT {
        // Above all "packet too big" about a first fragment: those about later fragments are lost.
        let Some(w) = Window::<8>::within(ctx, p.quoted_l4) else {
            return Some(Counter::DropMalformed);
        };
        if u16::from_be(w.get::<u16, 2>()) & 0xfff8 != 0 {
            return Some(Counter::DropNoFlow);
        }
        protocol = w.get::<u8, 0>();
        p.quoted_l4 += 8;
    }
    quoted(ctx, p, key, protocol, source)
}

/// Reads the quoted packet behind its IP headers: at least eight bytes (RFC 792, RFC 4443 section
/// 3). The source in `key` becomes that of the far end.
#[inline(always)]
fn quoted(
    ctx: &XdpContext,
    p: &Packet,
    key: &mut FlowKey,
    protocol: u8,
    source: Words,
) -> Option<Counter> {
    if p.quoted_l4 + 8 > p.l3 + p.total {
        return Some(Counter::DropMalformed);
    }
    let Some(w) = Window::<8>::within(ctx, p.quoted_l4) else {
        return Some(Counter::DropMalformed);
    };
    key.source = source;
    key.protocol = protocol;
    match (protocol, w.get::<u8, 0>(), p.ipv6) {
        (IPPROTO_ESP | IPPROTO_GRE, _, _) => {
            key.source_port = 0;
            key.destination_port = 0;
        }
        (IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP, _, _) => {
            key.source_port = w.get::<u16, 2>();
            key.destination_port = w.get::<u16, 0>();
        }
        (IPPROTO_ICMP, 8 | 13, 0) | (IPPROTO_ICMPV6, 128, 1) => {
            key.source_port = 0;
            key.destination_port = w.get::<u16, 4>();
        }
        (IPPROTO_ICMP, 0 | 14, 0) | (IPPROTO_ICMPV6, 129, 1) => {
            key.source_port = w.get::<u16, 4>();
            key.destination_port = 0;
        }
        _ => return Some(Counter::DropNoFlow),
    }
    None
}
