//! The tunnels of an appliance: peers, handshakes, paths and workers, driven by the owner's loop.
//!
//! For: carrying out the decisions of the sans-IO halves (`tunnel::TunnelControl`,
//! `gateway_client::selector`, [`transport`]). Never: a packet of a network, or a wait.
//!
//! ```text
//!   handshake_io ─ messages ──▶ ┌───────────────┐ ─ sessions, headers ─▶ workers (a thread each)
//!   workers ────── reports ───▶ │ TunnelManager │ ─ MapWrite ──────────▶ maps of the programs
//!   owner ── peers, underlay ─▶ │  (drive.rs)   │ ─ messages ──────────▶ handshake_io, tls_connections
//!   time ─────────────────────▶ └───────────────┘ ─ HostActivity ──────▶ owner
//!        peer_table   the state of each peer                pure
//!        paths        next hops, circuits that are due      pure
//!        circuit      gateways of a peer                    around `gateway_client::selector`
//!        circuit_keys  keys of the ends that connect by TLS  pure
//!        tls_listening  the listener for tunnels over TLS, prepared on another thread
//!        transport    UDP or TLS                            pure
//!        ports        AF_XDP sockets of interfaces
//!        status       status for operators
//! ```
//!
//! A session is handed to its worker first, and only then its index to the programs: they steer
//! nothing to a worker that has no key for it.

mod alternation;
mod cipher;
mod circuit;
mod circuit_keys;
mod drive;
mod handshake_io;
mod handshake_queue;
mod paths;
mod peer_table;
mod ports;
mod retry;
mod spec;
mod status;
mod tls_connections;
mod tls_listening;
mod transport;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
};

use appliance_common::{
    addr::Address, counters::Counter, limits::MAX_QUEUES, maps::NetworkStats, wire::CIRCUIT_ID_LEN,
};
use service::restore::Restores;
use tunnel::{
    Cipher, CipherChoice, Instant, LoadLimits, PeerConfig, PeerPath, PmtuConfig, PublicKey,
    SecretKey, Tai64n, TimerConfig, TunnelControl, control::ControlStats,
};

pub use circuit::CircuitSpec;
pub use spec::{PeerProtocol, PeerSpec, PortSpec, max_udp_payload};
pub use status::{HostActivity, PeerStatus, WorkerStatus};
pub use tls_connections::TlsSpec;
pub use tls_listening::{
    Error as ListenerError, ListenSpec, ListenerSetup, NewListener, certificate_file,
};

use crate::{
    clock,
    host::{MapWrite, NextHops, ProgramMaps, TableWrite},
    keys::OsRandom,
    pipeline::{Command, LANES, PeerLanes},
    tls::{Fingerprint, ListenerStats},
    worker::{Request, WaitMode},
};
use circuit::CircuitClient;
use circuit_keys::CircuitKeys;
use handshake_io::HandshakeSockets;
use handshake_queue::HandshakeQueue;
use paths::PathSelector;
use peer_table::{Peer, PeerTable};
use ports::WorkerPorts;
use spec::PeerRoutes;
use status::Sources;
use tls_connections::TlsConnections;
use transport::TransportSelector;
use workers::WorkerPool;

/// Longest UDP payload until the uplink's MTU is known, bytes.
const DEFAULT_MAX_PAYLOAD: usize = 1472;

/// Why encrypted tunnels do not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A worker could not be started.
    #[error("start worker {index}: {source}")]
    Worker {
        /// Its number, from 0.
        index: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket for handshakes could not be bound.
    #[error("bind UDP {address} for handshakes: {source}; is another program on this port?")]
    Bind {
        /// The address and port.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// Each worker sends by a queue of its own, and the interface has too few.
    #[error(
        "{interface} has {queues} receive and transmit queues for {workers} workers, and each \
         needs one: run `ethtool -L {interface} combined {workers}` (virtual links: rx {workers} \
         tx {workers}), or write fewer in tunnel.workers"
    )]
    Queues {
        interface: String,
        /// Queues that it has in both directions.
        queues: u32,
        /// Workers that are configured.
        workers: u32,
    },
    /// Packets of the queues past the last that the programs know would be dropped.
    #[error(
        "{interface} has {queues} receive queues, and workers can take the packets of {MAX_QUEUES} \
         at most: run `ethtool -L {interface} combined {MAX_QUEUES}` (NICs without combined \
         queues: rx {MAX_QUEUES})"
    )]
    TooManyQueues {
        interface: String,
        /// Its receive queues.
        queues: u32,
    },
    /// An AF_XDP socket could not be opened.
    #[error("AF_XDP on {interface}: {source}")]
    Socket {
        interface: String,
        /// The error of the socket.
        source: xsk::Error,
    },
}

