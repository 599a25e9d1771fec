//! The TLS connections of circuits: those that are open, those being dialed, and the listener.
//!
//! ```text
//!   dial ──▶ TlsAttempt ─┐                        ┌─▶ Change ─▶ manager, which gives workers the rings
//!   Listening ───────────┴ ConnectionEvent ─▶ poll ┤
//!                                                  └─▶ open: our own ring pair, for handshakes
//! ```

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroU64,
    sync::{Arc, mpsc},
};

use gateway_client::{
    dial::Race,
    pool::{Failure, Report},
    wire::{CircuitId, Key},
};
use nix::sys::eventfd::EventFd;
use tunnel::{PublicKey, SecretKey};

use super::tls_listening::Listening;
use crate::{
    clock,
    tls::{
        ConnectionEvent, ConnectionHandle, ConnectionId, ConnectionStats, DialConfig, DialError,
        EventSender, Fingerprint, HANDSHAKE_TIMEOUT, RingPair, RingSetup, ThreadWaker, TlsAttempt,
        steer_by_lane,
    },
};

/// Datagrams that fit a ring.
const RING_CAPACITY: usize = 512;

/// Where a tunnel over TLS is dialed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// The server name, by which gateways route the connection.
    pub name: String,
    /// Fingerprints of the certificates that the other end may have.
    pub fingerprints: Vec<Fingerprint>,
}

/// An open connection of a circuit.
struct Open {
    id: ConnectionId,
    peer: SocketAddr,
    /// Dropping it closes the connection.
    handle: ConnectionHandle,
    /// Our own ring pair, for handshake messages.
    ring: RingPair,
    /// Nothing is received, not even answers.
    stalled: bool,
}

/// A change of a circuit's connection.
#[derive(Debug)]
pub(super) enum Change {
    /// A connection is open, perhaps in the place of another. One ring pair for each worker.
    Open(CircuitId, Vec<RingPair>),
    /// Nothing is received any more on the open connection.
    Stalled(CircuitId),
    /// Something is received on it again.
    Resumed(CircuitId),
    /// The open connection is closed.
    Closed(CircuitId),
    /// An attempt failed.
    Failed(CircuitId),
}

impl Change {
    pub const fn circuit(&self) -> CircuitId {
        let (Self::Open(circuit, _)
        | Self::Stalled(circuit)
        | Self::Resumed(circuit)
        | Self::Closed(circuit)
        | Self::Failed(circuit)) = self;
        *circuit
    }
}

/// All TLS connections of this appliance.
pub(super) struct TlsConnections {
    events: mpsc::Receiver<ConnectionEvent>,
    event_sender: EventSender,
    rings: RingSetup,
    /// Where tunnels are accepted.
    pub listening: Listening,
    open: BTreeMap<CircuitId, Open>,
    dialers: BTreeMap<CircuitId, TlsAttempt>,
    /// Why the last attempt failed.
    dial_errors: BTreeMap<CircuitId, String>,
    /// Results of connections since the owner last took them, for the choice of gateways.
    reports: BTreeMap<CircuitId, Vec<(SocketAddr, Report)>>,
}

impl TlsConnections {
    /// No connections yet. `workers` are woken for datagrams; `event` wakes the manager.
    pub fn new(workers: Vec<ThreadWaker>, event: &Arc<EventFd>) -> Self {
        let (sender, events) = mpsc::channel();
        let steer = steer_by_lane(u32::try_from(workers.len()).unwrap_or(1));
        let own = ThreadWaker::new(Arc::clone(event));
        let event_sender = EventSender {
            events: sender,
            wake: Arc::clone(event),
        };
        let rings = RingSetup {
            consumers: std::iter::once(own).chain(workers).collect(),
            steer,
            capacity: RING_CAPACITY,
        };
        Self {
            events,
            listening: Listening::new(rings.clone(), event_sender.clone()),
            event_sender,
            rings,
            open: BTreeMap::new(),
            dialers: BTreeMap::new(),
            dial_errors: BTreeMap::new(),
            reports: BTreeMap::new(),
        }
    }

    /// Takes the results of a circuit's connections, in order: of attempts, and of a connection
    /// that was lost or abandoned.
    pub fn take_reports(&mut self, circuit: CircuitId) -> Vec<(SocketAddr, Report)> {
        self.reports.remove(&circuit).unwrap_or_default()
    }

