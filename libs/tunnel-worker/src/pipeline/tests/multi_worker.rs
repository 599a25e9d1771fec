//! Several workers at each end: whichever socket a frame comes to, it is opened once, in order.

use std::collections::BTreeMap;

use appliance_common::counters::Counter;
use tunnel::{Framing, Random};

use crate::pipeline::*;
use crate::testing::{
    ACCESS, Seeded, TestPeer, UPLINK, VNI, at, join, joined_with_workers, packet, to_seal,
};

const ADDRESSES: [&str; 2] = ["198.51.100.5:6180", "203.0.113.5:6180"];

/// A packet of a flow: its number and its place in the flow.
fn numbered(flow: u32, number: u32) -> Vec<u8> {
    let mut payload = flow.to_be_bytes().to_vec();
    payload.extend_from_slice(&number.to_be_bytes());
    packet("10.1.0.11", "10.1.0.10", &payload)
}

/// Those that arrived at the host, by flow.
fn arrived(frames: Vec<(u32, Vec<u8>)>, into: &mut BTreeMap<u32, Vec<u32>>) {
    for (ifindex, frame) in frames {
        if ifindex == ACCESS {
            let payload = &frame[frame.len() - 8..];
            let word = |at: usize| {
                payload[at..at + 4]
                    .iter()
                    .fold(0, |word, byte| word << 8 | u32::from(*byte))
            };
            into.entry(word(0)).or_default().push(word(4));
        }
    }
}

#[test]
fn every_number_of_workers_works_with_every_other() {
    const FLOWS: u32 = 16;
    for ours in 1..=LANES {
        for theirs in 1..=LANES {
            let (mut tenant, mut provider) = joined_with_workers(ADDRESSES, [ours, theirs]);
            let mut random = Seeded(u64::from(ours * 100 + theirs));
            let mut received = BTreeMap::new();
            let mut handed = 0;
            let mut replayed = 0;
            // Over three changes of keys.
            for number in 0..24 {
                let now = at(1000 + u64::from(number) * 20_000);
                join(&mut tenant, &mut provider, now);
                for flow in 0..FLOWS {
                    let frame = to_seal(4, VNI, &numbered(flow, number));
                    // The NIC gives a flow one queue.
                    tenant.frame(now, (flow % ours) as usize, frame);
                }
                for (ifindex, frame) in tenant.take() {
                    assert_eq!(ifindex, UPLINK);
                    let queue = random.u64() % u64::from(theirs);
                    handed += provider.frame(now, queue as usize, frame.clone());
                    // Again, at any worker: refused by the one that has the window.
                    let queue = random.u64() % u64::from(theirs);
                    provider.frame(now, queue as usize, frame);
                    replayed += 1;
                }
                arrived(provider.take(), &mut received);
            }
            let expected: BTreeMap<u32, Vec<u32>> =
                (0..FLOWS).map(|flow| (flow, (0..24).collect())).collect();
            assert_eq!(received, expected, "{ours} workers to {theirs}");
            assert_eq!(provider.count(Counter::DropReplayed), replayed);
            assert!(handed as u64 <= provider.count(Counter::HandedOver));
            assert_eq!(handed > 0, theirs > 1, "{ours} workers to {theirs}");
            assert!(
                tenant
                    .control
                    .status(at(500_000).mono, tenant.id)
                    .is_some_and(|s| s.handshakes > 2)
            );
        }
    }
}

#[test]
fn what_finds_no_room_at_the_other_worker_is_counted() {
    let (mut tenant, mut provider) = joined_with_workers(ADDRESSES, [1, 2]);
    tenant.seal(at(10), &numbered(0, 0));
    let (_, frame) = tenant.take().remove(0);
    provider.wire.full = true;
    assert_eq!(provider.frame(at(10), 1, frame.clone()), 0);
    assert_eq!(provider.count(Counter::DropWorkerFull), 1);
    // It was not opened: it may come again.
    provider.wire.full = false;
    assert_eq!(provider.frame(at(10), 1, frame), 1);
    assert_eq!(provider.take().len(), 1);
}

