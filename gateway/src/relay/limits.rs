//! How many connections there may be: in all, of one source, of one tenant.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of all connections.
    #[error("there are as many connections as limits.connections allows")]
    Gateway,
    /// Of one source.
    #[error("the source has as many connections as limits.per_source allows")]
    Source,
    /// Of one tenant.
    #[error("the tenant has as many connections as it may")]
    Tenant,
}

/// Who counts as one: an IPv4 address; of IPv6 the /64, which is one site's (RFC 6177).
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
    /// Those who may still take places.
    takers: usize,
    sources: HashMap<Source, u32>,
    tenants: HashMap<Arc<str>, u32>,
}

/// The places of all connections.
#[derive(Debug, Default)]
pub struct Places {
    taken: Mutex<Taken>,
    empty: Notify,
}

/// The place of one connection; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    source: Source,
    tenant: Option<Arc<str>>,
}

/// Keeps places from being empty for good: more may be taken. Until it is dropped.
#[derive(Debug)]
pub struct Taker {
    places: Arc<Places>,
}

impl Places {
    /// One more who takes places.
    #[must_use]
    pub fn taker(self: &Arc<Self>) -> Taker {
        self.lock().takers += 1;
        Taker {
            places: Arc::clone(self),
        }
    }

    /// A place for a connection from `source`, if it is among the first `all`, and the first `per_source` of its
    /// source.
    ///
    /// # Errors
    /// [`Full`]; nothing is taken.
    pub fn take(
        self: &Arc<Self>,
        source: IpAddr,
        all: usize,
        per_source: u32,
    ) -> Result<Place, Full> {
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
        Ok(Place {
            places: Arc::clone(self),
            source,
            tenant: None,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn all(&self) -> usize {
        self.lock().all
    }

    /// How many there are of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &str) -> u32 {
        self.lock().tenants.get(tenant).copied().unwrap_or(0)
    }

    /// Waits until there are none, and nobody is left to take one.
    pub async fn empty(&self) {
        loop {
            let empty = self.empty.notified();
            if self.lock().are_empty() {
                return;
            }
            empty.await;
        }
    }

    /// A thread that panicked left counts as they were: each change of them is one statement.
    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Makes it a place of `tenant`, if it is among that one's first `limit`.
    ///
    /// # Errors
    /// [`Full::Tenant`].
    pub fn give(&mut self, tenant: &Arc<str>, limit: u32) -> Result<(), Full> {
        let mut taken = self.places.lock();
        if !take(&mut taken.tenants, tenant, limit) {
            return Err(Full::Tenant);
        }
        if let Some(old) = self.tenant.replace(Arc::clone(tenant)) {
            give_back(&mut taken.tenants, &old);
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        give_back(&mut taken.sources, &self.source);
        if let Some(tenant) = &self.tenant {
            give_back(&mut taken.tenants, tenant);
        }
        if taken.are_empty() {
            self.places.empty.notify_waiters();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.takers -= 1;
        if taken.are_empty() {
            self.places.empty.notify_waiters();
        }
    }
}

impl Taken {
    const fn are_empty(&self) -> bool {
        self.all == 0 && self.takers == 0
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

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
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
        let places = Arc::new(Places::default());
        let take = |source| places.take(ip(source), 100, 1);
        let _kept = [
            take("192.0.2.1").expect("a place"),
            take("192.0.2.2").expect("a place"),
            take("2001:db8:0:1::1").expect("a place"),
            take("2001:db8:0:2::1").expect("a place"),
        ];
        assert_eq!(take("::ffff:192.0.2.1").err(), Some(Full::Source));
        assert_eq!(take("2001:db8:0:1:ffff::1").err(), Some(Full::Source));
    }

    #[test]
    fn a_place_changes_its_tenant_and_none_is_lost() {
        let places = Arc::new(Places::default());
        let mut place = places.take(ip("::1"), 1, 1).expect("a place");
        assert_eq!(places.take(ip("::2"), 1, 1).err(), Some(Full::Gateway));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(place.give(&a, 0), Err(Full::Tenant));
        assert_eq!(place.give(&a, 1), Ok(()));
        assert_eq!(place.give(&b, 1), Ok(()));
        assert_eq!((places.of("a"), places.of("b")), (0, 1));
        drop(place);
        assert_eq!((places.all(), places.of("b")), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_the_last_is_told() {
        let places = Arc::new(Places::default());
        places.empty().await;
        let taker = places.taker();
        let place = places.take(ip("::1"), 1, 1).expect("a place");
        let waiting = || {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.empty().await })
        };
        let first = waiting();
        tokio::task::yield_now().await;
        drop(place);
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "more may come");
        let place = places.take(ip("::1"), 1, 1).expect("a place");
        drop(taker);
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "one is there");
        drop(place);
        first.await.expect("told");
        let taker = places.taker();
        let second = waiting();
        tokio::task::yield_now().await;
        drop(taker);
        second.await.expect("told");
    }

    proptest! {
        #[test]
        fn counts_are_what_is_held(
            acts in vec((0u8..4, 0usize..3, 0usize..8), 0..200),
            (all, per_source, per_tenant) in (0usize..8, 0u32..4, 0u32..4),
        ) {
            let sources = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(ip);
            let tenants: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
            let places = Arc::new(Places::default());
            let mut held: Vec<(Place, usize, Option<usize>)> = Vec::new();
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
                        let place = places.take(sources[which], all, per_source);
                        prop_assert_eq!(place.as_ref().map(|_| ()).map_err(|e| *e), wanted);
                        held.extend(place.ok().map(|place| (place, which, None)));
                    }
                    2 if at < held.len() => {
                        let given = held[at].0.give(&tenants[which], per_tenant);
                        prop_assert_eq!(given.is_ok(), of_tenant < per_tenant as usize);
                        if given.is_ok() {
                            held[at].2 = Some(which);
                        }
                    }
                    3 if at < held.len() => drop(held.swap_remove(at)),
                    _ => {}
                }
                prop_assert_eq!(places.all(), held.len());
                for (n, tenant) in tenants.iter().enumerate() {
                    let count = held.iter().filter(|h| h.2 == Some(n)).count();
                    prop_assert_eq!(places.of(tenant) as usize, count);
                }
            }
            drop(held);
            let taken = places.lock();
            prop_assert!(taken.sources.is_empty() && taken.tenants.is_empty(), "nothing grows for ever");
        }
    }
}
