//! The peers, and the indices by which events find them. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use appliance_common::addr::{Address, from_ip};
use gateway_client::wire::CircuitId;
use tunnel::{Instant, PeerId, PeerPath, RxActivity, RxStats, TxActivity};

use super::{
    alternation::AddressAlternation, circuit::CircuitClient, spec::PeerSpec,
    transport::TransportSelector,
};
use crate::pipeline::{Command, OuterHeader};

/// Own messages that wait until the path to the peer is known.
const MAX_QUEUED: usize = 8;

/// Interval at which moves of a peer are logged.
const MOVE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Moves of a peer that are logged: a peer may move four times a second for ever.
#[derive(Debug, Default)]
pub(super) struct MoveLog {
    last: Option<Instant>,
    /// Moves that were not logged.
    unlogged: u32,
}

impl MoveLog {
    /// Notes a move. Yields the number of moves since the last one that was logged, if this one is
    /// to be logged.
    pub fn note(&mut self, now: Instant) -> Option<u32> {
        let moves = self.unlogged + 1;
        let too_soon = |last| now.since(last) < MOVE_LOG_INTERVAL;
        if self.last.is_some_and(too_soon) {
            self.unlogged = moves;
            return None;
        }
        (self.last, self.unlogged) = (Some(now), 0);
        Some(moves)
    }
}

/// The newest report of one worker on its lanes of a peer.
#[derive(Clone, Copy, Default)]
pub(super) struct LaneActivity {
    pub tx: TxActivity,
    pub rx: RxActivity,
    pub stats: RxStats,
}

pub(super) struct Peer {
    pub spec: PeerSpec,
    pub id: PeerId,
    /// Where data goes.
    pub path: Option<PeerPath>,
    /// Our end of the circuit through gateways.
    pub circuit: Option<CircuitClient>,
    /// Chooses between UDP and TLS, where TLS is configured.
    pub transport: Option<TransportSelector>,
    /// Source of the last authentic handshake message: it may become the peer's address.
    pub handshake_source: Option<IpAddr>,
    /// The headers that the workers put in front of datagrams.
    pub outer: Option<OuterHeader>,
    /// Own messages that wait for `outer`, at most [`MAX_QUEUED`].
    queued: Vec<Command>,
    /// The longest datagram, bytes.
    pub max_datagram: usize,
    /// The workers were told that nothing is received from it.
    pub silent: bool,
    pub moves: MoveLog,
    /// Whether two machines have its key.
    pub alternation: AddressAlternation,
    /// By worker.
    activity: Vec<LaneActivity>,
    /// Session names by receiver index on the wire.
    pub sessions: BTreeMap<u32, u32>,
}

impl Peer {
    pub fn new(
        spec: PeerSpec,
        id: PeerId,
        circuit: Option<CircuitClient>,
        workers: usize,
        now: Instant,
    ) -> Self {
        let has_tls = spec.circuit.as_ref().is_some_and(|spec| spec.tls.is_some());
        Self {
            spec,
            id,
            path: None,
            circuit,
            transport: has_tls.then(|| TransportSelector::new(now)),
            handshake_source: None,
            outer: None,
            queued: Vec::new(),
            max_datagram: tunnel::MIN_DATAGRAM,
            silent: false,
            moves: MoveLog::default(),
            alternation: AddressAlternation::default(),
            activity: vec![LaneActivity::default(); workers],
            sessions: BTreeMap::new(),
        }
    }

