//! The XDP programs of the appliance.
//!
//! For: classifying frames, answering ARP and neighbour discovery, carrying packets between a
//! tenant's network and a VXLAN tunnel, and in full failover routing and translating them, all in
//! the driver; for encrypted tunnels, steering packets and datagrams to the workers and bounding
//! handshakes. Never: policy, resolution, timers, or a log line per packet. User space writes the
//! maps, and these programs follow them.
//!
//! ```text
//!   access    a tenant-only port ........ ARP, discovery, tunnel or worker, hairpin, or a counted drop
//!   uplink    the tunnels' port ......... out of the tunnel or to a worker, public addresses, or pass
//!   combined  one NIC is both ........... a tunnel datagram? uplink : access
//!   full      tail call of access ....... the gateway of a tenant in full failover, its networks' router
//!   nat_out   tail call of full ......... packets that leave the tenant's networks, translated
//!   nat_in    tail call of uplink ....... packets to public addresses, translated
//!
//!   main.rs ─▶ stage/ what each program decides ─▶ helper/ one thing to a frame or table ─▶ maps/
//! ```
//!
//! A module imports only its own layer and those to its right, and there is no import circle: a
//! test checks it. A frame that is not provably ours is passed. From the first byte written on, any
//! failure is a counted drop. Packet life and map table:
//! docs/architecture/data-path.md.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

mod helper;
mod maps;
mod stage;

use appliance_common::{
    counters::Counter,
    events::TraceProgram::{self, Access, Combined, Full, NatIn, NatOut, Uplink},
};
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::helper::{
    count::count,
    frame::Port,
    logging,
    lookup::is_configured,
    packet::{Outcome, tail_call},
    trace,
};

/// The program of a port that only tenants use.
#[xdp]
pub fn access(ctx: XdpContext) -> u32 {
    trace::enter(&ctx, Access);
    if !is_configured(&ctx) {
        return finish(&ctx, Access, Outcome::Pass(Counter::NotConfigured));
    }
    let outcome = stage::access::process(&ctx, Port::TenantOnly);
    finish(&ctx, Access, outcome)
}

/// The program of the tunnels' port.
#[xdp]
pub fn uplink(ctx: XdpContext) -> u32 {
    trace::enter(&ctx, Uplink);
    if !is_configured(&ctx) {
        return finish(&ctx, Uplink, Outcome::Pass(Counter::NotConfigured));
    }
    finish(&ctx, Uplink, stage::uplink::process(&ctx))
}

/// The program of a port that is both, as the tenant appliance's first interface is.
#[xdp]
pub fn combined(ctx: XdpContext) -> u32 {
    trace::enter(&ctx, Combined);
    if !is_configured(&ctx) {
        return finish(&ctx, Combined, Outcome::Pass(Counter::NotConfigured));
    }
    finish(&ctx, Combined, stage::combined::process(&ctx))
}

/// An IP packet on the port of a tenant in full failover.
#[xdp]
pub fn full(ctx: XdpContext) -> u32 {
    trace::continue_in(&ctx, Full);
    finish(&ctx, Full, stage::full::process(&ctx))
}

/// A packet that leaves the networks of a tenant in full failover.
#[xdp]
pub fn nat_out(ctx: XdpContext) -> u32 {
    trace::continue_in(&ctx, NatOut);
    finish(&ctx, NatOut, stage::nat_out::process(&ctx))
}

/// A packet on the uplink to a public address.
#[xdp]
pub fn nat_in(ctx: XdpContext) -> u32 {
    trace::continue_in(&ctx, NatIn);
    finish(&ctx, NatIn, stage::nat_in::process(&ctx))
}

/// The one table from a decision to an XDP action, and the one place that counts decisions. Inlined
/// into each program, whose own stack frame alone may make a tail call.
#[inline(always)]
fn finish(ctx: &XdpContext, program: TraceProgram, outcome: Outcome) -> u32 {
    let (counter, action) = match outcome {
        Outcome::Pass(counter) => (counter, xdp_action::XDP_PASS),
        Outcome::Drop(counter) => (counter, xdp_action::XDP_DROP),
        Outcome::DropCounted => {
            trace::verdict(ctx, program, 0, xdp_action::XDP_DROP);
            return xdp_action::XDP_DROP;
        }
        Outcome::Send(counter, action) => (counter, action),
        Outcome::TailCall(to) => {
            // Returns only if the program is not loaded.
            tail_call(ctx, to);
            logging::tail_call_failed(ctx, to as u32);
            (Counter::DropNoProgram, xdp_action::XDP_DROP)
        }
    };
    trace::verdict(ctx, program, counter as u32 + 1, action);
    count(counter);
    action
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}

/// On the host these programs are only linted; `cargo xtask build-ebpf` builds them for the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
