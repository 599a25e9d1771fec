//! The engines: neighbour resolution, announcements, router advertisements, slow path, fragments.
//!
//! For: one place that is told what happened (a host was heard, a packet waits, an address failed
//! over) and that is polled with the time for what to do next. Never: a socket, a map or the clock;
//! the event loop does what the outputs say.
//!
//! ```text
//!   heard, packet, endpoint_added, set_ports ... ─▶ Engines ─ poll(now) ─▶ Output ─▶ socket or map
//!                                                     └─ next_deadline() ─▶ when to poll again
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::{Duration, Instant},
};

use appliance_common::{
    addr::{Address, to_ip},
    events::{NeighbourEvent, NeighbourEventKind, SlowHeader, SlowReason},
    maps::{self, HostKey, Neighbour},
    nat::{FlowKey, OUTSIDE},
};

use crate::{
    config::Role,
    datapath::reconcile::{self, MapContents},
    engine::announce::{self, Announcement, Announcer},
    engine::conflict::{self, Conflict, ConflictTable},
    engine::fragment_buffer::{FragmentBuffer, fragment_key},
    engine::neighbour::{self, Action, EntryStatus, NeighbourTable, Senders},
    engine::router_advert::{AdvertisedRouter, RouterAdvertiser},
    engine::slow_path::{self, SlowPath},
    frame::Port,
};

/// Rounds over the engines in one call that lead to no output, at most.
const MAX_SILENT_ROUNDS: usize = 20_000;
/// Neighbour entries whose flags are read at a time.
const SWEEP: usize = 8192;
/// How long a machine that went back to production is looked for, so that its neighbours' caches
/// can be corrected.
const CORRECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Time in which another machine is asked for once at every address of ours, where they are few.
const CLAIM_CHECK_ROUND: Duration = Duration::from_secs(30);
/// Shortest time between two such questions.
const CLAIM_CHECK_PAUSE: Duration = Duration::from_millis(20);

/// The appliance's own addresses on the wire, and whether each is a router's.
pub(super) type Claims = BTreeMap<(Port, Address), bool>;

/// What the event loop is to do. Outputs come in the order in which they must be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Send a frame.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Have the kernel send an IP packet out of the uplink.
    SendOutside {
        /// The packet, from the IP header on.
        packet: Vec<u8>,
    },
    /// Write an entry of the map `NEIGHBOURS`.
    InstallNeighbour {
        /// The host.
        key: HostKey,
        /// How to reach it.
        neighbour: Neighbour,
    },
    /// Delete an entry of the map `NEIGHBOURS`.
    RemoveNeighbour {
        /// The host.
        key: HostKey,
    },
    /// Report that another machine uses an address of ours.
    ConflictBegun(Conflict),
    /// Report that it does so no longer.
    ConflictEnded(Conflict),
}

/// What the slow path looks up in the tables.
struct Lookup<'t>(&'t MapContents);

impl slow_path::Lookup for Lookup<'_> {
    fn network(&self, vni: u32) -> Option<maps::Network> {
        self.0.network(vni).copied()
    }

    fn peer(&self, slot: u32) -> Option<maps::Peer> {
        self.0.peers.get(&slot).copied()
    }
}

/// The engines. Poll until `None` after every other call, and when `next_deadline` has come.
pub(super) struct Engines {
    neighbours: NeighbourTable,
    announcer: Announcer,
    advertiser: RouterAdvertiser,
    slow_path: SlowPath,
    fragments: FragmentBuffer,
    /// By VNI.
    ports: BTreeMap<u32, Port>,
    claims: Claims,
    conflicts: ConflictTable,
    /// The claim for whose other machine was last asked, and when to ask for the next.
    asked_claim: Option<(Port, Address)>,
    next_claim_check: Option<Instant>,
    /// The addresses with which hosts are asked for, by port.
    senders: BTreeMap<Port, Senders>,
    /// Addresses that went back to production, and until when their machine is looked for: its MAC
    /// address is announced once it is known.
    corrections: BTreeMap<HostKey, Instant>,
    /// Replicas whose MAC address is announced once it is known.
    awaited_replicas: BTreeSet<HostKey>,
    /// The last neighbour entry whose flags were read, while a sweep is under way.
    sweep_after: Option<HostKey>,
    ready: VecDeque<Output>,
}

