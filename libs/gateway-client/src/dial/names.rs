//! The addresses of DNS names: when to look a name up, and which addresses hold meanwhile.
//!
//! ```text
//!   new ─▶ asked ─┬─ answer ─▶ addresses; asked again after `refresh`, or sooner: `expedite`
//!                 └─ failure ▶ the last addresses stay; asked again after a pause that grows
//! ```
//!
//! The resolvers of operating systems do not pass on how long an answer may be kept, so the
//! interval is fixed. A failed lookup never removes an address. The owner asks the resolver,
//! outside of any packet path, and reports each result once.
//!
//! The owner stores the addresses ([`Names::known`]), and gives them back after its start
//! ([`Names::restore`]): they are in use until a lookup has an answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{MAX_ADDRESSES, ServiceAddress, Target, interleave};
use crate::random::SplitMix64;

/// Times of lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameSettings {
    /// Age at which an answer is renewed.
    pub refresh: Duration,
    /// Pause after a failure; each further pause is twice the last.
    pub first_pause: Duration,
    /// Longest pause, without the jitter.
    pub max_pause: Duration,
    /// Least time between two lookups of a name, when the owner expedites it.
    pub min_interval: Duration,
    /// Time for which an address that a name has no longer is still known, so that ends that looked
    /// the name up at different times meet. More than twice the longest time to a renewal.
    pub keep_former: Duration,
    /// Largest random addition to an interval or pause, per cent.
    pub jitter_percent: u32,
    /// Lookups without a result at a time, at least 1.
    pub concurrent: usize,
    /// Whether loopback addresses count: a service may be on the machine itself.
    pub loopback: bool,
}

impl Default for NameSettings {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(30),
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            min_interval: Duration::from_secs(5),
            keep_former: Duration::from_secs(90),
            jitter_percent: 20,
            concurrent: 16,
            loopback: false,
        }
    }
}

/// A name for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameState {
    pub name: Arc<str>,
    /// The addresses in use, from the last lookup that had any, or from before the start.
    pub addresses: Vec<IpAddr>,
    /// Age of that lookup; `None`: there was none since the start.
    pub age: Option<Duration>,
    /// Why the last lookup failed, if it did.
    pub error: Option<String>,
}

#[derive(Debug)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// Addresses of earlier answers, and until when each is known.
    former: Vec<(IpAddr, Duration)>,
    answered: Option<Duration>,
    error: Option<String>,
    /// In a row.
    failures: u32,
    /// Time of the last question.
    asked: Option<Duration>,
    /// A question has no result yet.
    waiting: bool,
    /// Time of the next question.
    next: Duration,
    /// Questions that have a result.
    results: u64,
}

impl Entry {
    fn expedite(&mut self, min_interval: Duration, now: Duration) {
        if !self.waiting {
            let earliest = self
                .asked
                .map_or(now, |asked| asked.saturating_add(min_interval));
            self.next = self.next.min(earliest.max(now));
        }
    }
}

/// The names of one process, and their addresses.
#[derive(Debug)]
pub struct Names {
    settings: NameSettings,
    random: SplitMix64,
    names: BTreeMap<Arc<str>, Entry>,
    /// Lookups without a result.
    waiting: usize,
    /// Addresses from before the start, of names that are not set yet.
    stored: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

impl Names {
    /// Without names. Processes with different seeds ask at different times.
    #[must_use]
    pub const fn new(settings: NameSettings, seed: u64) -> Self {
        Self {
            settings,
            random: SplitMix64::new(seed),
            names: BTreeMap::new(),
            waiting: 0,
            stored: BTreeMap::new(),
        }
    }

    /// Takes addresses that names had before the start, for names that are set later.
    pub fn restore(&mut self, stored: impl IntoIterator<Item = (Arc<str>, Vec<IpAddr>)>) {
        let loopback = self.settings.loopback;
        let usable = stored
            .into_iter()
            .filter_map(|(name, addresses)| Some((name, usable(&addresses, loopback).ok()?)));
        self.stored.extend(usable);
    }

