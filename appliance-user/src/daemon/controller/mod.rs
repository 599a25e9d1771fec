//! The controller: configuration and state in force, and the parts of the machine that follow them.
//!
//! For: what a change is about. Only the controller attaches programs, writes tables, and gives
//! tunnels their peers; others read it by shared borrows, and change what is in force by a
//! [`Proposal`]. Never: polling the engines. It tells them what is in force; the loop polls them
//! and carries their outputs out.
//!
//! | module | contents |
//! |---|---|
//! | `in_force` | configuration, keys and state in force, and a proposal of others; their files |
//! | `change` | the one transactional change |
//! | `apply` | programs, maps, tunnels and engines brought in line with what is in force |
//! | `switch` | the state after a switch of modes; pure |
//! | `interfaces` | NICs and programs |
//! | `served_addresses`, `groups` | addresses that it answers for, groups that ports listen to; pure |
//! | `tables` | programs, maps, and a copy of the tables |
//! | `tunnels`, `timestamp_writer` | the tunnel manager, and what it keeps on the disk |
//! | `gateway_names`, `path_watch` | DNS names of gateways, watched routes |
//! | `health` | problems of the failovers in force |

mod apply;
mod change;
mod gateway_names;
mod groups;
mod health;
mod in_force;
mod interfaces;
mod path_watch;
mod served_addresses;
pub(super) mod switch;
mod tables;
mod timestamp_writer;
mod tunnels;

use std::time::Instant;

use appliance_common::{
    addr::{Address, from_ip},
    maps::{HostKey, Neighbour, neighbour_flags},
};

pub(super) use self::{
    gateway_names::GatewayNames,
    in_force::{Files, InForce, Proposal, assign_slots},
    interfaces::names as interface_names,
    served_addresses::watched_outside,
    tables::Tables,
    tunnels::Tunnels,
};
use self::{health::FailoverHealth, interfaces::Interfaces, path_watch::PathWatch};
use super::engines::{Engines, ServedAddresses};
use crate::{
    config::Config,
    datapath::{Datapath, reconcile::MapContents},
    kernel::underlay::{Snapshot, Watcher},
    state::State,
};

/// Configuration, keys and state in force, and the parts of the machine that follow them.
pub(super) struct Controller {
    files: Files,
    in_force: InForce,
    /// Links, addresses and routes, as the kernel last reported them.
    snapshot: Snapshot,
    tables: Tables,
    interfaces: Interfaces,
    tunnels: Tunnels,
    gateway_names: GatewayNames,
    path_watch: PathWatch,
    health: FailoverHealth,
    /// The data path could not be brought in line: it is tried again each second.
    incomplete: bool,
    /// The neighbours that an earlier process left in the map were taken over.
    adopted_neighbours: bool,
}

/// An event of the controller's own parts.
pub(super) enum Event {
    /// Handshakes, timers or reports of the workers.
    Tunnels,
    /// Addresses of gateways changed.
    GatewaysMoved,
}

impl Controller {
    /// A controller that has not applied anything yet.
    pub fn new(
        files: Files,
        in_force: InForce,
        snapshot: Snapshot,
        tables: Tables,
        tunnels: Tunnels,
        gateway_names: GatewayNames,
        watcher: Watcher,
    ) -> Self {
        Self {
            files,
            in_force,
            snapshot,
            tables,
            interfaces: Interfaces::default(),
            tunnels,
            gateway_names,
            path_watch: PathWatch::new(watcher),
            health: FailoverHealth::default(),
            incomplete: false,
            adopted_neighbours: false,
        }
    }

    /// Applies what is in force for the first time.
    ///
    /// # Errors
    /// When the data path could not be brought in line.
    pub fn start(&mut self, engines: &mut Engines) -> anyhow::Result<()> {
        self.tunnels.write_all(self.tables.contents());
        self.set_peers();
        self.tunnels.listen_or_retry(&self.in_force.config);
        self.check_sending();
        self.apply_snapshot(engines)
    }

    /// The files that a change reads and writes.
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// Configuration, keys and state in force.
    pub const fn in_force(&self) -> &InForce {
        &self.in_force
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.in_force.config
    }

    /// The operator's decisions in force.
    pub const fn state(&self) -> &State {
        &self.in_force.state
    }

    /// Links, addresses and routes, as the kernel last reported them.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The tables that the maps hold.
    pub const fn tables(&self) -> &MapContents {
        self.tables.contents()
    }

    /// Programs and maps.
    pub const fn datapath(&self) -> &Datapath {
        &self.tables.datapath
    }

