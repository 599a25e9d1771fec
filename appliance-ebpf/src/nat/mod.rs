//! Network address translation of full failover.
//!
//! ```text
//!   nat_out  from a tenant's host to no network of the tenant
//!              known connection, or one begun: by mapping (internet), by rule (a sibling's public address)
//!              ─▶ out of the uplink, next hop from the kernel's FIB; or to the other machine (hairpin)
//!   nat_in   on the uplink to a public address
//!              port 22 ─▶ dropped before anything is looked up; the appliance's own address: passed
//!              known connection, or one begun by rule ─▶ to the machine
//! ```
//!
//! A packet is written to only when all is decided; what cannot be translated is dropped and counted.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is lent stays in the scratch entry; one that is given takes its bytes of stack"
)]

mod answer;
mod flow;
mod mapping;
mod open;
mod outside;
mod parse;
mod rewrite;
mod share;

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{Jump, Network, Tenant, network_flags},
    nat::{
        Flow, FlowKey, Mapping, MappingKey, Nat, PublicAddress, UPLINK, flow_flags, public_flags,
        ticks,
    },
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, programs::XdpContext};
use xdp_frame::fib::Fib;

use crate::{
    access::{Arrival, resume},
    addr::{Words, bytes, v4},
    count::count,
    encap::deliver,
    icmp::{self, Problem},
    maps::{NAT, PUBLIC, SCRATCH, TENANTS},
    nat::parse::{Kind, Packet},
    packet::{L2, Outcome, Window},
    slow,
    tables::{self, neighbour, network},
};

/// The management port, network byte order.
const MANAGEMENT: u16 = u16::from_ne_bytes([0, 22]);

/// What one packet needs and the stack has no room for.
#[repr(C)]
pub struct Scratch {
    /// The packet.
    packet: Packet,
    /// What its connection is found by.
    key: FlowKey,
    /// What becomes of it.
    flow: Flow,
    /// The other direction.
    back_key: FlowKey,
    /// Likewise.
    back: Flow,
    /// The other direction of a connection that is in the way.
    other_key: FlowKey,
    /// An endpoint of a mapping.
    endpoint: MappingKey,
    /// The other.
    outer: MappingKey,
    /// A mapping.
    mapping: Mapping,
    /// A question to the kernel's FIB.
    fib: Fib,
    /// Where it comes from.
    side: Side,
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
#[repr(C)]
struct Side {
    /// The slot of the network, or [`UPLINK`].
    slot: u32,
    /// The zone.
    zone: u32,
    /// The tenant's epoch; zero for the outside.
    epoch: u32,
    /// Whether the network has the internet.
    internet: u32,
    /// The time, [`ticks`].
    now: u32,
}

#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU, and one packet's
    // programs run one after the other.
    Some(unsafe { &mut *scratch })
}

#[inline(always)]
fn nat() -> Option<&'static Nat> {
    NAT.get(0).filter(|nat| nat.uplink != 0)
}

#[inline(always)]
fn public(address: &Words) -> Option<PublicAddress> {
    // SAFETY: read at once; preallocated entries are never unmapped.
    unsafe { PUBLIC.get(bytes(*address)) }.copied()
}

#[inline(always)]
fn tenant(zone: u32) -> Option<Tenant> {
    TENANTS.get(zone.wrapping_sub(1)).copied()
}

