//! The thread that removes NAT entries from the maps: expired ones, and evicted ones.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::Path,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use appliance_common::{
    maps::Tenant,
    nat::{
        ALL_TENANTS, Direction, Flow, FlowKey, Mapping, MappingKey, Nat, NatAddress, OUTSIDE,
        TenantQuota, TenantUsage, Words, flow_flags,
    },
};
use aya::maps::MapError;

use super::{
    Passes, PinnedMap, Sweep,
    clock::{clock, ticks_now},
    log::RemovedMappings,
    pressure::{Demand, Demands, Outcome, Pressure, Schedule, TenantLoad, demands, port_demands},
    removal_counters::{Reason, Removals},
    sweep::{Candidate, Epochs, Rank, Victims, other_half},
};

/// Time between two looks at how full the tables are.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Time within which a mapping is removed whose connection was evicted: it must not have begun a
/// connection lately, and the next pass finds it.
const EVICTED_MAPPING_TIMEOUT: Duration = Duration::from_secs(8);
/// Entries that are read again one by one, and then deleted together. Between the two, a packet
/// could still use one.
const CHUNK: usize = 256;

/// Handle of the thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct ConnectionSweeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    removals: Removals,
    passes: Passes,
}

impl ConnectionSweeper {
    /// Starts the thread on the maps pinned below `root`. Removed mappings go to `log` while the
    /// settings of translation say so.
    ///
    /// # Errors
    /// When a map cannot be opened, or the thread cannot be created.
    pub fn spawn(root: &Path, log: Option<RemovedMappings>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (removals, passes) = (Removals::default(), Passes::default());
        let mut sweeper = Sweeper {
            tables: Tables::open(root).map_err(io::Error::other)?,
            removals: removals.clone(),
            passes: passes.clone(),
            log,
            idle: false,
            ports: BTreeMap::new(),
            leaving: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || sweeper.run(&stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            removals,
            passes,
        })
    }

    /// Counts of removed entries since the start.
    #[must_use]
    pub const fn removals(&self) -> &Removals {
        &self.removals
    }

    /// Number and duration of the passes since the start.
    #[must_use]
    pub const fn passes(&self) -> &Passes {
        &self.passes
    }
}

impl Drop for ConnectionSweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("connection sweeper thread panicked");
        }
    }
}

/// The maps of translation.
struct Tables {
    nat: PinnedMap<u32, Nat>,
    tenants: PinnedMap<u32, Tenant>,
    quotas: PinnedMap<u32, TenantQuota>,
    usages: PinnedMap<u32, TenantUsage>,
    flows: PinnedMap<FlowKey, Flow>,
    /// Connections that are being opened: within their tenants' budgets, and beyond them.
    opening: [PinnedMap<FlowKey, Flow>; 2],
    mappings: PinnedMap<MappingKey, Mapping>,
    addresses: PinnedMap<u32, NatAddress>,
    full: PinnedMap<u32, u32>,
    capacity: TenantQuota,
}

impl Tables {
    fn open(root: &Path) -> Result<Self, MapError> {
        let flows = PinnedMap::open(root, "FLOWS")?;
        let mappings = PinnedMap::open(root, "MAPPINGS")?;
        // A connection has an entry for each direction, and a mapping one for each half.
        let capacity = TenantQuota {
            connections: flows.capacity()? / 2,
            mappings: mappings.capacity()? / 2,
        };
        Ok(Self {
            nat: PinnedMap::open(root, "NAT")?,
            tenants: PinnedMap::open(root, "TENANTS")?,
            quotas: PinnedMap::open(root, "QUOTAS")?,
            usages: PinnedMap::open(root, "USAGE")?,
            opening: [
                PinnedMap::open(root, "OPENING")?,
                PinnedMap::open(root, "OPENING_EXCESS")?,
            ],
            addresses: PinnedMap::open(root, "NAT_ADDRESSES")?,
            full: PinnedMap::open(root, "NAT_FULL")?,
            flows,
            mappings,
            capacity,
        })
    }