    /// Sets the names. One that stays keeps its addresses; a new one is asked for at once.
    pub fn set(&mut self, names: impl IntoIterator<Item = Arc<str>>, now: Duration) {
        let mut old = std::mem::take(&mut self.names);
        for name in names {
            let stored = self.stored.remove(&name);
            let entry = old.remove(&name).unwrap_or_else(|| Entry {
                addresses: stored.unwrap_or_default(),
                former: Vec::new(),
                answered: None,
                error: None,
                failures: 0,
                asked: None,
                waiting: false,
                next: now,
                results: 0,
            });
            self.names.entry(name).or_insert(entry);
        }
        // A result of a removed name is ignored.
        self.waiting = self.names.values().filter(|entry| entry.waiting).count();
    }

    /// The next name to look up now: the one that has been due for longest, so that slow lookups of
    /// some names do not keep others waiting. The owner reports the result by
    /// [`Names::answered`].
    pub fn poll(&mut self, now: Duration) -> Option<Arc<str>> {
        if self.is_full() {
            return None;
        }
        let (name, entry) = self
            .names
            .iter_mut()
            .filter(|(_, entry)| !entry.waiting && entry.next <= now)
            .min_by_key(|(_, entry)| entry.next)?;
        entry.waiting = true;
        entry.asked = Some(now);
        self.waiting += 1;
        Some(Arc::clone(name))
    }

    fn is_full(&self) -> bool {
        self.waiting >= self.settings.concurrent.max(1)
    }

    /// Applies the result of a lookup: addresses, or the reason why there are none. Addresses that
    /// no service can have are ignored. Returns whether the addresses of the name changed; another
    /// order of the same ones is no change.
    pub fn answered(
        &mut self,
        name: &str,
        result: Result<Vec<IpAddr>, String>,
        now: Duration,
    ) -> bool {
        let settings = self.settings;
        let Some(entry) = self.names.get_mut(name).filter(|entry| entry.waiting) else {
            return false;
        };
        entry.waiting = false;
        entry.results += 1;
        self.waiting -= 1;
        let usable = result.and_then(|addresses| usable(&addresses, settings.loopback));
        let (pause, changed) = match usable {
            Ok(addresses) => {
                (entry.failures, entry.error) = (0, None);
                entry.answered = Some(now);
                let same = addresses.len() == entry.addresses.len()
                    && addresses.iter().all(|a| entry.addresses.contains(a));
                if !same {
                    let old = std::mem::replace(&mut entry.addresses, addresses);
                    let until = now.saturating_add(settings.keep_former);
                    entry.former.extend(old.into_iter().map(|a| (a, until)));
                    let (addresses, former) = (&entry.addresses, &mut entry.former);
                    former.retain(|(address, _)| !addresses.contains(address));
                }
                (settings.refresh, !same)
            }
            Err(error) => {
                entry.error = Some(error);
                let pause = settings
                    .first_pause
                    .saturating_mul(1 << entry.failures.min(16))
                    .min(settings.max_pause);
                entry.failures = entry.failures.saturating_add(1);
                (pause, false)
            }
        };
        let jitter = pause.saturating_mul(settings.jitter_percent) / 100;
        entry.next = now
            .saturating_add(pause)
            .saturating_add(self.random.up_to(jitter));
        changed
    }

    /// Forgets former addresses whose time is over. Returns whether there were any.
    pub fn forget_former(&mut self, now: Duration) -> bool {
        let mut forgotten = false;
        for entry in self.names.values_mut() {
            let before = entry.former.len();
            entry.former.retain(|(_, until)| *until > now);
            forgotten |= entry.former.len() != before;
        }
        forgotten
    }

    /// Something does not answer at its addresses: all names are looked up soon.
    pub fn expedite(&mut self, now: Duration) {
        let min_interval = self.settings.min_interval;
        self.names
            .values_mut()
            .for_each(|e| e.expedite(min_interval, now));
    }

