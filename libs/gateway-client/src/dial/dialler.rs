//! Which address to connect to: the targets in order of health, load and preference, each with its
//! addresses of both families.
//!
//! ```text
//!   targets, list ─▶ update ─┐                      ┌─▶ order ─▶ race ─▶ owner connects
//!   loads of gateways ───────┴─▶ Chooser, `worked` ─┘                        │
//!                                       ▲──────────── report ◀───────────────┘
//! ```
//!
//! Of a target, the address that answered last is tried first. A target that failed is tried after
//! all others; see [`DialSettings::trials`] for how long.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{Race, RaceSettings, Target};
use crate::pool::{self, Candidate, Chooser, List, Report};

/// Settings of a dialler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialSettings {
    /// Health and order of targets.
    pub choice: pool::Settings,
    /// Where connections are frequent: whether a target that failed has its place in the order
    /// again for one race after a pause, which grows from [`pool::Settings::first_pause`] to
    /// [`pool::Settings::max_pause`]. If it answers, all races prefer it again.
    pub trials: bool,
}

impl DialSettings {
    /// For gateways, which are dialled seldom: a failure counts for a minute.
    #[must_use]
    pub fn gateways() -> Self {
        Self {
            choice: pool::Settings::default(),
            trials: false,
        }
    }

    /// For the addresses of a server that clients use all the time: one failure is enough, one race
    /// tries again after 2 s to 32 s, and one answer ends it.
    #[must_use]
    pub fn server() -> Self {
        Self {
            choice: pool::Settings {
                down_after: 1,
                up_after: 1,
                first_pause: Duration::from_secs(2),
                max_pause: Duration::from_secs(32),
                jitter_percent: 0,
                // Only a trial ends it.
                avoid: Duration::MAX,
                ..pool::Settings::default()
            },
            trials: true,
        }
    }
}

/// Chooses the addresses to connect to, and learns from the results.
#[derive(Debug)]
pub struct Dialler {
    settings: DialSettings,
    chooser: Chooser,
    targets: Vec<Target>,
    /// The address of each target that answered last, where it has several.
    worked: BTreeMap<String, SocketAddr>,
}

impl Dialler {
    /// Without reports. Targets that are not in the list are not used.
    #[must_use]
    pub fn new(
        settings: DialSettings,
        list: &List,
        targets: Vec<Target>,
        seed: u64,
        now: Duration,
    ) -> Self {
        Self {
            settings,
            chooser: Chooser::new(settings.choice, list, seed, now),
            targets,
            worked: BTreeMap::new(),
        }
    }

    /// For the addresses of one server, in order of preference: each is a target.
    #[must_use]
    pub fn in_order(
        settings: DialSettings,
        addresses: &[SocketAddr],
        seed: u64,
        now: Duration,
    ) -> Self {
        let (list, targets) = in_order(addresses);
        Self::new(settings, &list, targets, seed, now)
    }

    /// Sets the targets. The health of those that stay is kept.
    pub fn update(&mut self, list: &List, targets: Vec<Target>, now: Duration) {
        self.chooser.update(list, now);
        self.targets = targets;
        let targets = &self.targets;
        self.worked.retain(|name, address| {
            let mut named = targets.iter().filter(|target| target.name == *name);
            named.any(|target| target.addresses.contains(address))
        });
    }

    /// As [`Dialler::update`], of a dialler [`in_order`](Dialler::in_order).
    pub fn update_in_order(&mut self, addresses: &[SocketAddr], now: Duration) {
        let (list, targets) = in_order(addresses);
        self.update(&list, targets, now);
    }

    /// Takes over the loads that gateways reported to a chooser of the same gateways.
    pub fn adopt_loads(&mut self, other: &Chooser) {
        self.chooser.adopt_loads(other);
    }

    /// The addresses to connect to, in order.
    fn order(&mut self, used: Option<SocketAddr>, now: Duration) -> Vec<SocketAddr> {
        if let [only] = &self.targets[..]
            && let [address] = only.addresses[..]
            && self.chooser.is_down(&only.name).is_some()
        {
            return vec![address];
        }
        let trials = if self.settings.trials {
            self.chooser.due(now)
        } else {
            Vec::new()
        };
        let used = used.and_then(|used| Some(self.at(used)?.name.clone()));
        let order = self.chooser.order(used.as_deref(), &trials, now);
        let mut all = Vec::new();
        for name in order {
            let worked = self.worked.get(&name);
            let of = self.targets.iter().find(|target| target.name == name);
            let begin = all.len();
            all.extend(of.into_iter().flat_map(|target| &target.addresses));
            all[begin..].sort_by_key(|address| Some(address) != worked);
        }
        all
    }

    /// A race over the addresses of all targets. The target at `used`, the address of an open
    /// connection, is last. The owner reports each result to the race and here.
    pub fn race(
        &mut self,
        used: Option<SocketAddr>,
        settings: RaceSettings,
        now: Duration,
    ) -> Race {
        Race::new(self.order(used, now), settings)
    }

    /// An address answered, failed, or its connection was lost. Unknown addresses are ignored.
    pub fn report(&mut self, address: SocketAddr, report: Report, now: Duration) {
        let Some(target) = self.at(address) else {
            return;
        };
        let (name, has_several) = (target.name.clone(), target.addresses.len() > 1);
        self.chooser.report(&name, report, now);
        match report {
            Report::Answered { .. } if has_several => {
                self.worked.insert(name, address);
            }
            Report::Failed(_) if self.worked.get(&name) == Some(&address) => {
                self.worked.remove(&name);
            }
            Report::Answered { .. } | Report::Failed(_) => {}
        }
    }

