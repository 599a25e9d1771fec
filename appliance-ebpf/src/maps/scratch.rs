//! Values of the maps that only the programs read: state that does not fit the stack, and state
//! that one program passes to the next.

use appliance_common::nat::{Flow, FlowKey, MachineKey, Mapping, MappingKey, Pair};
use xdp_frame::fib::Fib;

/// Value of `PASSED`: state that one program passes to the next for the same packet on the same
/// CPU, so that nothing is looked up twice and the mode is read once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TailCallState {
    pub slot: u32,
    /// The port's MAC address as words in memory order.
    pub mac: (u32, u16),
    /// First socket of the interface in `XSKS`.
    pub xsk: u16,
    /// Whether the appliance's own stack shares the port.
    pub shared: bool,
    pub mode: u8,
}

/// Value of `SCRATCH`: state of the translation of one packet, for which the stack has no room.
#[repr(C)]
pub struct Scratch {
    pub packet: Packet,
    /// The key that finds its connection.
    pub key: FlowKey,
    /// The translated addresses and ports of the packet, and its destination network.
    pub flow: Flow,
    /// Key of the other direction.
    pub back_key: FlowKey,
    /// The other direction.
    pub back: Flow,
    /// Key of the other direction of a connection that conflicts with this one.
    pub other_key: FlowKey,
    /// The inside endpoint of a mapping.
    pub endpoint: MappingKey,
    /// The outside endpoint of a mapping.
    pub outer: MappingKey,
    pub mapping: Mapping,
    pub host: MachineKey,
    /// Its NAT address.
    pub pair: Pair,
    /// How many of the tenant's NAT addresses are usable.
    pub usable: u32,
    /// 1: it was paired for this packet.
    pub new_pair: u32,
    /// 1: a mapping was created for this packet.
    pub new_mapping: u32,
    /// A FIB lookup.
    pub fib: Fib,
    /// Where the packet comes from.
    pub side: Side,
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Side {
    /// The slot of its network, or [`UPLINK`](appliance_common::nat::UPLINK).
    pub slot: u32,
    pub zone: u32,
    /// The tenant's epoch; zero for the outside.
    pub epoch: u32,
    /// Whether the network has internet access.
    pub internet: u32,
    /// The time, [`ticks`](appliance_common::nat::ticks).
    pub now: u32,
}

/// The kind of the packet that is translated.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// TCP, UDP, or an ICMP query or reply; a whole packet or a first fragment.
    Query = 1,
    /// An ICMP error: the packet it quotes names its connection.
    Error = 2,
    /// A fragment other than the first: it has addresses and an identification.
    Fragment = 3,
}

/// The parts of a packet that translation reads or writes. Offsets are in the frame, bytes.
#[repr(C)]
pub struct Packet {
    pub kind: Kind,
    /// Offset of its IP header.
    pub l3: u32,
    /// Offset of the header behind the IP headers.
    pub l4: u32,
    /// Offset of the IP header that an error quotes.
    pub quoted_l3: u32,
    /// Offset of the header behind that.
    pub quoted_l4: u32,
    /// Bytes from the IP header on.
    pub total: u32,
    /// Identification of the fragmented datagram, memory order.
    pub identification: u32,
    /// TCP sequence number, host byte order.
    pub sequence: u32,
    /// TCP acknowledgment number, host byte order.
    pub acknowledgment: u32,
    /// Hop limit.
    pub hops: u8,
    /// TCP flags.
    pub flags: u8,
    /// 1: IPv6.
    pub ipv6: u8,
    /// 1: more fragments follow.
    pub more: u8,
    /// 1: it may open a connection.
    pub opens: u8,
    /// 1: IPv4 without DF.
    pub may_split: u8,
    /// Protocol behind the IP headers of the packet itself.
    pub protocol: u8,
    /// 1: only a 1:1 rule translates it.
    pub one_to_one: u8,
}
