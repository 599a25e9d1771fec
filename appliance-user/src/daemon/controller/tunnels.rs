//! The encrypted tunnels within the daemon: the one place that calls the tunnel manager.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    time::Instant,
};

use anyhow::Context as _;
use appliance_common::{
    counters::Counter,
    maps::{HostKey, Neighbour, NetworkStats},
};
use gateway_client::{dial::Target, selector::GatewayState, wire::Side};
use tunnel::{InitiationPolicy, PeerPath, Tai64n};
use tunnel_worker::{
    CircuitSpec, HostActivity, ListenSpec, ListenerSetup, NewListener, PeerProtocol, PeerSpec,
    PortSpec, TlsSpec, TunnelManager, certificate_file,
    clock::{self, ClockReservation},
    host::{MapWrite, NextHop, NextHops, ProgramMaps, TableWrite},
    max_udp_payload,
    tls::RefusalReason,
};

use super::{
    InForce,
    gateway_names::GatewayNames,
    timestamp_writer::{PendingTimestamps, TimestampWriter},
};
use crate::{
    config::{Config, Identity, Peer, PeerKind, Role},
    control::{GatewayStatus, PeerStatus, StreamStatus, TlsStatus, TunnelStatus, WorkerStatus},
    daemon::keys::Keys,
    datapath::Datapath,
    datapath::reconcile::{self, EncryptedTunnels, MapContents, MapUpdate, local_addresses},
    kernel::nic,
    kernel::underlay::{PathError, Snapshot, UnderlayPath},
    state::{State, Store, Timestamps},
};

/// The maps of the XDP programs, for the tunnels.
struct Programs<'d>(&'d mut Datapath);

impl ProgramMaps for Programs<'_> {
    fn apply(
        &mut self,
        write: MapWrite<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match write {
            MapWrite::Session { index, known } => self.0.set_session(index, known)?,
            MapWrite::PeerAddress { address, known } => self.0.set_peer_address(&address, known)?,
            MapWrite::Socket { slot, socket } => self.0.set_xsk(slot, socket.as_raw_fd())?,
        }
        Ok(())
    }
}

/// The encrypted tunnels, where there are any.
pub(in crate::daemon) struct Tunnels {
    manager: Option<TunnelManager>,
    /// The newest report of the tunnels.
    observed: EncryptedTunnels,
    /// The timestamps that are saved.
    timestamps: PendingTimestamps,
    reservation: ClockReservation,
    writer: TimestampWriter,
}

/// The results of one round of work.
#[derive(Default)]
pub(super) struct RoundResult {
    /// The workers' reports of hosts and packets.
    pub hosts: HostActivity,
    /// Addresses of peers or gateways changed.
    pub moved: bool,
    /// The longest packet that goes whole to some peer changed: the tables are to be computed anew.
    pub mtu_changed: bool,
}

impl Tunnels {
    /// Starts the workers where the configuration has encrypted tunnels.
    ///
    /// # Errors
    /// When a worker cannot be started.
    pub fn start(config: &Config, keys: &Keys, store: &Store) -> anyhow::Result<Self> {
        let circuits = store.circuit_clock();
        clock::CIRCUIT_CLOCK.start_above(circuits);
        Ok(Self {
            manager: start_manager(config, keys)?,
            observed: EncryptedTunnels::default(),
            timestamps: PendingTimestamps {
                handshakes: store.timestamps(),
                circuits,
            },
            reservation: ClockReservation::new(circuits),
            writer: TimestampWriter::spawn(store.clone())?,
        })
    }

    /// The newest report of the tunnels, as the tables need it.
    pub const fn observed(&self) -> &EncryptedTunnels {
        &self.observed
    }

    /// Waits until there is something to do.
    pub async fn ready(&self) {
        match &self.manager {
            Some(manager) => manager.ready().await,
            None => std::future::pending().await,
        }
    }

