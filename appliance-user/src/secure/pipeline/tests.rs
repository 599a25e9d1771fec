//! What the pipeline does with frames, one behaviour a test.

use appliance_common::{maps::Mode, wire::mss_for};

use super::{
    pair::{ACCESS, UPLINK, VNI, address, at, join, joined, packet, pair},
    *,
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
        assert_eq!(provider.counted.network(4).rx_bytes, sent.len() as u64);
        assert_eq!(tenant.counted.network(4).tx_packets, 1);
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
    assert_eq!(tenant.count(Counter::SplitInTunnel), 1);
    provider.pipeline.report(at(20).mono, &mut provider.wire);
    assert_eq!(provider.count(Counter::Rejoined), 1);
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
        .command(at(10).mono, Command::Silent(0), &mut tenant.wire);
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
    assert_eq!(tenant.count(Counter::Released), 1);
    // Once, and not again.
    provider.seal(at(40), &packet("10.1.0.10", "10.1.0.11", b"and again"));
    let frames = provider.take();
    tenant.open(at(41), frames);
    assert_eq!(tenant.count(Counter::Released), 1);
}

#[test]
fn without_a_session_a_segment_waits_for_the_next_for_two_minutes_at_most() {
    for (wait, wanted) in [(119_000, 1), (121_000, 0)] {
        let (mut tenant, mut provider) = pair();
        // Sessions end after three minutes.
        tenant.seal(at(200_000), &segment(b"kept"));
        assert_eq!(tenant.count(Counter::Parked), 1);
        assert_eq!(tenant.count(Counter::DropNoSession), 0);
        assert!(tenant.take().is_empty());
        let now = at(200_000 + wait);
        join(&mut tenant, &mut provider, now);
        assert_eq!(tenant.count(Counter::Released), wanted);
        let frames = provider.take();
        assert_eq!(
            frames.iter().filter(|(at, _)| *at == ACCESS).count() as u64,
            wanted
        );
    }
}

/// What a tenant's machine sends, sealed; nothing of it may come out at the provider.
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
    let idle = |side: &mut super::pair::Side| {
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
    // The tenant's appliance has gone bad: it seals for that network, and for one that nobody has.
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
    let prefix = |text: &str| {
        crate::config::Net {
            address: text.parse().expect("an address"),
            length: 32,
        }
        .prefix()
    };
    let member = Member {
        prefix: prefix("10.1.0.77"),
        peer: 3,
    };
    for command in [
        Command::Peer(
            3,
            Some(Box::new(Lane::wireguard(
                VNI,
                Box::new([prefix("10.1.0.77")]),
            ))),
        ),
        Command::Members(VNI, Box::new([member])),
    ] {
        provider
            .pipeline
            .command(at(5).mono, command, &mut provider.wire);
    }
    // What is for the member goes to it (it has no way yet), the rest to the network's own peer.
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
    let told = |event: &&Event| matches!(event, Event::Used { .. });
    assert_eq!(provider.wire.events.iter().filter(told).count(), 2);
}

#[test]
fn garbage_is_counted_and_goes_nowhere() {
    use tunnel::Random as _;
    let (_, mut provider) = pair();
    let mut random = super::pair::Seeded(3);
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
        20_000 + provider.count(Counter::SplitInTunnel)
    );
    let out = provider.take();
    assert!(out.iter().all(|(ifindex, _)| *ifindex == UPLINK));
    assert_eq!(
        out.iter().filter(|(ifindex, _)| *ifindex == ACCESS).count(),
        0
    );
}