    fn report(&mut self, circuit: CircuitId, address: SocketAddr, report: Report) {
        // The end that listens chooses no gateway.
        if !self.listening.is_there() {
            let reports = self.reports.entry(circuit).or_default();
            reports.push((address, report));
        }
    }

    /// The other end of a circuit's connection.
    pub fn peer(&self, circuit: CircuitId) -> Option<SocketAddr> {
        self.open.get(&circuit).map(|open| open.peer)
    }

    /// Begins an attempt. Returns whether it could.
    pub fn dial(&mut self, circuit: CircuitId, key: Key, tls: &TlsSpec, race: Race) -> bool {
        if let Some(open) = self.open.get(&circuit) {
            tracing::info!(%circuit, remote = %open.peer, "TLS connection is stalled: dialing a \
                second one");
        }
        let config = DialConfig {
            race,
            name: tls.name.clone(),
            fingerprints: tls.fingerprints.clone(),
            circuit,
            key,
            clock: Box::new(clock::unix_nanos_increasing),
            timeout: HANDSHAKE_TIMEOUT,
        };
        match TlsAttempt::start(config, self.rings.clone(), self.event_sender.clone()) {
            Ok(dialer) => {
                self.dialers.insert(circuit, dialer);
                true
            }
            Err(error) => {
                self.dial_failed(circuit, &error);
                false
            }
        }
    }

    fn dial_failed(&mut self, circuit: CircuitId, error: &dyn std::error::Error) {
        let text = error.to_string();
        if self.dial_errors.get(&circuit) != Some(&text) {
            tracing::warn!(%circuit, reason = text, "cannot connect over TLS");
        }
        self.dial_errors.insert(circuit, text);
    }

    /// Whether an attempt is under way.
    pub fn is_dialing(&self, circuit: CircuitId) -> bool {
        self.dialers.contains_key(&circuit)
    }

    /// Whether nothing is received on the open connection.
    pub fn is_stalled(&self, circuit: CircuitId) -> bool {
        self.open.get(&circuit).is_some_and(|open| open.stalled)
    }

    /// Cancels an attempt, unless it is about to succeed.
    pub fn cancel_dial(&self, circuit: CircuitId) {
        if let Some(dialer) = self.dialers.get(&circuit) {
            dialer.cancel_before_hello();
        }
    }

    /// Whether a connection is open.
    pub fn is_open(&self, circuit: CircuitId) -> bool {
        self.open.contains_key(&circuit)
    }

    /// Why the last attempt failed.
    pub fn dial_error(&self, circuit: CircuitId) -> Option<&str> {
        self.dial_errors.get(&circuit).map(String::as_str)
    }

    /// Ends the connection and the attempt of a circuit. Whether a connection was open: the workers
    /// are to give up its rings.
    pub fn close(&mut self, circuit: CircuitId) -> bool {
        self.dialers.remove(&circuit);
        self.dial_errors.remove(&circuit);
        let open = self.open.remove(&circuit);
        if let Some(open) = &open {
            tracing::info!(%circuit, remote = %open.peer, "closing the TLS connection");
        }
        open.is_some()
    }

    /// As [`TlsConnections::close`], of a connection on which nothing is received: its gateway is
    /// dialed last for a while.
    pub fn abandon(&mut self, circuit: CircuitId) -> bool {
        let peer = self.peer(circuit);
        let was_open = self.close(circuit);
        if let Some(peer) = peer {
            self.report(circuit, peer, Report::Failed(Failure::Silent));
        }
        was_open
    }

