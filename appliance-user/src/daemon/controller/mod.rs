//! The controller: configuration and state in force, and the one way in which they change.
//!
//! ```text
//!   request ─▶ checks (requests/) ─▶ Proposal
//!                                      │ refused: nothing was touched
//!   change: tables ─▶ bind, write state.json.new ─▶ NICs, maps ─▶ rename ─▶ peers, announce
//!               │       │ on another thread              └─ fails ───┤
//!               └───────┴─ refused        refused, all are put back ─┘
//! ```
//!
//! A refused request changes nothing: neither files nor maps, and nothing is announced to hosts.
//! What cannot be put back comes after all that can fail: a peer that is removed loses its session,
//! a listener its address.

pub(super) mod switch;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use appliance_common::{
    addr::as_v4,
    limits::{MAX_NETWORKS, MAX_PEERS, MAX_TENANTS},
    maps::{HostKey, Mode},
};
use tunnel_worker::ListenerSetup;

use super::{Daemon, claims, groups, interfaces, keys::Keys};
use crate::{
    config::{Config, Role, Tenant},
    control::RequestRefusal,
    datapath::reconcile::{self, MapContents, host_key, mode_of},
    engine::neighbour::Senders,
    kernel::underlay::Snapshot,
    state::{State, Store, assign},
};

/// The configuration in force with its keys, and the operator's decisions.
pub(super) struct InForce {
    pub config: Config,
    pub keys: Keys,
    pub state: State,
}

/// A checked change of what is in force. Without `file` the configuration stays.
pub(super) struct Proposal {
    pub file: Option<Box<(Config, Keys)>>,
    pub state: State,
}

impl Proposal {
    /// The configuration that it puts in force, if `present` is in force now.
    fn config<'a>(&'a self, present: &'a Config) -> &'a Config {
        self.file.as_ref().map_or(present, |file| &file.0)
    }

    /// Another state with the same configuration.
    pub const fn state(state: State) -> Self {
        Self { file: None, state }
    }
}

impl InForce {
    /// Puts a proposal in force in memory. Returns the proposal that undoes it.
    fn swap(&mut self, proposal: Proposal) -> Proposal {
        let file = proposal.file.map(|file| {
            let (config, keys) = *file;
            Box::new((
                std::mem::replace(&mut self.config, config),
                std::mem::replace(&mut self.keys, keys),
            ))
        });
        Proposal {
            file,
            state: std::mem::replace(&mut self.state, proposal.state),
        }
    }

    /// Whether some tenant is in full failover.
    pub fn any_full(&self) -> bool {
        let full = |tenant: &Tenant| mode_of(&self.state, &tenant.name) == Mode::Full;
        self.config.tenants.iter().any(full)
    }

    /// The VNIs of networks with their tenants' modes.
    fn modes(&self) -> BTreeSet<(u32, u32)> {
        let networks = self.config.networks.iter();
        networks
            .map(|n| (n.vni, mode_of(&self.state, &n.tenant) as u32))
            .collect()
    }

    /// The endpoints that are in force: those of tenants in partial failover.
    fn endpoints(&self) -> BTreeSet<HostKey> {
        self.config
            .networks
            .iter()
            .filter(|n| mode_of(&self.state, &n.tenant) == Mode::Partial)
            .flat_map(|n| {
                let addresses = self.state.endpoints.get(&n.name).into_iter().flatten();
                addresses.map(|address| host_key(n.vni, *address))
            })
            .collect()
    }

    /// Hosts of full failover that rules lead to.
    fn rule_targets(&self) -> BTreeSet<HostKey> {
        reconcile::rule_targets(&self.config, &self.state)
    }

    /// Hosts that are kept resolved without traffic: routers at the production site; at the
    /// provider replicas, and the targets of rules.
    fn retained_hosts(&self) -> Vec<HostKey> {
        match self.config.role {
            Role::Tenant => interfaces::routers(&self.config),
            Role::Provider => {
                let hosts = self.endpoints().into_iter();
                hosts.chain(self.rule_targets()).collect()
            }
        }
    }
}

/// The state that hosts on the wire know, to announce the difference after a change.
struct Announced {
    modes: BTreeSet<(u32, u32)>,
    endpoints: BTreeSet<HostKey>,
    rule_targets: BTreeSet<HostKey>,
}

