//! One peer: its machines, which share a timer table, and the events between them.
//!
//! ```text
//!                        ┌─────────────── Peer ────────────────┐
//!   handshake messages ─▶│ Handshakes ──secrets──▶ Sessions    │─▶ Effects: transmit, receive,
//!   snapshots ──────────▶│ Liveness   ──silence──▶ Handshakes  │   send, retire, path, event
//!   control messages ───▶│ Path       ◀─established─ Sessions  │
//!                        └────────────── TimerTable ───────────┘
//! ```

use super::config::{InitiationPolicy, PeerConfig};
use super::handshake::{Handshakes, Reason};
use super::liveness::Liveness;
use super::output::{Effects, Event};
use super::path::{Path, Replaced};
use super::sessions::{Confirmation, Session, Sessions};
use super::status::{DownReason, PeerStatus};
use super::timer_table::{Timer, TimerTable};
use crate::data::{Framing, MIN_DATAGRAM, RxActivity, TxActivity};
use crate::error::Rejected;
use crate::handshake::Responder;
use crate::keys::SecretKey;
use crate::path::PeerPath;
use crate::pmtu::PathMtu;
use crate::random::Random;
use crate::segment::ControlMessage;
use crate::session::{self, SessionParams};
use crate::time::{Instant, Now, Tai64n};
use crate::wire::{CookieReply, Response};

/// A peer of a [`super::TunnelControl`].
pub(super) struct Peer {
    config: PeerConfig,
    params: SessionParams,
    timers: TimerTable,
    handshakes: Handshakes,
    sessions: Sessions,
    liveness: Liveness,
    path: Path,
    /// Handshakes completed.
    completed: u64,
    /// Whether [`Event::Up`] was reported, and no [`Event::Down`] since.
    up: bool,
    /// `PeerConfig::max_datagram` as configured; the uplink may take less.
    own_max_datagram: usize,
}

impl Peer {
    /// Adds a peer: an end that always initiates does so at once.
    pub(super) fn new(now: Instant, config: PeerConfig, effects: &mut Effects<'_>) -> Self {
        let mtu = config
            .pmtu
            .filter(|_| config.framing == Framing::Segments)
            .map(|mtu| PathMtu::new(mtu, now));
        let path = config.paths.first().copied();
        let mut peer = Self {
            params: config.session_params(),
            timers: TimerTable::default(),
            handshakes: Handshakes::new(&config),
            sessions: Sessions::default(),
            liveness: Liveness::default(),
            path: Path::new(path, mtu),
            completed: 0,
            up: false,
            own_max_datagram: config.max_datagram,
            config,
        };
        if peer.config.initiation == InitiationPolicy::Always {
            peer.initiate(now, Reason::SessionNeeded);
        }
        if let Some(path) = path {
            effects.path(path);
        }
        if peer.path.max_datagram().is_none() {
            effects.max_datagram(peer.config.max_datagram);
        }
        peer
    }

    /// The peer is removed: its sessions are retired.
    pub(super) fn retire(self, effects: &mut Effects<'_>) {
        for index in self.sessions.indices() {
            effects.retire(index);
        }
    }

    pub(super) const fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// Timestamp of the newest initiation sent.
    pub(super) const fn timestamp(&self) -> Tai64n {
        self.handshakes.timestamp()
    }

    /// When the first timer expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Handles every expired timer, once each. Afterwards no timer is expired.
    pub(super) fn handle_timeout(
        &mut self,
        now: Now,
        secret: &SecretKey,
        effects: &mut Effects<'_>,
        random: &mut dyn Random,
    ) {
        let mono = now.mono;
        for timer in Timer::ALL {
            if !self.timers.take_expired(timer, mono) {
                continue;
            }
            match timer {
                Timer::SessionExpiry => self.expire_sessions(mono, effects),
                Timer::InitiationExpiry => {
                    for index in self.handshakes.expire(mono, &mut self.timers) {
                        effects.retire(index);
                    }
                }
                Timer::Silence => {
                    if self.liveness.silence_expired() {
                        effects.event(Event::Silent);
                    }
                    if self.config.initiation != InitiationPolicy::Never {
                        self.initiate(mono, Reason::Silence);
                    }
                }
                Timer::Rekey => self.initiate(mono, Reason::SessionNeeded),
                Timer::GiveUp => {
                    self.handshakes.stop(&mut self.timers);
                    effects.event(Event::GaveUp);
                }
                Timer::Keepalive | Timer::PersistentKeepalive => {
                    let config = &self.config.timers;
                    self.liveness
                        .keepalive_expired(timer, mono, config, &mut self.timers);
                    if self.is_established() {
                        effects.keepalive();
                    }
                }
                Timer::Echo => {
                    if let Some(every) = self.config.timers.echo {
                        let timers = &mut self.timers;
                        let echo = self.path.next_echo(mono, every, timers, random);
                        effects.control_message(echo, 0);
                    }
                }
                Timer::PathMtu => self.probe(mono, effects, random),
                Timer::Follow => {
                    if let Some(path) = self.path.follow_expired(mono) {
                        self.move_to(mono, path, effects);
                    }
                }
                Timer::Attempt => self.attempt(now, secret, effects, random),
            }
        }
    }

