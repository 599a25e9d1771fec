//! The engines: neighbour resolution, announcements, router advertisements, slow path, fragments.
//!
//! For: one place that takes events (a host has sent, a packet waits, an address failed over) and
//! that is polled with the time for actions. Never: a socket, a map or the clock; the event loop
//! carries the actions out.
//!
//! ```text
//!   receive, packet, endpoint_added, set_ports … ─▶ Engines ─ poll(now) ─▶ Output ─▶ socket or map
//!                                                     └─ next_deadline() ─▶ when to poll again
//! ```

mod counters;

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

use packet_rules::addr::address_of;

use crate::{
    config::Role,
    datapath::reconcile::{self, MapContents},
    engine::announce::{self, Announcement, Announcer},
    engine::conflict::{self, AddressConflict, ConflictTable},
    engine::fragment_buffer::{FragmentBuffer, fragment_key},
    engine::gateway_echo::GatewayEcho,
    engine::neighbour::{self, Action, EntryStatus, NeighbourTable, Senders},
    engine::router_advert::{AdvertisedRouter, RouterAdvertiser},
    engine::slow_path::{self, SlowPath},
    engine::takeover::{self, Owner, TakeoverCheck, Target},
    frame::{self, Port},
};

/// Rounds over the engines in one call that lead to no output, at most.
const MAX_SILENT_ROUNDS: usize = 20_000;
/// Neighbour entries whose flags are read at a time.
const SWEEP_BATCH: usize = 8192;
/// How long a machine that went back to production is looked for, and its MAC address announced
/// again and again, so that its neighbours' caches are corrected.
const CORRECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Interval in which each of our addresses is probed once for another owner; longer with many
/// addresses.
const OWNER_CHECK_ROUND: Duration = Duration::from_secs(30);
/// Time without a claim after which a conflict is over, in rounds: a machine that is silent but for
/// its answers, and misses a question, is no new conflict.
const QUIET_ROUNDS: u32 = 3;
/// Replicas that are told of a returned address one by one; more are told by broadcast, if the one
/// that had the address is not known.
const MAX_RECEIVERS: usize = 64;
/// Shortest time between two such probes.
const OWNER_CHECK_PAUSE: Duration = Duration::from_millis(20);

/// The addresses that the appliance answers for and announces, and whether each is a router's.
pub(super) type ServedAddresses = BTreeMap<(Port, Address), bool>;

/// An action of the event loop. Outputs come in the order in which they must be done.
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
    /// Write an entry of the map `NEIGHBOURS` that says that the host did not answer.
    InstallAbsent {
        /// The host.
        key: HostKey,
    },
    /// Delete an entry of the map `NEIGHBOURS`.
    RemoveNeighbour {
        /// The host.
        key: HostKey,
    },
    /// Report that another machine uses an address of ours.
    ConflictBegun(AddressConflict),
    /// Report that it does so no longer.
    ConflictEnded(AddressConflict),
    /// Report that conflicts of a network (VNI) began, changed or ended without a report.
    ConflictsUnreported { vni: u32, count: u64 },
    /// The check of addresses to take over is done; their owners.
    TakeoverChecked(Vec<Owner>),
}

/// The lookups of the slow path in the tables.
struct Lookup<'t>(&'t MapContents);

impl slow_path::Lookup for Lookup<'_> {
    fn network(&self, vni: u32) -> Option<maps::Network> {
        self.0.network(vni).copied()
    }

    fn peer(&self, slot: u32) -> Option<maps::Peer> {
        self.0.peers.get(&slot).copied()
    }

    fn uplink_mtu(&self) -> u16 {
        self.0.nat.mtu
    }
}

/// A machine that went back to production.
#[derive(Clone, Copy, Debug)]
struct Correction {
    /// Until when it is looked for and announced.
    until: Instant,
    /// Its MAC address that is announced, once it is known.
    mac: Option<[u8; 6]>,
}

