//! When a tunnel goes over TLS: where UDP does not get through to any gateway, and until it does.
//!
//! ```text
//!            no gateway answers by UDP for `patience`,            established
//!   by UDP ─ or by UDP nothing is heard for `silence` ─▶ dialing ─────────────▶ by TLS
//!     ▲                                                   │   ▲                   │ │
//!     │                                                   └───┘ failed: a pause   │ │ nothing heard, or closed:
//!     │                                                         that grows ◀──────│─┘ the connection ends
//!     └───────────────── a gateway answers by UDP, and the pause of distrust is over
//! ```
//!
//! The connection is kept for a while when UDP is back, should it not stay.
//!
//! ```text
//!            stalled: not even its questions are answered              established: takes its place, where the tunnel goes on
//!   by TLS ──────────────────────────────────────────────▶ by TLS, and ────────────────────────────────────────────────▶ by TLS
//!     ▲                                                     dialing ─── failed: as above
//!     └─── heard again: given up, and the next time only ◀─────┘
//!          after a pause that grows
//! ```
//!
//! Pure: taking the time and chance.

use std::time::Duration;

use tunnel::Instant;

/// How long UDP may be without a gateway.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long the other end may be silent by UDP, from when the tunnel takes it to be.
const SILENCE: Duration = Duration::from_secs(4);
/// The same by TLS, where there is no other gateway to try first.
const STREAM_SILENCE: Duration = Duration::from_millis(1100);
/// Within what time ends dial again that lost a connection.
const SPREAD: Duration = Duration::from_millis(250);
/// Within what time ends dial another one whose connection stalls.
const RACE_SPREAD: Duration = Duration::from_millis(50);
/// Pause from one attempt beside a connection that stalls to the next, at first; each time twice as long.
const FIRST_RACE_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LAST_RACE_PAUSE: Duration = Duration::from_secs(30);
/// For how long there is no such attempt until the pause is the first again.
const CALM: Duration = Duration::from_secs(60);
/// First pause between two attempts; each further is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// For how long the connection is kept beside UDP that works.
const KEPT: Duration = Duration::from_secs(5);
/// How long UDP by which nothing was heard is not tried, at first; each time twice as long.
const FIRST_DISTRUST: Duration = Duration::from_secs(30);
/// The longest.
const LAST_DISTRUST: Duration = Duration::from_secs(600);
/// How often one looks while something is to be decided.
const TICK: Duration = Duration::from_millis(200);

/// What is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The end is bound at a gateway by UDP.
    pub udp: bool,
    /// A connection is established.
    pub stream: bool,
    /// Nothing comes by it, not even answers.
    pub stalled: bool,
    /// An attempt is going on.
    pub dialing: bool,
    /// The other end is not heard.
    pub silent: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How the tunnel is to go; `None`: as it does.
    pub by: Option<By>,
    /// Begin an attempt, beside the connection if there is one.
    pub dial: bool,
    /// Give up the attempt: the connection will do.
    pub give_up: bool,
    /// Close the connection.
    pub close: bool,
}

/// What carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Udp,
    Stream,
}

/// Some part of `most`, by chance.
fn spread(most: Duration, chance: u64) -> Duration {
    most * (chance % 1000) as u32 / 1000
}

/// The choice for one circuit.
#[derive(Clone, Debug)]
pub(super) struct Fallback {
    by: Option<By>,
    without_udp: Option<Instant>,
    silent: Option<Instant>,
    udp_since: Instant,
    next_dial: Instant,
    pause: Duration,
    /// An attempt goes on beside a connection that stalls.
    racing: bool,
    last_race: Option<Instant>,
    next_race: Instant,
    race_pause: Duration,
    distrusted_until: Instant,
    distrust: Duration,
    next: Option<Instant>,
}

impl Fallback {
    pub const fn new(now: Instant) -> Self {
        Self {
            by: None,
            without_udp: None,
            silent: None,
            udp_since: now,
            next_dial: now,
            pause: FIRST_PAUSE,
            racing: false,
            last_race: None,
            next_race: now,
            race_pause: FIRST_RACE_PAUSE,
            distrusted_until: now,
            distrust: FIRST_DISTRUST,
            next: None,
        }
    }