    /// Starts a handshake at `now`, if the policy allows it.
    pub(super) fn request_handshake(&mut self, now: Instant) {
        let renews = self.is_established();
        if renews || self.config.initiation != InitiationPolicy::Never {
            self.initiate(now, Reason::SessionNeeded);
        }
    }

    /// Replaces the configured paths. Without a session the first one is tried at once.
    pub(super) fn set_paths(
        &mut self,
        now: Instant,
        paths: Vec<PeerPath>,
        effects: &mut Effects<'_>,
    ) {
        self.config.paths = paths;
        self.path.restart_alternatives();
        if self.is_established() {
            return;
        }
        self.handshakes.restart_backoff(now, &mut self.timers);
        let first = self.config.paths.first().copied();
        let moved = self.path.replace(now, first, false, &mut self.timers);
        if let Some(path) = first {
            effects.path(path);
        }
        if let Some(bytes) = self.path.max_datagram().filter(|_| moved == Replaced::Path) {
            effects.max_datagram(bytes);
        }
    }

    /// The peer was at `path` when it was `seen`: data follows it, now or a little later.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        path: PeerPath,
        seen: Instant,
        effects: &mut Effects<'_>,
    ) {
        if let Some(path) = self.path.follow(now, path, seen, &mut self.timers) {
            self.move_to(now, path, effects);
        }
    }

    /// The uplink takes datagrams of `bytes` of UDP payload from now on.
    pub(super) fn set_ceiling(&mut self, now: Instant, bytes: usize, effects: &mut Effects<'_>) {
        if self.config.framing == Framing::WireGuard {
            let before = self.config.max_datagram;
            self.config.max_datagram = self.own_max_datagram.min(bytes).max(MIN_DATAGRAM);
            if self.config.max_datagram != before {
                effects.max_datagram(self.config.max_datagram);
            }
            return;
        }
        let established = self.is_established();
        let timers = &mut self.timers;
        if self.path.set_ceiling(now, bytes, established, timers)
            && let Some(bytes) = self.path.max_datagram()
        {
            effects.max_datagram(bytes);
        }
    }

    /// Ends every session and every handshake under way, and starts anew where this end initiates:
    /// see [`super::TunnelControl::retire_all`].
    pub(super) fn retire_all(&mut self, now: Instant, effects: &mut Effects<'_>) {
        for index in self.handshakes.forget_pending(&mut self.timers) {
            effects.release(index);
        }
        let retired: Vec<u32> = self.sessions.indices().collect();
        self.sessions = Sessions::default();
        for index in retired {
            effects.retire(index);
        }
        self.sessions_ended(now, effects);
    }

    /// Data goes to `path` from now on.
    pub(super) fn move_to(&mut self, now: Instant, path: PeerPath, effects: &mut Effects<'_>) {
        let established = self.is_established();
        let timers = &mut self.timers;
        let replaced = self.path.replace(now, Some(path), established, timers);
        if replaced == Replaced::Unchanged {
            return;
        }
        effects.path(path);
        effects.event(Event::Moved(path));
        if let Some(bytes) = self
            .path
            .max_datagram()
            .filter(|_| replaced == Replaced::Path)
        {
            effects.max_datagram(bytes);
        }
    }

    /// ICMP says that datagrams may be `bytes` long.
    pub(super) fn pmtu_hint(&mut self, now: Instant, bytes: usize) {
        let established = self.is_established();
        self.path
            .mtu_hint(now, bytes, established, &mut self.timers);
    }

    /// Takes the snapshot of a sender.
    pub(super) fn report_sent(&mut self, now: Instant, activity: TxActivity) {
        let config = &self.config.timers;
        let news = self
            .liveness
            .report_sent(now, activity, config, &mut self.timers);
        self.update_clocks();
        let current = self.sessions.current().map(|session| session.index);
        let rekey_after = self.config.timers.rekey_after;
        // White paper, section 6.2: the end that sends by a session renews it.
        if news.no_session && self.config.initiation != InitiationPolicy::Never
            || news.rekey_due && current == news.session
            || news.expects_reply && self.sessions.initiated_before(now, rekey_after)
        {
            self.initiate(now, Reason::SessionNeeded);
        }
    }

    /// Takes the snapshot of a receiver.
    pub(super) fn report_received(&mut self, now: Instant, activity: RxActivity) {
        let config = self.config.timers;
        let news = self
            .liveness
            .report_received(now, activity, &config, &mut self.timers);
        if news {
            if self.peer_receives() {
                self.handshakes.silence_ended(&mut self.timers);
            }
            // So close to the session's end that the next moment may be too late for a handshake
            // (white paper, section 6.2).
            let last_call = config.reject_after.saturating_sub(config.silence);
            if self.sessions.initiated_before(now, last_call) {
                self.initiate(now, Reason::SessionNeeded);
            }
        }
        self.update_clocks();
    }

    /// Takes a control message that a receiver opened.
    pub(super) fn handle_control_message(
        &mut self,
        now: Instant,
        message: ControlMessage,
        effects: &mut Effects<'_>,
    ) {
        match message {
            ControlMessage::Echo { token, size } => {
                effects.control_message(ControlMessage::EchoReply { token, size }, 0);
            }
            ControlMessage::EchoReply { token, size } => {
                let established = self.is_established();
                let timers = &mut self.timers;
                if self.path.answered(now, token, size, established, timers)
                    && let Some(bytes) = self.path.max_datagram()
                {
                    effects.max_datagram(bytes);
                }
            }
        }
    }

    /// Takes an authentic initiation: answers it, and makes the next session. Its sending half is
    /// withheld, and data goes where it went, until the initiator proves by a first message that
    /// this was no replay from a time before our memory of timestamps.
    pub(super) fn handle_initiation(
        &mut self,
        now: Instant,
        from: PeerPath,
        responder: Responder,
        index: u32,
        effects: &mut Effects<'_>,
    ) -> Result<(), Rejected> {
        let gap = self.config.timers.initiation_gap;
        self.handshakes.check_fresh(now, &responder, gap)?;
        let (timestamp, theirs) = (responder.timestamp, responder.sender);
        let (mut response, secrets) = responder.answer(&self.config.preshared_key, index)?;
        self.handshakes.accept(now, timestamp, &mut response);
        // Before the new halves go out: a full receiver would drop the session in use for them.
        if let Some(retired) = self.sessions.retire_next_later() {
            effects.retire(retired);
        }
        let lanes = session::make(&self.params, &secrets, false, index, theirs, now);
        let (withheld, receiving): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        effects.receive(receiving);
        self.sessions.set_next(Session {
            index,
            created: now,
            initiator: false,
            confirmed: false,
            withheld,
        });
        self.set_expiry_timer();
        effects.assign(index);
        effects.transmit(from, &response);
        Ok(())
    }

    /// Whether an initiation with this index waits for its response.
    pub(super) fn awaits_response(&self, index: u32) -> bool {
        self.handshakes.awaits_response(index)
    }

    /// Takes the response to the initiation with this index: puts a session in use.
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        from: PeerPath,
        response: &Response<'_>,
        effects: &mut Effects<'_>,
        random: &mut dyn Random,
    ) -> Result<(), Rejected> {
        let index = response.receiver();
        let secrets = self
            .handshakes
            .finish(index, response, &mut self.timers)?
            .ok_or_else(|| {
                effects.release(index);
                Rejected::NotExpected { index }
            })?;
        let theirs = response.sender();
        let lanes = session::make(&self.params, &secrets, true, index, theirs, now);
        let (sending, receiving): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        // A session that the peer made and has not confirmed stays the next one.
        let retired = self.sessions.set_current(Session {
            index,
            created: now,
            initiator: true,
            confirmed: false,
            withheld: Vec::new(),
        });
        match self.config.framing {
            Framing::Segments => {
                let (config, timers) = (&self.config, &mut self.timers);
                self.handshakes
                    .attempt_answered(now, config, timers, random);
            }
            Framing::WireGuard => self.handshakes.stop(&mut self.timers),
        }
        let event = self.current_replaced(now);
        if let Some(retired) = retired {
            effects.retire(retired);
        }
        effects.receive(receiving);
        if self.config.roams {
            self.move_to(now, from, effects);
        }
        effects.send(sending);
        // The responder does not send before a first message has come.
        effects.keepalive();
        effects.event(event);
        Ok(())
    }

    /// Takes a cookie for the newest initiation. False if it is none.
    pub(super) fn take_cookie(&mut self, now: Instant, reply: &CookieReply<'_>) -> bool {
        self.handshakes.take_cookie(now, reply)
    }

    /// The first message of a session has come.
    pub(super) fn confirm_session(&mut self, now: Instant, index: u32, effects: &mut Effects<'_>) {
        match self.sessions.confirm(index) {
            Confirmation::Current => {
                // The timer may have expired while attempts were under way.
                if self.handshakes.session_confirmed(&mut self.timers) {
                    self.set_rekey_timer();
                }
            }
            Confirmation::Promoted { withheld, retired } => {
                let event = self.current_replaced(now);
                if let Some(retired) = retired {
                    effects.retire(retired);
                }
                effects.send(withheld);
                effects.event(event);
            }
            Confirmation::Ignored => {}
        }
    }

    /// State of the peer.
    pub(super) fn status(&self, now: Instant) -> PeerStatus {
        let current = self.sessions.current();
        let has_path = self.path.current().is_some() || !self.config.paths.is_empty();
        let down = || match self.handshakes.initiating() {
            None => DownReason::NotInitiating,
            Some(_) if !has_path => DownReason::NoAddress,
            Some(initiating) if initiating.invalid_answers => DownReason::InvalidAnswers {
                attempts: initiating.attempts,
            },
            Some(initiating) => DownReason::NoAnswer {
                attempts: initiating.attempts,
            },
        };
        PeerStatus {
            path: self.path.current(),
            session_since: current.map(|session| session.created),
            down: current.is_none().then(down),
            alive: self.liveness.is_alive(now, &self.config.timers),
            cipher: self.params.cipher,
            max_datagram: self
                .path
                .max_datagram()
                .unwrap_or(self.config.max_datagram.max(MIN_DATAGRAM)),
            pmtu_searching: self.path.is_searching(),
            round_trip: self.path.round_trip(),
            loss_percent: self.path.loss_percent(),
            handshakes: self.completed,
            replayed: self.handshakes.replayed(),
        }
    }

    /// The state that determines the longest packet inside the tunnel: the longest datagram in
    /// bytes, whether the search for a longer one runs, and whether there is a session.
    pub(super) fn mtu_state(&self) -> (usize, bool, bool) {
        let bytes = self.path.max_datagram().unwrap_or(self.config.max_datagram);
        (bytes, self.path.is_searching(), self.is_established())
    }

    const fn is_established(&self) -> bool {
        self.sessions.current().is_some()
    }

    /// Whether messages of the peer prove that it receives ours. Messages of the previous session
    /// prove nothing until the first message of the session that this end initiated arrives.
    fn peer_receives(&self) -> bool {
        let proves = |session: &Session| session.confirmed || !session.initiator;
        self.config.framing == Framing::WireGuard || self.sessions.current().is_none_or(proves)
    }

    fn update_clocks(&mut self) {
        let peer_receives = self.peer_receives();
        self.liveness
            .update_clocks(peer_receives, &self.config.timers, &mut self.timers);
    }

    fn initiate(&mut self, now: Instant, reason: Reason) {
        self.handshakes
            .initiate(now, reason, &self.config, &mut self.timers);
    }

    fn set_expiry_timer(&mut self) {
        let expiry = self.sessions.expiry(self.config.timers.reject_after);
        self.timers.set_or_stop(Timer::SessionExpiry, expiry);
    }

    fn set_rekey_timer(&mut self) {
        let initiated = self.sessions.current().filter(|session| session.initiator);
        let rekey = initiated
            .filter(|_| self.config.initiation == InitiationPolicy::Always)
            .map(|session| session.created + self.config.timers.rekey_age(session.index));
        self.timers.set_or_stop(Timer::Rekey, rekey);
    }

    /// Another session is in use than before. Yields the event for it.
    fn current_replaced(&mut self, now: Instant) -> Event {
        let config = self.config.timers;
        self.set_rekey_timer();
        self.set_expiry_timer();
        let timers = &mut self.timers;
        self.liveness.session_established(now, &config, timers);
        self.path.session_established(now, config.echo, timers);
        self.completed += 1;
        if std::mem::replace(&mut self.up, true) {
            Event::Rekeyed
        } else {
            Event::Up
        }
    }

    fn expire_sessions(&mut self, now: Instant, effects: &mut Effects<'_>) {
        let reject_after = self.config.timers.reject_after;
        for index in self.sessions.expire(now, reject_after) {
            effects.retire(index);
        }
        self.sessions_ended(now, effects);
    }

    /// Sessions have ended, the one in use among them or not.
    fn sessions_ended(&mut self, now: Instant, effects: &mut Effects<'_>) {
        self.set_expiry_timer();
        if self.is_established() {
            return;
        }
        self.timers.stop(Timer::Rekey);
        self.path.session_lost(&mut self.timers);
        if std::mem::replace(&mut self.up, false) {
            effects.event(Event::Down);
        }
        match self.config.initiation {
            InitiationPolicy::Always => self.initiate(now, Reason::SessionNeeded),
            // There is nothing left to renew; the peer initiates.
            InitiationPolicy::Never => self.handshakes.stop(&mut self.timers),
            InitiationPolicy::OnDemand => {}
        }
    }

    fn probe(&mut self, now: Instant, effects: &mut Effects<'_>, random: &mut dyn Random) {
        let alive = self.liveness.is_alive(now, &self.config.timers);
        let before = self.path.max_datagram();
        let timers = &mut self.timers;
        if let Some((probe, bytes)) = self.path.next_probe(now, alive, timers, random) {
            effects.control_message(probe, bytes);
        }
        // A lost probe of the size in use makes datagrams shorter.
        let after = self.path.max_datagram();
        if let Some(bytes) = after.filter(|_| after != before) {
            effects.max_datagram(bytes);
        }
    }

    fn attempt(
        &mut self,
        now: Now,
        secret: &SecretKey,
        effects: &mut Effects<'_>,
        random: &mut dyn Random,
    ) {
        let index = effects.indices.draw(random);
        let (config, timers) = (&self.config, &mut self.timers);
        let attempt = self
            .handshakes
            .begin_attempt(now.mono, config, timers, random);
        let Some(attempt) = attempt else { return };
        let (first, other) = self.path.targets(&config.paths, attempt);
        let Some(first) = first else { return };
        let started = self
            .handshakes
            .start(now, secret, index, config, timers, random);
        let Some((message, dropped)) = started else {
            return;
        };
        if let Some(dropped) = dropped {
            effects.release(dropped);
        }
        effects.assign(index);
        for to in std::iter::once(first).chain(other) {
            effects.transmit(to, &message);
        }
    }
}

