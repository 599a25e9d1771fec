//! The one way to packet bytes, and what a program decides about a packet.

use appliance_common::{
    counters::Counter,
    maps::{Jump, NO_VLAN},
    wire::{ETHERTYPE_8021AD, ETHERTYPE_8021Q},
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};

use crate::maps::JUMPS;

/// What becomes of a packet, and the counter that says so.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// To the kernel's stack, unchanged.
    Pass(Counter),
    /// Nowhere.
    Drop(Counter),
    /// Nowhere, and it is counted already.
    Gone,
    /// Out of an interface: the XDP action that does it.
    Send(Counter, u32),
    /// To be gone on with in another program, as it is: only a program's own frame may jump there.
    Jump(Jump),
}

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

/// A MAC address as four and two bytes in memory order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub u32, pub u16);

impl Mac {
    /// From the six bytes of a map.
    #[inline(always)]
    pub const fn new(m: [u8; 6]) -> Self {
        Self(
            u32::from_ne_bytes([m[0], m[1], m[2], m[3]]),
            u16::from_ne_bytes([m[4], m[5]]),
        )
    }

    /// The six bytes.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d] = self.0.to_ne_bytes();
        let [e, f] = self.1.to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// Group bit: multicast or broadcast.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0.to_ne_bytes()[0] & 1 != 0
    }

    /// All zero, which is nobody's.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0 && self.1 == 0
    }
}

/// The Ethernet header and its tags.
#[derive(Clone, Copy)]
pub struct L2 {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// Type behind the tags, host byte order.
    pub ethertype: u16,
    /// Outer VLAN identifier, or [`NO_VLAN`].
    pub outer: u16,
    /// Inner VLAN identifier, or [`NO_VLAN`].
    pub inner: u16,
    /// Tags: 0 to 2.
    pub tags: u8,
}

/// Why an Ethernet header could not be read.
pub enum L2Error {
    /// The frame ends within it.
    Truncated,
    /// There are more than two tags.
    TooManyTags,
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_8021Q || ethertype == ETHERTYPE_8021AD
}

impl L2 {
    /// Reads the Ethernet header and up to two tags (802.1Q or 802.1ad at either level). A priority
    /// tag (VLAN identifier 0) counts as a tag for lengths and as none for classification.
    #[inline(always)]
    pub fn parse(ctx: &XdpContext) -> Result<Self, L2Error> {
        let w = Window::<14>::at(ctx, 0).ok_or(L2Error::Truncated)?;
        let destination = Mac(w.get::<u32, 0>(), w.get::<u16, 4>());
        let source = Mac(w.get::<u32, 6>(), w.get::<u16, 10>());
        let mut l2 = Self {
            destination,
            source,
            ethertype: u16::from_be(w.get::<u16, 12>()),
            outer: NO_VLAN,
            inner: NO_VLAN,
            tags: 0,
        };
        if !is_tag(l2.ethertype) {
            return Ok(l2);
        }
        let w = Window::<18>::at(ctx, 0).ok_or(L2Error::Truncated)?;
        l2.outer = u16::from_be(w.get::<u16, 14>()) & 0x0fff;
        l2.ethertype = u16::from_be(w.get::<u16, 16>());
        l2.tags = 1;
        if !is_tag(l2.ethertype) {
            return Ok(l2);
        }
        let w = Window::<22>::at(ctx, 0).ok_or(L2Error::Truncated)?;
        let inner = u16::from_be(w.get::<u16, 18>()) & 0x0fff;
        l2.ethertype = u16::from_be(w.get::<u16, 20>());
        l2.tags = 2;
        if is_tag(l2.ethertype) {
            return Err(L2Error::TooManyTags);
        }
        if l2.outer == NO_VLAN {
            // A priority tag in front of a VLAN tag: the VLAN is what classifies.
            l2.outer = inner;
        } else {
            l2.inner = inner;
        }
        Ok(l2)
    }
}

/// Turns the frame round: to where it came from, from `mac`. The tags stay.
#[inline(always)]
pub fn turn_round(w: Window<12>, to: Mac, mac: Mac) {
    w.set::<u32, 0>(to.0);
    w.set::<u16, 4>(to.1);
    w.set::<u32, 6>(mac.0);
    w.set::<u16, 10>(mac.1);
}

/// Sends the frame out of `ifindex`, which is XDP_TX where it came in.
#[inline(always)]
pub fn send(ctx: &XdpContext, ifindex: u32, counter: Counter) -> Outcome {
    if ifindex == ingress(ctx) {
        return Outcome::Send(counter, xdp_action::XDP_TX);
    }
    // SAFETY: no memory is passed. An interface that is gone makes the redirect fail, which the
    // kernel reports by the tracepoint xdp:xdp_redirect_err and by dropping the packet.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    Outcome::Send(counter, action as u32)
}

/// Goes on in another program, with the packet as it is and nothing else; comes back only if it is not loaded.
#[inline(always)]
pub fn jump(ctx: &XdpContext, to: Jump) {
    // SAFETY: the map holds XDP programs of this object only, which the kernel checks when one is put there.
    unsafe { JUMPS.tail_call(ctx, to as u32) };
}

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
