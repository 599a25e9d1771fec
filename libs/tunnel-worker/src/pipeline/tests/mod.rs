//! Tests of the pipeline with frames, one behaviour each.

mod hostile_peer;
mod model;
mod multi_worker;

use appliance_common::{
    maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags},
    wire::mss_for,
};

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
fn a_syn_is_clamped_to_what_the_tunnel_carries() {
    let (mut tenant, mut provider) = pair();
    let mut sent = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(1, 2, 3, 4)
        .syn()
        .options(&[
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(1460),
        ])
        .expect("options")
        .write(&mut sent, &[])
        .expect("a packet");
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(11), frames);
    let out = provider.take();
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&out[0].1).expect("a frame");
    let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(etherparse::TransportHeader::Tcp(tcp))) =
        (headers.net, headers.transport)
    else {
        panic!("no TCP over IPv4");
    };
    let mss = tcp.options_iterator().find_map(|option| match option {
        Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    assert_eq!(mss, Some(mss_for(1432, false)));
    assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]), Ok(tcp.checksum));
    assert_eq!(provider.count(Counter::MssClamped), 1);
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
fn an_idle_tenant_s_packets_go_nowhere() {
    let idle = |side: &mut crate::testing::TestAppliance| {
        let tenant = Tenant {
            mode: Mode::Idle as u32,
            epoch: 2,
        };
        side.pipeline
            .command(at(5).mono, Command::Tenant(0, tenant), &mut side.wire);
    };
    let (mut tenant, mut provider) = pair();
    idle(&mut provider);
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
    let frames = tenant.take();
    provider.open(at(11), frames);
    assert_eq!(provider.count(Counter::DropIdle), 1);
    idle(&mut tenant);
    tenant.seal(at(12), &packet("10.1.0.11", "10.1.0.10", b"x"));
    assert_eq!(tenant.count(Counter::DropIdle), 1);
    assert!(tenant.take().is_empty() && provider.take().is_empty());
}

#[test]
fn a_peer_has_no_part_in_another_peer_s_network() {
    let (mut tenant, mut provider) = pair();
    // A second tenant's network at the provider, of another peer, with the same subnet.
    let mut network = Network {
        vni: 2001,
        tenant: 1,
        peer: 7,
        flags: appliance_common::maps::network_flags::ACTIVE
            | appliance_common::maps::network_flags::SECURE
            | appliance_common::maps::network_flags::PROVIDER,
        mtu: 1432,
        lan_mtu: u16::MAX,
        ..Network::default()
    };
    network.prefix_count = 0;
    let partial = Tenant {
        mode: Mode::Partial as u32,
        epoch: 1,
    };
    let host = HostKey {
        vni: 2001,
        address: address("10.1.0.10"),
    };
    for command in [
        Command::Network(9, Some(Box::new(network))),
        Command::Tenant(1, partial),
        Command::Endpoint(host, true),
    ] {
        provider
            .pipeline
            .command(at(5).mono, command, &mut provider.wire);
    }
    // A hostile tenant's appliance encrypts for that network, and for one that does not exist.
    for (vni, reason) in [
        (2001, Counter::DropWrongPeer),
        (3001, Counter::DropUnknownVni),
    ] {
        let mut theirs = network;
        theirs.vni = vni;
        theirs.peer = 0;
        theirs.tenant = 0;
        theirs.flags &= !appliance_common::maps::network_flags::PROVIDER;
        let command = Command::Network(4, Some(Box::new(theirs)));
        tenant
            .pipeline
            .command(at(6).mono, command, &mut tenant.wire);
        let mut frame = Vec::new();
        frame.extend_from_slice(&4_u32.to_ne_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&((1 << 24) | vni).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&packet("10.1.0.11", "10.1.0.10", b"x"));
        tenant
            .pipeline
            .frame(at(10).mono, &mut frame, &mut tenant.wire);
        let frames = tenant.take();
        assert_eq!(frames.len(), 1);
        provider.open(at(11), frames);
        assert!(provider.take().is_empty());
        assert_eq!(provider.count(reason), 1);
    }
}

