//! A peer that holds a session and abuses it: it may send what it likes as fast as its line is, and
//! no other peer notices.

use std::{collections::BTreeSet, net::SocketAddr};

use tunnel::segment::ControlMessage;

use super::*;
use crate::testing::{TestPeer, around};

/// A control message as it is inside a datagram.
fn control(message: ControlMessage) -> Vec<u8> {
    let mut plaintext = Header::whole(PayloadKind::Control, 0).to_bytes().to_vec();
    plaintext.extend_from_slice(&message.to_bytes());
    plaintext
}

/// The workers' events of a peer, without the reports of hosts.
fn events(side: &mut TestAppliance, slot: u32) -> Vec<Event> {
    let of_peer = |event: &Event| match event {
        Event::SessionConfirmed { peer, .. }
        | Event::ControlMessage { peer, .. }
        | Event::Activity { peer, .. } => *peer == slot,
        Event::HostUsed { .. } => false,
    };
    let all = std::mem::take(&mut side.wire.events);
    all.into_iter().filter(of_peer).collect()
}

#[test]
fn a_flood_of_echoes_is_answered_by_the_worker_within_a_budget() {
    let (mut tenant, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    provider.wire.events.clear();
    provider.take();
    let echo = |token| control(ControlMessage::Echo { token, size: 0 });
    let (mut answered, mut delivered) = (0, 0);
    // A second of 10 000 echoes, with a packet of the other tenant after every hundred.
    for n in 0..10_000u64 {
        let now = at(1000 + n / 10);
        let frame = test_peer.send(now, &echo(n));
        provider.open(now, vec![(UPLINK, frame)]);
        if n % 100 == 0 {
            tenant.seal(now, &packet("10.1.0.11", "10.1.0.10", b"honest"));
            let frames = tenant.take();
            provider.open(now, frames);
        }
        for (ifindex, frame) in provider.take() {
            if ifindex == UPLINK {
                assert!(test_peer.receive(now, &frame).is_some(), "an answer");
                answered += 1;
            } else {
                delivered += 1;
            }
        }
    }
    assert!((80..=84).contains(&answered), "{answered} of 10 000 echoes");
    assert_eq!(delivered, 100, "the honest tenant loses nothing");
    let dropped = provider.count(Counter::DropControlRate);
    assert_eq!(dropped, 10_000 - answered);
    // The manager's ring has no part in it.
    provider.pipeline.report(at(3000).mono, &mut provider.wire);
    let events = events(&mut provider, 1);
    let [Event::SessionConfirmed { .. }, Event::Activity { .. }] = events.as_slice() else {
        panic!("{events:?}");
    };
    // Answers to echoes that were never sent are the manager's to judge, within the same budget.
    for n in 0..1000 {
        let reply = control(ControlMessage::EchoReply { token: n, size: 0 });
        let frame = test_peer.send(at(9000), &reply);
        provider.open(at(9000), vec![(UPLINK, frame)]);
    }
    let events = super::hostile_peer::events(&mut provider, 1);
    assert_eq!(events.len(), 32);
}

#[test]
fn a_peer_that_moves_with_every_datagram_is_one_report_with_its_newest_path() {
    let (_, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    provider.pipeline.report(at(100).mono, &mut provider.wire);
    provider.wire.events.clear();
    let echo = control(ControlMessage::EchoReply { token: 1, size: 0 });
    for n in 0..5000u16 {
        let from = SocketAddr::new([192, 0, 2, (n % 2) as u8].into(), 1000 + n % 7);
        let mut datagram = vec![0; echo.len() + 32];
        let sealed = test_peer
            .sender
            .seal_into(at(200).mono, &[&echo], &mut datagram);
        let len = sealed.expect("a session");
        let frame = around([from, test_peer.path[1]], &datagram[..len]);
        provider.open(at(200), vec![(UPLINK, frame)]);
    }
    provider.pipeline.report(at(210).mono, &mut provider.wire);
    let events = events(&mut provider, 1);
    let activities: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Activity { rx, .. } => Some(rx),
            _ => None,
        })
        .collect();
    let [rx] = activities.as_slice() else {
        panic!("{events:?}");
    };
    let last = SocketAddr::new([192, 0, 2, 1].into(), 1000 + 4999 % 7);
    assert_eq!(
        (rx.path, rx.path_seen),
        (Some(last.into()), Some(at(200).mono))
    );
}