    fn nat(&self) -> io::Result<Nat> {
        let nat = self.nat.get(&0)?;
        nat.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "map NAT has no entry"))
    }

    fn epochs(&self) -> io::Result<Epochs> {
        let mut tenants = Vec::new();
        self.tenants
            .for_each(|slot, tenant| tenants.push((*slot, *tenant)))?;
        Ok(Epochs::new(tenants))
    }

    /// The ports that each external address has.
    fn ports(&self) -> io::Result<HashMap<Words, u64>> {
        let mut ports = HashMap::new();
        self.addresses.for_each(|_, address| {
            if address.last != 0 {
                let count = u64::from(address.last.saturating_sub(address.first)) + 1;
                ports.insert(address.address, count);
            }
        })?;
        Ok(ports)
    }

    /// Marks the slots of addresses without enough free ports, and no others.
    fn mark_full(&self, full: &HashSet<Words>) -> io::Result<()> {
        let mut marks = Vec::new();
        self.addresses.for_each(|slot, address| {
            if address.last != 0 {
                marks.push((*slot, u32::from(full.contains(&address.address))));
            }
        })?;
        for (slot, mark) in marks {
            self.full.set(&slot, &mark)?;
        }
        Ok(())
    }

    /// Quota and usage of the tenants in full failover, by zone.
    fn loads(&self, epochs: &Epochs) -> io::Result<BTreeMap<u16, TenantLoad>> {
        let zones = epochs.zones().map(|zone| (zone, TenantLoad::default()));
        let mut loads: BTreeMap<u16, TenantLoad> = zones.collect();
        self.quotas.for_each(|slot, quota| {
            if let Some(load) = loads.get_mut(&(*slot as u16 + 1)) {
                load.quota = *quota;
            }
        })?;
        self.usages.for_each(|slot, usage| {
            if let Some(load) = loads.get_mut(&(*slot as u16 + 1)) {
                load.usage = *usage;
            }
        })?;
        Ok(loads)
    }
}

/// Counts of entries that a pass has removed.
#[derive(Debug, Default)]
struct Removed {
    connections: usize,
    evicted: usize,
    mappings: usize,
    /// Connections and mappings, by zone.
    by_zone: BTreeMap<u16, TenantUsage>,
    /// Evicted connections over quota that held a mapping, by zone.
    leaving: Vec<(u16, u64)>,
}

struct Sweeper {
    tables: Tables,
    removals: Removals,
    passes: Passes,
    log: Option<RemovedMappings>,
    /// The last pass found nothing, and nothing is translated.
    idle: bool,
    /// Mappings that tenants must give up for their ports, by zone, as the last pass found.
    ports: BTreeMap<u16, u64>,
    /// Zone and number of mappings whose connections were evicted, and when: they are unused from
    /// then on, and removed by a later pass.
    leaving: Vec<(Instant, u16, u64)>,
}

