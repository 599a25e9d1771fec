//! Writes a decided translation into the packet, with its checksums (RFC 1624).

use appliance_common::{
    counters::Counter,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use super::{Scratch, parse::Kind};
use crate::{addr::Words, nd::fold, packet::Window};

/// What a checksum has to take in: the sum of all that was put in and the complement of all that was taken out.
type Delta = u64;

#[inline(always)]
fn words(old: &Words, new: &Words) -> Delta {
    let mut delta = 0;
    for i in 0..4 {
        delta += u64::from(!old[i]) + u64::from(new[i]);
    }
    delta
}

#[inline(always)]
fn word(old: u16, new: u16) -> Delta {
    u64::from(!old) + u64::from(new)
}

#[inline(always)]
fn updated(check: u16, delta: Delta) -> u16 {
    !fold(u64::from(!check) + delta)
}

/// Makes of the packet `s.packet`, found by `s.key`, what `s.flow` says, one hop further. `None` if that is done.
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
    if matches!(p.kind, Kind::Fragment) {
        return None;
    }
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    let ports =
        word(key.source_port, flow.source_port) + word(key.destination_port, flow.destination_port);
    match p.protocol {
        IPPROTO_TCP => {
            let Some(t) = Window::<20>::within(ctx, p.l4) else {
                return Some(Counter::DropMalformed);
            };
            t.set::<u16, 0>(flow.source_port);
            t.set::<u16, 2>(flow.destination_port);
            t.set::<u16, 16>(updated(t.get::<u16, 16>(), addresses + ports));
        }
        IPPROTO_UDP => {
            w.set::<u16, 0>(flow.source_port);
            w.set::<u16, 2>(flow.destination_port);
            udp_check(w, addresses + ports);
        }
        IPPROTO_ICMP => {
            w.set::<u16, 4>(identifier(s));
            w.set::<u16, 2>(updated(w.get::<u16, 2>(), ports));
        }
        IPPROTO_ICMPV6 => {
            w.set::<u16, 4>(identifier(s));
            w.set::<u16, 2>(updated(w.get::<u16, 2>(), addresses + ports));
        }
        _ => return Some(Counter::DropNatProtocol),
    }
    None
}

/// The checksum of a UDP header: none stays none, and none comes to be (RFC 768).
#[inline(always)]
fn udp_check(w: Window<8>, delta: Delta) {
    let check = w.get::<u16, 6>();
    if check == 0 {
        return;
    }
    let check = updated(check, delta);
    w.set::<u16, 6>(if check == 0 { 0xffff } else { check });
}

/// The identifier of an ICMP query or answer: the port that is none of the two zeros.
#[inline(always)]
fn identifier(s: &Scratch) -> u16 {
    if s.key.destination_port == 0 && s.packet.opens != 0 {
        s.flow.source_port
    } else {
        s.flow.destination_port
    }
}

/// The IP header: addresses, hops and, of IPv4, the checksum.
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
    let hops = word(old, w.get::<u16, 8>());
    w.set::<u32, 12>(source[3]);
    w.set::<u32, 16>(destination[3]);
    w.set::<u16, 10>(updated(w.get::<u16, 10>(), addresses + hops));
    None
}

/// An ICMP error: its own addresses, and what it quotes as the one that hears it knows it (RFC 5508 REQ-4,
/// RFC 4443).
#[inline(always)]
fn error(ctx: &XdpContext, s: &Scratch) -> Option<Counter> {
    let (p, key, flow) = (&s.packet, &s.key, &s.flow);
    // The quoted packet went the other way.
    let quoted = words(&key.source, &flow.source) + words(&key.destination, &flow.destination);
    let ports =
        word(key.source_port, flow.source_port) + word(key.destination_port, flow.destination_port);
    // What the error's own checksum has to take in: all that changes within the quote.
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
        let check = updated(old, quoted);
        w.set::<u32, 12>(flow.destination[3]);
        w.set::<u32, 16>(flow.source[3]);
        w.set::<u16, 10>(check);
        within += word(old, check);
    }
    let Some(w) = Window::<8>::within(ctx, p.quoted_l4) else {
        return Some(Counter::DropMalformed);
    };
    match key.protocol {
        IPPROTO_TCP => {
            w.set::<u16, 0>(flow.destination_port);
            w.set::<u16, 2>(flow.source_port);
            // The checksum is there if more than eight bytes are quoted (RFC 1812 section 4.3.2.3).
            if p.quoted_l4 + 18 <= p.l3 + p.total
                && let Some(t) = Window::<18>::within(ctx, p.quoted_l4)
            {
                let old = t.get::<u16, 16>();
                let check = updated(old, quoted + ports);
                t.set::<u16, 16>(check);
                within += word(old, check);
            }
        }
        IPPROTO_UDP => {
            w.set::<u16, 0>(flow.destination_port);
            w.set::<u16, 2>(flow.source_port);
            let old = w.get::<u16, 6>();
            udp_check(w, quoted + ports);
            within += word(old, w.get::<u16, 6>());
        }
        _ => {
            let identifier = if key.destination_port == 0 {
                flow.source_port
            } else {
                flow.destination_port
            };
            w.set::<u16, 4>(identifier);
            let old = w.get::<u16, 2>();
            let delta = if p.ipv6 != 0 { quoted + ports } else { ports };
            let check = updated(old, delta);
            w.set::<u16, 2>(check);
            within += word(old, check);
        }
    }
    // Now the error itself: to whom the connection is; from the far end's new address, or from the router that
    // found it, where that is outside and has an address that means something there.
    let Some((source, addresses)) = sender(ctx, s) else {
        return Some(Counter::DropMalformed);
    };
    let outer = addresses + words(&key.destination, &flow.destination);
    let Some(w) = Window::<8>::within(ctx, p.l4) else {
        return Some(Counter::DropMalformed);
    };
    let check = w.get::<u16, 2>();
    let check = if p.ipv6 != 0 {
        updated(check, within + outer)
    } else {
        updated(check, within)
    };
    w.set::<u16, 2>(check);
    header(ctx, s, &source, &flow.destination, outer)
}

/// The new source address of an error, and what of it changes.
#[inline(always)]
fn sender(ctx: &XdpContext, s: &Scratch) -> Option<(Words, Delta)> {
    let old = if s.packet.ipv6 != 0 {
        Window::<IPV6_LEN>::within(ctx, s.packet.l3)?.get::<Words, 8>()
    } else {
        crate::addr::v4(Window::<IPV4_LEN>::within(ctx, s.packet.l3)?.get::<u32, 12>())
    };
    let new = if s.side.zone == 0 { old } else { s.flow.source };
    Some((new, words(&old, &new)))
}
