//! The choice, at a tenant's end.
//!
//! What is known of each gateway:
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
//! Beside it a gateway may be **draining**: it works, is not chosen any more, and is left within
//! `drain_spread`.
//!
//! Of those that are not down the lowest tier is taken, and in it the least loaded. Loads are some
//! seconds old, and all ends have the same: those within `slack` of the least count as equal, and
//! chance decides. A gateway that is in use and works is kept, however little another has to do. So
//! one that recovers gets those who need a gateway just then, and of them, for the first `settle`,
//! only a part that grows; its load, which says nothing yet, is taken to be the others'. Whoever
//! uses a higher tier than it may goes home some time after its own gateway is back, not all at
//! once.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::{List, random::Random};

/// Thresholds and times of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row after which a gateway is down; at least 1.
    pub down_after: u32,
    /// Answers in a row after which it is up again; at least 1.
    pub up_after: u32,
    /// Pause before the first trial of one that is down; each further is twice the last.
    pub first_pause: Duration,
    /// Longest pause, without the jitter.
    pub max_pause: Duration,
    /// How often a gateway that is not in use is asked how it is.
    pub refresh: Duration,
    /// What is added to each pause at most, at random, per cent of it.
    pub jitter_percent: u32,
    /// Loads that differ by no more count as equal, thousandths.
    pub slack: u16,
    /// How long a gateway that recovered gets less than its part.
    pub settle: Duration,
    /// Within what time ends leave a gateway that drains.
    pub drain_spread: Duration,
    /// How long a gateway of a lower tier works before ends of a higher one come home.
    pub home_after: Duration,
    /// Within what time after that they do.
    pub home_spread: Duration,
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
            settle: Duration::from_secs(30),
            drain_spread: Duration::from_secs(2),
            home_after: Duration::from_secs(300),
            home_spread: Duration::from_secs(300),
        }
    }
}

/// Why a trial of a gateway, or its use, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens there, or there is no way there.
    Unreachable,
    /// No answer in time.
    Silent,
    /// It answered that it does not serve us.
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

/// What was seen of a gateway, in use or tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It answered.
    Answered {
        /// How full it says it is, thousandths.
        load: Option<u16>,
        /// Whether it wants to be left.
        draining: bool,
    },
    /// It did not, or badly.
    Failed(Failure),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Use this gateway, or go on using it.
    Use(String),
    /// There is none.
    NoService(NoService),
}

/// A gateway that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Its name.
    pub name: String,
    /// What the last failure was; `None`: it drains, and takes nobody new.
    pub failure: Option<Failure>,
    /// When it is tried next; a time on the caller's clock.
    pub next: Duration,
}

/// Why no gateway can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoService {
    /// The list is empty.
    #[error(
        "no gateway is open to this tenant: give it a pool with a gateway, or allow it the gateways without a pool"
    )]
    Nothing,
    /// All are down.
    #[error("no gateway works: {}; each is tried again by itself", list(.0))]
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
    health: Health,
    /// In a row.
    failures: u32,
    /// In a row.
    answers: u32,
    last: Option<Failure>,
    /// Trials since it is down.
    trials: u32,
    /// When it is tried next, unless it is in use and works.
    next: Duration,
    /// When it came back, if it was away.
    back: Option<Duration>,
    /// When ends of higher tiers come home to it.
    home: Option<Duration>,
    /// It drains, and is left at this time.
    leave: Option<Duration>,
}

impl Member {
    fn usable(&self) -> bool {
        self.health != Health::Down && self.leave.is_none()
    }
}

/// Chooses, and says which gateways to try.
#[derive(Clone, Debug)]
pub struct Chooser {
    settings: Settings,
    random: Random,
    members: Vec<Member>,
    /// The one in use, by name.
    current: Option<String>,
    /// Its failures in a row when it was chosen.
    chosen_with: u32,
}

impl Chooser {
    /// With a list and nothing known yet. Ends with different seeds choose differently.
    #[must_use]
    pub fn new(settings: Settings, list: &List, seed: u64, now: Duration) -> Self {
        let mut chooser = Self {
            settings,
            random: Random::new(seed),
            members: Vec::new(),
            current: None,
            chosen_with: 0,
        };
        chooser.update(list, now);
        chooser
    }

