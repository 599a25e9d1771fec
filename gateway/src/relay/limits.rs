//! Limits of connections: of the gateway, of a source, of a tenant.
//!
//! ```text
//!   accepted ─▶ hello names a tenant ─▶ on trial ───────────── still there ─▶ the tenant's
//!               (any client can)        a budget of its own                    limit
//!                                       full: the oldest of the source with most is evicted
//! ```
//!
//! The gateway does not authenticate clients; backends do, and close connections of others at once.
//! So a new connection does not count for the limit of its tenant: unknown clients that send one of
//! its names use up only the budget of connections on trial, and one source cannot keep others out
//! of that.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// The limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of the gateway.
    #[error("the gateway has reached limits.connections")]
    Gateway,
    /// Of one source.
    #[error("the source has reached limits.per_source")]
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
    tenants: HashMap<Arc<str>, Tenant>,
    /// The next number of a connection on trial.
    next: u64,
}

/// The connections of a tenant.
#[derive(Debug, Default)]
struct Tenant {
    /// Those that were on trial long enough.
    established: u32,
    /// By number, the oldest first. Notified, a connection is evicted.
    trials: BTreeMap<u64, (Source, Arc<Notify>)>,
}

impl Tenant {
    fn of_source(&self, source: Source) -> usize {
        self.trials.values().filter(|(of, _)| *of == source).count()
    }

    /// The oldest connection of the source with most, if that has more than `than`.
    fn excess(&self, than: usize) -> Option<u64> {
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for (source, _) in self.trials.values() {
            *counts.entry(*source).or_default() += 1;
        }
        let most = *counts.values().max()?;
        let mut oldest = self
            .trials
            .iter()
            .filter(|(_, (source, _))| counts[source] == most);
        let number = *oldest.next()?.0;
        (most > than).then_some(number)
    }

    fn is_empty(&self) -> bool {
        self.established == 0 && self.trials.is_empty()
    }
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
    /// `None`: a proxy that has not named its client yet.
    source: Option<Source>,
    tenant: Option<Counting>,
}

