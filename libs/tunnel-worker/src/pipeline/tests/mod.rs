//! Tests of the pipeline with frames, one behaviour each.

mod datagrams;
mod hostile_peer;
mod isolation;
mod model;
mod mss;
mod multi_worker;
mod outage;

use appliance_common::maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags};

use super::*;
use crate::testing::{
    ACCESS, TestAppliance, TestPeer, UPLINK, VNI, address, at, join, joined, packet, pair,
};

#[test]
fn a_packet_crosses_byte_for_byte() {
    for (from, to) in [
        ("10.1.0.11", "10.1.0.10"),
        ("2001:db8:1::11", "2001:db8:1::10"),
    ] {
        let (mut tenant, mut provider) = pair();
        let sent = packet(from, to, b"what a machine says");
        tenant.seal(at(10), &sent);
        let frames = tenant.take();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].0, UPLINK);
        assert!(!frames[0].1.windows(8).any(|w| w == b"what a m"));
        provider.open(at(11), frames);
        let out = provider.take();
        let [(ifindex, frame)] = out.as_slice() else {
            panic!("{} frames", out.len());
        };
        assert_eq!(*ifindex, ACCESS);
        assert_eq!(frame[12..14], [0x81, 0]);
        assert_eq!(u16::from_be_bytes([frame[14], frame[15]]), 101);
        assert_eq!(frame[18..], sent);
        assert_eq!(provider.count(Counter::Decapsulated), 1);
        assert_eq!(provider.counters.network(4).rx_bytes, sent.len() as u64);
        assert_eq!(tenant.counters.network(4).tx_packets, 1);
    }
}

#[test]
fn over_ipv6_the_outer_checksum_is_right() {
    let (mut tenant, mut provider) = joined(["[2001:db8:5::1]:6180", "[2001:db8:6::1]:6180"]);
    for len in [1, 2, 7, 500, 1300] {
        tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", &vec![0x77; len]));
        let frames = tenant.take();
        let datagram = &frames[0].1;
        let headers = etherparse::PacketHeaders::from_ethernet_slice(datagram).expect("a frame");
        let (
            Some(etherparse::NetHeaders::Ipv6(ip, _)),
            Some(etherparse::TransportHeader::Udp(udp)),
        ) = (headers.net, headers.transport)
        else {
            panic!("no UDP over IPv6");
        };
        let wanted = udp.calc_checksum_ipv6(&ip, headers.payload.slice());
        assert_eq!(Ok(udp.checksum), wanted.map_err(|_| ()));
        provider.open(at(11), frames);
    }
    assert_eq!(provider.count(Counter::Decapsulated), 5);
}

#[test]
fn a_longer_packet_goes_in_pieces_and_arrives_whole() {
    let (mut tenant, mut provider) = pair();
    let sent = packet("10.1.0.11", "10.1.0.10", &[0x5a; 1472]);
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|(_, frame)| frame.len() <= 14 + 1500));
    provider.open(at(11), frames);
    let out = provider.take();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].1[18..], sent);
    assert_eq!(tenant.count(Counter::TunnelFragmented), 1);
    provider.pipeline.report(at(20).mono, &mut provider.wire);
    assert_eq!(provider.count(Counter::TunnelReassembled), 1);
}

#[test]
fn what_was_seen_or_touched_is_refused() {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"once"));
    let frames = tenant.take();
    provider.open(at(11), frames.clone());
    provider.open(at(12), frames.clone());
    assert_eq!(provider.count(Counter::DropReplayed), 1);
    tenant.seal(at(13), &packet("10.1.0.11", "10.1.0.10", b"twice"));
    let mut frames = tenant.take();
    frames[0].1[60] ^= 1;
    provider.open(at(14), frames);
    assert_eq!(provider.count(Counter::DropForged), 1);
    assert_eq!(provider.take().len(), 1);
}

#[test]
fn a_packet_without_a_resolved_host_waits() {
    let (mut tenant, mut provider) = pair();
    let sent = packet("10.1.0.10", "10.1.0.77", b"who is there");
    provider.seal(at(10), &sent);
    let frames = provider.take();
    tenant.open(at(11), frames);
    assert!(tenant.take().is_empty());
    let [(header, waiting)] = tenant.wire.waiting.as_slice() else {
        panic!("nothing waits");
    };
    assert_eq!(header.next_hop, address("10.1.0.77"));
    assert_eq!(*waiting, sent);
}

