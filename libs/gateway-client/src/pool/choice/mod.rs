//! Chooses a gateway for an end, from reports about all gateways.
//!
//! The state of a gateway:
//!
//! ```text
//!                 an answer            `down_after` failures in a row
//!   ┌─────────┐ ───────────▶ ┌────┐ ─────────────────────────────────▶ ┌──────┐ tried again after a pause
//!   │ untried │              │ up │                                    │ down │──┐ that grows and differs
//!   └─────────┘              └────┘ ◀───────────────────────────────── └──────┘◀─┘
//!        └──────────────────────┴── as many failures ──▶ down   `up_after` answers in a row; one is enough
//!                                                               where nothing else works
//! ```
//!
//! A gateway may also be **draining**: it works, is not chosen again, and its ends leave within
//! `drain_spread`.
//!
//! Of the gateways that are not down, the lowest tier is used, and in it the least loaded. Loads
//! are some seconds old and the same for all ends: loads within `slack` of the least count as
//! equal, and chance decides. A working gateway in use is kept, whatever the load of others. So a
//! recovered gateway gets only ends that need a gateway, and during `settle` only a growing part of
//! them; its load counts as that of the others, as its own says nothing yet. Ends that use a higher
//! tier return to a lower one some time after that works again, spread over time.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::List;
use crate::random::SplitMix64;

/// Thresholds and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row after which a gateway is down; at least 1.
    pub down_after: u32,
    /// Answers in a row after which it is up again; at least 1.
    pub up_after: u32,
    /// Pause before the first trial of a gateway that is down; each further pause is twice the
    /// last.
    pub first_pause: Duration,
    /// Longest pause, without the jitter.
    pub max_pause: Duration,
    /// Interval of trials of a working gateway that is not in use.
    pub refresh: Duration,
    /// Largest random addition to a pause, per cent of the pause.
    pub jitter_percent: u32,
    /// Largest difference of loads that count as equal, thousandths.
    pub slack: u16,
    /// Time in which a recovered gateway gets less than its share.
    pub slow_start: Duration,
    /// Time within which ends leave a draining gateway.
    pub drain_spread: Duration,
    /// Time that a gateway of a lower tier must work before ends of a higher tier return.
    pub home_after: Duration,
    /// Time after that within which they return.
    pub home_spread: Duration,
    /// Time for which a failure puts a gateway behind others in [`Chooser::order`].
    pub avoid: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            down_after: 3,
            up_after: 2,
            first_pause: Duration::from_millis(250),
            max_pause: Duration::from_secs(4),
            refresh: Duration::from_secs(30),
            jitter_percent: 100,
            slack: 100,
            slow_start: Duration::from_secs(30),
            drain_spread: Duration::from_secs(2),
            home_after: Duration::from_secs(300),
            home_spread: Duration::from_secs(300),
            avoid: Duration::from_secs(60),
        }
    }
}

/// Why a trial or the use of a gateway failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No process listens, or there is no route.
    Unreachable,
    /// No answer in time.
    Silent,
    /// The gateway refused.
    Refused,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "is unreachable",
            Self::Silent => "is silent",
            Self::Refused => "refuses us",
        })
    }
}

/// An observation of a gateway, from its use or a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The gateway answered.
    Answered {
        /// Load that it reports, thousandths.
        load: Option<u16>,
        /// Whether it drains.
        draining: bool,
    },
    /// The gateway did not answer, or refused.
    Failed(Failure),
}

/// The gateway that an end binds at, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Use this gateway.
    Use(String),
    /// No gateway can be used.
    NoService(NoService),
}

/// A gateway that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    pub name: String,
    /// The last failure; `None`: the gateway drains.
    pub failure: Option<Failure>,
    /// Time of the next trial.
    pub next: Duration,
}

/// Why no gateway can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoService {
    /// The list is empty.
    #[error(
        "this tenant may use no gateway: give it a pool with a gateway, or allow gateways without \
         a pool"
    )]
    Nothing,
    /// All gateways are down or drain.
    #[error("no gateway works: {}; each is tried again automatically", list(.0))]
    AllDown(Vec<Down>),
}

fn list(down: &[Down]) -> String {
    let each = down.iter().map(|down| match down.failure {
        Some(failure) => format!("{} {failure}", down.name),
        None => format!("{} is draining", down.name),
    });
    each.collect::<Vec<_>>().join(", ")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Untried,
    Up,
    Down,
}

