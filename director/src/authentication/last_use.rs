//! The last use of tokens: in memory at each request, and in the store at most once an hour, so
//! that requests that only read commit next to nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use crate::people::Token;

/// Least time between two commits of a token's last use. A new token has its time of creation.
const INTERVAL: SignedDuration = SignedDuration::from_hours(1);

/// Last uses of tokens since the start, by hash of the secret.
#[derive(Debug, Default)]
pub(crate) struct LastUses(Mutex<HashMap<String, Use>>);

#[derive(Clone, Copy, Debug)]
struct Use {
    at: Timestamp,
    /// The last commit that was asked for, whether it was made or not.
    stored: Timestamp,
}

impl LastUses {
    /// Notes a use of a token: whether it is to be stored.
    pub fn note(&self, hash: &str, token: &Token, now: Timestamp) -> bool {
        let mut uses = self.lock();
        let known = token.last_used.unwrap_or(token.created);
        let seen = uses.entry(hash.to_owned()).or_insert(Use {
            at: now,
            stored: known,
        });
        seen.at = now;
        let is_due = now.duration_since(seen.stored) >= INTERVAL;
        if is_due {
            seen.stored = now;
        }
        is_due
    }

    /// The last use of a token.
    pub fn of(&self, hash: &str, token: &Token) -> Option<Timestamp> {
        let seen = self.lock().get(hash).map(|seen| seen.at);
        seen.max(token.last_used)
    }

    /// Forgets tokens that are no more.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|hash, _| is_there(hash));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_stored_once_an_hour() {
        let at = |minutes: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let mut token = Token {
            id: "t".to_owned(),
            user: "alice".to_owned(),
            description: String::new(),
            created: at(0),
            expires: at(10_000),
            session: false,
            last_used: None,
        };
        let uses = LastUses::default();
        assert_eq!(uses.of("h", &token), None);
        let due: Vec<_> = [0, 59, 60, 61, 119, 120, 121]
            .into_iter()
            .filter(|minute| uses.note("h", &token, at(*minute)))
            .collect();
        assert_eq!(due, [60, 120]);
        assert_eq!(uses.of("h", &token), Some(at(121)));
        // After a restart, the stored one holds until the next.
        token.last_used = Some(at(120));
        let uses = LastUses::default();
        assert_eq!(uses.of("h", &token), Some(at(120)));
        assert!(!uses.note("h", &token, at(179)));
        assert!(uses.note("h", &token, at(180)));
        uses.retain(|_| false);
        assert_eq!(uses.of("h", &token), Some(at(120)));
    }
}
