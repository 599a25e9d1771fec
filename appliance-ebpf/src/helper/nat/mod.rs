//! Network address translation of full failover.
//!
//! For: finding, opening and rewriting the connection of one packet. Never: where the packet goes
//! next; the stages `nat_out` and `nat_in` decide that.
//!
//! ```text
//!   parse ─▶ key, offsets ─▶ flow: FLOWS, OPENING, FRAGMENTS ─ none ─▶ open: mapping or rule
//!                                 └──▶ rewrite ─▶ egress: uplink | deliver_to_host
//! ```
//!
//! A packet is written to only after everything is decided.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a borrowed key stays in the scratch entry; an owned one takes its bytes of stack"
)]

pub mod egress;
pub mod flow;
mod mapping;
mod open;
mod pair;
pub mod parse;
pub mod proxy;
mod quota;
pub mod rewrite;
mod tables;

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::Network,
    nat::{Nat, SYN},
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, mss_for},
};
use aya_ebpf::programs::XdpContext;
pub use tables::{MANAGEMENT_PORT, has_ports, now, public, scratch, settings, tenant};

use crate::{
    helper::{
        count::count,
        encap::deliver,
        frame::Frame,
        icmp::Undeliverable,
        lookup::{self, neighbour, network},
        mss,
        packet::Outcome,
        slow_path,
    },
    maps::{Kind, Scratch},
};

/// Finds or opens the packet's connection in `s.flow`. Returns the drop reason, or `None` on
/// success.
#[inline(always)]
pub fn find(nat: &Nat, s: &mut Scratch) -> Option<Counter> {
    match s.packet.kind {
        Kind::Fragment => (!flow::find_for_fragment(s)).then_some(Counter::DropFragment),
        Kind::Error => (!flow::find_for_error(nat, s)).then_some(Counter::DropNoFlow),
        Kind::Query => match flow::find(nat, s) {
            Ok(true) => None,
            Ok(false) => open::open(nat, s),
            Err(reason) => Some(reason),
        },
    }
}

/// The packet, for the ICMP errors about it.
#[inline(always)]
pub fn undeliverable(frame: &Frame, s: &Scratch) -> Undeliverable {
    let p = &s.packet;
    Undeliverable {
        ipv6: p.ipv6 != 0,
        silent: !matches!(p.kind, Kind::Query),
        source: s.key.source,
        header: (p.l4 - p.l3) as usize,
        router: lookup::gateway(frame.network, p.ipv6 != 0).unwrap_or_default(),
        outside: s.side.zone == 0,
    }
}

/// The network that `s.flow` goes to.
#[inline(always)]
pub fn network_of(s: &Scratch) -> Option<&'static Network> {
    network(s.flow.to)
}

/// Whether the packet is over `mtu` and must not be split.
#[inline(always)]
pub fn is_too_large(s: &Scratch, mtu: u16) -> bool {
    s.packet.total > u32::from(mtu) && s.packet.may_split == 0
}

/// Clamps the MSS of a SYN to `mtu` (RFC 6691); before the packet is rewritten.
#[inline(always)]
pub fn clamp_mss(ctx: &XdpContext, s: &Scratch, mtu: u16) {
    let p = &s.packet;
    // Only of whole segments and first fragments: others have no flags here.
    if p.flags & SYN != 0 && p.protocol == IPPROTO_TCP {
        mss::clamp(ctx, p.l4, p.l3 + p.total, mss_for(mtu, p.ipv6 != 0));
    }
}

/// Sends the translated packet to its host, `s.flow.destination` in the network `to`; one that is
/// over the MTU of its port, to be split.
#[inline(always)]
pub fn deliver_to_host<const L3: usize>(
    ctx: &XdpContext,
    s: &mut Scratch,
    to: &Network,
    counter: Counter,
) -> Outcome {
    remember_fragments(s);
    let ethertype = if s.packet.ipv6 != 0 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    let host = s.flow.destination;
    if s.packet.total > u32::from(to.lan_mtu) {
        return slow_path::send(ctx, to, L3 as u16, SlowReason::HostSplit, &host);
    }
    match neighbour(to, host) {
        Some(neighbour) => deliver::<L3>(ctx, neighbour, ethertype, counter),
        None => slow_path::send(ctx, to, L3 as u16, SlowReason::Unresolved, &host),
    }
}

/// Counts the translation of a fragment or an error, and stores that of a first fragment for those
/// that follow.
#[inline(always)]
pub fn remember_fragments(s: &mut Scratch) {
    if s.packet.more != 0 {
        flow::store_fragment(s);
    }
    match s.packet.kind {
        Kind::Fragment => count(Counter::FragmentTranslated),
        Kind::Error => count(Counter::ErrorTranslated),
        Kind::Query => {}
    }
}