#[test]
fn a_wireguard_member_has_its_own_addresses_and_no_others() {
    let (mut tenant, mut provider) = pair();
    let prefix = |text: &str| prefix(text, 32);
    let member = PeerRoute {
        prefix: prefix("10.1.0.77"),
        peer: 3,
    };
    for command in [
        Command::Peer(
            3,
            Some(Box::new(PeerLanes::wireguard(
                LaneAssignment::WHOLE,
                VNI,
                Box::new([prefix("10.1.0.77")]),
            ))),
        ),
        Command::PeerRoutes(VNI, Box::new([member])),
    ] {
        provider
            .pipeline
            .command(at(5).mono, command, &mut provider.wire);
    }
    // A packet for the member goes to it (it has no path yet), others to the network's own peer.
    provider.seal(at(10), &packet("10.1.0.10", "10.1.0.77", b"x"));
    assert_eq!(provider.count(Counter::DropNoPeer), 1);
    provider.seal(at(10), &packet("10.1.0.10", "10.1.0.78", b"x"));
    let frames = provider.take();
    assert_eq!(frames.len(), 1);
    tenant.open(at(11), frames);
    assert_eq!(tenant.wire.waiting.len(), 1);
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

#[test]
fn garbage_is_counted_and_goes_nowhere() {
    use tunnel::Random as _;

    let (_, mut provider) = pair();
    let mut random = crate::testing::Seeded(3);
    let before: u64 = Counter::ALL.iter().map(|c| provider.count(*c)).sum();
    for round in 0..20_000_u64 {
        let mut frame = vec![0; (random.u32() % 300) as usize];
        random.fill(&mut frame);
        // Often enough something that begins well.
        if frame.len() > 50 && round % 2 == 0 {
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[14] = 0x45;
            frame[23] = 17;
            let udp = (frame.len() - 34) as u16;
            frame[38..40].copy_from_slice(&udp.to_be_bytes());
        } else if frame.len() > 20 && round % 4 == 1 {
            frame[..4].copy_from_slice(&4_u32.to_ne_bytes());
            frame[12..14].copy_from_slice(&[0, 0]);
        }
        provider
            .pipeline
            .frame(at(20).mono, &mut frame, &mut provider.wire);
    }
    let after: u64 = Counter::ALL.iter().map(|c| provider.count(*c)).sum();
    assert_eq!(
        after - before,
        20_000 + provider.count(Counter::TunnelFragmented)
    );
    let out = provider.take();
    assert!(out.iter().all(|(ifindex, _)| *ifindex == UPLINK));
    assert_eq!(
        out.iter().filter(|(ifindex, _)| *ifindex == ACCESS).count(),
        0
    );
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

fn whole(vni: u32, packet: &[u8]) -> Vec<u8> {
    let mut plaintext = Header::whole(PayloadKind::Ip, vni).to_bytes().to_vec();
    plaintext.extend_from_slice(packet);
    plaintext
}

/// The VLANs that frames went out on at the provider.
fn vlans(side: &mut TestAppliance) -> Vec<u16> {
    let vlan = |frame: &[u8]| u16::from_be_bytes([frame[14], frame[15]]);
    let frames = side.take();
    assert!(frames.iter().all(|(ifindex, _)| *ifindex == ACCESS));
    frames.iter().map(|(_, frame)| vlan(frame)).collect()
}

fn counter_on_wire(frame: &[u8]) -> u64 {
    frame[50..58]
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .expect("eight bytes")
}

#[test]
fn two_tenants_with_equal_subnets_never_meet() {
    let (mut tenant, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    let sent = packet("10.1.0.11", "10.1.0.10", b"x");
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(10), frames);
    assert_eq!(vlans(&mut provider), [101]);
    let own = test_peer.send(at(11), &whole(OTHER, &sent));
    provider.open(at(11), vec![(UPLINK, own)]);
    assert_eq!(vlans(&mut provider), [201]);
    // Authentic, but of the other tenant's network: whole, and as the last of two pieces.
    let foreign = test_peer.send(at(12), &whole(VNI, &sent));
    provider.open(at(12), vec![(UPLINK, foreign)]);
    assert_eq!(provider.count(Counter::DropWrongPeer), 1);
    for index in 0..2 {
        let header = Header {
            kind: PayloadKind::Ip,
            network: VNI,
            stride: 20,
            index,
            last: 1,
        };
        let half = if index == 0 { &sent[..20] } else { &sent[20..] };
        let piece = test_peer.send(at(13), &[&header.to_bytes()[..], half].concat());
        provider.open(at(13), vec![(UPLINK, piece)]);
    }
    assert_eq!(provider.count(Counter::DropWrongPeer), 2);
    assert!(provider.take().is_empty());
    // And out: each network's packets go to its peer, by that one's keys.
    let sent = packet("10.1.0.10", "10.1.0.11", b"y");
    let mut frame = crate::testing::to_seal(9, OTHER, &sent);
    provider
        .pipeline
        .frame(at(14).mono, &mut frame, &mut provider.wire);
    let frames = provider.take();
    assert_eq!(frames[0].1[30..34], [192, 0, 2, 9]);
    let heard = test_peer.receive(at(14), &frames[0].1).expect("authentic");
    assert_eq!(heard, [&OTHER.to_be_bytes()[..], &sent].concat());
    tenant.open(at(14), frames);
    assert_eq!(tenant.count(Counter::DropUnknownSession), 1);
    provider.seal(at(15), &sent);
    let frames = provider.take();
    assert_eq!(test_peer.receive(at(15), &frames[0].1), None);
    tenant.open(at(15), frames);
    assert_eq!(tenant.count(Counter::Decapsulated), 1);
}

#[test]
fn a_slot_that_changed_hands_sends_nothing_of_the_old_tenant_to_the_new_one_s_peer() {
    let (_, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    // Kept while the first tenant's tunnel is silent.
    provider.command(at(6), Command::PeerSilent(0));
    let mut kept = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 10], [10, 1, 0, 11], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut kept, b"kept")
        .expect("a packet");
    provider.seal(at(6), &kept);
    provider.take();
    // The network of slot 4 goes, and the second tenant gets the slot for one more network.
    let network = Network {
        vni: OTHER + 1,
        tenant: 1,
        peer: 1,
        flags: network_flags::ACTIVE | network_flags::SECURE | network_flags::PROVIDER,
        mtu: 1432,
        lan_mtu: u16::MAX,
        ..Network::default()
    };
    provider.command(at(7), Command::Network(4, Some(Box::new(network))));
    // Frames that the programs handed over before that, whole and longer than the path.
    for len in [1, 1472] {
        provider.seal(at(8), &packet("10.1.0.10", "10.1.0.11", &vec![7; len]));
    }
    assert_eq!(provider.count(Counter::DropInconsistent), 2);
    // The first tenant's tunnel is back.
    let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], test_peer.path[1], test_peer.path[0]);
    let (_, tx, _) = TestPeer::new(Framing::Segments, 6, ["192.0.2.8:1", "203.0.113.5:1"]);
    provider.command(at(9), Command::OuterHeader(0, outer.map(Box::new)));
    provider.command(at(9), Command::Send(0, Box::new(tx)));
    assert_eq!(provider.count(Counter::DropInconsistent), 3);
    assert!(provider.take().is_empty());
    assert_eq!(test_peer.receiver.stats().opened, 0);
    let _ = &mut test_peer;
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
fn a_datagram_of_no_session_known_is_dropped() {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
    let mut frames = tenant.take();
    // Past the lanes of the session.
    frames[0].1[46] ^= 1 << 6;
    provider.pipeline.report(at(10).mono, &mut provider.wire);
    provider.open(at(11), frames);
    assert_eq!(provider.count(Counter::DropUnknownSession), 1);
    assert!(!provider.pipeline.dirty());
}

