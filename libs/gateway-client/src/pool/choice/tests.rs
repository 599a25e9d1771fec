use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::pool::Candidate;

const START: Duration = Duration::from_secs(1000);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn candidate(name: &str, load: u16, tier: usize) -> Candidate {
    Candidate {
        name: name.to_owned(),
        load,
        tier,
    }
}

fn list_of(candidates: &[(&str, u16, usize)]) -> List {
    let candidates = candidates.iter().map(|&(n, l, t)| candidate(n, l, t));
    List::received(candidates.collect())
}

fn chooser(candidates: &[(&str, u16, usize)]) -> Chooser {
    Chooser::new(Settings::default(), &list_of(candidates), 7, START)
}

const WELL: Report = Report::Answered {
    load: None,
    draining: false,
};
const DRAINING: Report = Report::Answered {
    load: None,
    draining: true,
};
const SILENT: Report = Report::Failed(Failure::Silent);

fn many(chooser: &mut Chooser, name: &str, report: Report, times: u32, now: Duration) {
    for _ in 0..times {
        chooser.report(name, report, now);
    }
}

#[track_caller]
fn used(chooser: &mut Chooser, now: Duration) -> String {
    match chooser.choose(now) {
        Choice::Use(name) => name,
        Choice::NoService(why) => panic!("no service: {why}"),
    }
}

#[track_caller]
fn no_service(chooser: &mut Chooser, now: Duration) -> NoService {
    match chooser.choose(now) {
        Choice::Use(name) => panic!("{name} is used"),
        Choice::NoService(why) => why,
    }
}

#[test]
fn the_least_loaded_gateway_is_chosen_and_kept() {
    let mut c = chooser(&[("a", 500, 0), ("b", 200, 0), ("c", 350, 0)]);
    assert_eq!(used(&mut c, START), "b");
    c.report("b", WELL, START);
    // Another has less load now; no end moves for that.
    c.update(&list_of(&[("a", 0, 0), ("b", 900, 0)]), START);
    for s in 0..1000 {
        assert_eq!(used(&mut c, START + seconds(s)), "b");
    }
}

#[test]
fn similar_loads_count_as_equal() {
    let mut count = BTreeMap::new();
    for seed in 0..1000 {
        let list = list_of(&[("a", 100, 0), ("b", 200, 0), ("c", 201, 0)]);
        let mut c = Chooser::new(Settings::default(), &list, seed, START);
        *count.entry(used(&mut c, START)).or_insert(0) += 1;
    }
    assert!(count["a"] > 400 && count["b"] > 400, "{count:?}");
    assert!(!count.contains_key("c"));
}

#[test]
fn a_gateway_is_left_after_failures_in_a_row() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    c.report("a", WELL, START);
    for _ in 0..5 {
        many(&mut c, "a", SILENT, 2, START);
        assert_eq!(used(&mut c, START), "a");
        c.report("a", WELL, START);
    }
    many(&mut c, "a", SILENT, 3, START);
    assert_eq!(used(&mut c, START), "b");
}

#[test]
fn a_gateway_that_never_answered_is_left_after_one_failure() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    c.report("a", SILENT, START);
    assert_eq!(used(&mut c, START), "b");
    // Where there is no other of its tier, it is tried until it is down.
    let mut c = chooser(&[("a", 0, 0), ("b", 0, 1)]);
    many(&mut c, "a", SILENT, 2, START);
    assert_eq!(used(&mut c, START), "a");
    c.report("a", SILENT, START);
    assert_eq!(used(&mut c, START), "b");
}

#[test]
fn a_recovered_gateway_takes_no_end_of_another() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    many(&mut c, "a", SILENT, 3, START);
    assert_eq!(used(&mut c, START), "b");
    c.report("b", WELL, START);
    many(&mut c, "a", WELL, 10, START);
    for s in 0..5000 {
        assert_eq!(used(&mut c, START + seconds(s)), "b");
    }
}

#[test]
fn one_answer_is_not_enough_while_another_gateway_works() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    many(&mut c, "a", SILENT, 3, START);
    c.report("a", WELL, START);
    assert_eq!(used(&mut c, START), "b");
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    many(&mut c, "a", SILENT, 3, START);
    many(&mut c, "b", SILENT, 3, START);
    no_service(&mut c, START);
    c.report("b", WELL, START);
    assert_eq!(used(&mut c, START), "b");
}

