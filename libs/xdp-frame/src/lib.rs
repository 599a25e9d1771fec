//! A frame in an XDP program.
//!
//! For: access to the bytes of a frame with the bounds checks that the verifier requires, and the
//! FIB lookup of a packet. Never: a map, a counter, a decision.
//!
//! ```text
//!   struct xdp_md ─▶ data, data_end ─▶ Window::at(offset): N checked bytes ─▶ get, set
//!                                      Fib::lookup: next hop, MAC addresses, MTU
//! ```
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod fib;

use aya_ebpf::programs::XdpContext;

/// The longest frame, bytes: native XDP has no longer ones without fragments.
pub const FRAME: u32 = 4096;

/// `N` bytes of the packet, checked to be within it.
///
/// A change of the packet's head or tail invalidates all windows; the verifier refuses a program
/// that uses one afterwards.
#[derive(Clone, Copy)]
pub struct Window<const N: usize>(*mut u8);

impl<const N: usize> Window<N> {
    /// The window at `offset` from the frame's start, or `None` if the frame ends before.
    #[inline(always)]
    pub fn at(ctx: &XdpContext, offset: usize) -> Option<Self> {
        let start = data(ctx) + offset;
        if start + N > data_end(ctx) {
            return None;
        }
        Some(Self(start as *mut u8))
    }

    /// As [`Window::at`], for an offset that is no constant; `None` also for one of [`FRAME`] or
    /// more.
    #[inline(always)]
    pub fn within(ctx: &XdpContext, offset: u32) -> Option<Self> {
        if offset >= FRAME {
            return None;
        }
        // Masked again for the verifier: the barrier makes it forget the bound.
        Self::at(ctx, (core::hint::black_box(offset) & (FRAME - 1)) as usize)
    }

    /// The value at byte `O`, memory order.
    #[inline(always)]
    pub fn get<T: Plain, const O: usize>(self) -> T {
        const {
            assert!(O + size_of::<T>() <= N);
        }
        // SAFETY: the window was checked against the packet's end and the verifier checks again. An
        // IP header is two bytes off a word boundary; BPF loads of packet memory may be
        // misaligned where the JIT permits it (x86-64 and arm64:
        // CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS), and `read_unaligned` would cost a load per byte.
        unsafe { self.0.add(O).cast::<T>().read() }
    }

    /// Stores `value` at byte `O`, memory order.
    #[inline(always)]
    pub fn set<T: Plain, const O: usize>(self, value: T) {
        const {
            assert!(O + size_of::<T>() <= N);
        }
        // SAFETY: as in `get`; XDP programs own the packet's bytes.
        unsafe { self.0.add(O).cast::<T>().write(value) }
    }

    /// The window's first byte, for helpers that take memory.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u8 {
        self.0
    }
}

/// The address of the packet's first byte.
///
/// The context holds it as 32 bits that the verifier turns into a pointer. Newer LLVM joins two
/// such reads and widens the result by shifts, which the verifier refuses on a pointer. An
/// instruction of our own loads all 64 bits at once.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn data(ctx: &XdpContext) -> usize {
    let start: u64;
    // SAFETY: the context is valid while the program runs; byte 0 is `data` (struct xdp_md).
    unsafe {
        core::arch::asm!(
            "{0} = *(u32 *)({1} + 0)",
            out(reg) start,
            in(reg) ctx.ctx,
            options(readonly, nostack)
        );
    }
    start as usize
}

/// The address behind the packet's last byte; see [`data`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn data_end(ctx: &XdpContext) -> usize {
    let end: u64;
    // SAFETY: as in `data`; byte 4 is `data_end`.
    unsafe {
        core::arch::asm!(
            "{0} = *(u32 *)({1} + 4)",
            out(reg) end,
            in(reg) ctx.ctx,
            options(readonly, nostack)
        );
    }
    end as usize
}

/// The address of the packet's first byte.
#[cfg(not(target_arch = "bpf"))]
pub fn data(ctx: &XdpContext) -> usize {
    ctx.data()
}

/// The address behind the packet's last byte.
#[cfg(not(target_arch = "bpf"))]
pub fn data_end(ctx: &XdpContext) -> usize {
    ctx.data_end()
}

/// Integers and arrays of them, for which every bit pattern is valid.
///
/// # Safety
/// Every bit pattern must be valid and there must be no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of them.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for [u32; 4] {}

/// Index of the interface that the frame came in on.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

/// Length of the frame, bytes.
///
/// The barrier keeps LLVM from folding this difference into later sums as `end - (start + n)`
/// truncated to 32 bits, which shifts a packet pointer: the verifier refuses that.
#[inline(always)]
pub fn frame_len(ctx: &XdpContext) -> usize {
    core::hint::black_box(data_end(ctx) - data(ctx))
}
