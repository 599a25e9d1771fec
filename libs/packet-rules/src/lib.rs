//! The rules that XDP programs and user space apply alike to a packet.
//!
//! For: one definition of each decision that both sides of the data path make: whether a header is
//! valid, whether an address may belong to a host, whether a message is an ICMP error, which
//! SYN is clamped and how, which source may send, how a checksum changes, and how long a circuit
//! message is.
//! Never: a map, a counter, a packet copy, an allocation, a clock, unsafe code.
//!
//! ```text
//!   XDP programs ── values loaded from the frame ──▶ ┌ packet-rules ┐ ◀── slices ── tunnel workers
//!                ◀─────────── decision ───────────── └──────────────┘ ──▶ slow path, tests
//! ```
//!
//! Every function on the packet path is `#[inline(always)]` and takes values that the caller has
//! loaded already, so that the XDP programs compile to what they would be with the rule written
//! out in place. The functions that read on their own (extension headers, TCP options, partial
//! checksums) read through [`Bytes`]: a program implements it with a helper call, user space with
//! a slice.
//!
//! Addresses and checksums are in memory order, as loaded from the packet; lengths, ports and
//! fragment fields are in host byte order.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod circuit;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod source;
pub mod tcp;

/// Access to a packet at any offset.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` if the packet does not have them all.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}
