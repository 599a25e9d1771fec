//! Connects to the first of several addresses that answers (RFC 8305 section 5).
//!
//! ```text
//!   1st address ──────────────────────────────────────── connected ─▶ the owner uses it
//!     └─ `attempt_delay`, at once if it fails ─▶ 2nd ─ ...   the others may go on, or are dropped
//! ```
//!
//! A connected attempt does not end the race: the owner may have to prove the service behind it
//! first, and takes the next attempt that connects if that fails. [`Race::finish`] ends it.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

/// Least delay between attempts (RFC 8305 section 8).
const LEAST_DELAY: Duration = Duration::from_millis(10);

/// Times of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaceSettings {
    /// Time before the next address is tried as well; at least 10 ms.
    pub attempt_delay: Duration,
    /// Time after which an attempt without a result has failed.
    pub attempt_timeout: Duration,
}

impl Default for RaceSettings {
    /// 250 ms (RFC 8305 section 8) and 3 s.
    fn default() -> Self {
        Self {
            attempt_delay: Duration::from_millis(250),
            attempt_timeout: Duration::from_secs(3),
        }
    }
}

/// Number of an attempt within a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u32);

/// An action of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaceAction {
    /// Begin to connect. The owner reports the result, once.
    Connect {
        attempt: AttemptId,
        address: SocketAddr,
    },
    /// Give up an attempt: it had no result for the timeout.
    Expire {
        attempt: AttemptId,
        address: SocketAddr,
    },
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: AttemptId,
    address: SocketAddr,
    since: Duration,
}

/// A race of connects. The owner does the actions of [`Race::poll`] until there is none, and calls
/// it again at [`Race::next_deadline`] and after each result.
#[derive(Clone, Debug)]
pub struct Race {
    settings: RaceSettings,
    /// Addresses that were not tried, in order.
    left: VecDeque<SocketAddr>,
    open: Vec<Attempt>,
    begun: u32,
    /// Earliest time of the next attempt.
    next: Duration,
}

