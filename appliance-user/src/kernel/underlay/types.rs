//! What the watcher reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that are nobody's, by the way to which the routers to the outside are found: the anycast address of
/// 6to4, which is no more (RFC 7526), and one of a block that is not assigned.
pub const DEFAULT_ROUTE_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 88, 99, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)),
];

/// Everything the watcher knows, at one moment. Equal snapshots are not sent twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The way to each peer asked for.
    pub paths: BTreeMap<IpAddr, UnderlayPath>,
    /// Of each peer asked for the next hop on the way to it, or where there is no way just now the last one that was
    /// known; the peer's own address where it is on a link of ours.
    pub next_hops: BTreeMap<IpAddr, IpAddr>,
    /// Each interface asked for, by name; missing while there is no such interface.
    pub links: BTreeMap<String, LinkState>,
    /// Raised by one with each snapshot sent; 0 before the first.
    pub generation: u64,
}

/// The way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnderlayPath {
    /// Packets can be sent.
    Resolved {
        /// Interface to send on.
        ifindex: u32,
        /// The source address the kernel would use.
        local: IpAddr,
        /// Our MAC address on the interface.
        source_mac: [u8; 6],
        /// The next hop's MAC address: the peer's own or its gateway's.
        next_hop_mac: [u8; 6],
        /// Largest IP packet the way takes, bytes: the route's MTU where it has one, else the
        /// interface's.
        mtu: u32,
    },
    /// They cannot, for now.
    Unresolved {
        /// The cause.
        reason: PathError,
    },
}

/// Why there is no path to a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not looked at yet.
    #[error("not looked up yet")]
    Pending,
    /// The kernel has no route to it.
    #[error("no route; add one, or a default gateway")]
    NoRoute,
    /// A route refuses it (unreachable, prohibit, blackhole).
    #[error("a route of type unreachable, prohibit or blackhole covers it")]
    RouteRefuses,
    /// The peer's address is one of our own.
    #[error("the address is this machine's own")]
    OwnAddress,
    /// The route has no usable source address.
    #[error("no source address on the interface; give it one")]
    NoSourceAddress,
    /// The route's interface is not there or is down.
    #[error("interface {interface} is down")]
    LinkDown {
        /// The interface's name, or its index where it has gone.
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
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address; zero when it is not Ethernet.
    pub mac: [u8; 6],
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Whether it is set up and has carrier.
    pub up: bool,
    /// Its addresses with prefix length, sorted; deprecated, tentative and failed ones are left out.
    pub addresses: Vec<(IpAddr, u8)>,
}
