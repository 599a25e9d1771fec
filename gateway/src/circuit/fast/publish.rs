//! What one thread has told the program.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ahash::RandomState;
use gateway_client::wire::CircuitId;
use gateway_common::maps::{Address, Circuit, End, NO_BUCKET};

use super::Fast;
use crate::circuit::{
    rate::Bucket,
    table::{Bound, Path},
};

/// What is said of a circuit.
#[derive(Debug)]
struct Said {
    tenant: Arc<str>,
    /// Its counters.
    stats: Option<u32>,
    /// Where it is in the map, and what is there but for the times.
    there: Option<(u32, Circuit)>,
}

/// Tells the program of the circuits of one thread.
#[derive(Debug)]
pub struct Publisher {
    fast: Arc<Fast>,
    said: HashMap<CircuitId, Said, RandomState>,
}

impl Publisher {
    /// One that has said nothing yet.
    #[must_use]
    pub fn new(fast: Arc<Fast>) -> Self {
        Self {
            fast,
            said: HashMap::with_hasher(RandomState::with_seed(0)),
        }
    }

    /// Says how a circuit is bound now. `local` is the gateway's address of a path. A binding that is renewed costs two stores; what else
    /// changed, some calls.
    pub fn say(&mut self, bound: &Bound<'_>, local: impl Fn(&Path) -> SocketAddr) {
        let wanted = circuit(bound, local);
        if wanted.is_none() && !self.said.contains_key(&bound.id) {
            return;
        }
        let said = self.said.entry(bound.id).or_insert_with(|| Said {
            tenant: Arc::clone(&bound.tenant.name),
            stats: None,
            there: None,
        });
        if said.tenant != bound.tenant.name {
            // Another's: it counts from nothing, as the table does.
            said.tenant = Arc::clone(&bound.tenant.name);
            if let Some((place, circuit)) = said.there.take() {
                self.fast.withdraw(circuit.id, place);
            }
            if let Some(stats) = said.stats.take() {
                self.fast.give_stats(stats);
            }
        }
        if said.stats.is_none() && wanted.is_some() {
            said.stats = self.fast.take_stats();
        }
        let wanted = wanted.and_then(|circuit| {
            Some(Circuit {
                stats: said.stats?,
                ..circuit
            })
        });
        said.there = match (said.there, wanted) {
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

    /// Takes back what was said of circuits that are no more.
    pub fn keep(&mut self, is_there: impl Fn(CircuitId) -> bool) {
        let fast = &self.fast;
        self.said.retain(|id, said| {
            let stays = is_there(*id);
            if !stays {
                if let Some((place, circuit)) = said.there.take() {
                    fast.withdraw(circuit.id, place);
                }
                if let Some(stats) = said.stats.take() {
                    fast.give_stats(stats);
                }
            }
            stays
        });
    }

    /// Where the circuits' counters are.
    pub fn stats(&self) -> impl Iterator<Item = (CircuitId, u32)> {
        let said = self.said.iter();
        said.filter_map(|(id, said)| Some((*id, said.stats?)))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.keep(|_| false);
    }
}

fn timeless(circuit: &Circuit) -> Circuit {
    Circuit {
        expires: [0; 2],
        ..*circuit
    }
}

/// As the program is to have it; `None`: it goes through user space.
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
        // What is of one link only has no way that the kernel could be asked for by an address.
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
    let bucket = |bucket: &Option<Arc<Bucket>>| match bucket {
        None => Some(NO_BUCKET),
        Some(bucket) => bucket.place(),
    };
    let until = [a.1, b.1].map(|until| u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
    Some(Circuit {
        id: u64::from_ne_bytes(bound.id.to_bytes()),
        expires: until,
        ends: [end(&a.0)?, end(&b.0)?],
        buckets: [
            bucket(&bound.tenant.datagrams)?,
            bucket(&bound.tenant.bytes)?,
        ],
        stats: 0,
        family,
    })
}

fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => [0, 0, 0, u32::from_ne_bytes(v4.octets())],
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            [0, 4, 8, 12]
                .map(|n| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]))
        }
    }
}
