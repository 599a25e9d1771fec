//! The process: where configuration, operator, kernel and wire meet the engines.
//!
//! One thread, one loop. Nothing on it is on the packet path: while it waits, restarts or is gone, the
//! programs forward by the maps as they are. Workers of encrypted tunnels are threads of their own.

mod failover;
mod flows;
mod requests;
mod router;
mod status;
mod switch;
mod trace;
mod tunnels;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use appliance_common::{
    events::{NeighbourEvent, SlowHeader, SlowReason},
    limits::{MAX_NETWORKS, MAX_PEERS, MAX_TENANTS},
    maps::{self, HostKey, Mode, neighbour_flags},
    nat::OUTSIDE,
};
use service::{Notifier, socket};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tunnel_worker::{TunnelManager, clock, host::TableWrite};

use crate::{
    advertise::Advertiser,
    announce::{Announcement, Announcer},
    config::{Config, Role},
    connections::Collector,
    control::{self, Request},
    datapath::{Datapath, Rings},
    fib,
    held::{self, Fragments},
    neighbour::{Action, Engine, Port},
    nic::{self, Nic},
    rawsock::{RawIp, RawSocket},
    reconcile::{self, Secured, Tables, host, mode_of},
    slowpath::{self, SlowPath},
    state::{self, State, Store, assign},
    underlay::{Path as Route, Snapshot, Watcher, Why},
};

/// Records taken from a ring before the other work gets its turn.
const BATCH: usize = 1024;
/// Frames, resolutions and actions of the engines done before the other work gets its turn.
const ROUNDS: usize = 20_000;
/// Neighbours whose flags are read in a second.
const SWEEP: usize = 8192;
/// How long a start waits for the kernel's view of links and routes.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a machine that went back to production is looked for, to correct its neighbours' caches.
const CORRECTION_PATIENCE: Duration = Duration::from_secs(600);

/// Runs the appliance until it is told to stop; what it set up goes on forwarding.
///
/// # Errors
/// When it cannot start. What an earlier process left running is then as it was.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::load(config_path)?;
    let keys = tunnels::Keys::load(&config)?;
    config.check_ports()?;
    let store = Store::new(&config.state_dir);
    let mut state = store.load()?;
    let listener = socket::bind(&control::SOCKET, &config.control_socket)?;
    // The routers from the first: no public address of theirs is to be ours, however shortly.
    let full = state.modes.values().any(|mode| mode.doing.plan().is_some());
    let ways = config.plain_peers();
    let ways = ways.chain(router::watched_outside(&config, full)).collect();
    let (watcher, mut snapshots) =
        Watcher::spawn(ways, interfaces(&config)).context("watch links and routes")?;
    let seeded = state.nat_seed.is_some();
    if !seeded {
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).context("a seed for the ports of NAT")?;
        state.nat_seed = Some(u32::from_ne_bytes(seed));
    }
    if give_slots(&config, &mut state) || !seeded {
        store.save(&state)?;
    }
    let object = object_path(&config);
    let (datapath, rings) = Datapath::open(&config.pin_dir, &object, config.nat.connections)?;
    let tables = datapath.read()?;
    tracing::info!(
        name = config.name,
        role = config.role.name(),
        adopted = datapath.adopted(),
        object = %object.display(),
        pins = %datapath.root().display(),
        "data path loaded"
    );
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64);
    let collector = match config.role {
        Role::Provider => {
            Some(Collector::spawn(datapath.root()).context("clear connections away")?)
        }
        Role::Tenant => None,
    };
    let ends = tunnels::start(&config, &keys)?;
    let mut daemon = Daemon {
        ends,
        keys,
        secured: Secured::default(),
        watched: BTreeSet::new(),
        timestamps: store.timestamps(),
        config_path: config_path.to_owned(),
        config,
        state,
        store,
        _collector: collector,
        datapath,
        tables,
        engine: Engine::new(crate::neighbour::Settings::default(), seed),
        announcer: Announcer::new(crate::announce::Settings::default()),
        advertiser: Advertiser::default(),
        claims: BTreeMap::new(),
        groups: BTreeSet::new(),
        slow: SlowPath::new(slowpath::Limits::default()),
        sockets: BTreeMap::new(),
        outside: None,
        ports: BTreeMap::new(),
        nics: BTreeMap::new(),
        snapshot: Snapshot::default(),
        watcher,
        corrections: BTreeMap::new(),
        awaited: BTreeSet::new(),
        adopted_neighbours: false,
        sweep_after: None,
        attach_errors: BTreeMap::new(),
        send_errors: 0,
        started: Instant::now(),
        traced: None,
        fragments: Fragments::default(),
        sending: fib::Sending::default(),
        problems: BTreeSet::new(),
    };
    let patience =
        tokio::time::timeout(SNAPSHOT_PATIENCE, snapshots.wait_for(|s| s.generation > 0));
    let first = match patience.await {
        Ok(Ok(snapshot)) => Some(snapshot.clone()),
        Ok(Err(_)) => anyhow::bail!("the netlink watcher ended"),
        Err(_) => None,
    };
    match first {
        Some(snapshot) => daemon.snapshot = snapshot,
        None => {
            tracing::warn!("the kernel has not told its links and routes yet; going on without")
        }
    }
    snapshots.mark_unchanged();
    daemon.begin_tunnels();
    daemon.keep_sendable();
    daemon.apply_snapshot()?;
    let (calls, requests) = mpsc::channel(16);
    let server = tokio::spawn(socket::serve(&control::SOCKET, listener, calls));
    let result = daemon.serve(rings, snapshots, requests).await;
    if let Some(ends) = &mut daemon.ends {
        ends.leave();
    }
    server.abort();
    // A stop is not a detach: links and maps stay pinned. Only the way to this process goes.
    if let Err(error) = std::fs::remove_file(&daemon.config.control_socket) {
        tracing::debug!(%error, "the control socket was gone already");
    }
    result
}

