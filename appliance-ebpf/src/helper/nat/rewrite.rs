//! Writes a translation into the packet and corrects its checksums (RFC 1624).

use appliance_common::{
    counters::Counter,
    nat::is_one_to_one_only,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use packet_rules::checksum::{Delta, apply, apply_udp, delta16, delta32};

use crate::{
    helper::{
        addr::{Words, v4_mapped},
        packet::Window,
    },
    maps::{Kind, Scratch},
};

/// The checksum change of a translated address.
#[inline(always)]
fn words(old: &Words, new: &Words) -> Delta {
    let mut delta = 0;
    for i in 0..4 {
        delta += delta32(old[i], new[i]);
    }
    delta
}

/// Translates the packet `s.packet` from `s.key` to `s.flow` and decrements its hop limit. Returns
/// the drop reason, or `None` on success.
#[inline(never)]
pub fn rewrite(ctx: &XdpContext, s: &Scratch) -> Option<Counter> {
    match s.packet.kind {
        Kind::Error => error(ctx, s),
        _ => whole(ctx, s),
    }
}

#[inline(always)]
fn whole(ctx: &XdpContext, s: &Scratch) -> Option<Counter> {
    let (p, key, flow) = (&s.packet, &s.key, &s.flow);
    let addresses = words(&key.source, &flow.source) + words(&key.destination, &flow.destination);
    if let Some(reason) = header(ctx, s, &flow.source, &flow.destination, addresses) {
        return Some(reason);
    }
    if matches!(p.kind, Kind::Fragment) || is_one_to_one_only(p.protocol) {
        return None;
    }
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    let ports = delta16(key.source_port, flow.source_port)
        + delta16(key.destination_port, flow.destination_port);
    if p.one_to_one != 0 {
        // An ICMP message without an identifier. Only the checksum of ICMPv6 covers the addresses.
        if p.protocol == IPPROTO_ICMPV6 {
            w.set::<u16, 2>(apply(w.get::<u16, 2>(), addresses));
        }
        return None;
    }
    match p.protocol {
        IPPROTO_TCP => {
            let Some(t) = Window::<20>::within(ctx, p.l4) else {
                return Some(Counter::DropMalformed);
            };
            t.set::<u16, 0>(flow.source_port);
            t.set::<u16, 2>(flow.destination_port);
            t.set::<u16, 16>(apply(t.get::<u16, 16>(), addresses + ports));
        }
        IPPROTO_UDP => {
            w.set::<u16, 0>(flow.source_port);
            w.set::<u16, 2>(flow.destination_port);
            udp_check(w, addresses + ports);
        }
        IPPROTO_ICMP => {
            w.set::<u16, 4>(identifier(s));
            w.set::<u16, 2>(apply(w.get::<u16, 2>(), ports));
        }
        IPPROTO_ICMPV6 => {
            w.set::<u16, 4>(identifier(s));
            w.set::<u16, 2>(apply(w.get::<u16, 2>(), addresses + ports));
        }
        _ => return Some(Counter::DropNatProtocol),
    }
    None
}

/// Corrects the checksum of a UDP header.
#[inline(always)]
fn udp_check(w: Window<8>, delta: Delta) {
    w.set::<u16, 6>(apply_udp(w.get::<u16, 6>(), delta));
}

/// The identifier of an ICMP query or reply: the port that is not zero by definition.
#[inline(always)]
fn identifier(s: &Scratch) -> u16 {
    if s.key.destination_port == 0 && s.packet.opens != 0 {
        s.flow.source_port
    } else {
        s.flow.destination_port
    }
}

/// Writes the IP header: addresses, hop limit and the checksum of IPv4.
#[inline(always)]
fn header(
    ctx: &XdpContext,
    s: &Scratch,
    source: &Words,
    destination: &Words,
    addresses: Delta,
) -> Option<Counter> {
    let p = &s.packet;
    if p.ipv6 != 0 {
        let Some(w) = Window::<IPV6_LEN>::within(ctx, p.l3) else {
            return Some(Counter::DropMalformed);
        };
        w.set::<u8, 7>(p.hops.wrapping_sub(1));
        w.set::<Words, 8>(*source);
        w.set::<Words, 24>(*destination);
        return None;
    }
    let Some(w) = Window::<IPV4_LEN>::within(ctx, p.l3) else {
        return Some(Counter::DropMalformed);
    };
    let old = w.get::<u16, 8>();
    w.set::<u8, 8>(p.hops.wrapping_sub(1));
    let hops = delta16(old, w.get::<u16, 8>());
    w.set::<u32, 12>(source[3]);
    w.set::<u32, 16>(destination[3]);
    w.set::<u16, 10>(apply(w.get::<u16, 10>(), addresses + hops));
    None
}

/// Translates an ICMP error: its own addresses, and the quoted packet, so that its receiver
/// recognises it (RFC 5508 REQ-4, RFC 4443).
#[inline(always)]
fn error(ctx: &XdpContext, s: &Scratch) -> Option<Counter> {
    let (p, key, flow) = (&s.packet, &s.key, &s.flow);
    // The quoted packet had the other direction.
    let quoted = words(&key.source, &flow.source) + words(&key.destination, &flow.destination);
    let ports = delta16(key.source_port, flow.source_port)
        + delta16(key.destination_port, flow.destination_port);
    // The change of the error's own checksum: everything that changes within the quote.
    let mut within = quoted + ports;
    if p.ipv6 != 0 {
        let Some(w) = Window::<IPV6_LEN>::within(ctx, p.quoted_l3) else {
            return Some(Counter::DropMalformed);
        };
        w.set::<Words, 8>(flow.destination);
        w.set::<Words, 24>(flow.source);
    } else {
        let Some(w) = Window::<IPV4_LEN>::within(ctx, p.quoted_l3) else {
            return Some(Counter::DropMalformed);
        };
        let old = w.get::<u16, 10>();
        let check = apply(old, quoted);
        w.set::<u32, 12>(flow.destination[3]);
        w.set::<u32, 16>(flow.source[3]);
        w.set::<u16, 10>(check);
        within += delta16(old, check);
    }
    let Some(w) = Window::<8>::within(ctx, p.quoted_l4) else {
        return Some(Counter::DropMalformed);
    };
    match key.protocol {
        IPPROTO_TCP => {
            w.set::<u16, 0>(flow.destination_port);
            w.set::<u16, 2>(flow.source_port);
            // The quote has the checksum only if it is longer than eight bytes (RFC 1812 section
            // 4.3.2.3).
            if p.quoted_l4 + 18 <= p.l3 + p.total
                && let Some(t) = Window::<18>::within(ctx, p.quoted_l4)
            {
                let old = t.get::<u16, 16>();
                let check = apply(old, quoted + ports);
                t.set::<u16, 16>(check);
                within += delta16(old, check);
            }
        }
        IPPROTO_UDP => {
            w.set::<u16, 0>(flow.destination_port);
            w.set::<u16, 2>(flow.source_port);
            let old = w.get::<u16, 6>();
            udp_check(w, quoted + ports);
            within += delta16(old, w.get::<u16, 6>());
        }
        protocol if is_one_to_one_only(protocol) => {}
        _ => {
            let identifier = if key.destination_port == 0 {
                flow.source_port
            } else {
                flow.destination_port
            };
            w.set::<u16, 4>(identifier);
            let old = w.get::<u16, 2>();
            let delta = if p.ipv6 != 0 { quoted + ports } else { ports };
            let check = apply(old, delta);
            w.set::<u16, 2>(check);
            within += delta16(old, check);
        }
    }
    // The error itself: to the connection's owner; from the far end's translated address, or from
    // the router that sent it if that is outside, where its own address is meaningful.
    let Some((source, addresses)) = sender(ctx, s) else {
        return Some(Counter::DropMalformed);
    };
    let outer = addresses + words(&key.destination, &flow.destination);
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    let check = w.get::<u16, 2>();
    let check = if p.ipv6 != 0 {
        apply(check, within + outer)
    } else {
        apply(check, within)
    };
    w.set::<u16, 2>(check);
    header(ctx, s, &source, &flow.destination, outer)
}

/// The new source address of an error, and its checksum change.
#[inline(always)]
fn sender(ctx: &XdpContext, s: &Scratch) -> Option<(Words, Delta)> {
    let old = if s.packet.ipv6 != 0 {
        Window::<IPV6_LEN>::within(ctx, s.packet.l3)?.get::<Words, 8>()
    } else {
        v4_mapped(Window::<IPV4_LEN>::within(ctx, s.packet.l3)?.get::<u32, 12>())
    };
    let new = if s.side.zone == 0 { old } else { s.flow.source };
    Some((new, words(&old, &new)))
}
