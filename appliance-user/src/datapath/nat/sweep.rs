//! Decides which NAT entries are removed: expired, stale and unused ones, and those evicted
//! when the tables fill.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet},
    hash::BuildHasher as _,
};

use ahash::RandomState;
use appliance_common::{
    maps::{Mode, Tenant},
    nat::{
        Direction, Flow, FlowKey, Mapping, MappingKey, OUTSIDE, TcpState, TenantUsage, Timeouts,
        flow_flags,
    },
    wire::IPPROTO_TCP,
};

use super::pressure::{Demand, Demands, PortsInUse};

/// Most connections that one pass removes for one reason. It bounds the memory of a pass.
const MAX_REMOVED: usize = 1 << 18;
/// Ticks for which an entry must have been idle to be evicted: packets of its end, or of a
/// handshake, are not on their way any more.
const fn min_idle_ticks(rank: Rank) -> u32 {
    match rank {
        Rank::Closed => 2,
        _ => 4,
    }
}
/// Ticks for which a mapping must have begun no connection before it can be unused.
const UNUSED: u32 = 4;

/// In which order entries are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// TCP that is over.
    Closed,
    /// TCP that is closing, or was reset; UDP queries to well-known ports.
    Transitory,
    /// Unanswered, or an ICMP query.
    Unanswered,
    /// TCP that both ends keep open; UDP other than queries.
    Established,
}

impl Rank {
    /// The rank of an entry of `FLOWS`.
    #[must_use]
    pub const fn of(protocol: u8, flow: &Flow) -> Self {
        if protocol == IPPROTO_TCP {
            let state = TcpState::from_bits(flow.state);
            return if state.is_over() {
                Self::Closed
            } else if state.is_established() {
                Self::Established
            } else {
                Self::Transitory
            };
        }
        if flow.flags & flow_flags::SHORT != 0 {
            Self::Transitory
        } else {
            Self::Established
        }
    }
}

/// A connection that may be evicted: of the first direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub rank: Rank,
    /// Ticks since its last packet of the first direction; the longest idle one is the first.
    pub idle: Reverse<u32>,
    pub key: FlowKey,
}

/// The first `limit` candidates in their order.
#[derive(Debug, Default)]
struct Pool {
    limit: usize,
    heap: BinaryHeap<Candidate>,
}

impl Pool {
    fn new(limit: u64) -> Self {
        Self {
            limit: usize::try_from(limit)
                .unwrap_or(MAX_REMOVED)
                .min(MAX_REMOVED),
            heap: BinaryHeap::new(),
        }
    }

    fn add(&mut self, candidate: Candidate) {
        if self.heap.len() < self.limit {
            self.heap.push(candidate);
        } else if let Some(mut last) = self.heap.peek_mut()
            && candidate < *last
        {
            *last = candidate;
        }
    }
}

/// A tenant's entries as a pass has seen them.
#[derive(Debug, Default)]
struct PassTotals {
    usage: TenantUsage,
    expired: u64,
    demand: Demand,
    spare: Pool,
    unanswered: Pool,
    over_quota: Pool,
    mapped_over_quota: Pool,
}

/// The entries that a tenant gives up, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Victims {
    /// Closed and transitory connections.
    pub spare: Vec<Candidate>,
    /// Connections in `OPENING`.
    pub unanswered: Vec<Candidate>,
    /// Established connections beyond the tenant's quota.
    pub over_quota: Vec<Candidate>,
    /// How many of `over_quota` are needed.
    pub needed: usize,
    /// Those of the established connections that hold a mapping.
    pub mapped_over_quota: Vec<Candidate>,
    /// How many connections with a mapping are needed, those of `over_quota` included.
    pub mapped_needed: usize,
}

/// The epochs of tenants in full failover, by zone.
#[derive(Clone, Debug, Default)]
pub struct Epochs(Vec<Option<u32>>);

impl Epochs {
    /// Takes the tenants by their slots.
    pub fn new(tenants: impl IntoIterator<Item = (u32, Tenant)>) -> Self {
        let mut epochs = Vec::new();
        for (slot, tenant) in tenants {
            let zone = slot as usize + 1;
            if tenant.mode == Mode::Full as u32 {
                epochs.resize(epochs.len().max(zone + 1), None);
                epochs[zone] = Some(tenant.epoch);
            }
        }
        Self(epochs)
    }