    /// When there is something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let at = self.manager.as_ref()?.next_deadline()?;
        Some(Instant::now() + clock::until(at))
    }

    /// Handles handshake messages, the workers' reports and expired timers. `is_peer` says whether
    /// the configuration has a peer of that name.
    pub(super) fn work(
        &mut self,
        datapath: &mut Datapath,
        is_peer: impl Fn(&str) -> bool,
    ) -> RoundResult {
        let Some(manager) = &mut self.manager else {
            return RoundResult::default();
        };
        let hosts = manager.work(&mut Programs(datapath));
        // Computed only where they may have changed: there may be hundreds of tunnels, and this
        // runs thousands of times a second.
        let mtus = manager.inner_mtus_changed().then(|| manager.inner_mtus());
        let moved = manager.watched_changed();
        let timestamps: Timestamps = manager
            .take_timestamps()
            .into_iter()
            .map(|(key, timestamp)| (key.to_string(), *timestamp.as_bytes()))
            .collect();
        let saved = &mut self.timestamps;
        let mut is_changed = saved.add_handshakes(timestamps);
        if let Some(circuits) = self.reservation.renew(clock::CIRCUIT_CLOCK.last()) {
            saved.circuits = circuits;
            is_changed = true;
        }
        if is_changed {
            self.writer.write(saved.clone());
        }
        RoundResult {
            hosts,
            moved,
            mtu_changed: mtus.is_some_and(|mtus| self.set_inner_mtus(mtus, is_peer)),
        }
    }

    /// Takes over the longest packets by peer, and logs changes. Returns whether any changed.
    fn set_inner_mtus(
        &mut self,
        mtus: BTreeMap<String, u16>,
        is_peer: impl Fn(&str) -> bool,
    ) -> bool {
        if mtus == self.observed.mtus {
            return false;
        }
        // A value stays while a search or an outage lasts: hosts remember a smaller MTU for
        // minutes.
        let mut kept = self.observed.mtus.clone();
        kept.extend(mtus);
        kept.retain(|name, _| is_peer(name));
        for (peer, to) in &kept {
            let from = self.observed.mtus.get(peer);
            if from != Some(to) {
                tracing::info!(
                    peer,
                    from,
                    to,
                    "path MTU changed; largest packet in the tunnel"
                );
            }
        }
        let changed = kept != self.observed.mtus;
        self.observed.mtus = kept;
        changed
    }

    /// Sends writes of the tables to the workers.
    pub fn write(&mut self, writes: &[MapUpdate]) {
        if let Some(manager) = &mut self.manager {
            manager.write_tables(&table_writes(writes));
        }
    }

    /// Gives the workers all that the maps hold.
    pub fn write_all(&mut self, tables: &MapContents) {
        self.write(&reconcile::diff(&MapContents::default(), tables));
    }

    /// Sends a neighbour to the workers; `None` removes it.
    pub fn neighbour(&mut self, key: HostKey, neighbour: Option<Neighbour>) {
        if let Some(manager) = &mut self.manager {
            manager.write_tables(&[TableWrite::Neighbour(key, neighbour)]);
        }
    }

    /// Puts the configured peers in force. It cannot fail.
    pub fn set_peers(
        &mut self,
        in_force: &InForce,
        names: &GatewayNames,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
    ) {
        let Some(manager) = &mut self.manager else {
            return;
        };
        let config = &in_force.config;
        manager.set_peers(
            specs(in_force, names, &self.timestamps.handshakes),
            max_payload(config, snapshot),
            &mut Programs(datapath),
        );
    }

    /// Accepts tunnels over TLS as configured, at a start: a failure is a problem, and is tried
    /// again.
    pub fn listen_or_retry(&mut self, config: &Config) {
        if let (Some(manager), Some(spec)) = (&mut self.manager, listen_spec(config)) {
            manager.listen_or_retry(&spec);
        }
    }

    /// The setup of a listener for tunnels over TLS as another configuration has it, for another
    /// thread; `None`: nothing is to be prepared.
    pub fn listener_setup(&self, config: &Config) -> Option<ListenerSetup> {
        self.manager.as_ref()?.listener_setup(&listen_spec(config)?)
    }

    /// Accepts tunnels over TLS by a listener that was prepared for this configuration. It cannot
    /// fail.
    pub fn listen(&mut self, config: &Config, new: Option<NewListener>) {
        let Some(manager) = &mut self.manager else {
            return;
        };
        match new {
            Some(new) => manager.listen(new),
            None if config.tls.is_none() => manager.stop_listening(),
            None => {}
        }
    }

    /// Gives workers a socket on every queue of every interface that has a program.
    pub fn set_sockets(&mut self, snapshot: &Snapshot, datapath: &mut Datapath) {
        let Some(manager) = &mut self.manager else {
            return;
        };
        let wanted: BTreeMap<String, PortSpec> = datapath
            .attached()
            .iter()
            .filter_map(|(name, attached)| {
                let link = snapshot.links.get(name)?;
                let (queues, tx_queues) = nic::queues(name);
                let port = PortSpec {
                    ifindex: attached.ifindex,
                    queues,
                    tx_queues,
                    mtu: link.mtu,
                };
                Some((name.clone(), port))
            })
            .collect();
        manager.set_ports(&wanted, &mut Programs(datapath));
        self.observed.socket_slots = manager.socket_slots();
    }

    /// Tells the tunnels of links, routes and addresses.
    pub fn underlay_changed(
        &mut self,
        config: &Config,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
    ) {
        let locals = local_addresses(config, snapshot);
        if let Some(manager) = &mut self.manager {
            manager.set_underlay(
                next_hops(snapshot),
                &locals,
                max_payload(config, snapshot),
                &mut Programs(datapath),
            );
        }
    }

    /// Retries failed operations: binds, the TLS listener, sockets. To be called every second.
    /// True if an interface has sockets now that had none: the tables are to be computed anew.
    pub fn retry(&mut self, snapshot: &Snapshot, datapath: &mut Datapath) -> bool {
        let Some(manager) = &mut self.manager else {
            return false;
        };
        manager.retry();
        if !manager.has_port_errors() {
            return false;
        }
        let before = self.observed.socket_slots.clone();
        self.set_sockets(snapshot, datapath);
        self.observed.socket_slots != before
    }

    /// Addresses that tunnels go to, whose routes are to be watched.
    pub fn watched(&self) -> Vec<IpAddr> {
        self.manager
            .as_ref()
            .map(TunnelManager::watched_addresses)
            .unwrap_or_default()
    }

    /// Tells the other ends and gateways that this process ends.
    pub fn close(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.unbind_gateways();
        }
    }

    /// The problems that keep the encrypted tunnels of all peers from working.
    pub fn problems(&self) -> Vec<String> {
        self.manager
            .as_ref()
            .map(TunnelManager::problems)
            .unwrap_or_default()
    }

    /// Whether some gateway, or a peer behind gateways, does not answer.
    pub fn gateways_troubled(&self) -> bool {
        let manager = self.manager.as_ref();
        manager.is_some_and(TunnelManager::gateways_troubled)
    }

    /// Why an interface has no sockets, if it should have.
    pub fn port_error(&self, ifindex: u32) -> Option<&str> {
        self.manager.as_ref()?.port_error(ifindex)
    }

    /// Our identity, base64.
    pub fn public_key(&self) -> Option<String> {
        Some(self.manager.as_ref()?.public_key().to_string())
    }

    /// The sum of the workers' counts.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.manager.as_ref().map_or(0, |m| m.counter(counter))
    }

    /// Traffic of the network in a slot that workers carried.
    pub fn network(&self, slot: u32) -> NetworkStats {
        self.manager
            .as_ref()
            .map(|m| m.network(slot))
            .unwrap_or_default()
    }

    /// Counters of the handshake code, by stable name; empty without encrypted tunnels.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Some(manager) = &self.manager else {
            return Vec::new();
        };
        let h = manager.handshakes();
        vec![
            ("handshake_answered", h.answered),
            ("handshake_completed", h.completed),
            ("handshake_malformed", h.malformed),
            ("handshake_invalid_mac1", h.invalid_mac1),
            ("handshake_cookies_sent", h.cookies_sent),
            ("handshake_rate_limited", h.rate_limited),
            ("handshake_unauthentic", h.authentication_failures),
            ("handshake_replayed", h.replayed),
            ("handshake_unexpected", h.unexpected),
            ("handshake_send_errors", manager.send_errors()),
            ("handshake_queue_full", manager.handshakes_dropped()),
            ("socket_rx_dropped", manager.rx_dropped()),
        ]
    }

    /// The workers, for status.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let workers = self.manager.iter().flat_map(TunnelManager::workers);
        workers.map(worker_status).collect()
    }

    /// Where tunnels over TLS may arrive, for status.
    pub fn tls(&self, config: &Config) -> Option<TlsStatus> {
        let (fingerprint, stats, connections) = self.manager.as_ref()?.tls_listener()?;
        let listen = config.tls.as_ref().map(|tls| tls.listen.clone());
        let refused = RefusalReason::ALL.map(|why| (why.name().to_owned(), stats.refused(why)));
        Some(TlsStatus {
            listen: listen.unwrap_or_default(),
            fingerprint: fingerprint.to_string(),
            connections,
            refused: refused
                .into_iter()
                .filter(|(_, count)| *count != 0)
                .collect(),
        })
    }

    /// An encrypted peer, for status.
    pub fn peer(&self, peer: &Peer, state: &State) -> PeerStatus {
        let slot = state.slots.peers.get(&peer.name);
        let end = slot.and_then(|slot| self.manager.as_ref()?.status(*slot));
        let status = |address: Option<SocketAddr>, ready, detail, tunnel| PeerStatus {
            name: peer.name.clone(),
            kind: peer.kind_name().to_owned(),
            address,
            ready,
            detail,
            tunnel,
        };
        let Some(end) = end else {
            return status(None, false, "not set up yet".to_owned(), None);
        };
        // A WireGuard peer connects and disconnects as it likes.
        let may_be_away = matches!(peer.kind, PeerKind::WireGuard { .. });
        let mut detail = if end.up {
            "up".to_owned()
        } else {
            end.down_reason.clone()
        };
        if let Some([one, other]) = end.alternates_between {
            detail += &format!(
                "; its datagrams come from two addresses in turn, {one} and {other}: do two \
                 machines have its key?"
            );
        }
        status(
            end.path.and_then(|path| path.address()),
            end.up || may_be_away,
            detail,
            Some(tunnel_status(end)),
        )
    }
}

