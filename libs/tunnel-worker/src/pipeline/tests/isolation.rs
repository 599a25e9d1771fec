//! Packets of a tenant or peer reach no other one.

use super::*;

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
