//! Choice between UDP and TLS for the tunnel of one circuit. Pure: time and randomness are passed
//! in.
//!
//! Between UDP and TLS:
//!
//! ```text
//!            no gateway answers by UDP for `UDP_TIMEOUT`,         established
//!   by UDP ─ or nothing received by UDP for `UDP_SILENCE` ─▶ dialing ────────▶ by TLS
//!     ▲                                                   │   ▲                   │ │
//!     │                                                   └───┘ failed: a growing │ │ nothing received,
//!     │                                                         pause   ◀──────── │─┘ or closed
//!     └───────────────── a gateway answers by UDP, and UDP is trusted again
//! ```
//!
//! The TLS connection is kept for `TLS_GRACE` when UDP works again.
//!
//! While the connection is stalled (not even probes are answered):
//!
//! ```text
//!            stalled                                 established: replaces the stalled one
//!   by TLS ──────────▶ by TLS, dialing a second one ──────────────────────────────────────▶ by TLS
//!     ▲                                 │    └─ failed: as above
//!     └─ resumed: the attempt is given up; the next one only after a growing pause
//! ```

use std::time::Duration;

use tunnel::Instant;

/// How long UDP may be without a gateway before TLS is dialed.
const UDP_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long nothing may be received by UDP, counted from when the tunnel finds the peer silent.
const UDP_SILENCE: Duration = Duration::from_secs(4);
/// The same by TLS, where no other gateway is tried first.
const TLS_SILENCE: Duration = Duration::from_millis(1100);
/// Ends that lose connections together dial again spread over this time.
const REDIAL_SPREAD: Duration = Duration::from_millis(250);
/// Ends whose connections stall together dial second ones spread over this time.
const RACE_SPREAD: Duration = Duration::from_millis(50);
/// First pause between two attempts during stalls; it doubles each time.
const FIRST_RACE_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two attempts during stalls.
const MAX_RACE_PAUSE: Duration = Duration::from_secs(30);
/// Quiet time after which that pause is the first again.
const RACE_RESET: Duration = Duration::from_secs(60);
/// First pause after a failed attempt; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a failed attempt.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How long the TLS connection is kept after UDP works again.
const TLS_GRACE: Duration = Duration::from_secs(5);
/// How long UDP is not used after nothing was received by it, at first; it doubles each time.
const FIRST_UDP_HOLD_DOWN: Duration = Duration::from_secs(30);
/// Longest time for which UDP is not used.
const MAX_UDP_HOLD_DOWN: Duration = Duration::from_secs(600);
/// Interval of steps while a decision is open.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// State of both transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TransportState {
    /// A gateway has bound this end by UDP.
    pub udp: bool,
    /// A TLS connection is established.
    pub tls: bool,
    /// Nothing is received on it, not even answers to probes.
    pub stalled: bool,
    /// An attempt is under way.
    pub dialing: bool,
    /// Nothing is received from the peer.
    pub silent: bool,
}

/// A decision on the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TransportDecision {
    /// The transport to switch to; `None`: no change.
    pub switch_to: Option<Transport>,
    /// Begin an attempt, in addition to the connection if there is one.
    pub dial: bool,
    /// Give up the attempt: the connection works again.
    pub cancel_dial: bool,
    /// Close the connection.
    pub close: bool,
}

/// Carries the datagrams of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tls,
}

/// A part of `max` by a random number.
fn jitter(max: Duration, random: u64) -> Duration {
    max * (random % 1000) as u32 / 1000
}

/// Chooses the transport of one circuit's tunnel.
#[derive(Clone, Debug)]
pub(super) struct TransportSelector {
    current: Option<Transport>,
    without_udp: Option<Instant>,
    silent: Option<Instant>,
    udp_since: Instant,
    next_dial: Instant,
    pause: Duration,
    /// An attempt is under way while the connection is stalled.
    racing: bool,
    last_race: Option<Instant>,
    next_race: Instant,
    race_pause: Duration,
    udp_held_down_until: Instant,
    udp_hold_down: Duration,
    next: Option<Instant>,
}

impl TransportSelector {
    pub const fn new(now: Instant) -> Self {
        Self {
            current: None,
            without_udp: None,
            silent: None,
            udp_since: now,
            next_dial: now,
            pause: FIRST_PAUSE,
            racing: false,
            last_race: None,
            next_race: now,
            race_pause: FIRST_RACE_PAUSE,
            udp_held_down_until: now,
            udp_hold_down: FIRST_UDP_HOLD_DOWN,
            next: None,
        }
    }