#[test]
fn outer_headers_that_do_not_hold_together_are_refused() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(&str, Spoil); 13] = [
        ("an ARP packet", |f| f[12..14].copy_from_slice(&[8, 6])),
        ("a tag", |f| f[12..14].copy_from_slice(&[0x81, 0])),
        ("version 6", |f| f[14] = 0x65),
        ("IP options", |f| f[14] = 0x46),
        ("TCP", |f| f[23] = 6),
        ("a UDP length under its header", |f| {
            f[38..40].copy_from_slice(&[0, 7])
        }),
        ("no payload", |f| f[38..40].copy_from_slice(&[0, 8])),
        ("a UDP length past the frame", |f| f[39] += 1),
        ("seven bytes of message", |f| {
            f[38..40].copy_from_slice(&[0, 15])
        }),
        ("a message under its tag", |f| {
            f[38..40].copy_from_slice(&[0, 39])
        }),
        ("cut in the UDP header", |f| f.truncate(40)),
        ("cut in the IP header", |f| f.truncate(30)),
        ("not of type 4", |f| f[42] = 1),
    ];
    for (what, spoil) in cases {
        let (mut tenant, mut provider) = pair();
        tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
        let mut frames = tenant.take();
        spoil(&mut frames[0].1);
        provider.open(at(11), frames);
        assert_eq!(provider.count(Counter::DropBadDatagram), 1, "{what}");
        assert!(provider.take().is_empty(), "{what}");
    }
    let (_, mut provider) = pair();
    for len in 0..14 {
        provider.open(at(11), vec![(UPLINK, vec![8; len])]);
    }
    assert_eq!(provider.count(Counter::DropMalformed), 14);
    // A packet to seal that is none.
    for len in 14..17 {
        provider.open(at(11), vec![(UPLINK, vec![0; len])]);
    }
    assert_eq!(
        provider.count(Counter::DropMalformed) + provider.count(Counter::DropInconsistent),
        17
    );
}

