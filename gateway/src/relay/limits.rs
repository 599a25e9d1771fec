//! Limits of connections: of the gateway, of a source, of a tenant.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// The limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of the gateway.
    #[error("the gateway has limits.connections connections")]
    Gateway,
    /// Of one source.
    #[error("the source has limits.per_source connections")]
    Source,
    /// Of one tenant.
    #[error("the tenant has as many connections as its limit allows")]
    Tenant,
}

/// A source: an IPv4 address, or an IPv6 /64, which belongs to one site (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.into()),
            IpAddr::V6(v6) => Self::V6((u128::from(v6) >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Listeners that may still add connections.
    listeners: usize,
    sources: HashMap<Source, u32>,
    tenants: HashMap<Arc<str>, u32>,
}

/// The counts of present connections.
#[derive(Debug, Default)]
pub struct Connections {
    taken: Mutex<Taken>,
    empty: Notify,
}

/// A counted connection; its drop ends the count.
#[derive(Debug)]
pub struct Counted {
    connections: Arc<Connections>,
    source: Source,
    tenant: Option<Arc<str>>,
}

/// A listener that may add connections: [`Connections::empty`] waits for its drop.
#[derive(Debug)]
pub struct Listener {
    connections: Arc<Connections>,
}

impl Connections {
    /// Counts a listener.
    #[must_use]
    pub fn listener(self: &Arc<Self>) -> Listener {
        self.lock().listeners += 1;
        Listener {
            connections: Arc::clone(self),
        }
    }

    /// Counts a connection from `source`, within `all` connections and `per_source` of its source.
    ///
    /// # Errors
    /// [`Full`]; the connection is not counted.
    pub fn take(
        self: &Arc<Self>,
        source: IpAddr,
        all: usize,
        per_source: u32,
    ) -> Result<Counted, Full> {
        let source = Source::of(source);
        let mut taken = self.lock();
        if taken.all >= all {
            return Err(Full::Gateway);
        }
        if !take(&mut taken.sources, &source, per_source) {
            return Err(Full::Source);
        }
        taken.all += 1;
        drop(taken);
        Ok(Counted {
            connections: Arc::clone(self),
            source,
            tenant: None,
        })
    }

    /// Number of connections.
    #[must_use]
    pub fn all(&self) -> usize {
        self.lock().all
    }

    /// Number of connections of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &str) -> u32 {
        self.lock().tenants.get(tenant).copied().unwrap_or(0)
    }

    /// Waits until no connection and no listener is left.
    pub async fn empty(&self) {
        loop {
            let empty = self.empty.notified();
            if self.lock().are_empty() {
                return;
            }
            empty.await;
        }
    }

    /// A poisoned lock is usable: each change of the counts is one statement.
    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Counts the connection for `tenant`, within `limit` connections of the tenant.
    ///
    /// # Errors
    /// [`Full::Tenant`].
    pub fn assign(&mut self, tenant: &Arc<str>, limit: u32) -> Result<(), Full> {
        let mut taken = self.connections.lock();
        if !take(&mut taken.tenants, tenant, limit) {
            return Err(Full::Tenant);
        }
        if let Some(old) = self.tenant.replace(Arc::clone(tenant)) {
            release(&mut taken.tenants, &old);
        }
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut taken = self.connections.lock();
        taken.all -= 1;
        release(&mut taken.sources, &self.source);
        if let Some(tenant) = &self.tenant {
            release(&mut taken.tenants, tenant);
        }
        if taken.are_empty() {
            self.connections.empty.notify_waiters();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut taken = self.connections.lock();
        taken.listeners -= 1;
        if taken.are_empty() {
            self.connections.empty.notify_waiters();
        }
    }
}

impl Taken {
    const fn are_empty(&self) -> bool {
        self.all == 0 && self.listeners == 0
    }
}

fn take<K: Clone + Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K, limit: u32) -> bool {
    match counts.get_mut(key) {
        Some(count) if *count < limit => *count += 1,
        None if limit > 0 => {
            counts.insert(key.clone(), 1);
        }
        Some(_) | None => return false,
    }
    true
}

