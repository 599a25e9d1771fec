//! Where requests come from, as far as limits tell clients apart, and places for their work.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The network that limits count for an address: the address itself, and of IPv6 its /64, of which
/// a client has all addresses.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A limited number of places that clients wait in. A client has at most as many as are free, so
/// that it leaves places for others however many requests it sends.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Mutex<BTreeMap<Option<IpAddr>, usize>>,
    all: usize,
}

impl Places {
    /// This number of places.
    pub const fn new(all: usize) -> Self {
        Self {
            taken: Mutex::new(BTreeMap::new()),
            all,
        }
    }

    /// A place for a client, until it is dropped; `None` if the client has as many as are free.
    /// Clients whose address is not known count as one.
    pub fn take(&self, client: Option<IpAddr>) -> Option<Place<'_>> {
        let client = client.map(network);
        let mut taken = self.lock();
        let free = self.all.saturating_sub(taken.values().sum());
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        taken.insert(client, own + 1);
        drop(taken);
        Some(Place { of: self, client })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<IpAddr>, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'p> {
    of: &'p Places,
    client: Option<IpAddr>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_client_leaves_places_for_others() {
        let places = Places::new(64);
        let all_of = |client: &str| {
            let client = ip(client);
            std::iter::from_fn(|| places.take(Some(client))).collect::<Vec<_>>()
        };
        let first = all_of("127.0.0.2");
        assert_eq!(first.len(), 32);
        let second = all_of("2001:db8::1");
        assert_eq!(second.len(), 16);
        // The rest of the network is the same client.
        assert!(places.take(Some(ip("2001:db8::2:3:4:5"))).is_none());
        assert!(places.take(Some(ip("2001:db8:0:1::1"))).is_some());
        assert!(places.take(Some(ip("127.0.0.5"))).is_some());
        assert!(places.take(None).is_some());
        // A mapped address is that of IPv4.
        assert!(places.take(Some(ip("::ffff:127.0.0.2"))).is_none());
        drop((first, second));
        assert!(places.lock().is_empty());
        assert!(places.take(Some(ip("127.0.0.2"))).is_some());
    }
}
