//! Records the programs put into ring buffers for user space.

use crate::addr::Address;
use crate::limits::SLOW_PACKET_BYTES;

/// A host was heard on a tenant network. Record of the ring `NEIGHBOUR_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// The network's VNI, host byte order.
    pub vni: u32,
    /// Interface it was heard on, host byte order.
    pub ifindex: u32,
    /// The host's address.
    pub address: Address,
    /// The host's MAC address.
    pub mac: [u8; 6],
    /// Outer VLAN identifier as in [`crate::maps::AttachmentKey`], host byte order.
    pub outer: u16,
    /// Inner VLAN identifier, likewise.
    pub inner: u16,
    /// A [`Heard`], host byte order.
    pub kind: u16,
    /// Zero.
    pub reserved: u32,
}

/// How a host was heard; decides whether it makes a neighbour entry or only refreshes one.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It asked for an address that we answered, so traffic back to it will follow (RFC 826:
    /// "target is me").
    AskedUs = 1,
    /// It answered: an ARP reply or a solicited neighbour advertisement.
    Answered = 2,
    /// It announced itself: gratuitous ARP, unsolicited neighbour advertisement.
    Announced = 3,
    /// It asked for somebody else. Refreshes an entry, never makes one.
    AskedOther = 4,
}

impl Heard {
    /// The kind a record holds; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::AskedUs),
            2 => Some(Self::Answered),
            3 => Some(Self::Announced),
            4 => Some(Self::AskedOther),
            _ => None,
        }
    }
}

/// Head of a record of the ring `SLOW_PACKETS`: a packet the programs hand to user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowHeader {
    /// The network's VNI, host byte order.
    pub vni: u32,
    /// Interface it came in on, host byte order.
    pub ifindex: u32,
    /// Bytes of `data` used, host byte order.
    pub len: u32,
    /// A [`SlowReason`], host byte order.
    pub reason: u16,
    /// Offset of the IP header in `data`, bytes, host byte order.
    pub l3: u16,
    /// For [`SlowReason::Unresolved`], the address to resolve: the destination or the gateway.
    pub next_hop: Address,
}

/// A record of the ring `SLOW_PACKETS`, always of full size; `data[..len]` counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SlowPacket {
    /// What it is.
    pub header: SlowHeader,
    /// The frame: for [`SlowReason::Split`] as received, from the Ethernet header on; for
    /// [`SlowReason::Unresolved`] likewise, or the inner frame of a tunnel datagram.
    pub data: [u8; SLOW_PACKET_BYTES],
}

/// Why a packet takes the slow path.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReason {
    /// Over the tunnel's MTU, IPv4 without DF: split it and send the pieces into the tunnel.
    Split = 1,
    /// Its host has no neighbour entry: resolve `next_hop`, then send it there.
    Unresolved = 2,
    /// Translated, and the next hop out of the uplink is not resolved: the kernel resolves it and sends it there.
    Outside = 3,
}

impl SlowReason {
    /// The reason a record holds; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Split),
            2 => Some(Self::Unresolved),
            3 => Some(Self::Outside),
            _ => None,
        }
    }
}

const _: () = {
    assert!(size_of::<NeighbourEvent>() == 40);
    assert!(size_of::<SlowHeader>() == 32);
    assert!(size_of::<SlowPacket>() == 32 + SLOW_PACKET_BYTES);
    assert!(SLOW_PACKET_BYTES.is_multiple_of(8));
};

/// Reads a record of plain data from ring-buffer bytes; `None` when they are too few.
#[cfg(feature = "user")]
fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `read_unaligned` needs no alignment, and this private function
    // is called only with the integer-only types of this file, for which every bit pattern is valid.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

#[cfg(feature = "user")]
impl NeighbourEvent {
    /// The record in `bytes`; `None` when they are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}

#[cfg(feature = "user")]
impl SlowHeader {
    /// The head of the record in `bytes` and the frame; `None` when they are too few or `len` lies.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let header: Self = read(bytes)?;
        let frame = bytes.get(size_of::<Self>()..)?.get(..header.len as usize)?;
        Some((header, frame))
    }
}
