//! Prometheus metrics: a sample of the daemon's state each second, encoded when a scraper asks.
//!
//! ```text
//!   each second: status, counters, map fill ─▶ Sample ─▶ Metrics ◀─ scrape ─ service::http
//! ```
//!
//! The number of series is bounded by the configuration: labels are names of networks, tenants,
//! peers, interfaces, workers, maps, counters and reasons, never addresses, hosts or connections.
//! `docs/metrics.md` lists every metric; a test compares it with this file.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use appliance_common::{
    limits::{
        MAX_ATTACHMENTS, MAX_ENDPOINTS, MAX_NEIGHBOURS, MAX_NETWORKS, MAX_PEERS, MAX_POLICIES,
        MAX_PUBLIC, MAX_ROUTES, MAX_RULE_PORTS, MAX_RULE_SOURCES, MAX_RULES, MAX_TENANTS,
        MAX_TUNNELS,
    },
    maps::Mode,
    nat::TenantUsage,
};
use aya::maps::{Array, Map, MapData, MapError};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, LabelSetEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use service::{http, run::ProcessMetrics};
use tunnel_worker::tls::RefusalReason;

use super::{Daemon, kernel_drops::REDIRECT_FAILED};
use crate::{
    config::Role,
    control::{CounterStatus, NetworkStatus, PeerStatus, Status, TunnelStatus},
};

/// Prefix of the names of counters that count dropped packets.
const DROP: &str = "drop_";

/// The newest sample, which the HTTP server renders, and the metrics of the process. Clones share
/// them.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    newest: Arc<Mutex<Newest>>,
    process: ProcessMetrics,
}

/// The newest sample.
#[derive(Clone, Debug, Default)]
struct Newest {
    /// With the time at which it was taken; none before the first.
    sample: Option<(Arc<Sample>, Instant)>,
    /// The state could not be read since.
    failed: bool,
}

/// The state of the daemon at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    status: Status,
    counters: Vec<CounterStatus>,
    maps: Vec<MapFill>,
    /// Entries of translation that were removed, by reason.
    removed: Vec<(&'static str, u64)>,
    /// Number of the sweeper's passes, and the seconds of the last one; none without translation.
    passes: Option<(u64, f64)>,
    /// Lines missing from the NAT log.
    nat_log_lost: u64,
}

/// How full a map is.
#[derive(Clone, Copy, Debug)]
struct MapFill {
    /// Name of the map.
    map: &'static str,
    entries: u64,
    capacity: u64,
}

impl Metrics {
    /// Without a sample; `process` is counted by the runtime.
    pub fn new(process: ProcessMetrics) -> Self {
        Self {
            newest: Arc::default(),
            process,
        }
    }

    /// A registry that serves them.
    pub fn registry(&self) -> Arc<Registry> {
        let mut registry = Registry::default();
        self.process
            .register_reloads(registry.sub_registry_with_prefix("causeway_appliance"));
        registry.register_collector(Box::new(self.clone()));
        Arc::new(registry)
    }

    /// A configuration is in force from now on.
    pub fn applied(&self) {
        self.process.applied();
    }