/// The deadline as it follows from the state of every machine, without the timer table: what the
/// table must agree with.
#[cfg(test)]
impl Peer {
    pub(super) fn deadline_by_state(&self) -> Option<Instant> {
        use super::handshake::PENDING_LIFETIME;

        let config = &self.config.timers;
        let up = self.sessions.current().filter(|_| self.is_established());
        let initiating = self.handshakes.initiating();
        let rekey = up.filter(|session| {
            let always = self.config.initiation == InitiationPolicy::Always;
            always && session.initiator && initiating.is_none()
        });
        let [unanswered_since, owed_since] = self.liveness.clocks();
        let pending = self.handshakes.oldest_pending();
        let mtu = self.path.mtu().filter(|_| up.is_some());
        [
            self.sessions.expiry(config.reject_after),
            rekey.map(|session| session.created + config.rekey_age(session.index)),
            pending.map(|sent| sent + PENDING_LIFETIME),
            unanswered_since.map(|since| since + config.silence),
            owed_since.map(|since| since + config.keepalive),
            mtu.map(PathMtu::deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether timers run that have nothing to do: attempts without initiating, or an echo without
    /// a session.
    pub(super) fn has_idle_timers(&self) -> bool {
        let runs = |timer| self.timers.get(timer).is_some();
        let initiating = self.handshakes.initiating().is_some();
        runs(Timer::Attempt) != initiating
            || runs(Timer::GiveUp) && !initiating
            || (runs(Timer::Echo) || runs(Timer::PathMtu) || runs(Timer::Rekey))
                && !self.is_established()
    }
}
