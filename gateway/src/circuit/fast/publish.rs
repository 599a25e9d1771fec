//! Publishes the circuits of one thread to the XDP program.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ahash::RandomState;
use gateway_client::wire::CircuitId;
use gateway_common::maps::{Address, Circuit, End, Remote};

use super::Fast;
use crate::circuit::table::{Bound, Path};

/// The map entries of a published circuit.
#[derive(Debug)]
struct Published {
    tenant: Arc<str>,
    /// Index of its counters in STATS.
    stats: Option<u32>,
    /// Index in CIRCUITS and the value there, without expiry times.
    entry: Option<(u32, Circuit)>,
}

/// Publishes the circuits of one thread.
#[derive(Debug)]
pub struct Publisher {
    fast: Arc<Fast>,
    published: HashMap<CircuitId, Published, RandomState>,
    /// The addresses of bound sides that the program has, for each configured circuit.
    known: HashMap<CircuitId, [Remote; 2], RandomState>,
}

impl Publisher {
    /// A publisher that has published nothing.
    #[must_use]
    pub fn new(fast: Arc<Fast>) -> Self {
        Self {
            fast,
            published: HashMap::with_hasher(RandomState::with_seed(0)),
            known: HashMap::with_hasher(RandomState::with_seed(0)),
        }
    }

    /// Publishes the bindings of a circuit. `local` gives the gateway's address of a path. A
    /// renewed binding costs two stores; other changes cost system calls.
    pub fn publish(&mut self, bound: &Bound<'_>, local: impl Fn(&Path) -> SocketAddr) {
        let remotes = bound.ends.map(|end| {
            end.map_or_else(Remote::default, |(path, _)| Remote {
                address: address(path.remote.ip()),
                port: path.remote.port().to_be(),
                zero: 0,
            })
        });
        if self.known.insert(bound.id, remotes) != Some(remotes) {
            self.fast.insert_known(key(bound.id), remotes);
        }
        let wanted = circuit(bound, local);
        if wanted.is_none() && !self.published.contains_key(&bound.id) {
            return;
        }
        let published = self.published.entry(bound.id).or_insert_with(|| Published {
            tenant: Arc::clone(&bound.tenant.name),
            stats: None,
            entry: None,
        });
        if published.tenant != bound.tenant.name {
            // Another tenant: its counters begin at zero, as those of the table.
            published.tenant = Arc::clone(&bound.tenant.name);
            if let Some((place, circuit)) = published.entry.take() {
                self.fast.withdraw(circuit.id, place);
            }
            if let Some(stats) = published.stats.take() {
                self.fast.free_stats(stats);
            }
        }
        if published.stats.is_none() && wanted.is_some() {
            published.stats = self.fast.take_stats();
        }
        let wanted = wanted.and_then(|circuit| {
            Some(Circuit {
                stats: published.stats?,
                ..circuit
            })
        });
        published.entry = match (published.entry, wanted) {
            (None, None) => None,
            (Some((place, before)), None) => {
                self.fast.withdraw(before.id, place);
                None
            }
            (Some((place, before)), Some(wanted)) if before == timeless(&wanted) => {
                self.fast.renew(place, wanted.expires);
                Some((place, before))
            }
            (before, Some(wanted)) => {
                let before = before.map(|(place, _)| place);
                let place = self.fast.publish(&wanted, before);
                place.map(|place| (place, timeless(&wanted)))
            }
        };
    }

    /// Withdraws a circuit that is not there any more.
    pub fn remove(&mut self, id: CircuitId) {
        if self.known.remove(&id).is_some() {
            self.fast.forget(key(id));
        }
        let Some(published) = self.published.remove(&id) else {
            return;
        };
        if let Some((place, circuit)) = published.entry {
            self.fast.withdraw(circuit.id, place);
        }
        if let Some(stats) = published.stats {
            self.fast.free_stats(stats);
        }
    }

    /// The tenant and the index of each circuit's counters.
    pub fn stats(&self) -> impl Iterator<Item = (Arc<str>, u32)> {
        let published = self.published.values();
        published.filter_map(|published| Some((Arc::clone(&published.tenant), published.stats?)))
    }

    /// The index of a circuit's counters.
    #[must_use]
    pub fn stats_of(&self, id: CircuitId) -> Option<u32> {
        self.published.get(&id)?.stats
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let known: Vec<CircuitId> = self.known.keys().copied().collect();
        known.into_iter().for_each(|id| self.remove(id));
    }
}

fn timeless(circuit: &Circuit) -> Circuit {
    Circuit {
        expires: [0; 2],
        ..*circuit
    }
}

/// The map value of a circuit; `None`: the circuit uses user space.
fn circuit(bound: &Bound<'_>, local: impl Fn(&Path) -> SocketAddr) -> Option<Circuit> {
    let [Some(a), Some(b)] = bound.ends else {
        return None;
    };
    let family = if a.0.remote.is_ipv4() { 4 } else { 6 };
    if a.0.remote.is_ipv4() != b.0.remote.is_ipv4() {
        return None;
    }
    let end = |path: &Path| {
        let local = local(path);
        // A route lookup by address cannot find link-local destinations.
        let scope = |at: &SocketAddr| match at {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        if local.ip().is_unspecified()
            || local.is_ipv4() != path.remote.is_ipv4()
            || scope(&path.remote) != 0
            || scope(&local) != 0
        {
            return None;
        }
        Some(End {
            remote: address(path.remote.ip()),
            local: address(local.ip()),
            remote_port: path.remote.port().to_be(),
            local_port: local.port().to_be(),
            zero: 0,
        })
    };
    let until = [a.1, b.1].map(|until| u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
    Some(Circuit {
        id: key(bound.id),
        expires: until,
        ends: [end(&a.0)?, end(&b.0)?],
        buckets: [bound.tenant.datagrams.index()?, bound.tenant.bytes.index()?],
        stats: 0,
        family,
    })
}

/// A circuit ID as a key of maps: as on the wire.
const fn key(id: CircuitId) -> u64 {
    u64::from_ne_bytes(id.to_bytes())
}

pub(super) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => [0, 0, 0, u32::from_ne_bytes(v4.octets())],
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            [0, 4, 8, 12]
                .map(|n| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]))
        }
    }
}