    /// Replaces the sample. Without one, the last is served on, and marked. Returns whether that
    /// begins or ends a failure.
    fn set(&self, sample: Option<Sample>) -> bool {
        let mut newest = self.newest();
        let failed = sample.is_none();
        if let Some(sample) = sample {
            newest.sample = Some((Arc::new(sample), Instant::now()));
        }
        std::mem::replace(&mut newest.failed, failed) != failed
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the metrics where an address is configured.
///
/// # Errors
/// When the address cannot be bound.
pub(super) async fn serve(
    metrics: &Metrics,
    address: Option<SocketAddr>,
    health: &service::Health,
) -> Result<Option<http::Server>, http::Error> {
    let Some(address) = address else {
        return Ok(None);
    };
    let registry = metrics.registry();
    let server = http::Server::bind(address, "appliance.metrics", registry, health.clone()).await?;
    Ok(Some(server))
}

impl Daemon {
    /// Takes a sample, where metrics are served.
    pub(super) fn sample_metrics(&self) {
        if self.reports.http.is_none() {
            return;
        }
        match self.sample() {
            Ok(sample) => {
                if self.reports.metrics.set(Some(sample)) {
                    tracing::info!("the metrics can be read again");
                }
            }
            Err(error) => {
                if self.reports.metrics.set(None) {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "cannot read the metrics; the last sample is served, with \
                         causeway_appliance_sample_failed 1, until they can be read again"
                    );
                }
            }
        }
    }

    fn sample(&self) -> anyhow::Result<Sample> {
        let refused = |refusal: crate::control::RequestRefusal| anyhow::anyhow!(refusal.message);
        Ok(Sample {
            status: self.status().map_err(refused)?,
            counters: self.counters().map_err(refused)?,
            maps: self.map_fill()?,
            removed: self
                .connection_sweeper
                .iter()
                .flat_map(|sweeper| sweeper.removals().counts())
                .collect(),
            passes: self.connection_sweeper.as_ref().map(|sweeper| {
                let passes = sweeper.passes();
                (passes.count(), passes.last().as_secs_f64())
            }),
            nat_log_lost: self.nat_log.lost(),
        })
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, MapError> {
        let tables = self.controller.tables();
        let mut fill: Vec<MapFill> = [
            ("NETWORKS", tables.networks.len(), MAX_NETWORKS),
            ("ATTACHMENTS", tables.attachments.len(), MAX_ATTACHMENTS),
            ("TENANTS", tables.tenants.len(), MAX_TENANTS),
            ("PEERS", tables.peers.len(), MAX_PEERS),
            ("TUNNELS", tables.tunnels.len(), MAX_TUNNELS),
            ("ENDPOINTS", tables.endpoints.len(), MAX_ENDPOINTS),
            ("NEIGHBOURS", self.engines.neighbour_count(), MAX_NEIGHBOURS),
            ("ROUTES", tables.routes.len(), MAX_ROUTES),
            ("POLICIES", tables.policies.len(), MAX_POLICIES),
            ("PUBLIC", tables.public.len(), MAX_PUBLIC),
            ("RULES", tables.rules.len(), MAX_RULES),
            ("RULE_PORTS", tables.rule_ports.len(), MAX_RULE_PORTS),
            ("RULE_SOURCES", tables.rule_sources.len(), MAX_RULE_SOURCES),
        ]
        .into_iter()
        .map(|(map, entries, capacity)| MapFill {
            map,
            entries: entries as u64,
            capacity: capacity.into(),
        })
        .collect();
        if self.controller.config().role == Role::Provider {
            let usage = self.translation_usage()?;
            // A connection has an entry for each direction, and so has a mapping.
            fill.extend([
                MapFill {
                    map: "FLOWS",
                    entries: 2 * usage.connections,
                    capacity: self.pinned("FLOWS")?.info()?.max_entries().into(),
                },
                MapFill {
                    map: "MAPPINGS",
                    entries: 2 * usage.mappings,
                    capacity: self.pinned("MAPPINGS")?.info()?.max_entries().into(),
                },
            ]);
        }
        Ok(fill)
    }

    fn pinned(&self, map: &str) -> Result<MapData, MapError> {
        MapData::from_pin(self.controller.datapath().root().join("maps").join(map))
    }

    /// Connections and mappings of all tenants, as the programs count them.
    fn translation_usage(&self) -> Result<TenantUsage, MapError> {
        let map = Map::Array(self.pinned("USAGE")?);
        let usage: Array<MapData, TenantUsage> = map.try_into()?;
        let mut sum = TenantUsage::default();
        for slot in self.controller.state().slots.tenants.values() {
            let tenant = usage.get(slot, 0)?;
            sum.connections += tenant.connections;
            sum.mappings += tenant.mappings;
        }
        Ok(sum)
    }
}

/// Labels of one sample.
#[derive(Debug)]
struct Labels<'a>(Vec<(&'static str, &'a str)>);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.as_slice().encode(encoder)
    }
}

/// Encodes families of samples.
struct Families<'e, 'd>(&'e mut DescriptorEncoder<'d>);