#[derive(Clone, Debug)]
struct Member {
    name: String,
    tier: usize,
    load: u16,
    /// The load is a report of the gateway: that of the list is older.
    reported: bool,
    health: Health,
    /// In a row.
    failures: u32,
    /// In a row.
    answers: u32,
    last: Option<Failure>,
    /// Time of the last failure since the last answer.
    failed: Option<Duration>,
    /// Trials since it went down.
    trials: u32,
    /// Time of the next trial, unless it is in use and works.
    next: Duration,
    /// Time of its recovery, if it was down or draining.
    back: Option<Duration>,
    /// Time at which ends of higher tiers return to it.
    home: Option<Duration>,
    /// It drains; time at which this end leaves it.
    leaves_at: Option<Duration>,
}

impl Member {
    fn usable(&self) -> bool {
        self.health != Health::Down && self.leaves_at.is_none()
    }
}

/// Chooses a gateway, and decides which gateways to try.
#[derive(Clone, Debug)]
pub struct Chooser {
    settings: Settings,
    random: SplitMix64,
    members: Vec<Member>,
    /// Name of the gateway in use.
    current: Option<String>,
    /// Its failures in a row at the time of the choice.
    chosen_with: u32,
}

impl Chooser {
    /// A chooser without reports. Ends with different seeds choose differently.
    #[must_use]
    pub fn new(settings: Settings, list: &List, seed: u64, now: Duration) -> Self {
        let mut chooser = Self {
            settings,
            random: SplitMix64::new(seed),
            members: Vec::new(),
            current: None,
            chosen_with: 0,
        };
        chooser.update(list, now);
        chooser
    }

    /// Applies a new list. A gateway that stays keeps its state and its use; a removed one is not
    /// used again.
    pub fn update(&mut self, list: &List, now: Duration) {
        let mut old = std::mem::take(&mut self.members);
        for candidate in list.candidates() {
            let known = old.iter().position(|m| m.name == candidate.name);
            let mut member = match known {
                Some(at) => old.swap_remove(at),
                None => Member {
                    name: candidate.name.clone(),
                    tier: candidate.tier,
                    load: candidate.load,
                    reported: false,
                    health: Health::Untried,
                    failures: 0,
                    answers: 0,
                    last: None,
                    failed: None,
                    trials: 0,
                    // Spread over the first interval, so that a new list causes no burst of trials.
                    next: now.saturating_add(self.random.up_to(self.settings.refresh)),
                    back: None,
                    home: None,
                    leaves_at: None,
                },
            };
            member.tier = candidate.tier;
            if !member.reported {
                member.load = candidate.load;
            }
            self.members.push(member);
        }
        if self.in_use().is_none() {
            self.current = None;
        }
    }

    /// Applies a report. Reports about gateways that are not in the list are ignored.
    pub fn report(&mut self, name: &str, report: Report, now: Duration) {
        let Some(at) = self.members.iter().position(|m| m.name == name) else {
            return;
        };
        match report {
            Report::Answered { load, draining } => self.answered(at, load, draining, now),
            Report::Failed(failure) => self.failed(at, failure, now),
        }
    }

    fn answered(&mut self, at: usize, load: Option<u16>, draining: bool, now: Duration) {
        let alone = !self.members.iter().any(Member::usable);
        let enough = if alone { 1 } else { self.settings.up_after };
        let settings = self.settings;
        let member = &mut self.members[at];
        if let Some(load) = load {
            (member.load, member.reported) = (load, true);
        }
        (member.failures, member.failed) = (0, None);
        member.answers = member.answers.saturating_add(1);
        if draining && member.leaves_at.is_none() {
            let leaves_at = now.saturating_add(self.random.up_to(settings.drain_spread));
            member.leaves_at = Some(leaves_at);
        } else if !draining && member.leaves_at.take().is_some() {
            member.back = Some(now);
        }
        let risen = match member.health {
            Health::Up => false,
            Health::Untried => true,
            Health::Down if member.answers >= enough => {
                member.back = Some(now);
                true
            }
            Health::Down => false,
        };
        if risen {
            let home = settings
                .home_after
                .saturating_add(self.random.up_to(settings.home_spread));
            member.health = Health::Up;
            member.home = Some(now.saturating_add(home));
        }
        // A recovering gateway is tried again soon, however long its last pause was.
        let pause = match member.health {
            Health::Down => settings.first_pause,
            _ => settings.refresh,
        };
        self.members[at].next = self.after(now, pause);
    }

    fn failed(&mut self, at: usize, failure: Failure, now: Duration) {
        let settings = self.settings;
        let member = &mut self.members[at];
        member.answers = 0;
        member.failures = member.failures.saturating_add(1);
        (member.last, member.failed) = (Some(failure), Some(now));
        if member.health != Health::Down {
            member.trials = 0;
            if member.failures >= settings.down_after.max(1) {
                member.health = Health::Down;
                member.home = None;
                member.leaves_at = None;
            }
        }
        let member = &self.members[at];
        let pause = settings
            .first_pause
            .saturating_mul(1 << member.trials.min(20))
            .min(settings.max_pause);
        self.members[at].next = self.after(now, pause);
    }

