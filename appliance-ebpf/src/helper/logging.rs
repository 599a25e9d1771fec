//! Log lines of the programs, by aya-log: states that a correct daemon never leaves behind.
//!
//! For: one line a second from each CPU and reason at most, with the value that was wrong. Never: a
//! line about a packet as such; packets are counted, and shown by `causeway-appliance trace`. None
//! of this is on the path of a packet that is handled as configured.

use appliance_common::maps::SCHEMA_VERSION;
use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, programs::XdpContext};
use aya_log_ebpf::{error, warn};

use crate::maps::LAST_LOGGED;

/// Least time between two lines of one reason from one CPU, in nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;

/// Reasons to log; indices of `LAST_LOGGED`, which has [`LOG_REASONS`](crate::maps::LOG_REASONS).
#[derive(Clone, Copy)]
enum Reason {
    Schema,
    TailCall,
    Network,
}

/// Whether the last line of this reason from this CPU is at least [`INTERVAL_NS`] old. Takes the
/// turn if so.
#[inline(always)]
fn is_due(reason: Reason) -> bool {
    let Some(last) = LAST_LOGGED.get_ptr_mut(reason as u32) else {
        return false;
    };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: this CPU's slot, and no other XDP program runs on this CPU now.
    unsafe {
        if *last != 0 && now.wrapping_sub(*last) < INTERVAL_NS {
            return false;
        }
        *last = now;
    }
    true
}

/// Logs that `CONFIG` has the schema version `found`, which these programs do not know. They pass
/// all frames until a daemon of their version writes the maps. 0 is a map not written yet: no line.
// The linker takes subprograms from .text only; cold functions would be in .text.unlikely.
#[cold]
#[inline(never)]
#[unsafe(link_section = ".text")]
pub fn unknown_schema(ctx: &XdpContext, found: u32) {
    if found != 0 && is_due(Reason::Schema) {
        error!(
            ctx,
            "map CONFIG has schema {}, these programs know {}: frames pass unclassified; restart \
             the daemon",
            found,
            SCHEMA_VERSION
        );
    }
}

/// Logs that the tail call to entry `jump` of `JUMPS` failed.
#[cold]
#[inline(never)]
#[unsafe(link_section = ".text")]
pub fn tail_call_failed(ctx: &XdpContext, jump: u32) {
    if is_due(Reason::TailCall) {
        error!(
            ctx,
            "no program in entry {} of map JUMPS: its packets are dropped; restart the daemon",
            jump
        );
    }
}

/// Logs that an attachment or tunnel names the network in `slot`, which does not exist.
#[cold]
#[inline(never)]
#[unsafe(link_section = ".text")]
pub fn no_network(ctx: &XdpContext, slot: u32) {
    if is_due(Reason::Network) {
        warn!(
            ctx,
            "an attachment or tunnel names network slot {}, which is not active: its frames are \
             not carried; restart the daemon",
            slot
        );
    }
}