/// Kinds of changes since the owner last asked.
#[derive(Default)]
struct Changes {
    /// Longest inner packets.
    inner_mtus: bool,
    /// Addresses of peers or gateways.
    watched: bool,
    /// Handshake timestamps: a message was sent.
    timestamps: bool,
}

/// The encrypted tunnels of an appliance.
pub struct TunnelManager {
    secret: SecretKey,
    random: OsRandom,
    cipher: Cipher,
    /// Longest UDP payload that the uplink takes, bytes.
    max_payload: usize,
    control: TunnelControl,
    peers: PeerTable,
    /// Routes of WireGuard peers, as the workers have them.
    routes: PeerRoutes,
    paths: PathSelector,
    sockets: HandshakeSockets,
    handshakes: HandshakeQueue,
    tls: TlsConnections,
    /// Of the circuits whose other end may connect by TLS.
    circuit_keys: CircuitKeys,
    ports: WorkerPorts,
    workers: WorkerPool,
    /// Addresses in the programs' map of peers.
    known_addresses: BTreeSet<Address>,
    changes: Changes,
    restores: Restores,
    /// Restores that the control half has followed.
    restored: u64,
}

impl TunnelManager {
    /// Starts so many workers (1 to 8), pinned to the CPUs in turn if there are any. There are no
    /// peers, sockets or ports yet. `port` is the tunnel's UDP port.
    ///
    /// # Errors
    /// If the kernel gives no thread or descriptor.
    pub fn start(
        secret: SecretKey,
        port: u16,
        choice: CipherChoice,
        memory: xsk::Memory,
        (workers, cpus, wait_mode): (u32, &[usize], WaitMode),
    ) -> Result<Self, Error> {
        let cipher = cipher::choose(choice);
        let restores = Restores::watched();
        let workers = WorkerPool::start(workers, cpus, wait_mode, &restores)?;
        Ok(Self {
            control: TunnelControl::new(secret.clone(), LoadLimits::default()),
            secret,
            random: OsRandom,
            cipher,
            max_payload: DEFAULT_MAX_PAYLOAD,
            peers: PeerTable::default(),
            routes: PeerRoutes::new(),
            paths: PathSelector::new(port),
            sockets: HandshakeSockets::new(port),
            handshakes: HandshakeQueue::default(),
            tls: TlsConnections::new(workers.wakers(), workers.event()),
            circuit_keys: CircuitKeys::default(),
            ports: WorkerPorts::new(memory),
            workers,
            known_addresses: BTreeSet::new(),
            changes: Changes {
                inner_mtus: true,
                watched: true,
                timestamps: false,
            },
            restored: restores.count(),
            restores,
        })
    }

