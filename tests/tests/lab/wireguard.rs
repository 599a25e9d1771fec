//! Our tunnel with independent WireGuard implementations over a veth: either end initiates, with
//! and without a preshared key, over IPv4 and IPv6; unknown keys, load, replays, rekeys and
//! restarts.
//!
//! `src/wireguard/mod.rs` has a picture of the testbed. Each test runs against each implementation.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use causeway_tests::wireguard::{
    Implementation, OUR_HOST, Setup, THEIR_HOST, Testbed, Underlay, inside,
};
use tunnel::{Backoff, DownReason, Event, LoadLimits, TimerConfig};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// Time for a handshake and an echo. WireGuard retries after 5 s, and a busy machine may lose one
/// attempt.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
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

/// Timers with fast retries, for tests that wait for attempts to fail.
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

/// Echoes of an exchange.
const ECHOES: u16 = 200;
/// How often a series of echoes is sent until all of it is answered. Their program runs in user
/// space: while a loaded machine does not run it, its socket buffer overflows. A fault of ours, as
/// one of a length, is there each time.
const ATTEMPTS: usize = 3;

/// 200 echoes each way in each family, of many sizes up to WireGuard's MTU. Each gets one reply.
fn exchange(testbed: &Testbed) {
    for family in 0..2 {
        let (ours, theirs) = (ours()[family], theirs()[family]);
        let smallest = if ours.is_ipv4() { 28 } else { 48 };
        // Every residue modulo the padding at either end of the range.
        let sizes: Vec<_> = (smallest..smallest + 16)
            .chain([576, 1280])
            .chain(1403..=1420)
            .collect();
        all_answered(&format!("our pings of {theirs}"), || {
            let interval = 2 * MILLISECOND;
            let testbed = &testbed.ours;
            let replies = testbed.ping(theirs, ECHOES, interval, &sizes, 3 * SECOND);
            (replies.into(), String::new())
        });
        for len in [84, 1420] {
            all_answered(&format!("their pings of {ours}"), || {
                testbed.theirs.ping(ours, ECHOES.into(), "0.002", len)
            });
        }
    }
    assert_no_errors(testbed);
}

/// Asserts that all [`ECHOES`] are answered in one of the attempts. `ping` returns the number of
/// replies and what it printed.
fn all_answered(what: &str, mut ping: impl FnMut() -> (u32, String)) {
    let mut attempts = Vec::new();
    while attempts.len() < ATTEMPTS {
        let (replies, output) = ping();
        if replies == u32::from(ECHOES) {
            return;
        }
        println!("{what}: {replies} of {ECHOES} answered\n{output}");
        attempts.push(replies);
    }
    panic!("{what}: {attempts:?} of {ECHOES} answered");
}

/// Asserts that our end refused no datagram.
fn assert_no_errors(testbed: &Testbed) {
    let stats = testbed.ours.stats();
    let refused = stats.duplicates
        + stats.too_old
        + stats.forged
        + stats.no_session
        + stats.malformed
        + stats.invalid_content;
    assert_eq!(refused, 0, "{stats:?}");
    assert_eq!(testbed.ours.duplicate_replies(), 0, "duplicate replies");
    testbed.ours.with_state(|state| {
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
        let Some(testbed) = Testbed::raise(implementation, setup) else {
            return;
        };
        let took = testbed
            .ours
            .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
        println!(
            "{underlay:?}, shared key {}: first reply after {took:?}",
            psk.is_some()
        );
        testbed.ours.with_state(|state| {
            assert_eq!(state.received_of(INITIATION), 0, "they sent an initiation");
            assert_eq!(state.events.first(), Some(&Event::Up));
        });
        exchange(&testbed);
        let status = testbed.ours.status();
        assert_eq!(status.path, Some(underlay.theirs().into()));
        assert_eq!(status.down, None);
        let status = testbed.theirs.status();
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
        let Some(testbed) = Testbed::raise(implementation, setup) else {
            return;
        };
        let took = testbed.theirs.await_reply(ours()[1], HANDSHAKE_TIMEOUT);
        println!(
            "{underlay:?}, shared key {}: first reply after {took:?}",
            psk.is_some()
        );
        testbed.ours.with_state(|state| {
            assert_eq!(state.sent_of(INITIATION), 0, "we sent an initiation");
            assert_eq!(state.control().answered, state.received_of(INITIATION));
        });
        exchange(&testbed);
        assert_eq!(testbed.ours.status().path, Some(underlay.theirs().into()));
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
            let Some(testbed) = Testbed::raise(implementation, setup) else {
                return;
            };
            if we_start {
                // The preshared key authenticates the response, which therefore is refused.
                let _ = testbed
                    .ours
                    .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND);
                testbed
                    .ours
                    .wait("two refused responses", HANDSHAKE_TIMEOUT, |state| {
                        state.control().authentication_failures >= 2
                    });
                let down = testbed.ours.status().down;
                assert!(
                    matches!(down, Some(DownReason::InvalidAnswers { .. })),
                    "{down:?}"
                );
            } else {
                // They receive our response and must refuse it.
                let (replies, output) = testbed.theirs.ping(ours()[0], 5, "0.1", 84);
                assert_eq!(replies, 0, "{output}");
                testbed
                    .ours
                    .wait("an answered initiation", HANDSHAKE_TIMEOUT, |state| {
                        state.control().answered >= 1
                    });
                let status = testbed.theirs.status();
                assert_eq!(status.latest_handshake, 0, "{status:?}");
            }
            let status = testbed.ours.status();
            assert_eq!((status.session_since, status.handshakes), (None, 0));
            testbed.ours.with_state(|state| {
                assert_eq!(state.stats().opened, 0);
                assert_eq!(state.sent_of(DATA), 0);
                assert_eq!(state.answered, 0);
            });
        }
    }
}