/// Seals a packet of a tenant's machine; asserts that the provider drops it for `reason`.
fn refused(packet: &[u8], reason: Counter) {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), packet);
    let frames = tenant.take();
    assert_eq!(frames.len(), 1, "{reason:?}: the sender carries it");
    provider.open(at(11), frames);
    assert!(provider.take().is_empty(), "{reason:?}: came out");
    assert_eq!(provider.count(reason), 1, "{reason:?}");
}

#[test]
fn what_comes_out_is_checked_as_in_the_programs() {
    let from = "10.1.0.11";
    for (packet, reason) in [
        // From an address of this side.
        (
            packet("10.1.0.10", "10.1.0.10", b"x"),
            Counter::DropInnerSource,
        ),
        // To an address of the other side.
        (packet(from, "10.1.0.12", b"x"), Counter::DropSplitHorizon),
        (packet(from, "10.1.0.255", b"x"), Counter::DropNotCarried),
        (packet(from, "10.1.0.0", b"x"), Counter::DropNotCarried),
        (packet(from, "224.0.0.1", b"x"), Counter::DropNotCarried),
        (
            packet("127.0.0.1", "10.1.0.10", b"x"),
            Counter::DropInnerSource,
        ),
        (
            packet("169.254.1.1", "10.1.0.10", b"x"),
            Counter::DropLinkLocal,
        ),
        (
            packet("fe80::1", "2001:db8:1::10", b"x"),
            Counter::DropLinkLocal,
        ),
        (
            packet("2001:db8:1::11", "ff02::1", b"x"),
            Counter::DropNotCarried,
        ),
        (
            packet("::1", "2001:db8:1::10", b"x"),
            Counter::DropInnerSource,
        ),
    ] {
        refused(&packet, reason);
    }
    let mut short = packet(from, "10.1.0.10", b"shorter than it says");
    short.truncate(30);
    refused(&short, Counter::DropMalformed);
    // Neighbour discovery, bare and behind an extension header.
    let mut discovery = packet("2001:db8:1::11", "2001:db8:1::10", &[0; 24]);
    discovery[6] = 58;
    discovery[40] = 135;
    refused(&discovery, Counter::DropNotCarried);
    let mut behind = packet("2001:db8:1::11", "2001:db8:1::10", &[0; 24]);
    behind[6] = 60;
    behind[40..42].copy_from_slice(&[58, 0]);
    behind[48] = 136;
    refused(&behind, Counter::DropNotCarried);
}

#[test]
fn a_full_ring_drops_and_no_counter_is_used_twice() {
    let (mut tenant, mut provider) = pair();
    let sent = packet("10.1.0.11", "10.1.0.10", b"x");
    tenant.wire.full = true;
    tenant.seal(at(10), &sent);
    assert_eq!(tenant.count(Counter::DropTxFull), 1);
    tenant.wire.full = false;
    for _ in 0..3 {
        tenant.seal(at(11), &sent);
    }
    let frames = tenant.take();
    let mut counters: Vec<_> = frames
        .iter()
        .map(|(_, frame)| frame[50..58].to_vec())
        .collect();
    counters.dedup();
    assert_eq!(counters.len(), 3);
    provider.wire.full = true;
    provider.open(at(12), frames.clone());
    assert_eq!(provider.count(Counter::DropTxFull), 3);
    // Opened is opened: a second try is a replay.
    provider.wire.full = false;
    provider.open(at(13), frames);
    assert_eq!(provider.count(Counter::DropReplayed), 3);
}

#[test]
fn a_retired_session_opens_nothing() {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
    let frames = tenant.take();
    provider
        .pipeline
        .command(at(11).mono, Command::Peer(0, None), &mut provider.wire);
    provider.open(at(12), frames);
    assert_eq!(provider.count(Counter::DropUnknownSession), 1);
    assert!(provider.take().is_empty());
}

