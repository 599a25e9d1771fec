//! How much of the tables must be freed, by which tenants, and when the next pass runs.
//!
//! Each tenant in full failover owns an equal part of the tables, its quota. The programs refuse a
//! tenant beyond its quota once the table is full to [`OVER_QUOTA`] sixteenths; the rest is for
//! tenants within theirs. From [`HIGH_WATERMARK`] sixteenths on, entries that are not needed are
//! evicted until [`LOW_WATERMARK`] are left, before anything is refused.
//!
//! ```text
//!   0 ............. LOW_WATERMARK .... HIGH_WATERMARK ........ OVER_QUOTA ............ full
//!   nothing is evicted    ◀─ spare entries evicted    none over quota; those are evicted
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use appliance_common::nat::{TenantQuota, TenantUsage, Words};

/// Sixteenths of a table from which entries are evicted.
const HIGH_WATERMARK: u64 = 12;
/// Sixteenths of a table that are left afterwards.
const LOW_WATERMARK: u64 = 11;
/// Sixteenths of a table up to which tenants may exceed their quotas.
const OVER_QUOTA: u64 = 14;
/// Sixteenths of its quota that a tenant keeps in any case.
const GUARANTEED_SHARE: u64 = 12;

/// Entries of all tenants up to which a tenant may exceed its quota.
#[must_use]
pub const fn over_quota_limit(capacity: u32) -> u32 {
    (capacity as u64 * OVER_QUOTA / 16) as u32
}

/// Entries that one tenant must give up in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Connections that are over, closing or short-lived.
    pub connections: u64,
    /// Mappings, and thereby connections that are not established.
    pub mappings: u64,
    /// Established connections over quota to evict for another tenant.
    pub over_quota: u64,
    /// Mappings over quota to evict for another tenant: those of established connections.
    pub mappings_over_quota: u64,
}

/// The entries that tenants must give up, by zone. A tenant without an entry gives up nothing.
pub type Demands = BTreeMap<u16, Demand>;

/// Quota and usage of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLoad {
    /// Its quota; zero: the whole table.
    pub quota: TenantQuota,
    pub usage: TenantUsage,
}

/// The entries that `tenants` must give up, of tables with room for `capacity`.
#[must_use]
pub fn demands(capacity: TenantQuota, tenants: &BTreeMap<u16, TenantLoad>) -> Demands {
    let mut demands = Demands::new();
    let own = |quota: u32, capacity: u32| u64::from(if quota == 0 { capacity } else { quota });
    let connections: Vec<_> = tenants
        .iter()
        .map(|(zone, t)| {
            let quota = own(t.quota.connections, capacity.connections);
            (*zone, quota, t.usage.connections)
        })
        .collect();
    let mappings: Vec<_> = tenants
        .iter()
        .map(|(zone, t)| {
            let quota = own(t.quota.mappings, capacity.mappings);
            (*zone, quota, t.usage.mappings)
        })
        .collect();
    for (zone, part) in spare(capacity.connections, &connections) {
        demands.entry(zone).or_default().connections = part;
    }
    for (zone, part) in spare(capacity.mappings, &mappings) {
        demands.entry(zone).or_default().mappings = part;
    }
    for (zone, part) in over_quota(capacity.connections, &connections) {
        demands.entry(zone).or_default().over_quota = part;
    }
    for (zone, part) in over_quota(capacity.mappings, &mappings) {
        demands.entry(zone).or_default().mappings_over_quota = part;
    }
    demands
}

/// A tenant's zone, quota and usage.
type Load = (u16, u64, u64);

fn total(loads: &[Load]) -> u64 {
    loads.iter().map(|(_, _, usage)| usage).sum()
}

fn spare(capacity: u32, loads: &[Load]) -> Vec<(u16, u64)> {
    let (capacity, total) = (u64::from(capacity), total(loads));
    if total <= capacity * HIGH_WATERMARK / 16 {
        return Vec::new();
    }
    split(total - capacity * LOW_WATERMARK / 16, loads, |quota| {
        quota * GUARANTEED_SHARE / 16
    })
}

/// Entries over quota to evict for others: the table is full beyond the limit, so that
/// tenants within their quotas have taken the rest.
fn over_quota(capacity: u32, loads: &[Load]) -> Vec<(u16, u64)> {
    let (limit, total) = (u64::from(over_quota_limit(capacity)), total(loads));
    if total <= limit {
        return Vec::new();
    }
    // A little more, so that not each new connection of such a tenant takes a pass.
    let need = total - limit + u64::from(capacity / 64);
    split(need, loads, |quota| quota)
}