impl Announced {
    fn of(in_force: &InForce) -> Self {
        Self {
            modes: in_force.modes(),
            endpoints: in_force.endpoints(),
            rule_targets: in_force.rule_targets(),
        }
    }
}

/// The files that a change reads and writes.
pub(super) struct Files {
    pub config: PathBuf,
    pub store: Store,
}

impl Files {
    pub fn new(config: &Path, state_dir: &Path) -> Self {
        Self {
            config: config.to_owned(),
            store: Store::new(state_dir),
        }
    }
}

/// Gives tenants, peers, networks and rules their slots. Returns whether any slot changed.
pub(super) fn assign_slots(config: &Config, state: &mut State) -> bool {
    let before = state.slots.clone();
    let tenants: Vec<&str> = config.tenants.iter().map(|t| t.name.as_str()).collect();
    let peers: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
    let networks: Vec<&str> = config.networks.iter().map(|n| n.name.as_str()).collect();
    assign(&mut state.slots.tenants, &tenants, MAX_TENANTS);
    assign(&mut state.slots.peers, &peers, MAX_PEERS);
    assign(&mut state.slots.networks, &networks, MAX_NETWORKS);
    state.assign_rule_slots();
    state.slots != before
}

impl Daemon {
    /// Puts a proposal in force, whole or not at all: see the [module](self).
    ///
    /// # Errors
    /// The refusal. Everything is then as it was before.
    pub(super) async fn change(&mut self, mut proposal: Proposal) -> Result<(), RequestRefusal> {
        // Prepare. Nothing of this touches a file, a map or the wire.
        let config = match &proposal.file {
            Some(file) => &file.0,
            None => &self.in_force.config,
        };
        assign_slots(config, &mut proposal.state);
        self.checked_tables(&proposal)?;
        let internal = |error: anyhow::Error| RequestRefusal::new("internal", format!("{error:#}"));

        // Bind the addresses, and write the state beside the old one: a change that fails needs no
        // disk to be undone.
        let config = proposal.file.as_ref().map(|file| &file.0);
        let setup = config.and_then(|config| self.tunnels.listener_setup(config));
        let (store, state) = (self.files.store.clone(), proposal.state.clone());
        let prepared = self.on_disk(move || {
            let listener = setup.map(ListenerSetup::prepare).transpose();
            let listener = listener.map_err(|error| {
                let message = format!("tls.listen: {error}; nothing was changed");
                RequestRefusal::new("invalid", message)
            })?;
            let state = store
                .prepare(&state)
                .context("the state could not be saved; nothing was changed")
                .map_err(internal)?;
            Ok::<_, RequestRefusal>((listener, state))
        });
        let (listener, state) = prepared.await.map_err(internal)??;

        // Apply. Links and routes may have changed since the check.
        let wanted = self.checked_tables(&proposal)?;
        let before = Announced::of(&self.in_force);
        let reload = proposal.file.is_some();
        let undo = self.in_force.swap(proposal);
        let now = Instant::now();
        let applied = if reload {
            self.apply_configuration(now)
        } else {
            self.write_tables(wanted).map_err(Into::into)
        };
        // A change in force must survive the process.
        let committed = applied.and_then(|()| state.commit().map_err(Into::into));
        let committed = match committed {
            Ok(committed) => committed,
            Err(error) => {
                self.in_force.swap(undo);
                self.roll_back(now, reload);
                return Err(internal(
                    error.context("the change could not be applied and was undone"),
                ));
            }
        };

        // Nothing below can fail. Peers come after the tables: those that are removed lose their
        // sessions.
        if reload {
            self.set_peers();
            self.tunnels.listen(&self.in_force.config, listener);
            self.underlay_changed();
        }

        // Tell the wire.
        self.update_senders(now);
        self.notify_engines(now, &before);
        if reload {
            self.keep_hosts_resolved(now);
        }
        self.update_claims(now);
        self.report_problems();

        // The request is answered when the new name of the file is on the disk, too.
        if let Err(error) = self.on_disk(move || committed.sync()).await {
            tracing::warn!(error = format!("{error:#}"), "cannot synchronize the state");
        }
        Ok(())
    }

