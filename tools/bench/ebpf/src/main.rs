//! XDP programs that the benchmarks run around the programs under test.
//!
//! For: making one BPF_PROG_TEST_RUN call with many repeats measure a program that edits its packet
//! (`restore`, then a tail call), making frames (`generate`) and counting them (`sink`). Never: a
//! part of the appliance.
//!
//! ```text
//!   BPF_PROG_TEST_RUN ─▶ restore ── tail call ─▶ access | uplink | nothing | mac_swap
//!        ▲                                              │
//!        └────────────── repeat ◀───────────────────────┘
//! ```
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head, generated::bpf_xdp_store_bytes},
    macros::{map, xdp},
    maps::{Array, PerCpuArray, ProgramArray, XskMap},
    programs::XdpContext,
};

/// Bytes of a packet that are put back before each run: as many as a program writes.
const HEAD: usize = 128;
/// Packets that take turns; a power of two.
const TEMPLATES: u32 = 256;

/// A packet's first bytes and its length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// Bytes of the packet.
    pub len: u32,
    /// Bytes of `head` that are put back: `HEAD`, or `len` for a shorter packet.
    pub head_len: u32,
    /// The first bytes.
    pub head: [u8; HEAD],
}

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(TEMPLATES, 0);

/// Index of the next template or flow.
#[map]
static POSITION: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The program under test.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Packets counted by `sink`.
#[map]
static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The socket of `to_socket`.
#[map]
static SOCKETS: XskMap = XskMap::with_max_entries(1, 0);

/// Everything into the socket.
#[xdp]
pub fn to_socket(_ctx: XdpContext) -> u32 {
    SOCKETS
        .redirect(0, xdp_action::XDP_DROP as u64)
        .unwrap_or(xdp_action::XDP_DROP)
}

