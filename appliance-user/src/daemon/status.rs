//! Status and counters of the daemon.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use appliance_common::{
    addr::{from_ip, to_ip},
    counters::Counter,
    maps::{HostKey, Mode, NetworkStats},
};
use service::{
    desired::{Position, Source},
    http,
    socket::Page,
};

use super::{
    Daemon, conflicts,
    controller::{Controller, InForce},
    kernel_drops::{KernelDrops, REDIRECT_FAILED},
    metrics::Metrics,
    packet_health::{PacketHealth, Sample},
};
use crate::{
    config::{Network, Peer},
    control::{
        CounterStatus, NEIGHBOURS_PAGE, NeighbourStatus, NetworkStatus, NotCarriedStatus,
        PeerStatus, RequestRefusal, STATUS_ENDPOINTS, STATUS_PAGE, Status, TenantStatus, mac_text,
    },
    datapath,
    datapath::reconcile::{local_addresses, mode_of, network_mtu, plan_tenant},
    engine::neighbour::EntryStatus,
    kernel::underlay::{Snapshot, UnderlayPath},
};

/// Reports of the daemon itself, beside those of the controller.
pub(super) struct Reports {
    pub packet_health: PacketHealth,
    pub kernel_drops: KernelDrops,
    pub metrics: Metrics,
    /// Serves the metrics, where they are configured.
    pub http: Option<http::Server>,
    /// The state of the loop, for the HTTP server.
    pub loop_health: service::Health,
    pub started: Instant,
}

impl Daemon {
    /// Whether all of the configuration is in force.
    pub(super) fn is_ready(&self) -> bool {
        let peers = peers(&self.controller);
        self.not_ready(&peers).is_empty()
    }

    /// Tells the director how the appliance is.
    pub(super) fn report_to_director(&self) {
        if let Some(agent) = &self.agent {
            let reasons = self.not_ready(&peers(&self.controller));
            agent.report(agent::Report {
                ready: reasons.is_empty(),
                reasons,
            });
        }
    }