impl Sweeper {
    fn run(&mut self, stopped: &mpsc::Receiver<()>) {
        let mut schedule = Schedule::new(Instant::now());
        loop {
            match stopped.recv_timeout(CHECK_INTERVAL) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => return,
            }
            let began = clock(libc::CLOCK_THREAD_CPUTIME_ID);
            let outcome = match self.run_if_due(&schedule) {
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot remove expired connections; retrying in 10 s");
                    Outcome::Futile
                }
            };
            let spent = clock(libc::CLOCK_THREAD_CPUTIME_ID).saturating_sub(began);
            schedule.passed(Instant::now(), spent, outcome);
        }
    }

    /// Runs a pass if one is due.
    fn run_if_due(&mut self, schedule: &Schedule) -> io::Result<Option<Outcome>> {
        let nat = self.tables.nat()?;
        let active = nat.uplink != 0;
        let due = schedule.is_due(Instant::now(), Pressure::None);
        // The entries of the last failover need one more pass.
        if !(active || due && !self.idle) {
            return Ok(None);
        }
        let epochs = self.tables.epochs()?;
        let loads = self.tables.loads(&epochs)?;
        let mut demands = demands(self.tables.capacity, &loads);
        for (zone, mappings) in &self.ports {
            let demand = demands.entry(*zone).or_default();
            demand.mappings = demand.mappings.max(*mappings);
        }
        self.leaving
            .retain(|(since, _, _)| since.elapsed() < EVICTED_MAPPING_TIMEOUT);
        for (_, zone, count) in &self.leaving {
            if let Some(demand) = demands.get_mut(zone) {
                demand.mappings_over_quota = demand.mappings_over_quota.saturating_sub(*count);
            }
        }
        demands.retain(|_, demand| *demand != Demand::default());
        if !schedule.is_due(Instant::now(), Pressure::of(&demands)) {
            return Ok(None);
        }
        let began = Instant::now();
        let (removed, more) = self.pass(&nat, &epochs, &loads, &demands)?;
        self.passes.add(began.elapsed());
        self.idle = !active && removed.connections == 0 && removed.mappings == 0;
        tracing::debug!(
            connections = removed.connections,
            evicted = removed.evicted,
            mappings = removed.mappings,
            "removed connections"
        );
        Ok(Some(match (more, demands.is_empty()) {
            (true, _) => Outcome::More,
            (false, true) => Outcome::Calm,
            (false, false) if removed.connections + removed.mappings > 0 => Outcome::Freed,
            (false, false) => Outcome::Futile,
        }))
    }

    /// Removes what expired and what must be evicted. Returns it, and whether there is more.
    fn pass(
        &mut self,
        nat: &Nat,
        epochs: &Epochs,
        loads: &BTreeMap<u16, TenantLoad>,
        demands: &Demands,
    ) -> io::Result<(Removed, bool)> {
        let t = &self.tables;
        let mut sweep = Sweep::new(ticks_now(), nat.timeouts, epochs, demands);
        let mut removed = Removed::default();
        t.flows.for_each(|key, flow| sweep.flow(key, flow))?;
        let stale = t.flows.remove_all(&sweep.take_stale())?;
        // A connection has two entries.
        removed.connections += stale.div_ceil(2);
        self.removals.add(Reason::Stale, stale.div_ceil(2));
        let expired = sweep.take_expired();
        let expired =
            self.remove_connections(&t.flows, &expired, &mut removed, |_, flow, other| {
                sweep.is_over(flow.0, flow.1, other)
            })?;
        self.removals.add(Reason::Expired, expired);
        for opening in &t.opening {
            opening.for_each(|key, flow| sweep.opening(key, flow))?;
        }
        t.mappings
            .for_each(|key, mapping| sweep.mapping(key, mapping))?;
        for (zone, victims) in sweep.take_victims() {
            self.remove_victims(&sweep, zone, &victims, &mut removed)?;
        }
        let log = self.log.as_ref().filter(|_| nat.log != 0);
        let stale = sweep.take_stale_mappings();
        let keys: Vec<_> = stale.iter().map(|(key, _)| *key).collect();
        removed.mappings += t.mappings.remove_all(&keys)? / 2;
        // Each mapping has a half outside.
        let outside = stale.iter().filter(|(key, _)| key.zone == OUTSIDE);
        if let Some(log) = log {
            outside.for_each(|(key, mapping)| log.add(other_half(key, mapping), *key));
        }
        let unused = sweep.take_unused();
        self.remove_mappings(&sweep, &unused, log, &mut removed)?;
        self.recount(&sweep, loads, &removed)?;
        let (ports, full) = port_demands(&t.ports()?, sweep.ports());
        t.mark_full(&full)?;
        let more = sweep.has_more();
        self.ports = ports;
        let now = Instant::now();
        let leaving = removed.leaving.iter();
        self.leaving
            .extend(leaving.map(|(zone, count)| (now, *zone, *count)));
        Ok((removed, more))
    }

    /// Removes connections for which `over` holds, with both directions. It gets each key's index,
    /// the protocol and entry, and the entry of the other direction. Returns how many there were.
    fn remove_connections(
        &self,
        table: &PinnedMap<FlowKey, Flow>,
        keys: &[FlowKey],
        removed: &mut Removed,
        mut over: impl FnMut(usize, (u8, &Flow), Option<&Flow>) -> bool,
    ) -> io::Result<usize> {
        let mut connections = 0;
        let mut at = 0;
        for chunk in keys.chunks(CHUNK) {
            let mut doomed = Vec::with_capacity(2 * chunk.len());
            let mut both = HashSet::with_capacity(chunk.len());
            for key in chunk {
                let index = at;
                at += 1;
                // Read it again: a packet may have arrived since.
                if both.contains(key) {
                    continue;
                }
                let Some(flow) = table.get(key)? else {
                    continue;
                };
                let mut other_key = FlowKey::default();
                flow.other_key(key.protocol, &mut other_key);
                let other = table.get(&other_key)?;
                if !over(index, (key.protocol, &flow), other.as_ref()) {
                    continue;
                }
                let (first_key, first) = match flow.direction() {
                    Direction::Original => (key, &flow),
                    Direction::Reply => (&other_key, other.as_ref().unwrap_or(&flow)),
                };
                let zone = super::sweep::owner(first_key, first);
                removed.by_zone.entry(zone).or_default().connections += 1;
                connections += 1;
                doomed.push(*key);
                if other.is_some() {
                    doomed.push(other_key);
                    both.insert(other_key);
                }
            }
            table.remove_all(&doomed)?;
        }
        removed.connections += connections;
        Ok(connections)
    }

    fn remove_victims(
        &self,
        sweep: &Sweep<'_>,
        zone: u16,
        victims: &Victims,
        removed: &mut Removed,
    ) -> io::Result<()> {
        let keys = |all: &[Candidate]| all.iter().map(|victim| victim.key).collect::<Vec<_>>();
        let mut closed = 0;
        let spare = self.remove_connections(
            &self.tables.flows,
            &keys(&victims.spare),
            removed,
            |at, (_, flow), other| {
                let candidate = &victims.spare[at];
                let evict = sweep.is_evictable(candidate, flow, other);
                closed += usize::from(evict && candidate.rank == Rank::Closed);
                evict
            },
        )?;
        self.removals.add(Reason::Closed, closed);
        self.removals.add(Reason::Transitory, spare - closed);
        let mut unanswered = Removed::default();
        for opening in &self.tables.opening {
            self.remove_connections(
                opening,
                &keys(&victims.unanswered),
                &mut unanswered,
                |at, (_, flow), other| sweep.is_evictable(&victims.unanswered[at], flow, other),
            )?;
        }
        let unanswered = unanswered.connections;
        self.removals.add(Reason::Unanswered, unanswered);
        let (mut over_quota, mapped) =
            self.remove_over_quota(sweep, &victims.over_quota, victims.needed, removed)?;
        let needed = victims.mapped_needed.saturating_sub(mapped);
        let (further, of_further) =
            self.remove_over_quota(sweep, &victims.mapped_over_quota, needed, removed)?;
        over_quota += further;
        removed.leaving.push((zone, (mapped + of_further) as u64));
        self.removals.add(Reason::OverQuota, over_quota);
        removed.evicted += spare + unanswered + over_quota;
        Ok(())
    }

    /// Removes established connections until `needed` are gone: those idle in both directions
    /// first, then any, as the owner's right goes before. Returns how many there were, and how many
    /// of them held a mapping.
    fn remove_over_quota(
        &self,
        sweep: &Sweep<'_>,
        candidates: &[Candidate],
        needed: usize,
        removed: &mut Removed,
    ) -> io::Result<(usize, usize)> {
        let keys: Vec<_> = candidates.iter().map(|candidate| candidate.key).collect();
        let (mut gone, mut mapped) = (0, 0);
        for idle in [true, false] {
            let mut left = needed.saturating_sub(gone);
            gone += self.remove_connections(
                &self.tables.flows,
                &keys,
                removed,
                |at, (_, flow), other| {
                    let evict = !idle || sweep.is_evictable(&candidates[at], flow, other);
                    let evict = evict && left > 0;
                    left -= usize::from(evict);
                    mapped += usize::from(evict && flow.flags & flow_flags::MAPPED != 0);
                    evict
                },
            )?;
        }
        Ok((gone, mapped))
    }

    /// Removes mappings that are still unused: the halves inside with those outside, and halves
    /// outside that no half inside leads to.
    fn remove_mappings(
        &self,
        sweep: &Sweep<'_>,
        keys: &[MappingKey],
        log: Option<&RemovedMappings>,
        removed: &mut Removed,
    ) -> io::Result<()> {
        let table = &self.tables.mappings;
        let mut unused = 0;
        for inside in [true, false] {
            let of_kind: Vec<_> = keys
                .iter()
                .filter(|key| (key.zone != OUTSIDE) == inside)
                .collect();
            for chunk in of_kind.chunks(CHUNK) {
                let (mut inner, mut outer) = (Vec::new(), Vec::new());
                for key in chunk {
                    let Some(mapping) = table.get(key)?.filter(|m| sweep.is_unused(m)) else {
                        continue;
                    };
                    let other = other_half(key, &mapping);
                    if inside {
                        inner.push(**key);
                        outer.push(other);
                        if let Some(log) = log {
                            log.add(**key, other);
                        }
                        removed.by_zone.entry(key.zone).or_default().mappings += 1;
                    } else if table
                        .get(&other)?
                        .is_none_or(|back| other_half(&other, &back) != **key)
                    {
                        outer.push(**key);
                        if let Some(log) = log {
                            log.add(other, **key);
                        }
                    }
                }
                // Without the half inside, no connection starts by the half outside.
                unused += table.remove_all(&inner)?;
                table.remove_all(&outer)?;
            }
        }
        self.removals.add(Reason::UnusedMapping, unused);
        removed.mappings += unused;
        Ok(())
    }

    /// Writes the usage of the tenants: as counted, without what was removed, and with what the
    /// programs have added since the pass began.
    fn recount(
        &self,
        sweep: &Sweep<'_>,
        before: &BTreeMap<u16, TenantLoad>,
        removed: &Removed,
    ) -> io::Result<()> {
        let table = &self.tables.usages;
        let mut all = TenantUsage::default();
        for (zone, counted) in sweep.usages() {
            let slot = u32::from(zone) - 1;
            let before = before
                .get(&zone)
                .map_or_else(TenantUsage::default, |load| load.usage);
            let gone = removed.by_zone.get(&zone).copied().unwrap_or_default();
            let now = table.get(&slot)?.unwrap_or_default();
            let usage = TenantUsage {
                connections: (counted.connections
                    + now.connections.saturating_sub(before.connections))
                .saturating_sub(gone.connections),
                mappings: (counted.mappings + now.mappings.saturating_sub(before.mappings))
                    .saturating_sub(gone.mappings),
            };
            table.set(&slot, &usage)?;
            all.connections += usage.connections;
            all.mappings += usage.mappings;
        }
        table.set(&ALL_TENANTS, &all)
    }
}
