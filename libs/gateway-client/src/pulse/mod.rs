//! Whether the other end of a connection is there: questions that it answers at once, and how long
//! its answers may take.
//!
//! ```text
//!            asked every 80 ms, at most three that wait for their answers
//!              │
//!   heard ─────┴── a question waits, and nothing at all was received for as long as answers take by ──▶ silent
//!     ▲            now (RFC 6298), 240 ms at least and 2 s at most; not counted while the question                │
//!     │            has not left this end, and what is in front of it leaves                                      │
//!     └──────────────────────────────── anything is received ◀───────────────────────────────────────────────────┘
//! ```
//!
//! Anything received is life, so a connection by which something comes is never silent; and
//! questions are asked then, too, so that what a full queue costs is known before it is asked in
//! vain. Three of them find out in one round trip that one was lost, as TCP's own acknowledgements
//! of the later ones say so. Pure: taking the time, on any monotonic clock.

use std::{collections::VecDeque, time::Duration};

/// How often is asked.
pub const PACE: Duration = Duration::from_millis(80);
/// Questions that wait for their answers at most.
pub const MOST: usize = 3;
/// How long nothing may come, at least.
const LEAST: Duration = Duration::from_millis(240);
/// How long nothing may come, at most; and as long as no question was ever answered.
const LONGEST: Duration = Duration::from_secs(2);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A question is to be sent.
    Ask,
    /// The other end is silent: said once.
    Silent,
}

/// The end that asks.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// When the questions were asked that wait for their answers, the oldest first; at most
    /// [`MOST`].
    asked: VecDeque<Duration>,
    /// When something was received last, or nothing was to be expected yet.
    life: Duration,
    /// When to look next.
    look: Duration,
    silent: bool,
    /// Smoothed time of answers and its variation.
    times: Option<(Duration, Duration)>,
}

impl Pulse {
    /// Of a connection that is there now. Asks at once.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            asked: VecDeque::with_capacity(MOST),
            life: now,
            look: now,
            silent: false,
            times: None,
        }
    }

    /// Something was received. True, once: it was silent before.
    pub fn received(&mut self, now: Duration) -> bool {
        self.life = self.life.max(now);
        std::mem::take(&mut self.silent)
    }

    /// The oldest question is answered. An answer that was not asked for is nothing.
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

    /// The oldest question is still at this end, and what is in front of it leaves.
    pub fn held(&mut self, now: Duration) {
        self.life = self.life.max(now);
    }

    /// What is due; to be asked until it says nothing more. What was received before `now` is to
    /// have been said.
    pub fn step(&mut self, now: Duration) -> Option<Due> {
        if !self.silent && self.silent_at().is_some_and(|at| now >= at) {
            self.silent = true;
            return Some(Due::Silent);
        }
        if now < self.look {
            return None;
        }
        self.look = now + PACE;
        (self.asked.len() < MOST).then(|| {
            self.asked.push_back(now);
            Due::Ask
        })
    }

    /// When [`Pulse::step`] wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        let silent = self.silent_at().filter(|_| !self.silent);
        silent.map_or(self.look, |at| at.min(self.look))
    }

    /// Questions that wait for their answers.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// From when on it is silent, if nothing comes.
    fn silent_at(&self) -> Option<Duration> {
        Some(self.life.max(*self.asked.front()?) + self.patience())
    }

    fn patience(&self) -> Duration {
        let (smoothed, variation) = self.times.unwrap_or((LONGEST, Duration::ZERO));
        (smoothed + (variation * 4).max(PACE)).clamp(LEAST, LONGEST)
    }
}

#[cfg(test)]
mod tests;
