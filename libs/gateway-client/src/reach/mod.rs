//! An end's reach: the gateways at which it is bound, and the one by which its datagrams go.
//!
//! ```text
//!   tenant's end                                               provider's end
//!   seeks: by the list, one gateway in use, asked often;       awaits: bound at every gateway, sends where
//!   bound at the others that work, asked now and then          the other end is heard
//!
//!      in use ── no answer, `down_after` times in a row ──▶ the next, where it is bound already
//!             ── "move" ──▶ the next, soon; this one is told when it is left
//!             ── nothing heard through it, while others work ──▶ the next
//! ```
//!
//! Pure: time on any monotonic clock, time of day for the messages, chance from a seed. Whoever has
//! the socket calls [`Reach::timeout`] at [`Reach::next_deadline`], hands in what comes
//! ([`Reach::hear`]) and does what [`Reach::poll`] says.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use crate::{
    end::{End, Heard},
    pool::{Choice, Chooser, Failure, List, NoService, Report, random::Random},
    wire::{CircuitId, Key, MESSAGE_BYTES, Side},
};

/// Times of a reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often the gateway in use is asked. A gateway takes 32 messages of an end in a second.
    pub in_use: Duration,
    /// How often the others are asked, at least; up to twice as much, at random.
    pub other: Duration,
    /// Round trip of a gateway that never answered.
    pub unknown_round_trip: Duration,
    /// How long a gateway through which nothing was heard is left alone, at first; each time twice
    /// as long.
    pub blame: Duration,
    /// The longest of these.
    pub max_blame: Duration,
    /// Of the choice. Its `refresh` is not used: [`Settings::other`] is.
    pub choice: crate::pool::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_use: Duration::from_millis(80),
            other: Duration::from_millis(350),
            unknown_round_trip: Duration::from_millis(300),
            blame: Duration::from_secs(2),
            max_blame: Duration::from_secs(60),
            choice: crate::pool::Settings {
                drain_spread: Duration::from_secs(1),
                ..crate::pool::Settings::default()
            },
        }
    }
}

/// A gateway, and where it is reached from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// Its name, unique.
    pub name: String,
    /// Its address and port.
    pub address: SocketAddr,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a gateway.
    Send {
        /// Where to.
        to: SocketAddr,
        /// What.
        message: [u8; MESSAGE_BYTES],
    },
    /// Datagrams go by this gateway from now on; the end is bound there.
    Use(At),
    /// No gateway works.
    Lost(NoService),
}

/// How a gateway is for this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayState {
    /// Which.
    pub at: At,
    /// Whether the end is bound there.
    pub bound: bool,
    /// Whether datagrams go by it.
    pub used: bool,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Whether it is taken to be down; never so for an end that awaits.
    pub down: bool,
    /// Time to it and back, newest.
    pub round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Member {
    at: At,
    end: End,
    /// When it is asked next, where this is not the choice's business.
    next: Duration,
    /// Asked at this pace since.
    paced: Duration,
    /// When a bind went out that nothing has come back for since.
    asked: Option<Duration>,
    heard: Option<Duration>,
    round_trip: Option<Duration>,
    bound_until: Option<Duration>,
    lifetime: Duration,
    draining: bool,
}

impl Member {
    fn is_bound(&self, now: Duration) -> bool {
        self.bound_until.is_some_and(|until| until > now)
    }
}

/// One side of a circuit, at all its gateways.
#[derive(Debug)]
pub struct Reach {
    circuit: CircuitId,
    side: Side,
    key: Key,
    settings: Settings,
    random: Random,
    members: Vec<Member>,
    /// Of an end that seeks.
    chooser: Option<Chooser>,
    /// The choice.
    chosen: Option<String>,
    /// What was said last.
    used: Option<At>,
    lost: Option<NoService>,
    blame_again: Duration,
    blame_pause: Duration,
    actions: VecDeque<Action>,
    /// Gateways that are not ours any more, and have yet to be told.
    leaving: Vec<Member>,
}