    /// `now` plus `pause` plus a random part of it.
    fn after(&mut self, now: Duration, pause: Duration) -> Duration {
        let jitter = pause.saturating_mul(self.settings.jitter_percent) / 100;
        now.saturating_add(pause)
            .saturating_add(self.random.up_to(jitter))
    }

    /// Chooses the gateway to use now.
    pub fn choose(&mut self, now: Duration) -> Choice {
        if let Some(member) = self.in_use()
            && self.is_kept(member, now)
        {
            return Choice::Use(member.name.clone());
        }
        let tier = self
            .members
            .iter()
            .filter(|m| m.usable())
            .map(|m| m.tier)
            .min();
        if let Some(tier) = tier {
            let name = self.pick(tier, now);
            self.current = Some(name.clone());
            self.chosen_with = self.in_use().map_or(0, |m| m.failures);
            return Choice::Use(name);
        }
        // A draining gateway still serves the ends it has.
        if let Some(member) = self.in_use()
            && member.health != Health::Down
        {
            return Choice::Use(member.name.clone());
        }
        self.current = None;
        Choice::NoService(self.no_service())
    }

    fn in_use(&self) -> Option<&Member> {
        let name = self.current.as_deref()?;
        self.members.iter().find(|m| m.name == name)
    }

    /// Whether the gateway in use is kept.
    fn is_kept(&self, member: &Member, now: Duration) -> bool {
        // A gateway that never answered is not worth keeping after a failure.
        let works = match member.health {
            Health::Up => true,
            Health::Untried => member.failures <= self.chosen_with,
            Health::Down => false,
        };
        let left = member.leaves_at.is_some_and(|at| at <= now);
        works && !left && !self.preferred_tier_is_open(member.tier, now)
    }

    /// Whether an end that uses `tier` returns to a lower one.
    fn preferred_tier_is_open(&self, tier: usize, now: Duration) -> bool {
        self.members.iter().any(|m| {
            m.tier < tier && m.usable() && m.failures == 0 && m.home.is_some_and(|home| home <= now)
        })
    }

    /// Chooses a usable gateway of a tier that has one.
    fn pick(&mut self, tier: usize, now: Duration) -> String {
        let usable = || {
            let members = self.members.iter().enumerate();
            members.filter(|(_, m)| m.tier == tier && m.usable())
        };
        // Gateways with recent failures come last.
        let fewest = usable().map(|(_, m)| m.failures).min().unwrap_or(0);
        let equal: Vec<usize> = usable()
            .filter(|(_, m)| m.failures == fewest)
            .map(|(at, _)| at)
            .collect();
        self.pick_of(&equal, now)
            .map(|at| self.members[at].name.clone())
            .unwrap_or_default()
    }

    /// Chooses a member by load and chance.
    fn pick_of(&mut self, places: &[usize], now: Duration) -> Option<usize> {
        let member = |at: &usize| &self.members[*at];
        let has_full_share = |at: &&usize| self.share(member(at), now) >= FULL_SHARE;
        let others = places
            .iter()
            .filter(has_full_share)
            .map(|at| member(at).load);
        let others = others.min();
        let load = |at: &usize| match others {
            Some(least) if !has_full_share(&at) => member(at).load.max(least),
            _ => member(at).load,
        };
        let least = places.iter().map(load).min()?;
        let most = least.saturating_add(self.settings.slack);
        let weighed: Vec<(usize, u64)> = places
            .iter()
            .filter(|at| load(at) <= most)
            .map(|at| (*at, self.share(member(at), now)))
            .collect();
        let sum = weighed.iter().map(|(_, weight)| weight).sum();
        let mut point = self.random.below(sum);
        for (at, weight) in &weighed {
            if point < *weight {
                return Some(*at);
            }
            point -= weight;
        }
        weighed.last().map(|(at, _)| *at)
    }