    /// The tables that a proposal wants.
    ///
    /// # Errors
    /// When a map has no room for them.
    fn checked_tables(&self, proposal: &Proposal) -> Result<MapContents, RequestRefusal> {
        let wanted = self.wanted(proposal.config(&self.in_force.config), &proposal.state);
        wanted
            .check_capacity()
            .map_err(|message| RequestRefusal::new("conflict", message))?;
        Ok(wanted)
    }

    /// Restores programs and maps after a failed change. A failure is tried again each second.
    fn roll_back(&mut self, now: Instant, reload: bool) {
        let applied = if reload {
            self.apply_configuration(now)
        } else {
            self.reconcile().map_err(Into::into)
        };
        if let Err(error) = applied {
            self.incomplete = true;
            tracing::error!(
                error = format!("{error:#}"),
                "cannot restore the data path after a failed change; retrying every second"
            );
        }
    }

    /// Applies the configuration in force to programs, ports and maps.
    fn apply_configuration(&mut self, now: Instant) -> anyhow::Result<()> {
        self.apply_links(now)?;
        self.reconcile()?;
        Ok(())
    }

    /// Applies the kernel's newest snapshot of links, addresses and routes.
    ///
    /// # Errors
    /// When the data path could not follow whole; it is tried again each second.
    pub(super) fn apply_snapshot(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.incomplete = true;
        if !self.forwarding.is_configured() {
            // A program without a configuration passes everything to the kernel, a tenant's packets
            // included: new maps are written before programs are attached. Workers' sockets follow,
            // which need attached programs.
            self.reconcile()?;
        }
        self.apply_links(now)?;
        self.reconcile()?;
        self.underlay_changed();
        self.update_senders(now);
        self.update_claims(now);
        self.report_problems();
        if !self.adopted_neighbours {
            self.adopt_neighbours(now)?;
            self.adopted_neighbours = true;
        }
        self.keep_hosts_resolved(now);
        self.incomplete = false;
        Ok(())
    }

    /// Keeps hosts resolved whatever the traffic.
    fn keep_hosts_resolved(&mut self, now: Instant) {
        let config = &self.in_force.config;
        if config.role == Role::Tenant {
            self.engines.confirm_often(interfaces::routers(config));
        }
        self.engines
            .retain_resolved(now, self.in_force.retained_hosts());
    }

    /// Programs on interfaces, workers' sockets, and the networks' ports.
    fn apply_links(&mut self, now: Instant) -> anyhow::Result<()> {
        let config = &self.in_force.config;
        self.interfaces
            .attach(config, &self.snapshot, &mut self.forwarding.datapath)?;
        self.tunnels
            .set_sockets(&self.snapshot, &mut self.forwarding.datapath);
        let ports = interfaces::network_ports(config, &self.snapshot);
        self.engines.set_ports(now, ports);
        self.sender.forget_gone(&self.snapshot);
        Ok(())
    }

    /// The tables for a configuration and a state.
    pub(super) fn wanted(&self, config: &Config, state: &State) -> MapContents {
        reconcile::desired(config, state, &self.snapshot, self.tunnels.observed())
    }

    /// Writes the difference between what the maps hold and what they should.
    pub(super) fn reconcile(&mut self) -> Result<(), crate::datapath::Error> {
        let wanted = self.wanted(&self.in_force.config, &self.in_force.state);
        self.write_tables(wanted)
    }

    fn write_tables(&mut self, mut wanted: MapContents) -> Result<(), crate::datapath::Error> {
        let InForce { config, state, .. } = &self.in_force;
        self.forwarding
            .retain_last_paths(&mut wanted, config, state, &self.snapshot);
        self.forwarding.write(&mut self.tunnels, wanted)
    }

    /// Gives the tunnels the peers that are in force.
    pub(super) fn set_peers(&mut self) {
        self.gateway_names.set(&self.in_force.config);
        self.tunnels.set_peers(
            &self.in_force,
            &self.gateway_names,
            &self.snapshot,
            &mut self.forwarding.datapath,
        );
    }

