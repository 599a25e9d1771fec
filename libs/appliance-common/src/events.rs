//! Records that the programs write into ring buffers for user space.

use crate::addr::Address;
use crate::limits::SLOW_PACKET_BYTES;
use crate::maps::Budget;
use crate::nat::MappingKey;

/// A host was seen on a tenant network. Record of the ring `NEIGHBOUR_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// The network's VNI, host byte order.
    pub vni: u32,
    /// Interface that the host was seen on, host byte order.
    pub ifindex: u32,
    pub address: Address,
    /// The host's MAC address; a group's where a cluster uses one.
    pub mac: [u8; 6],
    /// Outer VLAN identifier as in [`crate::maps::AttachmentKey`], host byte order.
    pub outer: u16,
    /// Inner VLAN identifier, likewise.
    pub inner: u16,
    /// A [`NeighbourEventKind`], host byte order.
    pub kind: u16,
    /// Bits of [`neighbour_event_flags`], host byte order.
    pub flags: u32,
}

/// Bits of [`NeighbourEvent::flags`].
pub mod neighbour_event_flags {
    /// The message does not replace a known MAC address: an advertisement without the Override flag
    /// (RFC 4861 section 7.2.5).
    pub const NO_OVERRIDE: u32 = 1;
}

/// How a host was seen. Decides whether a neighbour entry is created or only refreshed.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourEventKind {
    /// It requested an address that we answered for, so traffic to it will follow (RFC 826: "target
    /// is me").
    RequestToUs = 1,
    /// It replied: an ARP reply or a solicited neighbour advertisement.
    Reply = 2,
    /// It announced its address: gratuitous ARP, unsolicited neighbour advertisement.
    Announcement = 3,
    /// It requested the address of another host. Refreshes an entry, never creates one.
    RequestToOther = 4,
    /// It uses an address that we answer for. The VNI is zero on the uplink.
    Claim = 5,
}

impl NeighbourEventKind {
    /// The kind of a record; `None` for a number that this version does not know.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::RequestToUs),
            2 => Some(Self::Reply),
            3 => Some(Self::Announcement),
            4 => Some(Self::RequestToOther),
            5 => Some(Self::Claim),
            _ => None,
        }
    }
}

/// Head of a record of the ring `SLOW_PACKETS`: a packet that the programs give to user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowHeader {
    /// The network's VNI, host byte order.
    pub vni: u32,
    /// Interface that the packet came in on, host byte order.
    pub ifindex: u32,
    /// Used bytes of `data`, host byte order.
    pub len: u32,
    /// A [`SlowReason`], host byte order.
    pub reason: u16,
    /// Offset of the IP header in `data`, bytes, host byte order.
    pub l3: u16,
    /// For [`SlowReason::Unresolved`], the address to resolve: the destination or the gateway.
    pub next_hop: Address,
}

/// A record of the ring `SLOW_PACKETS`, always of full size; `data[..len]` is valid.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SlowPacket {
    /// Its head.
    pub header: SlowHeader,
    /// The frame: for [`SlowReason::Split`] as received, from the Ethernet header on; for
    /// [`SlowReason::Unresolved`] likewise, or the inner frame of a tunnel datagram.
    pub data: [u8; SLOW_PACKET_BYTES],
}

/// Why a packet takes the slow path.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReason {
    /// IPv4 without DF, over the tunnel's MTU: user space splits it and sends the fragments.
    Split = 1,
    /// Its host has no neighbour entry: user space resolves `next_hop` and sends it there.
    Unresolved = 2,
    /// Translated, but the next hop out of the uplink is not resolved: the kernel resolves and
    /// sends.
    UplinkUnresolved = 3,
    /// A router solicitation in full failover: user space advertises (RFC 4861 section 6.2.6).
    /// `next_hop` is its source.
    RouterSolicitation = 4,
    /// A fragment that arrived before its first one: user space runs it again once the first one is
    /// translated (RFC 4787 REQ-14). The VNI is zero on the uplink.
    Fragment = 5,
    /// A fragment of an echo request to the gateway: user space reassembles and answers.
    GatewayEcho = 6,
    /// Translated IPv4 without DF, over the MTU of the uplink: user space splits it and has the
    /// kernel send the fragments.
    UplinkSplit = 7,
    /// IPv4 without DF in full failover, over the MTU of its host's port: user space splits it and
    /// sends the fragments to `next_hop`.
    HostSplit = 8,
}

impl SlowReason {
    /// The budget that bounds packets for this reason.
    #[inline(always)]
    #[must_use]
    pub const fn budget(self) -> Budget {
        match self {
            Self::Split | Self::UplinkSplit | Self::HostSplit => Budget::Split,
            Self::Unresolved => Budget::Unresolved,
            Self::UplinkUnresolved => Budget::UplinkUnresolved,
            Self::RouterSolicitation => Budget::RouterSolicitation,
            Self::Fragment => Budget::Fragment,
            Self::GatewayEcho => Budget::GatewayEcho,
        }
    }

    /// The reason of a record; `None` for a number that this version does not know.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Split),
            2 => Some(Self::Unresolved),
            3 => Some(Self::UplinkUnresolved),
            4 => Some(Self::RouterSolicitation),
            5 => Some(Self::Fragment),
            6 => Some(Self::GatewayEcho),
            7 => Some(Self::UplinkSplit),
            8 => Some(Self::HostSplit),
            _ => None,
        }
    }
}