/// Sees that every key file a configuration names can be used.
///
/// # Errors
/// The first that cannot.
pub fn check_keys(config: &Config) -> anyhow::Result<()> {
    let keys = tunnels::Keys::load(config)?;
    match keys.own_peer(config) {
        Some(problem) => Err(anyhow::anyhow!(problem)),
        None => Ok(()),
    }
}

fn interfaces(config: &Config) -> Vec<String> {
    config.ports().into_keys().collect()
}

fn object_path(config: &Config) -> PathBuf {
    config
        .bpf_object
        .clone()
        .or_else(|| std::env::var_os("CAUSEWAY_BPF_OBJECT").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("/usr/lib/causeway/appliance.bpf.o"))
}

/// Gives tenants, peers and networks their slots; returns whether any changed.
fn give_slots(config: &Config, state: &mut State) -> bool {
    let before = state.slots.clone();
    let tenants: Vec<&str> = config.tenants.iter().map(|t| t.name.as_str()).collect();
    let peers: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
    let networks: Vec<&str> = config.networks.iter().map(|n| n.name.as_str()).collect();
    assign(&mut state.slots.tenants, &tenants, MAX_TENANTS);
    assign(&mut state.slots.peers, &peers, MAX_PEERS);
    assign(&mut state.slots.networks, &networks, MAX_NETWORKS);
    state.give_rule_slots();
    state.slots != before
}