impl Reach {
    /// An end that says nothing yet. With a list it seeks a gateway of the list; without, it awaits
    /// the other end at all of `gateways`. A gateway that is in one of the two only is left out.
    #[must_use]
    pub fn new(
        (circuit, side, key): (CircuitId, Side, Key),
        settings: Settings,
        list: Option<&List>,
        gateways: &[At],
        seed: u64,
        now: Duration,
    ) -> Self {
        let mut random = Random::new(seed);
        let choice = crate::pool::Settings {
            refresh: settings.other,
            ..settings.choice
        };
        let chooser =
            list.map(|list| Chooser::new(choice, &known(list, gateways), random.next(), now));
        let mut reach = Self {
            circuit,
            side,
            key,
            settings,
            random,
            members: Vec::new(),
            chooser,
            chosen: None,
            used: None,
            lost: None,
            blame_again: now,
            blame_pause: settings.blame,
            actions: VecDeque::new(),
            leaving: Vec::new(),
        };
        reach.set_members(list, gateways, now);
        reach.choose(now);
        reach
    }

    /// Takes other gateways, or others on the list. What is known of one that stays is kept, and so
    /// is its use.
    pub fn update(&mut self, list: Option<&List>, gateways: &[At], now: Duration) {
        if let (Some(chooser), Some(list)) = (&mut self.chooser, list) {
            chooser.update(&known(list, gateways), now);
        }
        self.set_members(list, gateways, now);
        self.choose(now);
    }

    fn set_members(&mut self, list: Option<&List>, gateways: &[At], now: Duration) {
        let mut old = std::mem::take(&mut self.members);
        for at in gateways {
            if list.is_some_and(|list| list.candidates().iter().all(|c| c.name != at.name)) {
                continue;
            }
            let member = match old.iter().position(|m| m.at == *at) {
                Some(place) => old.swap_remove(place),
                None => Member {
                    at: at.clone(),
                    end: End::new(self.circuit, self.side, self.key.clone()),
                    next: now + self.random.up_to(self.settings.other),
                    paced: now,
                    asked: None,
                    heard: None,
                    round_trip: None,
                    bound_until: None,
                    lifetime: Duration::ZERO,
                    draining: false,
                },
            };
            self.members.push(member);
        }
        old.retain(|member| member.is_bound(now));
        self.leaving.append(&mut old);
        if let Some(used) = &self.used
            && self.members.iter().all(|m| m.at != *used)
        {
            self.used = None;
        }
    }

    /// The circuit.
    #[must_use]
    pub const fn circuit(&self) -> CircuitId {
        self.circuit
    }

    /// Whether the other end says by which gateway.
    #[must_use]
    pub const fn awaits(&self) -> bool {
        self.chooser.is_none()
    }

    /// Takes a message from a gateway; whether it was one to this end. `clock`: nanoseconds since
    /// 1970.
    pub fn hear(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        (now, clock): (Duration, u64),
    ) -> bool {
        let Some(place) = self.members.iter().position(|m| m.at.address == from) else {
            return false;
        };
        let member = &mut self.members[place];
        let Some(heard) = member.end.hear(message, clock) else {
            return false;
        };
        match heard {
            Heard::Send(message) => {
                let to = member.at.address;
                self.actions.push_back(Action::Send { to, message });
                return true;
            }
            Heard::Bound(lifetime) => {
                member.lifetime = Duration::from_millis(lifetime.into());
                member.bound_until = Some(now + member.lifetime);
                member.draining = false;
            }
            Heard::Move => {
                member.draining = true;
                // It keeps whom it has, as long as they say that they are there.
                if member.is_bound(now) {
                    member.bound_until = Some(now + member.lifetime);
                }
            }
        }
        member.heard = Some(now);
        if member.asked.take().is_some() {
            member.round_trip = Some(member.end.round_trip(clock).min(Duration::from_secs(2)));
        }
        let draining = member.draining;
        let name = member.at.name.clone();
        if let Some(chooser) = &mut self.chooser {
            let load = None;
            chooser.report(&name, Report::Answered { load, draining }, now);
        }
        self.choose(now);
        true
    }