/// A member of the provider's network with the addresses of `nets`, in `slot`.
fn member(provider: &mut TestAppliance, slot: u32, nets: &[(&str, u8)]) -> TestPeer {
    let nets: Box<[Prefix]> = nets.iter().map(|(n, l)| prefix(n, *l)).collect();
    let from = format!("192.0.2.{slot}:51820");
    let path = [from.as_str(), "203.0.113.5:6180"];
    let (test_peer, tx, rx) = TestPeer::new(Framing::WireGuard, u64::from(slot), path);
    for command in test_peer.commands(
        slot,
        PeerLanes::wireguard(LaneAssignment::WHOLE, VNI, nets),
        (tx, rx),
    ) {
        provider.command(at(5), command);
    }
    test_peer
}

#[test]
fn a_wireguard_peer_s_addresses_are_its_own_both_ways() {
    let (mut tenant, mut provider) = pair();
    let mut test_peer = member(&mut provider, 3, &[("10.1.0.77", 32)]);
    let members = [("10.1.0.77", 32, 3), ("10.1.0.78", 32, 3)].map(|(n, l, peer)| PeerRoute {
        prefix: prefix(n, l),
        peer,
    });
    provider.command(at(5), Command::PeerRoutes(VNI, Box::new(members)));
    // In: bare IP packets, padded; the padding is cut.
    let mut sent = packet("10.1.0.77", "10.1.0.10", b"in");
    let len = sent.len();
    sent.resize(len.next_multiple_of(16), 0);
    let frame = test_peer.send(at(10), &sent);
    provider.open(at(10), vec![(UPLINK, frame)]);
    let out = provider.take();
    assert_eq!(out[0].1[18..], sent[..len]);
    for (source, reason) in [
        ("10.1.0.78", Counter::DropNotAllowed),
        ("10.1.0.11", Counter::DropNotAllowed),
        ("10.1.0.10", Counter::DropNotAllowed),
        ("169.254.0.1", Counter::DropLinkLocal),
    ] {
        let before = provider.count(reason);
        let frame = test_peer.send(at(11), &packet(source, "10.1.0.10", b"not mine"));
        provider.open(at(11), vec![(UPLINK, frame)]);
        assert_eq!(provider.count(reason), before + 1, "{source}");
    }
    // To another member or the network's own peer it does not go through here.
    let frame = test_peer.send(at(12), &packet("10.1.0.77", "10.1.0.11", b"across"));
    provider.open(at(12), vec![(UPLINK, frame)]);
    assert_eq!(provider.count(Counter::DropSplitHorizon), 1);
    let frame = test_peer.send(at(12), b"no packet");
    provider.open(at(12), vec![(UPLINK, frame)]);
    assert_eq!(provider.count(Counter::DropBadSegment), 1);
    assert!(provider.take().is_empty());
    // Out: what is its own; what the list gives it beyond that is refused.
    let reply = packet("10.1.0.10", "10.1.0.77", b"out");
    provider.seal(at(13), &reply);
    let frames = provider.take();
    assert_eq!(
        test_peer.receive(at(13), &frames[0].1).as_ref(),
        Some(&reply)
    );
    let before = provider.count(Counter::DropNotAllowed);
    provider.seal(at(14), &packet("10.1.0.10", "10.1.0.78", b"out"));
    assert_eq!(provider.count(Counter::DropNotAllowed), before + 1);
    assert!(provider.take().is_empty());
    // The rest is the network's own peer's.
    provider.seal(at(15), &packet("10.1.0.10", "10.1.0.11", b"out"));
    let frames = provider.take();
    tenant.open(at(15), frames);
    assert_eq!(tenant.count(Counter::Decapsulated), 1);
    // Longer than the path: a WireGuard peer reassembles nothing.
    provider.seal(at(16), &packet("10.1.0.10", "10.1.0.77", &[0; 1500]));
    assert_eq!(provider.count(Counter::DropTooLong), 1);
}

