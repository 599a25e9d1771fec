//! Which MAC address a host of a tenant's network has: resolution, confirmation, ageing.
//!
//! The kernel's stack has no address on a tenant's network, so its neighbour table is of no use there.
//! This engine does what it would: ARP (RFC 826) and neighbour unreachability detection (RFC 4861
//! section 7.3) for IPv4 and IPv6 alike, for many networks with overlapping addresses, and keeps the
//! map `NEIGHBOURS` in step. It does no input or output: events and the time go in, [`Action`]s come
//! out.
//!
//! ```text
//!            want                        answered, heard
//!   (none) ────────▶ Incomplete ───────────────────────────────┐
//!     ▲               │      ▲ ▲                               ▼        reachable time over
//!     │    no answer  │ want │ └──────── kept hosts ───┐   Reachable ──────────────────┐
//!     │               ▼      │   go on being asked     │    ▲   ▲   │ (kept: at once)   ▼
//!     └─────────── Failed ───┘                         │    │   │   │               Stale ──▶ (none)
//!    negative time    ▲                                │    │   │   │        packet   │  idle time,
//!    over             │ last probe unanswered          │    │   │   │        sent     ▼  no packet
//!                     └─────────────── Probe ◀─────────┴────┼───┼───┴─────────────  Delay
//!                                        │    delay over    │   │                     │
//!                                        └──────────────────┘   └─────────────────────┘
//!                                           answered, heard        heard
//! ```
//!
//! An entry is in the map (installed) in Reachable, Stale, Delay and Probe, and only there. Kept hosts
//! (endpoints, gateways) skip Stale and Delay, never leave the table, and in Failed go on being asked
//! for. A changed MAC address is taken over at once, whoever says so, as ARP does; an address that
//! changes too often is damped. Probes have a budget per network and in all, kept hosts their own, so
//! that a scan of one tenant's empty addresses delays nobody else.

mod pace;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, UNSPECIFIED, as_v4};
use appliance_common::events::{NeighbourEvent, NeighbourEventKind};
use appliance_common::maps::{HostKey, Neighbour, neighbour_flags};

pub(crate) use pace::Pace;
use pace::Random;
pub use types::{Action, Counters, EntryStatus, Port, Settings, State};

use crate::frames;

/// The neighbour engine. See the [module](self).
///
/// Call [`poll`](Self::poll) until it returns `None` after every other call and whenever
/// [`next_deadline`](Self::next_deadline) has come.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    random: Random,
    networks: BTreeMap<u32, Net>,
    entries: BTreeMap<HostKey, Entry>,
    /// What is to be done next, one item per entry that has a deadline.
    deadlines: BTreeSet<(Instant, HostKey)>,
    /// Networks by number of entries that can be evicted.
    sizes: BTreeSet<(usize, u32)>,
    keep_pace: Pace,
    other_pace: Pace,
    actions: VecDeque<Action>,
    counters: Counters,
}

/// A network.
#[derive(Debug)]
struct Net {
    port: Port,
    entries: usize,
    /// Entries that are not kept, the least worth first.
    evictable: BTreeSet<Rank>,
    keep_pace: Pace,
    other_pace: Pace,
}

/// How much an entry is worth: failed and incomplete ones least, then by last sign of use or life.
type Rank = (u8, Instant, HostKey);

/// Which budgets a probe has a reserved turn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    None,
    Network,
    Both,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// When it entered the state.
    since: Instant,
    mac: Option<[u8; 6]>,
    keep: bool,
    /// A packet waits for it: say Resolved or Failed.
    waited: bool,
    /// Probes sent in this state.
    probes: u32,
    /// When the first of them was due, for kept hosts.
    asking_since: Instant,
    heard: Option<Instant>,
    /// Last sign of use or of life.
    active: Instant,
    turn: Turn,
    deadline: Option<Instant>,
    /// Its place in `Net::evictable`.
    rank: Option<(u8, Instant)>,
    /// Changes of MAC address in the window that began then.
    flaps: Option<(Instant, u32)>,
}

