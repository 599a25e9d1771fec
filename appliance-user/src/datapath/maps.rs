//! Reading and writing the maps, one function an operation.

use appliance_common::{
    addr::Address,
    limits::{MAX_ENDPOINTS, MAX_NEIGHBOURS, MAX_NETWORKS},
    maps::{HostKey, Neighbour, Network, Peer, PeerAddress, ROUTE_KEY_BITS, Session, Tenant},
    nat::{NatAddress, RULE_KEY_BITS, Rule, SOURCE_KEY_BITS, TenantQuota},
};
use aya::maps::{MapError, lpm_trie::Key};

use super::{
    Datapath, Error, map_error,
    reconcile::{MapContents, MapUpdate, port_bits, source_bits},
};

/// BPF_EXIST, <linux/bpf.h>: only replace.
const EXIST: u64 = 2;

/// The map whose size is the configuration's: two entries for a connection.
pub(super) const CONNECTIONS: &str = "FLOWS";

/// How many entries a pinned map has room for.
fn entries(path: &std::path::Path, name: &'static str) -> Result<u32, Error> {
    aya::maps::MapInfo::from_pin(path)
        .map(|info| info.max_entries())
        .map_err(|e| map_error("open", name, e))
}

impl Datapath {
    /// Sees that maps found pinned have the sizes this version makes. (aya opens what is pinned without
    /// comparing.) Key and value sizes were compared when the maps were typed.
    pub(super) fn check_shape(&self, connections: u32) -> Result<(), Error> {
        let wrong = |map| Error::Shape { map };
        if self.networks.len() != MAX_NETWORKS {
            return Err(wrong("NETWORKS"));
        }
        for (map, name, entries) in [
            (self.root.join("maps/ENDPOINTS"), "ENDPOINTS", MAX_ENDPOINTS),
            (
                self.root.join("maps/NEIGHBOURS"),
                "NEIGHBOURS",
                MAX_NEIGHBOURS,
            ),
        ] {
            if self::entries(&map, name)? != entries {
                return Err(wrong(name));
            }
        }
        // Of another size, that of an earlier configuration: the connections in it count for more.
        let now = self::entries(&self.root.join("maps").join(CONNECTIONS), CONNECTIONS)?;
        let wanted = 2 * connections;
        if now != wanted {
            tracing::warn!(
                map = CONNECTIONS,
                entries = now,
                wanted,
                "nat.connections has another size than the map, which keeps its connections: it changes when the data path is made anew, after a `detach`"
            );
        }
        Ok(())
    }

