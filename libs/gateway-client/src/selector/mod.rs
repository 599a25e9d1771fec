//! The gateways of one end of a circuit: its bindings at all of them, and the gateway in use.
//!
//! ```text
//!   tenant's end                                               provider's end
//!   chooses from the list one gateway to use, with frequent    bound at every gateway; sends through the gateway
//!   binds; stays bound at the others, with fewer binds         that the other end is received from
//!
//!      in use ── no answer, `down_after` times in a row ──▶ the next gateway, where it is bound already
//!             ── "move" ──▶ the next gateway, soon; an unbind to this one follows
//!             ── no datagram of the other end, while other gateways work ──▶ the next gateway
//! ```
//!
//! A gateway may have several addresses. The end is bound at one of them: the first that answers,
//! and the next one when it stops answering.
//!
//! Parameters are the time on any monotonic clock, the time of day for the messages, and a seed.
//! The owner of the socket calls [`GatewaySelector::timeout`] at
//! [`GatewaySelector::next_deadline`], hands in messages ([`GatewaySelector::receive`]) and does
//! the actions of [`GatewaySelector::poll`].

mod member;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use crate::{
    dial::Target,
    end::{End, EndEvent},
    pool::{Choice, Chooser, Failure, List, NoService, Report},
    random::SplitMix64,
    wire::{CircuitId, Key, MESSAGE_BYTES, Side},
};
use member::Member;

/// Times of a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interval of binds to the gateway in use. A gateway accepts 32 messages of an end a second.
    pub in_use: Duration,
    /// Least interval of binds to other gateways; random up to twice this.
    pub other: Duration,
    /// Assumed round trip of a gateway that never answered.
    pub unknown_round_trip: Duration,
    /// Time without an answer after which the next address of a gateway is tried.
    pub attempt_delay: Duration,
    /// First pause after a change because of a silent peer; doubled each time.
    pub silence_pause: Duration,
    /// Longest such pause.
    pub max_silence_pause: Duration,
    /// Settings of the choice. [`Settings::other`] replaces its `refresh`.
    pub choice: crate::pool::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_use: Duration::from_millis(80),
            other: Duration::from_millis(350),
            unknown_round_trip: Duration::from_millis(300),
            attempt_delay: Duration::from_millis(250),
            silence_pause: Duration::from_secs(2),
            max_silence_pause: Duration::from_secs(60),
            choice: crate::pool::Settings {
                drain_spread: Duration::from_secs(1),
                ..crate::pool::Settings::default()
            },
        }
    }
}

/// A gateway and one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Unique name.
    pub name: String,
    pub address: SocketAddr,
}

/// An action of the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a gateway.
    Send {
        to: SocketAddr,
        message: [u8; MESSAGE_BYTES],
    },
    /// Send datagrams through this gateway from now on; the end is bound there.
    Use(GatewayAddress),
    /// No gateway works.
    Lost(NoService),
}

/// The state of a gateway for this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayState {
    pub at: GatewayAddress,
    /// Whether the end is bound there.
    pub bound: bool,
    /// Whether the gateway is in use.
    pub used: bool,
    /// Whether it drains.
    pub draining: bool,
    /// Whether it is down; always false for an end without a list.
    pub down: bool,
    /// Last round trip.
    pub round_trip: Option<Duration>,
}

/// Time between the use of another gateway and the unbind at the one that this end leaves. What the
/// other end sent through it meanwhile still arrives; without that, a drain cost the packets that
/// were on their way until the other end had followed.
const OLD_GATEWAY_GRACE: Duration = Duration::from_millis(500);

/// Time after the unbind at a removed gateway in which a challenge of it is answered, with another
/// unbind: the longest round trip that is measured.
const UNBIND_ANSWER_TIME: Duration = Duration::from_secs(2);

/// One side of a circuit, at all its gateways.
#[derive(Debug)]
pub struct GatewaySelector {
    circuit: CircuitId,
    side: Side,
    key: Key,
    settings: Settings,
    random: SplitMix64,
    members: Vec<Member>,
    /// For an end with a list.
    chooser: Option<Chooser>,
    /// Name of the chosen gateway.
    chosen: Option<String>,
    /// The gateway of the last [`Action::Use`].
    used: Option<GatewayAddress>,
    no_service: Option<NoService>,
    next_silence_report: Duration,
    silence_pause: Duration,
    actions: VecDeque<Action>,
    /// Removed gateways that still need an unbind, or may challenge it.
    replaced: Vec<Member>,
}

