//! Our tunnel against independent WireGuards over a real wire: who starts, with and without a
//! shared key, over both families; strangers, load, replays, new keys, and an end that starts
//! again.
//!
//! The stand is drawn in `src/wireguard.rs`. Each test runs against each implementation.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::wireguard::{
    Implementation, OUR_HOST, Setup, Stand, THEIR_HOST, Underlay, inside,
};
use tunnel::{Backoff, DownReason, Event, LoadLimits, TimerConfig};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// A handshake and an echo; WireGuard's pause between attempts is 5 s, and one may be lost to a
/// machine that is busy.
const SOON: Duration = Duration::from_secs(8);
const PSK: [u8; 32] = [0x5a; 32];
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

fn ours() -> [IpAddr; 2] {
    inside(OUR_HOST)
}

fn theirs() -> [IpAddr; 2] {
    inside(THEIR_HOST)
}

/// TimerConfig that try again soon, for tests that wait for attempts to fail.
fn eager() -> TimerConfig {
    TimerConfig {
        backoff: Backoff {
            first: 300 * MILLISECOND,
            max: 300 * MILLISECOND,
            spread_percent: 10,
        },
        ..TimerConfig::wireguard()
    }
}

/// 200 packets each way of each family, of many sizes up to WireGuard's MTU, and each is answered
/// once.
fn exchange(stand: &Stand) {
    for family in 0..2 {
        let (ours, theirs) = (ours()[family], theirs()[family]);
        let smallest = if ours.is_ipv4() { 28 } else { 48 };
        // Every residue modulo the padding at either end of the range.
        let sizes: Vec<_> = (smallest..smallest + 16)
            .chain([576, 1280])
            .chain(1403..=1420)
            .collect();
        let came = stand
            .ours
            .ping(theirs, 200, 2 * MILLISECOND, &sizes, 3 * SECOND);
        assert_eq!(came, 200, "answers to our pings of {theirs}");
        for len in [84, 1420] {
            let (came, said) = stand.theirs.ping(ours, 200, "0.002", len);
            assert_eq!(came, 200, "answers to their pings of {ours}:\n{said}");
        }
    }
    flawless(stand);
}

/// Nothing that came was refused.
fn flawless(stand: &Stand) {
    let stats = stand.ours.stats();
    let refused = stats.duplicates
        + stats.too_old
        + stats.forged
        + stats.no_session
        + stats.malformed
        + stats.invalid_content;
    assert_eq!(refused, 0, "{stats:?}");
    assert_eq!(stand.ours.strays(), 0, "answers that came twice");
    stand.ours.look(|state| {
        assert!(state.rejected.is_empty(), "{:?}", state.rejected);
        assert!(state.refused.is_empty(), "{:?}", state.refused);
    });
}

fn variants() -> impl Iterator<Item = (Underlay, Option<[u8; 32]>)> {
    Underlay::ALL
        .into_iter()
        .flat_map(|underlay| [(underlay, None), (underlay, Some(PSK))])
}

fn we_initiate(implementation: Implementation) {
    for (underlay, psk) in variants() {
        let setup = Setup {
            underlay,
            our_psk: psk,
            their_psk: psk,
            they_know_us: false,
            ..Setup::default()
        };
        let Some(stand) = Stand::raise(implementation, setup) else {
            return;
        };
        let took = stand.ours.reach(theirs()[0], SOON, SOON);
        println!(
            "{underlay:?}, shared key {}: up and answered after {took:?}",
            psk.is_some()
        );
        stand.ours.look(|state| {
            assert_eq!(state.received_of(INITIATION), 0, "they started nothing");
            assert_eq!(state.events.first(), Some(&Event::Up));
        });
        exchange(&stand);
        let status = stand.ours.status();
        assert_eq!(status.path, Some(underlay.theirs().into()));
        assert_eq!(status.down, None);
        let status = stand.theirs.status();
        assert_eq!(status.endpoint, underlay.ours().to_string());
        assert!(status.latest_handshake > 0, "{status:?}");
    }
}

fn they_initiate(implementation: Implementation) {
    for (underlay, psk) in variants() {
        let setup = Setup {
            underlay,
            our_psk: psk,
            their_psk: psk,
            we_know_them: false,
            ..Setup::default()
        };
        let Some(stand) = Stand::raise(implementation, setup) else {
            return;
        };
        let took = stand.theirs.reach(ours()[1], SOON);
        println!(
            "{underlay:?}, shared key {}: up and answered after {took:?}",
            psk.is_some()
        );
        stand.ours.look(|state| {
            assert_eq!(state.sent_of(INITIATION), 0, "we started nothing");
            assert_eq!(state.control().answered, state.received_of(INITIATION));
        });
        exchange(&stand);
        assert_eq!(stand.ours.status().path, Some(underlay.theirs().into()));
    }
}