    /// An attempt failed. `chance`, any number, spreads ends that fail together.
    pub fn failed(&mut self, now: Instant, chance: u64) {
        self.racing = false;
        self.next_dial = now + self.pause + spread(self.pause / 4, chance);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    /// A connection that was there is closed.
    pub fn closed(&mut self, now: Instant, chance: u64) {
        self.racing = false;
        self.next_dial = now + spread(SPREAD, chance);
        self.next = Some(
            self.next
                .map_or(self.next_dial, |next| next.min(self.next_dial)),
        );
    }

    /// A connection is established. If another one stalled beside it, it may have been about to be heard again: the next time, too, comes
    /// after a pause that grows.
    pub fn established(&mut self) {
        // Silence was of the one before.
        self.silent = None;
        if std::mem::take(&mut self.racing) {
            self.race_pause = (self.race_pause * 2).min(LAST_RACE_PAUSE);
        }
    }

    /// The connection stalls from now on.
    pub fn stalled(&mut self, now: Instant, chance: u64) {
        self.next_race = self.next_race.max(now + spread(RACE_SPREAD, chance));
    }

    /// Links, routes or addresses are others: what failed may work.
    pub fn moved(&mut self, now: Instant) {
        self.next_dial = now;
        self.pause = FIRST_PAUSE;
        self.next_race = now;
        self.race_pause = FIRST_RACE_PAUSE;
        self.distrusted_until = now;
        self.distrust = FIRST_DISTRUST;
    }

    /// Takes what is; says what to do.
    pub fn step(&mut self, now: Instant, seen: Seen) -> Wanted {
        let mut wanted = Wanted::default();
        self.silent = seen.silent.then(|| self.silent.unwrap_or(now));
        let silent_for = self.silent.map(|since| now.since(since));
        if self.by == Some(By::Udp)
            && seen.udp
            && silent_for.is_some_and(|time| time >= SILENCE)
            && now >= self.distrusted_until
        {
            self.distrusted_until = now + self.distrust;
            self.distrust = (self.distrust * 2).min(LAST_DISTRUST);
            self.silent = None;
        } else if self.by == Some(By::Udp) && seen.udp && !seen.silent {
            // It is heard by UDP after all: the other end was away, not the way.
            self.distrusted_until = now;
        }
        let usable = seen.udp && now >= self.distrusted_until;
        self.without_udp = (!usable).then(|| self.without_udp.unwrap_or(now));
        let by = match (usable, seen.stream) {
            (true, _) => Some(By::Udp),
            (false, true) => Some(By::Stream),
            (false, false) => self.by.filter(|by| *by == By::Udp),
        };
        if by != self.by {
            self.by = by;
            wanted.by = by;
            self.silent = None;
            self.udp_since = now;
        }
        // Silence is of the way that there is now.
        let silent_for = self.silent.map(|since| now.since(since));
        match self.by {
            Some(By::Udp) if usable => {
                let settled = now.since(self.udp_since) >= KEPT && self.silent.is_none();
                wanted.close = seen.stream && settled;
                if settled {
                    self.pause = FIRST_PAUSE;
                    self.distrust = FIRST_DISTRUST;
                }
            }
            // What is dialed beside it decides.
            Some(By::Stream) if self.racing && seen.dialing && seen.stalled => {}
            Some(By::Stream) if silent_for.is_some_and(|time| time >= STREAM_SILENCE) => {
                wanted.close = true;
                self.silent = None;
            }
            Some(By::Stream) if !seen.silent => self.pause = FIRST_PAUSE,
            _ => {}
        }
        let waited = self
            .without_udp
            .is_some_and(|since| now.since(since) >= PATIENCE || self.distrusted_until > now);
        let may_dial = !seen.dialing && !wanted.close && now >= self.next_dial;
        wanted.dial = waited && !seen.stream && may_dial;
        if self.by == Some(By::Stream) && seen.stream {
            self.race(now, seen, may_dial, &mut wanted);
        }
        let is_settled = self.by == Some(By::Udp) && usable && !seen.stream && !seen.silent;
        let coming = [self.next_dial, self.next_race].into_iter();
        let next = coming.filter(|at| *at > now).fold(now + TICK, Instant::min);
        self.next = (!is_settled).then_some(next);
        wanted
    }

    /// Another connection, beside one that stalls.
    fn race(&mut self, now: Instant, seen: Seen, may_dial: bool, wanted: &mut Wanted) {
        if seen.stalled && may_dial && now >= self.next_race {
            let is_calm = self.last_race.is_some_and(|last| now.since(last) >= CALM);
            if is_calm {
                self.race_pause = FIRST_RACE_PAUSE;
            }
            self.racing = true;
            self.last_race = Some(now);
            self.next_race = now + self.race_pause;
            wanted.dial = true;
        } else if !seen.stalled && std::mem::take(&mut self.racing) {
            wanted.give_up = seen.dialing;
            self.next_race = now + self.race_pause;
            self.race_pause = (self.race_pause * 2).min(LAST_RACE_PAUSE);
        }
    }

    /// How the tunnel is to go, once that is known.
    pub const fn by(&self) -> Option<By> {
        self.by
    }

    /// When to look again if nothing happens.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Seen = Seen {
        udp: false,
        stream: false,
        stalled: false,
        dialing: false,
        silent: false,
    };
    const STREAM: Seen = Seen {
        stream: true,
        ..AWAY
    };
    const STALLED: Seen = Seen {
        stalled: true,
        ..STREAM
    };
    const UDP: Seen = Seen { udp: true, ..AWAY };

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((1_000_000 + ms) * 1_000_000)
    }

    /// Steps from one time to another; all that was wanted, and when.
    fn steps(fallback: &mut Fallback, from: u64, to: u64, seen: Seen) -> Vec<(u64, Wanted)> {
        let ticks = (from..to).step_by(100);
        ticks
            .map(|ms| (ms, fallback.step(at(ms), seen)))
            .filter(|(_, wanted)| *wanted != Wanted::default())
            .collect()
    }

    fn by(by: By) -> Wanted {
        Wanted {
            by: Some(by),
            ..Wanted::default()
        }
    }

    const NOTHING: Wanted = Wanted {
        by: None,
        dial: false,
        give_up: false,
        close: false,
    };
    const DIAL: Wanted = Wanted {
        dial: true,
        ..NOTHING
    };
    const GIVE_UP: Wanted = Wanted {
        give_up: true,
        ..NOTHING
    };
    const CLOSE: Wanted = Wanted {
        close: true,
        ..NOTHING
    };

    /// The tunnel goes by TLS, from 2 s on.
    fn streamed() -> Fallback {
        let mut fallback = Fallback::new(at(0));
        steps(&mut fallback, 0, 2000, AWAY);
        assert_eq!(fallback.step(at(2000), STREAM), by(By::Stream));
        fallback.established();
        fallback
    }

    const fn dialing(seen: Seen) -> Seen {
        Seen {
            dialing: true,
            ..seen
        }
    }

    #[test]
    fn where_udp_works_nothing_is_dialed() {
        let mut fallback = Fallback::new(at(0));
        assert_eq!(steps(&mut fallback, 0, 300, AWAY), []);
        assert_eq!(steps(&mut fallback, 300, 60_000, UDP), [(300, by(By::Udp))]);
        assert_eq!(fallback.next_deadline(), None);
        // A gateway is lost and another is there within a second.
        assert_eq!(steps(&mut fallback, 60_000, 61_000, AWAY), []);
        assert_eq!(steps(&mut fallback, 61_000, 90_000, UDP), []);
    }

    #[test]
    fn without_udp_it_is_dialed_and_used_until_udp_is_back() {
        let mut fallback = Fallback::new(at(0));
        assert_eq!(steps(&mut fallback, 0, 1600, AWAY), [(1500, DIAL)]);
        assert_eq!(steps(&mut fallback, 1600, 2000, dialing(AWAY)), []);
        let stream = Seen {
            stream: true,
            ..AWAY
        };
        assert_eq!(
            steps(&mut fallback, 2000, 60_000, stream),
            [(2000, by(By::Stream))]
        );
        let both = Seen {
            stream: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut fallback, 60_000, 65_100, both),
            [(60_000, by(By::Udp)), (65_000, CLOSE)]
        );
        assert_eq!(steps(&mut fallback, 65_100, 90_000, UDP), []);
    }

    #[test]
    fn attempts_come_ever_more_slowly_and_never_end() {
        let mut fallback = Fallback::new(at(0));
        let mut dialed = Vec::new();
        for ms in (0..300_000).step_by(100) {
            if fallback.step(at(ms), AWAY).dial {
                dialed.push(ms);
                fallback.failed(at(ms), 0);
            }
        }
        let pauses: Vec<u64> = dialed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..6], [1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 30_000));
        assert!(dialed.len() > 10);
    }

    #[test]
    fn udp_that_carries_nothing_is_not_trusted_for_a_while() {
        let mut fallback = Fallback::new(at(0));
        steps(&mut fallback, 0, 10_000, UDP);
        let silent = Seen {
            silent: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut fallback, 10_000, 14_100, silent),
            [(14_000, DIAL)]
        );
        let stream = Seen {
            stream: true,
            ..UDP
        };
        let both = Seen {
            stream: true,
            ..silent
        };
        // What is not heard by UDP is heard by TLS.
        assert_eq!(fallback.step(at(14_100), both), by(By::Stream));
        assert_eq!(
            steps(&mut fallback, 14_200, 44_100, stream),
            [(44_000, by(By::Udp))]
        );
        // It is still no good: back, and for longer.
        assert_eq!(
            steps(&mut fallback, 44_100, 48_200, both),
            [(48_100, by(By::Stream))]
        );
        assert_eq!(
            steps(&mut fallback, 48_200, 113_200, stream),
            [(108_100, by(By::Udp)), (113_100, CLOSE)]
        );
    }

    #[test]
    fn a_connection_by_which_nothing_is_heard_is_closed_and_made_anew() {
        let mut fallback = Fallback::new(at(0));
        steps(&mut fallback, 0, 2000, AWAY);
        let stream = Seen {
            stream: true,
            silent: true,
            ..AWAY
        };
        assert_eq!(
            steps(&mut fallback, 2000, 3300, stream),
            [(2000, by(By::Stream)), (3200, CLOSE)]
        );
        fallback.closed(at(3300), 400);
        assert_eq!(fallback.step(at(3300), AWAY), Wanted::default());
        assert_eq!(steps(&mut fallback, 3400, 3500, AWAY), [(3400, DIAL)]);
        // It fails: then there are pauses.
        fallback.failed(at(3400), 0);
        assert_eq!(steps(&mut fallback, 3500, 4500, AWAY), [(4400, DIAL)]);
        // Another address, and it is tried at once.
        fallback.failed(at(4400), 999);
        fallback.moved(at(4500));
        assert_eq!(steps(&mut fallback, 4500, 4600, AWAY), [(4500, DIAL)]);
    }

    #[test]
    fn an_other_end_that_was_away_is_back_by_udp() {
        let mut fallback = Fallback::new(at(0));
        steps(&mut fallback, 0, 10_000, UDP);
        let silent = Seen {
            silent: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut fallback, 10_000, 14_100, silent),
            [(14_000, DIAL)]
        );
        fallback.failed(at(14_100), 0);
        assert_eq!(steps(&mut fallback, 14_100, 60_000, UDP), []);
        assert_eq!(fallback.next_deadline(), None);
        // An attempt that succeeded all the same is closed.
        let both = Seen {
            stream: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut fallback, 60_000, 60_100, both),
            [(60_000, CLOSE)]
        );
    }

    #[test]
    fn another_connection_is_dialed_beside_one_that_stalls_and_takes_its_place() {
        for chance in [0, 500, 999] {
            let mut fallback = streamed();
            assert_eq!(steps(&mut fallback, 2000, 60_000, STREAM), []);
            fallback.stalled(at(60_000), chance);
            let begun = (60_000..60_100).find(|ms| fallback.step(at(*ms), STALLED) == DIAL);
            let begun = begun.expect("dialed");
            assert!(begun <= 60_050, "{begun}");
            // It would look in time by itself.
            if begun > 60_000 {
                let mut other = streamed();
                other.stalled(at(60_000), chance);
                other.step(at(60_000), STALLED);
                let deadline = other.next_deadline().expect("one");
                assert!(deadline <= at(begun), "{chance}");
            }
            assert_eq!(
                steps(&mut fallback, begun + 1, begun + 300, dialing(STALLED)),
                []
            );
            // It is there instead, and the tunnel has yet to hear of it.
            fallback.established();
            let unheard = Seen {
                silent: true,
                ..STREAM
            };
            assert_eq!(steps(&mut fallback, begun + 300, begun + 1300, unheard), []);
            assert_eq!(steps(&mut fallback, begun + 1300, 90_000, STREAM), []);
            // The next one, as soon.
            fallback.stalled(at(90_000), 0);
            assert_eq!(fallback.step(at(90_000), STALLED), DIAL);
        }
    }

    #[test]
    fn an_attempt_that_was_not_needed_is_given_up_and_the_next_ones_wait_longer() {
        let mut fallback = streamed();
        let (mut now, mut dialed) = (10_000, Vec::new());
        // It stalls for half of each second, and is heard before another is there.
        while now < 200_000 {
            fallback.stalled(at(now), 0);
            for (ms, wanted) in steps(&mut fallback, now, now + 500, STALLED) {
                assert_eq!(wanted, DIAL);
                dialed.push(ms);
                let heard = fallback.step(at(ms), dialing(STREAM));
                assert_eq!(heard, GIVE_UP);
            }
            assert_eq!(steps(&mut fallback, now + 500, now + 1000, STREAM), []);
            now += 1000;
        }
        let pauses: Vec<u64> = dialed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..6], [1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 30_000));
        // Quiet for a while, and it is as it was.
        assert_eq!(steps(&mut fallback, now, now + 60_000, STREAM), []);
        now += 60_000;
        for expected in [now, now + 1000] {
            fallback.stalled(at(expected), 0);
            assert_eq!(fallback.step(at(expected), STALLED), DIAL);
            assert_eq!(fallback.step(at(expected), dialing(STREAM)), GIVE_UP);
        }
        // Another address: at once.
        fallback.moved(at(now + 1100));
        fallback.stalled(at(now + 1100), 0);
        assert_eq!(fallback.step(at(now + 1100), STALLED), DIAL);
    }

    #[test]
    fn one_that_stalls_stays_until_what_is_dialed_beside_it_has_failed() {
        let mut fallback = streamed();
        fallback.stalled(at(10_000), 0);
        assert_eq!(fallback.step(at(10_000), STALLED), DIAL);
        let silent = Seen {
            silent: true,
            ..STALLED
        };
        assert_eq!(
            steps(&mut fallback, 11_000, 15_000, dialing(silent)),
            [],
            "it is being dialed"
        );
        fallback.failed(at(15_000), 0);
        assert_eq!(fallback.step(at(15_000), silent), CLOSE);
        fallback.closed(at(15_000), 999);
        assert_eq!(steps(&mut fallback, 15_000, 15_400, AWAY), [(15_300, DIAL)]);
        // One that is lost meanwhile leaves the attempt as it is.
        let mut fallback = streamed();
        fallback.stalled(at(10_000), 0);
        assert_eq!(fallback.step(at(10_000), STALLED), DIAL);
        fallback.closed(at(10_100), 0);
        assert_eq!(steps(&mut fallback, 10_100, 11_000, dialing(AWAY)), []);
        fallback.established();
        assert_eq!(fallback.step(at(11_000), STREAM), by(By::Stream));
    }

    #[test]
    fn beside_udp_nothing_is_dialed_for_a_connection_that_stalls() {
        let mut fallback = streamed();
        let both = Seen {
            udp: true,
            ..STREAM
        };
        assert_eq!(fallback.step(at(3000), both), by(By::Udp));
        fallback.stalled(at(3500), 0);
        let stalled = Seen {
            udp: true,
            ..STALLED
        };
        assert_eq!(steps(&mut fallback, 3500, 8100, stalled), [(8000, CLOSE)]);
    }
}
