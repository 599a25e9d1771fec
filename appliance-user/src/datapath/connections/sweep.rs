//! Decides which NAT entries are expired, stale or unused.

use std::collections::{BTreeMap, HashMap, HashSet};

use appliance_common::{
    maps::Tenant,
    nat::{Direction, Flow, FlowKey, Mapping, MappingKey, OUTSIDE, Timeouts, flow_flags},
};

/// One pass over the maps. The caller adds all entries and deletes those that the pass returns.
#[derive(Debug)]
pub struct Sweep<'a> {
    now: u32,
    timeouts: Timeouts,
    /// Tenants in full failover, by zone.
    tenants: &'a BTreeMap<u16, Tenant>,
    /// Endpoints whose mapping a connection uses.
    in_use: HashSet<MappingKey>,
    expired: Vec<FlowKey>,
    stale: Vec<FlowKey>,
    mappings: HashMap<MappingKey, Mapping>,
}

/// The mappings to delete after a pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Halves of mappings that no connection uses. Delete them if the previous pass returned them
    /// too: a new mapping has no connection yet.
    pub unused: HashSet<MappingKey>,
    /// Mappings of an earlier failover.
    pub stale: Vec<MappingKey>,
    /// Number of halves of mappings seen.
    pub mappings: usize,
}

impl<'a> Sweep<'a> {
    /// A pass at `now`, in ticks.
    #[must_use]
    pub fn new(now: u32, timeouts: Timeouts, tenants: &'a BTreeMap<u16, Tenant>) -> Self {
        Self {
            now,
            timeouts,
            tenants,
            in_use: HashSet::new(),
            expired: Vec::new(),
            stale: Vec::new(),
            mappings: HashMap::new(),
        }
    }

    /// Whether the tenant of `zone` is still in the failover with this `epoch`.
    fn is_current(&self, zone: u16, epoch: u32) -> bool {
        zone == OUTSIDE || self.tenants.get(&zone).is_some_and(|t| t.epoch == epoch)
    }