#[inline(always)]
fn now() -> u32 {
    // SAFETY: no arguments.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Whether anything is translated, so that a packet without a route may yet leave.
#[inline(always)]
pub fn is_on() -> bool {
    nat().is_some()
}

/// A frame on the uplink that is of no tunnel: ARP and discovery for public addresses are answered, packets to
/// them are gone on with, and the rest is the kernel's.
#[inline(always)]
pub fn arrival(ctx: &XdpContext) -> Outcome {
    const OTHERS: Outcome = Outcome::Pass(Counter::Passed);
    let (Some(nat), Some(eth)) = (nat(), Window::<ETH_LEN>::at(ctx, 0)) else {
        return OTHERS;
    };
    let destination = match u16::from_be(eth.get::<u16, 12>()) {
        ETHERTYPE_IPV4 => match Window::<IPV4_LEN>::at(ctx, ETH_LEN) {
            Some(ip) => v4(ip.get::<u32, 16>()),
            None => return OTHERS,
        },
        ETHERTYPE_IPV6 => match Window::<IPV6_LEN>::at(ctx, ETH_LEN) {
            // A group: of these, only questions for addresses are of interest.
            Some(ip) if ip.get::<u8, 24>() == 0xff => return answer::discovery(ctx, nat),
            Some(ip) => ip.get::<Words, 24>(),
            None => return OTHERS,
        },
        appliance_common::wire::ETHERTYPE_ARP => return answer::arp(ctx, nat),
        _ => return OTHERS,
    };
    match public(&destination) {
        Some(_) => Outcome::Jump(Jump::NatIn),
        None => OTHERS,
    }
}

/// A packet of a tenant in full failover to no network of the tenant, on the port it came in on.
#[inline(always)]
pub fn outbound(ctx: &XdpContext) -> Outcome {
    let arrival = match resume(ctx) {
        Ok(arrival) => arrival,
        Err(outcome) => return outcome,
    };
    let (Some(s), Some(nat)) = (scratch(), nat()) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let from = arrival.network;
    let zone = from.tenant + 1;
    let Some(tenant) = tenant(zone) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    s.side = Side {
        slot: arrival.slot,
        zone,
        epoch: tenant.epoch,
        internet: from.flags & network_flags::INTERNET,
        now: now(),
    };
    let l3 = ETH_LEN as u32 + u32::from(arrival.l2.tags) * 4;
    if let Some(reason) = parse::parse(ctx, &mut s.packet, &mut s.key, l3, zone) {
        return Outcome::Drop(reason);
    }
    if let Some(reason) = find(nat, s) {
        if reason as u32 == Counter::DropFragment as u32 {
            let destination = s.key.destination;
            return slow::hand_over(ctx, from, l3 as u16, SlowReason::Fragment, &destination);
        }
        return match arrival.l2.tags {
            0 => refuse::<14>(ctx, &arrival, s, reason),
            1 => refuse::<18>(ctx, &arrival, s, reason),
            _ => refuse::<22>(ctx, &arrival, s, reason),
        };
    }
    match arrival.l2.tags {
        0 => go_on::<14>(ctx, &arrival, s, nat),
        1 => go_on::<18>(ctx, &arrival, s, nat),
        _ => go_on::<22>(ctx, &arrival, s, nat),
    }
}

/// Finds or begins the packet's connection: into `s.flow`, or the reason why not.
#[inline(always)]
fn find(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    match s.packet.kind {
        Kind::Fragment => (!flow::of_fragment(s)).then_some(Counter::DropFragment),
        Kind::Error => (!flow::of_error(nat, s)).then_some(Counter::DropNoFlow),
        Kind::Query => match flow::of_packet(nat, s) {
            Ok(true) => None,
            Ok(false) => open::open(nat, s),
            Err(reason) => Some(reason),
        },
    }
}

/// What is not translated: told to its source where there is no way out for it.
#[inline(always)]
fn refuse<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    s: &Scratch,
    reason: Counter,
) -> Outcome {
    if reason as u32 == Counter::DropNoRoute as u32 {
        return icmp::unreachable::<L3>(ctx, arrival, &problem(arrival, s), reason);
    }
    Outcome::Drop(reason)
}

#[inline(always)]
fn problem(arrival: &Arrival, s: &Scratch) -> Problem {
    let p = &s.packet;
    Problem {
        ipv6: p.ipv6 != 0,
        silent: !matches!(p.kind, Kind::Query),
        source: s.key.source,
        header: (p.l4 - p.l3) as usize,
        router: tables::gateway(arrival.network, p.ipv6 != 0).unwrap_or_default(),
    }
}

/// A tenant's packet of the connection `s.flow`.
#[inline(never)]
fn go_on<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    s: &mut Scratch,
    nat: &Nat,
) -> Outcome {
    if s.packet.hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, arrival, &problem(arrival, s));
    }
    if s.flow.to != UPLINK {
        let Some(to) = network_of(s) else {
            return Outcome::Drop(Counter::DropInconsistent);
        };
        if s.packet.total > u32::from(to.lan_mtu) {
            return too_large::<L3>(ctx, arrival, s, to.lan_mtu);
        }
        if let Some(reason) = rewrite::rewrite(ctx, s) {
            return Outcome::Drop(reason);
        }
        return hand_out::<L3>(ctx, s, to, Counter::TranslatedHairpin);
    }
    match outside::way(ctx, s, nat) {
        outside::Way::Known => {}
        outside::Way::Unresolved => {
            if let Some(reason) = rewrite::rewrite(ctx, s) {
                return Outcome::Drop(reason);
            }
            let destination = s.flow.destination;
            return slow::hand_over(
                ctx,
                arrival.network,
                L3 as u16,
                SlowReason::UplinkUnresolved,
                &destination,
            );
        }
        outside::Way::TooLarge(mtu) => return too_large::<L3>(ctx, arrival, s, mtu),
        outside::Way::None => {
            return icmp::unreachable::<L3>(
                ctx,
                arrival,
                &problem(arrival, s),
                Counter::DropNoNextHop,
            );
        }
    }
    if let Some(reason) = rewrite::rewrite(ctx, s) {
        return Outcome::Drop(reason);
    }
    remember(s);
    outside::send::<L3>(ctx, s, nat)
}

/// The network that `s.flow` goes to.
#[inline(always)]
fn network_of(s: &Scratch) -> Option<&'static Network> {
    network(s.flow.to)
}

