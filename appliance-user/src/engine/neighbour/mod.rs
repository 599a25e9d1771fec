//! The neighbour table: resolves, confirms and ages the MAC addresses of hosts on tenants'
//! networks.
//!
//! For: ARP (RFC 826) and neighbour unreachability detection (RFC 4861 section 7.3), for IPv4 and
//! IPv6 alike and for many networks with overlapping addresses. The kernel has no address on a
//! tenant's network, so the kernel's own neighbour table cannot do this. Never: input, output, or a
//! clock. Events and the time go in, [`Action`]s come out; the caller sends the frames and writes
//! the map `NEIGHBOURS`.
//!
//! ```text
//!           resolve                      reply, announcement
//!   (none) ────────▶ Incomplete ──────────────────────────────┐
//!     ▲               │      ▲ ▲                              ▼       reachable time over
//!     │    no answer  │ new  │ └─────── kept hosts ───┐   Reachable ───────────────┐
//!     │               ▼ wait │   are probed further   │    ▲   ▲   │ (kept: Probe)  ▼
//!     └─────────── Failed ───┘                        │    │   │   │              Stale ─▶ (none)
//!    negative time    ▲                               │    │   │   │       packet   │  idle time,
//!    over             │ last probe unanswered         │    │   │   │       sent     ▼  no packet
//!                     └─────────────── Probe ◀────────┴────┼───┼───┴──────────── Delay
//!                                        │   delay over    │   │                   │
//!                                        └─────────────────┘   └───────────────────┘
//!                                          reply, sign of life    sign of life
//! ```
//!
//! An entry is installed in the map in the states Reachable, Stale, Delay and Probe; in Failed, one
//! that has the programs drop packets to the host. Kept hosts (endpoints, gateways) skip Stale and
//! Delay, never leave the table, and are still probed in Failed. A changed MAC address replaces the
//! old one at once, as in ARP; an address that changes too often is damped. Probes are limited in
//! each network and in total, where tenants take turns. Kept hosts have a budget of their own, so
//! that a scan of one tenant's unused addresses does not delay any other host.

mod entry;
#[cfg(test)]
mod model;
mod probing;
mod status;
#[cfg(test)]
mod tests;
mod turns;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::events::{NeighbourEvent, NeighbourEventKind, neighbour_event_flags};
use appliance_common::maps::{HostKey, Neighbour, neighbour_flags};

pub(crate) use entry::question;
use entry::{Entry, Net, Reserved, is_host, keys_of, map_entry};
use turns::Turns;
pub use types::{Action, Counters, EntryStatus, Senders, Settings, State};

use super::pacing::{Jitter, RateLimiter};
use crate::frame::{self, Port};

/// Hosts with group MAC addresses that are remembered of one network.
const MAX_GROUP_MACS: usize = 16;
/// How long they are remembered.
const GROUP_MAC_LIFETIME: Duration = Duration::from_secs(600);

/// The neighbour table. The [module](self) draws its states.
///
/// Call [`poll`](Self::poll) until it returns `None` after every other call and whenever
/// [`next_deadline`](Self::next_deadline) has come.
#[derive(Debug)]
pub struct NeighbourTable {
    settings: Settings,
    jitter: Jitter,
    networks: BTreeMap<u32, Net>,
    entries: BTreeMap<HostKey, Entry>,
    /// Next deadline of each entry that has one.
    deadlines: BTreeSet<(Instant, HostKey)>,
    /// Networks by number of evictable entries.
    sizes: BTreeSet<(usize, u32)>,
    kept_turns: Turns,
    other_turns: Turns,
    /// Places that probes have had in the queues for the total budgets.
    places: u64,
    actions: VecDeque<Action>,
    /// Hosts that are confirmed more often.
    routers: BTreeSet<HostKey>,
    /// Hosts whose address is at a group MAC address, and when that was last reported.
    group_macs: BTreeMap<HostKey, ([u8; 6], Instant)>,
    counters: Counters,
}

