//! All maps of the appliance: key, value, writer, size.
//!
//! For: the one definition of each map. Never: a lookup, a decision; imports nothing of this crate.
//! Table of the maps: docs/architecture/data-path.md; a test measures their memory.
//!
//! ```text
//!   user space ──▶ configuration: CONFIG … ONE_TO_ONE      programs ──▶ state: FLOWS … SCRATCH
//!              ◀── rings: NEIGHBOUR_EVENTS, SLOW_PACKETS, TRACE_EVENTS ◀──┘
//! ```

mod scratch;

use appliance_common::{
    addr::Address,
    counters::Counter,
    events::{TraceFilter, Traced},
    limits::{
        DEFAULT_CONNECTIONS, DEFAULT_MAPPINGS, MAX_ATTACHMENTS, MAX_ENDPOINTS,
        MAX_FRAGMENTED_DATAGRAMS, MAX_HANDSHAKE_SOURCES, MAX_NEIGHBOURS, MAX_NETWORKS, MAX_OPENING,
        MAX_PAIRS, MAX_PEERS, MAX_POLICIES, MAX_PUBLIC, MAX_ROUTES, MAX_RULE_PORTS,
        MAX_RULE_SOURCES, MAX_RULES, MAX_SESSIONS, MAX_TENANTS, MAX_TUNNELS, MAX_XSKS,
        NAT_RING_BYTES, NEIGHBOUR_RING_BYTES, SLOW_RING_BYTES, TRACE_RING_BYTES,
    },
    maps::{
        Attachment, AttachmentKey, Bucket, Budget, Config, Endpoint, HostKey, Jump, Neighbour,
        Network, NetworkStats, Peer, PeerAddress, Policy, PolicyKey, Route, RouteKey, Session,
        SessionKey, Tenant, Tunnel, TunnelKey,
    },
    nat::{
        ALL_TENANTS, Flow, FlowKey, MachineKey, Mapping, MappingKey, Nat, NatAddress, Pair,
        PublicAddress, Rule, RuleKey, RuleSlot, SourceKey, TenantQuota, TenantUsage,
        nat_address_slot,
    },
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, XskMap},
};

pub use scratch::{Kind, Packet, Scratch, Side, TailCallState};

/// Entries of [`LAST_LOGGED`]: reasons for which the programs log.
pub const LOG_REASONS: u32 = 3;

/// The configuration, one entry. Written by user space.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// `(interface, VLAN tags)` to network. Written by user space.
#[map]
pub static ATTACHMENTS: HashMap<AttachmentKey, Attachment> =
    HashMap::with_max_entries(MAX_ATTACHMENTS, 0);

/// Networks by slot. Written by user space.
#[map]
pub static NETWORKS: Array<Network> = Array::with_max_entries(MAX_NETWORKS, 0);

/// Modes by tenant slot. Written by user space; a switch is one 8-byte store.
#[map]
pub static TENANTS: Array<Tenant> = Array::with_max_entries(MAX_TENANTS, 0);

/// Outer headers by peer slot. Written by user space.
#[map]
pub static PEERS: Array<Peer> = Array::with_max_entries(MAX_PEERS, 0);

/// `(VNI, peer address)` to network. Written by user space.
#[map]
pub static TUNNELS: HashMap<TunnelKey, Tunnel> = HashMap::with_max_entries(MAX_TUNNELS, 0);

/// Failed-over addresses. Written by user space.
#[map]
pub static ENDPOINTS: HashMap<HostKey, Endpoint> = HashMap::with_max_entries(MAX_ENDPOINTS, 0);

/// Resolved hosts. Written by user space; the programs set two flag bits.
#[map]
pub static NEIGHBOURS: HashMap<HostKey, Neighbour> = HashMap::with_max_entries(MAX_NEIGHBOURS, 0);

/// Per-CPU counters by [`Counter`]. Written by the programs.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::SLOTS, 0);

/// Time of the last log line by reason, in nanoseconds of the boot clock. Written by the programs.
#[map]
pub static LAST_LOGGED: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOG_REASONS, 0);

/// Per-CPU traffic by network slot. Written by the programs.
#[map]
pub static NETWORK_STATS: PerCpuArray<NetworkStats> =
    PerCpuArray::with_max_entries(MAX_NETWORKS, 0);

/// Reports of hosts, for the neighbour engine. Written by the programs.
#[map]
pub static NEIGHBOUR_EVENTS: RingBuf = RingBuf::with_byte_size(NEIGHBOUR_RING_BYTES, 0);

/// Packets for the slow path. Written by the programs.
#[map]
pub static SLOW_PACKETS: RingBuf = RingBuf::with_byte_size(SLOW_RING_BYTES, 0);

/// Sockets of the workers. Written by user space; the kernel removes closed ones.
#[map]
pub static XSKS: XskMap = XskMap::with_max_entries(MAX_XSKS, 0);

/// Session indices that workers have keys for. Written by user space.
#[map]
pub static SESSIONS: HashMap<SessionKey, Session> = HashMap::with_max_entries(MAX_SESSIONS, 0);

/// Handshake budget by source address. Written by the programs.
#[map]
pub static HANDSHAKE_SOURCES: LruHashMap<Address, Bucket> =
    LruHashMap::with_max_entries(MAX_HANDSHAKE_SOURCES, 0);

/// Handshake budgets per CPU. 0: all sources without a peer; 1: addresses of peers. Written by the
/// programs.
#[map]
pub static HANDSHAKE_BUDGET: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(2, 0);

/// Addresses of the peers of encrypted tunnels. Written by user space.
#[map]
pub static PEER_ADDRESSES: HashMap<Address, PeerAddress> = HashMap::with_max_entries(MAX_PEERS, 0);