#[test]
fn a_higher_tier_is_used_only_while_the_lower_is_down() {
    let mut c = chooser(&[("a", 900, 0), ("b", 500, 1), ("c", 0, 2)]);
    assert_eq!(used(&mut c, START), "a");
    many(&mut c, "a", SILENT, 3, START);
    assert_eq!(used(&mut c, START), "b");
    many(&mut c, "b", SILENT, 3, START);
    assert_eq!(used(&mut c, START), "c");
    c.report("c", WELL, START);
    many(&mut c, "a", WELL, 2, START);
    let settings = Settings::default();
    let mut now = START;
    while used(&mut c, now) == "c" {
        assert!(now < START + settings.home_after + settings.home_spread);
        now = now.max(START + seconds(1)) + seconds(1);
    }
    assert!(now > START + settings.home_after);
    assert_eq!(used(&mut c, now), "a");
}

#[test]
fn a_draining_gateway_is_left_unless_it_is_the_only_one() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    c.report("a", WELL, START);
    c.report("a", DRAINING, START);
    c.report("a", DRAINING, START + ms(500));
    assert_eq!(used(&mut c, START + seconds(2)), "b");
    // It accepts no new end, whether there is another gateway or not.
    many(&mut c, "b", SILENT, 3, START + seconds(3));
    let why = no_service(&mut c, START + seconds(3)).to_string();
    assert_eq!(
        why,
        "no gateway works: a is draining, b is silent; each is tried again automatically"
    );
    c.report("a", WELL, START + seconds(4));
    assert_eq!(used(&mut c, START + seconds(4)), "a");

    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    many(&mut c, "b", SILENT, 3, START);
    c.report("a", DRAINING, START);
    assert_eq!(used(&mut c, START + seconds(60)), "a");
    many(&mut c, "a", SILENT, 3, START + seconds(60));
    no_service(&mut c, START + seconds(60));
}

#[test]
fn no_service_has_reasons() {
    let mut c = chooser(&[]);
    assert_eq!(
        no_service(&mut c, START).to_string(),
        "this tenant may use no gateway: give it a pool with a gateway, or allow gateways without \
         a pool"
    );
    assert_eq!(c.next_deadline(), None);
    let mut c = chooser(&[("b", 0, 1), ("a", 0, 0), ("c", 0, 0)]);
    many(&mut c, "a", Report::Failed(Failure::Unreachable), 3, START);
    many(&mut c, "b", Report::Failed(Failure::Refused), 3, START);
    many(&mut c, "c", SILENT, 3, START);
    let why = no_service(&mut c, START);
    assert_eq!(
        why.to_string(),
        "no gateway works: a is unreachable, c is silent, b refuses us; each is tried again \
         automatically"
    );
    let NoService::AllDown(down) = why else {
        panic!("{why:?}")
    };
    let settings = Settings::default();
    for down in down {
        assert!(down.next >= START + settings.first_pause);
        assert!(down.next <= START + settings.first_pause * 2);
    }
}

#[test]
fn removed_gateways_are_left_and_unknown_ones_ignored() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    assert_eq!(used(&mut c, START), "a");
    c.report("a", WELL, START);
    many(&mut c, "stranger", WELL, 9, START);
    c.update(&list_of(&[("b", 500, 0)]), START);
    assert_eq!(used(&mut c, START), "b");
    c.update(&list_of(&[]), START);
    assert_eq!(no_service(&mut c, START), NoService::Nothing);
}

#[test]
fn a_new_list_keeps_the_state() {
    let mut c = chooser(&[("a", 0, 0), ("b", 500, 0)]);
    many(&mut c, "a", SILENT, 3, START);
    c.update(&list_of(&[("a", 0, 0), ("b", 500, 0)]), START);
    assert_eq!(used(&mut c, START), "b");
}

#[test]
fn pauses_grow_to_their_bound_and_differ() {
    let settings = Settings::default();
    let mut first = Vec::new();
    for seed in 0..200 {
        let mut c = Chooser::new(settings, &list_of(&[("a", 0, 0)]), seed, START);
        many(&mut c, "a", SILENT, 3, START);
        let mut now = START;
        let mut wanted = settings.first_pause;
        for trial in 0..12 {
            let next = c.next_deadline().expect("a trial");
            let pause = next - now;
            assert!(pause >= wanted && pause <= wanted * 2, "{trial}: {pause:?}");
            if trial == 0 {
                first.push(pause);
            }
            now = next;
            assert_eq!(c.due(now), ["a"]);
            assert_eq!(c.due(now), Vec::<String>::new());
            c.report("a", SILENT, now);
            wanted = (wanted * 2).min(settings.max_pause);
        }
    }
    first.sort_unstable();
    first.dedup();
    assert!(first.len() > 190, "they differ");
    // One that answered once is asked again soon, although the pause had grown.
    let mut c = chooser(&[("a", 0, 0), ("b", 0, 0)]);
    many(&mut c, "a", SILENT, 3, START);
    for s in 1..100 {
        c.due(START + seconds(s));
        c.report("a", SILENT, START + seconds(s));
    }
    let now = START + seconds(100);
    c.report("a", WELL, now);
    c.report("b", WELL, now);
    assert_eq!(c.due(now + settings.first_pause * 2), ["a"]);
}

