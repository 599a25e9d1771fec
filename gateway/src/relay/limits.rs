//! Limits of connections: of the gateway, of a source, of a tenant.
//!
//! ```text
//!   accepted ─▶ on trial ─▶ hello names a tenant ─▶ on trial there ─── still there ─▶ established:
//!               all places  (any client can)        as many places as                 the tenant's
//!                                                   its limit                         limit
//!               full: the oldest connection on trial is evicted, of the site and source with most
//! ```
//!
//! The gateway does not authenticate clients; backends do, and close connections of others at once.
//! So a new connection does not count for the limit of its tenant: unknown clients that send one of
//! its names use up only the budget of connections on trial, and one source cannot keep others out
//! of that. A client that sends nothing does not keep others out of the gateway either.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use gateway_client::source::Source;
use tokio::sync::Notify;

/// Connections beyond the limit of the gateway, while others leave that were evicted.
const EVICTION_ALLOWANCE: usize = 64;

/// The limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// `limits.connections`, of all tenants together.
    #[error("the gateway has reached limits.connections")]
    Gateway,
    /// Of one source.
    #[error("the source has reached limits.per_source")]
    Source,
    /// Of one tenant.
    #[error("the tenant has as many connections as its limit allows")]
    Tenant,
}

/// Groups by size, so that the largest is found at once.
#[derive(Debug)]
struct Groups<G> {
    groups: HashMap<Source, G>,
    by_size: BTreeSet<(usize, Source)>,
}

impl<G> Default for Groups<G> {
    fn default() -> Self {
        Self {
            groups: HashMap::new(),
            by_size: BTreeSet::new(),
        }
    }
}

impl<G: Default> Groups<G> {
    /// Changes a group, which exists only while its `size` is not 0.
    fn change<T>(
        &mut self,
        of: Source,
        size: impl Fn(&G) -> usize,
        change: impl FnOnce(&mut G) -> T,
    ) -> T {
        let group = self.groups.entry(of).or_default();
        let before = size(group);
        let result = change(group);
        let after = size(group);
        if before != after {
            self.by_size.remove(&(before, of));
            if after > 0 {
                self.by_size.insert((after, of));
            }
        }
        if after == 0 {
            self.groups.remove(&of);
        }
        result
    }

    /// Size and key of the largest group.
    fn largest(&self) -> Option<(usize, Source)> {
        self.by_size.last().copied()
    }
}

/// The connections of a source by number, the oldest first. Notified, one is evicted.
type OfSource = BTreeMap<u64, Arc<Notify>>;

/// The sources of a site.
#[derive(Debug, Default)]
struct OfSite {
    sources: Groups<OfSource>,
    len: usize,
}

/// Connections on trial.
#[derive(Debug, Default)]
struct Trials {
    sites: Groups<OfSite>,
    len: usize,
}

impl Trials {
    fn insert(&mut self, source: Source, number: u64, evicted: Arc<Notify>) {
        self.change(source, |of_source| of_source.insert(number, evicted));
    }

    /// Removes a connection, if it is there.
    fn remove(&mut self, source: Source, number: u64) -> Option<Arc<Notify>> {
        self.change(source, |of_source| of_source.remove(&number))
    }

    fn change<T>(&mut self, source: Source, change: impl FnOnce(&mut OfSource) -> T) -> T {
        let len = &mut self.len;
        self.sites.change(
            source.site(),
            |of_site| of_site.len,
            |of_site| {
                let OfSite { sources, len: own } = of_site;
                sources.change(source, BTreeMap::len, |of_source| {
                    let before = of_source.len();
                    let result = change(of_source);
                    for len in [len, own] {
                        *len = *len + of_source.len() - before;
                    }
                    result
                })
            },
        )
    }

    #[cfg(test)]
    fn has(&self, source: Source, number: u64) -> bool {
        let of_site = self.sites.groups.get(&source.site());
        let of_source = of_site.and_then(|site| site.sources.groups.get(&source));
        of_source.is_some_and(|of_source| of_source.contains_key(&number))
    }

    /// The connection that is evicted for one of `newcomer`: the oldest one of the source with
    /// most, of the site with most, if these have more than the newcomer's.
    fn victim(&self, newcomer: Source) -> Option<(Source, u64)> {
        let own_site = self.sites.groups.get(&newcomer.site());
        let own = own_site.map_or(0, |site| site.len);
        let (most, largest) = self.sites.largest()?;
        let is_within = most <= own;
        let site = if is_within {
            own_site?
        } else {
            self.sites.groups.get(&largest)?
        };
        let (most, source) = site.sources.largest()?;
        let of_newcomer = site.sources.groups.get(&newcomer).map_or(0, BTreeMap::len);
        if is_within && most <= of_newcomer {
            return None;
        }
        Some((source, *site.sources.groups.get(&source)?.keys().next()?))
    }
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Listeners that may still add connections.
    listeners: usize,
    sources: HashMap<Source, u32>,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Those that are not established.
    trials: Trials,
    /// The next number of a connection on trial.
    next: u64,
}