struct Daemon {
    config_path: PathBuf,
    config: Config,
    state: State,
    store: Store,
    datapath: Datapath,
    /// Clears connections away that are over.
    _collector: Option<Collector>,
    /// The encrypted tunnels, where there are any.
    ends: Option<TunnelManager>,
    keys: tunnels::Keys,
    /// What the encrypted tunnels last said of themselves.
    secured: Secured,
    /// Addresses whose way is watched.
    watched: BTreeSet<std::net::IpAddr>,
    /// Handshake timestamps, as kept.
    timestamps: state::Timestamps,
    /// What the maps hold.
    tables: Tables,
    engine: Engine,
    announcer: Announcer,
    advertiser: Advertiser,
    /// What is ours on the wire in full failover.
    claims: router::Claims,
    groups: router::Groups,
    slow: SlowPath,
    /// By interface index.
    sockets: BTreeMap<u32, RawSocket>,
    /// For packets whose next hop the kernel resolves.
    outside: Option<RawIp>,
    /// By VNI.
    ports: BTreeMap<u32, Port>,
    /// By interface name.
    nics: BTreeMap<String, Nic>,
    snapshot: Snapshot,
    watcher: Watcher,
    /// Addresses that went back, whose real MAC is to be announced, and until when it is sought.
    corrections: BTreeMap<HostKey, Instant>,
    /// Replicas whose MAC is to be announced once it is known.
    awaited: BTreeSet<HostKey>,
    adopted_neighbours: bool,
    sweep_after: Option<HostKey>,
    attach_errors: BTreeMap<String, String>,
    send_errors: u64,
    started: Instant,
    /// When whoever follows packets last asked.
    traced: Option<Instant>,
    /// Fragments that wait for their first.
    fragments: Fragments,
    /// Whether what leaves in full failover can be sent.
    sending: fib::Sending,
    /// What was last said to be wrong with the failovers in force.
    problems: BTreeSet<String>,
}

/// What the slow path looks up.
struct Maps<'t>(&'t Tables);

impl slowpath::Lookup for Maps<'_> {
    fn network(&self, vni: u32) -> Option<maps::Network> {
        self.0.network(vni).copied()
    }

    fn peer(&self, slot: u32) -> Option<maps::Peer> {
        self.0.peers.get(&slot).copied()
    }
}

