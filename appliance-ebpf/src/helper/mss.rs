//! Clamps the MSS that a TCP SYN announces to what the tunnel carries (the rule:
//! `packet_rules::tcp`).
//!
//! SYNs are rare, so this reads and writes through helpers, at any offset, rather than widen the
//! windows of the packet path.

use appliance_common::{
    counters::Counter,
    wire::{IPV4_LEN, mss_for},
};
use aya_ebpf::programs::XdpContext;
use packet_rules::tcp::{self, CHECKSUM_AT, clamped_checksum, find_mss};

use crate::helper::{
    bytes::{FrameBytes, load, store},
    count::count,
    packet::Window,
};

/// Whether the TCP header at `offset` is that of a SYN. A load and a compare.
#[inline(always)]
pub fn is_syn(ctx: &XdpContext, offset: usize) -> bool {
    Window::<20>::at(ctx, offset).is_some_and(|w| tcp::is_syn(w.get::<u8, 13>()))
}

/// Clamps the IPv4 packet at `L3` if it is a SYN; `header` and `total` are its lengths. Without IP
/// options, any other segment costs a load and a compare.
#[inline(always)]
pub fn clamp_v4<const L3: usize>(ctx: &XdpContext, header: usize, total: usize, mtu: u16) {
    if header == IPV4_LEN {
        let Some(w) = Window::<20>::at(ctx, L3 + IPV4_LEN) else {
            return;
        };
        if !tcp::is_syn(w.get::<u8, 13>()) {
            return;
        }
    }
    clamp(
        ctx,
        (L3 + header) as u32,
        (L3 + total) as u32,
        mss_for(mtu, false),
    );
}

/// Lowers the MSS option of the SYN whose TCP header is at `offset`, in a packet that ends at
/// `end`, to `limit` bytes if it is higher, and corrects the checksum. Any other segment stays as
/// it is.
#[inline(never)]
pub fn clamp(ctx: &XdpContext, offset: u32, end: u32, limit: u16) {
    let Some(mss) = find_mss(&FrameBytes(ctx), offset, end) else {
        return;
    };
    if mss.value <= limit {
        return;
    }
    let checksum_at = offset + CHECKSUM_AT as u32;
    let Some(check) = load::<2>(ctx, checksum_at) else {
        return;
    };
    let check = clamped_checksum(u16::from_ne_bytes(check), offset, mss, limit);
    if store(ctx, mss.at, limit.to_be_bytes()) && store(ctx, checksum_at, check.to_ne_bytes()) {
        count(Counter::MssClamped);
    }
}