    /// Nothing has come from the other end for too long though it was sent something: where another
    /// gateway works, this one may be to blame.
    pub fn unheard(&mut self, now: Duration) {
        let (Some(chooser), Some(used)) = (&mut self.chooser, &self.used) else {
            return;
        };
        let others = self.members.iter().any(|m| {
            m.at != *used && m.is_bound(now) && chooser.is_down(&m.at.name) == Some(false)
        });
        if !others || now < self.blame_again {
            return;
        }
        self.blame_again = now + self.blame_pause;
        self.blame_pause = (self.blame_pause * 2).min(self.settings.max_blame);
        let name = used.name.clone();
        for _ in 0..chooser.down_after() {
            chooser.report(&name, Report::Failed(Failure::Silent), now);
        }
        self.choose(now);
    }

    /// The other end is heard again.
    pub const fn heard(&mut self) {
        self.blame_pause = self.settings.blame;
    }

    /// Does what is due.
    pub fn timeout(&mut self, now: Duration, clock: u64) {
        let due = match &mut self.chooser {
            Some(chooser) => chooser.due(now),
            None => Vec::new(),
        };
        for place in 0..self.members.len() {
            let member = &self.members[place];
            let paced = self.pace(member);
            let is_due = match paced {
                Some(_) => member.next <= now,
                None => due.contains(&member.at.name),
            };
            if !is_due {
                continue;
            }
            self.judge(place, paced, now);
            let pause = match paced {
                Some(pace) if self.is_chosen(place) => pace,
                Some(pace) => pace + self.random.up_to(pace),
                None => Duration::ZERO,
            };
            let member = &mut self.members[place];
            member.next = now + pause;
            member.asked.get_or_insert(now);
            let to = member.at.address;
            let message = member.end.bind(clock);
            self.actions.push_back(Action::Send { to, message });
        }
        self.choose(now);
        self.leave(clock);
    }

    fn is_chosen(&self, place: usize) -> bool {
        self.chosen.as_deref() == Some(&self.members[place].at.name)
    }

    /// How often a gateway is asked, where that is not the choice's business: the one in use, all
    /// of them where none works, and always for an end that awaits.
    fn pace(&self, member: &Member) -> Option<Duration> {
        if self.chosen.as_deref() == Some(&member.at.name) {
            Some(self.settings.in_use)
        } else if self.chooser.is_none() || self.lost.is_some() {
            Some(self.settings.other)
        } else {
            None
        }
    }

    /// Whether the last bind that went to a gateway has been without an answer for too long.
    fn judge(&mut self, place: usize, pace: Option<Duration>, now: Duration) {
        let Some(chooser) = &mut self.chooser else {
            return;
        };
        let member = &self.members[place];
        let Some(asked) = member.asked else { return };
        let round_trip = member
            .round_trip
            .unwrap_or(self.settings.unknown_round_trip);
        let failed = match pace {
            // Answers are under way all the time; what counts is when the last one came.
            Some(pace) if member.heard.is_some() => {
                let since = member.heard.max(Some(member.paced + round_trip));
                now.saturating_sub(since.unwrap_or(now)) > pace + pace / 2
            }
            _ => now.saturating_sub(asked) >= round_trip,
        };
        if failed {
            let failure = Report::Failed(Failure::Silent);
            chooser.report(&member.at.name, failure, now);
        }
    }