#[test]
fn the_report_repeats_a_confirmation_that_was_lost() {
    let (_, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    provider.wire.events.clear();
    let frame = test_peer.send(at(50), b"");
    provider.open(at(50), vec![(UPLINK, frame)]);
    let confirmed = events(&mut provider, 1);
    let [Event::SessionConfirmed { index, .. }] = confirmed.as_slice() else {
        panic!("{confirmed:?}");
    };
    // The ring was full. Whatever the peer does later, the reports say the same.
    for ms in [60, 1060] {
        let frame = test_peer.send(at(ms), b"");
        provider.open(at(ms), vec![(UPLINK, frame)]);
        provider.pipeline.report(at(ms).mono, &mut provider.wire);
        let reports = events(&mut provider, 1);
        let [Event::Activity { rx, .. }] = reports.as_slice() else {
            panic!("{reports:?}");
        };
        assert_eq!(rx.session, Some(*index));
    }
}

/// The receiver's index and the counter of each datagram on the uplink: with the key, which belongs
/// to the index, they are the nonce.
fn nonces(frames: &[(u32, Vec<u8>)]) -> Vec<(u32, u64)> {
    let nonce = |frame: &[u8]| {
        let index = frame[46..50].first_chunk().expect("four bytes");
        (u32::from_le_bytes(*index), counter_on_wire(frame))
    };
    frames.iter().map(|(_, frame)| nonce(frame)).collect()
}

#[test]
fn a_restored_worker_repeats_no_nonce_and_takes_no_session_of_before() {
    let send = |side: &mut TestAppliance, now, packets| {
        for _ in 0..packets {
            side.seal(now, &packet("10.1.0.11", "10.1.0.10", b"x"));
        }
        nonces(&side.take())
    };
    // The machine goes on after its snapshot.
    let (mut went_on, _) = pair();
    let used: BTreeSet<_> = send(&mut went_on, at(10), 20).into_iter().collect();
    assert_eq!(used.len(), 20);
    // Restored without being noticed, it repeats every nonce.
    let (mut unnoticed, _) = pair();
    assert!(
        send(&mut unnoticed, at(10), 20)
            .iter()
            .all(|nonce| used.contains(nonce))
    );

    let (mut restored, mut provider) = pair();
    let path = ["192.0.2.8:1", "203.0.113.5:1"];
    let (_, old_tx, old_rx) = TestPeer::new(Framing::Segments, 6, path);
    restored.pipeline.suspend_sessions(1);
    assert!(send(&mut restored, at(10), 20).is_empty());
    assert!(restored.count(Counter::DropNoSession) + restored.count(Counter::OutageBuffered) >= 20);
    // Commands that the manager sent before it noticed the restore arrive late.
    restored.command(at(11), Command::Receive(0, old_rx));
    restored.command(at(11), Command::Send(0, Box::new(old_tx)));
    restored.command(at(11), Command::SessionsRetired(0));
    assert!(send(&mut restored, at(11), 20).is_empty());
    // The manager has followed: later sessions are of new handshakes.
    restored.control.retire_all(at(12).mono);
    restored.drive(at(12));
    restored.command(at(12), Command::SessionsRetired(1));
    for ms in 0..50 {
        join(&mut restored, &mut provider, at(100 + ms * 40));
    }
    restored.take();
    let fresh = send(&mut restored, at(3000), 20);
    assert_eq!(fresh.len(), 20, "a new session is in use");
    assert!(fresh.iter().all(|nonce| !used.contains(nonce)));
}

/// The control half may follow a restore before the worker sees it, and may follow two
/// restores at once. In every order, old sessions are wiped and sessions of later handshakes work.
#[test]
fn a_restore_is_followed_in_any_order_of_worker_and_control_half() {
    /// Events of the worker, in order: its own check (`false`) or the command (`true`), and the
    /// number of the restore.
    const ORDERS: [&[(bool, u64)]; 5] = [
        &[(false, 1), (true, 1)],
        &[(true, 1), (false, 1)],
        &[(false, 1), (true, 2), (false, 2)],
        &[(true, 2), (false, 1), (false, 2)],
        &[(false, 2), (true, 1), (true, 2)],
    ];
    for order in ORDERS {
        let (mut side, mut provider) = pair();
        let send = |side: &mut TestAppliance, now| {
            for _ in 0..20 {
                side.seal(now, &packet("10.1.0.11", "10.1.0.10", b"x"));
            }
            side.take().len()
        };
        assert_eq!(send(&mut side, at(10)), 20);
        for (is_command, restore) in order {
            if *is_command {
                side.command(at(12), Command::SessionsRetired(*restore));
            } else {
                side.pipeline.suspend_sessions(*restore);
            }
            assert_eq!(
                send(&mut side, at(12)),
                0,
                "{order:?}: old sessions are wiped"
            );
        }
        side.control.retire_all(at(13).mono);
        side.drive(at(13));
        for ms in 0..50 {
            join(&mut side, &mut provider, at(100 + ms * 40));
        }
        // The worker looks again at every turn.
        let newest = order.iter().map(|(_, restore)| *restore).max();
        side.pipeline.suspend_sessions(newest.unwrap_or(0));
        side.take();
        assert_eq!(
            send(&mut side, at(3000)),
            20,
            "{order:?}: a new session works"
        );
    }
}
