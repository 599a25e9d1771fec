use proptest::{collection::vec, prelude::*};

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An end and a way to another one that answers.
struct Run {
    pulse: LivenessProbe,
    now: u64,
    /// When answers arrive.
    under_way: VecDeque<u64>,
    asked: Vec<u64>,
    silent: Vec<u64>,
    heard: Vec<u64>,
    /// When the last answer came.
    answered: u64,
}

impl Run {
    fn new() -> Self {
        Self {
            pulse: LivenessProbe::new(ms(0)),
            now: 0,
            under_way: VecDeque::new(),
            asked: Vec::new(),
            silent: Vec::new(),
            heard: Vec::new(),
            answered: 0,
        }
    }

    /// To a time; `takes`: how long the answer to a question of this time takes, if it comes.
    fn to(&mut self, until: u64, takes: impl Fn(u64) -> Option<u64>) {
        while self.now < until {
            let now = ms(self.now);
            while self.under_way.front().is_some_and(|at| *at <= self.now) {
                self.under_way.pop_front();
                if self.pulse.received(now) {
                    self.heard.push(self.now);
                }
                self.pulse.answered(now);
                self.answered = self.now;
            }
            let due = self.pulse.next_deadline() <= now;
            let mut steps = 0;
            while let Some(what) = self.pulse.step(now) {
                assert!(due, "{what:?} at {now:?} is of no deadline");
                match what {
                    Due::Ask => {
                        self.asked.push(self.now);
                        // In their turn, as TCP brings them.
                        let last = self.under_way.back().copied().unwrap_or(0);
                        let arrives = takes(self.now).map(|takes| (self.now + takes).max(last));
                        self.under_way.extend(arrives);
                    }
                    Due::Silent => self.silent.push(self.now),
                }
                steps += 1;
                assert!(steps <= 2, "it is done at some time");
            }
            assert!(self.pulse.waiting() <= MAX_UNANSWERED);
            assert!(self.pulse.next_deadline() > now);
            self.now += 1;
        }
    }
}

#[test]
fn a_peer_that_answers_is_asked_every_80_ms() {
    for trip in [0, 1, 30, 79, 80, 81, 200, 500, 1500] {
        let mut run = Run::new();
        run.to(60_000, |_| Some(trip));
        assert_eq!((run.silent.len(), run.heard.len()), (0, 0), "{trip} ms");
        let expected = 60_000 / (trip / MAX_UNANSWERED as u64).max(80);
        let asked = run.asked.len() as u64;
        assert!(
            asked <= 750 && asked * 10 >= expected * 8,
            "{trip}: {asked}"
        );
    }
}

#[test]
fn a_lost_peer_is_silent_within_320_ms_and_can_recover() {
    for cut in 5000..5200 {
        let mut run = Run::new();
        run.to(20_000, |at| match at {
            _ if at < cut => Some(5),
            ..15_000 => None,
            _ => Some(5),
        });
        let silent = *run.silent.first().expect("noticed");
        assert!((cut + 150..=cut + 330).contains(&silent), "{cut}: {silent}");
        assert_eq!(run.silent.len(), 1, "said once");
        // The questions were lost, as was asked; TCP would have brought them.
        assert!(run.heard.is_empty());
        assert_eq!(run.pulse.waiting(), MAX_UNANSWERED);
        assert!(run.pulse.received(ms(20_000)));
        assert!(!run.pulse.received(ms(20_001)));
    }
}

#[test]
fn the_timeout_follows_the_round_trip() {
    for (trip, patience) in [(20, 240), (150, 240), (200, 280), (900, 980), (1990, 2000)] {
        let mut run = Run::new();
        run.to(60_000, |_| Some(trip));
        assert!(run.silent.is_empty());
        run.under_way.clear();
        run.to(65_000, |_| None);
        let silent = run.silent[0] - run.answered;
        assert!(
            (patience..=patience + 85).contains(&silent),
            "{trip} ms: {silent}"
        );
    }
}

#[test]
fn a_queue_that_fills_is_not_silence() {
    let mut run = Run::new();
    run.to(5000, |_| Some(10));
    // Half of what goes in comes out: in two seconds it is a second long.
    run.to(7000, |at| Some(10 + (at - 5000) / 2));
    run.to(20_000, |_| Some(1000));
    run.to(40_000, |_| Some(10));
    assert_eq!(run.silent, []);
}

#[test]
fn any_received_byte_counts_as_life() {
    let mut run = Run::new();
    run.to(1000, |_| Some(10));
    for _ in 0..100 {
        let now = run.now + 100;
        run.to(now, |_| None);
        assert!(!run.pulse.received(ms(now)));
    }
    assert_eq!(run.silent, []);
    run.to(12_000, |_| None);
    assert_eq!(run.silent, [11_000 + 240]);
}

#[test]
fn a_question_in_the_send_buffer_does_not_count() {
    let mut run = Run::new();
    run.to(1000, |_| Some(10));
    for _ in 0..100 {
        let now = run.now + 80;
        run.to(now, |_| None);
        run.pulse.send_progress(ms(now));
    }
    assert_eq!(run.silent, []);
    run.to(10_000, |_| None);
    assert_eq!(run.silent, [9000 + 240]);
    // It is not heard by that.
    run.pulse.send_progress(ms(10_000));
    run.to(11_000, |_| None);
    assert_eq!(run.silent.len(), 1);
    assert!(run.pulse.received(ms(11_000)));
}

#[test]
fn the_first_question_has_two_seconds() {
    let mut run = Run::new();
    run.to(5000, |_| None);
    assert_eq!(run.asked, [0, 80, 160]);
    assert_eq!(run.silent, [2000]);
}

#[test]
fn answers_without_a_question_are_ignored() {
    let mut pulse = LivenessProbe::new(ms(0));
    for n in 0..1000 {
        pulse.answered(ms(n));
    }
    assert_eq!(pulse.step(ms(1000)), Some(Due::Ask));
    assert_eq!(pulse.step(ms(1000)), None);
    assert_eq!(pulse.next_deadline(), ms(1080));
}

proptest! {
    /// Whatever happens: patience is kept within its bounds, and silence is said and taken back by
    /// turns.
    #[test]
    fn any_order_of_things(acts in vec((0u8..5, 0u64..700), 0..300)) {
        let (mut pulse, mut now) = (LivenessProbe::new(ms(0)), ms(0));
        let mut silent = false;
        for (act, pause) in acts {
            now += ms(pause);
            match act {
                0 => pulse.answered(now),
                1 => pulse.send_progress(now),
                2 => {
                    prop_assert_eq!(pulse.received(now), silent);
                    silent = false;
                }
                _ => {
                    for _ in 0..3 {
                        match pulse.step(now) {
                            Some(Due::Silent) => {
                                prop_assert!(!silent);
                                silent = true;
                            }
                            Some(Due::Ask) | None => {}
                        }
                    }
                    prop_assert_eq!(pulse.step(now), None);
                    prop_assert!(pulse.next_deadline() > now);
                }
            }
            prop_assert!(pulse.waiting() <= MAX_UNANSWERED);
            prop_assert!((MIN_REPLY_TIMEOUT..=MAX_REPLY_TIMEOUT).contains(&pulse.reply_timeout()));
        }
    }
}