    /// Whether the tenant of `zone` is still in the failover with this `epoch`.
    #[must_use]
    pub fn is_current(&self, zone: u16, epoch: u32) -> bool {
        zone == OUTSIDE || self.0.get(usize::from(zone)) == Some(&Some(epoch))
    }

    /// The zones of the tenants.
    pub fn zones(&self) -> impl Iterator<Item = u16> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(zone, epoch)| epoch.map(|_| zone as u16))
    }
}

/// One pass over the maps. The caller adds all entries of `FLOWS`, `OPENING` and `MAPPINGS`, in
/// this order, and deletes those that the pass returns.
#[derive(Debug)]
pub struct Sweep<'a> {
    now: u32,
    timeouts: Timeouts,
    epochs: &'a Epochs,
    hasher: RandomState,
    /// Hashes of endpoints whose mapping a connection uses. If two have the same hash, a mapping is
    /// kept for longer.
    in_use: HashSet<u64, RandomState>,
    tenants: BTreeMap<u16, PassTotals>,
    expired: Vec<FlowKey>,
    stale: Vec<FlowKey>,
    unused: Vec<MappingKey>,
    stale_mappings: Vec<(MappingKey, Mapping)>,
    ports: PortsInUse,
    more: bool,
}

impl<'a> Sweep<'a> {
    /// A pass at `now`, in ticks.
    #[must_use]
    pub fn new(now: u32, timeouts: Timeouts, epochs: &'a Epochs, demands: &Demands) -> Self {
        let tenants = epochs.zones().map(|zone| {
            let demand = demands.get(&zone).copied().unwrap_or_default();
            let seen = PassTotals {
                demand,
                spare: Pool::new(demand.connections.max(demand.mappings)),
                unanswered: Pool::new(demand.mappings),
                // Some turn out to be less idle in the other direction.
                over_quota: Pool::new(2 * demand.over_quota),
                mapped_over_quota: Pool::new(2 * demand.mappings_over_quota),
                ..PassTotals::default()
            };
            (zone, seen)
        });
        Self {
            now,
            timeouts,
            epochs,
            hasher: hasher(),
            in_use: HashSet::with_hasher(hasher()),
            tenants: tenants.collect(),
            expired: Vec::new(),
            stale: Vec::new(),
            unused: Vec::new(),
            stale_mappings: Vec::new(),
            ports: PortsInUse::new(),
            more: false,
        }
    }

    /// Adds an entry of `FLOWS`.
    pub fn flow(&mut self, key: &FlowKey, flow: &Flow) {
        if !self.is_current(key, flow) {
            let stale = &mut self.stale;
            return push(stale, *key, &mut self.more);
        }
        let original = flow.direction() == Direction::Original;
        let idle = flow.age(self.now);
        let expired = flow.is_expired(key.protocol, self.now, &self.timeouts);
        if original && let Some(seen) = self.tenants.get_mut(&owner(key, flow)) {
            // Counted for the same tenant as the programs do.
            seen.usage.connections += 1;
            let rank = Rank::of(key.protocol, flow);
            let candidate = Candidate {
                rank,
                idle: Reverse(idle),
                key: *key,
            };
            if expired {
                seen.expired += 1;
            } else if rank == Rank::Established {
                seen.over_quota.add(candidate);
                // The end of one by rule frees no mapping.
                if flow.flags & flow_flags::MAPPED != 0 {
                    seen.mapped_over_quota.add(candidate);
                }
            } else if idle >= min_idle_ticks(rank) {
                seen.spare.add(candidate);
            }
        }
        if expired {
            push(&mut self.expired, *key, &mut self.more);
            return;
        }
        self.mark(key, flow);
    }

    /// Adds an entry of `OPENING`.
    pub fn opening(&mut self, key: &FlowKey, flow: &Flow) {
        // The map evicts its oldest entries by itself.
        if !self.is_current(key, flow) || flow.is_expired(key.protocol, self.now, &self.timeouts) {
            return;
        }
        let idle = flow.age(self.now);
        if flow.direction() == Direction::Original
            && flow.flags & flow_flags::MAPPED != 0
            && idle >= min_idle_ticks(Rank::Unanswered)
            && let Some(seen) = self.tenants.get_mut(&owner(key, flow))
        {
            seen.unanswered.add(Candidate {
                rank: Rank::Unanswered,
                idle: Reverse(idle),
                key: *key,
            });
        }
        self.mark(key, flow);
    }