/// Ends that all see one world of gateways.
struct World {
    ends: Vec<(Chooser, Option<String>)>,
    alive: BTreeMap<&'static str, bool>,
    moves: u64,
}

impl World {
    const STEP: Duration = Duration::from_millis(100);

    fn new(ends: u64, gateways: &[&'static str]) -> Self {
        let list: Vec<_> = gateways.iter().map(|&g| (g, 0, 0)).collect();
        let ends = (0..ends).map(|seed| {
            let seed = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
            let chooser = Chooser::new(Settings::default(), &list_of(&list), seed, START);
            (chooser, None)
        });
        Self {
            ends: ends.collect(),
            alive: gateways.iter().map(|&g| (g, true)).collect(),
            moves: 0,
        }
    }

    fn uses(&self, name: &str) -> u64 {
        let here = self.ends.iter().filter(|(_, u)| u.as_deref() == Some(name));
        here.count() as u64
    }

    /// A tenth of a second: everybody hears from the gateway in use and those that were due; every
    /// five seconds everybody hears of loads.
    fn step(&mut self, now: Duration) {
        let total = self.ends.len() as u64;
        if (now - START).as_millis().is_multiple_of(5000) {
            let list: Vec<_> = self
                .alive
                .keys()
                .map(|&name| (name, (self.uses(name) * 1000 / total) as u16, 0))
                .collect();
            for (chooser, _) in &mut self.ends {
                chooser.update(&list_of(&list), now);
            }
        }
        for (chooser, using) in &mut self.ends {
            let mut asked = chooser.due(now);
            asked.extend(using.clone());
            for name in asked {
                let report = if self.alive[name.as_str()] {
                    WELL
                } else {
                    SILENT
                };
                chooser.report(&name, report, now);
            }
            let next = match chooser.choose(now) {
                Choice::Use(name) => Some(name),
                Choice::NoService(_) => None,
            };
            if *using != next {
                self.moves += 1;
                *using = next;
            }
        }
    }

    fn run(&mut self, now: &mut Duration, length: Duration) {
        let end = *now + length;
        while *now < end {
            self.step(*now);
            *now += Self::STEP;
        }
    }
}

#[test]
fn ends_spread_after_a_loss_and_return_slowly() {
    let mut world = World::new(600, &["a", "b", "c"]);
    let mut now = START;
    world.run(&mut now, seconds(60));
    for name in ["a", "b", "c"] {
        assert!(
            (150..250).contains(&world.uses(name)),
            "{}",
            world.uses(name)
        );
    }
    assert_eq!(world.moves, 600, "each chose once");

    let lost = world.uses("a");
    world.alive.insert("a", false);
    world.run(&mut now, ms(500));
    assert_eq!(world.uses("a"), 0, "left within half a second");
    assert_eq!(world.moves, 600 + lost, "no other end moved");
    for name in ["b", "c"] {
        assert!(
            (240..360).contains(&world.uses(name)),
            "{}",
            world.uses(name)
        );
    }
    world.run(&mut now, seconds(60));

    world.alive.insert("a", true);
    world.run(&mut now, seconds(5));
    assert_eq!(world.uses("a"), 0, "no end needed it");
    // While it settles, another is lost: it gets a part of those, not all, although it is empty.
    world.alive.insert("b", false);
    world.run(&mut now, seconds(1));
    let part = world.uses("a");
    assert!((10..=150).contains(&part), "{part}");
    // Later an empty one gets what the others' loads say it should.
    world.run(&mut now, seconds(60));
    let uses = world.uses("c");
    world.alive.insert("c", false);
    world.run(&mut now, seconds(1));
    assert_eq!(world.uses("a"), part + uses);
}

#[test]
fn after_a_total_loss_ends_return_spread_over_time() {
    let mut world = World::new(600, &["a", "b"]);
    let mut now = START;
    world.run(&mut now, seconds(10));
    world.alive = BTreeMap::from([("a", false), ("b", false)]);
    world.run(&mut now, seconds(60));
    assert_eq!((world.uses("a"), world.uses("b")), (0, 0));
    world.alive.insert("a", true);
    let mut before = 0;
    let begun = now;
    while world.uses("a") < 600 {
        world.run(&mut now, World::STEP);
        let came = world.uses("a") - before;
        assert!(came <= 60, "{came} of 600 in a tenth of a second");
        before += came;
        assert!(now < begun + seconds(9), "everybody is back");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Wait(u64),
    Deadline,
    Report(usize, Report),
    /// Of gateway, down at once.
    Lose(usize),
    List(Vec<(usize, u16, usize)>),
}

fn acts() -> impl Strategy<Value = Act> {
    let report = prop_oneof![
        (proptest::option::of(0u16..1200), any::<bool>())
            .prop_map(|(load, draining)| Report::Answered { load, draining }),
        Just(WELL),
        prop_oneof![
            Just(Failure::Silent),
            Just(Failure::Unreachable),
            Just(Failure::Refused)
        ]
        .prop_map(Report::Failed),
    ];
    prop_oneof![
        2 => (0u64..700_000).prop_map(Act::Wait),
        2 => (0u64..900).prop_map(Act::Wait),
        3 => Just(Act::Deadline),
        6 => (0usize..5, report).prop_map(|(n, report)| Act::Report(n, report)),
        2 => (0usize..5).prop_map(Act::Lose),
        1 => vec((0usize..5, 0u16..1200, 0usize..3), 0..5).prop_map(Act::List),
    ]
}

/// A gateway as the reference model of the choice sees it.
#[derive(Clone, Copy, Default)]
struct Known {
    tier: usize,
    failures: u32,
    answers: u32,
    down: bool,
    tried: bool,
    draining: bool,
}

#[test]
fn connections_try_the_least_loaded_first_and_what_failed_last() {
    let all = [("a", 500, 0), ("b", 200, 0), ("c", 0, 1), ("d", 900, 0)];
    let mut c = chooser(&all);
    assert_eq!(c.order(None, &[], START), ["b", "a", "d", "c"]);
    assert_eq!(c.order(Some("b"), &[], START), ["a", "d", "c", "b"]);
    c.report("b", SILENT, START);
    assert_eq!(c.order(None, &[], START), ["a", "d", "c", "b"]);
    c.report("a", SILENT, START);
    c.report("a", WELL, START);
    c.report("d", DRAINING, START);
    assert_eq!(c.order(None, &[], START), ["a", "c", "b", "d"]);
    // A failure of a minute ago says nothing about now.
    assert_eq!(c.order(None, &["b".to_owned()], START)[0], "b", "a trial");
    assert_eq!(
        c.order(None, &[], START + seconds(60)),
        ["b", "a", "c", "d"]
    );
    many(&mut c, "b", SILENT, 3, START + seconds(60));
    assert_eq!(c.order(None, &[], START + seconds(60))[3], "d");
}

#[test]
fn a_reported_load_outlives_the_list() {
    let mut c = chooser(&[("a", 500, 0), ("b", 0, 0)]);
    let report = |load| Report::Answered {
        load: Some(load),
        draining: false,
    };
    c.report("a", report(100), START);
    c.report("b", report(900), START);
    assert_eq!(used(&mut c, START), "a");
    c.update(&list_of(&[("a", 500, 0), ("b", 0, 0)]), START);
    assert_eq!(c.reported_load("b"), Some(900));
    let mut other = chooser(&[("a", 500, 0), ("b", 0, 0), ("c", 300, 0)]);
    assert_eq!(other.order(None, &[], START), ["b", "c", "a"]);
    other.adopt_loads(&c);
    assert_eq!(other.order(None, &[], START), ["a", "c", "b"]);
    assert_eq!(other.reported_load("c"), None);
}

proptest! {
    #[test]
    fn a_choice_follows_the_rules(
        list in vec((0usize..5, 0u16..1200, 0usize..3), 0..5),
        acts in vec(acts(), 0..60),
        seed: u64,
    ) {
        const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
        let settings = Settings::default();
        let made = |list: &[(usize, u16, usize)]| {
            list_of(&list.iter().map(|&(n, l, t)| (NAMES[n], l, t)).collect::<Vec<_>>())
        };
        let mut now = START;
        let mut chooser = Chooser::new(settings, &made(&list), seed, now);
        let mut twin = Chooser::new(settings, &made(&list), seed, now);
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let learn = |known: &mut BTreeMap<String, Known>, list: &List| {
            *known = list.candidates().iter().map(|c| {
                let before = known.get(&c.name).copied().unwrap_or_default();
                (c.name.clone(), Known { tier: c.tier, ..before })
            }).collect();
        };
        learn(&mut known, &made(&list));
        let mut using: Option<String> = None;
        for act in acts {
            match &act {
                Act::Wait(millis) => now += ms(*millis),
                Act::Deadline => {
                    if let Some(next) = chooser.next_deadline() {
                        now = now.max(next);
                    }
                }
                Act::Report(n, report) => {
                    for c in [&mut chooser, &mut twin] {
                        c.report(NAMES[*n], *report, now);
                    }
                    let alone = !known.values().any(|k| !k.down && !k.draining);
                    if let Some(k) = known.get_mut(NAMES[*n]) {
                        match report {
                            Report::Answered { draining, .. } => {
                                k.tried = true;
                                k.draining = *draining;
                                k.failures = 0;
                                k.answers += 1;
                                k.down &= k.answers < settings.up_after && !alone;
                            }
                            Report::Failed(_) => {
                                k.answers = 0;
                                k.failures += 1;
                                if k.failures >= settings.down_after {
                                    k.down = true;
                                    k.draining = false;
                                }
                            }
                        }
                    }
                }
                Act::Lose(n) => {
                    for c in [&mut chooser, &mut twin] {
                        many(c, NAMES[*n], SILENT, 3, now);
                    }
                    if let Some(k) = known.get_mut(NAMES[*n]) {
                        *k = Known {
                            tier: k.tier,
                            failures: 3,
                            down: true,
                            tried: k.tried,
                            ..Known::default()
                        };
                    }
                }
                Act::List(list) => {
                    for c in [&mut chooser, &mut twin] {
                        c.update(&made(list), now);
                    }
                    learn(&mut known, &made(list));
                }
            }
            using = using.filter(|name| known.contains_key(name));
            let lowest = known.values().filter(|k| !k.down && !k.draining).map(|k| k.tier).min();
            let choice = chooser.choose(now);
            prop_assert_eq!(&choice, &twin.choose(now), "a seed replays");
            prop_assert_eq!(&choice, &chooser.choose(now), "asking again changes nothing");
            twin.choose(now);
            match &choice {
                Choice::NoService(NoService::Nothing) => prop_assert!(known.is_empty()),
                Choice::NoService(NoService::AllDown(down)) => {
                    prop_assert_eq!(lowest, None);
                    let mut names: Vec<_> = down.iter().map(|d| d.name.clone()).collect();
                    names.sort();
                    prop_assert_eq!(names, known.keys().cloned().collect::<Vec<_>>());
                    let is_down = using.as_ref().is_none_or(|u| known[u].down);
                    prop_assert!(is_down, "one in use drained");
                }
                Choice::Use(name) => {
                    let k = known[name];
                    prop_assert!(!k.down, "{name} is down");
                    let kept = using.as_ref() == Some(name);
                    if !kept {
                        prop_assert!(!k.draining, "{name} drains");
                        prop_assert_eq!(Some(k.tier), lowest, "a lower tier works");
                        if let Some(old) = using.as_ref().map(|u| known[u]) {
                            let works = !old.down && (old.tried || old.failures == 0);
                            let home = k.tier < old.tier && (now - START) > settings.home_after;
                            prop_assert!(!works || old.draining || home, "left one that works");
                        }
                    }
                }
            }
            using = match choice {
                Choice::Use(name) => Some(name),
                Choice::NoService(_) => None,
            };
            let due = chooser.due(now);
            prop_assert_eq!(&due, &twin.due(now));
            for name in &due {
                prop_assert!(known.contains_key(name));
                prop_assert!(using.as_ref() != Some(name), "the one in use is not tried");
            }
            if let Some(next) = chooser.next_deadline() {
                prop_assert!(next > now, "nothing is due any more");
            } else {
                prop_assert!(known.keys().all(|name| using.as_ref() == Some(name)), "everybody \
                    else is tried");
            }
        }
    }

    #[test]
    fn an_order_has_every_gateway_once_and_failed_ones_behind(
        all in vec((0u16..1000, 0usize..3, any::<bool>()), 0..10),
        last in 0usize..10,
        seed: u64,
    ) {
        let candidates = all.iter().enumerate().map(|(n, (load, tier, _))| {
            candidate(&n.to_string(), *load, *tier)
        });
        let list = List::received(candidates.collect());
        let mut c = Chooser::new(Settings::default(), &list, seed, START);
        for (n, (_, _, fails)) in all.iter().enumerate() {
            if *fails {
                c.report(&n.to_string(), SILENT, START);
            }
        }
        let last = last.to_string();
        let order = c.order(Some(&last), &[], START);
        let mut sorted: Vec<usize> = order.iter().map(|n| n.parse().expect("a number")).collect();
        let rank = |n: &usize| (n.to_string() == last, all[*n].2, all[*n].1);
        prop_assert!(sorted.is_sorted_by_key(rank));
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..all.len()));
    }
}
