//! Configuration, keys and the operator's decisions that are in force, and the files that they come
//! from.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use appliance_common::{
    limits::{MAX_NETWORKS, MAX_PEERS, MAX_TENANTS},
    maps::{HostKey, Mode},
};

use super::interfaces;
use crate::{
    config::{Config, Role, Tenant},
    daemon::keys::Keys,
    datapath::reconcile::{self, host_key, mode_of},
    state::{State, Store, assign},
};

/// The configuration in force with its keys, and the operator's decisions.
pub(in crate::daemon) struct InForce {
    pub config: Config,
    pub keys: Keys,
    pub state: State,
}

/// A change of what is in force, as a request wants it. Without `file` the configuration stays.
pub(in crate::daemon) struct Proposal {
    pub file: Option<Box<(Config, Keys)>>,
    pub state: State,
}

impl Proposal {
    /// The configuration that it puts in force, if `present` is in force now.
    pub(super) fn config<'a>(&'a self, present: &'a Config) -> &'a Config {
        self.file.as_ref().map_or(present, |file| &file.0)
    }

    /// Another state with the same configuration.
    pub const fn state(state: State) -> Self {
        Self { file: None, state }
    }
}

impl InForce {
    /// Puts a proposal in force in memory. Returns the proposal that undoes it.
    pub(super) fn swap(&mut self, proposal: Proposal) -> Proposal {
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
    pub(super) fn modes(&self) -> BTreeSet<(u32, u32)> {
        let networks = self.config.networks.iter();
        networks
            .map(|n| (n.vni, mode_of(&self.state, &n.tenant) as u32))
            .collect()
    }

    /// The endpoints that are in force: those of tenants in partial failover.
    pub(super) fn endpoints(&self) -> BTreeSet<HostKey> {
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
    pub(super) fn rule_targets(&self) -> BTreeSet<HostKey> {
        reconcile::rule_targets(&self.config, &self.state)
    }

    /// Hosts that are kept resolved without traffic: routers at the production site; at the
    /// provider replicas, and the targets of rules.
    pub(super) fn retained_hosts(&self) -> Vec<HostKey> {
        match self.config.role {
            Role::Tenant => interfaces::routers(&self.config),
            Role::Provider => {
                let hosts = self.endpoints().into_iter();
                hosts.chain(self.rule_targets()).collect()
            }
        }
    }
}

/// The files that a change reads and writes.
pub(in crate::daemon) struct Files {
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
pub(in crate::daemon) fn assign_slots(config: &Config, state: &mut State) -> bool {
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