impl NeighbourTable {
    /// A table without networks. `seed` starts the jitter of its timers.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        let total = || {
            Turns::new(RateLimiter::new(
                settings.probes_total,
                settings.probe_burst,
            ))
        };
        Self {
            jitter: Jitter::new(seed),
            networks: BTreeMap::new(),
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sizes: BTreeSet::new(),
            kept_turns: total(),
            other_turns: total(),
            places: 0,
            actions: VecDeque::new(),
            routers: BTreeSet::new(),
            group_macs: BTreeMap::new(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Adds a network or changes its port. On a change every resolved host is installed again with
    /// the new Ethernet header.
    pub fn set_network(&mut self, vni: u32, port: Port) {
        if let Some(net) = self.networks.get_mut(&vni) {
            if net.port == port {
                return;
            }
            net.port = port;
            for (key, entry) in self.entries.range(keys_of(vni)) {
                if let Some(mac) = entry.mac {
                    self.actions.push_back(Action::Install {
                        key: *key,
                        neighbour: map_entry(key, &port, mac),
                    });
                }
            }
            return;
        }
        let budget = RateLimiter::new(self.settings.probes_per_network, self.settings.probe_burst);
        self.networks.insert(
            vni,
            Net {
                tenant: 0,
                port,
                senders: Senders::default(),
                entries: 0,
                evictable: BTreeSet::new(),
                kept_budget: budget,
                other_budget: budget,
            },
        );
        self.sizes.insert((0, vni));
    }

    /// Names the tenants of networks, by VNI; until then a network is tenant 0's. In the total
    /// budgets of probes, each tenant takes one turn, however many networks it has.
    pub fn set_tenants(&mut self, tenants: impl IntoIterator<Item = (u32, u32)>) {
        for (vni, tenant) in tenants {
            if let Some(net) = self.networks.get_mut(&vni) {
                net.tenant = tenant;
            }
        }
    }

    /// Sets the addresses with which the appliance asks on a network. A kept host that could not be
    /// asked before is asked at once.
    pub fn set_senders(&mut self, now: Instant, vni: u32, senders: Senders) {
        let Some(net) = self.networks.get_mut(&vni) else {
            return;
        };
        let before = std::mem::replace(&mut net.senders, senders);
        if before == senders {
            return;
        }
        let unasked = |(key, entry): &(&HostKey, &Entry)| {
            entry.keep
                && entry.mac.is_none()
                && before.for_target(&key.address).is_none()
                && senders.for_target(&key.address).is_some()
        };
        let entries = self.entries.range(keys_of(vni)).filter(unasked);
        let keys: Vec<HostKey> = entries.map(|(key, _)| *key).collect();
        for key in keys {
            self.enter(now, key, State::Incomplete, Some(now));
        }
    }

    /// Removes a network and its entries, from the table and from the map.
    pub fn remove_network(&mut self, _now: Instant, vni: u32) {
        let keys: Vec<HostKey> = self
            .entries
            .range(keys_of(vni))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.drop_entry(key);
        }
        if let Some(net) = self.networks.remove(&vni) {
            self.sizes.remove(&(net.evictable.len(), vni));
        }
    }

    /// Adopts an entry that the pinned map held when the daemon started. The entry stays in use and
    /// is confirmed within [`Settings::adopt_spread`]. Call this after
    /// [`set_network`](Self::set_network). An entry of an unknown network, or with addresses that
    /// no host can have, is removed from the map; one with an outdated Ethernet header is
    /// rewritten.
    pub fn adopt(&mut self, now: Instant, key: HostKey, pinned: Neighbour) {
        let mac = pinned.mac();
        let port = self.networks.get(&key.vni).map(|net| net.port);
        let (Some(port), true) = (port, is_host(&key.address) && frame::is_host_mac(&mac)) else {
            self.actions.push_back(Action::Remove { key });
            return;
        };
        if !self.entries.contains_key(&key) && !self.insert(now, key) {
            self.actions.push_back(Action::Remove { key });
            return;
        }
        let mut wanted = map_entry(&key, &port, mac);
        wanted.flags = pinned.flags;
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.mac.is_some() {
            return;
        }
        entry.mac = Some(mac);
        if wanted != pinned || pinned.flags & neighbour_flags::ACTIVE == 0 {
            wanted.flags |= neighbour_flags::ACTIVE;
            self.actions.push_back(Action::Install {
                key,
                neighbour: wanted,
            });
        }
        self.resolve_waiters(key);
        let soon = now + self.jitter.within(self.settings.adopt_spread);
        self.enter(now, key, State::Delay, Some(soon));
    }

    /// Handles an ARP or neighbour discovery message from a host ([`NeighbourEventKind`]). A host
    /// that asked for one of our addresses, replied, or announced itself gets an entry; a host that
    /// asked for another host only refreshes its entry. A changed MAC address replaces the old one
    /// at once. Messages that no host can have sent, and our own frames, are ignored and counted.
    pub fn receive(&mut self, now: Instant, event: &NeighbourEvent) {
        let key = HostKey {
            vni: event.vni,
            address: event.address,
        };
        let port = self.networks.get(&event.vni).map(|net| net.port);
        let Some(port) = port.filter(|port| {
            (port.ifindex, port.outer, port.inner) == (event.ifindex, event.outer, event.inner)
        }) else {
            self.counters.ignored_port += 1;
            return;
        };
        let kind = NeighbourEventKind::from_u16(event.kind);
        let kind = kind.filter(|kind| *kind != NeighbourEventKind::Claim);
        let valid = kind.is_some() && is_host(&event.address);
        if valid && event.mac[0] & 1 != 0 && event.mac != frame::BROADCAST {
            self.remember_group_mac(now, key, event.mac);
        }
        let (Some(kind), true) = (kind, valid && frame::is_host_mac(&event.mac)) else {
            self.counters.ignored_invalid += 1;
            return;
        };
        if event.mac == port.mac {
            self.counters.ignored_own += 1;
            return;
        }
        if !self.entries.contains_key(&key)
            && (kind == NeighbourEventKind::RequestToOther || !self.insert(now, key))
        {
            return;
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let known = entry.mac;
        if let Some(old) = known
            && old != event.mac
        {
            if event.flags & neighbour_event_flags::NO_OVERRIDE != 0 {
                self.doubt(now, key);
                return;
            }
            let conflict = entry.confirmed_at.is_some_and(|at| {
                now.saturating_duration_since(at) < self.settings.conflict_window
            });
            let (window_start, changes) = match entry.flaps {
                Some((start, changes))
                    if now.saturating_duration_since(start) < self.settings.flap_window =>
                {
                    (start, changes)
                }
                _ => (now, 0),
            };
            if conflict {
                self.counters.conflicts += 1;
            }
            if changes >= self.settings.flap_changes {
                self.counters.flaps_damped += 1;
                return;
            }
            entry.flaps = Some((window_start, changes + 1));
            self.counters.mac_changed += 1;
        }
        if known != Some(event.mac) {
            entry.mac = Some(event.mac);
            self.actions.push_back(Action::Install {
                key,
                neighbour: map_entry(&key, &port, event.mac),
            });
            self.resolve_waiters(key);
        }
        self.confirm(now, key);
    }

    /// Handles an advertisement of another MAC address without the Override flag: the known one
    /// stays and is to be confirmed (RFC 4861 section 7.2.5).
    fn doubt(&mut self, now: Instant, key: HostKey) {
        self.counters.not_overridden += 1;
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        if entry.state != State::Reachable {
            return;
        }
        if entry.keep {
            self.enter(now, key, State::Probe, Some(now));
        } else {
            let expires = entry.active.max(now) + self.settings.idle;
            self.enter(now, key, State::Stale, Some(expires));
        }
    }

    /// Remembers that a host's address is at a group MAC address, to be named in status.
    fn remember_group_mac(&mut self, now: Instant, key: HostKey, mac: [u8; 6]) {
        let lifetime = GROUP_MAC_LIFETIME;
        let of_network = keys_of(key.vni);
        if self.group_macs.range(of_network.clone()).count() >= MAX_GROUP_MACS {
            self.group_macs
                .retain(|_, (_, seen)| now.saturating_duration_since(*seen) < lifetime);
        }
        if self.group_macs.range(of_network).count() < MAX_GROUP_MACS
            || self.group_macs.contains_key(&key)
        {
            self.group_macs.insert(key, (mac, now));
        }
    }

    /// Hosts whose address is at a group MAC address, as of a cluster that balances load by
    /// multicast. The programs deliver to no group, so these hosts are not reached. Those that were
    /// not reported for ten minutes are left out.
    pub fn group_macs(&self, now: Instant) -> impl Iterator<Item = (HostKey, [u8; 6])> + '_ {
        let recent = move |(key, (_, seen)): &(&HostKey, &([u8; 6], Instant))| {
            self.networks.contains_key(&key.vni)
                && now.saturating_duration_since(*seen) < GROUP_MAC_LIFETIME
        };
        let hosts = self.group_macs.iter().filter(recent);
        hosts.map(|(key, (mac, _))| (*key, *mac))
    }

    /// Resolves a host that a packet waits for. [`Action::Resolved`] or [`Action::Failed`] follows:
    /// at once when the table knows the answer, otherwise after [`Settings::wait_probes`] probes at
    /// most.
    pub fn resolve(&mut self, now: Instant, key: HostKey) {
        self.request(now, key, false);
    }

    /// Keeps a host resolved until [`stop_keeping`](Self::stop_keeping), with or without traffic to
    /// it. Probes go out fast at first, then at growing intervals, and do not end.
    pub fn retain_resolved(&mut self, now: Instant, key: HostKey) {
        self.request(now, key, true);
    }

    /// Names the hosts that are routers, in place of those named before. They are confirmed at
    /// intervals of [`Settings::router_reachable`]: a router that takes the address over from
    /// another one, and whose announcement is lost, would stop all traffic through it.
    pub fn set_routers(&mut self, routers: impl IntoIterator<Item = HostKey>) {
        self.routers = routers.into_iter().collect();
    }

    fn request(&mut self, now: Instant, key: HostKey, keep: bool) {
        let known = self.networks.contains_key(&key.vni) && is_host(&key.address);
        if !known || (!self.entries.contains_key(&key) && !self.insert(now, key)) {
            self.actions.push_back(Action::Failed { key });
            return;
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let fresh = entry.deadline.is_none() && entry.reserved == Reserved::None;
        let newly_kept = keep && !entry.keep;
        entry.keep |= keep;
        entry.awaited |= !keep;
        let (state, has_mac) = (entry.state, entry.mac.is_some());
        if has_mac {
            self.touch(now, key);
            if !keep {
                // The packet missed its map entry, so the entry may be absent: write it again.
                self.reinstall(key);
                self.resolve_waiters(key);
            }
            match (state, keep) {
                (State::Stale | State::Delay, true) => {
                    self.enter(now, key, State::Probe, Some(now))
                }
                (State::Stale, false) => {
                    self.enter(now, key, State::Delay, Some(now + self.settings.delay));
                }
                _ => {}
            }
        } else if fresh || newly_kept {
            self.touch(now, key);
            self.enter(now, key, State::Incomplete, Some(now));
        } else if state == State::Failed {
            self.fail_waiters(key);
        }
    }

    /// Stops keeping a host resolved. From now on its entry ages as any other.
    pub fn stop_keeping(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if !entry.keep {
            return;
        }
        entry.keep = false;
        let (has_mac, awaited, state) = (entry.mac.is_some(), entry.awaited, entry.state);
        if has_mac {
            self.touch(now, key);
        } else if awaited && state == State::Incomplete {
            self.enter(now, key, State::Incomplete, Some(now));
        } else {
            self.drop_entry(key);
        }
    }

    /// Handles the flags that the XDP programs set in a map entry since the last call
    /// ([`neighbour_flags`]). `CONFIRMED` confirms the host. `USED` keeps the entry, and starts
    /// confirmation if the entry is stale.
    pub fn observe_flags(&mut self, now: Instant, key: HostKey, flags: u32) {
        if self
            .entries
            .get(&key)
            .is_none_or(|entry| entry.mac.is_none())
        {
            return;
        }
        if flags & neighbour_flags::CONFIRMED != 0 {
            self.confirm(now, key);
        }
        if flags & neighbour_flags::USED != 0 {
            self.touch(now, key);
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| entry.state == State::Stale)
            {
                self.enter(now, key, State::Delay, Some(now + self.settings.delay));
            }
        }
    }

    /// The next action, or `None` until another event or [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if self.next_turn(now) {
                continue;
            }
            let (at, key) = *self.deadlines.first()?;
            if at > now {
                return None;
            }
            self.deadline_passed(now, key);
        }
    }

    /// When [`poll`](Self::poll), having returned `None`, must be called again without an event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let entries = self.deadlines.first().map(|(at, _)| *at);
        let turns = [self.kept_turns.deadline(), self.other_turns.deadline()];
        turns.into_iter().chain([entries]).flatten().min()
    }

    /// Handles the deadline of an entry.
    fn deadline_passed(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        let s = self.settings;
        let (keep, probes, probing_since) = (entry.keep, entry.probes, entry.probing_since);
        match entry.state {
            State::Reachable if keep => {
                self.enter(now, key, State::Probe, Some(now));
            }
            State::Reachable => {
                let expires = entry.active.max(now.checked_sub(s.idle).unwrap_or(now)) + s.idle;
                self.enter(now, key, State::Stale, Some(expires));
            }
            State::Stale => {
                let expires = entry.active + s.idle;
                if expires <= now {
                    self.drop_entry(key);
                } else {
                    self.set_deadline(key, Some(expires));
                }
            }
            State::Delay => self.enter(now, key, State::Probe, Some(now)),
            State::Probe if probes < s.unicast_probes + s.multicast_probes => {
                let unicast = probes < s.unicast_probes;
                if self.admit_probe(now, key) {
                    self.probe(now, key, unicast, s.retransmit);
                }
            }
            State::Probe => self.fail(now, key),
            State::Incomplete if !keep && probes >= s.wait_probes => self.fail(now, key),
            State::Incomplete if !keep => {
                if self.admit_probe(now, key) {
                    let wait = s.wait_interval * (1 << probes.min(16));
                    self.probe(now, key, false, wait);
                }
            }
            State::Incomplete | State::Failed if keep => {
                if entry.state == State::Incomplete
                    && now.saturating_duration_since(probing_since) >= s.keep_failed_after
                {
                    self.counters.failed += 1;
                    self.set_state(now, key, State::Failed);
                    self.report_failed(key);
                }
                if self.admit_probe(now, key) {
                    let wait = if probes < s.keep_fast_probes {
                        s.keep_fast_interval
                    } else {
                        let doublings = (probes - s.keep_fast_probes).min(16);
                        let wait = (s.keep_slow_interval * (1 << doublings)).min(s.keep_cap);
                        self.jitter.around(wait, 75, 125)
                    };
                    self.probe(now, key, false, wait);
                }
            }
            State::Failed | State::Incomplete => self.drop_entry(key),
        }
    }

    /// Handles a sign of life of the entry's present MAC address.
    fn confirm(&mut self, now: Instant, key: HostKey) {
        let mean = if self.routers.contains(&key) {
            self.settings.router_reachable
        } else {
            self.settings.reachable
        };
        let reachable = self.jitter.around(mean, 50, 150);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.confirmed_at = Some(now);
        }
        self.enter(now, key, State::Reachable, Some(now + reachable));
    }

    /// Handles the end of probing without a reply.
    fn fail(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        self.counters.failed += 1;
        entry.mac = None;
        let next = if entry.keep {
            now
        } else {
            now + self.settings.negative
        };
        self.report_failed(key);
        self.enter(now, key, State::Failed, Some(next));
    }

    /// Emits [`Action::Failed`], which ends every wait for the host.
    fn report_failed(&mut self, key: HostKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.awaited = false;
            self.actions.push_back(Action::Failed { key });
        }
    }

    fn fail_waiters(&mut self, key: HostKey) {
        if self.entries.get(&key).is_some_and(|entry| entry.awaited) {
            self.report_failed(key);
        }
    }

    fn resolve_waiters(&mut self, key: HostKey) {
        let (Some(entry), Some(net)) = (self.entries.get_mut(&key), self.networks.get(&key.vni))
        else {
            return;
        };
        if let (true, Some(mac)) = (entry.awaited, entry.mac) {
            entry.awaited = false;
            self.actions.push_back(Action::Resolved {
                key,
                neighbour: map_entry(&key, &net.port, mac),
            });
        }
    }

    fn reinstall(&mut self, key: HostKey) {
        let (Some(entry), Some(net)) = (self.entries.get(&key), self.networks.get(&key.vni)) else {
            return;
        };
        if let Some(mac) = entry.mac {
            self.actions.push_back(Action::Install {
                key,
                neighbour: map_entry(&key, &net.port, mac),
            });
        }
    }

    /// Creates an entry, and evicts another if the table is full. `false` if there is no room.
    fn insert(&mut self, now: Instant, key: HostKey) -> bool {
        let Some(net) = self.networks.get(&key.vni) else {
            return false;
        };
        let victim = if net.entries >= self.settings.max_per_network {
            Some(net.evictable.first())
        } else if self.entries.len() >= self.settings.max_total {
            // Evict from the network with most evictable entries: a scan costs its own tenant.
            let largest = self
                .sizes
                .last()
                .and_then(|(_, vni)| self.networks.get(vni));
            Some(largest.and_then(|net| net.evictable.first()))
        } else {
            None
        };
        match victim {
            Some(Some((_, _, victim))) => {
                let victim = *victim;
                self.counters.evicted += 1;
                self.drop_entry(victim);
            }
            Some(None) => {
                self.counters.refused_full += 1;
                return false;
            }
            None => {}
        }
        self.entries.insert(
            key,
            Entry {
                state: State::Incomplete,
                since: now,
                mac: None,
                keep: false,
                awaited: false,
                probes: 0,
                probing_since: now,
                confirmed_at: None,
                active: now,
                reserved: Reserved::None,
                deadline: None,
                rank: None,
                flaps: None,
            },
        );
        if let Some(net) = self.networks.get_mut(&key.vni) {
            net.entries += 1;
        }
        self.update_rank(key);
        true
    }

    /// Removes an entry from the table, its indexes and the map.
    fn drop_entry(&mut self, key: HostKey) {
        let Some(entry) = self.entries.remove(&key) else {
            return;
        };
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, key));
        }
        if let Some(net) = self.networks.get_mut(&key.vni) {
            net.entries -= 1;
            if let Some((class, at)) = entry.rank {
                self.sizes.remove(&(net.evictable.len(), key.vni));
                net.evictable.remove(&(class, at, key));
                self.sizes.insert((net.evictable.len(), key.vni));
            }
        }
        if entry.mac.is_some() || entry.state == State::Failed {
            self.actions.push_back(Action::Remove { key });
        }
        if entry.awaited {
            self.actions.push_back(Action::Failed { key });
        }
    }

    /// Enters a state with no probes sent and no slot reserved.
    fn enter(&mut self, now: Instant, key: HostKey, state: State, deadline: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.probes = 0;
            entry.probing_since = now;
            entry.reserved = Reserved::None;
        }
        self.set_state(now, key, state);
        self.set_deadline(key, deadline);
    }

    fn set_state(&mut self, now: Instant, key: HostKey, state: State) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.state != state
        {
            let had_failed = entry.state == State::Failed;
            entry.state = state;
            entry.since = now;
            if state == State::Failed {
                self.actions.push_back(Action::InstallAbsent { key });
            } else if had_failed && entry.mac.is_none() {
                self.actions.push_back(Action::Remove { key });
            }
        }
        self.update_rank(key);
    }

    fn set_deadline(&mut self, key: HostKey, deadline: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, key));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, key));
            }
            entry.deadline = deadline;
        }
    }

    /// Records use of the entry.
    fn touch(&mut self, now: Instant, key: HostKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.active = now;
        }
        self.update_rank(key);
    }

    /// Updates the place of an entry in the order of eviction.
    fn update_rank(&mut self, key: HostKey) {
        let (Some(entry), Some(net)) =
            (self.entries.get_mut(&key), self.networks.get_mut(&key.vni))
        else {
            return;
        };
        let class = match entry.state {
            State::Failed => 0,
            State::Incomplete => 1,
            State::Stale => 2,
            State::Reachable | State::Delay | State::Probe => 3,
        };
        let rank = (!entry.keep).then_some((class, entry.active));
        if rank == entry.rank {
            return;
        }
        self.sizes.remove(&(net.evictable.len(), key.vni));
        if let Some((class, at)) = entry.rank {
            net.evictable.remove(&(class, at, key));
        }
        if let Some((class, at)) = rank {
            net.evictable.insert((class, at, key));
        }
        self.sizes.insert((net.evictable.len(), key.vni));
        entry.rank = rank;
    }
}