impl GatewaySelector {
    /// With a list, the end chooses a gateway of the list. Without, it waits for the other end at
    /// all of `gateways`. A gateway that is only in one of both is ignored.
    #[must_use]
    pub fn new(
        (circuit, side, key): (CircuitId, Side, Key),
        settings: Settings,
        list: Option<&List>,
        gateways: &[Target],
        seed: u64,
        now: Duration,
    ) -> Self {
        let mut random = SplitMix64::new(seed);
        let choice = crate::pool::Settings {
            refresh: settings.other,
            ..settings.choice
        };
        let chooser =
            list.map(|list| Chooser::new(choice, &known(list, gateways), random.next_u64(), now));
        let mut selector = Self {
            circuit,
            side,
            key,
            settings,
            random,
            members: Vec::new(),
            chooser,
            chosen: None,
            used: None,
            no_service: None,
            next_silence_report: now,
            silence_pause: settings.silence_pause,
            actions: VecDeque::new(),
            replaced: Vec::new(),
        };
        selector.set_members(list, gateways, now);
        selector.choose(now);
        selector
    }

    /// Applies new gateways and a new list. A gateway that stays keeps its state and its use.
    pub fn update(&mut self, list: Option<&List>, gateways: &[Target], now: Duration) {
        if let (Some(chooser), Some(list)) = (&mut self.chooser, list) {
            chooser.update(&known(list, gateways), now);
        }
        self.set_members(list, gateways, now);
        self.choose(now);
    }

    fn set_members(&mut self, list: Option<&List>, gateways: &[Target], now: Duration) {
        let mut old = std::mem::take(&mut self.members);
        let follows = self.chooser.is_none();
        for spec in gateways {
            if list.is_some_and(|list| list.candidates().iter().all(|c| c.name != spec.name)) {
                continue;
            }
            let is_same = |member: &mut Member| member.at.name == spec.name;
            let mut kept = None;
            for mut member in old.extract_if(.., is_same) {
                let at_former = follows && member.is_at_former(spec, now);
                if at_former {
                    // The other end may be there still, and another gateway at the new address.
                    member.retire();
                    self.members.push(member);
                } else if !member.retired && member.update(spec, now) {
                    kept = Some(member);
                }
            }
            if kept.is_none() {
                // A gateway of this name only: what another one learns is of no use there.
                let key = self.key.for_gateway(&spec.name);
                let end = End::new(self.circuit, self.side, key);
                let next = now + self.random.up_to(self.settings.other);
                kept = Member::new(spec, end, next, now);
            }
            self.members.extend(kept);
        }
        old.retain_mut(|member| {
            member.unbind_at = Some(now + OLD_GATEWAY_GRACE);
            member.is_bound(now)
        });
        self.replaced.append(&mut old);
        if let Some(used) = &self.used
            && self.at(used.address) != Some(&used.name)
        {
            self.used = None;
        }
    }

    /// The circuit of the end.
    #[must_use]
    pub const fn circuit(&self) -> CircuitId {
        self.circuit
    }

    /// Whether the other end chooses the gateway.
    #[must_use]
    pub const fn awaits(&self) -> bool {
        self.chooser.is_none()
    }