    /// The status with all lists but that of neighbours.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn status(&self) -> Result<Status, RequestRefusal> {
        let controller = &self.controller;
        let in_force = controller.in_force();
        let peers = peers(controller);
        let networks = in_force.config.networks.iter();
        let networks: Result<_, RequestRefusal> =
            networks.map(|n| network_status(controller, n)).collect();
        let tenants = tenants(in_force).into_iter();
        let tenant = |name: String| tenant_status(in_force, controller.snapshot(), &name);
        let summary = self.summary_with(&peers);
        Ok(Status {
            tenants: tenants.map(tenant).collect(),
            networks: networks?,
            peers,
            ..summary
        })
    }

    /// The status without the lists that may be long: they come in pages.
    pub(super) fn summary(&self) -> Status {
        self.summary_with(&peers(&self.controller))
    }

    fn summary_with(&self, peers: &[PeerStatus]) -> Status {
        let controller = &self.controller;
        let InForce { config, state, .. } = controller.in_force();
        let not_ready = self.not_ready(peers);
        let (datapath, tunnels) = (controller.datapath(), controller.tunnels());
        let (tables, snapshot) = (controller.tables(), controller.snapshot());
        Status {
            name: config.name.clone(),
            role: config.role.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: not_ready.is_empty(),
            agent: self.agent.as_ref().map(agent::Handle::status),
            not_ready,
            maintenance: state.maintenance,
            desired: match (config.source, &state.desired) {
                (Source::File, _) => Position {
                    source: Source::File,
                    revision: 0,
                },
                (_, Some(desired)) => Position {
                    source: desired.source,
                    revision: desired.revision,
                },
                (_, None) => Position::default(),
            },
            uptime_seconds: self.reports.started.elapsed().as_secs(),
            adopted: datapath.adopted(),
            pins: datapath.root().display().to_string(),
            tunnel_port: tables.config.tunnel_port,
            secure_port: tables.config.secure_port,
            public_key: tunnels.public_key(),
            tls: tunnels.tls(config),
            local: local_addresses(config, snapshot),
            interfaces: controller.interfaces().status(config, snapshot, datapath),
            tenants: Vec::new(),
            networks: Vec::new(),
            not_carried: self.not_carried(),
            peers: Vec::new(),
            gateway_names: controller.gateway_names().status(),
            workers: tunnels.workers(),
            neighbours: Vec::new(),
            conflicts: conflicts::status(controller, &self.engines),
            warnings: self.warnings(),
            user_counters: self.user_counters(),
        }
    }

    /// The traffic that does not cross between the sites, with the packets dropped for it. Without
    /// those of the programs if their counters cannot be read, which `counters` reports.
    fn not_carried(&self) -> NotCarriedStatus {
        let counter = Counter::DropNotCarried;
        let of_programs = self.controller.datapath().counter(counter);
        let of_workers = self.controller.tunnels().counter(counter);
        NotCarriedStatus {
            mode: "proxy".to_owned(),
            refused: vec!["broadcast".to_owned(), "multicast".to_owned()],
            dropped: of_programs.unwrap_or_default() + of_workers,
        }
    }

    /// The parts of the configuration that are not in force, with reasons.
    fn not_ready(&self, peers: &[PeerStatus]) -> Vec<String> {
        let controller = &self.controller;
        let InForce { config, state, .. } = controller.in_force();
        let mut reasons: Vec<String> = controller.interfaces().problems().collect();
        if local_addresses(config, controller.snapshot()).is_empty() {
            reasons.push(format!(
                "no tunnel address: {} has none; give it one, or set uplink.local",
                config.uplink.interface
            ));
        }
        // In full failover the production site is gone, and its end of the tunnel is not needed.
        let needed = |name: &str| {
            let mut networks = config.networks.iter().filter(|n| n.peer == name).peekable();
            networks.peek().is_none() || networks.any(|n| mode_of(state, &n.tenant) != Mode::Full)
        };
        let missing = peers.iter().filter(|p| !p.ready && needed(&p.name));
        reasons.extend(missing.map(|p| match p.address {
            Some(address) => format!("peer {:?} ({address}): {}", p.name, p.detail),
            None => format!("peer {:?}: {}", p.name, p.detail),
        }));
        reasons.extend(controller.tunnels().problems());
        reasons.extend(controller.failover_problems().cloned());
        let ports = controller.interfaces().summary(controller.datapath());
        reasons.extend(self.reports.packet_health.problems(&ports));
        reasons
    }

    /// Warnings to the operator that do not make the daemon unready: all of the configuration is in
    /// force.
    fn warnings(&self) -> Vec<String> {
        let (controller, reports) = (&self.controller, &self.reports);
        let ports = controller.interfaces().summary(controller.datapath());
        let mut warnings = conflicts::warnings(controller, &self.engines, &reports.kernel_drops);
        warnings.extend(reports.packet_health.warnings(&ports));
        warnings
    }

    /// The neighbours after `after`, which is a `next` of the page before.
    ///
    /// # Errors
    /// When `after` is no key of a neighbour.
    pub(super) fn neighbours_page(
        &self,
        after: Option<&str>,
    ) -> Result<Page<NeighbourStatus>, RequestRefusal> {
        let after = match after.map(|text| (text, neighbour_of(text))) {
            Some((text, None)) => {
                let message = format!("after: {text:?}: write the `next` of the page before");
                return Err(RequestRefusal::new("bad-request", message));
            }
            Some((_, key)) => key,
            None => None,
        };
        let networks = self.controller.config().networks.iter();
        let names: HashMap<u32, &str> = networks.map(|n| (n.vni, n.name.as_str())).collect();
        let entries = self.engines.neighbours_after(Instant::now(), after);
        let key = |entry: &EntryStatus| neighbour_key(&entry.key);
        let page = Page::of(entries, key, None, NEIGHBOURS_PAGE);
        Ok(page.map(|entry| NeighbourStatus {
            network: names
                .get(&entry.key.vni)
                .copied()
                .unwrap_or_default()
                .to_owned(),
            address: to_ip(&entry.key.address),
            mac: entry.mac.map(mac_text),
            state: entry.state.name().to_owned(),
            age_seconds: entry.age.as_secs(),
        }))
    }

    /// Counters of the daemon itself, by stable name.
    fn user_counters(&self) -> Vec<CounterStatus> {
        let engines = self.engines.counters().into_iter();
        let sent = [("send_errors", self.sender.errors())];
        let dropped = self.reports.kernel_drops.read();
        let dropped = dropped.map(|dropped| {
            [
                (REDIRECT_FAILED, dropped.redirects),
                ("xdp_exception", dropped.exceptions),
                ("xdp_transmit_failed", dropped.batches),
            ]
        });
        engines
            .chain(sent)
            .chain(dropped.into_iter().flatten())
            .chain(self.controller.tunnels().counters())
            .map(|(name, value)| CounterStatus {
                name: name.to_owned(),
                value,
                help: String::new(),
            })
            .collect()
    }

    /// Takes the counters that must not rise, and has the kernel's drops counted for the programs
    /// that are attached now.
    pub(super) fn sample_packet_health(&mut self, now: Instant) {
        let (datapath, tunnels) = (self.controller.datapath(), self.controller.tunnels());
        let dropped = self.reports.kernel_drops.sample(now, datapath);
        let value = |counter| {
            let of_programs = datapath.counter(counter).ok()?;
            Some(of_programs + tunnels.counter(counter))
        };
        let [
            Some(adjust),
            Some(partial),
            Some(partial_udp),
            Some(partial_outside),
        ] = [
            Counter::DropAdjust,
            Counter::ChecksumPartial,
            Counter::ChecksumPartialUdp,
            Counter::ChecksumPartialOutside,
        ]
        .map(value)
        else {
            return;
        };
        let sample = Sample {
            adjust,
            partial,
            partial_udp,
            partial_outside,
            redirects: dropped.map_or(0, |dropped| dropped.redirects),
            exceptions: dropped.map_or(0, |dropped| dropped.exceptions),
        };
        self.reports.packet_health.sample(now, sample);
    }

    /// Counters of programs and workers, summed.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn counters(&self) -> Result<Vec<CounterStatus>, RequestRefusal> {
        let counters = self.controller.datapath().counters().map_err(internal)?;
        Ok(counters
            .into_iter()
            .map(|(counter, value)| CounterStatus {
                name: counter.name().to_owned(),
                value: value + self.controller.tunnels().counter(counter),
                help: counter.help().to_owned(),
            })
            .collect())
    }
}

