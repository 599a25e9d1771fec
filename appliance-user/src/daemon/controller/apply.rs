//! Brings programs, maps, tunnels and engines in line with what is in force and with what the
//! kernel reports.

use std::time::Instant;

use appliance_common::{addr::as_v4, maps::Mode};

use super::{Controller, InForce, groups, interfaces, served_addresses};
use crate::{
    config::{Config, Role},
    daemon::engines::Engines,
    datapath::{
        self,
        reconcile::{self, MapContents, mode_of},
    },
    engine::neighbour::Senders,
    state::State,
};

impl Controller {
    /// Applies the kernel's newest snapshot of links, addresses and routes.
    ///
    /// # Errors
    /// When the data path could not follow whole; it is tried again each second.
    pub fn apply_snapshot(&mut self, engines: &mut Engines) -> anyhow::Result<()> {
        let now = Instant::now();
        self.incomplete = true;
        if !self.tables.is_configured() {
            // A program without a configuration passes everything to the kernel, a tenant's packets
            // included: new maps are written before programs are attached. Workers' sockets follow,
            // which need attached programs.
            self.reconcile()?;
        }
        self.apply_configuration(now, engines)?;
        self.underlay_changed();
        self.update_senders(now, engines);
        self.update_served_addresses(now, engines);
        self.report_problems();
        if !self.adopted_neighbours {
            self.adopt_neighbours(now, engines)?;
            self.adopted_neighbours = true;
        }
        self.keep_hosts_resolved(now, engines);
        self.incomplete = false;
        Ok(())
    }

    /// Applies the configuration in force to programs, ports and maps.
    pub(super) fn apply_configuration(
        &mut self,
        now: Instant,
        engines: &mut Engines,
    ) -> anyhow::Result<()> {
        self.apply_links(now, engines)?;
        self.reconcile()?;
        Ok(())
    }

    /// Programs on interfaces, workers' sockets, and the networks' ports.
    fn apply_links(&mut self, now: Instant, engines: &mut Engines) -> anyhow::Result<()> {
        let config = &self.in_force.config;
        self.interfaces
            .attach(config, &self.snapshot, &mut self.tables.datapath)?;
        self.tunnels
            .set_sockets(&self.snapshot, &mut self.tables.datapath);
        engines.set_ports(now, interfaces::network_ports(config, &self.snapshot));
        let slots = &self.in_force.state.slots.tenants;
        let tenant = |network: &crate::config::Network| {
            let slot = slots.get(&network.tenant)?;
            Some((network.vni, *slot))
        };
        engines.set_tenants(config.networks.iter().filter_map(tenant));
        Ok(())
    }

    /// The tables for a configuration and a state.
    pub(super) fn wanted(&self, config: &Config, state: &State) -> MapContents {
        reconcile::desired(config, state, &self.snapshot, self.tunnels.observed())
    }

    /// Writes the difference between what the maps hold and what they should.
    pub(super) fn reconcile(&mut self) -> Result<(), datapath::Error> {
        let wanted = self.wanted(&self.in_force.config, &self.in_force.state);
        self.write_tables(wanted)
    }

    pub(super) fn write_tables(&mut self, mut wanted: MapContents) -> Result<(), datapath::Error> {
        let InForce { config, state, .. } = &self.in_force;
        self.tables
            .retain_last_paths(&mut wanted, config, state, &self.snapshot);
        self.tables.write(&mut self.tunnels, wanted)
    }

    /// Gives the tunnels the peers that are in force.
    pub(super) fn set_peers(&mut self) {
        self.gateway_names.set(&self.in_force.config);
        self.tunnels.set_peers(
            &self.in_force,
            &self.gateway_names,
            &self.snapshot,
            &mut self.tables.datapath,
        );
    }

    pub(super) fn underlay_changed(&mut self) {
        self.tunnels.underlay_changed(
            &self.in_force.config,
            &self.snapshot,
            &mut self.tables.datapath,
        );
        self.watch_paths();
    }

    /// Takes over the neighbours that an earlier process left in the map; those of networks that
    /// are gone or moved are removed.
    fn adopt_neighbours(
        &mut self,
        now: Instant,
        engines: &mut Engines,
    ) -> Result<(), datapath::Error> {
        for (key, neighbour) in self.tables.datapath.neighbours()? {
            if engines.adopt(now, key, neighbour) {
                self.tunnels.neighbour(key, Some(neighbour));
            } else {
                self.tables.datapath.remove_neighbour(&key)?;
            }
        }
        Ok(())
    }

    /// Keeps hosts resolved whatever the traffic.
    pub(super) fn keep_hosts_resolved(&self, now: Instant, engines: &mut Engines) {
        let config = &self.in_force.config;
        if config.role == Role::Tenant {
            engines.confirm_often(interfaces::routers(config));
        }
        engines.retain_resolved(now, self.in_force.retained_hosts());
    }

    /// Gives the engines the addresses with which the appliance asks on its networks.
    pub(super) fn update_senders(&self, now: Instant, engines: &mut Engines) {
        let InForce { config, state, .. } = &self.in_force;
        let senders =
            served_addresses::senders((config, state), &self.snapshot, self.tables.contents());
        engines.set_senders(now, &senders);
        let v4 = self.uplink_sender(true).and_then(|a| as_v4(&a));
        // Answers to a question with our IPv6 address go to the kernel, and those to a probe to all
        // nodes, which the program sees.
        let outside = Senders {
            v4: [v4, None],
            v6: None,
        };
        let outside = self.uplink_index().map(|ifindex| (ifindex, outside));
        engines.set_outside_senders(outside);
    }

    /// Has the wire know which addresses are the appliance's own: announces, listens, advertises.
    pub(super) fn update_served_addresses(&mut self, now: Instant, engines: &mut Engines) {
        let addresses =
            self.served_addresses(&self.in_force.state, engines, self.tables.contents());
        engines.set_served_addresses(now, addresses);
        self.update_groups(now, engines);
        let routers = served_addresses::routers(&self.in_force, &self.snapshot, engines);
        engines.set_routers(now, routers);
        self.watch_paths();
    }

    /// Has the ports listen to the groups that they need.
    pub fn update_groups(&mut self, now: Instant, engines: &Engines) {
        let InForce { config, state, .. } = &self.in_force;
        let groups = groups::wanted(
            config,
            |tenant| mode_of(state, tenant) == Mode::Partial,
            &self.in_force.endpoints(),
            engines.served_addresses(),
            |vni| engines.port(vni),
            engines.checked_ports(),
        );
        self.interfaces.listen(now, &groups, &self.snapshot);
    }

    /// Watches the route to every address that a tunnel goes to, and those to the outside where
    /// there is NAT.
    pub(super) fn watch_paths(&mut self) {
        let config = &self.in_force.config;
        let full = self.in_force.any_full();
        let wanted = config
            .plain_peers()
            .chain(self.tunnels.watched())
            .chain(served_addresses::watched_outside(config, full))
            .collect();
        self.path_watch
            .confirm_neighbours(full.then_some(config.uplink.interface.as_str()));
        self.path_watch.set(wanted, interfaces::names(config));
    }
}
