//! Routes that the netlink watcher follows: those to tunnel ends, and those to the outside.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Daemon, claims, interfaces};
use crate::kernel::underlay::Watcher;

/// The watcher, and what it was last told to watch.
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
        self.path_watch.set(wanted, interfaces::names(config));
    }
}
