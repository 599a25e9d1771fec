//! The gateway's XDP program: a datagram of an established circuit goes to its other end without leaving the driver.
//!
//! For: what is certain. Both sides bound, the source one of them, the way known to the kernel, the tenant within its rate: then the
//! datagram is rewritten as the gateway's own, byte for byte the same behind its headers. Never: a message, a binding, an answer, a
//! fragment, a guess. What is not certain is passed as it came, and the table in user space decides and counts it.
//!
//! ```text
//!   frame ─▶ to our MAC? UDP, whole, plain headers? ─▶ IDS ─▶ CIRCUITS: source, other side, time
//!                                                      │ fib: next hop, MTU ─▶ PORTS ─▶ BUCKETS ─▶ rewrite ─▶ TX, redirect
//!                                                      └ anything else ─▶ PASS             └ beyond the rate ─▶ DROP
//! ```
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod carry;
mod maps;
mod parse;
mod rate;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use gateway_common::maps::Outcome;

use crate::maps::COUNTERS;

/// On every interface of the gateway.
#[xdp]
pub fn circuits(ctx: XdpContext) -> u32 {
    let (outcome, action) = match parse::frame(&ctx) {
        Ok(action) => (Outcome::Forwarded, action),
        Err(Outcome::OverRate) => (Outcome::OverRate, xdp_action::XDP_DROP),
        // The table in user space decides.
        Err(outcome) => (outcome, xdp_action::XDP_PASS),
    };
    if let Some(value) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the helper returned this CPU's slot; XDP is not preempted by another XDP program
        // on the same CPU, so nobody else writes it now.
        unsafe { *value += 1 }
    }
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
