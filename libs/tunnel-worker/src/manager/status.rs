//! Status of peers and workers, for the operator.

use std::{net::SocketAddr, time::Duration};

use appliance_common::maps::HostKey;
use gateway_client::selector::GatewayState;
use tunnel::{
    Cipher, DownReason, Instant, PeerPath, PublicKey, RxStats, control::PeerStatus as ControlStatus,
};

use super::{
    circuit::CircuitClient,
    paths::PathSelector,
    peer_table::Peer,
    spec::{PeerProtocol, udp_headers},
    tls_connections::TlsConnections,
};
use crate::{tls::ConnectionStats, worker::UnresolvedPacket};

/// State of a peer's tunnel.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its identity.
    pub public_key: PublicKey,
    /// Where data goes.
    pub path: Option<PeerPath>,
    /// Name of the gateway on the path, if there is one and it is known.
    pub gateway: Option<String>,
    /// State of each gateway, for a peer behind a circuit.
    pub gateways: Vec<GatewayState>,
    /// The other end of the TLS connection, and what that carried, if there is one.
    pub tls: Option<(SocketAddr, ConnectionStats)>,
    /// Whether there is a session and the peer answers.
    pub up: bool,
    /// Why the tunnel is down, for the operator; empty when it is up.
    pub down_reason: String,
    /// The addresses between which the peer alternates, as two machines with one key do.
    pub alternates_between: Option<[SocketAddr; 2]>,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Longest IP packet on the path, bytes.
    pub path_mtu: usize,
    /// Smoothed round-trip time.
    pub round_trip: Option<Duration>,
    /// Loss among the last 32 echoes, per cent.
    pub loss_percent: u32,
    /// Cipher for sending.
    pub cipher: Cipher,
    /// Datagrams sent.
    pub tx_packets: u64,
    /// Bytes of UDP payload sent.
    pub tx_bytes: u64,
    /// Counters of received packets.
    pub rx: RxStats,
    /// Replayed handshakes refused.
    pub replayed_handshakes: u64,
}

/// Counters of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its number, from 0: it has this queue of every interface.
    pub index: u32,
    /// The CPU it is pinned to; `None`: the kernel's choice.
    pub cpu: Option<usize>,
    /// Packets sealed and sent.
    pub sealed: u64,
    /// Packets opened and sent to their hosts.
    pub delivered: u64,
    /// Packets of other workers' lanes that came to its queues.
    pub handed_over: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The workers' reports of hosts of the networks.
#[derive(Default)]
pub struct HostActivity {
    /// Hosts that packets were sent to.
    pub used: Vec<HostKey>,
    /// Packets whose host is not resolved.
    pub unresolved: Vec<UnresolvedPacket>,
}

/// The parts of the manager that a peer's status is made of.
pub(super) struct Sources<'m> {
    pub own_key: &'m PublicKey,
    pub paths: &'m PathSelector,
    pub tls: &'m TlsConnections,
}

impl Sources<'_> {
    /// The status of a peer; `control` is the control half's status of it.
    pub fn peer_status(&self, now: Instant, peer: &Peer, control: &ControlStatus) -> PeerStatus {
        let address = peer.path.and_then(|path| path.address());
        let is_ipv6 = address.is_some_and(|address| address.is_ipv6());
        let down_reason = match (&control.down, control.alive) {
            (None, true) => String::new(),
            (None, false) if matches!(peer.spec.protocol, PeerProtocol::WireGuard { .. }) => {
                String::new()
            }
            (None, false) => "the peer does not answer; it is dialed again".to_owned(),
            (Some(why), _) => self.down_reason(peer, why),
        };
        let circuit = peer.circuit.as_ref();
        let (tx_packets, tx_bytes) = peer.tx_totals();
        PeerStatus {
            public_key: peer.spec.public_key,
            path: control.path,
            gateway: self.gateway_of(peer),
            tls: circuit
                .map(CircuitClient::id)
                .and_then(|id| self.tls.peer(id).zip(self.tls.stats(id))),
            gateways: circuit.map(|c| c.states(now)).unwrap_or_default(),
            up: down_reason.is_empty(),
            down_reason,
            alternates_between: peer.alternation.addresses(now),
            handshake_age: control.session_since.map(|since| now.since(since)),
            handshakes: control.handshakes,
            path_mtu: peer.max_datagram
                + peer.path.map_or(0, |path| path.overhead())
                + udp_headers(is_ipv6),
            round_trip: control.round_trip,
            loss_percent: control.loss_percent,
            cipher: control.cipher,
            tx_packets,
            tx_bytes,
            rx: peer.rx_stats(),
            replayed_handshakes: control.replayed,
        }
    }

    fn gateway_of(&self, peer: &Peer) -> Option<String> {
        let circuit = peer.circuit.as_ref()?;
        let address = match peer.path? {
            PeerPath::Direct(_) => return None,
            PeerPath::Circuit { gateway, .. } => gateway,
            // The connection was accepted here; its source is not proved.
            PeerPath::Stream(_) if circuit.follows() => return None,
            PeerPath::Stream(_) => self.tls.peer(circuit.id())?,
        };
        circuit.gateway_name(address).map(str::to_owned)
    }

    fn down_reason(&self, peer: &Peer, why: &DownReason) -> String {
        if let Some(circuit) = &peer.circuit
            && let Some(lost) = circuit.lost_reason()
        {
            return match self.tls.dial_error(circuit.id()) {
                Some(error) => format!("{lost}; over TLS: {error}"),
                None => lost,
            };
        }
        match (why, self.paths.unresolved(peer.addresses())) {
            (DownReason::NoAnswer { .. }, Some(unresolved)) => {
                format!("no route to {unresolved}")
            }
            (DownReason::NoAnswer { attempts }, None) => format!(
                "no answer to {attempts} attempts: check the network path, the peer's address and \
                 port, and that the peer is configured with our key {}",
                self.own_key
            ),
            (DownReason::InvalidAnswers { .. }, _) => {
                "the answers are not authentic: the two ends' keys or preshared keys differ"
                    .to_owned()
            }
            (DownReason::NoAddress, _) if peer.circuit.is_some() => {
                "no gateway has accepted this end yet".to_owned()
            }
            (DownReason::NoAddress, _) => {
                "the peer has no address to dial; configure one".to_owned()
            }
            (DownReason::NotInitiating, _) => "waiting for the peer to dial".to_owned(),
        }
    }
}
