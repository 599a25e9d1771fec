//! A port that carries both tunnels and a tenant's network, as the tenant appliance's first
//! interface does: a tunnel datagram is the uplink's, every other frame is the access stage's.

use appliance_common::counters::Counter;
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        frame::Port,
        packet::{Outcome, remove_priority_tags},
    },
    stage::{access, uplink},
};

/// A frame on a port that is both.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    if !remove_priority_tags(ctx) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    match uplink::tunnel_datagram(ctx) {
        Some(outcome) => outcome,
        None => access::process(ctx, Port::Shared),
    }
}