impl Engine {
    /// An engine without networks. `seed` feeds the jitter of its timers.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            networks: BTreeMap::new(),
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sizes: BTreeSet::new(),
            keep_pace: Pace::new(settings.probes_total, settings.probe_burst),
            other_pace: Pace::new(settings.probes_total, settings.probe_burst),
            actions: VecDeque::new(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Adds a network or changes its port. On a change every resolved host is installed anew, with the
    /// new Ethernet header.
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
                        neighbour: neighbour(&port, mac),
                    });
                }
            }
            return;
        }
        let pace = Pace::new(self.settings.probes_per_network, self.settings.probe_burst);
        self.networks.insert(
            vni,
            Net {
                port,
                entries: 0,
                evictable: BTreeSet::new(),
                keep_pace: pace,
                other_pace: pace,
            },
        );
        self.sizes.insert((0, vni));
    }

    /// Removes a network and its entries from engine and map.
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

    /// Takes over an entry that the pinned map held when the daemon started. It goes on being used and is
    /// confirmed within [`Settings::adopt_spread`]. Call after [`set_network`](Self::set_network); an
    /// entry of an unknown network, or one that no host can have, is removed from the map, and one with
    /// an outdated Ethernet header is written anew.
    pub fn adopt(&mut self, now: Instant, key: HostKey, held: Neighbour) {
        let mac = held.mac();
        let port = self.networks.get(&key.vni).map(|net| net.port);
        let (Some(port), true) = (port, is_host(&key.address) && frames::is_host_mac(&mac)) else {
            self.actions.push_back(Action::Remove { key });
            return;
        };
        if !self.entries.contains_key(&key) && !self.insert(now, key) {
            self.actions.push_back(Action::Remove { key });
            return;
        }
        let mut wanted = neighbour(&port, mac);
        wanted.flags = held.flags;
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.mac.is_some() {
            return;
        }
        entry.mac = Some(mac);
        if wanted != held || held.flags & neighbour_flags::ACTIVE == 0 {
            wanted.flags |= neighbour_flags::ACTIVE;
            self.actions.push_back(Action::Install {
                key,
                neighbour: wanted,
            });
        }
        self.resolve_waiters(key);
        let soon = now + self.random.within(self.settings.adopt_spread);
        self.enter(now, key, State::Delay, Some(soon));
    }

    /// A host was heard ([`NeighbourEventKind`]): one that asked us, answered or announced itself gets an entry; one
    /// that asked for another only refreshes an entry. A changed MAC address is taken over at once.
    /// Anything no host can have sent, and our own frames, are ignored and counted.
    pub fn heard(&mut self, now: Instant, event: &NeighbourEvent) {
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
        let (Some(kind), true) = (
            NeighbourEventKind::from_u16(event.kind),
            is_host(&event.address) && frames::is_host_mac(&event.mac),
        ) else {
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
            let conflict = entry.heard.is_some_and(|at| {
                now.saturating_duration_since(at) < self.settings.conflict_window
            });
            let (began, changes) = match entry.flaps {
                Some((began, changes))
                    if now.saturating_duration_since(began) < self.settings.flap_window =>
                {
                    (began, changes)
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
            entry.flaps = Some((began, changes + 1));
            self.counters.mac_changed += 1;
        }
        if known != Some(event.mac) {
            entry.mac = Some(event.mac);
            self.actions.push_back(Action::Install {
                key,
                neighbour: neighbour(&port, event.mac),
            });
            self.resolve_waiters(key);
        }
        self.confirm(now, key);
    }

    /// Asks for a host. With `keep` it is kept resolved until [`unwant`](Self::unwant), whatever the
    /// traffic: asked for fast, then ever more slowly, without end. Without, a packet waits for it:
    /// [`Action::Resolved`] or [`Action::Failed`] follows, at once where the answer is known.
    pub fn want(&mut self, now: Instant, key: HostKey, keep: bool) {
        let known = self.networks.contains_key(&key.vni) && is_host(&key.address);
        if !known || (!self.entries.contains_key(&key) && !self.insert(now, key)) {
            self.actions.push_back(Action::Failed { key });
            return;
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let fresh = entry.deadline.is_none();
        let newly_kept = keep && !entry.keep;
        entry.keep |= keep;
        entry.waited |= !keep;
        let (state, has_mac) = (entry.state, entry.mac.is_some());
        if has_mac {
            self.touch(now, key);
            if !keep {
                // It may have been missing from the map: writing it again heals that.
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

    /// Stops keeping a host. Its entry ages out as any other.
    pub fn unwant(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if !entry.keep {
            return;
        }
        entry.keep = false;
        let (has_mac, waited, state) = (entry.mac.is_some(), entry.waited, entry.state);
        if has_mac {
            self.touch(now, key);
        } else if waited && state == State::Incomplete {
            self.enter(now, key, State::Incomplete, Some(now));
        } else {
            self.drop_entry(key);
        }
    }

    /// What the programs wrote into the flags of a map entry since the last look
    /// ([`neighbour_flags`]): `HEARD` confirms the host, `USED` keeps the entry alive and has it asked
    /// when it is stale.
    pub fn observed(&mut self, now: Instant, key: HostKey, flags: u32) {
        if self
            .entries
            .get(&key)
            .is_none_or(|entry| entry.mac.is_none())
        {
            return;
        }
        if flags & neighbour_flags::HEARD != 0 {
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

    /// The next thing to do, or `None` until another call or [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let (at, key) = *self.deadlines.first()?;
            if at > now {
                return None;
            }
            self.due(now, key);
        }
    }

    /// When [`poll`](Self::poll), once it has returned `None`, next has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Every entry, sorted by network and address.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = EntryStatus> + '_ {
        self.entries.iter().map(move |(key, entry)| EntryStatus {
            key: *key,
            state: entry.state,
            mac: entry.mac,
            keep: entry.keep,
            age: now.saturating_duration_since(entry.since),
            heard: entry.heard.map(|at| now.saturating_duration_since(at)),
        })
    }

    /// What was counted since [`new`](Self::new).
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// An entry's deadline has come.
    fn due(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        let s = self.settings;
        let (keep, probes, asking_since) = (entry.keep, entry.probes, entry.asking_since);
        match entry.state {
            State::Reachable if keep => {
                self.enter(now, key, State::Probe, Some(now));
            }
            State::Reachable => {
                let gone = entry.active.max(now.checked_sub(s.idle).unwrap_or(now)) + s.idle;
                self.enter(now, key, State::Stale, Some(gone));
            }
            State::Stale => {
                let gone = entry.active + s.idle;
                if gone <= now {
                    self.drop_entry(key);
                } else {
                    self.set_deadline(key, Some(gone));
                }
            }
            State::Delay => self.enter(now, key, State::Probe, Some(now)),
            State::Probe if probes < s.unicast_probes + s.multicast_probes => {
                let unicast = probes < s.unicast_probes;
                if self.take_turn(now, key) {
                    self.probe(now, key, unicast, s.retransmit);
                }
            }
            State::Probe => self.fail(now, key),
            State::Incomplete if !keep && probes >= s.wait_probes => self.fail(now, key),
            State::Incomplete if !keep => {
                if self.take_turn(now, key) {
                    let wait = s.wait_interval * (1 << probes.min(16));
                    self.probe(now, key, false, wait);
                }
            }
            State::Incomplete | State::Failed if keep => {
                if entry.state == State::Incomplete
                    && now.saturating_duration_since(asking_since) >= s.keep_failed_after
                {
                    self.counters.failed += 1;
                    self.set_state(now, key, State::Failed);
                    self.announce_failed(key);
                }
                if self.take_turn(now, key) {
                    let wait = if probes < s.keep_fast_probes {
                        s.keep_fast_interval
                    } else {
                        let doublings = (probes - s.keep_fast_probes).min(16);
                        let wait = (s.keep_slow_interval * (1 << doublings)).min(s.keep_cap);
                        self.random.around(wait, 75, 125)
                    };
                    self.probe(now, key, false, wait);
                }
            }
            State::Failed | State::Incomplete => self.drop_entry(key),
        }
    }

    /// Whether a probe may go out now. If not, the entry's deadline is its turn, reserved first in its
    /// network's budget and then in that of all; a host that would wait too long for it fails.
    fn take_turn(&mut self, now: Instant, key: HostKey) -> bool {
        let Some(entry) = self.entries.get_mut(&key) else {
            return false;
        };
        let Some(net) = self.networks.get_mut(&key.vni) else {
            return false;
        };
        while entry.turn != Turn::Both {
            let pace = match (entry.turn, entry.keep) {
                (Turn::None, true) => &mut net.keep_pace,
                (Turn::None, false) => &mut net.other_pace,
                (_, true) => &mut self.keep_pace,
                (_, false) => &mut self.other_pace,
            };
            let late = pace.turn(now).saturating_duration_since(now) > self.settings.probe_backlog;
            if late && !entry.keep {
                self.counters.throttled += 1;
                if entry.state == State::Incomplete {
                    self.fail(now, key);
                } else {
                    self.set_deadline(key, Some(now + self.settings.probe_backlog));
                }
                return false;
            }
            let at = pace.reserve(now);
            entry.turn = if entry.turn == Turn::None {
                Turn::Network
            } else {
                Turn::Both
            };
            if at > now {
                self.set_deadline(key, Some(at));
                return false;
            }
        }
        entry.turn = Turn::None;
        true
    }

    /// Sends a probe and looks again after `wait`.
    fn probe(&mut self, now: Instant, key: HostKey, unicast: bool, wait: Duration) {
        let (Some(entry), Some(net)) = (self.entries.get_mut(&key), self.networks.get(&key.vni))
        else {
            return;
        };
        if entry.probes == 0 {
            entry.asking_since = now;
        }
        entry.probes = entry.probes.saturating_add(1);
        let destination = entry.mac.filter(|_| unicast);
        let frame = match as_v4(&key.address) {
            Some(v4) => frames::arp_request(&net.port, v4, destination),
            None => frames::neighbour_solicitation(&net.port, &key.address, destination),
        };
        self.counters.probes_sent += 1;
        self.actions.push_back(Action::Send {
            ifindex: net.port.ifindex,
            frame,
        });
        self.set_deadline(key, Some(now + wait));
    }

    /// A sign of life of the MAC address the entry has.
    fn confirm(&mut self, now: Instant, key: HostKey) {
        let reachable = self.random.around(self.settings.reachable, 50, 150);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.heard = Some(now);
        }
        self.enter(now, key, State::Reachable, Some(now + reachable));
    }

    /// The last probe went unanswered.
    fn fail(&mut self, now: Instant, key: HostKey) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        self.counters.failed += 1;
        if entry.mac.take().is_some() {
            self.actions.push_back(Action::Remove { key });
        }
        let next = if entry.keep {
            now
        } else {
            now + self.settings.negative
        };
        self.announce_failed(key);
        self.enter(now, key, State::Failed, Some(next));
    }

    /// Says Failed, which ends every wait.
    fn announce_failed(&mut self, key: HostKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waited = false;
            self.actions.push_back(Action::Failed { key });
        }
    }

    fn fail_waiters(&mut self, key: HostKey) {
        if self.entries.get(&key).is_some_and(|entry| entry.waited) {
            self.announce_failed(key);
        }
    }

    fn resolve_waiters(&mut self, key: HostKey) {
        let (Some(entry), Some(net)) = (self.entries.get_mut(&key), self.networks.get(&key.vni))
        else {
            return;
        };
        if let (true, Some(mac)) = (entry.waited, entry.mac) {
            entry.waited = false;
            self.actions.push_back(Action::Resolved {
                key,
                neighbour: neighbour(&net.port, mac),
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
                neighbour: neighbour(&net.port, mac),
            });
        }
    }

    /// Makes an entry, evicting another where a table is full. `false` when there is no room.
    fn insert(&mut self, now: Instant, key: HostKey) -> bool {
        let Some(net) = self.networks.get(&key.vni) else {
            return false;
        };
        let victim = if net.entries >= self.settings.max_per_network {
            Some(net.evictable.first())
        } else if self.entries.len() >= self.settings.max_total {
            // From the network that holds most: a scan of one tenant costs that tenant.
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
                waited: false,
                probes: 0,
                asking_since: now,
                heard: None,
                active: now,
                turn: Turn::None,
                deadline: None,
                rank: None,
                flaps: None,
            },
        );
        if let Some(net) = self.networks.get_mut(&key.vni) {
            net.entries += 1;
        }
        self.rank(key);
        true
    }

    /// Takes an entry out of everything.
    fn drop_entry(&mut self, key: HostKey) {
        let Some(entry) = self.entries.remove(&key) else {
            return;
        };
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, key));
        }
        if let Some(net) = self.networks.get_mut(&key.vni) {
            net.entries -= 1;
            if let Some((worth, at)) = entry.rank {
                self.sizes.remove(&(net.evictable.len(), key.vni));
                net.evictable.remove(&(worth, at, key));
                self.sizes.insert((net.evictable.len(), key.vni));
            }
        }
        if entry.mac.is_some() {
            self.actions.push_back(Action::Remove { key });
        }
        if entry.waited {
            self.actions.push_back(Action::Failed { key });
        }
    }

    /// Enters a state afresh: no probes sent, no turn reserved.
    fn enter(&mut self, now: Instant, key: HostKey, state: State, deadline: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.probes = 0;
            entry.asking_since = now;
            entry.turn = Turn::None;
        }
        self.set_state(now, key, state);
        self.set_deadline(key, deadline);
    }

    fn set_state(&mut self, now: Instant, key: HostKey, state: State) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.state != state
        {
            entry.state = state;
            entry.since = now;
        }
        self.rank(key);
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

    /// A packet goes to the host.
    fn touch(&mut self, now: Instant, key: HostKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.active = now;
        }
        self.rank(key);
    }

    /// Puts an entry at its place among those that can be evicted.
    fn rank(&mut self, key: HostKey) {
        let (Some(entry), Some(net)) =
            (self.entries.get_mut(&key), self.networks.get_mut(&key.vni))
        else {
            return;
        };
        let worth = match entry.state {
            State::Failed => 0,
            State::Incomplete => 1,
            State::Stale => 2,
            State::Reachable | State::Delay | State::Probe => 3,
        };
        let rank = (!entry.keep).then_some((worth, entry.active));
        if rank == entry.rank {
            return;
        }
        self.sizes.remove(&(net.evictable.len(), key.vni));
        if let Some((worth, at)) = entry.rank {
            net.evictable.remove(&(worth, at, key));
        }
        if let Some((worth, at)) = rank {
            net.evictable.insert((worth, at, key));
        }
        self.sizes.insert((net.evictable.len(), key.vni));
        entry.rank = rank;
    }
}

/// The map's entry for a host at `mac` on `port`.
fn neighbour(port: &Port, mac: [u8; 6]) -> Neighbour {
    Neighbour::new(
        port.ifindex,
        mac,
        port.mac,
        port.outer,
        port.inner,
        port.outer_ethertype,
    )
}

/// Every key of a network.
fn keys_of(vni: u32) -> std::ops::RangeInclusive<HostKey> {
    HostKey {
        vni,
        address: UNSPECIFIED,
    }..=HostKey {
        vni,
        address: [0xff; 16],
    }
}

/// Whether a host of a network can have this address: not unspecified, loopback, multicast, or
/// IPv4's "this network", limited broadcast and class E (RFC 1122 section 3.2.1.3, RFC 4291 section 2.4).
fn is_host(address: &Address) -> bool {
    match as_v4(address) {
        Some([first, ..]) => first != 0 && first != 127 && first < 224,
        None => address[0] != 0xff && address[..15] != [0; 15],
    }
}
