//! A packet as far as translation asks: its connection, and where what is translated stands in it.

use appliance_common::{
    counters::Counter,
    nat::{FlowKey, TcpState},
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    addr::{Words, v4, v4_is_host, v4_is_link_local, v6_is_host},
    mss,
    nd::fold,
    packet::{Window, frame_len},
};

/// The IPv6 fragment header (RFC 8200 section 4.5).
const FRAGMENT_HEADER: u8 = 44;

/// What kind of packet it is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// TCP, UDP, or an ICMP query or its answer; a whole packet or a first fragment.
    Query = 1,
    /// An ICMP error: its connection is the one that it quotes.
    Error = 2,
    /// A fragment that is not the first: it has addresses and an identification.
    Fragment = 3,
}

/// Where things are in a packet: offsets in the frame, bytes.
#[repr(C)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Its IP header.
    pub l3: u32,
    /// What follows it.
    pub l4: u32,
    /// The IP header that an error quotes.
    pub quoted_l3: u32,
    /// What follows that.
    pub quoted_l4: u32,
    /// Bytes from the IP header on.
    pub total: u32,
    /// Identification of the datagram that it is a fragment of, memory order.
    pub identification: u32,
    /// Sequence number of TCP, host byte order.
    pub sequence: u32,
    /// Acknowledgment number of TCP, host byte order.
    pub acknowledgment: u32,
    /// Hops left.
    pub hops: u8,
    /// Flags of TCP.
    pub flags: u8,
    /// 1: IPv6.
    pub ipv6: u8,
    /// 1: fragments follow it.
    pub more: u8,
    /// 1: it may begin a connection.
    pub opens: u8,
    /// 1: IPv4 without DF.
    pub may_split: u8,
    /// Protocol behind the IP headers, of the packet itself.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Reads the packet at `l3`, from `zone`. `None` if that can be translated; else why it can't.
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
    key.zone = zone as u16;
    key.reserved = 0;
    let Some(first) = Window::<1>::within(ctx, l3) else {
        return MALFORMED;
    };
    if first.get::<u8, 0>() >> 4 == 4 {
        let Some(w) = Window::<IPV4_LEN>::within(ctx, l3) else {
            return MALFORMED;
        };
        let header = u32::from(w.get::<u8, 0>() & 0x0f) * 4;
        let total = u32::from(u16::from_be(w.get::<u16, 2>()));
        if header < IPV4_LEN as u32 || total < header || l3 + total > frame_len(ctx) as u32 {
            return MALFORMED;
        }
        let mut sum = u64::from(w.get::<u32, 0>())
            + u64::from(w.get::<u32, 4>())
            + u64::from(w.get::<u32, 8>())
            + u64::from(w.get::<u32, 12>())
            + u64::from(w.get::<u32, 16>());
        if header > IPV4_LEN as u32 {
            sum += match options(ctx, l3 + IPV4_LEN as u32, l3 + header) {
                Options::Sum(sum) => u64::from(sum),
                Options::Malformed => return MALFORMED,
                Options::Route => return Some(Counter::DropNatProtocol),
            };
        }
        // RFC 1812 section 5.2.2.
        if fold(sum) != 0xffff {
            return MALFORMED;
        }
        let (source, destination) = (w.get::<u32, 12>(), w.get::<u32, 16>());
        if !v4_is_host(source) || v4_is_link_local(source) || v4_is_link_local(destination) {
            return Some(Counter::DropLinkLocal);
        }
        if !v4_is_host(destination) {
            return Some(Counter::DropNotCarried);
        }
        key.source = v4(source);
        key.destination = v4(destination);
        p.ipv6 = 0;
        p.hops = w.get::<u8, 8>();
        p.protocol = w.get::<u8, 9>();
        p.l4 = l3 + header;
        p.total = total;
        let fragment = u16::from_be(w.get::<u16, 6>());
        p.may_split = u8::from(fragment & 0x4000 == 0);
        p.identification = u32::from(w.get::<u16, 4>());
        if fragment & 0x1fff != 0 {
            p.kind = Kind::Fragment;
        } else if fragment & 0x2000 != 0 {
            p.more = 1;
        }
    } else {
        let Some(w) = Window::<IPV6_LEN>::within(ctx, l3) else {
            return MALFORMED;
        };
        let total = IPV6_LEN as u32 + u32::from(u16::from_be(w.get::<u16, 4>()));
        if w.get::<u8, 0>() >> 4 != 6 || l3 + total > frame_len(ctx) as u32 {
            return MALFORMED;
        }
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
        if mss::is_extension(p.protocol) {
            let found = mss::behind_extensions(ctx, p.l4, p.protocol, l3 + total);
            p.protocol = (found >> 32) as u8;
            p.l4 = found as u32;
        }
        if p.protocol == FRAGMENT_HEADER {
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
    if p.l4 + least(p.protocol) > l3 + p.total {
        return MALFORMED;
    }
    payload(ctx, p, key)
}

/// What the options of an IPv4 header are.
enum Options {
    /// They may be passed on: their sum, as of one's-complement 16-bit words in memory order.
    Sum(u32),
    /// They end behind the header.
    Malformed,
    /// They name a route: what is translated is then not where the packet goes (RFC 7126 sections 4.3 and 4.4).
    Route,
}

/// Reads the options of an IPv4 header between two offsets, whole words.
#[inline(always)]
fn options(ctx: &XdpContext, at: u32, end: u32) -> Options {
    match walk_options(ctx, at, end) {
        MALFORMED_OPTIONS => Options::Malformed,
        SOURCE_ROUTE => Options::Route,
        sum => Options::Sum(sum as u32),
    }
}

const MALFORMED_OPTIONS: u64 = 1 << 32;
const SOURCE_ROUTE: u64 = 2 << 32;
/// Most bytes of options (RFC 791 section 3.1).
const MAX_OPTIONS: u32 = 40;

/// The sum, or one of the two constants above it.
#[inline(never)]
fn walk_options(ctx: &XdpContext, at: u32, end: u32) -> u64 {
    let mut sum = 0u32;
    let mut next = at;
    for i in 0..MAX_OPTIONS {
        let here = at + i;
        if here >= end {
            break;
        }
        let Some(byte) = mss::byte(ctx, here) else {
            return MALFORMED_OPTIONS;
        };
        // A word in memory order: as it is loaded on a little-endian machine.
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
            _ => match mss::byte(ctx, here + 1) {
                Some(length) if length >= 2 && here + u32::from(length) <= end => {
                    here + u32::from(length)
                }
                _ => return MALFORMED_OPTIONS,
            },
        };
    }
    u64::from(sum)
}

