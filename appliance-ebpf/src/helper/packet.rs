//! The current frame: Ethernet header, length, and its XDP action.
//!
//! For: parsing the Ethernet header and VLAN tags, cutting, reversing, sending, and the outcome
//! that a stage returns. Never: an IP header, a table but the targets of tail calls.

use appliance_common::{
    counters::Counter,
    maps::{Jump, NO_VLAN},
    wire::{ETHERTYPE_8021AD, ETHERTYPE_8021Q},
};
use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
pub use xdp_frame::{Plain, Window, frame_len, ingress};

use crate::maps::JUMPS;

/// The verdict on a packet, and its counter.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Pass it to the kernel's stack, unchanged; on the tunnels' port without priority tags.
    Pass(Counter),
    /// Drop it.
    Drop(Counter),
    /// Drop it; the reason is counted already.
    DropCounted,
    /// Send it out of an interface, by this XDP action.
    Send(Counter, u32),
    /// Continue in another program with the packet as it is. Only a program's own stack frame may
    /// make the tail call.
    TailCall(Jump),
}

/// A MAC address as four and two bytes in memory order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub u32, pub u16);

impl Mac {
    /// From the six bytes of a map value.
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

    /// All zero, which no interface has.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0 && self.1 == 0
    }
}

/// The Ethernet header and its tags.
#[derive(Clone, Copy)]
pub struct L2 {
    pub destination: Mac,
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
            // A priority tag in front of a VLAN tag: the VLAN tag classifies the frame.
            l2.outer = inner;
        } else {
            l2.inner = inner;
        }
        Ok(l2)
    }
}

/// Length of a VLAN tag, bytes.
const TAG_LEN: usize = 4;
/// Priority tags that are removed from a frame; the kernel's stack removes any number.
const MAX_PRIORITY_TAGS: usize = 2;

/// Removes priority tags (VLAN identifier 0) at the front: without them the frame means the same
/// (IEEE 802.1Q section 6.9). `false`: the driver could not, and the frame is destroyed.
#[inline(never)]
pub fn remove_priority_tags(ctx: &XdpContext) -> bool {
    for _ in 0..MAX_PRIORITY_TAGS {
        let Some(w) = Window::<18>::at(ctx, 0) else {
            return true;
        };
        if !is_tag(u16::from_be(w.get::<u16, 12>()))
            || u16::from_be(w.get::<u16, 14>()) & 0x0fff != NO_VLAN
        {
            return true;
        }
        let destination = Mac(w.get::<u32, 0>(), w.get::<u16, 4>());
        let source = Mac(w.get::<u32, 6>(), w.get::<u16, 10>());
        w.set::<u32, 4>(destination.0);
        w.set::<u16, 8>(destination.1);
        w.set::<u32, 10>(source.0);
        w.set::<u16, 14>(source.1);
        // SAFETY: no pointer into the packet outlives the call; the verifier checks it.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, TAG_LEN as i32) } != 0 {
            return false;
        }
    }
    true
}

/// Cuts everything behind the first `len` bytes: Ethernet padding, or a trailer that the IP header
/// does not count. Returns whether the frame is now `len` bytes.
#[inline(always)]
pub fn trim(ctx: &XdpContext, len: usize) -> bool {
    let surplus = frame_len(ctx) as i32 - len as i32;
    if surplus == 0 {
        return true;
    }
    // SAFETY: no pointer into the packet outlives this call; the verifier checks it.
    surplus > 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) } == 0
}

/// Reverses the frame: addressed to `to`, from `mac`. The tags stay.
#[inline(always)]
pub fn reverse(w: Window<12>, to: Mac, mac: Mac) {
    w.set::<u32, 0>(to.0);
    w.set::<u16, 4>(to.1);
    w.set::<u32, 6>(mac.0);
    w.set::<u16, 10>(mac.1);
}

/// Sends the frame out of `ifindex`: by XDP_TX where it came in, else by a redirect.
#[inline(always)]
pub fn send(ctx: &XdpContext, ifindex: u32, counter: Counter) -> Outcome {
    if ifindex == ingress(ctx) {
        return Outcome::Send(counter, xdp_action::XDP_TX);
    }
    // SAFETY: no memory is passed. If the interface does not exist any more, the kernel drops the
    // packet and reports it by the tracepoint xdp:xdp_redirect_err.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    Outcome::Send(counter, action as u32)
}

/// Continues in another program with the packet as it is. Returns only if that program is not
/// loaded.
#[inline(always)]
pub fn tail_call(ctx: &XdpContext, to: Jump) {
    // SAFETY: the map holds XDP programs only; the kernel checks it when an entry is written.
    unsafe { JUMPS.tail_call(ctx, to as u32) };
}
