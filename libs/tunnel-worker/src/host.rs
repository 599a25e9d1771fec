//! The contract with the appliance around the tunnels: its inputs to the manager, and the
//! map writes that the manager asks for.
//!
//! ```text
//!   appliance ─ TableWrite, NextHop ─▶ manager ─ MapWrite ─▶ appliance ─▶ maps of the XDP programs
//! ```

use std::{collections::BTreeMap, net::IpAddr, os::fd::BorrowedFd};

use appliance_common::{
    addr::Address,
    maps::{HostKey, Neighbour, Network, Tenant},
};

/// A write to the maps by which the XDP programs steer tunnel packets to workers.
#[derive(Clone, Copy, Debug)]
pub enum MapWrite<'s> {
    /// `SESSIONS`: steer data messages with this session index to the workers, or no longer.
    Session {
        /// The receiver index of data messages on the wire.
        index: u32,
        /// Whether the workers know the session.
        known: bool,
    },
    /// `PEER_ADDRESSES`: handshakes from this address do not share the budget of unknown
    /// addresses, or no longer.
    PeerAddress {
        /// The address of a peer or gateway.
        address: Address,
        /// Whether a peer or gateway is there.
        known: bool,
    },
    /// `XSKS`: an AF_XDP socket. The kernel removes the entry when the socket is closed.
    Socket {
        /// The index in the map.
        slot: u32,
        socket: BorrowedFd<'s>,
    },
}

/// Writes the maps of the XDP programs, at once and in the order of the calls: the programs must
/// not steer the packets of a session before its worker has the keys.
pub trait ProgramMaps {
    /// Writes one entry.
    ///
    /// # Errors
    /// When the kernel refuses the write, as for a full map.
    fn apply(
        &mut self,
        write: MapWrite<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A change of the tables that the workers share with the XDP programs.
#[derive(Clone, Debug)]
pub enum TableWrite {
    /// A slot of `NETWORKS`; `None` clears it.
    Network(u32, Option<Box<Network>>),
    /// A slot of `TENANTS`.
    Tenant(u32, Tenant),
    /// An entry of `ENDPOINTS`: whether it is there.
    Endpoint(HostKey, bool),
    /// An entry of `NEIGHBOURS`; `None` removes it.
    Neighbour(HostKey, Option<Neighbour>),
}

/// The next hop to an address of a peer or gateway, as the kernel's routes and neighbour tables
/// have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Packets can be sent.
    Resolved {
        /// Interface to send on.
        ifindex: u32,
        /// Our MAC address on the interface.
        source_mac: [u8; 6],
        /// The next hop's MAC address.
        next_hop_mac: [u8; 6],
    },
    /// Packets cannot be sent for now.
    Unresolved {
        /// The reason, for the operator.
        reason: String,
        /// The lookup is not finished, or the next hop does not answer just now: a next hop that
        /// was known before stays in use.
        transient: bool,
    },
}

/// Next hops by address. An address that is missing is being looked up.
pub type NextHops = BTreeMap<IpAddr, NextHop>;
