//! A packet on the uplink to a public address: by rule or as a reply, to a tenant's machine.
//!
//! ```text
//!   management port ─▶ dropped before any lookup; on the appliance's own address, passed
//!   known connection, or opened by rule ─▶ machine; one that does not answer: "unreachable"
//!   no connection ─▶ dropped; on the appliance's own address, passed
//! ```

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::Budget,
    nat::{UPLINK, public_flags},
    wire::{ETH_LEN, ETHERTYPE_IPV4, IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        addr::{Words, v4_mapped},
        budget, echo,
        frame::Frame,
        icmp, lookup,
        nat::{
            MANAGEMENT_PORT, clamp_mss, deliver_to_host, find, has_ports, is_too_large, network_of,
            now, parse, public, rewrite, scratch, settings, undeliverable,
        },
        packet::{L2, Mac, Outcome, Window},
        slow_path,
    },
    maps::{Kind, Packet, Side},
};

/// Answers an echo request that no rule leads to a machine; `None` for another packet, or over the
/// budget of the tenant of `zone`.
#[inline(always)]
fn ping(ctx: &XdpContext, l2: &L2, p: &Packet, zone: u32) -> Option<Outcome> {
    if p.protocol != IPPROTO_ICMP && p.protocol != IPPROTO_ICMPV6 {
        return None;
    }
    if !budget::take(Budget::OutsideReply, zone) {
        return None;
    }
    let macs = [l2.source, l2.destination];
    let (header, total) = ((p.l4 - p.l3) as usize, p.total as usize);
    if p.ipv6 == 0 {
        return echo::ipv4::<ETH_LEN>(ctx, macs, header, total);
    }
    if header != IPV6_LEN {
        return None;
    }
    echo::ipv6::<ETH_LEN>(ctx, macs, p.protocol, total)
}

/// A packet on the uplink to a public address.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    let (Some(s), Some(nat), Ok(l2)) = (scratch(), settings(), L2::parse(ctx)) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let Some(eth) = Window::<ETH_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let destination = if u16::from_be(eth.get::<u16, 12>()) == ETHERTYPE_IPV4 {
        let Some(ip) = Window::<IPV4_LEN>::at(ctx, ETH_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        v4_mapped(ip.get::<u32, 16>())
    } else {
        let Some(ip) = Window::<IPV6_LEN>::at(ctx, ETH_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        ip.get::<Words, 24>()
    };
    let Some(public) = public(&destination) else {
        // Deleted since the uplink stage looked it up.
        return Outcome::Pass(Counter::Passed);
    };
    if l2.destination != Mac::new(nat.mac) && !l2.destination.is_group() {
        // Another machine's frame, which a switch floods or a promiscuous port receives.
        return Outcome::Pass(Counter::Passed);
    }
    let own = public.flags & public_flags::OWN != 0;
    // On the appliance's own address, a packet of no connection is for the kernel.
    let untranslated = |reason| {
        if own {
            Outcome::Pass(Counter::Passed)
        } else {
            Outcome::Drop(reason)
        }
    };
    if l2.destination.is_group() {
        return untranslated(Counter::DropNotCarried);
    }
    s.side = Side {
        slot: UPLINK,
        zone: 0,
        epoch: 0,
        internet: 0,
        now: now(),
    };
    if let Some(reason) = parse::parse(ctx, &mut s.packet, &mut s.key, ETH_LEN as u32, 0) {
        return untranslated(reason);
    }
    // Before any lookup: the management port is the appliance's only.
    if s.key.destination_port == MANAGEMENT_PORT
        && matches!(s.packet.kind, Kind::Query)
        && has_ports(s.key.protocol)
    {
        return untranslated(Counter::DropManagementPort);
    }
    if let Some(reason) = find(nat, s) {
        if reason as u32 == Counter::DropFragment as u32 {
            // Only a connection, or a rule that could open one, can translate the first fragment.
            if !public.receives(s.key.protocol) {
                return untranslated(reason);
            }
            // On the appliance's own address it may be for the kernel or for a connection: both get
            // it.
            let in_slow_path = slow_path::copy_to_ring(
                ctx,
                0,
                public.zone,
                ETH_LEN as u16,
                SlowReason::Fragment,
                &s.key.destination,
            );
            return if own {
                untranslated(reason)
            } else {
                in_slow_path
            };
        }
        if reason as u32 == Counter::DropNoRule as u32
            && public.flags & (public_flags::PING | public_flags::OWN) == public_flags::PING
            && let Some(answered) = ping(ctx, &l2, &s.packet, public.zone)
        {
            return answered;
        }
        if reason as u32 == Counter::DropNoFlow as u32
            || reason as u32 == Counter::DropNoRule as u32
        {
            return untranslated(reason);
        }
        // A connection of a tenant that may not go on: not for the kernel, which would end it.
        return Outcome::Drop(reason);
    }
    let Some(to) = network_of(s) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let frame = Frame::from_uplink(l2, to, s.flow.to);
    let mut error = undeliverable(&frame, s);
    // Errors are from the address that the sender knows.
    error.router = s.key.destination;
    if s.packet.hops <= 1 {
        return icmp::time_exceeded::<ETH_LEN>(ctx, &frame, &error);
    }
    if lookup::neighbour(to, s.flow.destination).is_some_and(|host| host.is_absent()) {
        return icmp::unreachable::<ETH_LEN>(ctx, &frame, &error, Counter::DropHostAbsent);
    }
    if is_too_large(s, to.lan_mtu) {
        if error.silent {
            return Outcome::Drop(Counter::DropTooLarge);
        }
        if error.ipv6 {
            return icmp::packet_too_big::<ETH_LEN>(
                ctx,
                &frame,
                &error.source,
                &error.router,
                to.lan_mtu,
            );
        }
        return icmp::frag_needed::<ETH_LEN>(
            ctx,
            &frame,
            error.source[3],
            error.router[3],
            to.lan_mtu,
        );
    }
    clamp_mss(ctx, s, nat.mtu_with(to.lan_mtu));
    if let Some(reason) = rewrite::rewrite(ctx, s) {
        return Outcome::Drop(reason);
    }
    deliver_to_host::<ETH_LEN>(ctx, s, to, Counter::TranslatedIn)
}