/// Targets of tail calls, by [`Jump`]. Written by user space.
#[map]
pub static JUMPS: ProgramArray = ProgramArray::with_max_entries(Jump::COUNT, 0);

/// `(tenant, prefix)` to network, for full failover. Written by user space.
#[map]
pub static ROUTES: LpmTrie<RouteKey, Route> =
    LpmTrie::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);

/// Pairs of networks that full failover routes between. Written by user space.
#[map]
pub static POLICIES: HashMap<PolicyKey, Policy> = HashMap::with_max_entries(MAX_POLICIES, 0);

/// Budgets of tenants, by [`Budget::index`]. Written by the programs.
#[map]
pub static BUDGETS: Array<Bucket> = Array::with_max_entries((MAX_TENANTS + 1) * Budget::SLOTS, 0);

/// Budgets of reports of hosts with an address of the appliance, by network slot plus one; zero is
/// the uplink. Written by the programs.
#[map]
pub static CLAIM_BUDGETS: Array<Bucket> = Array::with_max_entries(MAX_NETWORKS + 1, 0);

/// Settings of translation, one entry. Written by user space.
#[map]
pub static NAT: Array<Nat> = Array::with_max_entries(1, 0);

/// Public addresses of tenants' mappings, by [`nat_address_slot`]. Written by user space.
#[map]
pub static NAT_ADDRESSES: Array<NatAddress> =
    Array::with_max_entries(nat_address_slot(MAX_TENANTS, false), 0);

/// Whether an address of `NAT_ADDRESSES` has no free ports, by the same slots. Set by the programs;
/// user space sets and clears it.
#[map]
pub static NAT_FULL: Array<u32> = Array::with_max_entries(nat_address_slot(MAX_TENANTS, false), 0);

/// Hosts of tenants with several NAT addresses, to their address. Written by the programs.
#[map]
pub static PAIRS: LruHashMap<MachineKey, Pair> = LruHashMap::with_max_entries(MAX_PAIRS, 0);

/// Addresses that are translated on the uplink. Written by user space.
#[map]
pub static PUBLIC: HashMap<Address, PublicAddress> = HashMap::with_max_entries(MAX_PUBLIC, 0);

/// `(public address, protocol, ports)` to rule. Written by user space.
#[map]
pub static RULE_PORTS: LpmTrie<RuleKey, RuleSlot> =
    LpmTrie::with_max_entries(MAX_RULE_PORTS, BPF_F_NO_PREALLOC);

/// Rules by slot. Written by user space.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES, 0);

/// `(rule, source prefix)`: allowed sources. Written by user space.
#[map]
pub static RULE_SOURCES: LpmTrie<SourceKey, RuleSlot> =
    LpmTrie::with_max_entries(MAX_RULE_SOURCES, BPF_F_NO_PREALLOC);

/// Machines with a public address of their own, to rule. Written by user space.
#[map]
pub static ONE_TO_ONE: HashMap<MachineKey, RuleSlot> = HashMap::with_max_entries(MAX_RULES, 0);

/// Connections, one entry per direction. Written by the programs; user space deletes expired ones.
/// The configuration sets the size.
#[map]
pub static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(2 * DEFAULT_CONNECTIONS, 0);

/// Connections that are being opened, one entry per direction. Written by the programs.
#[map]
pub static OPENING: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_OPENING, 0);

/// The same beyond a tenant's budget: the flood of one tenant evicts no entry of `OPENING`. Written
/// by the programs.
#[map]
pub static OPENING_EXCESS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_OPENING, 0);

/// Endpoints of tenants and their public endpoints, both directions. Written by the programs; user
/// space deletes those without a connection. The configuration sets the size.
#[map]
pub static MAPPINGS: HashMap<MappingKey, Mapping> =
    HashMap::with_max_entries(2 * DEFAULT_MAPPINGS, 0);

/// Fragmented datagrams whose first fragment was translated. Written by the programs.
#[map]
pub static FRAGMENTS: LruHashMap<FlowKey, Flow> =
    LruHashMap::with_max_entries(MAX_FRAGMENTED_DATAGRAMS, 0);

/// State that does not fit the stack, one entry per CPU. Written by the programs.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// New mappings, for the NAT log. Written by the programs.
#[map]
pub static NAT_EVENTS: RingBuf = RingBuf::with_byte_size(NAT_RING_BYTES, 0);

/// State that a program passes to the target of its tail call, one entry per CPU. Written by the
/// programs.
#[map]
pub static PASSED: PerCpuArray<TailCallState> = PerCpuArray::with_max_entries(1, 0);

/// Filter of traced packets, one entry. Written by user space.
#[map]
pub static TRACE: Array<TraceFilter> = Array::with_max_entries(1, 0);

/// Trace state of the current packet, one entry per CPU. Written by the programs.
#[map]
pub static TRACED: PerCpuArray<Traced> = PerCpuArray::with_max_entries(1, 0);

/// Steps of traced packets. Written by the programs.
#[map]
pub static TRACE_EVENTS: RingBuf = RingBuf::with_byte_size(TRACE_RING_BYTES, 0);

/// Quotas by tenant slot. Written by user space.
#[map]
pub static QUOTAS: Array<TenantQuota> = Array::with_max_entries(MAX_TENANTS, 0);

/// Usage by tenant slot, and of all tenants in [`ALL_TENANTS`]. Written by the programs, which add;
/// user space recounts.
#[map]
pub static USAGE: Array<TenantUsage> = Array::with_max_entries(ALL_TENANTS + 1, 0);
