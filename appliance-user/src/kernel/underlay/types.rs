//! The results of the underlay watcher.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Unused internet addresses. The watcher looks up the routes to them to find the default routers:
/// the former 6to4 anycast address (deprecated by RFC 7526), and an address of an unassigned block.
pub const DEFAULT_ROUTE_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 88, 99, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)),
];

/// The state of the underlay at one moment. Equal snapshots are not sent twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The path to each watched peer.
    pub paths: BTreeMap<IpAddr, UnderlayPath>,
    /// The next hop on the path to each watched peer, or the last known one while there is no path.
    /// It is the peer's own address if the peer is on-link.
    pub next_hops: BTreeMap<IpAddr, IpAddr>,
    /// Each watched interface, by name; missing while there is no such interface.
    pub links: BTreeMap<String, LinkState>,
    /// Number of the snapshot; 0 before the first refresh.
    pub generation: u64,
}

/// The path to a peer through the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnderlayPath {
    /// Packets can be sent.
    Resolved {
        /// Interface to send on.
        ifindex: u32,
        /// The source address that the kernel would use.
        local: IpAddr,
        /// Our MAC address on the interface.
        source_mac: [u8; 6],
        /// The next hop's MAC address: the peer's own or its gateway's.
        next_hop_mac: [u8; 6],
        /// Path MTU in bytes: the route's MTU if it has one, otherwise the interface's.
        mtu: u32,
    },
    /// Packets cannot be sent now.
    Unresolved {
        /// The cause.
        reason: PathError,
    },
}

/// Why there is no path to a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not looked up yet.
    #[error("not looked up yet")]
    Pending,
    /// The kernel has no route to the peer.
    #[error("no route; add a route or a default gateway")]
    NoRoute,
    /// A route of type unreachable, prohibit or blackhole covers the peer.
    #[error("a route of type unreachable, prohibit or blackhole covers the address")]
    RouteRefuses,
    /// The peer's address is an address of this machine.
    #[error("the address is this machine's own")]
    OwnAddress,
    /// The route has no usable source address.
    #[error("the interface has no source address; add an address to it")]
    NoSourceAddress,
    /// The route's interface is missing or down.
    #[error("interface {interface} is down")]
    LinkDown {
        /// The interface's name, or its index if it is missing.
        interface: String,
    },
    /// The route's interface has no Ethernet addresses.
    #[error("interface {interface} is not Ethernet")]
    NotEthernet {
        /// The interface's name.
        interface: String,
    },
    /// The next hop does not answer ARP or neighbour discovery (yet).
    #[error("next hop {next_hop} does not answer on {interface}")]
    NextHopUnresolved {
        /// The interface's name.
        interface: String,
        /// The next hop: the peer itself or its gateway.
        next_hop: IpAddr,
    },
    /// The kernel refused a request.
    #[error("netlink: {0}")]
    Netlink(String),
}

/// A named interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address; zero when it is not Ethernet.
    pub mac: [u8; 6],
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Whether it is set up and has carrier.
    pub up: bool,
    /// Its addresses with prefix length, sorted; deprecated, tentative and failed ones are left
    /// out.
    pub addresses: Vec<(IpAddr, u8)>,
}