/// Bytes that a header of the protocol has at least.
#[inline(always)]
const fn least(protocol: u8) -> u32 {
    if protocol == IPPROTO_TCP { 20 } else { 8 }
}

/// Ports, identifiers and what an error quotes.
#[inline(always)]
fn payload(ctx: &XdpContext, p: &mut Packet, key: &mut FlowKey) -> Option<Counter> {
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    match p.protocol {
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
            // Echo and timestamp (RFC 5508 REQ-1). The other queries of RFC 792 and RFC 950 are deprecated (RFC 6918).
            8 | 13 => query(p, key, w),
            0 | 14 => reply(key, w),
            // Unreachable, time exceeded, parameter problem (RFC 792). Source quench is no longer used (RFC 6633),
            // redirects are for the link they were sent on.
            3 | 11 | 12 if p.more == 0 => quoted_v4(ctx, p, key),
            _ => Some(Counter::DropNatProtocol),
        },
        IPPROTO_ICMPV6 if p.ipv6 != 0 => match w.get::<u8, 0>() {
            128 => query(p, key, w),
            129 => reply(key, w),
            1..=4 if p.more == 0 => quoted_v6(ctx, p, key),
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
    if u16::from_be(w.get::<u16, 6>()) & 0x1fff != 0 {
        // It quotes a later fragment: which connection's is not known.
        return Some(Counter::DropNoFlow);
    }
    let protocol = w.get::<u8, 9>();
    p.quoted_l4 = p.quoted_l3 + header;
    // An error goes the way of the answers to what it quotes: from that one's destination.
    let source = v4(w.get::<u32, 16>());
    if v4(w.get::<u32, 12>()) != key.destination {
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
    if mss::is_extension(protocol) {
        let found = mss::behind_extensions(ctx, p.quoted_l4, protocol, p.l3 + p.total);
        protocol = (found >> 32) as u8;
        p.quoted_l4 = found as u32;
    }
    if protocol == FRAGMENT_HEADER {
        // "Packet too big" about a first fragment, above all: with the others it would be lost for good.
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

/// The rest of what an error quotes: at least eight bytes behind the IP header (RFC 792, RFC 4443 section 3). The
/// error's own source becomes the far end's in `key`.
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
        (IPPROTO_TCP | IPPROTO_UDP, _, _) => {
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
