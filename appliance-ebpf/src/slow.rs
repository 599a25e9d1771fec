//! Hands a packet to user space.

use appliance_common::{
    counters::Counter,
    events::{SlowHeader, SlowPacket, SlowReason},
    limits::SLOW_PACKET_BYTES,
    maps::Network,
};
use aya_ebpf::{helpers::generated::bpf_xdp_load_bytes, programs::XdpContext};

use crate::{
    addr::{Words, bytes},
    maps::SLOW_PACKETS,
    packet::{Outcome, frame_len, ingress},
};

/// Copies the frame as it stands into the ring. `l3` is the offset of its IP header. The packet
/// itself ends here; the outcome says whether user space has it.
#[inline(never)]
pub fn hand_over(
    ctx: &XdpContext,
    network: &Network,
    l3: u16,
    reason: SlowReason,
    next_hop: &Words,
) -> Outcome {
    copy(ctx, network.vni, l3, reason, next_hop)
}

/// As [`hand_over`], of the network `vni`; zero for none.
#[inline(always)]
pub fn copy(ctx: &XdpContext, vni: u32, l3: u16, reason: SlowReason, next_hop: &Words) -> Outcome {
    let len = frame_len(ctx) as u32;
    if len == 0 || len > SLOW_PACKET_BYTES as u32 {
        return Outcome::Drop(Counter::DropTooLarge);
    }
    let Some(mut record) = SLOW_PACKETS.reserve::<SlowPacket>(0) else {
        return Outcome::Drop(Counter::DropSlowRingFull);
    };
    let packet = record.as_mut_ptr();
    // Again, where the verifier looks: behind the barrier this is a number it must bound anew.
    let copy = core::hint::black_box(len) & 0x0fff;
    if copy == 0 || copy > SLOW_PACKET_BYTES as u32 {
        record.discard(0);
        return Outcome::Drop(Counter::DropTooLarge);
    }
    // SAFETY: the record is ours until submitted, and `data` has room for `len` bytes, checked above
    // and by the verifier.
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
        SlowReason::Split => Counter::SlowSplit,
        SlowReason::Unresolved | SlowReason::UplinkUnresolved => Counter::SlowUnresolved,
        SlowReason::RouterSolicitation => Counter::SlowSolicited,
        SlowReason::Fragment => Counter::SlowFragment,
    };
    Outcome::Drop(counter)
}
