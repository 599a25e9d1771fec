//! Contents of the maps: written from a [`World`], and read entry by entry.

use appliance_common::{
    addr::Address,
    events::TraceFilter,
    maps::{
        Bucket, Budget, Endpoint, PeerAddress, Policy, ROUTE_KEY_BITS, Route, RouteKey, Session,
        SessionKey,
    },
    nat::{
        ALL_TENANTS, Flow, FlowKey, MachineKey, Mapping, MappingKey, Pair, RuleSlot, TenantUsage,
    },
};
use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, PerCpuValues, lpm_trie::Key},
};

use super::{Harness, HarnessError};
use crate::world::World;

impl Harness {
    /// Writes `world` into the maps in place of the world before, with the hashes of its entries.
    /// Counters, handshake limits and rings stay as they are; [`Harness::reset`] clears those.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn fill(&mut self, world: World) -> Result<(), HarnessError> {
        let old = std::mem::take(&mut self.world);
        self.array("CONFIG", &[world.config], 1)?;
        self.array("NETWORKS", &world.networks, old.networks.len())?;
        self.array("TENANTS", &world.tenants, old.tenants.len())?;
        self.array("PEERS", &world.peers, old.peers.len())?;
        let attachments = world.attachments.iter().map(|(k, v)| (*k, v.hashed(k)));
        self.hash("ATTACHMENTS", &attachments.collect::<Vec<_>>())?;
        self.hash("TUNNELS", &world.tunnels)?;
        let endpoints: Vec<_> = world
            .endpoints
            .iter()
            .map(|k| (*k, Endpoint { flags: 1 }))
            .collect();
        self.hash("ENDPOINTS", &endpoints)?;
        let neighbours = world.neighbours.iter().map(|(k, v)| (*k, v.hashed(k)));
        self.hash("NEIGHBOURS", &neighbours.collect::<Vec<_>>())?;
        let sessions: Vec<(SessionKey, _)> = world
            .sessions
            .iter()
            .map(|k| (*k, Session { flags: 1 }))
            .collect();
        self.hash("SESSIONS", &sessions)?;
        let peers: Vec<_> = world
            .peer_addresses
            .iter()
            .map(|k| (*k, PeerAddress { flags: 1 }))
            .collect();
        self.hash("PEER_ADDRESSES", &peers)?;
        let policies: Vec<_> = world
            .policies
            .iter()
            .map(|k| (*k, Policy { flags: 1 }))
            .collect();
        self.hash("POLICIES", &policies)?;
        self.routes(&world)?;
        self.translation(&world, &old)?;
        self.world = world;
        Ok(())
    }

    fn translation(&mut self, world: &World, old: &World) -> Result<(), HarnessError> {
        self.array("NAT", &[world.nat], 1)?;
        self.array(
            "NAT_ADDRESSES",
            &world.nat_addresses,
            old.nat_addresses.len(),
        )?;
        self.array::<u32>("NAT_FULL", &[], old.nat_addresses.len())?;
        self.array("QUOTAS", &world.quotas, old.quotas.len())?;
        let usages = vec![TenantUsage::default(); ALL_TENANTS as usize + 1];
        self.array("USAGE", &usages, usages.len())?;
        self.hash("PUBLIC", &world.public)?;
        self.rules(world, old)?;
        self.clear_connections()
    }

    fn rules(&mut self, world: &World, old: &World) -> Result<(), HarnessError> {
        self.array("RULES", &world.rules, old.rules.len())?;
        let machines: Vec<_> = world
            .one_to_one
            .iter()
            .map(|(k, slot)| (*k, RuleSlot { slot: *slot }))
            .collect();
        self.hash("ONE_TO_ONE", &machines)?;
        let ports: Vec<_> = world
            .rule_ports
            .iter()
            .map(|(bits, key, slot)| (*bits, *key, *slot))
            .collect();
        self.trie("RULE_PORTS", &ports)?;
        let sources: Vec<_> = world
            .rule_sources
            .iter()
            .map(|(bits, key)| (*bits, *key, key.slot))
            .collect();
        self.trie("RULE_SOURCES", &sources)
    }

    /// Writes tenants, networks and rules of `world`; connections stay.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn refill_rules(&mut self, world: &World) -> Result<(), HarnessError> {
        let old = self.world.clone();
        self.array("NETWORKS", &world.networks, old.networks.len())?;
        self.array("TENANTS", &world.tenants, old.tenants.len())?;
        self.rules(world, &old)?;
        self.world = world.clone();
        Ok(())
    }

    /// Deletes every connection and mapping.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn clear_connections(&mut self) -> Result<(), HarnessError> {
        self.hash::<FlowKey, Flow>("FLOWS", &[])?;
        self.hash::<FlowKey, Flow>("OPENING", &[])?;
        self.hash::<FlowKey, Flow>("OPENING_EXCESS", &[])?;
        self.hash::<FlowKey, Flow>("FRAGMENTS", &[])?;
        self.hash::<MachineKey, Pair>("PAIRS", &[])?;
        self.hash::<MappingKey, Mapping>("MAPPINGS", &[])
    }

    /// All entries of a hash map.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn entries<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<(K, V)>, HarnessError> {
        let map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        map.iter()
            .collect::<Result<_, _>>()
            .map_err(|e| HarnessError::map(name, e))
    }

    /// Writes an entry of a hash map.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn put<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        key: K,
        value: V,
    ) -> Result<(), HarnessError> {
        let mut map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        map.insert(key, value, 0)
            .map_err(|e| HarnessError::map(name, e))
    }

    fn trie<K: Pod>(
        &mut self,
        name: &'static str,
        entries: &[(u32, K, u32)],
    ) -> Result<(), HarnessError> {
        let mut map: LpmTrie<_, K, RuleSlot> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key).map_err(|e| HarnessError::map(name, e))?;
        }
        for (bits, key, slot) in entries {
            map.insert(&Key::new(*bits, *key), RuleSlot { slot: *slot }, 0)
                .map_err(|e| HarnessError::map(name, e))?;
        }
        Ok(())
    }

    /// Sets which packets the programs trace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn set_trace_filter(&mut self, filter: TraceFilter) -> Result<(), HarnessError> {
        self.array("TRACE", &[filter], 1)
    }

    fn routes(&mut self, world: &World) -> Result<(), HarnessError> {
        let mut map: LpmTrie<_, RouteKey, Route> = self
            .ebpf
            .map_mut("ROUTES")
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map("ROUTES"))?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key)
                .map_err(|e| HarnessError::map("ROUTES", e))?;
        }
        for (length, key, network) in &world.routes {
            let route = Route {
                network: *network,
                flags: 1,
            };
            map.insert(&Key::new(ROUTE_KEY_BITS + length, *key), route, 0)
                .map_err(|e| HarnessError::map("ROUTES", e))?;
        }
        Ok(())
    }

    /// Deletes the handshake counts of all sources, and refills the handshake budgets of every CPU.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn clear_handshake_limits(&mut self) -> Result<(), HarnessError> {
        self.hash::<Address, Bucket>("HANDSHAKE_SOURCES", &[])?;
        let mut budget: PerCpuArray<_, Bucket> = self
            .ebpf
            .map_mut("HANDSHAKE_BUDGET")
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map("HANDSHAKE_BUDGET"))?;
        let cpus = budget
            .get(&0, 0)
            .map_err(|e| HarnessError::map("HANDSHAKE_BUDGET", e))?
            .len();
        for slot in 0..budget.len() {
            let full = PerCpuValues::try_from(vec![Bucket::default(); cpus])
                .map_err(|e| HarnessError::map("HANDSHAKE_BUDGET", e.into()))?;
            budget
                .set(slot, full, 0)
                .map_err(|e| HarnessError::map("HANDSHAKE_BUDGET", e))?;
        }
        Ok(())
    }

    /// Refills the budgets of every tenant.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn clear_budgets(&mut self) -> Result<(), HarnessError> {
        let tenants = self.world.tenants.len() as u32;
        let used = (tenants + 1) * Budget::SLOTS;
        self.array::<Bucket>("BUDGETS", &[], used as usize)?;
        let networks = self.world.networks.len() as u32 + 1;
        self.array::<Bucket>("CLAIM_BUDGETS", &[], networks as usize)
    }

    /// Writes the first elements of an array, and zero in those up to `used` that follow.
    fn array<V: Pod + Default>(
        &mut self,
        name: &'static str,
        values: &[V],
        used: usize,
    ) -> Result<(), HarnessError> {
        let mut map: Array<_, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        for i in 0..values.len().max(used) {
            let value = values.get(i).copied().unwrap_or_default();
            map.set(i as u32, value, 0)
                .map_err(|e| HarnessError::map(name, e))?;
        }
        Ok(())
    }

    fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        entries: &[(K, V)],
    ) -> Result<(), HarnessError> {
        let mut map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        let keys: Vec<K> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key).map_err(|e| HarnessError::map(name, e))?;
        }
        for (key, value) in entries {
            map.insert(key, value, 0)
                .map_err(|e| HarnessError::map(name, e))?;
        }
        Ok(())
    }
}
