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
//! The connection is kept for a while when UDP is back, should it not stay. Pure: taking the time.

use std::time::Duration;

use tunnel::Instant;

/// How long UDP may be without a gateway.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long nothing may be heard of the other end by UDP, or by TLS.
const SILENCE: Duration = Duration::from_secs(4);
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
    /// Begin an attempt.
    pub dial: bool,
    /// Close the connection.
    pub close: bool,
}

/// What carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Udp,
    Stream,
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
            distrusted_until: now,
            distrust: FIRST_DISTRUST,
            next: None,
        }
    }

    /// An attempt failed, or a connection was closed by others.
    pub fn failed(&mut self, now: Instant) {
        self.next_dial = now + self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
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
            Some(By::Stream) if silent_for.is_some_and(|time| time >= SILENCE) => {
                wanted.close = true;
                self.silent = None;
                self.failed(now);
            }
            Some(By::Stream) if !seen.silent => self.pause = FIRST_PAUSE,
            _ => {}
        }
        let waited = self
            .without_udp
            .is_some_and(|since| now.since(since) >= PATIENCE || self.distrusted_until > now);
        wanted.dial =
            waited && !seen.stream && !seen.dialing && !wanted.close && now >= self.next_dial;
        let is_settled = self.by == Some(By::Udp) && usable && !seen.stream && !seen.silent;
        self.next = (!is_settled).then(|| now + TICK);
        wanted
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
        dialing: false,
        silent: false,
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

    const DIAL: Wanted = Wanted {
        by: None,
        dial: true,
        close: false,
    };
    const CLOSE: Wanted = Wanted {
        by: None,
        dial: false,
        close: true,
    };

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
        let dialing = Seen {
            dialing: true,
            ..AWAY
        };
        assert_eq!(steps(&mut fallback, 1600, 2000, dialing), []);
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
                fallback.failed(at(ms));
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
        assert_eq!(
            steps(&mut fallback, 14_100, 44_100, stream),
            [(14_100, by(By::Stream)), (44_000, by(By::Udp))]
        );
        // It is still no good: back, and for longer.
        let both = Seen {
            stream: true,
            ..silent
        };
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
            steps(&mut fallback, 2000, 6200, stream),
            [(2000, by(By::Stream)), (6100, CLOSE)]
        );
        assert_eq!(steps(&mut fallback, 6200, 7200, AWAY), [(7100, DIAL)]);
    }
}
