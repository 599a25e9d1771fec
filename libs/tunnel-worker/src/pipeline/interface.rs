//! Inputs and outputs of the pipeline other than frames.

use std::num::NonZeroU64;

use appliance_common::{
    events::SlowHeader,
    maps::{HostKey, Neighbour, Network, Tenant},
};
use tunnel::{
    PeerPath, RxActivity, RxSession, RxStats, TxActivity, TxSession, segment::ControlMessage,
};
use xsk::Sent;

use super::{OuterHeader, PeerLanes, PeerRoute};

/// The sink of the pipeline's frames and reports.
pub trait PacketSink {
    /// Lets `write` fill a frame to be sent on an interface. It gets the whole buffer and returns
    /// the number of bytes it used, or `None` to send nothing.
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent;
    /// As [`PacketSink::transmit`], for a datagram without headers, on the TLS connection of a
    /// circuit. [`Sent::Full`] without a connection.
    fn transmit_tls(
        &mut self,
        _circuit: NonZeroU64,
        _write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Sent {
        Sent::Full
    }
    /// Reports an event to the manager.
    fn event(&mut self, event: Event);
    /// Hands a packet whose host is not resolved to the manager. Returns whether there was room.
    fn unresolved(&mut self, header: &SlowHeader, packet: &[u8]) -> bool;
    /// Hands a received frame, unchanged, to another worker. Returns whether there was room.
    fn hand_over(&mut self, worker: u32, frame: &[u8]) -> bool;
}

/// A report of a worker to the manager.
#[expect(
    clippy::large_enum_variant,
    reason = "a ring has slots of one size; a box would allocate on the packet path"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first datagram of a session arrived. The reports of activity repeat it.
    SessionConfirmed {
        /// The peer's slot.
        peer: u32,
        index: u32,
    },
    /// A control message of the peer that the worker does not answer itself.
    ControlMessage {
        /// The peer's slot.
        peer: u32,
        message: ControlMessage,
    },
    /// Activity on a worker's lanes of a peer. It holds the whole state, not a difference: the path
    /// of the newest datagram and the newest session are in `rx`, so that a lost report loses
    /// nothing.
    Activity {
        /// The peer's slot.
        peer: u32,
        /// Sent.
        tx: TxActivity,
        /// Received.
        rx: RxActivity,
        /// Counters.
        stats: RxStats,
    },
    /// Packets were sent to a host.
    HostUsed {
        /// The host.
        key: HostKey,
    },
}

/// An order of the manager to a worker.
#[derive(Debug)]
pub enum Command {
    /// A slot of `NETWORKS` was written.
    Network(u32, Option<Box<Network>>),
    /// A slot of `TENANTS` was written.
    Tenant(u32, Tenant),
    /// An entry of `ENDPOINTS` was added or removed.
    Endpoint(HostKey, bool),
    /// An entry of `NEIGHBOURS` was written or removed.
    Neighbour(HostKey, Option<Box<Neighbour>>),
    /// The WireGuard peers with addresses in a network, by VNI.
    PeerRoutes(u32, Box<[PeerRoute]>),
    /// A new peer in a slot; it replaces a former peer and its sessions. `None` removes the peer.
    Peer(u32, Option<Box<PeerLanes>>),
    /// Receive with this session from now on.
    Receive(u32, Box<RxSession>),
    /// Send with this session from now on.
    Send(u32, Box<TxSession>),
    /// Remove the session with this index.
    Retire(u32, u32),
    /// The control half has retired all sessions that are older than this restore
    /// ([`crate::restore`]): sessions that come from now on are new ones.
    SessionsRetired(u64),
    /// A peer is silent, or has no session any more.
    PeerSilent(u32),
    /// Some worker received from a peer that was silent.
    PeerResponsive(u32),
    /// The path to a peer.
    PeerPath(u32, PeerPath),
    /// Send to a peer with these headers; `None` while there is no path.
    OuterHeader(u32, Option<Box<OuterHeader>>),
    /// Datagrams to a peer may be this long, bytes.
    MaxDatagram(u32, usize),
    /// Send a keep-alive.
    Keepalive(u32),
    /// Send a control message, padded to this many bytes of datagram.
    ControlMessage(u32, ControlMessage, usize),
}
