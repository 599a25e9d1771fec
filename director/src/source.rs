//! Where requests come from, as far as limits tell clients apart, and a fair semaphore.

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

/// A counting semaphore that is fair by client: a client holds at most as many permits as are free,
/// so that some are left for others, however many requests it sends.
#[derive(Debug)]
pub(crate) struct FairSemaphore {
    held: Mutex<BTreeMap<Option<IpAddr>, usize>>,
    permits: usize,
}

impl FairSemaphore {
    /// With this number of permits.
    pub const fn new(permits: usize) -> Self {
        Self {
            held: Mutex::new(BTreeMap::new()),
            permits,
        }
    }

    /// A permit for a client, released on drop; `None` if the client holds as many as are free.
    /// Clients whose address is not known count as one.
    pub fn try_acquire(&self, client: Option<IpAddr>) -> Option<Permit<'_>> {
        let client = client.map(network);
        let mut held = self.lock();
        let free = self.permits.saturating_sub(held.values().sum());
        let own = held.get(&client).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        held.insert(client, own + 1);
        drop(held);
        Some(Permit { of: self, client })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<IpAddr>, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<'s> {
    of: &'s FairSemaphore,
    client: Option<IpAddr>,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        if let Some(count) = held.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.client);
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
    fn a_client_leaves_permits_for_others() {
        let semaphore = FairSemaphore::new(64);
        let all_of = |client: &str| {
            let client = ip(client);
            std::iter::from_fn(|| semaphore.try_acquire(Some(client))).collect::<Vec<_>>()
        };
        let first = all_of("127.0.0.2");
        assert_eq!(first.len(), 32);
        let second = all_of("2001:db8::1");
        assert_eq!(second.len(), 16);
        // The rest of the network is the same client.
        assert!(
            semaphore
                .try_acquire(Some(ip("2001:db8::2:3:4:5")))
                .is_none()
        );
        assert!(semaphore.try_acquire(Some(ip("2001:db8:0:1::1"))).is_some());
        assert!(semaphore.try_acquire(Some(ip("127.0.0.5"))).is_some());
        assert!(semaphore.try_acquire(None).is_some());
        // A mapped address is that of IPv4.
        assert!(
            semaphore
                .try_acquire(Some(ip("::ffff:127.0.0.2")))
                .is_none()
        );
        drop((first, second));
        assert!(semaphore.lock().is_empty());
        assert!(semaphore.try_acquire(Some(ip("127.0.0.2"))).is_some());
    }
}