    pub(super) fn underlay_changed(&mut self) {
        self.tunnels.underlay_changed(
            &self.in_force.config,
            &self.snapshot,
            &mut self.forwarding.datapath,
        );
        self.watch_paths();
    }

    /// Takes over the neighbours that an earlier process left in the map; those of networks that
    /// are gone or moved are removed.
    fn adopt_neighbours(&mut self, now: Instant) -> Result<(), crate::datapath::Error> {
        for (key, neighbour) in self.forwarding.datapath.neighbours()? {
            if self.engines.adopt(now, key, neighbour) {
                self.tunnels.neighbour(key, Some(neighbour));
            } else {
                self.forwarding.datapath.remove_neighbour(&key)?;
            }
        }
        Ok(())
    }

    /// Tells the engines which addresses failed over and which went back, and which hosts are to be
    /// resolved.
    fn notify_engines(&mut self, now: Instant, before: &Announced) {
        let after = Announced::of(&self.in_force);
        let role = self.in_force.config.role;
        if role == Role::Provider {
            // The announcements of an earlier mode end: a replica that boots in the new one must
            // not hear that its address is in use.
            for (vni, _) in before.modes.difference(&after.modes) {
                self.engines.cancel_announcements(*vni);
            }
        }
        let partial = Mode::Partial as u32;
        for key in before.endpoints.difference(&after.endpoints) {
            let still_partial = after.modes.contains(&(key.vni, partial));
            self.engines
                .endpoint_removed(now, role, *key, still_partial);
        }
        for key in after.endpoints.difference(&before.endpoints) {
            self.engines.endpoint_added(now, role, *key);
        }
        let gone = before.rule_targets.difference(&after.rule_targets);
        for key in gone.filter(|key| !after.endpoints.contains(key)) {
            self.engines.release(now, *key);
        }
        self.engines.retain_resolved(now, after.rule_targets);
    }

    /// Gives the engines the addresses with which the appliance asks on its networks.
    fn update_senders(&mut self, now: Instant) {
        let tables = self.forwarding.tables();
        let InForce { config, state, .. } = &self.in_force;
        let senders = claims::senders((config, state), &self.snapshot, tables);
        self.engines.set_senders(now, &senders);
        let v4 = self.uplink_sender(true).and_then(|a| as_v4(&a));
        // Answers to a question with our IPv6 address go to the kernel, and those to a probe to all
        // nodes, which the program sees.
        let outside = Senders {
            v4: [v4, None],
            v6: None,
        };
        let outside = self.uplink_index().map(|ifindex| (ifindex, outside));
        self.engines.set_outside_senders(outside);
    }

    /// Has the wire know which addresses are the appliance's own: announces, listens, advertises.
    fn update_claims(&mut self, now: Instant) {
        let tables = self.forwarding.tables();
        let InForce { config, state, .. } = &self.in_force;
        let claims = claims::claims((config, state), &self.snapshot, &self.engines, tables);
        self.engines.set_claims(now, claims);
        self.update_groups(now);
        let routers = claims::routers(&self.in_force, &self.snapshot, &self.engines);
        self.engines.set_routers(now, routers);
        self.watch_paths();
    }

    /// Has the ports listen to the groups that they need.
    pub(super) fn update_groups(&mut self, now: Instant) {
        let InForce { config, state, .. } = &self.in_force;
        let groups = groups::wanted(
            config,
            |tenant| mode_of(state, tenant) == Mode::Partial,
            &self.in_force.endpoints(),
            self.engines.claims(),
            |vni| self.engines.port(vni),
            self.engines.checked_ports(),
        );
        self.interfaces.listen(now, &groups, &self.snapshot);
    }

    /// The addresses of this appliance, as the kernel and the configuration have them.
    pub(super) fn own_addresses(&self) -> Vec<appliance_common::addr::Address> {
        own_addresses(&self.in_force.config, &self.snapshot)
    }
}

fn own_addresses(config: &Config, snapshot: &Snapshot) -> Vec<appliance_common::addr::Address> {
    let links = snapshot.links.values();
    let of_links = links.flat_map(|l| l.addresses.iter().map(|(a, _)| *a));
    of_links
        .chain(config.uplink.local.iter().copied())
        .map(appliance_common::addr::from_ip)
        .collect()
}