#[test]
fn use_of_a_host_is_told_once_a_second() {
    let (mut tenant, mut provider) = pair();
    for ms in [10, 20, 900, 1200, 1300] {
        tenant.seal(at(ms), &packet("10.1.0.11", "10.1.0.10", b"x"));
        let frames = tenant.take();
        provider.open(at(ms), frames);
    }
    let reported = |event: &&Event| matches!(event, Event::HostUsed { .. });
    assert_eq!(provider.wire.events.iter().filter(reported).count(), 2);
}

fn host(vni: u32, text: &str) -> HostKey {
    HostKey {
        vni,
        address: address(text),
    }
}

fn prefix(text: &str, length: u8) -> Prefix {
    crate::testing::prefix(&format!("{text}/{length}"))
}

const OTHER: u32 = 2001;

/// At the provider, a second tenant's network in slot 9, of the peer in slot 1, with the addresses
/// of the first; its replica is behind VLAN 201.
fn second_tenant(provider: &mut TestAppliance) -> TestPeer {
    let path = ["192.0.2.9:6180", "203.0.113.5:6180"];
    let (test_peer, tx, rx) = TestPeer::new(Framing::Segments, 5, path);
    let mut network = Network {
        vni: OTHER,
        tenant: 1,
        peer: 1,
        flags: network_flags::ACTIVE | network_flags::SECURE | network_flags::PROVIDER,
        mtu: 1432,
        lan_mtu: u16::MAX,
        prefix_count: 1,
        ..Network::default()
    };
    network.prefixes[0] = prefix("10.1.0.0", 24);
    let partial = Tenant {
        mode: Mode::Partial as u32,
        epoch: 1,
    };
    let neighbour = Neighbour::new(ACCESS, [2, 0, 0, 0, 0, 9], [4; 6], 201, 0, 0x8100);
    for command in test_peer.commands(1, PeerLanes::appliance(LaneAssignment::WHOLE), (tx, rx)) {
        provider.command(at(5), command);
    }
    for command in [
        Command::Network(9, Some(Box::new(network))),
        Command::Tenant(1, partial),
        Command::Endpoint(host(OTHER, "10.1.0.10"), true),
        Command::Neighbour(host(OTHER, "10.1.0.10"), Some(Box::new(neighbour))),
    ] {
        provider.command(at(5), command);
    }
    test_peer
}

fn counter_on_wire(frame: &[u8]) -> u64 {
    frame[50..58]
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .expect("eight bytes")
}

#[test]
fn a_ring_that_fills_between_two_pieces_costs_the_packet_and_no_counter() {
    let (mut tenant, mut provider) = pair();
    let before = tenant.count(Counter::Encapsulated);
    let long = packet("10.1.0.11", "10.1.0.10", &[3; 1472]);
    tenant.wire.room = Some(1);
    tenant.seal(at(10), &long);
    assert_eq!(tenant.count(Counter::DropTxFull), 1);
    assert_eq!(tenant.count(Counter::Encapsulated), before);
    assert_eq!(tenant.count(Counter::TunnelFragmented), 0);
    let mut frames = tenant.take();
    tenant.wire.room = Some(0);
    tenant.seal(at(11), &long);
    tenant.wire.room = None;
    tenant.seal(at(12), &long);
    frames.extend(tenant.take());
    let counters: Vec<u64> = frames.iter().map(|(_, f)| counter_on_wire(f)).collect();
    let first = counters[0];
    assert_eq!(counters, [first, first + 1, first + 2]);
    provider.open(at(13), frames);
    let out = provider.take();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].1[18..], long);
}

#[test]
fn a_packet_goes_in_sixteen_pieces_at_most() {
    let (mut tenant, mut provider) = pair();
    tenant.command(at(5), Command::MaxDatagram(0, 1232));
    let most = 16 * (1232 - 32 - 8);
    // IPv4 and UDP headers are 28 bytes. The other end reassembles 9216 bytes.
    for (len, pieces, over) in [(most, 16, 0), (most + 1, 0, 1), (9216, 8, 1)] {
        tenant.seal(
            at(10),
            &packet("10.1.0.11", "10.1.0.10", &vec![1; len - 28]),
        );
        let frames = tenant.take();
        assert_eq!(frames.len(), pieces);
        assert_eq!(tenant.count(Counter::DropTooLong), over);
        if len == 9216 {
            // Longer than any frame of the access port.
            provider.open(at(11), frames);
            assert_eq!(provider.count(Counter::DropTooLarge), 1);
        }
    }
}

