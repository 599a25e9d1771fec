//! Handshakes with one peer: the initiations of this end, and the memory that refuses the peer's
//! replays (white paper, sections 5.1, 5.4 and 6.4).
//!
//! ```text
//!            session needed, silence, rekey             pause over: next attempt
//!   ┌──────┐ ────────────────────────▶ ┌────────────┐ ◀─┐
//!   │ Idle │                           │ Initiating │ ──┘
//!   └──────┘ ◀──────────────────────── └────────────┘
//!              session confirmed, give-up,
//!              or the silence has ended
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use super::config::{InitiationPolicy, PeerConfig};
use super::timer_table::{Timer, TimerTable};
use crate::data::Framing;
use crate::error::Rejected;
use crate::handshake::{Initiator, Responder};
use crate::keys::{SecretKey, Secrets};
use crate::mac::MacStamper;
use crate::random::Random;
use crate::time::{Instant, Now, Tai64n};
use crate::wire::{CookieReply, INITIATION_BYTES, Response};

/// Pending initiations to an appliance. More than one, so that a response slower than the pause
/// between attempts still counts.
const MAX_PENDING: usize = 8;
/// How long an initiation may wait for its response.
pub(super) const PENDING_LIFETIME: Duration = Duration::from_secs(5);

/// Why this end initiates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// There is no session, or the one in use will soon be over.
    SessionNeeded,
    /// There is a session, but the peer is silent.
    Silence,
}

/// Attempts that go on until one succeeds or the time is up.
#[derive(Debug)]
pub(super) struct Initiating {
    pub(super) attempts: u32,
    /// A response came that is not authentic.
    pub(super) invalid_answers: bool,
    /// An attempt was answered, but no message has come by its session yet.
    answered: bool,
    reason: Reason,
}

/// An initiation that waits for its response.
struct Pending {
    /// Number among all attempts, from 1.
    number: u64,
    index: u32,
    initiator: Initiator,
    sent: Instant,
}

/// Handshakes with one peer.
pub(super) struct Handshakes {
    stamper: MacStamper,
    initiating: Option<Initiating>,
    /// Oldest first.
    pending: VecDeque<Pending>,
    /// Number of the newest attempt, and of the newest that succeeded.
    started: u64,
    succeeded: u64,
    /// Timestamp of the newest initiation sent.
    sent: Tai64n,
    /// Timestamp of the newest initiation accepted.
    accepted: Tai64n,
    accepted_at: Option<Instant>,
    replayed: u64,
}

impl Handshakes {
    pub(super) fn new(config: &PeerConfig) -> Self {
        Self {
            stamper: MacStamper::new(&config.public_key),
            initiating: None,
            pending: VecDeque::new(),
            started: 0,
            succeeded: 0,
            sent: config.timestamp,
            accepted: Tai64n::default(),
            accepted_at: None,
            replayed: 0,
        }
    }

    /// The attempts under way.
    pub(super) const fn initiating(&self) -> Option<&Initiating> {
        self.initiating.as_ref()
    }

    /// Timestamp of the newest initiation sent.
    pub(super) const fn timestamp(&self) -> Tai64n {
        self.sent
    }

    /// Replayed initiations refused.
    pub(super) const fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Starts attempts, the first one at `now`. If there are attempts already, they go on.
    pub(super) fn initiate(
        &mut self,
        now: Instant,
        reason: Reason,
        config: &PeerConfig,
        timers: &mut TimerTable,
    ) {
        if let Some(initiating) = &mut self.initiating {
            if reason == Reason::SessionNeeded {
                initiating.reason = reason;
            }
            return;
        }
        self.initiating = Some(Initiating {
            attempts: 0,
            invalid_answers: false,
            answered: false,
            reason,
        });
        timers.set(Timer::Attempt, now);
        let limit = config.timers.give_up;
        if let Some(limit) = limit.filter(|_| config.initiation != InitiationPolicy::Always) {
            timers.set(Timer::GiveUp, now + limit);
        }
    }

    /// Ends attempts; pending initiations may still be answered.
    pub(super) fn stop(&mut self, timers: &mut TimerTable) {
        self.initiating = None;
        timers.stop(Timer::Attempt);
        timers.stop(Timer::GiveUp);
    }

    /// A message of the peer was received: attempts that were started for its silence end.
    pub(super) fn silence_ended(&mut self, timers: &mut TimerTable) {
        let is_silence = |initiating: &Initiating| initiating.reason == Reason::Silence;
        if self.initiating.as_ref().is_some_and(is_silence) {
            self.stop(timers);
        }
    }

    /// A message came by the session in use: attempts that had made it end. True if they did.
    pub(super) fn session_confirmed(&mut self, timers: &mut TimerTable) -> bool {
        let answered = self.initiating.as_ref().is_some_and(|i| i.answered);
        if answered {
            self.stop(timers);
        }
        answered
    }

    /// Attempts begin anew at `now`, because the paths to try have changed.
    pub(super) const fn restart_backoff(&mut self, now: Instant, timers: &mut TimerTable) {
        if let Some(initiating) = &mut self.initiating {
            initiating.attempts = 0;
            timers.set(Timer::Attempt, now);
        }
    }

    /// An attempt was answered. Until a message comes by the session, another attempt may have
    /// overtaken it at the peer: the next attempt waits for one more pause.
    pub(super) fn attempt_answered(
        &mut self,
        now: Instant,
        config: &PeerConfig,
        timers: &mut TimerTable,
        random: &mut dyn Random,
    ) {
        if let Some(initiating) = &mut self.initiating {
            initiating.answered = true;
            let pause = config.timers.backoff.pause(initiating.attempts, random);
            timers.set(Timer::Attempt, now + pause);
        }
    }

