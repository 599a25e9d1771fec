//! Bounds of the data path. A table's size is also its memory bound; ARCHITECTURE.md lists both.

/// Networks one appliance carries: every VLAN of a trunk, and room for tests beside them.
pub const MAX_NETWORKS: u32 = 4096;
/// `(interface, VLAN)` pairs attached to a network.
pub const MAX_ATTACHMENTS: u32 = 8192;
/// Tenants whose mode is kept apart in one appliance.
pub const MAX_TENANTS: u32 = 1024;
/// Tunnel ends an appliance may have.
pub const MAX_PEERS: u32 = 1024;
/// `(VNI, peer address)` pairs from which tunnel datagrams are accepted.
pub const MAX_TUNNELS: u32 = 8192;
/// Failed-over addresses.
pub const MAX_ENDPOINTS: u32 = 131_072;
/// Resolved hosts on tenant networks.
pub const MAX_NEIGHBOURS: u32 = 131_072;
/// Prefixes of one network.
pub const MAX_PREFIXES: usize = 8;
/// VLAN tags parsed in front of the payload: none, 802.1Q, or outer and inner (QinQ).
pub const MAX_VLAN_TAGS: usize = 2;
pub use packet_rules::ipv6::MAX_EXTENSION_HEADERS;
/// IPv6 extension headers that a datagram to the kernel's stack may have while there are encrypted tunnels.
pub const MAX_STACK_HEADERS: usize = 8;
pub use packet_rules::tcp::MAX_OPTIONS as MAX_TCP_OPTIONS;
/// Bytes of the ring buffer that carries [`crate::events::NeighbourEvent`]; a power of two of pages.
pub const NEIGHBOUR_RING_BYTES: u32 = 256 * 1024;
/// Bytes of the ring buffer that carries [`crate::events::SlowPacket`]; a power of two of pages.
pub const SLOW_RING_BYTES: u32 = 4 * 1024 * 1024;
/// Largest frame the slow path takes, bytes from the Ethernet header on. Native XDP on the NICs we
/// run on ends near 3.5 kB, so no larger linear frame can arrive.
pub const SLOW_PACKET_BYTES: usize = 3584;
/// Smallest inner MTU a network may be given, bytes: IPv6 needs 1280 (RFC 8200 section 5), and an
/// ICMP error made in XDP quotes 512 bytes of what it reports.
pub const MIN_INNER_MTU: u16 = 1280;
/// Bytes of the offending packet that an ICMP error quotes. Within the 576 bytes of RFC 1812
/// section 4.3.2.3 and the 1280 of RFC 4443 section 2.4, and a constant the verifier can follow.
pub const ICMP_QUOTE_BYTES: usize = 512;
/// Prefixes that full failover routes to, of all tenants: [`MAX_PREFIXES`] of every second network.
pub const MAX_ROUTES: u32 = 16_384;
/// Ordered pairs of networks between which full failover routes.
pub const MAX_POLICIES: u32 = 65_536;
/// ICMP errors that one CPU sends in a second, path MTU errors aside, and at once.
pub const ICMP_ERROR_RATE: (u64, u64) = (1000, 50);
/// Queues of one interface that can have a socket of a worker.
pub const MAX_QUEUES: u32 = 64;
/// Sockets of the workers: slot 0 stays empty, then [`MAX_QUEUES`] for each of 15 interfaces, and room.
pub const MAX_XSKS: u32 = 1024;
/// Session indices of encrypted tunnels: each peer has at most five sessions of 64 lanes, few of either.
pub const MAX_SESSIONS: u32 = 65_536;
/// Sources of handshakes whose rate is kept apart; the one not heard for longest gives way.
pub const MAX_HANDSHAKE_SOURCES: u32 = 16_384;
/// Handshake messages one source may send in a second, and at once.
pub const HANDSHAKES_PER_SOURCE: u64 = 20;
/// Handshake messages that may come in a second from the addresses where peers are, on one CPU; a tenth of it
/// at once. Far more than peers send: a stranger may send in their name, and theirs must have a chance beside
/// his. What he can't do is answer a cookie (`tunnel`, `load`), and so he costs two hashes a message.
pub const HANDSHAKES_FROM_PEERS: u64 = 20_000;
/// Handshake messages that all sources nobody knows may send in a second on one CPU, and at once.
pub const HANDSHAKES_FROM_UNKNOWN: u64 = 1000;
/// Addresses that are translated on the uplink, of all tenants.
pub const MAX_PUBLIC: u32 = 16_384;
/// Public IP rules, of all tenants.
pub const MAX_RULES: u32 = 16_384;
/// Aligned blocks of ports that the rules' ranges are made of: 30 at most for one range, mostly one.
pub const MAX_RULE_PORTS: u32 = 65_536;
/// Sources that the rules list.
pub const MAX_RULE_SOURCES: u32 = 65_536;
/// Connections, unless the configuration says otherwise. Each has two entries in `FLOWS`.
pub const DEFAULT_CONNECTIONS: u32 = 65_536;
/// Endpoints of tenants that are seen outside by a port of their own. Each has two entries in `MAPPINGS`.
pub const MAX_MAPPINGS: u32 = 65_536;
/// Entries for connections that are being opened, and ICMP queries: the oldest give way to new ones.
pub const MAX_OPENING: u32 = 65_536;
/// Datagrams of which fragments are being translated; the oldest give way to new ones.
pub const MAX_FRAGMENTED_DATAGRAMS: u32 = 8192;
/// Bytes of the ring buffer that carries [`crate::events::TraceEvent`]; a power of two of pages. Packets that come
/// faster than the reader reads are followed with gaps.
pub const TRACE_RING_BYTES: u32 = 1024 * 1024;