    /// What the maps hold, for a daemon that adopts them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<MapContents, Error> {
        let mut tables = MapContents {
            config: self
                .config
                .get(&0, 0)
                .map_err(|e| map_error("read", "CONFIG", e))?,
            ..MapContents::default()
        };
        for entry in self.attachments.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ATTACHMENTS", e))?;
            tables.attachments.insert(k, v);
        }
        for entry in self.tunnels.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "TUNNELS", e))?;
            tables.tunnels.insert(k, v);
        }
        for entry in self.endpoints.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ENDPOINTS", e))?;
            tables.endpoints.insert(k, v);
        }
        for entry in self.routes.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ROUTES", e))?;
            let bits = k.prefix_len().saturating_sub(ROUTE_KEY_BITS);
            tables.routes.insert((bits, k.data()), v);
        }
        for entry in self.policies.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "POLICIES", e))?;
            tables.policies.insert(k, v);
        }
        self.read_full(&mut tables)?;
        for (slot, value) in (0u32..).zip(self.networks.iter()) {
            let value = value.map_err(|e| map_error("read", "NETWORKS", e))?;
            if value != Network::default() {
                tables.networks.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.tenants.iter()) {
            let value = value.map_err(|e| map_error("read", "TENANTS", e))?;
            if value != Tenant::default() {
                tables.tenants.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.peers.iter()) {
            let value = value.map_err(|e| map_error("read", "PEERS", e))?;
            if value != Peer::default() {
                tables.peers.insert(slot, value);
            }
        }
        Ok(tables)
    }

    /// What of it is of full failover.
    fn read_full(&self, tables: &mut MapContents) -> Result<(), Error> {
        tables.nat = self
            .nat
            .get(&0, 0)
            .map_err(|e| map_error("read", "NAT", e))?;
        for (slot, value) in (0u32..).zip(self.shares.iter()) {
            let value = value.map_err(|e| map_error("read", "SHARES", e))?;
            if value != TenantQuota::default() {
                tables.shares.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.nat_addresses.iter()) {
            let value = value.map_err(|e| map_error("read", "NAT_ADDRESSES", e))?;
            if value != NatAddress::default() {
                tables.nat_addresses.insert(slot, value);
            }
        }
        for entry in self.public.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "PUBLIC", e))?;
            tables.public.insert(k, v);
        }
        for (slot, value) in (0u32..).zip(self.rules.iter()) {
            let value = value.map_err(|e| map_error("read", "RULES", e))?;
            if value != Rule::default() {
                tables.rules.insert(slot, value);
            }
        }
        for entry in self.rule_ports.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "RULE_PORTS", e))?;
            let bits = k.prefix_len().saturating_sub(RULE_KEY_BITS);
            tables.rule_ports.insert((bits, k.data()), v);
        }
        for entry in self.rule_sources.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "RULE_SOURCES", e))?;
            let bits = k.prefix_len().saturating_sub(SOURCE_KEY_BITS);
            tables.rule_sources.insert((bits, k.data()), v);
        }
        for entry in self.one_to_one.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ONE_TO_ONE", e))?;
            tables.one_to_one.insert(k, v);
        }
        Ok(())
    }

    /// Every entry of `NEIGHBOURS`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn neighbours(&self) -> Result<Vec<(HostKey, Neighbour)>, Error> {
        self.neighbours
            .iter()
            .collect::<Result<_, _>>()
            .map_err(|e| map_error("read", "NEIGHBOURS", e))
    }

    /// One entry of `NEIGHBOURS`, if there is one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn neighbour(&self, key: &HostKey) -> Result<Option<Neighbour>, Error> {
        match self.neighbours.get(key, 0) {
            Ok(neighbour) => Ok(Some(neighbour)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error("read", "NEIGHBOURS", error)),
        }
    }

    /// Writes an entry of `NEIGHBOURS`.
    ///
    /// # Errors
    /// When the map refuses, as when it is full.
    pub fn set_neighbour(&mut self, key: &HostKey, neighbour: &Neighbour) -> Result<(), Error> {
        self.neighbours
            .insert(key, neighbour, 0)
            .map_err(|e| map_error("write", "NEIGHBOURS", e))
    }

    /// Writes an entry of `NEIGHBOURS` if it is still there, as when its flags are cleared.
    ///
    /// # Errors
    /// When the map refuses for another reason.
    pub fn update_neighbour(&mut self, key: &HostKey, neighbour: &Neighbour) -> Result<(), Error> {
        match self.neighbours.insert(key, neighbour, EXIST) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_error("write", "NEIGHBOURS", error)),
        }
    }

    /// Deletes an entry of `NEIGHBOURS`; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn remove_neighbour(&mut self, key: &HostKey) -> Result<(), Error> {
        gone(self.neighbours.remove(key), "NEIGHBOURS")
    }

    /// Puts a socket into a slot of `XSKS`.
    ///
    /// # Errors
    /// When the map refuses, as for a socket that is bound to another interface.
    pub fn set_xsk(&mut self, slot: u32, socket: i32) -> Result<(), Error> {
        self.sockets
            .set(slot, socket, 0)
            .map_err(|e| map_error("write", "XSKS", e))
    }

    /// Lets the programs know the index of a session, or forget it.
    ///
    /// # Errors
    /// When the map refuses, as when it is full.
    pub fn set_session(&mut self, index: u32, known: bool) -> Result<(), Error> {
        if known {
            self.sessions
                .insert(index, Session { flags: 1 }, 0)
                .map_err(|e| map_error("write", "SESSIONS", e))
        } else {
            gone(self.sessions.remove(&index), "SESSIONS")
        }
    }

    /// Removes the sessions and peers' addresses of an earlier process.
    pub(super) fn forget_sessions(&mut self) -> Result<(), Error> {
        let indices: Result<Vec<u32>, MapError> = self.sessions.keys().collect();
        for index in indices.map_err(|e| map_error("read", "SESSIONS", e))? {
            self.set_session(index, false)?;
        }
        let addresses: Result<Vec<Address>, MapError> = self.peer_addresses.keys().collect();
        for address in addresses.map_err(|e| map_error("read", "PEER_ADDRESSES", e))? {
            self.set_peer_address(&address, false)?;
        }
        Ok(())
    }

    /// Lets the programs know the address of a peer, or forget it.
    ///
    /// # Errors
    /// When the map refuses, as when it is full.
    pub fn set_peer_address(&mut self, address: &Address, known: bool) -> Result<(), Error> {
        if known {
            self.peer_addresses
                .insert(address, PeerAddress { flags: 1 }, 0)
                .map_err(|e| map_error("write", "PEER_ADDRESSES", e))
        } else {
            gone(self.peer_addresses.remove(address), "PEER_ADDRESSES")
        }
    }

    pub(super) fn write_one(&mut self, write: &MapUpdate) -> Result<(), Error> {
        let put =
            |result: Result<(), MapError>, map| result.map_err(|e| map_error("write", map, e));
        match write {
            MapUpdate::Config(v) => put(self.config.set(0, *v, 0), "CONFIG"),
            MapUpdate::Attachment(k, Some(v)) => {
                put(self.attachments.insert(k, v, 0), "ATTACHMENTS")
            }
            MapUpdate::Attachment(k, None) => gone(self.attachments.remove(k), "ATTACHMENTS"),
            MapUpdate::Network(k, v) => put(
                self.networks
                    .set(*k, v.as_deref().copied().unwrap_or_default(), 0),
                "NETWORKS",
            ),
            MapUpdate::Tenant(k, v) => {
                put(self.tenants.set(*k, v.unwrap_or_default(), 0), "TENANTS")
            }
            MapUpdate::Peer(k, v) => put(
                self.peers
                    .set(*k, v.as_deref().copied().unwrap_or_default(), 0),
                "PEERS",
            ),
            MapUpdate::Tunnel(k, Some(v)) => put(self.tunnels.insert(k, v, 0), "TUNNELS"),
            MapUpdate::Tunnel(k, None) => gone(self.tunnels.remove(k), "TUNNELS"),
            MapUpdate::Endpoint(k, Some(v)) => put(self.endpoints.insert(k, v, 0), "ENDPOINTS"),
            MapUpdate::Endpoint(k, None) => gone(self.endpoints.remove(k), "ENDPOINTS"),
            MapUpdate::Route((bits, k), v) => {
                let key = Key::new(ROUTE_KEY_BITS + bits, *k);
                match v {
                    Some(v) => put(self.routes.insert(&key, v, 0), "ROUTES"),
                    None => gone(self.routes.remove(&key), "ROUTES"),
                }
            }
            MapUpdate::Policy(k, Some(v)) => put(self.policies.insert(k, v, 0), "POLICIES"),
            MapUpdate::Policy(k, None) => gone(self.policies.remove(k), "POLICIES"),
            MapUpdate::Nat(v) => put(self.nat.set(0, *v, 0), "NAT"),
            MapUpdate::Share(k, v) => put(self.shares.set(*k, v.unwrap_or_default(), 0), "SHARES"),
            MapUpdate::NatAddress(k, v) => put(
                self.nat_addresses.set(*k, v.unwrap_or_default(), 0),
                "NAT_ADDRESSES",
            ),
            MapUpdate::Public(k, Some(v)) => put(self.public.insert(k, v, 0), "PUBLIC"),
            MapUpdate::Public(k, None) => gone(self.public.remove(k), "PUBLIC"),
            MapUpdate::Rule(k, v) => put(self.rules.set(*k, *v, 0), "RULES"),
            MapUpdate::RulePorts((bits, k), v) => {
                let key = Key::new(port_bits(*bits), *k);
                match v {
                    Some(v) => put(self.rule_ports.insert(&key, v, 0), "RULE_PORTS"),
                    None => gone(self.rule_ports.remove(&key), "RULE_PORTS"),
                }
            }
            MapUpdate::RuleSource((bits, k), v) => {
                let key = Key::new(source_bits(*bits), *k);
                match v {
                    Some(v) => put(self.rule_sources.insert(&key, v, 0), "RULE_SOURCES"),
                    None => gone(self.rule_sources.remove(&key), "RULE_SOURCES"),
                }
            }
            MapUpdate::OneToOne(k, Some(v)) => put(self.one_to_one.insert(k, v, 0), "ONE_TO_ONE"),
            MapUpdate::OneToOne(k, None) => gone(self.one_to_one.remove(k), "ONE_TO_ONE"),
        }
    }
}

fn gone(result: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(error) => Err(map_error("delete from", map, error)),
    }
}