#[test]
fn of_two_members_the_longer_prefix_wins_both_ways() {
    let (_, mut provider) = pair();
    let mut wide = member(&mut provider, 3, &[("10.1.0.64", 26)]);
    let mut narrow = member(&mut provider, 2, &[("10.1.0.96", 28)]);
    let members = [("10.1.0.64", 26, 3), ("10.1.0.96", 28, 2)].map(|(n, l, peer)| PeerRoute {
        prefix: prefix(n, l),
        peer,
    });
    for members in [members, [members[1], members[0]]] {
        provider.command(at(6), Command::PeerRoutes(VNI, Box::new(members)));
        for (to, narrowly) in [
            ("10.1.0.65", false),
            ("10.1.0.95", false),
            ("10.1.0.96", true),
            ("10.1.0.111", true),
            ("10.1.0.112", false),
        ] {
            provider.seal(at(10), &packet("10.1.0.10", to, b"x"));
            let frames = provider.take();
            assert_eq!(
                narrow.receive(at(10), &frames[0].1).is_some(),
                narrowly,
                "{to}"
            );
            assert_eq!(
                wide.receive(at(10), &frames[0].1).is_some(),
                !narrowly,
                "{to}"
            );
            let before = provider.count(Counter::DropNotAllowed);
            for test_peer in [&mut narrow, &mut wide] {
                let frame = test_peer.send(at(11), &packet(to, "10.1.0.10", b"x"));
                provider.open(at(11), vec![(UPLINK, frame)]);
            }
            assert_eq!(vlans(&mut provider), [101], "{to}: from one of them");
            assert_eq!(provider.count(Counter::DropNotAllowed), before + 1, "{to}");
        }
    }
    // Without the list all goes to the network's own peer, and nothing comes from members.
    provider.command(at(12), Command::PeerRoutes(VNI, Box::default()));
    provider.seal(at(12), &packet("10.1.0.10", "10.1.0.96", b"x"));
    let frames = provider.take();
    assert_eq!(frames[0].1[30..34], [198, 51, 100, 5]);
}

