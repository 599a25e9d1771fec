//! Out of the uplink: the next hop comes from the kernel's FIB and its neighbour table.

use appliance_common::{
    counters::Counter,
    nat::{Nat, egress_stamp},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use xdp_frame::fib::{self, Answer, Fib};

use super::flow;
use crate::{
    helper::packet::{self, Outcome, Window},
    maps::{Kind, Scratch},
};

/// The route of a packet out of the uplink.
pub enum Egress {
    /// `s.flow` has the MAC addresses of the next hop and the uplink.
    Known,
    /// There is a next hop, but its MAC address is not resolved yet.
    Unresolved,
    /// The packet is longer than the route's MTU: that MTU, bytes.
    TooLarge(u16),
    /// There is no route.
    None,
}

/// Finds the route of `s.flow` out of the uplink, from its entry while that is fresh, else from the
/// kernel.
#[inline(always)]
pub fn resolve(ctx: &XdpContext, s: &mut Scratch, nat: &Nat) -> Egress {
    let stamp = egress_stamp(nat.route_generation, s.side.now);
    if s.flow.egress_stamp == stamp && s.packet.total <= u32::from(s.flow.egress_max_len) {
        return Egress::Known;
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
    match s.fib.lookup(ctx) {
        Answer::Known if s.fib.ifindex == nat.uplink => {
            let (d, m) = (s.fib.next_hop_mac, s.fib.source_mac);
            s.flow.egress_macs = [
                d[0], d[1], d[2], d[3], d[4], d[5], m[0], m[1], m[2], m[3], m[4], m[5],
            ];
            s.flow.egress_stamp = stamp;
            s.flow.egress_max_len = s.packet.total as u16;
            if matches!(s.packet.kind, Kind::Query) {
                flow::store_egress(s);
            }
            Egress::Known
        }
        Answer::Unresolved if s.fib.ifindex == nat.uplink => Egress::Unresolved,
        Answer::TooLong => Egress::TooLarge(s.fib.total),
        _ => Egress::None,
    }
}

/// Sends the packet at `L3` to the next hop in `s.flow`.
#[inline(always)]
pub fn send<const L3: usize>(ctx: &XdpContext, s: &Scratch, nat: &Nat) -> Outcome {
    // SAFETY: no pointer into the packet outlives the call; the verifier checks it.
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
    let macs = &s.flow.egress_macs;
    w.set::<u32, 0>(u32::from_ne_bytes([macs[0], macs[1], macs[2], macs[3]]));
    w.set::<u32, 4>(u32::from_ne_bytes([macs[4], macs[5], macs[6], macs[7]]));
    w.set::<u32, 8>(u32::from_ne_bytes([macs[8], macs[9], macs[10], macs[11]]));
    w.set::<u16, 12>(ethertype.to_be());
    packet::send(ctx, nat.uplink, Counter::TranslatedOut)
}
