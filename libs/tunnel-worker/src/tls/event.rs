//! Events of the threads of connections, for their owner.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
};

use gateway_client::{pool::Failure, wire::CircuitId};
use nix::sys::eventfd::EventFd;

use super::{
    close_reason::CloseReason, dial_error::DialError, handle::ConnectionHandle, ring::RingPair,
};

/// A connection, or an attempt at one, among all of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// One that no other has.
    pub(super) fn next() -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        Self(LAST_ID.fetch_add(1, Relaxed) + 1)
    }
}

/// A change of a connection, or the end of an attempt.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// A connection carries datagrams.
    Established(Established),
    /// An address failed in an attempt that another one then served: before its `Established`.
    AddressFailed {
        /// The circuit that was dialed for.
        circuit: CircuitId,
        /// The attempt, [`TlsAttempt::attempt`](super::TlsAttempt::attempt).
        attempt: ConnectionId,
        address: SocketAddr,
        failure: Failure,
    },
    /// A dialer gave up.
    Failed {
        /// The circuit that it dialed for.
        circuit: CircuitId,
        /// The attempt, [`TlsAttempt::attempt`](super::TlsAttempt::attempt).
        attempt: ConnectionId,
        /// Why, for each address.
        error: DialError,
    },
    /// Nothing is received on a connection that was dialed, not even answers to probes.
    Stalled {
        circuit: CircuitId,
        /// The connection.
        id: ConnectionId,
    },
    /// Something is received on it again.
    Resumed {
        circuit: CircuitId,
        /// The connection.
        id: ConnectionId,
    },
    /// An established connection ended.
    Closed {
        circuit: CircuitId,
        /// The connection.
        id: ConnectionId,
        /// Why.
        reason: CloseReason,
    },
}

/// A connection that carries datagrams.
#[derive(Debug)]
pub struct Established {
    pub circuit: CircuitId,
    /// The connection, as later events name it.
    pub id: ConnectionId,
    /// The other end. Of a dialer, the address that it connected to; of a listener, the client, by
    /// the PROXY header if one is configured.
    pub peer: SocketAddr,
    /// Dropping it closes the connection.
    pub handle: ConnectionHandle,
    /// One for each consumer of the ring setup, in that order.
    pub rings: Vec<RingPair>,
}

/// Sends events to the owner.
#[derive(Clone)]
pub struct EventSender {
    /// Takes the events: a few for each connection.
    pub events: mpsc::Sender<ConnectionEvent>,
    /// Written after each event.
    pub wake: Arc<EventFd>,
}

impl EventSender {
    pub(super) fn send(&self, event: ConnectionEvent) {
        // Without an owner the event is dropped here, and a connection in it closed.
        let _ = self.events.send(event);
        // EAGAIN: the owner has not read the event yet.
        let _ = self.wake.write(1);
    }
}