    /// Programs and maps, for what changes no table: traces, and frames that run through a program.
    pub const fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.tables.datapath
    }

    /// The interfaces that the configuration names.
    pub const fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// The encrypted tunnels.
    pub const fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// DNS names of gateways, with the addresses that were found for them.
    pub const fn gateway_names(&self) -> &GatewayNames {
        &self.gateway_names
    }

    /// Takes what the kernel reports now, and applies it.
    ///
    /// # Errors
    /// When the data path could not follow whole; it is tried again each second.
    pub fn take_snapshot(
        &mut self,
        snapshot: Snapshot,
        engines: &mut Engines,
    ) -> anyhow::Result<()> {
        self.snapshot = snapshot;
        self.apply_snapshot(engines)
    }

    /// Waits for the tunnels, and for addresses of gateways.
    pub async fn event(&mut self) -> Event {
        tokio::select! {
            () = self.tunnels.ready() => Event::Tunnels,
            () = self.gateway_names.changed() => Event::GatewaysMoved,
        }
    }

    /// When the tunnels or the interfaces have something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.tunnels.next_deadline(), self.interfaces.next_report()];
        deadlines.into_iter().flatten().min()
    }

    /// Polls the tunnels, and hands the workers' reports to the engines.
    pub fn work_tunnels(&mut self, engines: &mut Engines) {
        let config = &self.in_force.config;
        let worked = self.tunnels.work(&mut self.tables.datapath, |name| {
            config.peer(name).is_some()
        });
        let now = Instant::now();
        for key in worked.hosts.used {
            engines.observed(now, key, neighbour_flags::USED);
        }
        let tables = self.tables.contents();
        for waiting in &worked.hosts.unresolved {
            engines.waiting_packet(now, &waiting.header, waiting.packet(), tables);
        }
        if worked.moved {
            self.watch_paths();
        }
        if worked.mtu_changed
            && let Err(error) = self.reconcile()
        {
            self.incomplete = true;
            tracing::error!(%error, "cannot apply a change of path MTU; retrying every second");
        }
    }

    /// Gives the tunnels the new addresses of gateways.
    pub fn gateways_moved(&mut self) {
        self.set_peers();
        self.underlay_changed();
    }

    /// The next report to snooping switches of the multicast groups that a port listens to, and the
    /// interface to send it on.
    pub fn poll_reports(&mut self, now: Instant) -> Option<(u32, Vec<u8>)> {
        self.interfaces.poll_reports(now)
    }

    /// Repeats what failed, and checks what changes without a notification. To be called every
    /// second.
    pub fn each_second(&mut self) {
        if !self.gateway_names.is_empty() && self.tunnels.gateways_troubled() {
            self.gateway_names.expedite();
        }
        self.tables.datapath.flush_program_log();
        self.check_sending();
        if self
            .tunnels
            .retry(&self.snapshot, &mut self.tables.datapath)
        {
            self.incomplete = true;
        }
        // Where a change failed half way, the watched paths may be the previous ones.
        self.watch_paths();
    }

    /// Checks the settings of the interfaces, which operators and their tools change.
    pub fn check_interfaces(&mut self, now: Instant) {
        self.interfaces.check(
            now,
            &self.in_force.config,
            &self.snapshot,
            &self.tables.datapath,
        );
    }

    /// Whether the data path is not in line, and is to be applied again: an interface may have
    /// become usable, a map may have room again.
    pub fn is_incomplete(&self) -> bool {
        self.interfaces.incomplete() || self.incomplete
    }

    /// Writes a neighbour, to the workers as well.
    pub fn install_neighbour(&mut self, key: HostKey, neighbour: Neighbour) {
        self.tables
            .install_neighbour(&mut self.tunnels, key, neighbour);
    }

    /// Writes that a host did not answer, to the workers as well.
    pub fn install_absent(&mut self, key: HostKey) {
        self.tables.install_absent(&mut self.tunnels, key);
    }

    /// Removes a neighbour, from the workers' tables as well.
    pub fn remove_neighbour(&mut self, key: HostKey) {
        self.tables.remove_neighbour(&mut self.tunnels, key);
    }

    /// Reads the flags that the programs set in a neighbour's entry, and clears them.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn take_flags(&mut self, key: &HostKey) -> Result<u32, crate::datapath::Error> {
        self.tables.take_flags(key)
    }

    /// The addresses that the appliance would answer for with a state and its tables.
    fn served_addresses(
        &self,
        state: &State,
        engines: &Engines,
        tables: &MapContents,
    ) -> ServedAddresses {
        let config = &self.in_force.config;
        served_addresses::served_addresses((config, state), &self.snapshot, engines, tables)
    }

    /// The addresses that the appliance would answer for with a state.
    pub fn served_addresses_with(&self, state: &State, engines: &Engines) -> ServedAddresses {
        let tables = self.wanted(&self.in_force.config, state);
        self.served_addresses(state, engines, &tables)
    }

    /// The addresses of this appliance, as the kernel and the configuration have them.
    pub fn own_addresses(&self) -> Vec<Address> {
        let links = self.snapshot.links.values();
        let of_links = links.flat_map(|l| l.addresses.iter().map(|(a, _)| *a));
        of_links
            .chain(self.in_force.config.uplink.local.iter().copied())
            .map(from_ip)
            .collect()
    }

    /// The index of the uplink; `None` while there is no such link.
    pub fn uplink_index(&self) -> Option<u32> {
        let uplink = &self.in_force.config.uplink.interface;
        self.snapshot.links.get(uplink).map(|link| link.ifindex)
    }

    /// The uplink's own address of a family; of IPv6 ones the link-local one, where there is one.
    pub fn uplink_sender(&self, v4: bool) -> Option<Address> {
        let link = self
            .snapshot
            .links
            .get(&self.in_force.config.uplink.interface)?;
        let addresses = link.addresses.iter().map(|(address, _)| *address);
        let mut of_family: Vec<_> = addresses.filter(|a| a.is_ipv4() == v4).collect();
        of_family
            .sort_by_key(|a| !matches!(a, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()));
        of_family.first().copied().map(from_ip)
    }

    /// Tells the other ends and gateways that this process ends.
    pub fn close(&mut self) {
        self.tunnels.close();
    }
}