    /// Takes a new list. What is known of a gateway that stays is kept, and so is its use; one that
    /// is gone is not used any more.
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
                    health: Health::Untried,
                    failures: 0,
                    answers: 0,
                    last: None,
                    trials: 0,
                    // At some time of the first round, so that a new list is no burst of trials.
                    next: now.saturating_add(self.random.up_to(self.settings.refresh)),
                    back: None,
                    home: None,
                    leave: None,
                },
            };
            member.tier = candidate.tier;
            member.load = candidate.load;
            self.members.push(member);
        }
        if self.in_use().is_none() {
            self.current = None;
        }
    }

    /// Takes what was seen. Of a gateway that is not in the list it is nothing.
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
        member.load = load.unwrap_or(member.load);
        member.failures = 0;
        member.answers = member.answers.saturating_add(1);
        if draining && member.leave.is_none() {
            let leave = now.saturating_add(self.random.up_to(settings.drain_spread));
            member.leave = Some(leave);
        } else if !draining && member.leave.take().is_some() {
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
        // One that is on its way up is asked again soon, whatever pause had grown.
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
        member.last = Some(failure);
        if member.health != Health::Down {
            member.trials = 0;
            if member.failures >= settings.down_after.max(1) {
                member.health = Health::Down;
                member.home = None;
                member.leave = None;
            }
        }
        let member = &self.members[at];
        let pause = settings
            .first_pause
            .saturating_mul(1 << member.trials.min(20))
            .min(settings.max_pause);
        self.members[at].next = self.after(now, pause);
    }

    /// `pause` after `now`, and some of it more.
    fn after(&mut self, now: Duration, pause: Duration) -> Duration {
        let jitter = pause.saturating_mul(self.settings.jitter_percent) / 100;
        now.saturating_add(pause)
            .saturating_add(self.random.up_to(jitter))
    }

    /// The gateway to use now.
    pub fn choose(&mut self, now: Duration) -> Choice {
        if let Some(member) = self.in_use()
            && self.stays(member, now)
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
        // One that drains still serves those it has; better than nobody.
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
    fn stays(&self, member: &Member, now: Duration) -> bool {
        // Nothing hangs on one that never answered: after a failure the next may be better.
        let works = match member.health {
            Health::Up => true,
            Health::Untried => member.failures <= self.chosen_with,
            Health::Down => false,
        };
        let left = member.leave.is_some_and(|leave| leave <= now);
        works && !left && !self.home_is_open(member.tier, now)
    }

    /// Whether an end in `tier` is to come home to a lower one.
    fn home_is_open(&self, tier: usize, now: Duration) -> bool {
        self.members.iter().any(|m| {
            m.tier < tier && m.usable() && m.failures == 0 && m.home.is_some_and(|home| home <= now)
        })
    }

    /// One of a tier that has a usable one.
    fn pick(&mut self, tier: usize, now: Duration) -> String {
        let there = || self.members.iter().filter(|m| m.tier == tier && m.usable());
        // Whoever just failed comes after those who did not.
        let fewest = there().map(|m| m.failures).min().unwrap_or(0);
        let equal: Vec<&Member> = there().filter(|m| m.failures == fewest).collect();
        let settled = |m: &Member| self.share(m, now) >= FULL_SHARE;
        let others = equal.iter().filter(|m| settled(m)).map(|m| m.load).min();
        let load = |m: &Member| match others {
            Some(least) if !settled(m) => m.load.max(least),
            _ => m.load,
        };
        let least = equal.iter().map(|m| load(m)).min().unwrap_or(0);
        let most = least.saturating_add(self.settings.slack);
        let weighed: Vec<(&str, u64)> = equal
            .iter()
            .filter(|m| load(m) <= most)
            .map(|m| (m.name.as_str(), self.share(m, now)))
            .collect();
        let sum = weighed.iter().map(|(_, weight)| weight).sum();
        let mut point = self.random.below(sum);
        for (name, weight) in &weighed {
            if point < *weight {
                return (*name).to_owned();
            }
            point -= weight;
        }
        weighed
            .last()
            .map(|(n, _)| (*n).to_owned())
            .unwrap_or_default()
    }

    /// What part of its due a gateway gets, of [`FULL_SHARE`]; never nothing.
    fn share(&self, member: &Member, now: Duration) -> u64 {
        let Some(back) = member.back else {
            return FULL_SHARE;
        };
        let settle = self.settings.settle.as_nanos().max(1);
        let part = now.saturating_sub(back).as_nanos() * u128::from(FULL_SHARE) / settle;
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

    /// The gateways to try now; each is due again after a pause, whether or not the trial is
    /// reported.
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

    /// The one in use is not tried: its use tells.
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

    /// When to ask again if nothing is reported before: the earliest time at which [`Self::due`] or
    /// [`Self::choose`] has something else to say. May be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let trials = self
            .members
            .iter()
            .filter(|m| self.is_tried(m))
            .map(|m| m.next);
        let current = self.in_use();
        let others = self.members.iter().any(Member::usable);
        let leave = current.and_then(|m| m.leave).filter(|_| others);
        let home = current.into_iter().flat_map(|current| {
            self.members
                .iter()
                .filter(|m| m.tier < current.tier && m.usable() && m.failures == 0)
                .filter_map(|m| m.home)
        });
        trials.chain(leave).chain(home).min()
    }
}

/// What a gateway gets that has settled.
const FULL_SHARE: u64 = 1000;

#[cfg(test)]
mod tests;
