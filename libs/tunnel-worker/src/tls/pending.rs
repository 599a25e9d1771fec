//! Connections that have not authenticated yet: how many there may be, in all and of a source, and
//! which one gives way to another. Pure.
//!
//! ```text
//!   accepted ─▶ room in all, and for its source? ─ yes ──────────────────────────▶ Begin
//!                 │ full, and a source has two more: the oldest of that gives way ▶ Begin
//!                 │ the oldest of the source with most has had its grace ─────────▶ Begin
//!                 └ else ─────────────────────────────────────────────────────────▶ Wait
//! ```
//!
//! So a source with many connections delays its own ones only, and a connection that does nothing
//! keeps its place for its grace when others need it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use gateway_client::source::Source;

use super::event::ConnectionId;

/// How long a connection may authenticate before it can be closed in favour of others of sources
/// that have as many: an end that has the key needs a few round trips.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// Why a connection gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// Its source has most of them, or as many as one source may have.
    Source,
    /// There are as many as there may be, of sources with one each.
    All,
}

/// Whether a connection may authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes, once the other one, if any, was told to stop.
    Begin(Option<(ConnectionId, Eviction)>),
    /// Not yet.
    Wait,
}

struct Entry<C> {
    source: Source,
    since: Instant,
    control: C,
}

/// The connections, each with a `C` by which it is told to stop.
pub(super) struct Pending<C> {
    /// Most of them.
    all: usize,
    /// Most of one source.
    per_source: usize,
    /// Oldest first.
    connections: BTreeMap<ConnectionId, Entry<C>>,
    /// How many each source has; no zeros.
    of_sources: HashMap<Source, usize>,
}

impl<C> Pending<C> {
    /// None yet; at most `all`, and `per_source` of one source.
    pub fn new(all: usize, per_source: usize) -> Self {
        Self {
            all,
            per_source,
            connections: BTreeMap::new(),
            of_sources: HashMap::new(),
        }
    }

    /// How many a source has.
    pub fn of(&self, source: Source) -> usize {
        self.of_sources.get(&source).copied().unwrap_or(0)
    }

    /// Whether a connection of `source` may authenticate at `now`. Changes nothing.
    pub fn admission(&self, source: Source, now: Instant) -> Admission {
        let own = self.of(source);
        let is_graced = |entry: &Entry<C>| now.saturating_duration_since(entry.since) >= GRACE;
        if own >= self.per_source {
            let mut of_source = self.connections.iter();
            return match of_source.find(|(_, entry)| entry.source == source) {
                Some((id, entry)) if is_graced(entry) => {
                    Admission::Begin(Some((*id, Eviction::Source)))
                }
                Some(_) | None => Admission::Wait,
            };
        }
        if self.connections.len() < self.all {
            return Admission::Begin(None);
        }
        // The oldest of the source with most; of several such sources, the oldest of all.
        let mut victim: Option<(ConnectionId, &Entry<C>)> = None;
        let mut most = 0;
        for (id, entry) in &self.connections {
            let count = self.of(entry.source);
            if count > most {
                (most, victim) = (count, Some((*id, entry)));
            }
        }
        let why = if most > 1 {
            Eviction::Source
        } else {
            Eviction::All
        };
        match victim {
            Some((id, entry)) if most >= own + 2 || is_graced(entry) => {
                Admission::Begin(Some((id, why)))
            }
            Some(_) | None => Admission::Wait,
        }
    }

    /// Adds a connection that began at `now`.
    pub fn insert(&mut self, id: ConnectionId, source: Source, now: Instant, control: C) {
        *self.of_sources.entry(source).or_default() += 1;
        let entry = Entry {
            source,
            since: now,
            control,
        };
        if let Some(old) = self.connections.insert(id, entry) {
            self.release(old.source);
        }
    }

    /// Removes a connection, if it is there.
    pub fn remove(&mut self, id: ConnectionId) -> Option<C> {
        let entry = self.connections.remove(&id)?;
        self.release(entry.source);
        Some(entry.control)
    }

    /// A proxy has named the source of a connection. If that source has more than it may, its
    /// oldest other connection is removed and returned.
    pub fn name_source(&mut self, id: ConnectionId, source: Source) -> Option<C> {
        let old = {
            let entry = self.connections.get_mut(&id)?;
            std::mem::replace(&mut entry.source, source)
        };
        self.release(old);
        *self.of_sources.entry(source).or_default() += 1;
        if self.of(source) <= self.per_source {
            return None;
        }
        let mut others = self.connections.iter();
        let (oldest, _) = others.find(|(other, e)| e.source == source && **other != id)?;
        let oldest = *oldest;
        self.remove(oldest)
    }

    /// All of them.
    pub fn controls(&self) -> impl Iterator<Item = &C> {
        self.connections.values().map(|entry| &entry.control)
    }

    fn release(&mut self, source: Source) {
        if let Some(count) = self.of_sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_sources.remove(&source);
            }
        }
    }
}