impl Race {
    /// The addresses are tried in this order: see [`super::interleave`]. The race begins with the
    /// first call of [`Race::poll`]; from then on all times are of one monotonic clock.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = SocketAddr>, settings: RaceSettings) -> Self {
        Self {
            settings,
            left: addresses.into_iter().collect(),
            open: Vec::new(),
            begun: 0,
            next: Duration::ZERO,
        }
    }

    /// Time after which an attempt without a result has failed.
    #[must_use]
    pub const fn attempt_timeout(&self) -> Duration {
        self.settings.attempt_timeout
    }

    /// The next action.
    pub fn poll(&mut self, now: Duration) -> Option<RaceAction> {
        let attempt_timeout = self.settings.attempt_timeout;
        let is_over = |attempt: &Attempt| attempt.since.saturating_add(attempt_timeout) <= now;
        if let Some(place) = self.open.iter().position(is_over) {
            let Attempt { id, address, .. } = self.remove(place, now);
            return Some(RaceAction::Expire {
                attempt: id,
                address,
            });
        }
        if self.next > now {
            return None;
        }
        let address = self.left.pop_front()?;
        let id = AttemptId(self.begun);
        self.begun = self.begun.wrapping_add(1);
        self.open.push(Attempt {
            id,
            address,
            since: now,
        });
        self.next = now.saturating_add(self.settings.attempt_delay.max(LEAST_DELAY));
        Some(RaceAction::Connect {
            attempt: id,
            address,
        })
    }

    /// An attempt is connected. Returns its address and how long it took; `None` for one that was
    /// given up.
    pub fn connected(
        &mut self,
        attempt: AttemptId,
        now: Duration,
    ) -> Option<(SocketAddr, Duration)> {
        let place = self.open.iter().position(|open| open.id == attempt)?;
        let attempt = self.open.remove(place);
        Some((attempt.address, now.saturating_sub(attempt.since)))
    }

    /// An attempt failed: the next address is tried at once.
    pub fn failed(&mut self, attempt: AttemptId, now: Duration) {
        if let Some(place) = self.open.iter().position(|open| open.id == attempt) {
            self.remove(place, now);
        }
    }

    fn remove(&mut self, place: usize, now: Duration) -> Attempt {
        self.next = self.next.min(now);
        self.open.remove(place)
    }

    /// Ends the race: the owner drops all attempts. Returns the addresses that had no result
    /// although they were tried for the delay between attempts: they are worse than the address
    /// that was found, and count as failed.
    pub fn finish(&mut self, now: Duration) -> impl Iterator<Item = SocketAddr> + use<> {
        self.left.clear();
        let delay = self.settings.attempt_delay.max(LEAST_DELAY);
        let open = std::mem::take(&mut self.open).into_iter();
        let is_late = move |open: &Attempt| now.saturating_sub(open.since) >= delay;
        open.filter(is_late).map(|open| open.address)
    }

    /// Whether addresses are left that may still connect.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.left.is_empty() || !self.open.is_empty()
    }

    /// The time of the next call of [`Race::poll`]; `None`: nothing happens without a result.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let attempt = (!self.left.is_empty()).then_some(self.next);
        let expiry = self.open.iter().map(|open| open.since);
        let expiry = expiry
            .min()
            .map(|since| since.saturating_add(self.settings.attempt_timeout));
        attempt.into_iter().chain(expiry).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6180))
    }

    fn race(count: u8) -> Race {
        Race::new((1..=count).map(at), RaceSettings::default())
    }

    #[track_caller]
    fn connects(race: &mut Race, now: Duration, n: u8) -> AttemptId {
        match race.poll(now) {
            Some(RaceAction::Connect { attempt, address }) if address == at(n) => attempt,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_next_address_follows_after_the_delay_and_the_first_answer_wins() {
        let mut race = race(3);
        let first = connects(&mut race, START, 1);
        assert_eq!(race.poll(START), None);
        assert_eq!(race.next_deadline(), Some(START + ms(250)));
        assert_eq!(race.poll(START + ms(249)), None);
        let second = connects(&mut race, START + ms(250), 2);
        let won = race.connected(second, START + ms(260));
        assert_eq!(won, Some((at(2), ms(10))));
        assert!(race.has_more());
        let mut twin = race.clone();
        assert_eq!(race.finish(START + ms(260)).collect::<Vec<_>>(), [at(1)]);
        // The first had no more time than the second.
        assert_eq!(twin.finish(START + ms(249)).count(), 0);
        assert!(!race.has_more());
        assert_eq!(race.connected(first, START + ms(300)), None, "too late");
        assert_eq!(
            (race.poll(START + ms(9000)), race.next_deadline()),
            (None, None)
        );
    }

    #[test]
    fn a_failure_starts_the_next_address_at_once() {
        let mut race = race(3);
        let first = connects(&mut race, START, 1);
        race.failed(first, START + ms(5));
        let second = connects(&mut race, START + ms(5), 2);
        assert_eq!(race.poll(START + ms(6)), None);
        race.failed(second, START + ms(7));
        race.failed(second, START + ms(7));
        let third = connects(&mut race, START + ms(7), 3);
        race.failed(third, START + ms(8));
        assert!(!race.has_more());
        assert_eq!(race.next_deadline(), None);
    }

    #[test]
    fn an_attempt_without_a_result_expires() {
        let mut race = race(1);
        let attempt = connects(&mut race, START, 1);
        assert_eq!(race.next_deadline(), Some(START + ms(3000)));
        assert_eq!(race.poll(START + ms(2999)), None);
        assert_eq!(
            race.poll(START + ms(3000)),
            Some(RaceAction::Expire {
                attempt,
                address: at(1),
            })
        );
        assert!(!race.has_more());
    }

    #[test]
    fn the_delay_has_a_least_value() {
        let settings = RaceSettings {
            attempt_delay: Duration::ZERO,
            ..RaceSettings::default()
        };
        let mut race = Race::new([at(1), at(2)], settings);
        connects(&mut race, START, 1);
        assert_eq!(race.poll(START + ms(9)), None);
        connects(&mut race, START + ms(10), 2);
    }

    proptest! {
        /// With addresses that answer, refuse or stay silent: each is tried once, in order; one
        /// that answers is found, within its own time and the delays of those before it.
        #[test]
        fn an_address_that_answers_is_found_in_time(
            addresses in vec(prop_oneof![
                (1u64..2000).prop_map(|after| Some((true, after))),
                (1u64..2000).prop_map(|after| Some((false, after))),
                Just(None),
            ], 0..8),
        ) {
            let mut race = race(addresses.len() as u8);
            let mut results: BTreeMap<(Duration, AttemptId), bool> = BTreeMap::new();
            let (mut now, mut tried) = (START, 0);
            let won = loop {
                while let Some(action) = race.poll(now) {
                    match action {
                        RaceAction::Connect { attempt, address } => {
                            prop_assert_eq!(address, at(tried as u8 + 1));
                            if let Some((works, after)) = addresses[tried] {
                                results.insert((now + ms(after), attempt), works);
                            }
                            tried += 1;
                        }
                        RaceAction::Expire { .. } => {}
                    }
                }
                if !race.has_more() {
                    break None;
                }
                let result = results.first_key_value().map(|(key, _)| key.0);
                let next = result.into_iter().chain(race.next_deadline()).min();
                let next = next.expect("a race that goes on has a next event");
                prop_assert!(next >= now, "no event is in the past");
                now = next;
                let mut winner = None;
                while let Some(((_, attempt), works)) = results
                    .first_entry()
                    .filter(|entry| entry.key().0 <= now)
                    .map(|entry| entry.remove_entry())
                {
                    if works && winner.is_none() {
                        winner = race.connected(attempt, now);
                    } else if !works {
                        race.failed(attempt, now);
                    }
                }
                if let Some((address, took)) = winner {
                    break Some((address, took));
                }
            };
            let works = |a: &Option<(bool, u64)>| matches!(a, Some((true, _)));
            prop_assert_eq!(won.is_some(), addresses.iter().any(works));
            if let Some(first) = addresses.iter().position(works) {
                let own = ms(addresses[first].expect("works").1);
                prop_assert!(now - START <= own + ms(250) * first as u32);
            } else {
                prop_assert_eq!(tried, addresses.len());
                prop_assert!(now - START <= ms(250) * 8 + ms(3000));
            }
        }
    }
}