/// A page of things by name: at most `limit`, and not more than those whose weights together reach
/// `heaviest`, but at least one.
fn page<'a, T>(
    things: impl Iterator<Item = &'a T>,
    name: impl Fn(&T) -> &str,
    after: Option<&str>,
    (limit, heaviest, weight): (usize, usize, impl Fn(&T) -> usize),
) -> Page<&'a T> {
    let mut rest: Vec<&T> = things
        .filter(|thing| after.is_none_or(|after| name(thing) > after))
        .collect();
    rest.sort_unstable_by_key(|thing| name(thing).to_owned());
    let mut left = heaviest;
    let mut fits = 0;
    while fits < rest.len().min(limit) && left > 0 {
        left = left.saturating_sub(weight(rest[fits]));
        fits += 1;
    }
    let next = (fits < rest.len()).then(|| name(rest[fits - 1]).to_owned());
    rest.truncate(fits);
    Page { items: rest, next }
}

/// A page of the configured tenants, and of those in failover that are no longer configured.
pub(super) fn tenants_page(controller: &Controller, after: Option<&str>) -> Page<TenantStatus> {
    let all = tenants(controller.in_force());
    let page = page(
        all.iter(),
        |name| name,
        after,
        (STATUS_PAGE, usize::MAX, |_| 0),
    );
    page.map(|name| tenant_status(controller.in_force(), controller.snapshot(), name))
}

/// A page of the networks.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn networks_page(
    controller: &Controller,
    after: Option<&str>,
) -> Result<Page<NetworkStatus>, RequestRefusal> {
    let InForce { config, state, .. } = controller.in_force();
    let endpoints = |network: &Network| state.endpoints.get(&network.name).map_or(0, |e| e.len());
    let page = page(
        config.networks.iter(),
        |network| &network.name,
        after,
        (STATUS_PAGE, STATUS_ENDPOINTS, endpoints),
    );
    let networks = page.items.into_iter();
    let networks: Result<_, RequestRefusal> =
        networks.map(|n| network_status(controller, n)).collect();
    Ok(Page {
        items: networks?,
        next: page.next,
    })
}

/// A page of the peers, in the order of their names.
pub(super) fn peers_page(controller: &Controller, after: Option<&str>) -> Page<PeerStatus> {
    let peers = controller.config().peers.iter();
    let page = page(
        peers,
        |peer| &peer.name,
        after,
        (STATUS_PAGE, usize::MAX, |_| 0),
    );
    page.map(|peer| peer_status(controller, peer))
}

fn peers(controller: &Controller) -> Vec<PeerStatus> {
    let peers = controller.config().peers.iter();
    peers.map(|p| peer_status(controller, p)).collect()
}

fn network_status(
    controller: &Controller,
    network: &Network,
) -> Result<NetworkStatus, RequestRefusal> {
    let InForce { config, state, .. } = controller.in_force();
    let (snapshot, tunnels) = (controller.snapshot(), controller.tunnels());
    let slot = state.slots.networks.get(&network.name);
    let stats = match slot {
        Some(slot) => network_stats(controller, *slot).map_err(internal)?,
        None => NetworkStats::default(),
    };
    let endpoints = state.endpoints.get(&network.name).into_iter().flatten();
    Ok(NetworkStatus {
        name: network.name.clone(),
        tenant: network.tenant.clone(),
        vni: network.vni,
        peer: network.peer.clone(),
        interface: network.interface.clone(),
        vlan: network.vlan.to_string(),
        mtu: network_mtu(config, snapshot, tunnels.observed(), network),
        endpoints: endpoints.copied().collect(),
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
    })
}

