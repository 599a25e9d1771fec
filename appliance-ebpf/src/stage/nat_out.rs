//! A packet of a tenant in full failover to none of the tenant's networks: translated and sent out
//! of the uplink, or to another machine's public address.
//!
//! ```text
//!   known connection, or opened: by mapping (internet), by rule (another machine's public address)
//!     ├─ to the outside ─▶ next hop from the kernel's FIB ─▶ uplink
//!     └─ to a machine ──▶ its network (hairpin)
//! ```
//!
//! A packet that cannot be translated is dropped and counted; a TCP segment of a connection that is
//! not known is answered with a reset.

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::network_flags,
    nat::{Nat, UPLINK},
    wire::{ETH_LEN, IPPROTO_TCP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        frame::Frame,
        icmp, lookup,
        nat::{
            clamp_mss, deliver_to_host,
            egress::{self, Egress},
            find, is_too_large, network_of, now, parse, remember_fragments, rewrite, scratch,
            settings, tenant, undeliverable,
        },
        packet::Outcome,
        reset, slow_path,
    },
    maps::{Kind, Scratch, Side},
};

/// A packet from the stage `full`, on the port that it came in on.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    let frame = match Frame::resume(ctx) {
        Ok(frame) => frame,
        Err(outcome) => return outcome,
    };
    let (Some(s), Some(nat)) = (scratch(), settings()) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let from = frame.network;
    let zone = from.tenant + 1;
    let Some(tenant) = tenant(zone) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    s.side = Side {
        slot: frame.slot,
        zone,
        epoch: tenant.epoch,
        internet: from.flags & network_flags::INTERNET,
        now: now(),
    };
    let l3 = ETH_LEN as u32 + u32::from(frame.l2.tags) * 4;
    if let Some(reason) = parse::parse(ctx, &mut s.packet, &mut s.key, l3, zone) {
        return Outcome::Drop(reason);
    }
    if let Some(reason) = find(nat, s) {
        if reason as u32 == Counter::DropFragment as u32 {
            let destination = s.key.destination;
            return slow_path::send(ctx, from, l3 as u16, SlowReason::Fragment, &destination);
        }
        if is_lost_connection(s, reason) {
            return reset::send(ctx, &frame, l3, s.packet.ipv6 != 0, reason);
        }
        return match frame.l2.tags {
            0 => reject::<14>(ctx, &frame, s, reason),
            1 => reject::<18>(ctx, &frame, s, reason),
            _ => reject::<22>(ctx, &frame, s, reason),
        };
    }
    match frame.l2.tags {
        0 => forward::<14>(ctx, &frame, s, nat),
        1 => forward::<18>(ctx, &frame, s, nat),
        _ => forward::<22>(ctx, &frame, s, nat),
    }
}

/// Whether the packet is a TCP segment of a connection that the tables do not have: of one from
/// before the data path was created anew, or that was idle for too long. Its sender learns by a
/// reset that the connection is lost, instead of by its own timeout (RFC 7857 section 2.3).
#[inline(always)]
fn is_lost_connection(s: &Scratch, reason: Counter) -> bool {
    let p = &s.packet;
    let header = if p.ipv6 != 0 { IPV6_LEN } else { IPV4_LEN } as u32;
    reason as u32 == Counter::DropNoFlow as u32
        && p.protocol == IPPROTO_TCP
        && matches!(p.kind, Kind::Query)
        && p.more == 0
        && p.l4 == p.l3 + header
}

/// Drops a packet that is not translated; its source gets "unreachable" if there is no route out.
#[inline(always)]
fn reject<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    s: &Scratch,
    reason: Counter,
) -> Outcome {
    if reason as u32 == Counter::DropNoRoute as u32 {
        return icmp::unreachable::<L3>(ctx, frame, &undeliverable(frame, s), reason);
    }
    Outcome::Drop(reason)
}

/// Forwards a tenant's packet of the connection `s.flow`.
#[inline(never)]
fn forward<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    s: &mut Scratch,
    nat: &Nat,
) -> Outcome {
    if s.packet.hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, frame, &undeliverable(frame, s));
    }
    if s.flow.to != UPLINK {
        let Some(to) = network_of(s) else {
            return Outcome::Drop(Counter::DropInconsistent);
        };
        if lookup::neighbour(to, s.flow.destination).is_some_and(|host| host.is_absent()) {
            let error = undeliverable(frame, s);
            return icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropHostAbsent);
        }
        if is_too_large(s, to.lan_mtu) {
            return too_large::<L3>(ctx, frame, s, to.lan_mtu);
        }
        clamp_mss(ctx, s, frame.network.lan_mtu.min(to.lan_mtu));
        if let Some(reason) = rewrite::rewrite(ctx, s) {
            return Outcome::Drop(reason);
        }
        return deliver_to_host::<L3>(ctx, s, to, Counter::TranslatedHairpin);
    }
    let slow = match egress::resolve(ctx, s, nat) {
        Egress::Known => None,
        Egress::Unresolved => Some(SlowReason::UplinkUnresolved),
        Egress::TooLarge(_) if s.packet.may_split != 0 => Some(SlowReason::UplinkSplit),
        Egress::TooLarge(mtu) => return too_large::<L3>(ctx, frame, s, mtu),
        Egress::None => {
            return icmp::unreachable::<L3>(
                ctx,
                frame,
                &undeliverable(frame, s),
                Counter::DropNoNextHop,
            );
        }
    };
    clamp_mss(ctx, s, nat.mtu_with(frame.network.lan_mtu));
    if let Some(reason) = rewrite::rewrite(ctx, s) {
        return Outcome::Drop(reason);
    }
    remember_fragments(s);
    if let Some(reason) = slow {
        let destination = s.flow.destination;
        return slow_path::send(ctx, frame.network, L3 as u16, reason, &destination);
    }
    egress::send::<L3>(ctx, s, nat)
}

/// Drops a packet that is longer than `mtu` and must not be split; its source gets an ICMP error
/// where one may be sent.
#[inline(always)]
fn too_large<const L3: usize>(ctx: &XdpContext, frame: &Frame, s: &Scratch, mtu: u16) -> Outcome {
    let error = undeliverable(frame, s);
    if error.silent || error.router == [0; 4] {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    if error.ipv6 {
        return icmp::packet_too_big::<L3>(ctx, frame, &error.source, &error.router, mtu);
    }
    icmp::frag_needed::<L3>(ctx, frame, error.source[3], error.router[3], mtu)
}