impl Families<'_, '_> {
    /// A counter; `name` is without `_total`.
    fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, u64)>,
    ) -> fmt::Result {
        let name = format!("causeway_appliance_{name}");
        let mut metric = self
            .0
            .encode_descriptor(&name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                return ConstCounter::new(value).encode(metric);
            }
            let labels = Labels(labels);
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, f64)>,
    ) -> fmt::Result {
        let name = format!("causeway_appliance_{name}");
        let mut metric = self
            .0
            .encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                return ConstGauge::new(value).encode(metric);
            }
            let labels = Labels(labels);
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A gauge without labels.
    fn value(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauge(name, help, [(Vec::new(), value)])
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // The lock is not held while the sample is encoded.
        let Newest { sample, failed } = self.newest().clone();
        let families = &mut Families(&mut encoder);
        families.value(
            "sample_failed",
            "1 while the daemon cannot read its state: what is served is old",
            flag(failed),
        )?;
        let Some((sample, at)) = sample else {
            return Ok(());
        };
        families.value(
            "sample_age_seconds",
            "Seconds since the daemon read the state that is served",
            at.elapsed().as_secs_f64(),
        )?;
        sample.encode(families)
    }
}

const fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

impl Sample {
    fn encode(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        self.daemon(families)?;
        self.packets(families)?;
        self.tenants(families)?;
        self.networks(families)?;
        self.peers(families)?;
        self.tunnels(families)?;
        self.workers(families)?;
        self.maps(families)
    }

    fn daemon(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let s = &self.status;
        families.gauge(
            "info",
            "Name, role and version of the appliance; always 1",
            [(
                vec![
                    ("name", s.name.as_str()),
                    ("role", s.role.as_str()),
                    ("version", s.version.as_str()),
                ],
                1.0,
            )],
        )?;
        families.value(
            "ready",
            "1 if all of the configuration is in force; `causeway-appliance status` lists what is \
             not",
            flag(s.ready),
        )?;
        families.value(
            "not_ready_reasons",
            "Number of reasons why the appliance is not ready",
            s.not_ready.len() as f64,
        )?;
        families.value(
            "maintenance",
            "1 while maintenance refuses new failovers",
            flag(s.maintenance),
        )?;
        families.value(
            "address_conflicts",
            "Addresses of the appliance that another machine uses",
            s.conflicts.len() as f64,
        )?;
        let counted = |c: &CounterStatus| c.name == REDIRECT_FAILED;
        families.value(
            "kernel_drops_counted",
            "1 while frames that the kernel drops after XDP programs are counted; `status` says \
             why they are not",
            flag(s.user_counters.iter().any(counted)),
        )?;
        families.value(
            "uptime_seconds",
            "Seconds since the daemon started",
            s.uptime_seconds as f64,
        )?;
        families.gauge(
            "interface_ready",
            "1 if the interface is up and runs its XDP program; `mode` is the XDP mode",
            s.interfaces.iter().map(|i| {
                let mode = i.xdp.as_deref().unwrap_or("none");
                let ready = i.up && i.program.is_some() && i.problems.is_empty();
                (
                    vec![("interface", i.name.as_str()), ("mode", mode)],
                    flag(ready),
                )
            }),
        )
    }

    fn packets(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let counters = || self.counters.iter();
        families.counter(
            "packets",
            "Packets by outcome, as `causeway-appliance counters` names them",
            counters()
                .filter(|c| !c.name.starts_with(DROP))
                .map(|c| (vec![("outcome", c.name.as_str())], c.value)),
        )?;
        families.counter(
            "dropped_packets",
            "Packets dropped by programs and workers, by reason",
            counters().filter_map(|c| {
                let reason = c.name.strip_prefix(DROP)?;
                Some((vec![("reason", reason)], c.value))
            }),
        )?;
        families.counter(
            "daemon_events",
            "Events counted by the daemon: neighbour resolution, slow path, handshakes",
            self.status
                .user_counters
                .iter()
                .map(|c| (vec![("event", c.name.as_str())], c.value)),
        )
    }