    /// As [`Names::expedite`], of one name. Whether its next result is from now or later: a lookup
    /// is under way, or due.
    pub fn expedite_one(&mut self, name: &str, now: Duration) -> bool {
        let Some(entry) = self.names.get_mut(name) else {
            return false;
        };
        entry.expedite(self.settings.min_interval, now);
        entry.waiting || entry.next <= now
    }

    /// The number of lookups of a name that have a result; 0 for an unknown name.
    #[must_use]
    pub fn results(&self, name: &str) -> u64 {
        self.names.get(name).map_or(0, |entry| entry.results)
    }

    /// A service and its addresses, as far as they are known, in the given order. The addresses of
    /// each name take turns by family (RFC 8305).
    #[must_use]
    pub fn target(&self, name: &str, service_addresses: &[ServiceAddress]) -> Target {
        let (mut addresses, mut former) = (Vec::new(), Vec::new());
        for address in service_addresses {
            let at = |ip: IpAddr| SocketAddr::new(ip, address.port());
            match address {
                ServiceAddress::Address(address) => addresses.push(*address),
                ServiceAddress::Name(name, _) => {
                    let known = self.addresses(name).iter().copied().map(at);
                    addresses.extend(interleave(known));
                    former.extend(self.former(name).map(at));
                }
            }
        }
        Target {
            name: name.to_owned(),
            addresses,
            former,
        }
    }

    /// All names that have addresses, for [`Names::restore`] after the next start.
    pub fn known(&self) -> impl Iterator<Item = (&Arc<str>, &[IpAddr])> {
        let known = self.names.iter().map(|(n, e)| (n, &*e.addresses));
        known.filter(|(_, addresses)| !addresses.is_empty())
    }

    /// The addresses of a name; empty until it was looked up.
    #[must_use]
    pub fn addresses(&self, name: &str) -> &[IpAddr] {
        self.names.get(name).map_or(&[], |entry| &entry.addresses)
    }

    /// Addresses that a name had until a short time ago.
    pub fn former(&self, name: &str) -> impl Iterator<Item = IpAddr> + '_ {
        let entry = self.names.get(name);
        let former = entry.into_iter().flat_map(|entry| &entry.former);
        former.map(|(address, _)| *address)
    }

    /// The time of the next call of [`Names::poll`] and [`Names::forget_former`]; may be in the
    /// past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let entries = || self.names.values();
        let asking = entries().filter(|entry| !entry.waiting && !self.is_full());
        let former = entries().flat_map(|entry| &entry.former);
        asking
            .map(|entry| entry.next)
            .chain(former.map(|(_, until)| *until))
            .min()
    }

    /// Whether there are no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// All names, for the operator.
    pub fn states(&self, now: Duration) -> impl Iterator<Item = NameState> + '_ {
        self.names.iter().map(move |(name, entry)| NameState {
            name: Arc::clone(name),
            addresses: entry.addresses.clone(),
            age: entry.answered.map(|at| now.saturating_sub(at)),
            error: entry.error.clone(),
        })
    }
}

/// The addresses of an answer that can be connected to.
fn usable(answer: &[IpAddr], loopback: bool) -> Result<Vec<IpAddr>, String> {
    let mut kept: Vec<IpAddr> = Vec::new();
    for address in answer.iter().map(IpAddr::to_canonical) {
        let is_here = loopback && address.is_loopback();
        if (is_here || is_usable(address)) && !kept.contains(&address) && kept.len() < MAX_ADDRESSES
        {
            kept.push(address);
        }
    }
    match (kept.is_empty(), answer.first()) {
        (false, _) => Ok(kept),
        (true, None) => Err("the name has no address".to_owned()),
        (true, Some(address)) => Err(format!("the name has no usable address, only {address}")),
    }
}