/// Puts the next packet back to what it was and runs the program under test on it.
#[xdp]
pub fn restore(ctx: XdpContext) -> u32 {
    match put_back(&ctx) {
        Some(()) => {
            // SAFETY: the entry is a program of this type, or the call fails and we go on.
            unsafe { NEXT.tail_call(&ctx, 0) };
            xdp_action::XDP_ABORTED
        }
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn put_back(ctx: &XdpContext) -> Option<()> {
    let position = POSITION.get_ptr_mut(0)?;
    // SAFETY: this CPU's slot, and one run at a time.
    let index = unsafe {
        *position = position.read().wrapping_add(1);
        *position & (TEMPLATES - 1)
    };
    let template = TEMPLATE.get_ptr(index)?;
    // SAFETY: array values are always there.
    let (len, head_len) = unsafe { ((*template).len, (*template).head_len) };
    let now = core::hint::black_box(ctx.data_end() - ctx.data()) as u32;
    let surplus = now as i32 - len as i32;
    if surplus != 0 {
        // SAFETY: no pointer into the packet is held.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, surplus) } != 0 {
            return None;
        }
    }
    if head_len == 0 || head_len > HEAD as u32 {
        return None;
    }
    // SAFETY: the value holds `HEAD` bytes, and `head_len` is at most that.
    let stored = unsafe {
        bpf_xdp_store_bytes(
            ctx.ctx,
            0,
            (&raw const (*template).head).cast_mut().cast(),
            head_len,
        )
    };
    (stored == 0).then_some(())
}

/// Nothing: what is left is the cost of `restore`.
#[xdp]
pub fn nothing(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// The floor: swaps the MAC addresses and sends the frame back.
#[xdp]
pub fn mac_swap(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + 12 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let p = start as *mut u16;
    // SAFETY: twelve bytes were checked above.
    unsafe {
        for i in 0..3 {
            let (a, b) = (p.add(i).read(), p.add(3 + i).read());
            p.add(i).write(b);
            p.add(3 + i).write(a);
        }
    }
    xdp_action::XDP_TX
}

/// Sends the next packet through its given input interface. Live frames are recycled with their
/// last contents (net/bpf/test_run.c), so the head is restored.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    match put_back(&ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Nanoseconds between two frames of `paced`.
#[map]
static INTERVAL: Array<u64> = Array::with_max_entries(1, 0);

/// When the next frame of `paced` is due.
#[map]
static DUE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Frames that `paced` sent.
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// As `generate`, at a rate: what is not due is thrown away, what is late is caught up for as many
/// frames as are in a batch.
#[xdp]
pub fn paced(ctx: XdpContext) -> u32 {
    match pace(&ctx) {
        Some(action) => action,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Frames that are run at once (net/bpf/test_run.c).
const BATCH: u64 = 64;

#[inline(always)]
fn pace(ctx: &XdpContext) -> Option<u32> {
    let interval = *INTERVAL.get(0)?;
    let (due, sent) = (DUE.get_ptr_mut(0)?, SENT.get_ptr_mut(0)?);
    // SAFETY: this CPU's slots, and one run at a time.
    unsafe {
        if interval > 0 {
            let now = bpf_ktime_get_ns();
            if now < *due {
                return Some(xdp_action::XDP_DROP);
            }
            *due = (*due).max(now.saturating_sub(BATCH * interval)) + interval;
        }
        *sent += 1;
    }
    put_back(ctx)?;
    Some(xdp_action::XDP_TX)
}

/// Parameters by which `flows` varies its template.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flows {
    /// How many take turns; at least 1.
    pub count: u32,
    /// Destination ports that take turns, from that of the template on; at least 1.
    pub ports: u32,
    /// Source ports that take turns, from that of the template on, at least 1: then the next
    /// address.
    pub per_address: u32,
    /// 0: vary the destination address; 1: vary the source address.
    pub which: u32,
}

#[map]
static FLOWS: Array<Flows> = Array::with_max_entries(1, 0);

/// As `generate`, each packet of UDP over IPv4 of another flow; checksums follow.
#[xdp]
pub fn flows(ctx: XdpContext) -> u32 {
    match put_back(&ctx).and_then(|()| vary(&ctx)) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn vary(ctx: &XdpContext) -> Option<()> {
    let position = POSITION.get_ptr_mut(0)?;
    let flows = FLOWS.get(0)?;
    if flows.count == 0 || flows.ports == 0 || flows.per_address == 0 {
        return None;
    }
    // SAFETY: this CPU's slot, and one run at a time.
    let i = unsafe { *position } % flows.count;
    let start = ctx.data();
    if start + 42 > ctx.data_end() {
        return None;
    }
    let address = if flows.which == 0 { 30 } else { 26 };
    // SAFETY: 42 bytes were checked above; these are words of the headers of IPv4 without options
    // and UDP.
    unsafe {
        let word = |at: usize| (start + at) as *mut u16;
        let mut delta = 0u32;
        let old = (word(address).read(), word(address + 2).read());
        let at = u32::from_be((u32::from(old.1) << 16) | u32::from(old.0)) + i / flows.per_address;
        let at = at.to_be();
        let new = (at as u16, (at >> 16) as u16);
        word(address).write(new.0);
        word(address + 2).write(new.1);
        delta += u32::from(!old.0) + u32::from(new.0) + u32::from(!old.1) + u32::from(new.1);
        word(24).write(updated(word(24).read(), delta));
        for (at, more) in [(34, i % flows.per_address), (36, i % flows.ports)] {
            let old = word(at).read();
            let new = u16::from_be(old).wrapping_add(more as u16).to_be();
            word(at).write(new);
            delta += u32::from(!old) + u32::from(new);
        }
        word(40).write(updated(word(40).read(), delta));
    }
    Some(())
}

/// A checksum after a change (RFC 1624).
#[inline(always)]
fn updated(check: u16, delta: u32) -> u16 {
    let mut sum = u32::from(!check) + delta;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Lets everything through; veth wakes a receiver of XDP_TX frames only if it has a program.
#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Counts and drops.
#[xdp]
pub fn sink(_ctx: XdpContext) -> u32 {
    if let Some(count) = SUNK.get_ptr_mut(0) {
        // SAFETY: this CPU's slot.
        unsafe { *count += 1 }
    }
    xdp_action::XDP_DROP
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// On the host these programs are only linted.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