#[test]
fn a_retired_session_is_over_and_another_peer_s_is_not() {
    let (mut tenant, mut provider) = pair();
    let mut test_peer = second_tenant(&mut provider);
    let sent = packet("10.1.0.11", "10.1.0.10", b"x");
    let name = |side: &mut TestAppliance| {
        side.pipeline.mark_all_dirty();
        side.wire.events.clear();
        side.pipeline.report(at(6).mono, &mut side.wire);
        side.wire
            .events
            .iter()
            .find_map(|event| match event {
                Event::Activity { peer: 0, tx, .. } => tx.session,
                _ => None,
            })
            .expect("a session")
    };
    let index = name(&mut provider);
    // The same name in another slot is another session.
    provider.command(at(7), Command::Retire(1, index));
    tenant.seal(at(8), &sent);
    let frames = tenant.take();
    provider.open(at(8), frames);
    assert_eq!(vlans(&mut provider), [101]);
    provider.command(at(9), Command::Retire(0, index));
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(10), frames);
    assert_eq!(provider.count(Counter::DropUnknownSession), 1);
    provider.seal(at(10), &packet("10.1.0.10", "10.1.0.11", b"y"));
    assert_eq!(provider.count(Counter::DropNoSession), 1);
    let frame = test_peer.send(at(11), &whole(OTHER, &sent));
    provider.open(at(11), vec![(UPLINK, frame)]);
    assert_eq!(vlans(&mut provider), [201]);
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

/// An IPv6 SYN behind `chain`: extension headers with their types, of eight bytes each.
fn syn6(chain: &[u8], to: &str) -> Vec<u8> {
    let mut tcp = vec![
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 2, 0, 0, 0, 0, 0, 0,
    ];
    tcp.extend_from_slice(&[2, 4, 0x05, 0xa0]);
    let mut payload = Vec::new();
    for at in 0..chain.len() {
        let next = chain.get(at + 1).copied().unwrap_or(6);
        payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend_from_slice(&tcp);
    let mut out = packet("2001:db8:1::11", to, &payload[8..]);
    out[6] = chain.first().copied().unwrap_or(6);
    out[40..].copy_from_slice(&payload);
    out
}

#[test]
fn a_syn_is_found_behind_four_extension_headers_and_no_more() {
    for (chain, clamped) in [
        (&[][..], 1),
        (&[0], 1),
        (&[60, 43], 1),
        (&[0, 43, 60, 60], 1),
        (&[0, 43, 60, 60, 60], 0),
        (&[44], 0),
    ] {
        let (mut tenant, mut provider) = pair();
        let sent = syn6(chain, "2001:db8:1::10");
        tenant.seal(at(10), &sent);
        let frames = tenant.take();
        provider.open(at(11), frames);
        let out = provider.take();
        let mss = &out[0].1[out[0].1.len() - 2..];
        let wanted = if clamped == 1 {
            mss_for(1432, true)
        } else {
            0x05a0
        };
        assert_eq!(mss, wanted.to_be_bytes(), "{chain:?}");
        assert_eq!(provider.count(Counter::MssClamped), clamped, "{chain:?}");
    }
}

#[test]
fn a_syn_that_waits_for_its_host_is_clamped_too() {
    let (mut tenant, mut provider) = pair();
    let unresolved = "2001:db8:1::12";
    provider.command(at(5), Command::Endpoint(host(VNI, unresolved), true));
    let sent = syn6(&[], unresolved);
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(11), frames);
    let [(header, waiting)] = provider.wire.waiting.as_slice() else {
        panic!("nothing waits");
    };
    assert_eq!(header.len as usize, sent.len());
    assert_eq!(waiting[62..64], mss_for(1432, true).to_be_bytes());
    assert_eq!(provider.count(Counter::MssClamped), 1);
    assert_eq!(provider.count(Counter::SlowUnresolved), 1);
}

