//! Reading and writing the maps.

use appliance_common::{
    addr::Address,
    limits::{MAX_ENDPOINTS, MAX_NEIGHBOURS, MAX_NETWORKS},
    maps::{HostKey, Neighbour, Network, Peer, PeerAddress, ROUTE_KEY_BITS, Session, Tenant},
    nat::{NatAddress, RULE_KEY_BITS, Rule, SOURCE_KEY_BITS, TenantQuota},
};
use aya::maps::{MapError, lpm_trie::Key};

use super::{
    Datapath, Error,
    contents::{MapContents, MapUpdate, port_bits, source_bits},
    error::map_error,
};

/// `BPF_EXIST` of `<linux/bpf.h>`: replace only.
const EXIST: u64 = 2;

/// Maximum number of entries of a pinned map.
pub(super) fn max_entries(path: &std::path::Path, name: &'static str) -> Result<u32, Error> {
    aya::maps::MapInfo::from_pin(path)
        .map(|info| info.max_entries())
        .map_err(|e| map_error("open", name, e))
}

impl Datapath {
    /// Checks that pinned maps have the sizes of this version: aya opens pinned maps without a
    /// comparison. Key and value sizes were checked when the maps were typed.
    pub(super) fn check_shape(&self) -> Result<(), Error> {
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
            if max_entries(&map, name)? != entries {
                return Err(wrong(name));
            }
        }
        Ok(())
    }

    /// Reads the contents of the maps, for a daemon that adopts them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<MapContents, Error> {
        let mut contents = MapContents {
            config: self
                .config
                .get(&0, 0)
                .map_err(|e| map_error("read", "CONFIG", e))?,
            ..MapContents::default()
        };
        for entry in self.attachments.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ATTACHMENTS", e))?;
            contents.attachments.insert(k, v);
        }
        for entry in self.tunnels.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "TUNNELS", e))?;
            contents.tunnels.insert(k, v);
        }
        for entry in self.endpoints.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ENDPOINTS", e))?;
            contents.endpoints.insert(k, v);
        }
        for entry in self.routes.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ROUTES", e))?;
            let bits = k.prefix_len().saturating_sub(ROUTE_KEY_BITS);
            contents.routes.insert((bits, k.data()), v);
        }
        for entry in self.policies.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "POLICIES", e))?;
            contents.policies.insert(k, v);
        }
        self.read_full(&mut contents)?;
        for (slot, value) in (0u32..).zip(self.networks.iter()) {
            let value = value.map_err(|e| map_error("read", "NETWORKS", e))?;
            if value != Network::default() {
                contents.networks.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.tenants.iter()) {
            let value = value.map_err(|e| map_error("read", "TENANTS", e))?;
            if value != Tenant::default() {
                contents.tenants.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.peers.iter()) {
            let value = value.map_err(|e| map_error("read", "PEERS", e))?;
            if value != Peer::default() {
                contents.peers.insert(slot, value);
            }
        }
        Ok(contents)
    }

    /// Reads the maps of full failover.
    fn read_full(&self, contents: &mut MapContents) -> Result<(), Error> {
        contents.nat = self
            .nat
            .get(&0, 0)
            .map_err(|e| map_error("read", "NAT", e))?;
        for (slot, value) in (0u32..).zip(self.quotas.iter()) {
            let value = value.map_err(|e| map_error("read", "QUOTAS", e))?;
            if value != TenantQuota::default() {
                contents.quotas.insert(slot, value);
            }
        }
        for (slot, value) in (0u32..).zip(self.nat_addresses.iter()) {
            let value = value.map_err(|e| map_error("read", "NAT_ADDRESSES", e))?;
            if value != NatAddress::default() {
                contents.nat_addresses.insert(slot, value);
            }
        }
        for entry in self.public.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "PUBLIC", e))?;
            contents.public.insert(k, v);
        }
        for (slot, value) in (0u32..).zip(self.rules.iter()) {
            let value = value.map_err(|e| map_error("read", "RULES", e))?;
            if value != Rule::default() {
                contents.rules.insert(slot, value);
            }
        }
        for entry in self.rule_ports.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "RULE_PORTS", e))?;
            let bits = k.prefix_len().saturating_sub(RULE_KEY_BITS);
            contents.rule_ports.insert((bits, k.data()), v);
        }
        for entry in self.rule_sources.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "RULE_SOURCES", e))?;
            let bits = k.prefix_len().saturating_sub(SOURCE_KEY_BITS);
            contents.rule_sources.insert((bits, k.data()), v);
        }
        for entry in self.one_to_one.iter() {
            let (k, v) = entry.map_err(|e| map_error("read", "ONE_TO_ONE", e))?;
            contents.one_to_one.insert(k, v);
        }
        Ok(())
    }

    /// All entries of `NEIGHBOURS`.
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
    /// When the write fails, for example because the map is full.
    pub fn set_neighbour(&mut self, key: &HostKey, neighbour: &Neighbour) -> Result<(), Error> {
        self.neighbours
            .insert(key, neighbour, 0)
            .map_err(|e| map_error("write", "NEIGHBOURS", e))
    }

    /// Replaces an entry of `NEIGHBOURS` if it still exists, for example to clear its flags.
    ///
    /// # Errors
    /// When the write fails for another reason.
    pub fn update_neighbour(&mut self, key: &HostKey, neighbour: &Neighbour) -> Result<(), Error> {
        match self.neighbours.insert(key, neighbour, EXIST) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_error("write", "NEIGHBOURS", error)),
        }
    }

    /// Deletes an entry of `NEIGHBOURS`, if it exists.
    ///
    /// # Errors
    /// When the deletion fails.
    pub fn remove_neighbour(&mut self, key: &HostKey) -> Result<(), Error> {
        ignore_missing(self.neighbours.remove(key), "NEIGHBOURS")
    }

    /// Puts an AF_XDP socket into a slot of `XSKS`.
    ///
    /// # Errors
    /// When the write fails, for example because the socket is bound to another interface.
    pub fn set_xsk(&mut self, slot: u32, socket: i32) -> Result<(), Error> {
        self.sockets
            .set(slot, socket, 0)
            .map_err(|e| map_error("write", "XSKS", e))
    }

    /// Adds the index of a session to `SESSIONS`, or removes it.
    ///
    /// # Errors
    /// When the write fails, for example because the map is full.
    pub fn set_session(&mut self, index: u32, known: bool) -> Result<(), Error> {
        if known {
            self.sessions
                .insert(index, Session { flags: 1 }, 0)
                .map_err(|e| map_error("write", "SESSIONS", e))
        } else {
            ignore_missing(self.sessions.remove(&index), "SESSIONS")
        }
    }

    /// Removes the sessions and peer addresses of an earlier process.
    pub(super) fn remove_sessions(&mut self) -> Result<(), Error> {
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

    /// Adds the address of a peer to `PEER_ADDRESSES`, or removes it.
    ///
    /// # Errors
    /// When the write fails, for example because the map is full.
    pub fn set_peer_address(&mut self, address: &Address, known: bool) -> Result<(), Error> {
        if known {
            self.peer_addresses
                .insert(address, PeerAddress { flags: 1 }, 0)
                .map_err(|e| map_error("write", "PEER_ADDRESSES", e))
        } else {
            ignore_missing(self.peer_addresses.remove(address), "PEER_ADDRESSES")
        }
    }

    /// Applies updates in order, to the maps and to `contents`, and stops at the first failure.
    ///
    /// # Errors
    /// When a map cannot be written. `contents` then matches the maps.
    pub fn write(
        &mut self,
        contents: &mut MapContents,
        updates: &[MapUpdate],
    ) -> Result<(), Error> {
        for update in updates {
            self.write_one(update)?;
            contents.apply(update);
        }
        Ok(())
    }

    fn write_one(&mut self, update: &MapUpdate) -> Result<(), Error> {
        let put =
            |result: Result<(), MapError>, map| result.map_err(|e| map_error("write", map, e));
        match update {
            MapUpdate::Config(v) => put(self.config.set(0, *v, 0), "CONFIG"),
            MapUpdate::Attachment(k, Some(v)) => {
                put(self.attachments.insert(k, v, 0), "ATTACHMENTS")
            }
            MapUpdate::Attachment(k, None) => {
                ignore_missing(self.attachments.remove(k), "ATTACHMENTS")
            }
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
            MapUpdate::Tunnel(k, None) => ignore_missing(self.tunnels.remove(k), "TUNNELS"),
            MapUpdate::Endpoint(k, Some(v)) => put(self.endpoints.insert(k, v, 0), "ENDPOINTS"),
            MapUpdate::Endpoint(k, None) => ignore_missing(self.endpoints.remove(k), "ENDPOINTS"),
            MapUpdate::Route((bits, k), v) => {
                let key = Key::new(ROUTE_KEY_BITS + bits, *k);
                match v {
                    Some(v) => put(self.routes.insert(&key, v, 0), "ROUTES"),
                    None => ignore_missing(self.routes.remove(&key), "ROUTES"),
                }
            }
            MapUpdate::Policy(k, Some(v)) => put(self.policies.insert(k, v, 0), "POLICIES"),
            MapUpdate::Policy(k, None) => ignore_missing(self.policies.remove(k), "POLICIES"),
            MapUpdate::Nat(v) => put(self.nat.set(0, *v, 0), "NAT"),
            MapUpdate::Quota(k, v) => put(self.quotas.set(*k, v.unwrap_or_default(), 0), "QUOTAS"),
            MapUpdate::NatAddress(k, v) => put(
                self.nat_addresses.set(*k, v.unwrap_or_default(), 0),
                "NAT_ADDRESSES",
            ),
            MapUpdate::Public(k, Some(v)) => put(self.public.insert(k, v, 0), "PUBLIC"),
            MapUpdate::Public(k, None) => ignore_missing(self.public.remove(k), "PUBLIC"),
            MapUpdate::Rule(k, v) => put(self.rules.set(*k, *v, 0), "RULES"),
            MapUpdate::RulePorts((bits, k), v) => {
                let key = Key::new(port_bits(*bits), *k);
                match v {
                    Some(v) => put(self.rule_ports.insert(&key, v, 0), "RULE_PORTS"),
                    None => ignore_missing(self.rule_ports.remove(&key), "RULE_PORTS"),
                }
            }
            MapUpdate::RuleSource((bits, k), v) => {
                let key = Key::new(source_bits(*bits), *k);
                match v {
                    Some(v) => put(self.rule_sources.insert(&key, v, 0), "RULE_SOURCES"),
                    None => ignore_missing(self.rule_sources.remove(&key), "RULE_SOURCES"),
                }
            }
            MapUpdate::OneToOne(k, Some(v)) => put(self.one_to_one.insert(k, v, 0), "ONE_TO_ONE"),
            MapUpdate::OneToOne(k, None) => ignore_missing(self.one_to_one.remove(k), "ONE_TO_ONE"),
        }
    }
}

/// Turns the error of a missing key into success.
fn ignore_missing(result: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
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