    /// Handles a message of a gateway; returns whether it was valid. `clock`: nanoseconds since
    /// 1970.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        (now, clock): (Duration, u64),
    ) -> bool {
        // Two names may have one address for a while; the message is of one gateway's key.
        let received = self
            .members
            .iter_mut()
            .filter(|member| member.has(from))
            .find_map(|member| Some((member.end.receive(message, clock)?, member)));
        let Some((event, member)) = received else {
            return self.receive_from_removed(from, message, (now, clock));
        };
        match event {
            EndEvent::Send(message) => {
                let action = Action::Send { to: from, message };
                self.actions.push_back(action);
                return true;
            }
            EndEvent::Bound(lifetime) => {
                member.lifetime = Duration::from_millis(lifetime.into());
                member.bound_until = Some(now + member.lifetime);
                member.draining = false;
            }
            EndEvent::Move => {
                member.draining = true;
                // A draining gateway keeps bound ends for as long as they bind.
                if member.is_bound(now) {
                    member.bound_until = Some(now + member.lifetime);
                }
            }
        }
        member.answered(from, event != EndEvent::Move || member.is_bound(now), now);
        if member.unanswered_since.take().is_some() {
            member.round_trip = Some(member.end.round_trip(clock).min(Duration::from_secs(2)));
        }
        let draining = member.draining;
        let name = member.at.name.clone();
        let load = member.end.load();
        if let Some(chooser) = &mut self.chooser {
            chooser.report(&name, Report::Answered { load, draining }, now);
        }
        self.choose(now);
        true
    }

    /// Handles a challenge of an unbind at a removed gateway. The end stays if the gateway has been
    /// added again: that binding is the new one's.
    fn receive_from_removed(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        (now, clock): (Duration, u64),
    ) -> bool {
        if self.at(from).is_some() {
            return false;
        }
        let is_awaited =
            |member: &&mut Member| member.left_until.is_some_and(|at| now < at) && member.has(from);
        let mut left = self.replaced.iter_mut().filter(is_awaited);
        let event = left.find_map(|member| member.end.receive(message, clock));
        if let Some(EndEvent::Send(message)) = event {
            let action = Action::Send { to: from, message };
            self.actions.push_back(action);
        }
        event.is_some()
    }

    /// The other end has not answered for too long. If another gateway works, the one in use counts
    /// as failed.
    pub fn other_end_silent(&mut self, now: Duration) {
        let (Some(chooser), Some(used)) = (&mut self.chooser, &self.used) else {
            return;
        };
        let others = self.members.iter().any(|m| {
            m.at.name != used.name && m.is_bound(now) && chooser.is_down(&m.at.name) == Some(false)
        });
        if !others || now < self.next_silence_report {
            return;
        }
        self.next_silence_report = now + self.silence_pause;
        self.silence_pause = (self.silence_pause * 2).min(self.settings.max_silence_pause);
        let name = used.name.clone();
        for _ in 0..chooser.down_after() {
            chooser.report(&name, Report::Failed(Failure::Silent), now);
        }
        self.choose(now);
    }

    /// A datagram of the other end was received.
    pub const fn other_end_received(&mut self) {
        self.silence_pause = self.settings.silence_pause;
    }

    /// Does the due work.
    pub fn timeout(&mut self, now: Duration, clock: u64) {
        let due = match &mut self.chooser {
            Some(chooser) => chooser.due(now),
            None => Vec::new(),
        };
        self.members.retain(|m| !m.retired || m.is_bound(now));
        for place in 0..self.members.len() {
            let member = &self.members[place];
            let interval = self.bind_interval(member);
            let is_due = match interval {
                Some(_) => member.next <= now,
                None => due.contains(&member.at.name),
            };
            if !is_due {
                continue;
            }
            self.report_unanswered(place, interval, now);
            let pause = match interval {
                Some(interval) if self.is_chosen(place) => interval,
                Some(interval) => interval + self.random.up_to(interval),
                None => Duration::ZERO,
            };
            let member = &mut self.members[place];
            member.next = now + pause;
            let action = member.bind(self.settings.attempt_delay, (now, clock));
            self.actions.push_back(action);
        }
        self.choose(now);
        self.unbind_unused(now, clock);
    }

    fn is_chosen(&self, place: usize) -> bool {
        self.chosen.as_deref() == Some(&self.members[place].at.name)
    }

    /// Interval of binds to a gateway, where the choice does not decide it: the one in use, all of
    /// them where none works, and always for an end that awaits.
    fn bind_interval(&self, member: &Member) -> Option<Duration> {
        if self.chosen.as_deref() == Some(&member.at.name) {
            Some(self.settings.in_use)
        } else if self.chooser.is_none() || self.no_service.is_some() {
            Some(self.settings.other)
        } else {
            None
        }
    }

    /// Reports a failure if the last bind to a gateway is unanswered for too long.
    fn report_unanswered(&mut self, place: usize, interval: Option<Duration>, now: Duration) {
        let Some(chooser) = &mut self.chooser else {
            return;
        };
        let member = &self.members[place];
        let Some(sent) = member.unanswered_since else {
            return;
        };
        // Each address gets its time.
        let others = member.choices().saturating_sub(1);
        let round_trip = member
            .round_trip
            .unwrap_or(self.settings.unknown_round_trip + self.settings.attempt_delay * others);
        let failed = match interval {
            // Several binds are under way; the time of the last answer counts.
            Some(interval) if member.received_at.is_some() => {
                let since = member
                    .received_at
                    .max(Some(member.interval_since + round_trip));
                now.saturating_sub(since.unwrap_or(now)) > interval + interval / 2
            }
            _ => now.saturating_sub(sent) >= round_trip,
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
                self.no_service = None;
                let Some(place) = self.members.iter().position(|m| m.at.name == name) else {
                    return;
                };
                let member = &mut self.members[place];
                if self.chosen.as_deref() != Some(&name) {
                    self.chosen = Some(name);
                    // Bind at once, and then at the short interval.
                    member.interval_since = now;
                    member.next = now;
                    member.unanswered_since = None;
                }
                if member.is_bound(now) && self.used.as_ref() != Some(&member.at) {
                    self.used = Some(member.at.clone());
                    self.actions.push_back(Action::Use(member.at.clone()));
                }
            }
            Choice::NoService(why) => {
                self.chosen = None;
                let said = |why: &NoService| why.to_string();
                if self.no_service.as_ref().map(said) != Some(said(&why)) {
                    if self.no_service.is_none() {
                        for member in &mut self.members {
                            member.interval_since = now;
                            member.next = now + self.random.up_to(self.settings.other);
                        }
                    }
                    self.no_service = Some(why.clone());
                    self.actions.push_back(Action::Lost(why));
                }
                self.used = None;
            }
        }
    }

    /// Sends unbinds to draining gateways that are not in use, and to removed ones, once
    /// [`OLD_GATEWAY_GRACE`] has passed.
    fn unbind_unused(&mut self, now: Duration, clock: u64) {
        let is_over = |member: &Member| member.unbind_at.is_some_and(|at| at <= now);
        self.replaced
            .retain(|member| member.left_until.is_none_or(|at| now < at));
        for member in self.replaced.iter_mut().filter(|member| is_over(member)) {
            self.actions.push_back(member.unbind(clock));
            member.left_until = Some(now + UNBIND_ANSWER_TIME);
        }
        for member in &mut self.members {
            let used = self.used.as_ref();
            let unused = member.draining
                && member.bound_until.is_some()
                && used.is_some_and(|used| used.name != member.at.name);
            if !unused {
                member.unbind_at = None;
                continue;
            }
            member.unbind_at.get_or_insert(now + OLD_GATEWAY_GRACE);
            if is_over(member) {
                self.actions.push_back(member.unbind(clock));
            }
        }
    }

    /// Sends unbinds to all gateways, before the end stops.
    pub fn close(&mut self, now: Duration, clock: u64) {
        for member in self.members.iter_mut().chain(&mut self.replaced) {
            if member.is_bound(now) {
                self.actions.push_back(member.unbind(clock));
            }
        }
    }

    /// A datagram of the other end came through the gateway at `from`. An end without a list uses
    /// that gateway.
    pub fn peer_received_from(&mut self, from: SocketAddr) {
        if self.chooser.is_none() {
            self.used = self.at(from).map(|name| GatewayAddress {
                name: name.to_owned(),
                address: from,
            });
        }
    }

    /// The next action.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The time of the next call of [`GatewaySelector::timeout`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.members
            .iter()
            .filter(|member| self.bind_interval(member).is_some())
            .map(|member| member.next)
            .chain(self.chooser.as_ref().and_then(Chooser::next_deadline))
            .chain(
                self.members
                    .iter()
                    .chain(&self.replaced)
                    .filter_map(|member| member.unbind_at),
            )
            .min()
    }

    /// The gateway in use; for an end without a list, the gateway that the other end was last
    /// received from.
    #[must_use]
    pub const fn used(&self) -> Option<&GatewayAddress> {
        self.used.as_ref()
    }

    /// All addresses of all gateways; some may be repeated.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.members.iter().flat_map(Member::addresses)
    }

    /// Name of the gateway that the end is bound at by this address, or would be.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Option<&str> {
        let bound = self.members.iter().find(|m| m.at.address == address);
        let any = || self.members.iter().find(|m| m.has(address));
        Some(&bound.or_else(any)?.at.name)
    }

    /// Whether some gateway does not answer:
    /// the addresses may be old.
    #[must_use]
    pub fn is_troubled(&self, now: Duration) -> bool {
        let down = |member: &Member| match &self.chooser {
            Some(chooser) => chooser.is_down(&member.at.name) == Some(true),
            None => !member.is_bound(now),
        };
        self.no_service.is_some() || self.members.iter().any(down)
    }

    /// The choice, for the loads that gateways have reported to it.
    #[must_use]
    pub const fn chooser(&self) -> Option<&Chooser> {
        self.chooser.as_ref()
    }

    /// Why no gateway works, if none does.
    #[must_use]
    pub const fn no_service(&self) -> Option<&NoService> {
        self.no_service.as_ref()
    }

    /// The state of all gateways, in the order of the configuration.
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

/// The part of a list that is in `gateways` and has an address.
fn known(list: &List, gateways: &[Target]) -> List {
    let there = |name: &str| {
        let mut all = gateways.iter();
        all.any(|at| at.name == name && !at.addresses.is_empty())
    };
    let mut candidates = list.candidates().to_vec();
    candidates.retain(|candidate| there(&candidate.name));
    List::received(candidates)
}

#[cfg(test)]
mod tests;
