//! Network address translation of full failover: what the programs and user space agree on.
//!
//! Pure and without a clock, so that the programs, user space and tests decide alike.
//!
//! ```text
//!   a packet ─▶ FlowKey ─ FLOWS, then OPENING ─▶ Flow: new addresses and ports, and where to
//!                  │ none, and it may open one
//!                  ├─ from a tenant: MAPPINGS, endpoint-independent (RFC 4787 section 4.1)
//!                  └─ from outside:  RULE_PORTS ─▶ RULES
//! ```
//!
//! A connection is two flows, one for each direction, each the [`inverse`](Flow::inverse) of the other. It
//! begins in `OPENING`, where the oldest give way to new ones, and moves to `FLOWS`, where none gives way, once
//! both ends have spoken: a flood of first packets takes no place from connections.

mod flow;
mod tcp;

pub use flow::{Flow, FlowKey, Timeouts, egress_stamp, ticks};
pub use tcp::{ACK, FIN, RST, SYN, TcpState};

/// An address as four words in memory order, IPv4 in mapped form.
pub type Words = [u32; 4];

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As its first packet.
    Original,
    /// Back.
    Reply,
}

/// The zone of the outside; a tenant's is its slot and one.
pub const OUTSIDE: u16 = 0;

/// In place of a network's slot: out of the uplink.
pub const UPLINK: u32 = u32::MAX;

/// Ticks for which the fragments of a datagram are awaited: 30 s, as in Linux (net.ipv4.ipfrag_time).
pub const FRAGMENT_TICKS: u32 = 28;

/// Ports tried for a new mapping, beyond which they count as exhausted.
pub const PORT_PROBES: u32 = 32;

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// This direction is the one back.
    pub const REPLY: u8 = 1;
    /// Opened by a tenant's host to the outside: stands as long as its network has the internet.
    pub const INTERNET: u8 = 2;
    /// The one that opened it has a mapping.
    pub const MAPPED: u8 = 4;
    /// Opened to what another endpoint is seen as: nothing of it is delivered before that one has spoken, too.
    pub const MUTUAL: u8 = 8;
}

/// Key of `MAPPINGS`: an endpoint, inside or outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingKey {
    /// Its address.
    pub address: Words,
    /// Its port, or the identifier of ICMP queries; network byte order.
    pub port: u16,
    /// [`OUTSIDE`], or the tenant's; host byte order.
    pub zone: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Value of `MAPPINGS`: the endpoint that it is on the other side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Its address.
    pub address: Words,
    /// Its port, network byte order.
    pub port: u16,
    /// Its zone, host byte order.
    pub zone: u16,
    /// The tenant's epoch at the time, host byte order.
    pub epoch: u32,
}

/// Value of `NAT`, the one entry of an array. With `uplink` zero nothing is translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// The interface to the outside, host byte order; zero: there is none.
    pub uplink: u32,
    /// Where the search for free ports begins is a function of this: secret, so that ports are not guessed
    /// (RFC 6056).
    pub seed: u32,
    /// How long connections may be silent.
    pub timeouts: Timeouts,
    /// Raised whenever routes or neighbours of the uplink change: what the programs keep of ways out is then asked
    /// for again.
    pub route_generation: u32,
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Value of `NAT_ADDRESSES`, two for each tenant's slot, IPv4 and IPv6: what its networks with internet are
/// seen as. All zero: nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatAddress {
    /// The address.
    pub address: Words,
    /// The first port that may be used, host byte order.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Value of `PUBLIC`, by address: one that is translated on the uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublicAddress {
    /// [`public_flags`].
    pub flags: u32,
}

/// Bits of [`PublicAddress::flags`].
pub mod public_flags {
    /// The entry is in force. Always set.
    pub const ACTIVE: u32 = 1;
    /// It is the appliance's own address, too: the kernel answers for it, and has what is no flow's.
    pub const OWN: u32 = 2;
}

