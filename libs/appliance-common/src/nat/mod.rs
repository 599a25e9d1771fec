//! Network address translation of full failover: the records that programs and user space share.
//!
//! Pure and without a clock, so that the programs, user space and tests decide alike.
//!
//! ```text
//!   packet ─▶ FlowKey ─ FLOWS, then OPENING ─▶ Flow: new addresses and ports, next network
//!                  │ no entry, and it may open a connection
//!                  ├─ from a tenant: MAPPINGS, endpoint-independent (RFC 4787 section 4.1)
//!                  └─ from outside:  RULE_PORTS ─▶ RULES
//! ```
//!
//! A connection is two flows, one per direction, each the [`inverse`](Flow::inverse) of the other.
//! It begins in `OPENING`, which evicts the oldest entries, and moves to `FLOWS`, which never
//! evicts, once both ends have sent. So a flood of first packets displaces no connection.

mod flow;
mod tcp;

pub use flow::{Flow, FlowKey, Timeouts, egress_stamp, ticks};
pub use tcp::{ACK, FIN, RST, SYN, TcpState};

use crate::{
    limits::{MAX_NAT_ADDRESSES, MAX_TENANTS},
    wire::{IPPROTO_ESP, IPPROTO_GRE, IPPROTO_SCTP, IPPROTO_UDP},
};

/// An address as four words in memory order, IPv4 in mapped form.
pub type Words = [u32; 4];

/// The direction of a packet within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// That of the first packet.
    Original,
    /// The reverse.
    Reply,
}

/// The zone of the outside. A tenant's zone is its slot plus one.
pub const OUTSIDE: u16 = 0;

/// In place of a network's slot: the uplink.
pub const UPLINK: u32 = u32::MAX;

/// How long fragments of a datagram are translated as its first one, ticks: 30 s, as in Linux
/// (net.ipv4.ipfrag_time).
pub const FRAGMENT_TICKS: u32 = 28;

/// Ports tried for a new mapping before it fails.
pub const PORT_PROBES: u32 = 32;

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// This is the reply direction.
    pub const REPLY: u8 = 1;
    /// Opened by a tenant's host to the outside: valid while its network has internet access.
    pub const INTERNET: u8 = 2;
    /// The host that opened it has a mapping.
    pub const MAPPED: u8 = 4;
    /// Opened to another machine's mapping: nothing is delivered before that machine has sent,
    /// too.
    pub const MUTUAL: u8 = 8;
    /// UDP to a well-known port of queries: a shorter timeout ([`Timeouts`](super::Timeouts)).
    pub const SHORT: u8 = 16;
}

/// UDP ports below 1024 whose conversations may pause for longer than a query: QUIC, IKE, and DNS
/// over QUIC or DTLS.
const CONVERSATIONS: [u16; 3] = [443, 500, 853];

/// [`flow_flags::SHORT`] for a datagram to `port`, network byte order, else 0. RFC 4787 REQ-5a
/// permits shorter timers for the applications of ports 0 to 1023.
#[inline(always)]
#[must_use]
pub const fn short_lived(protocol: u8, port: u16) -> u8 {
    let port = u16::from_be(port);
    let [quic, ike, dns] = CONVERSATIONS;
    if protocol == IPPROTO_UDP && port < 1024 && port != quic && port != ike && port != dns {
        return flow_flags::SHORT;
    }
    0
}

/// Whether only 1:1 rules translate a protocol: it has no ports that a mapping could change, or its
/// checksum (SCTP) covers them but no address.
#[inline(always)]
#[must_use]
pub const fn is_one_to_one_only(protocol: u8) -> bool {
    matches!(protocol, IPPROTO_GRE | IPPROTO_ESP | IPPROTO_SCTP)
}

/// Key of `MAPPINGS`: an inside or outside address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingKey {
    pub address: Words,
    /// Its port, or the identifier of ICMP queries. Network byte order.
    pub port: u16,
    /// [`OUTSIDE`], or the tenant's zone; host byte order.
    pub zone: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Padding, always zero.
    pub reserved: [u8; 3],
}

/// Value of `MAPPINGS`: the address and port on the other side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    pub address: Words,
    /// Its port, network byte order.
    pub port: u16,
    /// Its zone, host byte order.
    pub zone: u16,
    /// The tenant's epoch when it was created, host byte order.
    pub epoch: u32,
    /// Of the half inside: when it last began a connection; of the half outside: when it was
    /// created. [`ticks`].
    pub last_used: u32,
}

/// Value of `NAT`, the one entry of an array. Nothing is translated while `uplink` is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// The interface to the outside, host byte order; zero: none.
    pub uplink: u32,
    /// Seed of the search for free ports: secret, so that ports cannot be guessed (RFC 6056).
    pub seed: u32,
    /// How long connections may be silent.
    pub timeouts: Timeouts,
    /// Incremented whenever routes or neighbours of the uplink change: the programs then repeat
    /// their FIB lookups.
    pub route_generation: u32,
    /// A tenant beyond its quota gets a connection while all tenants have fewer than this.
    pub over_quota_connections: u32,
    /// The same for mappings.
    pub over_quota_mappings: u32,
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// The interface's MTU, bytes, host byte order; zero: unknown.
    pub mtu: u16,
    /// 1: new mappings are reported in the ring `NAT_EVENTS`. Host byte order.
    pub log: u32,
}

impl Nat {
    /// The largest IP packet, bytes, between the uplink and a network whose port takes `lan_mtu`.
    #[inline(always)]
    #[must_use]
    pub const fn mtu_with(&self, lan_mtu: u16) -> u16 {
        if self.mtu != 0 && self.mtu < lan_mtu {
            self.mtu
        } else {
            lan_mtu
        }
    }
}

