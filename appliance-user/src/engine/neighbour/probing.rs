//! Probes and their budgets.

use std::time::{Duration, Instant};

use appliance_common::maps::HostKey;

use super::entry::{Reserved, question};
use super::{Action, NeighbourTable, State};

impl NeighbourTable {
    /// Whether a probe may be sent now. If not, a slot is reserved, first in the budget of the
    /// network and then in the total budget, and the entry's deadline is set to it. A host that is
    /// not kept and would wait longer than [`Settings::probe_backlog`] fails instead.
    pub(super) fn admit_probe(&mut self, now: Instant, key: HostKey) -> bool {
        let Some(entry) = self.entries.get_mut(&key) else {
            return false;
        };
        let Some(net) = self.networks.get_mut(&key.vni) else {
            return false;
        };
        while entry.reserved != Reserved::Both {
            let budget = match (entry.reserved, entry.keep) {
                (Reserved::None, true) => &mut net.kept_budget,
                (Reserved::None, false) => &mut net.other_budget,
                (_, true) => &mut self.kept_budget,
                (_, false) => &mut self.other_budget,
            };
            let late =
                budget.next_slot(now).saturating_duration_since(now) > self.settings.probe_backlog;
            if late && !entry.keep {
                self.counters.throttled += 1;
                if entry.state == State::Incomplete {
                    self.fail(now, key);
                } else {
                    self.set_deadline(key, Some(now + self.settings.probe_backlog));
                }
                return false;
            }
            let at = budget.reserve(now);
            entry.reserved = if entry.reserved == Reserved::None {
                Reserved::Network
            } else {
                Reserved::Both
            };
            if at > now {
                self.set_deadline(key, Some(at));
                return false;
            }
        }
        entry.reserved = Reserved::None;
        true
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
