//! Proxy ARP and proxy neighbour discovery for public addresses on the uplink.

use appliance_common::{
    counters::Counter,
    nat::{Nat, public_flags},
};
use aya_ebpf::programs::XdpContext;

use super::tables::public;
use crate::helper::{
    addr::Words,
    arp, nd,
    packet::{Mac, Outcome},
};

/// Whether the programs answer for an address. For the appliance's own, the kernel does.
#[inline(always)]
fn is_ours(address: &Words) -> bool {
    public(address).is_some_and(|public| public.flags & public_flags::OWN == 0)
}

/// An ARP packet on the uplink.
#[inline(never)]
pub fn arp(ctx: &XdpContext, nat: &Nat) -> Outcome {
    arp::on_uplink(ctx, Mac::new(nat.mac), is_ours).unwrap_or(Outcome::Pass(Counter::Passed))
}

/// A packet to an IPv6 group, or a neighbour solicitation to any address, on the uplink.
#[inline(never)]
pub fn discovery(ctx: &XdpContext, nat: &Nat) -> Outcome {
    nd::on_uplink(ctx, Mac::new(nat.mac), is_ours).unwrap_or(Outcome::Pass(Counter::Passed))
}
