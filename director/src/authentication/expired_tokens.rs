//! Tokens that had ended before the clock was set back: they stay ended.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use crate::live::Live;

/// Time by which the clock may go back without being set, as by small corrections.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// The latest time of requests, and the tokens that had ended by then, by hash of the secret. A
/// process that starts knows neither.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<ClockState>);

#[derive(Debug, Default)]
struct ClockState {
    latest: Timestamp,
    ended: HashSet<String>,
}

impl Ended {
    /// Whether a token had ended at an earlier request, though the clock says now that it has not.
    pub fn has(&self, hash: &str, live: &Live, now: Timestamp) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = seen.latest;
        if latest.duration_since(now) > TOLERANCE {
            tracing::warn!(from = %latest, to = %now, "the clock was set back");
            let tokens = live.tokens.iter();
            let ended = tokens.filter(|(_, (token, _))| token.expires <= latest);
            seen.ended.extend(ended.map(|(hash, _)| hash.clone()));
            seen.ended.retain(|hash| live.tokens.contains_key(hash));
            seen.latest = now;
        } else {
            seen.latest = latest.max(now);
        }
        seen.ended.contains(hash)
    }
}
