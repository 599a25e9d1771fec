//! The XDP programs of the appliance.
//!
//! For: classifying frames, answering ARP and neighbour discovery, and carrying packets between a
//! tenant's network and a VXLAN tunnel, wholly in the driver; for encrypted tunnels, steering packets and
//! datagrams to the workers and bounding handshakes. Never: policy, resolution, timers, or a log line per
//! packet; user space writes the maps, and these programs follow them.
//!
//! ```text
//!   access    a tenant-only port ........ ARP/ND, encapsulate or to a worker, hairpin, or drop with a reason
//!   uplink    the tunnels' port ......... decapsulate or to a worker, or pass
//!   combined  one NIC is both ........... a tunnel datagram? uplink : access
//!   full      ... a tenant in full failover: the gateway's answers, routes between its networks
//!   nat_out   ... what of that leaves its networks: translated, out of the uplink or to another's machine
//!   nat_in    ... on the uplink, to a public address: by rule or as an answer, to a tenant's machine
//! ```
//!
//! What is not provably ours is passed. From the first byte written on, any failure is a counted
//! drop. Packet life and map table: ARCHITECTURE.md.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

mod access;
mod addr;
mod arp;
mod count;
mod decap;
mod encap;
mod full;
mod icmp;
mod maps;
mod mss;
mod nat;
mod nd;
mod packet;
mod report;
mod secure;
mod slow;
mod tables;
mod trace;

use appliance_common::{
    counters::Counter,
    events::TraceProgram::{self, Access, Combined, Full, NatIn, NatOut, Uplink},
};
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::{
    count::count,
    packet::{Outcome, jump},
};

/// A port that only tenants are on.
#[xdp]
pub fn access(ctx: XdpContext) -> u32 {
    trace::enters(&ctx, Access);
    if !tables::configured() {
        return finish(&ctx, Access, Outcome::Pass(Counter::NotConfigured));
    }
    finish(
        &ctx,
        Access,
        access::process(&ctx, access::Port::TenantOnly),
    )
}

/// The port the tunnels are on.
#[xdp]
pub fn uplink(ctx: XdpContext) -> u32 {
    trace::enters(&ctx, Uplink);
    if !tables::configured() {
        return finish(&ctx, Uplink, Outcome::Pass(Counter::NotConfigured));
    }
    let outcome = match decap::process(&ctx) {
        Some(outcome) => outcome,
        None => nat::arrival(&ctx),
    };
    finish(&ctx, Uplink, outcome)
}

/// A port that is both, as the tenant appliance's first interface is.
#[xdp]
pub fn combined(ctx: XdpContext) -> u32 {
    trace::enters(&ctx, Combined);
    if !tables::configured() {
        return finish(&ctx, Combined, Outcome::Pass(Counter::NotConfigured));
    }
    let outcome = match decap::process(&ctx) {
        Some(outcome) => outcome,
        None => access::process(&ctx, access::Port::Shared),
    };
    finish(&ctx, Combined, outcome)
}

/// An IP packet on the port of a tenant in full failover: the other programs go on here.
#[xdp]
pub fn full(ctx: XdpContext) -> u32 {
    trace::goes_on(&ctx, Full);
    finish(&ctx, Full, full::process(&ctx))
}

/// What of a tenant in full failover leaves its networks.
#[xdp]
pub fn nat_out(ctx: XdpContext) -> u32 {
    trace::goes_on(&ctx, NatOut);
    finish(&ctx, NatOut, nat::outbound(&ctx))
}

/// A packet on the uplink to a public address.
#[xdp]
pub fn nat_in(ctx: XdpContext) -> u32 {
    trace::goes_on(&ctx, NatIn);
    finish(&ctx, NatIn, nat::inbound(&ctx))
}

/// The one table from what was decided to what the driver does, and the one place that counts it. Inlined into
/// each program, whose own frame alone may jump to another.
#[inline(always)]
fn finish(ctx: &XdpContext, program: TraceProgram, outcome: Outcome) -> u32 {
    let (counter, action) = match outcome {
        Outcome::Pass(counter) => (counter, xdp_action::XDP_PASS),
        Outcome::Drop(counter) => (counter, xdp_action::XDP_DROP),
        Outcome::Gone => {
            trace::decided(ctx, program, 0, xdp_action::XDP_DROP);
            return xdp_action::XDP_DROP;
        }
        Outcome::Send(counter, action) => (counter, action),
        Outcome::Jump(to) => {
            // Does not come back.
            jump(ctx, to);
            (Counter::DropNoProgram, xdp_action::XDP_DROP)
        }
    };
    trace::decided(ctx, program, counter as u32 + 1, action);
    count(counter);
    action
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

/// On the host these programs are only linted; they run where `cargo xtask build-ebpf` puts them.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