/// A packet that is longer than the network it goes to takes: its source is told, where that is allowed.
#[inline(always)]
fn too_large<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    s: &Scratch,
    mtu: u16,
) -> Outcome {
    let problem = problem(arrival, s);
    if problem.silent || problem.router == [0; 4] {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    if problem.ipv6 {
        return icmp::packet_too_big::<L3>(ctx, arrival, &problem.source, &problem.router, mtu);
    }
    if s.packet.may_split != 0 {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    icmp::frag_needed::<L3>(ctx, arrival, problem.source[3], problem.router[3], mtu)
}

/// To the machine, translated: `s.flow` says to which, of network `to`.
#[inline(always)]
fn hand_out<const L3: usize>(
    ctx: &XdpContext,
    s: &mut Scratch,
    to: &Network,
    counter: Counter,
) -> Outcome {
    remember(s);
    let ethertype = if s.packet.ipv6 != 0 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    let host = s.flow.destination;
    match neighbour(to, host) {
        Some(neighbour) => deliver::<L3>(ctx, neighbour, ethertype, counter),
        None => slow::hand_over(ctx, to, L3 as u16, SlowReason::Unresolved, &host),
    }
}

/// Lets the fragments that follow this first one be translated as it was.
#[inline(always)]
fn remember(s: &mut Scratch) {
    if s.packet.more != 0 {
        flow::remember_fragments(s);
    }
    match s.packet.kind {
        Kind::Fragment => count(Counter::FragmentTranslated),
        Kind::Error => count(Counter::ErrorTranslated),
        Kind::Query => {}
    }
}

/// A packet on the uplink to a public address.
#[inline(always)]
pub fn inbound(ctx: &XdpContext) -> Outcome {
    let (Some(s), Some(nat), Ok(l2)) = (scratch(), nat(), L2::parse(ctx)) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let Some(eth) = Window::<ETH_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let destination = if u16::from_be(eth.get::<u16, 12>()) == ETHERTYPE_IPV4 {
        let Some(ip) = Window::<IPV4_LEN>::at(ctx, ETH_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        v4(ip.get::<u32, 16>())
    } else {
        let Some(ip) = Window::<IPV6_LEN>::at(ctx, ETH_LEN) else {
            return Outcome::Drop(Counter::DropMalformed);
        };
        ip.get::<Words, 24>()
    };
    let Some(public) = public(&destination) else {
        // Taken away since the first look.
        return Outcome::Pass(Counter::Passed);
    };
    let own = public.flags & public_flags::OWN != 0;
    // What of our own address is no connection's is the kernel's.
    let others = |reason| {
        if own {
            Outcome::Pass(Counter::Passed)
        } else {
            Outcome::Drop(reason)
        }
    };
    if l2.destination.is_group() {
        return others(Counter::DropNotCarried);
    }
    s.side = Side {
        slot: UPLINK,
        zone: 0,
        epoch: 0,
        internet: 0,
        now: now(),
    };
    if let Some(reason) = parse::parse(ctx, &mut s.packet, &mut s.key, ETH_LEN as u32, 0) {
        return others(reason);
    }
    // Before anything is looked up: the management port is nobody's but the appliance's.
    if s.key.destination_port == MANAGEMENT
        && matches!(s.packet.kind, Kind::Query)
        && (s.key.protocol == IPPROTO_TCP || s.key.protocol == IPPROTO_UDP)
    {
        return others(Counter::DropManagementPort);
    }
    if let Some(reason) = find(nat, s) {
        if reason as u32 == Counter::DropFragment as u32 {
            // Of our own address it may be the kernel's, and may be a connection's: both have it.
            let handed = slow::copy(
                ctx,
                0,
                ETH_LEN as u16,
                SlowReason::Fragment,
                &s.key.destination,
            );
            return if own { others(reason) } else { handed };
        }
        return others(reason);
    }
    let Some(to) = network_of(s) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    let arrival = Arrival::outside(l2, to, s.flow.to);
    let mut problem = problem(&arrival, s);
    // The error is from the address that the sender knows.
    problem.router = s.key.destination;
    if s.packet.hops <= 1 {
        return icmp::time_exceeded::<ETH_LEN>(ctx, &arrival, &problem);
    }
    if s.packet.total > u32::from(to.lan_mtu) {
        if problem.silent {
            return Outcome::Drop(Counter::DropTooLarge);
        }
        if problem.ipv6 {
            return icmp::packet_too_big::<ETH_LEN>(
                ctx,
                &arrival,
                &problem.source,
                &problem.router,
                to.lan_mtu,
            );
        }
        if s.packet.may_split != 0 {
            return Outcome::Drop(Counter::DropTooLarge);
        }
        return icmp::frag_needed::<ETH_LEN>(
            ctx,
            &arrival,
            problem.source[3],
            problem.router[3],
            to.lan_mtu,
        );
    }
    if let Some(reason) = rewrite::rewrite(ctx, s) {
        return Outcome::Drop(reason);
    }
    hand_out::<ETH_LEN>(ctx, s, to, Counter::TranslatedIn)
}

/// Whether the flow was opened by a host for the outside.
#[inline(always)]
const fn is_internet(flow: &Flow) -> bool {
    flow.flags & flow_flags::INTERNET != 0
}