    /// Addresses where the peer or a gateway to it may be.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let dialed = self.spec.addresses.iter().map(SocketAddr::ip);
        let current = self.path.and_then(|path| path.address()).map(|a| a.ip());
        let gateways = self.circuit.iter().flat_map(CircuitClient::addresses);
        dialed.chain(current).chain(gateways)
    }

    /// Whether data may follow an authentic message to this path. An end that chooses its gateway
    /// does not follow. A message of another circuit, or one past the gateways, was redirected by a
    /// third party.
    pub fn may_move_to(&self, path: PeerPath) -> bool {
        match &self.circuit {
            None => matches!(path, PeerPath::Direct(_)),
            Some(circuit) => circuit.follows() && circuit.owns(path),
        }
    }

    /// Takes a worker's report. Returns whether a peer was silent and is responsive again.
    pub fn record_activity(&mut self, worker: usize, report: LaneActivity) -> bool {
        let Some(last) = self.activity.get_mut(worker) else {
            return false;
        };
        let responsive = self.silent && report.rx.last_received > last.rx.last_received;
        *last = report;
        if responsive {
            self.silent = false;
            if let Some(circuit) = &mut self.circuit {
                circuit.peer_received();
            }
        }
        responsive
    }

    /// The merged sending activity of all workers.
    pub fn tx(&self) -> TxActivity {
        let all = self.activity.iter().map(|lane| lane.tx);
        all.reduce(TxActivity::merge).unwrap_or_default()
    }

    /// The merged receiving activity of all workers.
    pub fn rx(&self) -> RxActivity {
        let all = self.activity.iter().map(|lane| lane.rx);
        all.reduce(RxActivity::merge).unwrap_or_default()
    }

    /// The receive counters of all workers, summed.
    pub fn rx_stats(&self) -> RxStats {
        let all = self.activity.iter().map(|lane| lane.stats);
        all.fold(RxStats::default(), RxStats::merge)
    }

    /// Packets and bytes that all workers sent.
    pub fn tx_totals(&self) -> (u64, u64) {
        let all = self.activity.iter().map(|lane| lane.tx);
        all.fold((0, 0), |(packets, bytes), tx| {
            (packets + tx.packets, bytes + tx.bytes)
        })
    }

    /// Takes a message of our own; the one to be sent now, or `None` when it waits for the path to
    /// the peer.
    pub fn send_or_queue(&mut self, message: Command) -> Option<Command> {
        if self.outer.is_some() {
            return Some(message);
        }
        if self.queued.len() < MAX_QUEUED {
            self.queued.push(message);
        }
        None
    }

    /// Puts headers in use; `None` when they are the ones in use already, else the messages that
    /// can be sent now.
    pub fn set_outer(&mut self, outer: Option<OuterHeader>) -> Option<Vec<Command>> {
        if outer == self.outer {
            return None;
        }
        self.outer = outer;
        Some(match outer {
            Some(_) => std::mem::take(&mut self.queued),
            None => Vec::new(),
        })
    }

    /// Forgets the session of this name; its receiver indices on the wire.
    pub fn retire_session(&mut self, name: u32) -> Vec<u32> {
        let wire = self.sessions.iter().filter(|(_, of)| **of == name);
        let wire: Vec<u32> = wire.map(|(wire, _)| *wire).collect();
        self.sessions.retain(|_, of| *of != name);
        wire
    }
}

/// All peers.
#[derive(Default)]
pub(super) struct PeerTable {
    by_slot: BTreeMap<u32, Peer>,
    slot_by_id: BTreeMap<PeerId, u32>,
    slot_by_circuit: BTreeMap<CircuitId, u32>,
}

impl PeerTable {
    pub fn insert(&mut self, peer: Peer) {
        let slot = peer.spec.slot;
        self.slot_by_id.insert(peer.id, slot);
        if let Some(circuit) = &peer.circuit {
            self.slot_by_circuit.insert(circuit.id(), slot);
        }
        self.by_slot.insert(slot, peer);
    }

    pub fn remove(&mut self, slot: u32) -> Option<Peer> {
        let peer = self.by_slot.remove(&slot)?;
        self.slot_by_id.remove(&peer.id);
        if let Some(circuit) = &peer.circuit {
            self.slot_by_circuit.remove(&circuit.id());
        }
        Some(peer)
    }

    pub fn get(&self, slot: u32) -> Option<&Peer> {
        self.by_slot.get(&slot)
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Peer> {
        self.by_slot.get_mut(&slot)
    }

    /// The peer of the control half's name.
    pub fn by_id(&mut self, id: PeerId) -> Option<(u32, &mut Peer)> {
        let slot = *self.slot_by_id.get(&id)?;
        Some((slot, self.by_slot.get_mut(&slot)?))
    }

    /// The slot of a circuit's peer.
    pub fn slot_of(&self, circuit: CircuitId) -> Option<u32> {
        self.slot_by_circuit.get(&circuit).copied()
    }

    /// A circuit's client, and the slot of its peer.
    pub fn circuit(&mut self, circuit: CircuitId) -> Option<(u32, &mut CircuitClient)> {
        let slot = self.slot_of(circuit)?;
        Some((slot, self.by_slot.get_mut(&slot)?.circuit.as_mut()?))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_slot.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Peer)> {
        self.by_slot.iter_mut().map(|(slot, peer)| (*slot, peer))
    }

    pub fn slots(&self) -> Vec<u32> {
        self.by_slot.keys().copied().collect()
    }

    /// Slots whose peer is not among `specs`, or is another one there.
    pub fn stale(&self, specs: &[PeerSpec]) -> Vec<u32> {
        let is_kept = |peer: &Peer| {
            specs
                .iter()
                .any(|spec| spec.slot == peer.spec.slot && spec.same_but_addresses(&peer.spec))
        };
        let stale = self.by_slot.values().filter(|peer| !is_kept(peer));
        stale.map(|peer| peer.spec.slot).collect()
    }

    /// Addresses of all peers and gateways, as maps have them.
    pub fn addresses(&self) -> BTreeSet<Address> {
        self.iter().flat_map(Peer::addresses).map(from_ip).collect()
    }
}

#[cfg(test)]
mod tests {
    use tunnel::{LoadLimits, PeerConfig, SecretKey, TunnelControl};