fn a_wrong_shared_key_gives_no_session(implementation: Implementation) {
    for (our_psk, their_psk) in [
        (Some(PSK), Some([0xa5; 32])),
        (Some(PSK), None),
        (None, Some(PSK)),
    ] {
        for we_start in [true, false] {
            let setup = Setup {
                our_psk,
                their_psk,
                we_know_them: we_start,
                they_know_us: !we_start,
                timers: eager(),
                ..Setup::default()
            };
            let Some(stand) = Stand::raise(implementation, setup) else {
                return;
            };
            if we_start {
                // The shared key is mixed in with the response: it comes, and is not authentic.
                let _ = stand
                    .ours
                    .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND);
                stand.ours.wait("two refused responses", SOON, |state| {
                    state.control().authentication_failures >= 2
                });
                let down = stand.ours.status().down;
                assert!(
                    matches!(down, Some(DownReason::InvalidAnswers { .. })),
                    "{down:?}"
                );
            } else {
                // They get a response of ours, and are not to believe it.
                let (came, said) = stand.theirs.ping(ours()[0], 5, "0.1", 84);
                assert_eq!(came, 0, "{said}");
                stand.ours.wait("an answered initiation", SOON, |state| {
                    state.control().answered >= 1
                });
                let status = stand.theirs.status();
                assert_eq!(status.latest_handshake, 0, "{status:?}");
            }
            let status = stand.ours.status();
            assert_eq!((status.session_since, status.handshakes), (None, 0));
            stand.ours.look(|state| {
                assert_eq!(state.stats().opened, 0);
                assert_eq!(state.sent_of(DATA), 0);
                assert_eq!(state.answered, 0);
            });
        }
    }
}

