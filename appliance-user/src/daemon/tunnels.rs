//! The encrypted tunnels within the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use appliance_common::maps::neighbour_flags;
use gateway_client::wire::{Key, Side};
use tunnel::{Dial, PresharedKey, SecretKey, Tai64n};
use tunnel_worker::{
    CircuitSpec, ListenSpec, PeerProtocol, PeerSpec, PortSpec, TlsSpec, TunnelManager,
    certificate_file,
    host::{MapWrite, NextHop, NextHops, ProgramMaps, TableWrite},
    keys, max_udp_payload,
};

use super::{Daemon, Instant, Maps, interfaces};
use crate::{
    config::{Config, Gateway, Identity, PeerKind, Role},
    datapath::Datapath,
    nic,
    reconcile::{self, Tables, Write, local_addresses},
    state::{State, Timestamps},
    underlay::{Path, Snapshot, Why},
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
            MapWrite::Socket { slot, socket } => self.0.set_socket(slot, socket.as_raw_fd())?,
        }
        Ok(())
    }
}

/// Those of the reconciler's writes that the workers have a copy of, in the same order.
pub(super) fn table_writes(writes: &[Write]) -> Vec<TableWrite> {
    writes
        .iter()
        .filter_map(|write| match write {
            Write::Network(slot, network) => Some(TableWrite::Network(*slot, network.clone())),
            Write::Tenant(slot, tenant) => {
                Some(TableWrite::Tenant(*slot, tenant.unwrap_or_default()))
            }
            Write::Endpoint(key, endpoint) => Some(TableWrite::Endpoint(*key, endpoint.is_some())),
            Write::Config(_)
            | Write::Attachment(..)
            | Write::Peer(..)
            | Write::Tunnel(..)
            | Write::Route(..)
            | Write::Policy(..)
            | Write::Nat(_)
            | Write::NatAddress(..)
            | Write::Public(..)
            | Write::Rule(..)
            | Write::RulePorts(..)
            | Write::RuleSource(..)
            | Write::Share(..)
            | Write::OneToOne(..) => None,
        })
        .collect()
}

/// The next hops of a snapshot, as the tunnels want them.
fn next_hops(snapshot: &Snapshot) -> NextHops {
    let next_hop = |path: &Path| match path {
        Path::Resolved {
            ifindex,
            source_mac,
            next_hop_mac,
            ..
        } => NextHop::Resolved {
            ifindex: *ifindex,
            source_mac: *source_mac,
            next_hop_mac: *next_hop_mac,
        },
        Path::Unresolved { why } => NextHop::Unresolved {
            reason: why.to_string(),
            transient: matches!(why, Why::Pending | Why::NextHopUnresolved { .. }),
        },
    };
    let paths = snapshot.paths.iter();
    paths
        .map(|(address, path)| (*address, next_hop(path)))
        .collect()
}

/// The keys that a configuration names.
#[derive(Default)]
pub(super) struct Keys {
    private: Option<SecretKey>,
    /// By peer name.
    preshared: BTreeMap<String, PresharedKey>,
    /// By peer name: of our side of the circuit to it.
    circuits: BTreeMap<String, Key>,
}

impl Keys {
    /// Reads every key file.
    ///
    /// # Errors
    /// The first that is missing, readable by others or no key.
    pub fn load(config: &Config) -> Result<Self, keys::Error> {
        let private = match &config.tunnel {
            Some(tunnel) => Some(keys::private(&tunnel.private_key_file)?),
            None => None,
        };
        let (mut preshared, mut circuits) = (BTreeMap::new(), BTreeMap::new());
        for peer in &config.peers {
            if let Some(path) = peer
                .identity()
                .and_then(|identity| identity.preshared_key_file.as_ref())
            {
                preshared.insert(peer.name.clone(), keys::preshared(path)?);
            }
        }
        for peer in &config.peers {
            if let Some(circuit) = peer.identity().and_then(|i| i.circuit.as_ref()) {
                circuits.insert(peer.name.clone(), keys::circuit(&circuit.key_file)?);
            }
        }
        Ok(Self {
            private,
            preshared,
            circuits,
        })
    }

    /// Whether our own identity is the same.
    pub fn same_identity(&self, other: &Self) -> bool {
        let public = |keys: &Self| keys.private.as_ref().map(SecretKey::public);
        public(self) == public(other)
    }

