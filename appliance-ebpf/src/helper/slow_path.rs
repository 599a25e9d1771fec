//! Gives a packet to user space, by the ring `SLOW_PACKETS`.
//!
//! For: packets that must be split, resolved, advertised or reassembled. Never: more than the
//! tenant's budget for each reason or than the ring holds; other packets are dropped and counted.

use appliance_common::{
    counters::Counter,
    events::{SlowHeader, SlowPacket, SlowReason},
    limits::SLOW_PACKET_BYTES,
    maps::Network,
};
use aya_ebpf::{helpers::generated::bpf_xdp_load_bytes, programs::XdpContext};

use crate::{
    helper::{
        addr::{Words, bytes},
        budget,
        packet::{Outcome, frame_len, ingress},
    },
    maps::SLOW_PACKETS,
};

/// Copies the frame as it is into the ring and drops it. `l3` is the offset of its IP header. The
/// outcome says whether user space has the copy.
#[inline(never)]
pub fn send(
    ctx: &XdpContext,
    network: &Network,
    l3: u16,
    reason: SlowReason,
    next_hop: &Words,
) -> Outcome {
    copy_to_ring(ctx, network.vni, network.tenant + 1, l3, reason, next_hop)
}

/// As [`send`], for the network `vni`, zero for none, and within the budget of `owner`: a tenant's
/// slot plus one, or zero for packets of no single tenant.
#[inline(always)]
pub fn copy_to_ring(
    ctx: &XdpContext,
    vni: u32,
    owner: u32,
    l3: u16,
    reason: SlowReason,
    next_hop: &Words,
) -> Outcome {
    let len = frame_len(ctx) as u32;
    if len == 0 || len > SLOW_PACKET_BYTES as u32 {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    if !budget::take(reason.budget(), owner) {
        return Outcome::Drop(Counter::DropSlowRate);
    }
    let Some(mut record) = SLOW_PACKETS.reserve::<SlowPacket>(0) else {
        return Outcome::Drop(Counter::DropSlowRingFull);
    };
    let packet = record.as_mut_ptr();
    // Checked again for the verifier: the barrier makes it forget the bound.
    let copy = core::hint::black_box(len) & 0x0fff;
    if copy == 0 || copy > SLOW_PACKET_BYTES as u32 {
        record.discard(0);
        return Outcome::Drop(Counter::DropTooLarge);
    }
    // SAFETY: the record is ours until submitted, and `data` has room for `len` bytes, checked
    // above and by the verifier.
    let copied = unsafe {
        (*packet).header = SlowHeader {
            vni,
            ifindex: ingress(ctx),
            len,
            reason: reason as u16,
            l3,
            next_hop: bytes(*next_hop),
        };
        bpf_xdp_load_bytes(ctx.ctx, 0, (&raw mut (*packet).data).cast(), copy)
    };
    if copied != 0 {
        record.discard(0);
        return Outcome::Drop(Counter::DropMalformed);
    }
    record.submit(0);
    let counter = match reason {
        SlowReason::Split | SlowReason::UplinkSplit | SlowReason::HostSplit => Counter::SlowSplit,
        SlowReason::Unresolved | SlowReason::UplinkUnresolved => Counter::SlowUnresolved,
        SlowReason::RouterSolicitation => Counter::SlowSolicited,
        SlowReason::Fragment => Counter::SlowFragment,
        SlowReason::GatewayEcho => Counter::SlowEcho,
    };
    Outcome::Drop(counter)
}
