//! Sessions and lanes of two tunnels over a path with one fault at a time.

use std::net::SocketAddr;
use std::time::Duration;

use tunnel::control::Datagram;
use tunnel::segment::ControlMessage;
use tunnel::testing::Seeded;
use tunnel::{
    Event, InitiationPolicy, Instant, LoadLimits, MIN_DATAGRAM, Now, Output, Payload, PayloadKind,
    PeerConfig, PeerId, PeerPath, ReassemblyLimits, RxActivity, SecretKey, Tunnel, TunnelControl,
};

const MS: u64 = 1_000_000;

struct Pair {
    random: Seeded,
    now: u64,
    /// The initiator and the responder.
    ends: [(Tunnel, PeerId, PeerPath); 2],
    /// Whether the path carries responses.
    answers: bool,
    /// Longest datagram that the path carries.
    longest: usize,
    /// Number of [`Event::Silent`].
    silences: u32,
    delivered: u32,
    initiations: u32,
}

impl Pair {
    fn new(lanes: u32) -> Self {
        let mut random = Seeded(5);
        let secrets = [
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        ];
        let addresses = [
            PeerPath::from(SocketAddr::from(([198, 51, 100, 2], 40_000))),
            PeerPath::from(SocketAddr::from(([203, 0, 113, 5], 6180))),
        ];
        let end = |own: usize| {
            let mut tunnel = Tunnel::new(
                secrets[own].clone(),
                LoadLimits::default(),
                ReassemblyLimits::default(),
            );
            let dial = if own == 0 {
                InitiationPolicy::Always
            } else {
                InitiationPolicy::Never
            };
            let config = PeerConfig {
                lanes,
                paths: vec![addresses[1 - own]],
                ..PeerConfig::causeway(secrets[1 - own].public(), dial)
            };
            let peer = tunnel.add_peer(Instant::ORIGIN, config);
            (tunnel, peer, addresses[own])
        };
        Self {
            ends: [end(0), end(1)],
            random,
            now: 0,
            answers: true,
            longest: usize::MAX,
            silences: 0,
            delivered: 0,
            initiations: 0,
        }
    }

    fn clock(&self) -> Now {
        Now {
            mono: Instant::from_nanos(self.now),
            unix: Duration::from_secs(1_700_000_000) + Duration::from_nanos(self.now),
        }
    }

    /// Carries datagrams without delay and handles timers, until nothing is left at this moment.
    fn carry(&mut self, mut flying: Vec<(usize, Vec<u8>)>) {
        let clock = self.clock();
        loop {
            for (at, (tunnel, ..)) in self.ends.iter_mut().enumerate() {
                let transmit = &mut |_: PeerPath, bytes: &[u8]| {
                    flying.push((1 - at, bytes.to_vec()));
                };
                let silences = &mut self.silences;
                let event = &mut |_: PeerId, event: Event| {
                    *silences += u32::from(matches!(event, Event::Silent));
                };
                tunnel.poll(clock, &mut self.random, transmit, event);
            }
            if flying.is_empty() {
                return;
            }
            for (to, mut bytes) in std::mem::take(&mut flying) {
                self.initiations += u32::from(bytes[0] == 1);
                if bytes[0] == 2 && !self.answers || bytes.len() > self.longest {
                    continue;
                }
                let from = self.ends[1 - to].2;
                let delivered = &mut self.delivered;
                let deliver = &mut |_: PeerId, payload: Payload<'_>| {
                    *delivered += u32::from(matches!(payload, Payload::Packet { .. }));
                };
                let _ = self.ends[to]
                    .0
                    .receive(clock, from, &mut bytes, &mut self.random, deliver);
            }
        }
    }

    fn send(&mut self, from: usize, lane: usize) -> bool {
        let mut flying = Vec::new();
        let clock = self.clock();
        let (tunnel, peer, _) = &mut self.ends[from];
        let transmit = &mut |_: PeerPath, bytes: &[u8]| flying.push((1 - from, bytes.to_vec()));
        let sent = tunnel.send(
            clock.mono,
            *peer,
            lane,
            PayloadKind::Ip,
            7,
            &[9; 100],
            transmit,
        );
        self.carry(flying);
        sent.is_ok()
    }
}