fn tunnel_status(end: tunnel_worker::PeerStatus) -> TunnelStatus {
    let transport = match end.path {
        Some(PeerPath::Stream(_)) => "tls",
        Some(_) => "udp",
        None => "",
    };
    TunnelStatus {
        up: end.up,
        transport: transport.to_owned(),
        gateway: end.gateway.unwrap_or_default(),
        gateways: end.gateways.into_iter().map(gateway_status).collect(),
        stream: end.tls.map(|(peer, counted)| StreamStatus {
            peer,
            tx_packets: counted.datagrams_out,
            tx_bytes: counted.bytes_out,
            rx_packets: counted.datagrams_in,
            rx_bytes: counted.bytes_in,
            dropped: counted.dropped(),
        }),
        public_key: end.public_key.to_string(),
        cipher: end.cipher.name().to_owned(),
        handshake_age_seconds: end.handshake_age.map(|age| age.as_secs()),
        handshakes: end.handshakes,
        path_mtu: end.path_mtu,
        round_trip_micros: end.round_trip.map(micros),
        loss_percent: end.loss_percent,
        tx_packets: end.tx_packets,
        tx_bytes: end.tx_bytes,
        rx_packets: end.rx.opened,
        rx_bytes: end.rx.bytes,
        replays: end.rx.duplicates + end.rx.too_old + end.replayed_handshakes,
        forged: end.rx.forged,
        reassembled: end.rx.reassembly.completed,
        reassembly_lost: end.rx.reassembly.timed_out + end.rx.reassembly.evicted,
    }
}

