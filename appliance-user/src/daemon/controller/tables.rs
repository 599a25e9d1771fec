//! Programs and maps, and a copy of the tables that the maps hold.
//!
//! For: writing the wanted contents to the maps and to the workers' tables. Never: computing the
//! wanted contents (`reconcile`), or deciding when to write them (the controller).

use appliance_common::{
    addr::from_ip,
    maps::{self, HostKey, Neighbour, SCHEMA_VERSION, neighbour_flags},
};

use super::tunnels::Tunnels;
use crate::{
    config::Config,
    datapath::reconcile::{self, MapContents},
    datapath::{Datapath, Error},
    kernel::underlay::{PathError, Snapshot, UnderlayPath},
    state::State,
};

/// Programs, maps, and the tables that the maps hold.
pub(in crate::daemon) struct Tables {
    pub datapath: Datapath,
    contents: MapContents,
}

impl Tables {
    /// Reads the contents of the maps.
    pub fn new(datapath: Datapath) -> Result<Self, Error> {
        let contents = datapath.read()?;
        Ok(Self { datapath, contents })
    }

    /// The contents of the maps.
    pub const fn contents(&self) -> &MapContents {
        &self.contents
    }

    /// Whether the maps have a configuration: of this process, or of an earlier one.
    pub const fn is_configured(&self) -> bool {
        self.contents.config.version == SCHEMA_VERSION
    }

    /// Writes the difference between the present and the wanted contents to the maps and to the
    /// workers.
    ///
    /// # Errors
    /// The map that refused. The copy and the workers' tables then equal the maps.
    pub fn write(&mut self, tunnels: &mut Tunnels, wanted: MapContents) -> Result<(), Error> {
        let wanted = reconcile::assign_rule_epochs(&self.contents, wanted);
        let writes = reconcile::diff(&self.contents, &wanted);
        if !writes.is_empty() {
            tracing::debug!(writes = writes.len(), "BPF maps written");
        }
        // The workers first: a program hands them packets as soon as its map says so.
        tunnels.write(&writes);
        let result = self.datapath.write(&mut self.contents, &writes);
        if result.is_err() {
            tunnels.write(&reconcile::diff(&wanted, &self.contents));
        }
        result
    }

    /// Keeps the header of a peer whose next hop is being looked up, or does not answer just now:
    /// the last known MAC address is right far more often than none, and a restart must not lose
    /// packets.
    pub fn retain_last_paths(
        &self,
        wanted: &mut MapContents,
        config: &Config,
        state: &State,
        snapshot: &Snapshot,
    ) {
        let local = reconcile::local_addresses(config, snapshot);
        for peer in &config.peers {
            let (Some(slot), Some(address)) = (state.slots.peers.get(&peer.name), peer.plain())
            else {
                continue;
            };
            let passing = matches!(
                snapshot.paths.get(&address),
                None | Some(UnderlayPath::Unresolved {
                    reason: PathError::Pending | PathError::NextHopUnresolved { .. }
                })
            );
            let (Some(old), true) = (self.contents.peers.get(slot), passing) else {
                continue;
            };
            let mac = |at: usize| {
                let mut mac = [0; 6];
                mac.copy_from_slice(&old.header[at..at + 6]);
                mac
            };
            let same = local
                .iter()
                .filter(|l| l.is_ipv4() == address.is_ipv4())
                .filter_map(|l| {
                    maps::Peer::new(
                        old.ifindex,
                        mac(0),
                        mac(6),
                        &from_ip(*l),
                        &from_ip(address),
                        config.uplink.port,
                    )
                })
                .any(|header| header == *old);
            if same {
                wanted.peers.insert(*slot, *old);
            }
        }
    }

    /// Writes a neighbour, to the workers as well.
    pub fn install_neighbour(&mut self, tunnels: &mut Tunnels, key: HostKey, neighbour: Neighbour) {
        tunnels.neighbour(key, Some(neighbour));
        if let Err(error) = self.datapath.set_neighbour(&key, &neighbour) {
            tracing::error!(%error, "cannot write a neighbour");
        }
    }

    /// Writes that a host did not answer, to the workers as well.
    pub fn install_absent(&mut self, tunnels: &mut Tunnels, key: HostKey) {
        let absent = Neighbour::absent().hashed(&key);
        tunnels.neighbour(key, Some(absent));
        if let Err(error) = self.datapath.set_neighbour(&key, &absent) {
            tracing::error!(%error, "cannot write that a host is absent");
        }
    }

    /// Removes a neighbour, from the workers' tables as well.
    pub fn remove_neighbour(&mut self, tunnels: &mut Tunnels, key: HostKey) {
        tunnels.neighbour(key, None);
        if let Err(error) = self.datapath.remove_neighbour(&key) {
            tracing::error!(%error, "cannot remove a neighbour");
        }
    }

    /// Reads the flags that the programs set in a neighbour's entry, and clears them. Zero where
    /// there is no entry, or none is set.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn take_flags(&mut self, key: &HostKey) -> Result<u32, Error> {
        let Some(mut neighbour) = self.datapath.neighbour(key)? else {
            return Ok(0);
        };
        let seen = neighbour.flags & (neighbour_flags::CONFIRMED | neighbour_flags::USED);
        if seen != 0 {
            neighbour.flags &= !seen;
            self.datapath.update_neighbour(key, &neighbour)?;
        }
        Ok(seen)
    }
}