fn an_unknown_key_gets_no_answer(implementation: Implementation) {
    // Our end has another public key for them.
    let setup = Setup {
        we_have_their_key: false,
        we_know_them: false,
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    let (replies, output) = testbed.theirs.ping(ours()[0], 5, "0.1", 84);
    assert_eq!(replies, 0, "{output}");
    testbed
        .ours
        .wait("a refused initiation", HANDSHAKE_TIMEOUT, |state| {
            state.control().authentication_failures >= 1
        });
    testbed.ours.with_state(|state| {
        assert!(state.sent.is_empty(), "replies: {:?}", state.sent);
    });
    assert_eq!(testbed.theirs.status().received, 0);
    drop(testbed);

    // Their end has another public key for us.
    let setup = Setup {
        they_have_our_key: false,
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    assert_eq!(
        testbed
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND),
        0
    );
    testbed
        .ours
        .wait("three attempts", HANDSHAKE_TIMEOUT, |state| {
            state.sent_of(INITIATION) >= 3
        });
    let down = testbed.ours.status().down;
    assert!(
        matches!(down, Some(DownReason::NoAnswer { .. })),
        "{down:?}"
    );
    testbed.ours.with_state(|state| {
        assert!(state.received.is_empty(), "replies: {:?}", state.received);
    });
    drop(testbed);

    // We have a wrong key for them: mac1 is not theirs.
    let setup = Setup {
        we_have_their_key: false,
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    assert_eq!(
        testbed
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], MILLISECOND),
        0
    );
    testbed
        .ours
        .wait("three attempts", HANDSHAKE_TIMEOUT, |state| {
            state.sent_of(INITIATION) >= 3
        });
    testbed.ours.with_state(|state| {
        assert!(state.received.is_empty(), "replies: {:?}", state.received);
    });
}

