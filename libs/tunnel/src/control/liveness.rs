//! Detects a silent peer, and sends keep-alives (white paper, sections 6.4, 6.5).
//!
//! Two timers: the peer owes us a reply to messages that expect one
//! ([`Timer::Silence`]), and we owe the peer an answer to its content ([`Timer::Keepalive`]). Both
//! are started by the snapshots of senders and receivers, in whatever order those arrive.

use super::timer_table::{Timer, TimerTable};
use crate::data::{RxActivity, TxActivity};
use crate::time::Instant;
use crate::timers::TimerConfig;

/// Snapshots, and the two timers that they start.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    tx: TxActivity,
    rx: RxActivity,
    /// Since when a message of ours waits for any reply of the peer.
    unanswered_since: Option<Instant>,
    /// The sending that last started that timer, so that each starts it once.
    silence_started_by: Option<Instant>,
    /// Since when content of the peer waits for any message of ours.
    owed_since: Option<Instant>,
    /// The content that last started that timer, so that each starts it once.
    keepalive_started_by: Option<Instant>,
    /// Whether the silence was reported and has not ended.
    silent: bool,
}

/// The difference of a sender's snapshot to earlier ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentChange {
    /// A packet found no session.
    pub(super) no_session: bool,
    /// The sender's session has nearly used up its counters.
    pub(super) rekey_due: bool,
    /// Name of the sender's session.
    pub(super) session: Option<u32>,
    /// A message that expects a reply was sent.
    pub(super) expects_reply: bool,
}

impl Liveness {
    /// Takes the snapshot of a sender, whichever lane's.
    pub(super) fn report_sent(
        &mut self,
        now: Instant,
        activity: TxActivity,
        config: &TimerConfig,
        timers: &mut TimerTable,
    ) -> SentChange {
        let before = self.tx;
        // Snapshots come from several lanes: one lane's must not undo another's.
        let tx = TxActivity {
            last_sent: latest(now, before.last_sent, activity.last_sent),
            last_reply_expected: latest(
                now,
                before.last_reply_expected,
                activity.last_reply_expected,
            ),
            last_no_session: latest(now, before.last_no_session, activity.last_no_session),
            ..activity
        };
        self.tx = tx;
        if tx.last_sent > before.last_sent {
            restart_persistent(now, config, timers);
        }
        SentChange {
            no_session: tx.last_no_session > before.last_no_session,
            rekey_due: tx.rekey_due,
            session: tx.session,
            expects_reply: tx.last_reply_expected > before.last_reply_expected,
        }
    }

    /// Takes the snapshot of a receiver, whichever lane's. True if something new was received.
    pub(super) fn report_received(
        &mut self,
        now: Instant,
        activity: RxActivity,
        config: &TimerConfig,
        timers: &mut TimerTable,
    ) -> bool {
        let before = self.rx;
        self.rx = RxActivity {
            last_received: latest(now, before.last_received, activity.last_received),
            last_content: latest(now, before.last_content, activity.last_content),
            ..activity
        };
        let news = self.rx.last_received > before.last_received;
        if news {
            self.silent = false;
            restart_persistent(now, config, timers);
        }
        news
    }

    /// Starts and stops the clocks by the latest snapshots. `peer_receives`: what the peer sends
    /// shows that it receives what we send.
    pub(super) fn update_clocks(
        &mut self,
        peer_receives: bool,
        config: &TimerConfig,
        timers: &mut TimerTable,
    ) {
        let (tx, rx) = (self.tx, self.rx);
        let received = if peer_receives {
            rx.last_received
        } else {
            None
        };
        if self.unanswered_since.is_some() && received >= self.unanswered_since {
            self.unanswered_since = None;
        }
        if self.unanswered_since.is_none()
            && tx.last_reply_expected > received
            && tx.last_reply_expected != self.silence_started_by
        {
            self.unanswered_since = tx.last_reply_expected;
            self.silence_started_by = tx.last_reply_expected;
        }
        if self.owed_since.is_some() && tx.last_sent >= self.owed_since {
            self.owed_since = None;
        }
        if self.owed_since.is_none()
            && rx.last_content > tx.last_sent
            && rx.last_content != self.keepalive_started_by
        {
            self.owed_since = rx.last_content;
            self.keepalive_started_by = rx.last_content;
        }
        timers.set_or_stop(
            Timer::Silence,
            self.unanswered_since.map(|since| since + config.silence),
        );
        timers.set_or_stop(
            Timer::Keepalive,
            self.owed_since.map(|since| since + config.keepalive),
        );
    }

    /// A session is in use that was not before.
    pub(super) fn session_established(
        &mut self,
        now: Instant,
        config: &TimerConfig,
        timers: &mut TimerTable,
    ) {
        self.unanswered_since = None;
        self.silent = false;
        timers.stop(Timer::Silence);
        restart_persistent(now, config, timers);
    }

    /// [`Timer::Silence`] has expired. True if the silence is news.
    pub(super) fn silence_expired(&mut self) -> bool {
        self.unanswered_since = None;
        !std::mem::replace(&mut self.silent, true)
    }

    /// [`Timer::Keepalive`] or [`Timer::PersistentKeepalive`] has expired.
    pub(super) fn keepalive_expired(
        &mut self,
        timer: Timer,
        now: Instant,
        config: &TimerConfig,
        timers: &mut TimerTable,
    ) {
        if timer == Timer::Keepalive {
            self.owed_since = None;
        }
        restart_persistent(now, config, timers);
    }

    /// Whether anything authentic came within the silence allowed.
    pub(super) fn is_alive(&self, now: Instant, config: &TimerConfig) -> bool {
        let allowed = config.silence + config.echo.unwrap_or_default();
        let last = self.rx.last_received;
        last.is_some_and(|last| now.since(last) < allowed)
    }

    #[cfg(test)]
    pub(super) const fn clocks(&self) -> [Option<Instant>; 2] {
        [self.unanswered_since, self.owed_since]
    }
}

fn restart_persistent(now: Instant, config: &TimerConfig, timers: &mut TimerTable) {
    if let Some(every) = config.persistent_keepalive {
        timers.set(Timer::PersistentKeepalive, now + every);
    }
}

/// The later of two points. The known one does not count if the clock has stepped back behind it.
fn latest(now: Instant, known: Option<Instant>, new: Option<Instant>) -> Option<Instant> {
    known.filter(|&at| at <= now).max(new)
}