/// Found by fuzzing: the responder's receivers have five sessions, and the sixth replaced the one
/// in use, which is the oldest while responses are lost.
#[test]
fn lost_responses_do_not_cost_the_session_in_use() {
    let mut pair = Pair::new(1);
    pair.carry(Vec::new());
    // Beyond the age at which keys are renewed.
    for round in 0..1_300 {
        pair.answers = round < 1_000;
        pair.now += 100 * MS;
        assert!(pair.send(0, 0) && pair.send(1, 0), "round {round}");
    }
    assert!(pair.initiations > 10, "{}", pair.initiations);
    assert_eq!(pair.delivered, 2 * 1_300);
}

#[test]
fn a_lane_once_without_session_requests_no_more_handshakes() {
    let mut pair = Pair::new(2);
    // There is no session yet.
    assert!(!pair.send(0, 1));
    for _ in 0..300 {
        pair.now += 50 * MS;
        assert!(pair.send(0, 0) && pair.send(0, 1));
    }
    assert_eq!(pair.initiations, 1);
    assert_eq!(pair.delivered, 600);
}

/// An idle end receives from the peer once a second; a lost probe must not count as silence.
#[test]
fn a_lost_probe_is_no_silence() {
    for longest in [1240, 1300, 1452] {
        // The search restarts when the initiator's address changes, at any time after the last
        // echo.
        for phase in (0..1000).step_by(50) {
            let mut pair = Pair::new(1);
            pair.longest = longest;
            let run = |pair: &mut Pair, ms: u64| {
                for _ in 0..ms / 10 {
                    pair.now += 10 * MS;
                    pair.carry(Vec::new());
                }
            };
            run(&mut pair, 30_000 + phase);
            pair.ends[0].2 = PeerPath::from(SocketAddr::from(([198, 51, 100, 3], 50_000)));
            assert!(pair.send(0, 0));
            run(&mut pair, 30_000);
            let seen = (pair.silences, pair.initiations);
            assert_eq!(seen, (0, 1), "{longest} bytes, {phase} ms");
            pair.longest = 0;
            run(&mut pair, 2000);
            assert_eq!(pair.silences, 2, "{longest} bytes, {phase} ms");
        }
    }
}

fn handshake_messages(control: &mut TunnelControl) -> Vec<Datagram> {
    std::iter::from_fn(|| control.poll_output())
        .filter_map(|output| match output {
            Output::Transmit { datagram, .. } => Some(datagram),
            _ => None,
        })
        .collect()
}

/// A reply in flight during a change of path is no evidence for the new path.
#[test]
fn a_late_reply_does_not_raise_the_new_paths_mtu() {
    let mut random = Seeded(6);
    let [here, there, elsewhere] =
        [2, 5, 9].map(|host| PeerPath::from(SocketAddr::from(([192, 0, 2, host], 6180))));
    let now = Now {
        mono: Instant::ORIGIN,
        unix: Duration::from_secs(1_700_000_000),
    };
    let secrets = [
        SecretKey::generate(&mut random),
        SecretKey::generate(&mut random),
    ];
    let [mut one, mut two] = secrets
        .clone()
        .map(|secret| TunnelControl::new(secret, LoadLimits::default()));
    let config = PeerConfig {
        paths: vec![there],
        ..PeerConfig::causeway(secrets[1].public(), InitiationPolicy::Always)
    };
    let peer = one.add_peer(now.mono, config);
    let config = PeerConfig::causeway(secrets[0].public(), InitiationPolicy::Never);
    two.add_peer(now.mono, config);
    one.handle_timeout(now, &mut random);
    for datagram in handshake_messages(&mut one) {
        two.handle_datagram(now, here, datagram.as_bytes(), &mut random)
            .unwrap();
    }
    for datagram in handshake_messages(&mut two) {
        one.handle_datagram(now, there, datagram.as_bytes(), &mut random)
            .unwrap();
    }
    // The peer is alive, so the first size is probed.
    let heard = RxActivity {
        last_received: Some(now.mono),
        ..RxActivity::default()
    };
    one.report_received(now.mono, peer, heard);
    one.handle_timeout(now, &mut random);
    let probe = std::iter::from_fn(|| one.poll_output()).find_map(|output| match output {
        Output::ControlMessage {
            message: ControlMessage::Echo { token, size },
            ..
        } if size > 0 => Some((token, size)),
        _ => None,
    });
    let (token, size) = probe.expect("the first size is tried");
    let reply = ControlMessage::EchoReply { token, size };
    let max = |control: &TunnelControl| control.status(now.mono, peer).unwrap().max_datagram;
    one.move_peer(now.mono, peer, elsewhere);
    one.handle_control_message(now.mono, peer, reply);
    assert_eq!(max(&one), MIN_DATAGRAM);
}