fn an_unknown_key_gets_no_answer(implementation: Implementation) {
    // They are strangers to us.
    let setup = Setup {
        we_have_their_key: false,
        we_know_them: false,
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    let (came, said) = stand.theirs.ping(ours()[0], 5, "0.1", 84);
    assert_eq!(came, 0, "{said}");
    stand.ours.wait("a refused initiation", SOON, |state| {
        state.control().authentication_failures >= 1
    });
    stand.ours.look(|state| {
        assert!(state.sent.is_empty(), "silence: {:?}", state.sent);
    });
    assert_eq!(stand.theirs.status().received, 0);
    drop(stand);

    // We are strangers to them.
    let setup = Setup {
        they_have_our_key: false,
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    assert_eq!(
        stand
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND),
        0
    );
    stand.ours.wait("three attempts", SOON, |state| {
        state.sent_of(INITIATION) >= 3
    });
    let down = stand.ours.status().down;
    assert!(
        matches!(down, Some(DownReason::NoAnswer { .. })),
        "{down:?}"
    );
    stand.ours.look(|state| {
        assert!(state.received.is_empty(), "silence: {:?}", state.received);
    });
    drop(stand);

    // We have a wrong key for them: mac1 is not theirs.
    let setup = Setup {
        we_have_their_key: false,
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    assert_eq!(
        stand
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND),
        0
    );
    stand.ours.wait("three attempts", SOON, |state| {
        state.sent_of(INITIATION) >= 3
    });
    stand.ours.look(|state| {
        assert!(state.received.is_empty(), "silence: {:?}", state.received);
    });
}

fn under_load_a_cookie_lets_them_in(implementation: Implementation) {
    let setup = Setup {
        load: LoadLimits {
            cookie_threshold: 0,
            ..LoadLimits::default()
        },
        we_know_them: false,
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    let took = stand.theirs.reach(ours()[0], 2 * SOON);
    let (stats, initiations) = stand
        .ours
        .look(|state| (state.control(), state.received_of(INITIATION)));
    println!("they are in {took:?} after their first packet, by {initiations} initiations");
    assert!(stats.cookies_sent >= 1, "{stats:?}");
    assert!(stats.answered >= 1, "{stats:?}");
    // The one that was answered proved by mac2 that it received the cookie: nothing else gets in.
    assert_eq!(
        stats.answered + stats.cookies_sent,
        initiations,
        "{stats:?}"
    );
    drop(stand);

    // Our own initiation under our own load: their response is asked for a cookie too.
    let setup = Setup {
        load: LoadLimits {
            cookie_threshold: 0,
            ..LoadLimits::default()
        },
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    let took = stand.ours.reach(theirs()[0], 2 * SOON, 2 * SOON);
    let stats = stand.ours.look(|state| state.control());
    println!("we are in {took:?} after our first packet: {stats:?}");
    assert!(stats.cookies_sent >= 1, "{stats:?}");
}

fn a_replayed_datagram_is_refused_and_counted(implementation: Implementation) {
    for they_start in [true, false] {
        let Some(stand) = Stand::raise(implementation, Setup::default()) else {
            return;
        };
        if they_start {
            stand.theirs.reach(ours()[0], SOON);
        }
        let _ = stand.ours.reach(theirs()[0], SOON, SOON);
        let (message, data, address) = stand.ours.look(|state| {
            let of = |kind| state.newest.get(&kind).expect("one came").bytes.clone();
            let message = of(if they_start { INITIATION } else { RESPONSE });
            (message, of(DATA), Underlay::V4.ours())
        });
        let elsewhere = stand.theirs.socket(Underlay::V4);
        let send = |bytes: &[u8]| {
            elsewhere.send_to(bytes, address).expect("the wire is up");
        };

        let before = stand.ours.stats();
        send(&data);
        stand.ours.wait("a counted duplicate", SOON, |state| {
            state.stats().duplicates == before.duplicates + 1
        });
        for byte in [15, 20, data.len() - 1] {
            // Counter, content, tag. A counter never seen, or it would be a duplicate.
            let mut forged = data.clone();
            forged[8] = forged[8].wrapping_add(100);
            forged[byte] ^= u8::from(byte != 15);
            let before = stand.ours.stats();
            send(&forged);
            stand.ours.wait("a counted forgery", SOON, |state| {
                state.stats().forged == before.forged + 1
            });
        }

        let before = stand
            .ours
            .look(|state| (state.control(), state.sent.clone()));
        send(&message);
        stand.ours.wait("a counted replay", SOON, |state| {
            let now = state.control();
            if they_start {
                now.replayed == before.0.replayed + 1
            } else {
                now.unexpected == before.0.unexpected + 1
            }
        });
        stand.ours.look(|state| {
            assert_eq!(
                state.sent_of(RESPONSE),
                before.1.get(&RESPONSE).copied().unwrap_or(0)
            );
            assert_eq!(state.strays(), 0, "a replayed answer was delivered");
        });
        assert_eq!(
            stand.ours.status().path,
            Some(Underlay::V4.theirs().into()),
            "a replay from another address moves no peer"
        );

        // And they refuse ours: the next echo is answered, the replayed one is not.
        let ours_again = stand
            .ours
            .look(|state| state.newest_sent.get(&DATA).expect("one was sent").clone());
        stand.ours.send_raw(&ours_again, Underlay::V4.theirs());
        assert_eq!(
            stand.ours.ping(theirs()[0], 10, MILLISECOND, &[84], SOON),
            10
        );
        assert_eq!(stand.ours.strays(), 0, "they answered a replayed echo");
    }
}

fn three_rekeys_lose_nothing(implementation: Implementation) {
    let setup = Setup {
        our_psk: Some(PSK),
        their_psk: Some(PSK),
        they_know_us: false,
        timers: TimerConfig {
            rekey_after: 3 * SECOND,
            ..TimerConfig::wireguard()
        },
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    let _ = stand.ours.reach(theirs()[0], SOON, SOON);
    let rekeys = || {
        stand.ours.look(|state| {
            let rekeyed = |event: &&Event| **event == Event::Rekeyed;
            state.events.iter().filter(rekeyed).count()
        })
    };
    let begun = Instant::now();
    while rekeys() < 3 {
        let elapsed = begun.elapsed();
        assert!(elapsed < 20 * SECOND, "{} rekeys in {elapsed:?}", rekeys());
        thread::scope(|scope| {
            let pings = scope.spawn(|| stand.theirs.ping(ours()[1], 100, "0.01", 1420));
            let came = stand
                .ours
                .ping(theirs()[0], 100, 10 * MILLISECOND, &[84, 1420], 3 * SECOND);
            assert_eq!(came, 100, "answers to us, after {elapsed:?}");
            let (came, said) = pings.join().expect("the other pings");
            assert_eq!(came, 100, "answers to them, after {elapsed:?}:\n{said}");
        });
    }
    let elapsed = begun.elapsed();
    let opened = stand.ours.stats().opened;
    println!(
        "{} rekeys in {elapsed:?}, {opened} packets opened",
        rekeys()
    );
    assert!(
        elapsed >= 8 * SECOND,
        "keys are renewed after 3 s, not before"
    );
    exchange(&stand);
}

fn an_end_that_starts_again_is_back(implementation: Implementation) {
    // They speak first: as fast as a first handshake.
    let Some(mut stand) = Stand::raise(implementation, Setup::default()) else {
        return;
    };
    let _ = stand.ours.reach(theirs()[0], SOON, SOON);
    stand.theirs.restart();
    let took = stand.theirs.reach(ours()[0], SOON);
    println!("they speak first: traffic is back {took:?} after the start");
    exchange(&stand);
    drop(stand);

    // Only we speak: we notice by silence.
    for timers in [
        TimerConfig::wireguard(),
        TimerConfig {
            silence: SECOND,
            ..eager()
        },
    ] {
        let silence = timers.silence;
        let setup = Setup {
            they_know_us: false,
            timers,
            ..Setup::default()
        };
        let Some(mut stand) = Stand::raise(implementation, setup) else {
            return;
        };
        let _ = stand.ours.reach(theirs()[0], SOON, SOON);
        stand.theirs.restart();
        let took = stand
            .ours
            .reach(theirs()[0], 20 * MILLISECOND, silence + SOON);
        println!("only we speak, silence {silence:?}: traffic is back {took:?} after the start");
        stand.ours.look(|state| {
            assert!(state.events.contains(&Event::Silent), "{:?}", state.events);
        });
        exchange(&stand);
    }
}

fn under_their_load_we_come_with_a_cookie(implementation: Implementation) {
    let setup = Setup {
        they_know_us: false,
        timers: TimerConfig {
            rekey_after: SECOND,
            ..eager()
        },
        ..Setup::default()
    };
    let Some(stand) = Stand::raise(implementation, setup) else {
        return;
    };
    let _ = stand.ours.reach(theirs()[0], SOON, SOON);
    let initiation = stand.ours.look(|state| {
        state
            .newest_sent
            .get(&INITIATION)
            .expect("one was sent")
            .clone()
    });
    // A flood of old initiations, whose mac1 is right. It comes by our own socket, because
    // boringtun has a limit per peer (10 a second); wireguard-go looks at its queue.
    let begun = Instant::now();
    let mut floods = 0;
    let mut before = None;
    loop {
        let (cookie, handshakes) = stand
            .ours
            .look(|state| (state.newest.contains_key(&COOKIE), state.handshakes()));
        if cookie && handshakes > *before.get_or_insert(handshakes) {
            break;
        }
        assert!(
            begun.elapsed() < 3 * SOON,
            "no handshake by a cookie in {floods} floods"
        );
        for _ in 0..1000 {
            stand.ours.send_raw(&initiation, Underlay::V4.theirs());
        }
        floods += 1;
        // What makes our end renew the keys.
        let _ = stand
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], 20 * MILLISECOND);
    }
    println!(
        "a handshake by a cookie amid {floods} floods of 1000 initiations, {:?}",
        begun.elapsed()
    );
    stand.ours.look(|state| {
        let mac2 = state.newest_sent[&INITIATION].last_chunk::<16>();
        assert_ne!(mac2, Some(&[0; 16]), "our initiation bore mac2");
    });
    let _ = stand.ours.reach(theirs()[0], 100 * MILLISECOND, SOON);
}

macro_rules! against {
    ($implementation:ident, $module:ident: $($test:ident),+ $(,)?) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    super::$test(super::Implementation::$implementation);
                }
            )+
        }
    };
    ($($test:ident),+ $(,)?) => {
        against!(WireguardGo, wireguard_go: $($test),+);
        against!(Boringtun, boringtun: $($test),+);
    };
}

against!(
    we_initiate,
    they_initiate,
    a_wrong_shared_key_gives_no_session,
    an_unknown_key_gets_no_answer,
    under_load_a_cookie_lets_them_in,
    under_their_load_we_come_with_a_cookie,
    a_replayed_datagram_is_refused_and_counted,
    three_rekeys_lose_nothing,
    an_end_that_starts_again_is_back,
);
