//! The packet's bytes at any offset, through kernel helpers.
//!
//! For rare paths only: a helper call costs more than a checked window, but takes an offset that
//! the verifier cannot bound.

use aya_ebpf::{
    helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use packet_rules::{Bytes, ipv6::skip_extensions};

/// The frame, for the rules that read on their own.
pub struct FrameBytes<'a>(pub &'a XdpContext);

impl Bytes for FrameBytes<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        load(self.0, offset)
    }
}

/// The `N` bytes at `offset`, if the frame has them all.
#[inline(always)]
pub fn load<const N: usize>(ctx: &XdpContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: `bytes` has room for `N`.
    let failed = unsafe { bpf_xdp_load_bytes(ctx.ctx, offset, (&raw mut bytes).cast(), N as u32) };
    (failed == 0).then_some(bytes)
}

/// The byte at `offset`, if the frame has it.
#[inline(always)]
pub fn byte(ctx: &XdpContext, offset: u32) -> Option<u8> {
    load::<1>(ctx, offset).map(|[b]| b)
}

/// Writes `bytes` at `offset`. Returns whether the frame reaches so far.
#[inline(always)]
pub fn store<const N: usize>(ctx: &XdpContext, offset: u32, mut bytes: [u8; N]) -> bool {
    // SAFETY: `bytes` holds `N`.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, (&raw mut bytes).cast(), N as u32) == 0 }
}

/// [`skip_extensions`] of the frame, in a function of its own: the protocol in the upper and its
/// offset in the lower 32 bits.
#[inline(never)]
pub fn behind_extensions(ctx: &XdpContext, offset: u32, next: u8, end: u32) -> u64 {
    let (protocol, at) = skip_extensions(&FrameBytes(ctx), offset, next, end);
    u64::from(protocol) << 32 | u64::from(at)
}