/// Splits `need` over the tenants by what each has beyond `kept` of its quota.
fn split(need: u64, loads: &[Load], kept: impl Fn(u64) -> u64) -> Vec<(u16, u64)> {
    let excess = |quota, usage: u64| usage.saturating_sub(kept(quota));
    let all: u64 = loads
        .iter()
        .map(|(_, quota, usage)| excess(*quota, *usage))
        .sum();
    loads
        .iter()
        .filter_map(|(zone, quota, usage)| {
            let excess = excess(*quota, *usage);
            let part = (need.min(all) * excess).checked_div(all)?;
            (excess > 0).then_some((*zone, part.max(1)))
        })
        .collect()
}

/// Mappings of a tenant (its zone) with an external address and protocol.
pub type PortsInUse = HashMap<(u16, Words, u8), u64>;

/// Mappings that the tenants must give up because an external address runs out of ports, by zone,
/// and the addresses without enough free ports for new hosts. `ports` are the ports that each
/// address has.
#[must_use]
pub fn port_demands(
    ports: &HashMap<Words, u64>,
    in_use: &PortsInUse,
) -> (BTreeMap<u16, u64>, HashSet<Words>) {
    let mut by_address: BTreeMap<(Words, u8), Vec<Load>> = BTreeMap::new();
    for ((zone, address, protocol), count) in in_use {
        let loads = by_address.entry((*address, *protocol)).or_default();
        loads.push((*zone, 0, *count));
    }
    let (mut demands, mut full) = (BTreeMap::new(), HashSet::new());
    for ((address, _), loads) in &by_address {
        let Some(ports) = ports.get(address) else {
            continue;
        };
        let total = total(loads);
        if total > ports * OVER_QUOTA / 16 {
            full.insert(*address);
        }
        if total > ports * HIGH_WATERMARK / 16 {
            for (zone, part) in split(total - ports * LOW_WATERMARK / 16, loads, |_| 0) {
                *demands.entry(zone).or_default() += part;
            }
        }
    }
    (demands, full)
}

/// Time between passes when nothing presses.
const INTERVAL: Duration = Duration::from_secs(10);
/// Least time between passes.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
/// Time between passes while entries should be evicted and none can be.
const FUTILE_INTERVAL: Duration = Duration::from_secs(2);

/// Decides when the next pass runs. Its pauses follow the CPU time of the passes: at most a tenth
/// of a CPU is used, and at most half of one while the tables fill.
#[derive(Debug)]
pub struct Schedule {
    /// When a pass runs in any case.
    regular: Instant,
    /// When a pass runs if entries must be evicted.
    pressed: Instant,
    /// When a pass runs if a tenant within its quota needs entries.
    over_quota: Instant,
}

/// Why a pass is wanted before the regular one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Nothing must be evicted.
    None,
    /// Entries that are not needed must be evicted, if there are any.
    Spare,
    /// A tenant within its quota needs entries, and those over quota can be evicted.
    OverQuota,
}

impl Pressure {
    /// The greatest pressure of the demands.
    #[must_use]
    pub fn of(demands: &Demands) -> Self {
        let each = demands.values().map(|demand| match demand {
            Demand {
                over_quota: 1.., ..
            }
            | Demand {
                mappings_over_quota: 1..,
                ..
            } => Self::OverQuota,
            _ => Self::Spare,
        });
        each.max().unwrap_or(Self::None)
    }
}

/// Result of a pass, for the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had to be evicted.
    Calm,
    /// Entries had to be evicted, and some were.
    Freed,
    /// Entries had to be evicted, and none could be.
    Futile,
    /// There is more to remove than one pass removes.
    More,
}