    /// Takes the events of connections, and a listener that was prepared.
    pub fn poll(&mut self) -> Vec<Change> {
        self.listening.take_attempt();
        let mut changes = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            changes.extend(self.take_event(event));
        }
        changes
    }

    fn take_event(&mut self, event: ConnectionEvent) -> Option<Change> {
        match event {
            ConnectionEvent::Established(new) => {
                let circuit = new.circuit;
                // A newer connection of the circuit has replaced it already.
                if new.handle.is_stopping() {
                    return None;
                }
                // The attempt was dropped in the moment in which it succeeded.
                if !self.listening.is_there() && self.dialers.remove(&circuit).is_none() {
                    return None;
                }
                let mut rings = new.rings.into_iter();
                let ring = rings.next()?;
                tracing::info!(%circuit, remote = %new.peer, "TLS connection established");
                self.dial_errors.remove(&circuit);
                let answered = Report::Answered {
                    load: None,
                    draining: false,
                };
                self.report(circuit, new.peer, answered);
                let open = Open {
                    id: new.id,
                    peer: new.peer,
                    handle: new.handle,
                    ring,
                    stalled: false,
                };
                if let Some(old) = self.open.insert(circuit, open)
                    && old.stalled
                {
                    self.report(circuit, old.peer, Report::Failed(Failure::Silent));
                }
                Some(Change::Open(circuit, rings.collect()))
            }
            ConnectionEvent::AddressFailed {
                circuit,
                attempt,
                address,
                failure,
            } => {
                if self.dialers.get(&circuit).map(TlsAttempt::attempt) == Some(attempt) {
                    self.report(circuit, address, Report::Failed(failure));
                }
                None
            }
            ConnectionEvent::Failed {
                circuit,
                attempt,
                error,
            } => {
                // The attempt was dropped; there may be another by now.
                if self.dialers.get(&circuit).map(TlsAttempt::attempt) != Some(attempt) {
                    return None;
                }
                self.dialers.remove(&circuit);
                // An attempt that was given up was not needed.
                if matches!(error, DialError::Cancelled) {
                    return None;
                }
                if let DialError::Exhausted(errors) = &error {
                    for error in errors {
                        let failed = Report::Failed(error.error.failure());
                        self.report(circuit, error.address, failed);
                    }
                }
                self.dial_failed(circuit, &error);
                Some(Change::Failed(circuit))
            }
            ConnectionEvent::Stalled { circuit, id } => {
                let open = self.open.get_mut(&circuit).filter(|open| open.id == id)?;
                tracing::debug!(%circuit, remote = %open.peer, "TLS connection is stalled");
                open.stalled = true;
                Some(Change::Stalled(circuit))
            }
            ConnectionEvent::Resumed { circuit, id } => {
                let open = self.open.get_mut(&circuit).filter(|open| open.id == id)?;
                let remote = open.peer;
                tracing::debug!(%circuit, %remote, "TLS connection is no longer stalled");
                open.stalled = false;
                Some(Change::Resumed(circuit))
            }
            ConnectionEvent::Closed {
                circuit,
                id,
                reason,
            } => {
                if self.open.get(&circuit).is_none_or(|open| open.id != id) {
                    return None;
                }
                tracing::info!(%circuit, %reason, "TLS connection closed");
                if let Some(open) = self.open.remove(&circuit) {
                    self.report(circuit, open.peer, Report::Failed(Failure::Silent));
                }
                Some(Change::Closed(circuit))
            }
        }
    }

    /// Passes handshake messages that came to `handle`.
    pub fn take_messages(&mut self, mut handle: impl FnMut(CircuitId, &[u8])) {
        for (circuit, open) in &mut self.open {
            open.ring
                .receiver
                .take(RING_CAPACITY, |message| handle(*circuit, message));
        }
    }

    /// Sends a handshake message. Returns whether there was room.
    pub fn send(&mut self, circuit: NonZeroU64, message: &[u8]) -> bool {
        let open = CircuitId::new(circuit.get()).and_then(|id| self.open.get_mut(&id));
        let Some(open) = open else { return false };
        let sent = open.ring.sender.push(message);
        open.ring.sender.wake();
        sent
    }

    /// Counters of a connection.
    pub fn stats(&self, circuit: CircuitId) -> Option<ConnectionStats> {
        Some(self.open.get(&circuit)?.handle.stats())
    }
}

/// The key by which the two ends of a circuit recognize each other in a TLS connection before the
/// tunnel is up. It is derived from the ends' tunnel keys, so that there is nothing more to
/// configure. `None` for an invalid public key.
#[must_use]
pub(super) fn key(secret: &SecretKey, peer: &PublicKey, circuit: CircuitId) -> Option<Key> {
    let label = [&b"causeway tunnel over tls 1"[..], &circuit.to_bytes()].concat();
    Some(Key::new(*secret.shared(peer, &label)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ends_derive_the_same_key_and_others_do_not() {
        let secret = |n: u8| SecretKey::from_bytes(&[n; 32]);
        let circuit = |n: u64| CircuitId::new(1 << 32 | n).expect("an id");
        let of = |a: u8, b: u8, n| key(&secret(a), &secret(b).public(), circuit(n)).expect("a key");
        assert!(of(1, 2, 1) == of(2, 1, 1));
        assert!(of(1, 2, 1) != of(1, 3, 1));
        assert!(of(1, 2, 1) != of(1, 2, 2), "one for each circuit");
        let invalid = PublicKey::from_bytes([0; 32]);
        assert!(key(&secret(1), &invalid, circuit(1)).is_none());
    }
}