/// A mapping was created. Record of the ring `NAT_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingEvent {
    /// The kernel's coarse monotonic clock, nanoseconds, host byte order.
    pub at: u64,
    /// The endpoint inside.
    pub inside: MappingKey,
    /// The endpoint outside.
    pub outside: MappingKey,
}

/// First bytes of a packet that a [`TraceEvent`] holds.
pub const TRACE_HEAD: usize = 128;
/// Counters that a [`TraceEvent`] names at most, besides that of the verdict.
pub const TRACE_COUNTERS: usize = 6;

/// A step of a traced packet. Record of the ring `TRACE_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// The kernel's monotonic clock, nanoseconds, host byte order.
    pub at: u64,
    /// Number of the packet on its CPU, host byte order.
    pub packet: u32,
    /// The CPU, host byte order.
    pub cpu: u32,
    /// Interface that the packet came in on, host byte order.
    pub ifindex: u32,
    /// Bytes of the frame, host byte order.
    pub len: u32,
    /// A [`TraceProgram`], host byte order.
    pub program: u16,
    /// A [`TraceStep`], host byte order.
    pub step: u16,
    /// [`TraceStep::Verdict`]: the number of the verdict's counter plus one; zero if it is the last
    /// of `counters`. Host byte order.
    pub counter: u16,
    /// [`TraceStep::Verdict`]: the XDP action; else zero. Host byte order.
    pub action: u16,
    /// Counters raised before, each its number plus one; zero ends the list. Host byte order.
    pub counters: [u16; TRACE_COUNTERS],
    /// Padding, always zero.
    pub reserved: u32,
    /// The first bytes of the frame at that step.
    pub head: [u8; TRACE_HEAD],
}

/// Value of `TRACED`, per CPU: the trace state of the current packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Number of the packet on this CPU, host byte order.
    pub packet: u32,
    /// 1: the packet is traced.
    pub followed: u32,
    /// Counters raised so far, each its number plus one; host byte order.
    pub counters: [u16; TRACE_COUNTERS],
    /// Used entries of `counters`.
    pub counter_count: u32,
}

/// A program, in a trace.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceProgram {
    /// A tenant-only port.
    Access = 1,
    /// The tunnels' port.
    Uplink = 2,
    /// A port that is both.
    Combined = 3,
    /// A tenant in full failover.
    Full = 4,
    /// Packets that leave the tenant's networks.
    NatOut = 5,
    /// Packets to public addresses.
    NatIn = 6,
}

impl TraceProgram {
    /// The program's name; `None` for a number that this version does not know.
    #[must_use]
    pub const fn name_of(value: u16) -> Option<&'static str> {
        match value {
            1 => Some("access"),
            2 => Some("uplink"),
            3 => Some("combined"),
            4 => Some("full"),
            5 => Some("nat_out"),
            6 => Some("nat_in"),
            _ => None,
        }
    }
}

/// A step of a packet in a program.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStep {
    /// It enters at an interface.
    Enter = 1,
    /// It continues here after a tail call.
    Continue = 2,
    Verdict = 3,
}

impl TraceStep {
    /// The step of a record; `None` for a number that this version does not know.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Enter),
            2 => Some(Self::Continue),
            3 => Some(Self::Verdict),
            _ => None,
        }
    }
}

/// Value of `TRACE`, the one entry of an array: which packets are traced. All zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// 1: trace.
    pub active: u32,
    /// Only on this interface; zero: on any. Host byte order.
    pub ifindex: u32,
    /// Only with this outer VLAN identifier; zero: any or none. Host byte order.
    pub vlan: u16,
    /// Only from or to this port, of TCP or UDP, network byte order; zero: any.
    pub port: u16,
    /// Only this IP protocol, without extension headers; zero: any, also frames other than IP.
    pub protocol: u8,
    /// Padding, always zero.
    pub reserved: [u8; 3],
    /// Only from or to this address; [`crate::addr::UNSPECIFIED`]: any.
    pub address: Address,
}

const _: () = {
    assert!(size_of::<NeighbourEvent>() == 40);
    assert!(size_of::<SlowHeader>() == 32);
    assert!(size_of::<SlowPacket>() == 32 + SLOW_PACKET_BYTES);
    assert!(SLOW_PACKET_BYTES.is_multiple_of(8));
    assert!(size_of::<MappingEvent>() == 56);
    assert!(size_of::<TraceEvent>() == 48 + TRACE_HEAD);
    assert!(size_of::<TraceFilter>() == 32);
    assert!(size_of::<Traced>() == 24);
};

/// Reads a record of plain data from ring-buffer bytes; `None` if they are too few.
#[cfg(feature = "user")]
fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `read_unaligned` needs no alignment, and this private
    // function is called only with the integer-only types of this file, for which every bit pattern
    // is valid.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

#[cfg(feature = "user")]
impl NeighbourEvent {
    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}

#[cfg(feature = "user")]
impl SlowHeader {
    /// The head of the record in `bytes` and its frame; `None` if they are too few for `len`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let header: Self = read(bytes)?;
        let frame = bytes.get(size_of::<Self>()..)?.get(..header.len as usize)?;
        Some((header, frame))
    }
}

#[cfg(feature = "user")]
impl MappingEvent {
    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}

#[cfg(feature = "user")]
impl TraceEvent {
    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, `Copy`, integers and bytes only, and the size asserted above is the sum of the
// fields' sizes, so there is no padding and every bit pattern is valid.
unsafe impl aya::Pod for TraceFilter {}
#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Traced {}