#[test]
fn a_wireguard_peer_belongs_to_the_first_worker() {
    let (_, mut provider) = joined_with_workers(ADDRESSES, [1, 3]);
    let prefix = crate::testing::prefix("10.1.0.77");
    let member = || PeerRoute { prefix, peer: 3 };
    let path = ["192.0.2.7:51820", ADDRESSES[1]];
    let (mut test_peer, tx, rx) = TestPeer::new(Framing::WireGuard, 5, path);
    let outer = test_peer.outer();
    let mut halves = Some((tx, rx));
    for index in 0..3 {
        let assignment = LaneAssignment::new(index, 3).expect("a valid worker number");
        let lanes = PeerLanes::wireguard(assignment, VNI, Box::new([prefix]));
        let worker = index as usize;
        provider.command_worker(at(5), worker, Command::Peer(3, Some(Box::new(lanes))));
        provider.command_worker(
            at(5),
            worker,
            Command::OuterHeader(3, Some(Box::new(outer))),
        );
        provider.command_worker(
            at(5),
            worker,
            Command::PeerRoutes(VNI, Box::new([member()])),
        );
        if let Some((tx, rx)) = halves.take() {
            provider.command_worker(at(5), worker, Command::Receive(3, rx));
            provider.command_worker(at(5), worker, Command::Send(3, Box::new(tx)));
        }
    }
    for worker in 0..3 {
        // To it, from any queue: sealed by the first worker, so under one counter.
        let sent = packet("10.1.0.10", "10.1.0.77", b"to the client");
        let handed = provider.frame(at(6), worker, to_seal(4, VNI, &sent));
        assert_eq!(handed, usize::from(worker != 0));
        let frames = provider.take();
        assert_eq!(frames.len(), 1);
        let heard = test_peer.receive(at(6), &frames[0].1).expect("authentic");
        assert!(heard.starts_with(&sent));
        // From it, at any queue.
        let answer = packet("10.1.0.77", "10.1.0.10", b"from the client");
        let frame = test_peer.send(at(6), &answer);
        let handed = provider.frame(at(6), worker, frame);
        assert_eq!(handed, usize::from(worker != 0));
        let frames = provider.take();
        assert!(matches!(&frames[..], [(ACCESS, frame)] if frame.ends_with(&answer)));
    }
    assert_eq!(provider.count(Counter::Encapsulated), 3);
    assert_eq!(provider.count(Counter::Decapsulated), 3);
}

/// A peer that is silent is so for every worker; one hears it, and all give what they kept.
#[test]
fn what_every_worker_kept_comes_out_when_one_hears_the_peer() {
    let (mut tenant, mut provider) = joined_with_workers(ADDRESSES, [4, 1]);
    for worker in 0..4 {
        tenant.command_worker(at(10), worker, Command::PeerSilent(0));
        let mut frame = to_seal(4, VNI, &tcp(worker as u16));
        frame[4] = worker as u8;
        tenant.frame(at(10), worker, frame);
    }
    // Sent, in case it gets through; these did not.
    assert_eq!(tenant.take().len(), 4);
    provider.command(at(20), Command::Keepalive(0));
    let (_, frame) = provider.take().remove(0);
    tenant.frame(at(20), 0, frame);
    assert_eq!(tenant.take().len(), 1, "the worker that heard it");
    for worker in 0..4 {
        tenant.command_worker(at(21), worker, Command::PeerResponsive(0));
    }
    let frames = tenant.take();
    assert_eq!(frames.len(), 3, "the others, once each");
    assert_eq!(tenant.count(Counter::OutageFlushed), 4);
    provider.open(at(22), frames);
    let delivered = provider.take();
    assert_eq!(delivered.len(), 3);
}

fn tcp(port: u16) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(port, 80, 1, 1024)
        .write(&mut out, b"data")
        .expect("a packet");
    out
}

#[test]
fn a_session_given_to_the_wrong_worker_opens_nothing() {
    let (_, mut provider) = joined_with_workers(ADDRESSES, [1, 2]);
    let path = [ADDRESSES[0], ADDRESSES[1]];
    let (mut test_peer, _, rx) = TestPeer::new(Framing::Segments, 9, path);
    provider.command_worker(at(5), 1, Command::Receive(0, rx));
    let frame = test_peer.send(at(6), &[0; 40]);
    provider.frame(at(6), 1, frame);
    assert_eq!(provider.count(Counter::DropUnknownSession), 1);
    assert!(provider.take().is_empty());
}