#[test]
fn packets_to_an_absent_host_are_dropped_and_not_handed_over() {
    let (mut tenant, mut provider) = pair();
    let key = host(VNI, "10.1.0.10");
    let absent = Neighbour::absent().hashed(&key);
    let mut deliver = |now, provider: &mut TestAppliance| {
        tenant.seal(at(now), &packet("10.1.0.11", "10.1.0.10", b"a scan"));
        let frames = tenant.take();
        provider.open(at(now + 1), frames);
    };
    provider.command(at(5), Command::Neighbour(key, Some(Box::new(absent))));
    deliver(10, &mut provider);
    assert_eq!(provider.count(Counter::DropHostAbsent), 1);
    assert!(
        provider.wire.waiting.is_empty(),
        "handed to the control thread"
    );
    assert!(!provider.wire.events.contains(&Event::HostUsed { key }));
    // The entry expires, and the host is asked for again.
    provider.command(at(12), Command::Neighbour(key, None));
    deliver(20, &mut provider);
    assert_eq!(provider.count(Counter::SlowUnresolved), 1);
    assert_eq!(provider.wire.waiting.len(), 1);
}

#[test]
fn bytes_behind_the_packet_are_cut() {
    for (from, to) in [
        ("10.1.0.11", "10.1.0.10"),
        ("2001:db8:1::11", "2001:db8:1::10"),
    ] {
        let (mut tenant, mut provider) = pair();
        let sent = packet(from, to, b"all of it");
        let longer = [&sent[..], b"and more"].concat();
        tenant.seal(at(10), &longer);
        let frames = tenant.take();
        provider.open(at(11), frames);
        assert_eq!(provider.take()[0].1[18..], sent);
        assert_eq!(provider.counters.network(4).rx_bytes, sent.len() as u64);
    }
}

#[test]
fn a_report_is_made_when_something_happened_and_again_when_it_was_lost() {
    let (mut tenant, mut provider) = pair();
    let reports = |side: &mut TestAppliance| {
        side.wire.events.clear();
        side.pipeline.report(at(50).mono, &mut side.wire);
        let report = |event: &&Event| matches!(event, Event::Activity { .. });
        side.wire.events.iter().filter(report).count()
    };
    assert_eq!(reports(&mut provider), 1, "of the handshake");
    assert!(!provider.pipeline.dirty());
    assert_eq!(reports(&mut provider), 0);
    // None of these is anything that the control half has to hear of.
    let commands = [
        Command::Tenant(
            0,
            Tenant {
                mode: Mode::Partial as u32,
                epoch: 2,
            },
        ),
        Command::MaxDatagram(0, 1400),
        Command::Retire(0, 0),
    ];
    for command in commands {
        provider.command(at(10), command);
    }
    provider.open(at(10), vec![(UPLINK, vec![8; 60]), (UPLINK, vec![0; 60])]);
    assert!(!provider.pipeline.dirty());
    // A packet each way is, and so is a forged one.
    provider.seal(at(11), &packet("10.1.0.10", "10.1.0.11", b"x"));
    assert_eq!(reports(&mut provider), 1);
    provider.take();
    tenant.seal(at(12), &packet("10.1.0.11", "10.1.0.10", b"x"));
    let mut frames = tenant.take();
    provider.open(at(12), frames.clone());
    assert_eq!(reports(&mut provider), 1);
    tenant.seal(at(13), &packet("10.1.0.11", "10.1.0.10", b"x"));
    frames = tenant.take();
    frames[0].1[60] ^= 1;
    provider.open(at(13), frames);
    assert_eq!(reports(&mut provider), 1);
    // Lost: told again, once, of every lane.
    second_tenant(&mut provider);
    provider.pipeline.mark_all_dirty();
    assert!(provider.pipeline.dirty());
    assert_eq!(reports(&mut provider), 2);
    assert_eq!(reports(&mut provider), 0);
}
