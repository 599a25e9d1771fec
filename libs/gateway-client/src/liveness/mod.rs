//! Liveness of a connection: probes that the peer answers at once, and the expected reply time.
//!
//! ```text
//!                a probe every 80 ms, at most three unanswered
//!                  │
//!   responsive ────┴── a probe is unanswered, and nothing was received for the ────▶ silent
//!     ▲                expected reply time (RFC 6298), 240 ms to 2 s; the time in       │
//!     │                which the probe waits in the send buffer does not count          │
//!     └──────────────────────────── anything is received ◀──────────────────────────────┘
//! ```
//!
//! Any received byte proves life. Probes are sent on busy connections, too, so that the delay of
//! full queues is known in time. With three probes under way, TCP detects a loss within
//! one round trip, by the acknowledgements of the later ones. Time is a parameter, on any monotonic
//! clock.

use std::{collections::VecDeque, time::Duration};

/// Interval of questions.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(80);
/// Unanswered questions at most.
pub const MAX_UNANSWERED: usize = 3;
/// Least time without a byte before the peer counts as silent.
const MIN_REPLY_TIMEOUT: Duration = Duration::from_millis(240);
/// Largest such time, and the time before the first answer.
const MAX_REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// A due action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a question.
    Ask,
    /// The peer is silent; reported once.
    Silent,
}

/// The asking end of a connection.
#[derive(Clone, Debug)]
pub struct LivenessProbe {
    /// Times of the unanswered questions, the oldest first; at most [`MAX_UNANSWERED`].
    asked: VecDeque<Duration>,
    /// Time of the last received byte, or until which none was expected.
    alive_at: Duration,
    /// Time of the next check.
    next_check: Duration,
    silent: bool,
    /// Smoothed time of answers, and its variation.
    times: Option<(Duration, Duration)>,
}

impl LivenessProbe {
    /// For a new connection. The first question is due at once.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            asked: VecDeque::with_capacity(MAX_UNANSWERED),
            alive_at: now,
            next_check: now,
            silent: false,
            times: None,
        }
    }

    /// A byte was received. Returns whether the peer was silent before.
    pub fn received(&mut self, now: Duration) -> bool {
        self.alive_at = self.alive_at.max(now);
        std::mem::take(&mut self.silent)
    }

    /// An answer to the oldest question has come. Without a question it is ignored.
    pub fn answered(&mut self, now: Duration) {
        let Some(asked) = self.asked.pop_front() else {
            return;
        };
        let took = now.saturating_sub(asked);
        // RFC 6298 section 2.
        self.times = Some(match self.times {
            None => (took, took / 2),
            Some((smoothed, variation)) => (
                (smoothed * 7 + took) / 8,
                (variation * 3 + smoothed.abs_diff(took)) / 4,
            ),
        });
    }

    /// The oldest question is still in the send buffer, and bytes before it leave.
    pub fn send_progress(&mut self, now: Duration) {
        self.alive_at = self.alive_at.max(now);
    }

    /// The next due action; call it until `None`, after all bytes received before `now` were
    /// reported.
    pub fn step(&mut self, now: Duration) -> Option<Due> {
        if !self.silent && self.silent_at().is_some_and(|at| now >= at) {
            self.silent = true;
            return Some(Due::Silent);
        }
        if now < self.next_check {
            return None;
        }
        self.next_check = now + PROBE_INTERVAL;
        (self.asked.len() < MAX_UNANSWERED).then(|| {
            self.asked.push_back(now);
            Due::Ask
        })
    }

    /// The time of the next call of [`LivenessProbe::step`].
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        let silent = self.silent_at().filter(|_| !self.silent);
        silent.map_or(self.next_check, |at| at.min(self.next_check))
    }

    /// Number of unanswered questions.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// The time at which the peer counts as silent, if no byte comes.
    fn silent_at(&self) -> Option<Duration> {
        Some(self.alive_at.max(*self.asked.front()?) + self.reply_timeout())
    }

    fn reply_timeout(&self) -> Duration {
        let (smoothed, variation) = self.times.unwrap_or((MAX_REPLY_TIMEOUT, Duration::ZERO));
        (smoothed + (variation * 4).max(PROBE_INTERVAL)).clamp(MIN_REPLY_TIMEOUT, MAX_REPLY_TIMEOUT)
    }
}

#[cfg(test)]
mod tests;
