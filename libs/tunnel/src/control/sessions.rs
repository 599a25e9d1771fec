//! The sessions of one peer: which is in use, which waits for its confirmation, and which are kept
//! for datagrams still on their way.
//!
//! ```text
//!   as responder:  next ──first message of the peer──▶ current ──replaced──▶ receive-only (3) ──▶ wiped
//!   as initiator:  ─────────────response─────────────▶ current
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::session::TxSession;
use crate::time::Instant;

/// Replaced sessions that are kept for datagrams still on their way.
const MAX_RECEIVE_ONLY: usize = 3;

/// A session that the control half has handed out.
pub(super) struct Session {
    /// Index of lane zero: the session's name.
    pub(super) index: u32,
    pub(super) created: Instant,
    /// Whether this end initiated it.
    pub(super) initiator: bool,
    /// Whether a message came by it, which proves that the peer holds the key as well.
    pub(super) confirmed: bool,
    /// Sending halves, by lane, that are withheld until the session is confirmed.
    pub(super) withheld: Vec<TxSession>,
}

/// The result of [`Sessions::confirm`].
pub(super) enum Confirmation {
    /// The session was in use already.
    Current,
    /// The session is in use from now on.
    Promoted {
        /// Its sending halves, by lane.
        withheld: Vec<TxSession>,
        /// The session that had to make room.
        retired: Option<u32>,
    },
    /// There is no such session, or a newer one is in use.
    Ignored,
}

/// The sessions of one peer.
#[derive(Default)]
pub(super) struct Sessions {
    /// Made as responder and not confirmed yet.
    next: Option<Session>,
    current: Option<Session>,
    /// Replaced sessions, oldest first.
    receive_only: VecDeque<Session>,
}

impl Sessions {
    /// The session in use.
    pub(super) const fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// Names of all sessions.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        let all = self
            .receive_only
            .iter()
            .chain(&self.current)
            .chain(&self.next);
        all.map(|session| session.index)
    }

    /// When the oldest session reaches the age `reject_after`.
    pub(super) fn expiry(&self, reject_after: Duration) -> Option<Instant> {
        // Fading sessions are sorted by age.
        let first = self.receive_only.front().into_iter();
        let all = first.chain(&self.current).chain(&self.next);
        all.map(|session| session.created + reject_after).min()
    }

    /// Removes the sessions of the age `reject_after`, and yields their names.
    pub(super) fn expire(&mut self, now: Instant, reject_after: Duration) -> Vec<u32> {
        let over = |session: &Session| now >= session.created + reject_after;
        let mut expired = Vec::new();
        while let Some(session) = self.receive_only.pop_front_if(|session| over(session)) {
            expired.push(session.index);
        }
        for slot in [&mut self.current, &mut self.next] {
            let session = slot.take_if(|session| over(session));
            expired.extend(session.map(|session| session.index));
        }
        expired
    }

    /// Whether this end initiated the session in use and it has reached `age`.
    pub(super) fn initiated_before(&self, now: Instant, age: Duration) -> bool {
        self.current
            .as_ref()
            .is_some_and(|session| session.initiator && now.since(session.created) >= age)
    }

    /// Makes the waiting session receive-only, so that another can take its place. Yields the name
    /// of one that must be retired for it.
    pub(super) fn retire_next_later(&mut self) -> Option<u32> {
        let replaced = self.next.take();
        self.retire_later(replaced)
    }

    /// Adds a session made as responder; it waits for its confirmation.
    pub(super) fn set_next(&mut self, session: Session) {
        self.next = Some(session);
    }

    /// Puts a session in use. Yields the name of one that must be retired for it.
    pub(super) fn set_current(&mut self, session: Session) -> Option<u32> {
        let replaced = self.current.replace(session);
        self.retire_later(replaced)
    }

    /// The first message of a session has come.
    pub(super) fn confirm(&mut self, index: u32) -> Confirmation {
        if let Some(current) = self.current.as_mut().filter(|s| s.index == index) {
            current.confirmed = true;
            return Confirmation::Current;
        }
        let in_use_since = self.current.as_ref().map(|session| session.created);
        let session = match self.next.take_if(|session| session.index == index) {
            Some(next) => Some(next),
            // The peer uses an attempt that this end had replaced by a later one.
            None => self
                .receive_only
                .iter()
                .position(|session| {
                    session.index == index
                        && !session.withheld.is_empty()
                        && Some(session.created) > in_use_since
                })
                .and_then(|at| self.receive_only.remove(at)),
        };
        let Some(mut session) = session else {
            return Confirmation::Ignored;
        };
        session.confirmed = true;
        let withheld = std::mem::take(&mut session.withheld);
        let retired = self.set_current(session);
        Confirmation::Promoted { withheld, retired }
    }

    /// Keeps a replaced session for receiving. Yields the name of the oldest one, which must be
    /// retired, if there are too many.
    fn retire_later(&mut self, session: Option<Session>) -> Option<u32> {
        let session = session?;
        // Sorted by age, so that the front is the first to expire.
        let mut older = self.receive_only.iter();
        let at = older.position(|other| other.created > session.created);
        self.receive_only
            .insert(at.unwrap_or(self.receive_only.len()), session);
        if self.receive_only.len() <= MAX_RECEIVE_ONLY {
            return None;
        }
        self.receive_only.pop_front().map(|oldest| oldest.index)
    }
}