fn release<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let connections = Arc::new(Connections::default());
        let take = |source| connections.take(ip(source), 100, 1);
        let _kept = [
            take("192.0.2.1").expect("a count"),
            take("192.0.2.2").expect("a count"),
            take("2001:db8:0:1::1").expect("a count"),
            take("2001:db8:0:2::1").expect("a count"),
        ];
        assert_eq!(take("::ffff:192.0.2.1").err(), Some(Full::Source));
        assert_eq!(take("2001:db8:0:1:ffff::1").err(), Some(Full::Source));
    }

    #[test]
    fn a_connection_changes_its_tenant() {
        let connections = Arc::new(Connections::default());
        let mut counted = connections.take(ip("::1"), 1, 1).expect("a count");
        assert_eq!(connections.take(ip("::2"), 1, 1).err(), Some(Full::Gateway));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(counted.assign(&a, 0), Err(Full::Tenant));
        assert_eq!(counted.assign(&a, 1), Ok(()));
        assert_eq!(counted.assign(&b, 1), Ok(()));
        assert_eq!((connections.of("a"), connections.of("b")), (0, 1));
        drop(counted);
        assert_eq!((connections.all(), connections.of("b")), (0, 0));
    }

    #[tokio::test]
    async fn empty_waits_for_the_last_connection_and_listener() {
        let connections = Arc::new(Connections::default());
        connections.empty().await;
        let listener = connections.listener();
        let counted = connections.take(ip("::1"), 1, 1).expect("a count");
        let waiting = || {
            let connections = Arc::clone(&connections);
            tokio::spawn(async move { connections.empty().await })
        };
        let first = waiting();
        tokio::task::yield_now().await;
        drop(counted);
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "a listener is left");
        let counted = connections.take(ip("::1"), 1, 1).expect("a count");
        drop(listener);
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "a connection is left");
        drop(counted);
        first.await.expect("woken");
        let listener = connections.listener();
        let second = waiting();
        tokio::task::yield_now().await;
        drop(listener);
        second.await.expect("woken");
    }

    proptest! {
        #[test]
        fn counts_equal_the_held_connections(
            acts in vec((0u8..4, 0usize..3, 0usize..8), 0..200),
            (all, per_source, per_tenant) in (0usize..8, 0u32..4, 0u32..4),
        ) {
            let sources = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(ip);
            let tenants: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
            let connections = Arc::new(Connections::default());
            let mut held: Vec<(Counted, usize, Option<usize>)> = Vec::new();
            for (act, which, at) in acts {
                let of_source = held.iter().filter(|h| h.1 == which).count();
                let of_tenant = held.iter().filter(|h| h.2 == Some(which)).count();
                match act {
                    0 | 1 => {
                        let wanted = if held.len() >= all {
                            Err(Full::Gateway)
                        } else if of_source >= per_source as usize {
                            Err(Full::Source)
                        } else {
                            Ok(())
                        };
                        let counted = connections.take(sources[which], all, per_source);
                        prop_assert_eq!(counted.as_ref().map(|_| ()).map_err(|e| *e), wanted);
                        held.extend(counted.ok().map(|counted| (counted, which, None)));
                    }
                    2 if at < held.len() => {
                        let given = held[at].0.assign(&tenants[which], per_tenant);
                        prop_assert_eq!(given.is_ok(), of_tenant < per_tenant as usize);
                        if given.is_ok() {
                            held[at].2 = Some(which);
                        }
                    }
                    3 if at < held.len() => drop(held.swap_remove(at)),
                    _ => {}
                }
                prop_assert_eq!(connections.all(), held.len());
                for (n, tenant) in tenants.iter().enumerate() {
                    let count = held.iter().filter(|h| h.2 == Some(n)).count();
                    prop_assert_eq!(connections.of(tenant) as usize, count);
                }
            }
            drop(held);
            let taken = connections.lock();
            prop_assert!(taken.sources.is_empty() && taken.tenants.is_empty(), "no entry is left");
        }
    }
}