/// The one of several that wait, oldest first, that gives way: the oldest of the source with most.
pub(super) fn greediest(mut sources: impl Iterator<Item = Source> + Clone) -> Option<usize> {
    let mut counts: HashMap<Source, usize> = HashMap::new();
    for source in sources.clone() {
        *counts.entry(source).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    sources.position(|source| counts.get(&source) == Some(&most))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn source(n: u32) -> Source {
        Source::of(IpAddr::from((0x7f00_0000_u32 + n).to_be_bytes()))
    }

    /// Admits a connection as the listener does: returns whether it may begin, and what it evicts.
    fn admit(
        pending: &mut Pending<ConnectionId>,
        n: u32,
        now: Instant,
    ) -> Option<(ConnectionId, Option<(ConnectionId, Eviction)>)> {
        let Admission::Begin(evicted) = pending.admission(source(n), now) else {
            return None;
        };
        if let Some((id, _)) = evicted {
            assert_eq!(pending.remove(id), Some(id));
        }
        let id = ConnectionId::next();
        pending.insert(id, source(n), now, id);
        Some((id, evicted))
    }

    #[test]
    fn a_source_with_many_gives_way_to_others_at_once_and_to_its_own_after_the_grace() {
        let mut pending = Pending::new(8, 6);
        let start = Instant::now();
        let flood: Vec<_> = (0..6)
            .map(|_| admit(&mut pending, 1, start).expect("room").0)
            .collect();
        assert_eq!(admit(&mut pending, 1, start), None, "its share is used up");
        let (honest, evicted) = admit(&mut pending, 2, start).expect("room");
        assert_eq!(evicted, None);
        admit(&mut pending, 3, start).expect("the last place");
        for n in 0..3 {
            let (_, evicted) = admit(&mut pending, 4 + n, start).expect("another source");
            assert_eq!(evicted, Some((flood[n as usize], Eviction::Source)));
        }
        assert_eq!(pending.of(source(1)), 3);
        // After the grace, its own oldest connection gives way, and none of the others.
        let later = start + GRACE;
        let (_, evicted) = admit(&mut pending, 1, later).expect("graced");
        assert_eq!(evicted, Some((flood[3], Eviction::Source)));
        assert_eq!(pending.remove(honest), Some(honest), "it is still there");
    }

    #[test]
    fn one_connection_of_each_source_is_evicted_after_the_grace_only() {
        let mut pending = Pending::new(3, 2);
        let start = Instant::now();
        let (oldest, _) = admit(&mut pending, 1, start).expect("room");
        for n in 2..=3 {
            admit(&mut pending, n, start).expect("room");
        }
        let almost = start + GRACE - Duration::from_nanos(1);
        assert_eq!(admit(&mut pending, 4, almost), None);
        let (_, evicted) = admit(&mut pending, 4, start + GRACE).expect("graced");
        assert_eq!(evicted, Some((oldest, Eviction::All)));
    }

    #[test]
    fn a_source_that_a_proxy_names_has_its_own_share() {
        let mut pending = Pending::new(8, 2);
        let now = Instant::now();
        let mut ids = Vec::new();
        for n in 1..=3 {
            // All come from the gateway, and each is named at once.
            let (id, _) = admit(&mut pending, 0, now).expect("room");
            assert_eq!(pending.name_source(id, source(n)), None);
            ids.push(id);
        }
        assert_eq!(pending.of(source(0)), 0);
        for _ in 0..2 {
            ids.push(admit(&mut pending, 0, now).expect("room").0);
        }
        assert_eq!(pending.name_source(ids[3], source(1)), None);
        assert_eq!(pending.name_source(ids[4], source(1)), Some(ids[0]));
        assert_eq!(pending.of(source(1)), 2);
        assert_eq!(pending.name_source(ids[0], source(2)), None, "it is gone");
        assert_eq!(pending.of(source(2)), 1);
    }

    #[test]
    fn of_those_that_wait_the_oldest_of_the_source_with_most_gives_way() {
        let of = |list: &[u32]| greediest(list.iter().map(|n| source(*n)));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1, 2, 3]), Some(0));
        assert_eq!(of(&[1, 2, 3, 2]), Some(1));
    }

    proptest! {
        /// Whatever the sources do, the limits hold, and a source without a connection gets in as
        /// soon as another has two.
        #[test]
        fn limits_hold_and_a_newcomer_gets_in(
            acts in vec((0u32..6, 0u64..400, any::<bool>()), 0..200),
            (all, per_source) in (1usize..12, 1usize..8),
        ) {
            let mut pending = Pending::new(all, per_source);
            let mut now = Instant::now();
            let mut held: Vec<(ConnectionId, u32)> = Vec::new();
            for (n, millis, leaves) in acts {
                now += Duration::from_millis(millis);
                if leaves && !held.is_empty() {
                    let (id, _) = held.remove(n as usize % held.len());
                    prop_assert_eq!(pending.remove(id), Some(id));
                }
                let count = |n| held.iter().filter(|h| h.1 == n).count();
                let most = (0..6).map(count).max().unwrap_or(0);
                let own = count(n);
                match admit(&mut pending, n, now) {
                    Some((id, evicted)) => {
                        if let Some((gone, _)) = evicted {
                            let of = held.iter().find(|h| h.0 == gone).expect("held").1;
                            prop_assert!(count(of) >= own, "a source with fewer is spared");
                            held.retain(|h| h.0 != gone);
                        }
                        held.push((id, n));
                    }
                    None => prop_assert!(own > 0 || most < 2, "{own} {most}"),
                }
                let count = |n| held.iter().filter(|h| h.1 == n).count();
                prop_assert!(held.len() <= all);
                for n in 0..6 {
                    prop_assert!(count(n) <= per_source);
                    prop_assert_eq!(pending.of(source(n)), count(n));
                }
            }
        }
    }
}