impl Daemon {
    async fn serve(
        &mut self,
        rings: Rings,
        mut snapshots: tokio::sync::watch::Receiver<Snapshot>,
        mut requests: mpsc::Receiver<socket::Call<Request, serde_json::Value>>,
    ) -> anyhow::Result<()> {
        // SAFETY: a ring owns its descriptor, returns the same one always, and is dropped with the AsyncFd.
        let neighbours = unsafe { AsyncFd::register(rings.neighbours) };
        let mut neighbours = neighbours.context("wait on the neighbour ring")?;
        // SAFETY: as above.
        let slow = unsafe { AsyncFd::register(rings.slow) };
        let mut slow = slow.context("wait on the slow-path ring")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let notifier = Notifier::from_env();
        let mut watchdog =
            tokio::time::interval(Notifier::watchdog().unwrap_or(Duration::from_secs(3600)));
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        notifier.send("READY=1");
        tracing::info!("ready");
        loop {
            self.pump();
            self.tunnels();
            let deadline = self.next_deadline();
            tokio::select! {
                guard = neighbours.readable_mut() => {
                    let mut guard = guard.context("neighbour ring")?;
                    let ring = guard.get_inner_mut();
                    let now = Instant::now();
                    let mut taken = 0;
                    while taken < BATCH {
                        let Some(record) = ring.next() else { break };
                        taken += 1;
                        if let Some(event) = NeighbourEvent::from_bytes(&record) {
                            self.engine.heard(now, &event);
                        }
                    }
                    if taken < BATCH {
                        guard.clear_ready();
                    }
                }
                guard = slow.readable_mut() => {
                    let mut guard = guard.context("slow-path ring")?;
                    let ring = guard.get_inner_mut();
                    let now = Instant::now();
                    let mut taken = 0;
                    while taken < BATCH {
                        let Some(record) = ring.next() else { break };
                        taken += 1;
                        if let Some((header, frame)) = SlowHeader::from_bytes(&record) {
                            self.slow_packet(now, &header, frame);
                        }
                    }
                    if taken < BATCH {
                        guard.clear_ready();
                    }
                }
                changed = snapshots.changed() => {
                    changed.context("the netlink watcher ended")?;
                    self.snapshot = snapshots.borrow_and_update().clone();
                    if let Err(error) = self.apply_snapshot() {
                        tracing::error!(error = format!("{error:#}"), "links or routes changed, and the data path could not follow");
                    }
                }
                Some((request, reply)) = requests.recv() => {
                    if matches!(request, Request::Flows { .. }) {
                        self.flows(request, reply);
                    } else {
                        let answer = self.answer(request);
                        // A client that went away does not want the answer.
                        let _ = reply.send(answer);
                    }
                }
                () = tunnels::ready(self.ends.as_ref()) => {}
                () = sleep_until(deadline) => {}
                _ = second.tick() => self.each_second(),
                _ = watchdog.tick() => notifier.send("WATCHDOG=1"),
                _ = hangup.recv() => {
                    match self.reload() {
                        Ok(()) => tracing::info!("configuration reloaded"),
                        Err(refusal) => tracing::warn!(reason = refusal.message, "reload refused; the running configuration stays in force"),
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        notifier.send("STOPPING=1");
        tracing::info!("stopping; the data path goes on");
        Ok(())
    }

    fn slow_packet(&mut self, now: Instant, header: &SlowHeader, frame: &[u8]) {
        if SlowReason::from_u16(header.reason) == Some(SlowReason::RouterSolicitation) {
            // RFC 4861 section 6.2.6: after a random delay of at most half a second.
            let mut random = [0; 1];
            let delay = getrandom::fill(&mut random).map_or(0, |()| u64::from(random[0]) * 2);
            let delay = Duration::from_millis(delay.min(500));
            self.advertiser.solicited(now, header.vni, delay);
            return;
        }
        if SlowReason::from_u16(header.reason) == Some(SlowReason::Fragment) {
            // VNI zero: it came in on the uplink.
            let zone = self
                .tables
                .network(header.vni)
                .map_or(OUTSIDE, |network| reconcile::zone_of(network.tenant));
            let packet = frame.get(usize::from(header.l3)..).unwrap_or_default();
            if let Some(key) = held::key(packet, zone) {
                self.fragments.hold(now, key, header.ifindex, frame);
            }
            return;
        }
        self.slow.packet(now, header, frame, &Maps(&self.tables));
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.engine.next_deadline(),
            self.announcer.next_deadline(),
            self.advertiser.next_deadline(),
            self.slow.next_deadline(),
            self.fragments.next_deadline(),
            self.ends
                .as_ref()
                .and_then(TunnelManager::next_deadline)
                .map(|at| Instant::now() + clock::until(at)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Lets the engines do what is due.
    fn pump(&mut self) {
        let now = Instant::now();
        let (datapath, ticks) = (&self.datapath, crate::connections::now());
        let known = |key: &_| datapath.knows_fragments(key, ticks);
        for (ifindex, frame) in self.fragments.poll(now, known) {
            if let Err(error) = self.datapath.run_again(ifindex, &frame) {
                self.send_errors += 1;
                tracing::debug!(%error, ifindex, "a fragment that waited could not go on");
            }
        }
        for _ in 0..ROUNDS {
            let mut idle = true;
            if let Some(action) = self.engine.poll(now) {
                idle = false;
                self.act(now, action);
            }
            if let Some(output) = self.slow.poll(now) {
                idle = false;
                match output {
                    slowpath::Output::Send { ifindex, frame } => self.send(ifindex, &frame),
                    slowpath::Output::Outside { packet } => self.send_outside(&packet),
                    slowpath::Output::Resolve { key } => self.engine.want(now, key, false),
                }
            }
            if let Some((ifindex, frame)) = self.announcer.poll(now) {
                idle = false;
                self.send(ifindex, &frame);
            }
            if let Some((ifindex, frame)) = self.advertiser.poll(now) {
                idle = false;
                self.send(ifindex, &frame);
            }
            if idle {
                return;
            }
        }
    }

    fn act(&mut self, now: Instant, action: Action) {
        match action {
            Action::Send { ifindex, frame } => self.send(ifindex, &frame),
            Action::Install { key, neighbour } => {
                if let Some(ends) = &mut self.ends {
                    ends.write(&[TableWrite::Neighbour(key, Some(neighbour))]);
                }
                if let Err(error) = self.datapath.set_neighbour(&key, &neighbour) {
                    tracing::error!(%error, "a neighbour could not be written");
                }
            }
            Action::Remove { key } => {
                if let Some(ends) = &mut self.ends {
                    ends.write(&[TableWrite::Neighbour(key, None)]);
                }
                if let Err(error) = self.datapath.remove_neighbour(&key) {
                    tracing::error!(%error, "a neighbour could not be removed");
                }
            }
            Action::Resolved { key, neighbour } => {
                self.slow.resolved(now, key, &neighbour);
                let corrected = self.corrections.remove(&key).is_some();
                if corrected || self.awaited.remove(&key) {
                    tracing::debug!(address = %appliance_common::addr::to_ip(&key.address), vni = key.vni, "announcing where it is");
                    self.announce(now, key, Some(neighbour.mac()));
                }
                if corrected {
                    self.engine.unwant(now, key);
                }
            }
            Action::Failed { key } => self.slow.failed(now, key),
        }
    }

    /// Sends a frame of our own. A link that is down or a full queue is counted, not fatal: whoever
    /// asked for it asks again.
    fn send(&mut self, ifindex: u32, frame: &[u8]) {
        let socket = match self.sockets.entry(ifindex) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => match RawSocket::open(ifindex) {
                Ok(socket) => entry.insert(socket),
                Err(error) => {
                    self.send_errors += 1;
                    tracing::debug!(%error, "no socket for a frame of ours");
                    return;
                }
            },
        };
        if let Err(error) = socket.send(frame) {
            self.send_errors += 1;
            tracing::debug!(%error, ifindex, "a frame of ours could not be sent");
            if error.raw_os_error() == Some(libc::ENXIO) {
                self.sockets.remove(&ifindex);
            }
        }
    }

    /// Has the kernel send a translated packet out of the uplink.
    fn send_outside(&mut self, packet: &[u8]) {
        let Some(link) = self.snapshot.links.get(&self.config.uplink.interface) else {
            self.send_errors += 1;
            return;
        };
        if self
            .outside
            .as_ref()
            .is_none_or(|o| o.ifindex() != link.ifindex)
        {
            match RawIp::open(&link.name, link.ifindex) {
                Ok(socket) => self.outside = Some(socket),
                Err(error) => {
                    self.send_errors += 1;
                    tracing::debug!(%error, "no socket for a translated packet");
                    return;
                }
            }
        }
        if let Some(socket) = &self.outside
            && let Err(error) = socket.send(packet)
        {
            self.send_errors += 1;
            tracing::debug!(%error, "a translated packet could not be sent");
        }
    }

    /// Tells the hosts of a network where an address is: at `mac`, or with us.
    fn announce(&mut self, now: Instant, key: HostKey, mac: Option<[u8; 6]>) {
        let Some(port) = self.ports.get(&key.vni).copied() else {
            return;
        };
        self.announcer.announce(
            now,
            Announcement {
                address: key.address,
                mac: mac.unwrap_or(port.mac),
                port,
                router: false,
            },
        );
    }

    fn each_second(&mut self) {
        let now = Instant::now();
        self.end_stale_trace();
        self.keep_sendable();
        // Where a change of mode or configuration failed half way, what is watched may be of before.
        self.watch();
        self.corrections.retain(|key, until| {
            let keep = now < *until;
            if !keep {
                self.engine.unwant(now, *key);
            }
            keep
        });
        if let Err(error) = self.sweep(now) {
            tracing::error!(%error, "the neighbour table could not be read");
        }
        if !self.attach_errors.is_empty() {
            // An interface may have become fit meanwhile.
            if let Err(error) = self.apply_snapshot() {
                tracing::error!(error = format!("{error:#}"), "the data path is incomplete");
            }
        }
    }

    /// Reads the flags that the programs set in neighbour entries, a bounded number at a time, and
    /// clears them.
    fn sweep(&mut self, now: Instant) -> Result<(), crate::datapath::Error> {
        let after = self.sweep_after;
        let keys: Vec<HostKey> = self
            .engine
            .entries(now)
            .filter(|e| e.mac.is_some() && after.is_none_or(|after| e.key > after))
            .map(|e| e.key)
            .take(SWEEP)
            .collect();
        self.sweep_after = if keys.len() == SWEEP {
            keys.last().copied()
        } else {
            None
        };
        for key in keys {
            let Some(mut neighbour) = self.datapath.neighbour(&key)? else {
                continue;
            };
            let seen = neighbour.flags & (neighbour_flags::HEARD | neighbour_flags::USED);
            if seen == 0 {
                continue;
            }
            neighbour.flags &= !seen;
            self.datapath.refresh_neighbour(&key, &neighbour)?;
            self.engine.observed(now, key, seen);
        }
        Ok(())
    }

    /// Follows what the kernel says of links, addresses and routes.
    fn apply_snapshot(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.attach_ports()?;
        self.set_sockets();
        self.set_ports(now);
        self.reconcile()?;
        self.underlay_changed();
        self.claim(now);
        self.tell_problems();
        if !self.adopted_neighbours {
            self.adopt_neighbours(now)?;
            self.adopted_neighbours = true;
        }
        self.keep_resolved(now);
        Ok(())
    }

    /// Prepares NICs and sees that each runs its program.
    fn attach_ports(&mut self) -> anyhow::Result<()> {
        let ports = self.config.ports();
        self.datapath
            .detach_others(|name| ports.contains_key(name))?;
        let mut errors = BTreeMap::new();
        for (name, (xdp, kind)) in &ports {
            let Some(link) = self.snapshot.links.get(name) else {
                self.datapath.forget(name)?;
                self.nics.remove(name);
                errors.insert(
                    name.clone(),
                    format!(
                        "interface {name} does not exist; add it, or correct the configuration"
                    ),
                );
                continue;
            };
            let running = self
                .datapath
                .attached()
                .get(name)
                .is_some_and(|a| a.ifindex == link.ifindex && a.kind == *kind);
            if !running || !self.nics.get(name).is_some_and(|n| n.problems.is_empty()) {
                let tags = self
                    .config
                    .networks
                    .iter()
                    .any(|n| n.interface == *name && n.vlan.outer != 0);
                let wants = nic::Wants {
                    tags,
                    mtu: link.mtu,
                };
                match nic::prepare(name, wants) {
                    Ok(nic) => drop(self.nics.insert(name.clone(), nic)),
                    Err(error) => {
                        errors.insert(name.clone(), format!("interface {name}: ethtool: {error}"));
                        continue;
                    }
                }
            }
            match self.datapath.attach(name, link.ifindex, *kind, *xdp) {
                Ok(()) if !running => {
                    if let Some(attached) = self.datapath.attached().get(name) {
                        tracing::info!(
                            interface = name,
                            program = attached.kind.program(),
                            mode = attached.mode.name(),
                            asked = xdp.name(),
                            adopted = attached.adopted,
                            "XDP attached"
                        );
                    }
                }
                Ok(()) => {}
                Err(error) => drop(errors.insert(name.clone(), error.to_string())),
            }
        }
        for (name, error) in &errors {
            if self.attach_errors.get(name) != Some(error) {
                tracing::warn!(
                    interface = name,
                    reason = error,
                    "interface without data path"
                );
            }
        }
        if errors.is_empty() {
            self.datapath.retire_other_versions()?;
        }
        self.attach_errors = errors;
        Ok(())
    }

    /// Tells the engines the networks' ports.
    fn set_ports(&mut self, now: Instant) {
        let mut ports = BTreeMap::new();
        for network in &self.config.networks {
            if let Some(link) = self.snapshot.links.get(&network.interface) {
                let port = Port {
                    ifindex: link.ifindex,
                    outer: network.vlan.outer,
                    inner: network.vlan.inner,
                    outer_ethertype: network.vlan.outer_ethertype,
                    mac: link.mac,
                };
                ports.insert(network.vni, port);
            }
        }
        for (vni, port) in &self.ports {
            if !ports.contains_key(vni) {
                self.engine.remove_network(now, *vni);
            }
            if ports.get(vni) != Some(port) {
                self.announcer.cancel_port(port);
            }
        }
        for (vni, port) in &ports {
            if self.ports.get(vni) != Some(port) {
                self.engine.set_network(*vni, *port);
            }
        }
        self.sockets
            .retain(|ifindex, _| self.snapshot.links.values().any(|l| l.ifindex == *ifindex));
        self.ports = ports;
    }

    /// Writes the difference between what the maps hold and what they should.
    fn reconcile(&mut self) -> Result<(), crate::datapath::Error> {
        let mut wanted =
            reconcile::desired(&self.config, &self.state, &self.snapshot, &self.secured);
        self.keep_last_paths(&mut wanted);
        let wanted = reconcile::with_epochs(&self.tables, wanted);
        let writes = reconcile::diff(&self.tables, &wanted);
        if !writes.is_empty() {
            tracing::debug!(writes = writes.len(), "reconciled");
        }
        // To the workers as well: where a map refuses, the next round writes both again.
        if let Some(ends) = &mut self.ends {
            ends.write(&tunnels::table_writes(&writes));
        }
        self.datapath.write(&mut self.tables, &writes)
    }

    /// A peer whose next hop is being looked up, or does not answer just now, keeps the header it had:
    /// the last known MAC is right far more often than none, and a restart must not lose a packet.
    fn keep_last_paths(&self, wanted: &mut Tables) {
        let local = reconcile::local_addresses(&self.config, &self.snapshot);
        for peer in &self.config.peers {
            let Some(slot) = self.state.slots.peers.get(&peer.name) else {
                continue;
            };
            let Some(address) = peer.plain() else {
                continue;
            };
            let passing = matches!(
                self.snapshot.paths.get(&address),
                None | Some(Route::Unresolved {
                    why: Why::Pending | Why::NextHopUnresolved { .. }
                })
            );
            let (Some(old), true) = (self.tables.peers.get(slot), passing) else {
                continue;
            };
            let mac = |at: usize| {
                let mut mac = [0; 6];
                mac.copy_from_slice(&old.header[at..at + 6]);
                mac
            };
            let same = local
                .iter()
                .filter(|l| l.is_ipv4() == address.is_ipv4())
                .filter_map(|l| {
                    maps::Peer::new(
                        old.ifindex,
                        mac(0),
                        mac(6),
                        &appliance_common::addr::from_ip(*l),
                        &appliance_common::addr::from_ip(address),
                        self.config.uplink.port,
                    )
                })
                .any(|header| header == *old);
            if same {
                wanted.peers.insert(*slot, *old);
            }
        }
    }

    /// Takes over the neighbours that an earlier process left in the map; those of networks that are
    /// gone or moved are removed.
    fn adopt_neighbours(&mut self, now: Instant) -> Result<(), crate::datapath::Error> {
        for (key, neighbour) in self.datapath.neighbours()? {
            match self.ports.get(&key.vni) {
                Some(port) if port.ifindex == neighbour.ifindex => {
                    self.engine.adopt(now, key, neighbour);
                    if let Some(ends) = &mut self.ends {
                        ends.write(&[TableWrite::Neighbour(key, Some(neighbour))]);
                    }
                }
                _ => self.datapath.remove_neighbour(&key)?,
            }
        }
        Ok(())
    }

    /// Hosts that are to be resolved whatever the traffic: routers at the production site; at the provider replicas,
    /// of a full failover those that rules lead to.
    fn keep_resolved(&mut self, now: Instant) {
        let keys: Vec<HostKey> = match self.config.role {
            Role::Tenant => self
                .config
                .networks
                .iter()
                .flat_map(|n| {
                    n.gateways().map(|address| HostKey {
                        vni: n.vni,
                        address,
                    })
                })
                .collect(),
            Role::Provider => {
                let hosts = reconcile::rule_hosts(&self.config, &self.state);
                self.active(&self.state).into_iter().chain(hosts).collect()
            }
        };
        for key in keys {
            if self.ports.contains_key(&key.vni) {
                self.engine.want(now, key, true);
            }
        }
    }

    /// The endpoints in force: those of tenants in partial failover.
    fn active(&self, state: &State) -> BTreeSet<HostKey> {
        active(&self.config, state)
    }

    /// Puts a new state in force: on the disk first, then in the maps, then on the wire.
    fn change(&mut self, new: State) -> anyhow::Result<()> {
        let before = self.active(&self.state);
        let after = self.active(&new);
        let led_to = reconcile::rule_hosts(&self.config, &self.state);
        let switched: Vec<u32> = self
            .config
            .networks
            .iter()
            .filter(|n| mode_of(&self.state, &n.tenant) != mode_of(&new, &n.tenant))
            .map(|n| n.vni)
            .collect();
        self.store.save(&new).map_err(|error: state::Error| error)?;
        self.state = new;
        self.reconcile()?;
        let now = Instant::now();
        if self.config.role == Role::Provider {
            // Where addresses were in the mode before: a replica that boots in this one must not be told so.
            for port in switched.iter().filter_map(|vni| self.ports.get(vni)) {
                self.announcer.cancel_port(port);
            }
        }
        for key in before.difference(&after) {
            self.went_back(now, *key);
        }
        for key in after.difference(&before) {
            self.failed_over(now, *key);
        }
        let leads_to = reconcile::rule_hosts(&self.config, &self.state);
        for key in led_to.difference(&leads_to).filter(|k| !after.contains(k)) {
            self.engine.unwant(now, *key);
        }
        for key in &leads_to {
            self.engine.want(now, *key, true);
        }
        self.claim(now);
        self.tell_problems();
        Ok(())
    }

    /// An address is failed over now.
    fn failed_over(&mut self, now: Instant, key: HostKey) {
        self.cancel_announcement(key);
        match self.config.role {
            Role::Tenant => {
                self.corrections.remove(&key);
                self.engine.unwant(now, key);
                self.announce(now, key, None);
            }
            Role::Provider => {
                self.awaited.insert(key);
                self.engine.want(now, key, true);
            }
        }
    }

    /// An address is back in production now.
    fn went_back(&mut self, now: Instant, key: HostKey) {
        self.cancel_announcement(key);
        match self.config.role {
            Role::Tenant => {
                self.corrections.insert(key, now + CORRECTION_PATIENCE);
                self.engine.want(now, key, true);
            }
            Role::Provider => {
                self.awaited.remove(&key);
                self.engine.unwant(now, key);
                let vni_partial =
                    self.config.networks.iter().any(|n| {
                        n.vni == key.vni && mode_of(&self.state, &n.tenant) == Mode::Partial
                    });
                if vni_partial {
                    self.announce(now, key, None);
                }
            }
        }
    }

    fn cancel_announcement(&mut self, key: HostKey) {
        if let Some(port) = self.ports.get(&key.vni) {
            self.announcer.cancel(port, &key.address);
        }
    }
}

fn active(config: &Config, state: &State) -> BTreeSet<HostKey> {
    config
        .networks
        .iter()
        .filter(|n| mode_of(state, &n.tenant) == Mode::Partial)
        .flat_map(|n| {
            state
                .endpoints
                .get(&n.name)
                .into_iter()
                .flatten()
                .map(|address| host(n.vni, *address))
        })
        .collect()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