    fn tenants(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let tenants = || self.status.tenants.iter();
        families.gauge(
            "tenant_mode",
            "1 for the present mode of the tenant, 0 for the other modes",
            tenants().flat_map(|t| {
                [Mode::Idle, Mode::Partial, Mode::Full].map(|mode| {
                    let labels = vec![("tenant", t.name.as_str()), ("mode", mode.name())];
                    (labels, flag(t.mode == mode.name()))
                })
            }),
        )?;
        families.gauge(
            "tenant_public_rules",
            "Public IP rules of the tenant that are in force",
            tenants().map(|t| (vec![("tenant", t.name.as_str())], t.rules as f64)),
        )
    }

    fn networks(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let networks = || self.status.networks.iter();
        fn labels(n: &NetworkStatus) -> Vec<(&'static str, &str)> {
            vec![("network", &n.name), ("tenant", &n.tenant)]
        }
        fn directed<'a>(
            n: &'a NetworkStatus,
            direction: &'static str,
        ) -> Vec<(&'static str, &'a str)> {
            let mut labels = labels(n);
            labels.push(("direction", direction));
            labels
        }
        families.counter(
            "network_packets",
            "Packets of the network into the tunnel (tx) and out of it (rx)",
            networks().flat_map(|n| {
                [
                    (directed(n, "tx"), n.tx_packets),
                    (directed(n, "rx"), n.rx_packets),
                ]
            }),
        )?;
        families.counter(
            "network_bytes",
            "Bytes of IP of the network into the tunnel (tx) and out of it (rx)",
            networks().flat_map(|n| {
                [
                    (directed(n, "tx"), n.tx_bytes),
                    (directed(n, "rx"), n.rx_bytes),
                ]
            }),
        )?;
        families.gauge(
            "network_endpoints",
            "Failed-over addresses of the network",
            networks().map(|n| (labels(n), n.endpoints.len() as f64)),
        )?;
        families.gauge(
            "network_mtu_bytes",
            "Largest IP packet of the network, bytes",
            networks().map(|n| (labels(n), n.mtu.into())),
        )
    }

    fn peers(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        families.gauge(
            "peer_ready",
            "1 if packets can be sent to the peer",
            self.status.peers.iter().map(|p| {
                let labels = vec![("peer", p.name.as_str()), ("kind", p.kind.as_str())];
                (labels, flag(p.ready))
            }),
        )
    }

    fn tunnels(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let tunnels = || {
            let peers = self.status.peers.iter();
            peers.filter_map(|p| Some((p, p.tunnel.as_ref()?)))
        };
        fn peer(p: &PeerStatus) -> Vec<(&'static str, &str)> {
            vec![("peer", &p.name)]
        }
        fn directed<'a>(
            p: &'a PeerStatus,
            direction: &'static str,
        ) -> Vec<(&'static str, &'a str)> {
            vec![("peer", &p.name), ("direction", direction)]
        }
        families.gauge(
            "tunnel_up",
            "1 if the encrypted tunnel has a session and the peer answers; `transport`: udp or tls",
            tunnels().map(|(p, t)| {
                let transport = ("transport", t.transport.as_str());
                let labels = vec![("peer", p.name.as_str()), transport];
                (labels, flag(t.up))
            }),
        )?;
        families.counter(
            "tunnel_handshakes",
            "Handshakes completed with the peer",
            tunnels().map(|(p, t)| (peer(p), t.handshakes)),
        )?;
        families.gauge(
            "tunnel_handshake_age_seconds",
            "Seconds since the last handshake with the peer; absent before the first",
            tunnels().filter_map(|(p, t)| Some((peer(p), t.handshake_age_seconds? as f64))),
        )?;
        families.gauge(
            "tunnel_round_trip_seconds",
            "Smoothed round-trip time to the peer; absent before the first echo",
            tunnels().filter_map(|(p, t)| Some((peer(p), t.round_trip_micros? as f64 / 1e6))),
        )?;
        families.gauge(
            "tunnel_loss_ratio",
            "Share of the last 32 echoes that were lost",
            tunnels().map(|(p, t)| (peer(p), f64::from(t.loss_percent) / 100.0)),
        )?;
        families.gauge(
            "tunnel_path_mtu_bytes",
            "Largest IP packet on the path to the peer, bytes",
            tunnels().map(|(p, t)| (peer(p), t.path_mtu as f64)),
        )?;
        families.counter(
            "tunnel_datagrams",
            "Encrypted datagrams to the peer (tx) and authentic ones from it (rx)",
            tunnels().flat_map(|(p, t)| {
                [
                    (directed(p, "tx"), t.tx_packets),
                    (directed(p, "rx"), t.rx_packets),
                ]
            }),
        )?;
        families.counter(
            "tunnel_bytes",
            "Bytes of UDP payload to the peer (tx) and from it (rx)",
            tunnels().flat_map(|(p, t)| {
                [
                    (directed(p, "tx"), t.tx_bytes),
                    (directed(p, "rx"), t.rx_bytes),
                ]
            }),
        )?;
        let refused = |t: &TunnelStatus| [("replay", t.replays), ("forged", t.forged)];
        families.counter(
            "tunnel_refused_datagrams",
            "Datagrams from the peer's address refused as replayed or forged",
            tunnels().flat_map(|(p, t)| {
                refused(t).map(|(reason, count)| {
                    (vec![("peer", p.name.as_str()), ("reason", reason)], count)
                })
            }),
        )?;
        families.counter(
            "tunnel_incomplete_packets",
            "Packets from the peer dropped because fragments of them were missing",
            tunnels().map(|(p, t)| (peer(p), t.reassembly_lost)),
        )?;
        families.gauge(
            "tunnel_gateways_bound",
            "Gateways at which this end of the peer's circuit is bound",
            tunnels()
                .filter(|(_, t)| !t.gateways.is_empty())
                .map(|(p, t)| {
                    let bound = t.gateways.iter().filter(|g| g.bound).count();
                    (peer(p), bound as f64)
                }),
        )?;
        let tls = self.status.tls.iter();
        families.counter(
            "tls_refused_connections",
            "Connections to the listener for tunnels over TLS that were refused, by reason",
            tls.flat_map(|tls| {
                RefusalReason::ALL.map(|reason| {
                    let reason = reason.name();
                    let count = tls.refused.get(reason).copied().unwrap_or(0);
                    (vec![("reason", reason)], count)
                })
            }),
        )
    }

    fn workers(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let workers = self.status.workers.iter();
        let workers: Vec<_> = workers.map(|w| (w.index.to_string(), w)).collect();
        families.counter(
            "worker_packets",
            "Packets of a worker by outcome; handed-over ones belong to another worker's lane",
            workers.iter().flat_map(|(index, w)| {
                [
                    ("sealed", w.sealed),
                    ("delivered", w.delivered),
                    ("handed_over", w.handed_over),
                    ("dropped", w.dropped),
                ]
                .map(|(outcome, count)| {
                    (
                        vec![("worker", index.as_str()), ("outcome", outcome)],
                        count,
                    )
                })
            }),
        )
    }

    fn maps(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let maps = || self.maps.iter();
        families.gauge(
            "map_entries",
            "Entries of a BPF map in use",
            maps().map(|m| (vec![("map", m.map)], m.entries as f64)),
        )?;
        families.gauge(
            "map_capacity",
            "Entries that a BPF map has room for",
            maps().map(|m| (vec![("map", m.map)], m.capacity as f64)),
        )?;
        families.counter(
            "nat_removed",
            "Connections and mappings removed from the NAT tables, by reason",
            self.removed
                .iter()
                .map(|(reason, count)| (vec![("reason", *reason)], *count)),
        )?;
        families.counter(
            "nat_passes",
            "Passes over the NAT tables that remove entries",
            self.passes.iter().map(|(count, _)| (Vec::new(), *count)),
        )?;
        families.gauge(
            "nat_pass_seconds",
            "Seconds that the last pass over the NAT tables took",
            self.passes
                .iter()
                .map(|(_, seconds)| (Vec::new(), *seconds)),
        )?;
        families.counter(
            "nat_log_lost",
            "Lines missing from the NAT log because it could not be written in time",
            [(Vec::new(), self.nat_log_lost)],
        )
    }
}

#[cfg(test)]
mod tests;