impl Schedule {
    /// The first pass is due one interval after `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            regular: now + INTERVAL,
            pressed: now,
            over_quota: now,
        }
    }

    /// Whether a pass is due.
    #[must_use]
    pub fn is_due(&self, now: Instant, pressure: Pressure) -> bool {
        let due = match pressure {
            Pressure::None => self.regular,
            Pressure::Spare => self.regular.min(self.pressed),
            // A pass that freed no spare entry says nothing about entries over quota.
            Pressure::OverQuota => self.regular.min(self.over_quota),
        };
        now >= due
    }

    /// A pass ended at `now` and took `cpu` time.
    pub fn passed(&mut self, now: Instant, cpu: Duration, outcome: Outcome) {
        let calm = INTERVAL.max(9 * cpu);
        let soon = MIN_INTERVAL.max(cpu);
        self.regular = now + if outcome == Outcome::More { soon } else { calm };
        self.over_quota = now + soon;
        self.pressed = now
            + if outcome == Outcome::Futile {
                FUTILE_INTERVAL.max(9 * cpu)
            } else {
                soon
            };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: TenantQuota = TenantQuota {
        connections: 16_000,
        mappings: 16_000,
    };

    fn loads(of: &[(u32, u64)]) -> BTreeMap<u16, TenantLoad> {
        let load = |(quota, connections)| TenantLoad {
            quota: TenantQuota {
                connections: quota,
                mappings: quota,
            },
            usage: TenantUsage {
                connections,
                mappings: 0,
            },
        };
        (1..).zip(of.iter().copied().map(load)).collect()
    }

    #[test]
    fn nothing_is_evicted_below_the_mark() {
        assert_eq!(
            demands(CAPACITY, &loads(&[(8000, 6000), (8000, 6000)])),
            Demands::new()
        );
    }

    #[test]
    fn only_tenants_near_or_beyond_their_quota_lose_entries() {
        let found = demands(CAPACITY, &loads(&[(8000, 12_500), (8000, 500)]));
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(found[&1].connections, 13_000 - 11_000);
        assert_eq!(found[&1].over_quota, 0, "the second tenant has room");
        // A single tenant has the whole table.
        let found = demands(CAPACITY, &loads(&[(16_000, 13_000)]));
        assert_eq!(found[&1].over_quota, 0);
        assert_eq!(found[&1].connections, 1000, "it keeps three quarters");
    }

    #[test]
    fn entries_over_quota_are_evicted_when_a_tenant_within_its_quota_takes_the_rest() {
        let found = demands(CAPACITY, &loads(&[(8000, 12_000), (8000, 2500)]));
        assert_eq!(found[&1].over_quota, 500 + 250);
        assert!(!found.contains_key(&2), "{found:?}");
        // Both within their quotas: nothing is over quota.
        let found = demands(CAPACITY, &loads(&[(8000, 8000), (8000, 7900)]));
        assert!(found.values().all(|d| d.over_quota == 0), "{found:?}");
    }

    proptest! {
        #[test]
        fn a_tenant_never_gives_up_what_is_its_own(
            usages in proptest::collection::vec(0u64..20_000, 1..6),
        ) {
            let quota = CAPACITY.connections / usages.len() as u32;
            let of: Vec<_> = usages.iter().map(|usage| (quota, *usage)).collect();
            let all = loads(&of);
            let total: u64 = usages.iter().sum();
            let found = demands(CAPACITY, &all);
            for (zone, demand) in &found {
                let usage = all[zone].usage.connections;
                let quota = u64::from(quota);
                let kept = usage - demand.connections.min(usage);
                prop_assert!(kept >= quota * GUARANTEED_SHARE / 16);
                prop_assert!(demand.over_quota == 0 || usage - demand.over_quota >= quota);
            }
            // If it can be had, what is asked for brings the table below the mark.
            let asked: u64 = found.values().map(|d| d.connections).sum();
            if total > 12_000 {
                prop_assert!(asked > 0);
                let own = u64::from(quota) * 3 / 4;
                let all: u64 = usages.iter().map(|u| u.saturating_sub(own)).sum();
                prop_assert!(asked + found.len() as u64 >= (total - 11_000).min(all));
            } else {
                prop_assert!(found.is_empty());
            }
        }
    }

    #[test]
    fn ports_of_an_address_are_freed_before_they_run_out() {
        let (own, shared) = ([0, 0, 0, 1], [0, 0, 0, 2]);
        let ports = HashMap::from([(own, 1600), (shared, 1600)]);
        let in_use = PortsInUse::from([
            ((1, own, 6), 1200),
            ((1, own, 17), 1200),
            ((2, shared, 6), 900),
            ((3, shared, 6), 600),
            // Of an address that the tenant had before.
            ((3, [0, 0, 0, 3], 6), 9000),
        ]);
        let (demands, full) = port_demands(&ports, &in_use);
        assert_eq!(demands, BTreeMap::from([(2, 240), (3, 160)]));
        assert_eq!(full, HashSet::from([shared]));
    }

    #[test]
    fn pauses_follow_the_time_that_passes_take() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let after = |ms| start + Duration::from_millis(ms);
        assert!(
            !schedule.is_due(after(9999), Pressure::None)
                && schedule.is_due(after(10_000), Pressure::None)
        );
        assert!(schedule.is_due(start, Pressure::Spare));
        let cpu = Duration::from_millis(1500);
        schedule.passed(start, cpu, Outcome::Freed);
        assert!(
            !schedule.is_due(after(1499), Pressure::Spare)
                && schedule.is_due(after(1500), Pressure::Spare)
        );
        assert!(
            !schedule.is_due(after(13_499), Pressure::None)
                && schedule.is_due(after(13_500), Pressure::None)
        );
        schedule.passed(start, cpu, Outcome::Futile);
        assert!(
            !schedule.is_due(after(13_499), Pressure::Spare)
                && schedule.is_due(after(13_500), Pressure::Spare)
        );
        // Nothing was spare, but a tenant within its quota does not wait for its entries.
        assert!(!schedule.is_due(after(1499), Pressure::OverQuota));
        assert!(schedule.is_due(after(1500), Pressure::OverQuota));
        schedule.passed(start, Duration::ZERO, Outcome::More);
        assert!(
            !schedule.is_due(after(249), Pressure::None)
                && schedule.is_due(after(250), Pressure::None)
        );
    }
}
