//! Out of the uplink: the next hop is the kernel's, from its FIB and its neighbours.

use appliance_common::{
    counters::Counter,
    nat::{Nat, egress_stamp},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use xdp_frame::fib::{self, Answer, Fib};

use super::{Scratch, flow, parse::Kind};
use crate::packet::{self, Outcome, Window};

/// How a packet gets out.
pub enum Way {
    /// `s.flow` has the next hop.
    Known,
    /// There is a next hop, and its link-layer address is not known yet.
    Unresolved,
    /// It is longer than the way takes: the way's MTU, bytes.
    TooLarge(u16),
    /// Not at all.
    None,
}

/// The way of `s.flow` out of the uplink.
#[inline(always)]
pub fn way(ctx: &XdpContext, s: &mut Scratch, nat: &Nat) -> Way {
    let mark = egress_stamp(nat.route_generation, s.side.now);
    if s.flow.egress_stamp == mark && s.packet.total <= u32::from(s.flow.egress_max_len) {
        return Way::Known;
    }
    s.fib = Fib::new(&fib::Packet {
        ipv6: s.packet.ipv6 != 0,
        protocol: s.packet.protocol,
        total: s.packet.total as u16,
        source: s.flow.source,
        source_port: s.flow.source_port,
        destination: s.flow.destination,
        destination_port: s.flow.destination_port,
    });
    match s.fib.ask(ctx) {
        Answer::Known if s.fib.ifindex == nat.uplink => {
            let (d, m) = (s.fib.next_hop_mac, s.fib.source_mac);
            s.flow.egress_macs = [
                d[0], d[1], d[2], d[3], d[4], d[5], m[0], m[1], m[2], m[3], m[4], m[5],
            ];
            s.flow.egress_stamp = mark;
            s.flow.egress_max_len = s.packet.total as u16;
            if matches!(s.packet.kind, Kind::Query) {
                flow::keep_way(s);
            }
            Way::Known
        }
        Answer::Unresolved if s.fib.ifindex == nat.uplink => Way::Unresolved,
        Answer::TooLong => Way::TooLarge(s.fib.total),
        _ => Way::None,
    }
}

/// Sends the packet at `L3` to the next hop in `s.flow`.
#[inline(always)]
pub fn send<const L3: usize>(ctx: &XdpContext, s: &Scratch, nat: &Nat) -> Outcome {
    // SAFETY: no pointer into the packet outlives the call; the verifier sees to it.
    if L3 != ETH_LEN && unsafe { bpf_xdp_adjust_head(ctx.ctx, (L3 - ETH_LEN) as i32) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(w) = Window::<ETH_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let ethertype = if s.packet.ipv6 != 0 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    let way = &s.flow.egress_macs;
    w.set::<u32, 0>(u32::from_ne_bytes([way[0], way[1], way[2], way[3]]));
    w.set::<u32, 4>(u32::from_ne_bytes([way[4], way[5], way[6], way[7]]));
    w.set::<u32, 8>(u32::from_ne_bytes([way[8], way[9], way[10], way[11]]));
    w.set::<u16, 12>(ethertype.to_be());
    packet::send(ctx, nat.uplink, Counter::TranslatedOut)
}