/// The first slot of `NAT_ADDRESSES` of a tenant and family. The others follow, without gaps.
#[inline(always)]
#[must_use]
pub const fn nat_address_slot(tenant: u32, ipv6: bool) -> u32 {
    (tenant.wrapping_mul(2) | ipv6 as u32).wrapping_mul(MAX_NAT_ADDRESSES)
}

/// Value of `PAIRS`, by [`MachineKey`]: the NAT address of a host (paired pooling, RFC 4787 REQ-2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    pub address: Words,
    /// Its slot of `NAT_ADDRESSES`, host byte order.
    pub slot: u32,
    /// The tenant's epoch, host byte order.
    pub epoch: u32,
}

/// Value of `NAT_ADDRESSES`, at [`nat_address_slot`]: a public address of a tenant's mappings. All
/// zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatAddress {
    pub address: Words,
    /// The first port for mappings, host byte order.
    pub first: u16,
    /// The last port for mappings, host byte order.
    pub last: u16,
}

/// Value of `PUBLIC`: an address that is translated on the uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublicAddress {
    /// [`public_flags`].
    pub flags: u32,
    /// The zone of its tenant; zero if several tenants share it. Host byte order.
    pub zone: u32,
}

impl PublicAddress {
    /// Whether a rule or a mapping may lead packets of the protocol from outside to a machine.
    #[inline(always)]
    #[must_use]
    pub const fn receives(&self, protocol: u8) -> bool {
        self.flags & public_flags::of_protocol(protocol) != 0
    }
}

/// Bits of [`PublicAddress::flags`].
pub mod public_flags {
    use crate::wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};

    /// The entry is in force. Always set.
    pub const ACTIVE: u32 = 1;
    /// It is also the appliance's own address: the kernel answers for it, and gets packets of no
    /// flow.
    pub const OWN: u32 = 2;
    /// Echo requests that no rule leads to a machine are answered.
    pub const PING: u32 = 4;
    /// A rule or a mapping may lead TCP from outside to a machine.
    pub const TCP: u32 = 8;
    /// The same for UDP.
    pub const UDP: u32 = 16;
    /// The same for ICMP or ICMPv6.
    pub const ICMP: u32 = 32;
    /// The same for the protocols that only 1:1 rules translate.
    pub const OTHERS: u32 = 64;

    /// The flag of an IP protocol; zero for one that is not translated.
    #[inline(always)]
    #[must_use]
    pub const fn of_protocol(protocol: u8) -> u32 {
        match protocol {
            IPPROTO_TCP => TCP,
            IPPROTO_UDP => UDP,
            protocol if super::is_one_to_one_only(protocol) => OTHERS,
            IPPROTO_ICMP | IPPROTO_ICMPV6 => ICMP,
            _ => 0,
        }
    }
}

/// Key of `RULE_PORTS`, behind the prefix length of a longest-prefix match. All bits of address and
/// protocol are always compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The public address.
    pub address: Words,
    /// IP protocol.
    pub protocol: u8,
    /// Padding, always zero.
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
    /// Incremented whenever the slot is written, which makes flows of the former rule stale. Host
    /// byte order.
    pub epoch: u32,
    /// [`rule_flags`].
    pub flags: u32,
    /// Slot of the machine's network, host byte order.
    pub network: u32,
    /// The tenant's zone, host byte order.
    pub zone: u16,
    /// The first public port, host byte order; with [`rule_flags::ONE_TO_ONE`] zero.
    pub public_first: u16,
    /// The machine's first port, host byte order.
    pub internal_first: u16,
    /// Padding, always zero.
    pub reserved: u16,
    /// The public address.
    pub public: Words,
    /// The machine's address.
    pub internal: Words,
}

/// Bits of [`Rule::flags`].
pub mod rule_flags {
    /// The entry is in force.
    pub const ACTIVE: u32 = 1;
    /// Only sources in `RULE_SOURCES` are allowed.
    pub const LISTED: u32 = 2;
    /// The rule maps the whole address, also for packets that the machine sends.
    pub const ONE_TO_ONE: u32 = 4;
}

/// Key of `RULE_SOURCES`, behind the prefix length of a longest-prefix match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// The rule's slot, host byte order: all its bits are compared, so any order is fine.
    pub slot: u32,
    /// The source address.
    pub address: Words,
}

/// Bits of [`SourceKey`] in front of the address.
pub const SOURCE_KEY_BITS: u32 = 32;

/// Key of `ONE_TO_ONE`: a machine with a public address of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineKey {
    /// The tenant's zone, host byte order.
    pub zone: u32,
    pub address: Words,
}

/// Value of `QUOTAS`, by tenant slot: the part of the tables that is a tenant's own.
/// It may have more while others leave theirs unused ([`Nat::over_quota_connections`]). Zero:
/// unlimited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantQuota {
    /// Connections in `FLOWS`, host byte order.
    pub connections: u32,
    /// Endpoints in `MAPPINGS`, host byte order.
    pub mappings: u32,
}

/// The entry of `USAGE` that counts all tenants.
pub const ALL_TENANTS: u32 = MAX_TENANTS;

/// Value of `USAGE`, by tenant slot: its usage. The programs add, user space recounts.
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
    assert!(size_of::<Mapping>() == 28);
    assert!(size_of::<Nat>() == 60);
    assert!(size_of::<NatAddress>() == 20);
    assert!(size_of::<Pair>() == 24);
    assert!(size_of::<PublicAddress>() == 8);
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
                // SAFETY: `repr(C)`, `Copy`, integers and arrays of them only, and the size
                // asserted above is the sum of the fields' sizes, so there is no padding and every
                // bit pattern is valid.
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
        Pair,
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