#[test]
fn packets_to_an_absent_host_are_dropped_and_not_handed_over() {
    let (mut tenant, mut provider) = pair();
    let key = host(VNI, "10.1.0.10");
    let absent = Neighbour::absent().tagged(&key);
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
fn hosts_behind_the_tenant_s_router_are_sent_to_it() {
    let (mut tenant, mut provider) = pair();
    let far = packet("10.1.0.10", "10.9.9.9", b"far");
    provider.seal(at(10), &far);
    let frames = provider.take();
    tenant.open(at(10), frames);
    assert_eq!(tenant.wire.waiting[0].0.next_hop, address("10.1.0.1"));
    let router = Neighbour::new(ACCESS, [2, 0, 0, 0, 0, 0x77], [4; 6], 0, 0, 0x8100);
    let key = host(VNI, "10.1.0.1");
    tenant.command(at(11), Command::Neighbour(key, Some(Box::new(router))));
    provider.seal(at(12), &far);
    let frames = provider.take();
    tenant.open(at(12), frames);
    let out = tenant.take();
    assert_eq!(out[0].1[..6], [2, 0, 0, 0, 0, 0x77]);
    assert_eq!(out[0].1[14..], far);
    assert!(tenant.wire.events.contains(&Event::HostUsed { key }));
    // There is no router for IPv6.
    provider.seal(at(13), &packet("2001:db8:1::10", "2001:db8:9::9", b"far"));
    let frames = provider.take();
    tenant.open(at(13), frames);
    assert_eq!(tenant.count(Counter::DropSplitHorizon), 1);
    // The provider has no hosts but replicas.
    tenant.seal(at(14), &packet("10.1.0.11", "10.9.9.9", b"far"));
    let frames = tenant.take();
    provider.open(at(14), frames);
    assert_eq!(provider.count(Counter::DropSplitHorizon), 1);
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

#[test]
fn behind_a_circuits_id_a_datagram_is_as_any() {
    let id = std::num::NonZeroU64::new(0x3f9a_1c02_77d1_e05b).expect("an id");
    for (local, gateway) in [
        ("198.51.100.2:6180", "192.0.2.10:6181"),
        ("[2001:db8::2]:6180", "[2001:db8:a::10]:6181"),
    ] {
        let [local, gateway] = [local, gateway].map(|text| text.parse().expect("an address"));
        let message = |len: usize| [&[4, 1, 0, 0][..], &vec![0x5a; len - 4]].concat();
        for (path, front) in [
            (PeerPath::Direct(gateway), &[][..]),
            (
                PeerPath::Circuit { gateway, id },
                &id.get().to_be_bytes()[..],
            ),
        ] {
            let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], local, path).expect("one family");
            for len in [32, 33, 1400] {
                let mut frame = vec![0xee; 2048];
                frame[outer.bytes()..outer.bytes() + len].copy_from_slice(&message(len));
                let total = outer.finish(&mut frame, len).expect("it fits");
                frame.truncate(total);
                let sliced = etherparse::SlicedPacket::from_ethernet(&frame).expect("a frame");
                let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else {
                    panic!("{sliced:?}");
                };
                assert_eq!(udp.destination_port(), 6181);
                assert_eq!(
                    udp.payload(),
                    [front, &message(len)].concat(),
                    "{path}, {len}"
                );
                if let Some(etherparse::NetSlice::Ipv6(ip)) = &sliced.net {
                    let (from, to) = (ip.header().source(), ip.header().destination());
                    let header = udp.to_header();
                    let sum = header.calc_checksum_ipv6_raw(from, to, udp.payload());
                    assert_eq!(sum.expect("short"), udp.checksum(), "{path}, {len}");
                }
                // The other end sees where it came from.
                let (from, at) = parse_datagram(&frame).expect("a datagram");
                let back = match path.circuit() {
                    None => PeerPath::Direct(local),
                    Some(id) => PeerPath::Circuit { gateway: local, id },
                };
                assert_eq!(from, back);
                assert_eq!(frame[at], message(len));
            }
        }
        assert_eq!(
            OuterHeader::new(UPLINK, [9; 6], [8; 6], local, PeerPath::Stream(id)),
            None
        );
    }
    let stream = OuterHeader::tls(id);
    assert_eq!(
        (stream.bytes(), stream.finish(&mut [0; 40], 32)),
        (0, Some(32))
    );
    assert_eq!(stream.finish(&mut [0; 31], 32), None);
}

#[test]
fn an_id_is_told_from_a_type_by_two_bytes() {
    assert_eq!(circuit_id(&[4, 1, 0, 0, 1, 2, 3, 4, 5]), None, "a message");
    assert_eq!(circuit_id(&[0; 64]), None, "a gateway's message");
    for at in [2, 3] {
        let mut id = [0; 8];
        id[at] = 1;
        let number = std::num::NonZeroU64::new(u64::from_be_bytes(id));
        assert_eq!(circuit_id(&[&id[..], &[4, 0, 0, 0]].concat()), number);
        assert_eq!(circuit_id(&id[..7]), None);
    }
}
