//! Bounds of the data path. A table's size also bounds its memory;
//! docs/architecture/data-path.md lists the sizes.

/// Networks of one appliance: every VLAN of a trunk, and test networks in addition.
pub const MAX_NETWORKS: u32 = 4096;
/// `(interface, VLAN)` pairs attached to a network.
pub const MAX_ATTACHMENTS: u32 = 8192;
/// Tenants of one appliance.
pub const MAX_TENANTS: u32 = 1024;
/// Peers of one appliance.
pub const MAX_PEERS: u32 = 1024;
/// `(VNI, peer address)` pairs from which tunnel datagrams are accepted.
pub const MAX_TUNNELS: u32 = 8192;
/// Failed-over addresses.
pub const MAX_ENDPOINTS: u32 = 131_072;
/// Resolved hosts on tenant networks.
pub const MAX_NEIGHBOURS: u32 = 131_072;
/// Prefixes of one network.
pub const MAX_PREFIXES: usize = 8;
/// VLAN tags that are parsed: none, 802.1Q, or outer and inner (QinQ).
pub const MAX_VLAN_TAGS: usize = 2;
pub use packet_rules::ipv6::MAX_EXTENSION_HEADERS;
/// IPv6 extension headers that a datagram to the kernel's stack may have while there are encrypted
/// tunnels.
pub const MAX_STACK_HEADERS: usize = 8;
pub use packet_rules::tcp::MAX_OPTIONS as MAX_TCP_OPTIONS;
/// Bytes of the ring of [`crate::events::NeighbourEvent`]: a power of two of pages.
pub const NEIGHBOUR_RING_BYTES: u32 = 256 * 1024;
/// Bytes of the ring of [`crate::events::SlowPacket`]: a power of two of pages.
pub const SLOW_RING_BYTES: u32 = 4 * 1024 * 1024;
/// Largest frame of the slow path, bytes from the Ethernet header on. Native XDP on supported NICs
/// is limited to about 3.5 kB, so no larger linear frame can arrive.
pub const SLOW_PACKET_BYTES: usize = 3584;
/// Smallest inner MTU a network may be given, bytes: IPv6 needs 1280 (RFC 8200 section 5), and an
/// ICMP error made in XDP quotes 512 bytes of what it reports.
pub const MIN_INNER_MTU: u16 = 1280;
/// Bytes of the offending packet that an ICMP error quotes. Within the 576 bytes of RFC 1812
/// section 4.3.2.3 and the 1280 of RFC 4443 section 2.4, and a constant the verifier can follow.
pub const ICMP_QUOTE_BYTES: usize = 512;
/// Prefixes that full failover routes to, of all tenants: [`MAX_PREFIXES`] for half of the
/// networks.
pub const MAX_ROUTES: u32 = 16_384;
/// Ordered pairs of networks between which full failover routes.
pub const MAX_POLICIES: u32 = 65_536;
/// Queues of one interface that may have a worker's socket.
pub const MAX_QUEUES: u32 = 64;
/// Slots for workers' sockets: slot 0 stays empty, then [`MAX_QUEUES`] for each of 15 interfaces.
pub const MAX_XSKS: u32 = 1024;
/// Session indices of encrypted tunnels. A peer has at most five sessions of 64 lanes, usually few.
pub const MAX_SESSIONS: u32 = 65_536;
/// Handshake sources with a budget of their own; the least recently used is evicted.
pub const MAX_HANDSHAKE_SOURCES: u32 = 16_384;
/// Handshake messages that one source may send per second, and in a burst.
pub const HANDSHAKES_PER_SOURCE: u64 = 20;
/// Handshake messages per second from addresses of peers on one CPU; a tenth of it in a burst. Far
/// more than peers send: an attacker may forge their addresses, and their own messages must still
/// pass. An attacker cannot answer a cookie (`tunnel::load`), so a forged message costs two hashes.
pub const HANDSHAKES_FROM_PEERS: u64 = 20_000;
/// Handshake messages per second from all unknown sources on one CPU, and in a burst.
pub const HANDSHAKES_FROM_UNKNOWN: u64 = 1000;
/// Addresses that are translated on the uplink, of all tenants.
pub const MAX_PUBLIC: u32 = 16_384;
/// Public IP rules, of all tenants.
pub const MAX_RULES: u32 = 16_384;
/// Aligned port blocks of the rules' ranges: at most 30 for one range, usually one.
pub const MAX_RULE_PORTS: u32 = 65_536;
/// Source prefixes of the rules.
pub const MAX_RULE_SOURCES: u32 = 65_536;
/// Default number of connections. Each has two entries in `FLOWS`.
pub const DEFAULT_CONNECTIONS: u32 = 262_144;
/// Default number of mappings: inside addresses and ports with a public port. Each has two entries
/// in `MAPPINGS`.
pub const DEFAULT_MAPPINGS: u32 = 262_144;
/// NAT addresses of a tenant, of each family.
pub const MAX_NAT_ADDRESSES: u32 = 8;
/// Hosts of tenants with several NAT addresses whose address is remembered; the least recently used
/// is evicted.
pub const MAX_PAIRS: u32 = 65_536;
/// Entries for connections that are being opened, and for ICMP queries; the oldest are evicted. As
/// many for those beyond their tenant's budget.
pub const MAX_OPENING: u32 = 65_536;
/// Fragmented datagrams in translation; the oldest are evicted.
pub const MAX_FRAGMENTED_DATAGRAMS: u32 = 8192;
/// Bytes of the ring of [`crate::events::MappingEvent`]: a power of two of pages. 16 384 events.
pub const NAT_RING_BYTES: u32 = 1024 * 1024;
/// Bytes of the ring of [`crate::events::TraceEvent`]: a power of two of pages. If it is full,
/// steps are missing from the trace.
pub const TRACE_RING_BYTES: u32 = 1024 * 1024;