/// A delayed datagram of another lane must not keep data on the path that the peer has left.
#[test]
fn a_late_datagram_of_another_lane_does_not_keep_the_old_path() {
    let mut pair = Pair::new(2);
    pair.carry(Vec::new());
    let (clock, old) = (pair.clock(), pair.ends[0].2);
    let new = PeerPath::from(SocketAddr::from(([198, 51, 100, 2], 50_000)));
    let seal = |pair: &mut Pair, from: usize, lane: usize| {
        let (tunnel, peer, _) = &mut pair.ends[from];
        let mut sent = None;
        let transmit = &mut |to: PeerPath, bytes: &[u8]| sent = Some((to, bytes.to_vec()));
        let taken = tunnel.send(
            clock.mono,
            *peer,
            lane,
            PayloadKind::Ip,
            7,
            &[9; 100],
            transmit,
        );
        assert!(taken.is_ok());
        sent.expect("a datagram")
    };
    let arrive = |pair: &mut Pair, from: PeerPath, mut bytes: Vec<u8>| {
        let Pair { ends, random, .. } = pair;
        let provider = &mut ends[1].0;
        let taken = provider.receive(clock, from, &mut bytes, random, &mut |_, _| {});
        assert!(taken.is_ok());
        provider.poll(clock, random, &mut |_, _| {}, &mut |_, _| {});
    };
    let (_, late) = seal(&mut pair, 0, 1);
    let (_, first) = seal(&mut pair, 0, 0);
    arrive(&mut pair, new, first);
    assert_eq!(seal(&mut pair, 1, 0).0, new);
    arrive(&mut pair, old, late);
    let (_, second) = seal(&mut pair, 0, 0);
    arrive(&mut pair, new, second);
    assert_eq!(seal(&mut pair, 1, 0).0, new);
}

/// An end that selects its path itself may receive a response over the path that it has left.
#[test]
fn a_late_response_moves_only_an_end_that_roams() {
    for roams in [true, false] {
        let mut random = Seeded(11);
        let secrets = [1, 2].map(|_| SecretKey::generate(&mut random));
        let [old, new, there] =
            [2, 3, 5].map(|host| PeerPath::from(SocketAddr::from(([192, 0, 2, host], 6180))));
        let at = |ms: u64| Now {
            mono: Instant::from_nanos((1000 + ms) * MS),
            unix: Duration::from_millis(1_700_000_000_000 + ms),
        };
        let control = |own: usize| TunnelControl::new(secrets[own].clone(), LoadLimits::default());
        let (mut one, mut other) = (control(0), control(1));
        let config = |of: usize, dial| PeerConfig::causeway(secrets[of].public(), dial);
        let peer = one.add_peer(
            at(0).mono,
            PeerConfig {
                paths: vec![old],
                roams,
                ..config(1, InitiationPolicy::Always)
            },
        );
        other.add_peer(at(0).mono, config(0, InitiationPolicy::Never));
        let messages = |control: &mut TunnelControl| -> Vec<Datagram> {
            std::iter::from_fn(|| control.poll_output())
                .filter_map(|output| match output {
                    Output::Transmit { datagram, .. } => Some(datagram),
                    _ => None,
                })
                .collect()
        };
        one.handle_timeout(at(1), &mut random);
        let initiation = messages(&mut one);
        let answered = other.handle_datagram(at(2), there, initiation[0].as_bytes(), &mut random);
        assert!(answered.is_ok());
        let answer = messages(&mut other);
        one.set_paths(at(3).mono, peer, vec![new]);
        one.move_peer(at(3).mono, peer, new);
        messages(&mut one);
        let taken = one.handle_datagram(at(4), old, answer[0].as_bytes(), &mut random);
        assert_eq!(taken.expect("of a handshake that goes on"), peer);
        let status = one.status(at(4).mono, peer).expect("a peer");
        assert!(status.down.is_none(), "the session is made all the same");
        assert_eq!(status.path, Some(if roams { old } else { new }));
    }
}