/// Key of `RULE_PORTS`, behind the prefix length of a longest-prefix match: the address and protocol always
/// count with all their bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The public address.
    pub address: Words,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// The public port, network byte order.
    pub port: [u8; 2],
}

/// Bits of [`RuleKey`] in front of the port.
pub const RULE_KEY_BITS: u32 = 128 + 16;

/// Value of `RULE_PORTS`, `RULE_SOURCES` and `ONE_TO_ONE`: a slot of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleSlot {
    /// The slot, host byte order.
    pub slot: u32,
}

/// Value of `RULES`: a public IP rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Raised whenever the slot is written: a flow made by what was in it before is stale. Host byte order.
    pub epoch: u32,
    /// [`rule_flags`].
    pub flags: u32,
    /// Slot of the machine's network, host byte order.
    pub network: u32,
    /// The tenant's zone, host byte order.
    pub zone: u16,
    /// The first public port, host byte order; with [`rule_flags::ONE_TO_ONE`] zero.
    pub public_first: u16,
    /// The first port of the machine, host byte order.
    pub internal_first: u16,
    /// Zero.
    pub reserved: u16,
    /// The public address.
    pub public: Words,
    /// The machine's.
    pub internal: Words,
}

/// Bits of [`Rule::flags`].
pub mod rule_flags {
    /// The entry is in force.
    pub const ACTIVE: u32 = 1;
    /// Only sources of `RULE_SOURCES` may come.
    pub const LISTED: u32 = 2;
    /// The whole address, and what the machine sends is from it.
    pub const ONE_TO_ONE: u32 = 4;
}

/// Key of `RULE_SOURCES`, behind the prefix length of a longest-prefix match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// The rule's slot, host byte order: any order will do where all bits count.
    pub slot: u32,
    /// The source.
    pub address: Words,
}

/// Bits of [`SourceKey`] in front of the address.
pub const SOURCE_KEY_BITS: u32 = 32;

/// Key of `ONE_TO_ONE`: a machine that has a public address to itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineKey {
    /// The tenant's zone, host byte order.
    pub zone: u32,
    /// The machine's address.
    pub address: Words,
}

/// Value of `SHARES`, by tenant's slot: what one tenant may have at most, so that none takes the places of others. All
/// zero: as much as there is room for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantQuota {
    /// Connections in `FLOWS`, host byte order.
    pub connections: u32,
    /// Endpoints in `MAPPINGS`, host byte order.
    pub mappings: u32,
}

/// Value of `TALLIES`, by tenant's slot: what it has. The programs add, user space counts anew.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// Connections, host byte order.
    pub connections: u64,
    /// Endpoints, host byte order.
    pub mappings: u64,
}

const _: () = {
    assert!(size_of::<TenantQuota>() == 8);
    assert!(size_of::<TenantUsage>() == 16);
    assert!(size_of::<MappingKey>() == 24);
    assert!(size_of::<Mapping>() == 24);
    assert!(size_of::<Nat>() == 40);
    assert!(size_of::<NatAddress>() == 20);
    assert!(size_of::<PublicAddress>() == 4);
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<RuleSlot>() == 4);
    assert!(size_of::<Rule>() == 52);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<MachineKey>() == 20);
};

#[cfg(feature = "user")]
mod pod {
    //! Plain data, for aya.
    use super::*;

    macro_rules! pod {
        ($($name:ty),+ $(,)?) => {
            $(
                // SAFETY: `repr(C)`, `Copy`, integers and arrays of them only, and the size asserted above is
                // the sum of the fields' sizes, so there is no padding and every bit pattern is valid.
                unsafe impl aya::Pod for $name {}
            )+
        };
    }
    pod!(
        FlowKey,
        Flow,
        MappingKey,
        Mapping,
        Nat,
        NatAddress,
        PublicAddress,
        RuleKey,
        RuleSlot,
        Rule,
        SourceKey,
        MachineKey,
        TenantQuota,
        TenantUsage
    );
}