    /// Adds an entry of `MAPPINGS`.
    pub fn mapping(&mut self, key: &MappingKey, mapping: &Mapping) {
        let inside = if key.zone == OUTSIDE {
            mapping.zone
        } else {
            key.zone
        };
        if !self.epochs.is_current(inside, mapping.epoch) {
            return push(&mut self.stale_mappings, (*key, *mapping), &mut self.more);
        }
        if key.zone == OUTSIDE {
            let address = (inside, key.address, key.protocol);
            *self.ports.entry(address).or_default() += 1;
        } else if let Some(seen) = self.tenants.get_mut(&inside) {
            seen.usage.mappings += 1;
        }
        let endpoint = if key.zone == OUTSIDE {
            &other_half(key, mapping)
        } else {
            key
        };
        if self.is_unused(mapping) && !self.in_use.contains(&self.hasher.hash_one(endpoint)) {
            push(&mut self.unused, *key, &mut self.more);
        }
    }

    fn is_current(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.epochs.is_current(key.zone, flow.from_epoch)
            && self.epochs.is_current(flow.to_zone, flow.to_epoch)
    }

    /// Marks the endpoints whose mappings a connection uses.
    fn mark(&mut self, key: &FlowKey, flow: &Flow) {
        let (there, back) = (
            (key.source, key.source_port, key.zone),
            (flow.destination, flow.destination_port, flow.to_zone),
        );
        let (from, to) = match flow.direction() {
            Direction::Original => (there, back),
            Direction::Reply => (back, there),
        };
        // Two ends that connected through their translated addresses have a mapping each.
        for (flag, (address, port, zone)) in [(flow_flags::MAPPED, from), (flow_flags::MUTUAL, to)]
        {
            if flow.flags & flag != 0 {
                self.in_use.insert(self.hasher.hash_one(MappingKey {
                    address,
                    port,
                    zone,
                    protocol: key.protocol,
                    reserved: [0; 3],
                }));
            }
        }
    }

    /// Takes the entries of earlier failovers, which must be deleted.
    pub fn take_stale(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.stale)
    }

    /// Takes the expired entries. Delete each for which [`Sweep::is_over`] holds, with its other
    /// direction.
    pub fn take_expired(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.expired)
    }

    /// Takes the mappings of earlier failovers, which must be deleted: the halves inside first.
    pub fn take_stale_mappings(&mut self) -> Vec<(MappingKey, Mapping)> {
        let mut stale = std::mem::take(&mut self.stale_mappings);
        stale.sort_by_key(|(key, _)| key.zone == OUTSIDE);
        stale
    }

    /// Takes the halves of mappings that no connection uses. Delete each for which
    /// [`Sweep::is_unused`] still holds; a half outside only if no half inside leads to it.
    pub fn take_unused(&mut self) -> Vec<MappingKey> {
        std::mem::take(&mut self.unused)
    }

    /// Takes the entries to evict, by the zones of their tenants.
    pub fn take_victims(&mut self) -> BTreeMap<u16, Victims> {
        let sorted = |pool: &mut Pool, limit: u64| {
            let mut all = std::mem::take(&mut pool.heap).into_sorted_vec();
            all.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            all
        };
        let tenants = self.tenants.iter_mut();
        tenants
            .filter(|(_, seen)| seen.demand != Demand::default())
            .map(|(zone, seen)| {
                // Expired entries leave anyway.
                let wanted = seen.demand.connections.max(seen.demand.mappings);
                let spare = sorted(&mut seen.spare, wanted.saturating_sub(seen.expired));
                let left = spare.len() as u64 + seen.expired;
                let unanswered = seen.demand.mappings.saturating_sub(left);
                let needed = seen.demand.over_quota.saturating_sub(left);
                let mapped_needed = seen.demand.mappings_over_quota.saturating_sub(left);
                let count = |needed| usize::try_from(needed).unwrap_or(usize::MAX);
                let victims = Victims {
                    spare,
                    unanswered: sorted(&mut seen.unanswered, unanswered),
                    over_quota: sorted(&mut seen.over_quota, 2 * needed),
                    needed: count(needed),
                    mapped_over_quota: sorted(&mut seen.mapped_over_quota, 2 * mapped_needed),
                    mapped_needed: count(mapped_needed),
                };
                (*zone, victims)
            })
            .collect()
    }

    /// Whether an expired connection is over: `flow` is still expired, and so is the other
    /// direction if it exists.
    #[must_use]
    pub fn is_over(&self, protocol: u8, flow: &Flow, other: Option<&Flow>) -> bool {
        let expired = |flow: &Flow| flow.is_expired(protocol, self.now, &self.timeouts);
        expired(flow) && other.is_none_or(expired)
    }

    /// Whether a candidate may still be evicted: neither direction has become more important, or
    /// has been used since.
    #[must_use]
    pub fn is_evictable(&self, candidate: &Candidate, flow: &Flow, other: Option<&Flow>) -> bool {
        let protocol = candidate.key.protocol;
        let is_idle = |flow: &Flow| {
            flow.age(self.now) >= min_idle_ticks(candidate.rank)
                && (candidate.rank == Rank::Unanswered
                    || Rank::of(protocol, flow) <= candidate.rank)
        };
        is_idle(flow) && other.is_none_or(is_idle)
    }

    /// Whether a mapping has begun no connection lately.
    #[must_use]
    pub const fn is_unused(&self, mapping: &Mapping) -> bool {
        let age = self.now.wrapping_sub(mapping.last_used) as i32;
        age >= UNUSED as i32
    }

    /// Connections and mappings of each tenant as the pass has counted them, by zone.
    #[must_use]
    pub fn usages(&self) -> BTreeMap<u16, TenantUsage> {
        let tenants = self.tenants.iter();
        tenants.map(|(zone, seen)| (*zone, seen.usage)).collect()
    }

    /// Ports of external addresses in use.
    #[must_use]
    pub const fn ports(&self) -> &PortsInUse {
        &self.ports
    }

    /// Whether there is more to remove than the pass has returned.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.more
    }
}

