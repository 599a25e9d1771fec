//! The control half of the encrypted tunnels: what the crate `tunnel` decides, done.
//!
//! ```text
//!   UDP socket ─ handshakes ─▶ TunnelControl ─ outputs ─▶ sessions ─▶ worker, then SESSIONS (so that
//!   workers ─── events ──────▶      ▲                     datagrams   the programs steer only what a
//!   time ───────────────────────────┘                     addresses   worker knows)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use appliance_common::{
    addr::{Address, Prefix, from_ip},
    counters::Counter,
    limits::MAX_QUEUES,
    maps::{HostKey, NO_XSK, NetworkStats},
    wire::CIRCUIT_ID_LEN,
};
use gateway_client::{reach::GatewayState, wire::CircuitId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::{io::unix::AsyncFd, net::UdpSocket};
use tunnel::{
    Cipher, CipherChoice, CipherTimings, DownReason, InitiationPolicy, Instant, LoadLimits, Now,
    Output, PeerConfig, PeerId, PeerPath, PmtuConfig, PresharedKey, PublicKey, RxActivity, RxStats,
    SecretKey, Tai64n, TimerConfig, TunnelControl, TxActivity, bench_cipher, control::ControlStats,
};

mod circuits;
mod control;
mod fallback;
mod schedule;
mod streams;

pub use circuits::CircuitSpec;
pub use streams::{ListenSpec, TlsSpec, certificate_file};

use circuits::Circuit;
use control::Control;
use fallback::{By, Fallback, Seen};
use schedule::Schedule;
use streams::{Change, Streams};

use crate::{
    clock,
    host::{MapWrite, NextHop, NextHops, ProgramMaps, TableWrite},
    keys::OsRandom,
    pipeline::{
        Command, Event, LANES, LaneAssignment, OuterHeader, PeerLanes, PeerRoute, circuit_id,
    },
    tls::{Counted, Fingerprint, Refusals},
    worker::{self, Order, Settings, UnresolvedPacket, WaitMode, Worker},
};

/// Datagrams taken from a socket before the other work gets its turn.
const BATCH: usize = 256;
/// Frames of each direction of a socket.
const FRAMES: u32 = 4096;
/// A worker that has not looked for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// Packets sealed in one round with each cipher to see which is faster: below a millisecond.
const MEASURED: u32 = 500;
/// Handshakes without an answer that make a way doubtful.
const UNANSWERED: u32 = 3;
/// Bytes of the longest message of a handshake.
const LONGEST_HANDSHAKE: usize = 148;
/// Messages of our own that wait for a peer's way to be known.
const OWED: usize = 8;
/// Rounds of outputs in a row before other work gets its turn.
const ROUNDS: usize = 4;

/// What stands in the way of encrypted tunnels.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A worker could not be started.
    #[error("start worker {index}: {source}")]
    Worker {
        /// Its number.
        index: u32,
        /// Why.
        source: io::Error,
    },
    /// The socket for handshakes could not be had.
    #[error("bind UDP {address} for handshakes: {source}; is another program on this port?")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A worker sends by a queue of its own.
    #[error(
        "{interface} has {queues} receive and transmit queues for {workers} workers, and each needs one: run `ethtool -L {interface} \
         combined {workers}` (virtual links: rx {workers} tx {workers}), or write fewer in tunnel.workers"
    )]
    Queues {
        /// The interface.
        interface: String,
        /// What it has.
        queues: u32,
        /// What is configured.
        workers: u32,
    },
    /// An AF_XDP socket could not be had.
    #[error("AF_XDP on {interface}: {source}")]
    Socket {
        /// The interface.
        interface: String,
        /// Why.
        source: xsk::Error,
    },
}

/// A peer as configured.
#[derive(Debug, Clone)]
pub struct PeerSpec {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u32,
    /// Its identity.
    pub public_key: PublicKey,
    /// A secret shared beside the keys.
    pub preshared_key: PresharedKey,
    /// Where to dial.
    pub addresses: Vec<SocketAddr>,
    /// The circuit by which it is reached instead.
    pub circuit: Option<CircuitSpec>,
    /// Who dials.
    pub dial: InitiationPolicy,
    /// What it is.
    pub protocol: PeerProtocol,
    /// Timestamp of the newest handshake sent to it, from storage.
    pub timestamp: Tai64n,
}

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerProtocol {
    /// Another appliance.
    Appliance,
    /// Any WireGuard.
    WireGuard {
        /// VNI of the network it is in.
        vni: u32,
        /// The addresses it may have there.
        allowed: Vec<Prefix>,
        /// A keep-alive this often, if at all.
        keepalive: Option<Duration>,
    },
}

impl PartialEq for PeerSpec {
    fn eq(&self, other: &Self) -> bool {
        self.same_but_addresses(other)
            && self.addresses == other.addresses
            && self.circuit == other.circuit
    }
}

impl PeerSpec {
    fn same_but_addresses(&self, other: &Self) -> bool {
        (
            &self.name,
            self.slot,
            self.public_key,
            self.dial,
            &self.protocol,
            self.circuit.as_ref().map(CircuitSpec::identity),
        ) == (
            &other.name,
            other.slot,
            other.public_key,
            other.dial,
            &other.protocol,
            other.circuit.as_ref().map(CircuitSpec::identity),
        ) && self.preshared_key.expose() == other.preshared_key.expose()
    }
}

/// An interface that workers need sockets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its index.
    pub ifindex: u32,
    /// Its receive queues.
    pub queues: u32,
    /// Its transmit queues.
    pub tx_queues: u32,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// How a peer's tunnel is.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its identity.
    pub public_key: PublicKey,
    /// Where data goes.
    pub way: Option<PeerPath>,
    /// The gateway by which it goes; `None`: by none.
    pub via: Option<String>,
    /// The gateways, if it is reached by such.
    pub gateways: Vec<GatewayState>,
    /// Who is at the other end of its TLS connection, and what that carried, if there is one.
    pub stream: Option<(SocketAddr, Counted)>,
    /// Whether there is a session and the peer answers.
    pub up: bool,
    /// Why not, for a person; empty when it is up.
    pub why_down: String,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Longest IP packet on the path, bytes.
    pub path_mtu: usize,
    /// Round-trip time, smoothed.
    pub round_trip: Option<Duration>,
    /// Of the last 32 echoes, how many were lost, per cent.
    pub loss_percent: u32,
    /// Cipher for sending.
    pub cipher: Cipher,
    /// Datagrams sent.
    pub tx_packets: u64,
    /// Their bytes, of UDP payload.
    pub tx_bytes: u64,
    /// Received.
    pub rx: RxStats,
    /// Replayed handshakes refused.
    pub replayed_handshakes: u64,
}

