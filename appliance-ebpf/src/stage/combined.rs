//! A port that carries both tunnels and a tenant's network, as the tenant appliance's first
//! interface does: a tunnel datagram is the uplink's, every other frame is the access stage's.

use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{frame::Port, packet::Outcome},
    stage::{access, uplink},
};

/// A frame on a port that is both.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    match uplink::tunnel_datagram(ctx) {
        Some(outcome) => outcome,
        None => access::process(ctx, Port::Shared),
    }
}