/// The connections of a tenant.
#[derive(Debug, Default)]
struct Tenant {
    /// Those that were on trial long enough.
    established: u32,
    trials: Trials,
}

impl Tenant {
    const fn is_empty(&self) -> bool {
        self.established == 0 && self.trials.len == 0
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
    /// Its number among all.
    number: u64,
    /// `None`: a proxy that has not named its client yet.
    source: Option<Source>,
    /// Notified when it is evicted.
    evicted: Arc<Notify>,
    tenant: Option<Arc<str>>,
    /// It is no longer evicted, and counts for the limit of its tenant.
    is_established: bool,
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

    /// Counts a connection from `source`, within `per_source` of its source. If there are `all`
    /// connections, another one on trial is evicted: one of a site or source with more of them.
    ///
    /// # Errors
    /// [`Full`]; the connection is not counted.
    pub fn take(
        self: &Arc<Self>,
        source: IpAddr,
        all: usize,
        per_source: u32,
    ) -> Result<Counted, Full> {
        let mut taken = self.lock();
        let source = Source::of(source);
        if taken.sources.get(&source).copied().unwrap_or(0) >= per_source {
            return Err(Full::Source);
        }
        let counted = self.begin(&mut taken, Some(source), all)?;
        take(&mut taken.sources, &source, per_source);
        Ok(counted)
    }

    /// As [`take`](Self::take), for a proxy that names the source later:
    /// [`Counted::name_source`].
    ///
    /// # Errors
    /// [`Full::Gateway`]; the connection is not counted.
    pub fn take_of_proxy(self: &Arc<Self>, all: usize) -> Result<Counted, Full> {
        let mut taken = self.lock();
        self.begin(&mut taken, None, all)
    }

    /// Counts a connection; if there are `all`, another one on trial is evicted.
    fn begin(
        self: &Arc<Self>,
        taken: &mut Taken,
        source: Option<Source>,
        all: usize,
    ) -> Result<Counted, Full> {
        let of = source.unwrap_or(Source::UNNAMED);
        if taken.all >= all {
            let victim = taken.trials.victim(of).ok_or(Full::Gateway)?;
            if taken.all >= all.saturating_add(EVICTION_ALLOWANCE) {
                return Err(Full::Gateway);
            }
            if let Some(evicted) = taken.trials.remove(victim.0, victim.1) {
                evicted.notify_one();
            }
        }
        taken.all += 1;
        let number = taken.next;
        taken.next += 1;
        let evicted = Arc::new(Notify::new());
        taken.trials.insert(of, number, Arc::clone(&evicted));
        Ok(Counted {
            connections: Arc::clone(self),
            number,
            source,
            evicted,
            tenant: None,
            is_established: false,
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
        tenant.map_or(0, |tenant| tenant.established + tenant.trials.len as u32)
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
        let old = self.source.replace(source);
        // It is not there if it is evicted.
        let evicted = taken
            .trials
            .remove(old.unwrap_or(Source::UNNAMED), self.number);
        if let Some(evicted) = evicted {
            taken.trials.insert(source, self.number, evicted);
        }
        if let Some(old) = old {
            release(&mut taken.sources, &old);
        }
        Ok(())
    }

    /// Puts the connection on trial for `tenant`, which may have `limit` connections, and as many
    /// on trial. If these are used up, another one is evicted.
    ///
    /// # Errors
    /// [`Full::Tenant`].
    pub fn assign(&mut self, tenant: &Arc<str>, limit: u32) -> Result<(), Full> {
        let connections = Arc::clone(&self.connections);
        let mut taken = connections.lock();
        let taken = &mut *taken;
        self.release_tenant(taken);
        let source = self.source.unwrap_or(Source::UNNAMED);
        let entry = taken.tenants.entry(Arc::clone(tenant)).or_default();
        let mut admitted = entry.established < limit && limit > 0;
        if admitted && entry.trials.len >= limit as usize {
            match entry.trials.victim(source) {
                Some((of, number)) => {
                    if let Some(evicted) = entry.trials.remove(of, number) {
                        evicted.notify_one();
                    }
                    taken.trials.remove(of, number);
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
        let evicted = Arc::clone(&self.evicted);
        entry.trials.insert(source, self.number, evicted);
        self.tenant = Some(Arc::clone(tenant));
        Ok(())
    }

    /// Waits until the connection is evicted for others.
    pub async fn evicted(&self) {
        if self.is_established {
            std::future::pending().await
        } else {
            self.evicted.notified().await;
        }
    }

    /// Notified once, when the connection is evicted for others.
    #[must_use]
    pub fn eviction(&self) -> Arc<Notify> {
        Arc::clone(&self.evicted)
    }

    /// The trial is over: the connection counts for the limit of its tenant, if it has one.
    ///
    /// # Errors
    /// [`Full::Tenant`]: the tenant has `limit` others. The connection stays on trial.
    pub fn establish(&mut self, limit: u32) -> Result<(), Full> {
        let mut taken = self.connections.lock();
        let source = self.source.unwrap_or(Source::UNNAMED);
        if let Some(name) = &self.tenant {
            let entry = taken.tenants.entry(Arc::clone(name)).or_default();
            if entry.established >= limit {
                return Err(Full::Tenant);
            }
            entry.trials.remove(source, self.number);
            entry.established += 1;
        }
        taken.trials.remove(source, self.number);
        self.is_established = true;
        Ok(())
    }

    fn release_tenant(&mut self, taken: &mut Taken) {
        let Some(name) = self.tenant.take() else {
            return;
        };
        let Some(entry) = taken.tenants.get_mut(&name) else {
            return;
        };
        if self.is_established {
            entry.established -= 1;
        } else {
            // It is no longer there if it was evicted.
            let source = self.source.unwrap_or(Source::UNNAMED);
            entry.trials.remove(source, self.number);
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
        let source = self.source.unwrap_or(Source::UNNAMED);
        taken.trials.remove(source, self.number);
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

    impl Counted {
        /// Whether it was evicted, if it is on trial.
        fn has_to_go(&self) -> bool {
            let source = self.source.expect("known");
            !self.connections.lock().trials.has(source, self.number)
        }
    }

    /// Clients that send nothing, from many sources, keep no other client out of the gateway.
    #[test]
    fn connections_on_trial_are_evicted_at_a_full_gateway() {
        const ALL: usize = 7401;
        type OfFlood = fn(usize) -> String;
        let floods: [(OfFlood, &str); 3] = [
            // 36 addresses; a /48, each /64 with one; a site against another of its own /64.
            (|n| format!("198.51.100.{}", n % 36), "192.0.2.1"),
            (|n| format!("2001:db8:1:{n:x}::1"), "2001:db8:2::1"),
            (
                |n| format!("2001:db8:1:{:x}::1", n % 2 + 1),
                "2001:db8:1:9::1",
            ),
        ];
        for (source, honest) in floods {
            let connections = Arc::new(Connections::default());
            let open = |source: &str| connections.take(ip(source), ALL, 10_000);
            let mut old = open("192.0.2.9").expect("room");
            old.establish(1).expect("it has no tenant");
            let flood: Vec<_> = (1..ALL).map(|n| open(&source(n)).expect("room")).collect();
            let new: Vec<_> = (0..10).map(|_| open(honest)).collect();
            assert!(new.iter().all(Result::is_ok), "{honest}: {new:?}");
            assert_eq!(flood.iter().filter(|c| c.has_to_go()).count(), 10);
            assert!(!new.iter().flatten().any(Counted::has_to_go));
            // Whatever the flood does, it gets no place of others.
            let more: Vec<_> = (0..50).map(|n| open(&source(n))).collect();
            assert!(!new.iter().flatten().any(Counted::has_to_go));
            assert!(connections.all() <= ALL + EVICTION_ALLOWANCE);
            drop((flood, new, more));
            assert_eq!(connections.all(), 1);
            drop(old);
            let taken = connections.lock();
            assert!(taken.trials.len == 0 && taken.trials.sites.by_size.is_empty());
            assert!(taken.trials.sites.groups.is_empty() && taken.sources.is_empty());
        }
    }

    #[test]
    fn a_connection_changes_its_tenant() {
        let connections = Arc::new(Connections::default());
        let mut counted = connections.take(ip("::1"), 1, 1).expect("a count");
        assert_eq!(connections.take(ip("::2"), 1, 2).err(), Some(Full::Gateway));
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
                        let most = (0..3).map(|s| held.iter().filter(|h| h.1 == s).count()).max();
                        let wanted = if of_source >= per_source as usize {
                            Err(Full::Source)
                        } else if held.len() >= all && most <= Some(of_source) {
                            Err(Full::Gateway)
                        } else {
                            Ok(())
                        };
                        let counted = connections.take(sources[which], all, per_source);
                        prop_assert_eq!(counted.as_ref().map(|_| ()).map_err(|e| *e), wanted);
                        held.extend(counted.ok().map(|counted| (counted, which, None)));
                        let before = held.len();
                        held.retain(|h| !h.0.has_to_go());
                        prop_assert_eq!(held.len(), before.min(before.saturating_sub(1).max(all)));
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
                            // One of a source with most was evicted, and leaves.
                            let before = held.len();
                            held.retain(|h| !h.0.has_to_go());
                            prop_assert_eq!(before - held.len(), usize::from(!fits));
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