    /// Adds an entry of `FLOWS` or `OPENING`.
    pub fn flow(&mut self, key: &FlowKey, flow: &Flow) {
        if !self.is_current(key.zone, flow.from_epoch)
            || !self.is_current(flow.to_zone, flow.to_epoch)
        {
            self.stale.push(*key);
            return;
        }
        if flow.is_expired(key.protocol, self.now, &self.timeouts) {
            self.expired.push(*key);
            return;
        }
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
                self.in_use.insert(MappingKey {
                    address,
                    port,
                    zone,
                    protocol: key.protocol,
                    reserved: [0; 3],
                });
            }
        }
    }

    /// Takes the entries of earlier failovers, which must be deleted.
    pub fn take_stale(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.stale)
    }

    /// Takes the expired entries. Delete each for which [`Sweep::is_over`] holds.
    pub fn take_expired(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.expired)
    }

    /// Whether an expired connection is over: `flow` is still expired, and so is the other
    /// direction if it exists.
    #[must_use]
    pub fn is_over(&self, protocol: u8, flow: &Flow, other: Option<&Flow>) -> bool {
        let expired = |flow: &Flow| flow.is_expired(protocol, self.now, &self.timeouts);
        expired(flow) && other.is_none_or(expired)
    }

    /// Adds an entry of `MAPPINGS`.
    pub fn mapping(&mut self, key: &MappingKey, mapping: &Mapping) {
        self.mappings.insert(*key, *mapping);
    }

    /// The mappings to delete.
    #[must_use]
    pub fn finish(self) -> Swept {
        let mut swept = Swept {
            mappings: self.mappings.len(),
            ..Swept::default()
        };
        for (key, mapping) in &self.mappings {
            let inside = if key.zone == OUTSIDE {
                mapping.zone
            } else {
                key.zone
            };
            if !self.is_current(inside, mapping.epoch) {
                swept.stale.push(*key);
                continue;
            }
            let other = MappingKey {
                address: mapping.address,
                port: mapping.port,
                zone: mapping.zone,
                protocol: key.protocol,
                reserved: [0; 3],
            };
            let complete = self.mappings.get(&other).is_some_and(|back| {
                back.address == key.address && back.port == key.port && back.zone == key.zone
            });
            let endpoint = if key.zone == OUTSIDE { &other } else { key };
            if !complete || !self.in_use.contains(endpoint) {
                swept.unused.insert(*key);
            }
        }
        swept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_common::{maps::Mode, nat::UPLINK, wire::IPPROTO_UDP};

    const ZONE: u16 = 3;
    const EPOCH: u32 = 7;

    fn tenants() -> BTreeMap<u16, Tenant> {
        let tenant = Tenant {
            mode: Mode::Full as u32,
            epoch: EPOCH,
        };
        BTreeMap::from([(ZONE, tenant)])
    }

    /// Both directions of a connection from a host's port to the internet, last seen at `seen`.
    fn connection(port: u16, seen: u32) -> [(FlowKey, Flow); 2] {
        let key = FlowKey {
            source: [0, 0, 0, 1],
            destination: [0, 0, 0, 2],
            source_port: port,
            destination_port: 53,
            zone: ZONE,
            protocol: IPPROTO_UDP,
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
            tag: key.tag(),
            ..Flow::default()
        };
        let (mut back_key, mut back) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut back_key, &mut back);
        [(key, flow), (back_key, back)]
    }

    /// Both halves of the mapping of that port.
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
        };
        [(inside, to(&outside)), (outside, to(&inside))]
    }

    #[test]
    fn a_connection_is_over_when_both_directions_are_expired() {
        let (tenants, timeouts) = (tenants(), Timeouts::default());
        let now = 10_000;
        let mut sweep = Sweep::new(now, timeouts, &tenants);
        let old = now - timeouts.udp - 1;
        let [there, mut back] = connection(1, old);
        for (key, flow) in [there, back] {
            sweep.flow(&key, &flow);
        }
        assert_eq!(sweep.take_expired(), [there.0, back.0]);
        assert!(sweep.is_over(IPPROTO_UDP, &there.1, Some(&back.1)));
        assert!(sweep.is_over(IPPROTO_UDP, &there.1, None));
        back.1.last_seen = now;
        assert!(!sweep.is_over(IPPROTO_UDP, &there.1, Some(&back.1)));
        assert!(sweep.take_stale().is_empty());
    }

    #[test]
    fn entries_of_an_earlier_failover_are_stale() {
        let (mut tenants, timeouts) = (tenants(), Timeouts::default());
        for gone in [false, true] {
            if gone {
                tenants.clear();
            } else {
                tenants.get_mut(&ZONE).expect("there").epoch += 1;
            }
            let mut sweep = Sweep::new(100, timeouts, &tenants);
            for (key, flow) in connection(1, 100) {
                sweep.flow(&key, &flow);
            }
            assert_eq!(sweep.take_stale().len(), 2);
            for (key, value) in mapping(1, EPOCH) {
                sweep.mapping(&key, &value);
            }
            assert_eq!(sweep.finish().stale.len(), 2);
        }
    }

    #[test]
    fn a_mapping_is_kept_while_a_connection_uses_it() {
        let (tenants, timeouts) = (tenants(), Timeouts::default());
        // One direction is enough.
        for which in [0, 1] {
            let mut sweep = Sweep::new(100, timeouts, &tenants);
            let (key, flow) = connection(1, 100)[which];
            sweep.flow(&key, &flow);
            for port in [1, 5] {
                for (key, value) in mapping(port, EPOCH) {
                    sweep.mapping(&key, &value);
                }
            }
            let swept = sweep.finish();
            assert_eq!(swept.mappings, 4);
            assert!(swept.stale.is_empty());
            let unused: HashSet<_> = mapping(5, EPOCH).map(|(key, _)| key).into();
            assert_eq!(swept.unused, unused);
        }
    }

    #[test]
    fn half_a_mapping_is_unused() {
        let (tenants, timeouts) = (tenants(), Timeouts::default());
        let mut sweep = Sweep::new(100, timeouts, &tenants);
        let [_, (key, value)] = mapping(1, EPOCH);
        for (key, flow) in connection(1, 100) {
            sweep.flow(&key, &flow);
        }
        sweep.mapping(&key, &value);
        assert_eq!(sweep.finish().unused, HashSet::from([key]));
    }
}