/// Traffic of the network in a slot, by programs and workers.
fn network_stats(controller: &Controller, slot: u32) -> Result<NetworkStats, datapath::Error> {
    let plain = controller.datapath().network_stats(slot)?;
    let secure = controller.tunnels().network(slot);
    Ok(NetworkStats {
        tx_packets: plain.tx_packets + secure.tx_packets,
        tx_bytes: plain.tx_bytes + secure.tx_bytes,
        rx_packets: plain.rx_packets + secure.rx_packets,
        rx_bytes: plain.rx_bytes + secure.rx_bytes,
    })
}

fn peer_status(controller: &Controller, peer: &Peer) -> PeerStatus {
    let Some(address) = peer.plain() else {
        return controller.tunnels().peer(peer, controller.state());
    };
    let (ready, detail) = match controller.snapshot().paths.get(&address) {
        Some(UnderlayPath::Resolved { next_hop_mac, .. }) => {
            (true, format!("next hop {}", mac_text(*next_hop_mac)))
        }
        Some(UnderlayPath::Unresolved { reason }) => (false, reason.to_string()),
        None => (false, "not looked up yet".to_owned()),
    };
    let port = controller.config().uplink.port;
    PeerStatus {
        name: peer.name.clone(),
        kind: peer.kind_name().to_owned(),
        address: Some(SocketAddr::new(address, port)),
        ready,
        detail,
        tunnel: None,
    }
}

/// The key of a neighbour in pages: VNI and address.
fn neighbour_key(key: &HostKey) -> String {
    format!("{} {}", key.vni, to_ip(&key.address))
}

/// The neighbour of a [`neighbour_key`].
fn neighbour_of(text: &str) -> Option<HostKey> {
    let (vni, address) = text.split_once(' ')?;
    Some(HostKey {
        vni: vni.parse().ok()?,
        address: from_ip(address.parse().ok()?),
    })
}

/// The configured tenants, and tenants in failover that are no longer configured.
fn tenants(in_force: &InForce) -> Vec<String> {
    let InForce { config, state, .. } = in_force;
    let configured = config.tenants.iter().map(|tenant| tenant.name.clone());
    configured.chain(state.left_over(config)).collect()
}

fn tenant_status(in_force: &InForce, snapshot: &Snapshot, name: &str) -> TenantStatus {
    let InForce { config, state, .. } = in_force;
    let mode = state.modes.get(name);
    let plan = mode.and_then(|m| m.failover.plan());
    let of = plan_tenant(config, snapshot, name);
    let rules = plan
        .zip(of)
        .map(|(plan, of)| plan.active_rules(&of).0.len());
    TenantStatus {
        name: name.to_owned(),
        mode: mode_of(state, name).name().to_owned(),
        epoch: mode.map_or(0, |m| m.epoch),
        plan: plan.map(|plan| plan.name().to_owned()),
        rules: rules.unwrap_or_default(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: datapath::Error) -> RequestRefusal {
    RequestRefusal::new("internal", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pages of so many things, of which each weighs its number.
    fn pages(count: usize, limit: usize, heaviest: usize) -> Vec<Vec<usize>> {
        // In another order than that of the names.
        let things = (0..count).rev().map(|n| (format!("n{n:05}"), n));
        let things: Vec<(String, usize)> = things.collect();
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let bounds = (limit, heaviest, |thing: &(String, usize)| thing.1);
            let page = page(things.iter(), |thing| &thing.0, after.as_deref(), bounds);
            pages.push(page.items.iter().map(|thing| thing.1).collect());
            after = page.next;
            if after.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn pages_of_the_status_are_bounded_and_have_each_thing_once() {
        assert_eq!(pages(0, 3, 10), [Vec::<usize>::new()]);
        assert_eq!(pages(4, 3, 100), [vec![0, 1, 2], vec![3]]);
        // A page ends once it is heavy enough.
        assert_eq!(pages(5, 9, 3), [vec![0, 1, 2], vec![3], vec![4]]);
        let many = pages(10_000, STATUS_PAGE, usize::MAX);
        assert!(many.iter().all(|page| page.len() == STATUS_PAGE));
        assert_eq!(many.concat(), (0..10_000).collect::<Vec<_>>());
    }
}
