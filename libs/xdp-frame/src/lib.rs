//! A frame as an XDP program has it.
//!
//! For: what every XDP program of ours does with a frame, whoever's it is: the one way to its bytes, bounds checked as the verifier wants
//! it, and the question which way a packet goes on. Never: a map, a counter, a decision.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod fib;

use aya_ebpf::programs::XdpContext;

/// Where a frame ends at the latest: native XDP has none longer without fragments.
pub const FRAME: u32 = 4096;

/// `N` bytes of packet that are there.
///
/// A window ends with the next change of the packet's head or tail; the verifier refuses a program
/// that uses one later.
#[derive(Clone, Copy)]
pub struct Window<const N: usize>(*mut u8);

impl<const N: usize> Window<N> {
    /// The window at `offset` from the frame's start, if the frame reaches so far.
    #[inline(always)]
    pub fn at(ctx: &XdpContext, offset: usize) -> Option<Self> {
        let start = data(ctx) + offset;
        if start + N > data_end(ctx) {
            return None;
        }
        Some(Self(start as *mut u8))
    }

    /// The window at an offset that is known only as the packet is read, below [`FRAME`]; `None` behind that, too.
    #[inline(always)]
    pub fn within(ctx: &XdpContext, offset: u32) -> Option<Self> {
        if offset >= FRAME {
            return None;
        }
        // Again, where the verifier looks: behind the barrier this is a number it must bound anew.
        Self::at(ctx, (core::hint::black_box(offset) & (FRAME - 1)) as usize)
    }

    /// The value at byte `O`, as it is in memory.
    #[inline(always)]
    pub fn get<T: Plain, const O: usize>(self) -> T {
        const {
            assert!(O + size_of::<T>() <= N);
        }
        // SAFETY: the window was checked against the packet's end and the verifier checks again. An
        // IP header is two bytes off a word boundary; BPF loads of packet memory may be
        // misaligned where the JIT says so (x86-64 and arm64: CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS),
        // and `read_unaligned` would cost a load a byte.
        unsafe { self.0.add(O).cast::<T>().read() }
    }

    /// Stores `value` at byte `O`, as it is in memory.
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

/// Where the packet begins.
///
/// The context holds it as 32 bits that the verifier makes a pointer of. Read as such, newer LLVM joins
/// two reads and widens the result afterwards, by shifts, which the verifier refuses on a pointer; an
/// instruction of our own gives all 64 bits at once.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn data(ctx: &XdpContext) -> usize {
    let start: u64;
    // SAFETY: the context is valid while the program runs; byte 0 is `data` (struct xdp_md).
    unsafe {
        core::arch::asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) ctx.ctx, options(readonly, nostack));
    }
    start as usize
}

/// Where the packet ends; as [`data`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn data_end(ctx: &XdpContext) -> usize {
    let end: u64;
    // SAFETY: as in `data`; byte 4 is `data_end`.
    unsafe {
        core::arch::asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) ctx.ctx, options(readonly, nostack));
    }
    end as usize
}

/// Where the packet begins.
#[cfg(not(target_arch = "bpf"))]
pub fn data(ctx: &XdpContext) -> usize {
    ctx.data()
}

/// Where the packet ends.
#[cfg(not(target_arch = "bpf"))]
pub fn data_end(ctx: &XdpContext) -> usize {
    ctx.data_end()
}

/// Integers and byte arrays: any bits are a value.
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

/// The interface the frame came in on.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

/// Bytes of the frame.
///
/// The barrier keeps LLVM from folding this difference into later sums, as `end - (start + n)`
/// truncated to 32 bits, which shifts a packet pointer and is refused by the verifier.
#[inline(always)]
pub fn frame_len(ctx: &XdpContext) -> usize {
    core::hint::black_box(data_end(ctx) - data(ctx))
}