/// What the workers told that is for somebody else.
#[derive(Default)]
pub struct HostActivity {
    /// Hosts that packets went to.
    pub used: Vec<HostKey>,
    /// Packets whose host is not resolved.
    pub unresolved: Vec<UnresolvedPacket>,
}

struct End {
    spec: PeerSpec,
    id: PeerId,
    way: Option<PeerPath>,
    circuit: Option<Circuit>,
    /// Where a tunnel over TLS may take the place of UDP.
    fallback: Option<Fallback>,
    /// Where a handshake came from that may become its address.
    seen: Option<IpAddr>,
    outer: Option<OuterHeader>,
    /// Messages of our own that wait for the way to be known, at most [`OWED`].
    owed: Vec<Command>,
    max_datagram: usize,
    /// The workers were told that it is silent.
    silent: bool,
    /// By worker.
    tx: Vec<TxActivity>,
    rx: Vec<RxActivity>,
    stats: Vec<RxStats>,
    /// Indices on the wire, with the session's name.
    indices: BTreeMap<u32, u32>,
}

impl End {
    /// Where it, or a gateway to it, may be.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let dialed = self.spec.addresses.iter().map(SocketAddr::ip);
        let now = self.way.and_then(|way| way.address()).map(|a| a.ip());
        let gateways = self.circuit.iter().flat_map(Circuit::addresses);
        dialed.chain(now).chain(gateways)
    }

    /// Whether data is to go by the way that an authentic message came. An end that chooses its gateway says itself by
    /// which; and what came by another's circuit, or past the gateways, was brought there by somebody else.
    fn may_move_to(&self, way: PeerPath) -> bool {
        match &self.circuit {
            None => matches!(way, PeerPath::Direct(_)),
            Some(circuit) => circuit.awaits() && circuit.is_by(way),
        }
    }
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

/// The encrypted tunnels of this appliance.
pub struct TunnelManager {
    secret: SecretKey,
    control: Control,
    random: OsRandom,
    port: u16,
    memory: xsk::Memory,
    cipher: Cipher,
    workers: Vec<Worker>,
    streams: Streams,
    notify: AsyncFd<OwnedFd>,
    event: Arc<EventFd>,
    sockets: BTreeMap<IpAddr, UdpSocket>,
    bind_errors: BTreeMap<IpAddr, String>,
    /// By slot.
    ends: BTreeMap<u32, End>,
    by_id: BTreeMap<PeerId, u32>,
    by_circuit: BTreeMap<CircuitId, u32>,
    /// Slots whose circuit's end chooses its gateway: looked at each time, being few.
    choosing: BTreeSet<u32>,
    /// Slots whose circuit's end awaits the other: as many as there are tenants.
    awaiting: Schedule,
    /// There are other peers since [`TunnelManager::stirred`] was asked.
    stirred: bool,
    /// There are other addresses of peers or gateways since [`TunnelManager::moved`] was asked.
    moved: bool,
    /// Handshake messages went out since [`TunnelManager::timestamps`] was asked.
    stamped: bool,
    members: BTreeMap<u32, Vec<PeerRoute>>,
    /// By interface index: what its sockets are for, and where they are in `XSKS`.
    ports: BTreeMap<u32, (PortSpec, u16)>,
    port_errors: BTreeMap<u32, String>,
    known: BTreeSet<Address>,
    next_hops: NextHops,
    locals: Vec<IpAddr>,
    ceiling: usize,
    send_errors: u64,
}

/// Seals with both ciphers and takes the time: the CPU's, not the clock's, and the best of several rounds,
/// so that a machine that is busy or held up chooses as an idle one does.
fn measure() -> CipherTimings {
    let time = |cipher| {
        (0..8)
            .map(|_| {
                let begun = clock::thread_nanos();
                std::hint::black_box(bench_cipher(cipher, MEASURED));
                clock::thread_nanos() - begun
            })
            .min()
            .unwrap_or_default()
    };
    CipherTimings {
        chacha20_poly1305: time(Cipher::ChaCha20Poly1305),
        aes_256_gcm: time(Cipher::Aes256Gcm),
    }
}