    /// What is wrong with using these keys for these peers, if anything.
    pub fn own_peer(&self, config: &Config) -> Option<String> {
        let own = self.private.as_ref()?.public();
        config
            .peers
            .iter()
            .find(|p| p.identity().is_some_and(|i| i.public_key == own))
            .map(|p| {
                format!(
                    "peer {:?}: public_key is this appliance's own; write the other end's",
                    p.name
                )
            })
    }
}

/// Starts the workers where the configuration has encrypted tunnels.
pub(super) fn start(config: &Config, keys: &Keys) -> anyhow::Result<Option<TunnelManager>> {
    if let Some(problem) = keys.own_peer(config) {
        anyhow::bail!(problem);
    }
    let (Some(tunnel), Some(private)) = (&config.tunnel, &keys.private) else {
        return Ok(None);
    };
    let ends = TunnelManager::start(
        private.clone(),
        tunnel.port,
        tunnel.cipher,
        tunnel.memory.xsk(),
        (tunnel.workers, &tunnel.cpus, tunnel.waiting),
    )
    .context("encrypted tunnels")?;
    tracing::info!(public_key = %ends.public_key(), port = tunnel.port, "encrypted tunnels");
    Ok(Some(ends))
}

/// Waits until the encrypted tunnels have something to do.
pub(super) async fn ready(ends: Option<&TunnelManager>) {
    match ends {
        Some(ends) => ends.ready().await,
        None => std::future::pending().await,
    }
}

/// The encrypted peers of a configuration, as the tunnels want them.
fn specs(config: &Config, keys: &Keys, state: &State, timestamps: &Timestamps) -> Vec<PeerSpec> {
    config
        .peers
        .iter()
        .filter_map(|peer| {
            let identity = peer.identity()?;
            let slot = *state.slots.peers.get(&peer.name)?;
            let (protocol, dial) = match &peer.kind {
                PeerKind::WireGuard {
                    network,
                    allowed,
                    keepalive,
                    ..
                } => (
                    PeerProtocol::WireGuard {
                        vni: config.network(network)?.vni,
                        allowed: allowed.iter().map(crate::config::prefix_of).collect(),
                        keepalive: *keepalive,
                    },
                    Dial::OnDemand,
                ),
                _ => (
                    PeerProtocol::Appliance,
                    match config.role {
                        Role::Tenant => Dial::Always,
                        Role::Provider => Dial::Never,
                    },
                ),
            };
            Some(PeerSpec {
                name: peer.name.clone(),
                slot,
                public_key: identity.public_key,
                preshared_key: keys.preshared.get(&peer.name).cloned().unwrap_or_default(),
                addresses: identity.addresses.clone(),
                circuit: circuit(config, keys, &peer.name, identity),
                dial,
                protocol,
                timestamp: timestamps
                    .get(&identity.public_key.to_string())
                    .map_or_else(Tai64n::default, |bytes| Tai64n::from_bytes(*bytes)),
            })
        })
        .collect()
}

/// The circuit to a peer, as the tunnels want it.
fn circuit(config: &Config, keys: &Keys, peer: &str, identity: &Identity) -> Option<CircuitSpec> {
    let circuit = identity.circuit.as_ref()?;
    let (side, list) = match config.role {
        Role::Tenant => (Side::A, Some(config.gateways.list())),
        Role::Provider => (Side::B, None),
    };
    let at = |gateway: &Gateway| (gateway.name.clone(), gateway.addresses.clone());
    Some(CircuitSpec {
        id: circuit.id,
        side,
        key: keys.circuits.get(peer)?.clone(),
        gateways: config.gateways.all.iter().map(at).collect(),
        list,
        tls: circuit.tls.as_ref().map(|tls| TlsSpec {
            name: tls.name.clone(),
            fingerprint: tls.fingerprint,
        }),
    })
}

impl Daemon {
    /// Gives the workers what the maps hold already, and the peers.
    pub(super) fn begin_tunnels(&mut self) {
        if let Some(ends) = &mut self.ends {
            ends.write(&table_writes(&reconcile::diff(
                &Tables::default(),
                &self.tables,
            )));
        }
        self.set_peers();
    }