    use super::*;
    use crate::manager::spec::{PeerProtocol, tests::spec};

    fn peers(slots: &[u32]) -> (PeerTable, Vec<PeerId>) {
        let now = Instant::from_nanos(1);
        let mut control =
            TunnelControl::new(SecretKey::from_bytes(&[9; 32]), LoadLimits::default());
        let mut table = PeerTable::default();
        let mut ids = Vec::new();
        for slot in slots {
            let spec = spec(*slot, PeerProtocol::Appliance);
            let id = control.add_peer(now, PeerConfig::causeway(spec.public_key, spec.dial));
            table.insert(Peer::new(spec, id, None, 2, now));
            ids.push(id);
        }
        (table, ids)
    }

    #[test]
    fn a_removed_peer_is_found_by_no_index() {
        let (mut table, ids) = peers(&[0, 7]);
        assert_eq!(table.by_id(ids[1]).map(|(slot, _)| slot), Some(7));
        assert!(table.remove(7).is_some());
        assert!(table.by_id(ids[1]).is_none() && table.get(7).is_none());
        assert!(table.remove(7).is_none());
        assert_eq!(table.slots(), [0]);
    }

    #[test]
    fn a_peer_with_another_key_in_the_same_slot_is_stale() {
        let (table, _) = peers(&[0, 1, 2]);
        let kept = spec(0, PeerProtocol::Appliance);
        let mut other = spec(1, PeerProtocol::Appliance);
        other.public_key = SecretKey::from_bytes(&[77; 32]).public();
        assert_eq!(table.stale(&[kept, other]), [1, 2]);
    }

    #[test]
    fn messages_wait_for_the_path_and_are_bounded() {
        let (mut table, _) = peers(&[0]);
        let peer = table.get_mut(0).expect("a peer");
        for _ in 0..MAX_QUEUED + 3 {
            assert!(peer.send_or_queue(Command::Keepalive(0)).is_none());
        }
        let outer = OuterHeader::new(
            2,
            [1; 6],
            [2; 6],
            ([192, 0, 2, 1], 6180).into(),
            SocketAddr::from(([192, 0, 2, 2], 6180)),
        );
        assert!(outer.is_some());
        assert_eq!(
            peer.set_outer(outer).map(|sent| sent.len()),
            Some(MAX_QUEUED)
        );
        assert!(peer.set_outer(outer).is_none(), "the same headers");
        assert!(peer.send_or_queue(Command::Keepalive(0)).is_some());
    }

    #[test]
    fn a_silent_peer_is_responsive_once_when_a_worker_receives_again() {
        let (mut table, _) = peers(&[0]);
        let peer = table.get_mut(0).expect("a peer");
        let report = |ns| LaneActivity {
            rx: RxActivity {
                last_received: Some(Instant::from_nanos(ns)),
                ..RxActivity::default()
            },
            ..LaneActivity::default()
        };
        assert!(!peer.record_activity(0, report(5)), "it was not silent");
        peer.silent = true;
        assert!(!peer.record_activity(0, report(5)), "nothing new");
        assert!(peer.record_activity(1, report(6)));
        assert!(
            !peer.record_activity(0, report(7)),
            "it is responsive already"
        );
        assert!(!peer.record_activity(9, report(8)), "no such worker");
    }

    #[test]
    fn moves_are_logged_seldom_with_their_number() {
        let at = |ms: u64| Instant::from_nanos((1000 + ms) * 1_000_000);
        let mut log = MoveLog::default();
        assert_eq!(log.note(at(0)), Some(1));
        for ms in (250..10_000).step_by(250) {
            assert_eq!(log.note(at(ms)), None);
        }
        assert_eq!(log.note(at(10_000)), Some(40));
        assert_eq!(log.note(at(30_000)), Some(1));
    }

    #[test]
    fn a_retired_session_gives_all_its_indices() {
        let (mut table, _) = peers(&[0]);
        let peer = table.get_mut(0).expect("a peer");
        peer.sessions = BTreeMap::from([(100, 1), (101, 1), (200, 2)]);
        assert_eq!(peer.retire_session(1), [100, 101]);
        assert_eq!(peer.sessions, BTreeMap::from([(200, 2)]));
    }
}