impl Engines {
    /// Engines with nothing to do. `seed` varies the pauses between requests.
    pub fn new(seed: u64) -> Self {
        Self {
            neighbours: NeighbourTable::new(neighbour::Settings::default(), seed),
            announcer: Announcer::new(announce::Settings::default(), seed),
            advertiser: RouterAdvertiser::default(),
            slow_path: SlowPath::new(slow_path::Limits::default()),
            fragments: FragmentBuffer::default(),
            ports: BTreeMap::new(),
            claims: Claims::new(),
            conflicts: ConflictTable::new(conflict::Settings::default()),
            asked_claim: None,
            next_claim_check: None,
            senders: BTreeMap::new(),
            corrections: BTreeMap::new(),
            awaited_replicas: BTreeSet::new(),
            sweep_after: None,
            ready: VecDeque::new(),
        }
    }

    /// When there is something to poll for.
    pub fn next_deadline(&self) -> Option<Instant> {
        [
            self.neighbours.next_deadline(),
            self.announcer.next_deadline(),
            self.advertiser.next_deadline(),
            self.slow_path.next_deadline(),
            self.fragments.next_deadline(),
            self.conflicts.next_deadline(),
            self.next_claim_check,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next thing to do, or `None` when all that is due has been done.
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        for _ in 0..MAX_SILENT_ROUNDS {
            if !self.ready.is_empty() || !self.round(now) {
                break;
            }
        }
        self.ready.pop_front()
    }

    /// Frames of fragments that waited for the first one of their datagram, with the interface that
    /// each came in on. `is_known` says whether the programs know the datagram by now.
    pub fn poll_fragments(
        &mut self,
        now: Instant,
        is_known: impl FnMut(&FlowKey) -> bool,
    ) -> Vec<(u32, Vec<u8>)> {
        self.fragments.poll(now, is_known)
    }

    /// Polls every engine once. Returns whether any of them had something to do.
    fn round(&mut self, now: Instant) -> bool {
        let mut busy = false;
        if let Some(action) = self.neighbours.poll(now) {
            busy = true;
            self.act(now, action);
        }
        if let Some(output) = self.slow_path.poll(now) {
            busy = true;
            match output {
                slow_path::Output::Send { ifindex, frame } => {
                    self.ready.push_back(Output::Send { ifindex, frame });
                }
                slow_path::Output::Route { packet } => {
                    self.ready.push_back(Output::SendOutside { packet });
                }
                slow_path::Output::Resolve { key } => self.neighbours.resolve(now, key),
            }
        }
        if let Some((ifindex, frame)) = self.announcer.poll(now) {
            busy = true;
            self.ready.push_back(Output::Send { ifindex, frame });
        }
        if let Some((ifindex, frame)) = self.advertiser.poll(now) {
            busy = true;
            self.ready.push_back(Output::Send { ifindex, frame });
        }
        if let Some(output) = self.conflicts.poll(now) {
            busy = true;
            self.ready.push_back(match output {
                conflict::Output::Send { ifindex, frame } => Output::Send { ifindex, frame },
                conflict::Output::Begun(conflict) => Output::ConflictBegun(conflict),
                conflict::Output::Ended(conflict) => Output::ConflictEnded(conflict),
            });
        }
        if self.next_claim_check.is_some_and(|at| at <= now) {
            busy = true;
            self.check_next_claim(now);
        }
        busy
    }

    /// Asks whether another machine has an address of ours, of one claim after the other. A machine
    /// that is silent on the wire is found this way: its answer is reported as a claim.
    fn check_next_claim(&mut self, now: Instant) {
        let after = self.asked_claim.map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.claims.range((after, Bound::Unbounded));
        let next = range.next().or_else(|| self.claims.iter().next());
        let next = next.map(|(claim, _)| *claim);
        self.asked_claim = next;
        let Some((port, address)) = next else {
            self.next_claim_check = None;
            return;
        };
        let count = self.claims.len().try_into().unwrap_or(u32::MAX);
        let pause = (CLAIM_CHECK_ROUND / count).max(CLAIM_CHECK_PAUSE);
        self.next_claim_check = Some(now + pause);
        let senders = self.senders.get(&port);
        if let Some(sender) = senders.and_then(|s| s.for_target(&address)) {
            self.ready.push_back(Output::Send {
                ifindex: port.ifindex,
                frame: neighbour::question(&port, &sender, &address, None),
            });
        }
    }

    fn act(&mut self, now: Instant, action: Action) {
        match action {
            Action::Send { ifindex, frame } => {
                self.ready.push_back(Output::Send { ifindex, frame });
            }
            Action::Install { key, neighbour } => {
                self.ready
                    .push_back(Output::InstallNeighbour { key, neighbour });
            }
            Action::Remove { key } => self.ready.push_back(Output::RemoveNeighbour { key }),
            Action::Resolved { key, neighbour } => {
                self.slow_path.resolved(now, key, &neighbour);
                let corrected = self.corrections.remove(&key).is_some();
                if corrected || self.awaited_replicas.remove(&key) {
                    tracing::debug!(
                        address = %to_ip(&key.address),
                        vni = key.vni,
                        "announcing the machine's MAC address"
                    );
                    self.announce(now, key, Some(neighbour.mac()));
                }
                if corrected {
                    self.neighbours.stop_keeping(now, key);
                }
            }
            Action::Failed { key } => self.slow_path.failed(now, key),
        }
    }

    /// A program reported a host.
    pub fn heard(&mut self, now: Instant, event: &NeighbourEvent) {
        if event.kind != NeighbourEventKind::Claim as u16 {
            self.neighbours.heard(now, event);
            return;
        }
        let on_port = |(port, address): &&(Port, Address)| {
            *address == event.address
                && (port.ifindex, port.outer, port.inner)
                    == (event.ifindex, event.outer, event.inner)
        };
        // A port has one MAC address and tag type, so its claims are neighbours in the order.
        let from = Port {
            ifindex: event.ifindex,
            outer: event.outer,
            inner: event.inner,
            outer_ethertype: 0,
            mac: [0; 6],
        };
        let port = self.claims.range((from, [0; 16])..).next();
        let place = port.map(|(claim, _)| (claim.0, event.address));
        let claim = place.and_then(|place| self.claims.get_key_value(&place));
        if let Some((place, router)) = claim.filter(|(place, _)| on_port(place))
            && event.mac != place.0.mac
        {
            self.conflicts
                .claimed(now, *place, event.vni, event.mac, *router);
        }
    }

    /// The flags of a neighbour's map entry: what the programs saw of the host since the last look.
    pub fn observed(&mut self, now: Instant, key: HostKey, flags: u32) {
        self.neighbours.observe_flags(now, key, flags);
    }

    /// A program handed over a frame. `jitter` delays the answer to a router solicitation
    /// (RFC 4861 section 6.2.6: at most half a second).
    pub fn slow_packet(
        &mut self,
        now: Instant,
        header: &SlowHeader,
        frame: &[u8],
        tables: &MapContents,
        jitter: Duration,
    ) {
        match SlowReason::from_u16(header.reason) {
            Some(SlowReason::RouterSolicitation) => {
                self.advertiser.solicited(now, header.vni, jitter);
            }
            Some(SlowReason::Fragment) => {
                // VNI zero: it came in on the uplink.
                let zone = tables
                    .network(header.vni)
                    .map_or(OUTSIDE, |network| reconcile::zone_of(network.tenant));
                let packet = frame.get(usize::from(header.l3)..).unwrap_or_default();
                if let Some(key) = fragment_key(packet, zone) {
                    self.fragments.push(now, key, header.ifindex, frame);
                }
            }
            _ => self.waiting_packet(now, header, frame, tables),
        }
    }

    /// A packet that waits for its host, or is to be split.
    pub fn waiting_packet(
        &mut self,
        now: Instant,
        header: &SlowHeader,
        packet: &[u8],
        tables: &MapContents,
    ) {
        self.slow_path.packet(now, header, packet, &Lookup(tables));
    }

    /// The appliance's port on a network.
    pub fn port(&self, vni: u32) -> Option<Port> {
        self.ports.get(&vni).copied()
    }

    /// Sets the ports of the networks, by VNI.
    pub fn set_ports(&mut self, now: Instant, ports: BTreeMap<u32, Port>) {
        for (vni, port) in &self.ports {
            if !ports.contains_key(vni) {
                self.neighbours.remove_network(now, *vni);
            }
            if ports.get(vni) != Some(port) {
                self.announcer.cancel_port(port);
            }
        }
        for (vni, port) in &ports {
            if self.ports.get(vni) != Some(port) {
                self.neighbours.set_network(*vni, *port);
            }
        }
        self.ports = ports;
    }

    /// Sets the addresses with which hosts are asked for, by VNI.
    pub fn set_senders(&mut self, now: Instant, senders: &BTreeMap<u32, Senders>) {
        self.senders.clear();
        for (vni, port) in &self.ports {
            let senders = senders.get(vni).copied().unwrap_or_default();
            self.neighbours.set_senders(now, *vni, senders);
            self.senders.insert(*port, senders);
        }
    }

    /// Takes over a neighbour that an earlier process left in the map. `false`: its network is gone
    /// or moved, and the entry must be removed.
    pub fn adopt(&mut self, now: Instant, key: HostKey, neighbour: Neighbour) -> bool {
        let same = self
            .ports
            .get(&key.vni)
            .is_some_and(|port| port.ifindex == neighbour.ifindex);
        if same {
            self.neighbours.adopt(now, key, neighbour);
        }
        same
    }

    /// Keeps hosts resolved whatever the traffic. Hosts of networks without a port are left out.
    pub fn keep_resolved(&mut self, now: Instant, keys: impl IntoIterator<Item = HostKey>) {
        for key in keys {
            if self.ports.contains_key(&key.vni) {
                self.neighbours.keep_resolved(now, key);
            }
        }
    }

    /// Resolves a host only while packets go there, from now on.
    pub fn release(&mut self, now: Instant, key: HostKey) {
        self.neighbours.stop_keeping(now, key);
    }

    /// An address fails over: on the tenant side the appliance answers for it and claims it
    /// ([`set_claims`](Self::set_claims)); on the provider side its replica is resolved and then
    /// announced.
    pub fn endpoint_added(&mut self, now: Instant, role: Role, key: HostKey) {
        self.cancel_announcement(key);
        match role {
            Role::Tenant => {
                // Its claim follows, which announces it.
                self.corrections.remove(&key);
                self.neighbours.stop_keeping(now, key);
            }
            Role::Provider => {
                self.awaited_replicas.insert(key);
                self.neighbours.keep_resolved(now, key);
            }
        }
    }

    /// An address goes back to production: on the tenant side its machine is looked for and then
    /// announced; on the provider side the appliance answers for it again, where its tenant is
    /// still in partial failover.
    pub fn endpoint_removed(
        &mut self,
        now: Instant,
        role: Role,
        key: HostKey,
        still_partial: bool,
    ) {
        self.cancel_announcement(key);
        match role {
            Role::Tenant => {
                self.corrections.insert(key, now + CORRECTION_TIMEOUT);
                self.neighbours.keep_resolved(now, key);
            }
            Role::Provider => {
                self.awaited_replicas.remove(&key);
                self.neighbours.stop_keeping(now, key);
                if still_partial {
                    self.announce(now, key, None);
                }
            }
        }
    }

    /// Ends the announcements in a network, also of claims: those that stay are announced anew.
    pub fn cancel_announcements(&mut self, vni: u32) {
        if let Some(port) = self.ports.get(&vni) {
            self.announcer.cancel_port(port);
            self.claims.retain(|(claimed, _), _| claimed != port);
        }
    }

    /// Ends the search for machines that did not come back in time.
    pub fn expire_corrections(&mut self, now: Instant) {
        let neighbours = &mut self.neighbours;
        self.corrections.retain(|key, until| {
            let keep = now < *until;
            if !keep {
                neighbours.stop_keeping(now, *key);
            }
            keep
        });
    }

    /// Sets the addresses that are the appliance's own on the wire. New ones are announced, and
    /// then again and again; announcements of those that are gone end. A claim names its port, and
    /// only ports that are up are claimed on: addresses are announced again at a start, when a link
    /// comes up, and when a MAC address changed.
    pub fn set_claims(&mut self, now: Instant, claims: Claims) {
        for (port, address) in self.claims.keys() {
            if !claims.contains_key(&(*port, *address)) {
                self.announcer.cancel(port, address);
            }
        }
        for ((port, address), router) in &claims {
            if self.claims.get(&(*port, *address)) != Some(router) {
                let announcement = Announcement {
                    address: *address,
                    mac: port.mac,
                    port: *port,
                    router: *router,
                    held: true,
                };
                self.announcer.announce(now, announcement);
            }
        }
        self.conflicts.keep(|place| claims.contains_key(place));
        if self.claims.is_empty() && !claims.is_empty() {
            self.next_claim_check = Some(now + CLAIM_CHECK_PAUSE);
        }
        self.claims = claims;
    }

    /// Other machines that use addresses of ours.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.conflicts()
    }