    fn at(&self, address: SocketAddr) -> Option<&Target> {
        let has = |target: &&Target| {
            let mut all = target.addresses.iter().chain(&target.former);
            all.any(|a| *a == address)
        };
        self.targets.iter().find(has)
    }
}

fn in_order(addresses: &[SocketAddr]) -> (List, Vec<Target>) {
    let candidates = addresses.iter().enumerate().map(|(tier, a)| Candidate {
        name: a.to_string(),
        load: 0,
        tier,
    });
    let targets = addresses.iter().map(|address| Target {
        name: address.to_string(),
        addresses: vec![*address],
        former: Vec::new(),
    });
    (List::received(candidates.collect()), targets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dial::{AttemptId, RaceAction},
        pool::Failure,
    };

    const START: Duration = Duration::from_secs(1000);
    const SILENT: Report = Report::Failed(Failure::Silent);
    const ANSWERED: Report = Report::Answered {
        load: None,
        draining: false,
    };
    const PAUSE: Duration = Duration::from_secs(2);

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 443))
    }

    fn server() -> Dialler {
        let settings = DialSettings::server();
        Dialler::in_order(settings, &[1, 2, 3].map(at), 1, START)
    }

    #[track_caller]
    fn assert_order(dialler: &mut Dialler, now: Duration, order: &[u8]) {
        let order: Vec<_> = order.iter().copied().map(at).collect();
        assert_eq!(dialler.order(None, now), order);
    }

    #[test]
    fn an_address_of_a_server_that_failed_is_last_and_is_tried_again_by_one_race() {
        let mut d = server();
        let mut now = START;
        assert_order(&mut d, now, &[1, 2, 3]);
        d.report(at(1), SILENT, now);
        // The failures of other races that had begun do not make the pause longer.
        for _ in 0..40 {
            d.report(at(1), SILENT, now);
        }
        assert_order(&mut d, now, &[2, 3, 1]);
        now += PAUSE;
        assert_order(&mut d, now, &[1, 2, 3]);
        assert_order(&mut d, now, &[2, 3, 1]);
        d.report(at(1), SILENT, now);
        now += PAUSE;
        assert_order(&mut d, now, &[2, 3, 1]);
        now += PAUSE;
        assert_order(&mut d, now, &[1, 2, 3]);
        // All failed: preference decides; one answer is enough to return.
        for n in 1..=3 {
            d.report(at(n), SILENT, now);
        }
        assert_order(&mut d, now, &[1, 2, 3]);
        d.report(at(2), ANSWERED, now);
        assert_order(&mut d, now, &[2, 1, 3]);
        for round in 0..20 {
            d.report(at(1), SILENT, now);
            now += 16 * PAUSE;
            assert_eq!(
                d.order(None, now)[0],
                at(1),
                "the pause has a limit: {round}"
            );
        }
    }

    #[test]
    fn a_change_of_addresses_keeps_what_was_learned() {
        let mut d = server();
        d.report(at(1), SILENT, START);
        d.update_in_order(&[1, 4].map(at), START);
        assert_order(&mut d, START, &[4, 1]);
        d.report(at(2), SILENT, START);
        d.update_in_order(&[2, 4].map(at), START);
        assert_order(&mut d, START, &[2, 4]);
        d.update_in_order(&[], START);
        assert_order(&mut d, START, &[]);
        d.update_in_order(&[at(9)], START);
        d.report(at(9), SILENT, START);
        assert_order(&mut d, START, &[9]);
    }

    #[test]
    fn of_a_target_the_address_that_answered_is_first() {
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 443));
        let target = |addresses: &[SocketAddr]| Target {
            name: "a".to_owned(),
            addresses: addresses.to_vec(),
            former: vec![at(7)],
        };
        let list = List::received(vec![Candidate {
            name: "a".to_owned(),
            load: 0,
            tier: 0,
        }]);
        let settings = DialSettings::gateways();
        let mut d = Dialler::new(settings, &list, vec![target(&[at(1), v6])], 1, START);
        assert_eq!(d.order(None, START), [at(1), v6]);
        d.report(v6, ANSWERED, START);
        assert_eq!(d.order(None, START), [v6, at(1)]);
        d.report(at(7), SILENT, START);
        assert_eq!(d.order(None, START), [v6, at(1)], "a former address");
        d.update(&list, vec![target(&[at(1), at(2)])], START);
        assert_eq!(d.order(None, START), [at(1), at(2)], "it is gone");
        d.update(&List::default(), vec![target(&[at(1)])], START);
        assert_eq!(d.order(None, START), [], "not in the list");
    }

    /// Two of three gateways are black holes: the third has its connect after two delays, whatever
    /// was reported before. Only a loss on the way to it makes that longer.
    #[test]
    fn two_dead_gateways_cost_two_delays() {
        for (dead, seed) in [[1, 2], [1, 3], [2, 3]].into_iter().zip(0..) {
            let settings = DialSettings::gateways();
            let mut d = Dialler::in_order(settings, &[1, 2, 3].map(at), seed, START);
            d.report(at(dead[0]), SILENT, START);
            let race = RaceSettings::default();
            let most = 2 * race.attempt_delay;
            let mut race = d.race(Some(at(dead[0])), race, START);
            let mut now = START;
            let works = loop {
                match race.poll(now) {
                    Some(RaceAction::Connect { attempt, address })
                        if dead.iter().all(|n| at(*n) != address) =>
                    {
                        break attempt;
                    }
                    Some(_) => {}
                    None => now = race.next_deadline().expect("more addresses"),
                }
            };
            assert!(now - START <= most, "{dead:?}");
            assert!(works <= AttemptId(2));
        }
    }
}
