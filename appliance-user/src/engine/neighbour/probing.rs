//! Probes and their budgets.

use std::time::{Duration, Instant};

use appliance_common::maps::HostKey;

use super::entry::{Reserved, question};
use super::turns::Place;
use super::{Action, NeighbourTable, State};

impl NeighbourTable {
    /// Whether a probe may be sent now. If not, the entry waits: first for a slot in the budget of
    /// the network, to which its deadline is set, and then for its tenant's turn in the total
    /// budget. A host that is not kept and would wait longer than [`Settings::probe_backlog`] for
    /// either fails instead.
    pub(super) fn admit_probe(&mut self, now: Instant, key: HostKey) -> bool {
        let (Some(entry), Some(net)) =
            (self.entries.get_mut(&key), self.networks.get_mut(&key.vni))
        else {
            return false;
        };
        let (keep, backlog) = (entry.keep, self.settings.probe_backlog);
        match entry.reserved {
            Reserved::None => {
                let budget = if keep {
                    &mut net.kept_budget
                } else {
                    &mut net.other_budget
                };
                if !keep && budget.next_slot(now).saturating_duration_since(now) > backlog {
                    self.throttle(now, key);
                    return false;
                }
                entry.reserved = Reserved::Network;
                let at = budget.reserve(now);
                if at > now {
                    self.set_deadline(key, Some(at));
                    return false;
                }
            }
            Reserved::Network | Reserved::Queued(_) => {}
            Reserved::Turn => {
                entry.reserved = Reserved::None;
                return true;
            }
        }
        let turns = if keep {
            &mut self.kept_turns
        } else {
            &mut self.other_turns
        };
        if turns.take(now) {
            entry.reserved = Reserved::None;
            return true;
        }
        if !keep && turns.wait_of(net.tenant) > backlog {
            self.throttle(now, key);
            return false;
        }
        self.places += 1;
        entry.reserved = Reserved::Queued(self.places);
        turns.wait(Place {
            tenant: net.tenant,
            key,
            number: self.places,
            since: now,
        });
        self.set_deadline(key, None);
        false
    }

    /// Gives the next entry that waits for the total budget its turn. `false` if none waits or no
    /// slot is free.
    pub(super) fn next_turn(&mut self, now: Instant) -> bool {
        for kept in [true, false] {
            let turns = if kept {
                &mut self.kept_turns
            } else {
                &mut self.other_turns
            };
            let Some(place) = turns.next(now) else {
                continue;
            };
            let entry = self.entries.get_mut(&place.key);
            let Some(entry) = entry.filter(|e| e.reserved == Reserved::Queued(place.number)) else {
                // It does not wait any more.
                return true;
            };
            let waited = now.saturating_duration_since(place.since);
            if !entry.keep && waited > self.settings.probe_backlog {
                // Other tenants came meanwhile.
                entry.reserved = Reserved::Network;
                self.throttle(now, place.key);
                return true;
            }
            turns.spend(now, place.tenant);
            entry.reserved = Reserved::Turn;
            self.deadline_passed(now, place.key);
            return true;
        }
        false
    }

    /// A probe for a host that is not kept would wait too long.
    fn throttle(&mut self, now: Instant, key: HostKey) {
        self.counters.throttled += 1;
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.state == State::Incomplete)
        {
            self.fail(now, key);
        } else {
            self.set_deadline(key, Some(now + self.settings.probe_backlog));
        }
    }

    /// Sends a probe and sets the deadline `wait` later.
    pub(super) fn probe(&mut self, now: Instant, key: HostKey, unicast: bool, wait: Duration) {
        let (Some(entry), Some(net)) = (self.entries.get_mut(&key), self.networks.get(&key.vni))
        else {
            return;
        };
        if entry.probes == 0 {
            entry.probing_since = now;
        }
        entry.probes = entry.probes.saturating_add(1);
        let destination = entry.mac.filter(|_| unicast);
        match net.senders.for_target(&key.address) {
            Some(sender) => {
                self.counters.probes_sent += 1;
                self.actions.push_back(Action::Send {
                    ifindex: net.port.ifindex,
                    frame: question(&net.port, &sender, &key.address, destination),
                });
            }
            None => self.counters.without_sender += 1,
        }
        self.set_deadline(key, Some(now + wait));
    }
}
