//! Turns of tenants in a total budget of probes.
//!
//! A probe for which no slot is free waits in its tenant's queue. Each free slot goes to the next
//! tenant that waits, in turn, so that a tenant with many networks and absent hosts delays those of
//! others by one round at most.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use appliance_common::maps::HostKey;

use super::super::pacing::RateLimiter;

/// A probe that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: u32,
    pub(super) key: HostKey,
    /// Distinguishes it from other places of the host, which it has left.
    pub(super) number: u64,
    pub(super) since: Instant,
}

/// A budget in which tenants take turns.
#[derive(Debug)]
pub(super) struct Turns {
    budget: RateLimiter,
    /// By tenant; none is empty.
    waiting: BTreeMap<u32, VecDeque<Place>>,
    /// The tenant that had the last turn.
    last: Option<u32>,
}

impl Turns {
    pub(super) const fn new(budget: RateLimiter) -> Self {
        Self {
            budget,
            waiting: BTreeMap::new(),
            last: None,
        }
    }

    /// Takes a slot without waiting: `false` if none is free, or if others wait.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let free = self.waiting.is_empty() && self.budget.next_slot(now) <= now;
        if free {
            self.budget.reserve(now);
        }
        free
    }

    /// How long a probe that comes now would wait, if every tenant that waits takes all its turns.
    pub(super) fn wait_of(&self, tenant: u32) -> Duration {
        let before = self.waiting.get(&tenant).map_or(0, VecDeque::len);
        let slots = u32::try_from(before.saturating_mul(self.waiting.len()));
        self.budget
            .interval()
            .saturating_mul(slots.unwrap_or(u32::MAX))
    }

    /// Has a probe wait for its tenant's turn.
    pub(super) fn wait(&mut self, place: Place) {
        self.waiting
            .entry(place.tenant)
            .or_default()
            .push_back(place);
    }

    /// The probe whose turn it is, if a slot is free. It takes the slot only with
    /// [`spend`](Self::spend).
    pub(super) fn next(&mut self, now: Instant) -> Option<Place> {
        if self.budget.next_slot(now) > now {
            return None;
        }
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut later = self.waiting.range((after, Bound::Unbounded));
        let tenant = later.next().or_else(|| self.waiting.iter().next());
        let tenant = *tenant?.0;
        let queue = self.waiting.get_mut(&tenant)?;
        let place = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        }
        place
    }

    /// Takes the free slot for a probe of a tenant, whose turn is over.
    pub(super) fn spend(&mut self, now: Instant, tenant: u32) {
        self.budget.reserve(now);
        self.last = Some(tenant);
    }

    /// When the next turn is; `None` if no probe waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        self.budget.earliest()
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::addr::v4_mapped;
    use proptest::prelude::*;

    use super::*;

    const RATE: u32 = 1000;

    fn place(tenant: u32, number: u64, since: Instant) -> Place {
        let address = v4_mapped([10, 0, 0, 1]);
        let key = HostKey {
            vni: tenant,
            address,
        };
        Place {
            tenant,
            key,
            number,
            since,
        }
    }

    /// Serves everything due up to `end`; returns the tenants with their times.
    fn serve(turns: &mut Turns, end: Instant) -> Vec<(Instant, u32)> {
        let mut served = Vec::new();
        while let Some(at) = turns.deadline().filter(|at| *at <= end) {
            let place = turns.next(at).expect("a turn at the deadline");
            turns.spend(at, place.tenant);
            served.push((at, place.tenant));
        }
        served
    }

    #[test]
    fn a_slot_that_is_free_is_taken_at_once_and_a_waiting_probe_comes_first() {
        let now = Instant::now();
        let mut turns = Turns::new(RateLimiter::new(RATE, 2));
        assert!(turns.take(now) && turns.take(now) && !turns.take(now));
        assert_eq!(turns.deadline(), None);
        turns.wait(place(1, 1, now));
        let later = now + Duration::from_secs(1);
        assert!(!turns.take(later), "another probe waits");
        // A place that was left costs no slot.
        assert_eq!(turns.next(later), Some(place(1, 1, now)));
        assert!(turns.take(later) && turns.take(later));
    }

    proptest! {
        /// Whatever the others' queues hold, the first probe of a tenant waits one round at most,
        /// slots are not left free, and of long queues each tenant is served alike.
        #[test]
        fn no_tenant_waits_for_more_than_one_round(
            queues in prop::collection::vec(1..200usize, 1..12),
            at in 0..300u64,
        ) {
            let start = Instant::now();
            let mut turns = Turns::new(RateLimiter::new(RATE, 1));
            prop_assert!(turns.take(start));
            let mut number = 0;
            for (tenant, length) in (1..).zip(&queues) {
                for _ in 0..*length {
                    number += 1;
                    turns.wait(place(tenant, number, start));
                }
            }
            let came = start + Duration::from_millis(at);
            let before = serve(&mut turns, came);
            let total: usize = queues.iter().sum();
            prop_assert_eq!(before.len(), total.min(at as usize));
            let counts = |served: &[(Instant, u32)]| -> Vec<usize> {
                let of = |tenant| served.iter().filter(|(_, served)| *served == tenant).count();
                (1..=queues.len() as u32).map(of).collect()
            };
            let shares = counts(&before);
            let unfinished = (0..queues.len()).filter(|n| shares[*n] < queues[*n]);
            let unfinished: Vec<usize> = unfinished.map(|n| shares[n]).collect();
            let (least, most) = (unfinished.iter().min(), unfinished.iter().max());
            prop_assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1, "{shares:?}");
            // The share of a tenant that is done is no larger than that of one that is not.
            if let Some(least) = least {
                prop_assert!(shares.iter().all(|share| *share <= least + 1), "{shares:?}");
            }
            if !turns.take(came) {
                turns.wait(place(0, 0, came));
                let round = Duration::from_secs(1) / RATE * (queues.len() as u32 + 1);
                let served = serve(&mut turns, came + round);
                prop_assert!(served.iter().any(|(_, tenant)| *tenant == 0), "{served:?}");
            }
        }
    }
}
