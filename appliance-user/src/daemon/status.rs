//! What the appliance says of itself.

use std::{net::SocketAddr, time::Instant};

use appliance_common::addr::to_ip;
use tunnel_worker::{TunnelManager, tls::Reason};

use super::Daemon;
use crate::{
    config::Config,
    control::{
        CounterStatus, GatewayStatus, InterfaceStatus, NeighbourStatus, NetworkStatus, PeerStatus,
        Refusal, Status, StreamStatus, TenantStatus, TlsStatus, TunnelStatus, WorkerStatus,
        mac_text,
    },
    reconcile::{local_addresses, mode_of, network_mtu, tenant_of},
    state::State,
    underlay::{Path as Route, Snapshot},
};

fn gateway_status(gateway: gateway_client::reach::GatewayState) -> GatewayStatus {
    GatewayStatus {
        name: gateway.at.name,
        address: gateway.at.address,
        bound: gateway.bound,
        used: gateway.used,
        draining: gateway.draining,
        down: gateway.down,
        round_trip_micros: gateway
            .round_trip
            .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
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

/// The tenants, and whoever has left a failover behind.
fn tenants(config: &Config, state: &State, snapshot: &Snapshot) -> Vec<TenantStatus> {
    let configured = config.tenants.iter().map(|tenant| tenant.name.clone());
    configured
        .chain(state.left_over(config))
        .map(|name| {
            let mode = state.modes.get(&name);
            let plan = mode.and_then(|m| m.doing.plan());
            let of = tenant_of(config, snapshot, &name);
            let rules = plan.zip(of).map(|(plan, of)| plan.in_force(&of).0.len());
            TenantStatus {
                mode: mode_of(state, &name).name().to_owned(),
                epoch: mode.map_or(0, |m| m.epoch),
                plan: plan.map(|plan| plan.name().to_owned()),
                rules: rules.unwrap_or_default(),
                name,
            }
        })
        .collect()
}

impl Daemon {
    pub(super) fn status(&self) -> Result<Status, Refusal> {
        let mut not_ready: Vec<String> = self.attach_errors.values().cloned().collect();
        for (name, nic) in &self.nics {
            not_ready.extend(nic.problems.iter().map(|p| format!("{name}: {p}")));
        }
        let local = local_addresses(&self.config, &self.snapshot);
        if local.is_empty() {
            not_ready.push(format!(
                "no tunnel address: {} has none; give it one, or set uplink.local",
                self.config.uplink.interface
            ));
        }
        let peers: Vec<PeerStatus> = self
            .config
            .peers
            .iter()
            .map(|peer| self.peer_status(peer))
            .collect();
        // In full failover nobody is at the other end, and none is needed.
        let needed = |name: &str| {
            let mut of = self
                .config
                .networks
                .iter()
                .filter(|n| n.peer == name)
                .peekable();
            of.peek().is_none()
                || of.any(|n| mode_of(&self.state, &n.tenant) != appliance_common::maps::Mode::Full)
        };
        let missed = peers.iter().filter(|p| !p.ready && needed(&p.name));
        not_ready.extend(missed.map(|p| match p.address {
            Some(address) => format!("peer {:?} ({address}): {}", p.name, p.detail),
            None => format!("peer {:?}: {}", p.name, p.detail),
        }));
        not_ready.extend(self.ends.iter().flat_map(TunnelManager::problems));
        not_ready.extend(self.problems.iter().cloned());
        let mut networks = Vec::new();
        for network in &self.config.networks {
            let slot = self.state.slots.networks.get(&network.name).copied();
            let stats = match slot {
                Some(slot) => {
                    let plain = self
                        .datapath
                        .network_stats(slot)
                        .map_err(|e| Refusal::new("internal", e.to_string()))?;
                    let secure = self
                        .ends
                        .as_ref()
                        .map(|e| e.network(slot))
                        .unwrap_or_default();
                    appliance_common::maps::NetworkStats {
                        tx_packets: plain.tx_packets + secure.tx_packets,
                        tx_bytes: plain.tx_bytes + secure.tx_bytes,
                        rx_packets: plain.rx_packets + secure.rx_packets,
                        rx_bytes: plain.rx_bytes + secure.rx_bytes,
                    }
                }
                None => appliance_common::maps::NetworkStats::default(),
            };
            networks.push(NetworkStatus {
                name: network.name.clone(),
                tenant: network.tenant.clone(),
                vni: network.vni,
                peer: network.peer.clone(),
                interface: network.interface.clone(),
                vlan: network.vlan.to_string(),
                mtu: network_mtu(&self.config, &self.snapshot, &self.secured, network),
                endpoints: self
                    .state
                    .endpoints
                    .get(&network.name)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
            });
        }
        Ok(Status {
            name: self.config.name.clone(),
            role: self.config.role.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: not_ready.is_empty(),
            not_ready,
            maintenance: self.state.maintenance,
            uptime_seconds: self.started.elapsed().as_secs(),
            adopted: self.datapath.adopted(),
            pins: self.datapath.root().display().to_string(),
            tunnel_port: self.tables.config.tunnel_port,
            secure_port: self.tables.config.secure_port,
            public_key: self.ends.as_ref().map(|e| e.public_key().to_string()),
            tls: self.ends.as_ref().and_then(TunnelManager::arrived).map(
                |(fingerprint, arrived, connections)| TlsStatus {
                    listen: self
                        .config
                        .tls
                        .as_ref()
                        .map(|tls| tls.listen.clone())
                        .unwrap_or_default(),
                    fingerprint: fingerprint.to_string(),
                    connections,
                    refused: Reason::ALL
                        .map(|why| (why.name().to_owned(), arrived.refused(why)))
                        .into_iter()
                        .filter(|(_, count)| *count != 0)
                        .collect(),
                },
            ),
            local,
            interfaces: self.interfaces_status(),
            tenants: tenants(&self.config, &self.state, &self.snapshot),
            networks,
            peers,
            workers: self
                .ends
                .iter()
                .flat_map(TunnelManager::workers)
                .map(worker_status)
                .collect(),
            neighbours: self.neighbours_status(),
            user_counters: self.user_counters(),
        })
    }

    fn peer_status(&self, peer: &crate::config::Peer) -> PeerStatus {
        let kind = peer.kind_name().to_owned();
        let name = peer.name.clone();
        if let Some(address) = peer.plain() {
            let (ready, detail) = match self.snapshot.paths.get(&address) {
                Some(Route::Resolved { next_hop_mac, .. }) => {
                    (true, format!("next hop {}", mac_text(*next_hop_mac)))
                }
                Some(Route::Unresolved { why }) => (false, why.to_string()),
                None => (false, "not looked up yet".to_owned()),
            };
            return PeerStatus {
                name,
                kind,
                address: Some(SocketAddr::new(address, self.config.uplink.port)),
                ready,
                detail,
                tunnel: None,
            };
        }
        let end = self
            .state
            .slots
            .peers
            .get(&peer.name)
            .and_then(|slot| self.ends.as_ref()?.status(*slot));
        let Some(end) = end else {
            return PeerStatus {
                name,
                kind,
                address: None,
                ready: false,
                detail: "not set up yet".to_owned(),
                tunnel: None,
            };
        };
        // A WireGuard peer comes and goes as it likes.
        let comes_and_goes = matches!(peer.kind, crate::config::PeerKind::WireGuard { .. });
        let detail = if end.up {
            "up".to_owned()
        } else {
            end.why_down.clone()
        };
        PeerStatus {
            name,
            kind,
            address: end.way.and_then(|way| way.address()),
            ready: end.up || comes_and_goes,
            detail,
            tunnel: Some(TunnelStatus {
                up: end.up,
                carrier: match end.way {
                    Some(tunnel::Way::Stream(_)) => "tls",
                    Some(_) => "udp",
                    None => "",
                }
                .to_owned(),
                via: end.via.unwrap_or_default(),
                gateways: end.gateways.into_iter().map(gateway_status).collect(),
                stream: end.stream.map(|(peer, counted)| StreamStatus {
                    peer,
                    tx_packets: counted.datagrams_out,
                    tx_bytes: counted.bytes_out,
                    rx_packets: counted.datagrams_in,
                    rx_bytes: counted.bytes_in,
                    dropped: counted.full_in
                        + counted.too_long_in
                        + counted.nowhere_in
                        + counted.full_out,
                }),
                public_key: end.public_key.to_string(),
                cipher: end.cipher.name().to_owned(),
                handshake_age_seconds: end.handshake_age.map(|age| age.as_secs()),
                handshakes: end.handshakes,
                path_mtu: end.path_mtu,
                round_trip_micros: end
                    .round_trip
                    .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                loss_percent: end.loss_percent,
                tx_packets: end.tx_packets,
                tx_bytes: end.tx_bytes,
                rx_packets: end.rx.opened,
                rx_bytes: end.rx.bytes,
                replays: end.rx.duplicates + end.rx.too_old + end.replayed_handshakes,
                forged: end.rx.forged,
                rejoined: end.rx.rejoin.completed,
                rejoin_lost: end.rx.rejoin.timed_out + end.rx.rejoin.evicted,
            }),
        }
    }

    fn interfaces_status(&self) -> Vec<InterfaceStatus> {
        self.config
            .ports()
            .into_iter()
            .map(|(name, (asked, _))| {
                let link = self.snapshot.links.get(&name);
                let attached = self.datapath.attached().get(&name);
                let nic = self.nics.get(&name);
                let mut problems: Vec<String> =
                    self.attach_errors.get(&name).cloned().into_iter().collect();
                problems.extend(nic.into_iter().flat_map(|n| n.problems.iter().cloned()));
                InterfaceStatus {
                    ifindex: link.map(|l| l.ifindex),
                    driver: nic.map(|n| n.driver.clone()).unwrap_or_default(),
                    mac: link.map(|l| mac_text(l.mac)).unwrap_or_default(),
                    mtu: link.map_or(0, |l| l.mtu),
                    up: link.is_some_and(|l| l.up),
                    program: attached.map(|a| a.kind.program().to_owned()),
                    xdp_asked: asked.name().to_owned(),
                    xdp: attached.map(|a| a.mode.name().to_owned()),
                    adopted: attached.is_some_and(|a| a.adopted),
                    problems,
                    name,
                }
            })
            .collect()
    }

    fn neighbours_status(&self) -> Vec<NeighbourStatus> {
        self.engine
            .entries(Instant::now())
            .map(|entry| NeighbourStatus {
                network: self
                    .config
                    .networks
                    .iter()
                    .find(|n| n.vni == entry.key.vni)
                    .map(|n| n.name.clone())
                    .unwrap_or_default(),
                address: to_ip(&entry.key.address),
                mac: entry.mac.map(mac_text),
                state: entry.state.name().to_owned(),
                age_seconds: entry.age.as_secs(),
            })
            .collect()
    }

    fn user_counters(&self) -> Vec<CounterStatus> {
        let n = self.engine.counters();
        let engine = [
            ("neighbour_probes_sent", n.probes_sent),
            ("neighbour_failed", n.failed),
            ("neighbour_mac_changed", n.mac_changed),
            ("neighbour_conflicts", n.conflicts),
            ("neighbour_flaps_damped", n.flaps_damped),
            ("neighbour_evicted", n.evicted),
            ("neighbour_refused_full", n.refused_full),
            ("neighbour_throttled", n.throttled),
            ("neighbour_ignored_invalid", n.ignored_invalid),
            ("neighbour_ignored_own", n.ignored_own),
            ("neighbour_ignored_port", n.ignored_port),
            ("send_errors", self.send_errors),
        ];
        let h = self
            .ends
            .as_ref()
            .map(TunnelManager::handshakes)
            .unwrap_or_default();
        let ends = [
            ("handshake_answered", h.answered),
            ("handshake_completed", h.completed),
            ("handshake_malformed", h.malformed),
            ("handshake_strangers", h.strangers),
            ("handshake_cookies_sent", h.cookies_sent),
            ("handshake_rate_limited", h.rate_limited),
            ("handshake_unauthentic", h.unauthentic),
            ("handshake_replayed", h.replayed),
            ("handshake_unexpected", h.unexpected),
            (
                "handshake_send_errors",
                self.ends.as_ref().map_or(0, TunnelManager::send_errors),
            ),
            (
                "socket_rx_dropped",
                self.ends.as_ref().map_or(0, TunnelManager::rx_dropped),
            ),
        ];
        let ends = ends.into_iter().filter(|_| self.ends.is_some());
        engine
            .into_iter()
            .chain(ends)
            .chain(self.slow.counters())
            .map(|(name, value)| CounterStatus {
                name: name.to_owned(),
                value,
                help: String::new(),
            })
            .collect()
    }

    pub(super) fn counters(&self) -> Result<Vec<CounterStatus>, Refusal> {
        let counters = self
            .datapath
            .counters()
            .map_err(|e| Refusal::new("internal", e.to_string()))?;
        Ok(counters
            .into_iter()
            .map(|(counter, value)| CounterStatus {
                name: counter.name().to_owned(),
                value: value + self.ends.as_ref().map_or(0, |e| e.counter(counter)),
                help: counter.help().to_owned(),
            })
            .collect())
    }
}
