//! Traces selected packets through the programs, for the command `trace`.
//!
//! [`TRACING`] is a constant that user space sets when it loads the programs. In normal operation
//! it is zero, and the verifier removes everything here as dead code. For a trace, the daemon loads
//! a second set of the same programs with the constant set, and swaps the sets on each link in one
//! step, there and back.

use appliance_common::{
    addr::UNSPECIFIED,
    counters::Counter,
    events::{TRACE_COUNTERS, TRACE_HEAD, TraceEvent, TraceFilter, TraceProgram, TraceStep},
    wire::{ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP},
};
use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_xdp_load_bytes},
    programs::XdpContext,
};

use crate::{
    helper::{
        addr::{Words, v4_mapped, words},
        packet::{L2, Window, frame_len, ingress},
    },
    maps::{TRACE, TRACE_EVENTS, TRACED},
};

/// Whether these programs trace packets. User space sets it at load.
#[unsafe(no_mangle)]
static TRACING: u8 = 0;

/// Whether these programs trace packets.
#[inline(always)]
pub fn is_on() -> bool {
    // SAFETY: a constant of this object. A volatile read, so that the compiler does not fold the
    // present value.
    unsafe { core::ptr::read_volatile(&raw const TRACING) != 0 }
}

/// Records that a packet enters at an interface.
#[inline(always)]
pub fn enter(ctx: &XdpContext, program: TraceProgram) {
    if is_on() {
        begin(ctx, program as u16);
    }
}

/// Records that a packet continues in `program` after a tail call.
#[inline(always)]
pub fn continue_in(ctx: &XdpContext, program: TraceProgram) {
    if is_on() && is_traced() {
        emit(ctx, program as u16, TraceStep::Continue as u16, 0, 0);
    }
}

/// Records the verdict on a packet.
#[inline(always)]
pub fn verdict(ctx: &XdpContext, program: TraceProgram, counter: u32, action: u32) {
    if is_on() && is_traced() {
        emit(
            ctx,
            program as u16,
            TraceStep::Verdict as u16,
            counter,
            action,
        );
    }
}

/// Records a counter that a packet raised before its verdict.
#[inline(always)]
pub fn counted(counter: Counter) {
    if !is_on() {
        return;
    }
    let Some(traced) = TRACED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU.
    unsafe {
        let n = (*traced).counter_count as usize;
        if (*traced).followed != 0 && n < TRACE_COUNTERS {
            (*traced).counters[n] = counter as u16 + 1;
            (*traced).counter_count = n as u32 + 1;
        }
    }
}

#[inline(always)]
fn is_traced() -> bool {
    TRACED.get(0).is_some_and(|traced| traced.followed != 0)
}

/// Decides whether the filter selects the packet, and if so records that it enters.
#[inline(never)]
fn begin(ctx: &XdpContext, program: u16) {
    let (Some(traced), Some(filter)) = (TRACED.get_ptr_mut(0), TRACE.get(0)) else {
        return;
    };
    let selected = filter.active != 0 && matches(ctx, filter);
    // SAFETY: this CPU's entry; an XDP program is not interrupted by another on its CPU.
    unsafe {
        (*traced).packet = (*traced).packet.wrapping_add(1);
        (*traced).followed = u32::from(selected);
        (*traced).counter_count = 0;
        (*traced).counters = [0; TRACE_COUNTERS];
    }
    if selected {
        emit(ctx, program, TraceStep::Enter as u16, 0, 0);
    }
}

/// Whether the filter selects the packet.
#[inline(always)]
fn matches(ctx: &XdpContext, filter: &TraceFilter) -> bool {
    if filter.ifindex != 0 && filter.ifindex != ingress(ctx) {
        return false;
    }
    let Ok(l2) = L2::parse(ctx) else {
        return filter.vlan == 0 && filter.protocol == 0 && filter.address == UNSPECIFIED;
    };
    if filter.vlan != 0 && filter.vlan != l2.outer {
        return false;
    }
    let any = filter.protocol == 0 && filter.port == 0 && filter.address == UNSPECIFIED;
    if any {
        return true;
    }
    let l3 = ETH_LEN as u32 + u32::from(l2.tags) * 4;
    let (source, destination, protocol, l4): (Words, Words, u8, u32) = match l2.ethertype {
        ETHERTYPE_IPV4 => {
            let Some(w) = Window::<20>::within(ctx, l3) else {
                return false;
            };
            let header = u32::from(w.get::<u8, 0>() & 15) * 4;
            (
                v4_mapped(w.get::<u32, 12>()),
                v4_mapped(w.get::<u32, 16>()),
                w.get::<u8, 9>(),
                l3 + header,
            )
        }
        ETHERTYPE_IPV6 => {
            let Some(w) = Window::<40>::within(ctx, l3) else {
                return false;
            };
            (
                w.get::<Words, 8>(),
                w.get::<Words, 24>(),
                w.get::<u8, 6>(),
                l3 + 40,
            )
        }
        ETHERTYPE_ARP => {
            let Some(w) = Window::<28>::within(ctx, l3) else {
                return false;
            };
            (
                v4_mapped(w.get::<u32, 14>()),
                v4_mapped(w.get::<u32, 24>()),
                0,
                0,
            )
        }
        _ => return false,
    };
    if filter.protocol != 0 && filter.protocol != protocol {
        return false;
    }
    let address = words(filter.address);
    if filter.address != UNSPECIFIED && address != source && address != destination {
        return false;
    }
    if filter.port == 0 {
        return true;
    }
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return false;
    }
    Window::<4>::within(ctx, l4)
        .is_some_and(|w| w.get::<u16, 0>() == filter.port || w.get::<u16, 2>() == filter.port)
}

/// Writes one step into the ring; a step that does not fit is lost.
#[inline(never)]
fn emit(ctx: &XdpContext, program: u16, step: u16, counter: u32, action: u32) {
    let Some(traced) = TRACED.get(0) else {
        return;
    };
    let Some(mut record) = TRACE_EVENTS.reserve::<TraceEvent>(0) else {
        return;
    };
    let len = frame_len(ctx) as u32;
    let event = record.as_mut_ptr();
    // SAFETY: the record is ours until submitted; the helper writes at most `TRACE_HEAD` bytes of
    // the head, and no other memory.
    unsafe {
        (*event).at = bpf_ktime_get_ns();
        (*event).packet = traced.packet;
        (*event).cpu = bpf_get_smp_processor_id();
        (*event).ifindex = ingress(ctx);
        (*event).len = len;
        (*event).program = program;
        (*event).step = step;
        (*event).counter = counter as u16;
        (*event).action = action as u16;
        (*event).counters = traced.counters;
        (*event).reserved = 0;
        (*event).head = [0; TRACE_HEAD];
        // Checked again for the verifier: the barrier makes it forget the bound.
        let copy = core::hint::black_box(if len < TRACE_HEAD as u32 {
            len
        } else {
            TRACE_HEAD as u32
        }) & 0xff;
        if copy > 0 && copy <= TRACE_HEAD as u32 {
            bpf_xdp_load_bytes(ctx.ctx, 0, (&raw mut (*event).head).cast(), copy);
        }
    }
    record.submit(0);
}
