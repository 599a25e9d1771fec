//! A tunnel without a session, a path, or replies.

use super::*;

fn segment(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut out, payload)
        .expect("a packet");
    out
}

#[test]
fn after_a_silence_the_newest_segment_of_a_flow_is_sent_again() {
    let (mut tenant, mut provider) = pair();
    tenant
        .pipeline
        .command(at(10).mono, Command::PeerSilent(0), &mut tenant.wire);
    for payload in [&b"old"[..], b"new", b""] {
        tenant.seal(at(20), &segment(payload));
    }
    tenant.seal(
        at(21),
        &packet("10.1.0.11", "10.1.0.10", b"datagrams are not kept"),
    );
    // All of it was sent, into the void.
    assert_eq!(tenant.take().len(), 4);
    provider.seal(at(30), &packet("10.1.0.10", "10.1.0.11", b"here again"));
    let frames = provider.take();
    tenant.open(at(31), frames);
    let frames: Vec<_> = tenant
        .take()
        .into_iter()
        .filter(|(ifindex, _)| *ifindex == UPLINK)
        .collect();
    assert_eq!(frames.len(), 1);
    provider.open(at(32), frames);
    assert_eq!(provider.take()[0].1[18..], segment(b"new"));
    assert_eq!(tenant.count(Counter::OutageFlushed), 1);
    // Once, and not again.
    provider.seal(at(40), &packet("10.1.0.10", "10.1.0.11", b"and again"));
    let frames = provider.take();
    tenant.open(at(41), frames);
    assert_eq!(tenant.count(Counter::OutageFlushed), 1);
}

#[test]
fn without_a_session_a_segment_waits_for_the_next_for_two_minutes_at_most() {
    for (wait, wanted) in [(119_000, 1), (121_000, 0)] {
        let (mut tenant, mut provider) = pair();
        // Sessions end after three minutes.
        tenant.seal(at(200_000), &segment(b"kept"));
        assert_eq!(tenant.count(Counter::OutageBuffered), 1);
        assert_eq!(tenant.count(Counter::DropNoSession), 0);
        assert!(tenant.take().is_empty());
        let now = at(200_000 + wait);
        join(&mut tenant, &mut provider, now);
        assert_eq!(tenant.count(Counter::OutageFlushed), wanted);
        let frames = provider.take();
        assert_eq!(
            frames.iter().filter(|(at, _)| *at == ACCESS).count() as u64,
            wanted
        );
    }
}

#[test]
fn without_a_session_or_a_path_a_datagram_is_dropped_and_the_control_half_hears_of_the_first() {
    let (mut tenant, _) = pair();
    tenant.pipeline.report(at(5).mono, &mut tenant.wire);
    let sent = packet("10.1.0.11", "10.1.0.10", b"x");
    tenant.command(at(6), Command::OuterHeader(0, None));
    tenant.seal(at(6), &sent);
    assert_eq!(tenant.count(Counter::DropNoPeer), 1);
    assert!(!tenant.pipeline.dirty());
    let lane = Box::new(PeerLanes::appliance(LaneAssignment::WHOLE));
    let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], tenant.address, tenant.address);
    tenant.command(at(7), Command::Peer(0, Some(lane)));
    tenant.command(at(7), Command::OuterHeader(0, outer.map(Box::new)));
    tenant.seal(at(7), &sent);
    assert_eq!(tenant.count(Counter::DropNoSession), 1);
    assert!(tenant.take().is_empty());
    tenant.wire.events.clear();
    tenant.pipeline.report(at(8).mono, &mut tenant.wire);
    let [Event::Activity { tx, .. }] = tenant.wire.events.as_slice() else {
        panic!("{:?}", tenant.wire.events);
    };
    assert_eq!(tx.last_no_session, Some(at(7).mono));
    // A peer that is gone, and a network that was never there.
    tenant.command(at(9), Command::Peer(0, None));
    tenant.seal(at(9), &sent);
    tenant.pipeline.frame(
        at(9).mono,
        &mut crate::testing::to_seal(5, VNI, &sent),
        &mut tenant.wire,
    );
    assert_eq!(tenant.count(Counter::DropInconsistent), 2);
}

/// After an outage the first segment comes through a moment before the path back is there; its
/// acknowledgement must not be lost, or the sender waits for its next retransmission, minutes away.
#[test]
fn an_acknowledgement_waits_for_the_way_back_and_displaces_nothing() {
    for (kept, wanted) in [
        (&[b"".as_slice()][..], &b""[..]),
        (&[b"data".as_slice(), b""][..], &b"data"[..]),
        (&[b"".as_slice(), b"data"][..], &b"data"[..]),
    ] {
        let (mut tenant, mut provider) = pair();
        // Sessions end after three minutes.
        for payload in kept {
            tenant.seal(at(200_000), &segment(payload));
        }
        assert!(tenant.take().is_empty());
        join(&mut tenant, &mut provider, at(200_500));
        assert_eq!(tenant.count(Counter::OutageFlushed), 1);
        let delivered: Vec<_> = provider
            .take()
            .into_iter()
            .filter(|(ifindex, _)| *ifindex == ACCESS)
            .collect();
        assert_eq!(delivered.len(), 1);
        assert_eq!(delivered[0].1[18..], segment(wanted));
    }
}