/// Link-local IPv6 addresses need an interface, which a name does not have.
fn is_usable(address: IpAddr) -> bool {
    let kind = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == Ipv6Addr::UNSPECIFIED,
    };
    !kind && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn names(all: &[&str]) -> Names {
        let settings = NameSettings {
            jitter_percent: 0,
            ..NameSettings::default()
        };
        let mut names = Names::new(settings, 1);
        names.set(all.iter().map(|name| Arc::from(*name)), START);
        names
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[track_caller]
    fn ask(names: &mut Names, now: Duration) -> String {
        names.poll(now).expect("a question").to_string()
    }

    #[test]
    fn a_name_is_asked_for_at_once_and_again_when_its_answer_is_old() {
        let mut names = names(&["gw1"]);
        assert_eq!(names.next_deadline(), Some(START));
        assert_eq!(ask(&mut names, START), "gw1");
        assert_eq!(names.poll(START + seconds(100)), None, "one at a time");
        assert_eq!(names.next_deadline(), None);
        let now = START + seconds(1);
        assert!(names.answered("gw1", Ok(vec![ip(1), ip(2)]), now));
        assert_eq!(names.addresses("gw1"), [ip(1), ip(2)]);
        assert_eq!(names.next_deadline(), Some(now + seconds(30)));
        let now = now + seconds(30);
        ask(&mut names, now);
        // Resolvers turn the order; no end moves for that.
        assert!(!names.answered("gw1", Ok(vec![ip(2), ip(1)]), now));
        assert_eq!(names.addresses("gw1"), [ip(1), ip(2)]);
        let now = now + seconds(30);
        ask(&mut names, now);
        assert!(names.answered("gw1", Ok(vec![ip(3)]), now));
        assert_eq!(names.addresses("gw1"), [ip(3)]);
        assert!(!names.answered("gw1", Ok(vec![ip(4)]), now), "not asked");
        assert_eq!(names.addresses("gw1"), [ip(3)]);
    }

    #[test]
    fn a_failed_lookup_keeps_the_last_addresses() {
        let mut names = names(&["gw1"]);
        ask(&mut names, START);
        names.answered("gw1", Ok(vec![ip(1)]), START);
        let mut now = START + seconds(30);
        let mut pauses = Vec::new();
        for failure in [
            Err("no answer".to_owned()),
            Ok(vec![]),
            Ok(vec![
                IpAddr::from([0, 0, 0, 0]),
                IpAddr::from([127, 0, 0, 1]),
            ]),
            Err("no answer".to_owned()),
            Err("no answer".to_owned()),
            Err("no answer".to_owned()),
            Err("refused".to_owned()),
        ] {
            ask(&mut names, now);
            assert!(!names.answered("gw1", failure, now));
            assert_eq!(names.addresses("gw1"), [ip(1)]);
            let next = names.next_deadline().expect("a time");
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        let state = names.states(now).next().expect("a state");
        assert_eq!(state.error.as_deref(), Some("refused"));
        assert_eq!(state.age, Some(now - START));
        ask(&mut names, now);
        assert!(!names.answered("gw1", Ok(vec![ip(1)]), now));
        let state = names.states(now).next().expect("a state");
        assert_eq!((state.error, state.age), (None, Some(Duration::ZERO)));
    }

    #[test]
    fn errors_say_why_there_is_no_address() {
        assert_eq!(
            usable(&[], false),
            Err("the name has no address".to_owned())
        );
        assert_eq!(
            usable(&[IpAddr::from([0, 0, 0, 0])], false),
            Err("the name has no usable address, only 0.0.0.0".to_owned())
        );
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        assert_eq!(usable(&[mapped, ip(1)], false), Ok(vec![ip(1)]));
        let many: Vec<_> = (1..100).map(ip).collect();
        assert_eq!(usable(&many, false), Ok(many[..MAX_ADDRESSES].to_vec()));
    }

    #[test]
    fn an_expedited_name_is_asked_sooner_but_not_at_each_failure() {
        let mut names = names(&["gw1"]);
        ask(&mut names, START);
        names.expedite(START);
        assert_eq!(names.next_deadline(), None, "asked already");
        names.answered("gw1", Ok(vec![ip(1)]), START);
        names.expedite(START + seconds(1));
        assert_eq!(names.next_deadline(), Some(START + seconds(5)));
        names.expedite(START + seconds(10));
        assert_eq!(names.next_deadline(), Some(START + seconds(5)), "not later");
        let now = START + seconds(11);
        ask(&mut names, now);
        names.answered("gw1", Ok(vec![ip(1)]), now);
        names.expedite(now + seconds(20));
        assert_eq!(names.next_deadline(), Some(now + seconds(20)));
    }

    #[test]
    fn a_former_address_is_known_for_a_while() {
        let mut names = names(&["gw1"]);
        let answer = |names: &mut Names, n: u8, now| {
            ask(names, now);
            assert!(names.answered("gw1", Ok(vec![ip(n)]), now));
        };
        let former = |names: &Names| names.former("gw1").collect::<Vec<_>>();
        answer(&mut names, 1, START);
        assert_eq!(former(&names), [] as [IpAddr; 0]);
        answer(&mut names, 2, START + seconds(30));
        assert_eq!(former(&names), [ip(1)]);
        answer(&mut names, 3, START + seconds(60));
        assert_eq!(former(&names), [ip(1), ip(2)]);
        answer(&mut names, 1, START + seconds(90));
        assert_eq!(former(&names), [ip(2), ip(3)]);
        ask(&mut names, START + seconds(120));
        assert_eq!(names.next_deadline(), Some(START + seconds(150)));
        assert!(!names.forget_former(START + seconds(149)));
        assert!(names.forget_former(START + seconds(150)));
        assert_eq!(former(&names), [ip(3)]);
        assert!(names.forget_former(START + seconds(180)));
        assert_eq!((former(&names), names.next_deadline()), (vec![], None));
    }

    #[test]
    fn a_name_that_stays_keeps_its_addresses() {
        let mut names = names(&["gw1", "gw2"]);
        for name in ["gw1", "gw2"] {
            assert_eq!(ask(&mut names, START), name);
            names.answered(name, Ok(vec![ip(1)]), START);
        }
        names.set(["gw2", "gw3"].map(Arc::from), START);
        assert_eq!(names.addresses("gw1"), [] as [IpAddr; 0]);
        assert_eq!(names.addresses("gw2"), [ip(1)]);
        assert_eq!(ask(&mut names, START), "gw3");
        assert!(!names.answered("gw1", Ok(vec![ip(2)]), START), "removed");
    }

    #[test]
    fn addresses_from_before_the_start_hold_until_a_lookup_has_an_answer() {
        let mut names = Names::new(NameSettings::default(), 1);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        names.restore([
            (Arc::from("gw1"), vec![loopback, ip(1)]),
            (Arc::from("gw2"), vec![loopback]),
            (Arc::from("gone"), vec![ip(9)]),
        ]);
        assert_eq!(names.known().count(), 0);
        names.set(["gw1", "gw2"].map(Arc::from), START);
        assert_eq!(names.addresses("gw1"), [ip(1)]);
        assert_eq!(names.addresses("gw2"), [] as [IpAddr; 0]);
        let state = names.states(START).next().expect("gw1");
        assert_eq!((state.addresses, state.age), (vec![ip(1)], None));
        ask(&mut names, START);
        names.answered("gw1", Err("DNS is down".to_owned()), START);
        let known: Vec<_> = names.known().map(|(n, a)| (n.to_string(), a)).collect();
        assert_eq!(known, [("gw1".to_owned(), &[ip(1)][..])]);
        let addresses = ["gw1:7", "192.0.2.9:8"].map(|text| text.parse().expect("good"));
        let target = names.target("a", &addresses);
        let found = [(ip(1), 7), (ip(9), 8)].map(SocketAddr::from);
        assert_eq!(target.addresses, found);
        let now = START + seconds(40);
        assert_eq!(ask(&mut names, now), "gw2", "due for longer");
        assert_eq!(ask(&mut names, now), "gw1");
        assert!(names.answered("gw1", Ok(vec![ip(2)]), now));
        let target = names.target("a", &addresses[..1]);
        assert_eq!(target.former, [SocketAddr::from((ip(1), 7))]);
    }

    #[test]
    fn few_names_are_looked_up_at_a_time() {
        let settings = NameSettings {
            concurrent: 2,
            loopback: true,
            ..NameSettings::default()
        };
        let mut names = Names::new(settings, 1);
        names.set(["a", "b", "c"].map(Arc::from), START);
        assert_eq!([ask(&mut names, START), ask(&mut names, START)], ["a", "b"]);
        assert_eq!((names.poll(START), names.next_deadline()), (None, None));
        // A removed name does not count, and its result is ignored.
        names.set(["b", "c", "d"].map(Arc::from), START);
        assert_eq!(ask(&mut names, START), "c");
        assert_eq!(names.poll(START), None);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(!names.answered("a", Ok(vec![loopback]), START));
        assert!(names.answered("b", Ok(vec![loopback]), START));
        assert_eq!(names.results("b"), 1);
        assert_eq!(ask(&mut names, START), "d");
        assert!(names.expedite_one("c", START), "under way");
        assert!(!names.expedite_one("b", START), "it is asked seldom");
        assert!(!names.expedite_one("a", START), "unknown");
        names.answered("c", Ok(vec![loopback]), START);
        assert!(names.expedite_one("b", START + seconds(5)));
        assert_eq!(ask(&mut names, START + seconds(5)), "b");
    }

    #[test]
    fn slow_names_do_not_keep_others_waiting() {
        let settings = NameSettings {
            concurrent: 2,
            jitter_percent: 0,
            ..NameSettings::default()
        };
        let mut names = Names::new(settings, 1);
        let all = ["a", "b", "c", "d", "e", "f"];
        names.set(all.map(Arc::from), START);
        // Each lookup takes a minute and fails, so that its name is due again before all others
        // have been asked.
        let mut now = START;
        let mut asked = Vec::new();
        for _ in 0..6 {
            let both = [ask(&mut names, now), ask(&mut names, now)];
            assert_eq!(names.poll(now), None, "two at a time");
            now += seconds(60);
            for name in both {
                names.answered(&name, Err("no answer".to_owned()), now - seconds(30));
                asked.push(name);
            }
        }
        assert_eq!(asked, [all, all].concat());
    }

    proptest! {
        /// Whatever is answered: an address never goes without another one in its place, each
        /// question is of a name without a question, and none comes before its time.
        #[test]
        fn addresses_go_only_for_others(
            steps in vec((0u64..40_000, 0u8..4, vec(0u8..4, 0..4), any::<bool>()), 1..60),
            seed: u64,
        ) {
            let mut names = Names::new(NameSettings::default(), seed);
            let all = ["a", "b", "c", "d"];
            names.set(all.map(Arc::from), START);
            let (mut now, mut open) = (START, Vec::<Arc<str>>::new());
            for (pause, of, answer, fails) in steps {
                now += Duration::from_millis(pause);
                names.forget_former(now);
                let due = names.next_deadline();
                match names.poll(now) {
                    Some(name) => {
                        prop_assert!(due.is_some_and(|due| due <= now));
                        prop_assert!(!open.contains(&name));
                        open.push(name);
                    }
                    None => prop_assert!(due.is_none_or(|due| due > now)),
                }
                let name = all[usize::from(of)];
                let before = names.addresses(name).to_vec();
                let result = if fails { Err("no".to_owned()) } else {
                    Ok(answer.iter().map(|n| if *n == 0 { IpAddr::from([0; 4]) } else { ip(*n) })
                        .collect())
                };
                let changed = names.answered(name, result, now);
                let after = names.addresses(name);
                prop_assert_eq!(changed, after != before);
                prop_assert!(before.is_empty() || !after.is_empty());
                prop_assert!(!changed || open.iter().any(|n| &**n == name));
                open.retain(|n| &**n != name);
                if let Some(due) = names.next_deadline() {
                    prop_assert!(due <= now + seconds(36));
                }
            }
        }
    }
}