fn worker_status(worker: tunnel_worker::WorkerStatus) -> WorkerStatus {
    WorkerStatus {
        index: worker.index,
        cpu: worker.cpu,
        sealed: worker.sealed,
        delivered: worker.delivered,
        handed_over: worker.handed_over,
        dropped: worker.dropped,
    }
}

fn gateway_status(gateway: GatewayState) -> GatewayStatus {
    GatewayStatus {
        name: gateway.at.name,
        address: gateway.at.address,
        bound: gateway.bound,
        used: gateway.used,
        draining: gateway.draining,
        down: gateway.down,
        round_trip_micros: gateway.round_trip.map(micros),
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn start_manager(config: &Config, keys: &Keys) -> anyhow::Result<Option<TunnelManager>> {
    let (Some(tunnel), Some(private)) = (&config.tunnel, &keys.private) else {
        return Ok(None);
    };
    let manager = TunnelManager::start(
        private.clone(),
        tunnel.port,
        tunnel.cipher,
        tunnel.memory.xsk(),
        (tunnel.workers, &tunnel.cpus, tunnel.waiting),
    )
    .context("encrypted tunnels")?;
    tracing::info!(
        public_key = %manager.public_key(),
        port = tunnel.port,
        "encrypted tunnels started"
    );
    Ok(Some(manager))
}

/// Where tunnels over TLS are accepted.
fn listen_spec(config: &Config) -> Option<ListenSpec> {
    let tls = config.tls.as_ref()?;
    Some(ListenSpec {
        addresses: tls.listen.clone(),
        from: tls.from.clone(),
        proxy: tls.proxy,
        file: certificate_file(&config.state_dir),
        name: config.name.clone(),
    })
}

/// The longest UDP payload that the uplink takes, bytes.
fn max_payload(config: &Config, snapshot: &Snapshot) -> usize {
    let link = snapshot.links.get(&config.uplink.interface);
    let mtu = config
        .uplink
        .mtu
        .or_else(|| link.and_then(|l| u16::try_from(l.mtu).ok()))
        .unwrap_or(1500);
    let locals = local_addresses(config, snapshot);
    // Without an address, of whatever family, there is nothing to send from yet.
    let only_ipv6 = !locals.is_empty() && locals.iter().all(IpAddr::is_ipv6);
    max_udp_payload(mtu, only_ipv6)
}

/// The encrypted peers of a configuration, as the tunnel manager wants them.
fn specs(in_force: &InForce, names: &GatewayNames, timestamps: &Timestamps) -> Vec<PeerSpec> {
    let InForce {
        config,
        keys,
        state,
    } = in_force;
    // The same for all circuits.
    let all = config.gateways.all.iter();
    let gateways: Vec<Target> = all.map(|gateway| names.addresses(gateway)).collect();
    let spec = |peer: &Peer| {
        let identity = peer.identity()?;
        let slot = *state.slots.peers.get(&peer.name)?;
        let (protocol, dial) = match (&peer.kind, config.role) {
            (
                PeerKind::WireGuard {
                    network,
                    allowed,
                    keepalive,
                    ..
                },
                _,
            ) => (
                PeerProtocol::WireGuard {
                    vni: config.network(network)?.vni,
                    allowed: allowed.iter().map(crate::config::prefix_of).collect(),
                    keepalive: *keepalive,
                },
                InitiationPolicy::OnDemand,
            ),
            (_, Role::Tenant) => (PeerProtocol::Appliance, InitiationPolicy::Always),
            (_, Role::Provider) => (PeerProtocol::Appliance, InitiationPolicy::Never),
        };
        Some(PeerSpec {
            name: peer.name.clone(),
            slot,
            public_key: identity.public_key,
            preshared_key: keys.preshared.get(&peer.name).cloned().unwrap_or_default(),
            addresses: identity.addresses.clone(),
            circuit: circuit((config, keys), &gateways, &peer.name, identity),
            dial,
            protocol,
            timestamp: timestamps
                .get(&identity.public_key.to_string())
                .map_or_else(Tai64n::default, |bytes| Tai64n::from_bytes(*bytes)),
        })
    };
    config.peers.iter().filter_map(spec).collect()
}

/// The circuit to a peer, as the tunnel manager wants it.
fn circuit(
    (config, keys): (&Config, &Keys),
    gateways: &[Target],
    peer: &str,
    identity: &Identity,
) -> Option<CircuitSpec> {
    let circuit = identity.circuit.as_ref()?;
    let (side, list) = match config.role {
        Role::Tenant => (Side::A, Some(config.gateways.list())),
        Role::Provider => (Side::B, None),
    };
    Some(CircuitSpec {
        id: circuit.id,
        side,
        key: keys.circuits.get(peer)?.clone(),
        gateways: gateways.to_vec(),
        list,
        tls: circuit.tls.as_ref().map(|tls| TlsSpec {
            name: tls.name.clone(),
            fingerprints: tls.fingerprints.clone(),
        }),
    })
}

/// The writes of which the workers have a copy, in the same order.
fn table_writes(writes: &[MapUpdate]) -> Vec<TableWrite> {
    let table_write = |write: &MapUpdate| match write {
        MapUpdate::Network(slot, network) => Some(TableWrite::Network(*slot, network.clone())),
        MapUpdate::Tenant(slot, tenant) => {
            Some(TableWrite::Tenant(*slot, tenant.unwrap_or_default()))
        }
        MapUpdate::Endpoint(key, endpoint) => Some(TableWrite::Endpoint(*key, endpoint.is_some())),
        MapUpdate::Config(_)
        | MapUpdate::Attachment(..)
        | MapUpdate::Peer(..)
        | MapUpdate::Tunnel(..)
        | MapUpdate::Route(..)
        | MapUpdate::Policy(..)
        | MapUpdate::Nat(_)
        | MapUpdate::NatAddress(..)
        | MapUpdate::Public(..)
        | MapUpdate::Rule(..)
        | MapUpdate::RulePorts(..)
        | MapUpdate::RuleSource(..)
        | MapUpdate::Quota(..)
        | MapUpdate::OneToOne(..) => None,
    };
    writes.iter().filter_map(table_write).collect()
}

/// The next hops of a snapshot, as the tunnels want them.
fn next_hops(snapshot: &Snapshot) -> NextHops {
    let next_hop = |path: &UnderlayPath| match path {
        UnderlayPath::Resolved {
            ifindex,
            source_mac,
            next_hop_mac,
            ..
        } => NextHop::Resolved {
            ifindex: *ifindex,
            source_mac: *source_mac,
            next_hop_mac: *next_hop_mac,
        },
        UnderlayPath::Unresolved { reason } => NextHop::Unresolved {
            reason: reason.to_string(),
            transient: matches!(
                reason,
                PathError::Pending | PathError::NextHopUnresolved { .. }
            ),
        },
    };
    let paths = snapshot.paths.iter();
    paths
        .map(|(address, path)| (*address, next_hop(path)))
        .collect()
}