/// Sends from an established end and yields what identifies each nonce: the receiver's index and
/// the counter.
fn nonces(pair: &mut Pair, from: usize, packets: usize) -> Vec<(u32, u64)> {
    let clock = pair.clock();
    let (tunnel, peer, _) = &mut pair.ends[from];
    let mut nonces = Vec::new();
    let mut datagrams = Vec::new();
    for _ in 0..packets {
        let transmit = &mut |_: PeerPath, bytes: &[u8]| {
            let index = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
            let counter = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
            nonces.push((index, counter));
            datagrams.push((1 - from, bytes.to_vec()));
        };
        let packet = [9; 100];
        let _ = tunnel.send(clock.mono, *peer, 0, PayloadKind::Ip, 7, &packet, transmit);
    }
    pair.carry(datagrams);
    nonces
}

/// A virtual machine whose memory is restored from a snapshot has counters of the past. The same
/// pair, made twice from one seed, is the snapshot and what was restored from it.
#[test]
fn an_end_restored_from_a_snapshot_repeats_no_nonce() {
    for end in [0, 1] {
        let snapshot = || {
            let mut pair = Pair::new(2);
            pair.carry(Vec::new());
            pair.now += 10 * MS;
            assert!(pair.send(0, 0) && pair.send(1, 0));
            pair
        };
        let went_on = nonces(&mut snapshot(), end, 50);
        assert_eq!(went_on.len(), 50);
        let mut naive = snapshot();
        assert_eq!(nonces(&mut naive, end, 50), went_on, "what must not happen");

        let mut restored = snapshot();
        // The kernel's generator is reseeded before processes run (drivers/virt/vmgenid.c, 6.12).
        restored.random = Seeded(99);
        let clock = restored.clock();
        restored.ends[end].0.retire_all(clock.mono);
        let at_once = nonces(&mut restored, end, 50);
        assert!(at_once.is_empty(), "nothing is sealed with the old keys");
        for _ in 0..300 {
            restored.now += 10 * MS;
            restored.carry(Vec::new());
            restored.send(0, 0);
        }
        let later = nonces(&mut restored, end, 50);
        assert_eq!(later.len(), 50, "a new session is in use within 3 s");
        assert!(later.iter().all(|nonce| !went_on.contains(nonce)));
    }
}

/// The response to an initiation from before the snapshot would yield the session that the machine
/// had in its other life.
#[test]
fn a_restored_end_takes_no_response_to_an_initiation_of_before() {
    let mut pair = Pair::new(1);
    let clock = pair.clock();
    let mut sent = Vec::new();
    let transmit = &mut |_: PeerPath, bytes: &[u8]| sent.push(bytes.to_vec());
    let mut random = Seeded(1);
    pair.ends[0]
        .0
        .poll(clock, &mut random, transmit, &mut |_, _| {});
    let mut answers = Vec::new();
    for bytes in &mut sent {
        let path = pair.ends[0].2;
        let _ = pair.ends[1]
            .0
            .receive(clock, path, bytes, &mut random, &mut |_, _| {});
        let transmit = &mut |_: PeerPath, bytes: &[u8]| answers.push(bytes.to_vec());
        pair.ends[1]
            .0
            .poll(clock, &mut random, transmit, &mut |_, _| {});
    }
    assert!(!answers.is_empty());
    pair.ends[0].0.retire_all(clock.mono);
    for bytes in &mut answers {
        let path = pair.ends[1].2;
        let taken = pair.ends[0]
            .0
            .receive(clock, path, bytes, &mut random, &mut |_, _| {});
        assert!(taken.is_err(), "{taken:?}");
    }
}

/// B23: an end that was stopped past the end of its session, as by a snapshot's stun.
#[test]
fn an_end_that_was_stopped_for_long_is_back_at_once() {
    let mut pair = Pair::new(1);
    pair.carry(Vec::new());
    assert!(pair.send(0, 0));
    pair.now += 200_000 * MS;
    pair.carry(Vec::new());
    pair.now += 10 * MS;
    pair.carry(Vec::new());
    assert!(pair.send(0, 0) && pair.send(1, 0), "within 10 ms");
}

