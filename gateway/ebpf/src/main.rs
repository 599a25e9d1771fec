//! The gateway's XDP program: forwards datagrams of established circuits from one end to the other
//! within the driver.
//!
//! For: the certain case. Both sides are bound, the source is one of them, the kernel knows the
//! next hop, the tenant is within its rate: then the datagram leaves with the gateway's own headers
//! and the same payload. Never: a message, a binding, a reply, a fragment, a guess. Any other frame
//! is passed unchanged, and the circuit table in user space decides about it and counts it; of
//! datagrams to the gateway from sources that are not bound, only a bounded number is passed, and
//! none without plain headers.
//!
//! ```text
//!   frame ─▶ to our MAC? UDP, whole, plain headers? ─▶ IDS ─▶ CIRCUITS: source, other side, expiry
//!                                                       │ FIB: next hop, MTU ─▶ PORTS ─▶ BUCKETS
//!                                                       │                 ├─ rewrite ─▶ TX or redirect
//!                                                       │                 └─ over the rate ─▶ DROP
//!                                                       └ anything else ─▶ admission ─▶ PASS
//!                                                            unknown circuit, too many,
//!                                                            no plain headers ─▶ DROP
//!
//!   main.rs ─▶ stage/ what the program decides ─▶ helper/ one thing to a frame or table ─▶ maps.rs
//! ```
//!
//! A module imports only its own layer and those to its right, and there is no import circle: a
//! test checks it.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod helper;
mod maps;
mod stage;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use gateway_common::maps::Outcome;

use crate::maps::COUNTERS;

/// The program of every interface of the gateway: the one table from an outcome to an XDP action.
#[xdp]
pub fn circuits(ctx: XdpContext) -> u32 {
    let (outcome, action) = match stage::classify::process(&ctx) {
        Ok(action) => (Outcome::Forwarded, action),
        Err(
            outcome @ (Outcome::OverRate
            | Outcome::NoCircuit
            | Outcome::UnboundRate
            | Outcome::BadDatagram),
        ) => (outcome, xdp_action::XDP_DROP),
        // The circuit table in user space decides.
        Err(outcome) => (outcome, xdp_action::XDP_PASS),
    };
    if let Some(value) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the helper returned this CPU's slot. XDP is not preempted by another XDP program
        // on the same CPU, so there is no other writer now.
        unsafe { *value += 1 }
    }
    action
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}

/// On the host the program is only linted; `cargo xtask build-ebpf` builds it for the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