    /// [`Timer::Attempt`] has expired: sets the time of the next one. Yields how many attempts were
    /// made before this one.
    pub(super) fn begin_attempt(
        &mut self,
        now: Instant,
        config: &PeerConfig,
        timers: &mut TimerTable,
        random: &mut dyn Random,
    ) -> Option<u32> {
        let initiating = self.initiating.as_mut()?;
        let attempt = initiating.attempts;
        initiating.attempts += 1;
        let pause = config.timers.backoff.pause(attempt, random);
        timers.set(Timer::Attempt, now + pause);
        Some(attempt)
    }

    /// Composes an initiation. Yields it with the index of the one that made room for it.
    pub(super) fn start(
        &mut self,
        now: Now,
        secret: &SecretKey,
        index: u32,
        config: &PeerConfig,
        timers: &mut TimerTable,
        random: &mut dyn Random,
    ) -> Option<([u8; INITIATION_BYTES], Option<u32>)> {
        let timestamp = Tai64n::next(now.unix, self.sent);
        let started = Initiator::start(
            secret,
            &config.public_key,
            &config.preshared_key,
            index,
            timestamp,
            random,
        );
        let Ok((initiator, mut message)) = started else {
            if let Some(initiating) = &mut self.initiating {
                initiating.invalid_answers = true;
            }
            return None;
        };
        self.sent = timestamp;
        self.stamper.stamp(now.mono, &mut message);
        self.started += 1;
        // Any WireGuard answers an initiation by forgetting the one before.
        let most = match config.framing {
            Framing::Segments => MAX_PENDING,
            Framing::WireGuard => 1,
        };
        let dropped = if self.pending.len() >= most {
            self.pending.pop_front()
        } else {
            None
        };
        self.pending.push_back(Pending {
            number: self.started,
            index,
            initiator,
            sent: now.mono,
        });
        self.set_expiry_timer(timers);
        Some((message, dropped.map(|dropped| dropped.index)))
    }

    /// [`Timer::InitiationExpiry`] has expired. Yields the indices of initiations that waited for
    /// too long.
    pub(super) fn expire(&mut self, now: Instant, timers: &mut TimerTable) -> Vec<u32> {
        let mut expired = Vec::new();
        let over = |pending: &mut Pending| now >= pending.sent + PENDING_LIFETIME;
        while let Some(pending) = self.pending.pop_front_if(over) {
            expired.push(pending.index);
        }
        self.set_expiry_timer(timers);
        expired
    }

    /// Forgets every initiation under way, the cookie of the peer, and attempts. Yields the indices
    /// of the initiations.
    pub(super) fn forget_pending(&mut self, timers: &mut TimerTable) -> Vec<u32> {
        let forgotten = self
            .pending
            .drain(..)
            .map(|pending| pending.index)
            .collect();
        self.set_expiry_timer(timers);
        self.stop(timers);
        forgotten
    }

    /// Whether an initiation with this index waits for its response.
    pub(super) fn awaits_response(&self, index: u32) -> bool {
        self.pending.iter().any(|pending| pending.index == index)
    }

    /// Takes the response to the initiation with this index. Yields the secrets of the session, or
    /// `None` if a later attempt has succeeded before: the responder has moved on as well.
    pub(super) fn finish(
        &mut self,
        index: u32,
        response: &Response<'_>,
        timers: &mut TimerTable,
    ) -> Result<Option<Secrets>, Rejected> {
        let not_expected = Rejected::NotExpected { index };
        let mut pending = self.pending.iter();
        let at = pending.position(|pending| pending.index == index);
        let at = at.ok_or(not_expected)?;
        let secrets = self.pending[at]
            .initiator
            .finish(response)
            .map_err(|error| {
                if let Some(initiating) = &mut self.initiating {
                    initiating.invalid_answers = true;
                }
                Rejected::from(error)
            })?;
        let done = self.pending.remove(at).ok_or(not_expected)?;
        self.set_expiry_timer(timers);
        if done.number <= self.succeeded {
            return Ok(None);
        }
        self.succeeded = done.number;
        Ok(Some(secrets))
    }

    /// Takes a cookie for the newest initiation. False if it is none.
    pub(super) fn take_cookie(&mut self, now: Instant, reply: &CookieReply<'_>) -> bool {
        self.stamper.take_cookie(now, reply)
    }

    /// Checks that an authentic initiation is newer than those before, and not too soon after the
    /// last one (white paper, sections 5.1 and 5.3).
    pub(super) fn check_fresh(
        &mut self,
        now: Instant,
        responder: &Responder,
        gap: Duration,
    ) -> Result<(), Rejected> {
        if responder.timestamp <= self.accepted {
            self.replayed += 1;
            return Err(Rejected::Replayed);
        }
        if self.accepted_at.is_some_and(|last| now.since(last) < gap) {
            return Err(Rejected::TooSoon {
                gap_ms: u64::try_from(gap.as_millis()).unwrap_or(u64::MAX),
            });
        }
        Ok(())
    }

    /// An initiation with this timestamp was answered by `response`, which gets its macs here.
    pub(super) fn accept(&mut self, now: Instant, timestamp: Tai64n, response: &mut [u8]) {
        self.accepted = timestamp;
        self.accepted_at = Some(now);
        self.stamper.stamp(now, response);
    }

    fn set_expiry_timer(&self, timers: &mut TimerTable) {
        let oldest = self.pending.front();
        let at = oldest.map(|pending| pending.sent + PENDING_LIFETIME);
        timers.set_or_stop(Timer::InitiationExpiry, at);
    }

    #[cfg(test)]
    pub(super) fn oldest_pending(&self) -> Option<Instant> {
        self.pending.front().map(|pending| pending.sent)
    }
}