    /// An attempt failed. A random number spreads ends that fail together.
    pub fn failed(&mut self, now: Instant, random: u64) {
        self.racing = false;
        self.next_dial = now + self.pause + jitter(self.pause / 4, random);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    /// The connection is closed.
    pub fn closed(&mut self, now: Instant, random: u64) {
        self.racing = false;
        self.next_dial = now + jitter(REDIAL_SPREAD, random);
        self.next = Some(
            self.next
                .map_or(self.next_dial, |next| next.min(self.next_dial)),
        );
    }

    /// A connection is established. If it replaces a stalled one, that one may have been about to
    /// resume: the pause before the next such attempt grows, too.
    pub fn established(&mut self) {
        // The silence was that of the connection before.
        self.silent = None;
        if std::mem::take(&mut self.racing) {
            self.race_pause = (self.race_pause * 2).min(MAX_RACE_PAUSE);
        }
    }

    /// The connection is stalled from now on.
    pub fn stalled(&mut self, now: Instant, random: u64) {
        self.next_race = self.next_race.max(now + jitter(RACE_SPREAD, random));
    }

    /// Our addresses changed: an attempt may succeed now.
    pub fn underlay_changed(&mut self, now: Instant) {
        self.next_dial = now;
        self.pause = FIRST_PAUSE;
        self.next_race = now;
        self.race_pause = FIRST_RACE_PAUSE;
        self.udp_held_down_until = now;
        self.udp_hold_down = FIRST_UDP_HOLD_DOWN;
    }

    /// Returns the decision in this state.
    pub fn step(&mut self, now: Instant, state: TransportState) -> TransportDecision {
        let mut decision = TransportDecision::default();
        self.silent = state.silent.then(|| self.silent.unwrap_or(now));
        let silent_for = self.silent.map(|since| now.since(since));
        if self.current == Some(Transport::Udp)
            && state.udp
            && silent_for.is_some_and(|time| time >= UDP_SILENCE)
            && now >= self.udp_held_down_until
        {
            self.udp_held_down_until = now + self.udp_hold_down;
            self.udp_hold_down = (self.udp_hold_down * 2).min(MAX_UDP_HOLD_DOWN);
            self.silent = None;
        } else if self.current == Some(Transport::Udp) && state.udp && !state.silent {
            // Received by UDP after all: the peer was away, not the path.
            self.udp_held_down_until = now;
        }
        let usable = state.udp && now >= self.udp_held_down_until;
        self.without_udp = (!usable).then(|| self.without_udp.unwrap_or(now));
        let next = match (usable, state.tls) {
            (true, _) => Some(Transport::Udp),
            (false, true) => Some(Transport::Tls),
            (false, false) => self.current.filter(|current| *current == Transport::Udp),
        };
        if next != self.current {
            self.current = next;
            decision.switch_to = next;
            self.silent = None;
            self.udp_since = now;
        }
        // Silence counts on the current transport only.
        let silent_for = self.silent.map(|since| now.since(since));
        match self.current {
            Some(Transport::Udp) if usable => {
                let stable = now.since(self.udp_since) >= TLS_GRACE && self.silent.is_none();
                decision.close = state.tls && stable;
                if stable {
                    self.pause = FIRST_PAUSE;
                    self.udp_hold_down = FIRST_UDP_HOLD_DOWN;
                }
            }
            // The attempt that is under way decides.
            Some(Transport::Tls) if self.racing && state.dialing && state.stalled => {}
            Some(Transport::Tls) if silent_for.is_some_and(|time| time >= TLS_SILENCE) => {
                decision.close = true;
                self.silent = None;
            }
            Some(Transport::Tls) if !state.silent => self.pause = FIRST_PAUSE,
            _ => {}
        }
        let waited = self
            .without_udp
            .is_some_and(|since| now.since(since) >= UDP_TIMEOUT || self.udp_held_down_until > now);
        let may_dial = !state.dialing && !decision.close && now >= self.next_dial;
        decision.dial = waited && !state.tls && may_dial;
        if self.current == Some(Transport::Tls) && state.tls {
            self.race(now, state, may_dial, &mut decision);
        }
        let is_idle = self.current == Some(Transport::Udp) && usable && !state.tls && !state.silent;
        let pending = [self.next_dial, self.next_race].into_iter();
        let next = pending
            .filter(|at| *at > now)
            .fold(now + CHECK_INTERVAL, Instant::min);
        self.next = (!is_idle).then_some(next);
        decision
    }

    /// A second connection while the first is stalled.
    fn race(
        &mut self,
        now: Instant,
        state: TransportState,
        may_dial: bool,
        decision: &mut TransportDecision,
    ) {
        if state.stalled && may_dial && now >= self.next_race {
            let is_reset = self
                .last_race
                .is_some_and(|last| now.since(last) >= RACE_RESET);
            if is_reset {
                self.race_pause = FIRST_RACE_PAUSE;
            }
            self.racing = true;
            self.last_race = Some(now);
            self.next_race = now + self.race_pause;
            decision.dial = true;
        } else if !state.stalled && std::mem::take(&mut self.racing) {
            decision.cancel_dial = state.dialing;
            self.next_race = now + self.race_pause;
            self.race_pause = (self.race_pause * 2).min(MAX_RACE_PAUSE);
        }
    }

    /// The current transport, once it is known.
    pub const fn current(&self) -> Option<Transport> {
        self.current
    }

    /// When to call [`TransportSelector::step`] again if nothing happens.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_PATH: TransportState = TransportState {
        udp: false,
        tls: false,
        stalled: false,
        dialing: false,
        silent: false,
    };
    const TLS: TransportState = TransportState {
        tls: true,
        ..NO_PATH
    };
    const STALLED: TransportState = TransportState {
        stalled: true,
        ..TLS
    };
    const UDP: TransportState = TransportState {
        udp: true,
        ..NO_PATH
    };

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((1_000_000 + ms) * 1_000_000)
    }

    /// Steps every 100 ms between two times; all decisions to do something, and when.
    fn steps(
        selector: &mut TransportSelector,
        from: u64,
        to: u64,
        state: TransportState,
    ) -> Vec<(u64, TransportDecision)> {
        let ticks = (from..to).step_by(100);
        ticks
            .map(|ms| (ms, selector.step(at(ms), state)))
            .filter(|(_, decision)| *decision != TransportDecision::default())
            .collect()
    }

    fn switch_to(transport: Transport) -> TransportDecision {
        TransportDecision {
            switch_to: Some(transport),
            ..TransportDecision::default()
        }
    }

    const NOTHING: TransportDecision = TransportDecision {
        switch_to: None,
        dial: false,
        cancel_dial: false,
        close: false,
    };
    const DIAL: TransportDecision = TransportDecision {
        dial: true,
        ..NOTHING
    };
    const GIVE_UP: TransportDecision = TransportDecision {
        cancel_dial: true,
        ..NOTHING
    };
    const CLOSE: TransportDecision = TransportDecision {
        close: true,
        ..NOTHING
    };

    /// A selector that uses TLS, from 2 s on.
    fn over_tls() -> TransportSelector {
        let mut selector = TransportSelector::new(at(0));
        steps(&mut selector, 0, 2000, NO_PATH);
        assert_eq!(selector.step(at(2000), TLS), switch_to(Transport::Tls));
        selector.established();
        selector
    }

    const fn dialing(state: TransportState) -> TransportState {
        TransportState {
            dialing: true,
            ..state
        }
    }

    #[test]
    fn nothing_is_dialed_while_udp_works() {
        let mut selector = TransportSelector::new(at(0));
        assert_eq!(steps(&mut selector, 0, 300, NO_PATH), []);
        assert_eq!(
            steps(&mut selector, 300, 60_000, UDP),
            [(300, switch_to(Transport::Udp))]
        );
        assert_eq!(selector.next_deadline(), None);
        // A gateway is lost and another is bound within a second.
        assert_eq!(steps(&mut selector, 60_000, 61_000, NO_PATH), []);
        assert_eq!(steps(&mut selector, 61_000, 90_000, UDP), []);
    }

    #[test]
    fn without_udp_tls_is_dialed_and_used_until_udp_works_again() {
        let mut selector = TransportSelector::new(at(0));
        assert_eq!(steps(&mut selector, 0, 1600, NO_PATH), [(1500, DIAL)]);
        assert_eq!(steps(&mut selector, 1600, 2000, dialing(NO_PATH)), []);
        let open = TransportState {
            tls: true,
            ..NO_PATH
        };
        assert_eq!(
            steps(&mut selector, 2000, 60_000, open),
            [(2000, switch_to(Transport::Tls))]
        );
        let both = TransportState { tls: true, ..UDP };
        assert_eq!(
            steps(&mut selector, 60_000, 65_100, both),
            [(60_000, switch_to(Transport::Udp)), (65_000, CLOSE)]
        );
        assert_eq!(steps(&mut selector, 65_100, 90_000, UDP), []);
    }

    #[test]
    fn attempts_back_off_and_never_end() {
        let mut selector = TransportSelector::new(at(0));
        let mut dialed = Vec::new();
        for ms in (0..300_000).step_by(100) {
            if selector.step(at(ms), NO_PATH).dial {
                dialed.push(ms);
                selector.failed(at(ms), 0);
            }
        }
        let pauses: Vec<u64> = dialed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..6], [1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 30_000));
        assert!(dialed.len() > 10);
    }

    #[test]
    fn udp_on_which_nothing_is_received_is_not_used_for_a_while() {
        let mut selector = TransportSelector::new(at(0));
        steps(&mut selector, 0, 10_000, UDP);
        let silent = TransportState {
            silent: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut selector, 10_000, 14_100, silent),
            [(14_000, DIAL)]
        );
        let open = TransportState { tls: true, ..UDP };
        let both = TransportState {
            tls: true,
            ..silent
        };
        // TLS receives what UDP does not.
        assert_eq!(selector.step(at(14_100), both), switch_to(Transport::Tls));
        assert_eq!(
            steps(&mut selector, 14_200, 44_100, open),
            [(44_000, switch_to(Transport::Udp))]
        );
        // UDP still fails: back to TLS, and for longer.
        assert_eq!(
            steps(&mut selector, 44_100, 48_200, both),
            [(48_100, switch_to(Transport::Tls))]
        );
        assert_eq!(
            steps(&mut selector, 48_200, 113_200, open),
            [(108_100, switch_to(Transport::Udp)), (113_100, CLOSE)]
        );
    }

    #[test]
    fn a_connection_on_which_nothing_is_received_is_closed_and_dialed_again() {
        let mut selector = TransportSelector::new(at(0));
        steps(&mut selector, 0, 2000, NO_PATH);
        let open = TransportState {
            tls: true,
            silent: true,
            ..NO_PATH
        };
        assert_eq!(
            steps(&mut selector, 2000, 3300, open),
            [(2000, switch_to(Transport::Tls)), (3200, CLOSE)]
        );
        selector.closed(at(3300), 400);
        assert_eq!(
            selector.step(at(3300), NO_PATH),
            TransportDecision::default()
        );
        assert_eq!(steps(&mut selector, 3400, 3500, NO_PATH), [(3400, DIAL)]);
        // It fails: pauses follow.
        selector.failed(at(3400), 0);
        assert_eq!(steps(&mut selector, 3500, 4500, NO_PATH), [(4400, DIAL)]);
        // Another address: tried at once.
        selector.failed(at(4400), 999);
        selector.underlay_changed(at(4500));
        assert_eq!(steps(&mut selector, 4500, 4600, NO_PATH), [(4500, DIAL)]);
    }

    #[test]
    fn a_peer_that_was_away_comes_back_by_udp() {
        let mut selector = TransportSelector::new(at(0));
        steps(&mut selector, 0, 10_000, UDP);
        let silent = TransportState {
            silent: true,
            ..UDP
        };
        assert_eq!(
            steps(&mut selector, 10_000, 14_100, silent),
            [(14_000, DIAL)]
        );
        selector.failed(at(14_100), 0);
        assert_eq!(steps(&mut selector, 14_100, 60_000, UDP), []);
        assert_eq!(selector.next_deadline(), None);
        // An attempt that succeeded nevertheless is closed.
        let both = TransportState { tls: true, ..UDP };
        assert_eq!(
            steps(&mut selector, 60_000, 60_100, both),
            [(60_000, CLOSE)]
        );
    }

    #[test]
    fn a_second_connection_is_dialed_during_a_stall_and_replaces_the_first() {
        for random in [0, 500, 999] {
            let mut selector = over_tls();
            assert_eq!(steps(&mut selector, 2000, 60_000, TLS), []);
            selector.stalled(at(60_000), random);
            let begun = (60_000..60_100).find(|ms| selector.step(at(*ms), STALLED) == DIAL);
            let begun = begun.expect("dialed");
            assert!(begun <= 60_050, "{begun}");
            // The deadline is early enough for it.
            if begun > 60_000 {
                let mut other = over_tls();
                other.stalled(at(60_000), random);
                other.step(at(60_000), STALLED);
                let deadline = other.next_deadline().expect("one");
                assert!(deadline <= at(begun), "{random}");
            }
            assert_eq!(
                steps(&mut selector, begun + 1, begun + 300, dialing(STALLED)),
                []
            );
            // It replaces the stalled one, and nothing is received on it yet.
            selector.established();
            let unheard = TransportState {
                silent: true,
                ..TLS
            };
            assert_eq!(steps(&mut selector, begun + 300, begun + 1300, unheard), []);
            assert_eq!(steps(&mut selector, begun + 1300, 90_000, TLS), []);
            // The next one, as soon.
            selector.stalled(at(90_000), 0);
            assert_eq!(selector.step(at(90_000), STALLED), DIAL);
        }
    }

    #[test]
    fn an_attempt_that_was_not_needed_is_given_up_and_the_next_ones_back_off() {
        let mut selector = over_tls();
        let (mut now, mut dialed) = (10_000, Vec::new());
        // It stalls for half of each second, and resumes before another is established.
        while now < 200_000 {
            selector.stalled(at(now), 0);
            for (ms, decision) in steps(&mut selector, now, now + 500, STALLED) {
                assert_eq!(decision, DIAL);
                dialed.push(ms);
                let heard = selector.step(at(ms), dialing(TLS));
                assert_eq!(heard, GIVE_UP);
            }
            assert_eq!(steps(&mut selector, now + 500, now + 1000, TLS), []);
            now += 1000;
        }
        let pauses: Vec<u64> = dialed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..6], [1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 30_000));
        // Quiet for a while: the pause is the first again.
        assert_eq!(steps(&mut selector, now, now + 60_000, TLS), []);
        now += 60_000;
        for expected in [now, now + 1000] {
            selector.stalled(at(expected), 0);
            assert_eq!(selector.step(at(expected), STALLED), DIAL);
            assert_eq!(selector.step(at(expected), dialing(TLS)), GIVE_UP);
        }
        // Another address: at once.
        selector.underlay_changed(at(now + 1100));
        selector.stalled(at(now + 1100), 0);
        assert_eq!(selector.step(at(now + 1100), STALLED), DIAL);
    }

    #[test]
    fn a_stalled_connection_is_kept_until_the_second_attempt_has_failed() {
        let mut selector = over_tls();
        selector.stalled(at(10_000), 0);
        assert_eq!(selector.step(at(10_000), STALLED), DIAL);
        let silent = TransportState {
            silent: true,
            ..STALLED
        };
        assert_eq!(
            steps(&mut selector, 11_000, 15_000, dialing(silent)),
            [],
            "it is being dialed"
        );
        selector.failed(at(15_000), 0);
        assert_eq!(selector.step(at(15_000), silent), CLOSE);
        selector.closed(at(15_000), 999);
        assert_eq!(
            steps(&mut selector, 15_000, 15_400, NO_PATH),
            [(15_300, DIAL)]
        );
        // A connection that is lost meanwhile leaves the attempt as it is.
        let mut selector = over_tls();
        selector.stalled(at(10_000), 0);
        assert_eq!(selector.step(at(10_000), STALLED), DIAL);
        selector.closed(at(10_100), 0);
        assert_eq!(steps(&mut selector, 10_100, 11_000, dialing(NO_PATH)), []);
        selector.established();
        assert_eq!(selector.step(at(11_000), TLS), switch_to(Transport::Tls));
    }

    #[test]
    fn nothing_is_dialed_for_a_stalled_connection_while_udp_works() {
        let mut selector = over_tls();
        let both = TransportState { udp: true, ..TLS };
        assert_eq!(selector.step(at(3000), both), switch_to(Transport::Udp));
        selector.stalled(at(3500), 0);
        let stalled = TransportState {
            udp: true,
            ..STALLED
        };
        assert_eq!(steps(&mut selector, 3500, 8100, stalled), [(8000, CLOSE)]);
    }
}