    /// Puts the configured peers in force.
    pub(super) fn set_peers(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        let link = self.snapshot.links.get(&self.config.uplink.interface);
        let mtu = self
            .config
            .uplink
            .mtu
            .or_else(|| link.and_then(|l| u16::try_from(l.mtu).ok()))
            .unwrap_or(1500);
        let v6 = local_addresses(&self.config, &self.snapshot)
            .iter()
            .all(IpAddr::is_ipv6);
        let listen = self.config.tls.as_ref().map(|tls| ListenSpec {
            addresses: tls.listen.clone(),
            from: tls.from.clone(),
            proxy: tls.proxy,
            file: certificate_file(&self.config.state_dir),
            name: self.config.name.clone(),
        });
        ends.set_peers(
            specs(&self.config, &self.keys, &self.state, &self.timestamps),
            max_udp_payload(mtu, v6),
            listen.as_ref(),
            &mut Programs(&mut self.datapath),
        );
    }

    /// Sees that workers have a socket on every queue of every interface that has a program.
    pub(super) fn set_sockets(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        let wanted: BTreeMap<String, PortSpec> = self
            .datapath
            .attached()
            .iter()
            .filter_map(|(name, attached)| {
                let link = self.snapshot.links.get(name)?;
                let (queues, tx_queues) = nic::queues(name);
                Some((
                    name.clone(),
                    PortSpec {
                        ifindex: attached.ifindex,
                        queues,
                        tx_queues,
                        mtu: link.mtu,
                    },
                ))
            })
            .collect();
        ends.set_ports(&wanted, &mut Programs(&mut self.datapath));
        self.secured.xsks = ends.xsks();
    }

    /// Tells the tunnels of links, routes and addresses.
    pub(super) fn underlay_changed(&mut self) {
        let locals = local_addresses(&self.config, &self.snapshot);
        if let Some(ends) = &mut self.ends {
            ends.underlay(
                next_hops(&self.snapshot),
                &locals,
                &mut Programs(&mut self.datapath),
            );
        }
        self.watch();
    }

    /// Has the way to every address watched that a tunnel goes to, and that to the outside where there is NAT.
    pub(super) fn watch(&mut self) {
        let wanted: BTreeSet<IpAddr> = self
            .config
            .plain_peers()
            .chain(self.ends.iter().flat_map(TunnelManager::watched))
            .chain(self.watched_outside())
            .collect();
        if wanted != self.watched {
            self.watcher
                .update(wanted.iter().copied().collect(), interfaces(&self.config));
            self.watched = wanted;
        }
    }

    /// Lets the tunnels do what there is to do.
    pub(super) fn tunnels(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        let hosts = ends.work(&mut Programs(&mut self.datapath));
        // Worked out only where they may be others: there may be hundreds of tunnels, and we come by thousands of times a second.
        let rooms = ends.stirred().then(|| ends.rooms());
        let moved = ends.moved();
        let timestamps: Timestamps = ends
            .timestamps()
            .into_iter()
            .map(|(key, timestamp)| (key.to_string(), *timestamp.as_bytes()))
            .collect();
        let news = |(key, timestamp)| self.timestamps.get(key) != Some(timestamp);
        if timestamps.iter().any(news) {
            // Those of peers that are gone for now are kept.
            self.timestamps.extend(timestamps);
            if let Err(error) = self.store.save_timestamps(&self.timestamps) {
                tracing::warn!(%error, "handshake timestamps could not be kept");
            }
        }
        let now = Instant::now();
        for key in hosts.used {
            self.engine.observed(now, key, neighbour_flags::USED);
        }
        for waiting in &hosts.unresolved {
            self.slow
                .packet(now, &waiting.header, waiting.packet(), &Maps(&self.tables));
        }
        if moved {
            self.watch();
        }
        let Some(rooms) = rooms else { return };
        if rooms != self.secured.rooms {
            // What was settled stays while a search or an outage lasts: hosts remember a smaller MTU for
            // minutes.
            let mut kept = self.secured.rooms.clone();
            kept.extend(rooms);
            kept.retain(|name, _| self.config.peer(name).is_some());
            if kept != self.secured.rooms {
                self.secured.rooms = kept;
                if let Err(error) = self.reconcile() {
                    tracing::error!(%error, "the path MTU changed, and the data path could not follow");
                }
            }
        }
    }
}