/// The engines. Poll until `None` after every other call, and when `next_deadline` has come.
pub(super) struct Engines {
    neighbours: NeighbourTable,
    announcer: Announcer,
    advertiser: RouterAdvertiser,
    slow_path: SlowPath,
    fragments: FragmentBuffer,
    gateway_echo: GatewayEcho,
    /// By VNI.
    ports: BTreeMap<u32, Port>,
    served_addresses: ServedAddresses,
    conflicts: ConflictTable,
    takeover: Option<TakeoverCheck>,
    /// The last served address that was probed for another owner, and the time of the next probe.
    probed_address: Option<(Port, Address)>,
    /// New served addresses: probed first.
    new_addresses: VecDeque<(Port, Address)>,
    next_owner_check: Option<Instant>,
    /// The addresses with which hosts are asked for, by port.
    senders: BTreeMap<Port, Senders>,
    /// Addresses that went back to production.
    corrections: BTreeMap<HostKey, Correction>,
    /// Index of the uplink, and the addresses with which the appliance asks there.
    outside_senders: Option<(u32, Senders)>,
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
            gateway_echo: GatewayEcho::default(),
            ports: BTreeMap::new(),
            served_addresses: ServedAddresses::new(),
            conflicts: ConflictTable::new(conflict::Settings::default()),
            takeover: None,
            probed_address: None,
            new_addresses: VecDeque::new(),
            next_owner_check: None,
            senders: BTreeMap::new(),
            corrections: BTreeMap::new(),
            outside_senders: None,
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
            self.takeover
                .as_ref()
                .and_then(TakeoverCheck::next_deadline),
            self.next_owner_check,
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
                conflict::Output::Unreported { vni, count } => {
                    Output::ConflictsUnreported { vni, count }
                }
            });
        }
        let checked = self.takeover.as_mut().and_then(|check| check.poll(now));
        if let Some(output) = checked {
            busy = true;
            self.ready.push_back(match output {
                takeover::Output::Send { ifindex, frame } => Output::Send { ifindex, frame },
                takeover::Output::Done(owners) => {
                    self.takeover = None;
                    Output::TakeoverChecked(owners)
                }
            });
        }
        if self.next_owner_check.is_some_and(|at| at <= now) {
            busy = true;
            self.check_next_owner(now);
        }
        busy
    }

    /// Asks whether another machine has a served address, one after the other. A machine that is
    /// silent on the wire is found this way: its answer is reported as a claim.
    fn check_next_owner(&mut self, now: Instant) {
        let Some((port, address)) = self.next_to_probe() else {
            self.next_owner_check = None;
            return;
        };
        let pause = if self.new_addresses.is_empty() {
            let count = self.served_addresses.len().try_into().unwrap_or(u32::MAX);
            (OWNER_CHECK_ROUND / count).max(OWNER_CHECK_PAUSE)
        } else {
            OWNER_CHECK_PAUSE
        };
        self.next_owner_check = Some(now + pause);
        let of_port = |(ifindex, senders): &(u32, Senders)| {
            (*ifindex == port.ifindex && port.outer == 0).then_some(*senders)
        };
        let senders = self.senders.get(&port).copied();
        let senders = senders.or_else(|| self.outside_senders.as_ref().and_then(of_port));
        let frame = match senders.and_then(|s| s.for_target(&address)) {
            Some(sender) => neighbour::question(&port, &sender, &address, None),
            // There is no other address to ask with. Only a host that is about to use this address
            // takes a probe for a conflict, and it is one.
            None => frame::address_probe(&port, &address),
        };
        let ifindex = port.ifindex;
        self.ready.push_back(Output::Send { ifindex, frame });
    }

    /// The served address to probe next: a new one, or the one after the last.
    fn next_to_probe(&mut self) -> Option<(Port, Address)> {
        while let Some(served) = self.new_addresses.pop_front() {
            if self.served_addresses.contains_key(&served) {
                return Some(served);
            }
        }
        let after = self
            .probed_address
            .map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.served_addresses.range((after, Bound::Unbounded));
        let next = range.next().or_else(|| self.served_addresses.iter().next());
        self.probed_address = next.map(|(served, _)| *served);
        self.probed_address
    }

    fn act(&mut self, now: Instant, action: Action) {
        match action {
            Action::Send { ifindex, frame } => {
                self.ready.push_back(Output::Send { ifindex, frame });
            }
            Action::Install { key, neighbour } => {
                // A machine that is back announces itself once, or moves to another MAC address.
                self.correct(now, key, neighbour.mac());
                self.ready
                    .push_back(Output::InstallNeighbour { key, neighbour });
            }
            Action::InstallAbsent { key } => {
                self.ready.push_back(Output::InstallAbsent { key });
            }
            Action::Remove { key } => self.ready.push_back(Output::RemoveNeighbour { key }),
            Action::Resolved { key, neighbour } => {
                self.slow_path.resolved(now, key, &neighbour);
                self.correct(now, key, neighbour.mac());
                if self.awaited_replicas.remove(&key) {
                    self.announce(now, key, neighbour.mac(), false);
                }
            }
            Action::Failed { key } => self.slow_path.failed(now, key),
        }
    }

    /// A program reported a host.
    pub fn receive(&mut self, now: Instant, event: &NeighbourEvent) {
        let port = (event.ifindex, event.outer, event.inner);
        self.takeover_seen(port, event.address, event.mac);
        if event.kind != NeighbourEventKind::Claim as u16 {
            self.neighbours.receive(now, event);
            return;
        }
        let on_port = |(port, address): &&(Port, Address)| {
            *address == event.address
                && (port.ifindex, port.outer, port.inner)
                    == (event.ifindex, event.outer, event.inner)
        };
        // A port has one MAC address and tag type, so its addresses are neighbours in the order.
        let from = Port {
            ifindex: event.ifindex,
            outer: event.outer,
            inner: event.inner,
            outer_ethertype: 0,
            mac: [0; 6],
        };
        let port = self.served_addresses.range((from, [0; 16])..).next();
        let place = port.map(|(served, _)| (served.0, event.address));
        let served = place.and_then(|place| self.served_addresses.get_key_value(&place));
        if let Some((place, router)) = served.filter(|(place, _)| on_port(place))
            && event.mac != place.0.mac
        {
            self.conflicts
                .claimed(now, *place, event.vni, event.mac, *router);
        }
    }

    /// The flags of a neighbour's map entry, which the programs set since the last sweep.
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
                    // A packet from outside counts for the tenant of the public address.
                    let owner = match zone {
                        OUTSIDE => tables
                            .public
                            .get(&address_of(&key.destination))
                            .map_or(0, |public| public.zone),
                        zone => zone.into(),
                    };
                    self.fragments.push(now, key, owner, header.ifindex, frame);
                }
            }
            Some(SlowReason::GatewayEcho) => {
                let Some(network) = tables.network(header.vni) else {
                    return;
                };
                let (l3, mtu) = (header.l3.into(), network.lan_mtu.into());
                let of = (header.vni, network.tenant);
                let frames = self.gateway_echo.fragment(now, of, l3, frame, mtu);
                let ifindex = header.ifindex;
                let sends = frames.into_iter();
                let sends = sends.map(|frame| Output::Send { ifindex, frame });
                self.ready.extend(sends);
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

    /// Names the tenants of the networks, by VNI, which share the rates of questions.
    pub fn set_tenants(&mut self, tenants: impl IntoIterator<Item = (u32, u32)>) {
        self.neighbours.set_tenants(tenants);
    }

    /// Sets the addresses with which hosts of the uplink are asked for, and its index.
    pub const fn set_outside_senders(&mut self, senders: Option<(u32, Senders)>) {
        self.outside_senders = senders;
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
    pub fn retain_resolved(&mut self, now: Instant, keys: impl IntoIterator<Item = HostKey>) {
        for key in keys {
            if self.ports.contains_key(&key.vni) {
                self.neighbours.retain_resolved(now, key);
            }
        }
    }

    /// Names the routers among the hosts that are kept resolved, which are confirmed more often.
    pub fn confirm_often(&mut self, routers: impl IntoIterator<Item = HostKey>) {
        self.neighbours.set_routers(routers);
    }

    /// Resolves a host only while packets go there, from now on.
    pub fn release(&mut self, now: Instant, key: HostKey) {
        self.neighbours.stop_keeping(now, key);
    }

    /// An address fails over: on the tenant side it becomes a served address
    /// ([`set_served_addresses`](Self::set_served_addresses)); on the provider side its replica is
    /// resolved and then announced.
    pub fn endpoint_added(&mut self, now: Instant, role: Role, key: HostKey) {
        self.cancel_announcement(key);
        match role {
            Role::Tenant => {
                // It becomes a served address next, which announces it.
                self.corrections.remove(&key);
                self.neighbours.stop_keeping(now, key);
            }
            Role::Provider => {
                self.awaited_replicas.insert(key);
                self.neighbours.retain_resolved(now, key);
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
                let until = now + CORRECTION_TIMEOUT;
                self.corrections
                    .insert(key, Correction { until, mac: None });
                self.neighbours.retain_resolved(now, key);
            }
            Role::Provider => {
                self.awaited_replicas.remove(&key);
                self.neighbours.stop_keeping(now, key);
                if still_partial {
                    self.correct_replicas(now, key);
                }
            }
        }
    }

    /// Tells the other replicas of a network that an address is at the appliance now. By unicast:
    /// the replica that had the address may still run, and must not take it for a conflict. It may
    /// have further addresses, such as one of the other family, so its MAC address excludes it.
    fn correct_replicas(&mut self, now: Instant, key: HostKey) {
        let Some(port) = self.port(key.vni) else {
            return;
        };
        let hosts = self.neighbours.entries(now);
        let hosts: Vec<_> = hosts.filter(|host| host.key.vni == key.vni).collect();
        let former = hosts.iter().find(|host| host.key == key);
        let former = former.and_then(|host| host.mac);
        let others = hosts.iter().filter(|host| host.mac != former);
        let mut receivers: Vec<[u8; 6]> = others.filter_map(|host| host.mac).collect();
        receivers.sort_unstable();
        receivers.dedup();
        if receivers.is_empty() {
            return;
        }
        // By broadcast to many, unless the replica that had the address would hear it.
        if former.is_none() && receivers.len() > MAX_RECEIVERS {
            receivers.clear();
        }
        let announcement = Announcement {
            address: key.address,
            mac: port.mac,
            port,
            router: false,
            is_periodic: false,
        };
        self.announcer.announce_to(now, announcement, receivers);
    }

    /// Ends the announcements in a network; served addresses that stay are announced anew.
    pub fn cancel_announcements(&mut self, vni: u32) {
        if let Some(port) = self.ports.get(&vni) {
            self.announcer.cancel_port(port);
            self.served_addresses.retain(|(of, _), _| of != port);
        }
    }

    /// A machine that went back to production is at `mac`: announces that for as long as it would
    /// have been looked for. Nothing for another host, or if that is announced already.
    fn correct(&mut self, now: Instant, key: HostKey, mac: [u8; 6]) {
        let Some(correction) = self.corrections.get_mut(&key) else {
            return;
        };
        if correction.mac != Some(mac) {
            *correction = Correction {
                until: now + CORRECTION_TIMEOUT,
                mac: Some(mac),
            };
            self.announce(now, key, mac, true);
        }
    }

    /// Ends the search for machines that did not come back in time, and the announcements of those
    /// that did.
    pub fn expire_corrections(&mut self, now: Instant) {
        let over = |(key, c): (&HostKey, &Correction)| (c.until <= now).then_some(*key);
        let over: Vec<HostKey> = self.corrections.iter().filter_map(over).collect();
        for key in over {
            self.corrections.remove(&key);
            self.cancel_announcement(key);
            self.neighbours.stop_keeping(now, key);
        }
    }

    /// Sets the addresses that the appliance answers for. New ones are announced, and then again
    /// and again; announcements of those that are gone end. The port of each is up: addresses are
    /// announced again at a start, when a link comes up, and when a MAC address changed.
    pub fn set_served_addresses(&mut self, now: Instant, addresses: ServedAddresses) {
        for (port, address) in self.served_addresses.keys() {
            if !addresses.contains_key(&(*port, *address)) {
                self.announcer.cancel(port, address);
            }
        }
        for ((port, address), router) in &addresses {
            if self.served_addresses.get(&(*port, *address)) != Some(router) {
                let announcement = Announcement {
                    address: *address,
                    mac: port.mac,
                    port: *port,
                    router: *router,
                    is_periodic: true,
                };
                self.announcer.announce(now, announcement);
            }
        }
        self.conflicts
            .retain(now, |place| addresses.contains_key(place));
        self.new_addresses
            .retain(|served| addresses.contains_key(served));
        let new = addresses
            .keys()
            .filter(|c| !self.served_addresses.contains_key(c));
        self.new_addresses.extend(new.copied());
        if !self.new_addresses.is_empty() {
            let soon = now + OWNER_CHECK_PAUSE;
            let next = self.next_owner_check.map_or(soon, |at| at.min(soon));
            self.next_owner_check = Some(next);
        }
        let count = addresses.len().try_into().unwrap_or(u32::MAX);
        let round = (OWNER_CHECK_PAUSE * count).max(OWNER_CHECK_ROUND);
        let quiet = conflict::Settings::default().quiet;
        self.conflicts.set_quiet(quiet.max(round * QUIET_ROUNDS));
        self.served_addresses = addresses;
    }

    /// Asks whether addresses have owners; [`Output::TakeoverChecked`] follows.
    pub fn check_takeover(&mut self, now: Instant, targets: Vec<Target>) {
        self.takeover = Some(TakeoverCheck::new(now, targets));
    }

    /// The ports on which owners of IPv6 addresses are asked for.
    pub fn checked_ports(&self) -> impl Iterator<Item = Port> + '_ {
        let checks = self.takeover.iter();
        checks.flat_map(TakeoverCheck::ports_v6)
    }

    /// A host has an address, on the port with this interface and these tags.
    pub fn takeover_seen(&mut self, port: (u32, u16, u16), address: Address, mac: [u8; 6]) {
        if let Some(check) = &mut self.takeover {
            check.seen(port, address, mac);
        }
    }

    /// The address with which the appliance asks for another on a port.
    pub fn sender_for(&self, port: &Port, target: &Address) -> Option<Address> {
        self.senders.get(port)?.for_target(target)
    }

    /// Other machines that use addresses of ours.
    pub fn conflicts(&self) -> impl Iterator<Item = &AddressConflict> {
        self.conflicts.conflicts()
    }

    /// Hosts whose address is at a group MAC address.
    pub fn group_macs(&self, now: Instant) -> impl Iterator<Item = (HostKey, [u8; 6])> + '_ {
        self.neighbours.group_macs(now)
    }

    /// The addresses that the appliance answers for.
    pub const fn served_addresses(&self) -> &ServedAddresses {
        &self.served_addresses
    }

    /// Sets the routers that are advertised, by VNI.
    pub fn set_routers(&mut self, now: Instant, routers: BTreeMap<u32, AdvertisedRouter>) {
        self.advertiser.set_routers(now, routers);
    }

    /// The neighbours whose map entries are to be read next, a bounded number; the next call goes
    /// on behind them.
    pub fn next_to_sweep(&mut self, now: Instant) -> Vec<HostKey> {
        let keys: Vec<HostKey> = self
            .neighbours
            .entries_after(now, self.sweep_after)
            .filter(|e| e.mac.is_some())
            .map(|e| e.key)
            .take(SWEEP_BATCH)
            .collect();
        self.sweep_after = if keys.len() == SWEEP_BATCH {
            keys.last().copied()
        } else {
            None
        };
        keys
    }

    /// The neighbours after `after`, in the order of their keys, for status.
    pub fn neighbours_after(
        &self,
        now: Instant,
        after: Option<HostKey>,
    ) -> impl Iterator<Item = EntryStatus> + '_ {
        self.neighbours.entries_after(now, after)
    }

    /// Number of neighbours that have a MAC address.
    pub fn neighbour_count(&self) -> usize {
        let entries = self.neighbours.entries(Instant::now());
        entries.filter(|entry| entry.mac.is_some()).count()
    }

    /// Tells the hosts of a network that an address is at `mac`; `is_periodic`: again and again.
    fn announce(&mut self, now: Instant, key: HostKey, mac: [u8; 6], is_periodic: bool) {
        let Some(port) = self.port(key.vni) else {
            return;
        };
        tracing::debug!(
            address = %to_ip(&key.address),
            vni = key.vni,
            "announcing the machine's MAC address"
        );
        let announcement = Announcement {
            address: key.address,
            mac,
            port,
            router: false,
            is_periodic,
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
mod tests;