/// How a connection counts for its tenant.
#[derive(Debug)]
struct Counting {
    name: Arc<str>,
    /// Its number on trial, and the notification of its eviction; `None`: it is established.
    trial: Option<(u64, Arc<Notify>)>,
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
        let mut counted = self.take_of_proxy(all)?;
        counted.name_source(source, per_source)?;
        Ok(counted)
    }

    /// As [`take`](Self::take), for a proxy that names the source later:
    /// [`Counted::name_source`].
    ///
    /// # Errors
    /// [`Full::Gateway`]; the connection is not counted.
    pub fn take_of_proxy(self: &Arc<Self>, all: usize) -> Result<Counted, Full> {
        let mut taken = self.lock();
        if taken.all >= all {
            return Err(Full::Gateway);
        }
        taken.all += 1;
        drop(taken);
        Ok(Counted {
            connections: Arc::clone(self),
            source: None,
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
        let taken = self.lock();
        let tenant = taken.tenants.get(tenant);
        tenant.map_or(0, |tenant| tenant.established + tenant.trials.len() as u32)
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
    /// Counts the connection for its source, within `per_source` connections.
    ///
    /// # Errors
    /// [`Full::Source`].
    pub fn name_source(&mut self, source: IpAddr, per_source: u32) -> Result<(), Full> {
        let source = Source::of(source);
        let mut taken = self.connections.lock();
        if !take(&mut taken.sources, &source, per_source) {
            return Err(Full::Source);
        }
        if let Some(old) = self.source.replace(source) {
            release(&mut taken.sources, &old);
        }
        Ok(())
    }

    /// Puts the connection on trial for `tenant`, which may have `limit` connections, and as many
    /// on trial. If these are used up, one of a source with more of them is evicted.
    ///
    /// # Errors
    /// [`Full::Tenant`].
    pub fn assign(&mut self, tenant: &Arc<str>, limit: u32) -> Result<(), Full> {
        let connections = Arc::clone(&self.connections);
        let mut taken = connections.lock();
        let taken = &mut *taken;
        self.release_tenant(taken);
        // A proxy that names no client is a source like any other.
        let source = self.source.unwrap_or(Source::V4(0));
        let number = taken.next;
        taken.next += 1;
        let entry = taken.tenants.entry(Arc::clone(tenant)).or_default();
        let mut admitted = entry.established < limit && limit > 0;
        if admitted && entry.trials.len() >= limit as usize {
            match entry.excess(entry.of_source(source)) {
                Some(number) => {
                    if let Some((_, evicted)) = entry.trials.remove(&number) {
                        evicted.notify_one();
                    }
                }
                None => admitted = false,
            }
        }
        if !admitted {
            if entry.is_empty() {
                taken.tenants.remove(tenant);
            }
            return Err(Full::Tenant);
        }
        let evicted = Arc::new(Notify::new());
        entry.trials.insert(number, (source, Arc::clone(&evicted)));
        self.tenant = Some(Counting {
            name: Arc::clone(tenant),
            trial: Some((number, evicted)),
        });
        Ok(())
    }

    /// Waits until the connection is evicted for others on trial.
    pub async fn evicted(&self) {
        match &self.tenant {
            Some(Counting {
                trial: Some((_, evicted)),
                ..
            }) => evicted.notified().await,
            Some(_) | None => std::future::pending().await,
        }
    }

    /// The trial is over: the connection counts for the limit of its tenant.
    ///
    /// # Errors
    /// [`Full::Tenant`]: the tenant has `limit` others. The connection stays on trial.
    pub fn establish(&mut self, limit: u32) -> Result<(), Full> {
        let Some(counting) = &mut self.tenant else {
            return Ok(());
        };
        let Some((number, _)) = &counting.trial else {
            return Ok(());
        };
        let mut taken = self.connections.lock();
        let entry = taken.tenants.entry(Arc::clone(&counting.name)).or_default();
        if entry.established >= limit {
            return Err(Full::Tenant);
        }
        entry.trials.remove(number);
        entry.established += 1;
        counting.trial = None;
        Ok(())
    }

    fn release_tenant(&mut self, taken: &mut Taken) {
        let Some(Counting { name, trial }) = self.tenant.take() else {
            return;
        };
        let Some(entry) = taken.tenants.get_mut(&name) else {
            return;
        };
        match trial {
            // It is absent if it was evicted.
            Some((number, _)) => drop(entry.trials.remove(&number)),
            None => entry.established -= 1,
        }
        if entry.is_empty() {
            taken.tenants.remove(&name);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let connections = Arc::clone(&self.connections);
        let mut taken = connections.lock();
        taken.all -= 1;
        if let Some(source) = &self.source {
            release(&mut taken.sources, source);
        }
        self.release_tenant(&mut taken);
        if taken.are_empty() {
            connections.empty.notify_waiters();
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
        assert_eq!(counted.assign(&a, 0).err(), Some(Full::Tenant));
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

    /// Clients that only know a tenant's name do not lock it out.
    #[tokio::test]
    async fn unknown_clients_on_trial_use_up_their_own_budget_only() {
        const LIMIT: u32 = 10;
        let connections = Arc::new(Connections::default());
        let acme: Arc<str> = "acme".into();
        let open = |source: &str| {
            let mut counted = connections.take(ip(source), 1000, 1000).expect("a count");
            counted.assign(&acme, LIMIT).map(|()| counted)
        };
        // Settled connections stay during the flood.
        let mut honest: Vec<_> = (0..3).map(|_| open("192.0.2.1").expect("room")).collect();
        for counted in &mut honest {
            counted.establish(LIMIT).expect("room");
        }
        // A flood from two sources: each new one is refused or takes the place of another one.
        let mut flood: Vec<_> = (0..50)
            .filter_map(|n| open(["192.0.2.66", "192.0.2.67"][n % 2]).ok())
            .collect();
        assert_eq!(connections.of("acme"), 3 + LIMIT);
        assert!(open("192.0.2.66").is_err(), "the source has most of them");
        let mut new = open("192.0.2.2").expect("another one is evicted");
        assert_eq!(connections.of("acme"), 3 + LIMIT);
        let mut evicted = 0;
        for counted in &flood {
            let waited = tokio::time::timeout(std::time::Duration::ZERO, counted.evicted());
            evicted += usize::from(waited.await.is_ok());
        }
        assert_eq!(evicted, 1, "the oldest");
        flood.retain(|_| false);
        new.establish(LIMIT).expect("room");
        assert_eq!(connections.of("acme"), 4);
        // The limit itself holds for what is established.
        honest.push(new);
        for _ in 0..6 {
            let mut counted = open("192.0.2.3").expect("room");
            counted.establish(LIMIT).expect("room");
            honest.push(counted);
        }
        assert_eq!(open("192.0.2.4").err(), Some(Full::Tenant));
        honest.clear();
        assert_eq!((connections.all(), connections.of("acme")), (0, 0));
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
                        held[at].2 = None;
                        let others = |h: &&(Counted, usize, Option<usize>)| h.2 == Some(which);
                        let of_tenant = held.iter().filter(others).count();
                        let own = held[at].1;
                        let of_own = held.iter().filter(others).filter(|h| h.1 == own).count();
                        let most = (0..3)
                            .map(|s| held.iter().filter(others).filter(|h| h.1 == s).count())
                            .max()
                            .unwrap_or(0);
                        let fits = of_tenant < per_tenant as usize;
                        let given = held[at].0.assign(&tenants[which], per_tenant);
                        prop_assert_eq!(given.is_ok(), per_tenant > 0 && (fits || most > of_own));
                        if given.is_ok() {
                            held[at].2 = Some(which);
                            if !fits {
                                // Which one gave way: the oldest of a source with most.
                                let gone = |h: &(Counted, usize, Option<usize>)| {
                                    let trial = h.0.tenant.as_ref().and_then(|t| t.trial.as_ref());
                                    let taken = connections.lock();
                                    let entry = taken.tenants.get(&tenants[which]);
                                    h.2 == Some(which) && !trial.is_some_and(|(number, _)| {
                                        entry.is_some_and(|e| e.trials.contains_key(number))
                                    })
                                };
                                let gone: Vec<usize> =
                                    (0..held.len()).filter(|n| gone(&held[*n])).collect();
                                prop_assert_eq!(gone.len(), 1);
                                held[gone[0]].2 = None;
                            }
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