    /// All gateways, in the order in which a connection tries them: by tier, in it by load and
    /// chance. Those that drain, are down or failed within `avoid` come after all others, and the
    /// one named by `last` after those; a failure does not count for the gateways of `trials`. For
    /// connections that are made once, unlike the use that [`Self::choose`] decides.
    pub fn order(&mut self, last: Option<&str>, trials: &[String], now: Duration) -> Vec<String> {
        let avoid = self.settings.avoid;
        let rank = |m: &Member| {
            let failed = m.failed.is_some_and(|at| now.saturating_sub(at) < avoid);
            let failed = failed && !trials.contains(&m.name);
            let avoided = failed || m.leaves_at.is_some();
            (Some(m.name.as_str()) == last, avoided, m.tier)
        };
        let mut rest: Vec<usize> = (0..self.members.len()).collect();
        let mut order = Vec::with_capacity(rest.len());
        while let Some(best) = rest.iter().map(|at| rank(&self.members[*at])).min() {
            let is_best = |at: &usize| rank(&self.members[*at]) == best;
            let equal: Vec<usize> = rest.iter().copied().filter(is_best).collect();
            let Some(at) = self.pick_of(&equal, now) else {
                break;
            };
            order.push(self.members[at].name.clone());
            rest.retain(|other| *other != at);
        }
        order
    }

    /// Takes over the loads that gateways reported to another chooser.
    pub fn adopt_loads(&mut self, other: &Self) {
        for member in &mut self.members {
            let known = other.members.iter().find(|m| m.name == member.name);
            if let Some(known) = known.filter(|known| known.reported) {
                (member.load, member.reported) = (known.load, true);
            }
        }
    }

    /// Load of a gateway in thousandths, if the gateway has reported it.
    #[must_use]
    pub fn reported_load(&self, name: &str) -> Option<u16> {
        let member = self.members.iter().find(|m| m.name == name)?;
        member.reported.then_some(member.load)
    }

    /// The weight of a gateway, 1 to [`FULL_SHARE`].
    fn share(&self, member: &Member, now: Duration) -> u64 {
        let Some(back) = member.back else {
            return FULL_SHARE;
        };
        let slow_start = self.settings.slow_start.as_nanos().max(1);
        let part = now.saturating_sub(back).as_nanos() * u128::from(FULL_SHARE) / slow_start;
        u64::try_from(part)
            .unwrap_or(FULL_SHARE)
            .clamp(1, FULL_SHARE)
    }

    fn no_service(&self) -> NoService {
        if self.members.is_empty() {
            return NoService::Nothing;
        }
        let mut down: Vec<(usize, Down)> = self
            .members
            .iter()
            .map(|m| {
                let draining = m.health != Health::Down;
                let down = Down {
                    name: m.name.clone(),
                    failure: m.last.filter(|_| !draining),
                    next: m.next,
                };
                (m.tier, down)
            })
            .collect();
        down.sort_by(|(t, a), (u, b)| (t, &a.name).cmp(&(u, &b.name)));
        NoService::AllDown(down.into_iter().map(|(_, down)| down).collect())
    }

    /// The gateways to try now. Each is due again after a pause, with or without a report.
    pub fn due(&mut self, now: Duration) -> Vec<String> {
        let mut names = Vec::new();
        for at in 0..self.members.len() {
            let member = &self.members[at];
            if member.next > now || !self.is_tried(member) {
                continue;
            }
            names.push(member.name.clone());
            let pause = match member.health {
                Health::Down => {
                    let grown = self
                        .settings
                        .first_pause
                        .saturating_mul(1 << member.trials.min(20));
                    self.members[at].trials += 1;
                    grown.min(self.settings.max_pause)
                }
                Health::Untried | Health::Up => self.settings.refresh,
            };
            self.members[at].next = self.after(now, pause);
        }
        names
    }

    /// The working gateway in use needs no trials.
    fn is_tried(&self, member: &Member) -> bool {
        member.health == Health::Down || self.current.as_deref() != Some(&member.name)
    }

    /// Whether a gateway of the list is down; `None`: it is not in the list.
    #[must_use]
    pub fn is_down(&self, name: &str) -> Option<bool> {
        let member = self.members.iter().find(|m| m.name == name)?;
        Some(member.health == Health::Down)
    }

    /// How many failures in a row make a gateway down.
    #[must_use]
    pub fn down_after(&self) -> u32 {
        self.settings.down_after.max(1)
    }

    /// The earliest time at which the result of [`Self::due`] or [`Self::choose`] changes without a
    /// report. May be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let trials = self
            .members
            .iter()
            .filter(|m| self.is_tried(m))
            .map(|m| m.next);
        let current = self.in_use();
        let others = self.members.iter().any(Member::usable);
        let leaves_at = current.and_then(|m| m.leaves_at).filter(|_| others);
        let home = current.into_iter().flat_map(|current| {
            self.members
                .iter()
                .filter(|m| m.tier < current.tier && m.usable() && m.failures == 0)
                .filter_map(|m| m.home)
        });
        trials.chain(leaves_at).chain(home).min()
    }
}

/// The weight of a gateway that has not just recovered.
const FULL_SHARE: u64 = 1000;

#[cfg(test)]
mod tests;