    fn choose(&mut self, now: Duration) {
        let Some(chooser) = &mut self.chooser else {
            return;
        };
        match chooser.choose(now) {
            Choice::Use(name) => {
                self.lost = None;
                let Some(place) = self.members.iter().position(|m| m.at.name == name) else {
                    return;
                };
                let member = &mut self.members[place];
                if self.chosen.as_deref() != Some(&name) {
                    self.chosen = Some(name);
                    // Asked at once, and often from now on.
                    member.paced = now;
                    member.next = now;
                    member.asked = None;
                }
                if member.is_bound(now) && self.used.as_ref() != Some(&member.at) {
                    self.used = Some(member.at.clone());
                    self.actions.push_back(Action::Use(member.at.clone()));
                }
            }
            Choice::NoService(why) => {
                self.chosen = None;
                let said = |why: &NoService| why.to_string();
                if self.lost.as_ref().map(said) != Some(said(&why)) {
                    if self.lost.is_none() {
                        for member in &mut self.members {
                            member.paced = now;
                            member.next = now + self.random.up_to(self.settings.other);
                        }
                    }
                    self.lost = Some(why.clone());
                    self.actions.push_back(Action::Lost(why));
                }
                self.used = None;
            }
        }
    }

    /// Tells a gateway that drains, or is not ours any more, that it is left.
    fn leave(&mut self, clock: u64) {
        for mut member in std::mem::take(&mut self.leaving) {
            let to = member.at.address;
            let message = member.end.unbind(clock);
            self.actions.push_back(Action::Send { to, message });
        }
        if self.used.is_none() {
            return;
        }
        for member in &mut self.members {
            if member.draining
                && member.bound_until.is_some()
                && Some(&member.at) != self.used.as_ref()
            {
                member.bound_until = None;
                let to = member.at.address;
                let message = member.end.unbind(clock);
                self.actions.push_back(Action::Send { to, message });
            }
        }
    }

    /// Leaves every gateway: before the end goes.
    pub fn close(&mut self, now: Duration, clock: u64) {
        for member in self.members.iter_mut().chain(&mut self.leaving) {
            if member.is_bound(now) {
                member.bound_until = None;
                let to = member.at.address;
                let message = member.end.unbind(clock);
                self.actions.push_back(Action::Send { to, message });
            }
        }
    }

    /// The other end is heard by the gateway at `from`. An end that awaits sends there, and leaves
    /// others that drain.
    pub fn heard_by(&mut self, from: SocketAddr) {
        if self.chooser.is_none() {
            self.used = self.at(from).cloned();
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Reach::timeout`] wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.members
            .iter()
            .filter(|member| self.pace(member).is_some())
            .map(|member| member.next)
            .chain(self.chooser.as_ref().and_then(Chooser::next_deadline))
            .min()
    }

    /// The gateway by which datagrams go; of an end that awaits, by which the other end was heard.
    #[must_use]
    pub const fn used(&self) -> Option<&At> {
        self.used.as_ref()
    }

    /// The gateways.
    pub fn all(&self) -> impl Iterator<Item = &At> {
        self.members.iter().map(|member| &member.at)
    }

    /// The gateway at an address.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Option<&At> {
        self.all().find(|at| at.address == address)
    }

    /// Why no gateway works, if none does.
    #[must_use]
    pub const fn lost(&self) -> Option<&NoService> {
        self.lost.as_ref()
    }

    /// How the gateways are, in the order of the configuration.
    #[must_use]
    pub fn states(&self, now: Duration) -> Vec<GatewayState> {
        let state = |member: &Member| GatewayState {
            at: member.at.clone(),
            bound: member.is_bound(now),
            used: self.used.as_ref() == Some(&member.at),
            draining: member.draining,
            down: self
                .chooser
                .as_ref()
                .and_then(|chooser| chooser.is_down(&member.at.name))
                .unwrap_or(false),
            round_trip: member.round_trip,
        };
        self.members.iter().map(state).collect()
    }
}

/// Of a list, those that can be reached from here.
fn known(list: &List, gateways: &[At]) -> List {
    let there = |name: &str| gateways.iter().any(|at| at.name == name);
    let mut candidates = list.candidates().to_vec();
    candidates.retain(|candidate| there(&candidate.name));
    List::received(candidates)
}

#[cfg(test)]
mod tests;
