//! Routes that the netlink watcher follows: those to tunnel ends, and those to the outside.

use std::{collections::BTreeSet, net::IpAddr};

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
    pub fn set(&mut self, addresses: BTreeSet<IpAddr>, interfaces: Vec<String>) {
        let wanted = (addresses, interfaces);
        if wanted != self.watched {
            let addresses = wanted.0.iter().copied().collect();
            self.watcher.update(addresses, wanted.1.clone());
            self.watched = wanted;
        }
    }

    /// In full failover, has the neighbours of the uplink confirmed: translated packets go to them.
    pub fn confirm_neighbours(&self, uplink: Option<&str>) {
        self.watcher
            .confirm_neighbours(uplink.map(ToOwned::to_owned));
    }
}