impl TunnelManager {
    /// Starts the workers. There are no peers, sockets or ports yet.
    ///
    /// # Errors
    /// When a thread or descriptor cannot be had.
    pub fn start(
        secret: SecretKey,
        port: u16,
        choice: CipherChoice,
        memory: xsk::Memory,
        (workers, cpus, waiting): (u32, &[usize], WaitMode),
    ) -> Result<Self, Error> {
        let failed = |index| move |source| Error::Worker { index, source };
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|source| failed(0)(source.into()))?;
        let event = Arc::new(event);
        let notify = worker::duplicate(&event)
            // SAFETY: the descriptor is owned, always the same one, and dropped with the AsyncFd.
            .and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from))
            .map_err(failed(0))?;
        let measured = measure();
        let cipher = choice.resolve(measured);
        tracing::info!(
            cipher = cipher.name(),
            chosen = if choice == CipherChoice::Auto {
                "measured"
            } else {
                "configured"
            },
            chacha20_poly1305_ns = measured.chacha20_poly1305 / u64::from(MEASURED),
            aes_256_gcm_ns = measured.aes_256_gcm / u64::from(MEASURED),
            "cipher for sending, time for 1420 bytes"
        );
        let mut random = OsRandom;
        let workers = workers.clamp(1, LANES);
        let settings: Vec<Settings> = (0..workers)
            .filter_map(|index| LaneAssignment::new(index, workers))
            .map(|assignment| Settings {
                assignment,
                cpu: cpus
                    .get(assignment.index() as usize % cpus.len().max(1))
                    .copied(),
                waiting,
                seed: tunnel::Random::u64(&mut random),
            })
            .collect();
        let started = Worker::start(&settings, &event)
            .map_err(|(index, source)| Error::Worker { index, source })?;
        let streams = Streams::new(&started, &event);
        Ok(Self {
            control: Control::new(TunnelControl::new(secret.clone(), LoadLimits::default())),
            secret,
            random,
            port,
            memory,
            cipher,
            workers: started,
            streams,
            notify,
            event,
            sockets: BTreeMap::new(),
            bind_errors: BTreeMap::new(),
            ends: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_circuit: BTreeMap::new(),
            choosing: BTreeSet::new(),
            awaiting: Schedule::default(),
            stirred: true,
            moved: true,
            stamped: false,
            members: BTreeMap::new(),
            ports: BTreeMap::new(),
            port_errors: BTreeMap::new(),
            known: BTreeSet::new(),
            next_hops: NextHops::new(),
            locals: Vec::new(),
            ceiling: 1472,
            send_errors: 0,
        })
    }

    /// This end's identity.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        self.control.public_key()
    }

    /// Counters of handshakes.
    #[must_use]
    pub fn handshakes(&self) -> ControlStats {
        self.control.stats()
    }

    /// Puts the peers in force: new ones are added, others go, and those that only have other addresses keep
    /// their sessions. `ceiling` is the longest datagram that the uplink takes, bytes; `listen` is where tunnels
    /// over TLS arrive.
    pub fn set_peers(
        &mut self,
        specs: Vec<PeerSpec>,
        ceiling: usize,
        listen: Option<&ListenSpec>,
        maps: &mut dyn ProgramMaps,
    ) {
        let now = clock::mono();
        self.ceiling = ceiling;
        (self.stirred, self.moved) = (true, true);
        let gone: Vec<u32> = self
            .ends
            .iter()
            .filter(|(slot, end)| {
                !specs
                    .iter()
                    .any(|spec| spec.slot == **slot && spec.same_but_addresses(&end.spec))
            })
            .map(|(slot, _)| *slot)
            .collect();
        for slot in gone {
            self.remove(slot, maps);
        }
        let mut members: BTreeMap<u32, Vec<PeerRoute>> = BTreeMap::new();
        for spec in specs {
            if let PeerProtocol::WireGuard { vni, allowed, .. } = &spec.protocol {
                members
                    .entry(*vni)
                    .or_default()
                    .extend(allowed.iter().map(|prefix| PeerRoute {
                        prefix: *prefix,
                        peer: spec.slot,
                    }));
            }
            match self.ends.get_mut(&spec.slot) {
                Some(end) if end.spec == spec => {}
                Some(end) => {
                    match (&mut end.circuit, &spec.circuit) {
                        (Some(circuit), Some(new)) => {
                            circuit.update(new, &self.locals, now);
                            if circuit.awaits() {
                                self.awaiting.stir(spec.slot);
                            }
                            let tls = end.spec.circuit.as_ref().and_then(|old| old.tls.as_ref());
                            if tls != new.tls.as_ref() {
                                self.streams.close(new.id, &mut self.workers);
                                end.fallback = new.tls.as_ref().map(|_| Fallback::new(now));
                            }
                        }
                        _ => {
                            let ways = spec
                                .addresses
                                .iter()
                                .copied()
                                .map(PeerPath::Direct)
                                .collect();
                            self.control.set_paths(now, end.id, ways);
                        }
                    }
                    end.spec = spec;
                }
                None => self.add(now, spec),
            }
        }
        for (vni, of_network) in &members {
            if self.members.get(vni) != Some(of_network) {
                for worker in &mut self.workers {
                    worker.command(Command::PeerRoutes(*vni, of_network.clone().into()));
                }
            }
        }
        for vni in self.members.keys().filter(|vni| !members.contains_key(vni)) {
            for worker in &mut self.workers {
                worker.command(Command::PeerRoutes(*vni, Box::default()));
            }
        }
        self.members = members;
        let keys = self.ends.values().filter_map(|end| {
            let id = end
                .circuit
                .as_ref()
                .filter(|circuit| circuit.awaits())?
                .id();
            Some((id, streams::key(&self.secret, &end.spec.public_key, id)?))
        });
        let keys = keys.collect();
        self.streams.listen(listen, keys);
        self.drive(maps);
    }

    fn add(&mut self, now: Instant, spec: PeerSpec) {
        let workers = self.workers.len();
        let circuit = spec.circuit.as_ref().map(|spec| {
            Circuit::new(
                spec,
                &self.locals,
                tunnel::Random::u64(&mut self.random),
                now,
            )
        });
        let ceiling = match circuit {
            Some(_) => self.ceiling.saturating_sub(CIRCUIT_ID_LEN),
            None => self.ceiling,
        };
        let mut config = match &spec.protocol {
            PeerProtocol::Appliance => PeerConfig {
                lanes: LANES,
                cipher: self.cipher,
                pmtu: Some(PmtuConfig {
                    ceiling,
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
        config.max_datagram = config.max_datagram.min(ceiling);
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
        for worker in &mut self.workers {
            let assignment = worker.settings.assignment;
            let lanes = match &spec.protocol {
                PeerProtocol::Appliance => PeerLanes::appliance(assignment),
                PeerProtocol::WireGuard { vni, allowed, .. } => {
                    PeerLanes::wireguard(assignment, *vni, allowed.clone().into())
                }
            };
            worker.command(Command::Peer(spec.slot, Some(Box::new(lanes))));
        }
        self.by_id.insert(id, spec.slot);
        if let Some(circuit) = &circuit {
            self.by_circuit.insert(circuit.id(), spec.slot);
            if circuit.awaits() {
                self.awaiting.stir(spec.slot);
            } else {
                self.choosing.insert(spec.slot);
            }
        }
        self.ends.insert(
            spec.slot,
            End {
                id,
                way: None,
                circuit,
                fallback: spec
                    .circuit
                    .as_ref()
                    .and_then(|circuit| circuit.tls.as_ref())
                    .map(|_| Fallback::new(now)),
                seen: None,
                outer: None,
                owed: Vec::new(),
                max_datagram: tunnel::MIN_DATAGRAM,
                silent: false,
                tx: vec![TxActivity::default(); workers],
                rx: vec![RxActivity::default(); workers],
                stats: vec![RxStats::default(); workers],
                indices: BTreeMap::new(),
                spec,
            },
        );
    }

    fn remove(&mut self, slot: u32, maps: &mut dyn ProgramMaps) {
        let Some(mut end) = self.ends.remove(&slot) else {
            return;
        };
        self.by_id.remove(&end.id);
        if let Some(circuit) = &mut end.circuit {
            self.by_circuit.remove(&circuit.id());
            self.choosing.remove(&slot);
            self.awaiting.set(slot, None);
            self.streams.close(circuit.id(), &mut self.workers);
            circuit.close(clock::mono());
            while let Some(say) = circuit.poll() {
                self.send(say.to, &say.message);
            }
        }
        self.control.remove_peer(end.id);
        for index in end.indices.keys() {
            forget(maps, *index);
        }
        for worker in &mut self.workers {
            worker.command(Command::Peer(slot, None));
        }
    }

    /// Tells every gateway that this end leaves it: before the process ends.
    pub fn leave(&mut self) {
        let now = clock::mono();
        let mut words = Vec::new();
        for circuit in self
            .ends
            .values_mut()
            .filter_map(|end| end.circuit.as_mut())
        {
            circuit.close(now);
            words.extend(std::iter::from_fn(|| circuit.poll()));
        }
        for say in words {
            self.send(say.to, &say.message);
        }
    }

    /// Sees that the workers have sockets on these interfaces and no others, and that the programs find
    /// them. `interfaces` are for messages.
    pub fn set_ports(&mut self, wanted: &BTreeMap<String, PortSpec>, maps: &mut dyn ProgramMaps) {
        let stale: Vec<u32> = self
            .ports
            .iter()
            .filter(|(_, (spec, _))| !wanted.values().any(|w| w == spec))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in stale {
            self.ports.remove(&ifindex);
            for worker in &mut self.workers {
                worker.order(Order::Unport(ifindex));
                worker.wake();
            }
        }
        self.port_errors
            .retain(|ifindex, _| wanted.values().any(|w| w.ifindex == *ifindex));
        for (interface, spec) in wanted {
            if self.ports.contains_key(&spec.ifindex) {
                continue;
            }
            match self.open(interface, spec, maps) {
                Ok(base) => {
                    self.port_errors.remove(&spec.ifindex);
                    self.ports.insert(spec.ifindex, (spec.clone(), base));
                    tracing::info!(interface, queues = spec.queues, "AF_XDP sockets are open");
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.port_errors.get(&spec.ifindex) != Some(&text) {
                        tracing::warn!(interface, reason = text, "interface without workers");
                    }
                    self.port_errors.insert(spec.ifindex, text);
                }
            }
        }
        self.wake();
    }

    fn open(
        &mut self,
        interface: &str,
        spec: &PortSpec,
        maps: &mut dyn ProgramMaps,
    ) -> Result<u16, Error> {
        let failed = |source| Error::Socket {
            interface: interface.to_owned(),
            source,
        };
        let taken: BTreeSet<u16> = self.ports.values().map(|(_, base)| *base).collect();
        let step = MAX_QUEUES as u16;
        let base = (0..15)
            .map(|n| 1 + n * step)
            .find(|base| !taken.contains(base))
            .ok_or_else(|| {
                failed(xsk::Error::Os {
                    operation: "find a slot for the socket",
                    source: io::Error::other("15 interfaces have sockets, which is the most"),
                })
            })?;
        let workers = self.workers.len() as u32;
        let queues = spec.queues.min(spec.tx_queues);
        if queues < workers {
            return Err(Error::Queues {
                interface: interface.to_owned(),
                queues,
                workers,
            });
        }
        let mut halves = Vec::new();
        for queue in 0..spec.queues.clamp(1, MAX_QUEUES) {
            let config = xsk::Config {
                ifindex: spec.ifindex,
                queue,
                rx_frames: FRAMES,
                tx_frames: FRAMES,
                // The kernel keeps 256 bytes before each frame for the programs.
                frame_size: if spec.mtu <= 1700 { 2048 } else { 4096 },
                memory: self.memory,
                busy_poll: None,
            };
            // The process before this one may have had the queue until a moment ago.
            halves.push(xsk::bind_within(&config, Duration::from_millis(500)).map_err(failed)?);
        }
        for (queue, (rx, tx)) in (0u32..).zip(halves) {
            maps.apply(MapWrite::Socket {
                slot: u32::from(base) + queue,
                socket: rx.fd(),
            })
            .map_err(|error| {
                failed(xsk::Error::Os {
                    operation: "tell the programs of the socket",
                    source: io::Error::other(error),
                })
            })?;
            let index = queue as usize % self.workers.len();
            self.workers[index].order(Order::Port(Box::new((rx, tx))));
        }
        Ok(base)
    }

    /// Where the sockets of each interface are in `XSKS`, by index.
    #[must_use]
    pub fn xsks(&self) -> BTreeMap<u32, u16> {
        self.ports
            .iter()
            .map(|(ifindex, (_, base))| (*ifindex, *base))
            .collect()
    }

    /// Longest IP packet that goes whole to each peer, by name, where it is settled, bytes.
    #[must_use]
    pub fn rooms(&self) -> BTreeMap<String, u16> {
        let now = clock::mono();
        self.ends
            .values()
            .filter_map(|end| {
                let status = self.control.status(now, end.id)?;
                let header = match end.spec.protocol {
                    PeerProtocol::WireGuard { .. } => 0,
                    PeerProtocol::Appliance if status.pmtu_searching || status.down.is_some() => {
                        return None;
                    }
                    PeerProtocol::Appliance => tunnel::segment::HEADER_BYTES,
                };
                let room = status.max_datagram - tunnel::wire::DATA_OVERHEAD - header;
                Some((
                    end.spec.name.clone(),
                    u16::try_from(room).unwrap_or(u16::MAX),
                ))
            })
            .collect()
    }

    /// Whether [`TunnelManager::rooms`] may say something else than when this was last asked.
    #[must_use]
    pub const fn stirred(&mut self) -> bool {
        self.control.touched() | std::mem::replace(&mut self.stirred, false)
    }

    /// Whether [`TunnelManager::watched`] may say something else than when this was last asked.
    #[must_use]
    pub const fn moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    /// Timestamps of the newest handshakes sent, by the peers' public keys, if any were sent since this was last asked.
    #[must_use]
    pub fn timestamps(&mut self) -> Vec<(PublicKey, Tai64n)> {
        if !std::mem::take(&mut self.stamped) {
            return Vec::new();
        }
        self.ends
            .values()
            .filter_map(|end| {
                let timestamp = self.control.timestamp(end.id)?;
                (timestamp != Tai64n::default()).then_some((end.spec.public_key, timestamp))
            })
            .collect()
    }

    /// Passes changes of the tables on to every worker, in this order.
    pub fn write(&mut self, writes: &[TableWrite]) {
        for worker in &mut self.workers {
            for write in writes {
                worker.command(match write {
                    TableWrite::Network(slot, network) => Command::Network(*slot, network.clone()),
                    TableWrite::Tenant(slot, tenant) => Command::Tenant(*slot, *tenant),
                    TableWrite::Endpoint(key, is_there) => Command::Endpoint(*key, *is_there),
                    TableWrite::Neighbour(key, neighbour) => {
                        Command::Neighbour(*key, neighbour.map(Box::new))
                    }
                });
            }
            worker.wake();
        }
    }

    /// Addresses whose way is to be watched.
    #[must_use]
    pub fn watched(&self) -> Vec<IpAddr> {
        self.ends
            .values()
            .flat_map(|end| end.addresses().chain(end.seen))
            .collect()
    }

    /// Follows links, routes and our own addresses.
    pub fn underlay(&mut self, next_hops: NextHops, locals: &[IpAddr], maps: &mut dyn ProgramMaps) {
        let changed = self.locals != locals;
        self.next_hops = next_hops;
        if self.locals != locals {
            self.locals = locals.to_vec();
            self.sockets.retain(|local, _| locals.contains(local));
            self.bind_errors.retain(|local, _| locals.contains(local));
        }
        for local in locals {
            if self.sockets.contains_key(local) {
                continue;
            }
            match bind_udp(SocketAddr::new(*local, self.port)) {
                Ok(socket) => {
                    self.bind_errors.remove(local);
                    self.sockets.insert(*local, socket);
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.bind_errors.get(local) != Some(&text) {
                        tracing::warn!(reason = text, "no handshakes on this address");
                    }
                    self.bind_errors.insert(*local, text);
                }
            }
        }
        let now = clock::mono();
        self.moved = true;
        for (slot, end) in &mut self.ends {
            if let (Some(circuit), Some(spec)) = (&mut end.circuit, &end.spec.circuit) {
                circuit.update(spec, locals, now);
                if circuit.awaits() {
                    self.awaiting.stir(*slot);
                }
            }
            if let Some(fallback) = end.fallback.as_mut().filter(|_| changed) {
                fallback.moved(now);
            }
        }
        self.streams.listen_again();
        let slots: Vec<u32> = self.ends.keys().copied().collect();
        for slot in slots {
            self.route(slot);
        }
        self.tell_addresses(maps);
        self.drive(maps);
    }

    /// Finds the way to a peer and tells the workers if it changed.
    fn route(&mut self, slot: u32) {
        let Some(end) = self.ends.get_mut(&slot) else {
            return;
        };
        let outer = end.way.and_then(|way| {
            if let (PeerPath::Stream(id), Some(circuit)) = (way, &end.circuit) {
                return self
                    .streams
                    .is_live(circuit.id())
                    .then(|| OuterHeader::tls(id));
            }
            let remote = way.address()?;
            let local = self
                .locals
                .iter()
                .find(|local| local.is_ipv4() == remote.is_ipv4())?;
            match self.next_hops.get(&remote.ip()) {
                Some(NextHop::Resolved {
                    ifindex,
                    source_mac,
                    next_hop_mac,
                }) => OuterHeader::new(
                    *ifindex,
                    *next_hop_mac,
                    *source_mac,
                    SocketAddr::new(*local, self.port),
                    way,
                ),
                // Being looked up, or silent just now: the way it had is right far more often than none.
                None
                | Some(NextHop::Unresolved {
                    transient: true, ..
                }) => end.outer.filter(|outer| outer.way == way),
                Some(NextHop::Unresolved { .. }) => None,
            }
        });
        if outer != end.outer {
            end.outer = outer;
            for worker in &mut self.workers {
                worker.command(Command::OuterHeader(slot, outer.map(Box::new)));
            }
            if outer.is_some() {
                for command in end.owed.drain(..) {
                    self.workers[0].command(command);
                }
            }
        }
    }

    /// Has lane zero send a message of our own, now or as soon as the way to the peer is known: a peer that
    /// just called waits for an answer.
    fn say(&mut self, peer: PeerId, command: impl FnOnce(u32) -> Command) {
        let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) else {
            return;
        };
        let command = command(slot);
        if end.outer.is_some() {
            self.workers[0].command(command);
        } else if end.owed.len() < OWED {
            end.owed.push(command);
        }
    }

    /// Tells the programs where peers are, so that their handshakes do not share strangers' budget.
    fn tell_addresses(&mut self, maps: &mut dyn ProgramMaps) {
        let wanted: BTreeSet<Address> = self
            .ends
            .values()
            .flat_map(End::addresses)
            .map(from_ip)
            .collect();
        for address in self.known.difference(&wanted) {
            if let Err(error) = maps.apply(MapWrite::PeerAddress {
                address: *address,
                known: false,
            }) {
                tracing::error!(%error, "a peer's old address could not be removed");
            }
        }
        for address in wanted.difference(&self.known) {
            if let Err(error) = maps.apply(MapWrite::PeerAddress {
                address: *address,
                known: true,
            }) {
                tracing::error!(%error, "a peer's address could not be written");
            }
        }
        self.known = wanted;
    }

    /// UnresolvedPacket until a handshake message or an event is there.
    pub async fn ready(&self) {
        let sockets = async {
            let mut waiting: Vec<_> = self
                .sockets
                .values()
                .map(|socket| Box::pin(socket.readable()))
                .collect();
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            }
            std::future::poll_fn(|context| {
                for one in &mut waiting {
                    if one.as_mut().poll(context).is_ready() {
                        return std::task::Poll::Ready(());
                    }
                }
                std::task::Poll::Pending
            })
            .await;
        };
        tokio::select! {
            () = sockets => {}
            guard = self.notify.readable() => {
                if let Ok(mut guard) = guard {
                    let _ = self.event.read();
                    guard.clear_ready();
                }
            }
        }
    }

    /// Takes handshake messages and the workers' events, and does what follows from them and from the time.
    pub fn work(&mut self, maps: &mut dyn ProgramMaps) -> HostActivity {
        self.messages();
        let happened = self.events();
        self.drive(maps);
        happened
    }

    fn messages(&mut self) {
        let mut buffer = [0; 2048];
        let now = clock::now();
        for socket in self.sockets.values() {
            for _ in 0..BATCH {
                let Ok((bytes, from)) = socket.try_recv_from(&mut buffer) else {
                    break;
                };
                let datagram = &buffer[..bytes];
                if datagram.starts_with(&[0; 8]) {
                    let known = circuits::of_message(datagram)
                        .and_then(|id| self.by_circuit.get(&id))
                        .and_then(|slot| Some((*slot, self.ends.get_mut(slot)?.circuit.as_mut()?)));
                    let heard = known.is_some_and(|(slot, circuit)| {
                        let heard = circuit.hear(from, datagram, now);
                        // What follows from it is done at once, and it may be due at another time now.
                        if heard && circuit.awaits() {
                            self.awaiting.stir(slot);
                        }
                        heard
                    });
                    if !heard {
                        tracing::debug!(%from, "a gateway's message that is not for any circuit here");
                    }
                    continue;
                }
                let (way, message) = match circuit_id(datagram) {
                    None => (PeerPath::Direct(from), datagram),
                    Some(id) => (
                        PeerPath::Circuit { gateway: from, id },
                        &datagram[CIRCUIT_ID_LEN..],
                    ),
                };
                // Directly, or from a gateway by a circuit that is here.
                let is_known = match way {
                    PeerPath::Circuit { gateway, id } => CircuitId::new(id.get())
                        .and_then(|id| self.by_circuit.get(&id))
                        .and_then(|slot| self.ends.get(slot)?.circuit.as_ref())
                        .is_some_and(|circuit| circuit.gateway(gateway).is_some()),
                    PeerPath::Direct(_) | PeerPath::Stream(_) => true,
                };
                if !is_known {
                    tracing::debug!(%way, "a handshake message by a circuit that is not here");
                    continue;
                }
                let handled = self
                    .control
                    .handle_datagram(now, way, message, &mut self.random);
                match handled {
                    Ok(id) => {
                        let end = self.by_id.get(&id).and_then(|slot| self.ends.get_mut(slot));
                        if let Some(end) = end {
                            let seen = end.seen.replace(from.ip());
                            self.moved |= seen != Some(from.ip());
                        }
                    }
                    Err(error) => tracing::debug!(%from, %error, "handshake message refused"),
                }
            }
        }
        let (control, random) = (&mut self.control, &mut self.random);
        self.streams.messages(|circuit, message| {
            let way = PeerPath::Stream(circuit.number());
            let handled = control.handle_datagram(now, way, message, random);
            if let Err(error) = handled {
                tracing::debug!(%circuit, %error, "handshake message over TLS refused");
            }
        });
    }

    fn events(&mut self) -> HostActivity {
        let mut happened = HostActivity::default();
        let now = clock::mono();
        let mut heard = Vec::new();
        for (number, worker) in self.workers.iter_mut().enumerate() {
            while let Ok(event) = worker.events.pop() {
                let slot = match &event {
                    Event::HostUsed { key } => {
                        happened.used.push(*key);
                        continue;
                    }
                    Event::SessionConfirmed { peer, .. }
                    | Event::PeerMoved { peer, .. }
                    | Event::ControlMessage { peer, .. }
                    | Event::Activity { peer, .. } => *peer,
                };
                let Some(end) = self.ends.get_mut(&slot) else {
                    continue;
                };
                match event {
                    Event::SessionConfirmed { index, .. } => {
                        self.control.confirm_session(now, end.id, index)
                    }
                    Event::PeerMoved { way, .. } if end.may_move_to(way) => {
                        if let (Some(circuit), PeerPath::Circuit { gateway, .. }) =
                            (&mut end.circuit, way)
                        {
                            circuit.heard_by(gateway);
                        }
                        self.control.move_peer(now, end.id, way);
                    }
                    Event::PeerMoved { way, .. } => {
                        tracing::debug!(peer = end.spec.name, %way, "heard by a way that is not taken");
                    }
                    Event::ControlMessage { word, .. } => {
                        self.control.handle_control_message(now, end.id, word)
                    }
                    Event::Activity { tx, rx, stats, .. } => {
                        if end.silent && rx.last_received > end.rx[number].last_received {
                            end.silent = false;
                            if let Some(circuit) = &mut end.circuit {
                                circuit.heard();
                            }
                            heard.push(slot);
                        }
                        end.tx[number] = tx;
                        end.rx[number] = rx;
                        end.stats[number] = stats;
                        let tx = end.tx.iter().copied().reduce(TxActivity::merge);
                        let rx = end.rx.iter().copied().reduce(RxActivity::merge);
                        self.control
                            .report_sent(now, end.id, tx.unwrap_or_default());
                        self.control
                            .report_received(now, end.id, rx.unwrap_or_default());
                    }
                    Event::HostUsed { .. } => {}
                }
            }
            while let Ok(waits) = worker.waits.pop() {
                happened.unresolved.push(waits);
            }
        }
        // One worker heard it; each keeps what it has of its own flows.
        for slot in heard {
            for worker in &mut self.workers {
                worker.command(Command::PeerHeard(slot));
            }
        }
        happened
    }

    /// When there is something to do if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let choosing = || self.choosing.iter().filter_map(|slot| self.ends.get(slot));
        let circuits = choosing().filter_map(|end| end.circuit.as_ref());
        let fallbacks = choosing().filter_map(|end| end.fallback.as_ref());
        circuits
            .filter_map(Circuit::next_deadline)
            .chain(fallbacks.filter_map(Fallback::next_deadline))
            .chain(self.awaiting.next_deadline())
            .chain(self.control.next_deadline())
            .min()
    }

    /// Does what the control half says.
    fn drive(&mut self, maps: &mut dyn ProgramMaps) {
        let mut moved = self.circuits(maps);
        moved |= self.outputs(maps);
        for _ in 0..ROUNDS {
            self.control.settle();
            let now = clock::now();
            if self.control.next_deadline().is_none_or(|at| at > now.mono) {
                break;
            }
            self.control.handle_timeout(now, &mut self.random);
            moved |= self.outputs(maps);
        }
        self.control.settle();
        if moved {
            self.tell_addresses(maps);
        }
        self.wake();
    }

    /// Whether a peer has another address now.
    fn outputs(&mut self, maps: &mut dyn ProgramMaps) -> bool {
        let mut moved = false;
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Transmit { to, datagram } => self.transmit(to, datagram.as_bytes()),
                Output::Receive {
                    peer,
                    lane,
                    session,
                } => {
                    let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) else {
                        continue;
                    };
                    let index = session.wire_index();
                    end.indices.insert(index, session.index());
                    let opener = self.workers[0].settings.assignment.opener(lane);
                    if let Some(worker) = self.workers.get_mut(opener as usize) {
                        worker.command(Command::Receive(slot, session));
                        worker.wake();
                    }
                    if let Err(error) = maps.apply(MapWrite::Session { index, known: true }) {
                        tracing::error!(%error, "a session could not be written: its datagrams will be dropped");
                    }
                }
                Output::Send {
                    peer,
                    lane,
                    session,
                } => {
                    // PeerLanes past the number of workers are not sent on.
                    if let Some((slot, _)) = end(&self.by_id, &mut self.ends, peer)
                        && let Some(worker) = self.workers.get_mut(lane as usize)
                    {
                        worker.command(Command::Send(slot, Box::new(session)));
                    }
                }
                Output::Retire { peer, index } => {
                    let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) else {
                        continue;
                    };
                    end.indices.retain(|wire, name| {
                        let keep = *name != index;
                        if !keep {
                            forget(maps, *wire);
                        }
                        keep
                    });
                    for worker in &mut self.workers {
                        worker.command(Command::Retire(slot, index));
                    }
                }
                Output::Path { peer, path: way } => {
                    if let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) {
                        end.way = Some(way);
                        moved = true;
                        self.moved = true;
                        for worker in &mut self.workers {
                            worker.command(Command::PeerPath(slot, way));
                        }
                        self.route(slot);
                    }
                }
                Output::MaxDatagram { peer, bytes } => {
                    if let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) {
                        end.max_datagram = bytes;
                        for worker in &mut self.workers {
                            worker.command(Command::MaxDatagram(slot, bytes));
                        }
                    }
                }
                Output::Keepalive { peer } => self.say(peer, Command::Keepalive),
                Output::ControlMessage {
                    peer,
                    message: word,
                    pad_to,
                } => {
                    self.say(peer, |slot| Command::ControlMessage(slot, word, pad_to));
                }
                Output::Event { peer, event } => {
                    if let Some((slot, end)) = end(&self.by_id, &mut self.ends, peer) {
                        tracing::info!(peer = end.spec.name, event = ?event, "tunnel");
                        if matches!(event, tunnel::Event::Silent | tunnel::Event::Down) {
                            end.silent = true;
                            for worker in &mut self.workers {
                                worker.command(Command::PeerSilent(slot));
                            }
                        }
                    }
                }
            }
        }
        moved
    }

    /// Does what the circuits' ends say; whether a peer has another way now.
    fn circuits(&mut self, maps: &mut dyn ProgramMaps) -> bool {
        let (now, mut moved) = (clock::now(), false);
        for change in self.streams.work(&mut self.workers) {
            let (Change::Up(of)
            | Change::Silent(of)
            | Change::Heard(of)
            | Change::Down(of)
            | Change::Failed(of)) = change;
            let Some(&slot) = self.by_circuit.get(&of) else {
                continue;
            };
            let chance = tunnel::Random::u64(&mut self.random);
            let end = self.ends.get_mut(&slot);
            match (&change, end.and_then(|end| end.fallback.as_mut())) {
                (Change::Failed(_), Some(fallback)) => fallback.failed(now.mono, chance),
                (Change::Down(_), Some(fallback)) => fallback.closed(now.mono, chance),
                (Change::Up(_), Some(fallback)) => fallback.established(),
                (Change::Silent(_), Some(fallback)) => fallback.stalled(now.mono, chance),
                (Change::Heard(_), _) | (_, None) => {}
            }
            self.route(slot);
        }
        let due = self.awaiting.take(now.mono);
        let slots: Vec<u32> = self.choosing.iter().copied().chain(due).collect();
        for slot in slots {
            let chosen = self.choose(slot, now);
            while let Some(say) = self
                .ends
                .get_mut(&slot)
                .and_then(|end| end.circuit.as_mut()?.poll())
            {
                self.send(say.to, &say.message);
            }
            if !self.choosing.contains(&slot) {
                let circuit = self.ends.get(&slot).and_then(|end| end.circuit.as_ref());
                let next = circuit.and_then(Circuit::next_deadline);
                self.awaiting.set(slot, next);
            }
            let Some((way, end)) = chosen.zip(self.ends.get_mut(&slot)) else {
                continue;
            };
            // What the tunnel has is what counts, whatever made it so.
            if end.way == Some(way) {
                continue;
            }
            let id = end.id;
            tracing::info!(peer = end.spec.name, %way, "the tunnel goes this way");
            self.control.set_paths(now.mono, id, vec![way]);
            self.control.move_peer(now.mono, id, way);
            moved |= self.outputs(maps);
            // So that the other end hears it there before there is anything to say.
            self.say(id, Command::Keepalive);
        }
        moved
    }

    /// Lets a circuit's end do what is due; the way that its tunnel is to go, if it is this end's choice and there is one.
    fn choose(&mut self, slot: u32, now: Now) -> Option<PeerPath> {
        let end = self.ends.get_mut(&slot)?;
        let circuit = end.circuit.as_mut()?;
        circuit.drive(now, end.silent);
        let (id, udp) = (circuit.id(), circuit.udp());
        let Some(fallback) = &mut end.fallback else {
            return udp;
        };
        let down = self.control.status(now.mono, end.id).and_then(|s| s.down);
        let unanswered =
            matches!(down, Some(DownReason::NoAnswer { attempts }) if attempts >= UNANSWERED);
        let seen = Seen {
            udp: udp.is_some(),
            stream: self.streams.is_live(id),
            stalled: self.streams.is_silent(id),
            dialing: self.streams.is_dialing(id),
            silent: end.silent || unanswered,
        };
        let wanted = fallback.step(now.mono, seen);
        let by = fallback.by();
        if wanted.close {
            if by == Some(By::Stream) {
                self.streams.abandon(id, &mut self.workers, now.mono);
            } else {
                self.streams.close(id, &mut self.workers);
            }
            fallback.closed(now.mono, tunnel::Random::u64(&mut self.random));
        }
        if wanted.give_up {
            self.streams.give_up(id);
        }
        if wanted.dial
            && let Some(spec) = &end.spec.circuit
            && let Some(tls) = &spec.tls
            && let Some(key) = streams::key(&self.secret, &end.spec.public_key, id)
        {
            let last = (self.streams.failed_at(id, now.mono), self.streams.peer(id));
            let random = || tunnel::Random::u64(&mut self.random);
            let dialed = spec.dialed(&self.locals, last, random);
            // Without an address there is nothing to try, and that is no failure.
            if !dialed.is_empty() && !self.streams.dial(id, key, tls, dialed) {
                fallback.failed(now.mono, tunnel::Random::u64(&mut self.random));
            }
        }
        match by? {
            By::Udp => udp,
            By::Stream => Some(PeerPath::Stream(id.number())),
        }
    }

    fn transmit(&mut self, way: PeerPath, datagram: &[u8]) {
        self.stamped = true;
        let mut buffer = [0; CIRCUIT_ID_LEN + LONGEST_HANDSHAKE];
        match way {
            PeerPath::Direct(to) => self.send(to, datagram),
            PeerPath::Circuit { gateway, id } => {
                let len = CIRCUIT_ID_LEN + datagram.len();
                let Some(message) = buffer.get_mut(..len) else {
                    return;
                };
                message[..CIRCUIT_ID_LEN].copy_from_slice(&id.get().to_be_bytes());
                message[CIRCUIT_ID_LEN..].copy_from_slice(datagram);
                self.send(gateway, message);
            }
            PeerPath::Stream(id) => {
                if !self.streams.send(id, datagram) {
                    self.send_errors += 1;
                }
            }
        }
    }

    fn send(&mut self, to: SocketAddr, datagram: &[u8]) {
        let socket = self
            .sockets
            .iter()
            .find(|(local, _)| local.is_ipv4() == to.is_ipv4());
        let sent = match socket {
            Some((_, socket)) => socket.try_send_to(datagram, to),
            None => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        };
        // The attempt is repeated, with back-off, whatever the reason.
        if let Err(error) = sent {
            self.send_errors += 1;
            tracing::debug!(%to, %error, "a handshake message could not be sent");
        }
    }

    fn wake(&mut self) {
        for worker in &mut self.workers {
            worker.wake();
        }
    }

    /// What keeps encrypted tunnels from working, whatever the peer; for a person.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let now = clock::nanos();
        let hanging = self
            .workers
            .iter()
            .enumerate()
            .filter_map(|(index, worker)| {
                let beat = worker.counters.sockets().beat.load(Relaxed);
                let silent = Duration::from_nanos(now.saturating_sub(beat));
                (beat != 0 && silent > HANGS_AFTER).then(|| {
                    format!(
                        "worker {index} has not looked at its sockets for {} s",
                        silent.as_secs()
                    )
                })
            });
        self.bind_errors
            .values()
            .chain(self.port_errors.values())
            .chain(self.streams.problem())
            .cloned()
            .chain(hanging)
            .collect()
    }

    /// Why an interface has no sockets, if it should have.
    #[must_use]
    pub fn port_error(&self, ifindex: u32) -> Option<&str> {
        self.port_errors.get(&ifindex).map(String::as_str)
    }

    /// How a peer's tunnel is.
    #[must_use]
    pub fn status(&self, slot: u32) -> Option<PeerStatus> {
        let end = self.ends.get(&slot)?;
        let now = clock::mono();
        let status = self.control.status(now, end.id)?;
        let address = end.way.and_then(|way| way.address());
        let v6 = address.is_some_and(|address| address.is_ipv6());
        let why = match (&status.down, status.alive) {
            (None, true) => String::new(),
            (None, false) if matches!(end.spec.protocol, PeerProtocol::WireGuard { .. }) => {
                String::new()
            }
            (None, false) => "the peer does not answer; it is dialed again".to_owned(),
            (Some(why), _) => self.why_down(end, why),
        };
        Some(PeerStatus {
            public_key: end.spec.public_key,
            way: status.path,
            via: self.via(end),
            stream: end
                .circuit
                .as_ref()
                .map(Circuit::id)
                .and_then(|id| self.streams.peer(id).zip(self.streams.counted(id))),
            gateways: end
                .circuit
                .as_ref()
                .map(|c| c.states(now))
                .unwrap_or_default(),
            up: why.is_empty(),
            why_down: why,
            handshake_age: status.session_since.map(|since| now.since(since)),
            handshakes: status.handshakes,
            path_mtu: end.max_datagram
                + end.way.map_or(0, |way| way.overhead())
                + if v6 { 48 } else { 28 },
            round_trip: status.round_trip,
            loss_percent: status.loss_percent,
            cipher: status.cipher,
            tx_packets: end.tx.iter().map(|tx| tx.packets).sum(),
            tx_bytes: end.tx.iter().map(|tx| tx.bytes).sum(),
            rx: end
                .stats
                .iter()
                .copied()
                .fold(RxStats::default(), RxStats::merge),
            replayed_handshakes: status.replayed,
        })
    }

    fn via(&self, end: &End) -> Option<String> {
        let circuit = end.circuit.as_ref()?;
        let address = match end.way? {
            PeerPath::Direct(_) => return None,
            PeerPath::Circuit { gateway, .. } => gateway,
            // It came, and where from is what somebody says.
            PeerPath::Stream(_) if circuit.awaits() => return None,
            PeerPath::Stream(_) => self.streams.peer(circuit.id())?,
        };
        circuit.gateway(address).map(str::to_owned)
    }

    fn why_down(&self, end: &End, why: &DownReason) -> String {
        if let Some(circuit) = &end.circuit
            && let Some(lost) = circuit.lost()
        {
            return match self.streams.failure(circuit.id()) {
                Some(failure) => format!("{lost}; over TLS: {failure}"),
                None => lost,
            };
        }
        let way = end
            .addresses()
            .find_map(|address| match self.next_hops.get(&address) {
                Some(NextHop::Unresolved { reason, .. }) => Some(format!("{address}: {reason}")),
                _ => None,
            });
        match (why, way) {
            (DownReason::NoAnswer { .. }, Some(way)) => format!("no way to {way}"),
            (DownReason::NoAnswer { attempts }, None) => format!(
                "no answer to {attempts} attempts: look at the path, the peer's address and port, and whether the peer knows our key {}",
                self.public_key()
            ),
            (DownReason::InvalidAnswers { .. }, _) => {
                "the answers are not authentic: the two ends' keys or preshared keys differ"
                    .to_owned()
            }
            (DownReason::NoAddress, _) if end.circuit.is_some() => {
                "no gateway has taken us yet".to_owned()
            }
            (DownReason::NoAddress, _) => {
                "there is no address to dial; give the peer one".to_owned()
            }
            (DownReason::NotInitiating, _) => "waiting for the peer to dial".to_owned(),
        }
    }

    /// Where tunnels over TLS may arrive: what tenants pin, what came of connections, and how many there are.
    #[must_use]
    pub fn arrived(&self) -> Option<(Fingerprint, Refusals, usize)> {
        self.streams.arrived()
    }

    /// What each worker did.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.workers
            .iter()
            .map(|worker| {
                let counter = |counter| worker.counters.counter(counter);
                let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
                WorkerStatus {
                    index: worker.settings.assignment.index(),
                    cpu: worker.settings.cpu,
                    sealed: counter(Counter::Encapsulated),
                    delivered: counter(Counter::Decapsulated),
                    handed_over: counter(Counter::HandedOver),
                    dropped: drops.map(|drop| counter(*drop)).sum(),
                }
            })
            .collect()
    }

    /// Packets counted by the workers.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.counters.counter(counter))
            .sum()
    }

    /// Frames that found no room in the workers' sockets.
    #[must_use]
    pub fn rx_dropped(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.counters.sockets().rx_dropped.load(Relaxed))
            .sum()
    }

    /// Handshake messages that could not be sent.
    #[must_use]
    pub const fn send_errors(&self) -> u64 {
        self.send_errors
    }

    /// Traffic of the network in a slot that workers carried.
    #[must_use]
    pub fn network(&self, slot: u32) -> NetworkStats {
        self.workers
            .iter()
            .map(|worker| worker.counters.network(slot))
            .fold(NetworkStats::default(), |a, b| NetworkStats {
                tx_packets: a.tx_packets + b.tx_packets,
                tx_bytes: a.tx_bytes + b.tx_bytes,
                rx_packets: a.rx_packets + b.rx_packets,
                rx_bytes: a.rx_bytes + b.rx_bytes,
            })
    }

    /// Where the sockets of an interface are in `XSKS`; [`NO_XSK`] for none.
    #[must_use]
    pub fn xsk(&self, ifindex: u32) -> u16 {
        self.ports.get(&ifindex).map_or(NO_XSK, |(_, base)| *base)
    }
}

fn end<'e>(
    by_id: &BTreeMap<PeerId, u32>,
    ends: &'e mut BTreeMap<u32, End>,
    id: PeerId,
) -> Option<(u32, &'e mut End)> {
    let slot = *by_id.get(&id)?;
    Some((slot, ends.get_mut(&slot)?))
}

fn forget(maps: &mut dyn ProgramMaps, index: u32) {
    if let Err(error) = maps.apply(MapWrite::Session {
        index,
        known: false,
    }) {
        tracing::error!(%error, "a session that is over could not be removed");
    }
}

fn bind_udp(address: SocketAddr) -> Result<UdpSocket, Error> {
    let failed = |source| Error::Bind { address, source };
    let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    UdpSocket::from_std(socket).map_err(failed)
}

/// The longest datagram an interface takes, bytes of UDP payload.
#[must_use]
pub const fn max_udp_payload(mtu: u16, ipv6: bool) -> usize {
    (mtu as usize).saturating_sub(if ipv6 { 48 } else { 28 })
}