/// B-1: a peer may send each datagram from another address.
#[test]
fn a_peer_that_moves_with_every_datagram_is_followed_four_times_a_second() {
    let mut random = Seeded(8);
    let secrets = [(), ()].map(|()| SecretKey::generate(&mut random));
    let mut control = TunnelControl::new(secrets[0].clone(), LoadLimits::default());
    let config = PeerConfig::causeway(secrets[1].public(), InitiationPolicy::Never);
    let at = |us: u64| Instant::from_nanos(MS + us * 1000);
    let peer = control.add_peer(at(0), config);
    for by_port in [true, false] {
        let path = |n: u64| {
            let (host, port) = if by_port { (2, n) } else { (n as u8, 2) };
            PeerPath::from(SocketAddr::from(([192, 0, 2, host], 6180 + port as u16)))
        };
        control.move_peer(at(0), peer, path(1));
        while control.poll_output().is_some() {}
        let (mut moves, mut others, mut last) = (0, Vec::new(), None);
        let mut count = |control: &mut TunnelControl| {
            while let Some(output) = control.poll_output() {
                match output {
                    Output::Path { path, .. } => {
                        moves += 1;
                        last = Some(path);
                    }
                    Output::Event {
                        event: Event::Moved(_),
                        ..
                    } => {}
                    other => others.push(format!("{other:?}")),
                }
            }
        };
        // 100 000 datagrams of a second, from two places in turn.
        for n in 0..100_000 {
            control.follow_peer(at(n * 10), peer, path(1 + n % 2), at(n * 10));
            count(&mut control);
        }
        let now = Now {
            mono: at(2_000_000),
            unix: Duration::from_secs(1_700_000_000),
        };
        control.handle_timeout(now, &mut random);
        count(&mut control);
        assert!((2..=6).contains(&moves), "{moves} moves by port: {by_port}");
        assert_eq!(last, Some(path(2)), "the newest path counts at last");
        if by_port {
            assert_eq!(others, [""; 0], "the path MTU is not searched again");
        } else {
            assert_eq!(others.len(), moves, "{others:?}");
        }
        control.remove_peer(peer);
        let config = PeerConfig::causeway(secrets[1].public(), InitiationPolicy::Never);
        assert_eq!(control.add_peer(at(0), config), peer);
    }
}

#[test]
fn a_change_of_the_uplinks_mtu_reaches_a_live_tunnel() {
    let mut pair = Pair::new(1);
    pair.carry(Vec::new());
    let run = |pair: &mut Pair, ms: u64| {
        for _ in 0..ms / 10 {
            pair.now += 10 * MS;
            pair.carry(Vec::new());
        }
    };
    let longest = |pair: &Pair| {
        let (tunnel, peer, _) = &pair.ends[0];
        let status = tunnel.status(pair.clock().mono, *peer);
        status.map(|status| status.max_datagram)
    };
    run(&mut pair, 3000);
    assert_eq!(longest(&pair), Some(1472));
    let (now, peer) = (pair.clock().mono, pair.ends[0].1);
    pair.ends[0].0.set_max_payload(now, peer, 1352);
    assert_eq!(longest(&pair), Some(1352), "at once");
    let (now, peer) = (pair.clock().mono, pair.ends[0].1);
    pair.ends[0].0.set_max_payload(now, peer, 8972);
    run(&mut pair, 3000);
    assert_eq!(longest(&pair), Some(8972));
    assert_eq!(pair.initiations, 1, "the session stays");
}

/// Reports of workers repeat the newest path that they saw, which may be from before a handshake
/// moved the peer.
#[test]
fn a_repeated_report_does_not_move_the_peer_back() {
    let secret = SecretKey::from_bytes(&[3; 32]);
    let mut control = TunnelControl::new(secret, LoadLimits::default());
    let key = SecretKey::from_bytes(&[4; 32]).public();
    let at = |ms: u64| Instant::from_nanos((1000 + ms) * MS);
    let config = PeerConfig::causeway(key, InitiationPolicy::Never);
    let peer = control.add_peer(at(0), config);
    let path = |host: u8| PeerPath::from(SocketAddr::from(([192, 0, 2, host], 6180)));
    let current = |control: &TunnelControl| control.status(at(0), peer).and_then(|s| s.path);
    control.follow_peer(at(1), peer, path(1), at(1));
    assert_eq!(current(&control), Some(path(1)));
    control.move_peer(at(500), peer, path(2));
    control.follow_peer(at(900), peer, path(1), at(1));
    assert_eq!(current(&control), Some(path(2)), "seen before the move");
    control.follow_peer(at(1000), peer, path(1), at(990));
    assert_eq!(current(&control), Some(path(1)), "seen after it");
}