    /// Hosts whose address is at a group MAC address.
    pub fn group_macs(&self, now: Instant) -> impl Iterator<Item = (HostKey, [u8; 6])> + '_ {
        self.neighbours.group_macs(now)
    }

    /// The addresses that are the appliance's own on the wire.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Sets the routers that are advertised, by VNI.
    pub fn set_routers(&mut self, now: Instant, routers: BTreeMap<u32, AdvertisedRouter>) {
        self.advertiser.set_routers(now, routers);
    }

    /// The neighbours whose map entries are to be read next, a bounded number; the next call goes
    /// on behind them.
    pub fn next_to_sweep(&mut self, now: Instant) -> Vec<HostKey> {
        let after = self.sweep_after;
        let keys: Vec<HostKey> = self
            .neighbours
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
        keys
    }

    /// Neighbours, for status.
    pub fn neighbours(&self, now: Instant) -> impl Iterator<Item = EntryStatus> + '_ {
        self.neighbours.entries(now)
    }

    /// Number of neighbours that have a MAC address.
    pub fn neighbour_count(&self) -> usize {
        let entries = self.neighbours.entries(Instant::now());
        entries.filter(|entry| entry.mac.is_some()).count()
    }

    /// What the engines counted, by stable name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let n = self.neighbours.counters();
        let c = self.conflicts.counters();
        [
            ("neighbour_probes_sent", n.probes_sent),
            ("neighbour_without_sender", n.without_sender),
            ("neighbour_failed", n.failed),
            ("neighbour_mac_changed", n.mac_changed),
            ("neighbour_conflicts", n.conflicts),
            ("neighbour_flaps_damped", n.flaps_damped),
            ("neighbour_not_overridden", n.not_overridden),
            ("address_conflicts", c.conflicts),
            ("address_claims_seen", c.claims),
            ("address_defences_sent", c.defences),
            ("address_conflicts_refused_full", c.refused_full),
            ("neighbour_evicted", n.evicted),
            ("neighbour_refused_full", n.refused_full),
            ("neighbour_throttled", n.throttled),
            ("neighbour_ignored_invalid", n.ignored_invalid),
            ("neighbour_ignored_own", n.ignored_own),
            ("neighbour_ignored_port", n.ignored_port),
        ]
        .into_iter()
        .chain(self.slow_path.counters())
        .collect()
    }

    /// Tells the hosts of a network where an address is: at `mac`, or at the appliance.
    fn announce(&mut self, now: Instant, key: HostKey, mac: Option<[u8; 6]>) {
        let Some(port) = self.port(key.vni) else {
            return;
        };
        let announcement = Announcement {
            address: key.address,
            mac: mac.unwrap_or(port.mac),
            port,
            router: false,
            held: false,
        };
        self.announcer.announce(now, announcement);
    }

    fn cancel_announcement(&mut self, key: HostKey) {
        if let Some(port) = self.ports.get(&key.vni) {
            self.announcer.cancel(port, &key.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_common::addr::from_ip;

    const VNI: u32 = 1001;
    const PORT: Port = Port {
        ifindex: 3,
        outer: 0,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: [2, 0, 0, 0, 0, 1],
    };
    const REPLICA_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn engines(now: Instant) -> Engines {
        let mut engines = Engines::new(1);
        engines.set_ports(now, BTreeMap::from([(VNI, PORT)]));
        let senders = Senders {
            v4: [Some([10, 1, 0, 1]), None],
            v6: None,
        };
        engines.set_senders(now, &BTreeMap::from([(VNI, senders)]));
        engines
    }

    fn key() -> HostKey {
        HostKey {
            vni: VNI,
            address: from_ip([10, 1, 0, 10].into()),
        }
    }

    fn frames(engines: &mut Engines, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(output) = engines.poll(now) {
            if let Output::Send { ifindex, frame } = output {
                assert_eq!(ifindex, PORT.ifindex);
                frames.push(frame);
            }
        }
        frames
    }

    /// The sender's MAC and IPv4 address of an ARP frame without a tag.
    fn sender(frame: &[u8]) -> ([u8; 6], [u8; 4]) {
        (
            frame[22..28].try_into().expect("six bytes"),
            frame[28..32].try_into().expect("four bytes"),
        )
    }

    #[test]
    fn tenant_side_announces_its_own_mac_for_a_failed_over_address() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.endpoint_added(now, Role::Tenant, key());
        engines.set_claims(now, claim_on(PORT));
        let sent = frames(&mut engines, now);
        assert!(!sent.is_empty());
        for frame in sent {
            assert_eq!(sender(&frame), (PORT.mac, [10, 1, 0, 10]));
        }
    }

    fn claim_on(port: Port) -> Claims {
        Claims::from([((port, key().address), false)])
    }

    #[test]
    fn claims_are_announced_anew_after_a_link_came_up_or_a_mac_address_changed() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut engines = engines(now);
        engines.set_claims(now, claim_on(PORT));
        // The rounds are over, and the first repetition may be.
        for second in 0..=10 {
            frames(&mut engines, later(second));
        }
        engines.set_claims(later(10), claim_on(PORT));
        assert!(frames(&mut engines, later(10)).is_empty(), "nothing is new");
        // The link is down, and up again.
        engines.set_claims(later(11), Claims::new());
        for second in 11..100 {
            assert!(frames(&mut engines, later(second)).is_empty(), "{second}");
        }
        engines.set_claims(later(100), claim_on(PORT));
        assert_eq!(frames(&mut engines, later(100)).len(), 2);
        // Another MAC address.
        let changed = Port {
            mac: [2, 0, 0, 0, 0, 2],
            ..PORT
        };
        engines.set_ports(later(101), BTreeMap::from([(VNI, changed)]));
        engines.set_claims(later(101), claim_on(changed));
        let sent = frames(&mut engines, later(101));
        assert_eq!(sent.len(), 2);
        for frame in sent {
            assert_eq!(sender(&frame), (changed.mac, [10, 1, 0, 10]));
        }
    }

    fn claim_event(mac: [u8; 6]) -> NeighbourEvent {
        NeighbourEvent {
            vni: VNI,
            ifindex: PORT.ifindex,
            address: key().address,
            mac,
            outer: 0,
            inner: 0,
            kind: NeighbourEventKind::Claim as u16,
            flags: 0,
        }
    }

    fn conflicts_begun(engines: &mut Engines, now: Instant) -> usize {
        let outputs = std::iter::from_fn(|| engines.poll(now));
        outputs
            .filter(|output| matches!(output, Output::ConflictBegun(_)))
            .count()
    }

    #[test]
    fn another_machine_with_a_claimed_address_is_a_conflict_until_the_claim_ends() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.heard(now, &claim_event(REPLICA_MAC));
        assert_eq!(conflicts_begun(&mut engines, now), 0, "not ours");
        engines.set_claims(now, claim_on(PORT));
        frames(&mut engines, now);
        engines.heard(now, &claim_event(PORT.mac));
        assert_eq!(conflicts_begun(&mut engines, now), 0, "our own frame");
        engines.heard(now, &claim_event(REPLICA_MAC));
        assert_eq!(conflicts_begun(&mut engines, now), 1);
        assert_eq!(engines.conflicts().next().map(|c| c.mac), Some(REPLICA_MAC));
        engines.set_claims(now, Claims::new());
        assert_eq!(engines.conflicts().count(), 0);
    }

    #[test]
    fn machines_with_a_claimed_address_are_asked_for_with_another_address() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.set_claims(now, claim_on(PORT));
        let mut asked = Vec::new();
        for second in 0..65 {
            let sent = frames(&mut engines, now + Duration::from_secs(second));
            // The announcement has the address as sender.
            asked.extend(sent.into_iter().filter(|f| sender(f).1 != [10, 1, 0, 10]));
        }
        assert!((2..=4).contains(&asked.len()), "{}", asked.len());
        for frame in asked {
            assert_eq!(sender(&frame), (PORT.mac, [10, 1, 0, 1]));
            assert_eq!(frame[38..42], [10, 1, 0, 10]);
        }
    }

    #[test]
    fn claim_that_outlives_a_mode_is_announced_in_the_new_one() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.set_claims(now, claim_on(PORT));
        frames(&mut engines, now);
        engines.cancel_announcements(VNI);
        engines.set_claims(now, claim_on(PORT));
        assert_eq!(frames(&mut engines, now).len(), 2);
    }

    #[test]
    fn provider_side_announces_a_replica_only_once_it_is_resolved() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.endpoint_added(now, Role::Provider, key());
        let asked = frames(&mut engines, now);
        let announces = |frame: &Vec<u8>| sender(frame).1 == [10, 1, 0, 10];
        assert!(!asked.is_empty() && !asked.iter().any(announces));
        // A packet waits for it.
        engines.neighbours.resolve(now, key());
        let event = NeighbourEvent {
            vni: VNI,
            ifindex: PORT.ifindex,
            address: key().address,
            mac: REPLICA_MAC,
            outer: 0,
            inner: 0,
            kind: NeighbourEventKind::Reply as u16,
            flags: 0,
        };
        engines.heard(now, &event);
        let sent = frames(&mut engines, now);
        let announced: Vec<_> = sent.iter().filter(|f| announces(f)).collect();
        assert!(!announced.is_empty());
        for frame in announced {
            assert_eq!(sender(frame).0, REPLICA_MAC);
        }
    }

    #[test]
    fn provider_side_answers_for_a_returned_address_only_in_partial_failover() {
        for (still_partial, announced) in [(true, true), (false, false)] {
            let now = Instant::now();
            let mut engines = engines(now);
            engines.endpoint_removed(now, Role::Provider, key(), still_partial);
            assert_eq!(!frames(&mut engines, now).is_empty(), announced);
        }
    }

    #[test]
    fn machine_that_does_not_come_back_is_looked_for_ten_minutes() {
        let now = Instant::now();
        let mut engines = engines(now);
        engines.endpoint_removed(now, Role::Tenant, key(), true);
        assert_eq!(engines.neighbours(now).filter(|e| e.keep).count(), 1);
        engines.expire_corrections(now + CORRECTION_TIMEOUT - Duration::from_secs(1));
        assert_eq!(engines.neighbours(now).filter(|e| e.keep).count(), 1);
        engines.expire_corrections(now + CORRECTION_TIMEOUT);
        assert_eq!(engines.neighbours(now).filter(|e| e.keep).count(), 0);
    }
}