    /// This end's identity.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        self.control.public_key()
    }

    /// Puts the peers in force. New ones are added and others removed; those of which only the
    /// addresses changed keep their sessions. `max_payload` is the longest UDP payload that the
    /// uplink takes, bytes. It cannot fail.
    pub fn set_peers(
        &mut self,
        specs: Vec<PeerSpec>,
        max_payload: usize,
        maps: &mut dyn ProgramMaps,
    ) {
        let now = clock::mono();
        self.set_max_payload(now, max_payload);
        (self.changes.inner_mtus, self.changes.watched) = (true, true);
        for slot in self.peers.stale(&specs) {
            self.remove_peer(slot, maps);
        }
        let routes = spec::peer_routes(&specs);
        for spec in specs {
            match self.peers.get(spec.slot) {
                Some(peer) if peer.spec == spec => {}
                Some(_) => self.update_peer(now, spec),
                None => self.add_peer(now, spec),
            }
        }
        for (vni, routes) in spec::route_changes(&self.routes, &routes) {
            self.workers
                .command_all(|| Command::PeerRoutes(vni, routes.clone()));
        }
        self.routes = routes;
        let followers = self.peers.iter().filter_map(|peer| {
            let circuit = peer.circuit.as_ref().filter(|circuit| circuit.follows())?;
            Some((circuit.id(), peer.spec.public_key))
        });
        let derive = |id, end: &_| tls_connections::key(&self.secret, end, id);
        if self.circuit_keys.set(followers, derive) {
            self.tls.listening.set_circuits(self.circuit_keys.known());
        }
        self.drive(maps);
    }

    /// The setup of a listener for tunnels over TLS as specified, for another thread; `None`:
    /// nothing is to be done, because they are accepted already, or that is being retried.
    #[must_use]
    pub fn listener_setup(&self, spec: &ListenSpec) -> Option<ListenerSetup> {
        self.tls.listening.prepare(spec)
    }

    /// Accepts tunnels over TLS by a prepared listener, in the place of the present one. It cannot
    /// fail; established connections stay.
    pub fn listen(&mut self, new: NewListener) {
        self.tls.listening.listen(new);
    }

    /// Accepts tunnels over TLS as specified. A failure is one of the
    /// [`problems`](Self::problems), and is tried again. It waits for the disk: for a start.
    pub fn listen_or_retry(&mut self, spec: &ListenSpec) {
        self.tls.listening.listen_or_retry(spec);
    }

    /// Accepts no more tunnels over TLS; established connections stay.
    pub fn stop_listening(&mut self) {
        self.tls.listening.stop_listening();
    }

    fn add_peer(&mut self, now: Instant, spec: PeerSpec) {
        let circuit = spec.circuit.as_ref().map(|spec| {
            let seed = tunnel::Random::u64(&mut self.random);
            CircuitClient::new(spec, self.paths.locals(), seed, now)
        });
        let max_payload = self.peer_payload(circuit.is_some());
        let mut config = match &spec.protocol {
            PeerProtocol::Appliance => PeerConfig {
                lanes: LANES,
                cipher: self.cipher,
                pmtu: Some(PmtuConfig {
                    ceiling: max_payload,
                    ..PmtuConfig::default()
                }),
                ..PeerConfig::causeway(spec.public_key, spec.dial)
            },
            PeerProtocol::WireGuard { keepalive, .. } => PeerConfig {
                timers: TimerConfig {
                    persistent_keepalive: *keepalive,
                    ..TimerConfig::wireguard()
                },
                ..PeerConfig::wireguard(spec.public_key)
            },
        };
        config.roams = circuit.is_none();
        config.preshared_key = spec.preshared_key.clone();
        config.paths = spec
            .addresses
            .iter()
            .copied()
            .map(PeerPath::Direct)
            .collect();
        config.timestamp = spec.timestamp;
        let id = self.control.add_peer(now, config);
        self.control.set_max_payload(now, id, max_payload);
        let assignments: Vec<_> = self.workers.assignments().collect();
        for (worker, assignment) in assignments.into_iter().enumerate() {
            let lanes = match &spec.protocol {
                PeerProtocol::Appliance => PeerLanes::appliance(assignment),
                PeerProtocol::WireGuard { vni, allowed, .. } => {
                    PeerLanes::wireguard(assignment, *vni, allowed.clone().into())
                }
            };
            let command = Command::Peer(spec.slot, Some(Box::new(lanes)));
            self.workers.command(worker, command);
        }
        if let Some(circuit) = &circuit {
            self.paths.add(spec.slot, circuit.follows());
        }
        let peer = Peer::new(spec, id, circuit, self.workers.len(), now);
        self.peers.insert(peer);
    }

    /// The longest datagram to a peer that the uplink takes, bytes of UDP payload.
    const fn peer_payload(&self, by_circuit: bool) -> usize {
        let circuit = if by_circuit { CIRCUIT_ID_LEN } else { 0 };
        self.max_payload.saturating_sub(circuit)
    }

    /// Sets the longest UDP payload of the uplink, bytes, for present peers, too.
    fn set_max_payload(&mut self, now: Instant, max_payload: usize) {
        if max_payload == self.max_payload {
            return;
        }
        tracing::info!(
            bytes = max_payload,
            "longest UDP payload of encrypted tunnels on the uplink"
        );
        self.max_payload = max_payload;
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|peer| (peer.id, peer.circuit.is_some()))
            .collect();
        for (id, by_circuit) in peers {
            let bytes = self.peer_payload(by_circuit);
            self.control.set_max_payload(now, id, bytes);
        }
    }

    /// Gives a peer other addresses or gateways; its sessions stay.
    fn update_peer(&mut self, now: Instant, spec: PeerSpec) {
        let Some(peer) = self.peers.get_mut(spec.slot) else {
            return;
        };
        let mut superfluous = None;
        match (&mut peer.circuit, &spec.circuit) {
            (Some(circuit), Some(new)) => {
                circuit.update(new, self.paths.locals(), now);
                if circuit.follows() {
                    self.paths.set_due_now(spec.slot);
                }
                let tls = peer.spec.circuit.as_ref().and_then(|old| old.tls.as_ref());
                if tls != new.tls.as_ref() {
                    superfluous = Some(new.id);
                    peer.transport = new.tls.as_ref().map(|_| TransportSelector::new(now));
                }
            }
            _ => {
                let addresses = spec
                    .addresses
                    .iter()
                    .copied()
                    .map(PeerPath::Direct)
                    .collect();
                self.control.set_paths(now, peer.id, addresses);
            }
        }
        peer.spec = spec;
        if let Some(circuit) = superfluous
            && self.tls.close(circuit)
        {
            drive::close_rings(&mut self.workers, circuit);
        }
    }

    fn remove_peer(&mut self, slot: u32, maps: &mut dyn ProgramMaps) {
        let Some(mut peer) = self.peers.remove(slot) else {
            return;
        };
        if let Some(circuit) = &mut peer.circuit {
            self.paths.remove(slot);
            if self.tls.close(circuit.id()) {
                drive::close_rings(&mut self.workers, circuit.id());
            }
            circuit.close(clock::mono());
            while let Some(message) = circuit.poll() {
                self.sockets.send(message.to, &message.bytes);
            }
        }
        self.control.remove_peer(peer.id);
        for index in peer.sessions.keys() {
            drive::forget_session(maps, *index);
        }
        self.workers.command_all(|| Command::Peer(slot, None));
    }

    /// Leaves every gateway. To be called before the process ends.
    pub fn unbind_gateways(&mut self) {
        let now = clock::mono();
        let (peers, sockets) = (&mut self.peers, &mut self.sockets);
        for circuit in peers
            .iter_mut()
            .filter_map(|(_, peer)| peer.circuit.as_mut())
        {
            circuit.close(now);
            while let Some(message) = circuit.poll() {
                sockets.send(message.to, &message.bytes);
            }
        }
    }

    /// Opens sockets of the workers on these interfaces, by name, closes all others, and tells the
    /// programs of them.
    pub fn set_ports(&mut self, wanted: &BTreeMap<String, PortSpec>, maps: &mut dyn ProgramMaps) {
        for ifindex in self.ports.remove_stale(wanted) {
            self.workers.request_all(|| Request::ClosePort(ifindex));
            self.workers.wake_all();
        }
        for (worker, request) in self.ports.open_missing(wanted, self.workers.len(), maps) {
            self.workers.request(worker, request);
        }
        self.workers.wake_all();
    }

    /// The first slot in `XSKS` of the sockets of each interface, by interface index.
    #[must_use]
    pub fn socket_slots(&self) -> BTreeMap<u32, u16> {
        self.ports.slots()
    }

    /// Longest inner IP packet that is not split, bytes, by the name of the peer. Peers whose path
    /// MTU is being searched or whose tunnel is down are missing.
    #[must_use]
    pub fn inner_mtus(&self) -> BTreeMap<String, u16> {
        let now = clock::mono();
        self.peers
            .iter()
            .filter_map(|peer| {
                let status = self.control.status(now, peer.id)?;
                let header = match peer.spec.protocol {
                    PeerProtocol::WireGuard { .. } => 0,
                    PeerProtocol::Appliance if status.pmtu_searching || status.down.is_some() => {
                        return None;
                    }
                    PeerProtocol::Appliance => tunnel::segment::HEADER_BYTES,
                };
                let mtu = status.max_datagram - tunnel::wire::DATA_OVERHEAD - header;
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                Some((peer.spec.name.clone(), mtu))
            })
            .collect()
    }

    /// Whether [`TunnelManager::inner_mtus`] may have changed since the last call.
    #[must_use]
    pub const fn inner_mtus_changed(&mut self) -> bool {
        self.control.take_mtus_changed() | std::mem::replace(&mut self.changes.inner_mtus, false)
    }

    /// Addresses whose next hop is to be watched.
    #[must_use]
    pub fn watched_addresses(&self) -> Vec<IpAddr> {
        self.peers
            .iter()
            .flat_map(|peer| peer.addresses().chain(peer.handshake_source))
            .collect()
    }

    /// Whether [`TunnelManager::watched_addresses`] may have changed since the last call.
    #[must_use]
    pub const fn watched_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changes.watched, false)
    }

    /// Timestamps of the newest handshakes sent, by the peers' public keys, if any were sent since
    /// the last call.
    #[must_use]
    pub fn take_timestamps(&mut self) -> Vec<(PublicKey, Tai64n)> {
        if !std::mem::take(&mut self.changes.timestamps) {
            return Vec::new();
        }
        self.peers
            .iter()
            .filter_map(|peer| {
                let timestamp = self.control.timestamp(peer.id)?;
                (timestamp != Tai64n::default()).then_some((peer.spec.public_key, timestamp))
            })
            .collect()
    }

    /// Passes changes of the shared tables on to every worker, in this order.
    pub fn write_tables(&mut self, writes: &[TableWrite]) {
        for write in writes {
            self.workers.command_all(|| match write {
                TableWrite::Network(slot, network) => Command::Network(*slot, network.clone()),
                TableWrite::Tenant(slot, tenant) => Command::Tenant(*slot, *tenant),
                TableWrite::Endpoint(key, is_there) => Command::Endpoint(*key, *is_there),
                TableWrite::Neighbour(key, neighbour) => {
                    Command::Neighbour(*key, neighbour.map(Box::new))
                }
            });
        }
        self.workers.wake_all();
    }

    /// Follows next hops, our own addresses, and the longest UDP payload that the uplink takes,
    /// bytes.
    pub fn set_underlay(
        &mut self,
        next_hops: NextHops,
        locals: &[IpAddr],
        max_payload: usize,
        maps: &mut dyn ProgramMaps,
    ) {
        let changed = self.paths.set_underlay(next_hops, locals);
        let now = clock::mono();
        self.sockets.bind(now, locals);
        self.set_max_payload(now, max_payload);
        self.changes.watched = true;
        for (slot, peer) in self.peers.iter_mut() {
            if let (Some(circuit), Some(spec)) = (&mut peer.circuit, &peer.spec.circuit) {
                circuit.update(spec, locals, now);
                if circuit.follows() {
                    self.paths.set_due_now(slot);
                }
            }
            if let Some(transport) = peer.transport.as_mut().filter(|_| changed) {
                transport.underlay_changed(now);
            }
        }
        self.tls.listening.listen_again();
        for slot in self.peers.slots() {
            self.update_outer(slot);
        }
        self.write_peer_addresses(maps);
        self.drive(maps);
    }

    /// Retries failed operations that are due: addresses that could not be bound, the listener.
    /// To be called every second; interfaces without sockets are tried again by
    /// [`TunnelManager::set_ports`].
    pub fn retry(&mut self) {
        let now = clock::mono();
        self.sockets.bind_again(now);
        self.tls.listening.listen_if_due(now);
    }

    /// Whether some interface has no sockets that should have.
    #[must_use]
    pub fn has_port_errors(&self) -> bool {
        self.ports.has_errors()
    }

    /// Whether some gateway, or a peer behind gateways, does not answer: names of gateways may have
    /// other addresses now.
    #[must_use]
    pub fn gateways_troubled(&self) -> bool {
        let now = clock::mono();
        self.peers.iter().any(|peer| {
            let circuit = peer.circuit.as_ref();
            circuit.is_some_and(|circuit| peer.silent || circuit.is_troubled(now))
        })
    }

    /// Handshake messages that found no room in the queue.
    #[must_use]
    pub const fn handshakes_dropped(&self) -> u64 {
        self.handshakes.dropped()
    }

    /// Waits until a handshake message or a report is there.
    pub async fn ready(&self) {
        tokio::select! {
            () = self.sockets.readable() => {}
            () = self.workers.readable() => {}
        }
    }

    /// Handles handshake messages, reports and expired timers.
    pub fn work(&mut self, maps: &mut dyn ProgramMaps) -> HostActivity {
        self.follow_restores(maps);
        self.take_messages();
        let hosts = self.take_reports();
        self.drive(maps);
        hosts
    }

    /// Retires all sessions if the machine was restored from a snapshot. The workers have wiped
    /// them by themselves, and take new ones after the last command here.
    fn follow_restores(&mut self, maps: &mut dyn ProgramMaps) {
        let restores = self.restores.count();
        if restores == self.restored {
            return;
        }
        self.restored = restores;
        self.control.retire_all(clock::mono());
        if self.take_outputs(maps) {
            self.write_peer_addresses(maps);
        }
        self.workers
            .command_all(|| Command::SessionsRetired(restores));
        self.workers.wake_all();
    }

    /// When [`TunnelManager::work`] is to be called if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let choosing = || {
            self.paths
                .choosing()
                .filter_map(|slot| self.peers.get(slot))
        };
        let circuits = choosing().filter_map(|peer| peer.circuit.as_ref());
        let transports = choosing().filter_map(|peer| peer.transport.as_ref());
        circuits
            .filter_map(CircuitClient::next_deadline)
            .chain(transports.filter_map(TransportSelector::next_deadline))
            .chain(self.paths.next_following())
            .chain(self.control.next_deadline())
            .chain(self.handshakes.next_deadline(clock::mono()))
            .min()
    }

    /// The problems that keep the encrypted tunnels of all peers from working: messages for the
    /// operator.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.sockets
            .problems()
            .chain(self.ports.problems())
            .chain(self.tls.listening.problem())
            .cloned()
            .chain(self.workers.problems())
            .collect()
    }

    /// Why an interface has no sockets, if it should have.
    #[must_use]
    pub fn port_error(&self, ifindex: u32) -> Option<&str> {
        self.ports.error(ifindex)
    }

    /// State of the tunnel to the peer in a slot.
    #[must_use]
    pub fn status(&self, slot: u32) -> Option<PeerStatus> {
        let peer = self.peers.get(slot)?;
        let now = clock::mono();
        let control = self.control.status(now, peer.id)?;
        let sources = Sources {
            own_key: self.public_key(),
            paths: &self.paths,
            tls: &self.tls,
        };
        Some(sources.peer_status(now, peer, &control))
    }

    /// The TLS listener, if there is one: the fingerprint that tenants pin, counters of
    /// connections, and how many are established.
    #[must_use]
    pub fn tls_listener(&self) -> Option<(Fingerprint, ListenerStats, usize)> {
        self.tls.listening.status()
    }

    /// Counters of handshakes.
    #[must_use]
    pub fn handshakes(&self) -> ControlStats {
        self.control.stats()
    }

    /// Counters of each worker.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.workers.status()
    }

    /// Packets that the workers counted.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.workers.counter(counter)
    }

    /// Frames for which the workers' sockets had no room.
    #[must_use]
    pub fn rx_dropped(&self) -> u64 {
        self.workers.rx_dropped()
    }

    /// Handshake messages that could not be sent.
    #[must_use]
    pub const fn send_errors(&self) -> u64 {
        self.sockets.send_errors()
    }

    /// Traffic of the network in a slot that the workers carried.
    #[must_use]
    pub fn network(&self, slot: u32) -> NetworkStats {
        self.workers.network(slot)
    }

    /// Tells the programs where peers and gateways are: their handshakes do not share the budget of
    /// unknown addresses.
    fn write_peer_addresses(&mut self, maps: &mut dyn ProgramMaps) {
        let wanted = self.peers.addresses();
        for &address in self.known_addresses.difference(&wanted) {
            let known = false;
            if let Err(error) = maps.apply(MapWrite::PeerAddress { address, known }) {
                tracing::error!(%error, "cannot remove a peer's old address from PEER_ADDRESSES");
            }
        }
        for &address in wanted.difference(&self.known_addresses) {
            let known = true;
            if let Err(error) = maps.apply(MapWrite::PeerAddress { address, known }) {
                tracing::error!(%error, "cannot write a peer's address to the programs' map");
            }
        }
        self.known_addresses = wanted;
    }
}
