//! Routes that the netlink watcher follows: those to tunnel ends, and those to the outside.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Daemon, claims, interfaces};
use crate::kernel::underlay::Watcher;

/// The watcher, and the routes that it was last asked to watch.
pub(super) struct PathWatch {
    watcher: Watcher,
    watched: (BTreeSet<IpAddr>, Vec<String>),
}

impl PathWatch {
    pub const fn new(watcher: Watcher) -> Self {
        Self {
            watcher,
            watched: (BTreeSet::new(), Vec::new()),
        }
    }

    /// Watches the routes to these addresses, and these interfaces.
    fn set(&mut self, addresses: BTreeSet<IpAddr>, interfaces: Vec<String>) {
        let wanted = (addresses, interfaces);
        if wanted != self.watched {
            let addresses = wanted.0.iter().copied().collect();
            self.watcher.update(addresses, wanted.1.clone());
            self.watched = wanted;
        }
    }
}

impl PathWatch {
    /// In full failover, has the neighbours of the uplink confirmed: translated packets go to them.
    fn confirm_neighbours(&self, uplink: Option<&str>) {
        self.watcher
            .confirm_neighbours(uplink.map(ToOwned::to_owned));
    }
}

impl Daemon {
    /// Watches the route to every address that a tunnel goes to, and those to the outside where
    /// there is NAT.
    pub(super) fn watch_paths(&mut self) {
        let config = &self.in_force.config;
        let wanted = config
            .plain_peers()
            .chain(self.tunnels.watched())
            .chain(claims::watched_outside(config, self.in_force.any_full()))
            .collect();
        let full = self.in_force.any_full();
        self.path_watch
            .confirm_neighbours(full.then_some(config.uplink.interface.as_str()));
        self.path_watch.set(wanted, interfaces::names(config));
    }
}
