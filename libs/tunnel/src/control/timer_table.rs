//! The deadlines of one peer, in one table.
//!
//! A machine sets or stops its timers where its state changes. The earliest entry of the table is
//! the peer's next deadline: no deadline is derived from state anywhere else, so that the table and
//! the machines cannot disagree.

use crate::time::Instant;

/// The purpose of a deadline.
///
/// [`super::peer::Peer::handle_timeout`] handles expired timers in this order, once each. A handler
/// must stop its timer or set it later than now; it may set a later timer of the order to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// The oldest session reaches `TimerConfig::reject_after`.
    SessionExpiry,
    /// The oldest pending initiation has waited `handshake::PENDING_LIFETIME` for its response.
    InitiationExpiry,
    /// A message that expects a reply has gone unanswered for `TimerConfig::silence`.
    Silence,
    /// The session in use, which this end initiated, reaches `TimerConfig::rekey_after`.
    Rekey,
    /// This end has tried to reach the peer for `TimerConfig::give_up`.
    GiveUp,
    /// Content of the peer has gone unanswered for `TimerConfig::keepalive`.
    Keepalive,
    /// Nothing was sent or received for `TimerConfig::persistent_keepalive`.
    PersistentKeepalive,
    /// Data may follow the peer to another path again. Before the two of the path, which a new
    /// path starts.
    Follow,
    /// The next echo is due.
    Echo,
    /// The path-MTU search wants to go on.
    PathMtu,
    /// The next handshake attempt is due. Last, because the timers above start and stop attempts.
    Attempt,
}

impl Timer {
    /// Every timer, in the order in which they are handled.
    pub(super) const ALL: [Self; 11] = [
        Self::SessionExpiry,
        Self::InitiationExpiry,
        Self::Silence,
        Self::Rekey,
        Self::GiveUp,
        Self::Keepalive,
        Self::PersistentKeepalive,
        Self::Follow,
        Self::Echo,
        Self::PathMtu,
        Self::Attempt,
    ];
}

/// When each timer expires; `None`: it does not run.
#[derive(Debug, Clone, Default)]
pub(super) struct TimerTable([Option<Instant>; Timer::ALL.len()]);

impl TimerTable {
    /// Starts a timer, or moves it.
    pub(super) const fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    /// Stops a timer. Nothing happens if it does not run.
    pub(super) const fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// Starts or moves a timer, or stops it for `None`.
    pub(super) const fn set_or_stop(&mut self, timer: Timer, at: Option<Instant>) {
        self.0[timer as usize] = at;
    }

    /// When a timer expires; `None` if it does not run.
    #[cfg(test)]
    pub(super) const fn get(&self, timer: Timer) -> Option<Instant> {
        self.0[timer as usize]
    }

    /// When the first timer expires; `None` if none runs.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Stops a timer that has expired. True if it had.
    pub(super) fn take_expired(&mut self, timer: Timer, now: Instant) -> bool {
        self.0[timer as usize].take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_timer_has_a_place_of_its_own() {
        for (place, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, place);
        }
    }

    #[test]
    fn the_earliest_timer_is_next_and_is_taken_once() {
        let at = Instant::from_nanos;
        let mut table = TimerTable::default();
        assert_eq!(table.next(), None);
        table.set(Timer::Echo, at(20));
        table.set(Timer::Silence, at(10));
        table.set(Timer::Attempt, at(30));
        assert_eq!(table.next(), Some(at(10)));
        assert!(!table.take_expired(Timer::Silence, at(9)));
        assert!(table.take_expired(Timer::Silence, at(10)));
        assert!(!table.take_expired(Timer::Silence, at(10)));
        assert_eq!(table.next(), Some(at(20)));
        table.set(Timer::Echo, at(40));
        table.stop(Timer::Attempt);
        assert_eq!(table.next(), Some(at(40)));
        table.set_or_stop(Timer::Echo, None);
        assert_eq!(table.next(), None);
    }
}