/// A hasher with a secret key, so that endpoints of equal hashes cannot be chosen.
fn hasher() -> RandomState {
    let secret = std::hash::RandomState::new();
    let [a, b, c, d] = [0u8, 1, 2, 3].map(|word| secret.hash_one(word));
    RandomState::with_seeds(a, b, c, d)
}

/// Adds to a list of bounded length, or notes that there is more.
fn push<T>(list: &mut Vec<T>, item: T, more: &mut bool) {
    // Both directions, and both halves.
    if list.len() < 2 * MAX_REMOVED {
        list.push(item);
    } else {
        *more = true;
    }
}

/// The zone whose quota a connection counts against, as the programs do. `key` and `flow` are those
/// of its first direction.
#[must_use]
pub const fn owner(key: &FlowKey, flow: &Flow) -> u16 {
    if key.zone == OUTSIDE {
        flow.to_zone
    } else {
        key.zone
    }
}

/// The key of the other half of a mapping.
#[must_use]
pub const fn other_half(key: &MappingKey, mapping: &Mapping) -> MappingKey {
    MappingKey {
        address: mapping.address,
        port: mapping.port,
        zone: mapping.zone,
        protocol: key.protocol,
        reserved: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_common::{nat::UPLINK, wire::IPPROTO_UDP};

    const ZONE: u16 = 3;
    const EPOCH: u32 = 7;

    fn epochs() -> Epochs {
        let tenant = Tenant {
            mode: Mode::Full as u32,
            epoch: EPOCH,
        };
        Epochs::new([(u32::from(ZONE) - 1, tenant)])
    }

    fn sweep(now: u32, epochs: &Epochs) -> Sweep<'_> {
        Sweep::new(now, Timeouts::default(), epochs, &Demands::new())
    }

    /// Both directions of a connection from a host's port to the internet, last seen at `seen`.
    fn connection(port: u16, seen: u32) -> [(FlowKey, Flow); 2] {
        of_protocol(IPPROTO_UDP, port, seen)
    }

    fn of_protocol(protocol: u8, port: u16, seen: u32) -> [(FlowKey, Flow); 2] {
        let key = FlowKey {
            source: [0, 0, 0, 1],
            destination: [0, 0, 0, 2],
            source_port: port,
            destination_port: 53,
            zone: ZONE,
            protocol,
            reserved: 0,
        };
        let flow = Flow {
            source: [0, 0, 0, 9],
            destination: key.destination,
            source_port: port + 1,
            destination_port: 53,
            to_zone: OUTSIDE,
            flags: flow_flags::MAPPED | flow_flags::INTERNET,
            to: UPLINK,
            from: 1,
            from_epoch: EPOCH,
            last_seen: seen,
            entry_hash: key.entry_hash(),
            ..Flow::default()
        };
        let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut back_key, &mut back);
        [(key, flow), (back_key, back)]
    }

    /// Both halves of the mapping of that port, the half inside first.
    fn mapping(port: u16, epoch: u32) -> [(MappingKey, Mapping); 2] {
        let inside = MappingKey {
            address: [0, 0, 0, 1],
            port,
            zone: ZONE,
            protocol: IPPROTO_UDP,
            reserved: [0; 3],
        };
        let outside = MappingKey {
            address: [0, 0, 0, 9],
            port: port + 1,
            zone: OUTSIDE,
            ..inside
        };
        let to = |key: &MappingKey| Mapping {
            address: key.address,
            port: key.port,
            zone: key.zone,
            epoch,
            last_used: 50,
        };
        [(inside, to(&outside)), (outside, to(&inside))]
    }

    #[test]
    fn a_connection_is_over_when_both_directions_are_expired() {
        let (epochs, timeouts) = (epochs(), Timeouts::default());
        let now = 10_000;
        let mut sweep = sweep(now, &epochs);
        let old = now - timeouts.udp - 1;
        let [there, mut back] = connection(1, old);
        for (key, flow) in [there, back] {
            sweep.flow(&key, &flow);
        }
        assert_eq!(sweep.take_expired(), [there.0, back.0]);
        assert_eq!(sweep.usages()[&ZONE].connections, 1);
        assert!(sweep.is_over(IPPROTO_UDP, &there.1, Some(&back.1)));
        assert!(sweep.is_over(IPPROTO_UDP, &there.1, None));
        back.1.last_seen = now;
        assert!(!sweep.is_over(IPPROTO_UDP, &there.1, Some(&back.1)));
        assert!(sweep.take_stale().is_empty());
    }

    #[test]
    fn entries_of_an_earlier_failover_are_stale() {
        let later = Tenant {
            mode: Mode::Full as u32,
            epoch: EPOCH + 1,
        };
        for epochs in [
            Epochs::default(),
            Epochs::new([(u32::from(ZONE) - 1, later)]),
            Epochs::new([(u32::from(ZONE), later)]),
        ] {
            let mut sweep = sweep(100, &epochs);
            for (key, flow) in connection(1, 100) {
                sweep.flow(&key, &flow);
            }
            assert_eq!(sweep.take_stale().len(), 2);
            let [inside, outside] = mapping(1, EPOCH);
            for (key, value) in [outside, inside] {
                sweep.mapping(&key, &value);
            }
            assert_eq!(sweep.take_stale_mappings(), [inside, outside]);
        }
    }

    #[test]
    fn a_mapping_is_kept_while_a_connection_uses_it() {
        let epochs = epochs();
        // One direction is enough.
        for which in [0, 1] {
            for opening in [false, true] {
                let mut sweep = sweep(100, &epochs);
                let (key, flow) = connection(1, 100)[which];
                if opening {
                    sweep.opening(&key, &flow);
                } else {
                    sweep.flow(&key, &flow);
                }
                for port in [1, 5] {
                    for (key, value) in mapping(port, EPOCH) {
                        sweep.mapping(&key, &value);
                    }
                }
                assert_eq!(sweep.usages()[&ZONE].mappings, 2);
                assert!(sweep.take_stale_mappings().is_empty());
                assert_eq!(sweep.take_unused(), mapping(5, EPOCH).map(|(key, _)| key));
            }
        }
    }

    /// As a crash between the removals of both halves leaves it.
    #[test]
    fn half_a_mapping_is_unused_without_a_connection() {
        let epochs = epochs();
        for half in 0..2 {
            let mut sweep = sweep(100_000, &epochs);
            for (key, flow) in connection(5, 100_000) {
                sweep.flow(&key, &flow);
            }
            let (key, value) = mapping(1, EPOCH)[half];
            sweep.mapping(&key, &value);
            let (key_in_use, value) = mapping(5, EPOCH)[half];
            sweep.mapping(&key_in_use, &value);
            assert_eq!(sweep.take_unused(), [key]);
        }
    }

    #[test]
    fn a_mapping_that_has_just_begun_a_connection_is_not_unused() {
        let epochs = epochs();
        let mut sweep = sweep(50 + UNUSED - 1, &epochs);
        for (key, value) in mapping(1, EPOCH) {
            sweep.mapping(&key, &value);
        }
        assert!(sweep.take_unused().is_empty());
    }

    /// A TCP state after packets of both ends.
    fn tcp(fins: &[Direction]) -> u8 {
        use appliance_common::nat::{ACK, FIN, SYN};
        let open = TcpState::default()
            .next(Direction::Original, SYN)
            .next(Direction::Reply, SYN | ACK)
            .next(Direction::Original, ACK);
        let closed = fins
            .iter()
            .fold(open, |state, end| state.next(*end, FIN | ACK));
        closed.bits()
    }

    #[test]
    fn closed_connections_are_evicted_first_and_established_ones_never() {
        let epochs = epochs();
        let (closed, half, open) = (
            tcp(&[Direction::Original, Direction::Reply]),
            tcp(&[Direction::Reply]),
            tcp(&[]),
        );
        // State, and when it was last seen. Port n has the n-th.
        let all = [
            (half, 70),
            (closed, 90),
            (open, 10),
            (closed, 95),
            (half, 60),
            (closed, 99),
        ];
        for (wanted, ports) in [
            (0, &[][..]),
            (1, &[2][..]),
            (3, &[2, 4, 5]),
            (9, &[2, 4, 5, 1]),
        ] {
            let demand = Demand {
                connections: wanted,
                ..Demand::default()
            };
            let demands = Demands::from([(ZONE, demand)]);
            let mut sweep = Sweep::new(100, Timeouts::default(), &epochs, &demands);
            for (port, (state, seen)) in (1..).zip(all) {
                for (key, mut flow) in of_protocol(IPPROTO_TCP, port, seen) {
                    flow.state = state;
                    sweep.flow(&key, &flow);
                }
            }
            let found: Vec<_> = sweep
                .take_victims()
                .remove(&ZONE)
                .unwrap_or_default()
                .spare
                .iter()
                .map(|victim| victim.key.source_port)
                .collect();
            // 6 may still be acknowledged, and 3 is established.
            assert_eq!(found, ports, "{wanted}");
        }
    }

    #[test]
    fn what_expires_need_not_be_evicted() {
        let epochs = epochs();
        let demand = Demand {
            connections: 2,
            mappings: 1,
            over_quota: 3,
            ..Demand::default()
        };
        let demands = Demands::from([(ZONE, demand)]);
        let now = 100_000;
        let mut sweep = Sweep::new(now, Timeouts::default(), &epochs, &demands);
        let mut add = |port, state, seen| {
            let [(key, mut flow), _] = of_protocol(IPPROTO_TCP, port, seen);
            flow.state = state;
            sweep.flow(&key, &flow);
        };
        let closed = tcp(&[Direction::Original, Direction::Reply]);
        add(1, closed, 0);
        add(2, closed, now - 6);
        add(3, closed, now - 5);
        for port in 10..20 {
            add(port, tcp(&[]), now - u32::from(port));
        }
        let [(key, flow), _] = of_protocol(IPPROTO_TCP, 30, now - 6);
        sweep.opening(&key, &flow);
        let victims = sweep
            .take_victims()
            .remove(&ZONE)
            .expect("there is a demand");
        let ports = |list: &[Candidate]| -> Vec<_> {
            list.iter().map(|victim| victim.key.source_port).collect()
        };
        assert_eq!(ports(&victims.spare), [2]);
        assert_eq!(ports(&victims.unanswered), [0; 0], "spare ones are enough");
        // Two places are free then, of three that are needed; with one to spare.
        assert_eq!(
            (ports(&victims.over_quota), victims.needed),
            (vec![19, 18], 1)
        );
    }

    #[test]
    fn a_candidate_that_is_used_again_is_not_evicted() {
        let epochs = epochs();
        let sweep = sweep(100, &epochs);
        let closed = tcp(&[Direction::Original, Direction::Reply]);
        let [(key, mut flow), (_, mut back)] = of_protocol(IPPROTO_TCP, 1, 90);
        (flow.state, back.state) = (closed, closed);
        let candidate = Candidate {
            rank: Rank::Closed,
            idle: Reverse(10),
            key,
        };
        assert!(sweep.is_evictable(&candidate, &flow, Some(&back)));
        assert!(sweep.is_evictable(&candidate, &flow, None));
        let mut used = back;
        used.last_seen = 99;
        assert!(!sweep.is_evictable(&candidate, &flow, Some(&used)));
        let mut opened = flow;
        opened.state = tcp(&[]);
        assert!(!sweep.is_evictable(&candidate, &opened, Some(&back)));
    }
}