fn under_our_load_their_handshake_needs_a_cookie(implementation: Implementation) {
    let setup = Setup {
        load: LoadLimits {
            cookie_threshold: 0,
            ..LoadLimits::default()
        },
        we_know_them: false,
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    let took = testbed.theirs.await_reply(ours()[0], 2 * HANDSHAKE_TIMEOUT);
    let (stats, initiations) = testbed
        .ours
        .with_state(|state| (state.control(), state.received_of(INITIATION)));
    println!(
        "their handshake completed {took:?} after their first packet, with {initiations} \
         initiations"
    );
    assert!(stats.cookies_sent >= 1, "{stats:?}");
    assert!(stats.answered >= 1, "{stats:?}");
    // An initiation is answered only if its mac2 proves that the peer received the cookie.
    assert_eq!(
        stats.answered + stats.cookies_sent,
        initiations,
        "{stats:?}"
    );
    drop(testbed);

    // Our initiation while our end is under load: our end also demands a cookie for their response.
    let setup = Setup {
        load: LoadLimits {
            cookie_threshold: 0,
            ..LoadLimits::default()
        },
        they_know_us: false,
        timers: eager(),
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    let took = testbed
        .ours
        .await_reply(theirs()[0], 2 * HANDSHAKE_TIMEOUT, 2 * HANDSHAKE_TIMEOUT);
    let stats = testbed.ours.with_state(|state| state.control());
    println!("our handshake completed {took:?} after our first packet: {stats:?}");
    assert!(stats.cookies_sent >= 1, "{stats:?}");
}

fn a_replayed_datagram_is_refused_and_counted(implementation: Implementation) {
    for they_start in [true, false] {
        let Some(testbed) = Testbed::raise(implementation, Setup::default()) else {
            return;
        };
        if they_start {
            testbed.theirs.await_reply(ours()[0], HANDSHAKE_TIMEOUT);
        }
        let _ = testbed
            .ours
            .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
        let (message, data, address) = testbed.ours.with_state(|state| {
            let of = |kind| {
                state
                    .newest
                    .get(&kind)
                    .expect("a received datagram")
                    .bytes
                    .clone()
            };
            let message = of(if they_start { INITIATION } else { RESPONSE });
            (message, of(DATA), Underlay::V4.ours())
        });
        let elsewhere = testbed.theirs.socket(Underlay::V4);
        let send = |bytes: &[u8]| {
            elsewhere.send_to(bytes, address).expect("the wire is up");
        };

        let before = testbed.ours.stats();
        send(&data);
        testbed
            .ours
            .wait("a counted duplicate", HANDSHAKE_TIMEOUT, |state| {
                state.stats().duplicates == before.duplicates + 1
            });
        for byte in [15, 20, data.len() - 1] {
            // Counter, content, tag. A counter never seen, or it would be a duplicate.
            let mut forged = data.clone();
            forged[8] = forged[8].wrapping_add(100);
            forged[byte] ^= u8::from(byte != 15);
            let before = testbed.ours.stats();
            send(&forged);
            testbed
                .ours
                .wait("a counted forgery", HANDSHAKE_TIMEOUT, |state| {
                    state.stats().forged == before.forged + 1
                });
        }

        let before = testbed
            .ours
            .with_state(|state| (state.control(), state.sent.clone()));
        send(&message);
        testbed
            .ours
            .wait("a counted replay", HANDSHAKE_TIMEOUT, |state| {
                let now = state.control();
                if they_start {
                    now.replayed == before.0.replayed + 1
                } else {
                    now.unexpected == before.0.unexpected + 1
                }
            });
        testbed.ours.with_state(|state| {
            assert_eq!(
                state.sent_of(RESPONSE),
                before.1.get(&RESPONSE).copied().unwrap_or(0)
            );
            assert_eq!(
                state.duplicate_replies(),
                0,
                "a replayed answer was delivered"
            );
        });
        assert_eq!(
            testbed.ours.status().path,
            Some(Underlay::V4.theirs().into()),
            "a replay from another address must not move the peer"
        );

        // Their end refuses our replay: it answers the next echo, not the replayed one.
        let ours_again = testbed.ours.with_state(|state| {
            state
                .newest_sent
                .get(&DATA)
                .expect("a sent datagram")
                .clone()
        });
        testbed.ours.send_raw(&ours_again, Underlay::V4.theirs());
        assert_eq!(
            testbed
                .ours
                .ping(theirs()[0], 10, MILLISECOND, &[84], HANDSHAKE_TIMEOUT),
            10
        );
        assert_eq!(
            testbed.ours.duplicate_replies(),
            0,
            "they answered a replayed echo"
        );
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
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    let _ = testbed
        .ours
        .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
    let rekeys = || {
        testbed.ours.with_state(|state| {
            let rekeyed = |event: &&Event| **event == Event::Rekeyed;
            state.events.iter().filter(rekeyed).count()
        })
    };
    let begun = Instant::now();
    while rekeys() < 3 {
        let elapsed = begun.elapsed();
        assert!(elapsed < 20 * SECOND, "{} rekeys in {elapsed:?}", rekeys());
        thread::scope(|scope| {
            let pings = scope.spawn(|| testbed.theirs.ping(ours()[1], 100, "0.01", 1420));
            let replies =
                testbed
                    .ours
                    .ping(theirs()[0], 100, 10 * MILLISECOND, &[84, 1420], 3 * SECOND);
            assert_eq!(replies, 100, "answers to us, after {elapsed:?}");
            let (replies, output) = pings.join().expect("the other pings");
            assert_eq!(
                replies, 100,
                "answers to them, after {elapsed:?}:\n{output}"
            );
        });
    }
    let elapsed = begun.elapsed();
    let opened = testbed.ours.stats().opened;
    println!(
        "{} rekeys in {elapsed:?}, {opened} packets opened",
        rekeys()
    );
    assert!(
        elapsed >= 8 * SECOND,
        "keys are renewed after 3 s, not before"
    );
    exchange(&testbed);
}

fn traffic_resumes_after_their_restart(implementation: Implementation) {
    // They send first: as fast as a first handshake.
    let Some(mut testbed) = Testbed::raise(implementation, Setup::default()) else {
        return;
    };
    let _ = testbed
        .ours
        .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
    testbed.theirs.restart();
    let took = testbed.theirs.await_reply(ours()[0], HANDSHAKE_TIMEOUT);
    println!("they send first: traffic resumed {took:?} after the restart");
    exchange(&testbed);
    drop(testbed);

    // Only we send: our end detects the restart by silence.
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
        let Some(mut testbed) = Testbed::raise(implementation, setup) else {
            return;
        };
        let _ = testbed
            .ours
            .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
        testbed.theirs.restart();
        let took =
            testbed
                .ours
                .await_reply(theirs()[0], 20 * MILLISECOND, silence + HANDSHAKE_TIMEOUT);
        println!("only we send, silence {silence:?}: traffic resumed {took:?} after the restart");
        testbed.ours.with_state(|state| {
            assert!(state.events.contains(&Event::Silent), "{:?}", state.events);
        });
        exchange(&testbed);
    }
}

fn under_their_load_our_handshake_uses_a_cookie(implementation: Implementation) {
    let setup = Setup {
        they_know_us: false,
        timers: TimerConfig {
            rekey_after: SECOND,
            ..eager()
        },
        ..Setup::default()
    };
    let Some(testbed) = Testbed::raise(implementation, setup) else {
        return;
    };
    let _ = testbed
        .ours
        .await_reply(theirs()[0], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT);
    let initiation = testbed.ours.with_state(|state| {
        state
            .newest_sent
            .get(&INITIATION)
            .expect("a sent datagram")
            .clone()
    });
    // A flood of old initiations with a valid mac1, sent by our socket: boringtun limits handshakes
    // per peer (10 a second), wireguard-go by its queue length.
    let begun = Instant::now();
    let mut floods = 0;
    let mut before = None;
    loop {
        let (cookie, handshakes) = testbed
            .ours
            .with_state(|state| (state.newest.contains_key(&COOKIE), state.handshakes()));
        if cookie && handshakes > *before.get_or_insert(handshakes) {
            break;
        }
        assert!(
            begun.elapsed() < 3 * HANDSHAKE_TIMEOUT,
            "no handshake by a cookie in {floods} floods"
        );
        for _ in 0..1000 {
            testbed.ours.send_raw(&initiation, Underlay::V4.theirs());
        }
        floods += 1;
        // Traffic makes our end rekey.
        let _ = testbed
            .ours
            .ping(theirs()[0], 1, Duration::ZERO, &[84], 20 * MILLISECOND);
    }
    println!(
        "a handshake by a cookie amid {floods} floods of 1000 initiations, {:?}",
        begun.elapsed()
    );
    testbed.ours.with_state(|state| {
        let mac2 = state.newest_sent[&INITIATION].last_chunk::<16>();
        assert_ne!(mac2, Some(&[0; 16]), "our initiation carried mac2");
    });
    let _ = testbed
        .ours
        .await_reply(theirs()[0], 100 * MILLISECOND, HANDSHAKE_TIMEOUT);
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
    under_our_load_their_handshake_needs_a_cookie,
    under_their_load_our_handshake_uses_a_cookie,
    a_replayed_datagram_is_refused_and_counted,
    three_rekeys_lose_nothing,
    traffic_resumes_after_their_restart,
);
